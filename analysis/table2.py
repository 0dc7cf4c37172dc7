"""Table 2, rendered: `results/table2.md` and the figure `results/table2.png` beside it."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.claims import TABLE2, TABLE2_METHODS
from analysis.predicates import Claim, Verdict, holds_in_paper
from analysis.rows import Scores, scores
from analysis.statistics import mean_interval
from analysis.style import COLOURS, name
from analysis.table1 import estimates, without_references
from analysis.tables import (
    MISSING,
    claims_table,
    document,
    judged,
    markdown,
    marks,
    number,
    plural,
    provenance,
    value,
)

TITLE = "Table 2: continued pre-training"
REFERENCES = ("teacher", "untrained")
TASKS = {  # our task → the paper's that it is shaped like
    "cloze": "arc",
    "next_sentence": "hellaswag",
    "definition": "mmlu",
    "truth": "truthfulqa",
    "pronoun": "winogrande",
    "arithmetic": "gsm8k",
}
BESIDE = "last_word"  # like LAMBADA; not in the paper's average
MEASURES = {  # metric → title with its unit
    "kl_to_teacher": "KL to the teacher ↓ (nats/token)",
    "held_out_loss": "held-out loss ↓ (nats/token)",
}
ABOVE_CHANCE = 1.645  # standard errors: a one-sided test at 5%


def write(frame: pd.DataFrame, folder: Path, scale: str) -> None:
    """Render the rows of one scale to `folder`/table2.md and `folder`/table2.png."""
    (folder / "table2.md").write_text(render(frame, scale), encoding="utf-8")
    draw(frame, scale).savefig(folder / "table2.png", metadata={"Software": None})


def render(frame: pd.DataFrame, scale: str) -> str:
    """The whole document, from the rows of one scale. Equal rows give equal text."""
    sections = {
        "Likelihoods: the main measures at this scale": likelihoods(frame),
        "Task scores": averages(frame, scale),
        "Claims": claims(frame),
        "Task by task": by_task(frame),
        "The paper's scores, task by task": paper_by_task(),
        "Learning rates": learning_rates(frame),
        "The teacher's cache: speed": cache_speed(frame),
        "The teacher's cache: what the top k do to a loss": cache_bias(frame),
        "Provenance": provenance(frame),
    }
    return document(TITLE, scale, preamble(frame, scale), sections)


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        "*Paper*: Phi-3-medium 14B → TinyLlama 1.1B (our reading), about 20B tokens, Open LLM Leaderboard."
        f" *Ours ({scale})*: a real teacher and layers cut out of it, thousands of tokens, seven local tasks"
        " of lm-eval; likelihoods on held-out documents come first, for tasks separate such models poorly."
        " Compare the order within a column, not numbers across columns."
        f" {plural(seeds(frame), 'seed')}; ± is half of the 95% t-interval over them. Seeds differ in what"
        " the student was healed on and in the order of the data. A dash means no rows."
        " What the study is: `docs/table2.md`.\n\n"
        "![The paper's average beside ours, and likelihoods](table2.png)\n"
    )


def likelihoods(frame: pd.DataFrame) -> str:
    """Method × measure on the test windows."""
    by_metric = {metric: at(frame, metric) for metric in MEASURES}
    formats = {m: marks(negated(without_references(found))) for m, found in by_metric.items()}
    listed = [m for m in (*TABLE2_METHODS, *REFERENCES) if any(m in found for found in by_metric.values())]

    def cell(metric: str, method: str) -> str:
        count = 1 if method == "teacher" else seeds(frame)
        text = value(by_metric[metric].get(method), count, 3)
        return formats[metric].get(method, "{}").format(text)

    seconds = at(frame, "train_seconds")
    body = [
        [name(m), *(cell(metric, m) for metric in MEASURES), value(seconds.get(m), seeds(frame), 0)]
        for m in listed
    ]
    note = "\nBold: best mean of the column. †: a tie, for the paired interval to the best includes 0.\n"
    return markdown(["method", *MEASURES.values(), "training ↓ (s)"], body) + note if body else ""


def averages(frame: pd.DataFrame, scale: str) -> str:
    """Method: the paper's average and ours, LAMBADA-like accuracy beside."""
    paper, ours, beside = reference.table2()["average"], average(frame), accuracy(frame, BESIDE)
    formats = marks(without_references(ours))

    def line(method: str) -> list[str]:
        count = 1 if method == "teacher" else seeds(frame)
        theirs = number(paper[method]) if method in paper else MISSING
        theirs = f"**{theirs}**" if method == max(paper, key=paper.__getitem__) else theirs
        own = formats.get(method, "{}").format(value(ours.get(method), count))
        return [name(method), theirs, own, value(beside.get(method), count)]

    listed = [m for m in (*TABLE2_METHODS, *REFERENCES) if m in ours]
    header = ["method", "paper ↑ (percent)", f"ours ({scale}) ↑ (percent)", "last word ↑ (percent)"]
    return markdown(header, map(line, listed)) + f"\n{average_note(frame)}" if listed else ""


