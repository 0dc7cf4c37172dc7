"""Table 6 and its map, rendered: `results/table6.md`, with the figures `table6.png` and `table6_map.png`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from analysis import reference
from analysis.claims import FLAT, TABLE6, TABLE6_BY_TEACHER, Claim, Verdict, holds_in_paper
from analysis.rows import Pair, Scores, scores
from analysis.statistics import Estimate, mean_interval
from analysis.style import COLOURS, name
from analysis.tables import MISSING, claims_table, document, markdown, number, plural, provenance, value
from analysis.theory_figures import plain

TITLE = "Table 6: the capacity gap"
STUDENT, NONE = "pythia-70m", "none"
SIZES = {"pythia-410m": 0.41, "pythia-1b": 1.0, "pythia-2.8b": 2.8, "pythia-6.9b": 6.9}  # 10⁹ parameters
DECADES = {teacher: math.log10(size) for teacher, size in SIZES.items()}
METHODS = ("taid", "skew_kl", "kl", "rkl", "gjs")
METRICS = {  # metric → (title with its unit, decimals, +1 where higher is better)
    "last_word_accuracy": ("Last-word accuracy [percent]", 2, 1),
    "last_word_log_likelihood": ("Last-word log-likelihood [nats/word]", 3, 1),
    "held_out_loss": ("Held-out loss [nats/token]", 3, -1),
    "kl_to_teacher": ("KL to its teacher [nats/token]", 3, -1),
}
JUDGED = ("last_word_accuracy", "last_word_log_likelihood", "held_out_loss")
BY_TEACHER = Mapping[str, Scores]  # teacher → method → seed → value


def write(frame: pd.DataFrame, folder: Path, scale: str) -> None:
    """Render the rows of one scale to `folder`: table6.md, table6.png and, with a map, table6_map.png."""
    (folder / "table6.md").write_text(render(frame, scale), encoding="utf-8")
    draw(frame, scale).savefig(folder / "table6.png", metadata={"Software": None})
    if variants(frame):
        draw_map(frame).savefig(folder / "table6_map.png", metadata={"Software": None})


def render(frame: pd.DataFrame, scale: str) -> str:
    """The whole document, from the rows of one scale. Equal rows give equal text."""
    sections = {
        "Scores": score_table(frame, scale),
        "Claims": claims(frame),
        "Trends": trends(frame),
        "Check: teachers get better with size": teachers_check(frame),
        **{title: by_teacher_table(frame, metric) for metric, (title, *_) in METRICS.items()},
        "The map: where does the gap start?": map_table(frame),
        "Learning rates": rates_table(frame),
        "Provenance": provenance(frame),
    }
    return document(TITLE, scale, preamble(frame, scale), sections)


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        "*Paper*: Pythia 70M distilled from Pythia 410M to 6.9B, LAMBADA accuracy (our reading)."
        f" *Ours ({scale})*: the same architecture and ratios at 1/3,000 of the parameters, on prose;"
        " accuracy is that of whole last words of sentences from held-out documents. Compare trends, not"
        " numbers."
        f" {plural(seeds(frame), 'seed')}; ± is half of the 95% t-interval over them. A dash means no rows."
        " What the scale model is: `docs/capacity.md`.\n\n"
        "![Scores against teacher size](table6.png)\n\n"
        "*Figure*: means over seeds with 95% intervals against the teacher's size. The axis of the loss"
        " points down, so that up is better. Dashed: SFT, no teacher; dotted: before distillation. Seeds move"
        " whole curves; whether they agree on a trend is in the table of trends.\n"
    )


def score_table(frame: pd.DataFrame, scale: str) -> str:
    """Method × teacher: the paper's score | ours."""
    paper, ours = reference.table6(), by_teacher(frame, "last_word_accuracy")

    def cell(method: str, teacher: str) -> str:
        theirs = paper.get(method, {}).get(teacher)
        own = value(ours[teacher].get(method), seeds(frame))
        return f"{MISSING if theirs is None else number(theirs)} \\| {own}"

    body = [[name(m), *(cell(m, teacher) for teacher in SIZES)] for m in METHODS]
    note = reference_notes(frame, "last_word_accuracy")
    return markdown(["paper \\| ours", *map(name, SIZES)], body) + note


