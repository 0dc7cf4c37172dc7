"""Table 6 and Figure 2 right: the capacity gap. One student, four teachers of growing size, on natural text.

Claim of the paper: with TAID the student gets better as its teacher grows, with the skew KL it gets worse.

    python paper_experiments/06_table6_capacity_gap.py --scale smoke           # under a minute: does it run?
    python paper_experiments/06_table6_capacity_gap.py --scale cpu --seeds 5   # see `make help`
    python -m analysis table6

All methods of a seed start from one pre-trained student and see one stream of batches; a teacher's logits are
computed once. `table6_search`: the learning rate of every method and teacher is chosen from one grid by the
held-out loss on validation (seed 0). `table6`: one run per method, teacher and seed; SFT, which has no
teacher, one per seed. `table6_map`: the smallest and the largest teacher with the student, the steps or the
teacher's temperature changed, at the same rates: where does the gap start? Finished cells are skipped.
"""

from collections.abc import Mapping
from pathlib import Path

from taid.studies import capacity, jobs

MAP_METHODS, MAP_SEEDS = ("taid", "skew_kl"), 3
Rates = Mapping[tuple[str, str], float]  # (method, teacher) → learning rate


def main(scale: str, seeds: int, workers: int, folder: Path) -> None:
    path = folder / "table6.jsonl"
    capacity.bench(scale)  # the data, before any worker wants them
    ends, bases = (capacity.TEACHERS[0], capacity.TEACHERS[-1]), range(min(seeds, MAP_SEEDS))
    splits = ("distil", "validation", "test")

    models = [("teacher", teacher, 0) for teacher in reversed(capacity.TEACHERS)]  # the slowest first
    models += [("student", capacity.STUDENT, seed) for seed in range(seeds)]
    logits = [("logits", teacher, split) for teacher in capacity.TEACHERS for split in splits]
    for title, todo in (("models", models), ("teacher logits", logits)):
        list(jobs.run(capacity.prepare, [(scale, *job) for job in todo], workers, title))

    students = [*((m, t) for t in capacity.TEACHERS for m in capacity.METHODS), ("sft", capacity.NONE)]
    teachers = [capacity.Run(scale, "teacher", teacher, 0, 0.0) for teacher in capacity.TEACHERS]
    untrained = [capacity.Run(scale, "untrained", capacity.NONE, seed, 0.0) for seed in range(seeds)]
    table6 = {(run, "test"): ["table6"] for run in [*teachers, *untrained]}
    jobs.evaluate(table6, capacity.measure, capacity.rows, path, workers, "references")

    rates = search(scale, students, path, workers)
    runs = [capacity.Run(scale, *cell, seed, rates[cell]) for seed in range(seeds) for cell in students]
    table6 = {(run, "test"): ["table6"] for run in runs}
    jobs.evaluate(table6, capacity.measure, capacity.rows, path, workers, "table 6")

    around = [run for run in untrained if run.seed in bases]
    around += [run for run in teachers if run.teacher in ends]
    around += [
        capacity.Run(scale, method, teacher, seed, rates[method, teacher])
        for seed in bases for method in MAP_METHODS for teacher in ends
    ]  # fmt: skip
    cells = {
        (variant, "test"): ["table6_map"] for run in around for variant in capacity.variants(run)
        if matters(run, variant)
    }  # fmt: skip
    others = sorted({run.student for run, _ in cells} - {capacity.STUDENT})
    todo = [(scale, "student", student, seed) for seed in bases for student in others]
    list(jobs.run(capacity.prepare, todo, workers, "students of the map"))
    jobs.evaluate(cells, capacity.measure, capacity.rows, path, workers, "map")


def matters(run: capacity.Run, variant: capacity.Run) -> bool:
    """A teacher changes with the temperature alone, an untrained student with its size alone."""
    if run.method == "teacher":
        return variant.temperature != run.temperature
    return run.method != "untrained" or variant.student != run.student


def search(scale: str, students: list[tuple[str, str]], path: Path, workers: int) -> Rates:
    """The rate of the lowest held-out loss on validation, seed 0, for each (method, teacher)."""
    learning_rates = capacity.setting(scale).learning_rates
    grid = [capacity.Run(scale, *cell, 0, rate) for cell in students for rate in learning_rates]
    cells = {(run, "validation"): ["table6_search"] for run in grid}
    jobs.evaluate(cells, capacity.measure, capacity.rows, path, workers, "learning rates")
    found = jobs.measured(path, grid, "table6_search", "held_out_loss", "base")
    return {
        cell: min(
            (run for run in grid if (run.method, run.teacher) == cell), key=found.__getitem__
        ).learning_rate
        for cell in students
    }


if __name__ == "__main__":
    main(*jobs.arguments("Table 6: the capacity gap.", capacity.SETTINGS, seeds=5))
