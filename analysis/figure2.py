"""Figure 2, left and middle: `results/figure2.png` and its claims, `results/figure2.md`."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.claims import ALPHA, VARIANCE
from analysis.figures import BANDS, REFERENCE, SHADES, band, canvas, legend, lines
from analysis.measures import Measure
from analysis.page import Comparison, Page
from analysis.rows import FIRST_PAIR, Scores, mapped, scores, seeds
from analysis.statistics import Estimate, difference, mean_interval
from analysis.style import COLOURS, name, pair_name
from analysis.tables import MISSING, Table, effect, exponential, plural

ALPHAS = {
    "alpha_0.25": SHADES[0],
    "taid": COLOURS["taid"],
    "alpha_2": SHADES[2],
    "alpha_4": SHADES[3],
}  # method → colour
MIDDLE = ("kl", "taid", "taid_no_adaptive")
VARIANCES = {  # metric → what it is: KL's over TAID's
    "noise_variance": "noise within a window [nats²]",
    "relative_noise_variance": "the noise, of the mean squared",
    "total_variance": "all steps of the run [nats²]",
    "relative_total_variance": "all steps, of the mean squared",
}
MEASURED = "under measured losses"
EARLY = "0.2000"  # of the run, where curves of t are compared


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {"Variance of the objective": headline(frame, scale).markdown()}


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        f"{pair_name(FIRST_PAIR)}, scale {scale}, {plural(seeds(frame, 'figure2'), 'seed')}. The x axis is the share"
        " of updates done.\n\n"
        "![t and the objective over training](figure2.png)\n\n"
        "*Above*, left: t in a run of the paper's length (the updates that we assume of it) for its α and a quarter,"
        " two and four times of it; lines: under a constant loss; dots: under the losses that our runs measured,"
        " trend stretched and noise drawn again; dashed: the linear floor. Right: t in our own runs, α · N as"
        " in the paper. *Below*, left: the objective, mean in a window of a tenth of the run. Right: the variance of"
        " its noise: about a straight line within the window. Lines are means over seeds, bands their 95%"
        " intervals.\n\n"
        "The paper's figure has the objective of KL vary more than TAID's. What varies, and relative to"
        " what, can be read in several ways: we judge four.\n"
    )


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Method × reading, geometric mean over seeds; the ratio of TAID's to KL's last."""
    body = [
        [name(method), *(geometric(average(frame, metric).get(method)) for metric in VARIANCES)]
        for method in MIDDLE
    ]
    ratio = Measure("", ratio=True)
    found = (mapped(average(frame, metric), math.log) for metric in VARIANCES)
    body.append(["**TAID ÷ KL**", *(effect(difference(by, "taid", "kl"), ratio) for by in found)])
    return Table(["objective", *VARIANCES.values()], body)


def geometric(values: Mapping[int, float] | None) -> str:
    return f"{math.exp(np.mean(np.log(list(values.values())))):.2e}" if values else MISSING


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """t early in our runs, and the logarithm of each variance."""
    early = scores(frame, "figure2", "t", EARLY).get(FIRST_PAIR, {})
    return [
        Comparison("", Measure("t a fifth into the run", digits=3), early, ALPHA),
        *(
            Comparison("", Measure(title, ratio=True), mapped(average(frame, metric), math.log), VARIANCE)
            for metric, title in VARIANCES.items()
        ),
    ]


def draw(frame: pd.DataFrame) -> Figure:
    """t at the paper's length, t in our runs, the objective, its noise."""
    figure = canvas(6.5)
    paper, own, objective, noise = figure.subplots(2, 2).flat
    for method, colour in ALPHAS.items():
        over_seeds(paper, frame, "t_paper_constant", method, colour, "-")
        over_seeds(paper, frame, "t_paper_measured", method, colour, ".", MEASURED)
        over_seeds(own, frame, "t", method, colour, "-")
    for ax in (paper, own):
        over_seeds(ax, frame, "t", "taid_no_adaptive", REFERENCE, "--", "linear floor")
        ax.set(ylabel="t")
    for method in MIDDLE:
        over_seeds(objective, frame, "loss", method, COLOURS[method], "-")
        over_seeds(noise, frame, "noise_variance", method, COLOURS[method], "-", geometric=True)
    titles = ("paper's length", "our runs", "objective [nats/token]", "variance of its noise [nats²]")
    for ax, title in zip(figure.axes, titles, strict=True):
        ax.set_title(title, fontsize=10)
        ax.set(xlabel="share of updates")
    noise.set(yscale="log")
    dots = Line2D([], [], color=REFERENCE, marker=".", linestyle="", label=MEASURED)
    legend(figure, dots, BANDS)
    return figure


def over_seeds(
    ax: Axes,
    frame: pd.DataFrame,
    metric: str,
    method: str,
    colour: str,
    form: str,
    label: str = "",
    geometric: bool = False,
) -> Axes:
    """The mean over seeds as a line, their interval as a band; of logarithms where `geometric`."""
    chosen = frame[(frame.metric == metric) & (frame.method == method) & (frame.task != "average")]
    found: dict[float, Estimate] = {}
    for share, rows in chosen.groupby(chosen.task.astype(float)):
        estimate = mean_interval([math.log(v) if geometric else v for v in rows.value])
        found[share] = exponential(estimate) if geometric else estimate
    if not found:
        return ax
    if form != ".":
        band(ax, list(found), list(found.values()), colour)
    means = np.array([estimate.mean for estimate in found.values()])
    return lines(ax, np.array(list(found)), {label or name(method): (means, colour, form)})


def average(frame: pd.DataFrame, metric: str) -> Scores:
    return scores(frame, "figure2", metric).get(FIRST_PAIR, {})


PAGE = Page(
    "figure2",
    "Figure 2: t over training, and the objective",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"figure2": draw(frame)},
)
