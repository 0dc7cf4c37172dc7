"""Repeated rounds, rendered: `results/rounds.md` and the figure `results/rounds.png` beside it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.claims import ROUNDS
from analysis.predicates import Claim, Verdict
from analysis.rows import Pair, Scores, scores
from analysis.statistics import mean_interval
from analysis.style import COLOURS, pair_name
from analysis.tables import document, interval, markdown, number, plural, provenance, value
from analysis.theory_figures import lines

TITLE = "Repeated rounds: does the theory's picture carry over?"
PAIR = Pair("stablelm-zephyr", "pythia")
VARIANTS = {  # method → name, colour and line
    "self_distillation": ("self-distillation", COLOURS["kl"], "o-"),
    "taid": ("TAID", COLOURS["taid"], "s-"),
    "constant": ("constant λ", COLOURS["taid_no_adaptive"], "^-"),
}
METRICS = {  # metric → title with its unit, decimals
    "kl_to_teacher": ("KL to the teacher [nats/token]", 3),
    "signal": ("Signal, of the teacher's", 2),
    "drift": ("Drift, of the teacher's signal", 2),
    "residual": ("Residual, of the teacher's signal", 2),
    "share": ("Share of the teacher's signal", 2),
    "entropy": ("Entropy [nats]", 2),
    "effective_support": ("Effective support [tokens]", 1),
    "held_out_loss": ("Held-out loss [nats/token]", 3),
    "agreement": ("Agreement with the teacher", 3),
}
DRAWN = ("kl_to_teacher", "signal", "drift", "entropy", "effective_support", "held_out_loss")


def write(frame: pd.DataFrame, folder: Path, scale: str) -> None:
    """Render the rows of one scale to `folder`/rounds.md and `folder`/rounds.png."""
    (folder / "rounds.md").write_text(render(frame, scale), encoding="utf-8")
    draw(frame).savefig(folder / "rounds.png", metadata={"Software": None})


def render(frame: pd.DataFrame, scale: str) -> str:
    """The whole document, from the rows of one scale. Equal rows give equal text."""
    sections = {
        "Claims": claims(frame),
        "What the theory would predict": prediction(frame),
        **{title: by_round(frame, metric) for metric, (title, _) in METRICS.items()},
        "Provenance": provenance(frame),
    }
    return document(TITLE, scale, preamble(frame, scale), sections)


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


def by_round(frame: pd.DataFrame, metric: str) -> str:
    """Variant × round, mean and interval over seeds."""
    seeds, tasks = frame.seed.nunique(), ["untrained", *rounds(frame)]
    digits = METRICS[metric][1]
    body = [
        [label, *(value(at(frame, metric, task).get(method), seeds, digits) for task in tasks)]
        for method, (label, *_) in present(frame).items()
    ]
    return markdown(["rounds of", *tasks], body)


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
        "\nAfter sections 2.2 and 2.4: r₀ > B excludes a collapse, r₀ ≤ √B forces one, between them the"
        " spectrum decides. r₀ is the teacher's signal over the first round's residual; a collapse has"
        " signal 0.\n"
    )
    header = ["rounds of", "prediction", "B", "r₀", "signal after the last round", "share"]
    return markdown(header, body, text_columns=2) + note


def predicted(strength: float, bound: float) -> str:
    """What the theory says of r₀ = `strength` and B = `bound`."""
    return "no collapse" if strength > bound else "collapse" if strength**2 <= bound else "undecided"


def verdicts(frame: pd.DataFrame) -> list[tuple[str, Claim, Verdict]]:
    """Every claim about every metric, on its values as measured."""
    return [
        (METRICS[metric][0], claim, claim.predicate(ends(frame, metric)))
        for metric, about in ROUNDS.items()
        for claim in about
    ]


def claims(frame: pd.DataFrame) -> str:
    """All verdicts and the rule behind them. The claims are the theory's: the paper has no such rounds."""
    body = [
        [where, claim.paper_item, claim.statement, f"**{verdict.outcome}**", interval(verdict.estimate)]
        for where, claim, verdict in verdicts(frame)
    ]
    header = ["where", "from", "claim", "in our rows", "difference [95% interval]"]
    rule = (
        "\n*Supported*: the 95% interval of the difference, paired by seed, lies wholly where the claim has"
        " it. *Contradicted*: wholly elsewhere. Else *inconclusive*; one seed settles nothing.\n"
    )
    return markdown(header, body, text_columns=len(header)) + rule


def ends(frame: pd.DataFrame, metric: str) -> Scores:
    """ "TAID, first round" and the like → seed → value, after the first and after the last round."""
    tasks = rounds(frame)
    return {
        f"{VARIANTS[method][0]}, {which} round": values
        for which, task in (("first", tasks[1]), ("last", tasks[-1]))
        for method, values in at(frame, metric, task).items()
    }


def draw(frame: pd.DataFrame) -> Figure:
    """Metrics over rounds: a line per variant, the untrained student's level in grey."""
    figure = Figure(figsize=(11, 6), dpi=110, layout="constrained")
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
        ax.axhline(level, color=COLOURS["untrained"], linestyle="--", linewidth=1.2)
        lines(ax, x, curves, title=METRICS[metric][0], xlabel="round")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
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
