"""Rows with task scores, of Tables 2 and 4: what the runs of an experiment scored, and which tasks count."""

import pandas as pd

from analysis.rows import Scores, mapped, scores, seeds

OURS = {  # our task → the paper's that it is shaped like
    "cloze": "arc",
    "next_sentence": "hellaswag",
    "definition": "mmlu",
    "truth": "truthfulqa",
    "pronoun": "winogrande",
    "arithmetic": "gsm8k",
    "sums": "gsm8k",
}
PAPER = {  # at the paper's scale its own tasks, by lm-eval's names
    "arc_challenge": "arc",
    "hellaswag": "hellaswag",
    "mmlu": "mmlu",
    "truthfulqa_mc2": "truthfulqa",
    "winogrande": "winogrande",
    "gsm8k": "gsm8k",
}
TASKS = OURS | PAPER
SURELY = 1.645  # standard errors: a one-sided test at 5%
TABLE2 = "table2"  # the experiment, unless another is named
PROTOCOLS = {"table2_tuned": "protocol 2", TABLE2: "protocol 1"}  # experiment → how it is called


def protocols(frame: pd.DataFrame) -> dict[str, str]:
    """Those that have rows, and how each is called: where there is one, not at all."""
    run = {e: label for e, label in PROTOCOLS.items() if (frame.experiment == e).any()}
    return run if len(run) > 1 else dict.fromkeys(run or [TABLE2], "")


def listed(frame: pd.DataFrame, experiment: str = TABLE2) -> list[str]:
    """The tasks that an experiment has scores of, in our order; of none, those of the newest protocol."""
    measured = set(frame[frame.experiment == experiment].task)
    if measured & PAPER.keys():
        return [*PAPER]
    other = "sums" if "arithmetic" in measured else "arithmetic"
    return [task for task in OURS if task != other]


def at(frame: pd.DataFrame, metric: str, task: str = "average", experiment: str = TABLE2) -> Scores:
    """Method → seed → value of the headline runs."""
    return next(iter(scores(frame, experiment, metric, task).values()), {})


def accuracy(frame: pd.DataFrame, task: str, experiment: str = TABLE2) -> Scores:
    return percent(at(frame, "accuracy", task, experiment))


def percent(found: Scores) -> Scores:
    return mapped(found, lambda share: 100 * share)


def count(frame: pd.DataFrame, method: str, experiment: str = TABLE2) -> int:
    """The seeds that a method should have: the teacher is one for all."""
    return 1 if method == "teacher" else seeds(frame, experiment)


def mean_of(frame: pd.DataFrame, metric: str, task: str, experiment: str = TABLE2) -> float | None:
    """A metric's mean over all models and seeds [percent]."""
    found = [v for values in percent(at(frame, metric, task, experiment)).values() for v in values.values()]
    return sum(found) / len(found) if found else None


def above_chance(frame: pd.DataFrame, task: str, experiment: str = TABLE2) -> bool | None:
    """Whether the teacher's accuracy lies above chance by a one-sided test at 5%; None without its rows."""
    metrics = ("accuracy", "chance", "standard_error")
    own, guess, error = (at(frame, m, task, experiment).get("teacher", {}) for m in metrics)
    if not own:
        return None
    seed = min(own)
    return own[seed] - guess[seed] > SURELY * error[seed]


def averaged(frame: pd.DataFrame, experiment: str = TABLE2) -> list[str]:
    """The tasks that count: those at which the teacher is above chance."""
    return [task for task in TASKS if above_chance(frame, task, experiment)]


def average(frame: pd.DataFrame, experiment: str = TABLE2) -> Scores:
    """Method → seed → mean accuracy over the tasks that count [percent]."""
    return over(frame, averaged(frame, experiment), experiment)


def over(frame: pd.DataFrame, tasks: list[str], experiment: str = TABLE2) -> Scores:
    """Method → seed → mean accuracy over some tasks [percent]; of seeds that have all of them."""
    by = [accuracy(frame, task, experiment) for task in tasks]
    found: dict[str, dict[int, float]] = {}
    for method in sorted(set().union(*by)):
        for seed in sorted(set.intersection(*(set(task.get(method, {})) for task in by))):
            found.setdefault(method, {})[seed] = sum(task[method][seed] for task in by) / len(by)
    return found


def chance(frame: pd.DataFrame, experiment: str = TABLE2) -> float:
    """Mean accuracy of guessing at the tasks that count [percent]; 0 for none."""
    tasks = averaged(frame, experiment)
    by = [percent(at(frame, "chance", task, experiment))["teacher"] for task in tasks]
    return sum(min(values.values()) for values in by) / max(len(by), 1)


def first_above(level: float, steps: int, t_start: float, alpha: float) -> int:
    """The first update after which t exceeds `level`: the larger of linear floor and t at momentum 0."""
    for n in range(steps + 1):
        adaptive = 1 - (1 - t_start) * (1 - alpha / 2) ** n
        if max(adaptive, t_start + (1 - t_start) * n / steps) > level:
            return n
    return steps
