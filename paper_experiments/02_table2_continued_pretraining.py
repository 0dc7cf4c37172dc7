"""Table 2: continued pre-training with a real teacher, eight methods.

Claim of the paper: TAID has the best average of the six tasks; KL is strong.

    python paper_experiments/02_table2_continued_pretraining.py --scale smoke           # 1 minute
    python paper_experiments/02_table2_continued_pretraining.py --scale cpu --seeds 3   # see `make help`
    python paper_experiments/02_table2_continued_pretraining.py --scale paper           # GPUs: docs/paper_scale.md
    python -m analysis table2

The teacher is SmolLM2-135M-Instruct, the students are six of its thirty layers, healed on prose. The
learning rate of every method is chosen from one grid by the held-out loss on the validation split, in shorter
runs (seed 0). All methods of a seed start from one healed student and see one stream of batches. The test
split and the tasks are seen at the end alone. `table2_cache` measures the teacher's cache: speed, and the
bias of the top k.
"""

from pathlib import Path

from taid.studies import jobs, logit_cache, study
from taid.studies.continued_pretraining import SETTINGS, TABLE2, ContinuedPretraining, Run, measure, rows


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    setting, path = SETTINGS[scale], folder / "table2.jsonl"
    models = [("tasks", "tasks", 0), *[("student", setting.student, seed) for seed in range(seeds)]]
    logits = [(setting.teacher, split) for split in ("train", "test", "validation")]
    study.prepare_all(ContinuedPretraining, scale, workers, models, logits)

    grid = [
        Run(scale, method, 0, rate, setting.search_steps)
        for method in TABLE2
        for rate in setting.learning_rates
    ]
    cells = {(run, "validation"): ["table2_search"] for run in grid}
    jobs.evaluate(cells, measure, rows, path, workers, "learning rates")
    found = jobs.measured(path, grid, "table2_search", "held_out_loss", "average")
    best = jobs.best(found, lambda run: run.method, min)

    for seed in range(seeds):
        runs = [Run(scale, method, seed, best[method], setting.distil.steps) for method in TABLE2]
        runs.append(Run(scale, "untrained", seed, 0.0, 0))
        if seed == 0:  # there is one teacher, and it takes longest
            runs.insert(0, Run(scale, "teacher", 0, 0.0, 0))
        cells = {(run, "test"): ["table2"] for run in runs}
        jobs.evaluate(cells, measure, rows, path, workers, f"seed {seed}")

    probes = {(logit_cache.Probe(scale),): ["table2_cache"] for scale in {scale} & logit_cache.STEPS.keys()}
    jobs.evaluate(probes, logit_cache.measure, logit_cache.rows, path, 1, "cache")


if __name__ == "__main__":
    jobs.command(main, "Table 2: continued pre-training.", SETTINGS, seeds=1)
