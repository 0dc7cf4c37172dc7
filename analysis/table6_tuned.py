"""Table 6, protocol 2, and its map: `results/table6_tuned.md` and its figures. As protocol 1's, and the trend with each
draw of the teachers."""

from functools import partial
from statistics import mean

import pandas as pd

from analysis import table6_sections
from analysis.measures import MEASURES
from analysis.page import Page
from analysis.statistics import difference
from analysis.style import name
from analysis.table6_rows import by_teacher, draws, slopes
from analysis.tables import MISSING, VERSUS, Table, number

OWN = (
    "Seeds 0, 1, 2, 3, … have the draws 0, 1, 2, 0, … of three draws of all teachers, so that intervals hold what other"
    " teachers would change. 10% warm-up for all; rates by the held-out loss of seeds that are not tested."
)


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for heading, text in table6_sections.sections(frame, scale).items():
        found[heading] = text
        if heading == "Trends":
            found["Trends, draw by draw"] = trends_by_draw(frame)
    return found


def trends_by_draw(frame: pd.DataFrame) -> str:
    """Per metric and method: the mean slope over the seeds of each draw of the teachers."""
    of_draw = {
        draw: [seed for seed, its in draws(frame).items() if its == draw]
        for draw in sorted({*draws(frame).values()})
    }
    body = []
    for metric, measure in table6_sections.SLOPES.items():
        found = slopes(by_teacher(frame, metric), MEASURES[metric].sign)
        each = [
            {method: {seed: v for seed, v in by.items() if seed in seeds} for method, by in found.items()}
            for seeds in of_draw.values()
        ]
        for method in found:
            means = [mean(by[method].values()) if by[method] else None for by in each]
            body.append([measure.title, name(method), *(said(m, measure.digits) for m in means)])
        if found:
            gaps = [e.mean if (e := difference(by, "taid", "kl")) else None for by in each]
            body.append([measure.title, VERSUS, *(said(gap, measure.digits) for gap in gaps)])
    return Table(["metric", "method", *(f"draw {draw}" for draw in of_draw)], body, text_columns=2).markdown()


def said(value: float | None, digits: int) -> str:
    return MISSING if value is None else number(value, digits)


PAGE = Page(
    "table6_tuned",
    "Table 6: the capacity gap, with three teachers of each size",
    partial(table6_sections.preamble, own=OWN),
    table6_sections.headline,
    sections,
    table6_sections.comparisons,
    table6_sections.figures,
    targets=("table6",),
    numbers=["table6_capacity_gap"],
)
