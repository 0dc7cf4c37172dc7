"""The paper's claims as predicates over scores by seed: each written once, for any table, scale and metric.

Scores are oriented so that higher is better (negate a loss). A claim holds for the paper's own numbers, one
per method, when the same predicate's point estimate is positive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from analysis import reference
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


def greater(scores: Scores, first: str, second: str) -> Verdict:
    """`first` scores above `second`.

    Supported if the paired interval of first − second lies above 0, contradicted if below.
    """
    if missing := _unpaired(scores, first, (second,)):
        return _no_rows(missing)
    difference = paired_interval(scores[first], scores[second], CONFIDENCE)
    if difference.low > 0:
        outcome = "supported"
    elif difference.high < 0:
        outcome = "contradicted"
    else:
        outcome = "inconclusive"
    return Verdict(outcome, difference, f"{name(first)} − {name(second)}")


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
    """Whether the paper's own point estimates (method → score, higher is better) satisfy the claim."""
    estimate = claim.predicate({method: {0: number} for method, number in numbers.items()}).estimate
    return estimate is not None and estimate.mean > 0


def _unpaired(scores: Scores, method: str, rivals: tuple[str, ...]) -> list[str]:
    """What cannot be compared for want of rows: the method itself, or rivals that share no seed with it."""
    if method not in scores:
        return [method, *rivals]
    return [rival for rival in rivals if not scores.get(rival, {}).keys() & scores[method].keys()]


def _no_rows(methods: list[str]) -> Verdict:
    return Verdict("inconclusive", None, f"no rows for {_names(methods)}")


def _names(methods: list[str]) -> str:
    return ", ".join(map(name, methods))


METHODS = tuple(next(iter(reference.table1().values())))

TABLE1 = (
    Claim(
        name="TAID is best",
        paper_item="Table 1",
        statement="TAID scores above each of the ten other methods.",
        predicate=partial(best, method="taid", rivals=tuple(m for m in METHODS if m != "taid")),
    ),
    Claim(
        name="adaptive is better",
        paper_item="Table 1",
        statement="TAID scores above TAID without the adaptive update.",
        predicate=partial(greater, first="taid", second="taid_no_adaptive"),
    ),
)
