"""The adaptivity audit, rendered: `results/adaptivity.md` and `results/adaptivity.png` beside it."""

import math
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.ablations import METRICS, difference, differences, oriented
from analysis.claims import AUDIT, adaptivity
from analysis.predicates import Claim, Verdict
from analysis.rows import Pair, Scores, scores
from analysis.statistics import mean_interval
from analysis.style import name, pair_name
from analysis.tables import MISSING, document, interval, judged, markdown, number, plural, provenance, value

TITLE = "Is the adaptive update adaptive?"
PAIR = Pair("phi-3-mini", "tinyllama")
METHODS = ("taid", "taid_no_adaptive", "constant", "replayed")
AUDITED = {  # metric of the traces → title, decimals
    "alpha_n": ("α · N", 2),
    "floor_share": ("updates in which the linear floor binds [share]", 3),
    "floor_share_predicted": ("the same, predicted in closed form", 3),
    "log_sigmoid_low": ("log(σ(m) / ½), lowest", 4),
    "log_sigmoid_high": ("log(σ(m) / ½), highest", 4),
    "progress_mean": ("δ, mean", 4),
    "relative_noise_variance": ("variance of the loss's noise, of the mean squared", 4),
    "momentum_mean": ("m, mean", 4),
    "momentum_largest": ("m, largest size (downwards)", 4),
    "momentum_bound": ("upper bound of m for losses of this range", 4),
    "momentum_needed": ("m, size that would move t by 0.05", 4),
    "deviation": ("t − closed form at m = 0, largest size", 4),
    "lead": ("t − linear ramp, largest", 3),
}


def write(frame: pd.DataFrame, folder: Path, scale: str) -> None:
    """Render the rows of one scale to `folder`/adaptivity.md and `folder`/adaptivity.png."""
    (folder / "adaptivity.md").write_text(render(frame, scale), encoding="utf-8")
    draw(frame).savefig(folder / "adaptivity.png", metadata={"Software": None})


def render(frame: pd.DataFrame, scale: str) -> str:
    """The whole document, from the rows of one scale. Equal rows give equal text."""
    sections = {
        "What the traces say": audit(frame),
        "Four schedules": comparison(frame),
        "Claims": claims(frame),
        "Provenance": provenance(frame),
    }
    return document(TITLE, scale, preamble(frame, scale), sections)


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        f"{pair_name(PAIR)}, scale {scale}, {plural(frame.seed.nunique(), 'seed')}; ± is half of the 95%"
        " t-interval over them. Four schedules of t, paired by seed: the adaptive update, the linear ramp,"
        " σ(m) = ½ held constant (t a function of the step alone), and t as another seed's adaptive run"
        " recorded it, which has the shape of an adaptive curve but cannot answer to this student. How the"
        " closed form is derived, and what follows: `docs/adaptivity.md`.\n\n"
        "![Four schedules](adaptivity.png)\n\n"
        "*Figure*: difference to TAID, paired by seed, with 95% intervals; right of 0 is better in every"
        " panel.\n"
    )


def audit(frame: pd.DataFrame) -> str:
    """One line per number of the adaptive runs' traces; then what the momentum would need."""
    seeds, methods = frame.seed.nunique(), ("taid", "constant")
    body = [
        [title, *(value(ours(frame, metric).get(method), seeds, digits) for method in methods)]
        for metric, (title, digits) in AUDITED.items()
    ]
    table = markdown(["over the run", *map(name, methods)], body)
    needed = ours(frame, "momentum_needed").get("taid")
    return table + (f"\n{effort(mean_interval(list(needed.values())).mean)}\n" if needed else "")


def effort(momentum: float) -> str:
    """What a constant momentum asks of the loss."""
    decades = -100 * math.log10(1 - momentum) if momentum < 1 else math.inf
    return (
        f"A constant m = {number(momentum)} is a loss that falls by {momentum:.0%} in every update: by a"
        f" factor of 10^{number(decades, 0)} over the hundred updates that β = 0.99 remembers."
    )


def comparison(frame: pd.DataFrame) -> str:
    """Schedule × measure: mean, and the difference to TAID."""
    seeds, body = frame.seed.nunique(), []
    for method in METHODS:
        line = [name(method)]
        for metric, (_, digits, *_) in METRICS.items():
            found = ours(frame, metric)
            estimate = difference(found, method)
            line += [
                value(found.get(method), seeds, digits),
                interval(estimate, digits) if estimate else MISSING,
            ]
        body.append(line)
    titles = [cell for title, *_ in METRICS.values() for cell in (title, "− TAID")]
    return markdown(["schedule", *titles], body)


def verdicts(frame: pd.DataFrame) -> list[tuple[str, Claim, Verdict]]:
    """The claims about the students by each measure, then those about TAID's traces."""
    students = [
        (title.split(" [")[0], claim, claim.predicate(oriented(ours(frame, metric), sign)))
        for metric, (title, _, sign, margin) in METRICS.items()
        for claim in adaptivity(margin)
    ]
    traces = {metric: ours(frame, metric)["taid"] for metric in AUDITED if "taid" in ours(frame, metric)}
    nothing = {"none": dict.fromkeys(traces.get("deviation", {}), 0.0)}
    return students + [("trace", claim, claim.predicate(traces | nothing)) for claim in AUDIT]


def claims(frame: pd.DataFrame) -> str:
    return judged(verdicts(frame), digits=4)


def draw(frame: pd.DataFrame) -> Figure:
    """Differences to TAID of the other schedules, a panel per measure."""
    figure = Figure(figsize=(11, 2.2), dpi=110, layout="constrained")
    differences(figure, {metric: ours(frame, metric) for metric in METRICS}, METHODS[1:])
    return figure


def ours(frame: pd.DataFrame, metric: str) -> Scores:
    return scores(frame, "adaptivity", metric).get(PAIR, {})
