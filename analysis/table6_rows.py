"""Table 6's rows, of either protocol: scores by teacher, trends over its size, and the gain from the smallest to the
largest."""

import math
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from analysis.measures import MEASURES
from analysis.rows import Pair, Scores, scores
from analysis.style import name

STUDENT, NONE = "pythia-70m", "none"
SIZES = {"pythia-410m": 0.41, "pythia-1b": 1.0, "pythia-2.8b": 2.8, "pythia-6.9b": 6.9}  # 10⁹ parameters
DECADES = {teacher: math.log10(size) for teacher, size in SIZES.items()}
METHODS = ("taid", "skew_kl", "kl", "rkl", "gjs")
JUDGED = ("last_word_log_likelihood", "held_out_loss", "last_word_accuracy")  # the primary measure first
METRICS = ("last_word_accuracy", "last_word_log_likelihood", "held_out_loss", "kl_to_teacher")
BY_TEACHER = Mapping[str, Scores]  # teacher → method → seed → value
PROTOCOLS = ("table6_tuned", "table6")  # their experiments; a file has rows of one


def experiment(frame: pd.DataFrame) -> str:
    """The experiment of the table itself; those of its search and its map begin alike."""
    return PROTOCOLS[0] if frame.experiment.astype(str).str.startswith(PROTOCOLS[0]).any() else PROTOCOLS[1]


def by_teacher(frame: pd.DataFrame, metric: str, variant: str = "base") -> BY_TEACHER:
    """Teacher → method → seed → value, of Table 6 or of a variant of the map; every teacher has an entry."""
    where = experiment(frame) if variant == "base" else f"{experiment(frame)}_map"
    student = variant if variant.startswith("pythia") else STUDENT
    found = scores(frame, where, metric, variant)
    # a teacher does not change with the student, so its rows carry the base student
    return {teacher: found.get(Pair(teacher, student), {}) for teacher in SIZES}


def without_teacher(frame: pd.DataFrame, metric: str) -> Scores:
    return scores(frame, experiment(frame), metric, "base").get(Pair(NONE, STUDENT), {})


def variants(frame: pd.DataFrame) -> list[str]:
    """The tasks of the map: students by size, then steps, then temperatures, each ascending."""
    of_map = frame.experiment == f"{experiment(frame)}_map"
    found = dict.fromkeys(frame.task[of_map & frame.method.isin(METHODS)])

    def place(task: str) -> tuple[int, float]:
        kind = next(i for i, start in enumerate(("base", "pythia", "steps", "")) if task.startswith(start))
        return kind, float((re.findall(r"[\d.]+", task) or ["0"])[-1])

    return sorted(found, key=place)


def label(variant: str) -> str:
    return f"student {name(variant)}" if variant.startswith("pythia") else variant


def slopes(ours: BY_TEACHER, sign: int = 1) -> Scores:
    """Method → seed → least-squares slope over log₁₀ of the teacher's size, for seeds that have all teachers.

    Per tenfold teacher; times `sign`, so that positive means better with the teacher.
    """
    x = np.array([DECADES[teacher] for teacher in SIZES])
    found: dict[str, dict[int, float]] = {}
    for method in METHODS:
        by_seed = [ours[teacher].get(method, {}) for teacher in SIZES]
        for seed in sorted(set.intersection(*map(set, by_seed))):
            y = np.array([values[seed] for values in by_seed])
            found.setdefault(method, {})[seed] = sign * float(np.polyfit(x, y, 1)[0])
    return found


def page_test(ours: BY_TEACHER, method: str, sign: int) -> tuple[float, float] | None:
    """p-values of Page's exact trend test that scores rise with the teacher, and that they fall; None below
    two seeds. Its rows are seeds, so it asks whether they agree on an order (Page 1963).
    """
    by_seed = [ours[teacher].get(method, {}) for teacher in SIZES]
    common = sorted(set.intersection(*map(set, by_seed)))
    if len(common) < 2:
        return None
    data = sign * np.array([[values[seed] for values in by_seed] for seed in common])
    up, down = (stats.page_trend_test(s * data, method="exact").pvalue for s in (1, -1))
    return float(up), float(down)


def gaps(frame: pd.DataFrame, metric: str) -> dict[str, Scores]:
    """Variant → method → seed → what the largest teacher gains over the smallest, positive is better.

    The variant "base" is Table 6 itself, on the seeds of all its rows.
    """
    sign, (small, *_, large) = MEASURES[metric].sign, SIZES
    found: dict[str, Scores] = {}
    for variant in ("base", *variants(frame)):
        ours = by_teacher(frame, metric, variant)
        both = {
            method: {seed: sign * (high[seed] - low[seed]) for seed in sorted(low.keys() & high.keys())}
            for method in METHODS
            if (low := ours[small].get(method, {})) and (high := ours[large].get(method, {}))
        }
        found[variant] = {method: values for method, values in both.items() if values}
    return found
