"""Figure 1, the idea: `results/figure1.png` and its claims, `results/figure1.md`."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.claims import FIGURE1
from analysis.figures import BANDS, REFERENCE, canvas, curve, legend
from analysis.measures import Measure
from analysis.page import Comparison, Page
from analysis.rows import FIRST_PAIR, Scores, scores, seeds
from analysis.statistics import difference, mean_interval
from analysis.style import COLOURS, name, pair_name
from analysis.tables import MISSING, Table, effect, interval, plural

METHODS = ("kl", "taid")
NEAR, FAR = Measure("to the target", "nats/token", 3, -1), Measure("to the teacher", "nats/token", 3, -1)
DISTANCES = {"kl_to_target": NEAR, "kl_to_teacher": FAR}  # metric → measure
FIRST, SNAPSHOTS = "0.00", ("0.00", "0.10", "0.50", "1.00")  # shares of the updates, as tasks name them
SIDES = {"teacher": COLOURS["teacher"], "target": COLOURS["taid"], "student": REFERENCE}  # whose probability


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        f"{pair_name(FIRST_PAIR)}, scale {scale}, {plural(seeds(frame, 'figure1'), 'seed')}; means over the response"
        " tokens of the test split, looked at before the first update, on the way, and at the end.\n\n"
        "![A teacher that stands still, and a bridge that moves](figure1.png)\n\n"
        "*Left*: how far the student is from what it learns from at that moment, KL(target ‖ student): from the"
        " teacher itself (KL), or from TAID's intermediate teacher. *Second*: how far from the teacher. *Below*:"
        " where student, target and teacher have their mass in TAID's runs, by the teacher's ranking of the tokens."
        " Lines are means over seeds, bands their 95% intervals.\n"
    )


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Share of updates × distance and method; TAID − KL last."""
    shares = sorted(frame[frame.metric == "kl_to_target"].task.unique())
    header = [
        "share of updates",
        "TAID's t",
        *(f"{name(m)} {measure.heading}" for measure in DISTANCES.values() for m in METHODS),
        *(f"TAID − KL, {measure.title}" for measure in DISTANCES.values()),
    ]
    body = []
    for share in shares:
        t = at(frame, "t", share).get("taid", {})
        found = {metric: at(frame, metric, share) for metric in DISTANCES}
        body.append(
            [
                f"{float(share):.0%}",
                f"{np.mean(list(t.values())):.2f}" if t else MISSING,
                *(
                    interval(mean_interval(list(by[m].values())), DISTANCES[metric].digits)
                    if m in by
                    else MISSING
                    for metric, by in found.items()
                    for m in METHODS
                ),
                *(effect(difference(by, "taid", "kl"), DISTANCES[metric]) for metric, by in found.items()),
            ]
        )
    return Table(header, body)


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {"How far the student is": headline(frame, scale).markdown()}


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """What is asked of the student at first, and where it ends."""
    asked, (start, end) = at(frame, "kl_to_target", FIRST), FIGURE1
    reached = at(frame, "kl_to_teacher", SNAPSHOTS[-1])
    return [
        Comparison("", Measure("to the target before the first update", "nats/token", 3, -1), asked, start),
        Comparison("", Measure("to the teacher at the end", "nats/token", 3, -1), reached, end),
    ]


def at(frame: pd.DataFrame, metric: str, task: str) -> Scores:
    return scores(frame, "figure1", metric, task).get(FIRST_PAIR, {})


def draw(frame: pd.DataFrame) -> Figure:
    """The two distances over training, and TAID's three distributions at some moments."""
    figure = canvas(6)
    grid = figure.add_gridspec(2, 4)
    for row, (metric, measure) in enumerate(DISTANCES.items()):
        ax = figure.add_subplot(grid[0, 2 * row : 2 * row + 2])
        for method in METHODS:
            over_training(ax, frame, metric, method)
        ax.set(xlabel="share of updates", ylabel=f"KL [{measure.unit}]", ylim=(0, None))
        ax.set_title(measure.title, fontsize=10)
    first: Axes | None = None
    for column, share in enumerate(SNAPSHOTS):
        ax = figure.add_subplot(grid[1, column], sharey=first)
        for who, colour in SIDES.items():
            distribution(ax, frame, who, share, colour)
        ax.set_title(f"after {float(share):.0%}", fontsize=10)
        ax.set(xlabel="teacher's rank", yscale="log", ylabel="" if first else "mean probability")
        ax.set_xticks([1, 5, 10])
        ax.tick_params(labelleft=first is None, which="both")
        first = first or ax
    legend(figure, BANDS)
    return figure


def over_training(ax: Axes, frame: pd.DataFrame, metric: str, method: str) -> Axes:
    chosen = frame[(frame.metric == metric) & (frame.method == method)]
    found = {float(share): mean_interval(list(rows.value)) for share, rows in chosen.groupby("task")}
    return curve(ax, found, name(method), COLOURS[method])


def distribution(ax: Axes, frame: pd.DataFrame, who: str, share: str, colour: str) -> Axes:
    """The mean probability of the teacher's r-th likeliest token, over r."""
    chosen = frame[(frame.metric == who) & (frame.method == "taid") & frame.task.str.startswith(f"{share} ")]
    found = {int(task.split()[-1]): mean_interval(list(rows.value)) for task, rows in chosen.groupby("task")}
    label = {"target": "TAID's target", "student": "TAID's student"}.get(who, who)
    return curve(ax, dict(sorted(found.items())), label, colour)


PAGE = Page(
    "figure1",
    "Figure 1: a teacher that stands still, and a bridge that moves",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"figure1": draw(frame)},
)
