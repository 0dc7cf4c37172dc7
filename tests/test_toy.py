"""The toy against closed forms, an independent optimiser (scipy) and limit cases."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import logsumexp
from scipy.stats import norm

from taid import losses
from taid.objectives import objective
from taid.toy import (
    Energy,
    Gaussians,
    Mixture,
    best_mode,
    distill,
    expected_loss,
    grid,
    measure,
    moments,
    polynomials,
    regions,
    renyi,
    ring_of_modes,
    targets,
)

POINTS = grid(bound=12, count=97)
TEACHER = ring_of_modes(count=2, gap=6, weights=[0.6, 0.4])
METHODS = (
    "sft",
    "kl",
    "rkl",
    "tvd",
    "adaptive_kl",
    "gjs",
    "skew_kl",
    "skew_rkl",
    "ctkd",
    "dkd",
    "taid_no_adaptive",
    "taid",
)


def mixture_moments(teacher: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    """Oracle, without a grid: mean Σ w μ, variance Σ w (σ² + μ²) − mean²."""
    weights = teacher.log_weights.softmax(-1)
    mean = weights @ teacher.means
    return mean, weights @ (teacher.log_scales.exp().square() + teacher.means.square()) - mean.square()


def ends(student, method: str, start: torch.Tensor, steps: int, **options) -> torch.Tensor:
    """Parameters after training on `TEACHER`, [S, ...]."""
    return distill(student, TEACHER.logits(POINTS), method, start, steps, **options).parameters[-1]


# --- The teacher and its measures ---------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_neighbouring_modes_are_one_gap_apart_about_the_origin(count, dim):
    means = ring_of_modes(count, 4.0, dim).means
    assert means.shape == (count, dim)
    torch.testing.assert_close((means[1:] - means[:-1]).norm(dim=-1), torch.full((count - 1,), 4.0).double())
    torch.testing.assert_close(means.mean(0), torch.zeros(dim).double(), atol=1e-12, rtol=0)


def test_logits_are_the_densities_of_scipys_normal():
    numbers = torch.tensor([[0.3, 0.7], [-1.0, 2.0], [0.5, 2.0]], dtype=torch.float64)
    weights, means, scales = numbers.unsqueeze(-1)
    mixture = Mixture(weights[:, 0].log(), means, scales.log())
    x = POINTS[:, 0].numpy()
    density = 0.3 * norm.pdf(x, -1, 0.5) + 0.7 * norm.pdf(x, 2, 2)
    np.testing.assert_allclose(mixture.logits(POINTS).softmax(-1), density / density.sum(), rtol=1e-10)


def test_regions_by_hand():
    """Modes at −3 and 3, radius 1 on the grid −4 … 4: cells ±2 … ±4 are theirs, −1 … 1 lie between."""
    near, valley = regions(ring_of_modes(2, 6), grid(4, 9), radius=1)
    assert near.long().tolist() == [[1, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert valley.long().tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_measures_of_the_teacher_and_of_the_uniform_student():
    cells = len(POINTS)
    flat, itself = torch.zeros(cells).double(), TEACHER.logits(POINTS)
    values = measure(torch.stack([flat, itself]), TEACHER, POINTS)
    assert values["modes_covered"].tolist() == [0, 2]  # the uniform has ⅓ of the teacher's mass on each mode
    assert values["entropy"][0].item() == pytest.approx(math.log(cells))
    assert values["head_mass"][0].item() == pytest.approx(10 / cells)
    assert values["tail_mass"][0].item() == pytest.approx((cells - round(0.8 * cells)) / cells)
    assert values["forward_kl"][0].item() == pytest.approx(math.log(cells) - values["entropy"][1].item())
    assert values["forward_kl"][1].item() == values["reverse_kl"][1].item() == 0


# --- Forward KL averages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "count"), [(1, 2), (1, 3), (2, 3)])
def test_one_gaussian_under_forward_kl_keeps_the_teachers_moments(dim, count):
    """Oracle: the closed form without a grid (cells 0.5 wide; beyond the bound lies less than 1e-9)."""
    points, teacher = grid(12, 49, dim), ring_of_modes(count, 4, dim, weights=[0.5, 0.3, 0.2][3 - count :])
    student = Gaussians(points)
    path = distill(student, teacher.logits(points), "kl", student.init(starts=3, seed=0), steps=400)
    mean, variance = mixture_moments(teacher)
    for expected, found, on_grid in zip(
        (mean, variance),
        moments(student.logits(path.parameters[-1]), points),
        moments(teacher.logits(points), points),
        strict=True,
    ):
        torch.testing.assert_close(on_grid, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found, expected.expand(3, dim), atol=1e-3, rtol=0)


def test_an_energy_model_matches_its_features_from_any_start_and_by_any_path():
    """The forward KL of an exponential family is convex: at its one optimum E_q features = E_p features."""
    student, teacher_logits = Energy(polynomials(POINTS, degree=4)), TEACHER.logits(POINTS)
    start = student.init(starts=4, seed=0)
    walked = ends(student, "taid_no_adaptive", start, 300, t_start=0.1)
    expected = teacher_logits.softmax(-1) @ student.features
    for begin in (start, walked):
        end = student.logits(ends(student, "kl", begin, 1000, learning_rate=1.0)).softmax(-1)
        torch.testing.assert_close(end @ student.features, expected.expand(4, -1), atol=1e-4, rtol=0)


# --- Reverse KL collapses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2])
def test_every_mode_is_a_local_optimum_of_reverse_kl(dim):
    """At a gap of 10, KL(q ‖ p) = −log w_k but for the overlap of the modes, below 1e-5."""
    weights = [0.5, 0.3, 0.2]
    points, teacher = grid(14, 57, dim), ring_of_modes(3, 10, dim, weights)
    student = Gaussians(points)
    start = torch.cat([torch.zeros(3, 1), teacher.means + 0.5, torch.full((3, dim), 0.2)], dim=-1)
    path = distill(student, teacher.logits(points), "rkl", start.unsqueeze(1), steps=300)
    found = student.mixture(path.parameters[-1])
    torch.testing.assert_close(found.means[:, 0], teacher.means, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.log_scales[:, 0], teacher.log_scales, atol=1e-3, rtol=0)
    values = measure(student.logits(path.parameters[-1]), teacher, points)
    assert values["reverse_kl"].tolist() == pytest.approx([-math.log(w) for w in weights], abs=1e-4)
    assert values["modes_covered"].tolist() == [1, 1, 1]

    mode, divergence = best_mode(teacher)
    assert values["reverse_kl"].argmin().item() == 0
    assert divergence == pytest.approx(values["reverse_kl"][0].item(), abs=1e-4)
    torch.testing.assert_close(mode.means, teacher.means[:1])


# --- TAID walks from one to the other -----------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.05, 0.4, 0.95])
def test_taids_gradient_is_that_of_the_renyi_divergence_of_order_t(t):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 30, generator=generator).double() * 3
    student = torch.randn(5, 30, generator=generator).double().requires_grad_()
    (taid,) = torch.autograd.grad(losses.taid_kl(student, teacher, t).sum(), student)
    (exact,) = torch.autograd.grad(renyi(student, teacher, t).sum(), student)
    torch.testing.assert_close(taid, exact, rtol=1e-10, atol=1e-13)


def test_renyi_lies_between_the_two_kl_divergences():
    """renyi → KL(p ‖ q) as t → 1 and renyi / t → KL(q ‖ p) as t → 0, both with an error of first order."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 30, generator=generator).double()
    ends = {
        "forward": lambda h: renyi(student, teacher, 1 - h) - losses.forward_kl(student, teacher),
        "reverse": lambda h: renyi(student, teacher, h) / h - losses.reverse_kl(student, teacher),
    }
    for error in ends.values():
        assert (error(1e-3) / error(1e-4)).item() == pytest.approx(10, rel=0.02)
    with pytest.raises(ValueError, match="forward_kl"):
        renyi(student, teacher, 1.0)


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_taid_at_a_fixed_t_ends_where_scipy_minimises_the_renyi_divergence(t):
    """Oracle: scipy's Nelder–Mead on densities of its own, integrated on the same cells."""
    x, p = POINTS[:, 0].numpy(), TEACHER.logits(POINTS).log_softmax(-1).numpy()

    def divergence(parameters: np.ndarray) -> float:
        log_q = norm.logpdf(x, parameters[0], np.exp(parameters[1]))
        return logsumexp(t * p + (1 - t) * (log_q - logsumexp(log_q))) / (t - 1)

    student = Gaussians(POINTS)
    end = ends(student, "taid_no_adaptive", student.init(1, seed=1), 500, t_start=t, t_end=t)
    found = end[0, 0, 1:].numpy()  # mean and log-scale
    tolerances = {"xatol": 1e-9, "fatol": 1e-12}
    exact = optimize.minimize(divergence, found + 0.3, method="Nelder-Mead", options=tolerances)
    np.testing.assert_allclose(found, exact.x, atol=1e-3)


