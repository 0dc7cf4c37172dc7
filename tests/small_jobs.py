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
