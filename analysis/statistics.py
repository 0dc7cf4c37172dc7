"""Estimators over seeds: pure functions of numbers, no tables and no plots."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from analysis.rows import Origins, origins

CONFIDENCE = 0.95
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Estimate:
    """A mean of n values with its confidence interval, which is the whole line for a single value, and the rows that
    they come from, as far as those are known."""

    mean: float
    low: float
    high: float
    n: int
    origins: Origins = field(default=frozenset(), compare=False, repr=False)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """mean ± t_{n−1} · s/√n, two-sided, s the standard deviation with n − 1 in its denominator.

    Raises ValueError for no values at all.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean of no values; skip the cell instead")
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, n, origins(*values))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n, origins(*values))


def estimates(scores: Mapping[str, BySeed]) -> dict[str, Estimate]:
    """Method → `mean_interval` over its seeds."""
    return {method: mean_interval(list(values.values())) for method, values in scores.items()}


def paired(first: BySeed, second: BySeed) -> list[float]:
    """first − second over the seeds that both have, in their order."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def paired_interval(first: BySeed, second: BySeed, confidence: float = CONFIDENCE) -> Estimate:
    """`mean_interval` of first − second over the seeds that both have.

    Raises ValueError if they share none.
    """
    return mean_interval(paired(first, second), confidence)


def difference(
    scores: Mapping[str, BySeed], first: str, second: str, confidence: float = CONFIDENCE
) -> Estimate | None:
    """`paired_interval` of two methods; None where they share no seed."""
    one, other = scores.get(first, {}), scores.get(second, {})
    return paired_interval(one, other, confidence) if one.keys() & other.keys() else None


def p_value(values: Sequence[float], bound: float = 0.0) -> float:
    """Two-sided p of the t-test that the mean of `values` is `bound`; 1 for a single value.

    Below 0.05 just where the 95% interval leaves `bound` out.
    """
    if len(values) < 2:
        return 1.0
    gap, error = np.mean(values) - bound, np.std(values, ddof=1) / math.sqrt(len(values))
    if error == 0 or math.isinf(gap):
        return 1.0 if gap == 0 else 0.0
    return float(2 * stats.t.sf(abs(gap) / error, len(values) - 1))


def holm(p: Sequence[float]) -> list[float]:
    """p-values after Holm's correction for as many looks as there are (Holm 1979), in the order given."""
    corrected, largest = [1.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


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


def rank_agreement(numbers: Mapping[str, float], scores: Mapping[str, BySeed]) -> Estimate | None:
    """Spearman's ρ between `numbers` and the mean scores of the methods that both have.

    The interval is the middle 95% over all nⁿ ways to draw n of the n seeds with replacement (n ≤ 5; of more
    seeds 4,000 draws): with few seeds it is rough. None below three methods or without a common seed.
    """
    methods = [method for method in numbers if scores.get(method)]
    if len(methods) < 3 or not (seeds := sorted(set.intersection(*(set(scores[m]) for m in methods)))):
        return None
    ours = np.array([[scores[method][seed] for method in methods] for seed in seeds])  # [seeds, methods]
    theirs = np.array([numbers[method] for method in methods])
    n = len(seeds)
    if n <= 5:
        draws = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        draws = np.random.default_rng(0).integers(n, size=(4000, n))
    rho = float(spearman(ours.mean(axis=0), theirs))
    if n == 1:
        return Estimate(rho, -math.inf, math.inf, n)
    low, high = np.quantile(spearman(ours[draws].mean(axis=1), theirs), (0.025, 0.975))
    return Estimate(rho, float(low), float(high), n)


def rank_stability(scores: Mapping[str, BySeed]) -> float | None:
    """Mean Spearman's ρ between the orders that two seeds give the methods; None below two common seeds."""
    seeds = sorted(set.intersection(*map(set, scores.values()))) if len(scores) > 2 else []
    orders = np.array([[by[seed] for by in scores.values()] for seed in seeds])
    found = [spearman(a, b) for a, b in itertools.combinations(orders, 2)]
    return float(np.mean(found)) if found else None


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's ρ along the last axis, which broadcasts; ties share their mean rank."""
    x, y = (stats.rankdata(values, axis=-1) for values in (first, second))
    x, y = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (x, y))
    return (x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
