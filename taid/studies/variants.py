"""Losses with a t beside the paper's, and objectives for the ablations (`taid.studies.ablations`).

Three facts help to read them. With p_t held fixed,

    the gradient of KL(p_t ‖ q) with respect to the student's logits is q − p_t;
    with probabilities blended, p_t = (1 − t) q + t p, that is t (q − p): the forward KL's, times t;
    the value of the objective moves t alone, and hardly (`taid.studies.adaptivity`).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taid import losses, objectives
from taid.schedule import Schedule
from taid.teacher.stores import spread, top

# --- Losses of (student_logits [n, V], teacher_logits [n, V], labels [n], t) -> [n] -------------------------


def taid(student: Tensor, teacher: Tensor, labels: Tensor, t: float) -> Tensor:
    """KL(p_t ‖ q), the paper's."""
    return losses.taid_kl(student, teacher, t)


def cross_entropy_signal(student: Tensor, teacher: Tensor, labels: Tensor, t: float) -> Tensor:
    """−Σ p_t log q, the official code's: the same gradient, another value, so another momentum."""
    return losses.taid_kl(student, teacher, t, official=True)


def reverse(student: Tensor, teacher: Tensor, labels: Tensor, t: float) -> Tensor:
    """KL(q ‖ p_t)."""
    return losses.reverse_kl(student, losses.interpolate(student, teacher, t))


def probability(student: Tensor, teacher: Tensor, labels: Tensor, t: float) -> Tensor:
    """KL(p_t ‖ q) with probabilities blended in place of logits, p_t = (1 − t) · stopgrad(q) + t · p."""
    log_q, log_p = losses._upcast(student.detach()).log_softmax(-1), losses._upcast(teacher).log_softmax(-1)
    if t == 0 or t == 1:
        return losses.forward_kl(student, log_p if t else log_q)
    return losses.forward_kl(student, torch.logaddexp(log_q + math.log1p(-t), log_p + math.log(t)))


def with_data(student: Tensor, teacher: Tensor, labels: Tensor, t: float, *, ratio: float) -> Tensor:
    """(1 − ratio) · KL(p_t ‖ q) − ratio · log q(label)."""
    data = cross_entropy(losses._upcast(student), labels, reduction="none")
    return (1 - ratio) * losses.taid_kl(student, teacher, t) + ratio * data


def top_k(student: Tensor, teacher: Tensor, labels: Tensor, t: float, *, k: int, tail: bool) -> Tensor:
    """TAID from the teacher's `k` largest logits per token, see `truncated`."""
    return losses.taid_kl(student, truncated(teacher, k, tail), t)


def over_t(student: Tensor, teacher: Tensor, labels: Tensor, t: float) -> Tensor:
    """KL(p_t ‖ q) / t, whose gradient does not fade with t: t times that of KL(q ‖ p) at small t."""
    if t == 0:
        raise ValueError("the loss is divided by t: start from t_start > 0")
    return losses.taid_kl(student, teacher, t) / t


def matched(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    t: float,
    *,
    direction: Literal["kl", "taid"],
    per_token: bool = False,
) -> Tensor:
    """The forward KL scaled so that its gradient has the size of TAID's, or (`direction` "taid") the reverse.

    Size is the Euclidean norm of the gradient with respect to the student's logits, of the whole batch or
    `per_token`, at this very student and t. With respect to parameters would cost a second backward pass, and
    say no more of the losses: that gradient is this one, times one and the same Jacobian.
    """
    q = losses._upcast(student.detach()).softmax(-1)
    sizes = {
        name: torch.linalg.vector_norm(q - target.softmax(-1), dim=-1)  # [n]
        for name, target in {
            "kl": losses._upcast(teacher),
            "taid": losses.interpolate(student, teacher, t),
        }.items()
    }
    other = {"kl": "taid", "taid": "kl"}[direction]
    if not per_token:
        sizes = {name: size.norm() for name, size in sizes.items()}
    scale = sizes[other] / sizes[direction].clamp(min=torch.finfo(q.dtype).tiny)
    return scale * losses.taid_kl(student, teacher, 1.0 if direction == "kl" else t)


def truncated(logits: Tensor, k: int, tail: bool) -> Tensor:
    """Logits [n, V] of the `k` largest of a token: the others have none of its mass, which leaves the k
    renormalised, or (`tail`) equal shares of their own.

    Raises ValueError unless 1 ≤ k < V.
    """
    if not 1 <= k < logits.shape[-1]:
        raise ValueError(f"k must lie between 1 and V − 1 = {logits.shape[-1] - 1}, got {k}")
    log_p, tokens, log_rest = top(losses._upcast(logits), k)
    return spread(log_p, tokens, log_rest if tail else torch.full_like(log_rest, -math.inf), logits.shape[-1])


BLENDS: dict[str, Callable[..., Tensor]] = {
    "taid": taid,
    "cross_entropy_signal": cross_entropy_signal,
    "reverse": reverse,
    "probability": probability,
    "with_data": with_data,
    "top_k": top_k,
    "over_t": over_t,
    "matched": matched,
}


class Blend(objectives.TAID):
    """TAID's schedule around a `loss` of BLENDS."""

    def __init__(self, loss: Callable[..., Tensor], schedule: Schedule):
        super().__init__(schedule, loss)

    def __repr__(self):
        return f"Blend({self.loss}, {self.schedule})"

    __call__ = objectives.Objective.__call__  # the mean of per_token, in whatever way TAID computes its own

    def per_token(self, student_logits, teacher_logits, labels):
        return self.loss(student_logits, teacher_logits, labels, self.state.t)


class Traced(objectives.Objective):
    """An objective that keeps the loss of every optimizer step, and its own state after it, in `steps`."""

    def __init__(self, inner: objectives.Objective):
        self.inner = inner
        self.steps: list[dict] = []
        self.uses_teacher, self.rollouts = inner.uses_teacher, inner.rollouts

    def __call__(self, student_logits, teacher_logits, labels):
        return self.inner(student_logits, teacher_logits, labels)

    def on_train_begin(self, updates):
        self.inner.on_train_begin(updates)

    def update(self, loss, progress):
        self.inner.update(loss, progress)
        self.steps.append({"loss": loss} | self.inner.state_dict())

    def logs(self):
        return self.inner.logs()

    def parameters(self):
        return self.inner.parameters()

    def state_dict(self):
        return {"inner": self.inner.state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        self.inner.load_state_dict(state["inner"])
        self.steps = state["steps"]
