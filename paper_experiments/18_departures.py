"""What do the official code's departures do to Table 1? Its baselines as they are there, beside the methods they name.

    python paper_experiments/18_departures.py --scale smoke           # 1 minute, after Table 1's, protocol 1
    python paper_experiments/18_departures.py --scale cpu --seeds 4   # see `make help`
    python -m analysis departures

Table 1's first pair, at the learning rates that it chose; an official variant takes its method's. TAID stands
beside them, to see what becomes of its lead. Which departures are run, and which are only told: docs/official_code.md.
"""

from pathlib import Path

from taid.studies import departures, jobs
from taid.studies.instruction_tuning import MADE, prepare_pair


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    rates = departures.learning_rates(jobs.rows(folder, "table1"), scale)
    prepare_pair(scale, departures.TEACHER, range(seeds), workers)
    cells = {
        (run, "test"): ["departures"] for seed in range(seeds) for run in departures.runs(scale, seed, rates)
    }
    path = folder / "departures.jsonl"
    jobs.evaluate(cells, departures.measure, departures.rows, path, workers, "departures")


if __name__ == "__main__":
    jobs.command(main, "Departures of the official code.", MADE, seeds=4)
