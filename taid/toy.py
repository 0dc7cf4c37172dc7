"""Mode averaging and mode collapse where one can see them: a mixture of Gaussians taught to a smaller family.

Everything lives on the cells of a grid. A density becomes one logit per cell, so the teacher is a next-token
distribution over a vocabulary of V cells, and students train on it by the very objectives of the language
models:

    points = grid(bound=10, count=201)
    teacher = ring_of_modes(count=2, gap=6)
    student = Gaussians(points, components=1)
    path = distill(student, teacher.logits(points), "taid", student.init(starts=8, seed=0), steps=400)
    measure(student.logits(path.parameters), teacher, points)["valley_mass"]  # [steps + 1, starts]

What TAID does here, exactly: with p_t held fixed, the gradient of KL(p_t ‖ q) is the gradient of `renyi`, the
Rényi divergence of order t. Its schedule walks from an order near 0, close to t · KL(q ‖ p), to order 1, the
forward KL.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from taid.evaluation.mass import probability_mass
from taid.losses import forward_kl, interpolate, reverse_kl
from taid.objectives import DKD, SFT, TAID, Objective, objective

# --- Distributions ------------------------------------------------------------------------------------------


def grid(bound: float, count: int, dim: int = 1) -> Tensor:
    """The count^dim cells of a regular grid on [−bound, bound]^dim, [V, dim], fp64."""
    axis = torch.linspace(-bound, bound, count, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)


@dataclass(frozen=True)
class Mixture:
    """Gaussians of diagonal covariance: log-weights [..., K], up to a constant; means, log-scales [..., K, D]."""

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor

    def logits(self, points: Tensor) -> Tensor:
        """Log-density at the points [V, D], up to a constant: [..., V]."""
        distance = (points - self.means.unsqueeze(-2)) / self.log_scales.exp().unsqueeze(-2)  # [..., K, V, D]
        log_volume = self.log_scales.sum(-1, keepdim=True)  # [..., K, 1]
        log_density = -0.5 * distance.square().sum(-1) - log_volume  # [..., K, V]
        return (self.log_weights.unsqueeze(-1) + log_density).logsumexp(-2)


def ring_of_modes(count: int, gap: float, dim: int = 1, weights: list[float] | None = None) -> Mixture:
    """A teacher of `count` modes of unit scale, `gap` apart: on a line (dim 1) or around a circle (dim 2).

    Equal weights unless given. Raises ValueError for any other dimension.
    """
    index = torch.arange(count, dtype=torch.float64)
    if dim == 1:
        means = gap * (index - (count - 1) / 2).unsqueeze(-1)
    elif dim == 2:
        radius = gap / (2 * math.sin(math.pi / count)) if count > 1 else 0.0
        angle = 2 * math.pi * index / count
        means = radius * torch.stack([angle.cos(), angle.sin()], dim=-1)
    else:
        raise ValueError(f"modes lie on a line (dim=1) or a circle (dim=2), not in dimension {dim}")
    share = torch.tensor(weights or [1 / count] * count, dtype=torch.float64)
    return Mixture(share.log(), means, torch.zeros_like(means))


# --- Students -----------------------------------------------------------------------------------------------


class Student(Protocol):
    """A family of distributions over V cells; the parameters of S students are one tensor [S, ...]."""

    def init(self, starts: int, seed: int) -> Tensor: ...  # [S, ...]

    def logits(self, parameters: Tensor) -> Tensor: ...  # [..., V], for parameters with any leading axes


@dataclass(frozen=True)
class Gaussians:
    """Mixtures of k Gaussians; parameters [..., k, 1 + 2D] hold a log-weight, D means and D log-scales each."""

    points: Tensor  # [V, D]
    components: int = 1
    spread: float = 3.0  # standard deviation of the means at the start

    def init(self, starts: int, seed: int) -> Tensor:
        """Equal weights, unit scales, means drawn from N(0, spread²)."""
        dim = self.points.shape[-1]
        parameters = torch.zeros(starts, self.components, 1 + 2 * dim, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        parameters[..., 1 : 1 + dim].normal_(std=self.spread, generator=generator)
        return parameters

    def mixture(self, parameters: Tensor) -> Mixture:
        dim = self.points.shape[-1]
        log_weight, means, log_scales = parameters.split([1, dim, dim], dim=-1)
        return Mixture(log_weight.squeeze(-1), means, log_scales)

    def logits(self, parameters: Tensor) -> Tensor:
        return self.mixture(parameters).logits(self.points)


@dataclass(frozen=True)
class Energy:
    """An energy model, logits = features · parameters, features [V, F] and parameters [..., F].

    An exponential family: its forward KL is convex, and least where E_q features = E_p features. With one
    feature per cell it is the free categorical, which has no capacity gap at all.
    """

    features: Tensor

    def init(self, starts: int, seed: int) -> Tensor:
        """Standard normal parameters."""
        generator = torch.Generator().manual_seed(seed)
        shape = (starts, self.features.shape[-1])
        return torch.empty(shape, dtype=torch.float64).normal_(generator=generator)

    def logits(self, parameters: Tensor) -> Tensor:
        return parameters @ self.features.T


def polynomials(points: Tensor, degree: int) -> Tensor:
    """Products of Legendre polynomials, of total degree 1 … `degree`, in the points scaled to [−1, 1].

    [V, D] -> [V, F]
    """
    dim = points.shape[-1]
    degrees = torch.cartesian_prod(*[torch.arange(degree + 1)] * dim).reshape(-1, dim)
    total = degrees.sum(-1)
    chosen = degrees[(total >= 1) & (total <= degree)]  # [F, D]
    unit = points / points.abs().max()
    return torch.special.legendre_polynomial_p(unit.unsqueeze(-2), chosen).prod(-1)


# --- Training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """All of a run of N steps from S starts, the state before training included."""

    parameters: Tensor  # [N + 1, S, ...]
    t: Tensor  # [N + 1]; 1 throughout for methods whose target is the teacher itself
    losses: Tensor  # [N, S], of the steps; nats (TVD: a probability)


def distill(
    student: Student,
    teacher_logits: Tensor,
    method: str,
    start: Tensor,
    steps: int,
    learning_rate: float = 0.1,
    **options,
) -> Path:
    """Train students from `start` [S, ...] on `teacher_logits` [V] by a method of `taid.objectives.METHODS`.

    Labels, where a method wants them, are averaged over exactly, without noise. `options` are the method's.
    """
    criterion = objective(method, **options)

    def loss(parameters: Tensor) -> Tensor:
        student_logits = student.logits(parameters)
        return expected_loss(criterion, student_logits, teacher_logits.expand_as(student_logits))

    return descend(criterion, loss, start, steps, learning_rate)


def descend(
    criterion: Objective, loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, learning_rate: float
) -> Path:
    """Minimise `loss`, [S, ...] -> [S], which calls `criterion`, from `start`; Adam, cosine to zero.

    The S students form one batch: they share the criterion, so TAID's adaptive t follows their mean loss, but
    each descends its own loss. Adam's β₂ is 0.95: the first gradient of a far start is huge, and 0.999 would
    remember it for the whole run.
    """
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters, *criterion.parameters()], lr=learning_rate, betas=(0.9, 0.95))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    path, ts, losses = [start], [order(criterion)], []
    for step in range(1, steps + 1):
        values = loss(parameters)  # [S]
        optimizer.zero_grad()
        values.sum().backward()
        optimizer.step()
        decay.step()
        criterion.update(values.mean().item(), step / steps)
        path.append(parameters.detach().clone())
        ts.append(order(criterion))
        losses.append(values.detach())
    return Path(torch.stack(path), torch.tensor(ts, dtype=torch.float64), torch.stack(losses))


def order(criterion: Objective) -> float:
    """TAID's t, the order of the divergence that it descends; 1 for all others."""
    return criterion.state.t if isinstance(criterion, TAID) else 1.0