def by_teacher_table(frame: pd.DataFrame, metric: str) -> str:
    """Method × teacher, mean and interval over seeds, the teachers' own last."""
    ours, digits = by_teacher(frame, metric), METRICS[metric][1]
    count = {"teacher": 1}  # one of each size, for all seeds
    body = [
        [name(m), *(value(ours[t].get(m), count.get(m, seeds(frame)), digits) for t in SIZES)]
        for m in (*METHODS, "teacher")
        if any(m in scores for scores in ours.values())
    ]
    return markdown(["", *map(name, SIZES)], body) + reference_notes(frame, metric) if body else ""


def reference_notes(frame: pd.DataFrame, metric: str) -> str:
    """A line with what needs no teacher, as far as it has rows."""
    digits, alone = METRICS[metric][1], without_teacher(frame, metric)
    notes = [f"{name(m)} {value(alone[m], seeds(frame), digits)}" for m in ("sft", "untrained") if m in alone]
    if metric == "last_word_accuracy" and (chance := without_teacher(frame, "last_word_chance")):
        share = next(iter(chance["untrained"].values()))  # of the items, and so the same for all seeds
        notes.append(f"always the most frequent word {number(share, digits)}")
    return f"\nWithout a teacher: {'; '.join(notes)}.\n" if notes else ""


def teachers_check(frame: pd.DataFrame) -> str:
    """The teachers' own scores, and whether each metric gets strictly better from size to size."""
    body = []
    for metric in (*JUDGED, "entropy"):
        title, digits, sign = METRICS.get(metric, ("Entropy [nats/token]", 3, 0))
        own = [by_teacher(frame, metric)[teacher].get("teacher", {}).get(0) for teacher in SIZES]
        cells = [MISSING if v is None else number(v, digits) for v in own]
        body.append([title, *cells, strictly_better(own, sign) if sign else ""])
    return markdown(["teacher's own", *map(name, SIZES), "strictly better"], body)


def strictly_better(values: Sequence[float | None], sign: int) -> str:
    """ "yes" or "NO"; a dash while one is missing."""
    if any(v is None for v in values):
        return MISSING
    return "yes" if all(sign * (b - a) > 0 for a, b in zip(values, values[1:])) else "NO"


def slopes(ours: BY_TEACHER, sign: int = 1) -> Scores:
    """Method → seed → least-squares slope over log₁₀ of the teacher's size, for seeds that have all teachers.

    Per tenfold teacher; times `sign`, so that positive means better with the teacher.
    """
    x = np.array([DECADES[teacher] for teacher in SIZES])
    found: dict[str, dict[int, float]] = {}
    for method in METHODS:
        by_seed = [ours[teacher].get(method, {}) for teacher in SIZES]
        for seed in sorted(set.intersection(*map(set, by_seed))):
            y = np.array([values[seed] for values in by_seed])
            found.setdefault(method, {})[seed] = sign * float(np.polyfit(x, y, 1)[0])
    return found


def page(ours: BY_TEACHER, method: str, sign: int) -> tuple[float, float] | None:
    """p-values of Page's exact trend test that scores rise with the teacher, and that they fall; None below
    two seeds. Its rows are seeds, so it asks whether they agree on an order (Page 1963).
    """
    by_seed = [ours[teacher].get(method, {}) for teacher in SIZES]
    common = sorted(set.intersection(*map(set, by_seed)))
    if len(common) < 2:
        return None
    data = sign * np.array([[values[seed] for values in by_seed] for seed in common])
    up, down = (stats.page_trend_test(s * data, method="exact").pvalue for s in (1, -1))
    return float(up), float(down)


