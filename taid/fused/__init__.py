"""The losses of `taid.losses`, fused: the masked mean and its gradient in one pass over the logits.

    fused.taid_kl(student_logits [..., V], teacher_logits [..., V], t, mask=None, inplace=False, weights=None) -> scalar

`fused.NAME`, for each NAME of `losses.LOSSES`, takes that loss's arguments, and returns

    Σ w · loss / Σ w      over the positions where `mask [...]` is true (all if None); 0 where there are none

with `weights [...]` w ≥ 0, all 1 if None: `losses.masked_mean` of the loss, with the same value and gradient to
fp32 rounding (fp64 for fp64 logits). A mask may consist of booleans, or of 0 and 1. Rows that are masked or of
weight 0 are never read. The gradient is computed along with the value, in fp32, rounded once, and kept until the
backward pass: one tensor of the logits' size, or none with `inplace=True`, which writes it over the student's logits
(for logits that nobody else needs: where another operation has saved them, autograd says so in its backward pass).
Leading dimensions may be laid out as they like: a slice `logits[:, :-1]` is not copied. The teacher gets no gradient.
Second derivatives, and the variants `official=True`, are in `taid.losses` alone.

Engines, one chosen per call by `engine`, or by hand inside `with using("eager"):`

    cpp         a kernel, `kernel.cpp`, built on first use: the default for logits on the CPU, of half or
                single precision and unit stride along V; without a compiler, a warning says so once
    triton      the same on a GPU, `gpu.py`: the default there, of half or single precision and unit stride
    eager       chunks of rows as torch operations, `chunks.py`: the default everywhere else, and for a loss that a
                kernel does not have (adaptive_kl on a GPU)
    compiled    the same by torch.compile: by hand alone, for the first call of each loss takes seconds

For a caller that has one chunk of logits at a time, as the fused head has: `value_and_gradient`.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from taid.checks import boolean, position_weights, relative, require_labels, require_logits
from taid.fused import chunks, kernel
from taid.fused.rows import Rows, pieces, require_like, require_writable, values_type
from taid.losses import LOSSES

ENGINES = ("eager", "compiled", "cpp", "triton")
UNBOUNDED = ("reverse_kl", "adaptive_kl", "alpha_beta")  # gradients that grow with the gap of two logits


def __getattr__(name: str) -> Callable[..., Tensor]:
    """`fused.taid_kl` and its like: `mean` of that loss, with the loss's own signature before mask and weights."""
    if name not in LOSSES:
        raise AttributeError(
            f"module 'taid.fused' has no attribute {name!r}; its losses: {', '.join(LOSSES)}"
        )
    return _with_its_signature(name)


@cache
def _with_its_signature(name: str) -> Callable[..., Tensor]:
    own, options = (inspect.signature(function).parameters for function in (LOSSES[name], mean))
    of_mean = (options[option] for option in ("mask", "inplace", "weights"))
    of_loss = (p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in own.values() if p.name != "official")
    signature = inspect.Signature([*of_loss, *of_mean], return_annotation=Tensor)

    def fused(*args, **kwargs) -> Tensor:
        return mean(name, **signature.bind(*args, **kwargs).arguments)

    fused.__name__ = fused.__qualname__ = name
    fused.__doc__ = f"The mean of `taid.losses.{name}`, fused.\n\n{inspect.getdoc(LOSSES[name])}"
    vars(fused)["__signature__"] = signature
    return fused


def mean(
    loss: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    inplace: bool = False,
    weights: Tensor | None = None,
    **parameters,
) -> Tensor:
    """The mean of a loss by its name, as the module says; `parameters` are the loss's own (`t=0.4`). A tensor as
    ctkd's `temperature` receives its gradient.

    Raises ValueError, with what to pass instead, for an unknown loss and for arguments that it cannot take.
    """
    student, teacher = student_logits, teacher_logits
    if inplace and student.requires_grad and student.is_leaf:
        raise ValueError("inplace=True writes over the student's logits, here a leaf: pass a model's output")
    require_logits(student, teacher)
    weights = row_weights(mask, weights, student[..., 0])
    loss, teacher, parameters = _checked(loss, student, teacher.detach(), parameters, weights)
    if inplace:
        require_writable(
            "inplace=True: the student's logits", student.detach(), student.detach(), teacher_logits
        )
    if "labels" in parameters:
        parameters["labels"] = parameters["labels"].reshape(-1)
    weights = None if weights is None else weights.reshape(-1).to(values_type(student))
    temperature = parameters.get("temperature")
    differentiable = temperature if isinstance(temperature, Tensor) else None
    wants_gradient = torch.is_grad_enabled() and student.requires_grad
    return _Mean.apply(student, differentiable, teacher, weights, inplace, wants_gradient, loss, parameters)


