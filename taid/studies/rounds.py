"""Repeated rounds with language models: what the theory speaks of, measured (docs/theory.md, section 6).

f_0 is the teacher. Round t = 0 … T − 1 trains a fresh copy of one pre-trained student on softmax(z̃_t),

    z̃_t = (1 − λ_t) · (logits of f_t) + λ_t · (the teacher's logits),

by the forward KL, with Table 1's data and settings, and gives f_{t+1}. For the theory's vectors z_t (of f_t)
and y (of the teacher) stand the logits at the response tokens of the validation split, centred at each token
over the vocabulary, less those of the pre-trained student: what learned nothing has z = 0, a collapsed fit.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from taid import losses, results, theory
from taid.logits import response_logits
from taid.studies import instruction_tuning, study, zoo
from taid.studies.study import Logits
from taid.teacher import LiveTeacher

TEACHER, ROUNDS = "stablelm-zephyr", 6
VARIANTS = {  # λ_0 … λ_{T−1}
    "self_distillation": (0.0,) * ROUNDS,
    "taid": tuple(theory.linear_schedule(ROUNDS)[:-1].tolist()),  # λ_T = 1 would be plain distillation
    "constant": (zoo.PAIRS[TEACHER].t_start,) * ROUNDS,
}
UNITS = {  # metric -> (unit, whether higher is better); entropy and support are neither good nor bad
    "entropy": ("nats", False),
    "effective_support": ("tokens", False),
    "kl_to_teacher": ("nats/token", False),
    "agreement": ("fraction", True),
    "held_out_loss": ("nats/token", False),  # a mean over tokens
    "signal": ("of the teacher's", True),
    "share": ("of the teacher's", True),
    "drift": ("of the teacher's signal", False),
    "residual": ("of the teacher's signal", False),
    "drift_bound": ("of the teacher's signal", False),
    "signal_strength": ("first residuals", True),
    "non_collapse_bound": ("first residuals", False),
}


@dataclass(frozen=True)
class Chain(study.Run):
    """All rounds of one variant and seed; a round is Table 1's run `kl`, on other targets."""

    variant: str
    kl: instruction_tuning.Run

    def __str__(self) -> str:
        return f"{self.variant} seed {self.seed} lr {self.learning_rate:g}"

    @property
    def scale(self) -> str:
        return self.kl.scale

    @property
    def method(self) -> str:
        return self.variant

    @property
    def teacher(self) -> str:
        return self.kl.teacher

    @property
    def student(self) -> str:
        return self.kl.student

    @property
    def seed(self) -> int:
        return self.kl.seed

    @property
    def learning_rate(self) -> float:
        return self.kl.learning_rate

    @property
    def setting(self) -> instruction_tuning.Setting:
        return self.kl.setting

    def config(self) -> dict[str, Any]:
        """Everything that decides the chain's numbers, plain JSON."""
        return self.kl.config() | {"method": self.variant, "weights": list(VARIANTS[self.variant])}


def learning_rate(rows: Iterable[results.Row], scale: str) -> float:
    """The rate that Table 1 chose for KL on this pair. Raises ValueError where it has not."""
    return study.chosen_rates(rows, scale, TEACHER, ("kl",))["kl"]


def targets(previous: Logits, teacher: Logits, weight: float) -> Logits:
    """z̃ of one round, λ = `weight`. A side of weight zero is never called, nor f_0 = teacher twice."""
    if weight == 1 or previous is teacher:
        return teacher
    if weight == 0:
        return previous
    return lambda batch: losses.interpolate(previous(batch), teacher(batch), weight)


def chain(
    fresh: Callable[[], PreTrainedModel],
    teacher: Logits,
    weights: Sequence[float],
    train: Callable[[PreTrainedModel, Logits], object],
) -> Iterator[PreTrainedModel]:
    """Yield f_1 … f_T: `fresh` makes a round's student, train(student, targets) trains it in place."""
    previous = teacher
    for weight in weights:
        student = fresh()
        train(student, targets(previous, teacher, weight))
        yield student
        previous = LiveTeacher(student)


