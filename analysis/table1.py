"""Table 1: `results/table1.md` and its figure."""

import math
from collections.abc import Iterable

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.claims import TABLE1
from analysis.measures import MEASURES, Measure
from analysis.page import Comparison, Page
from analysis.reference import METHODS
from analysis.rows import REFERENCES, Pair, Scores, scores, seeds, without_references
from analysis.statistics import estimates, gap_in_deviations, mean_interval
from analysis.style import COLOURS, name, pair_name
from analysis.table1_rows import methods, pairs, per_pair, to_kl
from analysis.tables import MISSING, VERSUS, Table, marks, number, value, versus

JUDGED = ("score", "kl_to_teacher", "held_out_loss")  # the primary measure first
ONE_RATE = Measure("score, one rate for all", "points of 10", 2, 1)
BESIDE = (
    "score",
    "score_greedy",
    "score_sampled",
    "held_out_loss",
    "kl_to_teacher",
    "distinct_bigrams",
    "train_seconds",
)
SEPARATION = 5.0  # least gap of teacher and SFT, in standard deviations over seeds
FLOOR, CEILING = 0.5, 9.5  # points of 10


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {
        "Headline": headline(frame, scale).markdown(),
        "One learning rate for all (the paper's protocol)": one_rate(frame, scale),
        "Beside the headline": beside(frame),
        "Scores per category": categories(frame),
        "Learning rates": learning_rates(frame),
        "Can the benchmark tell models apart?": separation(frame),
    }


def preamble(frame: pd.DataFrame, scale: str) -> str:
    ours = scores(frame, "table1", "score")
    cells = sum(len(by_method.keys() & set(METHODS)) for by_method in ours.values())
    return (
        "The first protocol; [the second](table1_tuned.md) decides.\n\n"
        "*Paper*: MT-Bench, GPT-4 as judge, 1–10, one run of models from the hub."
        f" *Ours ({scale})*: a scale model of the pairs, 0–10, the mean over categories of held-out prompts;"
        " the response is greedy where a verifier scores it, sampled where a judge model does."
        " The two share no scale: compare the order within a column, not numbers across columns."
        f" Seeds: {seeds(frame, 'table1')}; ± is half of the 95% t-interval over them, a dash means no rows."
        f" {cells} of {len(METHODS) * len(reference.table1())} cells have rows."
        " The held-out loss is the mean over examples of each one's mean over its tokens.\n\n"
        "![Differences to KL, the paper's beside ours](table1.png)\n\n"
        "*Figure*: difference to KL's score, the paper's (hollow) beside ours, paired by seed, with 95% intervals;"
        " above each pair our levels, right is better.\n"
    )


def headline(frame: pd.DataFrame, scale: str, experiment: str = "table1") -> Table:
    """Method × pair, the paper's score and ours in columns of their own; TAID − KL last."""
    paper, ours = reference.table1(), scores(frame, experiment, "score")
    count = seeds(frame, experiment)
    formats = {pair: marks(without_references(ours.get(pair, {}))) for pair in pairs(ours)}

    def columns(method: str) -> Iterable[str]:
        for pair in pairs(ours):
            theirs = paper.get(pair, {})
            score = number(theirs[method]) if method in theirs else MISSING
            yield f"**{score}**" if theirs and method == max(theirs, key=theirs.__getitem__) else score
            cell = value(ours.get(pair, {}).get(method), count)
            yield formats[pair].get(method, "{}").format(cell)

    def gaps() -> Iterable[str]:
        label, *own = versus(*((ours.get(pair, {}), 2) for pair in pairs(ours)))
        yield label
        for pair, cell in zip(pairs(ours), own, strict=True):
            theirs = paper.get(pair)
            yield number(theirs["taid"] - theirs["kl"]) if theirs else MISSING
            yield cell

    header = ["method"]
    for pair in pairs(ours):
        header += [f"{pair_name(pair)}: paper", f"ours ({scale})"]
    measured = [method for method in REFERENCES if any(method in by_method for by_method in ours.values())]
    body = [[name(method), *columns(method)] for method in (*methods(ours), *measured)]
    rates = ", ".join(f"{rate:g}" for rate in grid(frame, experiment))
    notes = (
        "Bold: best mean of the column. †: a tie, for the paired interval to the best includes 0."
        f" *TAID − KL*: paired by seed. Learning rates: {rates or 'not recorded'}."
    )
    return Table(header, [*body, [*gaps()]], notes)


