"""Table 6 and Figure 2 right, protocol 2: the capacity gap, with three teachers of each size.

Claim of the paper: with TAID the student gets better as its teacher grows, with the skew KL it gets worse.

    python paper_experiments/06_table6_three_teachers.py --scale smoke           # a minute: does it run?
    python paper_experiments/06_table6_three_teachers.py --scale cpu --seeds 6   # see `make help`; resumes
    python -m analysis table6_tuned

What is other than in the first protocol, and why: `taid.studies.three_teachers`. Seeds 0, 1, 2, … have the draws
0, 1, 2, 0, … of the teachers, so that three seeds, or six, have each alike often. The claims, the primary measure (the
log-likelihood of last words) and the rule are those of protocol 1; beside the interval over seeds the page tells the
trend with each draw, written down before the run (2026-11-25).
"""

from pathlib import Path

from taid.studies import capacity, jobs, three_teachers
from taid.studies.capacity import NONE, TEACHERS
from taid.studies.three_teachers import (
    CELLS,
    DRAWS,
    MAP,
    MAP_METHODS,
    MAP_SEEDS,
    SETTINGS,
    TEST,
    Run,
    measure,
    rows,
)


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    path = folder / f"{TEST}.jsonl"
    rates = three_teachers.tuned(scale, path, workers)
    teachers = [
        Run(scale, "teacher", teacher, draw, 0.0) for teacher in TEACHERS for draw in range(min(seeds, DRAWS))
    ]
    untrained = [Run(scale, "untrained", NONE, seed, 0.0) for seed in range(seeds)]
    students = [Run(scale, *cell, seed, rates[cell]) for seed in range(seeds) for cell in CELLS]
    table = [*teachers, *untrained, *students]
    around = capacity.around(table, MAP_METHODS, MAP_SEEDS)
    for experiment, runs in ((TEST, table), (MAP, around)):
        which = sorted({run.student for run in runs})
        three_teachers.prepare(
            scale, range(seeds if experiment == TEST else min(seeds, MAP_SEEDS)), workers, which
        )
        cells = {(run, "test"): [experiment] for run in runs}
        jobs.evaluate(cells, measure, rows, path, workers, experiment)


if __name__ == "__main__":
    jobs.command(main, "Table 6, protocol 2.", SETTINGS, seeds=6)
