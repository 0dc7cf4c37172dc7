"""Divergences between the next-token distributions of a student and a teacher, one value per token.

Every loss maps logits `student_logits [..., V]`, `teacher_logits [..., V]` to a tensor `[...]`, in nats, and
is a true divergence: zero where the distributions agree and, but for rounding, never negative. Notation:
q = softmax(student_logits), p = softmax(teacher_logits). The teacher never receives a gradient. Arithmetic
stays in log space, in fp32 for half-precision logits and in the logits' own precision otherwise.

A logit of −∞ means probability zero, and 0 · log 0 = 0, so an entry that is −∞ on both sides does not
exist: it changes neither value nor gradient. An entry that only one side has gives

    loss                               student −∞, teacher has mass      teacher −∞, student has mass
    forward_kl, ctkd, taid_kl (t = 1)  +∞                                finite
    reverse_kl                         finite                            +∞
    adaptive_kl                        +∞                                +∞
    dkd                                +∞                                finite
    alpha_beta                         finite if β, α + β > 0, else +∞   finite if α, α + β > 0, else +∞
    taid_kl (t < 1)                    finite, p_t has no mass there     finite, p_t has no mass there
    amid_kl (t < 1)                    as taid_kl for α ≥ 1, else +∞     finite
    tvd, jsd, skew_kl, skew_rkl        finite                            finite

and the gradient is finite wherever the value is.

`official=True` gives the variant of the paper's official code where that departs from the method it names.
Its NaN at extreme logits (the logarithm of a softmax, in JSD and skew KL) is an accident of rounding, not
reproduced.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from taid.checks import (
    boolean,
    position_weights,
    relative,
    require_finite,
    require_fraction,
    require_labels,
    require_logits,
    require_t,
    require_temperature,
    require_weight,
)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, *, official: bool = False) -> Tensor:
    """KL(p ‖ q) = Σ p (log p − log q); its gradient with respect to the student's logits is q − p.

    `official`: the cross-entropy −Σ p log q: the same gradient, but a value higher by the teacher's entropy.
    """
    log_q, log_p = _log_probs(student_logits, teacher_logits)
    return _kl(log_p, log_q) + (_entropy(log_p) if official else 0.0)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q − log p)."""
    log_q, log_p = _log_probs(student_logits, teacher_logits)
    return _kl(log_q, log_p)


