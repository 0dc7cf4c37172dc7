"""Does TAID beat KL? The paper's number of updates with the paper's α, and what tells the explanations apart.

Data, models and measures are those of `taid.studies.every_answer`. What differs is how long a student learns: batches
are so small that the paper's 16,239 updates take ten epochs (the paper's five), and TAID's schedule meets as many
updates as there.

Beside KL and TAID learn TAID's linear ramp alone, and the forward KL scaled so that its gradient has the size that
TAID's would have at the same student: what TAID owes to small steps at first, it owes as well.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from taid import objectives, schedule
from taid.logits import evaluation_mode
from taid.studies import adaptivity, every_answer, jobs, study, zoo
from taid.studies.every_answer import EveryAnswer
from taid.studies.jobs import TUNING_SEEDS
from taid.studies.moving_bridge import Watched
from taid.studies.study import PAPER_ALPHA, PAPER_UPDATES, REFERENCES
from taid.studies.training import Training
from taid.studies.variants import Blend, matched

METHODS = ("kl", "taid", "taid_no_adaptive", "kl_matched")
ARMS = {  # by the teacher; ratios of parameters in the paper's zoo: 6.1, and 32 for the capacity gap
    "llama-2": zoo.PAIRS["llama-2"],
    "llama-2-13b": zoo.Pair("llama-2-13b", "pythia", 0.2, "skew_rkl"),
}
SHARES = (0.125, 0.25, 0.5)  # of the updates done, at which a student is measured on its way
SEARCH = "_search"


Cell = tuple[int, str]  # updates and method


@dataclass(frozen=True)
class Plan:
    """How much is run at one scale."""

    seeds: Mapping[int, int]  # updates → test seeds, in the order of running
    batch_size: int
    learning_rates: tuple[float, ...]


PLANS = {
    "smoke": Plan({8: 2, 4: 2}, 4, (1e-3, 3e-3)),
    "cpu": Plan({PAPER_UPDATES: 8, 2_000: 12, 300: 12}, 8, (3e-4, 1e-3, 3e-3, 1e-2)),
}


@dataclass(frozen=True)
class Run(every_answer.Run):
    """One student of an arm, which its teacher names, trained for some updates."""

    known: ClassVar[Sequence[str]] = (*METHODS, *REFERENCES)
    pairs: ClassVar[Mapping[str, zoo.Pair]] = ARMS
    updates: int

    def __str__(self) -> str:
        return f"{super().__str__()} {self.updates:,} updates"

    @property
    def experiment(self) -> str:
        return f"decide_{self.updates}" if self.updates else "decide"

    @property
    def training(self) -> Training:
        """A tenth of the updates is warm-up, for every method."""
        return Training(
            self.updates, PLANS[self.scale].batch_size, self.learning_rate, warmup_steps=self.updates // 10
        )

    @property
    def alpha(self) -> float:
        """The paper's α · N; at the paper's N its very α, 5e-4."""
        return schedule.scale_alpha(PAPER_ALPHA, self.updates, PAPER_UPDATES)

    @property
    def options(self) -> dict[str, Any]:
        match self.method:
            case "taid" | "kl_matched":
                return {"t_start": self.pair.t_start, "alpha": self.alpha}
            case "taid_no_adaptive":
                return {"t_start": self.pair.t_start}
        return {}

    def objective(self) -> objectives.Objective:
        """`kl_matched` takes t from the closed form, which TAID's own keeps to within 0.001 (docs/adaptivity.md)."""
        if self.method != "kl_matched":
            return super().objective()
        curve = adaptivity.predicted(self.alpha, self.updates, self.pair.t_start)
        return Blend(partial(matched, direction="kl"), schedule.Replayed(tuple(curve.tolist())))

    def config(self) -> dict[str, Any]:
        return super().config() | {"training": asdict(self.training), "shares": list(SHARES)}


def tuned(
    scale: str,
    teacher: str,
    methods: Sequence[str],
    path: Path,
    workers: jobs.Workers | int,
    afresh: bool = False,
) -> dict[Cell, float]:
    """(Updates, method) → learning rate, by the mean score on the validation prompts, see `jobs.halving`. What is
    committed is not run again, unless `afresh`."""
    plan = PLANS[scale]

    def run(cell: Cell, rate: float, seed: int) -> Run:
        updates, method = cell
        return Run(scale, method, teacher, seed, rate, updates)

    def search(run: Run) -> str:
        return run.experiment + SEARCH

    def fill(runs: Sequence[Run]) -> None:
        every_answer.prepare(scale, ARMS[teacher], TUNING_SEEDS, workers)
        cells = {(run, "validation"): [search(run)] for run in runs}
        jobs.evaluate(cells, measure, rows, path, workers, f"{teacher}, rates")

    rates = dict.fromkeys(product(plan.seeds, methods), plan.learning_rates)
    scores = jobs.searched(path, search, {"score": 1}, fill, afresh=afresh)
    return jobs.halving(rates, run, TUNING_SEEDS, scores)


def measure(run: Run, split: str) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of one run on a split; in "test" also on its way, where the task is the
    share of updates done."""
    here = every_answer.at(run.scale)
    if run.method in REFERENCES:
        return study.measure(EveryAnswer, run, split)
    started, student = time.perf_counter(), here.source.student(run.student, run.seed)
    values: dict[tuple[str, str], float] = {}

    def look(share: float, t: float) -> None:
        with evaluation_mode(student):
            found = here.values(student, run, split)
        values.update({(metric, f"{share:g}"): v for (metric, task), v in found.items() if task == "average"})

    watched = Watched(run.objective(), look, SHARES if split == "test" else ())
    here.fit(student, run, watched, here.target(run))
    return values | here.values(student, run, split), time.perf_counter() - started


rows = partial(study.rows, units=every_answer.UNITS)
