"""Random cases of every loss on every engine against fp64: `make fuzz`, or a slice of them as a slow test.

    python tests/test_fuzz.py 10000 [first]      exits with the cases that differ, each by its number

A case is drawn from its number alone: shapes, types, strides, masks, weights, −∞ on either side or both, NaN where
nothing may read, logits up to 10⁴, vocabularies of one entry. Oracle: `taid.losses` in fp64 on the rows that count, with
autograd. Held besides: rows that do not count get no gradient, no input is changed, a value is never NaN.
"""

import math
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from taid import fused, losses
from taid.fused import head, kernel
from taid.logits import Head

ENGINES = ("pure", "eager", "cpp", "head", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SPACING = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-24, torch.float64: 2**-53}


@dataclass
class Case:
    """One call, and what tells it."""

    number: int
    engine: str
    loss: str
    student: Tensor
    teacher: Tensor
    mask: Tensor | None
    weights: Tensor | None
    parameters: dict[str, Any]
    largest: float  # of the logits that count
    said: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shape, kinds = tuple(self.student.shape), f"{self.student.dtype}, {self.teacher.dtype}"
        own = {k: v for k, v in self.parameters.items() if not isinstance(v, Tensor) or v.numel() == 1}
        return (
            f"case {self.number}: {self.loss} {own}, {self.engine}, {shape}, {kinds}, {', '.join(self.said)}"
        )


def drawn(number: int) -> Case:
    """The case of a number."""
    rng = torch.Generator().manual_seed(number)

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=rng))]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=rng))

    engine = pick("pure", "pure", *["eager", "cpp", "head"] * 5, "triton")
    if (engine == "cpp" and kernel.library() is None) or (engine == "triton" and fused._gpu() is None):
        engine = "eager"
    loss = pick(*losses.LOSSES)
    entries = pick(1, 2, 3, 7, 16, 17, 33, 64, 100, 257)
    entries = max(entries, 2) if loss == "dkd" else entries
    shape = pick((), (1,), (2,), (5,), (0,), (9,), (2, 3), (1, 4), (3, 1, 2))
    shape = shape if shape or engine == "pure" else (3,)
    said = []
    scale = pick(0.0, 1e-3, 1.0, 1.0, 3.0, 3.0, 10.0, 100.0, 1e4)
    said.append(f"scale {scale}")

    def logits(dtype: torch.dtype) -> Tensor:
        """[..., V], laid out in one of several ways."""
        layout = pick("plain", "plain", "sliced", "positions", "transposed", "strided")
        said.append(layout)
        wide = {"sliced": (*shape, entries + 3), "strided": (*shape, 2 * entries)}.get(
            layout, (*shape, entries)
        )
        if layout == "positions" and shape:
            wide = (*shape[:-1], shape[-1] + 1, entries)
        values = scale * torch.randn(wide, generator=rng, dtype=torch.float64) + pick(0.0, 0.0, 50 * scale)
        values = values.clamp(-6e4, 6e4).to(dtype)
        if layout == "sliced":
            return values[..., 1 : entries + 1]
        if layout == "strided":
            return values[..., ::2]
        if layout == "positions" and shape:
            return values[..., :-1, :]
        if layout == "transposed" and len(shape) == 1:
            return values.t().contiguous().t()
        return values

    student, teacher = logits(pick(*DTYPES)), logits(pick(*DTYPES))
    if engine in ("cpp", "triton"):  # at most fp32, unit stride along V
        student, teacher = (
            x if x.dtype != torch.float64 and x.stride(-1) == 1 else torch.empty(x.shape).copy_(x)
            for x in (student, teacher)
        )
    if pick(*[False] * 5, True):
        teacher = student.clone()
        said.append("equal")
    for side, which in pick(
        *[()] * 4, (("both", (student, teacher)),), (("student", (student,)),), (("teacher", (teacher,)),)
    ):
        absent = torch.rand(student.shape, generator=rng) < pick(0.1, 0.5, 0.9)
        absent[..., 0] = False  # a distribution has one entry at least
        for logit in which:
            logit[absent] = -math.inf
        said.append(f"−∞: {side}")
    mask = torch.rand(shape, generator=rng) < pick(0.0, 0.5, 0.9) if pick(True, True, False) else None
    weights = None
    if engine != "pure" and pick(*[False] * 3, True):
        weights = torch.rand(shape, generator=rng) * pick(1e-6, 1.0, 1e6)
        weights[torch.rand(shape, generator=rng) < 0.2] = 0.0
        said.append("weights")
    counted = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    counted = counted if weights is None else counted & (weights > 0)
    if mask is not None and pick(True, False):
        for x in (student, teacher):
            x[~counted] = pick(math.nan, math.inf, -math.inf)
        said.append("NaN where nothing reads")
    parameters: dict[str, Any] = {
        "jsd": lambda: {"teacher_weight": uniform(0.05, 0.95)},
        "skew_kl": lambda: {"lam": uniform(0.05, 0.95)},
        "skew_rkl": lambda: {"lam": uniform(0.05, 0.95)},
        "adaptive_kl": lambda: {"mu": uniform(0.05, 0.95)},
        "alpha_beta": lambda: {"alpha": pick(0.2, 1.0, 0.5, 0.0), "beta": pick(0.7, 1.0, 0.5, 0.0)},
        "dkd": lambda: {
            "labels": torch.randint(entries, shape, generator=rng),
            "alpha": uniform(0, 2),
            "beta": uniform(0, 2),
            "temperature": pick(1.0, 2.0, 0.5),
        },
        "ctkd": lambda: {"temperature": pick(1.0, 4.0, torch.tensor(uniform(0.5, 20.0)))},
        "taid_kl": lambda: {"t": pick(0.0, 1.0, uniform(0, 1), uniform(0, 1))},
        "amid_kl": lambda: {"t": pick(0.0, 1.0, uniform(0, 1)), "mixture": pick(-1.0, 0.5, 1.0, 3.0)},
    }.get(loss, dict)()
    if isinstance(parameters.get("labels"), Tensor) and mask is not None:
        parameters["labels"][~counted] = -100
    read = torch.cat([x[counted].double().flatten() for x in (student, teacher)]).abs()
    largest = float(read[read.isfinite()].max()) if read.isfinite().any() else 0.0
    said.append("mask" if mask is not None else "no mask")
    return Case(number, engine, loss, student, teacher, mask, weights, parameters, largest, said)


