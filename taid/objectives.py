"""What one training step minimises, under the names of the paper's tables.

An objective maps the logits at the n unmasked positions of a batch to n per-token losses in nats:

    objective(student_logits [n, V], teacher_logits [n, V], labels [n]) -> [n]

It may hold state (TAID's schedule, CTKD's temperature), changed only by `update`, once per optimizer step.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taid import losses
from taid.rollouts import DistiLLMRollouts, GKDRollouts, Rollouts
from taid.schedule import Adaptive, Linear, State


class Objective:
    """Base of all objectives: no teacher, no state, no parameters, no sampling from the student."""

    uses_teacher = False
    rollouts: Rollouts | None = None

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say what it minimises: define __call__")

    def update(self, loss: float, progress: float) -> None:
        """Called once per optimizer step: its mean loss per token [nats], and the share of steps done."""

    def logs(self) -> dict[str, float]:
        """Numbers to log beside the loss."""
        return {}

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Parameters to train with the student's."""
        return iter(())

    def state_dict(self) -> dict:
        """What a checkpoint has to hold, as plain JSON values."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""


class SFT(Objective):
    """Cross-entropy on the data, −log q(label): supervised fine-tuning, the baseline without a teacher."""

    def __call__(self, student_logits, teacher_logits, labels):
        return cross_entropy(student_logits.float(), labels, reduction="none")


class Divergence(Objective):
    """A divergence of `taid.losses` to the teacher, on the data or on the student's samples (`rollouts`)."""

    uses_teacher = True

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], rollouts: Rollouts | None = None):
        self.loss, self.rollouts = loss, rollouts

    def __call__(self, student_logits, teacher_logits, labels):
        return self.loss(student_logits, teacher_logits)

    def logs(self):
        return self.rollouts.logs() if self.rollouts else {}


class DKD(Objective):
    """Decoupled KD, `taid.losses.dkd`; its target class is the label."""

    uses_teacher = True

    def __init__(self, alpha: float = 1.0, beta: float = 0.5, temperature: float = 1.0):
        self.loss = partial(losses.dkd, alpha=alpha, beta=beta, temperature=temperature)

    def __call__(self, student_logits, teacher_logits, labels):
        return self.loss(student_logits, teacher_logits, labels)


class CTKD(Objective):
    """Curriculum temperature, `taid.losses.ctkd`, with a temperature that is trained against the student."""

    uses_teacher = True

    def __init__(self, official: bool = False):
        self.temperature = losses.CTKDTemperature(official=official)
        self.progress = 0.0

    def __call__(self, student_logits, teacher_logits, labels):
        return losses.ctkd(student_logits, teacher_logits, self.temperature(self.progress))

    def update(self, loss, progress):
        self.progress = progress

    def logs(self):
        return {"temperature": self.temperature(self.progress).item()}

    def parameters(self):
        return self.temperature.parameters()

    def state_dict(self):
        return {"theta": self.temperature.theta.item(), "progress": self.progress}

    def load_state_dict(self, state):
        with torch.no_grad():
            self.temperature.theta.fill_(state["theta"])
        self.progress = state["progress"]


class TAID(Objective):
    """KL(p_t ‖ q) to the intermediate teacher p_t, with t from a schedule of `taid.schedule` (paper, section
    3: see `taid.losses.taid_kl`, `taid.schedule.Adaptive`)."""

    uses_teacher = True

    def __init__(self, schedule: Linear = Adaptive(t_start=0.4)):
        self.schedule = schedule
        self.state = schedule.init()

    def __call__(self, student_logits, teacher_logits, labels):
        return losses.taid_kl(student_logits, teacher_logits, self.state.t)

    def update(self, loss, progress):
        self.state = self.schedule.update(self.state, loss, progress)

    def logs(self):
        state = self.state
        return {
            "t": state.t,
            "momentum": state.momentum,
            "sigmoid_momentum": state.sigmoid_momentum,
            "floor_share": state.floor_share,
        }

    def state_dict(self):
        return asdict(self.state)

    def load_state_dict(self, state):
        self.state = State(**state)


def _gkd(max_new_tokens: int = 64, **options) -> Divergence:
    return Divergence(losses.jsd, GKDRollouts(max_new_tokens, **options))


def _distillm(loss: str = "skew_kl", max_new_tokens: int = 64, **options) -> Divergence:
    return Divergence(losses.LOSSES[loss], DistiLLMRollouts(max_new_tokens, **options))


METHODS: dict[str, Callable[..., Objective]] = {
    "sft": SFT,
    "kl": partial(Divergence, losses.forward_kl),
    "rkl": partial(Divergence, losses.reverse_kl),
    "tvd": partial(Divergence, losses.tvd),
    "adaptive_kl": partial(Divergence, losses.adaptive_kl),
    "gkd": _gkd,
    "distillm": _distillm,
    "ctkd": CTKD,
    "dkd": DKD,
    "taid_no_adaptive": lambda t_start=0.4, t_end=1.0: TAID(Linear(t_start, t_end)),
    "taid": lambda t_start=0.4, t_end=1.0, **options: TAID(Adaptive(t_start, t_end, **options)),
    "gjs": partial(Divergence, losses.jsd),
    "skew_kl": partial(Divergence, losses.skew_kl),
    "skew_rkl": partial(Divergence, losses.skew_rkl),
}
"""The first eleven are Table 1's, in its order. Options are its own: `objective("taid", t_start=0.2)`."""

TABLE1 = tuple(METHODS)[:11]


def objective(method: str, **options) -> Objective:
    """A fresh objective by its name in the paper's tables. Raises ValueError that names the known ones."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    return METHODS[method](**options)
