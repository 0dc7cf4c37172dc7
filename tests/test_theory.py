"""Every statement of docs/theory.md, checked. Vectors are in units of E = √(Nε), as in taid/theory.py."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import dawsn
from scipy.stats import linregress

from taid import losses, theory
from taid.objectives import objective
from taid.schedule import Adaptive

NEVER = np.inf  # no collapse is expected
ROUNDING = 1e-9  # relative; spectra span up to 12 decades


# --- The problems -------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    """(direction of norm 1, eigenvalues, schedule): any labels, κ up to 1e12, any schedule, rising or not."""
    size, last = draw(st.integers(1, 12)), draw(st.integers(1, 60))
    unit = st.floats(0, 1)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    eigenvalues = 10 ** (draw(st.floats(0, 12)) * rng.uniform(size=size))
    direction = rng.normal(size=size) * 10 ** (draw(st.floats(0, 3)) * rng.normal(size=size))
    schedule = draw(
        st.one_of(
            st.builds(partial(theory.linear_schedule, last), unit),
            st.builds(lambda value: np.full(last + 1, value), unit),
            st.lists(unit, min_size=1, max_size=12).map(np.array),
            st.builds(lambda power: np.linspace(0, 1, last + 1) ** power, st.floats(0.05, 20)),
        )
    )
    return direction / np.linalg.norm(direction), eigenvalues, schedule


def tiers(check):
    """Test `check` on drawn problems: 60 in the fast tier, 1,000 in the slow one."""

    @pytest.mark.parametrize("examples", [60, pytest.param(1000, marks=pytest.mark.slow)])
    def test(examples):
        drawn = given(problems())(lambda problem: check(*problem))
        settings(max_examples=examples, deadline=None, derandomize=True, database=None)(drawn)()

    return test


def first_collapse(labels, eigenvalues, schedule, student=None):
    collapse = theory.collapse_round(theory.distill(labels, eigenvalues, schedule, student))
    return NEVER if collapse == len(schedule) else int(collapse)


# --- The fit ------------------------------------------------------------------------------------------------


@tiers
def test_fit_leaves_a_residual_of_norm_one_or_collapses(direction, eigenvalues, schedule):
    labels = direction * np.array([[0.5], [1 - 1e-9], [1 + 1e-6], [1.5], [10], [1e6]])
    fitted = theory.fit(labels, eigenvalues)
    assert np.all(fitted[:2] == 0)
    residual = np.linalg.norm(labels - fitted, axis=-1)[2:]
    np.testing.assert_allclose(residual[:-1], 1, rtol=1e-13)
    np.testing.assert_allclose(residual[-1], 1, rtol=1e-9)  # labels - fitted cancels six digits
    shrinkage = np.divide(fitted, labels, out=np.zeros_like(labels), where=labels != 0)
    assert np.all((shrinkage >= 0) & (shrinkage <= 1))


def test_fit_solves_for_c_to_machine_precision():
    """Oracle: scipy's brentq on ‖z - A z‖² = 1, over c between its closed-form brackets."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 30):
        for decades in (0, 3, 9):
            d = 10 ** rng.uniform(-decades / 2, decades / 2, size)
            z = rng.normal(size=size)
            z *= rng.uniform(1.01, 30) / np.linalg.norm(z)
            spread = 1 / (np.linalg.norm(z) - 1)  # c lies between d_min and d_max times this
            c = brentq(
                lambda c, z=z, d=d: np.linalg.norm(z * c / (c + d)) - 1,
                0.5 * d.min() * spread,
                2 * d.max() * spread,
                xtol=1e-300,
                rtol=4 * np.finfo(float).eps,
            )
            np.testing.assert_allclose(theory.fit(z, d), z * d / (c + d), rtol=1e-12)


