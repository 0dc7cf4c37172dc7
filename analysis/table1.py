"""Table 1, rendered: `results/table1.md` and the figure `results/table1.png` beside it."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.claims import METHODS, TABLE1
from analysis.predicates import Claim, Verdict, holds_in_paper
from analysis.rows import Pair, Scores, scores
from analysis.statistics import gap_in_deviations, mean_interval
from analysis.style import COLOURS, name, pair_name
from analysis.tables import MISSING, claims_table, document, markdown, marks, number, provenance, value

Line = Callable[[Pair, str], list[str]]

TITLE = "Table 1: instruction tuning"
REFERENCES = ("teacher", "untrained")
PROTOCOLS = {"table1": "rate chosen per method", "table1_one_rate": "one rate for all"}
BESIDE = {  # metric → heading, digits
    "score": ("headline ↑", 2),
    "score_greedy": ("greedy ↑", 2),
    "score_sampled": ("sampled ↑", 2),
    "held_out_loss": ("held-out loss ↓ (nats/token)", 3),
    "kl_to_teacher": ("KL to teacher ↓ (nats/token)", 3),
    "distinct_bigrams": ("distinct bigrams ↑ (fraction)", 3),
    "train_seconds": ("training ↓ (s)", 0),
}
SEPARATION = 5.0  # least gap of teacher and SFT, in standard deviations over seeds
FLOOR, CEILING = 0.5, 9.5  # points of 10


def write(frame: pd.DataFrame, folder: Path, scale: str) -> None:
    """Render the rows of one scale to `folder`/table1.md and `folder`/table1.png."""
    (folder / "table1.md").write_text(render(frame, scale), encoding="utf-8")
    draw(frame, scale).savefig(folder / "table1.png", metadata={"Software": None})


def render(frame: pd.DataFrame, scale: str) -> str:
    """The whole document, from the rows of one scale. Equal rows give equal text."""
    sections = {
        "Headline": headline(frame, scale, "table1"),
        "One learning rate for all (the paper's protocol)": headline(frame, scale, "table1_one_rate"),
        "Claims": claims(frame),
        "Beside the headline": beside(frame),
        "Scores per category": categories(frame),
        "Learning rates": learning_rates(frame),
        "Can the benchmark tell models apart?": separation(frame),
        "Provenance": provenance(frame),
    }
    return document(TITLE, scale, preamble(frame, scale), sections)


def preamble(frame: pd.DataFrame, scale: str) -> str:
    ours = scores(frame, "table1", "score")
    cells = sum(len(by_method.keys() & set(METHODS)) for by_method in ours.values())
    return (
        "*Paper*: MT-Bench, GPT-4 as judge, 1–10, one run of models from the hub."
        f" *Ours ({scale})*: a scale model of the pairs, 0–10, the mean over categories of held-out prompts;"
        " the response is greedy where a verifier scores it, sampled where a judge model does."
        " The two share no scale: compare the order within a column, not numbers across columns."
        f" Seeds: {seeds(frame)}; ± is half of the 95% t-interval over them, a dash means no rows."
        f" {cells} of {len(METHODS) * len(reference.table1())} cells have rows.\n\n"
        "![The paper's scores beside ours](table1.png)\n"
    )


def headline(frame: pd.DataFrame, scale: str, experiment: str) -> str:
    """Method × pair, the paper's score and ours in columns of their own."""
    paper, ours = reference.table1(), scores(frame, experiment, "score")
    if not ours:
        return ""
    count = seeds(frame)
    formats = {pair: marks(without_references(ours.get(pair, {}))) for pair in pairs(ours)}

    def columns(method: str) -> Iterable[str]:
        for pair in pairs(ours):
            theirs = paper.get(pair, {})
            score = number(theirs[method]) if method in theirs else MISSING
            yield f"**{score}**" if theirs and method == max(theirs, key=theirs.get) else score
            cell = value(ours.get(pair, {}).get(method), count)
            yield formats[pair].get(method, "{}").format(cell)

    header = ["method"]
    for pair in pairs(ours):
        header += [f"{pair_name(pair)}: paper", f"ours ({scale})"]
    measured = [method for method in REFERENCES if any(method in by_method for by_method in ours.values())]
    body = [[name(method), *columns(method)] for method in (*methods(ours), *measured)]
    rates = grid(frame, experiment)
    notes = (
        "Bold: best mean of the column. †: a tie, for the paired interval to the best includes 0."
        f" Learning rates: {', '.join(f'{rate:g}' for rate in rates) or 'not recorded'}."
    )
    return f"{markdown(header, body)}\n{notes}\n"


