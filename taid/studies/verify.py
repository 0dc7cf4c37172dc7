"""Does a committed number come out again? One cell from scratch, without any model that was kept, beside its rows.

    make verify                 # TAID's first cell of Table 6: a teacher and a student are made anew
    make verify TABLE=table1    # the same of another table
    python -m taid.studies.verify --table table1 --method kl

Equal code on an equal machine gives equal numbers. Another processor rounds otherwise, and training makes of that
another student (docs/reproducing.md): so each difference is told in standard deviations over the seeds of that method,
as well. What is not the machine's doing is many of them.
"""

import os
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import stdev
from typing import Any
from unittest.mock import patch

from taid import results
from taid.files import cache_dir
from taid.results import Row
from taid.studies import capacity, drawn_teachers, every_answer, instruction_tuning, jobs, study

KINDS: Mapping[str, tuple[type[study.Study], Any]] = {
    "table1": (instruction_tuning.InstructionTuning, instruction_tuning.Run),
    "table1_tuned": (every_answer.EveryAnswer, every_answer.Run),
    "table6": (capacity.Capacity, capacity.Run),
    "table6_tuned": (drawn_teachers.DrawnTeachers, drawn_teachers.Run),
}
TRAINING = "train_seconds"  # tells of the machine's speed, of nothing else


def first_cell(rows: Sequence[Row], table: str, method: str) -> list[Row]:
    """The rows of the first cell of a method: its first teacher, its first seed.

    Raises jobs.Refused if there is none.
    """
    of_method = [row for row in rows if (row.experiment, row.method) == (table, method)]
    if not of_method:
        raise jobs.Refused(f"there are no rows of {method} in {table}: name a method that has (--method)")
    chosen = min(of_method, key=lambda row: row.seed)
    return [row for row in of_method if row.config_hash == chosen.config_hash]


def run_of(row: Row) -> Any:
    """The run that a row's config describes. Raises jobs.Refused where today's code would make another of it."""
    _, kind = KINDS[row.experiment]
    run = kind(**{f.name: row.config[f.name] for f in fields(kind) if f.name in row.config})
    if results.config_hash(run.config() | {"experiment": row.experiment}) != row.config_hash:
        raise jobs.Refused(f"{row}: this code has another setting; check out {row.commit[:12]}")
    return run


def again(run: Any, table: str, cache: Path) -> study.Values:
    """A job: what is measured of a run with nothing kept but the texts, in a cache of its own."""
    texts = cache_dir() / "sources"
    (cache / "sources").symlink_to(texts.resolve())
    study.at.cache_clear()  # a worker may have opened the study before
    try:
        with patch.dict(os.environ, {"TAID_CACHE": str(cache)}):
            return study.measure(KINDS[table][0], run, "test")[0]
    finally:
        study.at.cache_clear()


def compared(cell: Sequence[Row], found: study.Values, rows: Sequence[Row]) -> list[str]:
    """A line per number: committed, again, the difference, and that in standard deviations over seeds."""
    lines = [f"{'metric':<26}{'task':<12}{'committed':>12}{'again':>12}{'difference':>12}{'in sd':>8}"]
    for row in cell:
        if row.metric == TRAINING:
            continue
        same = [r.value for r in rows if _place(r) == _place(row)]
        off, spread = found[row.metric, row.task] - row.value, stdev(same) if len(same) > 1 else 0.0
        units = f"{off / spread:8.1f}" if spread else f"{'—':>8}"
        lines.append(
            f"{row.metric:<26}{row.task:<12}{row.value:12.4f}{found[row.metric, row.task]:12.4f}{off:12.4f}{units}"
        )
    return lines


def _place(row: Row) -> tuple[str, ...]:
    """What the seeds of one number share."""
    return row.experiment, row.method, row.teacher, row.student, row.task, row.metric


def main() -> None:
    made = ArgumentParser(description="One committed cell from scratch, beside its rows.")
    made.add_argument("--table", choices=[*KINDS], default="table6")
    made.add_argument("--method", default="taid")
    given = made.parse_args()
    rows = results.read(jobs.REFERENCE / f"{given.table}.jsonl")
    try:
        cell = first_cell(rows, given.table, given.method)
        run = run_of(cell[0])
    except jobs.Refused as error:
        made.exit(2, f"verify: {error}\n")
    print(f"{run}, from scratch; committed by {cell[0].versions}; {cell[0].device}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        [(_, found)] = jobs.run(again, [(run, given.table, Path(folder))], 1, "verify")
    here = results.provenance()
    print(f"here {here.versions}; {here.device}\n")
    print("\n".join(compared(cell, found, rows)))


if __name__ == "__main__":
    main()
