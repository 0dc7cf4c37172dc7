"""Text from scores: cells, and tables as Markdown or aligned for a terminal. What no row tells is a dash."""

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.measures import Measure
from analysis.rows import Origins, Scores
from analysis.statistics import Estimate, difference, mean_interval, paired_interval
from analysis.style import name

MISSING = "—"
VERSUS = f"**TAID − {name('kl')}**"


@dataclass(frozen=True)
class Table:
    """Header, lines of cells, and a note: columns of text first, to the left; numbers to the right."""

    header: Sequence[str]
    body: Sequence[Sequence[str]]
    note: str = ""
    text_columns: int = 1

    def markdown(self) -> str:
        """Empty without a line."""
        rule = [":--"] * self.text_columns + ["--:"] * (len(self.header) - self.text_columns)
        lines = "".join(f"| {' | '.join(line)} |\n" for line in [self.header, rule, *self.body])
        return lines + (f"\n{self.note}\n" if self.note else "") if self.body else ""

    def aligned(self) -> str:
        """For a terminal: columns as wide as their numbers, a long header over several lines."""
        body = [[plain(cell) for cell in line] for line in self.body]
        words = [[len(word) for word in plain(cell).split()] for cell in self.header]
        widths = [max([8, *words[i], *(len(line[i]) for line in body)]) for i in range(len(words))]
        heads = [
            textwrap.wrap(plain(cell), width, break_on_hyphens=False)
            for cell, width in zip(self.header, widths, strict=True)
        ]
        height = max(map(len, heads))
        rows = [[head[i - height + len(head)] if i >= height - len(head) else "" for head in heads]
                for i in range(height)]  # fmt: skip
        return "".join(self._line(cells, widths) for cells in [*rows, *body])

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = [
            cell.ljust(width) if i < self.text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip() + "\n"


def plain(cell: str) -> str:
    """A cell without Markdown."""
    return cell.replace("**", "").replace("\\|", "|")


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


def clean(text: str) -> str:
    """A model's text inside a table."""
    return " ".join(text.replace("|", "\\|").split()) or MISSING


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def hover(text: str, origins: Origins) -> str:
    """The text, and where rows are known (`rows.traced`) what they are, as HTML shows it under the pointer."""
    return f'<span class="traced" title="{origin(origins)}">{text}</span>' if origins else text


def origin(origins: Origins) -> str:
    """ "seeds 0, 1 · commit 5e0e7f9 · config 1a2b3c4d, 5e6f7a8b · AMD EPYC, 1 thread · 2026-11-24"; of more than a
    dozen of a kind their number."""

    def listed(values) -> str:
        found = sorted(set(values))
        return ", ".join(found) if len(found) <= 12 else f"{len(found)} of them"

    seeds = ", ".join(map(str, sorted({o.seed for o in origins})))
    facts = [
        f"seed{'s' * (',' in seeds)} {seeds}",
        f"commit {listed(o.commit[:7] + ' (dirty)' * o.dirty for o in origins)}",
        f"config {listed(o.config_hash[:8] for o in origins)}",
        listed(o.device for o in origins),
        listed(o.date[:10] for o in origins),
    ]
    return html.escape(" · ".join(facts))


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
    half = f" ± {number(estimate.high - estimate.mean, digits)}" if estimate.n > 1 else ""
    return hover(f"{number(estimate.mean, digits)}{half}{count}", estimate.origins)


def interval(estimate: Estimate | None, digits: int = 2) -> str:
    """ "−0.21 [−0.40, −0.02]", a difference with its interval."""
    if estimate is None:
        return MISSING
    mean, low, high = (number(x, digits) for x in (estimate.mean, estimate.low, estimate.high))
    text = f"{mean} (1 seed)" if estimate.n == 1 else f"{mean} [{low}, {high}]"
    return hover(text, estimate.origins)


def counted(estimate: Estimate | None, digits: int = 2) -> str:
    """ "−0.21 [−0.40, −0.02], 4 seeds" """
    if estimate is None or estimate.n == 1:
        return interval(estimate, digits)
    return f"{interval(estimate, digits)}, {plural(estimate.n, 'seed')}"


def exponential(estimate: Estimate) -> Estimate:
    """A difference of logarithms as the ratio that it is."""
    high = math.exp(estimate.high) if math.isfinite(estimate.high) else math.inf
    return replace(estimate, mean=math.exp(estimate.mean), low=math.exp(estimate.low), high=high)


def effect(estimate: Estimate | None, measure: Measure) -> str:
    """A difference in the measure's own digits; the ratio where the measure is one, with a sign before it."""
    if not measure.ratio:
        return interval(estimate, measure.digits)
    return MISSING if estimate is None else f"× {interval(exponential(estimate), measure.digits)}"


def versus(*columns: tuple[Scores, int], method: str = "taid", rival: str = "kl") -> list[str]:
    """The last line of a table, TAID − KL (or another two) paired by seed, as measured: its label with n, a cell per
    column.

    A column is its scores and its decimals.
    """
    found = [(difference(scores, method, rival), digits) for scores, digits in columns]
    counts = sorted({estimate.n for estimate, _ in found if estimate})
    seeds = f", n = {'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}" if counts else ""
    first = f"({name(method)})" if ", " in name(method) else name(method)
    return [
        f"**{first} − {name(rival)}**{seeds}",
        *(interval(estimate, digits) for estimate, digits in found),
    ]


def marks(scores: Scores) -> dict[str, str]:
    """Method → format of its cell: the best mean in bold, † if the paired interval to the best includes 0."""
    means = {method: mean_interval(list(values.values())).mean for method, values in scores.items()}
    if not means:
        return {}
    best = max(means, key=lambda method: means[method])
    formats = {best: "**{}**"}
    for method in scores.keys() - {best}:
        if len(scores[best].keys() & scores[method].keys()) > 1:
            against_best = paired_interval(scores[best], scores[method])
            if against_best.low <= 0 <= against_best.high:
                formats[method] = "{} †"
    return formats
