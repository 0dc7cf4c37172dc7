"""What the pages of Table 6's two protocols share: all but their words of themselves."""

import itertools
from collections.abc import Sequence
from statistics import fmean

import pandas as pd
from matplotlib.figure import Figure

from analysis import reference
from analysis.claims import FLAT, HALF_OF_SKEW, TABLE6, TABLE6_BY_TEACHER
from analysis.measures import MEASURES, Measure
from analysis.page import Comparison
from analysis.rows import mapped, seeds
from analysis.statistics import difference, estimates
from analysis.style import name
from analysis.table6_figures import draw, draw_map
from analysis.table6_rows import (
    JUDGED,
    METHODS,
    METRICS,
    NONE,
    SIZES,
    by_teacher,
    experiment,
    gaps,
    label,
    page_test,
    slopes,
    variants,
    without_teacher,
)
from analysis.tables import MISSING, Table, counted, interval, number, plural, value, versus

SLOPES = {
    metric: Measure(MEASURES[metric].title, f"{MEASURES[metric].unit} per tenfold teacher", 3)
    for metric in JUDGED
}


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {
        "Scores": headline(frame, scale).markdown()
        + reference_notes(frame, "last_word_accuracy")
        + beside_kl(frame),
        "Trends": trends(frame),
        "Check: teachers get better with size": teachers_check(frame),
        **{MEASURES[metric].heading: by_teacher_table(frame, metric) for metric in METRICS},
        "The map: where does the gap start?": map_table(frame),
        "Learning rates": rates_table(frame),
    }


def preamble(frame: pd.DataFrame, scale: str, own: str) -> str:
    """`own` is what the protocol has to say of itself."""
    (alone, error), stem = reference.PYTHIA_70M, experiment(frame)
    return (
        "*Paper*: Pythia 70M distilled from Pythia 410M to 6.9B, LAMBADA accuracy (our reading)."
        f" *Ours ({scale})*: the same architecture and ratios at 1/3,000 of the parameters, on prose;"
        " accuracy is that of whole last words of sentences from held-out documents. Compare trends, not"
        " numbers. The held-out loss is a mean over tokens."
        f" {plural(seeds(frame, experiment(frame)), 'seed')}; ± is half of the 95% t-interval over them. A dash means no"
        f" rows. {own} What the scale model is: `docs/capacity.md`.\n\n"
        f"![Scores against teacher size]({stem}.png)\n\n"
        "*Figure*: means over seeds with 95% intervals against the teacher's size. The axis of the loss"
        " points down, so that up is better. In our panels: dashed SFT, no teacher; dotted before distillation."
        f" In the paper's: the released Pythia 70M, not distilled ({alone} ± {error}, a standard error; from"
        " lm-eval's lambada_openai, not from the paper). Seeds move whole curves; whether they agree on a trend"
        " is in the table of trends.\n"
    )


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Method × teacher: the paper's score | ours; TAID − KL last."""
    paper, ours = reference.table6(), by_teacher(frame, "last_word_accuracy")

    def cell(method: str, teacher: str) -> str:
        theirs = paper.get(method, {}).get(teacher)
        own = value(ours[teacher].get(method), seeds(frame, experiment(frame)))
        return f"{MISSING if theirs is None else number(theirs)} \\| {own}"

    body = [[name(m), *(cell(m, teacher) for teacher in SIZES)] for m in METHODS]
    label, *gaps = versus(*((ours[teacher], 2) for teacher in SIZES))
    body.append([label, *(f"{MISSING} \\| {gap}" for gap in gaps)])
    return Table(["accuracy [percent]: paper \\| ours", *map(name, SIZES)], body)


def beside_kl(frame: pd.DataFrame) -> str:
    """TAID − KL over the teachers by the primary measure, in a sentence."""
    measure, ours = MEASURES[JUDGED[0]], by_teacher(frame, JUDGED[0])
    found = [e for t in SIZES if (e := difference(ours[t], "taid", "kl")) and e.n > 1]
    trend = difference(slopes(ours, measure.sign), "taid", "kl")
    if not found or not trend:
        return ""
    ends = (number(edge, 3) for edge in (max(e.mean for e in found), min(e.mean for e in found)))
    below, above = sum(e.high < 0 for e in found), sum(e.low > 0 for e in found)
    return (
        f"\nBy {measure.title} TAID − KL lies between {' and '.join(ends)} {measure.unit}: its interval is below"
        f" 0 with {below} of {len(found)} teachers, above 0 with {above}; per tenfold teacher it changes by"
        f" {interval(trend, 3)}.\n"
    )


