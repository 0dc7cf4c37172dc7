"""The time of calls that take turns, and the memory that a call takes, on a CPU or a GPU."""

import gc
import os
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.autograd.profiler import profile

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler prints two lines at each use


def nothing() -> None:
    """No preparation."""


class Call(NamedTuple):
    """What is measured, `run`; what has to happen before each run of it, `prepare`; the memory it takes."""

    run: Callable[[], object]
    prepare: Callable[[], object] = nothing
    memory: int = 0  # bytes, had from the system once before each timing
    device: str = "cpu"


class Time(NamedTuple):
    busy: float  # seconds of the processor that computes
    wall: float


def clock(device: str) -> float:
    """Seconds so far: of this process on a CPU, user and system, so that the page faults of fresh memory count; of
    the clock on the wall with a GPU, once all that it was given is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(call: Call) -> Time:
    """The time of one run on a CPU, of two on a GPU: one by itself, on the wall, and one queued behind other work,
    as it is in training, where Python is ahead of the GPU.

    A virtual machine hands memory that lies idle back to its host, and whoever touches it next pays for
    the way there: so that much is touched and freed before the clock starts, alike for all.
    """
    call.prepare()
    torch.empty(call.memory, dtype=torch.uint8).fill_(0)
    wall, busy = time.perf_counter(), clock(call.device)
    call.run()
    own = Time(clock(call.device) - busy, time.perf_counter() - wall)
    return own if call.device == "cpu" else own._replace(busy=_queued(call))


def _queued(call: Call) -> float:
    """Seconds of the GPU for one run, behind a product of matrices that lasts until Python has asked for all of it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call.prepare()
    square = torch.ones(8192, 8192, dtype=torch.bfloat16, device=call.device)
    for _ in range(4):  # 1.1e12 operations each: some 6 ms on an H100
        square @ square
    start.record()
    call.run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def interleaved(calls: Mapping[str, Call], repetitions: Mapping[str, int]) -> dict[str, list[Time]]:
    """Name → times. A repetition runs each call that has one to go, so that a busy moment meets them all.

    Run each once before: nothing here warms up.
    """
    times: dict[str, list[Time]] = {name: [] for name in calls}
    for repetition in range(max(repetitions.values())):
        for name, call in calls.items():
            if repetition < repetitions[name]:
                gc.collect()
                times[name].append(timed(call))
    return times


def peak_memory(call: Call) -> int:
    """Bytes that PyTorch allocates in one run, at the highest of what is held at once, the result included.

    That counts whole and compiled operations alike; what a kernel allocates by itself it does not see
    (tests/test_benchmarks.py holds it against the memory of the process).
    """
    call.prepare()
    gc.collect()
    if call.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call.run()
        return torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as profiler:
        result = call.run()  # noqa: F841 (held to the end)
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), initial=0))
