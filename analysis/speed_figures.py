"""Drawing of `results/speed.png`."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cost import METHODS, label, ratios
from analysis.figures import legend, plain
from analysis.speed_rows import CONTENDERS, FLOOR, curve, digits, measured, median, settings
from analysis.style import COLOURS

SIDES = {"scaling_vocab": "vocabulary V", "scaling_rows": "rows N"}
METRICS = {"time": "seconds", "memory": "bytes beyond the inputs"}


def draw(frame: pd.DataFrame) -> Figure:
    """TAID's time and memory over V and N; its contenders at the first shape; training steps over KL's."""
    sides = [experiment for experiment in SIDES if (frame.experiment == experiment).any()]
    figure = Figure(figsize=(5.6 + 4.2 * len(sides), 7.5), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(sides) + 1, width_ratios=(*(1 for _ in sides), 1.35), squeeze=False)
    for column, experiment in enumerate(sides):
        for row, metric in enumerate(METRICS):
            over_size(axes[row, column], frame, experiment, metric)
    legend(figure, columns=2 * axes.shape[1])
    bars(axes[0, -1], frame)
    training_steps(axes[1, -1], frame)
    return figure


def over_size(ax: Axes, frame: pd.DataFrame, experiment: str, metric: str) -> Axes:
    """Medians over size, a line per contender; the floor is dashed."""
    sizes: set[int] = set()
    for key, (name, colour) in CONTENDERS.items():
        points = pd.DataFrame(curve(frame, experiment, metric, key), columns=["size", "value"])
        values = points.groupby("size").value.median()
        values = values[values > 0]
        if len(values) and (key, metric) != (FLOOR, "memory"):
            form = "--" if key == FLOOR else "o-"
            ax.plot(values.index, values, form, color=colour, label=name, linewidth=1.6, markersize=4)
            sizes |= set(values.index)
    side = SIDES[experiment]
    title = f"TAID: {metric} over {side}"
    ax.set(xscale="log", yscale="log", xlabel=side, ylabel=METRICS[metric], title=title)
    ax.set_xticks(sorted(sizes), [short(size) for size in sorted(sizes)])
    ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    return plain(ax)


def short(size: int) -> str:
    """ "32k" for 32,000, so that labels of doubled sizes do not meet."""
    return f"{size // 1000}k" if size % 1000 == 0 else f"{size:,}"


def bars(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Times of TAID's contenders in the first cell."""
    config, times = settings(frame, "losses"), measured(frame, "losses", "time")
    task = next((task for task in times if config[task]["loss"] == "taid"), None)
    if task is not None:
        present = [key for key in CONTENDERS if key in times[task]][::-1]
        values = [median(times[task][key]) for key in present]
        names, colours = zip(*(CONTENDERS[key] for key in present), strict=True)
        drawn = ax.barh(names, values, color=colours)
        ax.bar_label(drawn, [digits(value) for value in values], padding=3, fontsize=8)
        ax.set(title=task.replace("taid", "TAID"), xlabel="ns/element, forward and backward")
        ax.margins(x=0.12)
    return plain(ax)


def training_steps(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Steps over KL's, a group of bars per condition, with their intervals."""
    cells, config, width = measured(frame, "cost", "step"), settings(frame, "cost"), 0.8 / len(METHODS)
    for offset, method in enumerate(METHODS):
        found = [(at, each) for at, steps in enumerate(cells.values()) if (each := ratios(steps, method))]
        base = method.removesuffix("_sampling")
        ax.bar(
            [at + offset * width for at, _ in found],
            [estimate.mean for _, estimate in found],
            width,
            align="edge",
            color=COLOURS[base],
            hatch=None if base == method else "//",
            edgecolor="white",
            label=label(method),
        )
        for at, estimate in found:
            if estimate.n > 1:
                middle = at + (offset + 0.5) * width
                ax.plot([middle, middle], [estimate.low, estimate.high], color="black", linewidth=0.9)
    if cells:
        names = ["{batch}×({prompt}+{response}), {probability:g}".format(**config[task]) for task in cells]
        ax.set_xticks([at + 0.4 for at in range(len(names))], names, rotation=30, ha="right", fontsize=8)
        ax.axhline(1, color=COLOURS["kl"], linewidth=1, linestyle=":")
        ax.legend(frameon=False, fontsize=8)
    ax.set(title="Training step over KL's", xlabel="batch × (prompt + response), GKD samples")
    return plain(ax)
