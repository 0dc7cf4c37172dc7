"""Does TAID beat KL? `results/decide.md` and its figures. The rule was written into the script before the run."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from analysis.claims import DECIDE, EFFECT, MARGIN
from analysis.figures import BANDS, REFERENCE, canvas, curve, legend, stacked
from analysis.measures import MEASURES
from analysis.page import Comparison, Page
from analysis.rows import REFERENCES, Pair, Scores, scores
from analysis.statistics import CONFIDENCE, Estimate, difference, mean_interval, paired
from analysis.style import COLOURS, name, pair_name
from analysis.tables import MISSING, Table, interval, value, versus

METHODS = ("kl", "taid", "taid_no_adaptive", "kl_matched")
PRIMARY, OTHERS = "score", ("knowledge", "prose", "kl_to_teacher", "mode_coverage", "held_out_loss")
SHOWN = (PRIMARY, *OTHERS, "answer_entropy")
SHARES = (0.125, 0.25, 0.5)  # of the updates done, as tasks name them
COLUMNS = 4  # of panels


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        "The rule, written before the first run: with d = TAID − KL in points of the score, paired by seed, at the"
        " largest number of updates, which is the paper's, with its α unscaled: *true* if the 95% interval of d lies"
        f" above 0; *false in effect* if it lies below +{MARGIN} points; else *open*, with the number of seeds that"
        " would close it, were mean and deviation to stay. What the theory predicts stands beside the rule, in"
        " `paper_experiments/17_decide.py`. Learning rates were chosen on seeds that are not tested here.\n\n"
        "![TAID − KL by the number of updates](decide.png)\n\n![On the way](decide_curves.png)\n\n"
        "*Above*: TAID − KL by measure, turned so that up is better for TAID, with 95% intervals; the grey band is"
        " what the rule calls none in effect. *Below*: measures on the way, at the largest number of updates that"
        " has rows; lines are means over seeds, bands their 95% intervals.\n"
    )


def trained(frame: pd.DataFrame) -> dict[Pair, list[int]]:
    """Pair → the numbers of updates that its students were trained for, ascending."""
    updates = frame.experiment.str.extract(r"^decide_(\d+)$")[0].dropna().astype(int)
    known = frame.loc[updates.index].assign(updates=updates)
    pairs = known.groupby(["teacher", "student"], sort=False)
    return {Pair(*map(str, pair)): sorted(rows.updates.unique().tolist()) for pair, rows in pairs}


def at(frame: pd.DataFrame, pair: Pair, updates: int, metric: str, task: str = "average") -> Scores:
    """Method → seed → value after so many updates; teacher and untrained student are the same for each."""
    found = (scores(frame, experiment, metric, task) for experiment in ("decide", f"decide_{updates}"))
    return {method: by for each in found for method, by in each.get(pair, {}).items()}


# --- The rule -----------------------------------------------------------------------------------------------


def decision(estimate: Estimate | None) -> str:
    """What the rule says of TAID − KL."""
    if estimate is None:
        return MISSING
    found = [
        word
        for word, holds in (("true", estimate.low > 0), ("false in effect", estimate.high < MARGIN))
        if holds
    ]
    return ", and ".join(found) or "open"


def seeds_needed(differences: Sequence[float]) -> int | None:
    """Fewest seeds whose interval would leave out 0 (from above) or MARGIN (from below), were mean and standard
    deviation to stay as they are; None from a single seed, or where both lie at a bound."""
    if len(differences) < 2:
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    gap = max(mean, MARGIN - mean)  # to the bound that is left out first
    n = np.arange(2, 10_000)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * deviation / np.sqrt(n)
    enough = n[half < gap]
    return int(enough[0]) if len(enough) else None


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Pair and updates × TAID's and KL's score, TAID − KL, what the rule says, seeds that would close it."""
    body = []
    for pair, numbers in trained(frame).items():
        for updates in numbers:
            found = at(frame, pair, updates, PRIMARY)
            d = difference(found, "taid", "kl")
            differences = paired(found.get("taid", {}), found.get("kl", {}))
            needed = seeds_needed(differences)
            body.append(
                [
                    pair_name(pair),
                    f"{updates:,}",
                    *(value(found.get(method), len(differences)) for method in ("taid", "kl")),
                    interval(d),
                    str(len(differences)),
                    decision(d),
                    MISSING if needed is None else str(needed),
                ]
            )
    header = ["pair", "updates", "TAID", "KL", "TAID − KL [points]", "n", "by the rule", "seeds to close"]
    return Table(header, body, text_columns=1)


# --- The page -----------------------------------------------------------------------------------------------


def measured(frame: pd.DataFrame, pair: Pair, updates: int) -> Table:
    """Method × measure."""
    columns = {metric: at(frame, pair, updates, metric) for metric in SHOWN}
    count = max((len(by) for found in columns.values() for by in found.values()), default=0)
    body = [
        [name(m), *(value(found.get(m), count, MEASURES[metric].digits) for metric, found in columns.items())]
        for m in (*METHODS, *REFERENCES)
        if any(m in found for found in columns.values())
    ]
    body.append(versus(*((found, MEASURES[metric].digits) for metric, found in columns.items())))
    return Table(["method", *(MEASURES[metric].heading for metric in SHOWN)], body)


