"""Drawing: functions take axes and a colour per method, and return the axes. They compute no statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray as Array

from analysis.statistics import Estimate
from analysis.style import COLOURS, name

BAND, REFERENCE = "#eeeeee", "#555555"
SHADES = ("#F9C784", "#E8853B", "#A63C06", "#5C1A03")  # an ordered family: lengths, rates
Estimates = Mapping[str, Estimate]  # by method


@dataclass(frozen=True)
class Panel:
    """One pair: the paper's numbers and ours, on two axes, for they share no scale."""

    title: str
    paper: Estimates
    ours: Estimates
    note: str  # under our axis


def plain(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def lines(ax: Axes, x: Array, curves: Mapping[str, tuple[Array, str, str]], **settings: str) -> Axes:
    """Curves over x by label, each with colour and matplotlib's format string; `settings` go to the axes."""
    for label, (y, colour, form) in curves.items():
        ax.plot(x, y, form, color=colour, linewidth=1.8, markersize=4, label=label)
    ax.set(**settings)
    return plain(ax)


def band(ax: Axes, x: Sequence[float], found: Sequence[Estimate], colour: str) -> Axes:
    """Intervals over x; none where an estimate has a single value."""
    if found and all(e.n > 1 for e in found):
        ax.fill_between(
            x, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.15, linewidth=0
        )
    return ax


def legend(figure: Figure, columns: int = 0) -> Figure:
    """One for all axes, each label once."""
    handles: dict = {}
    for ax in figure.axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if handles:
        columns = columns or len(handles)
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def dots(
    ax: Axes, estimates: Estimates, methods: Sequence[str], colours: Mapping[str, str], hollow: bool = False
) -> Axes:
    """One dot per method, top to bottom, with its interval if it has one; nothing without an estimate."""
    for height, method in enumerate(methods):
        if method not in estimates:
            continue
        estimate, colour = estimates[method], colours.get(method, "black")
        if estimate.n > 1:
            ax.plot([estimate.low, estimate.high], [height, height], color=colour, linewidth=2.5, alpha=0.5)
        face = "white" if hollow else colour
        ax.plot(estimate.mean, height, "o", color=colour, markerfacecolor=face, markersize=6.5, mew=1.6)
    ax.set_ylim(len(methods) - 0.4, -0.6)
    ax.set_yticks(range(len(methods)), [name(method) for method in methods])
    ax.tick_params(length=0)
    ax.grid(color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.margins(x=0.12)
    if not estimates:
        ax.set_xticks([])  # no numbers on an empty axis
    return ax


def paper_beside_ours(
    panels: Sequence[Panel], colours: Mapping[str, str], paper_label: str, our_label: str
) -> Figure:
    """Per pair two aligned axes: the paper's numbers as hollow dots, ours filled, a method on one line."""
    methods = list(dict.fromkeys(method for panel in panels for method in (*panel.paper, *panel.ours)))
    figure = Figure(figsize=(2 + 3.4 * len(panels), 1.9 + 0.27 * len(methods)), dpi=110)
    pairs = figure.add_gridspec(1, len(panels), left=0.16, right=0.985, top=0.88, bottom=0.25, wspace=0.09)
    for column, panel in enumerate(panels):
        left, right = pairs[column].subgridspec(1, 2, wspace=0.1).subplots(squeeze=False)[0]
        dots(left, panel.paper, methods, colours, hollow=True)
        dots(right, panel.ours, methods, colours)
        for ax in (left, right):
            ax.axvline(0, color=REFERENCE, linewidth=1)
        left.set_xlabel(paper_label, fontsize=9)
        right.set_xlabel(f"{our_label}\n{panel.note}", fontsize=9, linespacing=1.5)
        left.tick_params(labelleft=column == 0)
        right.tick_params(labelleft=False)
        middle = (left.get_position().x0 + right.get_position().x1) / 2
        figure.text(middle, 0.91, panel.title, ha="center", fontsize=11, fontweight="bold")
    return figure


def mass_by_rank(
    ax: Axes,
    curves: Mapping[str, Mapping[int, float]],
    colours: Mapping[str, str],
    bands: Mapping[str, tuple[int, int]],
) -> Axes:
    """Probability over rank, a line per method, on logarithmic axes; labelled `bands` of ranks behind."""
    for label, (first, last) in bands.items():
        ax.axvspan(first, last, color=BAND, linewidth=0)
        ax.text(last, 1.01, label, transform=ax.get_xaxis_transform(), ha="right", va="bottom", fontsize=9)
    for method, masses in curves.items():
        colour = colours.get(method, "black")
        ax.plot([*masses], [*masses.values()], color=colour, linewidth=1.6, label=name(method))
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="mean probability")
    ax.margins(x=0)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def differences(
    figure: Figure, panels: Mapping[str, Estimates], methods: Sequence[str], to: str, reach: float = 4.0
) -> Figure:
    """A panel per measure: each method's difference to method `to`, better to the right.

    What lies further out than `reach` times the middle of all sizes is cut: an arrow, and its number.
    """
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, found) in zip(axes, panels.items(), strict=True):
        sizes = {method: abs(e.mean) + _half(e) for method, e in found.items()}
        far = reach * float(np.median([*sizes.values()] or [1.0]))
        inside = {method: e for method, e in found.items() if sizes[method] <= far}
        limit = 1.05 * max((sizes[method] for method in inside), default=1.0) or 1.0
        dots(ax, inside, methods, COLOURS)
        ax.set_xlim(-limit, limit)
        for method, e in found.items():
            if method not in inside:
                side, height = (1 if e.mean > 0 else -1), methods.index(method)
                ax.plot(side * 0.97 * limit, height, "<>"[side > 0], color="black", clip_on=False)
                where = {"ha": "right" if side > 0 else "left", "va": "center", "fontsize": 8}
                ax.text(side * 0.91 * limit, height, f"{e.mean:.2f}".replace("-", "−"), **where)
        ax.axvline(0, color=COLOURS.get(to, REFERENCE), linewidth=1)
        ax.set_xlabel(f"difference to {name(to)}\n{title}", fontsize=9)
        ax.locator_params(axis="x", nbins=5)
    return figure


