"""Diagrams of boxes and arrows: the layers of the library, the way of a batch and of a row."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BOX = {"boxstyle": "round,pad=0.35", "facecolor": "#F4F4F4", "edgecolor": "#333333", "linewidth": 0.8}
ARROW = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 0.9, "shrinkA": 2, "shrinkB": 2}


def layers(stacked: Sequence[Sequence[str]], size: int = 9) -> Figure:
    """A row of names per layer, the first at the bottom; what stands higher may import what stands lower."""
    figure = Figure(figsize=(9, 0.55 * len(stacked)), layout="constrained")
    ax = _empty(figure, -0.6, len(stacked) - 0.4)
    for height, names in enumerate(stacked):
        ax.axhspan(height - 0.42, height + 0.42, color="#F4F4F4", linewidth=0)
        for i, name in enumerate(names):
            ax.text(
                (i + 0.5) / len(names),
                height,
                name,
                ha="center",
                va="center",
                fontsize=size,
                family="monospace",
            )
    return figure


def flow(ways: Sequence[tuple[str, Sequence[str]]], size: int = 8) -> Figure:
    """A line of boxes per way, from left to right, its title above it."""
    figure = Figure(figsize=(11, 1.25 * len(ways)), layout="constrained")
    ax = _empty(figure, -0.5, len(ways) - 0.35)
    for row, (title, boxes) in enumerate(ways):
        height = len(ways) - 1 - row
        ax.text(0, height + 0.47, title, fontsize=size + 1, fontweight="bold", va="center")
        middles = [(i + 0.5) / len(boxes) for i in range(len(boxes))]
        texts = [
            ax.text(x, height, text, ha="center", va="center", fontsize=size, bbox=BOX)
            for x, text in zip(middles, boxes, strict=True)
        ]
        for left, right in pairwise(texts):
            start, end = left.get_bbox_patch(), right.get_bbox_patch()
            assert start and end, "texts in boxes"
            ax.annotate("", xy=(0, 0.5), xytext=(1, 0.5), xycoords=end, textcoords=start, arrowprops=ARROW)
    return figure


def _empty(figure: Figure, low: float, high: float) -> Axes:
    ax = figure.subplots()
    ax.set(xlim=(0, 1), ylim=(low, high))
    ax.axis("off")
    return ax
