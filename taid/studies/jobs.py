"""Independent jobs over a few single-threaded worker processes, with progress and the time left.

Small models gain nothing from a second thread: two processes of one thread beat one of two.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from taid import results

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def arguments(description: str, scales: Iterable[str], seeds: int) -> tuple[str, int, int, Path]:
    """(scale, number of seeds, workers, folder of the rows) from a study's command line; `seeds` is its default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", choices=[*scales], default="cpu")
    parser.add_argument("--seeds", type=int, default=seeds, help="seeds 0 … n − 1")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the rows")
    given = parser.parse_args()
    return given.scale, given.seeds, given.workers, given.results


def run(
    function: Callable, jobs: Sequence[tuple], workers: int, title: str
) -> Iterator[tuple[tuple, object]]:
    """Yield (job, function(*job)) as the jobs finish, in any order; they start in the order given.

    `function` is a module's own function, so that a fresh process can import it. A job's exception is raised here
    when its turn comes, after which no job starts but the few that the workers hold already; what was yielded before
    it is kept.
    """
    if not jobs:
        return
    os.environ.update(THREADS)  # read by the workers when they import torch
    started = time.monotonic()
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(function, *job): job for job in jobs}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                job = futures[future]
                yield job, future.result()
                elapsed = time.monotonic() - started
                left = elapsed / done * (len(jobs) - done)
                name = " ".join(str(part) for part in job)
                print(
                    f"[{title} {done}/{len(jobs)}, {clock(elapsed)}, {clock(left)} left] {name}", flush=True
                )
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            raise


def evaluate(
    cells: Mapping[tuple, Sequence[str]],
    measure: Callable,
    rows: Callable,
    path: Path,
    workers: int,
    title: str,
) -> None:
    """Run the jobs with cells that `path` has no rows of, and append their rows as they finish.

    `cells` maps a job to the experiments that its numbers belong to; a job starts with its run, of which
    `config()` together with the experiment makes a cell's hash. measure(*job) returns (values, seconds), and
    rows(run, experiment, values, seconds) the cell's rows.
    """
    finished = results.finished(path)
    todo = [
        job
        for job, experiments in cells.items()
        if any(results.config_hash(job[0].config() | {"experiment": e}) not in finished for e in experiments)
    ]
    for job, (values, seconds) in run(measure, todo, workers, title):
        for experiment in cells[job]:
            results.append(path, rows(job[0], experiment, values, seconds))


def measured(path: Path, runs: Iterable, experiment: str, metric: str, task: str) -> dict:
    """{run: value} of one metric and task of an experiment, for the runs that have rows in `path`; a later row wins."""
    values = {r.config_hash: r.value for r in results.read(path) if (r.metric, r.task) == (metric, task)}
    hashes = {run: results.config_hash(run.config() | {"experiment": experiment}) for run in runs}
    return {run: values[h] for run, h in hashes.items() if h in values}


def clock(seconds: float) -> str:
    """Minutes and seconds, "3:07"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
