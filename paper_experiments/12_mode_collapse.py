"""Mode averaging and mode collapse, where they are exact: Gaussians and a language of phrases, no noise.

Claims of the paper: forward KL averages, reverse KL collapses, TAID balances the two. Beyond it: at t = 1
TAID is the forward KL, so `task` "end" shows what its path leaves behind, and "then KL" which optimum the
path led to.

    python paper_experiments/12_mode_collapse.py                # cpu: 6 minutes on one core
    python paper_experiments/12_mode_collapse.py --scale smoke  # 16 seconds, not to be kept

A row is a mean over the starts that one seed draws. The notebook notebooks/mode_collapse.ipynb shows the
same.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taid import toy, toy_language
from taid.results import Row, append_once, cell_rows, config_hash, finished
from taid.studies import jobs


@dataclass(frozen=True)
class Scale:
    seeds: int
    starts: int
    steps: int


@dataclass(frozen=True)
class Problem:
    """Modes of unit scale, `gap` apart, for a student of fewer Gaussians."""

    modes: int
    gap: float
    components: int
    dim: int = 1


SCALES = {"smoke": Scale(1, 2, 10), "cpu": Scale(5, 16, 300)}
PROBLEMS = (
    Problem(2, 6, 1), Problem(2, 8, 1), Problem(3, 6, 2), Problem(4, 5, 2), Problem(5, 5, 3),
    Problem(6, 4, 3), Problem(5, 5, 1, dim=2), Problem(5, 5, 2, dim=2),
)  # fmt: skip
METHODS: dict[str, dict] = {
    method: {} for method in ("kl", "rkl", "tvd", "adaptive_kl", "gjs", "skew_kl", "skew_rkl", "ctkd")
}
METHODS |= {"taid": {"t_start": 0.2}, "taid_no_adaptive": {"t_start": 0.0}}
SENTENCES = ("whole", "teacher", "student")  # what the loss compares: sentences, or tokens of whose sentences
UNITS = {"modes_covered": "modes", "phrases_covered": "phrases", "entropy": "nats"}
UNITS |= {"forward_kl": "nats", "reverse_kl": "nats"}  # all others are probabilities
LOWER_IS_BETTER = {"valley_mass", "tail_mass", "entropy", "forward_kl", "reverse_kl"}


def gaussians(problem: Problem, method: str, seed: int, scale: Scale) -> dict[str, dict]:
    points = toy.grid(14, 113) if problem.dim == 1 else toy.grid(9, 31, problem.dim)
    teacher = toy.ring_of_modes(problem.modes, problem.gap, problem.dim)
    student, logits = toy.Gaussians(points, problem.components), teacher.logits(points)
    start = student.init(scale.starts, seed)
    end = toy.distill(student, logits, method, start, scale.steps, **METHODS[method]).parameters[-1]
    settled = toy.distill(student, logits, "kl", end, scale.steps, learning_rate=0.05).parameters[-1]
    ends = {"end": end, "then KL": settled}
    return {task: toy.measure(student.logits(found), teacher, points) for task, found in ends.items()}


def language(sentences: Any, method: str, seed: int, scale: Scale) -> dict[str, dict]:
    phrases = toy_language.shared_word(3, weights=[0.5, 0.3, 0.2])
    student = toy_language.Ngram(phrases, memory=1)
    start, options = student.init(scale.starts, seed), METHODS[method]
    if sentences == "whole":
        teacher = toy_language.sentence_logits(phrases.next_word_logits())
        path = toy.distill(student, teacher, method, start, scale.steps, **options)
    else:
        path = toy_language.distill_tokens(student, method, start, scale.steps, sentences, **options)
    return {"end": toy_language.measure(student.logits(path.parameters[-1]), phrases)}


def names(problem: Problem | str) -> tuple[str, str]:
    """Of the teacher and the student, as in the rows."""
    if isinstance(problem, str):
        return "3 phrases", "bigram, sentences" if problem == "whole" else f"bigram, tokens of the {problem}"
    return f"{problem.modes} modes, gap {problem.gap:g}, {problem.dim}-D", f"Gaussians: {problem.components}"


def cells(scale: Scale) -> Iterator[tuple]:
    """(study, problem, config) of every cell; the config names all that decides its numbers."""
    studies = [(gaussians, problem) for problem in PROBLEMS] + [(language, level) for level in SENTENCES]
    for study, problem in studies:
        teacher, student = names(problem)
        for method, options in METHODS.items():
            for seed in range(scale.seeds):
                config = {"teacher": teacher, "student": student, "method": method, "seed": seed}
                yield study, problem, config | {"starts": scale.starts, "steps": scale.steps, **options}


def rows(scale: str, config: dict, measured: dict[str, dict], seconds: float) -> list[Row]:
    """`measured`: task → metric → its values at the starts."""
    each = (
        {"task": task, "metric": metric, "value": values.double().mean().item()}
        | {"unit": UNITS.get(metric, "probability"), "higher_is_better": metric not in LOWER_IS_BETTER}
        for task, metrics in measured.items()
        for metric, values in metrics.items()
    )
    shared = {name: config[name] for name in ("method", "teacher", "student", "seed")}
    return cell_rows(each, config, experiment="mode_collapse", scale=scale, seconds=seconds, **shared)


def main(name: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    scale, path = SCALES[name], folder / "mode_collapse.jsonl"
    torch.set_num_threads(1)
    done = finished(path)
    for study, problem, config in cells(scale):
        if config_hash(config) in done:
            continue
        begin = time.perf_counter()
        measured = study(problem, config["method"], config["seed"], scale)
        append_once(path, rows(name, config, measured, time.perf_counter() - begin))
        print(
            f"{config['teacher']} → {config['student']}, {config['method']} seed {config['seed']}", flush=True
        )


if __name__ == "__main__":
    jobs.command(main, __doc__.splitlines()[0], SCALES, workers=0)
