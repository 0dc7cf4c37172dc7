"""What a kernel must never do: read or write a place that is not its own. Bad inputs are refused with words."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taid import fused, losses
from taid.fused import kernel
from taid.fused.rows import Rows

ROOT = Path(__file__).parents[1]
N, V = 8, 48
LABELS = torch.arange(N)
META = torch.device("meta")  # stands for another device
needs_the_kernel = pytest.mark.skipif(kernel.library() is None, reason="no C++ compiler")


@pytest.fixture(params=["eager", "cpp", "triton"])
def engine(request):
    if request.param == "cpp" and kernel.library() is None:
        pytest.skip("no C++ compiler")
    if request.param == "triton" and (fused._gpu() is None or not fused._gpu().INTERPRETED):
        pytest.skip("no Triton, or a GPU")
    with fused.using(request.param):
        yield request.param


def logits(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    s, z = torch.randn(2, *(shape or (N, V)), generator=torch.Generator().manual_seed(0))
    return s.clone().requires_grad_(), z.clone()


# Labels


@pytest.mark.parametrize("label", [V, V + 12, 5000, 10**7, 2**40, -1, -100, -(2**40)])
def test_a_label_that_is_no_entry_is_refused_by_every_engine(engine, label):
    """Written as an address it would lie outside of the logits."""
    s, z = logits()
    labels = torch.where(LABELS == 5, label, LABELS)
    with pytest.raises(ValueError, match=f"the label {label} is no entry"):
        fused.dkd(s, z, labels)
    with pytest.raises(ValueError, match=f"the label {label} is no entry"):
        fused.value_and_gradient("dkd", s, z, labels=labels)


@pytest.mark.parametrize("label", [10**7, -100])
def test_a_label_that_is_masked_may_be_anything(engine, label):
    """Oracle: the row left out, in fp64."""
    s, z = logits()
    keep = LABELS != 5
    found = fused.dkd(s, z, torch.where(keep, LABELS, label), mask=keep)
    expected = losses.dkd(s[keep].double(), z[keep].double(), LABELS[keep]).mean()
    assert found.item() == pytest.approx(expected.item(), rel=2e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_labels_of_any_integers(engine, dtype):
    s, z = logits()
    assert torch.equal(fused.dkd(s, z, LABELS.to(dtype)), fused.dkd(s, z, LABELS))
    assert torch.equal(losses.dkd(s, z, LABELS.to(dtype)), losses.dkd(s, z, LABELS))


@needs_the_kernel
@pytest.mark.parametrize("label", [V, 10**7, -1])
def test_the_kernel_itself_touches_nothing_for_such_a_label(label):
    """Behind all checks: its value is NaN, and the gradient nothing."""
    s, z = (x.detach() for x in logits(1, V))
    out, values = torch.ones(1, V), torch.zeros(1)
    parameters = {"labels": torch.tensor([label]), "alpha": 1.0, "beta": 0.5, "temperature": 1.0}
    kernel.run(Rows("dkd", s, z, parameters, values, out))
    assert values.isnan().all() and (out == 0).all()


def test_the_gpu_program_touches_nothing_for_such_a_label():
    if fused._gpu() is None or not fused._gpu().INTERPRETED:
        pytest.skip("no Triton, or a GPU")
    s, z = (x.detach() for x in logits(2, V))
    out, values = torch.ones(2, V), torch.zeros(2)
    parameters = {"labels": torch.tensor([10**7, -1]), "alpha": 1.0, "beta": 0.5, "temperature": 1.0}
    fused._gpu().run(Rows("dkd", s, z, parameters, values, out))
    assert values.isnan().all()


# Everything else that has an address or a size


def strided(size: int, stride: int) -> torch.Tensor:
    return torch.zeros(1 + stride * (N - 1) + size).as_strided((N, size), (stride, 1))


REFUSED = {
    "another device": (lambda s, z: fused.tvd(s, z.to(META)), "move the teacher's"),
    "a mask elsewhere": (lambda s, z: fused.tvd(s, z, (LABELS > 2).to(META)), "mask is on meta"),
    "labels elsewhere": (lambda s, z: fused.dkd(s, z, LABELS.to(META)), "the labels are on meta"),
    "labels that are no integers": (
        lambda s, z: fused.dkd(s, z, LABELS.float()),
        "integers, got torch.float32",
    ),
    "labels that are a mask": (lambda s, z: fused.dkd(s, z, LABELS > 2), "integers, got torch.bool"),
    "a target without others": (
        lambda s, z: fused.dkd(s[:, :1], z[:, :1], LABELS * 0),
        "at least two entries",
    ),
    "no vocabulary": (lambda s, z: fused.tvd(s[:, :0], z[:, :0]), r"at least one entry, got \(8, 0\)"),
    "no dimension": (lambda s, z: fused.tvd(s[0, 0], z[0, 0]), r"must be \[\.\.\., V\]"),
    "integers for logits": (lambda s, z: fused.tvd(s.detach().long(), z), "floating point, got torch.int64"),
    "logits of 8 bits": (lambda s, z: fused.tvd(s.detach().to(torch.float8_e4m3fn), z), "logits.float()"),
    "no teacher": (lambda s, z: fused.tvd(s, None), "dense tensors .*, got NoneType"),
    "sparse logits": (lambda s, z: fused.tvd(s.detach().to_sparse(), z), "dense tensors .*sparse_coo"),
    "labels in a list": (lambda s, z: fused.dkd(s, z, [1] * N), "labels of shape .* got list"),
    "temperature 0": (lambda s, z: fused.ctkd(s, z, 0.0), "temperature must be positive and finite, got 0"),
    "temperature NaN": (lambda s, z: fused.ctkd(s, z, torch.tensor(math.nan)), "finite, got nan"),
    "temperature ∞": (lambda s, z: fused.dkd(s, z, LABELS, temperature=math.inf), "finite, got inf"),
    "a temperature per row": (lambda s, z: fused.ctkd(s, z, torch.ones(N)), r"one number, got shape \(8,\)"),
    "a gradient that nobody computes": (
        lambda s, z: fused.dkd(s, z, LABELS, temperature=torch.tensor(2.0, requires_grad=True)),
        "taid.losses differentiates it",
    ),
    "a weight NaN": (lambda s, z: fused.dkd(s, z, LABELS, alpha=math.nan), "alpha must be finite"),
    "a t per row": (lambda s, z: fused.taid_kl(s, z, torch.full((N,), 0.3)), "t of taid_kl must be a number"),
    "out of another type": (
        lambda s, z: fused.value_and_gradient("tvd", s, z, torch.empty(N, V).double()),
        "out must be torch.float32",
    ),
    "out too small": (
        lambda s, z: fused.value_and_gradient("tvd", s, z, torch.empty(4, V)),
        r"got .*\(4, 48\)",
    ),
    "out expanded": (
        lambda s, z: fused.value_and_gradient("tvd", s, z, torch.empty(1, V).expand(N, V)),
        "share memory",
    ),
    "out of overlapping rows": (
        lambda s, z: fused.value_and_gradient("tvd", s, z, strided(V, V - 1)),
        "share memory",
    ),
    "out over the teacher": (
        lambda s, z: fused.value_and_gradient("tvd", s, z, z),
        "over the teacher's memory",
    ),
    "out beside itself": (
        lambda s, z: fused.value_and_gradient("tvd", (w := strided(V + 1, V + 1))[:, :-1], z, w[:, 1:]),
        "over the student's memory",
    ),
    "out that trains": (
        lambda s, z: fused.value_and_gradient("tvd", s, z, torch.empty(N, V, requires_grad=True)),
        "leaf",
    ),
    "slope too short": (
        lambda s, z: fused.value_and_gradient("ctkd", s, z, slope=torch.empty(3), temperature=2.0),
        r"slope must be torch.float32 \(8,\)",
    ),
    "slope strided": (
        lambda s, z: fused.value_and_gradient("ctkd", s, z, slope=torch.empty(16)[::2], temperature=2.0),
        "contiguous",
    ),
    "more dimensions": (lambda s, z: fused.value_and_gradient("tvd", s[None], z[None]), r"logits \[r, V\]"),
    "in place over the teacher": (
        lambda s, z: fused.tvd((w := s * 1.0), w.detach(), inplace=True),
        "over the teacher's memory: clone",
    ),
    "in place over half the teacher": (
        lambda s, z: fused.tvd((w := s * 1.0)[:5], w.detach()[3:], inplace=True),
        "over the teacher's memory: clone",
    ),
    "in place over overlapping rows": (
        lambda s, z: fused.tvd((s * 1.0).as_strided((N, V), (7, 1)), z, inplace=True),
        "share memory",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_place_is_refused_by_every_engine(engine, what):
    call, says = REFUSED[what]
    with pytest.raises(ValueError, match=says):
        call(*logits())


@pytest.mark.parametrize("parameters", [{}, {"lam": 0.1}, {"teacher_weight": 0.1, "t": 0.3}])
def test_parameters_of_another_loss_are_refused(engine, parameters):
    """By name and all: a kernel that looked for the first number would take any."""
    if not parameters:
        assert torch.equal(
            fused.value_and_gradient("jsd", *logits())[0],
            fused.value_and_gradient("jsd", *logits(), teacher_weight=0.1)[0],
        )
        return
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        fused.value_and_gradient("jsd", *logits(), **parameters)


def test_parameters_in_any_order(engine):
    s, z = logits()
    one = fused.value_and_gradient("dkd", s, z, labels=LABELS, alpha=0.3, beta=2.0, temperature=1.5)
    other = fused.value_and_gradient("dkd", s, z, temperature=1.5, beta=2.0, alpha=0.3, labels=LABELS)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_one_entry_alone_is_certain(engine):
    s, z = logits(N, 1)
    for loss in (fused.forward_kl, fused.tvd, fused.jsd, fused.adaptive_kl):
        value = loss(s, z)
        assert value.abs() < 1e-6 and torch.autograd.grad(value, s)[0].abs().max() < 1e-6


@pytest.mark.parametrize(
    "view", [torch._neg_view, lambda x: x.as_subclass(Mine)], ids=["negated", "subclass"]
)
def test_what_is_not_in_memory_as_it_seems_is_read_by_torch(view):
    """A lazily negated view holds the opposite, a subclass perhaps nothing. Oracle: fp64."""
    s, z = logits()
    value, _ = fused.value_and_gradient("tvd", view(s.detach()), z)
    expected = losses.tvd(view(s.detach()).double(), z.double())
    torch.testing.assert_close(value.double(), expected.as_subclass(torch.Tensor), rtol=2e-6, atol=0)
    assert fused.engine(view(s.detach()), z) == "eager"


class Mine(torch.Tensor):
    pass


@needs_the_kernel
def test_addresses_beyond_32_bits():
    """Rows 2³⁰ elements apart, of memory that the system gives only where it is touched: the third begins 4 GB on."""
    s = torch.empty(2**31 + V, dtype=torch.bfloat16).as_strided((3, V), (2**30, 1))
    source, z = (x.detach().bfloat16() for x in logits(3, V))
    s.copy_(source)
    expected, gradient = fused.value_and_gradient("taid_kl", source, z, t=0.3)
    with fused.using("cpp"):
        values, found = fused.value_and_gradient("taid_kl", s, z, s, t=0.3)
    assert torch.equal(values, expected) and torch.equal(found, gradient)


# The sanitizers of the compiler


def sanitized(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Python with the kernel under AddressSanitizer and UndefinedBehaviorSanitizer."""
    compiler = os.environ.get("CXX") or "g++"
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}.so"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan", "libstdc++")
    ]
    if not Path(libraries[0]).is_absolute():
        pytest.fail(f"{compiler} is here without its libasan: install gcc's sanitizers (Debian: libasan8)")
    environment = os.environ | {
        "CXX": f"{compiler} -fsanitize=address,undefined -fno-sanitize-recover=undefined -g",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900)


