"""Table 1, protocol 2: `results/table1_tuned.md` and its figures."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import decision, figures, reference
from analysis.claims import TABLE1_TUNED
from analysis.measures import MEASURES, Measure
from analysis.page import Comparison, Page, by_claim, findings
from analysis.reference import METHODS
from analysis.rows import Pair, scores, seeds, without_references
from analysis.statistics import mean_interval
from analysis.style import name, pair_name
from analysis.table1_rows import methods, pairs, per_pair, to_kl
from analysis.tables import MISSING, VERSUS, Table, clean, counted, number, value, versus

TEST, SEARCH = "table1_tuned", "table1_tuned_search"
PRIMARY = ("knowledge", "prose", "kl_to_teacher")
ACROSS = (
    "*TAID − KL*: paired by seed. Students differ by what their seed pre-trained, so lines of other seeds are not to be"
    " compared here, but in the differences below, which are of the seeds that both have."
)
BESIDE = (
    "mode_coverage",
    "answer_mass",
    "answer_entropy",
    "held_out_loss",
    "score",
    "distinct_bigrams",
    "rollout_threshold",
    "train_seconds",
)


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {
        "Headline": headline(frame, scale).markdown(),
        "Differences to KL": against_kl(frame),
        "Decision": decisions(frame),
        "What became of the teacher's many answers": beside(frame),
        "By category": categories(frame),
        "Learning rates": learning_rates(frame),
    }


def preamble(frame: pd.DataFrame, scale: str) -> str:
    ours = scores(frame, TEST, "knowledge")
    cells = sum(len(without_references(by)) for by in ours.values())
    every = len([*METHODS, "skew_kl"]) * len(reference.table1())
    return (
        "*Paper*: MT-Bench, GPT-4 as judge, 1–10, one run of models from the hub."
        f" *Ours ({scale})*: a scale model of the pairs, whose teachers were taught every accepted answer of a"
        " question. *Knowledge*: 10 × the share of held-out questions whose greedy answer is accepted. *Prose, off"
        " people's*: how far the judge's mean log-likelihood per token of sampled prose lies from that of"
        " people's, above or below. *KL to the teacher*: on the test responses. Three measures that share no scale,"
        " with each other or with the paper's. 10% warm-up for all; rates by the validation score of three seeds that"
        " are not tested; [the protocol](../docs/table1.md).\n\n"
        f"Seeds: up to {seeds(frame, TEST)}; ± is half of the 95% t-interval over them, a dash means no rows."
        f" {cells} of {every} cells have rows.\n\n"
        + ("![Differences to KL](table1_tuned.png)\n" if cells else "")
    )


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Method × pair: the paper's score, then our primary measures; TAID − KL last."""
    paper, count = reference.table1(), seeds(frame, TEST)
    found = {metric: scores(frame, TEST, metric) for metric in PRIMARY}
    listed = pairs(found["knowledge"])
    header = ["method"]
    for pair in listed:
        header += [f"{pair_name(pair)}: paper", *(MEASURES[metric].heading for metric in PRIMARY)]

    def columns(method: str) -> Iterable[str]:
        for pair in listed:
            theirs = paper.get(pair, {})
            yield number(theirs[method]) if method in theirs else MISSING
            for metric, by_pair in found.items():
                yield value(by_pair.get(pair, {}).get(method), count, MEASURES[metric].digits)

    def gaps() -> Iterable[str]:
        label, *own = versus(
            *((found[m].get(pair, {}), MEASURES[m].digits) for pair in listed for m in PRIMARY)
        )
        yield label
        for at, pair in enumerate(listed):
            theirs = paper.get(pair)
            yield number(theirs["taid"] - theirs["kl"]) if theirs else MISSING
            yield from own[at * len(PRIMARY) : (at + 1) * len(PRIMARY)]

    measured = {method for by in found["knowledge"].values() for method in by}
    shown = [*methods(found["knowledge"]), *(m for m in ("teacher", "untrained") if m in measured)]
    body = [[name(method), *columns(method)] for method in shown]
    return Table(header, [*body, [*gaps()]], ACROSS)