def on_its_way(frame: pd.DataFrame, pair: Pair) -> Table:
    """TAID − KL and − its own ramp, by the share of updates done, at the largest number of updates."""
    updates = trained(frame)[pair][-1]
    shown = (PRIMARY, *OTHERS)
    body = []
    for share in (*SHARES, 1.0):
        found = {m: at(frame, pair, updates, m, f"{share:g}" if share < 1 else "average") for m in shown}
        for rival in ("kl", "taid_no_adaptive"):
            label, *gaps = versus(*((found[m], MEASURES[m].digits) for m in shown), rival=rival)
            body.append([f"{share * updates:,.0f}", label, *gaps])
    header = ["updates", "", *(MEASURES[metric].heading for metric in shown)]
    return Table(header, body, f"Of {updates:,} updates.", text_columns=2)


def rates(frame: pd.DataFrame) -> Table:
    """The learning rates that were chosen on the tuning seeds."""
    body = []
    for pair, numbers in trained(frame).items():
        for updates in numbers:
            here = (frame.experiment == f"decide_{updates}") & (frame.teacher == pair.teacher)
            found = {method: rows.learning_rate.unique() for method, rows in frame[here].groupby("method")}
            cells = [" | ".join(f"{rate:g}" for rate in found.get(m, ())) or MISSING for m in METHODS]
            body.append([pair_name(pair), f"{updates:,}", *cells])
    return Table(["pair", "updates", *map(name, METHODS)], body)


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    found = {"What the rule says": headline(frame, scale).markdown()}
    for pair, numbers in trained(frame).items():
        for updates in reversed(numbers):
            found[f"{pair_name(pair)}, {updates:,} updates"] = measured(frame, pair, updates).markdown()
    way = {f"On the way, {pair_name(pair)}": on_its_way(frame, pair).markdown() for pair in trained(frame)}
    return found | way | {"Learning rates": rates(frame).markdown()}


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    return [
        Comparison(
            f"{pair_name(pair)}, {updates:,} updates",
            MEASURES[metric],
            at(frame, pair, updates, metric),
            (*DECIDE, EFFECT) if metric == PRIMARY else DECIDE,
        )
        for pair, numbers in trained(frame).items()
        for updates in reversed(numbers)
        for metric in (PRIMARY, *OTHERS)
    ]


# --- Figures ------------------------------------------------------------------------------------------------


def draw(frame: pd.DataFrame) -> Figure:
    """A panel per measure: TAID − KL over the number of updates, a line per pair."""
    pairs = trained(frame)
    figure = canvas(5.6)
    grid = figure.subplots(2, 3)
    for ax, metric in zip(grid.flat, (PRIMARY, *OTHERS), strict=True):
        measure = MEASURES[metric]
        if metric == PRIMARY:
            ax.axhspan(0, MARGIN, color="#eeeeee", linewidth=0, label=f"below {MARGIN} points")
        for (pair, numbers), form in zip(pairs.items(), ("o-", "s--"), strict=False):
            found = {
                n: difference(measure.oriented(at(frame, pair, n, metric)), "taid", "kl") for n in numbers
            }
            curve(ax, {n: e for n, e in found.items() if e}, pair_name(pair), COLOURS["taid"], form)
        ax.axhline(0, color=REFERENCE, linewidth=1)
        ax.set(xscale="log", xlabel="updates")
        ax.set_title(f"{measure.title}\n[{measure.unit}]", fontsize=9)
    for ax in grid[:, 0]:
        ax.set_ylabel("TAID − KL, better ↑")
    legend(figure, BANDS)
    return figure


def draw_curves(frame: pd.DataFrame) -> Figure:
    """A block of panels per pair: measures over the share of updates done, at the largest number of updates."""
    pairs = trained(frame)
    count = max(1, len(pairs))
    figure = canvas(0.7 + 4.4 * count)
    blocks = stacked(figure, *[1.0] * count)
    for block, (pair, numbers) in zip(blocks, pairs.items(), strict=False):
        grid = block.subplots(math.ceil(len(SHOWN) / COLUMNS), COLUMNS)
        for ax, metric in zip(grid.flat, SHOWN, strict=False):
            for method in METHODS:
                form = "s--" if method == "kl_matched" else "o-"  # it runs along KL's line
                found = on_the_way(frame, pair, numbers[-1], metric, method)
                curve(ax, found, name(method), COLOURS[method], form)
            reference(ax, at(frame, pair, numbers[-1], metric).get("teacher"))
            measure = MEASURES[metric]
            ax.set_title(f"{measure.title}\n[{measure.unit}]", fontsize=9)
            ax.set(xlabel="share of updates", xlim=(0, 1.02))
        for ax in grid.flat[len(SHOWN) :]:
            ax.set_axis_off()
        block.suptitle(f"{pair_name(pair)}, {numbers[-1]:,} updates")
    legend(blocks[-1], BANDS)
    return figure


def on_the_way(
    frame: pd.DataFrame, pair: Pair, updates: int, metric: str, method: str
) -> dict[float, Estimate]:
    """Share of updates done → mean over seeds: the student before, on its way, and in the end."""
    found = {0.0: at(frame, pair, updates, metric).get("untrained", {})}
    found |= {share: at(frame, pair, updates, metric, f"{share:g}").get(method, {}) for share in SHARES}
    found[1.0] = at(frame, pair, updates, metric).get(method, {})
    common = {share: [by[seed] for seed in by.keys() & found[1.0].keys()] for share, by in found.items()}
    return {share: mean_interval(values) for share, values in common.items() if values}


def reference(ax: Axes, by_seed: Mapping[int, float] | None) -> None:
    if by_seed and not math.isclose(0, level := float(np.mean(list(by_seed.values()))), abs_tol=1e-6):
        ax.axhline(level, color=COLOURS["teacher"], linewidth=1, linestyle=":", label=name("teacher"))


PAGE = Page(
    "decide",
    "Does TAID beat KL?",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"decide": draw(frame), "decide_curves": draw_curves(frame)},
)
