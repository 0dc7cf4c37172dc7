"""Figure 3: teachers of images against teachers of language: entropy, and probability of what was right.

Claim of the paper (our reading): predictions of language models have a higher entropy and a lower target probability.

    python paper_experiments/10_figure3_entropy.py --scale smoke   # after the smoke runs of Tables 1, 7, 8
    python paper_experiments/10_figure3_entropy.py --scale cpu     # after Tables 1 (protocol 1), 7, 8
    python -m analysis figure3

Nothing is trained but teachers that are not there yet. One teacher each: there are no seeds.
"""

from pathlib import Path

from taid.studies import jobs, predictions, study
from taid.studies.instruction_tuning import MADE


def main(scale: str, _seeds: int, workers: jobs.Workers, folder: Path) -> None:
    every = predictions.runs(scale)
    for kind in dict.fromkeys(run.kind for run in every):
        teachers = [("teacher", run.teacher, 0) for run in every if run.kind is kind]
        study.prepare_all(kind, scale, workers, teachers, logits=[])
    cells = {(run,): ["figure3"] for run in every}
    jobs.evaluate(cells, predictions.measure, predictions.rows, folder / "figure3.jsonl", workers, "figure3")


if __name__ == "__main__":
    jobs.command(main, "Figure 3: entropy of teachers' predictions.", MADE)
