"""The linear head with a loss: from hidden states to the gradients of the student's hidden states and weight.

With matmuls the logits of both sides are whole; fused in, they come and go in chunks.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.losses import DTYPES, Loss, T, contenders, device_of, per_logit
from benchmarks.measure import Call
from benchmarks.record import Values, code_digest, show
from taid.fused import head

# of (hidden [N, H], weight [V, H], the teacher's hidden [N, H'] and weight [V, H'], labels [N])
Head = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

FUSED = {"taid": partial(head.mean, "taid_kl", t=T), "gjs": partial(head.mean, "jsd")}
WITH_MATMULS = ("official", "trl", "cpp", "triton")  # contenders of whole logits


@dataclass(frozen=True)
class Cell:
    """The contenders of one loss at one shape."""

    scale: str
    loss: str  # "taid" or "gjs"
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
        return asdict(self) | {"code": code_digest(__name__), "peers": peers.versions()}


def measure(cell: Cell) -> tuple[Values, float]:
    """A job: (`per_logit` of each contender, its memory beyond inputs and both gradients; seconds)."""
    started = time.perf_counter()
    torch.compiler.reset()
    hidden, weight, teacher, teacher_weight = inputs(cell)
    device = device_of(cell.scale)
    labels = torch.zeros(cell.rows, dtype=torch.long, device=device)

    def gradients(head: Head) -> tuple[Tensor, ...]:
        return torch.autograd.grad(head(hidden, weight, teacher, teacher_weight, labels), (hidden, weight))

    calls = {
        name: Call(partial(gradients, head), device=device) for name, head in heads(cell.loss, device).items()
    }
    known = hidden.nbytes + weight.nbytes
    values = per_logit(calls, cell.repetitions, cell.rows * cell.vocab, hidden.element_size(), known)
    show(str(cell), values)
    return values, time.perf_counter() - started


def inputs(cell: Cell) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and weight of the student, which want gradients, and the teacher's; for logits of
    deviation 2."""
    device = device_of(cell.scale)
    generator = torch.Generator(device).manual_seed(0)
    tensors = []
    for size in (cell.student, cell.teacher):
        hidden = torch.randn(cell.rows, size, generator=generator, device=device)
        weight = torch.randn(cell.vocab, size, generator=generator, device=device) * 2 * size**-0.5
        tensors += [hidden.to(DTYPES[cell.dtype]), weight.to(DTYPES[cell.dtype])]
    hidden, weight, teacher, teacher_weight = tensors
    return hidden.requires_grad_(), weight.requires_grad_(), teacher, teacher_weight


def heads(loss: str, device: str = "cpu") -> dict[str, Head]:
    """Name → contenders, the baseline first."""
    whole: dict[str, Head] = {
        name: partial(_matmuls, each)
        for name, each in contenders(loss, device).items()
        if name in WITH_MATMULS
    }
    if loss == "gjs" and peers.versions()["liger-kernel"]:
        whole["liger"] = peers.liger_fused_linear_jsd()
    return whole | {"fused_head": partial(_fused, loss)}


def _matmuls(
    loss: Loss, hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, labels: Tensor
) -> Tensor:
    return loss(hidden @ weight.T, teacher @ teacher_weight.T, labels)


def _fused(
    loss: str, hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, labels: Tensor
) -> Tensor:
    return FUSED[loss](head.Head(hidden, weight), head.Head(teacher, teacher_weight))