def tvd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Total variation distance ½ Σ |p − q|, between 0 and 1 (a probability, not nats)."""
    log_q, log_p = _log_probs(student_logits, teacher_logits)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def jsd(student_logits: Tensor, teacher_logits: Tensor, teacher_weight: float = 0.1) -> Tensor:
    """Generalised Jensen–Shannon divergence β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = βp + (1 − β)q (GKD, GJS).

    β is `teacher_weight`, in (0, 1); at most the entropy of (β, 1 − β), so at most log 2.
    """
    require_fraction("teacher_weight", teacher_weight)
    log_q, log_p = _log_probs(student_logits, teacher_logits)
    teacher_term = _kl(log_p, log_q, own=teacher_weight)
    student_term = _kl(log_q, log_p, own=1 - teacher_weight)
    return teacher_weight * teacher_term + (1 - teacher_weight) * student_term


def skew_kl(
    student_logits: Tensor, teacher_logits: Tensor, lam: float = 0.1, *, official: bool = False
) -> Tensor:
    """Skew KL divergence KL(p ‖ λp + (1 − λ)q) (DistiLLM), λ = `lam` in (0, 1); at most −log λ.

    `official`: the cross-entropy −Σ p log(λp + (1 − λ)q): the same gradient, higher by the teacher's entropy.
    """
    require_fraction("lam", lam)
    log_q, log_p = _log_probs(student_logits, teacher_logits)
    return _kl(log_p, log_q, own=lam) + (_entropy(log_p) if official else 0.0)


def skew_rkl(student_logits: Tensor, teacher_logits: Tensor, lam: float = 0.1) -> Tensor:
    """Skew reverse KL divergence KL(q ‖ (1 − λ)p + λq) (DistiLLM), λ = `lam` in (0, 1); at most −log λ."""
    require_fraction("lam", lam)
    log_q, log_p = _log_probs(student_logits, teacher_logits)
    return _kl(log_q, log_p, own=lam)


def adaptive_kl(
    student_logits: Tensor, teacher_logits: Tensor, mu: float = 0.5, *, official: bool = False
) -> Tensor:
    """Adaptive KL (AKL): w KL(p ‖ q) + (1 − w) KL(q ‖ p), w = g_head / (g_head + g_tail), detached.

    The head is the smallest set of the teacher's top tokens with mass ≥ `mu`, in (0, 1); g = Σ |p − q| over
    head or tail. Tokens tied with the last of the head belong to it, so that the value does not depend on
    their order.

    `official`: the head is found in the teacher's sorted order, but the gaps summed for it are those of as
    many *first entries of the vocabulary*: the value changes with the order of the vocabulary. NaN where q
    equals p.
    """
    require_fraction("mu", mu)
    log_q, log_p = _log_probs(student_logits, teacher_logits)
    q, p = log_q.exp(), log_p.exp()
    gap = (p - q.detach()).abs()
    head = p >= _head_threshold(p, mu)
    if official:
        head = torch.arange(p.shape[-1], device=p.device) < head.sum(-1, keepdim=True)
    total = gap.sum(-1, keepdim=True)
    w = torch.where(head, gap, 0).sum(-1, keepdim=True) / total  # [..., 1]
    if not official:  # away from 0/0, and from 0 · ∞ where one of the divergences is infinite
        epsilon = torch.finfo(w.dtype).eps
        w = torch.where(total > 0, w, 0.5).clamp(epsilon, 1 - epsilon)
    ratio = (log_p - log_q).masked_fill_((p == 0) & (q == 0), 0.0)
    return ((w * p - (1 - w) * q) * ratio).sum(-1)  # both divergences weigh the same log-ratio


def alpha_beta(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.2, beta: float = 0.7
) -> Tensor:
    """α-β-divergence (Cichocki, Cruces, Amari 2011), with which ABKD distils (arXiv 2505.04560); any real α and β:

        −1/(αβ) Σ (p^α q^β − α/(α + β) p^(α+β) − β/(α + β) q^(α+β)),      its limits where a divisor is 0.

    (α, β) = (1, 0) is KL(p ‖ q), (0, 1) KL(q ‖ p), (½, ½) 2 Σ (√p − √q)², four times Hellinger's squared distance,
    (1, 1) ½ Σ (p − q)², (0, 0) ½ Σ (log p − log q)². Exchanging α with β exchanges p with q. The defaults are ABKD's
    for GPT-2 as we remember them: its code leaves them to the caller.

    With E_c(r) = (e^(cr) − 1)/c, r at c = 0, and r = log p − log q it is Σ q^(α+β) (E_{α+β}(r) − E_α(r)) / β, which
    only β = 0 troubles: the larger of α and β is what is divided by, if it is not next to 0.
    """
    require_finite("alpha", alpha)
    require_finite("beta", beta)
    log_q, log_p = _log_probs(student_logits, teacher_logits)
    no_q, no_p = log_q == -math.inf, log_p == -math.inf
    total = alpha + beta
    x, y = (log.masked_fill(no_q | no_p, 0.0) for log in (log_p, log_q))  # which then agree: their term is 0
    a, b = alpha, beta
    if abs(a) > abs(b):
        a, b, x, y = b, a, y, x
    if abs(b) < 1e-3:  # by the series in a and b: their difference would be rounding
        r = x - y
        thirds = (total + a) / 3 + (total**2 + total * a + a**2) / 12 * r
        values = (total * y).exp() * r.square() / 2 * (1 + thirds * r)
    else:
        values = (_difference(total, x, y, total * y) - _difference(a, x, y, total * y)) / b
    for log, without, other in ((log_p, no_q & ~no_p, beta), (log_q, no_p & ~no_q, alpha)):
        alone = (total * log).exp() / (other * total) if other > 0 and total > 0 else math.inf
        values = torch.where(without, alone, values)
    return values.sum(-1)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """Decoupled KD (Zhao et al. 2022): τ² (α KL(target or not) + β KL(among the others)), at temperature τ.

    The first term compares the two-way distributions (p_y, 1 − p_y), the second those among the tokens but y.
    With τ = 1, α = 1 and the factor 1 − p_y in the place of β, it is KL(p ‖ q).

    `labels [...]` holds y; at negative labels (ignored positions) the value is finite and means nothing:
    mask it. The official code differs only in the reduction: see `masked_mean(..., official=True)`.
    """
    require_logits(student_logits, teacher_logits)
    require_labels(labels, student_logits)
    require_temperature(temperature)
    require_weight("alpha", alpha)
    require_weight("beta", beta)
    target = labels.long().clamp(min=0).unsqueeze(-1)  # [..., 1]
    student, teacher = (_upcast(logits) / temperature for logits in (student_logits, teacher_logits))
    # −∞ on both sides: to the second term, the target does not exist
    student_rest, teacher_rest = (logits.scatter(-1, target, -math.inf) for logits in (student, teacher))
    student_pair, teacher_pair = (
        torch.cat([logits.gather(-1, target), rest.logsumexp(-1, keepdim=True)], dim=-1)  # [..., 2]
        for logits, rest in ((student, student_rest), (teacher, teacher_rest))
    )
    target_term = forward_kl(student_pair, teacher_pair)
    return temperature**2 * (alpha * target_term + beta * forward_kl(student_rest, teacher_rest))


def ctkd(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Curriculum-temperature KD (Li et al. 2023): τ² KL(softmax(z / τ) ‖ softmax(s / τ)).

    `temperature`, a scalar, receives the full gradient, through both softmaxes and τ²: see `CTKDTemperature`.
    """
    require_logits(student_logits, teacher_logits)
    require_temperature(temperature)
    log_q = _soften(student_logits, temperature).log_softmax(-1)
    log_p = _soften(teacher_logits.detach(), temperature).log_softmax(-1)
    return temperature**2 * _kl(log_p, log_q)