def test_taid_at_t_1_is_forward_kl_and_at_t_0_stands_still():
    student = Gaussians(POINTS, components=2)
    start = student.init(3, seed=0)
    at_1 = ends(student, "taid_no_adaptive", start, 50, t_start=1.0)
    torch.testing.assert_close(at_1, ends(student, "kl", start, 50), rtol=0, atol=1e-10)
    standing = ends(student, "taid_no_adaptive", start, 50, t_start=0.0, t_end=0.0)
    torch.testing.assert_close(standing, start, rtol=0, atol=1e-6)  # rounding, by Adam's 1 / 1e-8


def test_targets_move_from_the_student_to_the_teacher():
    student, teacher_logits = Gaussians(POINTS), TEACHER.logits(POINTS)
    path = distill(student, teacher_logits, "taid_no_adaptive", student.init(2, seed=0), 20, t_start=0.0)
    logits = student.logits(path.parameters)
    bridge = targets(logits, teacher_logits, path.t)
    torch.testing.assert_close(path.t, torch.linspace(0, 1, 21).double())
    torch.testing.assert_close(bridge[0], logits[0])
    torch.testing.assert_close(bridge[-1], teacher_logits.expand(2, -1))
    torch.testing.assert_close(bridge[10], (logits[10] + teacher_logits) / 2)


