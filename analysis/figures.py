"""Drawing: functions take axes and a colour per method, and return the axes. They compute no statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator
from numpy import ndarray as Array

from analysis.measures import Measure
from analysis.statistics import Estimate
from analysis.style import COLOURS, name

WIDTH = 8.0  # inches, of every figure, so that its letters can be read on a page's width
BAND, REFERENCE = "#eeeeee", "#555555"
SHADES = ("#F9C784", "#E8853B", "#A63C06", "#5C1A03")  # an ordered family: lengths, rates
Estimates = Mapping[str, Estimate]  # by method

# What a legend says of all methods at once.
INTERVAL = "95% interval"
BANDS = Patch(facecolor=REFERENCE, alpha=0.25, label=INTERVAL)
BARS = Line2D([], [], color=REFERENCE, linewidth=2.5, alpha=0.5, label=INTERVAL)
PAPER = Line2D(
    [], [], color=REFERENCE, marker="o", markerfacecolor="white", linestyle="", label="the paper's"
)
OURS = Line2D([], [], color=REFERENCE, marker="o", linestyle="", label="ours")
CUT = "goes on beyond the axis"


@dataclass(frozen=True)
class Panel:
    """One pair: the paper's numbers and ours, on two axes, for they share no scale."""

    title: str
    paper: Estimates
    ours: Estimates
    note: str  # under the title
    paper_unit: str
    unit: str


def canvas(height: float) -> Figure:
    """A figure of the common width, height in inches, whose panels keep their labels apart."""
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))


def stacked(figure: Figure, *heights: float) -> list[SubFigure]:
    """Parts of a figure, one below the other; the heights are relative."""
    return list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])


