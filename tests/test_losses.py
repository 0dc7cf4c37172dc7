"""The losses against explicit fp64 probabilities, in limit cases, and under what must not change them."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch.autograd import gradcheck

from taid import losses
from taid.losses import (
    LOSSES,
    CTKDTemperature,
    adaptive_kl,
    alpha_beta,
    amid_kl,
    ctkd,
    dkd,
    forward_kl,
    interpolate,
    jsd,
    masked_mean,
    reverse_kl,
    skew_kl,
    skew_rkl,
    taid_kl,
    tvd,
)
from taid.objectives import METHODS

INF = math.inf
ROWS, VOCABULARY = 24, 40
LABELS = torch.arange(ROWS) % VOCABULARY


# Oracles: numpy, fp64, explicit probabilities; scipy's rel_entr(a, b) is a log(a / b), with 0 log 0 = 0.
def np_kl(a, b):
    return rel_entr(a, b).sum(-1)


def np_adaptive_kl(s, z, mu=0.5):
    values = []
    for q, p in zip(softmax(s, -1), softmax(z, -1), strict=True):
        descending = -np.sort(-p)
        last = descending[np.searchsorted(np.cumsum(descending), mu)]
        gap = np.abs(p - q)
        w = gap[p >= last].sum() / gap.sum()  # with the tokens tied with the last
        values.append(w * np_kl(p, q) + (1 - w) * np_kl(q, p))
    return np.array(values)


def np_dkd(s, z, beta=0.5):
    values = []
    for q, p, y in zip(softmax(s, -1), softmax(z, -1), LABELS.numpy(), strict=True):
        others = np.arange(p.size) != y
        q_rest, p_rest = q[others].sum(), p[others].sum()
        target = np_kl(np.array([p[y], p_rest]), np.array([q[y], q_rest]))
        values.append(target + beta * np_kl(p[others] / p_rest, q[others] / q_rest))
    return np.array(values)


def np_alpha_beta(s, z, alpha, beta):
    """The definition and its limits, case by case (Cichocki, Cruces, Amari 2011, equation 25)."""
    q, p = softmax(s, -1), softmax(z, -1)
    if alpha == beta == 0:
        terms = (np.log(p) - np.log(q)) ** 2 / 2
    elif beta == 0:
        terms = (p**alpha * alpha * np.log(p / q) - p**alpha + q**alpha) / alpha**2
    elif alpha == 0:
        terms = (q**beta * beta * np.log(q / p) - q**beta + p**beta) / beta**2
    elif alpha + beta == 0:
        terms = (alpha * np.log(q / p) + (q / p) ** -alpha - 1) / alpha**2
    else:
        total = alpha + beta
        terms = -(p**alpha * q**beta - alpha / total * p**total - beta / total * q**total) / (alpha * beta)
    return terms.sum(-1)


def np_amid_kl(s, z, t, mixture):
    """Amari's α-mean of both probabilities: the mean of f(u) = u^((1 − α)/2), log u for α = 1, through f back."""
    q, p = softmax(s, -1), softmax(z, -1)
    power = (1 - mixture) / 2
    mean = ((1 - t) * q**power + t * p**power) ** (1 / power) if power else q ** (1 - t) * p**t
    return np_kl(mean / mean.sum(-1, keepdims=True), q)


def on_probabilities(divergence):
    return lambda s, z: divergence(softmax(s, -1), softmax(z, -1))


