"""The losses side by side: time, memory and the error of the gradient, at the shapes of language models.

A *contender* computes the mean of a loss over the labels of a batch, and its gradient with respect to the
student's logits.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks import official, peers
from benchmarks.measure import Call, interleaved, peak_memory, timed
from benchmarks.record import Values, code_digest, show
from taid import fused, losses
from taid.data import IGNORE

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (student's logits [N, V], teacher's, labels [N]) → mean

T = 0.4  # TAID's t
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SLOW, FEW = ("plain", "trl", "torchtune"), 3  # contenders of so many repetitions at most
FLOOR = "floor"  # no loss: both logits read and a gradient written, once

FUSED: dict[str, Callable[..., Tensor]] = {
    "taid": partial(fused.taid_kl, t=T),
    "gjs": fused.jsd,
    "rkl": fused.reverse_kl,
}
PLAIN: dict[str, Callable[..., Tensor]] = {
    "taid": partial(losses.taid_kl, t=T),
    "gjs": losses.jsd,
    "rkl": losses.reverse_kl,
}
ENGINES = {  # contender → engine
    "eager": "eager",
    "compiled": "compiled",
    "cpp": "cpp",
    "cpp_inplace": "cpp",
    "triton": "triton",
    "triton_inplace": "triton",
}
COMPILED = ("official_compiled", "compiled")  # those that want a compiler


def device_of(scale: str) -> str:
    """Where the cells of a scale run."""
    return "cuda" if scale == "gpu" else "cpu"


def contenders(loss: str, device: str = "cpu") -> dict[str, Loss]:
    """Name → those contenders for a loss that this machine has, baselines first."""
    installed = peers.versions()
    others: dict[str, dict[str, Loss]] = {
        "taid": {"official": partial(official.taid_kl, t=T), "official_compiled": _compiled_official()},
        "gjs": {"trl": peers.trl_jsd} if installed["trl"] else {},
        "rkl": {"torchtune": peers.torchtune_reverse_kl} if installed["torchtune"] else {},
    }
    ours: dict[str, Loss] = {name: partial(_fused, loss, name) for name in ENGINES}
    logits = torch.empty(1, 1, device=device)
    usual = fused.engine(logits, logits)  # a compiler, or Triton, is there where this is not "eager"
    return {
        name: contender
        for name, contender in (others[loss] | {"plain": partial(_plain, loss)} | ours).items()
        if (usual != "eager" if name in COMPILED else ENGINES.get(name, "eager") in ("eager", usual))
    }


def _compiled_official() -> Loss:
    compiled = torch.compile(official.taid_kl, dynamic=False)
    return lambda student, teacher, labels: compiled(student, teacher, labels, T)


def _plain(loss: str, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return losses.masked_mean(PLAIN[loss](student, teacher), labels != IGNORE)


def _fused(loss: str, contender: str, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    with fused.using(ENGINES[contender]):
        return FUSED[loss](student, teacher, mask=labels != IGNORE, inplace=contender.endswith("_inplace"))


# Inputs and gradients


class _Model(torch.autograd.Function):
    """Stands for a model: hands out logits and takes their gradient, neither of them copied."""

    @staticmethod
    def forward(ctx, weight: Tensor, logits: list[Tensor], gradients: list[Tensor]) -> Tensor:
        ctx.gradients = gradients
        return logits[0].data  # not a view: it is written over; autograd does not look into lists

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None, None]:
        ctx.gradients.append(gradient)
        return None, None, None


def gradient(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Gradient of `loss` with respect to the student's logits [N, V], over which it may be written."""
    weight = torch.zeros((), requires_grad=True)
    gradients: list[Tensor] = []
    loss(_Model.apply(weight, [student], gradients), teacher, labels).backward()
    return gradients[0]


