"""Predicates over scores by seed, for any table, scale and metric; the claims are in `analysis.claims`.

Scores are oriented so that higher is better (negate a loss). A claim holds for the paper's own numbers, one
per method, when the same predicate is supported by each of them as exact: by intervals of no width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from analysis.rows import Scores
from analysis.statistics import Estimate, paired_interval
from analysis.style import name

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """What the rows say; `estimate` is the difference in question, None where rows are missing."""

    outcome: Literal["supported", "contradicted", "inconclusive"]
    estimate: Estimate | None
    explanation: str


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
    missing = _unpaired(scores, method, rivals)
    present = [rival for rival in rivals if rival not in missing]
    if not present:
        return _no_rows(missing)
    corrected = 1 - (1 - CONFIDENCE) / len(rivals)
    differences = {rival: paired_interval(scores[method], scores[rival], CONFIDENCE) for rival in present}
    widened = {rival: paired_interval(scores[method], scores[rival], corrected) for rival in present}
    strongest = min(differences, key=lambda rival: differences[rival].mean)
    better = [rival for rival in present if widened[rival].high < 0]
    unbeaten = [rival for rival in present if not differences[rival].low > 0]

    facts = [f"{name(method)} − {name(strongest)}"]
    if better:
        facts.append(f"better at {corrected:.1%} confidence each: {_names(better)}")
    if unbeaten:
        facts.append(f"not beaten: {_names(unbeaten)}")
    if missing:
        facts.append(f"no rows for {_names(missing)}")
    outcome = "contradicted" if better else "inconclusive" if unbeaten or missing else "supported"
    return Verdict(outcome, differences[strongest], "; ".join(facts))


def holds_in_paper(claim: Claim, numbers: dict[str, float]) -> bool:
    """Whether the paper's own numbers (method → score, higher is better) satisfy the claim, as exact."""
    exact = {method: {0: number, 1: number} for method, number in numbers.items()}
    return claim.predicate(exact).outcome == "supported"


def _judge(scores: Scores, first: str, second: str, above: float, below: float) -> Verdict:
    """Whether first − second lies between two bounds, by where its paired interval lies."""
    if missing := _unpaired(scores, first, (second,)):
        return _no_rows(missing)
    difference = paired_interval(scores[first], scores[second], CONFIDENCE)
    if above < difference.low and difference.high < below:
        outcome = "supported"
    elif difference.high < above or below < difference.low:
        outcome = "contradicted"
    else:
        outcome = "inconclusive"
    return Verdict(outcome, difference, f"{name(first)} − {name(second)}")


def _unpaired(scores: Scores, method: str, rivals: tuple[str, ...]) -> list[str]:
    """What cannot be compared for want of rows: the method itself, or rivals that share no seed with it."""
    if method not in scores:
        return [method, *rivals]
    return [rival for rival in rivals if not scores.get(rival, {}).keys() & scores[method].keys()]


def _no_rows(methods: list[str]) -> Verdict:
    return Verdict("inconclusive", None, f"no rows for {_names(methods)}")


def _names(methods: list[str]) -> str:
    return ", ".join(map(name, methods))
