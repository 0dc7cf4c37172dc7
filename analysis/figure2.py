"""Figure 2, left and middle, rendered: `results/figure2.png` and its claims, `results/figure2.md`."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.claims import FIGURE2
from analysis.predicates import Claim, Verdict
from analysis.rows import Pair, Scores, scores
from analysis.style import COLOURS, name, pair_name
from analysis.tables import document, judged, markdown, plural, provenance
from analysis.theory_figures import REFERENCE, SHADES, lines

TITLE = "Figure 2: t over training, and the objective"
PAIR = Pair("phi-3-mini", "tinyllama")
ALPHAS = {
    "alpha_0.25": SHADES[0],
    "taid": COLOURS["taid"],
    "alpha_2": SHADES[2],
    "alpha_4": SHADES[3],
}  # method → colour
MIDDLE = {"kl": COLOURS["kl"], "taid": COLOURS["taid"], "taid_no_adaptive": COLOURS["taid_no_adaptive"]}
VARIANCES = {  # metric → what it is
    "noise_variance": "noise within a window [nats²]",
    "relative_noise_variance": "the same, of the mean squared",
    "total_variance": "all steps of the run [nats²]",
    "relative_total_variance": "the same, of the mean squared",
}
EARLY = "0.2000"  # of the run, where curves of t are compared


def write(frame: pd.DataFrame, folder: Path, scale: str) -> None:
    """Render the rows of one scale to `folder`/figure2.md and `folder`/figure2.png."""
    (folder / "figure2.md").write_text(render(frame, scale), encoding="utf-8")
    draw(frame).savefig(folder / "figure2.png", metadata={"Software": None})


def render(frame: pd.DataFrame, scale: str) -> str:
    """The whole document, from the rows of one scale. Equal rows give equal text."""
    sections = {
        "Variance of the objective": variances(frame),
        "Claims": claims(frame),
        "Provenance": provenance(frame),
    }
    return document(TITLE, scale, preamble(frame, scale), sections)


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        f"{pair_name(PAIR)}, scale {scale}, {plural(frame.seed.nunique(), 'seed')}. The x axis is the share"
        " of updates done.\n\n"
        "![t and the objective over training](figure2.png)\n\n"
        "*Left*: t in a run of the paper's length (the updates that we assume of it) for its α and a quarter,"
        " two and four times of it; lines: under a constant loss; dots: under the losses that our runs measured,"
        " trend stretched and noise drawn again; grey: the linear floor. *Second*: t in our own runs, a line"
        " per seed, α · N as in the paper. *Third*: the objective, mean in a window of a tenth of the run, a"
        " line per seed. *Right*: the variance of its noise: about a straight line within the window.\n\n"
        "The paper's figure has the objective of KL vary more than TAID's. What varies, and relative to"
        " what, can be read in several ways: we judge four.\n"
    )


def variances(frame: pd.DataFrame) -> str:
    """Method × reading, geometric mean over seeds."""
    body = [
        [name(method), *(geometric(average(frame, metric).get(method)) for metric in VARIANCES)]
        for method in MIDDLE
    ]
    return markdown(["objective", *VARIANCES.values()], body)


def geometric(values: dict[int, float] | None) -> str:
    return f"{math.exp(np.mean(np.log(list(values.values())))):.2e}" if values else "—"


def verdicts(frame: pd.DataFrame) -> list[tuple[str, Claim, Verdict]]:
    """The claims about t early in our runs, and about the logarithm of each variance."""
    found = []
    for metric, claims in FIGURE2.items():
        values = (
            scores(frame, "figure2", "t", EARLY).get(PAIR, {})
            if metric == "t"
            else logs(average(frame, metric))
        )
        where = "t" if metric == "t" else f"log variance: {VARIANCES[metric].split(' [')[0]}"
        found += [(where, claim, claim.predicate(values)) for claim in claims]
    return found


def claims(frame: pd.DataFrame) -> str:
    return judged(verdicts(frame))


def draw(frame: pd.DataFrame) -> Figure:
    """t at the paper's length, t in our runs, the objective, its noise."""
    figure = Figure(figsize=(14, 3.6), dpi=110, layout="constrained")
    paper, own, objective, noise = figure.subplots(1, 4)
    for method, colour in ALPHAS.items():
        for ax, metric, form in (
            (paper, "t_paper_constant", "-"),
            (paper, "t_paper_measured", "."),
            (own, "t", "-"),
        ):
            over_seeds(ax, frame, metric, method, colour, form)
    for ax in (paper, own):
        floor = series(frame, "t", "taid_no_adaptive")
        for x, y in list(floor.values())[:1]:
            ax.plot(x, y, "--", color=REFERENCE, label="linear floor")
        ax.set(xlabel="share of updates", ylabel="t")
    for method, colour in MIDDLE.items():
        over_seeds(objective, frame, "loss", method, colour, "-")
        over_seeds(noise, frame, "noise_variance", method, colour, "-")
    paper.set_title("paper's length", fontsize=10)
    own.set_title("our runs", fontsize=10)
    objective.set_title("objective [nats/token]", fontsize=10)
    noise.set_title("variance of its noise [nats²]", fontsize=10)
    objective.set(xlabel="share of updates")
    noise.set(xlabel="share of updates", yscale="log")
    for ax in (own, objective):
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, frameon=False)
    return figure


def over_seeds(ax: Axes, frame: pd.DataFrame, metric: str, method: str, colour: str, form: str) -> Axes:
    """A line per seed, the first of them labelled."""
    for number, (x, y) in enumerate(series(frame, metric, method).values()):
        lines(ax, x, {"_" if number else name(method): (y, colour, form)})
    return ax


def series(frame: pd.DataFrame, metric: str, method: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Seed → shares of updates done, values there."""
    chosen = frame[(frame.metric == metric) & (frame.method == method) & (frame.task != "average")]
    chosen = chosen.assign(share=chosen.task.astype(float)).sort_values("share")
    return {seed: (rows.share.to_numpy(), rows.value.to_numpy()) for seed, rows in chosen.groupby("seed")}


def average(frame: pd.DataFrame, metric: str) -> Scores:
    return scores(frame, "figure2", metric).get(PAIR, {})


def logs(found: Scores) -> Scores:
    return {method: {seed: math.log(x) for seed, x in values.items()} for method, values in found.items()}
