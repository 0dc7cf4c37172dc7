"""Table 3: `results/table3.md` and its figure."""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.claims import TABLE3
from analysis.measures import Measure
from analysis.page import Comparison, Page
from analysis.reference import METHODS
from analysis.rows import FIRST_PAIR, Scores, mapped, scores, seeds
from analysis.statistics import difference, mean_interval
from analysis.style import COLOURS, name, pair_name
from analysis.tables import MISSING, Table, effect, exponential, number, plural, value, versus

READINGS = {  # suffix of the metric → whose ranking
    "": "the teacher's, per token",
    "_own": "the student's own, per token",
    "_marginal": "the teacher's mean distribution",
}
MASS = {suffix: Measure(f"ranking: {ranking}", ratio=True) for suffix, ranking in READINGS.items()}


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {
        f"Ranking: {READINGS['']} (our reading)": headline(frame, scale).markdown(),
        **{
            f"Ranking: {READINGS[suffix]}": headline(frame, scale, suffix).markdown()
            for suffix in ("_own", "_marginal")
            if ours(frame, f"head{suffix}")
        },
    }


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        "*Head*: mass on the ten tokens that a ranking of the vocabulary puts first. *Tail*: mass on its"
        f" 80–100th percentile. *Paper*: {pair_name(FIRST_PAIR)}, V = 32,000. *Ours ({scale})*: Table 1's students"
        f" of that pair, V = {vocabulary(frame):,}, teacher-forced on the test responses, mean over tokens."
        " Whose ranking the paper means we do not know, so claims are judged under three; the vocabularies"
        " differ, so compare the order within a column, not numbers across columns."
        f" Seeds: {seeds(frame, 'table3')}; ± is half of the 95% t-interval over them; the tail's mean and"
        " interval are taken of its logarithm. A dash means no rows.\n\n"
        "![Mass over KL's: by rank, and of head and tail](table3.png)\n\n"
        "*Figure*: above, the mean probability at the ranks of the teacher, who ranks anew at every token, over"
        " KL's; the teacher's own leaves the panel in the tail. Below, the masses of head and tail over KL's, with 95% intervals of ours, paired by seed.\n"
    )


def headline(frame: pd.DataFrame, scale: str, suffix: str = "") -> Table:
    """Method × part under one ranking, the paper's mass and ours in columns of their own; teacher, TAID − KL last."""
    head, tail = (ours(frame, part + suffix) for part in ("head", "tail"))
    paper, count = reference.table3(), seeds(frame, "table3")

    def line(method: str) -> list[str]:
        theirs = [f(paper[part][method]) if method in paper[part] else MISSING for part, f in FORMATS.items()]
        if method == "teacher":  # one model, the same for all seeds
            own = [FORMATS["head"](head[method][0]), FORMATS["tail"](tail[method][0])]
        else:
            own = [value(head.get(method), count, 3), log_value(tail.get(method), count)]
        return [name(method), theirs[0], own[0], theirs[1], own[1]]

    label, own = versus((head, 3))
    gap = [
        f"{label} (tail: ÷)",
        number(paper["head"]["taid"] - paper["head"]["kl"], 3),
        own,
        f"× {paper['tail']['taid'] / paper['tail']['kl']:.2f}",
        effect(difference(mapped(tail, math.log), "taid", "kl"), MASS[suffix]),
    ]
    header = ["method", "head: paper", f"ours ({scale})", "tail: paper", f"ours ({scale})"]
    listed = [method for method in (*METHODS, "teacher") if method in {*head, *paper["head"]}]
    return Table(header, [*map(line, listed), gap])


def log_value(values: Mapping[int, float] | None, seeds: int) -> str:
    """ "3.90e-06 [3.10e-06, 4.91e-06]": geometric mean with its 95% interval; seeds as in `value`."""
    if not values:
        return MISSING
    estimate = mean_interval([math.log(v) for v in values.values()])
    middle, low, high = (scientific(math.exp(x)) for x in (estimate.mean, estimate.low, estimate.high))
    count = f" ({plural(estimate.n, 'seed')})" if estimate.n == 1 or estimate.n != seeds else ""
    return f"{middle}{f' [{low}, {high}]' if estimate.n > 1 else ''}{count}"