def value_and_gradient(
    loss: str,
    student: Tensor,
    teacher: Tensor,
    out: Tensor | None = None,
    *,
    scale: float = 1.0,
    weights: Tensor | None = None,
    slope: Tensor | None = None,
    **parameters,
) -> tuple[Tensor, Tensor]:
    """Each row's own loss [r], fp32 (fp64 for fp64 logits), and `scale · weight` times its gradient [r, V].

    `loss` is a function's name, as "taid_kl", for logits [r, V]; `parameters` are that function's own, as
    `t=0.3`, by name; `labels [r]` of dkd are those of the chunk, and ctkd's temperature is a number. Rows whose
    `weights [r]` are 0 are not read: value and gradient are 0 there. The gradient has the dtype of the student's
    logits and goes to `out [r, V]` if given, which may be `student` itself. ctkd writes the derivatives of its
    values with respect to the temperature to `slope [r]`, if given.
    """
    student, teacher = student.detach(), teacher.detach()
    require_logits(student, teacher)
    if student.dim() != 2:
        raise ValueError(f"value_and_gradient takes logits [r, V], got {tuple(student.shape)}")
    values = _zeros(student)
    if weights is not None:
        weights = position_weights(weights, values).to(values.dtype)
    if out is None:
        out = _empty_like(student)
    else:
        require_like("out", out, student)
        require_writable("out", out, student, teacher)
    loss, teacher, parameters = _checked(loss, student, teacher, parameters, weights)
    if slope is not None:
        require_like("slope", slope, values)
        if not slope.is_contiguous():
            raise ValueError("slope must be contiguous")
    _run(Rows(loss, student, teacher, parameters, values, out, slope, weights, scale))
    return values, out


def engine(*logits: Tensor) -> str:
    """The engine for these logits: that of `using`, else the quickest that is there.

    Raises ValueError where "cpp" or "triton" is asked for and cannot take them.
    """
    gpu = _gpu()
    on_gpu = gpu is not None and gpu.available(*logits)
    if _forced == "cpp" and not kernel.available(*logits):
        raise ValueError(
            "the C++ engine needs a compiler, and logits on the CPU, of at most fp32 and unit stride along V"
        )
    if _forced == "triton" and not on_gpu:
        raise ValueError(
            "the Triton engine needs Triton, and logits on a GPU, of at most fp32 and unit stride along V"
        )
    if _forced:
        return _forced
    if logits[0].is_cuda:
        return "triton" if on_gpu else "eager"
    return "cpp" if kernel.available(*logits) else "eager"


@cache
def _gpu() -> ModuleType | None:
    """The Triton engine; None without Triton, which is imported here, where it is wanted."""
    try:
        from taid.fused import gpu
    except ImportError:
        return None
    return gpu


_forced: str | None = None


@contextmanager
def using(name: str) -> Iterator[None]:
    """Every call inside runs on the engine of this name. Raises ValueError for an unknown one."""
    global _forced
    if name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


class _Mean(torch.autograd.Function):
    """The mean of a loss over rows by their weights; its gradients are computed in the forward pass."""

    @staticmethod
    def forward(ctx, student, temperature, teacher, weights, inplace, wants_gradient, loss, parameters):
        student = student.detach()
        counts = share(student.shape[:-1].numel(), weights)
        # probabilities are small for fp16: enlarge them, and divide in the backward pass, after a loss scale
        enlarged = 16.0 if loss in UNBOUNDED else 1024.0
        scale = enlarged if student.dtype == torch.float16 else counts
        gradient = None
        if wants_gradient:
            gradient = student if inplace else _empty_like(student)
        if temperature is not None:
            parameters = parameters | {"temperature": float(temperature)}
        values = _zeros(student)
        slopes = torch.zeros_like(values) if temperature is not None else None
        for rows in pieces(
            Rows(loss, student, teacher, parameters, values, gradient, slopes, weights, scale)
        ):
            _run(rows)
        if gradient is student:
            torch.autograd.graph.increment_version(student)
        ctx.late = counts / scale
        slope = None if slopes is None else (weighted_sum(slopes, weights) * counts).to(temperature)
        ctx.save_for_backward(gradient, slope)
        return weighted_sum(values, weights) * counts

    @staticmethod
    def backward(ctx, grad_output):
        if torch.is_grad_enabled():
            raise RuntimeError("taid.fused has no second derivatives (create_graph=True): use taid.losses")
        gradient, slope = ctx.saved_tensors
        if gradient is not None:
            _scale(gradient, grad_output * ctx.late)
        if slope is not None:
            slope = slope * grad_output.to(slope)
        return gradient, slope, *[None] * 6


