"""The Triton engine: a program for each row of logits, in fp32, for GPUs.

A row is read in blocks. A first sweep makes both softmaxes and, on the way, the KL divergences between
them; a second sums f and h, where a loss needs it; the last writes the gradient h − q Σ h. The notation is
that of `kernel.cpp`: q, p the student's and teacher's probabilities, r = log p − log q, the loss Σ f(p, q),
h = ∂f / ∂ log q.

With TRITON_INTERPRET=1, set before the first use, Triton runs the same programs on the CPU, for tests.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from taid.fused.kernel import arguments, readable
from taid.fused.rows import Rows

INTERPRETED = triton.knobs.runtime.interpret
OF_TERMS = frozenset(("tvd", "jsd", "skew_kl", "skew_rkl", "alpha_beta"))  # Σ f(p, q), as `_terms` has them
LOSSES = OF_TERMS | {"forward_kl", "taid_kl", "reverse_kl", "dkd", "ctkd"}  # adaptive_kl's head wants a sort
BLOCK, WARPS = 8192, 16  # the best of a sweep on an H100 over three losses, two vocabularies, bf16 and fp32
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
ABSENT = tl.constexpr(float("-inf"))
UNKNOWN = tl.constexpr(float("nan"))


def available(*logits: Tensor) -> bool:
    """Whether the kernel takes these logits: on a GPU, `readable`, and of a V that 32 bits can count."""
    return all((x.is_cuda or INTERPRETED) and readable(x) and x.shape[-1] < 2**31 - BLOCK for x in logits)


def has(loss: str) -> bool:
    """Whether there is a program for the loss of this name."""
    return loss in LOSSES


def run(rows: Rows) -> None:
    """The engine, for logits as `available` asks for and a loss that it `has`."""
    student, teacher, out, weights, scale = rows.student, rows.teacher, rows.out, rows.weights, rows.scale
    labels, tau, a, b = arguments(rows.parameters)
    count, vocabulary = student.shape
    if not count:
        return
    with torch.cuda.device_of(student):
        _rows[(count,)](
            student,
            teacher,
            out,
            rows.values,
            rows.slopes,
            None if weights is None else weights.contiguous(),
            labels,
            student.stride(0),
            teacher.stride(0),
            0 if out is None else out.stride(0),
            vocabulary,
            1.0 if isinstance(scale, Tensor) else scale,  # a number, or where one will be
            scale if isinstance(scale, Tensor) else None,
            float(a),
            float(b),
            float(tau),
            LOSS=rows.loss,
            SUMS=rows.loss in OF_TERMS,
            BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=WARPS,
        )


def scale(gradient: Tensor, factor: Tensor) -> None:
    """gradient · factor, in place, for a contiguous gradient. The GPU alone knows the factor: where it is 1 nothing is read or written."""
    count = gradient.numel()
    with torch.cuda.device_of(gradient):
        _scale[(triton.cdiv(count, BLOCK),)](gradient, factor, count, BLOCK=BLOCK, num_warps=WARPS)


@triton.jit
def _scale(gradient, factor, count, BLOCK: tl.constexpr):
    by = tl.load(factor).to(tl.float32)
    if by != 1:
        j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(gradient + j, j < count).to(tl.float32)
        tl.store(gradient + j, by * x, j < count)


@triton.jit
def _rows(
    student,
    teacher,
    out,
    values,
    slopes,
    weights,
    labels,
    student_stride,
    teacher_stride,
    out_stride,
    vocabulary,
    scale,
    share,
    a,
    b,
    tau,
    LOSS: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if share is not None:
        scale = tl.load(share).to(tl.float32)
    student += row * student_stride
    teacher += row * teacher_stride
    if out is not None:
        out += row * out_stride
    if weights is not None:
        weight = tl.load(weights + row)
        scale *= weight
        if weight == 0:
            if out is not None:
                for at in range(0, vocabulary, BLOCK):
                    j = at + tl.arange(0, BLOCK)
                    tl.store(out + j, tl.zeros([BLOCK], tl.float32), j < vocabulary)
            return
    label = -1
    if LOSS == "dkd":
        label = tl.load(labels + row)

    s_max, z_max, s_total, z_total, kl, reverse = _normalised(
        student, teacher, vocabulary, label, a, tau, LOSS, BLOCK
    )
    shift = tl.log(s_total) - tl.log(z_total)

    # The value, and what the gradient scale · (h − q Σ h) needs. In some losses it is a difference of q and p.
    q_weight = 1.0
    p_weight = 1.0
    at_label = 0.0
    total = 0.0
    if LOSS == "forward_kl" or LOSS == "taid_kl":
        value = kl
    elif LOSS == "reverse_kl":
        value = reverse
        total = reverse
    elif LOSS == "dkd":
        there = (label >= 0) & (label < vocabulary)  # as taid.fused has checked; no memory else
        s_odds = tl.load(student + label, there, other=UNKNOWN).to(tl.float32) / tau - s_max - tl.log(s_total)
        z_odds = tl.load(teacher + label, there, other=UNKNOWN).to(tl.float32) / tau - z_max - tl.log(z_total)
        excess = _sigmoid(s_odds) - _sigmoid(z_odds)  # q_y − p_y
        value = tau * tau * (a * (_two_way(s_odds, z_odds) + _two_way(-s_odds, -z_odds)) + b * kl)
        q_weight = b - a * excess
        p_weight = b
        at_label = a * excess
        scale *= tau
    elif LOSS == "ctkd":
        value = tau * tau * kl
        scale *= tau
        if slopes is not None:
            change = 0.0
            mean = 0.0
            for at in range(0, vocabulary, BLOCK):
                s, z = _logits(student, teacher, at, vocabulary, label, a, tau, LOSS, BLOCK)
                x = s - s_max
                y = z - z_max
                q = tl.exp(x) / s_total
                p = tl.exp(y) / z_total
                change += tl.sum(tl.where(q == 0, 0.0, q * x), 0)
                change += tl.sum(tl.where(p == 0, 0.0, p * ((y - x + shift) * y - x)), 0)
                mean += tl.sum(tl.where(p == 0, 0.0, p * y), 0)
            tl.store(slopes + row, 2 * tau * kl - tau * (change - kl * mean))
    else:
        value = 0.0 * shift  # NaN where one side is −∞ throughout
        total += value
        for at in range(0, vocabulary, BLOCK):
            s, z = _logits(student, teacher, at, vocabulary, label, a, tau, LOSS, BLOCK)
            x = s - s_max
            y = z - z_max
            q = tl.exp(x) / s_total
            p = tl.exp(y) / z_total
            f, h = _terms(q, p, x - tl.log(s_total), y - tl.log(z_total), a, b, LOSS)
            value += tl.sum(f, 0)
            total += tl.sum(h, 0)
    tl.store(values + row, value)

    if out is not None:
        s_factor = 1 / s_total
        z_factor = 1 / z_total
        for at in range(0, vocabulary, BLOCK):
            s, z = _logits(student, teacher, at, vocabulary, label, a, tau, LOSS, BLOCK)
            x = s - s_max
            y = z - z_max
            q = tl.exp(x) * s_factor
            p = tl.exp(y) * z_factor
            j = at + tl.arange(0, BLOCK)
            if LOSS == "reverse_kl":
                gradient = tl.where(q == 0, 0.0, -q * (y - x + shift)) - q * total
            elif SUMS:
                f, h = _terms(q, p, x - tl.log(s_total), y - tl.log(z_total), a, b, LOSS)
                gradient = h - q * total
            else:
                gradient = q_weight * q - p_weight * p
                if LOSS == "dkd":
                    gradient = tl.where(j == label, at_label, gradient)
            tl.store(out + j, scale * gradient, j < vocabulary)


@triton.jit
def _normalised(student, teacher, vocabulary, label, a, tau, LOSS: tl.constexpr, BLOCK: tl.constexpr):
    """Of both sides the largest logit and Σ e^(logit − largest); and the KL divergences, both or the one wanted."""
    # Both softmaxes, and Σ e d for their divergences, d the difference of both sides' logits less their maxima so
    # far: a new maximum changes d by a constant, and what is then too small for fp32 is gone, even if infinite.
    s_max = LOWEST
    z_max = LOWEST
    s_total = 0.0
    z_total = 0.0
    kl = 0.0
    reverse = 0.0
    for at in range(0, vocabulary, BLOCK):
        s, z = _logits(student, teacher, at, vocabulary, label, a, tau, LOSS, BLOCK)
        s_new = tl.maximum(s_max, tl.max(s, 0))
        z_new = tl.maximum(z_max, tl.max(z, 0))
        s_rise = s_new - s_max
        z_rise = z_new - z_max
        s_max = s_new
        z_max = z_new
        x = s - s_max
        y = z - z_max
        q = tl.exp(x)
        p = tl.exp(y)
        s_total = s_total * tl.exp(-s_rise)
        z_total = z_total * tl.exp(-z_rise)
        if LOSS == "reverse_kl":
            reverse = _shrunk(reverse, s_rise) + (z_rise - s_rise) * s_total
            reverse += tl.sum(tl.where(q == 0, 0.0, q * (x - y)), 0)
        else:
            kl = _shrunk(kl, z_rise) + (s_rise - z_rise) * z_total
            kl += tl.sum(tl.where(p == 0, 0.0, p * (y - x)), 0)
        s_total += tl.sum(q, 0)
        z_total += tl.sum(p, 0)
    shift = tl.log(s_total) - tl.log(z_total)
    return s_max, z_max, s_total, z_total, kl / z_total + shift, reverse / s_total - shift


@triton.jit
def _logits(student, teacher, at, vocabulary, label, a, tau, LOSS: tl.constexpr, BLOCK: tl.constexpr):
    """A block of both sides' logits: blended with `a` = t, divided by τ, or without the label, as a loss has it."""
    j = at + tl.arange(0, BLOCK)
    s = tl.load(student + j, j < vocabulary, other=ABSENT).to(tl.float32)
    z = tl.load(teacher + j, j < vocabulary, other=ABSENT).to(tl.float32)
    if LOSS == "taid_kl":
        z = (1 - a) * s + a * z
    if LOSS == "dkd" or LOSS == "ctkd":
        s = s / tau
        z = z / tau
    if LOSS == "dkd":
        s = tl.where(j == label, ABSENT, s)
        z = tl.where(j == label, ABSENT, z)
    return s, z


