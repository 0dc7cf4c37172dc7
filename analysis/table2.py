"""Table 2: `results/table2.md` and its figure."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.claims import TABLE2
from analysis.measures import MEASURES, Measure
from analysis.page import Comparison, Page
from analysis.reference import TABLE2_METHODS
from analysis.rows import REFERENCES, seeds, without_references
from analysis.statistics import estimates, mean_interval
from analysis.style import COLOURS, name
from analysis.table2_rows import TABLE2 as PROTOCOL_1
from analysis.table2_rows import accuracy, at, average, count, first_above, protocols
from analysis.tables import MISSING, VERSUS, Table, marks, number, plural, value, versus
from analysis.tasks import BESIDE, average_note, by_task, rates

MAIN = ("kl_to_teacher", "held_out_loss")  # the primary measure first
AVERAGE = Measure("average of the tasks", "percent", 2, 1)
NEAR_KL = 0.9  # t from which TAID is all but KL
BRIDGES = ("t_start_0.2", "alpha_0.25")  # TAID that stays away from KL for longer
METHODS = (*TABLE2_METHODS, *BRIDGES)
SECOND = (
    " Protocol 2 chose rates at full length on seeds that are not tested, asks sums whose choices differ in nothing but in"
    " being right, and has TAID on two longer bridges; figure and headline are of it."
)


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    run = protocols(frame)
    found: dict[str, str] = {}
    for experiment, label in run.items():
        of = f", {label}" if label else ""
        found |= {
            f"Likelihoods: the main measures at this scale{of}": likelihoods(frame, experiment),
            f"Task scores{of}": scored(frame, scale, experiment).markdown(),
            f"Task by task{of}": by_task(frame, METHODS, experiment),
        }
    found["The paper's scores, task by task"] = paper_by_task()
    for experiment, label in run.items():
        found[f"Learning rates{f', {label}' if label else ''}"] = learning_rates(frame, experiment)
    return found | {
        "The teacher's cache: speed": cache_speed(frame),
        "The teacher's cache: what the top k do to a loss": cache_bias(frame),
    }


def preamble(frame: pd.DataFrame, scale: str) -> str:
    first, *others = protocols(frame)
    return (
        "*Paper*: Phi-3-medium 14B → TinyLlama 1.1B (our reading), about 20B tokens, Open LLM Leaderboard."
        f" *Ours ({scale})*: a real teacher and layers cut out of it, thousands of tokens, seven local tasks"
        " of lm-eval; likelihoods on held-out documents come first, for tasks separate such models poorly."
        " Compare the order within a column, not numbers across columns."
        f" {plural(seeds(frame, first), 'seed')}; ± is half of the 95% t-interval over them. Seeds differ"
        f" in what the student was healed on and in the order of the data. A dash means no rows.{near_kl(frame, first)}"
        f"{SECOND if others else ''} What the study is: `docs/table2.md`.\n\n"
        "![The paper's average beside ours, and likelihoods](table2.png)\n\n"
        "*Figure*: hollow the paper's, filled ours with 95% intervals; right is better in every panel.\n"
    )


def near_kl(frame: pd.DataFrame, experiment: str) -> str:
    """From which share of the steps on TAID's t, at momentum 0, is above `NEAR_KL`; also on the longer bridges."""
    shares: dict[str, float] = {}
    for method in ("taid", *BRIDGES):
        runs = frame[(frame.experiment == experiment) & (frame.method == method)].config
        config = next((c for c in runs if {"steps", "options"} <= c.keys()), None)
        if config:
            steps, options = config["steps"], config["options"]
            shares[method] = first_above(NEAR_KL, steps, options["t_start"], options["alpha"]) / steps
    if "taid" not in shares:
        return ""
    longer = ", ".join(
        f"{shares[m]:.0%} with {name(m).removeprefix('TAID, ')}" for m in BRIDGES if m in shares
    )
    return (
        f" TAID's t, by the closed form of `docs/adaptivity.md`, is above {NEAR_KL} after {shares['taid']:.0%} of its"
        f" steps{f' ({longer})' if longer else ''}: from there on it is KL all but in name."
    )


