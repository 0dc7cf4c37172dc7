"""What one training step minimises, under the names of the paper's tables.

An objective maps the logits at the n unmasked positions of a batch to their mean loss in nats:

    objective(student_logits [n, V], teacher_logits [n, V] | None, labels [n]) -> scalar

and `per_token`, of the same arguments, to the n losses themselves, [n]. It may hold state (TAID's schedule,
CTKD's temperature), changed only by `update`, once per optimizer step.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taid import fused, losses
from taid.checks import require_number
from taid.fused import head
from taid.logits import Head
from taid.multi_level import mlkd
from taid.rollouts import DistiLLMRollouts, GKDRollouts, Rollouts, settings_of
from taid.schedule import Adaptive, Linear, Schedule, State, require_schedule


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
        if values.shape != labels.shape:
            raise ValueError(
                f"{self!r} gives a tensor {list(values.shape)} for {len(labels)} positions: a loss is one number a "
                "position, [n], the sum over the vocabulary taken and the mean over positions not"
            )
        return values.sum() / max(len(values), 1)

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        """The loss of each position, [n]."""
        raise TypeError(f"{type(self).__name__} does not say what it minimises: define per_token")

    @property
    def fusable(self) -> bool:
        """Whether `taid.fused` has its loss, value and gradient in one pass, and with the head: `of_heads`."""
        return False

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
            self.rollouts.load_state_dict(rollouts or {})
            self.rollouts.load_tensors(buffer or {})

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
    the teacher, on the data or on the student's samples (`rollouts`).

    Raises TypeError, naming its options, for those that the loss does not take or lacks, and what a loss of
    `taid.losses` raises for values that do not fit.
    """

    uses_teacher = True

    def __init__(self, loss: Callable[..., Tensor], rollouts: Rollouts | None = None, **options):
        self.loss, self.rollouts, self._options = loss, rollouts, options
        whole = type(self).options is Divergence.options  # else a subclass adds to them
        if unfit := _unfit(loss, options, whole):
            raise TypeError(unfit)
        if whole and loss in (*losses.LOSSES.values(), mlkd):
            loss(torch.zeros(1, 2), torch.zeros(1, 2), **options)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(self._settings())})"

    def _settings(self) -> list[str]:
        """For `__repr__`: its loss, how it samples, and its options."""
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        sampling = [] if self.rollouts is None else [settings_of(self.rollouts)]
        return [loss, *sampling, *(f"{name}={value!r}" for name, value in self._options.items())]

    def options(self, labels: Tensor) -> dict:
        """Further arguments of the loss, by name, at positions with these labels [n]."""
        return self._options

    @property
    def fusable(self):
        return self.loss in losses.LOSSES.values() and "official" not in self._options

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
        self.per_token(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))  # or its words

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
    3: see `taid.losses.taid_kl`, `taid.schedule.Adaptive`), or another `loss` of a t, with further options."""

    def __init__(
        self,
        schedule: Schedule = Adaptive(t_start=0.4),
        loss: Callable[..., Tensor] = losses.taid_kl,
        **options,
    ):
        require_schedule(schedule)
        super().__init__(loss, **options)
        self.schedule = schedule
        self.state = schedule.init()
        if loss in losses.LOSSES.values():  # its words for options that do not fit, now
            self.per_token(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))

    def __repr__(self):
        settings = self._settings()
        bridge = settings[1:] if self.loss is losses.taid_kl else settings
        return f"{type(self).__name__}({', '.join([str(self.schedule), *bridge])})"

    def options(self, labels):
        return super().options(labels) | {"t": self.state.t}

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


class Mixed(Objective):
    """(1 − w) τ² L(s / τ, z / τ) − w log q(label), of any objective L that has a teacher: both logits softened by
    the temperature τ, and the cross-entropy on the data, at temperature 1, mixed in with the weight w.

    τ² because the gradient of soft targets falls as 1/τ² (Hinton, Vinyals, Dean 2015, section 2): the mixture
    stays what it is where τ changes. L hears of the mixture's value: TAID's momentum is of it.

    Raises ValueError for w outside [0, 1), τ ≤ 0, what is no number, an objective without a teacher or with a
    temperature of its own, and for w > 0 with rollouts: cross-entropy on the student's own samples learns from no
    data.
    """

    def __init__(self, inner: Objective, ce_weight: float = 0.0, temperature: float = 1.0):
        require_number("ce_weight", ce_weight)
        require_number("temperature", temperature)
        if not 0 <= ce_weight < 1:
            raise ValueError(
                f"ce_weight must lie in [0, 1), got {ce_weight}; cross-entropy alone is method 'sft'"
            )
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not inner.uses_teacher or (isinstance(inner, CTKD | DKD) and temperature != 1):
            raise ValueError(
                f"{inner!r} takes no temperature or ce_weight here: it has no teacher, or its own"
            )
        if ce_weight and inner.rollouts is not None:
            raise ValueError(
                f"{inner!r} trains on the student's own samples, whose cross-entropy is no data's: leave out ce_weight"
            )
        self.inner, self.ce_weight, self.temperature = inner, ce_weight, temperature
        self.uses_teacher, self.rollouts = True, inner.rollouts

    def __repr__(self):
        return f"Mixed({self.inner!r}, ce_weight={self.ce_weight}, temperature={self.temperature})"

    @property
    def loss(self) -> Callable[..., Tensor] | None:
        """The divergence, where it is taken of the logits as they are."""
        return getattr(self.inner, "loss", None) if self.temperature == 1 else None

    @property
    def fusable(self):
        return self.inner.fusable and not self.ce_weight

    def __call__(self, student_logits, teacher_logits, labels):
        data = self._data(student_logits, labels).sum() / max(len(labels), 1)
        return self._mix(self.inner(*self._soften(student_logits, teacher_logits), labels), data)

    def per_token(self, student_logits, teacher_logits, labels):
        data = self._data(student_logits, labels)
        return self._mix(self.inner.per_token(*self._soften(student_logits, teacher_logits), labels), data)

    def of_heads(self, student, teacher, labels):
        if not self.fusable:
            return super().of_heads(student, teacher, labels)
        return self._mix(self.inner.of_heads(*self._soften(student, teacher), labels), 0.0)

    def _data(self, student_logits, labels):
        """−log q(label), [n]; 0 without weight, for 0 · ∞ is no number."""
        if not self.ce_weight:
            return torch.zeros(len(labels), device=student_logits.device)
        return cross_entropy(losses._upcast(student_logits), labels, reduction="none")

    def _mix(self, distilled, data):
        return (1 - self.ce_weight) * self.temperature**2 * distilled + self.ce_weight * data

    def _soften(self, *logits: Tensor | Head) -> tuple[Tensor | Head, ...]:
        return tuple(logits if self.temperature == 1 else map(self._softened, logits))

    def _softened(self, logits: Tensor | Head) -> Tensor | Head:
        def softer(numbers: Tensor) -> Tensor:
            return losses._upcast(numbers) / self.temperature  # rounded to 16 bits they would be other logits

        if isinstance(logits, Tensor):
            return softer(logits)
        return Head(
            softer(logits.hidden), logits.weight, None if logits.bias is None else softer(logits.bias)
        )

    def on_train_begin(self, updates):
        self.inner.on_train_begin(updates)

    def update(self, loss, progress):
        self.inner.update(loss, progress)

    def logs(self):
        return self.inner.logs()

    def parameters(self):
        return self.inner.parameters()

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


def _gkd(max_new_tokens: int = 64, **options) -> Divergence:
    return Divergence(losses.jsd, GKDRollouts(max_new_tokens, **options))


def _distillm(loss: str = "skew_kl", max_new_tokens: int = 64, **options) -> Divergence:
    if loss not in losses.LOSSES:
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(losses.LOSSES)}")
    return Divergence(losses.LOSSES[loss], DistiLLMRollouts(max_new_tokens, **options))


def _amid(mixture: float = 0.5, t_start: float = 0.4, t_end: float = 1.0, **options) -> TAID:
    return TAID(Adaptive(t_start, t_end, **options), losses.amid_kl, mixture=mixture)


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
    "mlkd": partial(Divergence, mlkd),
    "taid_no_adaptive": lambda t_start=0.4, t_end=1.0: TAID(Linear(t_start, t_end)),
    "taid": lambda t_start=0.4, t_end=1.0, **options: TAID(Adaptive(t_start, t_end, **options)),
    "gjs": partial(Divergence, losses.jsd),
    "skew_kl": partial(Divergence, losses.skew_kl),
    "skew_rkl": partial(Divergence, losses.skew_rkl),
    "alpha_beta": partial(Divergence, losses.alpha_beta),
    "amid": _amid,
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


def objective(method: str, *, ce_weight: float = 0.0, **options) -> Objective:
    """A fresh objective by its name in the paper's tables, with its options; those of all that have a teacher are
    `ce_weight` and `temperature`, see `Mixed` (DKD's temperature is its own).

    Raises ValueError for an unknown name, and TypeError or ValueError for options that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    temperature = options.pop("temperature", 1.0) if METHODS[method] is not DKD else 1.0
    built = METHODS[method](**options)
    return built if ce_weight == 0 and temperature == 1 else Mixed(built, ce_weight, temperature)


def _unfit(loss: Callable[..., Tensor], options: dict, whole: bool) -> str | None:
    """What is wrong with the options of a loss; `whole` if no others will be added."""
    try:
        signature = inspect.signature(loss)
    except ValueError:  # of a function in C nothing is known
        return None
    try:
        (signature.bind if whole else signature.bind_partial)(None, None, **options)
    except TypeError as error:
        taken = ", ".join(list(signature.parameters)[2:]) or "none"
        return f"{getattr(loss, '__name__', loss)}: {error}; its options: {taken}"
    return None