# name: (the loss as a function of two logits, its oracle)
CASES = {
    "forward_kl": (forward_kl, on_probabilities(lambda q, p: np_kl(p, q))),
    "reverse_kl": (reverse_kl, on_probabilities(lambda q, p: np_kl(q, p))),
    "tvd": (tvd, on_probabilities(lambda q, p: np.maximum(p - q, 0).sum(-1))),
    "jsd": (
        jsd,
        on_probabilities(lambda q, p: 0.1 * np_kl(p, 0.1 * p + 0.9 * q) + 0.9 * np_kl(q, 0.1 * p + 0.9 * q)),
    ),
    "skew_kl": (skew_kl, on_probabilities(lambda q, p: np_kl(p, 0.1 * p + 0.9 * q))),
    "skew_rkl": (skew_rkl, on_probabilities(lambda q, p: np_kl(q, 0.9 * p + 0.1 * q))),
    "adaptive_kl": (adaptive_kl, np_adaptive_kl),
    "alpha_beta": (alpha_beta, lambda s, z: np_alpha_beta(s, z, 0.2, 0.7)),
    "dkd": (lambda s, z: dkd(s, z, LABELS), np_dkd),
    "ctkd": (lambda s, z: ctkd(s, z, 3.0), lambda s, z: 9 * np_kl(softmax(z / 3, -1), softmax(s / 3, -1))),
    "amid_kl": (lambda s, z: amid_kl(s, z, 0.3), lambda s, z: np_amid_kl(s, z, 0.3, 0.5)),
    "taid": (
        lambda s, z: taid_kl(s, z, 0.3),
        lambda s, z: np_kl(softmax(0.7 * s + 0.3 * z, -1), softmax(s, -1)),
    ),
}
every_loss = pytest.mark.parametrize("name", CASES)


def logits(
    scale: float = 2.0, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher logits [ROWS, VOCABULARY]; the student's receive a gradient."""
    generator = torch.Generator().manual_seed(seed)
    s, z = (scale * torch.randn(2, ROWS, VOCABULARY, generator=generator, dtype=torch.float64)).to(dtype)
    return s.requires_grad_(), z


def value_and_gradient(loss, s, z):
    value = loss(s, z)
    return value.detach(), torch.autograd.grad(value.sum(), s)[0]


# Values


@every_loss
@pytest.mark.parametrize("scale", [0.1, 2.0, 10.0])
def test_value_is_the_oracles(name, scale):
    loss, oracle = CASES[name]
    s, z = logits(scale)
    expected = oracle(s.detach().numpy(), z.numpy())
    np.testing.assert_allclose(loss(s, z).detach(), expected, rtol=1e-11, atol=1e-14)


@every_loss
def test_zero_where_the_distributions_agree(name):
    """Logits that differ by a constant are one distribution."""
    loss, _ = CASES[name]
    s, _ = logits()
    value, gradient = value_and_gradient(loss, s, s.detach() + 5.0)
    assert value.abs().max() < 1e-14
    if name != "tvd":  # which has a kink there
        assert gradient.abs().max() < 1e-14


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_nothing_but_the_rounding_of_the_logits(name, dtype):
    """Oracle: fp64 on the rounded logits. Interpolation in bf16 would miss by percents; fp32 allows 1e-5."""
    loss, oracle = CASES[name]
    s, z = logits(dtype=dtype)
    value, gradient = value_and_gradient(loss, s, z)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    np.testing.assert_allclose(value, oracle(s.detach().double().numpy(), z.double().numpy()), rtol=1e-5)
    _, exact = value_and_gradient(loss, s.detach().double().requires_grad_(), z.double())
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), exact, rtol=unit, atol=1e-6)


@every_loss
def test_extreme_logits_stay_finite_in_fp32(name):
    loss, oracle = CASES[name]
    s, z = logits(scale=1e4, dtype=torch.float32)
    value, gradient = value_and_gradient(loss, s, z)
    assert value.isfinite().all() and gradient.isfinite().all()
    if name in ("tvd", "jsd", "skew_kl", "skew_rkl"):  # for the others the oracle's probabilities underflow
        np.testing.assert_allclose(value, oracle(s.detach().double().numpy(), z.double().numpy()), rtol=1e-6)


@every_loss
def test_nan_logits_are_not_hidden(name):
    s, z = logits()
    s = s.detach()
    s[0, 3] = z[1, 3] = math.nan
    value = CASES[name][0](s, z)
    assert value[:2].isnan().all() and value[2:].isfinite().all()


# Gradients


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("adaptive_kl", "taid", "amid_kl")])
def test_gradient_is_the_values_slope(name):
    s, z = logits(seed=1)
    assert gradcheck(lambda s: CASES[name][0](s, z), s)


