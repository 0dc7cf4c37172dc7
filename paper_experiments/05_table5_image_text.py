"""Tables 5 and 10: an image-text student, by cross-entropy alone, KL and TAID.

Claim of the paper: TAID-VLM-2B, distilled from InternVL2-8B, is above InternVL2-2B and others of its size.

    python paper_experiments/05_table5_image_text.py --scale smoke           # a minute: does it run?
    python paper_experiments/05_table5_image_text.py --scale cpu --seeds 3   # see `make help`
    python paper_experiments/05_table5_image_text.py --scale paper --seeds 1 # GPUs: docs/paper_scale.md
    python -m analysis table5

All methods of a seed start from one student, which has been trained on other questions, and see one stream of
batches; the teacher's logits are computed once. `table5_search`: the learning rate of every method is chosen
from one grid by accuracy on validation, with a seed that is not tested. `table5`: one run per method and seed;
the student before distillation is "untrained". `table5_one_rate`: the same at one rate for all. Finished cells
are skipped.
"""

from pathlib import Path

from taid.studies import image_text, jobs, study
from taid.studies.image_text import METHODS, STUDENT, TEACHER, ImageText, Run, measure, rows


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    setting, path = image_text.SETTINGS[scale], folder / "table5.jsonl"
    models = [("teacher", TEACHER, 0)]
    models += [("student", STUDENT, seed) for seed in (jobs.TUNING_SEEDS[0], *range(seeds))]
    logits = [(TEACHER, split) for split in ("distil", "validation", "test")]
    study.prepare_all(ImageText, scale, workers, models, logits)

    best = dict.fromkeys(METHODS, setting.learning_rates[0])
    if len(setting.learning_rates) > 1:  # of one there is nothing to choose
        grid = [Run(scale, m, jobs.TUNING_SEEDS[0], rate) for m in METHODS for rate in setting.learning_rates]
        cells = {(run, "validation"): ["table5_search"] for run in grid}
        jobs.evaluate(cells, measure, rows, path, workers, "learning rates")
        found = jobs.measured(path, grid, "table5_search", "accuracy", "average")
        best = jobs.best(found, lambda run: run.method, max)

    runs = [Run(scale, "teacher", 0, 0.0)]
    for seed in range(seeds):
        runs.append(Run(scale, "untrained", seed, 0.0))
        runs += [Run(scale, method, seed, best[method]) for method in METHODS]
    cells = {(run, "test"): ["table5"] for run in runs}
    for seed in range(seeds):
        for method in METHODS:
            run = Run(scale, method, seed, setting.distil.learning_rate)
            cells.setdefault((run, "test"), []).append("table5_one_rate")
    jobs.evaluate(cells, measure, rows, path, workers, "table 5")


if __name__ == "__main__":
    jobs.command(main, "Tables 5 and 10: image and text.", image_text.SETTINGS, seeds=3)
