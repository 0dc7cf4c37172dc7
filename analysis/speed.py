"""Speed, memory and cost, rendered: `results/speed.md` and the figure `results/speed.png` beside it."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from analysis.claims import COST, Claim, Verdict
from analysis.rows import Scores
from analysis.statistics import Estimate, paired_interval
from analysis.style import COLOURS, name
from analysis.table1 import provenance
from analysis.tables import MISSING, markdown, number
from analysis.theory_figures import plain

TITLE = "Speed, memory and cost"
FLOOR = "floor"
CONTENDERS = {  # contender → name, colour
    "official": ("official formulas", "#332288"),
    "official_compiled": ("official formulas, torch.compile", "#88CCEE"),
    "trl": ("TRL, generalised JSD", "#882255"),
    "torchtune": ("torchtune, reverse KL", "#AA4499"),
    "liger": ("Liger, fused linear JSD", "#CC6677"),
    "plain": ("taid.losses", "#999999"),
    "eager": ("taid.fused, eager", "#DDCC77"),
    "compiled": ("taid.fused, compiled", "#44AA99"),
    "cpp": ("taid.fused, C++", "#E69F00"),
    "cpp_inplace": ("taid.fused, C++ in place", "#D55E00"),
    "fused_head": ("taid.fused_head", "#E69F00"),
    FLOOR: ("read both, write one", "#000000"),
}
ENGINES = ("eager", "compiled", "cpp", "cpp_inplace")
METHODS = ("taid", "distillm", "distillm_sampling", "gkd")
LOSSES = {"taid": "TAID", "gjs": "generalised JSD", "rkl": "reverse KL"}


def write(frame: pd.DataFrame, folder: Path, scale: str) -> None:
    """Render the rows of one scale to `folder`/speed.md and `folder`/speed.png."""
    (folder / "speed.md").write_text(render(frame, scale), encoding="utf-8")
    draw(frame).savefig(folder / "speed.png", metadata={"Software": None})


def render(frame: pd.DataFrame, scale: str) -> str:
    """The whole document, from the rows of one scale. Equal rows give equal text; no rows, no section."""
    sections = {
        "Against the aims": aims(frame),
        **{f"Time, {title} [ns/element]": table(frame, "losses", "time", loss) for loss, title in LOSSES.items()},
        **{f"Memory, {title} [logit tensors]": table(frame, "losses", "memory", loss) for loss, title in LOSSES.items()},
        **{f"Error of the gradient, {title}": table(frame, "accuracy", "gradient_error", loss, scientific)
           for loss, title in LOSSES.items()},
        "Growth with vocabulary and rows": growth(frame),
        "The linear head fused in": head(frame),
        "The paper's cost claim": claims(frame),
        "Cost of a step, by what decides it": costs(frame),
        "Provenance": provenance(frame),
    }  # fmt: skip
    body = "".join(f"\n## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"# {TITLE}\n\n{preamble(scale)}{body}"


def preamble(scale: str) -> str:
    warning = "**Scale smoke: the numbers mean nothing. They show that everything runs, and no more.**\n\n"
    return (
        f"{warning if scale == 'smoke' else ''}"
        "One thread of one process, forward and backward; contenders take turns, and a number is the median of their"
        " CPU times. Memory is what the process grows by at its peak beyond both inputs, the gradient included, in units"
        " of one tensor of logits. What was measured how, and what the numbers depend on: `docs/speed.md`.\n\n"
        "![Speed, memory and cost](speed.png)\n"
    )


# Selections


def current(frame: pd.DataFrame) -> pd.DataFrame:
    """Of a cell that was measured more than once (of other code, say), the last measurement."""
    last = frame.groupby(["experiment", "task"]).config_hash.transform("last")
    return frame[frame.config_hash == last]


def measured(frame: pd.DataFrame, experiment: str, metric: str) -> Mapping[str, Scores]:
    """task → contender → repetition → value, in the order of measuring."""
    chosen = current(frame)
    chosen = chosen[(chosen.experiment == experiment) & (chosen.metric == metric)]
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in chosen.itertuples():
        found.setdefault(row.task, {}).setdefault(row.method, {})[row.seed] = row.value
    return found


def settings(frame: pd.DataFrame) -> Mapping[str, Mapping]:
    """task → the config of its cell."""
    return dict(zip(frame.task, frame.config, strict=True))


def median(values: Mapping[int, float]) -> float:
    return float(pd.Series(values).median())


def ratio(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Median of first / second over the repetitions, side by side."""
    return median({i: first[i] / second[i] for i in first.keys() & second.keys()})