def inputs(
    rows: int, vocab: int, dtype: torch.dtype, gap: float | None = None, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, V] of student and teacher, normal with deviation 2, and labels [N], none of them ignored.

    The two are independent or, with a `gap`, apart by noise of that deviation.
    """
    generator = torch.Generator(device).manual_seed(0)
    student, noise = (torch.randn(rows, vocab, generator=generator, device=device) for _ in range(2))
    teacher = noise.mul_(2) if gap is None else noise.mul_(gap).add_(student, alpha=2)
    labels = torch.zeros(rows, dtype=torch.long, device=device)
    return student.mul_(2).to(dtype), teacher.to(dtype), labels


# Time and memory


@dataclass(frozen=True)
class Cell:
    """Contenders of one loss at one shape."""

    scale: str
    loss: str  # "taid", "gjs" or "rkl"
    rows: int
    vocab: int
    dtype: str
    repetitions: int
    only: tuple[str, ...]  # contenders to measure, as far as they are there

    def __str__(self) -> str:
        return f"{self.loss}, {self.rows:,} × {self.vocab:,}, {self.dtype}"

    def config(self) -> dict:
        """Everything that decides the numbers, plain JSON."""
        return asdict(self) | {"code": code_digest(__name__), "peers": peers.versions()}


def measure(cell: Cell) -> tuple[Values, float]:
    """A job: (`per_logit` of each contender and the floor, seconds)."""
    started = time.perf_counter()
    torch.compiler.reset()  # each cell compiles for its own shape
    device = device_of(cell.scale)
    student, teacher, labels = inputs(cell.rows, cell.vocab, DTYPES[cell.dtype], device=device)
    logits = student.clone()
    calls = {
        name: Call(
            partial(gradient, loss, logits, teacher, labels), partial(logits.copy_, student), device=device
        )
        for name, loss in contenders(cell.loss, device).items()
        if name in cell.only
    }
    out = torch.empty_like(student).copy_(student)
    calls[FLOOR] = Call(partial(torch.add, student, teacher, out=out), device=device)
    values = per_logit(calls, cell.repetitions, student.numel(), student.element_size())
    values.pop((FLOOR, "memory", 0), None)  # its gradient was there before
    show(str(cell), values)
    return values, time.perf_counter() - started


def per_logit(
    calls: Mapping[str, Call], repetitions: int, count: int, itemsize: int, known: int = 0
) -> dict[tuple[str, str, int], float]:
    """Of calls on `count` logits of `itemsize` bytes: processor time of each repetition and the median on the wall
    clock [ns/element], and memory [logit tensors] less the `known` bytes that any contender needs."""
    torch.set_num_threads(1)
    values: dict[tuple[str, str, int], float] = {}
    ready = {}
    for name, call in calls.items():
        if name not in SLOW:  # for those, the next run is warm-up enough
            timed(call)
        peak = peak_memory(call)
        values[name, "memory", 0] = max(0, peak - known) / (count * itemsize)
        ready[name] = call._replace(memory=peak) if call.device == "cpu" else call  # PyTorch keeps a GPU's
    counts = {name: min(repetitions, FEW) if name in SLOW else repetitions for name in calls}
    for name, times in interleaved(ready, counts).items():
        for repetition, each in enumerate(times):
            values[name, "time", repetition] = each.busy / count * 1e9
        values[name, "wall", 0] = median(each.wall for each in times) / count * 1e9
    return values


# Accuracy


@dataclass(frozen=True)
class Accuracy:
    """All contenders of one loss, at logits of one type."""

    scale: str
    loss: str
    rows: int
    vocab: int
    dtype: str
    gap: float | None  # between student and teacher; None: independent

    def __str__(self) -> str:
        where = "random logits" if self.gap is None else f"student ≈ teacher, {self.gap:g} apart"
        return f"{self.loss}, {where}, {self.dtype}"

    def config(self) -> dict:
        """Everything that decides the numbers, plain JSON."""
        return asdict(self) | {"code": code_digest(__name__), "peers": peers.versions()}


def accuracy(cell: Accuracy) -> tuple[Values, float]:
    """A job: ‖g − g*‖ / ‖g*‖ of each gradient g; g* is that of `taid.losses` in fp64 at the same logits."""
    started = time.perf_counter()
    torch.compiler.reset()
    device = device_of(cell.scale)
    student, teacher, labels = inputs(cell.rows, cell.vocab, DTYPES[cell.dtype], cell.gap, device)
    exact = gradient(partial(_plain, cell.loss), student.double(), teacher.double(), labels)
    values = {}
    for name, loss in contenders(cell.loss, device).items():
        found = gradient(loss, student.clone(), teacher, labels)
        values[name, "gradient_error", 0] = float((found - exact).norm() / exact.norm())
    show(str(cell), values)
    return values, time.perf_counter() - started
