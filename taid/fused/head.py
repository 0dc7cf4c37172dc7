"""The losses of `taid.fused` from hidden states: the linear head fused in, no logits [n, V] ever whole.

    student = Head(hidden [n, H], weight [V, H])      logits = hidden @ weight.T (+ bias), not computed yet
    teacher = Head(hidden [n, H'], weight [V, H'])    or its logits [n, V]
    mean("taid_kl", student, teacher, t=0.4)          a scalar, with gradients to hidden, weight and bias

Per chunk of rows: both logits by matmul, value and gradient by `taid.fused`, and the two matmuls that take
the gradient on to hidden states and weight. Beyond these gradients, which are summed over chunks in fp32 and
rounded once, that needs two chunks of logits. On a CPU the arithmetic is in fp32 (fp64 for fp64), for
matmuls in half precision are many times slower there; elsewhere in the weight's type, or autocast's.

`DistillationTrainer(…, fuse_head=True)` uses it for the models of transformers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from taid import fused
from taid.logits import Head, head_logits, vocabulary, weight_blocks

ROWS = 64  # of a chunk, at least: with fewer, a matmul spends its time on reading the weight


def mean(
    loss: str,
    student: Head,
    teacher: Head | Tensor,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    **parameters,
) -> Tensor:
    """The mean of a loss by its name in `taid.losses` over n rows, a scalar: Σ w · loss / Σ w, 0 for n = 0.

    `mask [...]`, of booleans or 0 and 1, selects rows of the hidden states [..., H], teacher logits [..., V], weights
    w [...] (all 1 if None) and labels [...]; the others are never read, nor those of weight 0. Without it they are
    [n, H], [n, V], [n] and [n]. `parameters` are the loss's own, by name (`t=0.4`). The student's hidden states,
    weight and bias, and ctkd's temperature, receive gradients, the teacher none.

    Raises ValueError for an unknown loss, an official variant, vocabularies or rows of two sizes.
    """
    parameters = fused.completed(loss, parameters)
    if vocabulary(student) != vocabulary(teacher):
        sizes = f"has {vocabulary(student)} entries, the teacher's {vocabulary(teacher)}"
        raise ValueError(
            f"the student's vocabulary {sizes}; if they differ only in padding, `cut` the longer one, as "
            "DistillationTrainer does"
        )
    rows_of = {
        "the student": student.hidden.shape[:-1],
        "the teacher": (teacher.hidden if isinstance(teacher, Head) else teacher).shape[:-1],
        "the mask": student.hidden.shape[:1] if mask is None else mask.shape,
    }
    if isinstance(parameters.get("labels"), Tensor):
        rows_of["the labels"] = parameters["labels"].shape
    if len(set(rows_of.values())) > 1:
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in rows_of.items())
        raise ValueError(f"rows differ: {shapes}; without a mask, flatten them to one dimension")
    counts = fused.row_weights(mask, weights, student.hidden[..., 0])
    chosen = None if counts is None else counts.nonzero(as_tuple=True)
    weights = None if counts is None or counts.dtype == torch.bool else counts[chosen]
    if chosen is not None:
        student = student._replace(hidden=student.hidden[chosen])
        if isinstance(teacher, Head):
            teacher = teacher._replace(hidden=teacher.hidden[chosen])
        if "labels" in parameters:
            parameters["labels"] = parameters["labels"][chosen]
    temperature = parameters.get("temperature")
    inputs = (*student, temperature if isinstance(temperature, Tensor) else None)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    return _Mean.apply(*inputs, wanted, _Targets(teacher, chosen), weights, loss, parameters)


class _Targets(NamedTuple):
    """The teacher of the chosen rows: never a copy of all its logits."""

    teacher: Head | Tensor  # a head's hidden states are chosen already
    chosen: tuple[Tensor, ...] | None

    def logits(self, rows: slice) -> Tensor:
        """[r, V], of some of the chosen rows."""
        if isinstance(self.teacher, Head):
            return head_logits(self.teacher, rows)
        return self.teacher[rows if self.chosen is None else tuple(i[rows] for i in self.chosen)]


class _Mean(torch.autograd.Function):
    """Its gradients are computed in the forward pass, and rounded to their types in the backward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, temperature, wanted, targets, weights, loss, parameters):
        inputs = (hidden, weight, bias, temperature)
        n, wide = len(hidden), torch.promote_types(hidden.dtype, torch.float32)
        sums = [
            torch.zeros_like(x, dtype=wide) if want else None for x, want in zip(inputs, wanted, strict=True)
        ]
        of_hidden, of_weight, of_bias, of_temperature = sums
        if temperature is not None:
            parameters = parameters | {"temperature": float(temperature)}
        total = torch.zeros((), dtype=wide, device=hidden.device)
        with torch.autocast("cpu", enabled=False):
            for rows in _chunks(n, hidden.dtype.itemsize):
                s = head_logits(Head(hidden, weight, bias), rows)
                z = targets.logits(rows).to(s.device)  # a teacher may have GPUs of its own
                own = parameters | ({"labels": parameters["labels"][rows]} if "labels" in parameters else {})
                w = None if weights is None else weights[rows]
                slope = None if of_temperature is None else total.new_zeros(len(s))
                values, g = fused.value_and_gradient(loss, s, z, out=s, weights=w, slope=slope, **own)
                total += fused.weighted_sum(values, w)
                if of_temperature is not None:
                    of_temperature += fused.weighted_sum(slope, w)
                if of_bias is not None:
                    of_bias += g.sum(0, dtype=wide)
                h = hidden[rows].to(g.dtype)
                for entries, block in weight_blocks(weight, g.dtype):
                    if of_hidden is not None:
                        _add_product(of_hidden[rows], g[:, entries], block)
                    if of_weight is not None:
                        _add_product(of_weight[entries], g[:, entries].T, h)
                del s, z, g  # before the next chunk's are made
        ctx.save_for_backward(*sums)
        ctx.types = [None if x is None else x.dtype for x in inputs]
        ctx.share = fused.share(n, weights)
        return total * ctx.share

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        factor, sums = grad_output * ctx.share, zip(ctx.saved_tensors, ctx.types, strict=True)
        return *(None if x is None else x.mul_(factor).to(dtype) for x, dtype in sums), *[None] * 5


def _chunks(n: int, itemsize: int) -> Iterator[slice]:
    """2 · ROWS where two chunks of fp32 logits are at most a quarter of all logits in the hidden states' type
    (of `itemsize` bytes), else ROWS; a sixteenth of larger inputs."""
    size = max(ROWS, n // 16, min(2 * ROWS, n * itemsize // 32))
    return (slice(at, min(at + size, n)) for at in range(0, n, size))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, the sum in the type of `total`."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