def average_note(frame: pd.DataFrame) -> str:
    counted, left_out = averaged(frame), [task for task in TASKS if above(frame, task) == "NO"]
    without = f" Left out, for the teacher itself is at chance: {', '.join(left_out)}." if left_out else ""
    over = f"Our average is over {', '.join(counted) or 'no task'}; chance {number(chance(frame))}."
    return f"{over}{without}\n"


def by_task(frame: pd.DataFrame) -> str:
    """Method × task, percent; chance and the standard error over items beneath."""
    tasks = [*TASKS, BESIDE]
    by = {task: accuracy(frame, task) for task in tasks}
    listed = [m for m in (*TABLE2_METHODS, *REFERENCES) if any(m in found for found in by.values())]

    def cells(method: str) -> list[str]:
        count = 1 if method == "teacher" else seeds(frame)
        return [value(by[task].get(method), count, 1) for task in tasks]

    body = [[name(method), *cells(method)] for method in listed]
    for title, metric in (("chance", "chance"), ("standard error of one score", "standard_error")):
        found = [percent(at(frame, metric, task)).values() for task in tasks]
        means = [[v for by_seed in values for v in by_seed.values()] for values in found]
        body.append([title, *(number(sum(v) / len(v), 1) if v else MISSING for v in means)])
    verdict = ["teacher above chance", *(above(frame, task) for task in tasks)]
    header = ["percent", *(f"{task}, like {TASKS.get(task, 'lambada')}" for task in tasks)]
    return markdown(header, [*body, verdict]) if listed else ""


def above(frame: pd.DataFrame, task: str) -> str:
    found = above_chance(frame, task)
    return MISSING if found is None else "yes" if found else "NO"


def paper_by_task() -> str:
    """The paper's table."""
    table = reference.table2()
    body = [[name(m), *(number(table[t][m]) for t in table)] for m in TABLE2_METHODS]
    return markdown(["percent", *table], body)


def above_chance(frame: pd.DataFrame, task: str) -> bool | None:
    """Whether the teacher's accuracy lies above chance by a one-sided test at 5%; None without its rows."""
    metrics = ("accuracy", "chance", "standard_error")
    own, guess, error = (at(frame, metric, task).get("teacher", {}) for metric in metrics)
    if not own:
        return None
    seed = min(own)
    return own[seed] - guess[seed] > ABOVE_CHANCE * error[seed]


def averaged(frame: pd.DataFrame) -> list[str]:
    """The tasks that count: those at which the teacher is above chance."""
    return [task for task in TASKS if above_chance(frame, task)]


def average(frame: pd.DataFrame) -> Scores:
    """Method → seed → mean accuracy over the tasks that count [percent]; of seeds that have all of them."""
    by = [accuracy(frame, task) for task in averaged(frame)]
    found: dict[str, dict[int, float]] = {}
    for method in set().union(*by):
        for seed in sorted(set.intersection(*(set(task.get(method, {})) for task in by))):
            found.setdefault(method, {})[seed] = sum(task[method][seed] for task in by) / len(by)
    return found


def chance(frame: pd.DataFrame) -> float:
    """Mean accuracy of guessing at the tasks that count [percent]; 0 for none."""
    by = [percent(at(frame, "chance", task))["teacher"] for task in averaged(frame)]
    return sum(min(values.values()) for values in by) / max(len(by), 1)


def verdicts(frame: pd.DataFrame) -> Iterable[tuple[str, Claim, bool, Verdict]]:
    """Every claim about the tasks' average."""
    ours, paper = average(frame), reference.table2()["average"]
    for claim in TABLE2:
        yield "average of the tasks", claim, holds_in_paper(claim, paper), claim.predicate(ours)


def likelihood_verdicts(frame: pd.DataFrame) -> Iterable[tuple[str, Claim, Verdict]]:
    """The same claims about the main measures, of which the paper has none."""
    for metric, title in MEASURES.items():
        for claim in TABLE2:
            yield title, claim, claim.predicate(negated(at(frame, metric)))


def claims(frame: pd.DataFrame) -> str:
    """All verdicts and the rules behind them."""
    return (
        f"{claims_table(verdicts(frame))}\nThe same of the main measures, negated so that more is better:\n\n"
        f"{judged(likelihood_verdicts(frame))}"
    )