def measures(logits: Tensor, teacher: Tensor, start: Tensor, labels: Tensor) -> dict[str, float]:
    """Of a model with logits z [n, V], by the teacher's y and the pre-trained student's [n, V]; labels [n].

    Means over the n tokens: entropy and held-out loss, KL(teacher ‖ model) [nats]; effective support, the
    mean of exp(entropy) [tokens]; agreement of the likeliest tokens. Over all n · V entries: signal ‖z‖/‖y‖,
    share ⟨z, y⟩/‖y‖², drift ‖y − z‖/‖y‖; the teacher has 1, 1, 0 and the pre-trained student 0, 0, 1.
    """
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)  # [n]
    y, z = centred(teacher - start), centred(logits - start)
    values = {
        "entropy": entropy.mean(),
        "effective_support": entropy.exp().mean(),
        "kl_to_teacher": losses.forward_kl(logits, teacher).mean(),
        "agreement": (logits.argmax(-1) == teacher.argmax(-1)).double().mean(),
        "held_out_loss": cross_entropy(logits, labels),
        "signal": z.norm() / y.norm(),
        "share": (z * y).sum() / y.square().sum(),
        "drift": (y - z).norm() / y.norm(),
    }
    return {metric: value.item() for metric, value in values.items()}


def trajectory(
    students: Iterable[Tensor], teacher: Tensor, start: Tensor, labels: Tensor, weights: Sequence[float]
) -> dict[tuple[str, str], float]:
    """{(metric, task): value} of a chain, from the logits [n, V] of f_1 … f_T, the teacher and the student.

    Tasks: "untrained", "round 0" (the teacher), "round 1" … "round T" with `measures`. From round 1 on also
    residual ‖z̃_t − z_{t+1}‖/‖y‖, and drift_bound, the theory's δ_t: how far repeated residuals of the first
    one's size can lead. For "all rounds" the theory's terms: signal_strength r_0 = ‖y‖/‖first residual‖ and
    non_collapse_bound B.
    """
    references = {"untrained": start, "round 0": teacher}
    found = {task: measures(logits, teacher, start, labels) for task, logits in references.items()}
    previous, signal, deltas = (
        teacher,
        centred(teacher - start).norm(),
        theory.drift(np.array([*weights, 1.0])),
    )
    for number, (weight, logits) in enumerate(zip(weights, students, strict=True), start=1):
        target = losses.interpolate(previous, teacher, weight)
        values = measures(logits, teacher, start, labels)
        values["residual"] = (centred(target - logits).norm() / signal).item()
        values["drift_bound"] = float(deltas[number]) * found.get("round 1", values)["drift"]
        found[f"round {number}"], previous = values, logits
    found["all rounds"] = {
        "signal_strength": 1 / found["round 1"]["drift"],
        "non_collapse_bound": theory.non_collapse_bound(np.array(weights)),
    }
    return {(metric, task): value for task, values in found.items() for metric, value in values.items()}


def centred(logits: Tensor) -> Tensor:
    """Logits [n, V] less their mean over the vocabulary: the same distributions, one representative each."""
    return logits - logits.mean(-1, keepdim=True)


def measure(job: Chain) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of a chain on the validation split."""
    started = time.perf_counter()
    here, run = instruction_tuning.at(job.scale), job.kl
    source, batches = here.source, here.batches("validation")

    def fresh() -> PreTrainedModel:
        return source.student(run.student, run.seed)

    def train(student: PreTrainedModel, target: Logits) -> None:
        here.fit(student, run, run.objective(), target)

    def logits(model: Logits) -> Tensor:
        return torch.cat([model(batch) for batch in batches])

    weights, teacher = VARIANTS[job.variant], here.teacher_logits(run.teacher, "train")
    students = [logits(LiveTeacher(student)) for student in chain(fresh, teacher, weights, train)]
    labels = torch.cat([response_logits(fresh(), batch)[1] for batch in batches])
    teachers = logits(here.teacher_logits(run.teacher, "validation"))
    values = trajectory(students, teachers, logits(LiveTeacher(fresh())), labels, weights)
    return values, time.perf_counter() - started


rows = partial(study.rows, units=UNITS)
