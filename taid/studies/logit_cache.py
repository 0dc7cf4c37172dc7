"""The teacher's cache, measured: how much faster training becomes, and what the top k do to each loss.

On Table 2's models: the healed student of seed 0 against the teacher.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from taid import losses
from taid.logits import response_logits
from taid.studies import continued_pretraining, study
from taid.teacher import FullLogits, HiddenStates, LiveTeacher, TopLogits

Loss = Callable[[Tensor, Tensor], Tensor]  # (student's, teacher's logits) [n, V] -> [n], as in `taid.losses`

STORES = {"full": FullLogits(), "hidden": HiddenStates(), "top-64": TopLogits(64)}
TOP = (4, 16, 64, 256)
STEPS = {"smoke": 2, "cpu": 10}  # of training, by each teacher
LOSSES = {
    name: losses.LOSSES[name] for name in continued_pretraining.TABLE2 if name not in ("sft", "taid")
} | {f"taid, t = {t}": partial(losses.taid_kl, t=t) for t in (0.4, 0.7, 0.9)}
UNITS = {
    "tokens_per_second": ("tokens/s", True),
    "speed_up": ("times the live teacher's", True),
    "bytes_per_token": ("bytes", False),
    "value_error": ("of the value", False),
    "gradient_error": ("of the gradient's norm", False),
}


@dataclass(frozen=True)
class Probe:
    """The measurement of one scale, as a cell of the results."""

    scale: str
    method: str = "cache"
    seed: int = 0

    def __str__(self) -> str:
        return "the teacher's cache"

    @property
    def teacher(self) -> str:
        return continued_pretraining.setting(self.scale).teacher

    def config(self) -> dict:
        """Everything that decides the numbers, but for the machine's speed; plain JSON."""
        student = continued_pretraining.Run(self.scale, "untrained", self.seed, 0.0, 0).config()
        return student | {"method": self.method, "top": list(TOP), "steps": STEPS[self.scale]}


def measure(probe: Probe) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds); tasks name the teacher's form, or the loss and its k."""
    started = time.perf_counter()
    here = continued_pretraining.bench(probe.scale)
    values = speed(here, STEPS[probe.scale]) | biases(here)
    return values, time.perf_counter() - started


def speed(here: continued_pretraining.Bench, steps: int) -> dict[tuple[str, str], float]:
    """Training steps of KL with the live teacher and with each form of its cache, one after the other."""
    training = replace(here.settings.distil, steps=steps)
    windows = here.train[: steps * training.batch_size]
    teachers = {"live": LiveTeacher(here.teacher)}
    values: dict[tuple[str, str], float] = {}
    for name, store in STORES.items():
        teachers[name] = here.cache_of(windows, f"speed-{name}", store)
        values["bytes_per_token", name] = teachers[name].shards.bytes_per_token
    tokens = len(windows) * here.settings.window
    for name, teacher in teachers.items():
        trainer = here.fit(here.student(0), windows, training, seed=0, objective="kl", teacher=teacher)
        values["tokens_per_second", name] = tokens / trainer.state.log_history[-1]["train_runtime"]
    live = values["tokens_per_second", "live"]
    return values | {("speed_up", name): values["tokens_per_second", name] / live for name in teachers}


@torch.no_grad()
def biases(here: continued_pretraining.Bench, windows: int = 8) -> dict[tuple[str, str], float]:
    """Errors of each loss and its gradient for each k, on validation windows."""
    batch = here.collator(here.validation[:windows])
    teacher, student = here.cached_teacher("validation")(batch), response_logits(here.student(0), batch)[0]
    values = {}
    for k in TOP:
        store = TopLogits(k)
        stored = store.expand(store.compress(teacher), teacher.shape[-1])
        for name, loss in LOSSES.items():
            with torch.enable_grad():
                errors = bias(loss, student, teacher, stored)
            for metric, error in zip(("value_error", "gradient_error"), errors, strict=True):
                values[metric, f"{name}, top {k}"] = error
    return values


def bias(loss: Loss, student: Tensor, teacher: Tensor, stored: Tensor) -> tuple[float, float]:
    """(error of the value, error of the gradient) of a loss at `stored` in place of the teacher's [n, V].

    Both are relative: (L̂ − L)/L of the means over tokens, signed; and ‖Ĝ − G‖/‖G‖ of their gradients with
    respect to the student's logits, in the norm over all n · V entries.
    """
    value, gradient = _value_and_gradient(loss, student, teacher)
    found, moved = _value_and_gradient(loss, student, stored)
    return (found - value) / value, ((moved - gradient).norm() / gradient.norm()).item()


def _value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    leaf = student.detach().clone().requires_grad_()
    mean = loss(leaf, teacher).mean()
    [gradient] = torch.autograd.grad(mean, leaf)
    return mean.item(), gradient


def rows(probe: Probe, experiment: str, values: Mapping[tuple[str, str], float], seconds: float):
    """The rows of the measurement."""
    return study.rows(
        probe, experiment, values, seconds, UNITS, student=continued_pretraining.setting(probe.scale).student
    )
