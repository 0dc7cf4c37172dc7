"""Ablations: `results/ablations.md` and its figure."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import variants
from analysis.measures import MEASURES
from analysis.page import Comparison, Page
from analysis.questions import ablations
from analysis.rows import FIRST_PAIR, Scores, scores
from analysis.statistics import CONFIDENCE, difference
from analysis.style import name, pair_name
from analysis.tables import MISSING, Table, plural, value
from analysis.variants import FIGURE, JUDGED, measured, minus_taid

GROUPS = {
    "References": ("taid", "taid_no_adaptive", "kl", "sft"),
    "More than a warm-up?": (
        "kl_matched",
        "kl_matched_per_token",
        "taid_matched",
        "over_t",
        "kl_warmup_0.1",
        "kl_warmup_0.3",
        "taid_warmup_0.1",
    ),
    "Another divergence, another blend": ("reverse", "probability"),
    "Data beside the teacher": ("with_data_0.1", "with_data_0.3", "with_data_0.5"),
    "Top-k teacher logits": ("top_50_tail", "top_50", "top_5_tail", "top_5"),
    "α": ("alpha_0.25", "alpha_2", "alpha_4"),
    "Momentum": ("constant", "beta_0", "beta_0.9", "beta_0.999", "cross_entropy_signal", "replayed"),
    "Start and end of t": ("t_start_0", "t_start_0.2", "t_start_0.6", "t_start_0.8", "t_end_0.8"),
}


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {
        **{group: table(frame, methods).markdown() for group, methods in GROUPS.items()},
        "Another learning rate?": learning_rates(frame),
    }


def headline(frame: pd.DataFrame, scale: str) -> Table:
    return table(frame, GROUPS["References"])


def table(frame: pd.DataFrame, methods: tuple[str, ...]) -> Table:
    """Variant × measure: mean, and the difference to TAID with its mark."""
    count = compared(frame)
    return variants.table(
        frame, "ablations", methods, lambda found, method, digits: marked(found, method, digits, count)
    )


def preamble(frame: pd.DataFrame, scale: str) -> str:
    runs = frame[frame.experiment == "ablations"]
    rates = [runs[(runs.method == "sft") == own].learning_rate.unique() for own in (False, True)]
    rate, own = (", ".join(f"{rate:g}" for rate in found) or MISSING for found in rates)
    count = compared(frame)
    return (
        f"{pair_name(FIRST_PAIR)}, scale {scale}, {plural(frame.seed.nunique(), 'seed')}, on the test prompts; ±"
        " is half of the 95% t-interval over them. All variants of a seed start from one student and see one"
        f" stream of batches. Learning rate: {rate}, which Table 1 chose on validation for TAID,"
        f" for all but SFT ({own}, its own): none is tuned for a variant."
        " *− TAID*: the difference to TAID, paired by seed. ‡: its interval at"
        f" {corrected(count):.2%} leaves 0 out (Bonferroni, {plural(count, 'variant')});"
        " without the mark a single interval that does may be chance."
        f" {plural(len(ablations(0)) * len(JUDGED), 'verdict')} below, so that several would fall on a side by"
        " chance: one that matters should hold by all three measures. What the variants are:"
        " `taid/studies/variants.py`, `taid/studies/ablations.py`; why: `docs/adaptivity.md`.\n\n"
        f"![Differences to TAID](ablations.png)\n\n{FIGURE}"
    )


def learning_rates(frame: pd.DataFrame) -> str:
    """The validation score of the searched variants at each rate; empty without rows."""
    searched = frame[frame.experiment == "ablations_search"]
    rates = sorted(searched.learning_rate.unique())
    by_rate = [
        scores(searched[searched.learning_rate == rate], "ablations_search", "score").get(FIRST_PAIR, {})
        for rate in rates
    ]
    methods = dict.fromkeys(searched.method)
    body = [[name(method), *(value(found.get(method), 1) for found in by_rate)] for method in methods]
    note = (
        "Score on the validation prompts, seed 0, for variants whose gradients have another size than"
        " TAID's. Table 1 has the same search for TAID and KL. The tables above do not use it."
    )
    return Table(["variant", *(f"{rate:g}" for rate in rates)], body, note).markdown()


def marked(found: Scores, method: str, digits: int, count: int) -> str:
    """The difference to TAID, with ‡ where it survives the correction for `count` comparisons."""
    widened = difference(found, method, "taid", corrected(count)) if method != "taid" else None
    mark = " ‡" if widened and (widened.low > 0 or widened.high < 0) else ""
    return minus_taid(found, method, digits) + mark


def corrected(count: int) -> float:
    """Bonferroni's confidence for `count` looks."""
    return 1 - (1 - CONFIDENCE) / max(count, 1)


def compared(frame: pd.DataFrame) -> int:
    """Number of variants beside TAID."""
    return frame[frame.method != "taid"].method.nunique()


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    return [
        Comparison("", MEASURES[m], measured(frame, "ablations", m), ablations(MEASURES[m].same))
        for m in JUDGED
    ]


def draw(frame: pd.DataFrame) -> Figure:
    return variants.draw(frame, "ablations", GROUPS)


PAGE = Page(
    "ablations",
    "Ablations: TAID's parts, one by one",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"ablations": draw(frame)},
)
