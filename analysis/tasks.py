"""Tables of task scores, of Tables 2 and 4: single tasks, what counts in their average, what chance is worth."""

from collections.abc import Sequence

import pandas as pd

from analysis.rows import REFERENCES, without_references
from analysis.statistics import difference, estimates
from analysis.style import name
from analysis.table2_rows import (
    PAPER,
    SURELY,
    TABLE2,
    TASKS,
    above_chance,
    accuracy,
    averaged,
    chance,
    count,
    listed,
    mean_of,
    over,
)
from analysis.tables import MISSING, Table, interval, number, plural, value, versus

BESIDE = "last_word"  # like LAMBADA; not in the paper's average
WHY_BELOW = {  # chance, where the reason is known
    "arithmetic": ": its choices differ in more than in being right, so this task says nothing about sums"
}


def average_note(frame: pd.DataFrame, experiment: str = TABLE2) -> str:
    tasks = averaged(frame, experiment)
    left_out = [task for task in TASKS if above(frame, task, experiment) == "NO"]
    without = f" Left out, for the teacher itself is at chance: {', '.join(left_out)}." if left_out else ""
    return f"Our average is over {', '.join(tasks) or 'no task'}; chance {number(chance(frame, experiment))}.{without}"


def by_task(frame: pd.DataFrame, methods: Sequence[str], experiment: str = TABLE2) -> str:
    """Method × task, percent; chance and the standard error over items beneath."""
    own = listed(frame, experiment)
    tasks = own if own == [*PAPER] else [*own, BESIDE]
    by = {task: accuracy(frame, task, experiment) for task in tasks}
    shown = [m for m in (*methods, *REFERENCES) if any(m in found for found in by.values())]
    seeds = {m: count(frame, m, experiment) for m in shown}
    body = [[name(m), *(value(by[task].get(m), seeds[m], 1) for task in tasks)] for m in shown]
    if body:
        body.append(versus(*((by[task], 1) for task in tasks)))
        body.append(["chance", *(said(mean_of(frame, "chance", task, experiment)) for task in tasks)])
        error = (said(mean_of(frame, "standard_error", task, experiment)) for task in tasks)
        body.append(["standard error of one score", *error])
        body.append(["teacher above chance", *(above(frame, task, experiment) for task in tasks)])
    header = ["percent", *(f"{task}, like {TASKS.get(task, 'lambada')}" for task in tasks)]
    return Table(header, body, below_chance(frame, experiment)).markdown()


def said(percentage: float | None) -> str:
    return MISSING if percentage is None else number(percentage, 1)


def below_chance(frame: pd.DataFrame, experiment: str = TABLE2) -> str:
    """Where students know less than a guess, and what TAID − KL is without those tasks."""
    sentences, sound = [], list(averaged(frame, experiment))
    for task in TASKS:
        guess, error = (mean_of(frame, metric, task, experiment) for metric in ("chance", "standard_error"))
        found = estimates(without_references(accuracy(frame, task, experiment)))
        if guess is None or not error or not found:
            continue
        short = sorted((guess - e.mean) / error for e in found.values())
        if short[0] > SURELY:
            sentences.append(
                f"In *{task}* all {plural(len(found), 'method')} end below chance, by {number(short[0], 0)} to"
                f" {number(short[-1], 0)} standard errors of one score{WHY_BELOW.get(task, '')}."
            )
            sound = [other for other in sound if other != task]
    if sentences and len(sound) < len(averaged(frame, experiment)):
        sentences.append(
            f"The rule made beforehand keeps it in the average; without it TAID − KL is"
            f" {interval(difference(over(frame, sound, experiment), 'taid', 'kl'))}."
        )
    return " ".join(sentences)


def above(frame: pd.DataFrame, task: str, experiment: str = TABLE2) -> str:
    found = above_chance(frame, task, experiment)
    return MISSING if found is None else "yes" if found else "NO"


def rates(
    frame: pd.DataFrame,
    methods: Sequence[str],
    note: str,
    experiment: str = TABLE2,
    metrics: Sequence[str] = ("held_out_loss",),
) -> Table:
    """The sum of the validation metrics at each rate of the grid, a mean over seeds, bold at the chosen rate."""
    searched = frame[(frame.experiment == f"{experiment}_search") & frame.metric.isin(metrics)]
    grid = sorted(searched.learning_rate.dropna().unique())
    chosen = frame[frame.experiment == experiment].groupby("method").learning_rate.max()

    def cell(method: str, rate: float) -> str:
        found = searched[(searched.method == method) & (searched.learning_rate == rate)]
        text = number(found.groupby("metric").value.mean().sum(), 3) if len(found) else MISSING
        return f"**{text}**" if method in chosen and chosen[method] == rate else text

    tried = [m for m in methods if m in set(searched.method)]
    body = [[name(m), *(cell(m, rate) for rate in grid)] for m in tried]
    return Table(["method", *(f"{rate:g}" for rate in grid)], body, note)
