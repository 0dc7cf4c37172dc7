"""Rows survive everything that happens to a results file: kills, copies cut short, two writers at once."""

import json
import multiprocessing
import subprocess
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from taid import files, results
from taid.results import (
    Conflict,
    Damaged,
    Provenance,
    Row,
    append,
    append_once,
    config_hash,
    finished,
    merge,
    provenance,
    read,
)

HERE = Provenance(commit="c0ffee", dirty=False, versions="python 3.11", device="cpu", date="2025-01-01")


def cell(seed: int, metrics: int = 3) -> list[Row]:
    """The rows of one small cell; metric k has the value k."""
    config = {"method": "taid", "seed": seed}
    row = Row(
        experiment="table1",
        scale="cpu",
        method="taid",
        teacher="llama-2",
        student="tinyllama",
        task="average",
        seed=seed,
        metric="",
        value=0.0,
        unit="points of 10",
        higher_is_better=True,
        config=config,
        config_hash=config_hash(config),
        seconds=1.5,
        **asdict(HERE),
    )
    return [replace(row, metric=f"metric {k}", value=float(k)) for k in range(metrics)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "table1.jsonl"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"value": float("nan")}, "its value is nan"),
        ({"value": "1.0"}, "its value is '1.0'"),
        ({"config": {"method": "taid", "seed": 7}}, "its config is not the one of its hash"),
    ],
)
def test_a_row_that_was_edited_is_damaged(changes, words, path):
    path.parent.mkdir()
    whole, edited, _ = cell(0)
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in (whole, replace(edited, **changes))))
    with pytest.raises(Damaged, match=f"line 2 is no row .{words}"):
        read(path)


@pytest.mark.parametrize("line", ["garbage", "", '{"a": 1}'])
def test_a_torn_line_after_a_damaged_one_hides_nothing(line, path):
    path.parent.mkdir()
    path.write_text(f'{json.dumps(asdict(cell(0)[0]))}\n{line}\n{{"experim')
    with pytest.warns(UserWarning, match="torn line"), pytest.raises(Damaged, match="line 2 is no row"):
        read(path)


def test_rows_come_back_as_written_and_in_order(path):
    append(path, cell(0))
    append(path, cell(1))
    assert read(path) == cell(0) + cell(1)
    assert finished(path) == {config_hash({"method": "taid", "seed": seed}) for seed in (0, 1)}


def test_a_missing_file_has_no_rows(path):
    assert read(path) == [] and finished(path) == set()


def test_every_line_is_one_json_object_with_the_fields_of_a_row(path):
    append(path, cell(0))
    lines = path.read_text().splitlines()
    assert [list(json.loads(line)) for line in lines] == [list(Row.__dataclass_fields__)] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_names_its_row_and_writes_nothing(path, value):
    append(path, cell(0))
    bad = [*cell(1)[:2], replace(cell(1)[2], value=value)]
    with pytest.raises(ValueError, match=r"taid, llama-2 → tinyllama, average, seed 1: metric 2 is"):
        append(path, bad)
    assert read(path) == cell(0)


def test_config_hash_depends_on_content_alone():
    assert config_hash({"a": 1, "b": [0.001]}) == config_hash({"b": (1e-3,), "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2}) != config_hash({"b": 2})
    # Oracle: printf '{"a":1}' | sha256sum
    assert config_hash({"a": 1}) == "015abd7f5cc5"


@pytest.mark.parametrize("kept", [1, 40, 200])  # bytes of the last line that survive
def test_a_torn_line_is_reported_and_its_cell_runs_again(path, kept):
    append(path, cell(0))
    append(path, cell(1))
    *whole, last = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in whole) + last[:kept])
    with pytest.warns(UserWarning, match="torn line"):
        assert finished(path) == {cell(0)[0].config_hash}
    with pytest.warns(UserWarning, match="torn line"):
        append(path, cell(2))
    with warnings.catch_warnings(action="error"):
        assert read(path) == cell(0) + cell(2)


def test_a_file_that_is_only_a_torn_line_is_empty(path):
    path.parent.mkdir()
    path.write_text('{"experiment": "tab')
    with pytest.warns(UserWarning, match="torn line"):
        assert read(path) == []


def test_a_line_that_is_no_row_is_named(path):
    append(path, cell(0))
    path.write_text(path.read_text() + '{"experiment": "table1"}\n')
    with pytest.raises(ValueError, match="line 4 is no row"):
        read(path)


def test_a_crash_while_writing_leaves_the_old_file(path, monkeypatch):
    append(path, cell(0))

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        append(path, cell(1))
    monkeypatch.undo()
    assert read(path) == cell(0)
    append(path, cell(1))  # the lock was released, the left-over partial file does no harm
    assert read(path) == cell(0) + cell(1)


def write_cells(path: Path, seeds: range, start) -> None:
    start.wait()
    for seed in seeds:
        append(path, cell(seed))


def test_two_processes_lose_nothing_and_keep_cells_whole(path):
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(2)
    halves = [range(30), range(30, 60)]
    workers = [spawn.Process(target=write_cells, args=(path, half, start)) for half in halves]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    rows = read(path)
    assert sorted(row.seed for row in rows[::3]) == list(range(60))
    assert all(rows[i : i + 3] == cell(rows[i].seed) for i in range(0, len(rows), 3))