def one_rate(frame: pd.DataFrame, scale: str) -> str:
    measured = scores(frame, "table1_one_rate", "score")
    return headline(frame, scale, "table1_one_rate").markdown() if measured else ""


def beside(frame: pd.DataFrame) -> str:
    """What else was measured, one table per pair; arrows point to better."""
    by_metric = {metric: scores(frame, "table1", metric) for metric in BESIDE}
    count = seeds(frame, "table1")

    def line(pair: Pair, method: str) -> list[str]:
        found = [(by.get(pair, {}), MEASURES[metric].digits) for metric, by in by_metric.items()]
        if method == VERSUS:
            return versus(*found)
        return [name(method), *(value(of.get(method), count, digits) for of, digits in found)]

    header = ["method", *(MEASURES[metric].heading for metric in BESIDE)]
    return per_pair(by_metric["score"], header, line, last=(VERSUS,))


def categories(frame: pd.DataFrame) -> str:
    """The headline's score by category, one table per pair."""
    by_task = {task: scores(frame, "table1", "score", task) for task in tasks(frame)}
    count = seeds(frame, "table1")

    def line(pair: Pair, method: str) -> list[str]:
        if method == VERSUS:
            return versus(*((found.get(pair, {}), 2) for found in by_task.values()))
        return [name(method), *(value(found.get(pair, {}).get(method), count) for found in by_task.values())]

    if not by_task:
        return ""
    tables = per_pair(scores(frame, "table1", "score"), ["method", *by_task], line, last=(VERSUS,))
    image = "![Method × category, less KL](table1_categories.png)\n\n" if category_gaps(frame) else ""
    return image + tables


def tasks(frame: pd.DataFrame) -> list[str]:
    """The categories."""
    scored = frame[(frame.experiment == "table1") & (frame.metric == "score")]
    return [task for task in scored.task.unique() if task != "average"]


def learning_rates(frame: pd.DataFrame) -> str:
    """The validation score at each rate of the grid, in bold at the rate behind the headline."""
    by_pair = scores(frame, "table1_search", "score") or scores(frame, "table1", "score")
    rates = grid(frame, "table1", "table1_search")
    by_rate = {rate: frame[frame.learning_rate == rate] for rate in rates}
    validation = {rate: scores(rows, "table1_search", "score") for rate, rows in by_rate.items()}
    chosen = {rate: scores(rows, "table1", "score") for rate, rows in by_rate.items()}

    def cell(pair: Pair, method: str, rate: float) -> str:
        values = validation[rate].get(pair, {}).get(method)
        text = number(mean_interval(list(values.values())).mean) if values else MISSING
        return f"**{text}**" if method in chosen[rate].get(pair, {}) else text

    def line(pair: Pair, method: str) -> list[str]:
        return [name(method), *(cell(pair, method, rate) for rate in rates)]

    if not rates:
        return ""
    taken = {rate: sum(len(by.keys() & set(METHODS)) for by in chosen[rate].values()) for rate in rates}
    note = (
        "Score on the validation split, mean over seeds; bold: the headline's rate."
        f" {taken[rates[-1]]} of {sum(taken.values())} cells take the grid's upper edge, {rates[-1]:g}:"
        " there a larger rate, or a warm-up, might do better.\n\n"
    )
    students = {pair: without_references(by_method) for pair, by_method in by_pair.items()}
    return note + per_pair(students, ["method", *(f"{rate:g}" for rate in rates)], line)


def grid(frame: pd.DataFrame, *experiments: str) -> list[float]:
    """The learning rates of the experiments, ascending; references train at none."""
    trained = frame[frame.experiment.isin(experiments) & ~frame.method.isin(REFERENCES)]
    return sorted(trained.learning_rate.dropna().unique())


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """Every pair by the score, by the likelihoods, and by the score under one rate for all."""
    measured = [(MEASURES[metric], scores(frame, "table1", metric)) for metric in JUDGED]
    measured.append((ONE_RATE, scores(frame, "table1_one_rate", "score")))
    return [
        Comparison(
            pair_name(pair),
            measure,
            found.get(pair, {}),
            TABLE1,
            None if number else reference.table1().get(pair),
        )
        for pair in pairs(measured[0][1])
        for number, (measure, found) in enumerate(measured)
        if found
    ]


