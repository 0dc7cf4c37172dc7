"""Speed, memory and cost: `results/speed.md` and its figure."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pandas as pd

from analysis import cost
from analysis.page import Page
from analysis.speed_figures import draw
from analysis.speed_rows import (
    CONTENDERS,
    FLOOR,
    curve,
    digits,
    exponent,
    measured,
    median,
    ratio,
    settings,
    spread,
)
from analysis.tables import MISSING, Table

LOSSES = {"taid": "TAID", "gjs": "generalised JSD", "rkl": "reverse KL"}
ENGINES = ("eager", "compiled", "cpp", "cpp_inplace", "triton", "triton_inplace")


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    found = {"Against the aims": headline(frame, scale).markdown()}
    fine = "{:.4f}".format if scale == "gpu" else digits
    for loss, title in LOSSES.items():
        found |= {
            f"Time, {title} [ns/element]": table(frame, "losses", "time", loss, fine),
            f"Memory, {title} [logit tensors]": table(frame, "losses", "memory", loss),
            f"Error of the gradient, {title}": table(
                frame, "accuracy", "gradient_error", loss, form="{:.1e}".format
            ),
        }
    return found | {
        "Growth with vocabulary and rows": growth(frame),
        "The linear head fused in": head(frame),
        "What the cost of a step depends on": cost.table(frame),
    }


def preamble(frame: pd.DataFrame, scale: str) -> str:
    where, time = "One thread of one process", "the median of CPU times per logit of one side."
    if scale == "gpu":
        where, time = (
            "One GPU",
            "the median of the GPU's own, per logit of one side, Python being ahead of it.",
        )
    return (
        f"{where}, forward and backward; contenders take turns, and a time is {time} Memory is the most that is"
        " allocated at once beyond both"
        " inputs, the gradient included, in units of one tensor of logits. How it was measured, and what"
        " falls short and why: `docs/speed.md`. The claims are the paper's about cost, by our reading, at several"
        " sizes of a training step: what is judged is the measured time over the claimed one; “about” allows a"
        " factor of √2.\n\n"
        "![Speed, memory and cost](speed.png)\n"
    )


class Aim(NamedTuple):
    """Something to reach in every cell: `found` values at least, or at most, `bound`."""

    what: str
    found: Callable[[pd.DataFrame], list[float]]
    bound: float
    at_least: bool = False


def speedups(
    frame: pd.DataFrame, loss: str, contender: str, against: str, dtype: str = "", experiment: str = "losses"
) -> list[float]:
    """How many times as fast as another a contender is: per cell of the loss, and of the type if given."""
    config = settings(frame, experiment)
    return [
        ratio(found[against], found[contender])
        for task, found in measured(frame, experiment, "time").items()
        if config[task]["loss"] == loss and dtype in ("", config[task]["dtype"])
        and {contender, against} <= found.keys()
    ]  # fmt: skip


def all_of(
    frame: pd.DataFrame, metric: str, *contenders: str, dtype: str = "", experiment: str = "losses"
) -> list[float]:
    """A metric of contenders: per cell, of the type if given."""
    config = settings(frame, experiment)
    return [
        median(found[contender])
        for task, found in measured(frame, experiment, metric).items()
        for contender in contenders
        if contender in found and dtype in ("", config[task]["dtype"])
    ]  # fmt: skip


def over_floor(frame: pd.DataFrame, contender: str) -> list[float]:
    """TAID's time over that of reading both logits and writing a gradient."""
    return [1 / times for times in speedups(frame, "taid", contender, FLOOR)]


def step(frame: pd.DataFrame) -> list[float]:
    """TAID's training step over KL's, medians of blocks side by side."""
    steps = measured(frame, "step", "step").values()
    return [ratio(found["taid"], found["kl"]) for found in steps if {"taid", "kl"} <= found.keys()]


