"""Ablations: TAID's parts, one by one, around Table 1's first pair.

The questions are those of the paper's reviewers and our own: α, β, t_start; logits or probabilities blended;
the reverse KL; data beside the teacher; top-k logits; is TAID more than a warm-up of the learning rate?

    python paper_experiments/15_ablations.py --scale smoke           # 1 minute, after Table 1's, protocol 1
    python paper_experiments/15_ablations.py --scale cpu --seeds 4   # see `make help`
    python -m analysis ablations

All variants (`taid.studies.ablations.VARIANTS`) start from the seed's pre-trained student, see one stream of batches
and train at the learning rate that Table 1 chose on validation for TAID; SFT at its own. Whether those whose
gradients have another size would rather have another rate is asked on validation, seed 0, and only told.
"""

from pathlib import Path

from taid.studies import ablations, instruction_tuning, jobs
from taid.studies.instruction_tuning import MADE


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    rates = ablations.learning_rates(jobs.rows(folder, "table1"), scale)
    ablations.prepare(scale, seeds, workers)
    runs = [run for seed in range(seeds) for run in ablations.runs(scale, seed, rates)]
    cells = {(run,): ["ablations"] for run in runs}
    path = folder / "ablations.jsonl"
    jobs.evaluate(cells, ablations.measure, ablations.rows, path, workers, "ablations")

    searched = [
        run
        for rate in MADE[scale].learning_rates
        for run in ablations.runs(scale, 0, dict.fromkeys(rates, rate), ablations.SEARCHED)
    ]
    validated = {(run, "validation"): ["ablations_search"] for run in searched}
    jobs.evaluate(validated, instruction_tuning.measure, ablations.rows, path, workers, "learning rates")


if __name__ == "__main__":
    jobs.command(main, "Ablations of TAID.", MADE, seeds=4)
