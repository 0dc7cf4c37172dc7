"""Rows of the results as a data frame, and selections from it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from taid.results import Row, read

Scores = Mapping[str, Mapping[int, float]]  # method → seed → value

KEY = ["experiment", "teacher", "student", "method", "task", "seed", "metric"]
REFERENCES = ("teacher", "untrained")  # what has scores and is no method


class Origin(NamedTuple):
    """Where a row comes from."""

    seed: int
    commit: str
    dirty: bool
    config_hash: str
    device: str
    date: str


Origins = frozenset[Origin]


class Traced(float):
    """A number that knows the rows it comes from; arithmetic between scores keeps them."""

    origins: Origins

    def __new__(cls, value: float, origins: Origins):
        made = super().__new__(cls, value)
        made.origins = origins
        return made

    def __sub__(self, other: float) -> "Traced":
        return Traced(float(self) - float(other), self.origins | origins(other))

    def __neg__(self) -> "Traced":
        return Traced(-float(self), self.origins)


def origins(*values: float) -> Origins:
    """The rows that numbers come from, as far as they know."""
    return frozenset[Origin]().union(*(value.origins for value in values if isinstance(value, Traced)))


class Pair(NamedTuple):
    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher} → {self.student}"


FIRST_PAIR = Pair("phi-3-mini", "tinyllama")  # Table 1's, which the studies around it take


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


def traced(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame, whose `scores` then know their rows."""
    return frame.assign(
        origin=[Origin(*fields) for fields in zip(*(frame[name] for name in Origin._fields), strict=True)]
    )


def empty() -> pd.DataFrame:
    """No rows, with all columns."""
    return pd.DataFrame(columns=[*(field.name for field in fields(Row)), "learning_rate"])


def scales(path: Path) -> set[str]:
    """The scales that a file has rows of."""
    return {row.scale for row in read(path)}


def scores(frame: pd.DataFrame, experiment: str, metric: str, task: str = "average") -> Mapping[Pair, Scores]:
    """Values of one metric on one task: pair → method → seed → value; what has no rows has no entry."""
    chosen = (frame.experiment == experiment) & (frame.metric == metric) & (frame.task == task)
    found = frame.loc[chosen].sort_values("seed")
    values = found["value"].tolist()
    if "origin" in found:
        values = [
            Traced(value, frozenset([origin])) for value, origin in zip(values, found.origin, strict=True)
        ]
    nested: dict[Pair, Any] = {}  # of dicts, read as `Scores`
    names = (found[column].tolist() for column in ("teacher", "student", "method", "seed"))
    for teacher, student, method, seed, value in zip(*names, values, strict=True):
        nested.setdefault(Pair(teacher, student), {}).setdefault(method, {})[seed] = value
    return nested


def mapped(found: Scores, change: Callable[[float], float]) -> dict[str, dict[int, float]]:
    """Every value changed: `mapped(masses, math.log)`; it still comes from its rows."""

    def changed(value: float) -> float:
        return Traced(change(value), value.origins) if isinstance(value, Traced) else change(value)

    return {method: {seed: changed(v) for seed, v in by.items()} for method, by in found.items()}


def without_references(found: Scores) -> Scores:
    return {method: values for method, values in found.items() if method not in REFERENCES}


def seeds(frame: pd.DataFrame, experiment: str) -> int:
    """Number of seeds with students in an experiment."""
    return frame.seed[(frame.experiment == experiment) & ~frame.method.isin(REFERENCES)].nunique()
