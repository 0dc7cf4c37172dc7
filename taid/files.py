"""Files: whole or not at all, one writer at a time, and where what is made is kept."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """Where downloads, data and models are kept: `$TAID_CACHE`, else `~/.cache/taid`."""
    return Path(os.environ.get("TAID_CACHE", Path.home() / ".cache" / "taid"))


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all (temporary file, then rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.replace(file.name, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Exclusive lock on a folder: unlike a lock on a file in it, it outlives the file's replacement."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
