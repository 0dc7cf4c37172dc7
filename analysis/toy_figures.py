"""Drawing for the mode-collapse notebook and Table 3: arrays and axes in, axes out. No statistics, no
torch.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from numpy import ndarray as Array

from analysis.style import name

TEACHER = "#DDDDDD"


def densities(
    ax: Axes, x: Array, teacher: Array, students: Mapping[str, Array], colours: Mapping[str, str]
) -> Axes:
    """The teacher filled in grey, and a line per student, over the cells x [V]; all arrays [V]."""
    ax.fill_between(x, teacher, color=TEACHER, label="teacher")
    for key, density in students.items():
        ax.plot(x, density, color=colours.get(key, "black"), label=name(key))
    ax.set_yticks([])
    ax.margins(y=0.03)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return ax


def starts(ax: Axes, x: Array, values: Array, colour: str, label: str) -> Axes:
    """One thin line per start: values [N, S] over x [N], of steps or of t."""
    lines = ax.plot(x, values, color=colour, alpha=0.6, linewidth=1)
    lines[0].set_label(label)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def branches(ax: Axes, orders: Array, values: Mapping[str, Array]) -> Axes:
    """Where training at a fixed order t ends [T], a marker per kind of start, over the orders [T]."""
    for (label, ends), marker in zip(values.items(), "o^sv", strict=False):
        ax.plot(orders, ends, marker, color="black", markersize=6, markerfacecolor="white", label=label)
    return ax


def contours(ax: Axes, points: Array, teacher: Array, student: Array, colour: str) -> Axes:
    """A 2-D student's contours over the teacher's shades; points [V, 2] of a square grid, densities [V]."""
    side = int(np.sqrt(len(points)))
    x, y, p, q = (values.reshape(side, side) for values in (*points.T, teacher, student))
    ax.contourf(x, y, p, levels=8, cmap="Greys")
    ax.contour(x, y, q, levels=q.max() * np.array([0.1, 0.3, 0.6, 0.9]), colors=colour, linewidths=1.2)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def optima(ax: Axes, values: Mapping[str, Array], colours: Mapping[str, str]) -> Axes:
    """One faint dot per start [S], a line of dots per method; where many starts end alike the dot is dark."""
    for height, (key, ends) in enumerate(values.items()):
        jitter = np.linspace(-0.3, 0.3, len(ends))  # by start, so that dots that coincide are told apart
        ax.plot(ends, height + jitter, "o", color=colours.get(key, "black"), alpha=0.35, markersize=4, mew=0)
    ax.set_yticks(range(len(values)), [name(key) for key in values])
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    return ax


def bridge(
    ax: Axes, x: Array, teacher: Array, targets: Array, students: Array, t: Array, colours: Mapping[str, str]
) -> FuncAnimation:
    """The intermediate teacher p_t on its way; targets and students [frames, V], teacher [V], t [frames]."""
    densities(ax, x, teacher, {}, colours)
    (target,) = ax.plot(x, targets[0], "--", color=colours["taid"], label="$p_t$")
    (student,) = ax.plot(x, students[0], color=colours["taid"], label="student")
    ax.set_ylim(0, 1.05 * max(targets.max(), students.max(), teacher.max()))
    ax.legend(loc="upper right")
    title = ax.set_title("")

    def draw(frame: int):
        target.set_ydata(targets[frame])
        student.set_ydata(students[frame])
        title.set_text(f"t = {t[frame]:.2f}")
        return target, student, title

    figure = ax.get_figure(root=True)
    assert figure is not None, "axes of a figure"
    return FuncAnimation(figure, draw, frames=len(t), interval=150)
