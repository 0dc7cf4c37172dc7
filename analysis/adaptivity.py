"""The adaptivity audit: `results/adaptivity.md` and its figure."""

import math

import pandas as pd
from matplotlib.figure import Figure

from analysis import variants
from analysis.measures import MEASURES, Measure
from analysis.page import Comparison, Page
from analysis.questions import AUDIT, adaptivity
from analysis.rows import FIRST_PAIR, Scores
from analysis.statistics import mean_interval
from analysis.style import name, pair_name
from analysis.tables import Table, number, plural, value
from analysis.variants import FIGURE, JUDGED, minus_taid

SCHEDULES = ("taid", "taid_no_adaptive", "constant", "replayed")
TRACE = Measure("TAID's trace", digits=4)
AUDITED = {  # metric of the traces → title, decimals
    "alpha_n": ("α · N", 2),
    "floor_share": ("updates in which the linear floor binds [share]", 3),
    "floor_share_predicted": ("the same, predicted in closed form", 3),
    "log_sigmoid_low": ("log(σ(m) / ½), lowest", 4),
    "log_sigmoid_high": ("log(σ(m) / ½), highest", 4),
    "progress_mean": ("δ, mean", 4),
    "relative_noise_variance": ("variance of the loss's noise, of the mean squared", 4),
    "momentum_mean": ("m, mean", 4),
    "momentum_largest": ("m, largest size (downwards)", 4),
    "momentum_bound": ("upper bound of m for losses of this range", 4),
    "momentum_needed": ("m, size that would move t by 0.05", 4),
    "deviation": ("t − closed form at m = 0, largest size", 4),
    "lead": ("t − linear ramp, largest", 3),
}


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {"Four schedules": headline(frame, scale).markdown(), "What the traces say": audit(frame)}


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        f"{pair_name(FIRST_PAIR)}, scale {scale}, {plural(frame.seed.nunique(), 'seed')}; ± is half of the 95%"
        " t-interval over them. Four schedules of t, paired by seed: the adaptive update, the linear ramp,"
        " σ(m) = ½ held constant (t a function of the step alone), and t as another seed's adaptive run"
        " recorded it, which has the shape of an adaptive curve but cannot answer to this student. How the"
        " closed form is derived, and what follows: `docs/adaptivity.md`. *The same* is to within"
        f" {', '.join(f'{MEASURES[m].same:g} {MEASURES[m].unit} of {MEASURES[m].title}' for m in JUDGED)}."
        " TAID − KL is on [the page of the ablations](ablations.md), which shares these runs.\n\n"
        f"![Four schedules](adaptivity.png)\n\n{FIGURE}"
    )


def audit(frame: pd.DataFrame) -> str:
    """One line per number of the adaptive runs' traces; then what the momentum would need."""
    seeds, methods = frame.seed.nunique(), ("taid", "constant")
    body = [
        [title, *(value(ours(frame, metric).get(method), seeds, digits) for method in methods)]
        for metric, (title, digits) in AUDITED.items()
    ]
    needed = ours(frame, "momentum_needed").get("taid")
    note = effort(mean_interval(list(needed.values())).mean) if needed else ""
    return Table(["over the run", *map(name, methods)], body, note).markdown()


def effort(momentum: float) -> str:
    """What a constant momentum asks of the loss."""
    decades = -100 * math.log10(1 - momentum) if momentum < 1 else math.inf
    return (
        f"A constant m = {number(momentum)} is a loss that falls by {momentum:.0%} in every update: by a"
        f" factor of 10^{number(decades, 0)} over the hundred updates that β = 0.99 remembers."
    )


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Schedule × measure: mean, and the difference to TAID."""
    return variants.table(frame, "adaptivity", SCHEDULES, minus_taid)


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """The students by each measure, then the numbers of TAID's traces."""
    students = [Comparison("", MEASURES[m], ours(frame, m), adaptivity(MEASURES[m].same)) for m in JUDGED]
    traces = {metric: ours(frame, metric)["taid"] for metric in AUDITED if "taid" in ours(frame, metric)}
    nothing = {"none": dict.fromkeys(traces.get("deviation", {}), 0.0)}
    return [*students, Comparison("", TRACE, traces | nothing, AUDIT)]


def draw(frame: pd.DataFrame) -> Figure:
    return variants.draw(frame, "adaptivity", {"": SCHEDULES})


def ours(frame: pd.DataFrame, metric: str) -> Scores:
    return variants.measured(frame, "adaptivity", metric)


PAGE = Page(
    "adaptivity",
    "Is the adaptive update adaptive?",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"adaptivity": draw(frame)},
)
