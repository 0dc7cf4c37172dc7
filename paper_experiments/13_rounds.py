"""Repeated rounds: does the theory's picture carry over to (small) language models?

Claim of the theory: self-distillation loses the teacher's signal round after round; TAID's rounds, which mix
the teacher in again with a weight λ_t = t/T, keep it; so does a constant λ > 0 (docs/theory.md, section 6).

    python paper_experiments/13_rounds.py --scale smoke           # half a minute, after Table 1's, protocol 1
    python paper_experiments/13_rounds.py --scale cpu --seeds 3   # see `make help`
    python -m analysis rounds

Every round starts from the seed's pre-trained student and sees one stream of batches, at the learning rate
that Table 1 chose for KL on this pair. A chain of rounds is one job; finished chains are skipped.
"""

from pathlib import Path

from taid.studies import jobs, rounds, study, zoo
from taid.studies.instruction_tuning import MADE, InstructionTuning, Run


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    rate = rounds.learning_rate(jobs.rows(folder, "table1"), scale)
    student = zoo.PAIRS[rounds.TEACHER].student
    models = [("teacher", rounds.TEACHER, 0), *[("student", student, seed) for seed in range(seeds)]]
    logits = [(rounds.TEACHER, split) for split in ("train", "validation")]
    study.prepare_all(InstructionTuning, scale, workers, models, logits)

    chains = [
        rounds.Chain(variant, Run(scale, "kl", rounds.TEACHER, seed, rate))
        for seed in range(seeds)
        for variant in rounds.VARIANTS
    ]
    cells, path = {(chain,): ["rounds"] for chain in chains}, folder / "rounds.jsonl"
    jobs.evaluate(cells, rounds.measure, rounds.rows, path, workers, "rounds")


if __name__ == "__main__":
    jobs.command(main, "Repeated rounds of distillation.", MADE, seeds=3)