def oracle(case: Case) -> tuple[Tensor, Tensor]:
    """(value, gradient with respect to the student's logits) in fp64, of the rows that count."""
    student = case.student.detach().double().requires_grad_()
    counts = torch.ones(case.student.shape[:-1], dtype=torch.float64)
    counts = counts if case.weights is None else case.weights.double()
    counts = counts if case.mask is None else torch.where(case.mask, counts, 0)
    chosen = counts > 0
    parameters = {
        k: v[chosen] if k == "labels" else v.double() if isinstance(v, Tensor) else v
        for k, v in case.parameters.items()
    }
    values = losses.LOSSES[case.loss](student[chosen], case.teacher.double()[chosen], **parameters)
    value = (values * counts[chosen]).sum() / counts.sum() if chosen.any() else student[chosen].sum()
    return value.detach(), torch.autograd.grad(value, student)[0]


def found(case: Case) -> tuple[Tensor, Tensor]:
    """(value, gradient) by the engine."""
    student, teacher = case.student.detach().clone(memory_format=torch.preserve_format), case.teacher
    if student.stride() != case.student.stride():  # the layout is part of the case
        student = case.student.detach()
    student.requires_grad_()
    if case.engine == "pure":
        counts = torch.ones(student.shape[:-1], dtype=torch.bool) if case.mask is None else case.mask
        parameters = {k: v[counts] if k == "labels" else v for k, v in case.parameters.items()}
        values = losses.LOSSES[case.loss](student[counts], teacher[counts], **parameters)
        value = losses.masked_mean(values, torch.ones_like(values, dtype=torch.bool))
    elif case.engine == "head":  # of the logits as hidden states, and the unit matrix
        eye = torch.eye(student.shape[-1], dtype=student.dtype)
        value = head.mean(case.loss, Head(student, eye, None), teacher, *full(case), **case.parameters)
    else:
        with fused.using(case.engine):
            value = fused.mean(
                case.loss, student, teacher, case.mask, weights=case.weights, **case.parameters
            )
    return value.detach(), torch.autograd.grad(value, student)[0]


def full(case: Case) -> tuple[Tensor, Tensor | None]:
    """Mask and weights: without a mask, the head takes rows of one dimension."""
    mask = torch.ones(case.student.shape[:-1], dtype=torch.bool) if case.mask is None else case.mask
    return mask, case.weights


