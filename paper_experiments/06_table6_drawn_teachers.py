"""Table 6 and Figure 2 right, protocol 2: the capacity gap, every seed with teachers of its own.

Claim of the paper: with TAID the student gets better as its teacher grows, with the skew KL it gets worse.

    python paper_experiments/06_table6_drawn_teachers.py --scale smoke           # 2 minutes: does it run?
    python paper_experiments/06_table6_drawn_teachers.py --scale cpu --seeds 5   # see `make help`; resumes
    python -m analysis table6_tuned

What is other than in the first protocol, and why: `taid.studies.drawn_teachers`. Written before the run (2026-11-25): the
claims, the primary measure (the log-likelihood of last words) and the rule are those of protocol 1, with five seeds, each
an independent draw of student and teachers. Rates that are committed (results/table6_tuned.jsonl) are taken from there;
`--tune` searches all of them again.
"""

from pathlib import Path

from taid.studies import capacity, drawn_teachers, jobs
from taid.studies.capacity import NONE, TEACHERS
from taid.studies.drawn_teachers import CELLS, MAP, MAP_METHODS, MAP_SEEDS, SETTINGS, TEST, Run, measure, rows


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path, tune: bool) -> None:
    path = folder / f"{TEST}.jsonl"
    rates = drawn_teachers.tuned(scale, path, workers, tune)
    cells = [(*cell, rates[cell]) for cell in CELLS]
    cells += [("untrained", NONE, 0.0), *(("teacher", teacher, 0.0) for teacher in TEACHERS)]
    table = [
        Run(scale, method, teacher, seed, rate) for seed in range(seeds) for method, teacher, rate in cells
    ]
    around = capacity.around(table, MAP_METHODS, MAP_SEEDS)
    for experiment, runs in ((TEST, table), (MAP, around)):
        drawn_teachers.prepare(scale, runs, workers)
        asked = {(run, "test"): [experiment] for run in runs}
        jobs.evaluate(asked, measure, rows, path, workers, experiment)


if __name__ == "__main__":
    jobs.command(main, "Table 6, protocol 2.", SETTINGS, seeds=5, tunes=True)
