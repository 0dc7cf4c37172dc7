"""The losses of `taid.losses`, fused: the masked mean and its gradient in one pass over the logits.

    fused.taid_kl(student_logits [..., V], teacher_logits [..., V], t, mask=None, inplace=False) -> scalar

Each function has the name of the per-token loss whose mean over `mask [...]` it returns (over all
positions if None; 0 for an empty mask), with the same value and gradient to fp32 rounding (fp64 for fp64
logits). Masked rows are never read. The gradient is computed along with the value, in fp32, rounded once,
and kept until the backward pass: one tensor of the logits' size, or none with `inplace=True`, which
writes it over the student's logits (for logits that nobody else needs: where another operation has saved
them, autograd says so in its backward pass). Leading dimensions may be laid out as they like: a slice
`logits[:, :-1]` is not copied. The teacher gets no gradient. Second derivatives, and the variants
`official=True`, are in `taid.losses` alone.

Engines, one chosen per call by `engine`, or by hand inside `with using("eager"):`

    cpp         a kernel, `kernel.cpp`, built on first use: the default for logits on the CPU, of half or
                single precision and unit stride along V; without a compiler, a warning says so once
    triton      the same on a GPU, `gpu.py`: the default there, of half or single precision and unit stride
    eager       chunks of rows as torch operations: the default everywhere else, and always for adaptive_kl on a GPU
    compiled    the same by torch.compile: by hand alone, for the first call of each loss takes seconds

For a caller that has one chunk of logits at a time, as the fused head has:

    value_and_gradient(loss, student [r, V], teacher [r, V], out=None, *, scale=1.0, **parameters)
        -> (values [r], gradient [r, V])
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from taid import losses
from taid.fused import chunks, kernel
from taid.losses import (
    _require_fraction,
    _require_labels,
    _require_logits,
    _require_t,
    _require_temperature,
    _require_weight,
)

PER_TOKEN = {loss.__name__: loss for loss in losses.LOSSES.values()}
ENGINES = ("eager", "compiled", "cpp", "triton")
CHUNK = {  # elements: of a few fp32 copies of them
    "cpu": 200_000,  # that fit into the cache
    "cuda": 2**23,  # that keep a GPU busy, and are 0.2 GB
}


def forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None, inplace: bool = False
) -> Tensor:
    """Mean of KL(p ‖ q), `losses.forward_kl`."""
    return _mean("forward_kl", student_logits, teacher_logits, mask, inplace)


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None, inplace: bool = False
) -> Tensor:
    """Mean of KL(q ‖ p), `losses.reverse_kl`."""
    return _mean("reverse_kl", student_logits, teacher_logits, mask, inplace)


def tvd(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None, inplace: bool = False
) -> Tensor:
    """Mean total variation distance, `losses.tvd`."""
    return _mean("tvd", student_logits, teacher_logits, mask, inplace)


def jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    teacher_weight: float = 0.1,
    mask: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Mean generalised Jensen–Shannon divergence, `losses.jsd`."""
    return _mean("jsd", student_logits, teacher_logits, mask, inplace, teacher_weight=teacher_weight)


def skew_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    lam: float = 0.1,
    mask: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Mean skew KL divergence, `losses.skew_kl`."""
    return _mean("skew_kl", student_logits, teacher_logits, mask, inplace, lam=lam)


def skew_rkl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    lam: float = 0.1,
    mask: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Mean skew reverse KL divergence, `losses.skew_rkl`."""
    return _mean("skew_rkl", student_logits, teacher_logits, mask, inplace, lam=lam)


def adaptive_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mu: float = 0.5,
    mask: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Mean adaptive KL, `losses.adaptive_kl`."""
    return _mean("adaptive_kl", student_logits, teacher_logits, mask, inplace, mu=mu)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Mean decoupled KD, `losses.dkd`; mask the positions whose labels are to be ignored."""
    return _mean(
        "dkd",
        student_logits,
        teacher_logits,
        mask,
        inplace,
        labels=labels,
        alpha=alpha,
        beta=beta,
        temperature=temperature,
    )


def ctkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float,
    mask: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Mean curriculum-temperature KD, `losses.ctkd`; a tensor as `temperature` receives its gradient."""
    return _mean("ctkd", student_logits, teacher_logits, mask, inplace, temperature=temperature)


def taid_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    t: float,
    mask: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Mean of TAID's objective KL(p_t ‖ q), `losses.taid_kl`."""
    return _mean("taid_kl", student_logits, teacher_logits, mask, inplace, t=t)