def test_secular_equation_is_concave():
    """1/n(u) is increasing and concave, which lets Newton's method climb to the root without overshoot."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        z, d, u = rng.normal(size=9), np.exp(4 * rng.normal(size=9)), np.linspace(0, 3, 400)
        inverse = 1 / np.linalg.norm(z / (1 + u[:, None] * d), axis=-1)
        assert np.all(np.diff(inverse) > 0) and np.all(np.diff(inverse, 2) < 1e-12 * inverse.max())


def constrained_kernel_fit(gram, labels, residual):
    """min αᵀGα subject to ‖Gα - y‖² ≤ residual², by SLSQP over the predictions Gα; knows no eigenvalue."""
    inverse = np.linalg.inv(gram)
    slack = {
        "type": "ineq",
        "fun": lambda f: residual**2 - ((f - labels) ** 2).sum(),
        "jac": lambda f: -2 * (f - labels),
    }
    norm = {"fun": lambda f: f @ inverse @ f, "jac": lambda f: 2 * inverse @ f}
    options = {"ftol": 1e-14, "maxiter": 500}
    return minimize(x0=labels, constraints=slack, method="SLSQP", options=options, **norm).x


@pytest.mark.parametrize("schedule", [np.zeros(13), theory.linear_schedule(12)], ids=("self", "taid"))
def test_eigen_form_is_the_constrained_kernel_fit(schedule):
    """Oracle: the same rounds with an RBF Gram matrix on points of the plane, each fit solved by SLSQP."""
    rng = np.random.default_rng(2)
    points, labels = rng.uniform(-2, 2, (8, 2)), rng.normal(size=8)
    gram = np.exp(-((points[:, None] - points) ** 2).sum(-1) / 0.5)
    signal = 1.1 * theory.non_collapse_bound(theory.linear_schedule(12))
    residual = np.linalg.norm(labels) / signal
    eigenvalues, vectors = np.linalg.eigh(gram)
    targets = theory.distill(vectors.T @ labels / residual, eigenvalues, schedule)
    current, collapsed = labels, False
    for weight, target in zip(schedule, targets, strict=True):
        blend = (1 - weight) * current + weight * labels
        np.testing.assert_allclose(vectors @ target * residual, blend, atol=1e-5)
        collapsed |= np.linalg.norm(blend) <= residual
        current = constrained_kernel_fit(gram, blend, residual)
    assert collapsed == (schedule[-1] == 0)  # both branches of the fit have been compared


def test_eigenvalues_must_be_positive():
    with pytest.raises(ValueError, match="null space"):
        theory.fit(np.ones(2), np.array([1.0, 0.0]))


# --- When it collapses --------------------------------------------------------------------------------------


@tiers
def test_no_collapse_above_the_bound(direction, eigenvalues, schedule):
    signal = theory.non_collapse_bound(schedule) * (1 + ROUNDING)
    assert first_collapse(signal * direction, eigenvalues, schedule) == NEVER


@tiers
def test_collapse_at_the_root_of_the_bound(direction, eigenvalues, schedule):
    signal = np.sqrt(theory.non_collapse_bound(schedule)) * (1 - ROUNDING)
    assert first_collapse(signal * direction, eigenvalues, schedule) < NEVER


@tiers
def test_bound_is_tight_for_one_label(direction, eigenvalues, schedule):
    """N = 1; and any N where all eigenvalues agree, or where the labels lie in one eigenspace."""
    bound = theory.non_collapse_bound(schedule)
    for signal, collapses in ((bound * (1 - ROUNDING), True), (bound * (1 + ROUNDING), False)):
        for labels, spectrum in (
            (np.array([signal]), eigenvalues[:1]),
            (signal * direction, np.full(len(direction), eigenvalues[0])),
            (signal * np.eye(len(direction))[0], eigenvalues),
        ):
            assert (first_collapse(labels, spectrum, schedule) < NEVER) == collapses


@tiers
def test_drift_bounds_the_distance_from_the_teacher(direction, eigenvalues, schedule):
    """‖e_t‖ ≤ δ_t, and ‖z̃_t‖ ≥ r₀ - (1 - λ_t) δ_t: at every round, even after a collapse."""
    for signal in (0.7, 1.5, 4.0, 20.0):
        teacher = signal * direction
        targets = theory.distill(teacher, eigenvalues, schedule)
        delta = theory.drift(schedule)
        students = np.concatenate([teacher[None], theory.fit(targets, eigenvalues)[:-1]])
        assert np.all(np.linalg.norm(teacher - students, axis=-1) <= delta * (1 + ROUNDING) + ROUNDING)
        assert np.all(np.linalg.norm(targets, axis=-1) >= signal - (1 - schedule) * delta - ROUNDING * signal)


@tiers
def test_self_distillation_always_collapses(direction, eigenvalues, schedule):
    """Between rounds ⌈r₀⌉ - 1 and ⌈r₀²⌉ - 1; Mobahi et al.'s (r₀ - 1)/κ is never above the former."""
    for signal in (0.6, 1.3, 2.7, 5.4):
        earliest, latest = theory.self_distillation_rounds(signal)
        collapse = first_collapse(signal * direction, eigenvalues, np.zeros(latest + 1))
        assert earliest <= collapse <= latest
        assert earliest >= (signal - 1) / (eigenvalues.max() / eigenvalues.min())


