"""Who does a study's jobs: processes of this machine, a Slurm cluster (submitit), a Ray cluster. One interface,

    launcher(function, jobs, at_a_time) -> iterator of (job, function(*job)), in any order, as the jobs finish.

`function` is a module's own, so that another process can import it. Rows are appended by whoever called, never by a
worker: one that is killed takes an unfinished job with it and nothing else. A job's exception is raised when its turn
comes; then, and where the iterator is closed, jobs that have not begun do not begin.

On a cluster all machines need this environment, the code, and one `TAID_CACHE`: models and data are kept there.
"""

import importlib
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from taid.files import cache_dir

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
INSTRUCTIONS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}  # of PyTorch's own kernels and of MKL's
CPUINFO = Path("/proc/cpuinfo")
SETTINGS = ("TAID_HUB", "HF_HUB_OFFLINE", "PYTHONPATH")  # of the environment, where they are set
LONGEST = 24 * 60  # minutes of a Slurm job; SBATCH_TIMELIMIT says otherwise

Done = Generator[tuple[tuple, Any], None, None]


class Absent(RuntimeError):
    """An engine that is not here; the message says how to have it."""


class Died(RuntimeError):
    """A worker ended without an answer."""

    def __init__(self, job: tuple, why: object):
        name = " ".join(map(str, job))
        super().__init__(
            f"the worker of {name} died ({why}): killed, say, or out of memory. What was finished is kept: give the "
            "same command again, with fewer workers if memory was short"
        )


def local(function: Callable, jobs: Sequence[tuple], at_a_time: int) -> Done:
    """Processes of this machine, of one thread each: small models gain nothing from a second."""
    os.environ.update(arithmetic(_processor()))  # read by the workers when they import torch
    pool = _pool(at_a_time, tuple(_handed_on().items()))
    futures = {pool.submit(function, *job): job for job in jobs}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        _pool.cache_clear()
        raise Died(futures[future], "the pool is broken") from error
    finally:
        for future in futures:
            future.cancel()


@lru_cache(maxsize=1)
def _pool(at_a_time: int, settings: tuple) -> ProcessPoolExecutor:
    """Workers that outlive a phase of a study, with what they have opened; others for other settings."""
    return ProcessPoolExecutor(at_a_time, mp_context=get_context("spawn"))


def slurm(function: Callable, jobs: Sequence[tuple], at_a_time: int, cluster: str = "slurm") -> Done:
    """One job array. Partition, account, GPUs and time are sbatch's own variables (SBATCH_PARTITION, SBATCH_GPUS, …).

    `cluster="local"` is submitit's stand-in on one machine, which starts all jobs at once.
    """
    submitit = _engine("submitit")
    lost = submitit.core.utils.UncompletedJobError
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise Absent(
            "there is no sbatch here: launch where Slurm's commands are, or with --launcher local or ray"
        )
    os.environ.update(_handed_on())  # sbatch hands the environment on
    executor = submitit.AutoExecutor(cache_dir() / "launched", cluster=cluster)
    limits = {"slurm_array_parallelism": at_a_time} if cluster == "slurm" else {}
    executor.update_parameters(name="taid", timeout_min=LONGEST, cpus_per_task=1, **limits)
    array = executor.map_array(partial(_outcome, function), *zip(*jobs, strict=True))
    submitted = dict(zip(array, jobs, strict=True))
    try:
        for done in submitit.helpers.as_completed(array, poll_frequency=1):
            try:
                value, error = done.result()
            except lost as how:
                raise Died(submitted[done], f"job {done.job_id}, {done.state}") from how
            if error is not None:
                raise error
            yield submitted[done], value
    finally:
        for job in submitted:
            if not job.done():
                job.cancel()


def _outcome(function: Callable, *job) -> tuple[Any, Exception | None]:
    """(value, error): submitit would hand on an error's words alone."""
    try:
        return function(*job), None
    except Exception as error:
        return None, error


def ray(function: Callable, jobs: Sequence[tuple], at_a_time: int) -> Done:
    """The cluster of RAY_ADDRESS, else one of this machine. A job whose worker dies is given out again by Ray. Where
    the cluster has GPUs, a job has its share of one, at most a whole."""
    ray = _engine("ray")
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    begun = join_ray(at_a_time)
    try:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / at_a_time)
        task, waiting = ray.remote(num_gpus=gpus)(function), [*jobs]
        running: dict[Any, tuple] = {}
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = waiting.pop(0)
                running[task.remote(*job)] = job
            [done], _ = ray.wait([*running])
            job = running.pop(done)
            try:
                yield job, ray.get(done)
            except lost as how:
                raise Died(job, f"{type(how).__name__}, and Ray's retries are used up") from how
    finally:
        if begun:
            ray.shutdown()


def join_ray(at_a_time: int) -> bool:
    """Whether this process was no part of Ray before; it is from now on."""
    ray = _engine("ray")
    if ray.is_initialized():
        return False
    size: dict[str, Any] = (
        {} if "RAY_ADDRESS" in os.environ else {"num_cpus": at_a_time, "include_dashboard": False}
    )
    ray.init(runtime_env={"env_vars": _handed_on()}, **size)
    return True


def _engine(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"this launcher needs {name}: pip install {name}") from error


def _handed_on() -> dict[str, str]:
    """Of the environment, what a worker needs; the cache by its whole path."""
    kept = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return arithmetic(_processor()) | kept | {"TAID_CACHE": str(cache_dir().resolve())}


def arithmetic(cpuinfo: str) -> dict[str, str]:
    """The environment in which numbers depend on the machine as little as can be (docs/reproducing.md), for a
    processor described as in Linux' /proc/cpuinfo: one thread, and AVX2 where it is there, whatever else is."""
    return THREADS | (INSTRUCTIONS if "avx2" in cpuinfo.split() else {})


def _processor() -> str:
    return CPUINFO.read_text() if CPUINFO.exists() else ""


LAUNCHERS: dict[str, Callable[[Callable, Sequence[tuple], int], Done]] = {
    "local": local,
    "slurm": slurm,
    "ray": ray,
}
