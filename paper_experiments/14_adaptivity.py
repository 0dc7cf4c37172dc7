"""Audit: is TAID's adaptive update adaptive?

Claim of the paper: t follows the student's progress. Against it: with a momentum near 0 the schedule is a
function of the step number (docs/adaptivity.md). So four schedules meet, paired by seed: the linear ramp,
σ(m) = ½ held constant, the adaptive update, and t replayed as another seed's run recorded it. Beside them
what every trace says: how often the floor binds, the range of σ(m), and how far t is from its prediction.

    python paper_experiments/14_adaptivity.py --scale smoke           # half a minute, after Table 1's, protocol 1
    python paper_experiments/14_adaptivity.py --scale cpu --seeds 4   # see `make help`
    python -m analysis adaptivity

The runs are those of the ablations, trained once for both.
"""

from pathlib import Path

from taid.studies import ablations, jobs
from taid.studies.instruction_tuning import MADE


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    rates = ablations.learning_rates(jobs.rows(folder, "table1"), scale)
    ablations.prepare(scale, seeds, workers)
    runs = [run for seed in range(seeds) for run in ablations.runs(scale, seed, rates, ablations.ADAPTIVITY)]
    cells = {(run,): ["adaptivity"] for run in runs}
    path = folder / "adaptivity.jsonl"
    jobs.evaluate(cells, ablations.measure, ablations.rows, path, workers, "adaptivity")


if __name__ == "__main__":
    jobs.command(main, "Audit of the adaptive update.", MADE, seeds=4)
