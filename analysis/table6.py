"""Table 6 and its map, rendered: `results/table6.md`, with the figures `table6.png` and `table6_map.png`."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis import reference
from analysis.claims import FLAT, TABLE6, TABLE6_BY_TEACHER
from analysis.predicates import Claim, Verdict, holds_in_paper
from analysis.statistics import mean_interval
from analysis.style import name
from analysis.table6_figures import draw, draw_map
from analysis.table6_rows import (
    JUDGED,
    METHODS,
    METRICS,
    NONE,
    SIZES,
    by_teacher,
    gaps,
    label,
    page,
    seeds,
    slopes,
    variants,
    without_teacher,
)
from analysis.tables import MISSING, claims_table, document, markdown, number, plural, provenance, value

TITLE = "Table 6: the capacity gap"


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
    return "yes" if all(sign * (b - a) > 0 for a, b in itertools.pairwise(values)) else "NO"


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
        + fixed_rates(frame)
    )


def fixed_rates(frame: pd.DataFrame) -> str:
    """Method × rate: what the largest teacher gains over the smallest when neither chooses its rate."""
    found = frame[(frame.experiment == "table6_search") & (frame.metric == "held_out_loss")]
    losses = {(r.method, r.teacher, r.learning_rate): r.value for r in found.itertuples()}
    rates, (small, *_, large) = sorted(found.learning_rate.unique()), SIZES

    def cell(method: str, rate: float) -> str:
        ends = [losses.get((method, teacher, rate)) for teacher in (small, large)]
        return MISSING if None in ends else number(ends[0] - ends[1], 3)

    body = [[name(method), *(cell(method, rate) for rate in rates)] for method in METHODS]
    return (
        "\nIs a gap one of rates? What the largest teacher gains over the smallest in held-out loss at one"
        " rate for both (validation, seed 0):\n\n" + markdown(["", *(f"{rate:g}" for rate in rates)], body)
    )