def trends(frame: pd.DataFrame) -> str:
    """Per metric and method: slope with its interval, Page's test both ways; the paper's slope beside."""
    paper, body = paper_slopes(), []
    for metric in JUDGED:
        title, digits, sign = METRICS[metric]
        ours = by_teacher(frame, metric)
        for method, values in slopes(ours, sign).items():
            tests = page(ours, method, sign)
            theirs = number(paper[method]) if metric == JUDGED[0] and method in paper else MISSING
            p = [MISSING, MISSING] if tests is None else [number(t, 3) for t in tests]
            body.append([title, name(method), theirs, value(values, seeds(frame), digits), *p])
    note = (
        "\nSlopes per tenfold teacher, positive where a larger one is better; a least-squares line for each"
        " seed, then mean ± half of the 95% t-interval. Page's test: p that the seeds' order of teachers is"
        " chance, against rising and against falling.\n"
    )
    header = ["metric", "method", "paper", "ours", "Page: rises, p", "Page: falls, p"]
    return markdown(header, body, text_columns=2) + note if body else ""


def paper_slopes() -> dict[str, float]:
    """The paper's slopes, by the same formula."""
    by_method = reference.table6()
    nested = {teacher: {m: {0: by[teacher]} for m, by in by_method.items()} for teacher in SIZES}
    return {method: values[0] for method, values in slopes(nested).items()}


def verdicts(frame: pd.DataFrame) -> Iterable[tuple[str, Claim, bool, Verdict]]:
    """The claims about trends, then about each teacher, on every judged metric that has rows."""
    paper, paper_trends = reference.table6(), paper_slopes() | {FLAT: 0.0}
    for metric in JUDGED:
        title, _, sign = METRICS[metric]
        ours = by_teacher(frame, metric)
        if trend := slopes(ours, sign):
            every = {seed for values in trend.values() for seed in values}
            flat = {FLAT: dict.fromkeys(every, 0.0)}
            for claim in TABLE6:
                yield title, claim, holds_in_paper(claim, paper_trends), claim.predicate(trend | flat)
        for teacher in SIZES:
            oriented = {m: {s: sign * v for s, v in by.items()} for m, by in ours[teacher].items()}
            if any(method in oriented for method in METHODS):
                theirs = {method: by[teacher] for method, by in paper.items()}
                for claim in TABLE6_BY_TEACHER:
                    where = f"{title}, {name(teacher)}"
                    yield where, claim, holds_in_paper(claim, theirs), claim.predicate(oriented)


def claims(frame: pd.DataFrame) -> str:
    """All verdicts and the rule behind them; empty without rows."""
    rule = (
        "\nOriented so that higher is better; differences of slopes are per tenfold teacher, paired by seed."
        " *Supported*: the 95% interval lies wholly above 0. *Contradicted*: wholly below. Else"
        " *inconclusive*.\n"
    )
    judged = list(verdicts(frame))
    return claims_table(judged, digits=3) + rule if judged else ""


def gaps(frame: pd.DataFrame, metric: str) -> dict[str, Scores]:
    """Variant → method → seed → what the largest teacher gains over the smallest, positive is better.

    The variant "base" is Table 6 itself, on the seeds of all its rows.
    """
    sign, (small, *_, large) = METRICS[metric][2], SIZES
    found: dict[str, Scores] = {}
    for variant in ("base", *variants(frame)):
        ours = by_teacher(frame, metric, variant)
        both = {
            method: {seed: sign * (high[seed] - low[seed]) for seed in sorted(low.keys() & high.keys())}
            for method in METHODS
            if (low := ours[small].get(method, {})) and (high := ours[large].get(method, {}))
        }
        found[variant] = {method: values for method, values in both.items() if values}
    return found


