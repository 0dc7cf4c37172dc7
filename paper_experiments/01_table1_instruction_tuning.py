"""Table 1: instruction tuning, eleven methods on three pairs of teacher and student.

Claim of the paper: TAID gives the best student of every pair; its adaptive update helps.

    python paper_experiments/01_table1_instruction_tuning.py --scale smoke            # 1 minute: does it run?
    python paper_experiments/01_table1_instruction_tuning.py --scale cpu --seeds 1    # two cores, from nothing: see README
    python paper_experiments/01_table1_instruction_tuning.py --scale paper            # GPUs: docs/paper_scale.md
    python -m analysis table1

Two protocols. `table1`: the learning rate of every method and pair is chosen from one grid by its headline score on
the validation prompts (seed 0). `table1_one_rate`: one rate for all, as in the paper; the grid's best on average over
methods and pairs. All methods of a pair and seed start from one pre-trained student and see one stream of batches;
every teacher's logits are computed once for all of them. The test prompts are asked only at the end.
"""

from pathlib import Path
from statistics import mean

from taid.objectives import TABLE1
from taid.studies import jobs, study, zoo
from taid.studies.instruction_tuning import SETTINGS, InstructionTuning, Run, measure, rows
from taid.studies.study import REFERENCES


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    path, learning_rates = folder / "table1.jsonl", SETTINGS[scale].learning_rates
    pairs = SETTINGS[scale].pairs or zoo.PAIRS
    students = sorted({pair.student for pair in pairs.values()})
    models = [("judge", "judge", 0), *[("teacher", teacher, 0) for teacher in pairs]]
    models += [("student", student, seed) for seed in range(seeds) for student in students]
    logits = [(teacher, split) for split in ("train", "validation", "test") for teacher in pairs]
    study.prepare_all(InstructionTuning, scale, workers, models, logits)

    grid = [
        Run(scale, method, teacher, 0, rate)
        for teacher in pairs
        for method in TABLE1
        for rate in learning_rates
    ]
    cells = {(run, "validation"): ["table1_search"] for run in grid}
    jobs.evaluate(cells, measure, rows, path, workers, "learning rates")
    found = jobs.measured(path, grid, "table1_search", "score", "average")
    best = jobs.best(found, lambda run: (run.method, run.teacher), max)
    one_rate = max(learning_rates, key=lambda rate: mean(found[r] for r in grid if r.learning_rate == rate))

    for seed in range(seeds):
        cells = {}
        for method, teacher in best:
            for experiment, rate in (("table1", best[method, teacher]), ("table1_one_rate", one_rate)):
                cells.setdefault((Run(scale, method, teacher, seed, rate), "test"), []).append(experiment)
        references = [Run(scale, name, teacher, seed, 0.0) for teacher in pairs for name in REFERENCES]
        cells |= {(run, "test"): ["table1"] for run in references}
        jobs.evaluate(cells, measure, rows, path, workers, f"seed {seed}")


if __name__ == "__main__":
    jobs.command(main, "Table 1: instruction tuning.", SETTINGS, seeds=1)
