"""Jobs on this machine, by submitit and by Ray: all are done once, errors come through, a killed worker loses nothing."""

import os
import signal
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pytest
import ray

from taid import results
from taid.studies import jobs, launchers
from taid.studies.launchers import LAUNCHERS, Died

EACH = ("local", "slurm", "ray")
pytestmark = pytest.mark.slow  # a cluster takes seconds to begin


@dataclass(frozen=True)
class Run:
    seed: int
    folder: str

    def config(self) -> dict:
        return asdict(self)


def measure(run: Run, task: str) -> tuple[dict, float]:
    """Its square; told in the folder, so that a second measurement would be seen."""
    if run.seed < 0:
        raise ValueError(f"no square for {run.seed}")
    with open(Path(run.folder) / "measured", "a") as file:
        file.write(f"{run.seed}\n")
    assert os.environ["OMP_NUM_THREADS"] == "1"
    return {("square", task): float(run.seed**2)}, 0.1


def dies_once(run: Run, task: str) -> tuple[dict, float]:
    """The worker of run 2 is killed, the first time."""
    fatal = Path(run.folder) / "fatal"
    if run.seed == 2 and fatal.exists():
        fatal.unlink()
        time.sleep(1)  # others finish first
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(run, task)


def rows(run: Run, experiment: str, values: dict, seconds: float) -> list[results.Row]:
    each = [{"metric": m, "task": t, "value": v} for (m, t), v in values.items()]
    shared = dict(scale="smoke", method="kl", teacher="a", student="b", seed=run.seed, unit="of 1")
    config = run.config() | {"experiment": experiment}
    return results.cell_rows(
        each, config, experiment=experiment, seconds=seconds, higher_is_better=True, **shared
    )


@pytest.fixture(scope="module")
def importable():
    """This module, for processes that are begun from nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def one_ray(importable):
    """Ray with two workers on this machine, for all tests: it takes seconds to begin."""
    launchers.join_ray(2)
    yield
    ray.shutdown()


@pytest.fixture(params=EACH)
def engine(request, importable, tmp_path, monkeypatch):
    """Workers of each launcher, two at a time; submitit on this machine."""
    if request.param == "ray":
        request.getfixturevalue("one_ray")
    monkeypatch.setenv("TAID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(LAUNCHERS, "slurm", partial(launchers.slurm, cluster="local"))
    return jobs.Workers(2, request.param)


def test_every_cell_is_measured_once_and_has_its_rows(engine, tmp_path):
    path = tmp_path / "rows.jsonl"
    table = {(Run(seed, str(tmp_path)), "all"): ["a", "b"] for seed in range(5)}
    for _ in range(2):  # the second time there is nothing to do
        jobs.evaluate(table, measure, rows, path, engine, "squares")
    assert sorted((r.experiment, r.seed, r.value) for r in results.read(path)) == [
        (experiment, seed, seed**2) for experiment in "ab" for seed in range(5)
    ]
    assert sorted((tmp_path / "measured").read_text().split()) == ["0", "1", "2", "3", "4"]


def test_an_error_comes_through_as_itself(engine, tmp_path):
    with pytest.raises(ValueError, match="no square for -1"):
        list(jobs.run(measure, [(Run(-1, str(tmp_path)), "all")], engine, "squares"))


def test_a_killed_worker_loses_nothing_and_doubles_nothing(engine, tmp_path):
    """Ray gives the job out again by itself; of the others the same command goes on."""
    path = tmp_path / "rows.jsonl"
    table = {(Run(seed, str(tmp_path)), "all"): ["a"] for seed in range(5)}
    evaluate = partial(jobs.evaluate, table, dies_once, rows, path, engine, "squares")
    (tmp_path / "fatal").touch()
    if engine.launcher == "ray":
        evaluate()
    else:
        with pytest.raises(Died, match=r"the worker of Run\(seed=\d.* died .*give the same command again"):
            evaluate()
        evaluate()
    assert not (tmp_path / "fatal").exists()
    assert sorted(row.seed for row in results.read(path)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_shards_are_the_whole_and_share_nothing(split, tmp_path):
    """Where the split is to choose by, a shard waits for the others' rows."""
    runs = [Run(seed, str(tmp_path)) for seed in range(7)]
    table, folders = {(run, split): ["a"] for run in runs}, []
    for part in (1, 2, 3):
        folders.append(tmp_path / str(part))
        one = partial(jobs.evaluate, table, measure, rows, folders[-1] / "rows.jsonl")
        who, others = jobs.Workers(2, shard=(part, 3)), 7 - len(range(part - 1, 7, 3))
        if split == "validation":
            with pytest.raises(
                jobs.Unfinished, match=f"lacks {others} of the 7 runs of 'squares'.*every shard"
            ):
                one(who, "squares")
        else:
            one(who, "squares")
    results.merge(tmp_path / "all", folders)
    jobs.evaluate(
        table, measure, rows, tmp_path / "all" / "rows.jsonl", jobs.Workers(2, shard=(2, 3)), "squares"
    )
    found = jobs.measured(tmp_path / "all" / "rows.jsonl", runs, "a", "square", split)
    assert found == {run: run.seed**2 for run in runs}
    assert sorted((tmp_path / "measured").read_text().split()) == [str(seed) for seed in range(7)]
