"""The page of the repeated rounds, on chains that lose a known share of the teacher's signal."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from page_rows import frame_of as framed
from page_rows import outcomes as outcomes_of

from analysis import page
from analysis import rounds as rounds_page
from analysis.questions import ROUNDS
from taid import results
from taid.studies import instruction_tuning, rounds

KL = instruction_tuning.Run("cpu", "kl", rounds.TEACHER, seed=0, learning_rate=3e-3)


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(40, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.arange(40) % 30


def frame_of(folder, losses: dict[str, float], seeds: int = 3):
    return framed(
        folder, [r for v, loss in losses.items() for seed in range(seeds) for r in chain_rows(v, seed, loss)]
    )


def outcomes(frame) -> dict[str, str]:
    return {name: found for name, [found] in outcomes_of(rounds_page.PAGE, frame).items()}


@cache  # a row asks git for its commit
def chain_rows(variant: str, seed: int, loss: float) -> list[results.Row]:
    """A chain that loses a share `loss` of the teacher's signal in every round but the first, as rows."""
    y, noise = rounds.centred(random_logits(1)), rounds.centred(random_logits(100 + seed))
    students = [(1 - loss) ** t * y + 0.1 * noise for t in range(6)]
    values = rounds.trajectory(students, y, torch.zeros_like(y), LABELS, rounds.VARIANTS[variant])
    return rounds.rows(rounds.Chain(variant, replace(KL, seed=seed)), "rounds", values, seconds=1.0)


def test_claims_flip_with_the_data(tmp_path):
    """The theory's picture, and its reverse. Less signal is more entropy here: the logits shrink."""
    names = [claim.name for about in ROUNDS.values() for claim in about]
    picture = outcomes(frame_of(tmp_path / "a", {"self_distillation": 0.3, "taid": 0.0, "constant": 0.1}))
    spared = [
        "TAID collapses",
        "constant λ collapses",
    ]  # which the theory has collapse too, for so small an r₀
    exceptions = dict.fromkeys(["self-distillation narrows", *spared], "contradicted")
    assert picture == dict.fromkeys(names, "supported") | exceptions
    reverse = outcomes(frame_of(tmp_path / "b", {"self_distillation": -0.1, "taid": 0.5, "constant": 0.5}))
    assert reverse == dict.fromkeys(names, "contradicted") | {
        "self-distillation drifts away": "supported",  # the KL sees too much signal as well
        "self-distillation narrows": "supported",
        **dict.fromkeys(spared, "supported"),
    }


def test_one_seed_or_one_variant_settles_nothing(tmp_path):
    one = frame_of(tmp_path, {"self_distillation": 0.3}, seeds=1)
    assert set(outcomes(one).values()) == {"inconclusive"}
    text = page.render(rounds_page.PAGE, one, "cpu")
    assert "1 seed;" in text and "| TAID |" not in text


@pytest.mark.parametrize(
    ("strength", "outcome"),
    [(4.01, "no collapse"), (4.0, "undecided"), (2.01, "undecided"), (2.0, "collapse")],
)
def test_predictions_turn_at_the_bound_and_at_its_root(strength, outcome):
    assert rounds_page.predicted(strength, bound=4.0) == outcome


def test_the_figure_shows_the_rounds_means(tmp_path):
    frame = frame_of(tmp_path, {"self_distillation": 0.3, "taid": 0.0})
    ax = rounds_page.draw(frame).axes[rounds_page.DRAWN.index("drift")]
    drawn = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    means = frame[(frame.metric == "drift") & (frame.method == "taid")].groupby("task").value.mean()
    assert drawn["TAID"] == pytest.approx([means[f"round {t}"] for t in range(7)])
    assert {"self-distillation", "self-distillation, bound", "TAID, bound"} <= drawn.keys()
