"""What the official code's departures do to Table 1: its baselines as that code has them, beside the methods they name.

Around Table 1's first pair, with its data, students and chosen learning rates. Departures that need another batch (the end of a
response masked, prompts learned, greedy samples) are told in docs/official_code.md and not run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from taid import objectives, results
from taid.studies import instruction_tuning, study
from taid.studies.ablations import TEACHER
from taid.studies.instruction_tuning import InstructionTuning
from taid.studies.study import Logits
from taid.trainer import DistillationTrainer

OFFICIAL = "_official"  # ends the name of a method as the official code has it
DEPARTING = ("kl", "adaptive_kl", "ctkd", "dkd")
METHODS = ("taid", *DEPARTING, *(method + OFFICIAL for method in DEPARTING))


class PerPosition(objectives.DKD):
    """DKD as the official code reduces it: the sum over the labels, divided by all positions of the batch, prompts and
    padding included (`taid.losses.masked_mean(official=True)`). An objective sees labelled positions alone, so the
    batch is heard of from the teacher, who is asked first: see `watched`."""

    positions: int | None = None

    def __call__(self, student_logits, teacher_logits, labels):
        assert self.positions, "the teacher is not watched: train with objective.watched(teacher)"
        return super().__call__(student_logits, teacher_logits, labels) * (len(labels) / self.positions)

    def watched(self, teacher: Logits) -> Logits:
        """The same teacher, of whose batches the positions are counted."""

        def logits(batch: dict):
            self.positions = batch["labels"].numel()
            return teacher(batch)

        return logits


@dataclass(frozen=True)
class Run(instruction_tuning.Run):
    """One student; `method` is one of METHODS."""

    known: ClassVar[Sequence[str]] = METHODS

    @property
    def options(self) -> dict[str, Any]:
        return {"official": True} if self.method.endswith(OFFICIAL) else super().options

    def objective(self) -> objectives.Objective:
        method = self.method.removesuffix(OFFICIAL)
        official = method != self.method
        return PerPosition() if official and method == "dkd" else objectives.objective(method, **self.options)


class Departures(InstructionTuning):
    """Table 1's study; of its measures the averages."""

    def fit(self, student, run, objective, teacher, examples=None) -> DistillationTrainer:
        if isinstance(objective, PerPosition):
            teacher = objective.watched(teacher)
        return super().fit(student, run, objective, teacher, examples)

    def values(self, model, run, split) -> dict[tuple[str, str], float]:
        found = super().values(model, run, split)
        return {(metric, task): value for (metric, task), value in found.items() if task == "average"}


def learning_rates(rows: Iterable[results.Row], scale: str) -> dict[str, float]:
    """Method → the rate that Table 1 chose for it on this pair, which its official variant takes too."""
    return study.chosen_rates(rows, scale, TEACHER, ("taid", *DEPARTING))


def runs(scale: str, seed: int, rates: dict[str, float]) -> list[Run]:
    return [Run(scale, name, TEACHER, seed, rates[name.removesuffix(OFFICIAL)]) for name in METHODS]


measure = partial(study.measure, Departures)
rows = partial(study.rows, units=instruction_tuning.UNITS)
