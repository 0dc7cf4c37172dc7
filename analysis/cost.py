"""Seconds per training step beside KL's, and the paper's claim about them: a part of `results/speed.md`."""

import math
from collections.abc import Mapping

import pandas as pd

from analysis.claims import COST
from analysis.measures import Measure
from analysis.page import Comparison
from analysis.rows import Scores, mapped
from analysis.speed_rows import digits, measured, median, settings, spread
from analysis.statistics import Estimate, difference
from analysis.style import name
from analysis.tables import MISSING, Table, exponential, number

METHODS = ("taid", "distillm", "distillm_sampling", "gkd")


def ratios(steps: Scores, method: str) -> Estimate | None:
    """A method's step over KL's: geometric mean over blocks, side by side, with its interval."""
    found = difference(mapped(steps, math.log), method, "kl")
    return exponential(found) if found else None


def table(frame: pd.DataFrame) -> str:
    """Condition × method: seconds of KL's step, and the others' as multiples of it."""
    shares, config, body = measured(frame, "cost", "sampled_share"), settings(frame, "cost"), []
    for task, steps in measured(frame, "cost", "step").items():
        if not {"kl", "generation"} <= steps.keys():
            continue
        cell, kl = config[task], median(steps["kl"])
        predicted = 1 + cell["probability"] * median(steps["generation"]) / kl
        body.append(
            [
                "{batch} × ({prompt} + {response})".format(**cell),
                number(cell["probability"], 1),
                digits(kl),
                *(spread(ratios(steps, method)) for method in METHODS),
                digits(predicted),
                *(share(shares.get(task, {}).get(method)) for method in ("distillm_sampling", "gkd")),
            ]
        )
    header = [
        "batch × (prompt + response)",
        "GKD's probability",
        "KL [s]",
        *map(label, METHODS),
        "GKD, predicted",
        "DistiLLM sampled",
        "GKD sampled",
    ]
    note = (
        "An optimizer step's seconds over KL's: geometric mean over blocks that take turns, with its"
        " 95% interval. *DistiLLM* as it runs while its validation loss falls: threshold 0, no sampling."
        " *DistiLLM, sampling*: threshold 1, at which it samples afresh with a probability that falls from 1"
        " to 0 over training, and else replays. *Predicted*: 1 + (GKD's probability) · (seconds of drawing"
        " one batch of responses) / (KL's step). *Sampled*: the share of all steps, warm-up included, that"
        " drew responses."
    )
    return Table(header, body, note).markdown()


def share(values: Mapping[int, float] | None) -> str:
    return number(sum(values.values()) / len(values)) if values else MISSING


def label(method: str) -> str:
    return "DistiLLM, sampling" if method == "distillm_sampling" else name(method)


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """Each setting, on logarithms of seconds; the claims' "twice TAID's" and "ten times TAID's" among them."""
    found = []
    for task, steps in measured(frame, "cost", "step").items():
        logs = dict(mapped(steps, math.log))
        for factor, words in ((2, "twice TAID's"), (10, "ten times TAID's")):
            logs[words] = {i: x + math.log(factor) for i, x in logs.get("taid", {}).items()}
        found.append(Comparison("", Measure(task, ratio=True), logs, COST))
    return found