def by_teacher_table(frame: pd.DataFrame, metric: str) -> str:
    """Method × teacher, mean and interval over seeds, the teachers' own, TAID − KL last."""
    ours, digits = by_teacher(frame, metric), MEASURES[metric].digits
    count = {"teacher": max((len(by.get("teacher", {})) for by in ours.values()), default=1)}  # of each size
    body = [
        [
            name(m),
            *(value(ours[t].get(m), count.get(m, seeds(frame, experiment(frame))), digits) for t in SIZES),
        ]
        for m in (*METHODS, "teacher")
        if any(m in scores for scores in ours.values())
    ]
    gap = versus(*((ours[teacher], digits) for teacher in SIZES))
    table = Table(["", *map(name, SIZES)], [*body, gap] if body else []).markdown()
    return table + reference_notes(frame, metric) if table else ""


def reference_notes(frame: pd.DataFrame, metric: str) -> str:
    """A line with what needs no teacher, as far as it has rows."""
    digits, alone = MEASURES[metric].digits, without_teacher(frame, metric)
    count = seeds(frame, experiment(frame))
    notes = [f"{name(m)} {value(alone[m], count, digits)}" for m in ("sft", "untrained") if m in alone]
    if metric == "last_word_accuracy" and (chance := without_teacher(frame, "last_word_chance")):
        share = next(iter(chance["untrained"].values()))  # of the items, and so the same for all seeds
        notes.append(f"always the most frequent word {number(share, digits)}")
    return f"\nWithout a teacher: {'; '.join(notes)}.\n" if notes else ""


def teachers_check(frame: pd.DataFrame) -> str:
    """The teachers' own scores, and whether each metric gets strictly better from size to size, in every draw."""
    body = []
    for metric in (*JUDGED, "entropy"):
        measure = MEASURES[metric]
        own = [by_teacher(frame, metric)[teacher].get("teacher", {}) for teacher in SIZES]
        cells = [number(fmean(by.values()), measure.digits) if by else MISSING for by in own]
        of_draws = [[by.get(draw) for by in own] for draw in sorted(set().union(*own))]
        said = {strictly_better(each, measure.sign) for each in of_draws} if measure.sign else {""}
        body.append(
            [measure.heading, *cells, said.pop() if len(said) == 1 else "NO" if "NO" in said else MISSING]
        )
    measured = any("teacher" in ours for ours in by_teacher(frame, JUDGED[0]).values())
    return Table(["teacher's own", *map(name, SIZES), "strictly better"], body if measured else []).markdown()


def strictly_better(values: Sequence[float | None], sign: int) -> str:
    """ "yes" or "NO"; a dash while one is missing."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return MISSING
    return "yes" if all(sign * (b - a) > 0 for a, b in itertools.pairwise(known)) else "NO"


def trends(frame: pd.DataFrame) -> str:
    """Per metric and method: slope with its interval, Page's test both ways; the paper's slope beside."""
    paper, count, body = paper_slopes(), seeds(frame, experiment(frame)), []
    for metric, measure in SLOPES.items():
        ours, sign = by_teacher(frame, metric), MEASURES[metric].sign
        found = slopes(ours, sign)
        for method, values in found.items():
            tests = page_test(ours, method, sign)
            theirs = number(paper[method]) if metric == "last_word_accuracy" and method in paper else MISSING
            p = [MISSING, MISSING] if tests is None else [number(t, 3) for t in tests]
            body.append([measure.title, name(method), theirs, value(values, count, measure.digits), *p])
        if found:
            label, gap = versus((found, measure.digits))
            body.append([measure.title, label, MISSING, gap, "", ""])
    note = (
        "Slopes per tenfold teacher, positive where a larger one is better; a least-squares line for each"
        " seed, then mean ± half of the 95% t-interval. Page's test: p that the seeds' order of teachers is"
        " chance, against rising and against falling."
    )
    header = ["metric", "method", "paper", "ours", "Page: rises, p", "Page: falls, p"]
    return Table(header, body, note, text_columns=2).markdown()


def paper_slopes() -> dict[str, float]:
    """The paper's slopes, by the same formula."""
    by_method = reference.table6()
    nested = {teacher: {m: {0: by[teacher]} for m, by in by_method.items()} for teacher in SIZES}
    return {method: values[0] for method, values in slopes(nested).items()}


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """The trends, then the scores with each teacher, on every judged metric that has rows."""
    theirs, paper_trend = reference.table6(), {**paper_slopes(), FLAT: 0.0}
    found = []
    for metric, measure in SLOPES.items():
        if trend := slopes(by_teacher(frame, metric), MEASURES[metric].sign):
            flat = dict.fromkeys({seed for values in trend.values() for seed in values}, 0.0)
            half = mapped(trend, lambda slope: slope / 2).get("skew_kl", {})
            paper = paper_trend if metric == "last_word_accuracy" else None
            found.append(Comparison("", measure, {**trend, FLAT: flat, HALF_OF_SKEW: half}, TABLE6, paper))
    for teacher in SIZES:
        paper = {method: by[teacher] for method, by in theirs.items()}
        for metric in JUDGED:
            ours = by_teacher(frame, metric)[teacher]
            if any(method in ours for method in METHODS):
                known = paper if metric == "last_word_accuracy" else None
                found.append(Comparison(name(teacher), MEASURES[metric], ours, TABLE6_BY_TEACHER, known))
    return found


