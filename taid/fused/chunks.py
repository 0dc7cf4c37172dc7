"""The losses on one chunk of rows, value and gradient together, as torch operations: for any device.

With q = softmax(s), p = softmax(z) and r = log p − log q, a divergence Σ_j f(p_j, q_j) has the gradient

    h_j − q_j Σ_k h_k,    h_j = ∂f / ∂ log q_j,

with respect to s. Each function of `CORES` maps fp32 (or fp64) chunks s, z [r, V], which it overwrites,
and its loss's own parameters to (values [r], gradient [r, V]). −∞ follows the table of `taid.losses`: a
weight of zero meets ±∞ only as 0 · ∞ = NaN, which `_sum` skips; logits that are NaN still show, by the
normalisers.
"""

import functools
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import NamedTuple

import torch
from torch import Tensor

from taid import losses
from taid.fused.rows import Rows

Chunk = tuple[Tensor, Tensor]


class Softmax(NamedTuple):
    """softmax of logits [r, V], kept in parts."""

    x: Tensor  # [r, V] logits less their maximum
    p: Tensor  # [r, V] probabilities
    log_sum: Tensor  # [r, 1]; log p = x − log_sum
    maximum: Tensor  # [r, 1]

    @classmethod
    def of(cls, logits: Tensor) -> "Softmax":
        maximum = logits.amax(-1, keepdim=True)
        x = logits.sub_(maximum)
        p = x.exp()
        total = p.sum(-1, keepdim=True)
        return cls(x, p.mul_(1 / total), total.log(), maximum)


def forward_kl(s: Tensor, z: Tensor) -> Chunk:
    student, teacher = Softmax.of(s), Softmax.of(z)
    return _kl(student, teacher), student.p.sub_(teacher.p)


def taid_kl(s: Tensor, z: Tensor, t: float) -> Chunk:
    """0 < t < 1: the ends are `forward_kl`, towards the student itself or the teacher."""
    return forward_kl(s, z.mul_(t).add_(s, alpha=1 - t))


def reverse_kl(s: Tensor, z: Tensor) -> Chunk:
    return _reverse_kl(Softmax.of(s), Softmax.of(z))


def tvd(s: Tensor, z: Tensor) -> Chunk:
    q, p = Softmax.of(s).p, Softmax.of(z).p
    gap = q - p
    value = gap.abs().sum(-1) / 2
    return value, _gradient(gap.sign_().mul_(q / 2), q)


def jsd(s: Tensor, z: Tensor, teacher_weight: float | Tensor) -> Chunk:
    q, p = Softmax.of(s).p, Softmax.of(z).p
    inverse = _inverse_mixture(teacher_weight * p, (1 - teacher_weight) * q)
    h = _times_log(q, q * inverse).mul_(1 - teacher_weight)
    value = teacher_weight * _times_log(p, p * inverse).sum(-1) + h.sum(-1)
    return value, _gradient(h, q)


def skew_kl(s: Tensor, z: Tensor, lam: float | Tensor) -> Chunk:
    q, p = Softmax.of(s).p, Softmax.of(z).p
    ratio = _inverse_mixture(lam * p, (1 - lam) * q).mul_(p)
    value = _times_log(p, ratio).sum(-1)
    return value, _gradient(ratio.mul_(q).mul_(lam - 1), q)


def skew_rkl(s: Tensor, z: Tensor, lam: float | Tensor) -> Chunk:
    q, p = Softmax.of(s).p, Softmax.of(z).p
    ratio = _inverse_mixture((1 - lam) * p, lam * q).mul_(q)
    f = _times_log(q, ratio)
    return f.sum(-1), _gradient(f.sub_(ratio.mul_(q).mul_(lam)), q)


def adaptive_kl(s: Tensor, z: Tensor, mu: float) -> Chunk:
    student, teacher = Softmax.of(s), Softmax.of(z)
    q, p = student.p, teacher.p
    gap = (p - q).abs_()
    total = gap.sum(-1, keepdim=True)
    head = gap.mul_(p >= losses._head_threshold(p, mu)).sum(-1, keepdim=True)
    epsilon = torch.finfo(p.dtype).eps
    w = torch.where(total > 0, head / total, 0.5).clamp(epsilon, 1 - epsilon)  # [r, 1]
    forward = _kl(student, teacher)
    forward_gradient = q - p
    reverse, reverse_gradient = _reverse_kl(student, teacher)
    row = w.squeeze(-1)
    return row * forward + (1 - row) * reverse, reverse_gradient.mul_(1 - w).add_(forward_gradient.mul_(w))


