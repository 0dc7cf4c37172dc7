"""Markdown from scores. What no row tells is printed as a dash, never as a number."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from analysis.predicates import Claim, Verdict
from analysis.rows import Scores
from analysis.statistics import Estimate, mean_interval, paired_interval

MISSING = "—"
SMOKE = "**Scale smoke: the numbers mean nothing. They show that everything runs, and no more.**\n\n"


def document(title: str, scale: str, preamble: str, sections: Mapping[str, str]) -> str:
    """A page: title, at the scale smoke a warning, preamble, and the sections that are not empty."""
    body = "".join(f"\n## {heading}\n\n{text}" for heading, text in sections.items() if text)
    return f"# {title}\n\n{SMOKE if scale == 'smoke' else ''}{preamble}{body}"


def provenance(frame: pd.DataFrame) -> str:
    """Commits, versions and devices behind the rows."""
    commits = sorted({f"`{row.commit[:12]}`{' (dirty)' if row.dirty else ''}" for row in frame.itertuples()})
    facts = {
        "rows": [str(len(frame))],
        "commits": commits,
        "versions": sorted(frame.versions.unique()),
        "devices": sorted(frame.device.unique()),
    }
    return "".join(f"- {fact}: {' | '.join(values)}\n" for fact, values in facts.items())


def markdown(header: Sequence[str], body: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table: columns of text first, to the left; numbers to the right."""
    rule = [":--"] * text_columns + ["--:"] * (len(header) - text_columns)
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *body])


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def number(value: float, digits: int = 2) -> str:
    """Fixed decimals with a proper minus; a zero has no sign."""
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return text.replace("-", "−")


def value(values: Mapping[int, float] | None, seeds: int, digits: int = 2) -> str:
    """ "3.41 ± 0.12": mean and half-width of the 95% interval over seeds.

    The number of seeds follows where it is 1, and so has no interval, or is not the table's `seeds`.
    """
    if not values:
        return MISSING
    estimate = mean_interval(list(values.values()))
    count = f" ({plural(estimate.n, 'seed')})" if estimate.n == 1 or estimate.n != seeds else ""
    spread = f" ± {number(estimate.high - estimate.mean, digits)}" if estimate.n > 1 else ""
    return f"{number(estimate.mean, digits)}{spread}{count}"


def interval(estimate: Estimate | None, digits: int = 2) -> str:
    """ "−0.21 [−0.40, −0.02]", a difference with its interval."""
    if estimate is None:
        return MISSING
    mean, low, high = (number(x, digits) for x in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} (1 seed)" if estimate.n == 1 else f"{mean} [{low}, {high}]"


def marks(scores: Scores) -> dict[str, str]:
    """Method → format of its cell: the best mean in bold, † if the paired interval to the best includes 0."""
    means = {method: mean_interval(list(values.values())).mean for method, values in scores.items()}
    if not means:
        return {}
    best = max(means, key=lambda method: means[method])
    formats = {best: "**{}**"}
    for method in scores.keys() - {best}:
        if len(scores[best].keys() & scores[method].keys()) > 1:
            difference = paired_interval(scores[best], scores[method])
            if difference.low <= 0 <= difference.high:
                formats[method] = "{} †"
    return formats


def claims_table(verdicts: Iterable[tuple[str, Claim, bool, Verdict]], digits: int = 2) -> str:
    """One line per (where, claim, whether the paper's numbers satisfy it, our verdict)."""
    body = [
        [
            where,
            claim.statement,
            "holds" if in_paper else "does not hold",
            f"**{verdict.outcome}**",
            interval(verdict.estimate, digits),
            verdict.explanation,
        ]
        for where, claim, in_paper, verdict in verdicts
    ]
    header = ["where", "claim", "in the paper", "in our rows", "difference [95% interval]", "because"]
    return markdown(header, body, text_columns=len(header))


def judged(verdicts: Iterable[tuple[str, Claim, Verdict]], digits: int = 3) -> str:
    """One line per (where, claim, our verdict), for claims without numbers in the paper; and the rule."""
    body = [
        [where, claim.paper_item, claim.statement, f"**{found.outcome}**", interval(found.estimate, digits)]
        for where, claim, found in verdicts
    ]
    header = ["where", "from", "claim", "in our rows", "difference [95% interval]"]
    rule = (
        "\n*Supported*: the 95% interval of the difference, paired by seed, lies wholly where the claim has"
        " it. *Contradicted*: wholly elsewhere. Else *inconclusive*; one seed settles nothing.\n"
    )
    return markdown(header, body, text_columns=len(header)) + rule