def map_table(frame: pd.DataFrame) -> str:
    """Variant × method: the gain from the smallest to the largest teacher, on each judged metric."""
    if not variants(frame):
        return ""
    found = gaps(frame, JUDGED[0])
    drawn = [m for m in METHODS if any(m in by for by in found.values())]
    parts = []
    for metric in JUDGED:
        body = [
            [
                label(variant),
                *(counted(estimates(by).get(m), MEASURES[metric].digits) for m in drawn),
                interval(difference(by, "taid", "kl"), MEASURES[metric].digits),
            ]
            for variant, by in gaps(frame, metric).items()
        ]
        parts.append(
            f"**{MEASURES[metric].heading}**\n\n"
            + Table(["changed", *map(name, drawn), "TAID − KL"], body).markdown()
        )
    alone = ", ".join(name(m) for m in drawn if not any(m in by for v, by in found.items() if v != "base"))
    note = (
        f"![Map]({experiment(frame)}_map.png)\n\nWhat a student gains (negative: loses) when its teacher grows from the"
        " smallest to the largest, one thing changed at a time from Table 6 (*base*); mean [95% interval] and"
        " seeds. Learning rates are Table 6's. τ divides the teacher's logits: below 1 it is more peaked,"
        f" above 1 flatter.{f' At the base alone: {alone}.' if alone else ''}\n\n"
    )
    return note + "\n".join(parts) + peakedness(frame)


def peakedness(frame: pd.DataFrame) -> str:
    """Mean entropy of smallest and largest teacher at each temperature [nats/token]."""
    small, *_, large = SIZES
    body = []
    for variant in ("base", *variants(frame)):
        ours = by_teacher(frame, "entropy", variant)
        own = [fmean(by.values()) for teacher in (small, large) if (by := ours[teacher].get("teacher"))]
        if len(own) == 2:
            body.append(["τ = 1" if variant == "base" else variant, *(number(v, 3) for v in own)])
    table = Table(["teacher's entropy [nats/token]", name(small), name(large)], body).markdown()
    return f"\n**Peakedness**\n\n{table}" if body else ""


def rates_table(frame: pd.DataFrame) -> str:
    """The chosen rate of each method and teacher; in bold at the edge of the grid."""
    students = frame[(frame.experiment == experiment(frame)) & (frame.metric == "held_out_loss")]
    chosen = {(r.method, r.teacher): r.learning_rate for r in students.itertuples() if r.learning_rate > 0}
    searched = frame[frame.experiment == f"{experiment(frame)}_search"]
    grid = sorted(searched.learning_rate.unique())
    if not chosen:
        return ""
    tried = ", ".join(map(str, sorted(searched.seed.unique())))

    def cell(rate: float | None) -> str:
        if rate is None:
            return MISSING
        return f"**{rate:g}**" if rate in (*grid[:1], *grid[-1:]) else f"{rate:g}"

    body = [[name(m), *(cell(chosen.get((m, t))) for t in SIZES)] for m in METHODS]
    sft = chosen.get(("sft", NONE))
    how = (
        f"Grid {', '.join(f'{rate:g}' for rate in grid)}, the same for all; chosen by held-out loss on"
        f" validation, {'seeds' if ',' in tried else 'seed'} {tried}. Bold: an edge of the grid."
        if grid
        else "Not searched here: those of the committed rows."
    )
    return (
        f"{how}\n\n"
        + Table(["", *map(name, SIZES)], body).markdown()
        + (f"\nSFT: {cell(sft)}.\n" if sft else "")
        + fixed_rates(frame)
    )


def fixed_rates(frame: pd.DataFrame) -> str:
    """Method × rate: what the largest teacher gains over the smallest when neither chooses its rate."""
    found = frame[(frame.experiment == f"{experiment(frame)}_search") & (frame.metric == "held_out_loss")]
    found = found[found.seed == found.seed.min()]  # which tried every rate
    losses = {(r.method, r.teacher, r.learning_rate): r.value for r in found.itertuples()}
    rates, (small, *_, large) = sorted(found.learning_rate.unique()), SIZES

    def cell(method: str, rate: float) -> str:
        first, last = (losses.get((method, teacher, rate)) for teacher in (small, large))
        return MISSING if first is None or last is None else number(first - last, 3)

    if not rates:
        return ""
    body = [[name(method), *(cell(method, rate) for rate in rates)] for method in METHODS]
    return (
        "\nIs a gap one of rates? What the largest teacher gains over the smallest in held-out loss at one"
        f" rate for both (validation, seed {found.seed.min()}):\n\n"
        + Table(["", *(f"{rate:g}" for rate in rates)], body).markdown()
    )


def figures(frame: pd.DataFrame, scale: str) -> dict[str, Figure]:
    stem = experiment(frame)
    return {stem: draw(frame, scale)} | ({f"{stem}_map": draw_map(frame)} if variants(frame) else {})