def against_kl(frame: pd.DataFrame) -> str:
    """Method × primary measure, per pair: the figure's numbers."""
    found = differences_to_kl(frame)
    if not found:
        return ""

    def line(pair: Pair, method: str) -> list[str]:
        estimates = [(by.get(method), measure.digits) for measure, by in found[pair].items()]
        return [name(method), *(counted(estimate, digits) for estimate, digits in estimates)]

    before = "Method − KL, paired by the seeds that both have, turned so that more is better; the figure draws them.\n\n"
    ours, first = scores(frame, TEST, PRIMARY[0]), MEASURES[PRIMARY[0]]
    listed = {pair: {method: ours[pair][method] for method in by[first]} for pair, by in found.items()}
    return before + per_pair(listed, ["method", *(MEASURES[m].heading for m in PRIMARY)], line)


def differences_to_kl(frame: pd.DataFrame) -> dict[Pair, dict[Measure, figures.Estimates]]:
    """Pair → primary measure → method → its difference to KL, turned so that more is better; of pairs that have KL."""
    found = {metric: scores(frame, TEST, metric) for metric in PRIMARY}
    return {
        pair: {
            MEASURES[m]: to_kl(MEASURES[m].oriented(by_pair.get(pair, {}))) for m, by_pair in found.items()
        }
        for pair in pairs(found["knowledge"])
        if "kl" in found["knowledge"].get(pair, {})
    }


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """Every pair by the primary measures."""
    found = {metric: scores(frame, TEST, metric) for metric in PRIMARY}
    return [
        Comparison(
            pair_name(pair),
            MEASURES[metric],
            by_pair[pair],
            TABLE1_TUNED,
            reference.table1().get(pair) if metric == "knowledge" else None,
        )
        for pair in pairs(found["knowledge"])
        for metric, by_pair in found.items()
        if pair in by_pair
    ]


def decisions(frame: pd.DataFrame) -> str:
    """`analysis.decision` of every claim and pair."""
    return decision.table(by_claim(findings(comparisons(frame)))).markdown()


def beside(frame: pd.DataFrame) -> str:
    """What else was measured, one table per pair; the teacher's line says how many answers it has."""
    rule = (
        "Of questions with several accepted answers, k of them: *covered*, the share of them with a probability"
        " of 1/(2k) or more; *mass*, their probability together; *entropy*, of the answer's first token. *Score*: by which rates were chosen.\n\n"
    )
    return metrics(frame, {(m, "average"): MEASURES[m].heading for m in BESIDE}, rule)


def categories(frame: pd.DataFrame) -> str:
    """Knowledge and prose, category by category."""
    found = {
        (metric, task): f"{task} [{MEASURES[metric].unit}]"
        for metric in ("knowledge", "prose")
        for task in tasks(frame, metric)
    }
    images = "".join(f"![{m}: method × category, less KL](table1_tuned_{m}.png)\n\n" for m in heat(frame))
    return metrics(frame, found, images)


def metrics(frame: pd.DataFrame, columns: dict[tuple[str, str], str], before: str) -> str:
    """Tables per pair with a column for each (metric, task)."""
    by = {column: scores(frame, TEST, *column) for column in columns}
    digits, count = [MEASURES[metric].digits for metric, _ in columns], seeds(frame, TEST)

    def line(pair: Pair, method: str) -> list[str]:
        found = [(of.get(pair, {}), d) for of, d in zip(by.values(), digits, strict=True)]
        if method == VERSUS:
            return versus(*found)
        return [name(method), *(value(of.get(method), count, d) for of, d in found)]

    if not any(by.values()):
        return ""
    listed = scores(frame, TEST, "knowledge")
    return before + per_pair(listed, ["method", *columns.values()], line, last=(VERSUS,))


def tasks(frame: pd.DataFrame, metric: str) -> list[str]:
    found = frame[(frame.experiment == TEST) & (frame.metric == metric)].task.unique()
    return [task for task in found if task != "average"]


