"""The losses side by side: time, memory and the error of the gradient, at the shapes that language models have.

A *contender* computes the mean of a loss over the labels of a batch and its gradient with respect to the student's
logits; contenders of one cell take turns in one process of one thread.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks import official, peers
from benchmarks.measure import Call, growth, interleaved, timed
from benchmarks.record import code_digest, show
from taid import fused, losses
from taid.data import IGNORE

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (student's logits [N, V], teacher's, labels [N]) -> the mean
Values = dict[tuple[str, str, int], float]  # (contender, metric, repetition) -> value

T = 0.4  # TAID's t
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SLOW, FEW = ("plain", "trl", "torchtune"), 3  # contenders of at most so many repetitions
FLOOR = "floor"  # no loss: both logits read and a gradient written, once

FUSED = {"taid": partial(fused.taid_kl, t=T), "gjs": fused.jsd, "rkl": fused.reverse_kl}
PLAIN = {"taid": partial(losses.taid_kl, t=T), "gjs": losses.jsd, "rkl": losses.reverse_kl}
COMPILED = ("official_compiled", "compiled", "cpp", "cpp_inplace")  # those that want a C++ compiler
ENGINES = {"eager": "eager", "compiled": "compiled", "cpp": "cpp", "cpp_inplace": "cpp"}  # contender -> engine


def contenders(loss: str) -> dict[str, Loss]:
    """Name → the contenders for a loss that this machine has, the baseline first."""
    peer = {"gjs": ("trl", peers.trl_jsd), "rkl": ("torchtune", peers.torchtune_reverse_kl)}
    if loss == "taid":
        others = {"official": partial(official.taid_kl, t=T), "official_compiled": _compiled(official.taid_kl)}
    else:
        package, function = peer[loss]
        others = {package: function} if peers.versions()[package] else {}
    every = others | {"plain": partial(_plain, loss)} | {name: partial(_fused, loss, name) for name in ENGINES}
    logits = torch.empty(1, 1)
    compiler = fused.engine(logits, logits) == "cpp"
    return {name: contender for name, contender in every.items() if compiler or name not in COMPILED}


def _compiled(loss: Callable[..., Tensor]) -> Loss:
    compiled = torch.compile(loss, dynamic=False)
    return lambda student, teacher, labels: compiled(student, teacher, labels, T)


def _plain(loss: str, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return losses.masked_mean(PLAIN[loss](student, teacher), labels != IGNORE)


def _fused(loss: str, contender: str, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    with fused.using(ENGINES[contender]):
        return FUSED[loss](student, teacher, mask=labels != IGNORE, inplace=contender == "cpp_inplace")


# Inputs and gradients


class _Model(torch.autograd.Function):
    """Stands for a model whose output are the logits: hands them out and takes their gradient, without a copy."""

    @staticmethod
    def forward(ctx, weight: Tensor, logits: list[Tensor], gradients: list[Tensor]) -> Tensor:
        ctx.gradients = gradients
        return torch.empty(0, dtype=logits[0].dtype).set_(logits[0])  # lists: autograd does not look inside

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None, None]:
        ctx.gradients.append(gradient)
        return None, None, None


def gradient(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The gradient of `loss` with respect to the student's logits [N, V], which may be overwritten."""
    weight, gradients = torch.zeros((), requires_grad=True), []
    loss(_Model.apply(weight, [student], gradients), teacher, labels).backward()
    return gradients[0]


def inputs(rows: int, vocab: int, dtype: torch.dtype, gap: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits [N, V] of student and teacher, and labels [N], none of them ignored.

    Both are normal with deviation 2, independent or, with a `gap`, apart by noise of that deviation.
    """
    generator = torch.Generator().manual_seed(0)
    student, noise = (torch.randn(rows, vocab, generator=generator) for _ in range(2))
    teacher = noise.mul_(2) if gap is None else noise.mul_(gap).add_(student, alpha=2)
    return student.mul_(2).to(dtype), teacher.to(dtype), torch.zeros(rows, dtype=torch.long)


# Time and memory


@dataclass(frozen=True)
class Cell:
    """The contenders of one loss at one shape."""

    scale: str
    loss: str
    rows: int
    vocab: int
    dtype: str
    repetitions: int
    only: tuple[str, ...]  # contenders to measure, as far as they are there

    def __str__(self) -> str:
        return f"{self.loss}, {self.rows:,} × {self.vocab:,}, {self.dtype}"

    def config(self) -> dict:
        """Everything that decides the numbers, plain JSON."""
        return asdict(self) | {"code": code_digest(), "peers": peers.versions()}


def measure(cell: Cell) -> tuple[Values, float]:
    """A job: time [ns/element] of each repetition, its median on the wall clock, and memory [logit tensors] beyond the
    two inputs, of each contender and the floor."""
    started = time.perf_counter()
    torch.compiler.reset()  # every cell compiles for its own shape
    student, teacher, labels = inputs(cell.rows, cell.vocab, DTYPES[cell.dtype])
    logits = student.clone()
    calls = {
        name: Call(partial(gradient, loss, logits, teacher, labels), partial(logits.copy_, student))
        for name, loss in contenders(cell.loss).items()
        if name in cell.only
    }
    out = torch.empty_like(student).copy_(student)
    floor = {FLOOR: Call(partial(torch.add, student, teacher, out=out))}
    values = per_element(str(cell), calls | floor, cell.repetitions, student.numel(), student.element_size())
    return values, time.perf_counter() - started


def per_element(
    title: str, calls: Mapping[str, Call], repetitions: int, elements: int, itemsize: int, known: int = 0
) -> Values:
    """The values of calls on `elements` logits: CPU time of each repetition and the median on the wall clock
    [ns/element], memory [logit tensors] less `known` bytes that any contender needs."""
    torch.set_num_threads(1)
    values: Values = {}
    for name, call in calls.items():
        if name not in SLOW:  # what is compiled is compiled now
            timed(call)
        if (peak := growth(call)) is not None:
            values[name, "memory", 0] = max(0, peak - known) / (elements * itemsize)
    counts = {name: min(repetitions, FEW) if name in SLOW else repetitions for name in calls}
    for name, times in interleaved(calls, counts).items():
        for repetition, each in enumerate(times):
            values[name, "time", repetition] = each.cpu / elements * 1e9
        values[name, "wall", 0] = median(each.wall for each in times) / elements * 1e9
    show(title, values)
    return values


# Accuracy


@dataclass(frozen=True)
class Accuracy:
    """The gradients of a loss's contenders against fp64, at logits of one dtype."""

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
        return asdict(self) | {"code": code_digest(), "peers": peers.versions()}


def accuracy(cell: Accuracy) -> tuple[Values, float]:
    """A job: ‖g − g*‖ / ‖g*‖ of each contender's gradient g, g* that of `taid.losses` in fp64 at the same logits."""
    started = time.perf_counter()
    torch.compiler.reset()
    student, teacher, labels = inputs(cell.rows, cell.vocab, DTYPES[cell.dtype], cell.gap)
    exact = gradient(partial(_plain, cell.loss), student.double(), teacher.double(), labels)
    values: Values = {}
    for name, loss in contenders(cell.loss).items():
        found = gradient(loss, student.clone(), teacher, labels).double()
        values[name, "gradient_error", 0] = float((found - exact).norm() / exact.norm())
    show(str(cell), values)
    return values, time.perf_counter() - started