def value_and_gradient(
    loss: str,
    student: Tensor,
    teacher: Tensor,
    out: Tensor | None = None,
    *,
    scale: float = 1.0,
    slope: Tensor | None = None,
    **parameters,
) -> tuple[Tensor, Tensor]:
    """Each row's own loss [r], fp32 (fp64 for fp64 logits), and `scale` times its gradient [r, V].

    `loss` is a function's name, as "taid_kl", for logits [r, V]; `parameters` are that function's own, as
    `t=0.3`, by name; `labels [r]` of dkd are those of the chunk, and ctkd's temperature is a number. The gradient has the dtype of the student's logits and goes to `out [r, V]` if given, which
    may be `student` itself. ctkd writes the derivatives of its values with respect to the temperature to
    `slope [r]`, if given.
    """
    student, teacher = student.detach(), teacher.detach()
    loss, teacher, parameters = _checked(loss, student, teacher, parameters)
    if student.dim() != 2:
        raise ValueError(f"value_and_gradient takes logits [r, V], got {tuple(student.shape)}")
    values = _row_values(student)
    if out is None:
        out = _empty_like(student)
    else:
        _require_like("out", out, student)
        _require_writable("out", out, student, teacher)
    if slope is not None:
        _require_like("slope", slope, values)
        if not slope.is_contiguous():
            raise ValueError("slope must be contiguous")
    _run(loss, student, teacher, out, values, slope, None, scale, parameters)
    return values, out


def engine(*logits: Tensor) -> str:
    """The engine for these logits: that of `using`, else the quickest that is there.

    Raises ValueError where "cpp" or "triton" is asked for and cannot take them.
    """
    if _forced == "cpp" and not kernel.available(*logits):
        raise ValueError(
            "the C++ engine needs a compiler, and logits on the CPU, of at most fp32 and unit stride along V"
        )
    if _forced == "triton" and not (_gpu() and _gpu().available(*logits)):
        raise ValueError(
            "the Triton engine needs Triton, and logits on a GPU, of at most fp32 and unit stride along V"
        )
    if _forced:
        return _forced
    if logits[0].is_cuda:
        return "triton" if _gpu() and _gpu().available(*logits) else "eager"
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


def _mean(
    loss: str, student: Tensor, teacher: Tensor, mask: Tensor | None, inplace: bool, **parameters
) -> Tensor:
    expected = tuple(student.shape[:-1])
    if mask is not None and (mask.shape != expected or mask.dtype != torch.bool):
        raise ValueError(f"mask must be boolean and {expected}, got {mask.dtype} and {tuple(mask.shape)}")
    if mask is not None and mask.device != student.device:
        raise ValueError(f"the mask is on {mask.device}, the logits on {student.device}")
    if inplace and student.requires_grad and student.is_leaf:
        raise ValueError("inplace=True writes over the student's logits, here a leaf: pass a model's output")
    loss, teacher, parameters = _checked(loss, student, teacher.detach(), parameters, mask)
    if inplace:
        _require_writable("inplace=True: the student's logits", student.detach(), student.detach(), teacher)
    if "labels" in parameters:
        parameters["labels"] = parameters["labels"].reshape(-1).long()
    temperature = parameters.get("temperature")
    differentiable = temperature if isinstance(temperature, Tensor) else None
    wants_gradient = torch.is_grad_enabled() and student.requires_grad
    return _Mean.apply(student, differentiable, teacher, mask, inplace, wants_gradient, loss, parameters)


class _Mean(torch.autograd.Function):
    """The mean of a loss over the mask; its gradients are computed in the forward pass."""

    @staticmethod
    def forward(ctx, student, temperature, teacher, mask, inplace, wants_gradient, loss, parameters):
        student = student.detach()
        mean = _share(student, mask)
        # probabilities are small for fp16: enlarge them, and divide in the backward pass, after a loss scale
        scale = 1024.0 if student.dtype == torch.float16 else mean
        gradient = None
        if wants_gradient:
            gradient = student if inplace else _empty_like(student)
        if temperature is not None:
            parameters = parameters | {"temperature": float(temperature)}
        values = _row_values(student)
        slopes = torch.zeros_like(values) if temperature is not None else None
        _run_blocks(loss, student, teacher, gradient, values, slopes, mask, scale, parameters)
        if gradient is student:
            torch.autograd.graph.increment_version(student)
        ctx.late = mean / scale
        ctx.save_for_backward(gradient, None if slopes is None else (slopes.sum() * mean).to(temperature))
        return values.sum() * mean

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