def separation(frame: pd.DataFrame) -> str:
    """Whether the teacher beats SFT clearly, and whether any category is at floor or ceiling for both."""
    ours = scores(frame, "table1", "score")
    lines = [[pair_name(pair), *separation_of(frame, pair, ours.get(pair, {}))] for pair in pairs(ours)]
    header = ["pair", "teacher", "SFT", "gap in standard deviations", "categories at floor or ceiling"]
    rule = (
        f"Asked for: a gap of at least {SEPARATION:g} standard deviations (of the difference, over seeds;"
        " a side with one seed counts as a constant), and no category with both"
        f" below {FLOOR:g} or both above {CEILING:g}."
    )
    return Table(header, lines if ours else [], rule).markdown()


def separation_of(frame: pd.DataFrame, pair: Pair, ours: Scores) -> list[str]:
    """Cells of one line: teacher, SFT, their gap, categories that cannot tell them apart."""
    cells = [value(ours.get(method), seeds(frame, "table1")) for method in ("teacher", "sft")]
    if "teacher" not in ours or "sft" not in ours:
        return [*cells, MISSING, MISSING]
    gap = gap_in_deviations(list(ours["teacher"].values()), list(ours["sft"].values()))
    verdict = "pass" if gap >= SEPARATION else "FAIL"
    separated = f"{MISSING} (1 seed)" if math.isnan(gap) else f"{number(gap, 1)} ({verdict})"
    return [*cells, separated, ", ".join(saturated(frame, pair)) or "none"]


def saturated(frame: pd.DataFrame, pair: Pair) -> list[str]:
    """Categories where teacher and SFT are both at the floor or both at the ceiling."""
    scored = frame[(frame.experiment == "table1") & (frame.metric == "score") & (frame.task != "average")]
    ours = scored[(scored.teacher == pair.teacher) & (scored.student == pair.student)]
    both = ours[ours.method.isin(["teacher", "sft"])]
    means = both.groupby(["task", "method"], sort=False).value.mean().unstack()
    if means.shape[1] < 2:
        return []
    return list(means.index[(means < FLOOR).all(axis=1) | (means > CEILING).all(axis=1)])


def draw(frame: pd.DataFrame, scale: str) -> Figure:
    """Differences to KL, the paper's beside ours, one panel per pair."""
    paper, ours = reference.table1(), scores(frame, "table1", "score")
    panels = [
        figures.Panel(
            title=pair_name(pair),
            paper={m: mean_interval([s - theirs["kl"]]) for m, s in theirs.items() if m != "kl"},
            ours=to_kl(ours.get(pair, {})),
            note=levels(ours.get(pair, {}), scale),
            paper_unit="MT-Bench",
            unit="points of 10",
        )
        for pair in pairs(ours)
        for theirs in [paper.get(pair, {})]
    ]
    return figures.paper_beside_ours(panels, COLOURS, "kl")


def category_gaps(frame: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Pair → method → category → mean score less KL's, as far as there is one."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for task in tasks(frame):
        for pair, ours in scores(frame, "table1", "score", task).items():
            for method, estimate in to_kl(ours).items():
                panels.setdefault(pair_name(pair), {}).setdefault(method, {})[task] = estimate.mean
    return panels


def levels(ours: Scores, scale: str) -> str:
    """The scores between which the methods lie, as far as they have rows."""
    words = {"kl": "KL", "teacher": "teacher"}
    found = estimates(ours)
    shown = [f"{word} {number(found[m].mean, 1)}" for m, word in words.items() if m in found]
    return f"ours ({scale}): {', '.join(shown)}" if shown else ""


def draw_all(frame: pd.DataFrame, scale: str) -> dict[str, Figure]:
    drawn = {"table1": draw(frame, scale)}
    if panels := category_gaps(frame):
        drawn["table1_categories"] = figures.heat_maps(panels, "score − KL's [points of 10]")
    return drawn


PAGE = Page(
    "table1",
    "Table 1, protocol 1: instruction tuning",
    preamble,
    headline,
    sections,
    comparisons,
    draw_all,
    targets=("table1-protocol-1",),
    numbers=["table1_instruction_tuning"],
)
