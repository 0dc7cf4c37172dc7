"""The teacher's cache, measured: how much faster training becomes, and what the top k do to each loss.

On Table 2's models: the healed student of seed 0 against the teacher.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from taid import losses
from taid.logits import response_logits
from taid.studies import continued_pretraining, study
from taid.studies.continued_pretraining import ContinuedPretraining
from taid.studies.study import Logits
from taid.teacher import FullLogits, HiddenStates, LiveTeacher, TopLogits
from taid.teacher.stores import Store

Loss = Callable[[Tensor, Tensor], Tensor]  # (student's, teacher's logits) [n, V] -> [n], as in `taid.losses`

STORES: dict[str, Store] = {"full": FullLogits(), "hidden": HiddenStates(), "top-64": TopLogits(64)}
TOP = (4, 16, 64, 256)
STEPS = {"smoke": 2, "cpu": 10}  # of training, by each teacher
PROBED = {  # of Table 2's methods
    "kl": losses.forward_kl,
    "tvd": losses.tvd,
    "adaptive_kl": losses.adaptive_kl,
    "gjs": losses.jsd,
    "skew_kl": losses.skew_kl,
    "skew_rkl": losses.skew_rkl,
} | {f"taid, t = {t}": partial(losses.taid_kl, t=t) for t in (0.4, 0.7, 0.9)}
UNITS = {
    "tokens_per_second": ("tokens/s", True),
    "speed_up": ("times the live teacher's", True),
    "bytes_per_token": ("bytes", False),
    "value_error": ("of the value", False),
    "gradient_error": ("of the gradient's norm", False),
}


@dataclass(frozen=True)
class Probe(continued_pretraining.Cell):
    """The measurement of one scale, as a cell of the results."""

    scale: str
    method: str = "cache"
    seed: int = 0

    def __str__(self) -> str:
        return "the teacher's cache"

    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers, but for the machine's speed; plain JSON."""
        student = continued_pretraining.Run(self.scale, "untrained", self.seed, 0.0, 0).config()
        return student | {"method": self.method, "top": list(TOP), "steps": STEPS[self.scale]}


def measure(probe: Probe) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds); tasks name the teacher's form, or the loss and its k."""
    started = time.perf_counter()
    here = continued_pretraining.at(probe.scale)
    values = speed(here, STEPS[probe.scale]) | biases(here)
    return values, time.perf_counter() - started


def speed(here: ContinuedPretraining, steps: int) -> dict[tuple[str, str], float]:
    """Training steps of KL with the live teacher and with each form of its cache, one after the other."""
    setting, source = here.setting, here.source
    run = continued_pretraining.Run(setting.scale, "kl", 0, setting.distil.learning_rate, steps)
    windows = source.examples("train")[: steps * run.training.batch_size]
    teachers: dict[str, Logits] = {"live": LiveTeacher(source.teacher(run.teacher))}
    values: dict[tuple[str, str], float] = {}
    for name, store in STORES.items():
        cached = here.cache_of(windows, f"speed-{name}", store)
        teachers[name] = cached
        values["bytes_per_token", name] = cached.shards.bytes_per_token
    tokens = len(windows) * setting.window
    for name, teacher in teachers.items():
        student = source.student(run.student, run.seed)
        trainer = here.fit(student, run, run.objective(), teacher, windows)
        values["tokens_per_second", name] = tokens / trainer.state.log_history[-1]["train_runtime"]
    live = values["tokens_per_second", "live"]
    return values | {("speed_up", name): values["tokens_per_second", name] / live for name in teachers}


@torch.no_grad()
def biases(here: ContinuedPretraining, windows: int = 8) -> dict[tuple[str, str], float]:
    """Errors of each loss and its gradient for each k, on validation windows."""
    source, setting = here.source, here.setting
    batch = here.collator(source.examples("validation")[:windows])
    teacher = here.teacher_logits(setting.teacher, "validation")(batch)
    student, _ = response_logits(source.student(setting.student, 0), batch)
    values = {}
    for k in TOP:
        store = TopLogits(k)
        stored = store.expand(store.compress(teacher), teacher.shape[-1])
        for name, loss in PROBED.items():
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


rows = partial(study.rows, units=UNITS)