def learning_rates(frame: pd.DataFrame) -> str:
    """The validation loss at each rate of the grid, bold at the chosen one."""
    searched = frame[(frame.experiment == "table2_search") & (frame.metric == "held_out_loss")]
    rates = sorted(searched.learning_rate.dropna().unique())
    chosen = frame[frame.experiment == "table2"].groupby("method").learning_rate.max()

    def cell(method: str, rate: float) -> str:
        found = searched[(searched.method == method) & (searched.learning_rate == rate)].value
        text = number(found.iloc[0], 3) if len(found) else MISSING
        return f"**{text}**" if method in chosen and chosen[method] == rate else text

    tried = [m for m in TABLE2_METHODS if m in set(searched.method)]
    body = [[name(m), *(cell(m, rate) for rate in rates)] for m in tried]
    note = "\nHeld-out loss on validation windows [nats/token], short runs of seed 0; bold: the rate taken.\n"
    return markdown(["method", *(f"{rate:g}" for rate in rates)], body) + note if body else ""


def cache_speed(frame: pd.DataFrame) -> str:
    """Training with the live teacher and with each form of its cache, from one run."""
    found = frame[frame.experiment == "table2_cache"].set_index(["metric", "task"]).value
    teachers = [task for metric, task in found.index if metric == "tokens_per_second"]

    def cell(metric: str, teacher: str, digits: int) -> str:
        return number(found[metric, teacher], digits) if (metric, teacher) in found.index else MISSING

    body = [
        [t, cell("tokens_per_second", t, 0), cell("speed_up", t, 2), cell("bytes_per_token", t, 0)]
        for t in teachers
    ]
    header = ["teacher", "training ↑ (tokens/s)", "times the live one's", "bytes per token"]
    return markdown(header, body) if body else ""


def cache_bias(frame: pd.DataFrame) -> str:
    """Error of value and gradient of each loss by k, in percent."""
    found = frame[frame.experiment == "table2_cache"].set_index(["metric", "task"]).value
    parts = [task.rsplit(", top ", 1) for metric, task in found.index if metric == "value_error"]
    losses, tops = (list(dict.fromkeys(column)) for column in zip(*parts)) if parts else ((), ())

    def cell(loss: str, k: str) -> str:
        errors = (found.get((m, f"{loss}, top {k}")) for m in ("value_error", "gradient_error"))
        return " \\| ".join(MISSING if e is None else number(100 * e, 1) for e in errors)

    body = [[name(loss), *(cell(loss, k) for k in tops)] for loss in losses]
    note = (
        "\nPercent: (loss with the cache − loss)/loss, and ‖its gradient − gradient‖/‖gradient‖ with respect"
        " to the student's logits, of the healed student on validation windows. The tail's probability is"
        " kept and spread evenly.\n"
    )
    return markdown(["value \\| gradient", *(f"top {k}" for k in tops)], body) + note if body else ""


def draw(frame: pd.DataFrame, scale: str) -> Figure:
    """The paper's average, ours, and the two main measures, a method on one line."""
    paper = {m: mean_interval([score]) for m, score in reference.table2()["average"].items()}
    panels = {
        "paper, average of six tasks (percent)": paper,
        f"ours ({scale}), average of tasks (percent)": estimates(without_references(average(frame))),
        **{title: estimates(without_references(at(frame, m))) for m, title in MEASURES.items()},
    }
    figure = Figure(figsize=(12.5, 3.4), dpi=110, layout="constrained")
    for i, (ax, (label, found)) in enumerate(zip(figure.subplots(1, 4), panels.items(), strict=True)):
        figures.dots(ax, found, TABLE2_METHODS, COLOURS, hollow=i == 0)
        ax.set_xlabel(label, fontsize=9)
        ax.tick_params(labelleft=i == 0)
    return figure


def at(frame: pd.DataFrame, metric: str, task: str = "average") -> Scores:
    """Method → seed → value of the headline runs."""
    return next(iter(scores(frame, "table2", metric, task).values()), {})


def accuracy(frame: pd.DataFrame, task: str) -> Scores:
    return percent(at(frame, "accuracy", task))


def percent(found: Scores) -> Scores:
    return {method: {seed: 100 * v for seed, v in values.items()} for method, values in found.items()}


def negated(found: Scores) -> Scores:
    return {method: {seed: -v for seed, v in values.items()} for method, values in found.items()}


def seeds(frame: pd.DataFrame) -> int:
    """Number of seeds of the headline table."""
    return frame.seed[frame.experiment == "table2"].nunique()