def test_gradient_of_adaptive_kl_holds_its_weights_fixed():
    s, z = logits(scale=1.0)
    forward, forward_gradient = value_and_gradient(forward_kl, s, z)
    reverse, reverse_gradient = value_and_gradient(reverse_kl, s, z)
    value, gradient = value_and_gradient(adaptive_kl, s, z)
    w = ((value - reverse) / (forward - reverse)).unsqueeze(-1)
    expected = w * forward_gradient + (1 - w) * reverse_gradient
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.01, 0.3, 1.0])
def test_gradient_of_taid_is_student_minus_intermediate_teacher(t):
    s, z = logits()
    _, gradient = value_and_gradient(lambda s, z: taid_kl(s, z, t), s, z)
    p_t = softmax((1 - t) * s.detach().numpy() + t * z.numpy(), -1)
    np.testing.assert_allclose(gradient, softmax(s.detach().numpy(), -1) - p_t, atol=1e-15)


def test_taid_ends_as_forward_kl():
    s, z = logits(dtype=torch.float32)
    value, gradient = value_and_gradient(lambda s, z: taid_kl(s, z, 1.0), s, z)
    expected_value, expected_gradient = value_and_gradient(forward_kl, s, z)
    assert torch.equal(value, expected_value) and torch.equal(gradient, expected_gradient)


def test_taid_starts_at_zero():
    s, z = logits()
    value, gradient = value_and_gradient(lambda s, z: taid_kl(s, z, 0.0), s, z)
    assert torch.equal(value, torch.zeros(ROWS, dtype=torch.float64)) and gradient.abs().max() < 1e-15


@every_loss
def test_teacher_receives_no_gradient(name):
    s, z = logits()
    z.requires_grad_()
    CASES[name][0](s, z).sum().backward()
    assert z.grad is None and s.grad.abs().sum() > 0


# Invariances


@every_loss
def test_order_of_the_vocabulary_does_not_matter(name):
    s, z = logits()
    z = z.round()  # ties among the teacher's tokens, as bf16 logits have them
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(2))
    permuted = CASES[name][0] if name != "dkd" else lambda s, z: dkd(s, z, order.argsort()[LABELS])
    value, gradient = value_and_gradient(CASES[name][0], s, z)
    s_shuffled = s.detach()[:, order].requires_grad_()
    value_shuffled, gradient_shuffled = value_and_gradient(permuted, s_shuffled, z[:, order])
    torch.testing.assert_close(value_shuffled, value, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gradient_shuffled, gradient[:, order], rtol=1e-12, atol=1e-15)


@every_loss
def test_entries_absent_on_both_sides_do_not_exist(name):
    loss, _ = CASES[name]
    s, z = logits()
    value, gradient = value_and_gradient(loss, s, z)
    absent = torch.full((ROWS, 7), -INF, dtype=torch.float64)
    padded = torch.cat([s.detach(), absent], -1).requires_grad_()
    value_padded, gradient_padded = value_and_gradient(loss, padded, torch.cat([z, absent], -1))
    torch.testing.assert_close(value_padded, value, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient_padded[:, :VOCABULARY], gradient, rtol=1e-12, atol=1e-16)
    assert (gradient_padded[:, VOCABULARY:] == 0).all()


INFINITE_WITHOUT = {  # the side whose missing entry makes the loss infinite, as the module's table says
    "student": ("forward_kl", "adaptive_kl", "dkd", "ctkd", "amid_kl"),
    "teacher": ("reverse_kl", "adaptive_kl"),
}


@every_loss
@pytest.mark.parametrize("side", INFINITE_WITHOUT)
def test_an_entry_absent_on_one_side(name, side):
    loss, oracle = CASES[name]
    s, z = logits()
    s = s.detach()
    (s if side == "student" else z)[:, 5:8] = -INF
    value, gradient = value_and_gradient(loss, s.requires_grad_(), z)
    if name in INFINITE_WITHOUT[side]:
        assert (value == INF).all()
    else:
        np.testing.assert_allclose(value, oracle(s.detach().numpy(), z.numpy()), rtol=1e-12)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("infinite", ["student", "teacher"])