def test_both_limits_of_self_distillation_are_attained():
    for signal in (0.6, 1.3, 2.7, 5.4, 41.5):
        earliest, _ = theory.self_distillation_rounds(signal)
        assert earliest == max(math.ceil(signal) - 1, 0)
        assert first_collapse(np.array([signal]), np.array([3.0]), np.zeros(50)) == earliest
    for size in (2, 3, 4, 5):  # equal labels whose eigenvalues lie far apart: each round removes one of them
        labels, eigenvalues = np.ones(size), 1e12 ** np.arange(size)
        latest = round(labels @ labels) - 1  # ⌈r₀²⌉ - 1
        assert first_collapse(labels, eigenvalues, np.zeros(50)) == latest


@tiers
def test_greater_weights_lower_the_bound(direction, eigenvalues, schedule):
    """Dominance, with any distance of the first student, and the survival that follows from it."""
    greater = schedule + (1 - schedule) * np.linspace(0.9, 0, len(schedule)) ** 2
    for start in (0.0, 2.5):
        assert theory.non_collapse_bound(greater, start) <= theory.non_collapse_bound(schedule, start)
    signal = theory.non_collapse_bound(schedule) * (1 + ROUNDING)
    assert first_collapse(signal * direction, eigenvalues, greater) == NEVER


@given(st.lists(st.floats(0, 10), min_size=2, max_size=60), st.floats(1e-4, 1))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_adaptive_schedule_inherits_the_guarantee(objective, alpha):
    schedule, last = Adaptive(t_start=0.0, alpha=alpha), len(objective)
    state, weights = schedule.init(), [0.0]
    for n, loss in enumerate(objective, start=1):
        state = schedule.update(state, loss, n / last)
        weights.append(state.t)
    assert np.all(np.array(weights) >= theory.linear_schedule(last) - 1e-15)
    linear = theory.non_collapse_bound(theory.linear_schedule(last))
    assert theory.non_collapse_bound(weights) <= linear * (1 + 1e-15)
    assert first_collapse(np.array([linear * (1 + ROUNDING)]), np.ones(1), np.array(weights)) == NEVER


@tiers
def test_paper_theorem_for_gamma_above_one_over_signal(direction, eigenvalues, schedule):
    """No round that the paper's theorem clears collapses, for γ in [1/r₀, 1] and without its o(1)."""
    condition, last = eigenvalues.max() / eigenvalues.min(), max(len(schedule) - 1, 1)
    for signal in (1.0625, 2.25, 6.0):  # exact in binary, for t · r₀ is compared with T
        targets = theory.distill(signal * direction, eigenvalues, theory.linear_schedule(last))
        for gamma in (1.0, 0.5 + 0.5 / signal, 1 / signal):
            cleared = theory.paper_theorem(signal, condition, last, gamma)
            assert np.all(np.linalg.norm(targets, axis=-1)[cleared] > 1)


