"""Table 2, protocol 2: what is other than in the first, and how rates are chosen."""

from dataclasses import fields, replace

import pytest

from taid import results
from taid.studies import continued_pretraining, jobs, lm_tasks, tuned_pretraining
from taid.studies.continued_pretraining import PAPER_UPDATES, TABLE2
from taid.studies.study import PAPER_ALPHA
from taid.studies.tuned_pretraining import BRIDGES, METHODS, SEARCH, SETTINGS, Run

RUN = Run("cpu", "taid", seed=0, learning_rate=1e-3, steps=160)


def test_only_rates_and_tasks_are_other_than_in_protocol_1():
    first, second = continued_pretraining.CPU, SETTINGS["cpu"]
    other = {f.name for f in fields(first) if getattr(first, f.name) != getattr(second, f.name)}
    assert other == {"search_steps", "learning_rates"} and second.search_steps == second.distil.steps
    assert set(second.tasks) ^ set(first.tasks) == {"sums", "arithmetic"}
    assert set(METHODS) == {*TABLE2, *BRIDGES}


def test_the_longer_bridges_are_taid_but_for_one_number():
    """By hand: α · N as in the paper, t from 0.4; 0.2 in its place, or a quarter of α."""
    alpha = PAPER_ALPHA * PAPER_UPDATES / RUN.steps
    taid, early, slow = (replace(RUN, method=method) for method in ("taid", *BRIDGES))
    assert taid.options == {"t_start": 0.4, "alpha": pytest.approx(alpha)}
    assert early.options == {"t_start": 0.2, "alpha": pytest.approx(alpha)}
    assert slow.options == {"t_start": 0.4, "alpha": pytest.approx(alpha / 4)}
    assert {type(run.objective()) for run in (taid, early, slow)} == {type(taid.objective())}
    assert replace(RUN, method="kl").options == {}
    with pytest.raises(ValueError, match="unknown method 'ctkd'; known: kl, taid, t_start_0.2"):
        replace(RUN, method="ctkd")


def test_rates_are_chosen_by_the_sum_of_both_main_measures(monkeypatch, tmp_path):
    """By hand: 1e-3 has neither the lowest loss nor the lowest divergence, and the lowest sum."""
    points = {1e-4: (5.0, 3.0), 3e-4: (4.5, 3.0), 1e-3: (4.6, 2.0), 3e-3: (5.5, 1.9)}
    asked = []

    def evaluate(cells, measure, rows, path, workers, title):
        for run, split in cells:
            asked.append(run)
            loss, divergence = points[run.learning_rate]
            values = {("held_out_loss", "average"): loss, ("kl_to_teacher", "average"): divergence}
            results.append(path, rows(run, SEARCH, values, 1.0))
            assert split == "validation"

    monkeypatch.setattr(jobs, "evaluate", evaluate)
    monkeypatch.setattr(tuned_pretraining, "prepare", lambda *arguments: None)
    monkeypatch.setattr(jobs, "REFERENCE", tmp_path / "none")  # what is committed is not run again
    assert tuned_pretraining.tuned("cpu", ("kl",), tmp_path / "table2.jsonl", 1) == {"kl": 1e-3}
    assert {run.seed for run in asked} == set(SETTINGS["cpu"].tuning_seeds)
    assert {run.steps for run in asked} == {SETTINGS["cpu"].distil.steps}


@pytest.mark.slow
def test_the_tasks_are_those_of_protocol_2(cache):
    run = replace(RUN, scale="smoke", method="untrained", steps=0, learning_rate=0.0)
    values, _ = tuned_pretraining.measure(run, "test")
    assert {task for metric, task in values if metric == "accuracy"} == set(lm_tasks.SECOND)
