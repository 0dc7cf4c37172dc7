"""The linear head with a loss: from hidden states of student and teacher to the gradients of the student's and of its
weight. With matmuls, the logits of both sides are whole; fused in, they come and go in chunks."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.losses import DTYPES, Loss, T, Values, contenders, per_element
from benchmarks.measure import Call
from benchmarks.record import code_digest
from taid import fused_head

FUSED = {"taid": partial(fused_head.mean, "taid_kl", t=T), "gjs": partial(fused_head.mean, "jsd")}
WITH_MATMULS = ("official", "trl", "cpp")  # contenders of whole logits


@dataclass(frozen=True)
class Cell:
    """The contenders of one loss at one shape."""

    scale: str
    loss: str
    rows: int
    vocab: int
    student: int  # hidden sizes
    teacher: int
    dtype: str
    repetitions: int

    def __str__(self) -> str:
        return f"{self.loss}, {self.rows:,} × ({self.student}, {self.teacher}) → {self.vocab:,}, {self.dtype}"

    def config(self) -> dict:
        """Everything that decides the numbers, plain JSON."""
        return asdict(self) | {"code": code_digest(), "peers": peers.versions()}


def measure(cell: Cell) -> tuple[Values, float]:
    """A job: time [ns per logit] of each repetition, and memory [logit tensors] beyond the inputs and both gradients."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher, teacher_weight = (
        (torch.randn(count, size, generator=generator) * scale).to(DTYPES[cell.dtype])
        for size in (cell.student, cell.teacher)
        for count, scale in ((cell.rows, 1.0), (cell.vocab, 2 * size**-0.5))  # logits of deviation 2
    )
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight)]
    labels = torch.zeros(cell.rows, dtype=torch.long)
    calls = {
        name: Call(lambda head=head: torch.autograd.grad(head(hidden, weight, teacher, teacher_weight, labels), leaves))
        for name, head in heads(cell.loss).items()
    }
    values = per_element(
        str(cell), calls, cell.repetitions, cell.rows * cell.vocab, hidden.element_size(), sum(x.nbytes for x in leaves)
    )
    return values, time.perf_counter() - started


def heads(loss: str) -> dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]]:
    """Name → loss of (hidden, weight, teacher's hidden, teacher's weight, labels), the baseline first."""
    whole = {name: partial(_with_matmuls, each) for name, each in contenders(loss).items() if name in WITH_MATMULS}
    liger = {"liger": peers.liger_fused_linear_jsd()} if loss == "gjs" and peers.versions()["liger-kernel"] else {}
    return whole | liger | {"fused_head": partial(_fused, loss)}


def _with_matmuls(
    loss: Loss, hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, labels: Tensor
) -> Tensor:
    return loss(hidden @ weight.T, teacher @ teacher_weight.T, labels)


def _fused(loss, hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, labels: Tensor) -> Tensor:
    return FUSED[loss](fused_head.Head(hidden, weight), fused_head.Head(teacher, teacher_weight))
