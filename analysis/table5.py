"""Tables 5 and 10: `results/table5.md` and its figure."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.claims import TABLE5
from analysis.measures import MEASURES, Measure
from analysis.page import Comparison, Page
from analysis.rows import Scores, scores, seeds, without_references
from analysis.statistics import estimates, mean_interval
from analysis.style import COLOURS, name
from analysis.tables import MISSING, Table, marks, number, plural, value, versus

METHODS = ("teacher", "untrained", "sft", "kl", "taid")
PLACES = {"untrained": "InternVL2-2B", "taid": "TAID-VLM-2B"}  # method → the paper's model in its place
ACCURACY = Measure("accuracy", "percent", 1, 1)
JUDGED = {metric: MEASURES[metric] for metric in ("held_out_loss", "kl_to_teacher")}
ASKED = {  # family → a question of it
    "what": "what is top left?",
    "read": "which digit is top left?",
    "where": "where is the bag?",
    "count": "how many are bag?",
    "exists": "is there a bag?",
    "compare": "is top left greater than top right?",
    "add": "what is top left plus top right?",
    "beside": "what is below the seven?",
}


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {
        "Table 5": headline(frame, scale).markdown(),
        "Table 10: family by family": by_family(frame).markdown(),
        "Learning rates": rates(frame).markdown(),
        "One learning rate for all": one_rate(frame).markdown(),
    }


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        "*Paper*: InternVL2-2B distilled from InternVL2-8B, mean of the eight benchmarks of the Open VLM"
        f" Leaderboard. *Ours ({scale})*: {pair(frame)} Compare the order within a column, not numbers across columns."
        f" {plural(seeds(frame, 'table5'), 'seed')}; ± is half of the 95% t-interval over them; there is one"
        " teacher. A dash means no rows, or no such model in the paper. What the scale model is:"
        " `docs/table5.md`.\n\n"
        "![The paper's models, ours, and ours by family](table5.png)\n\n"
        "*Figure*: above the paper's models, and ours; below ours by family, where a grey line marks"
        " chance: what can be had by reading the question alone.\n"
    )


def pair(frame: pd.DataFrame) -> str:
    """What models these are, by the families that they are asked."""
    if set(asked_in(frame)) != set(ASKED):
        return (
            "the same pair, on conversations of Mantis-Instruct that are held out, with the assumptions of"
            " `docs/paper_scale.md`; right is an answer that greedy decoding gives whole, and the mean is over the data"
            " set's parts: none of the paper's benchmarks."
        )
    return (
        "the same class and ratio of sizes at about 1/5,000 of the parameters, trained from scratch on questions about"
        " grids of real images (Fashion-MNIST, handwritten digits); answers are scored exactly, as greedy decoding gives"
        " them, and the mean is over eight families of questions."
    )


def asked_in(frame: pd.DataFrame) -> list[str]:
    """Those that have rows, else those of the scale model."""
    asked = frame[(frame.experiment == "table5") & (frame.metric == "accuracy")].task
    found = [task for task in dict.fromkeys(asked) if task != "average"]
    return found if set(found) - set(ASKED) else [*ASKED]


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Model: the paper's average | ours, with the losses beside; TAID − KL last."""
    paper, ours = reference.table5(), at(frame, "accuracy")
    formats = marks(without_references(ours))
    others = [
        [model, number(score), *[MISSING] * 3]
        for model, score in paper.items()
        if model not in PLACES.values()
    ]

    def line(method: str) -> list[str]:
        theirs = number(paper[PLACES[method]]) if method in PLACES else MISSING
        own = formats.get(method, "{}").format(value(ours.get(method), count(frame, method), ACCURACY.digits))
        label = f"{name(method)} ({PLACES[method]})" if method in PLACES else name(method)
        losses = [
            value(at(frame, metric).get(method), count(frame, method), measure.digits)
            for metric, measure in JUDGED.items()
        ]
        return [label, theirs, own, *losses]

    label, *gaps = versus((ours, ACCURACY.digits), *((at(frame, m), JUDGED[m].digits) for m in JUDGED))
    body = [*map(line, [m for m in METHODS if m in {*ours, *PLACES}]), [label, MISSING, *gaps], *others]
    header = [
        "model",
        "paper ↑ [percent]",
        f"ours ({scale}) ↑ [percent]",
        *(m.heading for m in JUDGED.values()),
    ]
    note = (
        "In brackets the paper's model that stands in the same place: the student before distillation, and after"
        " it. Bold: best mean. †: a tie, for the paired interval to the best includes 0. The paper has no student"
        " trained by cross-entropy alone, and none by KL."
    )
    return Table(header, body, note)


def by_family(frame: pd.DataFrame) -> Table:
    """Family × method, percent, with chance and TAID − KL beside."""
    found = {family: at(frame, "accuracy", family) for family in asked_in(frame)}
    listed = [m for m in METHODS if any(m in by for by in found.values())]
    body = []
    for family, by in found.items():
        if not by:
            continue
        formats = marks(without_references(by))
        cells = [
            formats.get(m, "{}").format(value(by.get(m), count(frame, m), ACCURACY.digits)) for m in listed
        ]
        gap = versus((by, ACCURACY.digits))[1]
        example = f"“{ASKED[family]}”" if family in ASKED else MISSING
        body.append([family, example, chance(frame, family), *cells, gap])
    header = ["family", "such as", "chance", *map(name, listed), "TAID − KL"]
    note = (
        "Accuracy ↑ [percent]. The eight families stand in the place of the paper's eight benchmarks, not for one"
        " each: of Table 10 our transcription has the average alone, which is Table 5's."
    )
    return Table(header, body, note, text_columns=2)


