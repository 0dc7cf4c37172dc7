"""Drawing the theory: functions take axes and arrays, and return the axes. They compute no statistics."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy import ndarray as Array

from analysis import page
from analysis.figures import BAND, REFERENCE, SHADES, plain
from analysis.figures import lines as lines  # for the notebook, which draws with this module alone
from analysis.style import COLOURS

TAID, FORWARD, REVERSE = COLOURS["taid"], COLOURS["kl"], COLOURS["rkl"]
REPEATED = FORWARD  # self-distillation; never beside the forward KL
FOLDER = Path("results/theory")


def save(figure: Figure, stem: str) -> list[Path]:
    """The files written, as of every figure: pixels and lines."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return page.save(FOLDER, {}, page.both({stem: figure}))


def phase_diagram(
    ax: Axes, lengths: Array, signals: Array, collapses: Array, bound: Array, colour: str
) -> Axes:
    """Shade where labels collapse, boolean [lengths, signals]; `bound` [lengths] is B(T)."""
    shades = ListedColormap(["#FFFFFF", colour])
    ax.pcolormesh(lengths, signals, collapses.T, cmap=shades, alpha=0.35, rasterized=True)
    ax.plot([], [], "s", color=colour, alpha=0.35, markersize=9, label="collapse")
    ax.plot(lengths, bound, color=colour, linewidth=2, label="B: no collapse above")
    ax.plot(lengths, np.sqrt(bound), color=colour, linewidth=2, linestyle=":", label="√B: collapse below")
    ax.set(xscale="log", yscale="log", xlim=(lengths[0], lengths[-1]), ylim=(signals[0], signals[-1]))
    ax.set_xlabel("T")
    return plain(ax)


def trajectories(ax: Axes, curves: Mapping[str, tuple[Array, str, str]]) -> Axes:
    """Signals ‖z̃_t‖ [T + 1] by label, each with colour and line style; a cross marks the first collapse."""
    ax.axhspan(0, 1, color=BAND, label="collapse below 1")
    ax.plot([], [], "x", color="black", markersize=8, markeredgewidth=2, label="the first one")
    for label, (signal, colour, style) in curves.items():
        ax.plot(signal, color=colour, linestyle=style, linewidth=1.8, label=label)
        below = np.flatnonzero(signal <= 1)
        if below.size:
            ax.plot(below[0], signal[below[0]], "x", color=colour, markersize=8, markeredgewidth=2)
    ax.set(xlabel="round t", ylim=(0, None))
    return plain(ax)


def tightness(ax: Axes, conditions: Array, ratios: Mapping[int, Array], roots: Mapping[int, float]) -> Axes:
    """Critical signal over bound against κ, by T: lowest, median and highest over labels, [3, conditions].

    `roots` holds the least ratio that theory allows, 1/√B, by T.
    """
    for colour, (last, (low, middle, high)) in zip(SHADES, ratios.items(), strict=False):
        ax.fill_between(conditions, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(conditions, middle, "o-", color=colour, markersize=4, label=f"T = {last}")
        ax.axhline(roots[last], color=colour, linestyle=":", linewidth=1.2)
    ax.fill_between([], [], [], color=REFERENCE, alpha=0.2, linewidth=0, label="lowest to highest")
    ax.axhline(1, color="black", linewidth=1, label="bound")
    ax.plot([], [], ":", color=REFERENCE, linewidth=1.2, label="least by theory")
    ax.set(xscale="log", xlabel="condition number κ", ylabel="critical signal / bound", ylim=(0, 1.05))
    return plain(ax)


def distributions(ax: Axes, student: Array, teacher: Array) -> Axes:
    """The two distributions over the vocabulary."""
    tokens = np.arange(len(teacher))
    ax.bar(tokens, teacher, width=1, color="#BBBBBB", label="teacher p")
    ax.step(tokens, student, where="mid", color="black", linewidth=1.4, label="student q")
    ax.set(xticks=[], yticks=[], title="distributions")
    ax.legend(frameon=False, fontsize=7, loc="upper right")
    return plain(ax)


def gradient(ax: Axes, step: Array, title: str, note: str) -> Axes:
    """What a descent step does to the logits, −gradient [V]: raised in one colour, lowered in the other."""
    ax.bar(np.arange(len(step)), step, width=1, color=np.where(step > 0, TAID, REPEATED))
    ax.axhline(0, color="black", linewidth=0.6)
    ax.text(0.98, 0.03, note, transform=ax.transAxes, ha="right", va="bottom", fontsize=7, color=REFERENCE)
    ax.set(xticks=[], title=title)
    ax.tick_params(labelsize=6, length=2)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    return ax


def open_loop(ax: Axes, runs: Sequence[tuple[str, Array, Array]], floor: Array) -> Axes:
    """t over training: each run's schedule [N + 1] as a broad line, its open loop [N + 1] dashed within."""
    progress = np.linspace(0, 1, len(floor))
    ax.plot(progress, floor, color=REFERENCE, linewidth=1.2, linestyle=":", label="linear floor")
    for colour, (label, schedule, approximation) in zip(SHADES, runs, strict=False):
        ax.plot(progress, schedule, color=colour, linewidth=4, alpha=0.55, label=label)
        ax.plot(progress, approximation, color="black", linewidth=1, linestyle="--", label="_")
    ax.plot([], [], "--", color="black", linewidth=1, label="open loop")
    ax.set(xlabel="share of training", ylabel="t", ylim=(None, 1.02))
    return plain(ax)
