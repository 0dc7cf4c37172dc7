"""The audit of the adaptive update: closed forms, traces, the warning, replayed curves."""

import itertools
import json
import math
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import tiny_trainer
from hypothesis import given, settings
from hypothesis import strategies as st

from taid.losses import forward_kl
from taid.objectives import TAID, Divergence
from taid.schedule import Adaptive, Linear, Replayed, State, inert_below
from taid.studies import ablations, adaptivity
from taid.studies.variants import Traced

schedules = st.builds(
    Adaptive,
    t_start=st.floats(0, 0.6),
    t_end=st.floats(0.7, 1),
    alpha=st.floats(1e-3, 0.1),
    beta=st.floats(0, 1),
)


def states(schedule, losses) -> list[State]:
    found = [schedule.init()]
    for n, loss in enumerate(losses, start=1):
        found.append(schedule.update(found[-1], loss, n / len(losses)))
    return found


# In closed form; oracle: the schedule itself, under a constant loss


@given(schedule=schedules, updates=st.integers(5, 400))
def test_without_progress_t_is_the_prediction(schedule, updates):
    t = adaptivity.simulate(schedule, [1.7] * updates)
    exact = adaptivity.predicted(schedule.alpha, updates, schedule.t_start, schedule.t_end)
    np.testing.assert_allclose(t, exact, atol=1e-12)


@given(schedule=schedules, updates=st.integers(5, 400))
def test_the_floor_binds_from_the_crossing_on(schedule, updates):
    where = updates * adaptivity.crossing(schedule.alpha, updates, schedule.t_start, schedule.t_end)
    bound = [state.floor_bound for state in states(schedule, [1.7] * updates)[1:]]
    open_loop = 1 - (1 - schedule.t_start) * (1 - schedule.alpha / 2) ** np.arange(1, updates + 1)
    for n, (binds, ahead) in enumerate(zip(bound, open_loop, strict=True), start=1):
        if abs(n - where) > 1 and ahead < schedule.t_end:  # at its end t stands still, above the floor
            assert binds == (n > where)


def test_the_paper_leaves_the_floor_at_first_and_meets_it_near_the_end():
    """By hand, a = αN/2 = 4.06: 1 − x = e^(−4.06 x) at x = 0.9815; below a = 1 there is no crossing but 0."""
    assert adaptivity.crossing(5e-4, 16_239, 0.4) == pytest.approx(0.9815, abs=5e-4)
    assert adaptivity.crossing(5e-4, 3_900, 0.4) == 0
    assert adaptivity.crossing(5e-4, 16_239, 0.4, t_end=0.8) == 1  # t_end comes first


@given(schedule=schedules, momentum=st.floats(-1, 1))
def test_at_constant_momentum_the_prediction_is_the_recursion(schedule, momentum):
    t, sigma = schedule.t_start, 1 / (1 + math.exp(-momentum))
    for n, found in enumerate(adaptivity.predicted(schedule.alpha, 50, t, schedule.t_end, momentum)):
        floor = schedule.t_start + (schedule.t_end - schedule.t_start) * n / 50
        t = min(schedule.t_end, max(floor, t + (schedule.alpha * sigma * (1 - t) if n else 0)))
        assert found == pytest.approx(t, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.02, 0.05])
def test_the_momentum_needed_moves_t_by_just_that_much(alpha):
    """Oracle: the schedule without memory (β = 0) under a loss that changes by δ = ±m every time."""
    needed = adaptivity.momentum_needed(alpha, 400, 0.4)
    constant = adaptivity.predicted(alpha, 400, 0.4)
    shifts = [
        np.abs(
            adaptivity.simulate(Adaptive(0.4, alpha=alpha, beta=0.0), (1 - m) ** np.arange(400.0)) - constant
        ).max()
        for m in (needed, -needed)
    ]
    assert max(shifts) == pytest.approx(adaptivity.SHIFT, abs=alpha)  # the first update has no δ


def test_no_momentum_moves_what_the_floor_holds():
    assert adaptivity.momentum_needed(1e-3, 100, 0.4) == math.inf


positive_losses = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=60)


@given(losses=positive_losses, beta=st.floats(0, 1))
def test_no_loss_can_push_the_papers_momentum_beyond_the_range_of_its_logarithm(losses, beta):
    """Oracle: the paper's formulas, unclipped."""
    momentum, bound = 0.0, (1 - beta) * math.log(max(losses) / min(losses))
    for before, loss in itertools.pairwise(losses):
        momentum = beta * momentum + (1 - beta) * (before - loss) / before
        assert momentum <= bound + 1e-12