def heat_maps(panels: Mapping[str, Mapping[str, Mapping[str, float]]], label: str) -> Figure:
    """Per panel row × column: red above 0, blue below, one scale for all, the number in each cell."""
    figure = Figure(figsize=(2 + 4 * len(panels), 4.4), dpi=110, layout="constrained")
    reach = max([abs(v) for rows in panels.values() for by in rows.values() for v in by.values()] or [1.0])
    for ax, (title, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        columns = list(dict.fromkeys(column for by in rows.values() for column in by))
        values = np.array([[by.get(column, np.nan) for column in columns] for by in rows.values()])
        image = ax.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            text = f"{round(value, 1) + 0.0:.1f}".replace("-", "−")  # a zero has no sign
            shade = "white" if abs(value) > 0.7 * reach else "black"
            ax.text(x, y, text, ha="center", va="center", fontsize=7, color=shade)
        ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
        ax.set_yticks(range(len(rows)), [name(row) for row in rows])
        ax.set_title(title, fontsize=10)
        ax.tick_params(length=0)
    figure.colorbar(image, ax=figure.axes, label=label, shrink=0.8)
    return figure


def forest(panels: Mapping[str, Estimates], label: str) -> Figure:
    """A panel per measure, one under the other: a dot per place with its interval, about 0."""
    heights = [0.9 + len(found) for found in panels.values()] or [1]
    figure = Figure(figsize=(7.5, 0.3 * sum(heights) + 0.45 * len(heights)), dpi=110, layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (title, found) in zip(axes, panels.items(), strict=False):
        dots(ax, found, list(found), dict.fromkeys(found, COLOURS["taid"]))
        ax.axvline(0, color=REFERENCE, linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.locator_params(axis="x", nbins=6)
    axes[-1].set_xlabel(label)
    return figure


def _half(estimate: Estimate) -> float:
    return estimate.high - estimate.mean if estimate.n > 1 else 0.0
