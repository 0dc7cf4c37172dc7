"""Table 3: `results/table3.md` and its figure."""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.claims import TABLE3
from analysis.measures import Measure
from analysis.page import Comparison, Page
from analysis.reference import METHODS
from analysis.rows import Pair, Scores, mapped, scores, seeds
from analysis.statistics import difference, mean_interval
from analysis.style import COLOURS, name, pair_name
from analysis.tables import MISSING, Table, effect, number, plural, value, versus

PAIR = Pair("phi-3-mini", "tinyllama")
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
        f" 80–100th percentile. *Paper*: {pair_name(PAIR)}, V = 32,000. *Ours ({scale})*: Table 1's students"
        f" of that pair, V = {vocabulary(frame):,}, teacher-forced on the test responses, mean over tokens."
        " Whose ranking the paper means we do not know, so claims are judged under three; the vocabularies"
        " differ, so compare the order within a column, not numbers across columns."
        f" Seeds: {seeds(frame, 'table3')}; ± is half of the 95% t-interval over them; the tail's mean and"
        " interval are taken of its logarithm. A dash means no rows.\n\n"
        "![Mean probability by rank](table3.png)\n\n"
        "*Figure*: mean probability at the ranks of the teacher, who ranks anew at every token; right, the same"
        " over KL's, where methods part.\n"
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
    """Mean probability by the teacher's rank, and over KL's: a line per method, the teacher's own in black."""
    last, curves = vocabulary(frame), by_rank(frame)
    figure = Figure(figsize=(12, 4.4), dpi=110, layout="constrained")
    bands = {"head": (1, 10), "tail": (round(0.8 * last), last)}
    left, right = figure.subplots(1, 2)
    figures.mass_by_rank(left, curves, COLOURS, bands)
    kl = curves.get("kl", {})
    over_kl = {m: {r: v / kl[r] for r, v in by.items() if r in kl} for m, by in curves.items() if kl}
    figures.mass_by_rank(right, over_kl, COLOURS, bands)
    right.set(ylabel="mean probability over KL's")
    for ax in (left, right):
        ax.set_xlabel("rank of the token by the teacher")
    return figures.legend(figure, columns=7)


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
    return scores(frame, "table3", metric).get(PAIR, {})


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
