"""What an engine is given: rows of logits, how much each counts, and where value and gradient go."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows [n, V] of logits, each of one stride. An engine writes to `values`, `out` and `slopes`, unless None,
    and never reads a row of weight 0."""

    loss: str  # a name of `taid.losses.LOSSES`
    student: Tensor  # [n, V]
    teacher: Tensor  # [n, V]
    parameters: dict[str, Any]  # the loss's own, in its order: numbers, and dkd's labels [n]
    values: Tensor  # [n] the loss of each row, fp32 or wider, zero before
    out: Tensor | None = None  # [n, V] scale · weight · gradient, zero for weight 0
    slopes: Tensor | None = None  # [n] derivatives with respect to ctkd's temperature, zero before
    weights: Tensor | None = None  # [n] in the type of `values`, ≥ 0; None: all 1
    scale: float | Tensor = 1.0  # on a GPU perhaps a scalar tensor, for which nobody has waited

    def of(self, rows: slice | Tensor) -> "Rows":
        """Some of them, as views where `rows` is a slice."""
        out = None if self.out is None else self.out[rows]
        return self.at(rows, self.student[rows], self.teacher[rows], out)

    def at(self, rows: slice | Tensor, student: Tensor, teacher: Tensor, out: Tensor | None) -> "Rows":
        """Some of them, whose logits and gradients are these [r, V]."""
        return replace(
            self,
            student=student,
            teacher=teacher,
            out=out,
            parameters={name: x[rows] if name == "labels" else x for name, x in self.parameters.items()},
            values=self.values[rows],
            slopes=None if self.slopes is None else self.slopes[rows],
            weights=None if self.weights is None else self.weights[rows],
        )

    @property
    def factor(self) -> float | Tensor:
        """What the gradients are multiplied by, a scalar or [n, 1]."""
        return self.scale if self.weights is None else (self.weights * self.scale).unsqueeze(-1)


def pieces(rows: Rows) -> Iterator[Rows]:
    """`rows` of logits [..., V], with [n] for all else, as rows [n, V]; more than one where a stride asks for it."""
    logits, done = [rows.student, rows.teacher], 0
    for student, teacher, *out in _views(*logits, *([] if rows.out is None else [rows.out])):
        yield rows.at(slice(done, done + len(student)), student, teacher, out[0] if out else None)
        done += len(student)


def _views(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors [..., V] as views [n, V], together."""
    if tensors[0].dim() < 2:
        yield tuple(x.unsqueeze(0) for x in tensors)
        return
    try:
        yield tuple(x.view(-1, x.shape[-1]) for x in tensors)
    except RuntimeError:  # no such view
        for parts in zip(*tensors, strict=True):
            yield from _views(*parts)


# Places that can be written to


def require_like(name: str, given: Tensor, expected: Tensor) -> None:
    """Raises ValueError for a tensor of another type, shape or device."""
    found, wanted = ((x.dtype, tuple(x.shape), x.device) for x in (given, expected))
    if found != wanted:
        raise ValueError(f"{name} must be {' '.join(map(str, wanted))}, got {' '.join(map(str, found))}")


def require_writable(name: str, out: Tensor, student: Tensor, teacher: Tensor) -> None:
    """Raises ValueError unless each entry of `out` has a place of its own, which no input has but a student that is
    `out` itself."""
    if out.requires_grad and out.is_leaf:
        raise ValueError(f"{name} must not be a leaf that requires a gradient: detach it")
    reach = 0  # the largest distance to the first entry, over the dimensions so far
    for stride, size in sorted(zip(out.stride(), out.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise ValueError(
                f"{name} cannot be written to, for its entries share memory (expanded?): clone it"
            )
        reach += stride * (size - 1)
    itself = student.data_ptr() == out.data_ptr() and student.stride() == out.stride()
    for whose, given in (("teacher", teacher), *([] if itself else [("student", student)])):
        if _overlap(out, given):
            raise ValueError(f"{name} would be written over the {whose}'s memory: clone one of them")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the addresses from the first to the last entry of two tensors meet."""
    (a_first, a_last), (b_first, b_last) = _addresses(a), _addresses(b)
    return bool(a.numel() and b.numel()) and a_first <= b_last and b_first <= a_last


def _addresses(x: Tensor) -> tuple[int, int]:
    reach = sum(stride * (size - 1) for stride, size in zip(x.stride(), x.shape, strict=True))
    return x.data_ptr(), x.data_ptr() + reach * x.itemsize


def values_type(student: Tensor) -> torch.dtype:
    """The type of the arithmetic on these logits."""
    return torch.promote_types(student.dtype, torch.float32)
