"""Departures of the official code: `results/departures.md` and its figure."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures
from analysis.measures import MEASURES, Measure
from analysis.page import Comparison, Page
from analysis.questions import DEPARTING, OFFICIAL, departures
from analysis.rows import FIRST_PAIR, Scores
from analysis.statistics import Estimate, difference
from analysis.style import name, pair_name
from analysis.tables import Table, interval, plural, value
from analysis.variants import JUDGED, measured


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Method × measure: as it is named, as the official code has it, and the difference."""
    found = {MEASURES[metric]: measured(frame, "departures", metric) for metric in JUDGED}
    count = frame.seed.nunique()

    def cells(by: Scores, method: str, digits: int) -> list[str]:
        both = [value(by.get(which), count, digits) for which in (method, method + OFFICIAL)]
        return [*both, interval(difference(by, method + OFFICIAL, method), digits)]

    header = ["method", *(cell for measure in found for cell in (measure.heading, "official", "difference"))]
    body = [
        [name(method), *(cell for measure, by in found.items() for cell in cells(by, method, measure.digits))]
        for method in DEPARTING
    ]
    return Table(header, body, "*Difference*: official − as named, paired by seed, with its 95% interval.")


def leads(frame: pd.DataFrame) -> Table:
    """TAID less each baseline, corrected and official, turned so that more is better for TAID."""
    found = {MEASURES[metric]: measured(frame, "departures", metric) for metric in JUDGED}

    def cells(measure: Measure, by: Scores, method: str) -> list[str]:
        better = measure.oriented(by)
        rivals = (method, method + OFFICIAL)
        return [interval(difference(better, "taid", rival), measure.digits) for rival in rivals]

    header = ["TAID less", *(cell for measure in found for cell in (measure.heading, "official"))]
    body = [
        [name(method), *(cell for measure, by in found.items() for cell in cells(measure, by, method))]
        for method in DEPARTING
    ]
    return Table(header, body, "Paired by seed, turned so that right of 0 is better for TAID.")


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {
        "As named, and as the official code has it": headline(frame, scale).markdown(),
        "TAID's lead": leads(frame).markdown(),
    }


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        f"{pair_name(FIRST_PAIR)}, scale {scale}, {plural(frame.seed.nunique(), 'seed')}, on the test prompts; ± is half of the"
        " 95% t-interval over them. Both variants of a method start from one student, see one stream of batches and"
        " train at the rate that Table 1 chose for the method. What each departure is, and which are not run:"
        " `docs/official_code.md`.\n\n"
        "![Official − as named](departures.png)\n\n"
        "*Figure*: what the departure changes, paired by seed, with 95% intervals; right of 0 the official variant is"
        " better.\n"
    )


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    return [
        Comparison("", MEASURES[m], measured(frame, "departures", m), departures(MEASURES[m].same))
        for m in JUDGED
    ]


def draw(frame: pd.DataFrame) -> Figure:
    """Official − as named, a panel per measure."""
    panels: dict[Measure, dict[str, Estimate]] = {}
    for metric in JUDGED:
        measure = MEASURES[metric]
        better = measure.oriented(measured(frame, "departures", metric))
        each = {method: difference(better, method + OFFICIAL, method) for method in DEPARTING}
        panels[measure] = {m: e for m, e in each.items() if e}
    return figures.differences({"": panels}, {"": DEPARTING}, to="the method as named")


PAGE = Page(
    "departures",
    "Departures of the official code",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"departures": draw(frame)},
)