def test_starts_do_not_disturb_each_other():
    student = Gaussians(POINTS, components=2)
    start = student.init(3, seed=0)
    for method in ("kl", "adaptive_kl", "taid_no_adaptive"):
        together, alone = ends(student, method, start, 40), ends(student, method, start[1:2], 40)
        torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-8)


# --- Every method -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_without_a_capacity_gap_every_method_finds_the_teacher(method):
    """A free logit per cell: zero is every divergence's only minimum. Cross-entropy: in fp32, so 1e-6."""
    teacher_logits = 0.5 * torch.randn(9, generator=torch.Generator().manual_seed(0)).double()
    student = Energy(torch.eye(9).double())
    path = distill(student, teacher_logits, method, student.init(2, seed=1), 600)
    end = student.logits(path.parameters[-1]).softmax(-1)
    tolerance = 1e-3 if method == "tvd" else 1e-5  # its kink is there, and Adam jumps over it
    torch.testing.assert_close(end, teacher_logits.softmax(-1).expand(2, -1), atol=tolerance, rtol=0)


def test_labels_are_averaged_over_exactly():
    """Oracle: DKD label by label, and for SFT the cross-entropy −Σ p log q."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, generator=generator).double()
    p = teacher.softmax(-1)
    dkd = sum(p[:, y] * losses.dkd(student, teacher, torch.full((4,), y)) for y in range(6))
    torch.testing.assert_close(expected_loss(objective("dkd"), student, teacher), dkd)
    cross_entropy = -(p * student.log_softmax(-1)).sum(-1)
    sft = expected_loss(objective("sft"), student, teacher).double()
    torch.testing.assert_close(sft, cross_entropy, rtol=1e-6, atol=0)
