"""Table 2 again: protocol 2.

In protocol 1 (`taid.studies.continued_pretraining`) rates were chosen in runs of a quarter of the length, TAID's t was
above 0.9 before half of its steps were done, and one task could be answered by liking some numbers better than others.
Here rates are chosen at full length, on seeds that are not tested, by the sum of both main measures; TAID also learns
on two bridges that last longer; and of the sums' choices nothing tells the right one but the sum.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from taid import objectives
from taid.studies import continued_pretraining, jobs, lm_tasks, study
from taid.studies.continued_pretraining import TABLE2, UNITS, ContinuedPretraining
from taid.studies.jobs import TUNING_SEEDS
from taid.studies.study import REFERENCES

TEST, SEARCH = "table2_tuned", "table2_tuned_search"
MAIN = ("kl_to_teacher", "held_out_loss")
BRIDGES = (
    "t_start_0.2",
    "alpha_0.25",
)  # that last longer: TAID from half its t_start, and at a quarter of its α
DECIDING = ("kl", "taid", *BRIDGES)  # run first
METHODS = (*DECIDING, *(method for method in TABLE2 if method not in DECIDING))


@dataclass(frozen=True)
class Setting(continued_pretraining.Setting):
    """Everything that decides the study at one scale."""

    tuning_seeds: tuple[int, ...]  # never tested
    tasks: ClassVar[tuple[str, ...]] = lm_tasks.SECOND


def _setting(of_protocol_1: continued_pretraining.Setting, **changes: Any) -> Setting:
    full = {"search_steps": of_protocol_1.distil.steps}
    return Setting(**vars(of_protocol_1) | full | changes)


SETTINGS: Mapping[str, Setting] = {
    setting.scale: setting
    for setting in (
        _setting(continued_pretraining.SMOKE, tuning_seeds=TUNING_SEEDS[:1]),
        _setting(
            continued_pretraining.CPU, learning_rates=(1e-4, 3e-4, 1e-3, 3e-3), tuning_seeds=TUNING_SEEDS
        ),
    )
}


@dataclass(frozen=True)
class Run(continued_pretraining.Run):
    """One student."""

    known: ClassVar[Sequence[str]] = (*METHODS, *REFERENCES)
    settings: ClassVar[Mapping[str, Any]] = SETTINGS

    @property
    def options(self) -> dict[str, Any]:
        """`BRIDGES` are TAID but for one number each."""
        if self.method not in BRIDGES:
            return super().options
        taid = replace(self, method="taid").options
        one = {"t_start": 0.2} if self.method == "t_start_0.2" else {"alpha": taid["alpha"] / 4}
        return taid | one

    def objective(self) -> objectives.Objective:
        if self.method not in BRIDGES:
            return super().objective()
        return objectives.objective("taid", **self.options)


class TunedPretraining(ContinuedPretraining):
    """Table 2's measures, with the tasks of protocol 2."""

    name = "tuned_pretraining"
    settings: ClassVar[Mapping[str, Any]] = SETTINGS


def prepare(scale: str, seeds: Iterable[int], workers: jobs.Workers | int) -> None:
    """Make and keep the tasks, the healed students, and what is kept of the teacher."""
    setting = SETTINGS[scale]
    models = [("tasks", "tasks", 0), *(("student", setting.student, seed) for seed in seeds)]
    logits = [(setting.teacher, split) for split in ("train", "test", "validation")]
    study.prepare_all(TunedPretraining, scale, workers, models, logits)


def tuned(
    scale: str, methods: Sequence[str], path: Path, workers: jobs.Workers | int, afresh: bool = False
) -> dict[str, float]:
    """Method → learning rate, by the sum of KL to the teacher and held-out loss [nats/token] on the validation windows,
    see `jobs.halving`. What is committed is not run again, unless `afresh`."""
    setting = SETTINGS[scale]

    def run(method: str, rate: float, seed: int) -> Run:
        return Run(scale, method, seed, rate, setting.distil.steps)

    def fill(runs: Sequence[Run]) -> None:
        prepare(scale, setting.tuning_seeds, workers)
        cells = {(run, "validation"): [SEARCH] for run in runs}
        jobs.evaluate(cells, measure, rows, path, workers, "learning rates")

    scores = jobs.searched(path, SEARCH, dict.fromkeys(MAIN, -1), fill, afresh=afresh)
    return jobs.halving(dict.fromkeys(methods, setting.learning_rates), run, setting.tuning_seeds, scores)


measure = partial(study.measure, TunedPretraining)
rows = partial(study.rows, units=UNITS)
