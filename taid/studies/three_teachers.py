"""Table 6 again, with three teachers of each size: protocol 2.

In protocol 1 (`taid.studies.capacity`) one teacher stood for its size, rates ended where several methods would have gone
on, and were chosen on a seed that was tested. Here every seed has one of `DRAWS` draws of all teachers (initialisation
and order of data), so that an interval over seeds holds what other teachers would change; the grid goes on to 0.1, with
a tenth of the steps as warm-up for all methods; rates are chosen on seeds that are never tested; KL and RKL are on the
map too. Data, models and measures are those of protocol 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from taid.studies import capacity, jobs, study
from taid.studies.capacity import METHODS, NONE, STUDENT, TEACHERS, UNITS, Capacity, ScaleModels

DRAWS = 3  # of each teacher
TEST, SEARCH, MAP = "table6_tuned", "table6_tuned_search", "table6_tuned_map"
MAP_METHODS, MAP_SEEDS = ("taid", "skew_kl", "kl", "rkl"), DRAWS
CELLS = (*((method, teacher) for teacher in TEACHERS for method in METHODS), ("sft", NONE))


@dataclass(frozen=True)
class Setting(capacity.Setting):
    """Everything that decides the study at one scale."""

    tuning_seeds: tuple[int, ...]  # never tested

    def source(self, folder: Path) -> "DrawnModels":
        return DrawnModels(self, folder)


def _setting(of_protocol_1: capacity.Setting, **changes: Any) -> Setting:
    warm = replace(of_protocol_1.distil, warmup_steps=of_protocol_1.distil.steps // 10)
    return Setting(**vars(of_protocol_1) | {"distil": warm} | changes)


SETTINGS: Mapping[str, Setting] = {
    setting.scale: setting
    for setting in (
        _setting(capacity.SMOKE, tuning_seeds=(100,)),
        _setting(capacity.CPU, learning_rates=(3e-3, 1e-2, 3e-2, 1e-1), tuning_seeds=(100, 101, 102)),
    )
}


@dataclass(frozen=True)
class Run(capacity.Run):
    """One student; of a teacher, one of its draws."""

    settings: ClassVar[Mapping[str, Any]] = SETTINGS

    @property
    def draw(self) -> int:
        """Which draw of its teacher the run has; the rows' pages tell trends for each."""
        return self.seed % DRAWS

    def config(self) -> dict[str, Any]:
        return super().config() | {"draw": self.draw}


def drawn(teacher: str, draw: int) -> str:
    """The name of a draw: "pythia-1b-2"."""
    return f"{teacher}-{draw}"


class DrawnModels(ScaleModels):
    """As of protocol 1; a teacher goes by the name of its draw."""

    def teacher(self, name: str) -> PreTrainedModel:
        size, _, draw = name.rpartition("-")
        return self._model(size, int(draw), self.setting.teacher_training(size))


class ThreeTeachers(Capacity):
    """Table 6 and the map around it."""

    name = "three_teachers"
    settings: ClassVar[Mapping[str, Any]] = SETTINGS

    def teacher_of(self, run: capacity.Run) -> str:
        return drawn(run.teacher, run.seed % DRAWS)


def prepare(scale: str, seeds: Sequence[int], workers: jobs.Workers | int, students: Sequence[str]) -> None:
    """Train and keep the students of some seeds and every draw of the teachers, and what these say."""
    draws = [
        drawn(teacher, draw) for teacher in reversed(TEACHERS) for draw in range(DRAWS)
    ]  # the slowest first
    models = [("teacher", name, 0) for name in draws]
    models += [("student", student, seed) for student in students for seed in seeds]
    logits = [(name, split) for name in draws for split in ("distil", "validation", "test")]
    study.prepare_all(ThreeTeachers, scale, workers, models, logits)


def tuned(scale: str, path: Path, workers: jobs.Workers | int) -> dict[tuple[str, str], float]:
    """(Method, teacher) → learning rate, by the held-out loss on the validation windows, see `jobs.halving`. What is
    committed is not run again."""
    setting = SETTINGS[scale]

    def run(cell: tuple[str, str], rate: float, seed: int) -> Run:
        return Run(scale, *cell, seed, rate)

    def fill(runs: Sequence[Run]) -> None:
        prepare(scale, setting.tuning_seeds, workers, [STUDENT])
        cells = {(run, "validation"): [SEARCH] for run in runs}
        jobs.evaluate(cells, measure, rows, path, workers, "learning rates")

    scores = jobs.searched(path, SEARCH, {"held_out_loss": -1}, fill, task="base")
    return jobs.halving(dict.fromkeys(CELLS, setting.learning_rates), run, setting.tuning_seeds, scores)


measure = partial(study.measure, ThreeTeachers)
rows = partial(study.rows, units=UNITS)
