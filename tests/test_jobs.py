"""Jobs over processes: all are done, errors come through and stop the rest, progress is told."""

import re
import sys
from pathlib import Path

import pytest
from small_jobs import instructions, process, slow_square, square

from taid import results
from taid.studies import instruction_tuning, jobs, launchers


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_every_job_is_done_once_and_told(workers, tmp_path, capsys):
    todo = [(x, str(tmp_path)) for x in range(4)]
    found = list(jobs.run(square, todo, workers, "squares"))
    assert sorted(found) == [(job, (job[0] ** 2, "1")) for job in todo], (
        "single-threaded results, with their jobs"
    )
    assert re.fullmatch(r"\[squares 4/4 jobs, \d+:\d\d, 0:00 left\] \d .*\n", capsys.readouterr().out)


def test_workers_outlive_a_phase_and_not_their_settings(monkeypatch, tmp_path):
    """Oracle: the processes' own numbers."""

    def workers() -> set[int]:
        return {pid for _, pid in jobs.run(process, [(x,) for x in range(4)], 1, "phase")}

    first = workers()
    assert workers() == first and len(first) == 1
    monkeypatch.setenv("TAID_CACHE", str(tmp_path / "another"))
    assert workers() != first


def test_workers_compute_alike_on_processors_that_differ():
    """Two descriptions of processors by hand; and this machine's own worker."""
    assert launchers.arithmetic("flags : fpu avx2 avx512f") == launchers.arithmetic("flags : avx2")
    assert "ATEN_CPU_CAPABILITY" not in launchers.arithmetic(
        "Features : fp asimd"
    )  # it would ask for what is not there
    known = launchers.CPUINFO.exists() and "avx2" in launchers.CPUINFO.read_text().split()
    [(_, (used, threads))] = jobs.run(instructions, [(0,)], 1, "title")
    assert threads == 1 and (not known or used == "AVX2")


def test_no_seed_that_chooses_a_rate_is_tested(monkeypatch, capsys):
    """Seeds 0 … 99 may be; of 101 the last would be the first tuning seed."""
    asked: list[int] = []

    def study(seeds: str) -> None:
        monkeypatch.setattr("sys.argv", ["study.py", "--seeds", seeds])
        jobs.command(lambda *given: asked.append(given[1]), "A study.", ["cpu"], seeds=1)

    study("100")
    with pytest.raises(SystemExit):
        study("101")
    assert asked == [100] and "seed 100 chooses learning rates and is never tested" in capsys.readouterr().err
    assert min(jobs.TUNING_SEEDS) == 100


def test_no_jobs_start_no_process():
    assert list(jobs.run(square, [], 2, "none")) == []


def test_an_error_comes_through_and_the_rest_is_not_started(tmp_path):
    """What finished before is kept. A worker and its queue hold two further jobs at most, which cannot be called back."""
    todo = [(1, str(tmp_path)), (-1, str(tmp_path)), *((x, str(tmp_path)) for x in range(2, 12))]
    running = jobs.run(slow_square, todo, 1, "squares")
    assert next(running)[0] == todo[0]
    with pytest.raises(ValueError, match="no square for -1"):
        list(running)
    assert (tmp_path / "1").exists() and len(list(tmp_path.iterdir())) <= 3


def test_leaving_early_stops_the_rest(tmp_path):
    running = jobs.run(slow_square, [(x, str(tmp_path)) for x in range(12)], 1, "squares")
    next(running)
    running.close()
    assert len(list(tmp_path.iterdir())) <= 3


def test_the_value_of_a_run_is_its_last_one_of_that_experiment_metric_and_task(tmp_path):
    path = tmp_path / "rows.jsonl"
    first, second, absent = (
        instruction_tuning.Run("cpu", "kl", "phi-3-mini", 0, rate) for rate in (1e-3, 3e-3, 1e-2)
    )
    for run, experiment, task, value in (
        (first, "search", "average", 1.0),
        (first, "search", "average", 2.0),
        (second, "search", "average", 3.0),
        (first, "table", "average", 4.0),
        (first, "search", "synonym", 5.0),
        (second, "table", "average", 6.0),
    ):
        results.append(path, instruction_tuning.rows(run, experiment, {("score", task): value}, 1.0))
        results.append(path, instruction_tuning.rows(run, experiment, {("held_out_loss", task): 7.0}, 1.0))
    found = jobs.measured(path, [first, second, absent], "search", "score", "average")
    assert found == {first: 2.0, second: 3.0}


