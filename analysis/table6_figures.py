"""Table 6's figures: scores against the teacher's size, and the map."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import reference
from analysis.figures import BANDS, BARS, PAPER, REFERENCE, band, canvas, legend, plain
from analysis.measures import MEASURES
from analysis.statistics import Estimate, estimates, mean_interval
from analysis.style import COLOURS, MARKERS, name
from analysis.table6_rows import JUDGED, METHODS, SIZES, by_teacher, gaps, label, without_teacher

SMALLEST, *_, LARGEST = (teacher.removeprefix("pythia-").upper() for teacher in SIZES)


def draw(frame: pd.DataFrame, scale: str) -> Figure:
    """The paper's scores, then ours on each judged metric, against the teacher's size."""
    figure = canvas(7)
    first, *others = figure.subplots(2, 2).flat
    for method, by in reference.table6().items():
        curve(first, method, {t: mean_interval([score]) for t, score in by.items()}, hollow=True)
    level, error = reference.PYTHIA_70M
    first.axhline(level, color=REFERENCE, linestyle="-.", linewidth=1.2, label="Pythia 70M, not distilled")
    first.axhspan(
        level - error, level + error, color=REFERENCE, alpha=0.13, linewidth=0, label="its standard error"
    )
    beside = SIZES["pythia-1b"], level + 1.15 * error
    first.text(*beside, f"not distilled: {level} ± {error}", fontsize=8, va="bottom")
    sizes_axis(first, "paper: LAMBADA accuracy [percent]")
    for ax, metric in zip(others, JUDGED, strict=True):
        ours, alone = by_teacher(frame, metric), without_teacher(frame, metric)
        for method in METHODS:
            curve(ax, method, {t: estimates(ours[t])[method] for t in SIZES if method in ours[t]})
        for method, form in (("sft", "--"), ("untrained", ":")):
            if method in alone:
                level = estimates(alone)[method].mean
                ax.axhline(level, color=COLOURS[method], linestyle=form, linewidth=1.2, label=name(method))
        sizes_axis(ax, f"ours ({scale}): {MEASURES[metric].heading}")
        if MEASURES[metric].sign < 0:
            ax.invert_yaxis()  # up is better
    legend(figure, BANDS, PAPER)
    return figure


def draw_map(frame: pd.DataFrame) -> Figure:
    """Per metric: for each variant and method the gain from the smallest to the largest teacher."""
    figure = canvas(4.6)
    for ax, metric in zip(figure.subplots(1, len(JUDGED), sharey=True), JUDGED, strict=True):
        found = gaps(frame, metric)
        for height, by in enumerate(found.values()):
            drawn = [method for method in METHODS if method in by]
            for offset, method in enumerate(drawn):
                at = height + 0.16 * (offset - (len(drawn) - 1) / 2)
                point(ax, at, estimates(by)[method], method)
        ax.axvline(0, color="#555555", linewidth=1)
        ax.set_yticks(range(len(found)), [label(variant) for variant in found])
        ax.set_ylim(len(found) - 0.5, -0.5)
        ax.set_title(MEASURES[metric].title, fontsize=9)
        ax.set_xlabel(f"difference, {LARGEST} − {SMALLEST}\n[{MEASURES[metric].unit}], better →", fontsize=8)
        plain(ax)
    legend(figure, BARS)
    return figure


def curve(ax: Axes, method: str, found: Mapping[str, Estimate], hollow: bool = False) -> None:
    """One method over the teachers that it has, with a band for its intervals."""
    x, colour = [SIZES[teacher] for teacher in found], COLOURS[method]
    if not x:
        return
    means, face = [e.mean for e in found.values()], "white" if hollow else colour
    form = f"{MARKERS.get(method, 'o')}-"
    ax.plot(x, means, form, color=colour, mfc=face, markersize=5, linewidth=1.8, label=name(method))
    band(ax, x, list(found.values()), colour)


def sizes_axis(ax: Axes, title: str) -> Axes:
    ax.set_xscale("log")
    ax.set_xticks(list(SIZES.values()), [teacher.removeprefix("pythia-").upper() for teacher in SIZES])
    ax.minorticks_off()
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("teacher")
    return plain(ax)


def point(ax: Axes, height: float, e: Estimate, method: str) -> None:
    if e.n > 1:
        ax.plot([e.low, e.high], [height, height], color=COLOURS[method], linewidth=2.2, alpha=0.5)
    ax.plot(
        e.mean, height, MARKERS.get(method, "o"), color=COLOURS[method], markersize=5.5, label=name(method)
    )
