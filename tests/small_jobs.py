"""Jobs for workers, in a module of their own: a worker imports it, and nothing that takes seconds to import."""

import os
import time
from pathlib import Path


def square(x: int, folder: str) -> tuple[int, str | None]:
    if x < 0:
        raise ValueError(f"no square for {x}")
    (Path(folder) / str(x)).touch()
    return x * x, os.environ.get("OMP_NUM_THREADS")


def process(x: int) -> int:
    return os.getpid()


def slow_square(x: int, folder: str) -> tuple[int, str | None]:
    time.sleep(0.2)
    return square(x, folder)


def instructions(_) -> tuple[str, int]:
    import torch

    return torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()


def fetched_pages(size: int) -> tuple[int, int]:
    """Faults of the first and of the second allocation of `size` bytes, the first freed before."""
    from resource import RUSAGE_SELF, getrusage

    counts = [getrusage(RUSAGE_SELF).ru_minflt]
    for _ in range(2):
        (b"\0" * size).isascii()  # not calloc's pages of zeros, which are not fetched
        counts.append(getrusage(RUSAGE_SELF).ru_minflt)
    return counts[1] - counts[0], counts[2] - counts[1]