def test_paper_theorem_fails_for_small_gamma():
    """Read without its o(1): N = 1, r₀ = 1.9, T = 100, γ = 0.4 < 1/r₀ clears round 1, where ‖z̃‖ = 0.91."""
    targets = theory.distill(np.array([1.9]), np.ones(1), theory.linear_schedule(100))
    assert theory.paper_theorem(1.9, 1.0, 100, gamma=0.4)[1]
    np.testing.assert_allclose(targets[1], 0.99 * 0.9 + 0.01 * 1.9)


def test_paper_corollary_clears_every_round_and_implies_ours():
    for last in (1, 2, 3, 4, 7, 16, 64, 256, 1024):
        for condition in (1, 1.5, 10, 1e4):
            signal = theory.paper_corollary(last, condition)
            assert theory.paper_theorem(signal * (1 + ROUNDING), condition, last).all()
            assert not theory.paper_theorem(signal * 0.99, condition, 10**4 * last).all()
            bound = theory.non_collapse_bound(theory.linear_schedule(last))
            assert bound * (bound - 1) < last and signal > bound
    # its smallest price, κ = 1, in the limit of long runs: √2 / 0.76515
    ratio = theory.paper_corollary(10**6, 1) / theory.non_collapse_bound(theory.linear_schedule(10**6))
    np.testing.assert_allclose(ratio, np.sqrt(2) / theory.DAWSON_SLOPE, rtol=1e-3)


def test_bound_of_the_linear_schedule_by_hand():
    """T = 1: δ = 0, 1. T = 2: δ = 0, 1, 3/2. T = 4: δ = 0, 1, 7/4, 15/8, …; (1 - λ) δ peaks at t = 2, 7/8."""
    assert [theory.non_collapse_bound(theory.linear_schedule(last)) for last in (1, 2, 4)] == [1, 1.5, 1.875]
    assert theory.non_collapse_bound(np.zeros(9)) == 9  # self-distillation: one more per round


def test_dawson_asymptote():
    """Oracle: scipy's minimiser for the peak; and the error, of order 1/√T by the fitted slope."""
    peak = minimize_scalar(lambda x: -dawsn(x), bracket=(0.5, 0.9, 1.5)).x
    np.testing.assert_allclose(theory.DAWSON_PEAK, peak, rtol=1e-7)  # minimisers reach √(machine precision)
    np.testing.assert_allclose(2 * theory.DAWSON_PEAK * dawsn(theory.DAWSON_PEAK), 1, rtol=1e-15)
    lengths = np.unique(np.geomspace(16, 20_000, 200).astype(int))
    for start in (0.0, 1.0):
        bounds = [theory.non_collapse_bound(theory.linear_schedule(last), start) for last in lengths]
        error = np.abs(bounds - theory.dawson_asymptote(lengths, start))
        assert np.all(error < 0.5 / np.sqrt(lengths))
        envelope = np.maximum.accumulate(error[::-1])[::-1]  # it oscillates: the peak lies between rounds
        assert abs(linregress(np.log(lengths), np.log(envelope)).slope + 0.5) < 0.1


@tiers
def test_first_student_other_than_the_teacher(direction, eigenvalues, schedule):
    """A student at distance δ₀ in any direction: r₀ above the bound with δ₀ is enough."""
    rng = np.random.default_rng(3)
    for start in (0.3, 4.0):
        error = rng.normal(size=len(direction))
        signal = theory.non_collapse_bound(schedule, start) * (1 + ROUNDING)
        student = signal * direction - start * error / np.linalg.norm(error)
        assert first_collapse(signal * direction, eigenvalues, schedule, student) == NEVER


@pytest.mark.parametrize("start", [0.25, 1.0, 3.0])
def test_bound_is_tight_for_a_first_student_below_the_teacher(start):
    schedule = theory.linear_schedule(20, 0.2)
    bound = theory.non_collapse_bound(schedule, start)
    for factor, collapses in ((0.999, True), (1.001, False)):
        teacher = np.array([bound * factor])
        assert (first_collapse(teacher, np.ones(1), schedule, teacher - start) < NEVER) == collapses