def fault(case: Case) -> str | None:
    """What is wrong with the engine's answer, if anything is."""
    before = case.student.clone(), case.teacher.clone()
    if case.engine == "head" and not case.student.isfinite().all():
        case.student = case.student.nan_to_num(0.0, 0.0, -30.0)  # 0 · ∞ of a matmul is no loss's
    expected, slope = oracle(case)
    value, gradient = found(case)
    if case.engine != "head" and not all(
        torch.equal(x.nan_to_num(3.0), y.nan_to_num(3.0))
        for x, y in zip(before, (case.student, case.teacher), strict=True)
    ):
        return "an input was changed"
    if value.isnan() and not expected.isnan():
        return f"the value is NaN, not {expected:.6g}"
    wide = case.student.dtype == case.teacher.dtype == torch.float64 and case.weights is None
    wide = wide and not isinstance(case.parameters.get("temperature"), Tensor)  # of fp32
    # a logit's rounding is a probability's relative error; losses grow like the largest gap of two logits
    error = 32 * SPACING[torch.float64 if wide else torch.float32]
    error *= (1 + case.largest) * (1 + math.log(case.student.shape[-1]))
    error *= max(1.0, float(case.parameters.get("temperature", 1.0))) ** 2
    gap = (value.double() - expected).abs()
    if expected.isinf() and underflows(case):
        return None
    if expected.isinf() or value.isinf():
        return None if value.double() == expected else f"the value is {value:.6g}, not {expected:.6g}"
    if gap > error * (1 + expected.abs()):
        return f"the value is {value:.9g}, not {expected:.9g}"
    counted = torch.ones(case.student.shape[:-1], dtype=torch.bool) if case.mask is None else case.mask
    counted = counted if case.weights is None else counted & (case.weights > 0)
    if (gradient[~counted] != 0).any():
        return "a row that does not count has a gradient"
    if not slope.isfinite().all() or kinked(case):
        return None  # where the value is infinite in a direction, or has no gradient
    if case.student.dtype == torch.float16 and slope.numel() and slope.abs().max() > 65504 / 16:
        return None  # fused gradients of fp16 end there
    most = (gradient.double() - slope).abs().max() if gradient.numel() else torch.zeros(())
    rounding = SPACING[case.student.dtype] * 4 * (slope.abs().max() if slope.numel() else 0.0)
    smallest = 6e-8 if case.student.dtype == torch.float16 else 0.0  # fp16's own steps near 0
    if not most <= 4 * error * (1 + expected.abs()) + rounding + smallest:
        return f"the gradient is off by {most:.3g}, of at most {slope.abs().max():.3g}"
    return None


def underflows(case: Case) -> bool:
    """Whether some probability against −∞ is none to fp32: then the loss is finite there."""
    s, z = case.student.detach().double(), case.teacher.double()
    q, p = s.softmax(-1), z.softmax(-1)
    alone = torch.cat([p[s == -math.inf], q[z == -math.inf]])
    return bool(((alone > 0) & (alone < 1e-37)).any())


def kinked(case: Case) -> bool:
    """Whether total variation, Σ |p − q|, is at a kink of one entry but for fp32's rounding."""
    q, p = case.student.detach().double().softmax(-1), case.teacher.double().softmax(-1)
    near = ((p - q).abs() < 1e-6 * (1 + case.largest) * p) & (p != q)
    return case.loss == "tvd" and bool(near.any())


def ambiguous(case: Case) -> bool:
    """Where rounding may choose another head of the teacher's, adaptive KL has two values."""
    if case.loss != "adaptive_kl" or not case.teacher.numel():
        return False
    p = case.teacher.double().softmax(-1).sort(-1, descending=True).values
    margin = 1e-5 * (1 + case.largest)
    tied = ((p[..., :-1] - p[..., 1:]).abs() < margin * p[..., 1:]) & (p[..., :-1] != p[..., 1:])
    return bool(((p.cumsum(-1) - case.parameters["mu"]).abs() < margin).any() or tied.any())


def run(first: int, count: int) -> list[str]:
    """What is wrong with the cases of some numbers."""
    wrong = []
    for number in range(first, first + count):
        case = drawn(number)
        if ambiguous(case):
            continue
        try:
            what = fault(case)
        except Exception as error:  # whatever it raises, the case is told
            what = f"{type(error).__name__}: {error}"
        if what:
            wrong.append(f"{case}: {what}")
    return wrong


@pytest.mark.slow
def test_random_cases_are_those_of_fp64():
    assert run(0, 400) == []


def test_the_fuzz_sees_a_wrong_loss(monkeypatch):
    """So that it can fail: KL turned round, and a gradient lost."""
    numbers = [n for n in range(200) if (c := drawn(n)).loss == "forward_kl" and c.engine == "eager"][:8]
    assert not [what for n in numbers for what in run(n, 1)]
    right = fused.mean
    monkeypatch.setattr(fused, "mean", lambda loss, *a, **k: right("reverse_kl", *a, **k))
    assert [what for n in numbers for what in run(n, 1)]
    monkeypatch.setattr(
        fused, "mean", lambda *a, **k: right(*a, **k) + 0 * (x := right(*a, **k)) + x - x.detach()
    )
    assert [what for n in numbers for what in run(n, 1)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    total, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    faults = []
    for begin in range(start, start + total, 500):
        faults += run(begin, min(500, start + total - begin))
        print(f"{begin + 500 - start} of {total} cases, {len(faults)} differ", flush=True)
    print(*faults, sep="\n")
    sys.exit(bool(faults))
