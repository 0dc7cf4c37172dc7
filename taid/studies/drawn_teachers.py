"""Table 6 again, with teachers of each seed's own: protocol 2.

In protocol 1 (`taid.studies.capacity`) one teacher stood for its size, rates ended where several methods would have gone
on, and were chosen on a seed that was tested. Here every seed draws its teachers anew, all four of them (initialisation
and order of data), so that seeds are independent and an interval over them holds what other teachers would change; the
grid goes on to 0.1, with a tenth of the steps as warm-up for all methods; rates are chosen with students and teachers
that are never tested; KL and RKL are on the map too. Data, architecture and measures are those of protocol 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from taid.studies import capacity, jobs, study
from taid.studies.capacity import METHODS, NONE, TEACHERS, UNITS, Capacity, ScaleModels
from taid.studies.jobs import TUNING_SEEDS

TEST, SEARCH, MAP = "table6_tuned", "table6_tuned_search", "table6_tuned_map"
MAP_METHODS, MAP_SEEDS = ("taid", "skew_kl", "kl", "rkl"), 3
APART = 1000  # from a student's random numbers to its teachers'
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
        _setting(capacity.SMOKE, tuning_seeds=TUNING_SEEDS[:1]),
        _setting(capacity.CPU, learning_rates=(3e-3, 1e-2, 3e-2, 1e-1), tuning_seeds=TUNING_SEEDS),
    )
}


@dataclass(frozen=True)
class Run(capacity.Run):
    """One student, with teachers of its seed."""

    settings: ClassVar[Mapping[str, Any]] = SETTINGS


def drawn(teacher: str, seed: int) -> str:
    """The name of a size of teacher as a seed draws it: "pythia-1b-1002"."""
    return f"{teacher}-{APART + min(seed, TUNING_SEEDS[0])}"


class DrawnModels(ScaleModels):
    """As of protocol 1; a teacher goes by the name of its draw."""

    def teacher(self, name: str) -> PreTrainedModel:
        size, _, seed = name.rpartition("-")
        return self._model(size, int(seed), self.setting.teacher_training(size))


class DrawnTeachers(Capacity):
    """Table 6 and the map around it."""

    name = "drawn_teachers"
    settings: ClassVar[Mapping[str, Any]] = SETTINGS

    def teacher_of(self, run: capacity.Run) -> str:
        return drawn(run.teacher, run.seed)


def prepare(scale: str, runs: Iterable[capacity.Run], workers: jobs.Workers | int) -> None:
    """Train and keep the students and teachers of runs, and what these say."""
    runs = [*runs]
    seeds = sorted({run.seed for run in runs})
    teachers = dict.fromkeys(drawn(teacher, seed) for teacher in reversed(TEACHERS) for seed in seeds)
    models = [("teacher", name, 0) for name in teachers]  # the slowest first
    models += sorted({("student", run.student, run.seed) for run in runs if run.method != "teacher"})
    logits = [(name, split) for name in teachers for split in ("distil", "validation", "test")]
    study.prepare_all(DrawnTeachers, scale, workers, models, logits)


def tuned(
    scale: str, path: Path, workers: jobs.Workers | int, afresh: bool = False
) -> dict[tuple[str, str], float]:
    """(Method, teacher) → learning rate, by the held-out loss on the validation windows, see `jobs.halving`. What is
    committed is not run again, unless `afresh`."""
    setting = SETTINGS[scale]

    def run(cell: tuple[str, str], rate: float, seed: int) -> Run:
        return Run(scale, *cell, seed, rate)

    def fill(runs: Sequence[Run]) -> None:
        prepare(scale, runs, workers)
        cells = {(run, "validation"): [SEARCH] for run in runs}
        jobs.evaluate(cells, measure, rows, path, workers, "learning rates")

    scores = jobs.searched(path, SEARCH, {"held_out_loss": -1}, fill, "base", afresh)
    return jobs.halving(dict.fromkeys(CELLS, setting.learning_rates), run, setting.tuning_seeds, scores)


measure = partial(study.measure, DrawnTeachers)
rows = partial(study.rows, units=UNITS)
