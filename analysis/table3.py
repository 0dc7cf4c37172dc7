"""Table 3, rendered: `results/table3.md` and the figure `results/table3.png` beside it."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.claims import METHODS, TABLE3
from analysis.predicates import Claim, Verdict, holds_in_paper
from analysis.rows import Pair, Scores, scores
from analysis.statistics import mean_interval
from analysis.style import COLOURS, name, pair_name
from analysis.tables import MISSING, claims_table, document, markdown, number, plural, provenance, value

TITLE = "Table 3: probability mass in head and tail"
PAIR = Pair("phi-3-mini", "tinyllama")
READINGS = {  # suffix of the metric → whose ranking
    "": "the teacher's, per token",
    "_own": "the student's own, per token",
    "_marginal": "the teacher's mean distribution",
}


def write(frame: pd.DataFrame, folder: Path, scale: str) -> None:
    """Render the rows of one scale to `folder`/table3.md and `folder`/table3.png."""
    (folder / "table3.md").write_text(render(frame, scale), encoding="utf-8")
    draw(frame).savefig(folder / "table3.png", metadata={"Software": None})


def render(frame: pd.DataFrame, scale: str) -> str:
    """The whole document, from the rows of one scale. Equal rows give equal text."""
    sections = {
        f"Ranking: {READINGS['']} (our reading)": reading(frame, scale, ""),
        "Claims": claims(frame),
        **{f"Ranking: {READINGS[suffix]}": reading(frame, scale, suffix) for suffix in ("_own", "_marginal")},
        "Provenance": provenance(frame),
    }
    return document(TITLE, scale, preamble(frame, scale), sections)


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        "*Head*: mass on the ten tokens that a ranking of the vocabulary puts first. *Tail*: mass on its"
        f" 80–100th percentile. *Paper*: {pair_name(PAIR)}, V = 32,000. *Ours ({scale})*: Table 1's students"
        f" of that pair, V = {vocabulary(frame):,}, teacher-forced on the test responses, mean over tokens."
        " Whose ranking the paper means we do not know, so claims are judged under three; the vocabularies"
        " differ, so compare the order within a column, not numbers across columns."
        f" Seeds: {seeds(frame)}; ± is half of the 95% t-interval over them; the tail's mean and interval are"
        " taken of its logarithm. A dash means no rows.\n\n"
        "![Mean probability by rank](table3.png)\n\n"
        "*Figure*: mean probability at the ranks of the teacher, who ranks anew at every token.\n"
    )


def reading(frame: pd.DataFrame, scale: str, suffix: str) -> str:
    """Method × part under one ranking, the paper's mass and ours in columns of their own; teacher last."""
    head, tail = (ours(frame, part + suffix) for part in ("head", "tail"))
    if not head:
        return ""
    paper, count = reference.table3(), seeds(frame)

    def line(method: str) -> list[str]:
        theirs = [f(paper[part][method]) if method in paper[part] else MISSING for part, f in FORMATS.items()]
        if method == "teacher":  # one model, the same for all seeds
            own = [FORMATS["head"](head[method][0]), FORMATS["tail"](tail[method][0])]
        else:
            own = [value(head[method], count, 3), log_value(tail[method], count)]
        return [name(method), theirs[0], own[0], theirs[1], own[1]]

    header = ["method", "head: paper", f"ours ({scale})", "tail: paper", f"ours ({scale})"]
    return markdown(header, [line(method) for method in (*METHODS, "teacher") if method in head])


def log_value(values: Mapping[int, float], seeds: int) -> str:
    """ "3.90e-06 [3.10e-06, 4.91e-06]": geometric mean with its 95% interval; seeds as in `value`."""
    estimate = mean_interval([math.log(v) for v in values.values()])
    middle, low, high = (scientific(math.exp(x)) for x in (estimate.mean, estimate.low, estimate.high))
    count = f" ({plural(estimate.n, 'seed')})" if estimate.n == 1 or estimate.n != seeds else ""
    return f"{middle}{f' [{low}, {high}]' if estimate.n > 1 else ''}{count}"


def scientific(value: float) -> str:
    return f"{value:.2e}"


FORMATS = {"head": lambda mass: number(mass, 3), "tail": scientific}


def verdicts(frame: pd.DataFrame) -> Iterable[tuple[str, Claim, bool, Verdict]]:
    """Every claim under every ranking that has rows; all compare logarithms of masses."""
    paper = {part: {m: math.log(mass) for m, mass in by.items()} for part, by in reference.table3().items()}
    for suffix, ranking in READINGS.items():
        for part, part_claims in TABLE3.items():
            if not (masses := ours(frame, part + suffix)):
                continue
            for claim in part_claims:
                where = f"{part}, ranking: {ranking}"
                yield where, claim, holds_in_paper(claim, paper[part]), claim.predicate(logs(masses))


def claims(frame: pd.DataFrame) -> str:
    """All verdicts and the rule behind them; empty without rows."""
    rule = (
        "Differences are of the logarithm of the mass, paired by seed: 0.69 is a factor of two. *Supported*:"
        " the 95% interval lies wholly where the claim has it (within ± 0.69; above 0.69; above 0 for every"
        " rival). *Contradicted*: wholly elsewhere, Bonferroni-corrected over rivals. Else *inconclusive*.\n"
    )
    judged = list(verdicts(frame))
    return f"{claims_table(judged)}\n{rule}" if judged else ""


def draw(frame: pd.DataFrame) -> Figure:
    """Mean probability by the teacher's rank, a line per method and the teacher's own in black."""
    last = vocabulary(frame)
    figure = Figure(figsize=(8, 4.6), dpi=110, layout="constrained")
    bands = {"head": (1, 10), "tail": (round(0.8 * last), last)}
    ax = figures.mass_by_rank(figure.subplots(), by_rank(frame), COLOURS, bands)
    ax.set_xlabel("rank of the token by the teacher")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def by_rank(frame: pd.DataFrame) -> dict[str, dict[int, float]]:
    """Method → rank → mass there, the mean over seeds."""
    chosen = frame[frame.metric == "mass_at_rank"].astype({"task": int})
    means = chosen.groupby(["method", "task"]).value.mean()  # ranks ascend
    present = set(chosen.method)
    return {method: means[method].to_dict() for method in (*METHODS, "teacher") if method in present}


def vocabulary(frame: pd.DataFrame) -> int:
    """V, the last of the measured ranks."""
    return frame.task[frame.metric == "mass_at_rank"].astype(int).max()


def ours(frame: pd.DataFrame, metric: str, task: str = "average") -> Scores:
    return scores(frame, "table3", metric, task).get(PAIR, {})


def logs(masses: Scores) -> Scores:
    return {method: {seed: math.log(mass) for seed, mass in by.items()} for method, by in masses.items()}


def seeds(frame: pd.DataFrame) -> int:
    """Number of seeds with students."""
    return frame.seed[frame.method != "teacher"].nunique()