# Tables


class Aim(NamedTuple):
    """What issue-sized ambition asked for: every value of `found` at least, or at most, `bound`."""

    what: str
    found: Callable[[pd.DataFrame], list[float]]
    bound: float
    at_least: bool = False


def speedups(
    frame: pd.DataFrame, loss: str, contender: str, against: str, dtype: str | None = None, experiment: str = "losses"
) -> list[float]:
    """How many times as fast as another the contender is, in each cell of a loss (of one dtype)."""
    config = settings(frame)
    return [
        ratio(found[against], found[contender])
        for task, found in measured(frame, experiment, "time").items()
        if config[task]["loss"] == loss and dtype in (None, config[task]["dtype"]) and {contender, against} <= found.keys()
    ]


def highest(frame: pd.DataFrame, experiment: str, metric: str, contenders: Iterable[str], dtype: str | None) -> list[float]:
    """A metric of contenders in every cell (of one dtype)."""
    config = settings(frame)
    return [
        median(found[contender])
        for task, found in measured(frame, experiment, metric).items() if dtype in (None, config[task]["dtype"])
        for contender in contenders if contender in found
    ]  # fmt: skip


def step_ratios(frame: pd.DataFrame) -> list[float]:
    """TAID's training step over KL's."""
    return [ratio(found["taid"], found["kl"]) for found in measured(frame, "step", "step").values()]


AIMS = (
    Aim("TAID eager, × official", partial(speedups, loss="taid", contender="eager", against="official"), 4, True),
    Aim("TAID eager, memory", partial(highest, experiment="losses", metric="memory", contenders=["eager"], dtype=None), 1.05),
    Aim("TAID compiled, × official", partial(speedups, loss="taid", contender="compiled", against="official"), 5, True),
    Aim("TAID compiled, × torch.compile of official",
        partial(speedups, loss="taid", contender="compiled", against="official_compiled"), 1.8, True),
    Aim("TAID C++, × official, bf16", partial(speedups, loss="taid", contender="cpp", against="official", dtype="bf16"), 12, True),
    Aim("TAID C++, × official, fp32", partial(speedups, loss="taid", contender="cpp", against="official", dtype="fp32"), 7, True),
    Aim("C++ in place, memory",
        partial(highest, experiment="losses", metric="memory", contenders=["cpp_inplace"], dtype=None), 0.05),
    Aim("TAID C++ in place, × read both, write one",
        lambda frame: [1 / x for x in speedups(frame, "taid", "cpp_inplace", FLOOR)], 3),
    Aim("JSD C++, × TRL", partial(speedups, loss="gjs", contender="cpp", against="trl"), 8, True),
    Aim("reverse KL C++, × torchtune", partial(speedups, loss="rkl", contender="cpp", against="torchtune"), 6, True),
    Aim("fused head, × official with matmuls",
        partial(speedups, loss="taid", contender="fused_head", against="official", experiment="head"), 2, True),
    Aim("fused head, memory beyond the gradients",
        partial(highest, experiment="head", metric="memory", contenders=["fused_head"], dtype=None), 0.6),
    Aim("gradient error of ours, bf16",
        partial(highest, experiment="accuracy", metric="gradient_error", contenders=ENGINES, dtype="bf16"), 0.003),
    Aim("training step, TAID over KL", step_ratios, 1.02),
)  # fmt: skip