@given(losses=positive_losses, beta=st.floats(0, 1))
def test_no_loss_can_push_our_momentum_beyond_its_bound(losses, beta):
    bound = adaptivity.momentum_bound(losses, beta)
    for state in states(Adaptive(0.2, alpha=0.1, beta=beta), losses):
        assert state.momentum <= bound + 1e-12


def test_a_clipped_jump_spares_the_momentum_what_it_exceeds_a_factor_e_by():
    """A saw tooth, up by 10⁶ at once and down in ten steps: beyond the range alone, within the bound."""
    losses = np.tile(np.geomspace(1e6, 1, 11), 20)
    reached = max(state.momentum for state in states(Adaptive(0.2, alpha=0.1, beta=0.99), losses))
    assert 0.01 * math.log(1e6) < reached < adaptivity.momentum_bound(losses, 0.99)
    assert adaptivity.momentum_bound([0.0, 1.0], 0.99) == math.inf


def test_the_bound_is_nearly_met_by_a_loss_that_falls_slowly_and_all_along():
    """By hand: J falls by δ = 0.001 in each of n steps; the momentum nears (1 − β) n δ as β nears 1."""
    losses, beta = 0.999 ** np.arange(101.0), 1 - 1e-5
    reached = states(Adaptive(0.2, alpha=0.1, beta=beta), losses)[-1].momentum
    assert reached == pytest.approx(adaptivity.momentum_bound(losses, beta), rel=2e-3)


def test_noise_alone_pulls_the_momentum_down():
    """Independent log-normal losses have E[J_n] E[1/J_{n−1}] = exp(σ²), so δ is 1 − exp(σ²) on average."""
    losses = np.random.default_rng(5).lognormal(sigma=0.2, size=20_000)
    steps = [
        {"loss": x} | asdict(s)
        for x, s in zip(losses, states(Adaptive(0.4, alpha=1e-3), losses)[1:], strict=True)
    ]
    found = adaptivity.summary(steps, Adaptive(0.4, alpha=1e-3))
    assert found["progress_mean"] == pytest.approx(1 - math.exp(0.04), abs=0.005)  # standard error 0.002
    assert found["momentum_mean"] == pytest.approx(
        found["progress_mean"], rel=0.02
    )  # but for its first 100 steps
    assert found["progress_mean"] == pytest.approx(-found["relative_noise_variance"], rel=0.1)


# The warning


@given(schedule=schedules, updates=st.integers(1, 2000))
@settings(max_examples=200)
def test_the_warning_comes_exactly_where_the_first_step_stays_on_the_floor(schedule, updates):
    """Which is all steps, if it is the first: the adaptive step only shrinks."""
    t = states(schedule, [1.0] * updates)
    inert = all(
        state.t == floor.t
        for state, floor in zip(
            t, states(Linear(schedule.t_start, schedule.t_end), [1.0] * updates), strict=True
        )
    )
    near = abs(updates / inert_below(schedule.alpha, schedule.t_start, schedule.t_end) - 1) < 1e-9
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schedule.check(updates)
    assert near or bool(caught) == inert


def test_the_threshold_by_hand():
    assert inert_below(5e-4) == inert_below(5e-4, 0.4) == pytest.approx(4000)
    assert inert_below(5e-4, 0.4, 0.7) == pytest.approx(2000)  # half the way, half the slope of the floor
    assert inert_below(5e-4, 1.0) == 0  # nowhere to go


def test_the_trainer_warns_once_and_says_what_to_do(tmp_path):
    with pytest.warns(
        UserWarning, match=r"inert.*more than 4000 updates.*has 3.*scale_alpha\(0.0005, 3"
    ) as caught:
        tiny_trainer(tmp_path, "taid", steps=3).train()
    assert sum("inert" in str(warning.message) for warning in caught) == 1
    for objective in (TAID(Adaptive(0.4, alpha=0.9)), TAID(Linear(0.4)), "kl"):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "TAID's adaptive")
            tiny_trainer(tmp_path, objective, steps=3).train()


# Replayed, frozen and traced


@given(losses=st.lists(st.floats(0.1, 10), min_size=1, max_size=40), schedule=schedules)
def test_a_replayed_curve_is_the_curve_whatever_the_loss(losses, schedule):
    t = [state.t for state in states(schedule, losses)]
    assert [state.t for state in states(Replayed(tuple(t)), [1.0] * len(losses))] == t


