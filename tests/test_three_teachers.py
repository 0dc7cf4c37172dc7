"""Table 6, protocol 2: the draws of its teachers, what is other than in the first, and how rates are chosen."""

from dataclasses import fields, replace

import pytest
import torch

from taid import results
from taid.studies import capacity, jobs, three_teachers
from taid.studies.capacity import NONE, TEACHERS
from taid.studies.three_teachers import CELLS, DRAWS, SEARCH, SETTINGS, Run, ThreeTeachers

RUN = Run("smoke", "kl", "pythia-410m", 4, 1e-2)


def test_only_rates_and_warm_up_are_other_than_in_protocol_1():
    first, second = capacity.CPU, SETTINGS["cpu"]
    other = {f.name for f in fields(first) if getattr(first, f.name) != getattr(second, f.name)}
    assert other == {"distil", "learning_rates"} and max(second.learning_rates) == 0.1
    assert second.distil == replace(first.distil, warmup_steps=90) and first.distil.steps == 900
    assert not set(second.tuning_seeds) & set(range(50))


def test_three_seeds_have_three_draws_and_a_row_says_which():
    assert [replace(RUN, seed=seed).config()["draw"] for seed in (0, 1, 2, 3, 100)] == [0, 1, 2, 0, 1]
    first = capacity.Run(*(getattr(RUN, f.name) for f in fields(RUN)))
    assert results.config_hash(first.config()) != results.config_hash(RUN.config())
    with pytest.raises(ValueError, match="unknown scale of|unknown scale 'paper'; known: smoke, cpu"):
        replace(RUN, scale="paper")


def test_a_teacher_of_another_draw_is_another_model_and_answers_for_its_seeds(cache, monkeypatch):
    """Oracle: the models themselves; what is kept for a run is asked for by the name of its draw."""
    here, asked = ThreeTeachers(SETTINGS["smoke"]), []
    teachers = [here.source.teacher(f"pythia-410m-{draw}") for draw in range(2)]
    first, second = (next(model.parameters()) for model in teachers)
    assert first.shape == second.shape and not torch.equal(first, second)
    monkeypatch.setattr(here, "teacher_logits", lambda name, split: asked.append((name, split)))
    here.target(RUN)
    assert asked == [("pythia-410m-1", "distil")]  # of seed 4
    reference, _ = here.model(replace(RUN, method="teacher"))
    assert torch.equal(next(reference.parameters()), second)


def test_rates_are_chosen_by_the_loss_of_seeds_that_are_not_tested(monkeypatch, tmp_path):
    """By hand: the first seed prefers 3e-3 to 1e-2 by a little, the mean over all does not; what is known is not run
    again."""
    asked = []
    losses = {3e-3: (3.00, 3.4, 3.4), 1e-2: (3.01, 3.1, 3.1), 3e-2: (3.5, 1, 1), 1e-1: (9.0, 1, 1)}

    def evaluate(cells, measure, rows, path, workers, title):
        for run, split in cells:
            asked.append((run.method, run.teacher, run.learning_rate, run.seed))
            loss = losses[run.learning_rate][run.seed - 100]
            results.append(path, rows(run, SEARCH, {("held_out_loss", "base"): loss}, 1.0))
            assert split == "validation"

    monkeypatch.setattr(jobs, "evaluate", evaluate)
    monkeypatch.setattr(three_teachers, "prepare", lambda *arguments: None)
    monkeypatch.setattr(jobs, "REFERENCE", tmp_path / "none")
    path = tmp_path / "table6_tuned.jsonl"
    assert three_teachers.tuned("cpu", path, 1) == dict.fromkeys(CELLS, 1e-2)
    assert len(asked) == len(set(asked)) == len(CELLS) * (4 + 2 * 2)
    assert ("sft", NONE, 1e-2, 102) in asked and {seed for *_, seed in asked} == {100, 101, 102}
    asked.clear()
    assert three_teachers.tuned("cpu", path, 1) == dict.fromkeys(CELLS, 1e-2) and not asked


def test_the_map_has_every_draw_once_at_both_ends():
    runs = [Run("cpu", *cell, seed, 1e-2) for seed in range(6) for cell in CELLS]
    runs += [Run("cpu", "teacher", teacher, draw, 0.0) for teacher in TEACHERS for draw in range(DRAWS)]
    around = capacity.around(runs, three_teachers.MAP_METHODS, three_teachers.MAP_SEEDS)
    students = [run for run in around if run.method != "teacher"]
    assert {run.teacher for run in around} == {TEACHERS[0], TEACHERS[-1]}
    assert len(students) == 4 * 2 * 6 * 3 and {run.draw for run in students} == {0, 1, 2}
    assert {run.method for run in students} == {"taid", "skew_kl", "kl", "rkl"}
    flatter = [run for run in around if run.method == "teacher"]
    assert len(flatter) == 2 * 2 * 3 and all(run.temperature != 1 for run in flatter)
