"""Repeated rounds: `results/rounds.md` and its figure."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import BANDS, canvas, legend, lines
from analysis.measures import Measure
from analysis.page import Comparison, Page
from analysis.questions import ROUNDS
from analysis.rows import Pair, Scores, mapped, scores
from analysis.statistics import mean_interval
from analysis.style import COLOURS, pair_name
from analysis.tables import Table, number, plural, value

PAIR = Pair("stablelm-zephyr", "pythia")
VARIANTS = {  # method → name, colour and line
    "self_distillation": ("self-distillation", COLOURS["kl"], "o-"),
    "taid": ("TAID", COLOURS["taid"], "s-"),
    "constant": ("constant λ", COLOURS["taid_no_adaptive"], "^-"),
}
METRICS = {  # as measured: the claims are about the numbers themselves
    "kl_to_teacher": Measure("KL to the teacher", "nats/token", 3),
    "signal": Measure("signal, of the teacher's"),
    "drift": Measure("drift, of the teacher's signal"),
    "residual": Measure("residual, of the teacher's signal"),
    "share": Measure("share of the teacher's signal"),
    "entropy": Measure("entropy", "nats/token"),
    "effective_support": Measure("effective support", "tokens", 1),
    "held_out_loss": Measure("held-out loss", "nats/token", 3),
    "agreement": Measure("agreement with the teacher", digits=3),
}
DRAWN = ("kl_to_teacher", "signal", "drift", "entropy", "effective_support", "held_out_loss")


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    first, *others = METRICS
    return {
        METRICS[first].heading: headline(frame, scale).markdown(),
        "What the theory would predict": prediction(frame),
        **{METRICS[metric].heading: by_round(frame, metric).markdown() for metric in others},
    }


def preamble(frame: pd.DataFrame, scale: str) -> str:
    weights = frame.drop_duplicates("method").set_index("method").config.map(lambda config: config["weights"])
    schedules = "; ".join(
        f"*{label}*: {', '.join(number(w) for w in weights[method])}"
        for method, (label, *_) in VARIANTS.items()
        if method in weights
    )
    return (
        f"{pair_name(PAIR)}, scale {scale}, {plural(frame.seed.nunique(), 'seed')}; ± is half of the 95%"
        " t-interval over them. Round 0 is the teacher. Every further round is a fresh copy of the"
        " pre-trained student, trained on the logits of the round before, blended with the teacher's by λ,"
        " and measured teacher-forced on the validation responses. *Untrained* is the pre-trained student,"
        " the counterpart of a collapsed fit. How the terms map to the theory's, and where loosely:"
        " `docs/theory.md`, section 6.\n\n"
        f"λ of each round: {schedules}. Round 1 is the same for all: the teacher is blended with itself.\n\n"
        "![Rounds](rounds.png)\n\n"
        "*Figure*: means over seeds with their 95% intervals; grey: the student before any round. Dotted: the"
        " theory's bound on the drift, were every round's residual of the first one's size.\n"
    )


def headline(frame: pd.DataFrame, scale: str) -> Table:
    return by_round(frame, "kl_to_teacher")


def by_round(frame: pd.DataFrame, metric: str) -> Table:
    """Variant × round, mean and interval over seeds."""
    seeds, tasks = frame.seed.nunique(), ["untrained", *rounds(frame)]
    digits = METRICS[metric].digits
    body = [
        [label, *(value(at(frame, metric, task).get(method), seeds, digits) for task in tasks)]
        for method, (label, *_) in present(frame).items()
    ]
    return Table(["rounds of", *tasks], body)


def prediction(frame: pd.DataFrame) -> str:
    """Signal strength and bound of each variant, and what was measured of the signal at the end."""
    strength, bound = (at(frame, m, "all rounds") for m in ("signal_strength", "non_collapse_bound"))
    signal, share = (at(frame, metric, rounds(frame)[-1]) for metric in ("signal", "share"))
    seeds, body = frame.seed.nunique(), []
    for method, (label, *_) in present(frame).items():
        b = mean_interval(list(bound[method].values())).mean  # one number: it depends on λ alone
        outcomes = sorted({predicted(r, b) for r in strength[method].values()})
        measured = (value(found[method], seeds) for found in (strength, signal, share))
        body.append([label, " or ".join(outcomes), number(b), *measured])
    note = (
        "After sections 2.2 and 2.4: r₀ > B excludes a collapse, r₀ ≤ √B forces one, between them the"
        " spectrum decides. r₀ is the teacher's signal over the first round's residual; a collapse has"
        " signal 0."
    )
    header = ["rounds of", "prediction", "B", "r₀", "signal after the last round", "share"]
    return Table(header, body, note, text_columns=2).markdown()


def predicted(strength: float, bound: float) -> str:
    """What the theory says of r₀ = `strength` and B = `bound`."""
    return "no collapse" if strength > bound else "collapse" if strength**2 <= bound else "undecided"


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """Every claim is about one metric. The claims are the theory's: the paper has no such rounds."""
    return [Comparison("", METRICS[metric], ends(frame, metric), about) for metric, about in ROUNDS.items()]