def learning_rates(frame: pd.DataFrame) -> str:
    """The mean validation score over the tuning seeds at each rate; in bold the rate that was tested."""
    searched, tested = frame[frame.experiment == SEARCH], frame[frame.experiment == TEST]
    rates = sorted(searched.learning_rate.unique())
    by_rate = {rate: scores(searched[searched.learning_rate == rate], SEARCH, "score") for rate in rates}
    chosen = {rate: scores(tested[tested.learning_rate == rate], TEST, "score") for rate in rates}

    def line(pair: Pair, method: str) -> list[str]:
        cells = []
        for rate in rates:
            values = by_rate[rate].get(pair, {}).get(method)
            text = number(mean_interval(list(values.values())).mean) if values else MISSING
            cells.append(f"**{text}**" if method in chosen[rate].get(pair, {}) else text)
        return [name(method), *cells]

    if not rates:
        return "Not searched here: those of the committed rows.\n" if len(tested) else ""
    taken = {rate: sum(len(by) for by in chosen[rate].values()) for rate in rates}
    note = (
        f"Mean validation score over {plural_seeds(searched)}, of the worse half of the rates on the first alone; bold:"
        " the rate that was tested. At the grid's lower"
        f" edge lie {taken[rates[0]]} of {sum(taken.values())} cells, at its upper edge {taken[rates[-1]]}.\n\n"
    )
    return note + per_pair(scores(searched, SEARCH, "score"), ["method", *(f"{r:g}" for r in rates)], line)


def plural_seeds(searched: pd.DataFrame) -> str:
    return f"the tuning seeds {', '.join(map(str, sorted(searched.seed.unique())))}"


def heat(frame: pd.DataFrame) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Metric → pair → method → category → mean less KL's, turned so that more is better."""
    maps: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for metric in ("knowledge", "prose"):
        for task in tasks(frame, metric):
            for pair, ours in scores(frame, TEST, metric, task).items():
                for method, estimate in to_kl(MEASURES[metric].oriented(ours)).items():
                    rows = maps.setdefault(metric, {}).setdefault(pair_name(pair), {})
                    rows.setdefault(method, {})[task] = estimate.mean
    return maps


def draw_all(frame: pd.DataFrame, scale: str) -> dict[str, Figure]:
    shown = differences_to_kl(frame)
    drawn = {
        f"table1_tuned_{metric}": figures.heat_maps(maps, f"KL's better ← {MEASURES[metric].unit} → better")
        for metric, maps in heat(frame).items()
    }
    if not shown:
        return drawn
    parts = {pair_name(pair): by_measure for pair, by_measure in shown.items()}
    listed = [m for m in methods(scores(frame, TEST, "knowledge")) if m != "kl"]
    return {"table1_tuned": figures.differences(parts, {"": listed}, "kl")} | drawn


def samples(folder: Path) -> dict[str, str]:
    """Responses to the same prompts, of each pair's students of seed 0, from files beside the rows."""
    tables = []
    for path in sorted((folder / "table1_tuned_samples").glob("*.json")):
        by_method = json.loads(path.read_text(encoding="utf-8"))
        prompts = [prompt for prompt, _ in next(iter(by_method.values()))]
        shown = [m for m in (*METHODS, "skew_kl", "teacher", "untrained") if m in by_method]
        body = [[name(m), *(clean(response) for _, response in by_method[m])] for m in shown]
        header = ["method", *(clean(prompt) for prompt in prompts)]
        tables.append(f"**{name(path.stem)}**\n\n" + Table(header, body, text_columns=len(header)).markdown())
    before = "Seed 0, not chosen: the first test prompt of five categories; greedy where there is a right answer.\n\n"
    return {"Samples": before + "\n".join(tables)} if tables else {}


PAGE = Page(
    TEST,
    "Table 1: instruction tuning by teachers with many answers",
    preamble,
    headline,
    sections,
    comparisons,
    draw_all,
    targets=("table1",),
    beside=samples,
    numbers=["table1_instruction_tuning"],
)
