"""Rows of the results as a data frame, and selections from it."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from taid.results import Row, read

Scores = Mapping[str, Mapping[int, float]]  # method → seed → value

KEY = ["experiment", "teacher", "student", "method", "task", "seed", "metric"]


class Pair(NamedTuple):
    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher} → {self.student}"


def load(path: Path, scale: str) -> pd.DataFrame:
    """The rows of one scale, with the config's learning rate (NaN where it has none) as a column.

    Of rows for the same number the last one wins. In a search ("…_search") every learning rate has its own.
    """
    rows = [asdict(row) for row in read(path) if row.scale == scale]
    frame = pd.DataFrame(rows, columns=[field.name for field in fields(Row)])
    rate = pd.Series([row["config"].get("learning_rate") for row in rows], dtype=float)
    searched = rate.where(frame.experiment.astype(str).str.endswith("_search"))
    frame = frame.assign(learning_rate=rate, searched=searched)
    last = frame.drop_duplicates([*KEY, "searched"], keep="last")
    return last.drop(columns="searched").reset_index(drop=True)


def scores(frame: pd.DataFrame, experiment: str, metric: str, task: str = "average") -> dict[Pair, Scores]:
    """Values of one metric on one task: pair → method → seed → value; what has no rows has no entry."""
    chosen = frame[(frame.experiment == experiment) & (frame.metric == metric) & (frame.task == task)]
    nested: dict[Pair, dict[str, dict[int, float]]] = {}
    for row in chosen.sort_values("seed").itertuples():
        pair = Pair(row.teacher, row.student)
        nested.setdefault(pair, {}).setdefault(row.method, {})[row.seed] = row.value
    return nested