def chance(frame: pd.DataFrame, family: str) -> str:
    found = at(frame, "chance", family).get("untrained", {})
    return number(min(found.values()), ACCURACY.digits) if found else MISSING


def rates(frame: pd.DataFrame) -> Table:
    """Method × learning rate: accuracy on validation with the seed that chooses."""
    chosen = frame[(frame.experiment == "table5_search") & (frame.metric == "accuracy")]
    grid = chosen.pivot_table(index="method", columns="learning_rate", values="value")
    body = [
        [
            name(method),
            *(
                MISSING
                if pd.isna(v)
                else f"**{number(v, 1)}**"
                if v == grid.loc[method].max()
                else number(v, 1)
                for v in grid.loc[method]
            ),
        ]
        for method in METHODS
        if method in grid.index
    ]
    note = f"Accuracy on validation [percent]; tuning seed {', '.join(map(str, sorted(set(chosen.seed))))}."
    return Table(["method", *(f"{rate:g}" for rate in grid.columns)], body, note)


def one_rate(frame: pd.DataFrame) -> Table:
    """Method × measure where no rate is chosen; TAID − KL last."""
    measures = {"accuracy": ACCURACY} | JUDGED
    found = {metric: at(frame, metric, experiment="table5_one_rate") for metric in measures}
    chosen = frame[frame.experiment == "table5_one_rate"]
    body = [
        [name(m), *(value(found[k].get(m), count(frame, m), measures[k].digits) for k in measures)]
        for m in METHODS
        if any(m in by for by in found.values())
    ]
    gap = versus(*((found[k], measures[k].digits) for k in measures))
    note = f"All at {', '.join(f'{rate:g}' for rate in sorted(set(chosen.learning_rate)))}."
    header = ["method", *(measure.heading for measure in measures.values())]
    return Table(header, [*body, gap] if body else [], note)


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """By accuracy first, then by the losses."""
    paper = {method: reference.table5()[model] for method, model in PLACES.items()}
    found = [Comparison("", ACCURACY, at(frame, "accuracy"), TABLE5, paper)]
    return found + [Comparison("", measure, at(frame, m), TABLE5) for m, measure in JUDGED.items()]


def at(frame: pd.DataFrame, metric: str, task: str = "average", experiment: str = "table5") -> Scores:
    """Method → seed → value of the tested runs."""
    return next(iter(scores(frame, experiment, metric, task).values()), {})


def count(frame: pd.DataFrame, method: str) -> int:
    """The seeds that a method should have: the teacher is one for all."""
    return 1 if method == "teacher" else seeds(frame, "table5")


def draw(frame: pd.DataFrame) -> Figure:
    figure = figures.canvas(6)
    top, below = figures.stacked(figure, 1, 1.4)
    left, right = top.subplots(1, 2)
    paper = {model: mean_interval([score]) for model, score in reference.table5().items()}
    figures.dots(left, paper, [*paper], {"TAID-VLM-2B": COLOURS["taid"]}, hollow=True)
    left.set_xlabel("paper: Open VLM Leaderboard [percent]", fontsize=9)
    ours = at(frame, "accuracy")
    figures.dots(right, estimates(ours), [m for m in METHODS if m in ours], COLOURS)
    meant = "eight families" if set(asked_in(frame)) == set(ASKED) else "the data set's parts"
    right.set_xlabel(f"ours: mean of {meant} [percent]", fontsize=9)
    families(below.subplots(), frame)
    figures.legend(below, figures.BARS)
    return figure


def families(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Accuracy of every method by family, side by side, over a line at chance."""
    for place, family in enumerate(asked_in(frame)):
        guess = at(frame, "chance", family).get("untrained", {})
        if guess:
            level = min(guess.values())
            ax.hlines(level, place - 0.4, place + 0.4, color=figures.REFERENCE, linewidth=1, label="chance")
        for method, estimate in estimates(at(frame, "accuracy", family)).items():
            x = place + 0.15 * (METHODS.index(method) - (len(METHODS) - 1) / 2)
            label = name(method) if place == 0 else None
            ax.plot(x, estimate.mean, "o", color=COLOURS[method], markersize=5, label=label)
            if estimate.n > 1:
                ax.vlines(x, estimate.low, estimate.high, color=COLOURS[method], linewidth=2, alpha=0.5)
    ax.set_xticks(range(len(asked_in(frame))), asked_in(frame))
    ax.tick_params(axis="x", rotation=30 if len(asked_in(frame)) > len(ASKED) else 0)
    ax.set(ylabel="accuracy [percent]", ylim=(0, 100))
    return figures.plain(ax)


PAGE = Page(
    "table5",
    "Tables 5 and 10: a student that sees",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"table5": draw(frame)},
    numbers=["table5_taid_vlm"],
)