def _run(rows: Rows) -> None:
    """By the engine for these rows that has the loss."""
    name = engine(rows.student, rows.teacher, *([] if rows.out is None else [rows.out]))
    gpu = _gpu()
    if name == "cpp" and kernel.has(rows.loss):
        kernel.run(rows)
    elif name == "triton" and gpu is not None and gpu.has(rows.loss):
        gpu.run(rows)
    else:
        chunks.run(rows, compiled=name == "compiled")


def row_weights(mask: Tensor | None, weights: Tensor | None, positions: Tensor) -> Tensor | None:
    """What each of `positions [...]` counts for, [...]: 0 where it is masked, and at most 1, for fp16's sake; None if
    all count 1. A mask alone stays one, of booleans. Raises ValueError as `boolean` and `position_weights` do."""
    mask = None if mask is None else boolean(mask, positions)
    if weights is None:
        return mask
    weights = relative(position_weights(weights, positions))
    return weights if mask is None else torch.where(mask, weights, 0)


def _empty_like(student: Tensor) -> Tensor:
    """Room for a gradient, contiguous whatever the layout of the logits."""
    return torch.empty(student.shape, dtype=student.dtype, device=student.device)


def _zeros(student: Tensor) -> Tensor:
    """Zeros [n] for the values of logits [..., V]."""
    return torch.zeros(student.shape[:-1].numel(), dtype=values_type(student), device=student.device)


def share(n: int, weights: Tensor | None) -> float | Tensor:
    """1 / Σ w of n rows; on a GPU a scalar tensor, so that nobody waits for the sum."""
    if weights is None:
        return 1 / max(n, 1)
    total = weights.sum(dtype=torch.float64)
    if total.is_cuda:
        return (1 / torch.where(total > 0, total, 1)).to(weights.dtype)
    return 1 / (float(total) or 1.0)


def weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """Σ w · value, a scalar; rows that were not read are 0."""
    return (values if weights is None else values * weights).sum()


def _scale(gradient: Tensor, factor: Tensor) -> None:
    """gradient · factor, in place; most often by 1, which takes no time."""
    gpu = _gpu()
    if (
        gradient.is_cuda and gradient.is_contiguous() and gpu is not None
    ):  # in place, it may be a slice of more
        gpu.scale(gradient, factor)
    elif gradient.is_cuda or factor != 1:
        gradient.mul_(factor)


def _checked(
    loss: str, student: Tensor, teacher: Tensor, parameters: dict[str, Any], weights: Tensor | None
) -> tuple[str, Tensor, dict[str, Any]]:
    """The loss, its teacher and its parameters, checked; TAID's ends, t = 0 and t = 1, are a forward KL. (At t = 0 the
    teacher is the student's own memory: engines read both sides of an entry before they write over it.)"""
    parameters = completed(loss, parameters)
    if "labels" in parameters:
        _require_targets(parameters["labels"], student, None if weights is None else weights > 0)
        parameters["labels"] = parameters["labels"].long()
    none = {name: value.new_empty(0) if name == "labels" else value for name, value in parameters.items()}
    with torch.no_grad():  # the loss itself looks at its parameters
        LOSSES[loss](*(x.new_empty(0, x.shape[-1]) for x in (student, teacher)), **none)
    if loss == "taid_kl" and parameters["t"] in (0, 1):
        return "forward_kl", teacher if parameters["t"] else student.detach(), {}
    return loss, teacher, parameters


def completed(loss: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """All parameters of the loss, in its own order, as engines take them: numbers, but for labels and a temperature
    that is trained.

    Raises ValueError for an unknown loss, an official variant, and a gradient that nobody would compute; TypeError
    for parameters that are not the loss's.
    """
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    if parameters.get("official"):
        raise ValueError(f"the official variant of {loss} is in taid.losses alone")
    bound = inspect.signature(LOSSES[loss]).bind(None, None, **parameters)
    bound.apply_defaults()
    own = {name: value for name, value in list(bound.arguments.items())[2:] if name != "official"}
    for name, value in own.items():
        if not isinstance(value, Tensor) or name == "labels" or (loss, name) == ("ctkd", "temperature"):
            continue
        if value.requires_grad or value.numel() != 1:
            raise ValueError(
                f"{name} of {loss} must be a number without gradient; taid.losses differentiates it"
            )
        own[name] = float(value)
    return own


def _require_targets(labels: Tensor, student: Tensor, read: Tensor | None) -> None:
    """Labels that are entries of the vocabulary in every row that is read: kernels take them for addresses."""
    require_labels(labels, student, read)
    labels = labels.long()
    negative = labels < 0 if read is None else (labels < 0) & read
    if negative.any():
        raise ValueError(
            f"the label {int(labels[negative][0])} is no entry of the vocabulary: mask the positions whose "
            "labels are to be ignored, mask=labels >= 0"
        )
