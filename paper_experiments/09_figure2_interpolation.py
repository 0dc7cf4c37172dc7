"""Figure 2, left and middle: t over training, and the objective's value and variance.

Claims of the paper: a larger α lets t grow faster early; TAID's objective has a lower variance than KL's.

    python paper_experiments/09_figure2_interpolation.py --scale smoke           # a minute, after Table 1's, protocol 1
    python paper_experiments/09_figure2_interpolation.py --scale cpu --seeds 4   # see `make help`
    python -m analysis figure2

The runs are those of the ablations, trained once for both. Figure 2 right is Table 6.
"""

from pathlib import Path

from taid.studies import ablations, jobs
from taid.studies.instruction_tuning import MADE


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    rates = ablations.learning_rates(jobs.rows(folder, "table1"), scale)
    ablations.prepare(scale, seeds, workers)
    runs = [run for seed in range(seeds) for run in ablations.runs(scale, seed, rates, ablations.FIGURE2)]
    cells = {(run,): ["figure2"] for run in runs}
    jobs.evaluate(cells, ablations.curves, ablations.rows, folder / "figure2.jsonl", workers, "figure2")


if __name__ == "__main__":
    jobs.command(main, "Figure 2, left and middle.", MADE, seeds=4)
