"""Table 1: instruction tuning, eleven methods on three pairs of teacher and student.

Claim of the paper: TAID gives the best student of every pair; its adaptive update helps.

    python paper_experiments/01_table1_instruction_tuning.py --scale smoke            # 1 minute: does it run?
    python paper_experiments/01_table1_instruction_tuning.py --scale cpu --seeds 1    # two cores, from nothing: see README
    python -m analysis table1

Two protocols. `table1`: the learning rate of every method and pair is chosen from one grid by its headline score on
the validation prompts (seed 0). `table1_one_rate`: one rate for all, as in the paper; the grid's best on average over
methods and pairs. All methods of a pair and seed start from one pre-trained student and see one stream of batches;
every teacher's logits are computed once for all of them. The test prompts are asked only at the end.
"""

from pathlib import Path
from statistics import mean

from taid.objectives import TABLE1
from taid.studies import instruction_tuning, jobs, zoo


def main(scale: str, seeds: int, workers: int, folder: Path) -> None:
    settings, path = instruction_tuning.setting(scale), folder / "table1.jsonl"
    instruction_tuning.bench(scale)  # the data, before any worker wants them

    widest_first = sorted(zoo.PAIRS, key=lambda teacher: zoo.SCALE_MODELS[teacher].hidden, reverse=True)
    models = [("judge", "judge", 0), *[("teacher", teacher, 0) for teacher in widest_first]]
    models += [("student", s, seed) for seed in range(seeds) for s in sorted(set(zoo.PAIRS.values()))]
    logits = [
        ("logits", teacher, split) for split in ("train", "validation", "test") for teacher in zoo.PAIRS
    ]
    for title, todo in (("models", models), ("teacher logits", logits)):
        list(jobs.run(instruction_tuning.prepare, [(scale, *job) for job in todo], workers, title))

    grid = [
        instruction_tuning.Run(scale, method, teacher, 0, rate)
        for teacher in zoo.PAIRS
        for method in TABLE1
        for rate in settings.learning_rates
    ]
    cells = {(run, "validation"): ["table1_search"] for run in grid}
    jobs.evaluate(cells, instruction_tuning.measure, instruction_tuning.rows, path, workers, "learning rates")
    found = jobs.measured(path, grid, "table1_search", "score", "average")
    one_rate = max(
        settings.learning_rates, key=lambda rate: mean(v for r, v in found.items() if r.learning_rate == rate)
    )

    for seed in range(seeds):
        cells = {}
        for teacher in zoo.PAIRS:
            for method in TABLE1:
                own_rate = max(
                    settings.learning_rates,
                    key=lambda rate: found[instruction_tuning.Run(scale, method, teacher, 0, rate)],
                )
                for experiment, rate in (("table1", own_rate), ("table1_one_rate", one_rate)):
                    run = instruction_tuning.Run(scale, method, teacher, seed, rate)
                    cells.setdefault((run, "test"), []).append(experiment)
            cells |= {
                (instruction_tuning.Run(scale, name, teacher, seed, 0.0), "test"): ["table1"]
                for name in instruction_tuning.REFERENCES
            }
        jobs.evaluate(
            cells, instruction_tuning.measure, instruction_tuning.rows, path, workers, f"seed {seed}"
        )


if __name__ == "__main__":
    main(*jobs.arguments("Table 1: instruction tuning.", instruction_tuning.SETTINGS, seeds=1))