def test_a_full_disk_keeps_the_rows_and_names_the_file(tmp_path, small_disk):
    """Of 16 kB; a cell takes 1.4 kB. Oracle: the cells of which no error was said."""
    with small_disk(tmp_path / "disk", "16k"):
        path, kept = tmp_path / "disk" / "rows.jsonl", []

        def fill():
            for seed in range(20):
                append(path, cell(seed))
                kept.extend(cell(seed))

        with pytest.raises(
            OSError, match="No space left.*nothing is written, and what was there is kept: .*rows.jsonl"
        ):
            fill()
        assert kept and read(path) == kept and [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


def test_a_file_in_the_place_of_the_folder_is_kept(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(OSError, match="runs"):
        append(tmp_path / "runs" / "rows.jsonl", cell(0))
    assert (tmp_path / "runs").read_text() == "mine"


def once(path: Path, seed: int) -> None:
    append_once(path, cell(seed))


def test_a_cell_that_another_process_has_finished_is_not_written_again(path):
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=once, args=(path, 0)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0] and read(path) == cell(0)
    append_once(path, cell(0) + cell(1))
    assert read(path) == cell(0) + cell(1)


# Rows of several machines


def test_a_merge_loses_nothing_doubles_nothing_and_may_be_repeated(tmp_path):
    here, one, other = (tmp_path / name for name in ("here", "one", "other"))
    append(here / "table1.jsonl", cell(0))
    append(one / "table1.jsonl", cell(0) + cell(1))
    append(other / "table1.jsonl", cell(1) + cell(2))
    append(other / "table2.jsonl", cell(0))
    assert merge(here, [one, other]) == {"table1.jsonl": 2, "table2.jsonl": 1}
    again = (here / "table1.jsonl").read_bytes()
    assert read(here / "table1.jsonl") == cell(0) + cell(1) + cell(2) and read(here / "table2.jsonl") == cell(
        0
    )
    assert merge(here, [one, other]) == merge(here, [here]) == {}
    assert (here / "table1.jsonl").read_bytes() == again


def test_a_merge_into_a_folder_that_is_not_there(tmp_path):
    append(tmp_path / "one" / "table1.jsonl", cell(0))
    merge(tmp_path / "new" / "folder", [tmp_path / "one"])
    assert read(tmp_path / "new" / "folder" / "table1.jsonl") == cell(0)


def test_two_answers_for_one_cell_are_named_and_nothing_is_written(tmp_path):
    here, one, other = (tmp_path / name for name in ("here", "one", "other"))
    append(one / "table1.jsonl", cell(0) + cell(1))
    append(other / "table1.jsonl", [*cell(1)[:2], replace(cell(1)[2], value=2.5)])
    words = r"seed 1: metric 2 is 2.0 in .*one/table1.jsonl and 2.5 in .*other/table1.jsonl"
    with pytest.raises(Conflict, match=words):
        merge(here, [one, other])
    append(one / "table2.jsonl", cell(0))
    append(other / "table2.jsonl", cell(0, metrics=2))
    with pytest.raises(Conflict, match="metric 2 is 2.0 in .* and None in"):
        merge(here, [one, other])
    assert not here.exists()


def test_time_and_place_are_no_second_answer(tmp_path):
    """A cell that two machines have run: the first is kept."""
    timed = [replace(row, metric="train_seconds", unit="seconds") for row in cell(0, metrics=1)]
    append(tmp_path / "one" / "a.jsonl", cell(0) + timed)
    slower = [replace(row, seconds=9.0, date="2026-01-01", value=row.value) for row in cell(0)]
    append(tmp_path / "other" / "a.jsonl", slower + [replace(row, value=9.0) for row in timed])
    assert merge(tmp_path / "one", [tmp_path / "other"]) == {}


def test_what_cannot_be_merged_is_a_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    append(tmp_path / "bad" / "table1.jsonl", cell(0))
    with open(tmp_path / "bad" / "table1.jsonl", "a") as file:
        file.write("{}\n")
    for source, words in (("empty", "no folder with files of rows"), ("bad", "line 4 is no row")):
        with pytest.raises(SystemExit) as end:
            results.main(["merge", str(tmp_path / "here"), str(tmp_path / source)])
        assert end.value.code == 2 and words in capsys.readouterr().err
    append(tmp_path / "good" / "table1.jsonl", cell(0))
    assert results.main(["merge", str(tmp_path / "here"), str(tmp_path / "good")]) == 0
    assert capsys.readouterr().out == f"cells that came into {tmp_path / 'here'}: table1.jsonl 1\n"


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "core.hooksPath=/dev/null"]
    command = ["git", "-C", folder, *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_provenance_tells_the_commit_and_changes_outside_results(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "sub").mkdir()
    code = tmp_path / "sub" / "experiment.py"
    code.write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = provenance(tmp_path / "sub")
    assert clean.commit == git(tmp_path, "rev-parse", "HEAD") and not clean.dirty

    append(tmp_path / "results" / "table1.jsonl", cell(0))
    assert not provenance(tmp_path / "sub").dirty  # a run's own rows
    code.write_text("2\n")
    assert provenance(tmp_path / "sub").dirty
    git(tmp_path, "checkout", "-q", ".")
    (tmp_path / "new.py").write_text("3\n")
    assert provenance(tmp_path / "sub").dirty


def test_provenance_without_a_repository_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    here = provenance(tmp_path)
    assert here.commit == "unknown" and here.dirty


def test_provenance_names_versions_threads_and_time(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")  # as workers have it
    here = provenance()
    assert here.versions.endswith("; instructions avx2")
    assert here.versions.startswith("python 3.") and "; numpy " in here.versions
    assert here.device.endswith(", 3 threads") and len(here.device) > len(", 3 threads")
    assert here.date.endswith("+00:00")