def scientific(value: float) -> str:
    return f"{value:.2e}"


FORMATS = {"head": lambda mass: number(mass, 3), "tail": scientific}


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """Each part under each ranking that has rows; all compare logarithms of masses."""
    return [
        Comparison(
            part,
            MASS[suffix],
            mapped(masses, math.log),
            claims,
            {m: math.log(mass) for m, mass in reference.table3()[part].items()},
        )
        for part, claims in TABLE3.items()
        for suffix in READINGS
        if (masses := ours(frame, part + suffix))
    ]


def draw(frame: pd.DataFrame) -> Figure:
    """Over KL's: the mean probability at the teacher's ranks, a line per method, the teacher's own in black; and the
    masses of head and tail, the paper's beside ours."""
    last, curves = vocabulary(frame), by_rank(frame)
    figure = figures.canvas(7.2)
    top, below = figures.stacked(figure, 1.2, 1)
    kl = curves.get("kl", {})
    over_kl = {m: {r: v / kl[r] for r, v in by.items() if r in kl} for m, by in curves.items() if kl}
    bands = {"head": (1, 10), "tail": (round(0.8 * last), last)}
    ax = figures.mass_by_rank(top.subplots(), over_kl, COLOURS, bands)
    shown = [v for m, by in over_kl.items() if m != "teacher" for v in by.values()]
    if shown:  # the teacher's own leaves the panel
        ax.set_ylim(min(shown) / 1.2, max(shown) * 1.2)
        figures.logarithmic(ax.yaxis)
    ax.set(xlabel="rank of the token by the teacher", ylabel="mean probability, over KL's")
    figures.legend(top)
    for ax, part in zip(below.subplots(1, 2, sharey=True), reference.table3(), strict=True):
        over_kls(ax, frame, part)
    figures.legend(below, figures.PAPER, figures.OURS, figures.BARS)
    return figure


def over_kls(ax: Axes, frame: pd.DataFrame, part: str) -> Axes:
    """The mass of a part over KL's, the paper's and ours, paired by seed."""
    paper, own = reference.table3()[part], mapped(ours(frame, part), math.log)
    listed = [m for m in METHODS if m != "kl" and m in {*paper, *own}]
    found = {m: exponential(gap) for m in listed if (gap := difference(own, m, "kl"))}
    figures.dots(
        ax,
        {m: mean_interval([mass / paper["kl"]]) for m, mass in paper.items()},
        listed,
        COLOURS,
        hollow=True,
    )
    figures.dots(ax, found, listed, COLOURS)
    ax.axvline(1, color=figures.REFERENCE, linewidth=1)
    if part == "tail":  # masses of other orders
        ax.set(xscale="log")
        figures.logarithmic(ax.xaxis)
    ax.set_title(f"mass of the {part}, over KL's", fontsize=10)
    return ax


def by_rank(frame: pd.DataFrame) -> dict[str, dict[int, float]]:
    """Method → rank → mass there, the mean over seeds."""
    chosen = frame[frame.metric == "mass_at_rank"].astype({"task": int})
    means = chosen.groupby(["method", "task"]).value.mean()  # ranks ascend
    present = set(chosen.method)
    return {method: means[method].to_dict() for method in (*METHODS, "teacher") if method in present}


def vocabulary(frame: pd.DataFrame) -> int:
    """V, the last of the measured ranks."""
    return frame.task[frame.metric == "mass_at_rank"].astype(int).max()


def ours(frame: pd.DataFrame, metric: str) -> Scores:
    return scores(frame, "table3", metric).get(FIRST_PAIR, {})


PAGE = Page(
    "table3",
    "Table 3: probability mass in head and tail",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"table3": draw(frame)},
    numbers=["table3_probability_mass"],
)
