"""Table 2, protocol 2: continued pre-training with a real teacher, eight methods, and TAID on two longer bridges.

Claim of the paper: TAID has the best average of the six tasks; KL is strong.

    python paper_experiments/02_table2_tuned_pretraining.py --scale smoke           # 1 minute
    python paper_experiments/02_table2_tuned_pretraining.py --scale cpu --seeds 5   # hours, see `make help`; resumes
    python -m analysis table2

What is other than in the first protocol, and why: `taid.studies.tuned_pretraining`. KL and TAID run first, with all
that decides between them. All methods of a seed start from one healed student and see one stream of batches; the test
windows and the tasks are seen at the end alone.
"""

from pathlib import Path

from taid.studies import jobs, tuned_pretraining
from taid.studies.tuned_pretraining import DECIDING, METHODS, SETTINGS, TEST, Run, measure, rows


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path, tune: bool) -> None:
    path, steps = folder / "table2.jsonl", SETTINGS[scale].distil.steps
    for methods in (DECIDING, METHODS[len(DECIDING) :]):
        rates = tuned_pretraining.tuned(scale, methods, path, workers, tune)
        tuned_pretraining.prepare(scale, range(seeds), workers)
        runs = [Run(scale, method, seed, rates[method], steps) for seed in range(seeds) for method in methods]
        if methods == DECIDING:  # of references, too; there is one teacher, and it takes longest
            runs = [Run(scale, "teacher", 0, 0.0, 0), *runs]
            runs += [Run(scale, "untrained", seed, 0.0, 0) for seed in range(seeds)]
        cells = {(run, "test"): [TEST] for run in runs}
        jobs.evaluate(cells, measure, rows, path, workers, "test")


if __name__ == "__main__":
    jobs.command(main, "Table 2, protocol 2.", SETTINGS, seeds=1, tunes=True)