def test_first_student_may_break_what_holds_for_the_teacher():
    """A student that contradicts the teacher crosses zero after round T / r₀, which the theorem clears."""
    schedule, teacher = theory.linear_schedule(40), np.array([8.0])
    cleared = theory.paper_theorem(8.0, 1.0, 40)
    targets = theory.distill(teacher, np.ones(1), schedule, student=-2 * teacher)
    collapsed = np.linalg.norm(targets, axis=-1) <= 1
    assert np.flatnonzero(collapsed & cleared).max() > 40 / 8
    assert first_collapse(teacher, np.ones(1), schedule) == NEVER


@tiers
def test_positive_weights_make_the_bound_independent_of_length(direction, eigenvalues, schedule):
    """No λ below t_start: r₀ > 1 / t_start is enough for any T, and any first student that near."""
    for t_start in (0.2, 0.4):  # the paper's
        raised = t_start + (1 - t_start) * schedule
        assert theory.non_collapse_bound(raised, start=1 / t_start) <= (1 + 1e-15) / t_start
        assert first_collapse(direction * (1 + ROUNDING) / t_start, eigenvalues, raised) == NEVER


def test_positive_start_is_the_limit_of_long_runs():
    bound = theory.non_collapse_bound(theory.linear_schedule(10**5, start=0.4))
    np.testing.assert_allclose(bound, 1 / 0.4, rtol=1e-3)


def test_schedule_outside_the_unit_interval_is_refused():
    for schedule in ([0, 0.5, 1.1], [-0.1, 1], [[0.0, 1.0]], 0.5):
        with pytest.raises(ValueError, match="λ_0"):
            theory.non_collapse_bound(schedule)


def test_critical_signal_is_the_bound_where_it_is_tight_and_below_elsewhere():
    rng = np.random.default_rng(4)
    schedule, eigenvalues = theory.linear_schedule(30), np.geomspace(1, 1e4, 8)
    bound = theory.non_collapse_bound(schedule)
    np.testing.assert_allclose(theory.critical_signal(np.eye(8), eigenvalues, schedule), bound, rtol=1e-8)
    directions = rng.normal(size=(20, 8))
    critical = theory.critical_signal(directions, eigenvalues, schedule)
    assert np.all((critical < bound) & (critical > np.sqrt(bound)))
    units = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    for factor, collapses in ((1 - 1e-6, True), (1 + 1e-6, False)):
        labels = factor * critical[:, None] * units
        rounds = theory.collapse_round(theory.distill(labels, eigenvalues, schedule))
        assert np.all((rounds < len(schedule)) == collapses)


@tiers
def test_survival_grows_with_signal_and_weights(direction, eigenvalues, schedule):
    """Not proved: where labels survive, stronger ones do (`critical_signal` assumes it), and greater λ."""
    bound = theory.non_collapse_bound(schedule)
    assume(bound > 1 + 1e-6)  # else nothing but rounding lies between √B and B
    labels = np.linspace(np.sqrt(bound), bound, 30)[:, None] * direction
    survives = theory.collapse_round(theory.distill(labels, eigenvalues, schedule)) == len(schedule)
    assert np.all(np.diff(survives[:-1].astype(int)) >= 0)  # the last lies on the bound itself
    greater = theory.collapse_round(theory.distill(labels, eigenvalues, np.sqrt(schedule))) == len(schedule)
    assert np.all(greater[:-1] >= survives[:-1])


def test_phase_diagram_agrees_with_single_runs_and_with_the_theorem():
    rng = np.random.default_rng(7)
    direction, eigenvalues = rng.normal(size=5), np.geomspace(1, 100, 5)
    lengths, signals = np.array([1, 4, 9, 25]), np.geomspace(1.1, 30, 40)
    repeated, taid = theory.phase_diagram(direction, eigenvalues, lengths, signals)
    for i, j in ((0, 3), (1, 12), (2, 14), (3, 16), (3, 20)):
        labels = signals[j] * direction / np.linalg.norm(direction)
        assert repeated[i, j] == (first_collapse(labels, eigenvalues, np.zeros(lengths[i] + 1)) < NEVER)
        assert taid[i, j] == (first_collapse(labels, eigenvalues, theory.linear_schedule(lengths[i])) < NEVER)
    for collapses, bounds in (
        (repeated, lengths + 1.0),
        (taid, np.array([theory.non_collapse_bound(theory.linear_schedule(last)) for last in lengths])),
    ):
        assert not collapses[signals > bounds[:, None]].any()
        assert collapses[signals**2 <= bounds[:, None]].all()


