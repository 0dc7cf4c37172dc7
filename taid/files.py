"""Files: whole or not at all, one writer at a time, and where what is made is kept."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_dir() -> Path:
    """Where downloads, data and models are kept: `$TAID_CACHE`, else `~/.cache/taid`."""
    return Path(os.environ.get("TAID_CACHE", Path.home() / ".cache" / "taid"))


def write_whole(path: Path, text: str, alone: bool = False) -> None:
    """Write a text file so that it is there whole or not at all (temporary file, on the disk, then rename).

    `alone`: no other process writes it, by a lock; what a killed one left is then written over. Raises OSError that
    names the file, which is as it was before.
    """
    partial = path.with_name(f"{path.name}.partial" if alone else f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise type(error)(
            error.errno, f"{error.strerror}; nothing is written, and what was there is kept", str(path)
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Exclusive lock on a folder, made if need be: unlike a lock on a file in it, it outlives the file's replacement."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