def map_table(frame: pd.DataFrame) -> str:
    """Variant × method: the gain from the smallest to the largest teacher, on each judged metric."""
    if not variants(frame):
        return ""
    drawn = [m for m in METHODS if any(m in by for v, by in gaps(frame, JUDGED[0]).items() if v != "base")]
    parts = []
    for metric in JUDGED:
        title, digits, _ = METRICS[metric]
        body = [
            [label(variant), *(spread(by.get(m), digits) for m in drawn)]
            for variant, by in gaps(frame, metric).items()
        ]
        parts.append(f"**{title}**\n\n" + markdown(["changed", *map(name, drawn)], body))
    note = (
        "![Map](table6_map.png)\n\nWhat a student gains (negative: loses) when its teacher grows from the"
        " smallest to the largest, one thing changed at a time from Table 6 (*base*); mean [95% interval] and"
        " seeds. Learning rates are Table 6's. τ divides the teacher's logits: below 1 it is more peaked,"
        " above 1 flatter.\n\n"
    )
    return note + "\n".join(parts) + peakedness(frame)


def label(variant: str) -> str:
    return f"student {name(variant)}" if variant.startswith("pythia") else variant


def spread(values: Mapping[int, float] | None, digits: int) -> str:
    """ "−0.012 [−0.020, −0.004], 3 seeds" """
    if not values:
        return MISSING
    e = mean_interval(list(values.values()))
    bounds = f" [{number(e.low, digits)}, {number(e.high, digits)}]" if e.n > 1 else ""
    return f"{number(e.mean, digits)}{bounds}, {plural(e.n, 'seed')}"


def peakedness(frame: pd.DataFrame) -> str:
    """Mean entropy of smallest and largest teacher at each temperature [nats/token]."""
    small, *_, large = SIZES
    body = []
    for variant in ("base", *variants(frame)):
        ours = by_teacher(frame, "entropy", variant)
        own = [ours[teacher].get("teacher", {}).get(0) for teacher in (small, large)]
        if None not in own:
            body.append(["τ = 1" if variant == "base" else variant, *(number(v, 3) for v in own)])
    table = markdown(["teacher's entropy [nats/token]", name(small), name(large)], body)
    return f"\n**Peakedness**\n\n{table}" if body else ""


def rates_table(frame: pd.DataFrame) -> str:
    """The chosen rate of each method and teacher; in bold at the edge of the grid."""
    students = frame[(frame.experiment == "table6") & (frame.metric == "held_out_loss")]
    chosen = {(r.method, r.teacher): r.learning_rate for r in students.itertuples() if r.learning_rate > 0}
    grid = sorted(frame[frame.experiment == "table6_search"].learning_rate.unique())
    if not chosen or not grid:
        return ""

    def cell(rate: float | None) -> str:
        if rate is None:
            return MISSING
        return f"**{rate:g}**" if rate in (grid[0], grid[-1]) else f"{rate:g}"

    body = [[name(m), *(cell(chosen.get((m, t))) for t in SIZES)] for m in METHODS]
    sft = chosen.get(("sft", NONE))
    return (
        f"Grid {', '.join(f'{rate:g}' for rate in grid)}, the same for all; chosen by held-out loss on"
        " validation, seed 0. Bold: an edge of the grid.\n\n"
        + markdown(["", *map(name, SIZES)], body)
        + (f"\nSFT: {cell(sft)}.\n" if sft else "")
    )


def draw(frame: pd.DataFrame, scale: str) -> Figure:
    """The paper's scores, then ours on each judged metric, against the teacher's size."""
    figure = Figure(figsize=(13, 4), dpi=110, layout="constrained")
    first, *others = figure.subplots(1, 1 + len(JUDGED))
    for method, by in reference.table6().items():
        curve(first, method, {t: mean_interval([score]) for t, score in by.items()}, hollow=True)
    sizes_axis(first, "paper: LAMBADA accuracy [percent]")
    for ax, metric in zip(others, JUDGED, strict=True):
        ours, alone = by_teacher(frame, metric), without_teacher(frame, metric)
        for method in METHODS:
            curve(ax, method, {t: estimate(ours[t][method]) for t in SIZES if method in ours[t]})
        for method, form in (("sft", "--"), ("untrained", ":")):
            if method in alone:
                level = estimate(alone[method]).mean
                ax.axhline(level, color=COLOURS[method], linestyle=form, linewidth=1.2, label=name(method))
        title, _, sign = METRICS[metric]
        sizes_axis(ax, f"ours ({scale}): {title[0].lower()}{title[1:]}")
        if sign < 0:
            ax.invert_yaxis()  # up is better
    return legend(figure)