def beside(frame: pd.DataFrame) -> str:
    """What else was measured, one table per pair; arrows point to better."""
    by_metric = {metric: scores(frame, "table1", metric) for metric in BESIDE}
    count = seeds(frame)
    header = ["method", *(heading for heading, _ in BESIDE.values())]

    def line(pair: Pair, method: str) -> list[str]:
        cells = [
            value(by_metric[metric].get(pair, {}).get(method), count, digits)
            for metric, (_, digits) in BESIDE.items()
        ]
        return [name(method), *cells]

    return per_pair(by_metric["score"], header, line)


def categories(frame: pd.DataFrame) -> str:
    """The headline's score by category, one table per pair."""
    score_rows = frame[(frame.experiment == "table1") & (frame.metric == "score")]
    tasks = [task for task in score_rows.task.unique() if task != "average"]
    by_task = {task: scores(frame, "table1", "score", task) for task in tasks}
    count = seeds(frame)

    def line(pair: Pair, method: str) -> list[str]:
        cells = [value(by_task[task].get(pair, {}).get(method), count) for task in tasks]
        return [name(method), *cells]

    return per_pair(scores(frame, "table1", "score"), ["method", *tasks], line) if tasks else ""


def learning_rates(frame: pd.DataFrame) -> str:
    """The validation score at each rate of the grid, in bold at the rate behind the headline."""
    by_pair = scores(frame, "table1_search", "score") or scores(frame, "table1", "score")
    rates = grid(frame, "table1", "table1_search")
    by_rate = {rate: frame[frame.learning_rate == rate] for rate in rates}
    validation = {rate: scores(rows, "table1_search", "score") for rate, rows in by_rate.items()}
    headlines = {rate: scores(rows, "table1", "score") for rate, rows in by_rate.items()}

    def cell(pair: Pair, method: str, rate: float) -> str:
        values = validation[rate].get(pair, {}).get(method)
        text = number(mean_interval(list(values.values())).mean) if values else MISSING
        return f"**{text}**" if method in headlines[rate].get(pair, {}) else text

    def line(pair: Pair, method: str) -> list[str]:
        return [name(method), *(cell(pair, method, rate) for rate in rates)]

    if not rates:
        return ""
    students = {pair: without_references(by_method) for pair, by_method in by_pair.items()}
    tables = per_pair(students, ["method", *(f"{rate:g}" for rate in rates)], line)
    return f"Score on the validation split, mean over seeds; bold: the headline's rate.\n\n{tables}"


def grid(frame: pd.DataFrame, *experiments: str) -> list[float]:
    """The learning rates of the experiments, ascending; references train at none."""
    trained = frame[frame.experiment.isin(experiments) & ~frame.method.isin(REFERENCES)]
    return sorted(trained.learning_rate.dropna().unique())


def verdicts(frame: pd.DataFrame) -> Iterable[tuple[str, Claim, bool, Verdict]]:
    """Every claim for every pair of the paper under both protocols (those that have rows)."""
    for experiment, protocol in PROTOCOLS.items():
        if not (ours := scores(frame, experiment, "score")):
            continue
        for pair, numbers in reference.table1().items():
            for claim in TABLE1:
                where = f"{pair_name(pair)}, {protocol}"
                yield where, claim, holds_in_paper(claim, numbers), claim.predicate(ours.get(pair, {}))