def given(monkeypatch, *arguments: str, **defaults) -> jobs.Arguments:
    """What a command makes of its arguments."""
    found: list[jobs.Arguments] = []
    monkeypatch.setattr("sys.argv", ["study.py", *arguments])
    jobs.command(lambda *a: found.append(jobs.Arguments(*a)), "A study.", ["smoke", "cpu"], **defaults)
    return found[0]


def test_the_command_line_of_a_study(monkeypatch):
    assert given(monkeypatch, seeds=4) == ("cpu", 4, jobs.Workers(2), Path("runs/cpu"))
    arguments = ("--scale", "smoke", "--seeds", "1", "--workers", "3", "--results", "elsewhere")
    assert given(monkeypatch, *arguments, seeds=4) == ("smoke", 1, jobs.Workers(3), Path("elsewhere"))
    elsewhere = given(monkeypatch, "--workers", "40", "--launcher", "slurm", "--shard", "3/4", seeds=1)
    assert elsewhere.workers == (40, "slurm", (3, 4))
    assert given(monkeypatch, "--scale", "smoke", seeds=4).results == Path("runs/smoke")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scale", "huge"), "invalid choice: 'huge' (choose from"),
        (("--workers", "0"), "'0' is not a whole number from 1 on"),
        (("--shard", "0/4"), "'0/4' is no part such as 1/4 … 4/4"),
        (("--shard", "5/4"), "'5/4' is no part"),
        (("--shard", "1"), "'1' is no part"),
        (("--launcher", "cloud"), "invalid choice: 'cloud' (choose from"),
        (("--seeds", "-1"), "'-1' is not a whole number from 1 on"),
        (("--seeds", "two"), "'two' is not a whole number from 1 on"),
        (("--results", __file__), "is no folder"),
        (("--scale", "smoke", "--results", str(jobs.REFERENCE)), "rows of the scale smoke mean nothing"),
        (
            ("--scale", "smoke", "--results", str(jobs.REFERENCE / "gpu")),
            "rows of the scale smoke mean nothing",
        ),
    ],
)
def test_a_command_that_makes_no_sense_ends_with_a_sentence(arguments, words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        given(monkeypatch, *arguments, seeds=4)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_what_is_refused_while_running_is_a_sentence_too(monkeypatch, capsys):
    def main(*_):
        raise jobs.Refused("run `make table1` first")

    monkeypatch.setattr("sys.argv", ["study.py"])
    with pytest.raises(SystemExit) as end:
        jobs.command(main, "A study.", ["cpu"])
    assert end.value.code == 2 and capsys.readouterr().err == "study.py: run `make table1` first\n"


def test_a_launcher_that_is_not_here_is_a_sentence(monkeypatch, capsys):
    def main(scale, seeds, workers, folder):
        list(jobs.run(square, [(1, str(folder))], workers, "squares"))

    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it could not be imported
    for launcher, words in (("slurm", "there is no sbatch here"), ("ray", "pip install ray")):
        monkeypatch.setattr("sys.argv", ["study.py", "--launcher", launcher])
        with pytest.raises(SystemExit) as end:
            jobs.command(main, "A study.", ["cpu"])
        assert end.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "rows.jsonl"), OSError(28, "No space")]
)
def test_a_disk_that_refuses_is_a_sentence(error, monkeypatch, capsys):
    def main(*_):
        raise error

    monkeypatch.setattr("sys.argv", ["study.py"])
    with pytest.raises(SystemExit) as end:
        jobs.command(main, "A study.", ["cpu"])
    assert end.value.code == 2 and capsys.readouterr().err == f"study.py: {error}\n"