SHARED_AIMS = (
    Aim("fused head: memory beyond the gradients",
        lambda frame: all_of(frame, "memory", "fused_head", experiment="head"), 0.6),
    Aim("ours, bf16: error of the gradient",
        lambda frame: all_of(frame, "gradient_error", *ENGINES, dtype="bf16", experiment="accuracy"), 0.003),
    Aim("training step: TAID over KL", step, 1.02),
)  # fmt: skip
CPU_AIMS = (
    Aim("TAID eager: × official",
        partial(speedups, loss="taid", contender="eager", against="official"), 4, True),
    Aim("TAID compiled: × official",
        partial(speedups, loss="taid", contender="compiled", against="official"), 5, True),
    Aim("TAID compiled: × official, torch.compile",
        partial(speedups, loss="taid", contender="compiled", against="official_compiled"), 1.8, True),
    Aim("TAID C++, bf16: × official",
        partial(speedups, loss="taid", contender="cpp", against="official", dtype="bf16"), 12, True),
    Aim("TAID C++, fp32: × official",
        partial(speedups, loss="taid", contender="cpp", against="official", dtype="fp32"), 7, True),
    Aim("TAID C++ in place: time over read both, write one",
        partial(over_floor, contender="cpp_inplace"), 3),
    Aim("JSD C++: × TRL", partial(speedups, loss="gjs", contender="cpp", against="trl"), 8, True),
    Aim("reverse KL C++: × torchtune",
        partial(speedups, loss="rkl", contender="cpp", against="torchtune"), 6, True),
    Aim("eager: memory", lambda frame: all_of(frame, "memory", "eager"), 1.05),
    Aim("C++ in place: memory", lambda frame: all_of(frame, "memory", "cpp_inplace"), 0.05),
    Aim("fused head: × official with matmuls",
        partial(speedups, loss="taid", contender="fused_head", against="official", experiment="head"),
        2, True),
)  # fmt: skip
GPU_AIMS = (
    Aim("TAID Triton: × official",
        partial(speedups, loss="taid", contender="triton", against="official"), 5, True),
    Aim("TAID Triton: × official, torch.compile",
        partial(speedups, loss="taid", contender="triton", against="official_compiled"), 1.8, True),
    # two sweeps read everything twice: 5 / 3 by bytes alone
    Aim("TAID Triton in place: time over read both, write one",
        partial(over_floor, contender="triton_inplace"), 2),
    Aim("JSD Triton: × TRL", partial(speedups, loss="gjs", contender="triton", against="trl"), 8, True),
    Aim("reverse KL Triton: × torchtune",
        partial(speedups, loss="rkl", contender="triton", against="torchtune"), 6, True),
    Aim("Triton: memory", lambda frame: all_of(frame, "memory", "triton"), 1.01),
    Aim("Triton in place: memory", lambda frame: all_of(frame, "memory", "triton_inplace"), 0.05),
)  # fmt: skip


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Each aim beside the range of what was measured."""
    body = []
    for aim in (*(GPU_AIMS if scale == "gpu" else CPU_AIMS), *SHARED_AIMS):
        found = sorted(aim.found(frame))
        reached = sum(value >= aim.bound if aim.at_least else value <= aim.bound for value in found)
        span = " – ".join(dict.fromkeys(map(digits, (found[0], found[-1])))) if found else MISSING
        count = f"{reached} of {len(found)}" if found else MISSING
        body.append([aim.what, f"{'≥' if aim.at_least else '≤'} {aim.bound:g}", span, count])
    return Table(["what", "aim", "measured", "cells that reach it"], body)


def table(
    frame: pd.DataFrame, experiment: str, metric: str, loss: str, form: Callable[[float], str] = digits
) -> str:
    """Contender × cell of one loss, medians; nothing without rows."""
    config = settings(frame, experiment)
    every = measured(frame, experiment, metric)
    cells = {task: found for task, found in every.items() if config[task]["loss"] == loss}
    body = [
        [label, *(form(median(found[key])) if key in found else MISSING for found in cells.values())]
        for key, (label, _) in CONTENDERS.items()
        if any(key in found for found in cells.values())
    ]
    return Table([LOSSES[loss], *(task.partition(", ")[2] for task in cells)], body).markdown()


def growth(frame: pd.DataFrame) -> str:
    """Exponents k of time and memory ∝ sizeᵏ, with their intervals."""
    columns = [(side, metric) for side in ("scaling_vocab", "scaling_rows") for metric in ("time", "memory")]
    body = []
    for key, (label, _) in CONTENDERS.items():
        fits = [exponent(curve(frame, side, metric, key)) for side, metric in columns]
        if any(fits):
            body.append([label, *map(spread, fits)])
    note = (
        "The exponent k of (seconds or bytes) ∝ sizeᵏ with its 95% interval, by least squares over all"
        " repetitions on logarithmic axes; 1 is linear growth. No exponent where memory is next to nothing."
    )
    return Table(
        ["TAID", "time over V", "memory over V", "time over N", "memory over N"], body, note
    ).markdown()


def head(frame: pd.DataFrame) -> str:
    """Cell × contender: time, and memory beyond the gradients; nothing without rows."""
    time, memory = (measured(frame, "head", metric) for metric in ("time", "memory"))
    body = [
        [
            task, head_label(key), digits(median(values)),
            digits(median(memory[task][key])) if task in memory else MISSING,
        ]
        for task, found in time.items() for key, values in found.items()
    ]  # fmt: skip
    header = ["loss, N × (hidden sizes) → V", "", "time [ns/element]", "memory [logit tensors]"]
    note = "Memory beyond the inputs and the gradients of hidden states and weight."
    return Table(header, body, note, text_columns=2).markdown()


def head_label(key: str) -> str:
    label = CONTENDERS[key][0]
    return label if key in ("liger", "fused_head") else f"matmuls, {label}"


PAGE = Page(
    "speed",
    "Speed, memory and cost",
    preamble,
    headline,
    sections,
    cost.comparisons,
    lambda frame, scale: {"speed": draw(frame)},
    targets=("bench", "cost"),
)