def claims(frame: pd.DataFrame) -> str:
    """All verdicts and the rule behind them; empty without rows of either protocol."""
    rule = (
        "Differences are paired by seed. *Supported*: the 95% interval lies above 0, for every rival."
        " *Contradicted*: it lies below 0 for one, Bonferroni-corrected over rivals. Else *inconclusive*.\n"
    )
    judged = list(verdicts(frame))
    return f"{claims_table(judged)}\n{rule}" if judged else ""


def separation(frame: pd.DataFrame) -> str:
    """Whether the teacher beats SFT clearly, and whether any category is at floor or ceiling for both."""
    ours = scores(frame, "table1", "score")
    lines = [[pair_name(pair), *separation_of(frame, pair, ours.get(pair, {}))] for pair in pairs(ours)]
    header = ["pair", "teacher", "SFT", "gap in standard deviations", "categories at floor or ceiling"]
    rule = (
        f"Asked for: a gap of at least {SEPARATION:g} standard deviations (of the difference, over seeds;"
        " a side with one seed counts as a constant), and no category with both"
        f" below {FLOOR:g} or both above {CEILING:g}.\n"
    )
    return f"{markdown(header, lines)}\n{rule}" if ours else ""


def separation_of(frame: pd.DataFrame, pair: Pair, ours: Scores) -> list[str]:
    """Cells of one line: teacher, SFT, their gap, categories that cannot tell them apart."""
    cells = [value(ours.get(method), seeds(frame)) for method in ("teacher", "sft")]
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
    """The paper's scores beside ours, one panel per pair."""
    paper, ours = reference.table1(), scores(frame, "table1", "score")
    panels = [
        figures.Panel(
            title=pair_name(pair),
            paper={method: mean_interval([score]) for method, score in paper.get(pair, {}).items()},
            ours=estimates(without_references(ours.get(pair, {}))),
            note=reference_note(estimates(ours.get(pair, {}))),
        )
        for pair in pairs(ours)
    ]
    return figures.paper_beside_ours(panels, COLOURS, "paper, MT-Bench", f"ours ({scale}), points of 10")


def reference_note(ours: figures.Estimates) -> str:
    """The two scores between which the methods lie, a line each, as far as they have rows."""
    words = {"teacher": "teacher", "untrained": "before distillation"}
    lines = [f"{word} {number(ours[method].mean)}" for method, word in words.items() if method in ours]
    return "\n".join(lines)


def estimates(by_method: Scores) -> figures.Estimates:
    return {method: mean_interval(list(values.values())) for method, values in by_method.items()}


def pairs(by_pair: Mapping[Pair, Scores]) -> list[Pair]:
    """The paper's pairs in its order, then any others."""
    return list(dict.fromkeys([*reference.table1(), *by_pair]))


def methods(by_pair: Mapping[Pair, Scores]) -> list[str]:
    """The paper's methods in its order, then any others; references apart."""
    others = sorted({method for ours in by_pair.values() for method in without_references(ours)})
    return list(dict.fromkeys([*METHODS, *others]))


def without_references(by_method: Scores) -> Scores:
    return {method: values for method, values in by_method.items() if method not in REFERENCES}


def seeds(frame: pd.DataFrame) -> int:
    """Number of seeds of the headline table."""
    return frame.seed[frame.experiment == "table1"].nunique()


def per_pair(by_pair: Mapping[Pair, Scores], header: list[str], line: Line) -> str:
    """A table for each pair that has rows, with the `line(pair, method)` of each method that has."""
    listed = (*methods(by_pair), *REFERENCES)
    tables = [
        f"**{pair_name(pair)}**\n\n"
        + markdown(header, [line(pair, method) for method in listed if method in by_pair[pair]])
        for pair in pairs(by_pair)
        if pair in by_pair
    ]
    return "\n".join(tables)