def dkd(s: Tensor, z: Tensor, labels: Tensor, alpha: float, beta: float, temperature: float) -> Chunk:
    """The others' part is a KL without the target, the target's part one between two-way distributions."""
    target = labels.clamp(min=0).unsqueeze(-1)  # [r, 1]
    s, z = s.mul_(1 / temperature), z.mul_(1 / temperature)
    s_target, z_target = s.gather(-1, target), z.gather(-1, target)
    student, teacher = (Softmax.of(x.scatter_(-1, target, -torch.inf)) for x in (s, z))
    # two-way logits (odds, 0): log(p_y / (1 − p_y)) against the others
    s_odds = s_target - student.maximum - student.log_sum
    z_odds = z_target - teacher.maximum - teacher.log_sum
    pair = losses.forward_kl(*(torch.cat([odds, torch.zeros_like(odds)], -1) for odds in (s_odds, z_odds)))
    excess = s_odds.sigmoid() - z_odds.sigmoid()  # q_y − p_y, [r, 1]
    value = temperature**2 * (alpha * pair + beta * _kl(student, teacher))
    gradient = student.p.mul_(beta - alpha * excess).sub_(teacher.p.mul_(beta))
    return value, gradient.scatter_(-1, target, alpha * excess).mul_(temperature)


def ctkd(s: Tensor, z: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Its third result is the derivative of the values with respect to the temperature τ, [r].

    For K(τ) = KL(softmax(b) ‖ softmax(a)), a = s / τ, b = z / τ: −τ K′ = Σ (q − p) a + Σ p (r − K) b.
    """
    student, teacher = Softmax.of(s.mul_(1 / temperature)), Softmax.of(z.mul_(1 / temperature))
    value = _kl(student, teacher)
    (a, q, log_s, _), (b, p, log_z, _) = student, teacher
    pb = p * b
    shift = (log_s - log_z).squeeze(-1) - value
    change = _sum(q * a) - _sum(p * a)  # constants in a and b cancel: both are less their maximum
    change += _sum(pb * (b - a)) + shift * _sum(pb)
    slope = 2 * temperature * value - temperature * change
    return temperature**2 * value, q.sub_(p).mul_(temperature), slope


CORES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    core.__name__: core
    for core in (forward_kl, taid_kl, reverse_kl, tvd, jsd, skew_kl, skew_rkl, adaptive_kl, dkd, ctkd)
}
"""Those written out here; any other loss of `taid.losses` is differentiated by autograd, chunk by chunk."""

CHUNK = {  # elements: of a few fp32 copies of them
    "cpu": 200_000,  # that fit into the cache
    "cuda": 2**23,  # that keep a GPU busy, and are 0.2 GB
}


def run(rows: Rows, compiled: bool = False) -> None:
    """The engine: rows that count, in chunks."""
    _keep_freed_memory()
    own_step = _compiled(rows.loss) if compiled else step
    numbers = own_step is step  # those of compiled code are tensors, or it is compiled anew for each
    size = max(1, CHUNK.get(rows.student.device.type, CHUNK["cuda"]) // rows.student.shape[-1])
    for chosen in _chunks(len(rows.student), size, rows.weights):
        chunk = rows.of(chosen)
        factor, parameters = chunk.factor, chunk.parameters
        if not numbers:
            factor, parameters = _tensor(factor, rows), {k: _tensor(v, rows) for k, v in parameters.items()}
        core = CORES.get(rows.loss) or functools.partial(_by_autograd, losses.LOSSES[rows.loss])
        value, gradient, *slope = own_step(
            core, chunk.student, chunk.teacher, rows.values.dtype, factor, parameters
        )
        rows.values[chosen] = value
        if rows.slopes is not None:
            rows.slopes[chosen] = slope[0]
        if rows.out is not None:
            rows.out[chosen] = gradient
    if rows.out is not None and rows.weights is not None:
        rows.out.index_fill_(0, (rows.weights == 0).nonzero().squeeze(-1), 0.0)


def _chunks(n: int, size: int, weights: Tensor | None) -> Iterator[slice | Tensor]:
    """The rows that count, in chunks: slices where the rows follow each other, else their indices."""
    if weights is None:
        yield from (slice(at, min(at + size, n)) for at in range(0, n, size))
        return
    for rows in weights.nonzero().squeeze(-1).cpu().split(size):
        if len(rows):
            first, last = int(rows[0]), int(rows[-1])
            yield slice(first, last + 1) if last - first + 1 == len(rows) else rows.to(weights.device)


def _tensor(value: float | Tensor, rows: Rows) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=rows.values.dtype)


def step(
    core: Callable[..., tuple[Tensor, ...]],
    student: Tensor,
    teacher: Tensor,
    dtype: torch.dtype,
    factor: float | Tensor,
    parameters: dict,
) -> tuple[Tensor, ...]:
    """One core on chunks [r, V] that stay as they are: values [r] in `dtype`, `factor`, a scalar or [r, 1], times the
    gradient [r, V] in the dtype of the student, and what else the core gives."""
    s, z = student.to(dtype, copy=True), teacher.to(dtype, copy=True)
    values, gradient, *rest = core(s, z, **parameters)
    return values, gradient.mul_(factor).to(student.dtype), *rest


def _by_autograd(loss: Callable[..., Tensor], s: Tensor, z: Tensor, **parameters) -> Chunk:
    with torch.inference_mode(False), torch.enable_grad():
        s = s.clone().requires_grad_()
        values = loss(s, z.clone(), **parameters)
        [gradient] = torch.autograd.grad(values.sum(), s)
    return values.detach(), gradient


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc keep a chunk's memory for the next: else it goes back to the system each time. Once a large
    block has been freed, twice its size is kept (mallopt(3), M_MMAP_THRESHOLD)."""
    torch.empty(16 * 2**20, dtype=torch.uint8)


@functools.cache
def _compiled(loss: str) -> Callable[..., tuple[Tensor, ...]]:
    """`step` by torch.compile, for all shapes; its numbers have to be tensors, or it is compiled for each.

    The conversions from and to half precision stay outside: on a CPU Inductor's take as long as all the
    rest. Dynamo limits how often one code object is compiled, so each loss has its own. adaptive_kl,
    whose head depends on the data, is not compiled, nor is what autograd differentiates.
    """
    if loss == "adaptive_kl" or loss not in CORES:
        return step
    own = FunctionType(step.__code__.replace(co_name=f"step_{loss}"), step.__globals__)
    inside = torch.compile(own, dynamic=True)

    def converted(core, student, teacher, dtype, factor, parameters):
        values, gradient, *rest = inside(
            core, student.to(dtype), teacher.to(dtype), dtype, factor, parameters
        )
        return values, gradient.to(student.dtype), *rest

    return converted


def _kl(student: Softmax, teacher: Softmax) -> Tensor:
    """KL(p ‖ q), [r]; Σ p = 1 takes the normalisers out of the sum."""
    weighted = _sum((teacher.x - student.x).mul_(teacher.p))
    return weighted + (student.log_sum - teacher.log_sum).squeeze(-1)


def _reverse_kl(student: Softmax, teacher: Softmax) -> Chunk:
    """KL(q ‖ p) and its gradient −q (r + value); overwrites `student`."""
    shift = student.log_sum - teacher.log_sum
    difference = student.x.sub_(teacher.x)  # −r, but for the normalisers
    value = _sum(student.p * difference).unsqueeze(-1) - shift
    gradient = difference.nan_to_num_(nan=0.0).sub_(shift + value).mul_(student.p)  # finite: q = 0 gives 0
    return value.squeeze(-1), gradient


def _sum(terms: Tensor) -> Tensor:
    """Σ over the vocabulary, [r], where 0 · ∞, which is NaN, counts as zero."""
    if torch.compiler.is_compiling():  # whose nansum goes entry by entry
        return torch.where(terms == terms, terms, 0.0).sum(-1)
    return terms.nansum(-1)


def _gradient(h: Tensor, q: Tensor) -> Tensor:
    """h − q Σ h; overwrites both."""
    return h.sub_(q.mul_(h.sum(-1, keepdim=True)))


def _inverse_mixture(a: Tensor, b: Tensor) -> Tensor:
    """1 / (a + b), large but finite where both are zero: it only ever multiplies them; overwrites both."""
    return a.add_(b).add_(torch.finfo(a.dtype).tiny).reciprocal_()


def _times_log(weight: Tensor, x: Tensor) -> Tensor:
    """weight · log x, zero where both are zero."""
    return (x + torch.finfo(x.dtype).tiny).log_().mul_(weight)
