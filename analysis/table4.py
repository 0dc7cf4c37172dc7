"""Tables 4 and 9: `results/table4.md` and its figure."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.claims import TABLE4
from analysis.measures import MEASURES, Measure
from analysis.page import Comparison, Page
from analysis.rows import REFERENCES, Scores, seeds
from analysis.statistics import difference
from analysis.style import name
from analysis.table2_rows import at, average, chance, count
from analysis.tables import MISSING, Table, clean, interval, number, plural, value, versus
from analysis.tasks import average_note, by_task, rates

METHODS = ("sft", "kl", "taid")
ARMS = {"text": "running text", "instructions": "instructions"}
AVERAGE = Measure("average of the tasks", "percent", 2, 1)  # the primary measure, as in the paper
LIKELIHOODS = ("held_out_loss", "kl_to_teacher")
PAPERS_STUDENT = "qwen2-1.5b"  # of rows at its own scale, where there is no other arm than the text
ARROW = " ⟶ "  # in a sample's task: what is given, what is written
RELEASED, START = "TAID-LLM-1.5B", "Qwen2-1.5B"  # the paper's student, and what it was before
COUNTERPARTS = {START: "untrained", RELEASED: "taid"}  # the paper's model → ours


def experiment(arm: str) -> str:
    return f"table4_{arm}"


def arms(frame: pd.DataFrame) -> dict[str, str]:
    return {"text": ARMS["text"]} if PAPERS_STUDENT in set(frame.student) else ARMS


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {
        "Average of the tasks (Table 4)": headline(frame, scale).markdown(),
        **{
            f"Task by task (Table 9): trained on {words}": by_task(frame, METHODS, experiment(arm))
            for arm, words in trained(frame).items()
        },
        "Likelihoods": likelihoods(frame),
        "What they write": samples(frame),
        **{f"Learning rates: {words}": learning_rates(frame, arm) for arm, words in arms(frame).items()},
    }


def trained(frame: pd.DataFrame) -> dict[str, str]:
    """The arms that have students."""
    return {arm: words for arm, words in ARMS.items() if seeds(frame, experiment(arm))}


def preamble(frame: pd.DataFrame, scale: str) -> str:
    runs = plural(max(seeds(frame, experiment(arm)) for arm in ARMS), "seed")
    return (
        "*Paper*: Qwen2-72B-Instruct → Qwen2-1.5B by TAID, LightEval, beside other small models, one run."
        f" *Ours ({scale})*: {trained_on(frame)} The controls"
        " that reviewers missed: KL, cross-entropy alone (SFT), no training. Compare differences, not numbers across"
        f" columns. {runs}, which differ in what they read and in its order; all start from one student, so intervals say"
        " nothing of other students. ± is half of the 95% t-interval; a dash means no rows. What the study is:"
        " `docs/table4.md`.\n\n"
        "![Differences to the student before training](table4.png)\n\n"
        "*Figure*: difference to the student before training, with 95% intervals; right is better in every panel.\n"
    )


def trained_on(frame: pd.DataFrame) -> str:
    if arms(frame) != ARMS:
        return "the same pair, trained on running text, with the assumptions of `docs/paper_scale.md`."
    return (
        f"SmolLM2-135M-Instruct → {name('smollm2-135m-4-layers')}, healed once, then trained further in two arms, each by"
        " itself: on running text, as the released model's tag says, or on instructions."
    )


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """The paper's models beside ours: its average of LightEval, our average of the tasks by arm."""
    paper = reference.table4()
    ours = {arm: average(frame, experiment(arm)) for arm in arms(frame)}

    def cells(method: str | None) -> Iterator[str]:
        for arm, found in ours.items():
            yield value(found.get(method), count(frame, method, experiment(arm))) if method else MISSING

    def gap(first: str, second: str) -> Iterator[str]:
        return (interval(difference(with_start(found), first, second)) for found in ours.values())

    alone = [
        "teacher",
        *(method for method in METHODS if method != "taid"),
    ]  # of which the paper has no number
    body = [[f"ours: {name(method)}", MISSING, *cells(method)] for method in alone]
    body += [
        [f"{model}; ours: {name(own)}" if own else model, number(score), *cells(own)]
        for model, score in paper.items()
        for own in [COUNTERPARTS.get(model)]
    ]
    body.append(["chance", MISSING, *(guessing(frame, arm) for arm in ours)])
    gains = number(paper[RELEASED] - paper[START])
    body.append(["**TAID − before**", gains, *gap("taid", "untrained")])
    label, *gaps = versus(*((found, 2) for found in ours.values()))
    body.append([label, MISSING, *gaps])
    notes = [
        f"{words}: {average_note(frame, experiment(arm))}"
        if arm in trained(frame)
        else f"{words}: no student has rows yet, `make table4` goes on and writes them."
        for arm, words in arms(frame).items()
    ]
    alone_in_paper = "The paper's Table 9 has the single tasks; of its numbers we have no transcription."
    note = " ".join([alone_in_paper, *(notes if len(frame) else [])])
    header = ["model", "paper: LightEval ↑ [percent]"]
    header += [f"ours ({scale}): {words} ↑ [percent]" for words in arms(frame).values()]
    return Table(header, body, note)


