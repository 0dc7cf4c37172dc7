"""Table 6's figures: scores against the teacher's size, and the map."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import reference
from analysis.statistics import Estimate, mean_interval
from analysis.style import COLOURS, name
from analysis.table6_rows import (
    JUDGED,
    METHODS,
    METRICS,
    SIZES,
    by_teacher,
    estimate,
    gaps,
    label,
    without_teacher,
)
from analysis.theory_figures import plain


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


def curve(ax: Axes, method: str, estimates: Mapping[str, Estimate], hollow: bool = False) -> None:
    """One method over the teachers that it has, with a band for its intervals."""
    x, colour = [SIZES[teacher] for teacher in estimates], COLOURS[method]
    if not x:
        return
    means = [e.mean for e in estimates.values()]
    look = {
        "color": colour,
        "markerfacecolor": "white" if hollow else colour,
        "markersize": 5,
        "linewidth": 1.8,
    }
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


def point(ax: Axes, height: float, e: Estimate, method: str) -> None:
    if e.n > 1:
        ax.plot([e.low, e.high], [height, height], color=COLOURS[method], linewidth=2.2, alpha=0.5)
    ax.plot(e.mean, height, "o", color=COLOURS[method], markersize=5.5, label=name(method))


def legend(figure: Figure) -> Figure:
    """One for all axes, each label once."""
    handles: dict = {}
    for ax in figure.axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    columns = max(len(handles), 1)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure
