"""Table 6, protocol 2: the teachers of a seed, what is other than in the first, and how rates are chosen."""

from dataclasses import fields, replace

import pytest
import torch

from taid import results
from taid.studies import capacity, drawn_teachers, jobs, study
from taid.studies.capacity import NONE, TEACHERS
from taid.studies.drawn_teachers import CELLS, MAP_METHODS, MAP_SEEDS, SEARCH, SETTINGS, DrawnTeachers, Run

RUN = Run("smoke", "kl", "pythia-410m", 1, 1e-2)


def test_only_rates_and_warm_up_are_other_than_in_protocol_1():
    first, second = capacity.CPU, SETTINGS["cpu"]
    other = {f.name for f in fields(first) if getattr(first, f.name) != getattr(second, f.name)}
    assert other == {"distil", "learning_rates"} and max(second.learning_rates) == 0.1
    assert second.distil == replace(first.distil, warmup_steps=90) and first.distil.steps == 900
    assert not set(second.tuning_seeds) & set(range(50))


@pytest.mark.parametrize(("pace", "steps", "warm"), [(1.0, 900, 90), (0.5, 450, 45), (2.0, 1800, 180)])
def test_a_tenth_of_the_steps_is_warm_up_at_every_pace(pace, steps, warm):
    training = Run("cpu", "kl", "pythia-1b", 0, 1e-2, pace=pace).training
    assert (training.steps, training.warmup_steps) == (steps, warm)


def test_a_run_is_none_of_protocol_1():
    first = capacity.Run(*(getattr(RUN, f.name) for f in fields(RUN)))
    assert results.config_hash(first.config()) != results.config_hash(RUN.config())
    with pytest.raises(ValueError, match="unknown scale 'paper'; known: smoke, cpu"):
        replace(RUN, scale="paper")


def test_every_seed_has_teachers_of_its_own_and_those_to_tune_by_share_others():
    names = [drawn_teachers.drawn("pythia-1b", seed) for seed in (0, 1, 2, 100, 101, 102)]
    assert len(set(names)) == 4 and len(set(names[3:])) == 1
    assert not {int(name.rpartition("-")[2]) for name in names} & {0, 1, 2, 100, 101, 102}  # students' seeds


def test_a_run_is_taught_and_measured_by_the_teachers_of_its_seed(cache, monkeypatch):
    """Oracle: the models themselves, and the names that are asked for."""
    here, asked = DrawnTeachers(SETTINGS["smoke"]), []
    teachers = [here.source.teacher(drawn_teachers.drawn("pythia-410m", seed)) for seed in (0, 1)]
    first, second = (next(model.parameters()) for model in teachers)
    assert first.shape == second.shape and not torch.equal(first, second)
    reference, _ = here.model(replace(RUN, method="teacher"))
    assert torch.equal(next(reference.parameters()), second)
    logits = here.teacher_logits
    monkeypatch.setattr(
        here, "teacher_logits", lambda name, split: asked.append((name, split)) or logits(name, split)
    )
    here.target(RUN)
    student = here.source.student(RUN.student, RUN.seed)
    values = here.values(student, RUN, "validation")
    assert asked == [("pythia-410m-1001", "distil"), ("pythia-410m-1001", "validation")]
    others = here.values(student, replace(RUN, seed=0), "validation")  # one student, two teachers
    assert values["held_out_loss", "base"] == others["held_out_loss", "base"]
    assert values["kl_to_teacher", "base"] != others["kl_to_teacher", "base"]


def test_only_what_runs_need_is_prepared(monkeypatch):
    asked = []
    monkeypatch.setattr(study, "prepare_all", lambda *given: asked.append(given[3:]))
    drawn_teachers.prepare("cpu", [replace(RUN, seed=2), Run("cpu", "teacher", "pythia-1b", 2, 0.0)], 1)
    ((models, logits),) = asked
    assert models == [*(("teacher", f"{t}-1002", 0) for t in reversed(TEACHERS)), ("student", RUN.student, 2)]
    assert {name for name, _ in logits} == {f"{t}-1002" for t in TEACHERS} and len(logits) == 12


def test_rates_are_chosen_by_the_loss_of_seeds_that_are_not_tested(monkeypatch, tmp_path):
    """By hand: the first seed prefers 3e-3 to 1e-2 by a little, the mean over all does not; what is known is not run
    again, unless it is asked for."""
    asked = []
    losses = {3e-3: (3.00, 3.4, 3.4), 1e-2: (3.01, 3.1, 3.1), 3e-2: (3.5, 1, 1), 1e-1: (9.0, 1, 1)}

    def evaluate(cells, measure, rows, path, workers, title):
        done = results.finished(path)
        for run, split in cells:
            if results.config_hash(run.config() | {"experiment": SEARCH}) in done:
                continue
            asked.append((run.method, run.teacher, run.learning_rate, run.seed))
            loss = losses[run.learning_rate][run.seed - 100]
            results.append(path, rows(run, SEARCH, {("held_out_loss", "base"): loss}, 1.0))
            assert split == "validation"

    monkeypatch.setattr(jobs, "evaluate", evaluate)
    monkeypatch.setattr(drawn_teachers, "prepare", lambda *arguments: None)
    monkeypatch.setattr(jobs, "REFERENCE", tmp_path / "committed")
    path = tmp_path / "committed" / "table6_tuned.jsonl"
    assert drawn_teachers.tuned("cpu", path, 1) == dict.fromkeys(CELLS, 1e-2)
    count = len(CELLS) * (4 + 2 * 2)
    assert len(asked) == len(set(asked)) == count
    assert ("sft", NONE, 1e-2, 102) in asked and {seed for *_, seed in asked} == {100, 101, 102}
    own = tmp_path / "own" / path.name
    assert drawn_teachers.tuned("cpu", own, 1) == dict.fromkeys(CELLS, 1e-2) and len(asked) == count
    assert drawn_teachers.tuned("cpu", own, 1, True) == dict.fromkeys(CELLS, 1e-2)
    assert len(asked) == 2 * count


def test_the_map_has_four_methods_at_both_ends():
    runs = [Run("cpu", *cell, seed, 1e-2) for seed in range(5) for cell in CELLS]
    runs += [Run("cpu", "teacher", teacher, seed, 0.0) for teacher in TEACHERS for seed in range(5)]
    around = capacity.around(runs, MAP_METHODS, MAP_SEEDS)
    students = [run for run in around if run.method != "teacher"]
    assert {run.teacher for run in around} == {TEACHERS[0], TEACHERS[-1]}
    assert len(students) == 4 * 2 * 6 * 3 and {run.seed for run in students} == {0, 1, 2}
    assert {run.method for run in students} == {"taid", "skew_kl", "kl", "rkl"}
    flatter = [run for run in around if run.method == "teacher"]
    assert len(flatter) == 2 * 2 * 3 and all(run.temperature != 1 for run in flatter)
