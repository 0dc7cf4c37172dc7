"""The C++ engine: `kernel.cpp`, compiled for this processor on first use, and called through ctypes."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from taid.files import cache_dir
from taid.fused.rows import Rows

SOURCE = Path(__file__).with_name("kernel.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-Wno-psabi")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Type


class Job(ctypes.Structure):
    """struct Job of the kernel."""

    _fields_ = (
        [
            (name, ctypes.c_void_p)
            for name in ["student", "teacher", "out", "weights", "labels", "values", "slopes"]
        ]
        + [(f"{name}_stride", ctypes.c_int64) for name in ["student", "teacher", "out"]]
        + [(name, ctypes.c_int64) for name in ["rows", "vocabulary"]]
        + [(name, ctypes.c_int32) for name in ["loss", "student_type", "teacher_type", "threads"]]
        + [(name, ctypes.c_float) for name in ["scale", "a", "b", "temperature"]]
    )


def available(*logits: Tensor) -> bool:
    """Whether the kernel is there and takes these logits: on the CPU, and `readable`."""
    return all(x.device.type == "cpu" and readable(x) for x in logits) and library() is not None


def readable(logits: Tensor) -> bool:
    """Whether a kernel can read these by their address: at most fp32, unit stride along V, and in memory as
    they are (a subclass, as DTensor, may have none, and a lazily negated view the opposite)."""
    in_memory = type(logits) in (Tensor, torch.nn.Parameter) and logits.layout == torch.strided
    return in_memory and not logits.is_neg() and logits.dtype in TYPES and logits.stride(-1) == 1


def has(loss: str) -> bool:
    """Whether the kernel, which is there, knows the loss of this name."""
    return _number(loss) >= 0


def run(rows: Rows) -> None:
    """The engine, for logits as `available` asks for and a loss that it `has`; as many threads as torch has."""
    labels, temperature, a, b = arguments(rows.parameters)
    student, teacher, out = rows.student, rows.teacher, rows.out
    weights = None if rows.weights is None else rows.weights.contiguous()
    tensors = (student, teacher, out, weights, labels, rows.values, rows.slopes)
    job = Job(
        *(None if x is None else x.data_ptr() for x in tensors),
        student.stride(0),
        teacher.stride(0),
        0 if out is None else out.stride(0),
        *student.shape,
        _number(rows.loss),
        TYPES[student.dtype],
        TYPES[teacher.dtype],
        torch.get_num_threads(),
        rows.scale,
        a,
        b,
        temperature,
    )
    _library().taid_rows(ctypes.byref(job))


def arguments(parameters: dict) -> tuple[Tensor | None, float, float, float]:
    """(labels, temperature, a, b) for a kernel: a and b are what numbers a loss has besides, in their order."""
    own = {"temperature": 1.0} | parameters
    labels, temperature = own.pop("labels", None), own.pop("temperature")
    labels = None if labels is None else labels.contiguous()
    return labels, temperature, *(*own.values(), 0.0, 0.0)[:2]


def _number(loss: str) -> int:
    """The kernel's number for a loss, enum Loss; −1 for one that it does not have."""
    return _library().taid_loss(loss.encode())


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None, "see `available`"
    return found


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel, compiled unless the cache has it for this source, compiler and processor; None, with a
    warning, if that fails."""
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(f"taid.fused runs without its C++ kernel, several times slower: {reason}", stacklevel=2)
        return None


def _built() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise OSError("no C++ compiler is installed (g++, or one that $CXX names)")
    command = [*shlex.split(compiler), *FLAGS, str(SOURCE)]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    identity = "\0".join([SOURCE.read_text(encoding="utf-8"), *command, version, _processor()])
    path = cache_dir() / "kernels" / f"fused-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            fresh = Path(work) / path.name
            build = [*command, "-o", str(fresh)]
            subprocess.run(build, capture_output=True, text=True, check=True, timeout=600)
            os.replace(fresh, path)  # whole or not at all, whoever else is building it
    return path


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
