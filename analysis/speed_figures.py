"""Drawing of `results/speed.png`."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cost import METHODS, label, ratios
from analysis.figures import BARS, canvas, legend, logarithmic, plain, stacked
from analysis.speed_rows import CONTENDERS, FLOOR, curve, digits, measured, median, settings
from analysis.style import COLOURS

SIDES = {"scaling_vocab": "vocabulary V", "scaling_rows": "rows N"}
METRICS = {"time": "seconds", "memory": "bytes beyond the inputs"}


def draw(frame: pd.DataFrame) -> Figure:
    """TAID's time and memory over V and N, a row of panels for each that has rows; below them its contenders at the
    first shape, and training steps over KL's."""
    sides = [experiment for experiment in SIDES if (frame.experiment == experiment).any()]
    growth = 0.6 + 2.6 * len(sides)
    figure = canvas(growth + 4)
    *above, below = stacked(figure, *[growth] * bool(sides), 4)
    for part in above:
        for experiment, axes in zip(sides, part.subplots(len(sides), 2, squeeze=False), strict=True):
            for ax, metric in zip(axes, METRICS, strict=True):
                over_size(ax, frame, experiment, metric)
        legend(part)
    left, right = below.subplots(1, 2)
    bars(left, frame)
    training_steps(right, frame)
    legend(below, BARS)
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
    ax.set(xscale="log", yscale="log", xlabel=side, ylabel=METRICS[metric])
    ax.set_title(f"TAID: {metric} over {side}", fontsize=10)
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
        ax.set_title(task.replace("taid", "TAID"), fontsize=10)
        ax.set_xlabel("ns/element, forward and backward", fontsize=9)
        ax.tick_params(labelsize=8)
        ax.locator_params(axis="x", nbins=4)
        ax.margins(x=0.2)
    return plain(ax)


def training_steps(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Steps over KL's, dots per condition with their intervals."""
    cells, config = measured(frame, "cost", "step"), settings(frame, "cost")
    for offset, method in enumerate(METHODS):
        base = method.removesuffix("_sampling")
        found = [(at, each) for at, steps in enumerate(cells.values()) if (each := ratios(steps, method))]
        for at, estimate in found:
            height, colour = at + 0.18 * (offset - 1.5), COLOURS[base]
            if estimate.n > 1:
                ax.plot(
                    [estimate.low, estimate.high], [height, height], color=colour, linewidth=2.5, alpha=0.5
                )
            face = colour if base == method else "white"
            ax.plot(estimate.mean, height, "o", color=colour, mfc=face, markersize=5, label=label(method))
    if cells:
        names = [
            "{batch} × ({prompt} + {response}), {probability:g}".format(**config[task]) for task in cells
        ]
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.axvline(1, color=COLOURS["kl"], linewidth=1, linestyle=":", label="KL")
        ax.set(xscale="log")
        logarithmic(ax.xaxis)
        ax.set_ylabel("batch × (prompt + response), GKD's probability", fontsize=8)
        ax.set_xlabel("seconds, over KL's", fontsize=9)
    ax.set_title("Training step over KL's", fontsize=10)
    return plain(ax)
