"""Table 3: where the students of Table 1's first pair put their probability.

Claim of the paper: in the tail of the vocabulary KL ≈ TAID ≫ RKL; in the head RKL has the most.

    python paper_experiments/03_table3_probability_mass.py --scale smoke           # 1 minute, after Table 1's
    python paper_experiments/03_table3_probability_mass.py --scale cpu --seeds 5   # see `make help`
    python -m analysis table3

The students are Table 1's, at the learning rates that it chose; those that are missing are trained now. KL,
RKL and TAID are measured at every seed, the other methods at Table 1's seeds, and the teacher once.
"""

from pathlib import Path

from taid import results
from taid.objectives import TABLE1
from taid.studies import instruction_tuning, jobs, zoo
from taid.studies import probability_mass as mass

TEACHER = "phi-3-mini"


def main(scale: str, seeds: int, workers: int, folder: Path) -> None:
    trained = mass.learning_rates(results.read(folder / "table1.jsonl"), scale, TEACHER)
    rates = {method: rate for (method, _), rate in trained.items()}
    instruction_tuning.bench(scale)  # the data, before any worker wants them

    models = [("teacher", TEACHER, 0), *[("student", zoo.PAIRS[TEACHER], seed) for seed in range(seeds)]]
    logits = [("logits", TEACHER, split) for split in ("train", "test")]
    for title, todo in (("models", models), ("teacher logits", logits)):
        list(jobs.run(instruction_tuning.prepare, [(scale, *job) for job in todo], workers, title))

    runs = [instruction_tuning.Run(scale, "teacher", TEACHER, 0, 0.0)] + [
        instruction_tuning.Run(scale, method, TEACHER, seed, rates[method])
        for seed in range(seeds)
        for method in TABLE1
        if method in mass.CLAIMED or (method, seed) in trained
    ]
    cells = {(run,): ["table3"] for run in runs}
    jobs.evaluate(cells, mass.measure, mass.rows, folder / "table3.jsonl", workers, "probability mass")


if __name__ == "__main__":
    main(*jobs.arguments("Table 3: probability mass in head and tail.", instruction_tuning.SETTINGS, seeds=5))
