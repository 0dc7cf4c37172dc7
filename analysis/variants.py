"""What the pages of ablations and adaptivity share: variants of TAID on one pair, compared with TAID."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures
from analysis.measures import MEASURES
from analysis.rows import FIRST_PAIR, Scores, scores
from analysis.statistics import difference
from analysis.tables import Table, interval, value, versus

JUDGED = ("score", "held_out_loss", "kl_to_teacher")  # the primary measure first
FIGURE = (
    "*Figure*: difference to TAID, paired by seed, with 95% intervals; right of 0 is better in every panel. What"
    " lies far out is cut, with an arrow and its number.\n"
)


def measured(frame: pd.DataFrame, experiment: str, metric: str) -> Scores:
    return scores(frame, experiment, metric).get(FIRST_PAIR, {})


def table(frame: pd.DataFrame, experiment: str, lines: Sequence[str], to_taid) -> Table:
    """Variant × measure: mean, and `to_taid(scores, method, digits)`; TAID − KL last, if both are among them."""
    count = frame.seed.nunique()
    found = {MEASURES[metric]: measured(frame, experiment, metric) for metric in JUDGED}
    body = [
        [
            figures.name(method),
            *(
                cell
                for measure, by in found.items()
                for cell in (
                    value(by.get(method), count, measure.digits),
                    to_taid(by, method, measure.digits),
                )
            ),
        ]
        for method in lines
    ]
    if {"taid", "kl"} <= set(lines):
        label, *gaps = versus(*((by, measure.digits) for measure, by in found.items()))
        body.append([label, *(cell for gap in gaps for cell in (gap, ""))])
    header = ["variant", *(cell for measure in found for cell in (measure.heading, "− TAID"))]
    return Table(header, body)


def minus_taid(found: Scores, method: str, digits: int) -> str:
    return interval(None if method == "taid" else difference(found, method, "taid"), digits)


def draw(frame: pd.DataFrame, experiment: str, groups: Mapping[str, Sequence[str]]) -> Figure:
    """Differences to TAID of the variants that have rows, a panel per measure, turned so that better is to the right."""
    panels = {}
    for metric in JUDGED:
        better = MEASURES[metric].oriented(measured(frame, experiment, metric))
        each = {m: difference(better, m, "taid") for group in groups.values() for m in group if m != "taid"}
        panels[MEASURES[metric]] = {method: estimate for method, estimate in each.items() if estimate}
    there = {
        group: [m for m in methods if any(m in by for by in panels.values())]
        for group, methods in groups.items()
    }
    return figures.differences({"": panels}, {g: found for g, found in there.items() if found}, to="taid")
