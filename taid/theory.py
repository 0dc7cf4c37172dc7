"""The theory of TAID as functions: when repeated distillation collapses, and where its objective leads.

Kernel regression stands in for language modelling (Mobahi, Farajtabar, Bartlett 2020). The labels of N points
are written in the eigenbasis of the Gram matrix, whose eigenvalues are d > 0, and every vector is in units of
E = √(Nε), the residual that each fit has to leave: the labels' norm is the signal strength r₀, and a residual
has norm 1. Derivations, and the test that checks each statement: docs/theory.md.
"""

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array
from scipy.special import dawsn, expit, softmax

# --- Repeated regression ------------------------------------------------------------------------------------


def fit(labels: Array, eigenvalues: Array) -> Array:
    """Least-norm fit of `labels` [..., N] whose residual has norm 1; zero ("collapse") where ‖labels‖ ≤ 1.

    A z = z · u d / (1 + u d), where u = 1/c ≥ 0 solves n(u) = ‖z / (1 + u d)‖ = 1. As in trust-region
    methods, 1/n is concave and increasing: Newton's method on 1/n = 1 climbs from u = 0 to the root without
    overshoot, and stays at u = 0 where n(0) ≤ 1. Raises ValueError unless all eigenvalues are positive.
    """
    if not np.all(np.asarray(eigenvalues) > 0):
        raise ValueError("eigenvalues must be positive: drop the null space of the Gram matrix first")
    u = np.zeros((*np.shape(labels)[:-1], 1))
    while True:
        shrink = 1 / (1 + u * eigenvalues)  # [..., N]
        residual = labels * shrink  # [..., N]
        norm = np.linalg.norm(residual, axis=-1, keepdims=True)  # [..., 1]
        slope = (residual**2 * shrink * eigenvalues).sum(-1, keepdims=True)  # -n n'
        step = np.divide((norm - 1) * norm**2, slope, out=np.zeros_like(u), where=norm > 1)
        if not np.any(step > 4 * np.finfo(float).eps * u):
            return residual * u * eigenvalues
        u = u + step


def distill(teacher: Array, eigenvalues: Array, schedule: Array, student: Array | None = None) -> Array:
    """Targets z̃_t = (1 - λ_t) z_t + λ_t y of every round, with z_{t+1} = fit(z̃_t); [T + 1, ..., N].

    `schedule` holds λ_0 … λ_T in [0, 1]; zeros are self-distillation, `linear_schedule(T)` is TAID's ramp.
    y is the teacher [..., N], and so is the first student z_0, as in the paper, unless another is given.
    """
    labels = teacher if student is None else student
    targets = []
    for weight in schedule:
        targets.append((1 - weight) * labels + weight * teacher)
        labels = fit(targets[-1], eigenvalues)
    return np.stack(targets)


def collapse_round(targets: Array) -> Array:
    """First round t with ‖z̃_t‖ ≤ 1, or T + 1 where no round has it. Targets [T + 1, ..., N] -> [...]"""
    collapsed = np.linalg.norm(targets, axis=-1) <= 1  # [T + 1, ...]
    return np.where(collapsed.any(0), collapsed.argmax(0), len(targets))


def linear_schedule(last: int, start: float = 0.0) -> Array:
    """λ_t = start + (1 - start) t / T for t = 0 … T = `last`."""
    return np.linspace(start, 1, last + 1)


# --- When it collapses --------------------------------------------------------------------------------------


def drift(schedule: Array, start: float = 0.0) -> Array:
    """δ_t, which bounds ‖y - z_t‖: δ_0 = start, δ_{t+1} = (1 - λ_t) δ_t + 1. [T + 1] -> [T + 1]"""
    deltas = [start]
    for weight in schedule[:-1]:
        deltas.append((1 - weight) * deltas[-1] + 1)
    return np.array(deltas)