def likelihoods(frame: pd.DataFrame, experiment: str) -> str:
    """Method × measure on the test windows; TAID − KL last."""
    by_metric = {metric: at(frame, metric, experiment=experiment) for metric in (*MAIN, "train_seconds")}
    formats = {
        metric: marks(MEASURES[metric].oriented(without_references(found)))
        for metric, found in by_metric.items()
        if metric in MAIN
    }

    def cell(metric: str, method: str) -> str:
        text = value(by_metric[metric].get(method), count(frame, method, experiment), MEASURES[metric].digits)
        return formats.get(metric, {}).get(method, "{}").format(text)

    shown = [m for m in (*METHODS, *REFERENCES) if any(m in by_metric[metric] for metric in MAIN)]
    body = [[name(m), *(cell(metric, m) for metric in by_metric)] for m in shown]
    columns = [(found, MEASURES[metric].digits) for metric, found in by_metric.items()]
    gaps = [versus(*columns, method=m) for m in ("taid", *BRIDGES) if m == "taid" or m in shown]
    note = (
        "Bold: best mean of the column. †: a tie, for the paired interval to the best includes 0."
        " Differences to KL: paired by seed. Seconds are of the machine that ran a method (`docs/reproducing.md`)."
    )
    header = ["method", *(MEASURES[metric].heading for metric in by_metric)]
    return Table(header, body + gaps if body else [], note).markdown()


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Of the newest protocol that has rows."""
    return scored(frame, scale, next(iter(protocols(frame))))


def scored(frame: pd.DataFrame, scale: str, experiment: str) -> Table:
    """Method: the paper's average and ours, LAMBADA-like accuracy and KL to the teacher beside."""
    paper, ours = reference.table2()["average"], average(frame, experiment)
    beside, near = accuracy(frame, BESIDE, experiment), at(frame, "kl_to_teacher", experiment=experiment)
    formats = marks(without_references(ours))

    def line(method: str) -> list[str]:
        seeds = count(frame, method, experiment)
        theirs = number(paper[method]) if method in paper else MISSING
        theirs = f"**{theirs}**" if method == max(paper, key=paper.__getitem__) else theirs
        own = formats.get(method, "{}").format(value(ours.get(method), seeds))
        return [
            name(method),
            theirs,
            own,
            value(beside.get(method), seeds),
            value(near.get(method), seeds, 3),
        ]

    shown = [*TABLE2_METHODS, *(m for m in (*METHODS, *REFERENCES) if m in ours and m not in TABLE2_METHODS)]
    label, *gaps = versus((ours, 2), (beside, 2), (near, 3))
    gap = [label, number(paper["taid"] - paper["kl"]), *gaps]
    header = [
        "method",
        "paper ↑ [percent]",
        f"ours ({scale}) ↑ [percent]",
        "last word ↑ [percent]",
        MEASURES["kl_to_teacher"].heading,
    ]
    return Table(header, [*map(line, shown), gap], average_note(frame, experiment) if ours else "")


def paper_by_task() -> str:
    """The paper's table."""
    table = reference.table2()
    body = [[name(m), *(number(table[t][m]) for t in table)] for m in TABLE2_METHODS]
    gaps = [VERSUS, *(number(table[t]["taid"] - table[t]["kl"]) for t in table)]
    return Table(["percent", *table], [*body, gaps]).markdown()


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """Of each protocol the main measures, then the tasks' average, of which alone the paper has numbers."""
    found = []
    for experiment, label in protocols(frame).items():
        found += [
            Comparison(label, MEASURES[metric], at(frame, metric, experiment=experiment), TABLE2)
            for metric in MAIN
        ]
        paper = reference.table2()["average"]
        found.append(Comparison(label, AVERAGE, average(frame, experiment), TABLE2, paper))
    return found