def test_a_shard_that_waits_for_others_is_no_failure(monkeypatch, capsys):
    def main(*_):
        raise jobs.Unfinished("run the other shards")

    monkeypatch.setattr("sys.argv", ["study.py", "--shard", "1/2"])
    jobs.command(main, "A study.", ["cpu"])
    assert capsys.readouterr().out == "study.py: run the other shards\n"


def test_the_best_rate_of_each_cell_by_hand():
    runs = {
        (method, rate): instruction_tuning.Run("cpu", method, "phi-3-mini", 0, rate)
        for method in ("kl", "taid")
        for rate in (1e-3, 1e-2)
    }
    found = dict(zip(runs.values(), (1.0, 2.0, 4.0, 3.0), strict=True))
    assert jobs.best(found, lambda run: run.method, max) == {"kl": 1e-2, "taid": 1e-3}
    assert jobs.best(found, lambda run: run.method, min) == {"kl": 1e-3, "taid": 1e-2}


def test_halving_tries_every_rate_once_and_the_better_half_on_all_seeds():
    """By hand: on seed 100 the cell "a" likes 4 best, over three seeds 3; "b" the reverse; 1 and 2 go no further."""
    points = {1: (1, 9, 9), 2: (2, 9, 9), 3: (5, 5, 5), 4: (6, 3, 3)}
    asked = []

    def scores(runs):
        asked.append(runs)
        return {
            (cell, rate, seed): points[rate if cell == "a" else 5 - rate][seed - 100]
            for cell, rate, seed in runs
        }

    rates = {"a": (1, 2, 3, 4), "b": (1, 2, 3, 4)}
    assert jobs.halving(rates, lambda *run: run, (100, 101, 102), scores) == {"a": 3, "b": 2}
    first, second = asked
    assert first == [(cell, rate, 100) for cell in "ab" for rate in (1, 2, 3, 4)]
    assert {run[:2] for run in second} == {("a", 3), ("a", 4), ("b", 1), ("b", 2)} and len(second) == 4 * 3


def test_halving_leaves_a_rate_where_there_is_one_to_choose():
    assert jobs.halving({"a": (7,)}, lambda *run: run, (100,), lambda runs: dict.fromkeys(runs, 0.0)) == {
        "a": 7
    }


def test_scores_to_choose_by_are_sums_over_metrics_of_what_is_committed_and_what_is_new(
    tmp_path, monkeypatch
):
    """By hand: −loss − divergence; a later row in the folder wins over a committed one; nothing known is asked for, and
    what is asked for stays the same after a kill, so that a shard's part does."""
    committed, path = tmp_path / "committed" / "rows.jsonl", tmp_path / "own" / "rows.jsonl"
    monkeypatch.setattr(jobs, "REFERENCE", committed.parent)
    first, second, third = (
        instruction_tuning.Run("cpu", "kl", "phi-3-mini", 0, rate) for rate in (1e-3, 3e-3, 1e-2)
    )

    def keep(where, run, loss, divergence):
        values = {("held_out_loss", "average"): loss, ("kl_to_teacher", "average"): divergence}
        results.append(where, instruction_tuning.rows(run, "search", values, 1.0))

    keep(committed, first, 1.0, 0.5)
    asked = []

    def fill(runs):
        asked.append([run.learning_rate for run in runs])
        if second in runs and len(asked) == 1:
            keep(path, second, 2.0, 0.25)
            raise KeyboardInterrupt
        keep(path, third, 3.0, 0.0)

    metrics = {"held_out_loss": -1, "kl_to_teacher": -1}
    scores = jobs.searched(path, lambda run: "search", metrics, fill)
    with pytest.raises(KeyboardInterrupt):
        scores([first, second, third])
    assert scores([first, second, third]) == {first: -1.5, second: -2.25, third: -3.0}
    assert asked == [[3e-3, 1e-2]] * 2 and scores([first, third]) == {first: -1.5, third: -3.0}
    keep(path, first, 5.0, 0.0)
    assert scores([first]) == {first: -5.0} and len(asked) == 2
    assert jobs.searched(path, "search", {"held_out_loss": 1}, fill, afresh=True)([first]) == {first: 5.0}