def guessing(frame: pd.DataFrame, arm: str) -> str:
    level = chance(frame, experiment(arm))
    return number(level) if level else MISSING


def with_start(found: Scores) -> Scores:
    """The student before training, one for all, at every seed that has a student."""
    with_students = {seed for method in METHODS for seed in found.get(method, {})}
    start = [*found.get("untrained", {}).values()]
    return {**found, "untrained": dict.fromkeys(sorted(with_students), start[0])} if start else found


def likelihoods(frame: pd.DataFrame) -> str:
    """Arm and method × measure on the test examples of both arms."""
    columns = [(metric, task) for task in arms(frame) for metric in LIKELIHOODS]
    body = []
    for arm, words in trained(frame).items():
        found = {(m, task): at(frame, m, task, experiment(arm)) for m, task in columns}
        listed = [m for m in (*METHODS, *REFERENCES) if any(m in by for by in found.values())]
        for method in listed:
            total = count(frame, method, experiment(arm))
            cells = (value(by.get(method), total, MEASURES[m].digits) for (m, _), by in found.items())
            body.append([words, name(method), *cells])
        label, *gaps = versus(*((by, MEASURES[m].digits) for (m, _), by in found.items()))
        body.append([words, label, *gaps])
    header = ["trained on", "method", *(f"{ARMS[task]}: {MEASURES[m].heading}" for m, task in columns)]
    return Table(header, body, text_columns=2).markdown()


def samples(frame: pd.DataFrame) -> str:
    """What each model of seed 0 writes after the same openings, and the teacher's loss on it."""
    found = frame[(frame.metric == "sample_loss") & (frame.seed == 0)]
    body = []
    for row in found.itertuples():
        arm = row.experiment.removeprefix("table4_")
        shared = row.method in REFERENCES
        if shared and arm != "text":
            continue  # its rows stand in both arms
        given, _, written = row.task.partition(ARROW)
        by = name(row.method) if shared else f"{name(row.method)}, {ARMS[arm]}"
        place = (given, (*REFERENCES, *METHODS).index(row.method), arm != "text")
        body.append((place, [clean(given), by, clean(written), number(row.value)]))
    note = "Greedy, 24 tokens at most; not chosen: the first test examples of each arm, students of seed 0."
    header = ["given", "model", "written", "the teacher's loss on it ↓ [nats/token]"]
    return Table(header, [line for _, line in sorted(body)], note, text_columns=3).markdown()


def learning_rates(frame: pd.DataFrame, arm: str) -> str:
    note = (
        f"Held-out loss on validation {ARMS[arm]} [nats/token], short runs of seed 100, which is never tested;"
        " bold: the rate taken. The first tenth of the steps is warm-up, for all."
    )
    return rates(frame, METHODS, note, experiment(arm)).markdown()


def measured(frame: pd.DataFrame, arm: str) -> Iterator[tuple[Measure, Scores]]:
    """The primary measure first: the tasks' average, then the likelihoods of the arm's own test examples."""
    yield AVERAGE, with_start(average(frame, experiment(arm)))
    for metric in LIKELIHOODS:
        yield MEASURES[metric], with_start(at(frame, metric, arm, experiment(arm)))


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    printed = {own: reference.table4()[model] for model, own in COUNTERPARTS.items()}
    return [
        Comparison(words, measure, found, TABLE4, printed if measure is AVERAGE else None)
        for arm, words in arms(frame).items()
        for measure, found in measured(frame, arm)
    ]


def draw(frame: pd.DataFrame) -> Figure:
    """Each method's difference to the student before training, a panel per arm and measure."""
    parts: dict[str, dict[Measure, figures.Estimates]] = {}
    for arm, words in arms(frame).items():
        for measure, found in measured(frame, arm):
            better = measure.oriented(found)
            each = {method: difference(better, method, "untrained") for method in METHODS}
            there = {method: estimate for method, estimate in each.items() if estimate}
            parts.setdefault(words, {})[measure] = there
    filled = {words: panels for words, panels in parts.items() if any(panels.values())}
    return figures.differences(filled or parts, {"": METHODS}, to="untrained")


PAGE = Page(
    "table4",
    "Tables 4 and 9: TAID-LLM",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"table4": draw(frame)},
    numbers=["table4_taid_llm"],
)