def learning_rates(frame: pd.DataFrame, experiment: str) -> str:
    if experiment == PROTOCOL_1:
        note = (
            "Held-out loss on validation windows [nats/token], short runs of seed 0; bold: the rate taken."
            f"{other_choice(frame)}"
        )
        return rates(frame, METHODS, note).markdown()
    note = (
        "Held-out loss + KL to the teacher on validation windows [nats/token], a mean over tuning seeds, of the worse half"
        " of the rates of the first alone; bold: the rate taken."
    )
    return rates(frame, METHODS, note, experiment, MAIN).markdown()


def other_choice(frame: pd.DataFrame) -> str:
    """How many methods the other main measure would have given another rate."""
    by = {
        metric: frame[(frame.experiment == "table2_search") & (frame.metric == metric)]
        for metric in ("held_out_loss", "kl_to_teacher")
    }
    best = [
        {m: rows.learning_rate[rows.value.idxmin()] for m, rows in found.groupby("method") if m != "sft"}
        for found in by.values()
    ]
    shared = best[0].keys() & best[1].keys()
    others = sum(best[0][method] != best[1][method] for method in shared)
    return f" By KL to the teacher {others} of {len(shared)} would take another rate." if shared else ""


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
    return Table(
        ["teacher", "training ↑ [tokens/s]", "times the live one's", "bytes per token"], body
    ).markdown()


def cache_bias(frame: pd.DataFrame) -> str:
    """Error of value and gradient of each loss by k, in percent."""
    found = frame[frame.experiment == "table2_cache"].set_index(["metric", "task"]).value
    parts = [task.rsplit(", top ", 1) for metric, task in found.index if metric == "value_error"]
    losses, tops = (list(dict.fromkeys(column)) for column in zip(*parts, strict=True)) if parts else ((), ())

    def cell(loss: str, k: str) -> str:
        errors = (found.get((m, f"{loss}, top {k}")) for m in ("value_error", "gradient_error"))
        return " \\| ".join(MISSING if e is None else number(100 * e, 1) for e in errors)

    body = [[name(loss), *(cell(loss, k) for k in tops)] for loss in losses]
    note = (
        "Percent: (loss with the cache − loss)/loss, and ‖its gradient − gradient‖/‖gradient‖ with respect"
        " to the student's logits, of the healed student on validation windows. The tail's probability is"
        " kept and spread evenly."
    )
    return Table(["value \\| gradient", *(f"top {k}" for k in tops)], body, note).markdown()


def draw(frame: pd.DataFrame, scale: str) -> Figure:
    """The paper's average, ours, and the two main measures, a method on one line; right is better."""
    experiment = next(iter(protocols(frame)))
    ours = {AVERAGE: average(frame, experiment)}
    ours |= {MEASURES[metric]: at(frame, metric, experiment=experiment) for metric in MAIN}
    paper = {m: mean_interval([score]) for m, score in reference.table2()["average"].items()}
    panels = {("paper: average\nof six tasks", "percent"): paper}
    panels |= {
        (f"ours ({scale}):\n{measure.title}", measure.unit): estimates(without_references(found))
        for measure, found in ours.items()
    }
    shown = [m for m in METHODS if m in TABLE2_METHODS or any(m in found for found in ours.values())]
    figure = figures.canvas(3.2)
    for i, (ax, ((title, unit), found)) in enumerate(zip(figure.subplots(1, 4), panels.items(), strict=True)):
        figures.dots(ax, found, shown, COLOURS, hollow=i == 0)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(f"[{unit}]\nbetter →", fontsize=9)
        ax.locator_params(axis="x", nbins=3)
        ax.tick_params(labelleft=i == 0)
        if i > 1:
            ax.invert_xaxis()  # less is better
    figures.legend(figure, figures.PAPER, figures.OURS, figures.BARS)
    return figure


PAGE = Page(
    "table2",
    "Table 2: continued pre-training",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"table2": draw(frame, scale)},
    targets=("table2", "table2-protocol-1"),
    numbers=["table2_pretraining"],
)
