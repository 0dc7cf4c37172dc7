"""Table 3: where the students of Table 1's first pair put their probability.

Claim of the paper: in the tail of the vocabulary KL ≈ TAID ≫ RKL; in the head RKL has the most.

    python paper_experiments/03_table3_probability_mass.py --scale smoke           # 1 minute, after Table 1's, protocol 1
    python paper_experiments/03_table3_probability_mass.py --scale cpu --seeds 5   # see `make help`
    python paper_experiments/03_table3_probability_mass.py --scale paper --seeds 1 # GPUs: docs/paper_scale.md
    python -m analysis table3

The students are Table 1's, at the learning rates that it chose; those that are missing are trained now. KL,
RKL and TAID are measured at every seed, the other methods at those of Table 1's rows in the folder, the teacher once.
"""

from pathlib import Path

from taid import results
from taid.objectives import TABLE1
from taid.studies import jobs, study, zoo
from taid.studies.instruction_tuning import SETTINGS, InstructionTuning, Run
from taid.studies.probability_mass import CLAIMED, measure, rows


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    table1 = results.read(folder / "table1.jsonl")
    pairs = SETTINGS[scale].pairs or zoo.PAIRS
    teacher = next(iter(pairs))  # the first pair's: Phi-3's, where there are the paper's
    rates = study.chosen_rates(jobs.rows(folder, "table1"), scale, teacher, needed=CLAIMED)
    models = [("teacher", teacher, 0)]
    models += [("student", pairs[teacher].student, seed) for seed in range(seeds)]
    logits = [(teacher, split) for split in ("train", "test")]
    study.prepare_all(InstructionTuning, scale, workers, models, logits)

    trained = {(r.method, r.seed) for r in table1 if (r.experiment, r.teacher) == ("table1", teacher)}
    runs = [Run(scale, "teacher", teacher, 0, 0.0)] + [
        Run(scale, method, teacher, seed, rates[method])
        for seed in range(seeds)
        for method in TABLE1
        if method in CLAIMED or (method, seed) in trained
    ]
    cells = {(run,): ["table3"] for run in runs}
    jobs.evaluate(cells, measure, rows, folder / "table3.jsonl", workers, "probability mass")


if __name__ == "__main__":
    jobs.command(main, "Table 3: probability mass in head and tail.", SETTINGS, seeds=5)