class CTKDTemperature(torch.nn.Module):
    """CTKD's learned temperature τ = τ_min + τ_range · sigmoid(θ), trained against the student.

    The gradient of θ is multiplied by −λ, so that the optimizer that lowers the student's loss raises it in
    θ; λ = (1 − cos(π · progress)) / 2 rises from 0 to 1 over training. θ starts at 1, that is τ = 15.62.

    `official`: the gradient is multiplied by +λ with λ falling from 1 to 0; and θ is in no optimizer group,
    so it is frozen here (`requires_grad=False`) and τ stays at 15.62.
    """

    def __init__(self, tau_min: float = 1.0, tau_range: float = 20.0, *, official: bool = False) -> None:
        super().__init__()
        self.tau_min, self.tau_range, self.official = tau_min, tau_range, official
        self.theta = torch.nn.Parameter(torch.ones(()), requires_grad=not official)

    def forward(self, progress: float) -> Tensor:
        """τ, a scalar; `progress` in [0, 1] is the share of training that is done."""
        cosine = math.cos(math.pi * progress)
        factor = (1 + cosine) / 2 if self.official else (cosine - 1) / 2
        fixed = self.theta.detach()
        theta = fixed + factor * (self.theta - fixed)  # θ itself, its gradient multiplied by the factor
        return self.tau_min + self.tau_range * theta.sigmoid()


def taid_kl(student_logits: Tensor, teacher_logits: Tensor, t: float, *, official: bool = False) -> Tensor:
    """TAID's objective KL(p_t ‖ q), p_t = softmax((1 − t) · stopgrad(s) + t · z), t in [0, 1].

    Its gradient with respect to the student's logits s is q − p_t. t = 0 is self-distillation, zero with zero
    gradient; t = 1 is `forward_kl`. `official`: the cross-entropy −Σ p_t log q, as in `forward_kl`.
    """
    return forward_kl(student_logits, interpolate(student_logits, teacher_logits, t), official=official)


def interpolate(student_logits: Tensor, teacher_logits: Tensor, t: float) -> Tensor:
    """Logits (1 − t) · s + t · z of TAID's intermediate teacher, [..., V], without gradient; fp32 or wider.

    A weight of zero removes its side altogether (0 · −∞ = 0): t = 0 gives s and t = 1 gives z, whatever the
    other side holds. Between them an entry that is −∞ on either side is −∞.
    """
    require_logits(student_logits, teacher_logits)
    require_t(t)
    student, teacher = _upcast(student_logits.detach()), _upcast(teacher_logits.detach())
    if t in (0, 1):
        return teacher if t else student
    return torch.add((1 - t) * student, teacher, alpha=t)


def amid_kl(student_logits: Tensor, teacher_logits: Tensor, t: float, mixture: float = 0.5) -> Tensor:
    """TAID's objective KL(p_t ‖ q) with another bridge: p_t is AMiD's α-mixture of q and p (arXiv 2510.15982), with

        p_t ∝ ((1 − t) q^c + t p^c)^(1/c),  c = (1 − α)/2,      q^(1−t) p^t at c = 0.

    α = `mixture`, any real number: 1 is TAID's blend of logits, −1 that of probabilities, (1 − t) q + t p. p_t gets no
    gradient, so that of the student's logits is q − p_t. t = 0 is q itself and t = 1 the teacher, for every α. The
    default is that of AMiD's scripts.
    """
    require_finite("mixture", mixture)
    require_t(t)
    c = (1 - mixture) / 2
    if c == 0 or t in (0, 1):
        return taid_kl(student_logits, teacher_logits, t)
    log_q, log_p = _log_probs(student_logits, teacher_logits)
    y = log_q.detach()
    rise = (c * (log_p - y)).masked_fill_((y == -math.inf) & (log_p == -math.inf), 0.0)
    # from the side with the larger power, so that nothing is lost where the two are close or far apart
    from_p = log_p + torch.log1p((1 - t) * (-rise).clamp(max=0).expm1()) / c
    from_q = y + torch.log1p(t * rise.clamp(max=0).expm1()) / c
    return _kl(torch.where(rise > 0, from_p, from_q).log_softmax(-1), log_q)


