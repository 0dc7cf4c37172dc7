"""Results as tidy rows: one metric per row, append-only JSON lines, without torch.

    cell = {"method": "taid", "teacher": "phi-3-mini", "seed": 0, "learning_rate": 1e-2, "steps": 600}
    if config_hash(cell) not in finished(path):
        ...
        append_once(path, [Row(..., config=cell, config_hash=config_hash(cell), **asdict(provenance()))])

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
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from taid.files import locked, write_whole

UNKNOWN = "unknown"
TIMED = ("seconds", "minutes", "ns/element", "tokens/s", "times the live teacher's")  # units
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


def digest(config: Any, plain: Callable[[Any], Any] = list) -> str:
    """The name of what a config makes, 12 hex digits: of settings and of folders in the cache; `plain` makes JSON of
    what is none.

    It differs from `config_hash` in its separators alone. Both stay: committed rows hold the one, with the
    other inside.
    """
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=plain).encode()).hexdigest()[:12]


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
    """Append rows, all or none, safely beside other processes.

    The new content replaces the file by a rename under a lock on its folder, so a kill leaves the old file or
    the new one. A torn last line (left by a copy cut short, say) is cut off with a warning, its cell with it.

    Raises ValueError, before anything is written, for a value that is not finite.
    """
    _require_finite(rows)
    with locked(path.parent):
        _write(path, rows)


def append_once(path: Path, rows: Sequence[Row]) -> None:
    """`append`, without the cells that are there already: another process may have finished one meanwhile."""
    _require_finite(rows)
    with locked(path.parent):
        known = finished(path)
        if new := [row for row in rows if row.config_hash not in known]:
            _write(path, new)


def _require_finite(rows: Sequence[Row]) -> None:
    for row in rows:
        if not math.isfinite(row.value):
            raise ValueError(f"{row} is {row.value}, which is no result. Leave the row out and report why.")


def _write(path: Path, rows: Sequence[Row]) -> None:
    """The file with further rows in the place of the file; its folder is locked."""
    lines = "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)
    write_whole(path, _whole_lines(path) + lines, alone=True)


def read(path: Path) -> list[Row]:
    """All rows in the order of writing; none without a file. Raises Damaged for a line that is no row, whose value
    is no finite number, or whose config is not the one of its hash."""
    rows = []
    for number, line in enumerate(_whole_lines(Path(path)).splitlines(), start=1):
        try:
            row = Row(**json.loads(line))
            if not isinstance(row.value, int | float) or not math.isfinite(row.value):
                raise ValueError(f"its value is {row.value!r}")
            if config_hash(row.config) != row.config_hash:
                raise ValueError("its config is not the one of its hash")
            rows.append(row)
        except (ValueError, TypeError) as error:
            raise Damaged(f"{path}, line {number} is no row ({error}); mend or delete it") from error
    return rows


def finished(path: Path) -> set[str]:
    """Config hashes of the cells that need not run again."""
    return {row.config_hash for row in read(path)}


class Conflict(ValueError):
    """Two sources have one cell with different numbers; the message names cells, files and values."""


def merge(target: Path, sources: Sequence[Path]) -> dict[str, int]:
    """Bring the rows of other machines into the folder `target`, file by file: {file: cells that came in}.

    A cell that is there with the same numbers, those of time apart, is passed over, so that a merge may be repeated
    and sources may overlap. Raises, before anything is written, Conflict for a cell with other numbers, Damaged for a
    file with a line that is no row, ValueError for a source that is no folder with files of rows.
    """
    new: dict[str, dict[str, list[Row]]] = {}  # file → hash of a cell → its rows
    known: dict[str, dict[str, tuple[Path, list[Row]]]] = {}  # … and where they were found first
    conflicts = []
    for folder in [target, *sources]:
        files = sorted(folder.glob("*.jsonl"))
        if not files and folder != target:
            raise ValueError(f"{folder} is no folder with files of rows (*.jsonl)")
        for path in files:
            for name, rows in cells(read(path)).items():
                first, there = known.setdefault(path.name, {}).setdefault(name, (path, rows))
                conflicts += _differences(first, there, path, rows)
                if first == path and folder != target:
                    new.setdefault(path.name, {})[name] = rows
    if conflicts:
        shown = "".join(f"\n  {line}" for line in conflicts[:10])
        more = f"\n  and {len(conflicts) - 10} more" if len(conflicts) > 10 else ""
        raise Conflict(f"cells with two answers; delete the rows of one, nothing is written:{shown}{more}")
    for name, found in new.items():
        append_once(target / name, [row for rows in found.values() for row in rows])
    return {name: len(found) for name, found in new.items()}


def cells(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """{config hash: the rows of its cell}, in the order of writing."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.config_hash, []).append(row)
    return found


def _differences(first: Path, there: Sequence[Row], path: Path, rows: Sequence[Row]) -> list[str]:
    """What two files say differently of one cell. Time is measured, and differs between machines."""
    one, other = ({str(r): r.value for r in found if r.unit not in TIMED} for found in (there, rows))
    names = [name for name in one | other if one.get(name) != other.get(name)]
    return [f"{name} is {one.get(name)} in {first} and {other.get(name)} in {path}" for name in names]


def _whole_lines(path: Path) -> str:
    """The file's text without a torn last line, and without the rows before it, which may be of its cell."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    *lines, torn = text.split("\n")
    if torn:
        warnings.warn(f"{path} ends in a torn line; its cell is left out: {torn[:60]}…", stacklevel=3)
        cell = _hash_of(lines[-1]) if lines else None
        while cell and lines and _hash_of(lines[-1]) == cell:
            lines.pop()
    return "".join(line + "\n" for line in lines)


def _hash_of(line: str) -> str | None:
    """The hash of a row's cell; None of a line that is no row."""
    try:
        return json.loads(line)["config_hash"]
    except (ValueError, TypeError, KeyError):
        return None


def _running_folder() -> Path:
    script = vars(sys.modules["__main__"]).get("__file__")  # a notebook or a prompt has none
    return Path(script).resolve().parent if script else Path.cwd()


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None where it fails: no git, no repository, no commit yet. It takes no lock that a
    commit of somebody's would meet."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _versions() -> str:
    installed = {distribution: _version(distribution) for distribution in PACKAGES}
    found = [f"{name} {version}" for name, version in installed.items() if version]
    return "; ".join([f"python {platform.python_version()}", *found, *_instructions()])


def _instructions() -> list[str]:
    """The vector instructions of PyTorch's kernels: those that its variable, which workers obey, names, else its
    own choice; two machines whose rows differ here round differently."""
    torch = sys.modules.get("torch")
    chosen = os.environ.get("ATEN_CPU_CAPABILITY") or (torch and torch.backends.cpu.get_cpu_capability())
    return [f"instructions {chosen.lower()}"] if chosen else []


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


def main(words: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m taid.results", description="Rows of several machines in one folder."
    )
    merging = parser.add_subparsers(required=True, metavar="merge").add_parser(
        "merge", help="bring rows together"
    )
    merging.add_argument("target", type=Path, help="the folder that they go into")
    merging.add_argument("sources", type=Path, nargs="+", help="folders with files of rows")
    given = parser.parse_args(words)
    try:
        merged = merge(given.target, given.sources)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    counts = ", ".join(f"{name} {count}" for name, count in merged.items())
    print(f"cells that came into {given.target}: {counts or 'none, all were there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