def curve(ax: Axes, method: str, estimates: Mapping[str, Estimate], hollow: bool = False) -> None:
    """One method over the teachers that it has, with a band for its intervals."""
    x, colour = [SIZES[teacher] for teacher in estimates], COLOURS[method]
    if not x:
        return
    means = [e.mean for e in estimates.values()]
    look = dict(color=colour, markerfacecolor="white" if hollow else colour, markersize=5, linewidth=1.8)
    ax.plot(x, means, "o-", label=name(method), **look)
    if all(e.n > 1 for e in estimates.values()):
        ends = [e.low for e in estimates.values()], [e.high for e in estimates.values()]
        ax.fill_between(x, *ends, color=colour, alpha=0.13, linewidth=0)


def sizes_axis(ax: Axes, title: str) -> Axes:
    ax.set_xscale("log")
    ax.set_xticks(list(SIZES.values()), [teacher.removeprefix("pythia-").upper() for teacher in SIZES])
    ax.minorticks_off()
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("teacher")
    return plain(ax)


def draw_map(frame: pd.DataFrame) -> Figure:
    """Per metric: for each variant and method the gain from the smallest to the largest teacher."""
    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    for ax, metric in zip(figure.subplots(1, len(JUDGED), sharey=True), JUDGED, strict=True):
        found = gaps(frame, metric)
        drawn = [m for m in METHODS if any(m in by for v, by in found.items() if v != "base")]
        for height, by in enumerate(found.values()):
            for offset, method in enumerate(drawn):
                if method in by:
                    point(ax, height + 0.22 * (offset - (len(drawn) - 1) / 2), estimate(by[method]), method)
        ax.axvline(0, color="#555555", linewidth=1)
        ax.set_yticks(range(len(found)), [label(variant) for variant in found])
        ax.set_ylim(len(found) - 0.5, -0.5)
        ax.set_title(f"gain: {METRICS[metric][0]}", fontsize=9)
        ax.set_xlabel("← worse   with the largest teacher   better →", fontsize=8)
        plain(ax)
    return legend(figure)


def legend(figure: Figure) -> Figure:
    """One for all axes, each label once."""
    handles: dict = {}
    for ax in figure.axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    columns = max(len(handles), 1)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def point(ax: Axes, height: float, e: Estimate, method: str) -> None:
    if e.n > 1:
        ax.plot([e.low, e.high], [height, height], color=COLOURS[method], linewidth=2.2, alpha=0.5)
    ax.plot(e.mean, height, "o", color=COLOURS[method], markersize=5.5, label=name(method))


def estimate(values: Mapping[int, float]) -> Estimate:
    return mean_interval(list(values.values()))


def by_teacher(frame: pd.DataFrame, metric: str, variant: str = "base") -> BY_TEACHER:
    """Teacher → method → seed → value, of Table 6 or of a variant of the map; every teacher has an entry."""
    experiment = "table6" if variant == "base" else "table6_map"
    student = variant if variant.startswith("pythia") else STUDENT
    found = scores(frame, experiment, metric, variant)
    # a teacher does not change with the student, so its rows carry the base student
    return {teacher: found.get(Pair(teacher, student), {}) for teacher in SIZES}


def without_teacher(frame: pd.DataFrame, metric: str) -> Scores:
    return scores(frame, "table6", metric, "base").get(Pair(NONE, STUDENT), {})


def variants(frame: pd.DataFrame) -> list[str]:
    """The tasks of the map, in the order of their first rows."""
    return list(dict.fromkeys(frame.task[(frame.experiment == "table6_map") & frame.method.isin(METHODS)]))


def seeds(frame: pd.DataFrame) -> int:
    """Number of seeds with students in Table 6."""
    return frame.seed[(frame.experiment == "table6") & frame.method.isin(METHODS)].nunique()
