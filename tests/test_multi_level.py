"""MLKD: against its formula written out in fp64, and what a divergence of a batch has to be."""

import math

import pytest
import torch

from taid.multi_level import TEMPERATURES, mlkd


def logits(n: int = 7, v: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(n, v, generator=generator, dtype=torch.float64) for _ in range(2))


def by_hand(s, z, temperatures=TEMPERATURES) -> float:
    """Sums over instances, pairs of instances and pairs of classes, one by one."""
    (n, v), total = s.shape, 0.0
    for tau in temperatures:
        q, p = ((x / tau).exp() / (x / tau).exp().sum(-1, keepdim=True) for x in (s, z))
        total += tau**2 * sum(p[i, k] * (p[i, k] / q[i, k]).log() for i in range(n) for k in range(v)) / n
        total += sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for i in range(n) for j in range(n)) / n
        total += sum((p[:, a] @ p[:, b] - q[:, a] @ q[:, b]) ** 2 for a in range(v) for b in range(v)) / v
    return float(total)


@pytest.mark.parametrize(("n", "v"), [(7, 5), (3, 11), (1, 2)])
def test_the_mean_is_the_three_levels_at_every_temperature(n, v):
    s, z = logits(n, v)
    values = mlkd(s, z)
    assert values.shape == (n,) and values.mean().item() == pytest.approx(by_hand(s, z), rel=1e-10)
    assert mlkd(s, z, [1.0]).mean().item() == pytest.approx(by_hand(s, z, [1.0]), rel=1e-10)


def test_the_gradient_is_that_of_the_formula():
    """Oracle: autograd through the matrices of classes, [V, V], which the loss never makes."""
    s, z = logits()
    s.requires_grad_()
    p, q = (z / 3).softmax(-1), (s / 3).softmax(-1)
    expected = 9 * (p * (p.log() - q.log())).sum() / 7
    expected = expected + (p @ p.T - q @ q.T).square().sum() / 7 + (p.T @ p - q.T @ q).square().sum() / 5
    (wanted,) = torch.autograd.grad(expected, s)
    (found,) = torch.autograd.grad(mlkd(s, z, [3.0]).mean(), s)
    assert torch.allclose(found, wanted, rtol=1e-10)


def test_it_is_a_divergence():
    s, z = logits()
    assert mlkd(z, z).abs().max() < 1e-12 and (mlkd(s, z) > 0).all()
    assert torch.allclose(mlkd(s + 3, z - 2), mlkd(s, z))  # logits are known up to a constant
    close = mlkd((z + 1e-2 * s).float(), z.float())  # in fp32 next to 0: nothing cancels
    assert close.mean().item() == pytest.approx(mlkd(z + 1e-2 * s, z).mean().item(), rel=0.01)


def test_it_compares_a_batch_and_neither_order_matters():
    """Predictions or classes in another order: the same values; other company in the batch: others."""
    s, z = logits()
    rows, columns = torch.randperm(7), torch.randperm(5)
    assert torch.allclose(mlkd(s[rows], z[rows]), mlkd(s, z)[rows])
    assert torch.allclose(mlkd(s[:, columns], z[:, columns]), mlkd(s, z))
    assert not torch.allclose(mlkd(s[:3], z[:3]), mlkd(s, z)[:3])


def test_a_class_that_neither_has_changes_the_mean_over_classes_alone():
    """By hand: the classes' level is a mean over V, and an absent class is one of them."""
    s, z = logits()
    absent = torch.full((7, 1), -math.inf, dtype=torch.float64)
    wider = mlkd(torch.cat([s, absent], 1).requires_grad_(), torch.cat([z, absent], 1), [2.0])
    p, q = (z / 2).softmax(-1), (s / 2).softmax(-1)
    classes = (p.T @ p - q.T @ q).square().sum()
    assert torch.allclose(wider, mlkd(s, z, [2.0]) - classes / 5 + classes / 6)
    assert wider.mean().isfinite()


def test_a_teacher_may_be_more_precise_than_the_student():
    s, z = logits()
    assert mlkd(s.float(), z).mean().item() == pytest.approx(by_hand(s, z), rel=1e-5)


def test_what_is_no_batch_of_predictions_is_refused():
    s, z = logits()
    with pytest.raises(
        ValueError, match=r"mlkd compares the predictions of a batch: pass logits \[n, V\], got \[1, 7, 5\]"
    ):
        mlkd(s[None], z[None])
    with pytest.raises(ValueError, match="at least one temperature"):
        mlkd(s, z, [])
    with pytest.raises(ValueError, match=r"several temperatures, such as \(2.0, 4.0\), got 3.0"):
        mlkd(s, z, 3.0)
    with pytest.raises(ValueError, match="temperature must be a number, got '2'"):
        mlkd(s, z, ["2"])
    with pytest.raises(ValueError, match="temperature must be positive"):
        mlkd(s, z, [2.0, 0.0])
    with pytest.raises(ValueError, match="one shape"):
        mlkd(s, z[:, :4])
    assert mlkd(s[:0], z[:0]).shape == (0,)
