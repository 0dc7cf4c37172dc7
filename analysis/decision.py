"""One answer to a claim from several primary measures, by a rule that was written before the runs (2026-11-25).

In one place (a pair) a claim is judged by each primary measure, and the measures' p-values are corrected by Holm:

    holds          at least one measure supports it, none contradicts it
    fails          at least one measure contradicts it, none supports it
    a trade        one supports and another contradicts it
    no difference  none of these, and every measure's 95% interval lies within ± the measure's margin (`Measure.same`)
    open           else; so is a claim with a single seed
"""

from collections.abc import Sequence

from analysis.page import Finding
from analysis.statistics import Estimate, holm
from analysis.tables import Table, effect


def decide(found: Sequence[Finding]) -> str:
    """The answer, from the findings of one claim in one place, one for each primary measure."""
    corrected = holm([finding.verdict.p for finding in found])
    outcomes = {f.verdict.at(p) for f, p in zip(found, corrected, strict=True)}
    for answer, needed in (
        ("a trade", {"supported", "contradicted"}),
        ("holds", {"supported"}),
        ("fails", {"contradicted"}),
    ):
        if needed <= outcomes:
            return answer
    alike = all(within(finding.verdict.estimate, finding.measure.same) for finding in found)
    return "no difference" if alike else "open"


def within(estimate: Estimate | None, margin: float) -> bool:
    """Whether the whole interval lies within ± margin."""
    return estimate is not None and -margin < estimate.low and estimate.high < margin


def table(groups: Sequence[Sequence[Finding]]) -> Table:
    """A line per claim and place: the answer, then first − second by each primary measure, right is better."""
    measures = [finding.measure for finding in groups[0]] if groups else []
    header = [
        "where",
        "claim",
        "answer",
        *(f"{m.heading}, margin {m.same:g}" for m in measures),
        "difference",
    ]
    body = [
        [
            group[0].where,
            group[0].claim.statement,
            f"**{decide(group)}**",
            *(effect(f.verdict.estimate, f.measure) for f in group),
            group[0].verdict.explanation,
        ]
        for group in groups
    ]
    note = (
        "Differences are turned so that more is better. *Holds*: at least one measure supports the claim, none"
        " contradicts it, p after Holm over the measures; *fails*: the other way round; *a trade*: one each;"
        " *no difference*: all intervals within the margins; else *open*. Written before the runs."
    )
    return Table(header, body, note, text_columns=len(header))