def aims(frame: pd.DataFrame) -> str:
    """Each aim beside the range of what was measured."""
    body = []
    for aim in AIMS:
        found = aim.found(frame)
        reached = sum(value >= aim.bound if aim.at_least else value <= aim.bound for value in found)
        span = " – ".join(digits(value) for value in sorted({min(found), max(found)})) if found else MISSING
        count = f"{reached} of {len(found)}" if found else MISSING
        body.append([aim.what, f"{'≥' if aim.at_least else '≤'} {aim.bound:g}", span, count])
    return markdown(["what", "aim", "measured", "cells that reach it"], body)


def digits(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    return number(value, max(0, 2 - math.floor(math.log10(value)))) if value >= 0.001 else scientific(value)


def scientific(value: float) -> str:
    return f"{value:.1e}"


def table(
    frame: pd.DataFrame, experiment: str, metric: str, loss: str, form: Callable[[float], str] = digits
) -> str:
    """Contender × cell of one loss, medians."""
    config = settings(frame)
    cells = {task: found for task, found in measured(frame, experiment, metric).items() if config[task]["loss"] == loss}
    if not cells:
        return ""
    body = [
        [label, *(form(max(median(found[key]), 1e-12)) if key in found else MISSING for found in cells.values())]
        for key, (label, _) in CONTENDERS.items()
        if any(key in found for found in cells.values())
    ]
    return markdown([LOSSES[loss], *(task.partition(", ")[2] for task in cells)], body)


def growth(frame: pd.DataFrame) -> str:
    """Exponents k of time and memory ∝ sizeᵏ, with their intervals."""
    body = []
    for key, (label, _) in CONTENDERS.items():
        fits = [
            exponent(curve(frame, experiment, metric, key))
            for experiment in ("scaling_vocab", "scaling_rows") for metric in ("time", "memory")
        ]  # fmt: skip
        if any(fits):
            body.append([label, *(spread(fit) for fit in fits)])
    if not body:
        return ""
    note = (
        "\nThe exponent k of (CPU seconds or bytes) ∝ sizeᵏ, by least squares over all repetitions on logarithmic axes,"
        " with its 95% interval; 1 is linear growth. Memory in place does not grow with rows: it is a buffer or two.\n"
    )
    header = ["TAID", "time over V", "memory over V", "time over N", "memory over N"]
    return markdown(header, body) + note


def curve(frame: pd.DataFrame, experiment: str, metric: str, contender: str) -> list[tuple[int, float]]:
    """(size, CPU seconds or bytes) of every repetition, size being the side that grows."""
    config, side = settings(frame), {"scaling_vocab": "vocab", "scaling_rows": "rows"}[experiment]
    points = []
    for task, found in measured(frame, experiment, metric).items():
        cell = config[task]
        unit = {"time": 1e-9, "memory": {"bf16": 2, "fp32": 4}[cell["dtype"]]}[metric]
        total = cell["rows"] * cell["vocab"] * unit
        points += [(cell[side], value * total) for value in found.get(contender, {}).values()]
    return points


def exponent(points: list[tuple[int, float]]) -> Estimate | None:
    """Least-squares slope of log value over log size; None without two sizes, or for a value of zero."""
    if len({size for size, _ in points}) < 2 or min(value for _, value in points) <= 0:
        return None
    x, y = ([math.log(pair[i]) for pair in points] for i in (0, 1))
    fit = stats.linregress(x, y)
    half = stats.t.ppf(0.975, len(points) - 2) * fit.stderr if len(points) > 2 else math.inf
    return Estimate(fit.slope, fit.slope - half, fit.slope + half, len(points))


def spread(estimate: Estimate | None) -> str:
    """"1.02 [0.98, 1.06]"; the mean alone where there is no interval."""
    if estimate is None:
        return MISSING
    ends = f" [{number(estimate.low)}, {number(estimate.high)}]" if math.isfinite(estimate.high) else ""
    return number(estimate.mean) + ends


def head(frame: pd.DataFrame) -> str:
    """Contender × cell: seconds, and memory beyond the gradients."""
    parts = []
    for metric, title in (("time", "CPU seconds per million logits"), ("memory", "logit tensors beyond the gradients")):
        cells = measured(frame, "head", metric)
        methods = dict.fromkeys(method for found in cells.values() for method in found)
        scale = 1e-3 if metric == "time" else 1.0  # ns/element to seconds per million
        body = [
            [head_label(method), *(digits(max(scale * median(found[method]), 1e-12)) if method in found else MISSING
                                   for found in cells.values())]
            for method in methods
        ]  # fmt: skip
        if cells:
            parts.append(markdown([title, *cells], body))
    return "\n".join(parts)


def head_label(method: str) -> str:
    return CONTENDERS.get(method, (method,))[0]


# Cost


def ratios(steps: Scores, method: str) -> Estimate | None:
    """A method's step over KL's: geometric mean over blocks, side by side, with its interval."""
    if not {method, "kl"} <= steps.keys():
        return None
    logs = [{i: math.log(x) for i, x in steps[who].items()} for who in (method, "kl")]
    difference = paired_interval(*logs)
    return Estimate(*(math.exp(x) for x in (difference.mean, difference.low, min(difference.high, 700))), difference.n)


def costs(frame: pd.DataFrame) -> str:
    """Condition × method: seconds of KL's step, and the others' as multiples of it."""
    shares, body = measured(frame, "cost", "sampled_share"), []
    for task, steps in measured(frame, "cost", "step").items():
        cell = settings(frame)[task]
        kl, drawn = median(steps["kl"]), median(steps["generation"])
        predicted = 1 + cell["probability"] * drawn / kl
        sampled = [median(shares[task][m]) for m in ("distillm_sampling", "gkd") if m in shares.get(task, {})]
        body.append([
            f"{cell['batch']} × ({cell['prompt']} + {cell['response']})", number(cell["probability"]), digits(kl),
            *(spread(ratios(steps, method)) for method in METHODS), digits(predicted),
            ", ".join(number(share) for share in sampled),
        ])  # fmt: skip
    if not body:
        return ""
    header = ["batch × (prompt + response)", "GKD samples", "KL [s]", *map(label, METHODS), "GKD, predicted", "sampled"]
    note = (
        "\nCPU seconds of an optimizer step over KL's, geometric mean over blocks that take turns, with the 95% interval."
        " *DistiLLM* as it runs while its validation loss falls: threshold 0, no sampling. *DistiLLM, sampling*: threshold"
        " 1, which samples afresh with a probability that falls from 1 to 0 over training and else replays."
        " *Predicted*: 1 + (GKD's probability) · (seconds of drawing one batch of responses) / (KL's step). *Sampled*: the"
        " shares of steps that drew fresh responses, DistiLLM's and GKD's.\n"
    )
    return markdown(header, body) + note


def label(method: str) -> str:
    return "DistiLLM, sampling" if method == "distillm_sampling" else name(method)


def verdicts(frame: pd.DataFrame) -> list[tuple[str, Claim, Verdict]]:
    """Every claim under every condition, on logarithms of seconds."""
    found = []
    for task, steps in measured(frame, "cost", "step").items():
        logs = {method: {i: math.log(x) for i, x in values.items()} for method, values in steps.items()}
        for factor, words in ((2, "twice TAID's"), (10, "ten times TAID's")):
            logs[words] = {i: x + math.log(factor) for i, x in logs.get("taid", {}).items()}
        found += [(task, claim, claim.predicate(logs)) for claim in COST]
    return found


def claims(frame: pd.DataFrame) -> str:
    """Verdict by condition. The difference is shown as a ratio: 1 is exactly what the claim says."""
    body = []
    for where, claim, verdict in verdicts(frame):
        estimate = verdict.estimate
        shown = estimate and Estimate(*(math.exp(min(x, 700)) for x in (estimate.mean, estimate.low, estimate.high)), estimate.n)
        body.append([where, claim.statement, f"**{verdict.outcome}**", spread(shown)])
    if not body:
        return ""
    note = (
        "\n*Supported*: the 95% interval, paired by block, lies wholly where the claim has it. *Contradicted*: wholly"
        " elsewhere. Else *inconclusive*. The last column is the measured time over the claimed one.\n"
    )
    return markdown(["where", "claim (our reading of the paper)", "in our rows", "of what is claimed"], body, 3) + note


# Figure


def draw(frame: pd.DataFrame) -> Figure:
    """Time and memory against V and N; contenders at the first shape; steps over KL's."""
    figure = Figure(figsize=(13, 7.5), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3)
    sides = {"scaling_vocab": "vocabulary V", "scaling_rows": "rows N"}
    for column, (experiment, side) in enumerate(sides.items()):
        for row, (metric, unit) in enumerate((("time", "CPU seconds"), ("memory", "bytes beyond the inputs"))):
            against(axes[row, column], frame, experiment, metric).set(
                xscale="log", yscale="log", xlabel=side, ylabel=unit, title=f"TAID: {metric} over {side}"
            )
    handles = {handle.get_label(): handle for ax in axes[:, :2].flat for handle in ax.get_lines()}
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower left", ncols=3, frameon=False)
    bars(axes[0, 2], frame)
    steps(axes[1, 2], frame)
    return figure


def against(ax: Axes, frame: pd.DataFrame, experiment: str, metric: str) -> Axes:
    """A line per contender: medians over size. The floor is drawn dashed."""
    for key, (title, colour) in CONTENDERS.items():
        points = pd.DataFrame(curve(frame, experiment, metric, key), columns=["size", "value"])
        values = points.groupby("size").value.median()
        values = values[values > 0]
        if len(values):
            form = "--" if key == FLOOR else "o-"
            ax.plot(values.index, values, form, color=colour, label=title, linewidth=1.6, markersize=4)
    return plain(ax)


def bars(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Time of TAID's contenders in the first cell."""
    config = settings(frame)
    cells = [(task, found) for task, found in measured(frame, "losses", "time").items() if config[task]["loss"] == "taid"]
    if cells:
        task, found = cells[0]
        present = [key for key in CONTENDERS if key in found][::-1]
        values = [median(found[key]) for key in present]
        drawn = ax.barh([CONTENDERS[key][0] for key in present], values, color=[CONTENDERS[key][1] for key in present])
        ax.bar_label(drawn, [digits(value) for value in values], padding=3, fontsize=8)
        ax.set(title=task, xlabel="ns/element, forward and backward")
    return plain(ax)


def steps(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Seconds of a step over KL's: a group of bars per condition."""
    cells, width = measured(frame, "cost", "step"), 0.8 / len(METHODS)
    config = settings(frame)
    names = [f"{config[t]['batch']}×({config[t]['prompt']}+{config[t]['response']}), {config[t]['probability']:g}" for t in cells]
    for i, method in enumerate(METHODS):
        estimates = [ratios(found, method) for found in cells.values()]
        places = [(at + i * width, each) for at, each in enumerate(estimates) if each]
        colour = COLOURS[method.removesuffix("_sampling")]
        hatch = "//" if method.endswith("_sampling") else None
        ax.bar(
            [at for at, _ in places], [each.mean for _, each in places], width, color=colour, hatch=hatch,
            edgecolor="white", label=label(method), align="edge",
        )  # fmt: skip
    ax.axhline(1, color=COLOURS["kl"], linewidth=1, linestyle=":")
    ax.set_xticks([at + 0.4 for at in range(len(names))], names, rotation=30, ha="right", fontsize=8)
    ax.set(title="Training step over KL's", ylabel="× KL", xlabel="batch × (prompt + response), GKD's probability")
    ax.legend(frameon=False, fontsize=8)
    return plain(ax)
