"""Curves of a run: what is drawn, and when."""

import builtins

import pytest
from conftest import tiny_examples, tiny_trainer

from taid import curves
from taid.curves import LiveCurves, draw, figure

HISTORY = [
    {"step": 1, "loss": 3.0, "grad_norm": 1.0, "t": 0.4},
    {"step": 2, "loss": 2.0, "grad_norm": 0.5, "t": 0.5},
    {"step": 2, "eval_loss": 2.5},
    {"step": 2, "train_runtime": 1.0},
]


def test_a_figure_has_what_was_logged_and_no_more():
    drawn = figure(HISTORY)
    assert [axes.get_title() for axes in drawn.axes] == ["loss [nats/token]", "t", "gradient norm"]
    first = {line.get_label(): line.get_xydata().tolist() for line in drawn.axes[0].lines}
    assert first == {"training": [[1, 3], [2, 2]], "validation, cross-entropy": [[2, 2.5]]}
    assert [axes.get_title() for axes in figure(HISTORY[2:]).axes] == ["loss [nats/token]"]  # SFT has no t
    with pytest.raises(ValueError, match="nothing was logged"):
        figure([{"step": 0, "train_runtime": 1.0}])


class Place:
    """What `display` gives: where a picture was put, to be replaced."""

    def __init__(self):
        self.pictures = []

    def update(self, picture):
        self.pictures.append(picture)


def test_curves_are_drawn_while_training_in_one_place_a_run(tmp_path, monkeypatch):
    places = []

    def display(picture, display_id):
        places.append(Place())
        places[-1].update(picture)
        return places[-1]

    live = LiveCurves()
    live._display = display
    trainer = tiny_trainer(
        tmp_path, steps=3, validation=tiny_examples(8), eval_strategy="steps", eval_steps=3
    )
    trainer.add_callback(live)
    trainer.train()
    assert len(places) == 1 and len(places[0].pictures) >= 4  # three steps and a validation
    assert all(picture.data.startswith(b"\x89PNG") for picture in places[0].pictures)
    trainer.train()
    assert len(places) == 2


def without(monkeypatch, missing: str) -> None:
    whole = builtins.__import__

    def importing(name, *rest, **named):
        if name.partition(".")[0] == missing:
            raise ImportError(f"No module named {missing!r}")
        return whole(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", importing)


def test_without_matplotlib_a_run_ends_all_the_same(tmp_path, monkeypatch):
    without(monkeypatch, "matplotlib")
    assert draw(HISTORY, tmp_path / "curves.png") is False and not list(tmp_path.iterdir())
    with pytest.raises(ImportError, match=r"pip install matplotlib ipython"):
        LiveCurves()


def test_a_table_has_a_line_a_step_and_what_was_not_logged_is_empty():
    """By hand."""
    assert curves.table(HISTORY) == (
        "step,loss,grad_norm,t,eval_loss,train_runtime\n1,3.0,1.0,0.4,,\n2,2.0,0.5,0.5,2.5,1.0\n"
    )


def test_a_picture_of_a_run_is_written(tmp_path):
    assert draw(HISTORY, tmp_path / "curves.png")
    assert draw([{"step": 1, "train_runtime": 2.0}], tmp_path / "nothing.png") is None
    assert not (tmp_path / "nothing.png").exists()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert set(curves.STYLES) <= {name for names in curves.PANELS.values() for name in names}