def ends(frame: pd.DataFrame, metric: str) -> Scores:
    """ "TAID, first round" and the like → seed → value, after the first and after the last round."""
    first, last = (at(frame, metric, task) for task in (rounds(frame)[1], rounds(frame)[-1]))
    found = {
        "first round": first,
        "last round": last,
        "half of the first round": mapped(first, lambda v: v / 2),
    }
    return {f"{VARIANTS[m][0]}, {which}": values for which, by in found.items() for m, values in by.items()}


def draw(frame: pd.DataFrame) -> Figure:
    """Metrics over rounds: a line per variant, the untrained student's level in grey."""
    figure = canvas(5.6)
    x = np.arange(len(rounds(frame)))
    for ax, metric in zip(figure.subplots(2, 3).flat, DRAWN, strict=True):
        curves = {}
        for method, (label, colour, form) in present(frame).items():
            mean, low, high = estimates(frame, metric, method)
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            curves[label] = (mean, colour, form)
            if metric == "drift":
                curves[f"{label}, bound"] = (estimates(frame, "drift_bound", method)[0], colour, ":")
        untrained = at(frame, metric, "untrained")
        level = mean_interval([v for values in untrained.values() for v in values.values()]).mean
        ax.axhline(level, color=COLOURS["untrained"], linestyle="--", linewidth=1.2, label="untrained")
        lines(ax, x, curves, xlabel="round")
        ax.set_title(METRICS[metric].heading, fontsize=9)
    legend(figure, BANDS)
    return figure


def estimates(frame: pd.DataFrame, metric: str, method: str) -> np.ndarray:
    """Mean, low and high over seeds, [3, rounds]; NaN without a row, and no interval for a single seed."""
    columns = []
    for task in rounds(frame):
        values = at(frame, metric, task).get(method)
        estimate = mean_interval(list(values.values())) if values else None
        bounds = (estimate.low, estimate.high) if estimate and estimate.n > 1 else (np.nan, np.nan)
        columns.append((estimate.mean if estimate else np.nan, *bounds))
    return np.array(columns).T


def at(frame: pd.DataFrame, metric: str, task: str) -> Scores:
    return scores(frame, "rounds", metric, task).get(PAIR, {})


def present(frame: pd.DataFrame) -> Mapping[str, tuple[str, str, str]]:
    """The variants that have rows."""
    return {method: look for method, look in VARIANTS.items() if (frame.method == method).any()}


def rounds(frame: pd.DataFrame) -> list[str]:
    """The tasks "round 0" … "round T"."""
    numbers = {int(task.split()[1]) for task in frame.task.unique() if task.startswith("round ")}
    return [f"round {n}" for n in sorted(numbers)]


PAGE = Page(
    "rounds",
    "Repeated rounds: does the theory's picture carry over?",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"rounds": draw(frame)},
)
