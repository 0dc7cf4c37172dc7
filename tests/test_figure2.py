"""Figure 2, left and middle: which points a run gives."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from analysis import figure2 as page
from taid.studies import ablations, adaptivity, instruction_tuning, study

RUN = ablations.Run("cpu", "taid", ablations.TEACHER, seed=0, learning_rate=1e-2)
STEPS = instruction_tuning.CPU.distil.steps


def losses_of(noise: float, fall: float, seed: int) -> np.ndarray:
    """A loss that falls by `fall` nats over the run, under noise of that standard deviation."""
    return 2 + fall * (1 - np.linspace(0, 1, STEPS)) + noise * np.random.default_rng(seed).normal(size=STEPS)


def trace_of(run: ablations.Run, losses) -> list[dict[str, float]]:
    if run.variant.loss == "kl":
        return [{"loss": float(loss)} for loss in losses]
    line, steps = run.schedule(), []
    state = line.init()
    for n, loss in enumerate(losses, start=1):
        state = line.update(state, float(loss), n / STEPS)
        steps.append({"loss": float(loss)} | asdict(state))
    return steps


@pytest.fixture
def curves(monkeypatch):
    """The job, with a given trace in place of training."""

    def job(method: str, seed: int = 0, noise: float = 0.1, fall: float = 1.0):
        run = replace(RUN, method=method, seed=seed)
        monkeypatch.setattr(ablations, "trace", lambda run: trace_of(run, losses_of(noise, fall, seed)))
        return ablations.curves(run)[0]

    return job


def test_points_lie_on_their_curves(curves):
    """Oracle: the closed form at momentum 0, here and at the paper's length; measured losses move it little."""
    found = curves("taid")
    tasks = [f"{share:.4f}" for share in np.linspace(0, 1, ablations.POINTS)]
    for metric, updates in (
        ("t", STEPS),
        ("t_paper_constant", study.PAPER_UPDATES),
        ("t_paper_measured", study.PAPER_UPDATES),
    ):
        t = adaptivity.predicted(instruction_tuning.CPU.alpha * STEPS / updates, updates, 0.4)
        expected = np.interp(np.linspace(0, 1, ablations.POINTS), np.linspace(0, 1, updates + 1), t)
        tolerance = 1e-9 if metric == "t_paper_constant" else 0.01
        assert [found[metric, task] for task in tasks] == pytest.approx(expected, abs=tolerance)
    assert page.EARLY in tasks


def test_loss_and_noise_are_those_of_the_window(curves):
    """A straight line without noise, 3 − (s − 1)/(N − 1) at step s: its value there, and no variance."""
    found = curves("kl", noise=0.0)
    assert {metric for metric, _ in found} == {"loss", "noise_variance", *page.VARIANCES}
    for (metric, task), value in found.items():
        if metric == "loss":
            assert value == pytest.approx(3 - (float(task) * STEPS - 1) / (STEPS - 1), abs=1e-3)
        if metric == "noise_variance":
            assert value == pytest.approx(0, abs=1e-20)
    noisy = curves("kl", noise=0.3)
    assert noisy["noise_variance", "average"] == pytest.approx(0.09, rel=0.3)  # 300 draws


def test_only_the_adaptive_update_has_a_curve_at_the_papers_length(curves):
    metrics = {
        method: {metric for metric, _ in curves(method)} for method in ("taid", "taid_no_adaptive", "kl")
    }
    assert metrics["taid"] - metrics["taid_no_adaptive"] == {"t_paper_constant", "t_paper_measured"}
    assert metrics["taid_no_adaptive"] - metrics["kl"] == {"t"}
