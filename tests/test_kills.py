"""kill -9 at random points of two processes that share a folder: what is run again ends bit for bit, no row lost or twice.

    python tests/test_kills.py 50 [seed]      `make kill`; a few of them are a slow test

Each process does what a study does: keeps a teacher's logits, trains two students with checkpoints, keeps them, and
appends a row for each. Oracle: one process that nobody kills.
"""

import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import PAD, tiny_examples, tiny_model
from safetensors.torch import load_file
from transformers.utils import logging

from taid import results
from taid.data import Collator
from taid.objectives import objective
from taid.studies.training import Training, cached_model, fit
from taid.teacher import cached_teacher

SEEDS, TRAINING = (0, 1), Training(steps=8, batch_size=4, learning_rate=1e-2)


def study(folder: Path, seeds: tuple[int, ...]) -> None:
    """The cells of some seeds, in this order."""
    examples, collator = tiny_examples(24), Collator(PAD)
    teacher = cached_teacher(tiny_model(seed=9), examples, collator, folder / "logits")
    for seed in seeds:

        def train(seed=seed):
            student, work = tiny_model(seed=seed), folder / "work" / str(seed)
            method = objective("kl" if seed else "taid")
            options = dict(objective=method, teacher=lambda batch: teacher(batch), checkpoints=work)
            fit(student, examples, collator, TRAINING, seed=seed, **options)
            return student, None

        student = cached_model(folder / "models" / str(seed), train)
        value = sum(float(parameter.double().sum()) for parameter in student.parameters())
        each = [{"metric": "sum", "value": value}, {"metric": "seed", "value": float(seed)}]
        row = dict(
            experiment="kill", scale="smoke", method="kl", teacher="a", student="b", task="average", unit="1"
        )
        rows = results.cell_rows(each, {"seed": seed}, seed=seed, seconds=0.0, higher_is_better=True, **row)
        results.append_once(folder / "rows.jsonl", rows)


def left_by(folder: Path) -> tuple:
    """What must be the same: rows, weights, the teacher's logits."""
    rows = sorted((r.config_hash, r.metric, r.value) for r in results.read(folder / "rows.jsonl"))
    weights = {
        f"{seed} {name}": tensor.numpy().tobytes()
        for seed in SEEDS
        for name, tensor in load_file(folder / "models" / str(seed) / "model.safetensors").items()
    }
    teacher = cached_teacher(tiny_model(seed=9), tiny_examples(24), Collator(PAD), folder / "logits")
    return rows, weights, teacher(Collator(PAD)(tiny_examples(24))).numpy().tobytes()


def begun(folder: Path, seeds: tuple[int, ...]) -> int:
    """A process that does `study`; its id. It ends with 0, or 1 and what went wrong in `folder`."""
    if child := os.fork():
        return child
    code = 1
    try:
        with open(os.devnull, "w") as nowhere:
            for stream in (1, 2):
                os.dup2(nowhere.fileno(), stream)
        study(folder, seeds)
        code = 0
    except BaseException as error:
        (folder / f"error-{os.getpid()}").write_text(repr(error))
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trials(kills: int, seed: int, folder: Path) -> Iterator[tuple[int, str]]:
    """Until so many processes were killed at work: (how many in this trial, what happened in it)."""
    rng, killed, trial = random.Random(seed), 0, 0
    started = time.monotonic()
    (folder / "whole").mkdir()
    assert ended(begun(folder / "whole", SEEDS)) == 0, [p.read_text() for p in folder.glob("*/error-*")]
    lasts, expected = time.monotonic() - started, left_by(folder / "whole")
    while killed < kills:
        here, trial = folder / str(trial), trial + 1
        here.mkdir()
        moments = sorted(rng.uniform(0, lasts) for _ in range(2))
        children, began, codes = [begun(here, SEEDS), begun(here, SEEDS[::-1])], time.monotonic(), []
        rng.shuffle(children)
        for moment, child in zip(moments, children, strict=True):
            time.sleep(max(0.0, moment - (time.monotonic() - began)))
            os.kill(child, signal.SIGKILL)
            codes.append(ended(child))
        again = [ended(child) for child in (begun(here, SEEDS), begun(here, SEEDS[::-1]))]
        errors = [path.read_text() for path in here.glob("error-*")]
        same = again == [0, 0] and left_by(here) == expected
        killed += codes.count(-signal.SIGKILL)
        times = " and ".join(f"{moment:.2f} s" for moment in moments)
        fault = "as if never" if same else f"DIFFERS: {again} {errors}"
        yield codes.count(-signal.SIGKILL), f"killed after {times} of {lasts:.2f}, {codes}: {fault}"


@pytest.mark.slow
def test_what_is_killed_and_run_again_ends_as_if_it_never_was(tmp_path):
    assert not [told for _, told in trials(5, 0, tmp_path) if "DIFFERS" in told]


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    killed, failed = 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        number, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
        for kills, told in trials(number, start, Path(scratch)):
            killed, failed = killed + kills, failed + ("DIFFERS" in told)
            print(told, flush=True)
    print(f"{killed} kills, {failed} trials that differ")
    sys.exit(bool(failed))
