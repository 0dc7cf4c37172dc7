"""Does TAID beat KL? The experiment that decides, on the Llama-2 pair and on one with a capacity gap above 30.

Claim of the paper: TAID's student is better than KL's, in all of its tables.

    python paper_experiments/17_decide.py --scale smoke  # 1 minute: does it run?
    python paper_experiments/17_decide.py                # hours, see `make help`; resumes
    python -m analysis decide

The rule, written before the first run (2026-11-25). Of each seed the score is the mean over eight categories of points
of 10, on the test prompts. With d = TAID − KL, paired by seed, at the paper's 16,239 updates with its α unscaled:

    true              if the 95% interval of d lies above 0
    false in effect   if it lies below +0.2 points
    open              otherwise, with the number of seeds that would close it

Both can hold: a lead that is sure and below 0.2 points is true, and too small to matter. Learning rates are chosen for
each method and number of updates on seeds that are never tested, by one rule for all (`taid.studies.decide.tuned`).

What the theory predicts, written before too (docs/theory.md). For small t TAID's gradient is t times the reverse KL's,
at t = 1 it is the forward KL's: its path leads along the Rényi family p^t q^(1−t) from seeking modes to covering them.
Every run ends at t = 1, on the forward KL: the longer it is, the less is left of the path. So (1) d shrinks with the
number of updates, and at 16,239 neither side leads by 0.2 points; (2) on its way TAID covers fewer of a question's
accepted answers than KL, and catches up in the end; (3) KL with gradients of TAID's size does as TAID does, as far as
TAID is a warm-up; (4) the linear ramp does as TAID does, for the momentum does not move t; (5) a larger capacity gap
changes none of this: what is asked of the student in the end is the same.
"""

from pathlib import Path

from taid.studies import decide, every_answer, jobs
from taid.studies.decide import ARMS, METHODS, PLANS, Run, measure, rows
from taid.studies.study import REFERENCES

DECIDING = ("kl", "taid")  # run first


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path, tune: bool) -> None:
    path = folder / "decide.jsonl"
    for methods in (DECIDING, [method for method in METHODS if method not in DECIDING]):
        for teacher, pair in ARMS.items():
            rates = decide.tuned(scale, teacher, methods, path, workers, tune)
            every_answer.prepare(scale, pair, range(seeds), workers)
            runs = [
                Run(scale, method, teacher, seed, rates[updates, method], updates)
                for updates, wanted in PLANS[scale].seeds.items()
                for seed in range(min(seeds, wanted))
                for method in methods
            ]
            runs += [Run(scale, name, teacher, seed, 0.0, 0) for name in REFERENCES for seed in range(seeds)]
            cells = {(run, "test"): [run.experiment] for run in runs}
            jobs.evaluate(cells, measure, rows, path, workers, f"{teacher}, test")


if __name__ == "__main__":
    jobs.command(main, "Does TAID beat KL?", PLANS, seeds=12, tunes=True)