# --- What the objective is ----------------------------------------------------------------------------------

TEMPERATURE, LABEL, T = 3.0, 4, 0.35
CASES = {
    **{name: (gradient, objective(name).loss, ()) for name, gradient in theory.GRADIENTS.items()},
    "ctkd": (theory.ctkd_gradient, losses.ctkd, (TEMPERATURE,)),
    "dkd": (theory.dkd_gradient, losses.dkd, (LABEL,)),
    "taid": (theory.taid_gradient, losses.taid_kl, (T,)),
}
STEPS = 2.0 ** -np.arange(1, 11)  # t = 1/2 … 1/1024


def logits(rows=16, vocabulary=12, scale=2.0, seed=5):
    return scale * np.random.default_rng(seed).normal(size=(2, rows, vocabulary))


def autograd(loss, student, teacher, *arguments):
    """Gradient in the student's logits of a loss of taid.losses, in fp64."""
    student = torch.tensor(student, requires_grad=True)
    loss(student, torch.tensor(teacher), *arguments).sum().backward()
    return student.grad.numpy()


def order(errors):
    """Order of convergence in t: the slope of log(error) over log(t), over the smaller half of the steps."""
    half = len(STEPS) // 2
    return linregress(np.log(STEPS[half:]), np.log(errors[half:])).slope


@pytest.mark.parametrize("name", CASES)
def test_closed_form_of_the_gradient(name):
    """Oracle: autograd through taid.losses in fp64."""
    gradient, loss, arguments = CASES[name]
    student, teacher = logits()
    labels = (torch.full((len(student),), LABEL),) if name == "dkd" else arguments
    expected = autograd(loss, student, teacher, *labels)
    np.testing.assert_allclose(gradient(student, teacher, *arguments), expected, atol=1e-13)
    shift = gradient(student, teacher, *arguments).sum(-1)  # along a shift of all logits
    assert np.abs(shift).max() < 1e-14


def test_taid_is_t_times_reverse_kl_for_small_t():
    """By autograd: error of t · (gradient of RKL) of order t², of the second-order expansion of order t³."""
    student, teacher = logits()
    reverse = autograd(losses.reverse_kl, student, teacher)
    taid = [autograd(losses.taid_kl, student, teacher, t) for t in STEPS]
    first = [np.abs(g - t * reverse).max() for g, t in zip(taid, STEPS, strict=True)]
    second = [
        np.abs(g - theory.taid_expansion(student, teacher, t)).max() for g, t in zip(taid, STEPS, strict=True)
    ]
    assert abs(order(first) - 2) < 0.02
    assert abs(order(second) - 3) < 0.02


def test_remainder_is_bounded_for_every_t():
    for scale in (0.1, 1.0, 5.0):
        student, teacher = logits(scale=scale)
        reverse = theory.rkl_gradient(student, teacher)
        for t in (*STEPS, 0.9, 1.0):
            error = np.abs(theory.taid_gradient(student, teacher, t) / t - reverse).sum(-1)
            assert np.all(error <= theory.taid_remainder(student, teacher, t))


def test_taid_is_forward_kl_at_one_and_nothing_at_zero():
    student, teacher = logits()
    np.testing.assert_array_equal(
        autograd(losses.taid_kl, student, teacher, 1.0), autograd(losses.forward_kl, student, teacher)
    )
    assert np.abs(autograd(losses.taid_kl, student, teacher, 0.0)).max() < 1e-15


def test_step_grows_with_t_and_division_by_t_removes_the_growth():
    """‖q - p_t‖₁ never falls in t. Near t = 0 it grows like t, and divided by t it is the reverse KL's."""
    student, teacher = logits()
    steps = np.linspace(0, 1, 101)
    norms = np.array([np.abs(theory.taid_gradient(student, teacher, t)).sum(-1) for t in steps])  # [t, rows]
    assert np.all(np.diff(norms, axis=0) > 0)
    reverse = np.abs(theory.rkl_gradient(student, teacher)).sum(-1)
    np.testing.assert_allclose(norms[1] / steps[1], reverse, rtol=0.05)
    np.testing.assert_allclose(norms[-1], np.abs(theory.kl_gradient(student, teacher)).sum(-1), rtol=1e-12)