def test_weight_zero_removes_a_side_of_the_interpolation(infinite):
    s, z = logits()
    s = s.detach()
    (s if infinite == "student" else z)[:, 0] = -INF
    assert torch.equal(interpolate(s, z, 0.0), s) and torch.equal(interpolate(s, z, 1.0), z)
    blend = interpolate(s.requires_grad_(), z, 0.25)
    assert not blend.requires_grad
    assert (blend[:, 0] == -INF).all()
    torch.testing.assert_close(blend[:, 1:], 0.75 * s.detach()[:, 1:] + 0.25 * z[:, 1:])


# Limit cases


def test_disjoint_support_reaches_the_upper_bounds():
    s, z = torch.tensor([0.0, 1.0, -INF, -INF]).double(), torch.tensor([-INF, -INF, 2.0, 0.0]).double()
    assert tvd(s, z).item() == pytest.approx(1.0, rel=1e-14)
    assert skew_kl(s, z, 0.2).item() == pytest.approx(-math.log(0.2), rel=1e-14)
    assert skew_rkl(s, z, 0.2).item() == pytest.approx(-math.log(0.2), rel=1e-14)
    entropy = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert jsd(s, z, 0.3).item() == pytest.approx(entropy, rel=1e-14)


def test_vanishing_skew_is_plain_kl():
    """The first correction is of order λ; and JSD / β → KL(p ‖ q) as β → 0 (Agarwal et al. 2024)."""
    s, z = logits(scale=1.0)
    torch.testing.assert_close(skew_kl(s, z, 1e-9), forward_kl(s, z), rtol=1e-6, atol=0)
    torch.testing.assert_close(skew_rkl(s, z, 1e-9), reverse_kl(s, z), rtol=1e-6, atol=0)
    torch.testing.assert_close(jsd(s, z, 1e-7) / 1e-7, forward_kl(s, z), rtol=1e-5, atol=0)


def test_dkd_decomposes_kl():
    """KL(p ‖ q) = KL(target or not) + (1 − p_y) KL(among the others), equation 5 of Zhao et al. 2022."""
    s, z = logits()
    target, both = dkd(s, z, LABELS, beta=0.0), dkd(s, z, LABELS, beta=1.0)
    p_rest = 1 - z.softmax(-1)[torch.arange(ROWS), LABELS]
    torch.testing.assert_close(target + p_rest * (both - target), forward_kl(s, z), rtol=1e-12, atol=1e-15)


def test_dkd_is_finite_at_ignored_labels():
    s, z = logits()
    labels = torch.where(LABELS % 2 == 0, -100, LABELS)
    value, gradient = value_and_gradient(lambda s, z: dkd(s, z, labels), s, z)
    assert value.isfinite().all() and gradient.isfinite().all()


