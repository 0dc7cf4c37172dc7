"""Table 1, protocol 2: instruction tuning by teachers that know every accepted answer.

Claims of the paper: TAID gives the best student of every pair; its adaptive update helps; it is above KL.

    python paper_experiments/01_table1_every_answer.py --scale smoke            # 1 minute: does it run?
    python paper_experiments/01_table1_every_answer.py --scale cpu --seeds 1    # two cores, from nothing: see README
    python -m analysis table1_tuned

What is measured, and why again: `taid.studies.every_answer`. How the three primary measures make one decision, with
its margins: `analysis.decision`, written before the runs. The rate of every method and pair is chosen by the validation
score of tuning seeds that are never tested: all rates of the grid by the first, the better half by the mean over all.
Those searched already are committed (results/table1_tuned.jsonl); `--tune` searches all of them again. The CORE methods
and the references take all seeds, the others at most `OTHERS`.
"""

import json
from pathlib import Path

from taid.files import write_whole
from taid.studies import every_answer, jobs, zoo
from taid.studies.every_answer import CORE, METHODS, SETTINGS, TEST, Run
from taid.studies.study import REFERENCES

OTHERS = 4  # seeds


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path, tune: bool) -> None:
    path = folder / f"{TEST}.jsonl"
    for teacher, pair in zoo.PAIRS.items():
        rates = every_answer.tuned(scale, pair, METHODS, path, workers, tune)
        every_answer.prepare(scale, pair, range(seeds), workers)
        runs = [
            Run(scale, method, teacher, seed, rates.get(method, 0.0))
            for seed in range(seeds)
            for method in (*REFERENCES, *METHODS)
            if seed < OTHERS or method in CORE
        ]
        cells = {(run, "test"): [TEST] for run in runs}
        jobs.evaluate(cells, every_answer.measure, every_answer.rows, path, workers, f"test, {teacher}")
        samples = folder / f"{TEST}_samples" / f"{teacher}.json"
        if jobs.planning() or jobs.share(workers) != (1, 1):
            continue
        # of these students, not of earlier ones at other rates
        if not samples.exists() or samples.stat().st_mtime < path.stat().st_mtime:
            first = [(run,) for run in runs if run.seed == 0]
            texts = dict(jobs.run(every_answer.samples, first, workers, "samples"))  # as they finish
            by_method = {run.method: texts[run,] for (run,) in first}
            write_whole(samples, json.dumps(by_method, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    jobs.command(main, "Table 1, protocol 2.", SETTINGS, seeds=1, tunes=True)
