"""Drawing: functions take axes and a colour per method, and return the axes. They compute no statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.statistics import Estimate
from analysis.style import name

BAND = "#eeeeee"
Estimates = Mapping[str, Estimate]  # by method


@dataclass(frozen=True)
class Panel:
    """One pair: the paper's scores and ours, on two axes, for they share no scale."""

    title: str
    paper: Estimates
    ours: Estimates
    note: str  # under our axis


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
    """Per pair two aligned axes: the paper's scores as hollow dots, ours filled, a method on one line."""
    methods = list(dict.fromkeys(method for panel in panels for method in (*panel.paper, *panel.ours)))
    figure = Figure(figsize=(2 + 3.4 * len(panels), 1.7 + 0.27 * len(methods)), dpi=110)
    pairs = figure.add_gridspec(1, len(panels), left=0.16, right=0.985, top=0.87, bottom=0.2, wspace=0.09)
    for column, panel in enumerate(panels):
        left, right = pairs[column].subgridspec(1, 2, wspace=0.1).subplots()
        dots(left, panel.paper, methods, colours, hollow=True)
        dots(right, panel.ours, methods, colours)
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
        ax.plot(masses.keys(), masses.values(), color=colour, linewidth=1.6, label=name(method))
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="mean probability")
    ax.margins(x=0)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