def masked_mean(
    values: Tensor, mask: Tensor, weights: Tensor | None = None, *, official: bool = False
) -> Tensor:
    """Σ w · value / Σ w of `values [...]`, both sums over the positions where `mask [...]` is true (1); 0 where the
    mask is empty or all its weights are 0. `weights [...]`, finite and not negative, are all 1 if None.

    `mask` holds booleans, or 0 and 1 in any type. What stands elsewhere and at weight 0, NaN and infinities too,
    reaches neither the mean nor the gradient of `values`. Behind them, 0 · NaN is NaN: where masked *logits* may be
    NaN, select rows first, `loss(student[mask], teacher[mask])`.

    `official`: the sum over the mask divided by all positions, the reduction of DKD in the official code.
    """
    mask = boolean(mask, values)
    if weights is None:
        count = mask.numel() if official else mask.sum().clamp(min=1)
        return torch.where(mask, values, 0).sum() / count
    if official:
        raise ValueError("the official mean has no weights: leave out one of them")
    weights = torch.where(mask, relative(position_weights(weights, values)), 0)
    weights = weights.to(torch.promote_types(values.dtype, torch.float32))
    total = weights.sum()
    return (torch.where(weights > 0, values, 0) * weights).sum() / torch.where(total > 0, total, 1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        forward_kl,
        reverse_kl,
        tvd,
        jsd,
        skew_kl,
        skew_rkl,
        adaptive_kl,
        alpha_beta,
        dkd,
        ctkd,
        taid_kl,
        amid_kl,
    )
}
"""Per-token losses by their names; what trains with them under the names of the papers is `taid.objectives.METHODS`.

`loss(student_logits, teacher_logits, …)`, then the loss's own parameters: `t` of `taid_kl`, `labels` of `dkd`.
"""


def _kl(log_a: Tensor, log_b: Tensor, own: float = 0.0) -> Tensor:
    """KL(a ‖ own · a + (1 − own) · b), from log-probabilities [..., V] to [...]; `own` = 0 is the plain KL.

    With r = log a − log b, the log-ratio of a to the mixture is logsigmoid(r + logit(own)) − log(own).
    Where a has no mass, r is set to 0 *first*, so that neither ±∞ nor NaN meets the zero weight there,
    forward or backward.
    """
    a = log_a.exp()
    ratio = (log_a - log_b).masked_fill_(a == 0, 0.0)
    if own:
        ratio = logsigmoid(ratio + math.log(own / (1 - own))) - math.log(own)
    return (a * ratio).sum(-1)


def _difference(c: float, x: Tensor, y: Tensor, base: Tensor) -> Tensor:
    """e^base (e^(c(x − y)) − 1) / c, [...], or its limit e^base (x − y) at c = 0; nothing overflows that is then small."""
    if c == 0:
        return base.exp() * (x - y)
    change = c * (x - y)
    up = -(base + change).exp() * (-change).clamp(max=0).expm1()
    return torch.where(change > 0, up, base.exp() * change.clamp(max=0).expm1()) / c


def _entropy(log_p: Tensor) -> Tensor:
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)


def _head_threshold(p: Tensor, mu: float, width: int = 8) -> Tensor:
    """Probability of the last token of the head, [..., 1], for probabilities p [..., V].

    A sort of the vocabulary costs many times the divergence itself, and most heads are narrow: look at the
    `width` largest entries first, and at eight times as many only in the rows where these have too little
    mass.
    """
    width = min(width, p.shape[-1])
    top = p.topk(width, dim=-1).values
    mass = top.cumsum(-1)
    last = (mass < mu).sum(-1, keepdim=True).clamp(max=width - 1)  # [..., 1]
    threshold = top.gather(-1, last)
    short = mass[..., -1] < mu
    if width < p.shape[-1] and short.any():
        threshold[short] = _head_threshold(p[short], mu, 8 * width)
    return threshold


def _log_probs(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """log q and log p, [..., V]; the teacher's without gradient."""
    require_logits(student_logits, teacher_logits)
    student, teacher = _upcast(student_logits), _upcast(teacher_logits.detach())
    return student.log_softmax(-1), teacher.log_softmax(-1)


def _upcast(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _soften(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """logits / τ. The derivative with respect to τ, −logits / τ², must not meet −∞."""
    logits = _upcast(logits)
    absent = logits == -math.inf
    return (logits.masked_fill(absent, 0.0) / temperature).masked_fill(absent, -math.inf)