def test_objective_grows_with_the_square_of_t():
    """J(t) = t²/2 · Var_q(Δ) + O(t³): a rising t raises the value of the objective by itself."""
    student, teacher = logits()
    q = np.exp(student) / np.exp(student).sum(-1, keepdims=True)
    gap = teacher - student
    variance = (q * gap**2).sum(-1) - (q * gap).sum(-1) ** 2
    values = [losses.taid_kl(torch.tensor(student), torch.tensor(teacher), t).numpy() for t in STEPS]
    errors = [np.abs(v - t**2 / 2 * variance).max() for v, t in zip(values, STEPS, strict=True)]
    assert abs(order(errors) - 3) < 0.05


def test_fixed_points_are_the_teacher_alone():
    """For any t > 0 TAID's gradient is zero at q = p, and at no student that differs from the teacher."""
    student, teacher = logits()
    for t in (0.01, 0.5, 1.0):
        assert np.abs(theory.taid_gradient(teacher + 3.7, teacher, t)).max() < 1e-15
        assert np.abs(theory.taid_gradient(student, teacher, t)).max(-1).min() > 1e-3 * t


# --- The adaptive schedule, open loop -----------------------------------------------------------------------


def adaptive_trace(objective, alpha, t_start, t_end=1.0):
    """t_0 … t_N and m_1 … m_N of the schedule under a sequence of losses."""
    schedule = Adaptive(t_start=t_start, t_end=t_end, alpha=alpha)
    states = [schedule.init()]
    for n, loss in enumerate(objective, start=1):
        states.append(schedule.update(states[-1], loss, n / len(objective)))
    return np.array([state.t for state in states]), np.array([state.momentum for state in states[1:]])


def power_law(updates, noise, seed=6):
    """A loss that falls like that of a language model, from 4 to about 2.5 nats, with noise per batch."""
    n = np.arange(1, updates + 1)
    factors = np.exp(noise * np.random.default_rng(seed).normal(size=updates))
    return (2.2 + 1.8 * (1 + n / 30) ** -0.25) * factors


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(
    ("updates", "alpha", "t_end"), [(500, 5e-4, 1.0), (6000, 2e-3, 1.0), (2000, 0.02, 0.9)]
)
def test_open_loop_error_is_bounded(updates, alpha, t_end, noise):
    """The bound with the greatest |m| of the run, at every n, for losses with and without noise."""
    t, momentum = adaptive_trace(power_law(updates, noise), alpha, 0.2, t_end)
    error = np.abs(t - theory.open_loop(updates, alpha, 0.2, t_end)).max()
    assert error <= theory.open_loop_error(np.abs(momentum).max(), alpha, 0.2)


def test_open_loop_error_says_where_it_ends():
    with pytest.raises(ValueError, match="too large"):
        theory.open_loop_error(momentum=0.0, alpha=1.0, t_start=0.2)


def test_open_loop_leads_the_floor_only_in_long_runs():
    """Oracle: the schedule on a constant loss. The paper's α leads by 0.229 at N = 15,000, by 0 at 3,900."""
    for updates, alpha, t_start in ((3900, 5e-4, 0.4), (15_000, 5e-4, 0.4), (600, 0.05, 0.2)):
        t, _ = adaptive_trace(np.ones(updates), alpha, t_start)
        lead = (t - theory.linear_schedule(updates, t_start)).max()
        np.testing.assert_allclose(theory.open_loop_lead(updates, alpha, t_start), lead, atol=alpha)
    np.testing.assert_allclose(theory.open_loop_lead(15_000, 5e-4, 0.4), 0.229, atol=5e-4)
    assert theory.open_loop_lead(3900, 5e-4, 0.4) == 0