@triton.jit
def _terms(q, p, log_q, log_p, a, b, LOSS: tl.constexpr):
    """f and h of a loss of `OF_TERMS`; a and b are its parameters."""
    if LOSS == "alpha_beta":
        f, h = _alpha_beta(log_q, log_p, a, b)
    elif LOSS == "tvd":
        f = tl.abs(p - q) / 2
        h = tl.where(q > p, q / 2, tl.where(q < p, -q / 2, q - p))
    elif LOSS == "jsd":
        inverse = 1 / (a * p + (1 - a) * q + TINY)
        h = (1 - a) * _times_log(q, q * inverse)
        f = a * _times_log(p, p * inverse) + h
    elif LOSS == "skew_kl":
        ratio = p / (a * p + (1 - a) * q + TINY)
        f = _times_log(p, ratio)
        h = (a - 1) * q * ratio
    else:
        ratio = q / ((1 - a) * p + a * q + TINY)
        f = _times_log(q, ratio)
        h = f - a * q * ratio
    return f, h


@triton.jit
def _alpha_beta(log_q, log_p, alpha, beta):
    """f and h of the α-β-divergence, see `taid.losses.alpha_beta`."""
    total = alpha + beta
    swap = tl.abs(alpha) > tl.abs(beta)
    x = tl.where(swap, log_q, log_p)
    y = tl.where(swap, log_p, log_q)
    a = tl.where(swap, beta, alpha)
    b = tl.where(swap, alpha, beta)
    r = x - y
    rise = _difference(total, total * x, total * y, r)
    f = (rise - _difference(a, a * x + b * y, total * y, r)) / b
    thirds = (total + a) / 3 + (total * total + total * a + a * a) / 12 * r
    f = tl.where(tl.abs(b) < 1e-3, tl.exp(total * y) * r * r / 2 * (1 + thirds * r), f)
    h = -_difference(alpha, alpha * log_p + beta * log_q, total * log_q, log_p - log_q)
    no_q = log_q == ABSENT
    no_p = log_p == ABSENT
    f = tl.where(no_q, _alone(log_p, beta, total), tl.where(no_p, _alone(log_q, alpha, total), f))
    h = tl.where(no_q, 0.0, tl.where(no_p, _alone(log_q, alpha, total) * total, h))
    return tl.where(no_q & no_p, 0.0, f), tl.where(no_q & no_p, 0.0, h)