def test_dkd_at_a_temperature_is_scaled_by_its_square():
    s, z = logits()
    expected = 16 * dkd(s / 4, z / 4, LABELS)
    torch.testing.assert_close(dkd(s, z, LABELS, temperature=4.0), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("mu", [0.1, 0.5, 0.99])
def test_adaptive_head_for_narrow_and_wide_heads(scale, mu):
    """Oracle: a full sort. Heads of one token to nearly all 700 pass through every width of the search."""
    s, z = scale * torch.randn(2, 16, 700, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    np.testing.assert_allclose(adaptive_kl(s, z, mu), np_adaptive_kl(s.numpy(), z.numpy(), mu), rtol=1e-10)


def test_adaptive_kl_from_a_uniform_teacher_is_forward_kl():
    """All tokens tie, so all are the head."""
    s, _ = logits()
    z = torch.zeros_like(s)
    torch.testing.assert_close(adaptive_kl(s, z), forward_kl(s, z), rtol=1e-12, atol=0)


def test_adaptive_kl_is_infinite_although_the_infinite_part_has_no_weight():
    """The head has no gap, so all weight is on the reverse KL, but the student lacks a token: 0 · ∞."""
    s = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    z = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    assert adaptive_kl(s, z, mu=0.4) == INF


ENDS = [
    (1, 0),
    (0, 1),
    (0, 0),
    (0.5, 0.5),
    (1, 1),
    (2, -1),
    (-1, 2),
    (-0.5, 0.5),
    (0.7, -0.7),
    (0.5, 0),
    (0, 2),
]


@pytest.mark.parametrize(("alpha", "beta"), [*ENDS, (0.2, 0.7), (-0.3, 0.9), (-0.3, -0.4), (3, 0.1)])
def test_alpha_beta_at_every_corner(alpha, beta):
    """Oracle: the definition and its limits, case by case; slopes by differences. Positive, and 0 at equality."""
    s, z = logits(scale=1.0)
    expected = np_alpha_beta(s.detach().numpy(), z.numpy(), alpha, beta)
    value = alpha_beta(s, z, alpha, beta)
    np.testing.assert_allclose(value.detach(), expected, rtol=1e-9)
    assert (value > 0).all() and alpha_beta(s, s.detach() + 3, alpha, beta).abs().max() < 1e-13
    assert gradcheck(lambda s: alpha_beta(s, z, alpha, beta), s)
    exchanged = alpha_beta(z, s, beta, alpha)
    torch.testing.assert_close(exchanged, value, rtol=1e-10, atol=0)


def test_alpha_beta_contains_the_divergences_that_it_generalises():
    s, z = logits()
    q, p = s.softmax(-1), z.softmax(-1)
    torch.testing.assert_close(alpha_beta(s, z, 1, 0), forward_kl(s, z), rtol=1e-11, atol=0)
    torch.testing.assert_close(alpha_beta(s, z, 0, 1), reverse_kl(s, z), rtol=1e-11, atol=0)
    hellinger = 2 * (p.sqrt() - q.sqrt()).square().sum(-1)
    torch.testing.assert_close(alpha_beta(s, z, 0.5, 0.5), hellinger, rtol=1e-11, atol=0)
    torch.testing.assert_close(alpha_beta(s, z, 1, 1), (p - q).square().sum(-1) / 2, rtol=1e-11, atol=0)
    chi = (p**2 / q).sum(-1) / 2 - 0.5  # Pearson's, halved
    torch.testing.assert_close(alpha_beta(s, z, 2, -1), chi, rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("alpha", "beta"), ENDS)
def test_alpha_beta_is_continuous_at_every_corner(alpha, beta, dtype):
    """A step of 1e-5 changes it by that order, in fp32 as well: nothing is divided by what vanishes."""
    s, z = logits(scale=1.0, dtype=dtype)
    value, gradient = value_and_gradient(lambda s, z: alpha_beta(s, z, alpha, beta), s, z)
    for step in ((1e-5, 0), (0, 1e-5), (-1e-5, 1e-5)):
        near = (alpha + step[0], beta + step[1])
        value_near, gradient_near = value_and_gradient(lambda s, z, near=near: alpha_beta(s, z, *near), s, z)
        torch.testing.assert_close(value_near, value, rtol=2e-4, atol=0)
        torch.testing.assert_close(gradient_near, gradient, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("alpha", "beta", "without_student", "without_teacher"),
    [
        (0.2, 0.7, True, True),
        (1, 0, False, True),
        (0, 1, True, False),
        (0, 0, False, False),
        (2, -1, False, True),
        (-1, 0.5, False, False),
    ],
)
def test_alpha_beta_of_an_entry_on_one_side(alpha, beta, without_student, without_teacher):
    """Oracle: the limit of ever smaller logits. Finite where the other side's exponent and both's sum are positive."""
    for side, finite in (("student", without_student), ("teacher", without_teacher)):
        pair = [x.detach() for x in logits(scale=1.0)]
        pair[side == "teacher"][:, 5:8] = -INF
        value, gradient = value_and_gradient(
            lambda s, z: alpha_beta(s, z, alpha, beta), pair[0].requires_grad_(), pair[1]
        )
        assert value.isfinite().all() == finite and gradient.isfinite().all() >= finite
        if finite:
            near = [torch.where(x == -INF, -400.0, x.detach()) for x in pair]
            torch.testing.assert_close(value, alpha_beta(*near, alpha, beta), rtol=1e-9, atol=0)


@pytest.mark.parametrize("mixture", [-5.0, -1.0, 0.0, 0.5, 1 - 1e-7, 1.0, 1 + 1e-7, 3.0])
@pytest.mark.parametrize("t", [0.05, 0.6])
def test_amids_bridge_is_the_alpha_mean(mixture, t):
    """Oracle: the mean by its definition (fp64 loses digits in it next to α = 1); the gradient is q − p_t."""
    s, z = logits(scale=1.0)
    expected = np_amid_kl(s.detach().numpy(), z.numpy(), t, mixture)
    value, gradient = value_and_gradient(lambda s, z: amid_kl(s, z, t, mixture), s, z)
    np.testing.assert_allclose(value, expected, rtol=1e-6 if abs(mixture - 1) < 1e-3 else 1e-10)
    c = (1 - mixture) / 2
    log_q, log_p = s.detach().log_softmax(-1), z.log_softmax(-1)
    mean = (
        torch.logaddexp(c * log_q + math.log(1 - t), c * log_p + math.log(t)) / c
        if c
        else (1 - t) * s + t * z
    )
    torch.testing.assert_close(
        gradient, s.detach().softmax(-1) - mean.detach().softmax(-1), rtol=0, atol=1e-8
    )


def test_amids_bridge_is_taids_and_that_of_probabilities():
    """At α = 1 and −1; at its ends the student itself and the teacher; all of it zero at equality."""
    s, z = logits()
    assert torch.equal(amid_kl(s, z, 0.3, 1.0), taid_kl(s, z, 0.3))
    log_q, log_p = s.detach().log_softmax(-1), z.log_softmax(-1)
    arithmetic = torch.logaddexp(log_q + math.log(0.7), log_p + math.log(0.3))
    torch.testing.assert_close(amid_kl(s, z, 0.3, -1.0), forward_kl(s, arithmetic), rtol=1e-12, atol=0)
    for mixture in (-3.0, 0.5, 1.0, 4.0):
        assert torch.equal(amid_kl(s, z, 1.0, mixture), forward_kl(s, z))
        assert amid_kl(s, z, 0.0, mixture).abs().max() == 0
        assert amid_kl(s, s.detach() - 2, 0.4, mixture).abs().max() < 1e-14
    near = [amid_kl(*(x.float() for x in (s, z)), 0.3, 1 + change) for change in (-1e-4, 0, 1e-4)]
    for other in (near[0], near[2]):  # in fp32 as well
        torch.testing.assert_close(other, near[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("mixture", "infinite"), [(0.5, True), (-1.0, True), (1.0, False), (3.0, False)])
def test_amids_bridge_to_what_the_student_lacks(mixture, infinite):
    """A mean of c > 0 has mass where one side has; of c ≤ 0 where both have."""
    s, z = (x.detach() for x in logits(scale=1.0))
    s[:, 5:8] = z[:, 8:9] = -INF
    s[:, 9] = z[:, 9] = -INF
    value, gradient = value_and_gradient(lambda s, z: amid_kl(s, z, 0.3, mixture), s.requires_grad_(), z)
    assert (value == INF).all() if infinite else value.isfinite().all() and gradient.isfinite().all()


def test_losses_keep_leading_shapes():
    s, z = logits()
    blocks = (s.detach().view(2, 3, 4, VOCABULARY), z.view(2, 3, 4, VOCABULARY))
    for loss in (forward_kl, adaptive_kl, skew_rkl, lambda s, z: dkd(s, z, LABELS.view(2, 3, 4))):
        assert loss(*blocks).shape == (2, 3, 4)
    torch.testing.assert_close(adaptive_kl(*blocks).flatten(), adaptive_kl(s.detach(), z))


# What the official code does instead


@pytest.mark.parametrize(("loss", "t"), [(forward_kl, ()), (skew_kl, ()), (taid_kl, (0.3,))])
def test_official_cross_entropy_adds_the_teachers_entropy_and_no_gradient(loss, t):
    s, z = logits()
    z[:, 2] = -INF
    value, gradient = value_and_gradient(lambda s, z: loss(s, z, *t), s, z)
    official, official_gradient = value_and_gradient(lambda s, z: loss(s, z, *t, official=True), s, z)
    teacher = 0.7 * s.detach() + 0.3 * z if t else z
    entropy = -rel_entr(softmax(teacher.numpy(), -1), 1.0).sum(-1)
    np.testing.assert_allclose(official - value, entropy, rtol=1e-12)
    assert torch.equal(official_gradient, gradient)


def test_official_adaptive_kl_depends_on_the_order_of_the_vocabulary():
    s, z = logits()
    order = torch.arange(VOCABULARY).flip(0)
    value, flipped = adaptive_kl(s, z, official=True), adaptive_kl(s[:, order], z[:, order], official=True)
    assert ((value - flipped).abs() / value).max() > 0.05
    in_teachers_order = z.argsort(-1, descending=True)  # a vocabulary in this order gives the method itself
    s, z = s.gather(-1, in_teachers_order), z.gather(-1, in_teachers_order)
    torch.testing.assert_close(adaptive_kl(s, z, official=True), adaptive_kl(s, z))


def test_official_adaptive_kl_is_nan_at_equality():
    s, _ = logits()
    assert adaptive_kl(s, s.detach(), official=True).isnan().all()


# CTKD's temperature


def test_ctkd_differentiates_its_temperature_beside_absent_entries():
    s, z = logits(scale=1.0, seed=4)
    z[:, :3] = -INF
    s = torch.cat([torch.full((ROWS, 2), -INF, dtype=torch.float64), s.detach()[:, 2:]], -1)
    tau = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda tau: ctkd(s, z, tau), tau)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("official", [False, True])
def test_ctkd_temperature_reverses_its_gradient_by_a_rising_factor(progress, official):
    temperature = CTKDTemperature(official=official)
    assert temperature.theta.requires_grad is not official  # the official code never hands θ to an optimizer
    temperature.theta.requires_grad_()
    tau = temperature(progress)
    assert tau.item() == pytest.approx(1 + 20 / (1 + math.exp(-1)), rel=1e-6)
    tau.backward()
    slope = 20 * math.exp(-1) / (1 + math.exp(-1)) ** 2  # dτ/dθ without reversal
    lam = {0.0: 0.0, 0.25: 0.5 - 0.5**1.5, 0.5: 0.5, 1.0: 1.0}[progress]  # (1 − cos(π · progress)) / 2
    expected = (1 - lam) * slope if official else -lam * slope
    assert temperature.theta.grad.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_a_descent_step_on_theta_raises_ctkds_loss():
    s, z = (x.float().detach() for x in logits(scale=1.0))
    temperature = CTKDTemperature()
    before = ctkd(s, z, temperature(1.0)).mean()
    before.backward()
    with torch.no_grad():
        temperature.theta -= 100 * temperature.theta.grad
    assert ctkd(s, z, temperature(1.0)).mean() > before


# Masking


def test_masked_mean_is_the_mean_of_the_selection():
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert masked_mean(values, mask) == 7.0
    assert masked_mean(values, mask, official=True) == 3.5  # divided by all six positions


@pytest.mark.parametrize("poison", [math.nan, INF, -INF])
def test_masked_positions_cannot_poison_the_mean(poison):
    values = torch.tensor([1.0, poison, 3.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, True]))
    mean.backward()
    assert mean == 2.0 and values.grad.tolist() == [0.5, 0.0, 0.5]


def test_an_empty_mask_gives_zero_and_no_gradient():
    values = torch.tensor([1.0, math.nan], requires_grad=True)
    mean = masked_mean(values, torch.tensor([False, False]))
    mean.backward()
    assert mean == 0.0 and values.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float16])
