"""Rows of the benchmarks: selections, growth, and their numbers as text."""

import math
from collections.abc import Mapping

import pandas as pd
from scipy import stats

from analysis.figures import SHADES
from analysis.rows import Scores
from analysis.statistics import Estimate
from analysis.tables import MISSING, number

FLOOR = "floor"
CONTENDERS = {  # contender → name, colour: no method's; others' in greys and greens, ours darker as they get faster
    "official": ("official formulas", "#444444"),
    "official_compiled": ("official formulas, compiled", "#888888"),
    "trl": ("TRL", "#99BBAA"),
    "torchtune": ("torchtune", "#669977"),
    "liger": ("Liger, fused linear JSD", "#335544"),
    "plain": ("taid.losses", "#BBBBBB"),
    "eager": ("taid.fused, eager", SHADES[0]),
    "compiled": ("taid.fused, compiled", SHADES[1]),
    "cpp": ("taid.fused, C++", SHADES[2]),
    "cpp_inplace": ("taid.fused, C++ in place", SHADES[3]),
    "triton": ("taid.fused, Triton", SHADES[2]),
    "triton_inplace": ("taid.fused, Triton in place", SHADES[3]),
    "fused_head": ("taid.fused.head", "#8C2D04"),
    FLOOR: ("read both, write one", "#000000"),
}
ITEMSIZE = {"bf16": 2, "fp32": 4}


def measured(frame: pd.DataFrame, experiment: str, metric: str) -> Mapping[str, Scores]:
    """task → contender → repetition → value, in the order of measuring.

    Of a cell that was measured more than once (on other code, say), the last measurement.
    """
    last = frame.groupby(["experiment", "task"]).config_hash.transform("last")
    chosen = frame[(frame.config_hash == last) & (frame.experiment == experiment) & (frame.metric == metric)]
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in chosen.itertuples():
        found.setdefault(row.task, {}).setdefault(row.method, {})[row.seed] = row.value
    return found


def settings(frame: pd.DataFrame, experiment: str) -> Mapping[str, Mapping]:
    """task → the config of its cell."""
    chosen = frame[frame.experiment == experiment]
    return dict(zip(chosen.task, chosen.config, strict=True))


def median(values: Mapping[int, float]) -> float:
    return float(pd.Series(values).median())


def ratio(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Median of first / second over the repetitions that both have."""
    return median({i: first[i] / second[i] for i in first.keys() & second.keys()})


def curve(frame: pd.DataFrame, experiment: str, metric: str, contender: str) -> list[tuple[int, float]]:
    """(size, seconds or bytes) of every repetition; size is the side that grows."""
    config, side = settings(frame, experiment), {"scaling_vocab": "vocab", "scaling_rows": "rows"}[experiment]
    points = []
    for task, found in measured(frame, experiment, metric).items():
        cell = config[task]
        unit = {"time": 1e-9, "memory": ITEMSIZE[cell["dtype"]]}[metric] * cell["rows"] * cell["vocab"]
        points += [(cell[side], value * unit) for value in found.get(contender, {}).values()]
    return points


def exponent(points: list[tuple[int, float]]) -> Estimate | None:
    """k of value ∝ sizeᵏ, by least squares on logarithms; None with fewer than two sizes, or a value of 0."""
    if len({size for size, _ in points}) < 2 or min(value for _, value in points) <= 0:
        return None
    x, y = ([math.log(point[i]) for point in points] for i in (0, 1))
    fit, freedom = stats.linregress(x, y), len(points) - 2
    half = float(stats.t.ppf(0.975, freedom)) * fit.stderr if freedom else math.inf
    return Estimate(float(fit.slope), fit.slope - half, fit.slope + half, len(points))


def digits(value: float) -> str:
    """Three significant digits of a positive number, at most three decimals; small ones as 0.000."""
    if value < 0.001:
        return number(value, 3)
    return number(value, min(3, max(0, 2 - math.floor(math.log10(value)))))


def spread(estimate: Estimate | None) -> str:
    """ "1.02 [0.98, 1.06]"; the mean alone where it has no interval."""
    if estimate is None:
        return MISSING
    bounded = math.isfinite(estimate.high)
    return number(estimate.mean) + (f" [{number(estimate.low)}, {number(estimate.high)}]" if bounded else "")
