"""Loss, t and gradient norm of a run by optimizer step: beside a student that `taid distill` made, or live in a notebook."""

import csv
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {"loss [nats/token]": ("loss", "eval_loss"), "t": ("t",), "gradient norm": ("grad_norm",)}
STYLES = {"loss": ("training", "#333333", "-"), "eval_loss": ("validation, cross-entropy", "#D55E00", "--")}


class LiveCurves(TrainerCallback):
    """The curves of a run below a notebook's cell, drawn anew whenever the Trainer logs (`logging_steps`):

        DistillationTrainer(…, callbacks=[LiveCurves()]).train()

    On several ranks the first draws. Raises ImportError, with what to install, without matplotlib or IPython.
    """

    def __init__(self) -> None:
        try:
            import matplotlib  # noqa: F401
            from IPython.display import display
        except ImportError as error:
            raise ImportError(
                f"live curves need a notebook: pip install matplotlib ipython ({error})"
            ) from error
        self._display, self._place = display, None

    def on_train_begin(self, args, state, control, **kwargs):
        self._place = None  # a second run has a picture of its own

    def on_log(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or not _panels(state.log_history):
            return
        from IPython.display import Image

        picture = Image(data=_png(figure(state.log_history)))
        if self._place is None:
            self._place = self._display(picture, display_id=True)
        else:
            self._place.update(picture)


def figure(history: list[dict]) -> "Figure":
    """A panel for each of PANELS that the Trainer's `log_history` has something of.

    Raises ValueError if it has nothing of any.
    """
    from matplotlib.figure import Figure

    panels = _panels(history)
    if not panels:
        raise ValueError(f"no {', '.join(sum(PANELS.values(), ()))} in the history: nothing was logged yet")
    drawn = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    for axes, (title, curves) in zip(
        drawn.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name, points in curves.items():
            label, colour, line = STYLES.get(name, (name, "#333333", "-"))
            axes.plot(*zip(*points, strict=True), line, marker=".", color=colour, label=label)
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axes.legend(frameon=False)
    return drawn


def draw(history: list[dict], path: Path) -> bool | None:
    """Write `figure` to `path`; False where there is no matplotlib to draw it, None where there is nothing to draw."""
    if not _panels(history):
        return None
    try:
        figure(history).savefig(path, dpi=120)
    except ImportError:
        return False
    return True


def table(history: list[dict]) -> str:
    """The Trainer's `log_history` as CSV: a line a step, a column for each name, empty where it was not logged."""
    steps: dict[int, dict] = {}
    for row in history:
        steps.setdefault(row["step"], {}).update(row)
    text = StringIO()
    names = dict.fromkeys(["step", *(name for row in history for name in row)])
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(steps[step] for step in sorted(steps))
    return text.getvalue()


def _panels(history: list[dict]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Panel → name → (step, value) of each time that it was logged; what never was has no entry."""
    found = {
        title: {name: [(row["step"], row[name]) for row in history if name in row] for name in names}
        for title, names in PANELS.items()
    }
    logged = {title: {name: p for name, p in curves.items() if p} for title, curves in found.items()}
    return {title: curves for title, curves in logged.items() if curves}


def _png(drawn: "Figure") -> bytes:
    image = BytesIO()
    drawn.savefig(image, format="png", dpi=80)
    return image.getvalue()
