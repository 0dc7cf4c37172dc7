"""Predicates over scores by seed, for any table, scale and metric; the claims are in `analysis.claims`.

Scores are oriented so that higher is better (`Measure.oriented`). A claim holds for the paper's own numbers,
one per method, when the same predicate is supported by each of them as exact: by intervals of no width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.rows import Scores
from analysis.statistics import CONFIDENCE, Estimate, mean_interval, p_value, paired
from analysis.style import name

Outcome = Literal["supported", "contradicted", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """What the rows say: on which side of the claim the mean lies, and how surely.

    `estimate` is the difference in question, None where rows are missing; p is two-sided, 1 for one seed.
    """

    holds: bool
    p: float
    estimate: Estimate | None
    explanation: str

    @property
    def outcome(self) -> Outcome:
        """By the 95% interval."""
        return self.at(self.p)

    def at(self, p: float) -> Outcome:
        """The outcome if p were another: after a correction for many looks."""
        if p > 1 - CONFIDENCE:
            return "inconclusive"
        return "supported" if self.holds else "contradicted"


@dataclass(frozen=True)
class Claim:
    name: str
    paper_item: str
    statement: str
    predicate: Callable[[Scores], Verdict]


def greater(scores: Scores, first: str, second: str, margin: float = 0.0) -> Verdict:
    """`first` scores above `second` by more than `margin`.

    Supported if the paired interval of first − second lies above the margin, contradicted if below.
    """
    return _judge(scores, first, second, margin, math.inf)


def close(scores: Scores, first: str, second: str, margin: float) -> Verdict:
    """`first` and `second` differ by less than `margin`.

    Supported if the paired interval of first − second lies within ± margin, contradicted if outside.
    """
    return _judge(scores, first, second, -margin, margin)


def best(scores: Scores, method: str, rivals: tuple[str, ...]) -> Verdict:
    """`method` scores above every rival. The estimate is its difference to the strongest.

    Supported if all paired intervals of method − rival lie above 0: all must pass, so there is nothing to
    correct for (intersection–union test). Contradicted if one of them, widened for as many looks as there are
    rivals (Bonferroni), lies below 0.
    """
    found = {rival: paired(scores.get(method, {}), scores.get(rival, {})) for rival in rivals}
    missing = [rival for rival, values in found.items() if not values]
    if len(missing) == len(rivals):
        return _no_rows([method, *rivals] if method not in scores else missing)
    each = {rival: mean_interval(values) for rival, values in found.items() if values}
    p = {rival: p_value(found[rival]) for rival in each}
    strongest = min(each, key=lambda rival: each[rival].mean)
    looks, surely = len(rivals), 1 - CONFIDENCE
    better = [rival for rival in each if each[rival].mean < 0 and looks * p[rival] <= surely]
    unbeaten = [rival for rival in each if each[rival].mean <= 0 or p[rival] > surely]

    facts = [f"{name(method)} − {name(strongest)}"]
    if better:
        facts.append(f"better at {1 - surely / looks:.1%} confidence each: {_names(better)}")
    if unbeaten:
        facts.append(f"not beaten: {_names(unbeaten)}")
    if missing:
        facts.append(f"no rows for {_names(missing)}")
    against = min((looks * p[rival] for rival in each if each[rival].mean < 0), default=1.0)
    above = max(p.values()) if not missing and each[strongest].mean > 0 else 1.0
    return Verdict(not better, min(1.0, against if better else above), each[strongest], "; ".join(facts))


def in_paper(claim: Claim, numbers: Mapping[str, float]) -> Verdict:
    """What the paper's own numbers (method → score, higher is better) say of the claim, as exact."""
    return claim.predicate({method: {0: number, 1: number} for method, number in numbers.items()})


def _judge(scores: Scores, first: str, second: str, above: float, below: float) -> Verdict:
    """Whether first − second lies between two bounds, by where its paired interval lies."""
    differences = paired(scores.get(first, {}), scores.get(second, {}))
    if not differences:
        return _no_rows([m for m in (first, second) if m not in scores] or [first, second])
    estimate = mean_interval(differences)
    nearest = min((above, below), key=lambda bound: abs(estimate.mean - bound))
    holds = above < estimate.mean < below
    return Verdict(holds, p_value(differences, nearest), estimate, f"{name(first)} − {name(second)}")


def _no_rows(methods: Sequence[str]) -> Verdict:
    return Verdict(False, 1.0, None, f"no rows for {_names(methods)}")


def _names(methods: Sequence[str]) -> str:
    return ", ".join(map(name, methods))
