"""What a loss may be given. Each check raises ValueError with what to pass instead."""

import math
from numbers import Integral

import torch
from torch import Tensor

LOGITS = {torch.bfloat16, torch.float16, torch.float32, torch.float64}


def require_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Two floating-point tensors [..., V] of one shape on one device, V ≥ 1."""
    for given in (student_logits, teacher_logits):
        if not isinstance(given, Tensor) or given.layout != torch.strided:
            kind = f"{given.layout}" if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"logits must be dense tensors [..., V], got {kind}")
    student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if student != teacher:
        raise ValueError(
            f"student_logits {student} and teacher_logits {teacher} must have one shape; if the vocabularies "
            "differ only in padding, cut the longer one, logits[..., :V], as DistillationTrainer does"
        )
    if not student or not student[-1]:
        raise ValueError(f"logits must be [..., V] with at least one entry, got {student}")
    if not {student_logits.dtype, teacher_logits.dtype} <= LOGITS:
        types = f"{student_logits.dtype} and {teacher_logits.dtype}"
        raise ValueError(
            f"logits must be of 16, 32 or 64 bits floating point, got {types}: pass logits.float()"
        )
    if student_logits.device != teacher_logits.device:
        devices = f"{student_logits.device}, teacher_logits on {teacher_logits.device}"
        raise ValueError(f"student_logits are on {devices}: move the teacher's to the student's")


def require_labels(labels: Tensor | None, student_logits: Tensor, mask: Tensor | None = None) -> None:
    """Integers below V, where the mask is true. Negative ones, of ignored positions, pass."""
    expected, entries = tuple(student_logits.shape[:-1]), student_logits.shape[-1]
    if not isinstance(labels, Tensor) or tuple(labels.shape) != expected:
        got = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"dkd needs labels of shape {expected}, one target per position; got {got}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"dkd needs labels that are integers, got {labels.dtype}")
    if labels.device != student_logits.device:
        raise ValueError(f"the labels are on {labels.device}, the logits on {student_logits.device}")
    if entries < 2:
        raise ValueError("dkd needs a target and others: logits of at least two entries, got one")
    read = labels.long() if mask is None else labels.long()[mask]
    if read.numel() and (largest := int(read.max())) >= entries:
        raise ValueError(
            f"the label {largest} is no entry of logits with {entries}; is the tokenizer another model's, or "
            "the vocabulary cut? Ignored positions are −100"
        )


def require_temperature(temperature: Tensor | float) -> None:
    """One positive finite number."""
    require_number("temperature", temperature)
    if isinstance(temperature, Tensor) and temperature.numel() != 1:
        raise ValueError(f"temperature must be one number, got shape {tuple(temperature.shape)}")
    value = float(temperature.detach() if isinstance(temperature, Tensor) else temperature)
    if not 0 < value < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {value}")


def require_number(name: str, value: object) -> None:
    """No text that reads like a number, no list of them, not None; any type of numbers passes."""
    # what is none, by its type: torch.compile cannot say of its own floats what a number has
    if value is None or isinstance(value, str | list | tuple | dict):
        raise ValueError(f"{name} must be a number, got {value!r}")


def require_count(name: str, value: int, unit: str) -> None:
    """A whole number, 1 or more."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of {unit}, at least 1, got {value!r}")


def require_share(name: str, value: float, of: str) -> None:
    """A number in [0, 1], a share or a probability."""
    require_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], for it is {of}; got {value}")


def require_fraction(name: str, value: float) -> None:
    """A number in (0, 1)."""
    require_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")


def require_weight(name: str, value: float) -> None:
    """A number in [0, ∞)."""
    require_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def require_finite(name: str, value: float) -> None:
    """A number in (−∞, ∞)."""
    require_number(name, value)
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be a finite number, got {value}")


def require_t(t: float) -> None:
    """A number in [0, 1]."""
    if not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1], got {t}; take it from the state of a taid.schedule")


def boolean(mask: Tensor, positions: Tensor) -> Tensor:
    """The mask [...] as booleans, on the shape and device of `positions [...]`. It may consist of booleans, or of 0
    and 1 in any type, as attention masks do."""
    _require_place("mask", mask, positions)
    if mask.dtype == torch.bool:
        return mask
    found = mask != 0
    wrong = mask != found
    if wrong.any():
        raise ValueError(
            f"mask must hold booleans, or 0 and 1, got {mask[wrong][0].item()}; numbers that positions are to "
            "count for are `weights`"
        )
    return found


def position_weights(weights: Tensor, positions: Tensor) -> Tensor:
    """Finite numbers ≥ 0 without gradient [...], on the shape and device of `positions [...]`, as fp32 or wider."""
    _require_place("weights", weights, positions)
    if weights.dtype == torch.bool or weights.is_complex() or weights.requires_grad:
        kind = (
            "a gradient: detach them" if weights.requires_grad else f"{weights.dtype}: pass a mask, or floats"
        )
        raise ValueError(f"weights must be real numbers without gradient, got {kind}")
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    wrong = ~((weights >= 0) & (weights < math.inf))
    if wrong.any():
        raise ValueError(f"weights must be finite and not negative, got {weights[wrong][0].item()}")
    return weights


def relative(weights: Tensor) -> Tensor:
    """The weights in multiples of the largest: their means are the same, and overflow nowhere."""
    return weights / weights.amax().clamp(min=torch.finfo(weights.dtype).tiny) if weights.numel() else weights


def _require_place(name: str, given: Tensor, positions: Tensor) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(given).__name__}")
    if given.shape != positions.shape:
        found, expected = tuple(given.shape), tuple(positions.shape)
        raise ValueError(f"{name} must have one entry per position, {expected}, got {found}")
    if given.device != positions.device:
        raise ValueError(f"{name} is on {given.device}, the positions on {positions.device}")
