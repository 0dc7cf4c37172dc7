"""Figure 3: `results/figure3.md` and its figure."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.claims import FIGURE3, IMAGES, LANGUAGE
from analysis.figures import canvas, legend, lines
from analysis.measures import Measure
from analysis.page import Comparison, Page
from analysis.rows import Scores
from analysis.style import COLOURS, name
from analysis.tables import Table, number

MEASURES = {
    "entropy": Measure("entropy", "nats", 3),
    "normalised_entropy": Measure("entropy / log V", "", 3),
    "target_probability": Measure("probability of what is right", "", 3),
}
SPLITS = {"test": "held-out", "train": "what students learn from"}  # the primary one first
SIDES = {LANGUAGE: COLOURS["language"], IMAGES: COLOURS["images"]}


def preamble(frame: pd.DataFrame, scale: str) -> str:
    return (
        f"Teachers of Table 1 (language) and of Tables 7 and 8 (images), scale {scale}: the entropy of their predictions,"
        " also as a share of log V, the most that V classes or tokens can have, and the probability that they give the"
        " class or token that was right. *Paper*: CIFAR-100 and UltraChat, a figure without numbers. *Ours*: ten classes"
        " of clothes, and responses in 2,048 tokens by teachers some five thousand times smaller than the"
        " paper's, and so less sure. Teachers are one of each kind: an interval over them is one over kinds of teachers,"
        " each of language beside the mean of those of images, and none over seeds.\n\n"
        "![Shares of predictions below a value](figure3.png)\n\n"
        "*Figure*: on held-out data, the share of predictions below a value, a line for each teacher.\n"
    )


def headline(frame: pd.DataFrame, scale: str) -> Table:
    """Teacher × measure, on held-out data and in training."""
    found = {(metric, split): by_teacher(frame, metric, split) for split in SPLITS for metric in MEASURES}
    body = [
        [name(teacher), modality, *(number(by[modality][teacher], 3) for by in found.values())]
        for modality in SIDES
        for teacher in found["entropy", "test"].get(modality, {})
    ]
    body += [
        [
            "**mean**",
            modality,
            *(number(float(np.mean([*by[modality].values()])), 3) for by in found.values()),
        ]
        for modality in SIDES
        if found["entropy", "test"].get(modality)
    ]
    header = ["teacher", "of", *(f"{MEASURES[metric].heading}, {SPLITS[split]}" for metric, split in found)]
    return Table(header, body, text_columns=2)


def by_teacher(frame: pd.DataFrame, metric: str, split: str) -> dict[str, dict[str, float]]:
    """Modality → teacher → mean of a metric on a split."""
    chosen = frame[(frame.metric == metric) & (frame.task == split)]
    return {
        modality: dict(zip(rows.teacher, rows.value, strict=True))
        for modality, rows in chosen.groupby("method", sort=False)
    }


def beside(found: Mapping[str, Mapping[str, float]]) -> Scores:
    """Each teacher of language, by its number, and beside it the mean of those of images."""
    language, images = (found.get(modality, {}) for modality in SIDES)
    if not images:
        return {}
    middle = float(np.mean([*images.values()]))
    return {LANGUAGE: dict(enumerate(language.values())), IMAGES: dict.fromkeys(range(len(language)), middle)}


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    return [
        Comparison(where, measure, beside(by_teacher(frame, metric, split)), FIGURE3[metric])
        for split, where in SPLITS.items()
        for metric, measure in MEASURES.items()
    ]


def sections(frame: pd.DataFrame, scale: str) -> dict[str, str]:
    return {"How unsure teachers are": headline(frame, scale).markdown()}


def draw(frame: pd.DataFrame) -> Figure:
    figure = canvas(3.4)
    for ax, (metric, measure) in zip(figure.subplots(1, 3, sharey=True), MEASURES.items(), strict=True):
        shares(ax, frame, metric)
        ax.set(xlabel=measure.heading)
    figure.axes[0].set_ylabel("share of predictions below")
    legend(figure)
    return figure


def shares(ax: Axes, frame: pd.DataFrame, metric: str) -> Axes:
    """For each teacher, on held-out data, the share of its predictions below a value."""
    chosen = frame[(frame.metric == f"{metric}_at") & frame.task.str.startswith("test ")]
    for modality, colour in SIDES.items():
        for _, rows in chosen[chosen.method == modality].groupby("teacher"):
            rows = rows.sort_values("value")
            share = np.sort(rows.task.str.split().str[-1].astype(float).to_numpy())
            lines(ax, rows.value.to_numpy(), {f"a teacher of {modality}": (share, colour, "-")})
    return ax


PAGE = Page(
    "figure3",
    "Figure 3: predictions of images and of language",
    preamble,
    headline,
    sections,
    comparisons,
    lambda frame, scale: {"figure3": draw(frame)},
)
