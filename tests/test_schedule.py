"""Schedules of t: bounds and monotonicity for any loss; the formulas against scalar code written apart."""

import itertools
import json
import math
from dataclasses import FrozenInstanceError, asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taid.schedule import Adaptive, Linear, Replayed, State, inert_below, scale_alpha

SCHEDULES = (
    Linear(0.0),
    Linear(0.4),
    Linear(0.2, 0.7),
    Adaptive(0.0),
    Adaptive(0.4, alpha=0.5),
    Adaptive(0.2, 0.7),
)
any_loss = st.floats(allow_nan=True, allow_infinity=True)
finite_loss = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.floats(-10, 10), st.just(0.0))


def run(schedule: Linear, losses: list[float]) -> list[State]:
    """States before the first and after every update of a run of len(losses) updates."""
    states = [schedule.init()]
    for n, loss in enumerate(losses, start=1):
        states.append(schedule.update(states[-1], loss, n / len(losses)))
    return states


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@given(losses=st.lists(any_loss, min_size=1, max_size=60))
def test_t_is_monotone_and_between_its_bounds_for_any_loss(schedule, losses):
    states = run(schedule, losses)
    for n, (before, after) in enumerate(itertools.pairwise(states), start=1):
        assert before.t <= after.t <= schedule.t_end
        assert -1 <= after.momentum <= 1
        if math.isfinite(losses[n - 1]):
            linear = schedule.t_start + (schedule.t_end - schedule.t_start) * n / len(losses)
            assert after.t >= linear - 2 * math.ulp(1.0)  # the order of its operations is ours
        else:
            assert after == before
    assert states[-1].updates == sum(map(math.isfinite, losses))
    if math.isfinite(losses[-1]):
        assert states[-1].t == schedule.t_end


@given(
    losses=st.lists(finite_loss, min_size=1, max_size=40),
    progress=st.lists(st.floats(0, 1), min_size=40, max_size=40).map(sorted),
)
def test_adaptive_is_never_below_linear_for_any_monotone_progress(losses, progress):
    linear, adaptive = Linear(0.2), Adaptive(0.2, alpha=0.05)
    low, high = linear.init(), adaptive.init()
    for loss, share in zip(losses, progress, strict=False):
        low, high = linear.update(low, loss, share), adaptive.update(high, loss, share)
        assert high.t >= low.t


@given(losses=st.lists(st.floats(0.5, 0.99), min_size=2, max_size=50), alpha=st.floats(1e-4, 0.5))
def test_adaptive_follows_the_papers_formulas(losses, alpha):
    """Oracle: the formulas as they stand, without clipping, which these losses (no doubling) never reach."""
    t_start, t_end, beta, epsilon = 0.2, 0.9, 0.99, 1e-15
    t, m = t_start, 0.0
    states = run(Adaptive(t_start, t_end, alpha, beta), losses)
    for n in range(1, len(losses) + 1):
        delta = (losses[n - 2] - losses[n - 1]) / (losses[n - 2] + epsilon) if n > 1 else 0.0
        m = beta * m + (1 - beta) * delta
        t_linear = t_start + (t_end - t_start) * (n / len(losses))
        t = min(t_end, max(t_linear, t + alpha / (1 + math.exp(-m)) * (1 - t)))
        assert states[n].t == pytest.approx(t, rel=1e-14)
        assert states[n].momentum == pytest.approx(m, rel=1e-12, abs=1e-16)
    assert states[-1].t == t_end


def test_linear_is_the_straight_line():
    states = run(Linear(0.25, 0.75), [1.0] * 4)
    assert [state.t for state in states] == [0.25, 0.375, 0.5, 0.625, 0.75]
    assert states[-1].floor_share == 1.0


def test_falling_loss_moves_t_faster_than_rising_loss():
    """δ = +½ against δ = −1, before the floor matters."""
    schedule = Adaptive(0.2, alpha=0.01, beta=0.0)
    once = schedule.update(schedule.init(), 1.0, 0.0)
    fall, rise = (schedule.update(once, loss, 0.0) for loss in (0.5, 2.0))
    assert fall.t - once.t == pytest.approx(0.01 / (1 + math.exp(-0.5)) * (1 - once.t))
    assert rise.t - once.t == pytest.approx(0.01 / (1 + math.exp(1.0)) * (1 - once.t))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@given(losses=st.lists(any_loss, min_size=2, max_size=30), cut=st.integers(0, 30))