def non_collapse_bound(schedule: Array, start: float = 0.0) -> float:
    """B = 1 + max_t (1 - λ_t) δ_t, for the schedule λ_0 … λ_T: with r₀ > B no round collapses, whatever κ is.

    `start` = ‖y - z_0‖ is the first student's distance from the teacher. With start = 0, r₀ ≤ √B forces a
    collapse, and where N = 1, or κ = 1, or the labels lie in one eigenspace, r₀ ≤ B does. Beyond the paper.
    Raises ValueError where the schedule leaves [0, 1].
    """
    schedule = np.asarray(schedule, dtype=float)
    if schedule.ndim != 1 or not np.all((schedule >= 0) & (schedule <= 1)):
        raise ValueError("schedule must be the array λ_0 … λ_T with every λ in [0, 1]")
    return float(1 + np.max((1 - schedule) * drift(schedule, start)))


DAWSON_PEAK = 0.9241388730045916  # argmax of Dawson's integral D, where 2x D(x) = 1
DAWSON_SLOPE = np.sqrt(2) * dawsn(DAWSON_PEAK)  # 0.76515…


def dawson_asymptote(last: int | Array, start: float = 0.0) -> float | Array:
    """Bound of the linear schedule for large T: 0.76515 √T + 1/6 + (1/3 + start) e^(-x²), up to O(1/√T).

    x = 0.92414 is where Dawson's integral peaks; with start = 0 the constant is 0.30857.
    """
    return DAWSON_SLOPE * np.sqrt(last) + 1 / 6 + (1 / 3 + start) * np.exp(-(DAWSON_PEAK**2))


def self_distillation_rounds(signal: float) -> tuple[int, int]:
    """Earliest and latest round at which self-distillation collapses, ⌈r₀⌉ - 1 and ⌈r₀²⌉ - 1; both occur."""
    return max(int(np.ceil(signal)) - 1, 0), max(int(np.ceil(signal**2)) - 1, 0)


def paper_theorem(signal: float, condition: float, last: int, gamma: float = 1.0) -> Array:
    """The rounds t = 0 … T that the paper's theorem clears of collapse, its o(1) left out: boolean, [T + 1].

    t < min{(r₀ - γ) / (γ + κ), γ T / r₀}  or  t > T / r₀. We prove it for γ ≥ 1/r₀; below, it fails.
    """
    rounds = np.arange(last + 1)
    early = min((signal - gamma) / (gamma + condition), gamma * last / signal)
    return (rounds < early) | (rounds * signal > last)


def paper_corollary(last: int | Array, condition: float) -> float | Array:
    """The signal (1 + √(1 + 4 T (1 + κ))) / 2 beyond which the paper's theorem (γ = 1) clears every round."""
    return (1 + np.sqrt(1 + 4 * last * (1 + condition))) / 2


def critical_signal(direction: Array, eigenvalues: Array, schedule: Array) -> Array:
    """Signal r₀ at which labels along `direction` [..., N] cease to collapse, by bisection of [√B, B]; [...].

    Up to √B they collapse, above B they do not. That they cease but once in between is observed, not proved.
    """
    bound = non_collapse_bound(schedule)
    unit = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    low, high = np.full(unit.shape[:-1], np.sqrt(bound)), np.full(unit.shape[:-1], bound)
    while np.any(high - low > 1e-9 * high):
        middle = (low + high) / 2
        survives = collapse_round(distill(middle[..., None] * unit, eigenvalues, schedule)) == len(schedule)
        low, high = np.where(survives, low, middle), np.where(survives, middle, high)
    return high


def phase_diagram(
    direction: Array, eigenvalues: Array, lengths: Array, signals: Array
) -> tuple[Array, Array]:
    """Whether self-distillation, and TAID's linear schedule, collapse in rounds 0 … T; [lengths, signals].

    `lengths` are values of T, `signals` of r₀; the labels point along `direction` [N].
    """
    labels = signals[:, None] * direction / np.linalg.norm(direction)  # [signals, N]

    def rounds(schedule: Array) -> Array:
        return collapse_round(distill(labels, eigenvalues, schedule))

    self_distillation = rounds(np.zeros(max(lengths) + 1)) <= lengths[:, None]  # long runs hold short ones
    return self_distillation, np.stack([rounds(linear_schedule(last)) <= last for last in lengths])