@pytest.mark.slow
@needs_the_kernel
def test_the_sanitizers_see_a_write_beside_a_tensor():
    """So that the next test can fail: a job that claims a row more than there is."""
    ran = sanitized(
        "import torch\nfrom taid.fused import kernel\nfrom taid.fused.rows import Rows\n"
        "s, z, out = (torch.zeros(4, 100) for _ in range(3))\nvalues = torch.zeros(4)\n"
        "class Liar:\n    def __getattr__(self, name): return getattr(s, name)\n    shape = (5, 100)\n"
        "kernel.run(Rows('forward_kl', Liar(), z, {}, values, out))\n"
    )
    assert ran.returncode != 0 and "heap-buffer-overflow" in ran.stderr, ran.stderr[-2000:]


@pytest.mark.slow
@needs_the_kernel
def test_the_kernels_tests_pass_under_the_sanitizers():
    """Each of tests/test_fused.py and of this file that runs the kernel."""
    ran = sanitized(
        "import sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))",
        *("tests/test_fused.py", "tests/test_fused_safety.py", "-q", "-x", "-s", "-p", "no:cacheprovider"),
        *("-k", "(cpp or kernel or threads or 32_bits) and not compiler and not sanitizers"),
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    assert " passed" in ran.stdout and "AddressSanitizer" not in ran.stderr