def _share(student: Tensor, mask: Tensor | None) -> float | Tensor:
    """What a row counts for in the mean; on a GPU a scalar tensor, so that nobody waits for the mask's sum."""
    if mask is not None and mask.is_cuda:
        return 1 / mask.sum().clamp(min=1)
    return 1 / max(student.shape[:-1].numel() if mask is None else int(mask.sum()), 1)


def _scale(gradient: Tensor, factor: Tensor) -> None:
    """gradient · factor, in place; most often by 1, which takes no time."""
    if gradient.is_cuda and gradient.is_contiguous() and _gpu():  # in place, it may be a slice of more
        _gpu().scale(gradient, factor)
    elif gradient.is_cuda or factor != 1:
        gradient.mul_(factor)


def _run_blocks(loss, student, teacher, gradient, values, slopes, mask, scale, parameters) -> None:
    """`_run` on pieces of logits [..., V] whose leading dimensions are one dimension of one stride each."""
    done = 0
    for s, z, out in _blocks(student, teacher, student if gradient is None else gradient):
        rows = slice(done, done + len(s))
        _run(
            loss,
            s,
            z,
            None if gradient is None else out,
            values[rows],
            None if slopes is None else slopes[rows],
            None if mask is None else mask.reshape(-1)[rows],
            scale,
            _own(parameters, rows),
        )
        done = rows.stop


def _own(parameters: dict, rows: slice | Tensor) -> dict:
    """The parameters for some rows: dkd has a label for each."""
    return {name: value[rows] if name == "labels" else value for name, value in parameters.items()}


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors [..., V] as views [n, V], together; more than one where the strides of a tensor ask for it."""
    if tensors[0].dim() < 2:
        yield tuple(x.unsqueeze(0) for x in tensors)
        return
    try:
        yield tuple(x.view(-1, x.shape[-1]) for x in tensors)
    except RuntimeError:  # no such view
        for parts in zip(*tensors):
            yield from _blocks(*parts)


def _run(loss, student, teacher, out, values, slopes, mask, scale, parameters) -> None:
    """Values (and slopes) [n] of rows [n, V]; their gradients to `out` unless None, zero at masked rows."""
    name = engine(student, teacher, *([] if out is None else [out]))
    if name == "cpp":
        kernel.run(loss, student, teacher, out, values, slopes, mask, scale, parameters)
        return
    if name == "triton" and loss in _gpu().LOSSES:
        _gpu().run(loss, student, teacher, out, values, slopes, mask, scale, parameters)
        return
    chunks.keep_freed_memory()
    core, step = chunks.CORES[loss], chunks.step
    if name == "compiled":
        step = chunks.compiled(loss)
        scale = torch.as_tensor(scale, dtype=values.dtype)
        parameters = {
            key: value if key == "labels" else torch.tensor(value, dtype=values.dtype)
            for key, value in parameters.items()
        }
    size = max(1, CHUNK.get(student.device.type, CHUNK["cuda"]) // student.shape[-1])
    for rows in _chunks(len(student), size, mask):
        own = _own(parameters, rows)
        value, gradient, *slope = step(core, student[rows], teacher[rows], values.dtype, scale, own)
        values[rows] = value
        if slopes is not None:
            slopes[rows] = slope[0]
        if out is not None:
            out[rows] = gradient
    if out is not None and mask is not None:
        out.index_fill_(0, (~mask).nonzero().squeeze(-1), 0.0)


def _chunks(n: int, size: int, mask: Tensor | None) -> Iterator[slice | Tensor]:
    """The unmasked rows in chunks: slices where the rows follow each other, else their indices."""
    if mask is None:
        yield from (slice(at, min(at + size, n)) for at in range(0, n, size))
        return
    for rows in mask.nonzero().squeeze(-1).cpu().split(size):
        if len(rows):
            first, last = int(rows[0]), int(rows[-1])
            yield slice(first, last + 1) if last - first + 1 == len(rows) else rows.to(mask.device)


def _empty_like(student: Tensor) -> Tensor:
    """Room for a gradient, contiguous whatever the layout of the logits."""
    return torch.empty(student.shape, dtype=student.dtype, device=student.device)


def _row_values(student: Tensor) -> Tensor:
    """Zeros [n] for the rows of logits [..., V], in the precision of the arithmetic."""
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    return torch.zeros(student.shape[:-1].numel(), dtype=dtype, device=student.device)


def _checked(
    loss: str, student: Tensor, teacher: Tensor, parameters: dict, mask: Tensor | None = None
) -> tuple[str, Tensor, dict]:
    """The loss, its teacher and its parameters, checked; TAID's ends, t = 0 and t = 1, are a forward KL."""
    parameters = {name: _own_value(loss, name, value) for name, value in completed(loss, parameters).items()}
    _require_logits(student, teacher)
    for name, value in parameters.items():
        if name in ("teacher_weight", "lam", "mu"):
            _require_fraction(name, value)
        if name in ("alpha", "beta"):
            _require_weight(name, value)
        if name == "temperature":
            _require_temperature(value)
        if name == "labels":
            _require_targets(value, student, mask)
    if loss == "taid_kl":
        t = parameters["t"]
        _require_t(t)
        if t in (0, 1):
            return "forward_kl", teacher if t else student.detach(), {}
    return loss, teacher, parameters


