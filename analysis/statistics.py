"""Estimators over seeds: pure functions of numbers, no tables and no plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean of n values with its confidence interval, which is the whole line for a single value."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """mean ± t_{n−1} · s/√n, two-sided, s the standard deviation with n − 1 in its denominator.

    Raises ValueError for no values at all.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean of no values; skip the cell instead")
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def paired_interval(
    first: Mapping[int, float], second: Mapping[int, float], confidence: float = 0.95
) -> Estimate:
    """`mean_interval` of first − second (seed → value) over the seeds that both have.

    Raises ValueError if they share none.
    """
    shared = sorted(first.keys() & second.keys())
    return mean_interval([first[seed] - second[seed] for seed in shared], confidence)


def gap_in_deviations(first: Sequence[float], second: Sequence[float]) -> float:
    """(mean first − mean second) / √(s²_first + s²_second): a gap in standard deviations over seeds.

    A side with a single value counts as a constant. NaN if both are: there is no deviation to measure by.
    """
    gap = float(np.mean(first) - np.mean(second))
    variances = [float(np.var(values, ddof=1)) for values in (first, second) if len(values) > 1]
    if not variances:
        return math.nan
    deviation = math.sqrt(sum(variances))
    return gap / deviation if deviation else math.copysign(math.inf, gap)