@triton.jit
def _alone(x, other, total):
    """The term of one side alone, of log-probability x, where the other's has the exponent `other`."""
    infinite = tl.minimum(other, total) <= 0
    return tl.where(infinite, float("inf"), tl.exp(total * x) / (other * total))


@triton.jit
def _difference(c, u, v, r):
    """(e^u − e^v) / c for u − v = c r, where that is small by its series: r at c = 0."""
    x = c * r
    series = 1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))))
    small = tl.exp(v) * r * series
    return tl.where(c == 0, small, tl.where(tl.abs(x) < 0.35, small, (tl.exp(u) - tl.exp(v)) / c))


@triton.jit
def _times_log(weight, x):
    """weight · log x, zero where both are zero."""
    return weight * tl.log(x + TINY)


@triton.jit
def _shrunk(total, rise):
    """total · e^−rise, 0 where that factor is 0, unless the total is NaN."""
    factor = tl.exp(-rise)
    return tl.where((factor > 0) | (total != total), total * factor, 0.0)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _two_way(s, z):
    """The part of one side in the KL between two-way distributions with the log-odds z and s."""
    p = _sigmoid(z)
    return tl.where(p == 0, 0.0, p * (_softplus(-s) - _softplus(-z)))


@triton.jit
def _softplus(x):
    e = tl.exp(-tl.abs(x))
    return tl.maximum(x, 0.0) + tl.where(e < 1e-4, e - e * e / 2, tl.log(1 + e))  # log1p