def test_a_mask_may_be_of_zeros_and_ones(dtype):
    """An attention mask is int64."""
    values = torch.tensor([1.0, math.nan, 5.0])
    assert masked_mean(values, torch.tensor([1, 0, 1]).to(dtype)) == 3.0
    assert masked_mean(torch.tensor([1.0, 2.0]), torch.tensor([1, 0]).to(dtype), official=True) == 0.5


@pytest.mark.parametrize("wrong", [2, -1, 0.5, math.nan, -INF])
def test_any_other_mask_is_refused_by_its_number(wrong):
    with pytest.raises(ValueError, match=f"booleans, or 0 and 1, got {wrong}"):
        masked_mean(torch.ones(3), torch.tensor([1, 0, wrong]))


def test_weighted_mean_is_divided_by_the_weights_under_the_mask():
    """By hand: (1 · 2 + 3 · 4) / (1 + 3); the 8 is masked, the NaN has weight 0."""
    values = torch.tensor([2.0, 8.0, 4.0, math.nan], requires_grad=True)
    mean = masked_mean(values, torch.tensor([1, 0, 1, 1]), torch.tensor([1, 5, 3, 0]))
    mean.backward()
    assert mean.item() == pytest.approx(3.5) and values.grad.tolist() == pytest.approx([0.25, 0, 0.75, 0])
    assert masked_mean(values, torch.tensor([1, 0, 1, 1]), torch.zeros(4)) == 0
    assert masked_mean(values, torch.tensor([1, 0, 1, 0]), torch.full((4,), 3e38)).item() == 3