# --- What the objective is ----------------------------------------------------------------------------------
# Gradients with respect to the student's logits s, where q = softmax(s), p = softmax(z) is the teacher and
# Δ = z - s, all [..., V]. A divergence D(p, q), in nats, has q · (v - E_q v) with v = ∂D/∂q: only v differs.


def logit_gradient(slope: Array, student: Array) -> Array:
    """q · (v - E_q v): the gradient in the logits of a function whose slope in q is v. [..., V]"""
    q = softmax(student, axis=-1)
    return q * (slope - (q * slope).sum(-1, keepdims=True))


def kl_gradient(student: Array, teacher: Array) -> Array:
    """q - p, of KL(p ‖ q): v = -p/q."""
    return softmax(student, axis=-1) - softmax(teacher, axis=-1)


def rkl_gradient(student: Array, teacher: Array) -> Array:
    """-q · (Δ - E_q Δ), of KL(q ‖ p): v = log(q/p)."""
    return logit_gradient(student - teacher, student)


def tvd_gradient(student: Array, teacher: Array) -> Array:
    """Of Σ |p - q| / 2: v = sign(q - p) / 2."""
    return logit_gradient(np.sign(kl_gradient(student, teacher)) / 2, student)


def jsd_gradient(student: Array, teacher: Array, teacher_weight: float = 0.1) -> Array:
    """Of β KL(p ‖ m) + (1 - β) KL(q ‖ m), m = βp + (1 - β)q: v = (1 - β) log(q/m). β is `teacher_weight`."""
    q, p = softmax(student, axis=-1), softmax(teacher, axis=-1)
    m = teacher_weight * p + (1 - teacher_weight) * q
    return logit_gradient((1 - teacher_weight) * np.log(q / m), student)


def skew_kl_gradient(student: Array, teacher: Array, lam: float = 0.1) -> Array:
    """Of KL(p ‖ m), m = λp + (1 - λ)q: v = -(1 - λ) p/m."""
    q, p = softmax(student, axis=-1), softmax(teacher, axis=-1)
    return logit_gradient(-(1 - lam) * p / (lam * p + (1 - lam) * q), student)


def skew_rkl_gradient(student: Array, teacher: Array, lam: float = 0.1) -> Array:
    """Of KL(q ‖ m), m = (1 - λ)p + λq: v = log(q/m) - λ q/m."""
    q, p = softmax(student, axis=-1), softmax(teacher, axis=-1)
    ratio = q / ((1 - lam) * p + lam * q)
    return logit_gradient(np.log(ratio) - lam * ratio, student)


def adaptive_kl_gradient(student: Array, teacher: Array, mu: float = 0.5) -> Array:
    """Of w KL(p ‖ q) + (1 - w) KL(q ‖ p), w fixed, the share of Σ |p - q| in the least head of mass ≥ μ."""
    p = softmax(teacher, axis=-1)
    order = np.argsort(-p, axis=-1)
    ranked = np.take_along_axis(p, order, -1)
    gap = np.take_along_axis(np.abs(kl_gradient(student, teacher)), order, -1)
    head = ranked.cumsum(-1) - ranked < mu  # the tokens ranked before fall short of the mass μ
    w = (gap * head).sum(-1, keepdims=True) / gap.sum(-1, keepdims=True)  # [..., 1]
    return w * kl_gradient(student, teacher) + (1 - w) * rkl_gradient(student, teacher)


def ctkd_gradient(student: Array, teacher: Array, temperature: float) -> Array:
    """τ (q_τ - p_τ), of τ² KL(p_τ ‖ q_τ) at temperature τ."""
    return temperature * kl_gradient(student / temperature, teacher / temperature)


