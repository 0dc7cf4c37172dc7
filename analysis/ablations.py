"""Ablations, rendered: `results/ablations.md` and the figure `results/ablations.png` beside it."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures
from analysis.claims import ablations
from analysis.predicates import CONFIDENCE, Claim, Verdict
from analysis.rows import Pair, Scores, scores
from analysis.statistics import Estimate, paired_interval
from analysis.style import COLOURS, name, pair_name
from analysis.tables import MISSING, document, interval, markdown, plural, provenance, value

TITLE = "Ablations: TAID's parts, one by one"
PAIR = Pair("phi-3-mini", "tinyllama")
GROUPS = {
    "References": ("taid", "taid_no_adaptive", "kl", "sft"),
    "More than a warm-up?": (
        "kl_matched",
        "kl_matched_per_token",
        "taid_matched",
        "over_t",
        "kl_warmup_0.1",
        "kl_warmup_0.3",
    ),
    "Another divergence, another blend": ("reverse", "probability"),
    "Data beside the teacher": ("with_data_0.1", "with_data_0.3", "with_data_0.5"),
    "Top-k teacher logits": ("top_50_tail", "top_50", "top_5_tail", "top_5"),
    "α": ("alpha_0.25", "alpha_2", "alpha_4"),
    "Momentum": ("constant", "beta_0", "beta_0.9", "beta_0.999", "cross_entropy_signal", "replayed"),
    "Start and end of t": ("t_start_0", "t_start_0.2", "t_start_0.6", "t_start_0.8", "t_end_0.8"),
}
METRICS = {  # metric → title, decimals, sign of better, what counts as equal
    "score": ("score ↑ [points of 10]", 2, 1, 0.2),
    "held_out_loss": ("held-out loss ↓ [nats/token]", 3, -1, 0.02),
    "kl_to_teacher": ("KL to the teacher ↓ [nats/token]", 3, -1, 0.02),
}


def write(frame: pd.DataFrame, folder: Path, scale: str) -> None:
    """Render the rows of one scale to `folder`/ablations.md and `folder`/ablations.png."""
    (folder / "ablations.md").write_text(render(frame, scale), encoding="utf-8")
    draw(frame).savefig(folder / "ablations.png", metadata={"Software": None})


def render(frame: pd.DataFrame, scale: str) -> str:
    """The whole document, from the rows of one scale. Equal rows give equal text."""
    sections = {group: table(frame, methods) for group, methods in GROUPS.items()}
    sections |= {
        "Another learning rate?": learning_rates(frame),
        "Claims": claims(frame),
        "Provenance": provenance(frame),
    }
    return document(TITLE, scale, preamble(frame, scale), sections)


def preamble(frame: pd.DataFrame, scale: str) -> str:
    runs = frame[frame.experiment == "ablations"]
    rates = [runs[(runs.method == "sft") == own].learning_rate.unique() for own in (False, True)]
    rate, own = (", ".join(f"{rate:g}" for rate in found) or MISSING for found in rates)
    count = compared(frame)
    return (
        f"{pair_name(PAIR)}, scale {scale}, {plural(frame.seed.nunique(), 'seed')}, on the test prompts; ±"
        " is half of the 95% t-interval over them. All variants of a seed start from one student and see one"
        f" stream of batches. Learning rate: {rate}, which Table 1 chose on validation for TAID,"
        f" for all but SFT ({own}, its own): none is tuned for a variant."
        " *− TAID*: the difference to TAID, paired by seed. ‡: its interval at"
        f" {1 - (1 - CONFIDENCE) / max(count, 1):.2%} leaves 0 out (Bonferroni, {plural(count, 'variant')});"
        " without the mark a single interval that does may be chance. What the variants are:"
        " `taid/studies/variants.py`, `taid/studies/ablations.py`; why: `docs/adaptivity.md`.\n\n"
        "![Differences to TAID](ablations.png)\n\n"
        "*Figure*: difference to TAID, paired by seed, with 95% intervals; right of 0 is better in every"
        " panel.\n"
    )


def table(frame: pd.DataFrame, methods: Iterable[str]) -> str:
    """Variant × metric: mean, and the difference to TAID."""
    seeds, body = frame.seed.nunique(), []
    by_metric = {metric: ours(frame, metric) for metric in METRICS}
    header = ["variant"]
    for title, *_ in METRICS.values():
        header += [title, "− TAID"]
    for method in methods:
        line = [name(method)]
        for metric, (_, digits, *_) in METRICS.items():
            found = by_metric[metric]
            line += [value(found.get(method), seeds, digits), marked(found, method, digits, compared(frame))]
        body.append(line)
    return markdown(header, body)


def learning_rates(frame: pd.DataFrame) -> str:
    """The validation score of the searched variants at each rate; empty without rows."""
    searched = frame[frame.experiment == "ablations_search"]
    rates = sorted(searched.learning_rate.unique())
    by_rate = [
        scores(searched[searched.learning_rate == rate], "ablations_search", "score").get(PAIR, {})
        for rate in rates
    ]
    methods = dict.fromkeys(searched.method)
    body = [[name(method), *(value(found.get(method), 1) for found in by_rate)] for method in methods]
    note = (
        "\nScore on the validation prompts, seed 0, for variants whose gradients have another size than"
        " TAID's. Table 1 has the same search for TAID and KL. The tables above do not use it.\n"
    )
    return markdown(["variant", *(f"{rate:g}" for rate in rates)], body) + note if rates else ""


def marked(found: Scores, method: str, digits: int, count: int) -> str:
    """The difference to TAID, with ‡ where it survives the correction for `count` comparisons."""
    estimate = difference(found, method)
    if estimate is None:
        return MISSING
    widened = difference(found, method, 1 - (1 - CONFIDENCE) / max(count, 1))
    return interval(estimate, digits) + (" ‡" if widened.low > 0 or widened.high < 0 else "")


def difference(found: Scores, method: str, confidence: float = CONFIDENCE) -> Estimate | None:
    """`method` − TAID over the seeds that both have; None for TAID itself, or without such a seed."""
    if method == "taid" or not found.get(method, {}).keys() & found.get("taid", {}).keys():
        return None
    return paired_interval(found[method], found["taid"], confidence)


def compared(frame: pd.DataFrame) -> int:
    """Number of variants beside TAID."""
    return frame[frame.method != "taid"].method.nunique()


def verdicts(frame: pd.DataFrame) -> list[tuple[Claim, dict[str, Verdict]]]:
    """Every claim with its verdict by each metric, oriented so that higher is better."""
    by_metric = {
        metric: [(claim, claim.predicate(oriented(ours(frame, metric), sign))) for claim in ablations(margin)]
        for metric, (_, _, sign, margin) in METRICS.items()
    }
    return [
        (line[0][0], {metric: verdict for metric, (_, verdict) in zip(METRICS, line, strict=True)})
        for line in zip(*by_metric.values(), strict=True)
    ]


def claims(frame: pd.DataFrame) -> str:
    """A line per claim, a column per metric; and the rule."""
    body = [
        [
            claim.statement,
            *(f"**{v.outcome}** {interval(v.estimate, METRICS[m][1])}" for m, v in by_metric.items()),
        ]
        for claim, by_metric in verdicts(frame)
    ]
    margins = ", ".join(f"{title.split()[0]} {margin:g}" for title, _, _, margin in METRICS.values())
    rule = (
        "\nIn brackets the 95% interval of first − second, paired by seed, turned so that more is better."
        " *Better*: supported above 0, contradicted below. *The same*: the interval lies within a margin"
        f" ({margins}). *Best*: above every rival; contradicted if one is better, Bonferroni-corrected over"
        f" rivals. {plural(len(body) * len(METRICS), 'verdict')}, so that several would fall on a side by"
        " chance: one that matters should hold by all three measures. One seed settles nothing.\n"
    )
    header = ["claim", *(title.split(" [")[0] for title, *_ in METRICS.values())]
    return markdown(header, body, text_columns=len(header)) + rule


def oriented(found: Scores, sign: int) -> Scores:
    """Higher is better."""
    return {method: {seed: sign * x for seed, x in values.items()} for method, values in found.items()}


def draw(frame: pd.DataFrame) -> Figure:
    """Differences to TAID, a panel per metric."""
    methods = [method for group in GROUPS.values() for method in group if method != "taid"]
    present = [method for method in methods if method in ours(frame, "score")]
    figure = Figure(figsize=(12, 1.4 + 0.24 * len(present)), dpi=110, layout="constrained")
    differences(figure, {metric: ours(frame, metric) for metric in METRICS}, present)
    return figure


def differences(figure: Figure, found: dict[str, Scores], methods: list[str]) -> None:
    """A panel per metric: each method's difference to TAID, turned so that better is to the right."""
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for ax, (metric, (title, _, sign, _)) in zip(axes, METRICS.items(), strict=True):
        better = oriented(found[metric], sign)
        estimates = {method: difference(better, method) for method in methods}
        known = {method: estimate for method, estimate in estimates.items() if estimate}
        figures.dots(ax, known, methods, COLOURS)
        ax.axvline(0, color=COLOURS["taid"], linewidth=1)
        ax.set_xlabel(f"{'' if sign > 0 else 'less '}{title.replace('↑ ', '').replace('↓ ', '')}", fontsize=9)
        ax.locator_params(axis="x", nbins=5)


def ours(frame: pd.DataFrame, metric: str) -> Scores:
    return scores(frame, "ablations", metric).get(PAIR, {})
