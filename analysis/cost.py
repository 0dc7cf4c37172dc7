"""Seconds per training step beside KL's, and the paper's claim about them: a part of `results/speed.md`."""

import math
from collections.abc import Mapping

import pandas as pd

from analysis.claims import COST
from analysis.predicates import Claim, Verdict
from analysis.rows import Scores
from analysis.speed_rows import digits, measured, median, settings, spread
from analysis.statistics import Estimate, paired_interval
from analysis.style import name
from analysis.tables import MISSING, markdown, number

METHODS = ("taid", "distillm", "distillm_sampling", "gkd")


def ratios(steps: Scores, method: str) -> Estimate | None:
    """A method's step over KL's: geometric mean over blocks, side by side, with its interval."""
    if not {method, "kl"} <= steps.keys():
        return None
    logs = logarithms(steps)
    return exponential(paired_interval(logs[method], logs["kl"]))


def logarithms(steps: Scores) -> dict[str, dict[int, float]]:
    return {method: {i: math.log(x) for i, x in values.items()} for method, values in steps.items()}


def exponential(estimate: Estimate) -> Estimate:
    return Estimate(*map(math.exp, (estimate.mean, estimate.low, estimate.high)), estimate.n)


def table(frame: pd.DataFrame) -> str:
    """Condition × method: seconds of KL's step, and the others' as multiples of it."""
    shares, config, body = measured(frame, "cost", "sampled_share"), settings(frame, "cost"), []
    for task, steps in measured(frame, "cost", "step").items():
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
    if not body:
        return ""
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
        "\nAn optimizer step's seconds over KL's: geometric mean over blocks that take turns, with its"
        " 95% interval. *DistiLLM* as it runs while its validation loss falls: threshold 0, no sampling."
        " *DistiLLM, sampling*: threshold 1, at which it samples afresh with a probability that falls from 1"
        " to 0 over training, and else replays. *Predicted*: 1 + (GKD's probability) · (seconds of drawing"
        " one batch of responses) / (KL's step). *Sampled*: the share of all steps, warm-up included, that"
        " drew responses.\n"
    )
    return markdown(header, body) + note


def share(values: Mapping[int, float] | None) -> str:
    return number(sum(values.values()) / len(values)) if values else MISSING


def label(method: str) -> str:
    return "DistiLLM, sampling" if method == "distillm_sampling" else name(method)


def verdicts(frame: pd.DataFrame) -> list[tuple[str, Claim, Verdict]]:
    """Every claim under every condition, on logarithms of seconds."""
    found = []
    for task, steps in measured(frame, "cost", "step").items():
        logs = logarithms(steps)
        for factor, words in ((2, "twice TAID's"), (10, "ten times TAID's")):
            logs[words] = {i: x + math.log(factor) for i, x in logs.get("taid", {}).items()}
        found += [(task, claim, claim.predicate(logs)) for claim in COST]
    return found


def claims(frame: pd.DataFrame) -> str:
    """Claim × condition: verdict, and what was measured over what was claimed."""
    body = [
        [
            where,
            claim.statement,
            f"**{verdict.outcome}**",
            spread(exponential(verdict.estimate)) if verdict.estimate else MISSING,
        ]
        for where, claim, verdict in verdicts(frame)
    ]
    if not body:
        return ""
    note = (
        "\n*Supported*: the 95% interval, paired by block, lies wholly where the claim has it."
        " *Contradicted*: wholly elsewhere. Else *inconclusive*. The last column is the measured time over"
        " the claimed one; “about” allows a factor of √2.\n"
    )
    header = ["where", "claim (our reading of the paper)", "in our rows", "measured / claimed"]
    return markdown(header, body, text_columns=3) + note
