"""The CPU time of calls that take turns, and what a call makes the process grow by."""

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple


def nothing() -> None:
    """No preparation."""


class Call(NamedTuple):
    """What is measured, `run`, and what has to happen before each run of it, `prepare`."""

    run: Callable[[], object]
    prepare: Callable[[], object] = nothing


class Time(NamedTuple):
    cpu: float  # seconds of this process, user and system: the page faults of fresh memory count
    wall: float


def timed(call: Call) -> Time:
    """The time of one run."""
    call.prepare()
    wall, cpu = time.perf_counter(), time.process_time()
    call.run()
    return Time(time.process_time() - cpu, time.perf_counter() - wall)


def interleaved(calls: Mapping[str, Call], repetitions: Mapping[str, int]) -> dict[str, list[Time]]:
    """Name → times. A repetition runs each call that has one to go, so that a busy moment meets them all.

    Run each once before: this is no warm-up.
    """
    times: dict[str, list[Time]] = {name: [] for name in calls}
    for repetition in range(max(repetitions.values())):
        for name, call in calls.items():
            if repetition < repetitions[name]:
                gc.collect()
                times[name].append(timed(call))
    return times


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MIB = -1, -3, 2**20  # of glibc's mallopt


def growth(call: Call) -> int | None:
    """Bytes by which one run makes the resident memory grow at its peak, its result included.

    All memory counts, whoever asks for it: PyTorch, compiled code, a kernel's own buffers. For an exact peak,
    blocks of a MiB and more come straight from the system and go back at once, as larger ones always do.
    None where the system does not tell (Linux with glibc does).
    """
    call.prepare()
    gc.collect()
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MIB)
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
    except (OSError, AttributeError):
        return None
    result = call.run()  # noqa: F841 (held until the peak is read)
    peak = _status("VmHWM")
    libc.mallopt(M_MMAP_THRESHOLD, 32 * MIB)  # both as glibc's own adaptation leaves them after a large block
    libc.mallopt(M_TRIM_THRESHOLD, 64 * MIB)
    return max(0, peak - before)


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024
