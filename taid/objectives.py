"""What one training step minimises, under the names of the paper's tables.

An objective maps the logits at the n unmasked positions of a batch to their mean loss in nats:

    objective(student_logits [n, V], teacher_logits [n, V] | None, labels [n]) -> scalar

and `per_token`, of the same arguments, to the n losses themselves, [n]. It may hold state (TAID's schedule,
CTKD's temperature), changed only by `update`, once per optimizer step.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taid import fused, losses
from taid.fused import head
from taid.logits import Head
from taid.rollouts import DistiLLMRollouts, GKDRollouts, Rollouts
from taid.schedule import Adaptive, Linear, Replayed, State


class Objective:
    """Base of all objectives: no teacher, no state, no parameters, no sampling from the student."""

    uses_teacher = False
    rollouts: Rollouts | None = None
    _at_first: dict | None = None  # arguments of `restore`: its state before its first run

    def __repr__(self) -> str:
        """Its name and settings, by which a checkpoint knows whose it is."""
        return f"{type(self).__name__}()"

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        """The mean of `per_token`, a scalar [nats]; 0 with zero gradient for n = 0."""
        values = self.per_token(student_logits, teacher_logits, labels)
        return values.sum() / max(len(values), 1)

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        """The loss of each position, [n]."""
        raise TypeError(f"{type(self).__name__} does not say what it minimises: define per_token")

    def of_heads(self, student: Head, teacher: Head | Tensor, labels: Tensor) -> Tensor:
        """The mean loss at n positions whose logits are not computed yet, see `taid.fused.head`."""
        raise ValueError(f"{type(self).__name__} cannot be fused with the head: train without fuse_head")

    def reset(self) -> None:
        """Called at the beginning of every run, for state belongs to a run: the first time, this keeps what a
        checkpoint would hold, and later it puts that back."""
        if self._at_first is not None:
            self.restore(**deepcopy(self._at_first))
        else:
            rollouts = self.rollouts
            sampling = (
                {} if rollouts is None else {"rollouts": rollouts.state_dict(), "buffer": rollouts.tensors()}
            )
            self._at_first = deepcopy({"objective": self.state_dict()} | sampling)

    def restore(self, objective: dict, rollouts: dict | None = None, buffer: dict | None = None) -> None:
        """Its own state, and that of its rollouts."""
        self.load_state_dict(objective)
        if self.rollouts is not None:
            self.rollouts.load_state_dict(rollouts)
            self.rollouts.load_tensors(buffer)

    def on_train_begin(self, updates: int) -> None:
        """Called before a run of `updates` optimizer steps: the place to warn of what will not work in it."""

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

    def per_token(self, student_logits, teacher_logits, labels):
        return cross_entropy(student_logits.float(), labels, reduction="none")


class Divergence(Objective):
    """loss(student_logits, teacher_logits, **options) -> [n], a divergence of `taid.losses` or your own, to
    the teacher, on the data or on the student's samples (`rollouts`)."""

    uses_teacher = True

    def __init__(self, loss: Callable[..., Tensor], rollouts: Rollouts | None = None, **options):
        self.loss, self.rollouts, self._options = loss, rollouts, options

    def __repr__(self):
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        sampling = [] if self.rollouts is None else [type(self.rollouts).__name__]
        settings = [f"{name}={value!r}" for name, value in self._options.items()]
        return f"{type(self).__name__}({', '.join([loss, *sampling, *settings])})"

    def options(self, labels: Tensor) -> dict:
        """Further arguments of the loss, by name, at positions with these labels [n]."""
        return self._options

    @property
    def fusable(self) -> bool:
        """Whether `taid.fused` has the loss: all of `taid.losses`, but no official variant."""
        return self.loss in losses.LOSSES.values() and not self._options.get("official")

    def __call__(self, student_logits, teacher_logits, labels):
        if not self.fusable:
            return super().__call__(student_logits, teacher_logits, labels)
        return fused.mean(self.loss.__name__, student_logits, teacher_logits, **self.options(labels))

    def per_token(self, student_logits, teacher_logits, labels):
        return self.loss(student_logits, teacher_logits, **self.options(labels))

    def of_heads(self, student, teacher, labels):
        if not self.fusable:
            return super().of_heads(student, teacher, labels)
        return head.mean(self.loss.__name__, student, teacher, **self.options(labels))

    def logs(self):
        return self.rollouts.logs() if self.rollouts else {}


class DKD(Divergence):
    """Decoupled KD, `taid.losses.dkd`; its target class is the label."""

    def __init__(self, alpha: float = 1.0, beta: float = 0.5, temperature: float = 1.0):
        super().__init__(losses.dkd, alpha=alpha, beta=beta, temperature=temperature)

    def options(self, labels):
        return super().options(labels) | {"labels": labels}


class CTKD(Divergence):
    """Curriculum temperature, `taid.losses.ctkd`, with a temperature that is trained against the student."""

    def __init__(self, official: bool = False):
        super().__init__(losses.ctkd)
        self.temperature = losses.CTKDTemperature(official=official)
        self.progress = 0.0

    def __repr__(self):
        return f"CTKD(official={self.temperature.official})"

    def options(self, labels):
        return {"temperature": self.temperature(self.progress)}

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


class TAID(Divergence):
    """KL(p_t ‖ q) to the intermediate teacher p_t, with t from a schedule of `taid.schedule` (paper, section
    3: see `taid.losses.taid_kl`, `taid.schedule.Adaptive`)."""

    def __init__(self, schedule: Linear | Replayed = Adaptive(t_start=0.4)):
        super().__init__(losses.taid_kl)
        self.schedule = schedule
        self.state = schedule.init()

    def __repr__(self):
        return f"{type(self).__name__}({self.schedule})"

    def options(self, labels):
        return {"t": self.state.t}

    def on_train_begin(self, updates):
        self.schedule.check(updates)

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
"""Objectives by the names of the papers' tables. Options are their own: `objective("taid", t_start=0.2)`."""

TABLE1 = (
    "sft",
    "kl",
    "rkl",
    "tvd",
    "adaptive_kl",
    "gkd",
    "distillm",
    "ctkd",
    "dkd",
    "taid_no_adaptive",
    "taid",
)
"""The methods of the paper's Table 1, in its order."""


def objective(method: str, **options) -> Objective:
    """A fresh objective by its name in the paper's tables. Raises ValueError that names the known ones."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    return METHODS[method](**options)