def completed(loss: str, parameters: dict) -> dict:
    """All parameters of the loss, in its own order. Raises ValueError for an unknown loss or an official variant,
    TypeError for parameters that are not the loss's."""
    if loss not in PER_TOKEN:
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(PER_TOKEN)}")
    if parameters.get("official"):
        raise ValueError(f"the official variant of {loss} is in taid.losses alone")
    bound = inspect.signature(PER_TOKEN[loss]).bind(None, None, **parameters)
    bound.apply_defaults()
    return {name: value for name, value in list(bound.arguments.items())[2:] if name != "official"}


def _own_value(loss: str, name: str, value: Tensor | float) -> Tensor | float:
    """A loss's parameter as engines take it: a number, but for labels and a temperature that is trained."""
    if name == "labels" or not isinstance(value, Tensor) or (loss, name) == ("ctkd", "temperature"):
        return value
    if value.requires_grad or value.numel() != 1:
        raise ValueError(f"{name} of {loss} must be a number without gradient; taid.losses differentiates it")
    return float(value)


def _require_targets(labels: Tensor, student: Tensor, mask: Tensor | None) -> None:
    """Labels that are entries of the vocabulary in every row that is read: kernels take them for addresses."""
    _require_labels(labels, student, mask)
    negative = labels < 0 if mask is None else (labels < 0) & mask
    if negative.any():
        raise ValueError(
            f"the label {int(labels[negative][0])} is no entry of the vocabulary: mask the positions whose "
            "labels are to be ignored, mask=labels >= 0"
        )


def _require_like(name: str, given: Tensor, expected: Tensor) -> None:
    found, wanted = ((x.dtype, tuple(x.shape), x.device) for x in (given, expected))
    if found != wanted:
        raise ValueError(f"{name} must be {' '.join(map(str, wanted))}, got {' '.join(map(str, found))}")


def _require_writable(name: str, out: Tensor, student: Tensor, teacher: Tensor) -> None:
    """Memory in which each entry has a place of its own, which no input has unless it is `out` itself."""
    if out.requires_grad and out.is_leaf:
        raise ValueError(f"{name} must not be a leaf that requires a gradient: detach it")
    reach = 0  # largest distance to the first entry, over the dimensions so far
    for stride, size in sorted(zip(out.stride(), out.shape)):
        if size > 1 and stride <= reach:
            raise ValueError(
                f"{name} cannot be written to, for its entries share memory (expanded?): clone it"
            )
        reach += stride * (size - 1)
    for given, whose in ((student, "student"), (teacher, "teacher")):
        same = whose == "student" and given.data_ptr() == out.data_ptr() and given.stride() == out.stride()
        if not same and _overlap(out, given):
            raise ValueError(f"{name} would be written over the {whose}'s memory: clone one of them")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the addresses from the first to the last entry of two tensors meet."""
    if not a.numel() or not b.numel():
        return False
    (a_first, a_last), (b_first, b_last) = (
        (x.data_ptr(), x.data_ptr() + sum(s * (n - 1) for s, n in zip(x.stride(), x.shape)) * x.itemsize)
        for x in (a, b)
    )
    return a_first <= b_last and b_first <= a_last
