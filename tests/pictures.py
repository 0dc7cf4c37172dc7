"""The pictures of docs/pictures, drawn anew: `python tests/pictures.py`.

modules.svg    the layers that tests/test_architecture.py holds
data_flow.svg  the way of a batch, and of a row
bridge.gif     TAID's bridge on a mixture of Gaussians: the intermediate teacher goes from student to teacher
"""

from pathlib import Path

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_architecture import LAYERS, ROOT

from analysis import diagrams, page, toy_figures
from analysis.style import COLOURS
from taid import toy

FOLDER = ROOT / "docs" / "pictures"
STEPS, FRAMES = 600, 31
WAYS = (
    (
        "A training step (taid/trainer)",
        (
            "rows of text\ntaid/text",
            "batch\ntaid/data.py",
            "student and teacher logits\nat the labels\ntaid/logits.py, taid/teacher",
            "per-token divergence\ntaid/objectives.py\ntaid/losses.py, taid/fused",
            "mean over the step's labels\ntaid/trainer",
            "t for the next step\ntaid/schedule.py",
        ),
    ),
    (
        "A result",
        (
            "make table1\nMakefile",
            "the grid\npaper_experiments",
            "cells, students, measures\ntaid/studies",
            "rows with provenance\nresults/*.jsonl",
            "statistics, verdicts, figures\nanalysis",
            "pages and site\nresults/*.md, make report",
        ),
    ),
)


def modules() -> Figure:
    return diagrams.layers([sorted(layer) for layer in LAYERS])


def data_flow() -> Figure:
    return diagrams.flow(WAYS)


def bridge() -> FuncAnimation:
    """One Gaussian learns from a mixture of two, t from 0 to 1."""
    points = toy.grid(9.0, 300)
    teacher, student = toy.ring_of_modes(2, 6.0, weights=[0.6, 0.4]), toy.Gaussians(points)
    logits = teacher.logits(points)
    path = toy.distill(student, logits, "taid", student.init(1, seed=4), steps=STEPS, t_start=0.0)
    at = torch.linspace(0, STEPS, FRAMES).long()
    walk = student.logits(path.parameters[at])[:, 0]  # [frames, cells]
    target = toy.targets(walk[:, None], logits, path.t[at])[:, 0]
    ax = FigureCanvasAgg(Figure(figsize=(5, 2.4), dpi=80, layout="constrained")).figure.subplots()
    p, targets, students = (x.softmax(-1).numpy() for x in (logits, target, walk))
    return toy_figures.bridge(ax, points[:, 0].numpy(), p, targets, students, path.t[at].numpy(), COLOURS)


def draw(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    page.save(folder, {}, {"modules.svg": modules(), "data_flow.svg": data_flow()})
    bridge().save(folder / "bridge.gif", writer=PillowWriter(fps=8))


if __name__ == "__main__":
    draw(FOLDER)
