"""Table 6 and Figure 2 right, protocol 1: the capacity gap. One student, four teachers of growing size, on natural text.

Claim of the paper: with TAID the student gets better as its teacher grows, with the skew KL it gets worse.

    python paper_experiments/06_table6_capacity_gap.py --scale smoke           # under a minute: does it run?
    python paper_experiments/06_table6_capacity_gap.py --scale cpu --seeds 5   # see `make help`
    python paper_experiments/06_table6_capacity_gap.py --scale paper --seeds 1 # GPUs: docs/paper_scale.md
    python -m analysis table6

All methods of a seed start from one pre-trained student and see one stream of batches; a teacher's logits are
computed once. `table6_search`: the learning rate of every method and teacher is chosen from one grid by the
held-out loss on validation (seed 0). `table6`: one run per method, teacher and seed; SFT, which has no
teacher, one per seed. `table6_map`: the smallest and the largest teacher with the student, the steps or the
teacher's temperature changed, at the same rates: where does the gap start? Finished cells are skipped.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from taid.studies import capacity, jobs, study
from taid.studies.capacity import METHODS, NONE, SETTINGS, STUDENT, TEACHERS, Capacity, Run

MAP_METHODS, MAP_SEEDS = ("taid", "skew_kl"), 3


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    evaluate = partial(evaluate_runs, folder / "table6.jsonl", workers)
    models = [("teacher", teacher, 0) for teacher in reversed(TEACHERS)]  # the slowest first
    models += [("student", STUDENT, seed) for seed in range(seeds)]
    logits = [(teacher, split) for teacher in TEACHERS for split in ("distil", "validation", "test")]
    study.prepare_all(Capacity, scale, workers, models, logits)

    teachers = [Run(scale, "teacher", teacher, 0, 0.0) for teacher in TEACHERS]
    untrained = [Run(scale, "untrained", NONE, seed, 0.0) for seed in range(seeds)]
    evaluate([*teachers, *untrained], "table6", "test", "references")

    cells = [*((method, teacher) for teacher in TEACHERS for method in METHODS), ("sft", NONE)]
    grid = [Run(scale, *cell, 0, rate) for cell in cells for rate in SETTINGS[scale].learning_rates]
    evaluate(grid, "table6_search", "validation", "learning rates")
    found = jobs.measured(folder / "table6.jsonl", grid, "table6_search", "held_out_loss", "base")
    best = jobs.best(found, lambda run: (run.method, run.teacher), min)
    students = [Run(scale, *cell, seed, best[cell]) for seed in range(seeds) for cell in cells]
    evaluate(students, "table6", "test", "table 6")

    around = capacity.around([*untrained, *teachers, *students], MAP_METHODS, MAP_SEEDS)
    others = sorted({(run.student, run.seed) for run in around if run.student != STUDENT})
    study.prepare_all(Capacity, scale, workers, [("student", *other) for other in others], logits=[])
    evaluate(around, "table6_map", "test", "map")


def evaluate_runs(
    path: Path, workers: jobs.Workers, runs: Iterable[Run], experiment: str, split: str, title: str
):
    cells = {(run, split): [experiment] for run in runs}
    jobs.evaluate(cells, capacity.measure, capacity.rows, path, workers, title)


if __name__ == "__main__":
    jobs.command(main, "Table 6: the capacity gap.", SETTINGS, seeds=5)