@given(losses=st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_a_beta_of_one_freezes_the_momentum(losses):
    assert {state.sigmoid_momentum for state in states(Adaptive(0.2, alpha=0.1, beta=1.0), losses)} == {0.5}


@pytest.mark.parametrize("curve", [(0.5,), (0.5, 0.4), (0.5, 1.1), (-0.1, 0.4)])
def test_a_curve_that_is_none_is_refused(curve):
    with pytest.raises(ValueError, match="curve must"):
        Replayed(curve)


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_tracing_and_replaying_ones_own_curve_change_no_bit(tmp_path):
    """Oracle: TAID as it is."""
    schedule = Adaptive(0.4, alpha=0.5)
    plain = tiny_trainer(tmp_path, TAID(schedule), steps=6)
    plain.train()
    traced = tiny_trainer(tmp_path, Traced(TAID(schedule)), steps=6)
    traced.train()
    curve = ablations.curve(traced.objective.steps, schedule.t_start)
    replayed = tiny_trainer(tmp_path, TAID(Replayed(curve)), steps=6)
    replayed.train()
    assert len(curve) == 7 and curve[0] == 0.4 and curve[-1] == 1
    assert torch.equal(weights(plain), weights(traced)) and torch.equal(weights(plain), weights(replayed))
    assert traced.objective.logs() == plain.objective.logs()
    assert traced.objective.steps[-1] == {"loss": traced.objective.steps[-1]["previous_loss"]} | asdict(
        plain.objective.state
    )


def test_a_trace_survives_a_resume(tmp_path):
    def trainer(folder):
        objective = Traced(TAID(Adaptive(0.4, alpha=0.5)))
        return tiny_trainer(tmp_path / folder, objective, steps=6, save_strategy="steps", save_steps=3)

    whole, cut = trainer("whole"), trainer("cut")
    whole.train()
    cut.train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert len(whole.objective.steps) == 6
    assert json.loads(json.dumps(resumed.objective.steps)) == whole.objective.steps


def test_a_trace_of_an_objective_without_state_is_its_losses():
    traced = Traced(Divergence(forward_kl))
    traced.update(1.5, 0.5)
    assert traced.steps == [{"loss": 1.5}] and traced.uses_teacher


# From traces


def test_a_summary_says_what_happened():
    """By hand: a constant loss has no momentum and no deviation, and the floor binds as predicted."""
    schedule, updates = Adaptive(0.4, alpha=0.027), 300
    steps = [{"loss": 2.0} | asdict(state) for state in states(schedule, [2.0] * updates)[1:]]
    found = adaptivity.summary(steps, schedule)
    assert found["alpha_n"] == pytest.approx(8.1)
    assert found["log_sigmoid_low"] == found["log_sigmoid_high"] == found["momentum_largest"] == 0
    assert found["deviation"] == pytest.approx(0, abs=1e-12)
    assert found["floor_share"] == pytest.approx(found["floor_share_predicted"], abs=1 / updates)
    assert found["lead"] == pytest.approx(
        0.6 * (1 - (1 + math.log(4.05)) / 4.05), abs=0.01
    )  # theory.open_loop_lead


def test_noise_averages_to_its_variance_and_trends_do_not_count():
    noise, line = np.random.default_rng(0).normal(size=20_000), np.linspace(5, -3, 20_000)
    variance = adaptivity.noise_variance(noise, 20)
    assert variance.mean() == pytest.approx(1, abs=0.04)  # standard error 0.01
    np.testing.assert_allclose(adaptivity.noise_variance(noise + line, 20), variance, rtol=1e-6)


def test_noise_is_about_the_line_of_least_squares():
    """Oracle: numpy's polyfit."""
    losses = np.random.default_rng(1).gamma(2.0, size=30)
    for start, found in enumerate(adaptivity.noise_variance(losses, 12)):
        _, [squares, *_], *_ = np.polyfit(np.arange(12), losses[start : start + 12], 1, full=True)
        assert found == pytest.approx(squares / 10, rel=1e-9)
    with pytest.raises(ValueError, match="between 3 and all 30 steps"):
        adaptivity.noise_variance(losses, 31)


def test_relative_spread_has_no_unit():
    losses = np.random.default_rng(2).gamma(4.0, size=100)
    once, twice = adaptivity.spread(losses), adaptivity.spread(2 * losses)
    for metric, value in once.items():
        assert twice[metric] == pytest.approx(value * (1 if "relative" in metric else 4), rel=1e-9)


def test_stretched_losses_keep_trend_and_noise():
    rng, n = np.random.default_rng(3), np.arange(300)
    losses = 2 * np.exp(-n / 200) * rng.lognormal(sigma=0.1, size=300)
    longer = adaptivity.stretched(losses, 30_000, seed=0)
    thirds = [np.split(x, 3) for x in (losses, longer)]
    for short, long in zip(*thirds, strict=True):
        assert np.mean(long) == pytest.approx(np.mean(short), rel=0.05)
    assert np.log(longer).std() == pytest.approx(np.log(losses).std(), rel=0.1)
    assert np.array_equal(longer, adaptivity.stretched(losses, 30_000, seed=0))
