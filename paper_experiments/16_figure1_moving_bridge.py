"""Figure 1, the idea: a teacher that stands still, and a bridge that moves from the student to it.

Claim of the paper: TAID's target is near the student throughout, so that what is asked of it never is far.

    python paper_experiments/16_figure1_moving_bridge.py --scale smoke  # 1 minute: does it run?
    python paper_experiments/16_figure1_moving_bridge.py --seeds 4      # 3 minutes after Table 1, protocol 1
    python -m analysis figure1
"""

from pathlib import Path

from taid.studies import jobs, study, zoo
from taid.studies.instruction_tuning import MADE, InstructionTuning
from taid.studies.moving_bridge import METHODS, TEACHER, Run, measure, rows


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    rates = study.chosen_rates(jobs.rows(folder, "table1"), scale, TEACHER, METHODS)
    models = [("teacher", TEACHER, 0)]
    models += [("student", zoo.PAIRS[TEACHER].student, seed) for seed in range(seeds)]
    study.prepare_all(InstructionTuning, scale, workers, models, [(TEACHER, "train"), (TEACHER, "test")])
    cells = {
        (Run(scale, method, TEACHER, seed, rates[method]),): ["figure1"]
        for seed in range(seeds)
        for method in METHODS
    }
    jobs.evaluate(cells, measure, rows, folder / "figure1.jsonl", workers, "figure 1")


if __name__ == "__main__":
    jobs.command(main, "Figure 1: the moving bridge.", MADE, seeds=1)