def expected_loss(criterion: Objective, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean of an objective over labels drawn from the teacher, exactly. [..., V], [..., V] -> [...]"""
    shape, cells = student_logits.shape[:-1], student_logits.shape[-1]
    student, teacher = student_logits.reshape(-1, cells), teacher_logits.reshape(-1, cells)
    if not isinstance(criterion, (SFT, DKD)):  # no label enters
        labels = torch.zeros(shape.numel(), dtype=torch.long)
        return criterion.per_token(student, teacher, labels).view(shape)
    student, teacher = student.repeat_interleave(cells, 0), teacher.repeat_interleave(cells, 0)
    labels = torch.arange(cells).repeat(shape.numel())
    by_label = criterion.per_token(student, teacher, labels).view(*shape, cells)
    return (by_label * teacher_logits.softmax(-1)).sum(-1)


def targets(student_logits: Tensor, teacher_logits: Tensor, t: Tensor) -> Tensor:
    """Logits of the p_t of every step. [N + 1, S, V], [V], [N + 1] -> [N + 1, S, V]"""
    teacher = teacher_logits.expand_as(student_logits[0])
    return torch.stack([interpolate(s, teacher, x) for s, x in zip(student_logits, t.tolist(), strict=True)])


# --- Exact references ---------------------------------------------------------------------------------------


def renyi(student_logits: Tensor, teacher_logits: Tensor, t: float) -> Tensor:
    """Rényi divergence of order t in (0, 1), log(Σ p^t q^(1−t)) / (t − 1), in nats. [..., V] -> [...]

    Its gradient is −E_{p_t}[∇ log q], p_t ∝ q^(1−t) p^t: that of `taid.losses.taid_kl`, whatever the student
    family. So TAID at a fixed t descends this divergence. Order 1 is the forward KL, and renyi / t tends to
    the reverse KL as t falls to 0 (van Erven and Harremoës 2014).
    """
    if not 0 < t < 1:
        raise ValueError(f"order must lie strictly in (0, 1), got {t}; order 1 is taid.losses.forward_kl")
    log_q, log_p = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (t * log_p + (1 - t) * log_q).logsumexp(-1) / (t - 1)


def moments(logits: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each coordinate, [..., D]: what one Gaussian keeps under forward KL."""
    p = logits.softmax(-1)
    mean = p @ points
    return mean, p @ points.square() - mean.square()


def best_mode(teacher: Mixture) -> tuple[Mixture, float]:
    """The limit of one Gaussian under reverse KL as the modes move apart, and its KL(q ‖ p) [nats].

    Every mode k is then a local optimum with KL(q ‖ p) = −log w_k; the best is the heaviest.
    """
    log_weights = teacher.log_weights.log_softmax(-1)
    k = int(log_weights.argmax())
    mode = Mixture(torch.zeros(1).double(), teacher.means[k : k + 1], teacher.log_scales[k : k + 1])
    return mode, -log_weights[k].item()


# --- Measures -----------------------------------------------------------------------------------------------


def regions(teacher: Mixture, points: Tensor, radius: float = 2.0) -> tuple[Tensor, Tensor]:
    """Cells of each mode [K, V] and of the valley between the modes [V], boolean.

    A cell belongs to its nearest mode, to all of them in a tie, if that is within `radius` standard deviations. The valley is the cells
    of no mode that lie no farther from the centre of the modes than the outermost mode does.
    """
    away = (points - teacher.means.unsqueeze(-2)) / teacher.log_scales.exp().unsqueeze(-2)  # [K, V, D]
    distance = away.norm(dim=-1)  # [K, V]
    near = (distance <= radius) & (distance == distance.min(0).values)
    centre = teacher.means.mean(0)
    reach = (teacher.means - centre).norm(dim=-1).max()
    return near, ~near.any(0) & ((points - centre).norm(dim=-1) <= reach)


def measure(logits: Tensor, teacher: Mixture, points: Tensor) -> dict[str, Tensor]:
    """What students [..., V] make of the teacher; every value [...].

    - modes_covered: modes on whose cells the student has at least half of the teacher's mass
    - valley_mass: mass between the modes; head_mass, tail_mass: on the teacher's ten likeliest cells, and on
      its least likely fifth
    - entropy [nats], of the distribution over cells; forward_kl, reverse_kl [nats]
    """
    near, valley = regions(teacher, points)
    teacher_logits = teacher.logits(points)  # [V]
    q, p, cells = logits.softmax(-1), teacher_logits.softmax(-1), near.double()
    head_mass, tail_mass = probability_mass(logits, teacher_logits)
    return {
        "modes_covered": (q @ cells.T >= 0.5 * (cells @ p)).sum(-1),
        "valley_mass": q @ valley.double(),
        "head_mass": head_mass,
        "tail_mass": tail_mass,
        "entropy": torch.special.entr(q).sum(-1),
        "forward_kl": forward_kl(logits, teacher_logits.expand_as(logits)),
        "reverse_kl": reverse_kl(logits, teacher_logits.expand_as(logits)),
    }
