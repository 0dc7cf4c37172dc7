"""Results as tidy rows: one metric per row, append-only JSON lines, without torch.

    cell = {"method": "taid", "teacher": "phi-3-mini", "seed": 0, "learning_rate": 1e-2, "steps": 600}
    if config_hash(cell) not in finished(path):
        ...
        append(path, [Row(..., config=cell, config_hash=config_hash(cell), **asdict(provenance()))])

A *cell* is one run, the unit of work that is skipped once finished. Its config names everything that decides
its numbers, method, pair and seed included: two cells with equal configs would count as one.
"""

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from taid.files import locked

UNKNOWN = "unknown"
PACKAGES = ("torch", "transformers", "numpy")  # those whose version can change a number


class Damaged(ValueError):
    """A file of rows with a line that is none; the message names it."""


@dataclass(frozen=True)
class Row:
    """One measured number and where it comes from."""

    experiment: str  # "table1"
    scale: str  # "smoke", "cpu", "paper"
    method: str  # a name of the paper's tables, or a reference such as "teacher"
    teacher: str
    student: str
    task: str  # a category or data set; "average" over them
    seed: int
    metric: str
    value: float  # finite: a missing number has no row
    unit: str  # "points of 10", "nats/token", "seconds", ...
    higher_is_better: bool
    config: dict[str, Any]  # small: learning rate, steps, ...
    config_hash: str
    commit: str
    dirty: bool
    versions: str
    device: str
    seconds: float  # wall time of the cell
    date: str  # UTC, ISO 8601

    def __str__(self) -> str:
        pair = f"{self.teacher} → {self.student}"
        where = f"{self.experiment} ({self.scale}), {self.method}, {pair}, {self.task}, seed {self.seed}"
        return f"{where}: {self.metric}"


@dataclass(frozen=True)
class Provenance:
    """What a row records about the code and the machine behind it; `Row` has the same fields."""

    commit: str
    dirty: bool
    versions: str
    device: str
    date: str


def config_hash(config: dict[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of the config as canonical JSON (keys in any order)."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def digest(config: dict[str, Any]) -> str:
    """The name of what a config makes, 12 hex digits: of settings and of folders in the cache.

    It differs from `config_hash` in its separators alone. Both stay: committed rows hold the one, with the
    other inside.
    """
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode()).hexdigest()[:12]


def provenance(folder: Path | None = None) -> Provenance:
    """Provenance of now. `folder` lies in the repository whose commit counts, by default the script's."""
    folder = folder or _running_folder()
    commit = _git(folder, "rev-parse", "HEAD")
    # Rows appended by this very run must not make it dirty, so results/ does not count.
    changes = _git(folder, "status", "--porcelain", "--", ":(top)", ":(top,exclude)results")
    return Provenance(
        commit=commit or UNKNOWN,
        dirty=commit is None or changes != "",  # without a commit nothing vouches for the code
        versions=_versions(),
        device=_device(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def cell_rows(each: Iterable[dict[str, Any]], config: dict[str, Any], **shared) -> list[Row]:
    """The rows of one cell: `each` holds the fields in which they differ, `shared` all others but the hash of
    the config and the provenance, which are found here."""
    shared |= {"config": config, "config_hash": config_hash(config), **asdict(provenance())}
    return [Row(**fields, **shared) for fields in each]


def append(path: Path, rows: Sequence[Row]) -> None:
    """Append the rows of a cell, all or none, safely beside other processes.

    The new content replaces the file by a rename under a lock on its folder, so a kill leaves the old file or
    the new one. A torn last line (left by a copy cut short, say) is cut off with a warning, its cell with it.

    Raises ValueError, before anything is written, for a value that is not finite.
    """
    for row in rows:
        if not math.isfinite(row.value):
            raise ValueError(f"{row} is {row.value}, which is no result. Leave the row out and report why.")
    lines = "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with locked(path.parent):
        with open(partial, "w", encoding="utf-8") as file:
            file.write(_whole_lines(path) + lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def read(path: Path) -> list[Row]:
    """All rows in the order of writing; none without a file. Raises Damaged for a line that is no row."""
    rows = []
    for number, line in enumerate(_whole_lines(Path(path)).splitlines(), start=1):
        try:
            rows.append(Row(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise Damaged(f"{path}, line {number} is no row ({error}); mend or delete it") from error
    return rows


def finished(path: Path) -> set[str]:
    """Config hashes of the cells that need not run again."""
    return {row.config_hash for row in read(path)}


def _whole_lines(path: Path) -> str:
    """The file's text without a torn last line, and without the rows before it, which may be of its cell."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    *lines, torn = text.split("\n")
    if torn:
        warnings.warn(f"{path} ends in a torn line; its cell is left out: {torn[:60]}…", stacklevel=3)
        cell = _hash_of(lines[-1]) if lines else None
        while lines and _hash_of(lines[-1]) == cell:
            lines.pop()
    return "".join(line + "\n" for line in lines)


def _hash_of(line: str) -> str:
    return json.loads(line)["config_hash"]


def _running_folder() -> Path:
    script = vars(sys.modules["__main__"]).get("__file__")  # a notebook or a prompt has none
    return Path(script).resolve().parent if script else Path.cwd()


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None where it fails: no git, no repository, no commit yet."""
    try:
        run = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _versions() -> str:
    installed = {distribution: _version(distribution) for distribution in PACKAGES}
    found = [f"{name} {version}" for name, version in installed.items() if version]
    return "; ".join([f"python {platform.python_version()}", *found])


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    """The processor's name and the threads that OpenMP will use (its variable, else all cores), and the GPU."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    torch = sys.modules.get("torch")  # whose rows these are; not imported for its name
    gpu = f"; {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}{gpu}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