def dkd_gradient(student: Array, teacher: Array, label: int, alpha: float = 1.0, beta: float = 0.5) -> Array:
    """Of α KL(label y or not) + β KL(among the others), at temperature 1.

    α (q_y - p_y) at y, and -α (q_y - p_y) q̂ + β (q̂ - p̂) elsewhere; q̂, p̂ are the distributions without y.
    """
    others = np.arange(student.shape[-1]) != label
    q, p = (softmax(np.where(others, logits, -np.inf), axis=-1) for logits in (student, teacher))  # q̂, p̂
    gap = kl_gradient(student, teacher)[..., label, None]  # q_y - p_y
    return np.where(others, -alpha * gap * q + beta * (q - p), alpha * gap)


def taid_gradient(student: Array, teacher: Array, t: float) -> Array:
    """q - p_t with p_t = softmax((1 - t) s + t z) fixed: v = -p_t/q. Zero at t = 0, the KL's at t = 1."""
    return kl_gradient(student, (1 - t) * student + t * teacher)


GRADIENTS: dict[str, Callable[[Array, Array], Array]] = {
    "kl": kl_gradient,
    "rkl": rkl_gradient,
    "tvd": tvd_gradient,
    "gjs": jsd_gradient,
    "skew_kl": skew_kl_gradient,
    "skew_rkl": skew_rkl_gradient,
    "adaptive_kl": adaptive_kl_gradient,
}
"""Gradients by the names of `taid.objectives.METHODS`; those of CTKD, DKD and TAID take a third argument."""


def taid_expansion(student: Array, teacher: Array, t: float) -> Array:
    """TAID's gradient up to O(t³): t · rkl_gradient - t²/2 · q · ((Δ - E_q Δ)² - Var_q Δ). [..., V]"""
    gap = teacher - student
    gap = gap - (softmax(student, axis=-1) * gap).sum(-1, keepdims=True)
    return t * rkl_gradient(student, teacher) - t**2 / 2 * logit_gradient(gap**2, student)


def taid_remainder(student: Array, teacher: Array, t: float) -> Array:
    """Bound t (max Δ - min Δ)² / 4 on Σ |taid_gradient / t - rkl_gradient|, for every t in (0, 1]; [...]."""
    return t * np.ptp(teacher - student, axis=-1) ** 2 / 4


# --- The adaptive schedule, open loop -----------------------------------------------------------------------


def open_loop(updates: int, alpha: float, t_start: float, t_end: float = 1.0) -> Array:
    """The adaptive schedule at momentum 0: t_n = max(linear, 1 - (1 - t_start) e^(-αn/2)) ≤ t_end; [N + 1]"""
    n = np.arange(updates + 1)
    linear = t_start + (t_end - t_start) * n / updates
    return np.minimum(t_end, np.maximum(linear, 1 - (1 - t_start) * np.exp(-alpha * n / 2)))


def open_loop_error(momentum: float, alpha: float, t_start: float) -> float:
    """Bound on |t_n - open_loop| at every n while |m| ≤ `momentum`: (1 - t_start) h / (e (1/2 - h)).

    h = sigmoid(momentum) - 1/2 + α/2. Raises ValueError where h ≥ 1/2 and the bound says nothing.
    """
    h = expit(momentum) - 0.5 + alpha / 2
    if h >= 0.5:
        raise ValueError("no bound: momentum or alpha is too large, need sigmoid(momentum) + alpha / 2 < 1")
    return (1 - t_start) * h / (np.e * (0.5 - h))


def open_loop_lead(updates: int, alpha: float, t_start: float) -> float:
    """Greatest lead of the open loop over the linear ramp: (1 - t_start) (1 - (1 + log a) / a), a = αN/2.

    Zero for a ≤ 1: with the paper's α, a run of 4,000 updates or fewer never leaves the ramp.
    """
    rate = max(alpha * updates / 2, 1.0)
    return (1 - t_start) * (1 - (1 + np.log(rate)) / rate)