def test_a_run_resumed_from_json_is_the_uninterrupted_run(schedule, losses, cut):
    states = run(schedule, losses)
    cut = min(cut, len(losses))
    state = State(**json.loads(json.dumps(asdict(states[cut]))))
    assert state == states[cut]
    for n in range(cut + 1, len(losses) + 1):
        state = schedule.update(state, losses[n - 1], n / len(losses))
    assert state == states[-1]


def test_a_zero_loss_does_not_sink_the_momentum():
    """From t_start = 0 the first loss is KL(q ‖ q) = 0; without clipping δ would be −1e15 here."""
    states = run(Adaptive(0.0), [0.0] + [1.0] * 9)
    assert min(state.sigmoid_momentum for state in states) > 0.49


@pytest.mark.parametrize("alpha", [0.02, 0.1])
@pytest.mark.parametrize("t_start", [0.0, 0.4])
def test_adaptive_is_linear_below_two_over_alpha_updates_and_not_above(alpha, t_start):
    few, many = int(0.95 * inert_below(alpha)), int(1.05 * inert_below(alpha)) + 1
    assert [state.t for state in run(Adaptive(t_start, alpha=alpha), [1.0] * few)] == [
        state.t for state in run(Linear(t_start), [1.0] * few)
    ]
    assert run(Adaptive(t_start, alpha=alpha), [1.0] * few)[-1].floor_share == 1.0
    ahead = run(Adaptive(t_start, alpha=alpha), [1.0] * many)
    assert ahead[1].t > run(Linear(t_start), [1.0] * many)[1].t
    assert ahead[-1].floor_share < 1.0


def test_the_papers_alpha_is_inert_below_four_thousand_updates():
    assert inert_below(5e-4) == pytest.approx(4000)


def test_scaled_alpha_keeps_the_path_over_progress():
    """t ≈ 1 − (1 − t_start) exp(−α n / 2) depends on α · N alone: 15,000 updates against 150, up to O(α)."""
    long = run(Adaptive(0.2, alpha=5e-4), [1.0] * 15_000)
    short = run(Adaptive(0.2, alpha=scale_alpha(5e-4, updates=150, paper_updates=15_000)), [1.0] * 150)
    gaps = [abs(short[n].t - long[100 * n].t) for n in range(151)]
    assert max(gaps) < 0.01
    assert max(state.t - (0.2 + 0.8 * n / 150) for n, state in enumerate(short)) > 0.2  # far above the floor


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Linear(0.5, 0.4), "t_start"),
        (lambda: Linear(-0.1), "t_start"),
        (lambda: Adaptive(0.2, 1.1), "t_end"),
        (lambda: Adaptive(math.nan), "t_start"),
        (lambda: Adaptive(0.2, alpha=0.0), "Linear"),
        (lambda: Adaptive(0.2, beta=1.1), "beta"),
        (lambda: Linear("0.2"), "t_start must be a number, got '0.2'"),
        (lambda: Adaptive(0.2, alpha="x"), "alpha must be a number, got 'x'"),
        (lambda: Adaptive(0.2, beta=None), "beta must be a number, got None"),
        (lambda: Linear(0.2).update(State(t=0.2), 1.0, 1.01), "progress"),
        (lambda: scale_alpha(5e-4, 0, 100), "at least one"),
        (lambda: scale_alpha(-5e-4, 10, 100), "α must be positive"),
        (lambda: scale_alpha(float("nan"), 10, 100), "α must be positive"),
        (lambda: Replayed((0.2, float("nan"), 0.3)), "never fall"),
    ],
)
def test_bad_values_are_named(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_schedule_and_state_are_frozen():
    for thing in (Adaptive(0.2), State(t=0.2)):
        with pytest.raises(FrozenInstanceError):
            thing.t = 1.0
