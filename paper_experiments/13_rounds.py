"""Repeated rounds: does the theory's picture carry over to (small) language models?

Claim of the theory: self-distillation loses the teacher's signal round after round; TAID's rounds, which mix
the teacher in again with a weight λ_t = t/T, keep it; so does a constant λ > 0 (docs/theory.md, section 6).

    python paper_experiments/13_rounds.py --scale smoke           # half a minute, after Table 1's
    python paper_experiments/13_rounds.py --scale cpu --seeds 3   # see `make help`
    python -m analysis rounds

Every round starts from the seed's pre-trained student and sees one stream of batches, at the learning rate
that Table 1 chose for KL on this pair. A chain of rounds is one job; finished chains are skipped.
"""

from pathlib import Path

from taid import results
from taid.studies import instruction_tuning, jobs, rounds, zoo


def main(scale: str, seeds: int, workers: int, folder: Path) -> None:
    rate = rounds.learning_rate(results.read(folder / "table1.jsonl"), scale)
    instruction_tuning.bench(scale)  # the data, before any worker wants them

    student = zoo.PAIRS[rounds.TEACHER]
    models = [("teacher", rounds.TEACHER, 0), *[("student", student, seed) for seed in range(seeds)]]
    logits = [("logits", rounds.TEACHER, split) for split in ("train", "validation")]
    for title, todo in (("models", models), ("teacher logits", logits)):
        list(jobs.run(instruction_tuning.prepare, [(scale, *job) for job in todo], workers, title))

    cells = {
        (rounds.Chain(variant, instruction_tuning.Run(scale, "kl", rounds.TEACHER, seed, rate)),): ["rounds"]
        for seed in range(seeds)
        for variant in rounds.VARIANTS
    }
    jobs.evaluate(cells, rounds.measure, rounds.rows, folder / "rounds.jsonl", workers, "rounds")


if __name__ == "__main__":
    main(*jobs.arguments("Repeated rounds of distillation.", instruction_tuning.SETTINGS, seeds=3))