def plain(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def lines(ax: Axes, x: Array, curves: Mapping[str, tuple[Array, str, str]], **settings: str) -> Axes:
    """Curves over x by label, each with colour and matplotlib's format string; `settings` go to the axes."""
    for label, (y, colour, form) in curves.items():
        ax.plot(x, y, form, color=colour, linewidth=1.8, markersize=4, label=label)
    ax.set(**settings)
    return plain(ax)


def logarithmic(axis: Axis) -> None:
    """Ticks at 1, 2, 5, 10 … as plain numbers; the scale itself is set by the caller."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def band(ax: Axes, x: Sequence[float], found: Sequence[Estimate], colour: str) -> Axes:
    """Intervals over x; none where an estimate has a single value."""
    if found and all(e.n > 1 for e in found):
        ax.fill_between(
            x, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.15, linewidth=0
        )
    return ax


def curve(ax: Axes, found: Mapping[float, Estimate], label: str, colour: str, form: str = "o-") -> Axes:
    """Means over x, joined, above the band of their intervals; of nothing nothing."""
    if not found:
        return ax
    x, estimates = [*found], [*found.values()]
    band(ax, x, estimates, colour)
    return lines(ax, np.array(x), {label: (np.array([e.mean for e in estimates]), colour, form)})


def legend(figure: Figure | SubFigure, *more: Artist) -> None:
    """One for all axes below them, each label once, and `more`; as many columns as the width has room for."""
    handles: dict = {}
    for ax in figure.axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    handles |= {artist.get_label(): artist for artist in more}
    if handles:
        lengths = [len(label) for label in handles]

        def width(columns: int) -> float:
            return sum(0.6 + 0.065 * max(column) for column in np.array_split(lengths, columns))

        room = figure.bbox.width / figure.dpi
        columns = next(n for n in range(len(handles), 0, -1) if n == 1 or width(n) <= room)
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )


def dots(
    ax: Axes, estimates: Estimates, methods: Sequence[str], colours: Mapping[str, str], hollow: bool = False
) -> Axes:
    """One dot per method, top to bottom, with its interval if it has one; nothing without an estimate."""
    for height, method in enumerate(methods):
        if method not in estimates:
            continue
        estimate, colour = estimates[method], colours.get(method, "black")
        _bar(ax, estimate, height, colour)
        face = "white" if hollow else colour
        ax.plot(estimate.mean, height, "o", color=colour, markerfacecolor=face, markersize=6.5, mew=1.6)
    ax.set_ylim(len(methods) - 0.4, -0.6)
    ax.set_yticks(range(len(methods)), [name(method) for method in methods], fontsize=9)
    ax.tick_params(length=0, labelsize=9)
    ax.grid(color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.margins(x=0.12)
    ax.locator_params(axis="x", nbins=4)
    if not estimates:
        ax.set_xticks([])  # no numbers on an empty axis
    return ax


def around(
    ax: Axes, found: Estimates, methods: Sequence[str], colours: Mapping[str, str], reach: float = 4.0
) -> Axes:
    """Differences as dots, 0 in the middle of the axis.

    What reaches further out than `reach` times the middle of all sizes is cut: an arrow, and of a dot its number.
    """
    sizes = [abs(e.mean) + _half(e) for e in found.values()]
    far = reach * float(np.median(sizes or [1.0]))
    limit = 1.05 * max((size for size in sizes if size <= far), default=1.0) or 1.0
    cut = {m: replace(e, low=max(e.low, -limit), high=min(e.high, limit)) for m, e in found.items()}
    dots(ax, {m: e for m, e in cut.items() if abs(e.mean) <= limit}, methods, colours)
    ax.set_xlim(-limit, limit)
    for method, e in found.items():
        height = methods.index(method)
        if abs(e.mean) > limit and cut[method].low < cut[method].high:
            _bar(ax, cut[method], height, colours.get(method, "black"))
        for side, arrow in ((-1, "<"), (1, ">")):
            if side * e.mean + _half(e) > limit:
                ax.plot(side * 0.96 * limit, height, arrow, color="black", ms=5, clip_on=False, label=CUT)
            if side * e.mean > limit:
                number = ax.text(side * 0.8 * limit, height, f"{e.mean:.2f}".replace("-", "−"), fontsize=8)
                number.set(ha="right" if side > 0 else "left", va="center")
                number.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    ax.axvline(0, color=REFERENCE, linewidth=1)
    return ax


def paper_beside_ours(panels: Sequence[Panel], colours: Mapping[str, str], to: str) -> Figure:
    """Per pair two aligned axes of differences to `to`: the paper's as hollow dots, ours filled, a method on one
    line; three pairs in a row, or two."""
    methods = list(dict.fromkeys(method for panel in panels for method in (*panel.paper, *panel.ours)))
    columns = 2 if len(panels) % 3 else 3
    height = -(-len(panels) // columns)
    figure = canvas(0.4 + height * (1.25 + 0.23 * len(methods)))
    grid = figure.subplots(height, 2 * columns, squeeze=False)
    for place, panel in enumerate(panels):
        left, right = grid[place // columns, 2 * (place % columns) :][:2]
        dots(left, panel.paper, methods, colours, hollow=True)
        left.axvline(0, color=REFERENCE, linewidth=1)
        around(right, panel.ours, methods, colours)
        for ax, unit in ((left, panel.paper_unit), (right, panel.unit)):
            ax.set_xlabel(f"difference\nto {name(to)}\n[{unit}]", fontsize=8)
            ax.locator_params(axis="x", nbins=3)
            ax.tick_params(axis="x", labelsize=8)
        left.tick_params(labelleft=place % columns == 0)
        right.tick_params(labelleft=False)
        left.set_title(panel.title, loc="left", fontsize=9, fontweight="bold", pad=17)
        note = left.text(0, 1.02, panel.note, fontsize=8, transform=left.transAxes)
        note.set_in_layout(False)  # it may reach over our axis
    legend(figure, PAPER, OURS, BARS)
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
    parts: Mapping[str, Mapping[Measure, Estimates]], groups: Mapping[str, Sequence[str]], to: str
) -> Figure:
    """A row of panels per part, a panel per measure: each method's difference to `to`, better to the right.

    Methods stand in groups below their headings; a group or a part called "" has none.
    """
    listed = [each for group, methods in groups.items() for each in (*([group] if group else []), *methods)]
    height = 1.2 + 0.22 * len(listed)
    figure = canvas(0.4 + height * len(parts))
    for row, (part, panels) in zip(stacked(figure, *[height] * len(parts)), parts.items(), strict=True):
        if part:
            row.suptitle(part, fontsize=10, fontweight="bold")
        axes = row.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (measure, found) in zip(axes, panels.items(), strict=True):
            around(ax, found, listed, COLOURS)
            ax.set_title(measure.title, fontsize=9)
            ax.set_xlabel(f"difference to {name(to)}\n[{measure.unit}], better →", fontsize=8)
        for label in axes[0].get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in groups else "normal")
    legend(figure, BARS)
    return figure


def heat_maps(panels: Mapping[str, Mapping[str, Mapping[str, float]]], label: str) -> Figure:
    """Per panel row × column: red above 0, blue below, one scale for all, the number in each cell."""
    figure = canvas(0.7 + sum(0.5 + 0.22 * len(rows) for rows in panels.values()))
    reach = max([abs(v) for rows in panels.values() for by in rows.values() for v in by.values()] or [1.0])
    for ax, (title, rows) in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        columns = list(dict.fromkeys(column for by in rows.values() for column in by))
        values = np.array([[by.get(column, np.nan) for column in columns] for by in rows.values()])
        image = ax.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            text = f"{round(value, 1) + 0.0:.1f}".replace("-", "−")  # a zero has no sign
            shade = "white" if abs(value) > 0.7 * reach else "black"
            ax.text(x, y, text, ha="center", va="center", fontsize=8, color=shade)
        ax.set_xticks(range(len(columns)), columns, fontsize=9)
        ax.set_yticks(range(len(rows)), [name(row) for row in rows], fontsize=9)
        ax.set_title(title, fontsize=10)
        ax.tick_params(length=0)
    figure.colorbar(image, ax=figure.axes, label=label, aspect=40)
    return figure


def forest(panels: Mapping[str, Estimates], label: str) -> Figure:
    """A panel per measure, one under the other: a dot per place with its interval, about 0."""
    heights = [0.9 + len(found) for found in panels.values()] or [1]
    figure = canvas(0.5 + 0.24 * sum(heights) + 0.4 * len(heights))
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (title, found) in zip(axes, panels.items(), strict=False):
        around(ax, found, list(found), dict.fromkeys(found, COLOURS["taid"]))
        ax.set_title(title, fontsize=10)
        ax.locator_params(axis="x", nbins=5, prune="both")  # none at an edge
    axes[-1].set_xlabel(label)
    legend(figure, BARS)
    return figure


def _bar(ax: Axes, estimate: Estimate, height: float, colour: str) -> None:
    if estimate.n > 1:
        ax.plot([estimate.low, estimate.high], [height, height], color=colour, linewidth=2.5, alpha=0.5)


def _half(estimate: Estimate) -> float:
    return estimate.high - estimate.mean if estimate.n > 1 else 0.0