# Names and errors


def test_every_method_of_the_papers_tables_is_there():
    tables = Path(__file__).parents[1].glob("analysis/paper/*.csv")
    methods = {row.get("method") for table in tables for row in csv.DictReader(table.open())} - {None}
    assert methods <= set(METHODS)


def test_losses_have_their_own_names():
    assert all(loss.__name__ == name and getattr(losses, name) is loss for name, loss in LOSSES.items())


@pytest.mark.parametrize("name", CASES)
def test_shapes_that_differ_are_named(name):
    s, z = logits()
    with pytest.raises(ValueError, match=rf"\({ROWS}, {VOCABULARY}\).*\({ROWS}, {VOCABULARY - 1}\).*padding"):
        CASES[name][0](s, z[:, 1:])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, z: jsd(s, z, 0.0), "teacher_weight"),
        (lambda s, z: skew_kl(s, z, 1.0), "lam"),
        (lambda s, z: skew_rkl(s, z, math.nan), "lam"),
        (lambda s, z: adaptive_kl(s, z, -0.5), "mu"),
        (lambda s, z: alpha_beta(s, z, math.nan), "alpha must be a finite number"),
        (lambda s, z: alpha_beta(s, z, 1.0, INF), "beta must be a finite number"),
        (lambda s, z: taid_kl(s, z, 1.5), "t must"),
        (lambda s, z: amid_kl(s, z, math.nan), "t must"),
        (lambda s, z: amid_kl(s, z, 0.5, INF), "mixture must be a finite number"),
        (lambda s, z: dkd(s, z, None), "needs labels"),
        (lambda s, z: dkd(s, z, LABELS[:2]), rf"\({ROWS},\).*\(2,\)"),
        (lambda s, z: masked_mean(s, torch.ones(ROWS, dtype=torch.bool)), "mask"),
        (
            lambda s, z: masked_mean(s[:, 0], LABELS > 2, -torch.ones(ROWS)),
            "weights must be finite and not neg",
        ),
        (lambda s, z: masked_mean(s[:, 0], LABELS > 2, torch.ones(ROWS), official=True), "no weights"),
        (lambda s, z: dkd(s, z, LABELS + VOCABULARY), "no entry of logits with 40"),
        (lambda s, z: dkd(s, z, LABELS.float()), "integers"),
        (lambda s, z: dkd(s, z, LABELS, temperature=0.0), "temperature"),
        (lambda s, z: ctkd(s, z, torch.ones(2)), "one number"),
        (lambda s, z: dkd(s, z, LABELS, beta=-1.0), "beta must be finite and not negative"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(*logits())
