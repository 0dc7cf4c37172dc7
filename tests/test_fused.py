"""The fused losses against `taid.losses` with autograd in fp64, on every engine, and what they allocate."""

import math
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from taid import fused, losses
from taid.fused import chunks, kernel

INF = math.inf
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # Triton's programs run on either
ROWS, VOCABULARY = 12, 1043  # more than one block of a kernel, and no multiple of any vector
LABELS = 37 * torch.arange(ROWS, device=DEVICE)
PARAMETERS = {
    "forward_kl": {},
    "reverse_kl": {},
    "tvd": {},
    "jsd": {"teacher_weight": 0.1},
    "skew_kl": {"lam": 0.1},
    "skew_rkl": {"lam": 0.2},
    "adaptive_kl": {"mu": 0.5},
    "alpha_beta": {"alpha": 0.2, "beta": 0.7},
    "dkd": {"labels": LABELS, "alpha": 1.0, "beta": 0.5, "temperature": 2.0},
    "ctkd": {"temperature": 3.0},
    "taid_kl": {"t": 0.3},
    "amid_kl": {"t": 0.3, "mixture": 0.5},
}
ROUGH = {"alpha": 0.0, "beta": 0.0}  # of α-β: ½ Σ (log p − log q)²
every_loss = pytest.mark.parametrize("name", PARAMETERS)
on_the_cpu = pytest.mark.skipif(DEVICE != "cpu" or kernel.library() is None, reason="the C++ kernel's")
ERROR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float16: 1e-3}
"""Allowed error of a gradient, relative to its norm: the rounding of the dtype, or of fp32 sums."""


@pytest.fixture(autouse=True)
def device():
    with torch.device(DEVICE):
        yield


SLOW = {"marks": pytest.mark.slow}


@pytest.fixture(params=["eager", "cpp", pytest.param("compiled", **SLOW), pytest.param("triton", **SLOW)])
def engine(request, monkeypatch):
    if request.param == "cpp" and (DEVICE != "cpu" or kernel.library() is None):
        pytest.skip("no C++ compiler, or a GPU")
    if request.param == "triton":
        if fused._gpu() is None:
            pytest.skip("no Triton")
        monkeypatch.setattr(fused._gpu(), "BLOCK", 512)  # so that rows have more than one
    with fused.using(request.param):
        yield request.param


def allowed(dtype, engine):
    """Error of a gradient. Triton's interpreter, unlike a GPU, cuts bits off where it converts to bf16."""
    cuts = engine == "triton" and DEVICE == "cpu" and dtype == torch.bfloat16
    return 2 * ERROR[dtype] if cuts else ERROR[dtype]


def logits(dtype=torch.float32, shape=(ROWS, VOCABULARY), scale=3.0, seed=0):
    """Student and teacher logits; the student's receive a gradient."""
    generator = torch.Generator().manual_seed(seed)
    s, z = (scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64, device="cpu")).to(
        DEVICE, dtype
    )
    return s.requires_grad_(), z


def mean_and_gradient(name, s, z, mask=None, **options):
    value = getattr(fused, name)(s, z, **PARAMETERS[name] | options, mask=mask)
    return value.detach(), torch.autograd.grad(value, s)[0]


def oracle(name, s, z, mask=None, **options):
    """The pure loss of the unmasked rows in fp64, and autograd's gradient."""
    s64 = s.detach().double().requires_grad_()
    parameters = PARAMETERS[name] | options
    selected = slice(None) if mask is None else mask
    if "labels" in parameters:
        parameters = parameters | {"labels": parameters["labels"][selected]}
    value = getattr(losses, name)(s64[selected], z.double()[selected], **parameters).mean()
    return value.detach(), torch.autograd.grad(value, s64)[0]


def error(gradient, expected):
    return ((gradient.double() - expected).norm() / expected.norm()).item()


# Values and gradients


@every_loss
@pytest.mark.parametrize("dtype", ERROR)
def test_value_and_gradient_are_those_of_the_pure_loss(engine, name, dtype):
    if engine in ("cpp", "triton") and dtype == torch.float64:
        pytest.skip("not the kernel's")
    s, z = logits(dtype)
    mask = torch.arange(ROWS) % 3 != 1
    value, gradient = mean_and_gradient(name, s, z, mask)
    expected, expected_gradient = oracle(name, s, z, mask)
    assert value.dtype == (dtype if dtype == torch.float64 else torch.float32) and gradient.dtype == dtype
    assert value.item() == pytest.approx(expected.item(), rel=1e-12 if dtype == torch.float64 else 2e-6)
    assert (gradient[~mask] == 0).all()
    if dtype == torch.float16:  # under a loss scale; without one fp16 has no digits for small probabilities
        loss = getattr(fused, name)(s, z, **PARAMETERS[name], mask=mask)
        gradient = torch.autograd.grad(1024 * loss, s)[0].double() / 1024
    assert error(gradient, expected_gradient) < allowed(dtype, engine)


def test_taid_begins_where_its_teacher_is_the_memory_written_over(engine):
    """At t = 0. It was refused as if it were somebody else's."""
    s, z = logits()
    model_output = s * 1.0
    value = fused.taid_kl(model_output, z, 0.0, inplace=True)
    gradient = torch.autograd.grad(value, s)[0]
    assert value.abs() < 1e-6 and gradient.abs().max() < 1e-7
    values, gradient = fused.value_and_gradient("taid_kl", s, z, out=(out := s.detach().clone()), t=0.0)
    assert values.abs().max() < 1e-6 and gradient is out and gradient.abs().max() < 1e-7


@pytest.mark.parametrize("name", fused.UNBOUNDED)
def test_gradients_that_grow_with_the_gap_fit_in_fp16(engine, name):
    """One row, so that its gradient of a hundred and more is not a share of many: enlarged by 1,024 it was infinite."""
    s = torch.tensor([[0.0, 0.0, 0.5]], dtype=torch.float16, requires_grad=True)
    z = torch.tensor([[800.0, -800.0, 0.0]], dtype=torch.float16)
    _, gradient = mean_and_gradient(name, s, z, **(ROUGH if name == "alpha_beta" else {}))
    _, expected = oracle(name, s, z, **(ROUGH if name == "alpha_beta" else {}))
    assert gradient.isfinite().all() and error(gradient, expected) < 1e-2


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_keeps_its_precision_where_student_and_teacher_nearly_agree(engine, name, dtype):
    """Differences of the order of bf16's spacing: interpolating in bf16 loses 4 to 60 percent."""
    s, _ = logits(dtype)
    noise = torch.randn(s.shape, generator=torch.Generator().manual_seed(1), device="cpu").to(DEVICE)
    z = (s.detach().float() * (1 + 0.01 * noise)).to(dtype)
    options = {"t": 0.05} if name == "taid_kl" else {}
    value, gradient = mean_and_gradient(name, s, z, **options)
    expected, expected_gradient = oracle(name, s, z, **options)
    assert error(gradient, expected_gradient) < allowed(torch.bfloat16, engine)
    assert value.item() == pytest.approx(expected.item(), rel=1e-3, abs=2e-7)


@every_loss
def test_teacher_may_have_another_precision(engine, name):
    s, z = logits()
    z = z.bfloat16()
    value, gradient = mean_and_gradient(name, s, z)
    expected, expected_gradient = oracle(name, s, z)
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)
    assert error(gradient, expected_gradient) < 1e-5


@every_loss
def test_a_shift_of_all_logits_changes_nothing(engine, name):
    s, z = logits(scale=1.0)
    value, gradient = mean_and_gradient(name, (s.detach() + 512.0).requires_grad_(), z - 512.0)
    expected, expected_gradient = oracle(name, (s + 512.0) - 512.0, (z - 512.0) + 512.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)  # fp32 has a spacing of 6e-5 at 512
    assert error(gradient, expected_gradient) < 1e-4


@every_loss
def test_order_of_the_vocabulary_does_not_matter(engine, name):
    s, z = logits()
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(2), device="cpu").to(DEVICE)
    options = {"labels": order.argsort()[LABELS]} if name == "dkd" else {}
    value, gradient = mean_and_gradient(name, s, z)
    s = s.detach()[:, order].requires_grad_()
    shuffled, shuffled_gradient = mean_and_gradient(name, s, z[:, order], **options)
    assert shuffled.item() == pytest.approx(value.item(), rel=2e-6)
    assert error(shuffled_gradient, gradient[:, order].double()) < 1e-5


def test_taid_ends_are_forward_kl_to_the_teacher_and_to_itself(engine):
    s, z = logits()
    at_one, kl = mean_and_gradient("taid_kl", s, z, t=1.0), mean_and_gradient("forward_kl", s, z)
    assert torch.equal(at_one[0], kl[0]) and torch.equal(at_one[1], kl[1])
    value, gradient = mean_and_gradient("taid_kl", s, torch.full_like(z, -INF), t=0.0)
    assert value.abs() < 1e-7 and gradient.abs().max() < 1e-8


def test_ctkd_differentiates_its_temperature(engine):
    s, z = logits(scale=1.0)
    s.detach()[:, :3] = z[:, :5] = -INF  # absent from the teacher: no term there
    tau, exact = (torch.tensor(2.5).to(x).requires_grad_() for x in (torch.float32, torch.float64))
    mask = torch.arange(ROWS) != 3
    (2 * fused.ctkd(s, z, tau, mask)).backward()
    (2 * losses.ctkd(s.detach().double(), z.double(), exact)[mask].mean()).backward()
    # 2τ KL and τ² dKL/dτ nearly cancel, and fp32 rounding with them is amplified
    assert tau.grad.item() == pytest.approx(exact.grad.item(), rel=1e-4) and s.grad.isfinite().all()


@on_the_cpu
def test_exponential_and_logarithm_of_the_kernel():
    """Forward KL to a teacher without token 0 has the gradient q_0; skew KL to one without 1 is a log."""
    x = torch.linspace(-80, 0, 100_001)
    s = torch.stack([x, torch.zeros_like(x)], -1)
    z = torch.tensor([-INF, 0.0]).expand_as(s)
    with fused.using("cpp"):
        _, gradient = fused.value_and_gradient("forward_kl", s, z)
        values, _ = fused.value_and_gradient("skew_kl", s, z.flip(-1), lam=1e-6)
    q = s.double().softmax(-1)[:, 0]
    assert ((gradient[:, 0] - q) / q).abs().max() < 5e-7
    exact = -torch.log(1e-6 + (1 - 1e-6) * q)
    assert ((values - exact) / exact).abs().max() < 5e-7


# What is absent, masked or NaN


@every_loss
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_absent_entries_count_as_in_the_pure_loss(engine, name, side):
    s, z = logits()
    for x in {"student": [s], "teacher": [z], "both": [s, z]}[side]:
        x.detach()[:, 5:540] = -INF  # a whole block of the kernel
        x.detach()[:, -1] = -INF
    parameters = PARAMETERS[name] | ({"labels": LABELS % 5} if name == "dkd" else {})
    values, gradient = fused.value_and_gradient(name, s, z, **parameters)
    s64 = s.detach().double().requires_grad_()
    expected = getattr(losses, name)(s64, z.double(), **parameters)
    torch.testing.assert_close(values.double(), expected.detach(), rtol=3e-6, atol=1e-6)
    if expected.isfinite().all():
        assert error(gradient, torch.autograd.grad(expected.sum(), s64)[0]) < 1e-5
        assert (gradient[:, 5:540] == 0).all() or side == "teacher"


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "adaptive_kl", "jsd"])
@pytest.mark.parametrize("side", [0, 1])
def test_what_vanishes_beside_a_later_maximum_does_not_exist(engine, name, side):
    """A first block with an infinite divergence whose probability is below anything that fp32 holds."""
    pair = [x.detach() for x in logits()]
    pair[side][:, :600] = -INF
    pair[1 - side][:, :600] -= 900.0
    value, gradient = mean_and_gradient(name, pair[0].requires_grad_(), pair[1])
    rest = [x.detach()[:, 600:] for x in pair]
    expected, expected_gradient = mean_and_gradient(name, rest[0].requires_grad_(), rest[1])
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)
    assert error(gradient[:, 600:], expected_gradient.double()) < 1e-5 and (gradient[:, :600] == 0).all()


@every_loss
@pytest.mark.parametrize("inplace", [False, True])
def test_masked_rows_are_never_read(engine, name, inplace):
    s, z = logits(torch.bfloat16)
    mask = torch.arange(ROWS) % 4 == 1
    expected, expected_gradient = mean_and_gradient(name, s, z, mask)
    s.detach()[~mask] = math.nan
    z[~mask] = INF
    leaf = s.detach().requires_grad_()
    value = getattr(fused, name)(leaf * 1.0, z, **PARAMETERS[name], mask=mask, inplace=inplace)
    value.backward()
    assert torch.equal(value, expected) and torch.equal(leaf.grad, expected_gradient)


@every_loss
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_without_any_probability_is_not_hidden(engine, name, side):
    """−∞ throughout has no softmax. Oracle: `taid.losses` has NaN there, and in no other row."""
    pair = logits()
    pair[side].detach()[2] = -INF
    values, gradient = fused.value_and_gradient(name, *pair, **PARAMETERS[name])
    expected = getattr(losses, name)(pair[0].detach(), pair[1], **PARAMETERS[name])
    assert torch.equal(values.isnan(), expected.isnan()) and values[2].isnan()
    assert gradient[3:].isfinite().all()


@every_loss
def test_nan_logits_are_not_hidden(engine, name):
    for side in (0, 1):
        pair = logits()
        pair[side].detach()[2, 700] = math.nan
        values, gradient = fused.value_and_gradient(name, *pair, **PARAMETERS[name])
        assert values.isnan().tolist() == [i == 2 for i in range(ROWS)] and gradient[3:].isfinite().all()


@every_loss
def test_an_empty_mask_gives_zero_and_no_gradient(engine, name):
    s, z = logits()
    nowhere = torch.zeros(ROWS, dtype=torch.bool)
    value, gradient = mean_and_gradient(name, s, torch.full_like(z, math.nan), nowhere)
    assert value == 0 and (gradient == 0).all()


# Masks and weights


@every_loss
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_are_those_of_the_weighted_mean(engine, name, dtype, inplace):
    """Oracle: Σ w · loss / Σ w of the pure loss in fp64. Of fp16 under a loss scale."""
    s, z = logits(dtype)
    mask = torch.arange(ROWS) % 3 != 1
    weights = 1e-3 * (1 + torch.arange(ROWS) % 5) ** 2
    s64 = s.detach().double().requires_grad_()
    values = getattr(losses, name)(s64, z.double(), **PARAMETERS[name])
    expected = (weights * values)[mask].sum() / weights[mask].sum()
    value = getattr(fused, name)(s * 1, z, **PARAMETERS[name], mask=mask, weights=weights, inplace=inplace)
    assert value.item() == pytest.approx(expected.item(), rel=3e-6)
    gradient = torch.autograd.grad(1024 * value, s)[0]
    expected_gradient = torch.autograd.grad(1024 * expected, s64)[0]
    assert (gradient[~mask] == 0).all() and error(gradient, expected_gradient) < allowed(dtype, engine)


def test_a_row_of_weight_zero_is_never_read(engine):
    s, z = logits()
    weights = torch.arange(ROWS) % 4 / 4.0
    expected, expected_gradient = mean_and_gradient("taid_kl", s, z, weights=weights)
    s.detach()[::4] = math.nan
    z[::4] = INF
    value, gradient = mean_and_gradient("taid_kl", s, z, weights=weights)
    assert torch.equal(value, expected) and torch.equal(gradient, expected_gradient)
    labels = torch.where(weights > 0, LABELS, -100)
    assert fused.dkd(*logits(), labels, weights=weights) == fused.dkd(*logits(), LABELS, weights=weights)
    value, gradient = mean_and_gradient("taid_kl", s, z, weights=0 * weights)
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("name", ["taid_kl", "ctkd"])
def test_weights_count_by_their_ratios_alone(engine, name):
    """Of any type and size: twice the weight is the row twice. Equal ones are a mask."""
    s, z = logits()
    twice = torch.cat([torch.arange(ROWS), torch.tensor([5])])
    expected = fused.mean(name, s[twice], z[twice], **PARAMETERS[name])
    for weights in (1 + (torch.arange(ROWS) == 5).long(), 1e-30 * (1.0 + (torch.arange(ROWS) == 5))):
        value = fused.mean(name, s, z, weights=weights, **PARAMETERS[name])
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    mask = torch.arange(ROWS) % 3 != 1
    same = fused.mean(name, s, z, weights=7.5 * mask, **PARAMETERS[name])
    assert torch.equal(same, fused.mean(name, s, z, mask, **PARAMETERS[name]))


def test_ctkd_differentiates_its_temperature_by_weight(engine):
    s, z = logits(scale=1.0)
    weights = torch.arange(ROWS) % 3 / 2.0
    tau, exact = (torch.tensor(2.5).to(x).requires_grad_() for x in (torch.float32, torch.float64))
    fused.ctkd(s, z, tau, weights=weights).backward()
    values = losses.ctkd(s.detach().double(), z.double(), exact)
    ((weights * values).sum() / weights.sum()).backward()
    assert tau.grad.item() == pytest.approx(exact.grad.item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_a_mask_of_zeros_and_ones_is_one_of_booleans(engine, dtype):
    """An attention mask is int64."""
    s, z = logits()
    mask = torch.arange(ROWS) % 3 != 1
    expected, expected_gradient = mean_and_gradient("jsd", s, z, mask)
    value, gradient = mean_and_gradient("jsd", s, z, mask.to(dtype))
    assert torch.equal(value, expected) and torch.equal(gradient, expected_gradient)


# Losses that an engine does not have


def test_a_loss_without_a_kernel_runs_in_chunks(engine, monkeypatch):
    """Differentiated by autograd, 5 rows at a time. Oracle: half the squared distance of log-probabilities, in fp64."""

    def distance(student_logits, teacher_logits, power=2.0):
        assert len(student_logits) <= 5
        gap = student_logits.log_softmax(-1) - teacher_logits.log_softmax(-1)
        return gap.abs().pow(power).sum(-1) / 2

    monkeypatch.setitem(losses.LOSSES, "distance", distance)
    monkeypatch.setitem(chunks.CHUNK, DEVICE, 5 * VOCABULARY)
    s, z = logits(torch.bfloat16)
    mask = torch.arange(ROWS) % 4 != 1
    value = fused.distance(s, z, mask=mask)
    gap = s.double().log_softmax(-1) - z.double().log_softmax(-1)
    expected = gap.square().sum(-1)[mask].mean() / 2
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)
    gradient, exact = (torch.autograd.grad(x, s, retain_graph=True)[0] for x in (value, expected))
    assert error(gradient, exact.double()) < 3e-3
    with torch.inference_mode():
        assert fused.mean("distance", s.detach(), z, mask).item() == value.item()
        _, again = fused.value_and_gradient("distance", s.detach(), z, scale=1 / 9)
    assert torch.equal(again[mask], gradient[mask])


def test_fused_losses_are_named_and_signed_as_the_losses():
    import inspect

    for name, loss in losses.LOSSES.items():
        own = [p for p in inspect.signature(loss).parameters if p != "official"]
        signature = inspect.signature(getattr(fused, name))
        assert list(signature.parameters) == [*own, "mask", "inplace", "weights"]
        assert getattr(fused, name) is getattr(fused, name) and getattr(fused, name).__name__ == name
        assert inspect.getdoc(loss) in getattr(fused, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'forward'; its losses: forward_kl, reverse_kl"):
        fused.forward  # noqa: B018


# Shapes and layouts


@pytest.mark.parametrize("name", ["taid_kl", "adaptive_kl", "dkd"])
@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded", "columns"])
def test_layouts_are_read_as_they_are(engine, name, layout):
    shape = (3, 5, 130)
    s, z = {
        "sliced": lambda: [x[:, :-1] for x in logits(shape=(3, 6, 130))],
        "transposed": lambda: [x.transpose(0, 1) for x in logits(shape=(5, 3, 130))],
        "expanded": lambda: [x[:1].expand(shape) for x in logits(shape=shape)],
        "columns": lambda: [x.transpose(1, 2) for x in logits(shape=(3, 130, 5))],  # no unit stride along V
    }[layout]()
    options = {"labels": torch.arange(15).view(3, 5)} if name == "dkd" else {}
    mask = torch.arange(15).view(3, 5) % 4 != 2
    with fused.using("eager") if layout == "columns" else fused.using(engine):
        value, gradient = mean_and_gradient(name, s, z, mask, **options)
    expected, expected_gradient = oracle(name, s, z, mask, **options)
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)
    assert error(gradient, expected_gradient) < 1e-5


@pytest.mark.parametrize("vocabulary", [2, 7, 8, 16, 33, 511, 512, 513])
def test_every_width_of_the_vocabulary(engine, vocabulary):
    for name in ("taid_kl", "tvd", "adaptive_kl", "dkd"):
        s, z = logits(torch.bfloat16, (ROWS, vocabulary))
        options = {"labels": torch.arange(ROWS).flip(0) % vocabulary} if name == "dkd" else {}
        value, gradient = mean_and_gradient(name, s, z, **options)
        expected, expected_gradient = oracle(name, s, z, **options)
        assert value.item() == pytest.approx(expected.item(), rel=3e-6)
        assert error(gradient, expected_gradient) < allowed(torch.bfloat16, engine)


@pytest.mark.parametrize("mu", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0])
def test_adaptive_heads_narrow_and_wide(engine, mu, scale):
    """From one token to the whole vocabulary: a uniform teacher's tokens all tie."""
    s, _ = logits()
    z = scale * logits(torch.bfloat16, scale=1.0, seed=5)[1]
    value, gradient = mean_and_gradient("adaptive_kl", s, z, mu=mu)
    expected, expected_gradient = oracle("adaptive_kl", s, z, mu=mu)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert error(gradient, expected_gradient) < 1e-5


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(1, 0), (0, 1), (0, 0), (0.5, 0.5), (2, -1), (-0.5, 0.5), (1e-5, 0.5), (0.5, -1e-5), (2e-4, 3e-4)],
)
@pytest.mark.parametrize("noise", [1.0, 0.01])
def test_alpha_beta_at_its_corners(engine, alpha, beta, noise):
    """Far apart and nearly equal. Oracle: the pure loss in fp64."""
    s, other = logits(scale=1.0)
    z = s.detach() + noise * other
    value, gradient = mean_and_gradient("alpha_beta", s, z, alpha=alpha, beta=beta)
    expected, expected_gradient = oracle("alpha_beta", s, z, alpha=alpha, beta=beta)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5 if noise == 1.0 else 1e-3)
    assert error(gradient, expected_gradient) < (1e-5 if noise == 1.0 else 1e-3)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (1, 0), (0, 1), (0, 0), (2, -1), (-1, 0.5)])
def test_alpha_beta_of_absent_entries(engine, alpha, beta):
    """Finite or not as the pure loss is; with gradients where it is."""
    for side in (0, 1):
        pair = logits(scale=1.0)
        pair[side].detach()[:, 5:540] = -INF
        pair[0].detach()[:, -1] = pair[1][:, -1] = -INF
        values, gradient = fused.value_and_gradient("alpha_beta", *pair, alpha=alpha, beta=beta)
        s64 = pair[0].detach().double().requires_grad_()
        expected = losses.alpha_beta(s64, pair[1].double(), alpha, beta)
        torch.testing.assert_close(values.double(), expected.detach(), rtol=1e-5, atol=0)
        if expected.isfinite().all():
            assert error(gradient, torch.autograd.grad(expected.sum(), s64)[0]) < 1e-5


def test_one_position_alone_and_none(engine):
    s, z = logits(shape=(50,))
    value, gradient = mean_and_gradient("forward_kl", s, z)
    expected, expected_gradient = oracle("forward_kl", s, z)
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)
    assert error(gradient, expected_gradient) < 1e-5
    value, gradient = mean_and_gradient("forward_kl", *logits(shape=(0, 50)))
    assert value == 0 and gradient.shape == (0, 50)


def test_one_chunk_by_hand(engine):
    """The contract that the fused head builds on."""
    s, z = logits(torch.bfloat16)
    out, slope = torch.empty_like(s), torch.empty(ROWS)
    values, gradient = fused.value_and_gradient("ctkd", s, z, out, scale=0.5, slope=slope, temperature=3.0)
    assert gradient is out and not values.requires_grad
    s64 = s.detach().double().requires_grad_()
    taus = [torch.tensor(3.0, dtype=torch.float64, requires_grad=True) for _ in range(ROWS)]
    expected = torch.stack([losses.ctkd(*row, tau) for *row, tau in zip(s64, z.double(), taus, strict=True)])
    exact_gradient, *slopes = torch.autograd.grad(expected.sum(), (s64, *taus))
    torch.testing.assert_close(values.double(), expected.detach(), rtol=2e-6, atol=0)
    assert error(2 * gradient, exact_gradient) < allowed(torch.bfloat16, engine)
    torch.testing.assert_close(slope.double(), torch.stack(slopes), rtol=1e-5, atol=1e-5)
    same = fused.value_and_gradient("ctkd", s.detach(), z, s.detach(), scale=0.5, temperature=3.0)[1]
    assert torch.equal(same, out) and same.data_ptr() == s.data_ptr()


# Autograd and memory


class Allocations(TorchDispatchMode):
    """Largest tensor, in elements, that an operation inside has made (views of inputs apart)."""

    def __init__(self, *known):
        super().__init__()
        self.known, self.largest = {x.untyped_storage().data_ptr() for x in known}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
                self.known.add(x.untyped_storage().data_ptr()) if x.numel() == self.largest else None
        return result


@pytest.mark.parametrize("name", ["taid_kl", "jsd", "adaptive_kl"])
def test_nothing_of_the_logits_size_is_made_but_the_gradient(engine, name, monkeypatch):
    monkeypatch.setitem(chunks.CHUNK, DEVICE, 2 * VOCABULARY)
    s, z = (x.detach() for x in logits(torch.bfloat16, (4, 30, VOCABULARY)))
    mask = torch.arange(4 * 29).view(4, 29) % 5 != 0
    sliced = s.requires_grad_()[:, :-1]
    with Allocations(s, z) as seen:
        getattr(fused, name)(sliced, z[:, :-1], **PARAMETERS[name], mask=mask, inplace=True)
    assert seen.largest <= 2 * VOCABULARY
    with Allocations(s, z) as seen, torch.no_grad():
        getattr(fused, name)(sliced, z[:, :-1], **PARAMETERS[name], mask=mask)
    assert seen.largest <= 2 * VOCABULARY


@every_loss
def test_in_place_gives_the_same_gradient_over_the_logits(engine, name):
    s, z = logits(torch.bfloat16)
    value, gradient = mean_and_gradient(name, s, z)
    model_output = s * 1.0
    in_place = getattr(fused, name)(model_output, z, **PARAMETERS[name], inplace=True)
    assert torch.equal(in_place, value) and torch.equal(model_output.detach(), gradient)
    in_place.backward()
    assert torch.equal(s.grad, gradient)


def test_in_place_is_noticed_by_whoever_saved_the_logits(engine):
    s, z = logits()
    output = s * 1.0
    other = output.exp().sum() + (output * output).sum()  # saves `output`
    loss = fused.forward_kl(output, z, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


def test_a_change_of_the_gradient_before_the_backward_pass_is_noticed(engine):
    s, z = logits()
    output = s * 1.0
    loss = fused.forward_kl(output, z, inplace=True)
    output.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradient_is_scaled_by_what_comes_back_and_reaches_the_model(engine):
    s, z = logits()
    weight = torch.eye(VOCABULARY, requires_grad=True)
    (2.5 * fused.taid_kl(s.detach() @ weight, z, 0.3)).backward()
    _, gradient = oracle("taid_kl", s, z)
    assert error(weight.grad, 2.5 * s.detach().double().T @ gradient) < 1e-5


def test_second_derivatives_and_second_passes_are_refused(engine):
    s, z = logits()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(fused.taid_kl(s, z, 0.3), s, create_graph=True)
    loss = 2 * fused.taid_kl(s, z, 0.3)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_teacher_receives_no_gradient(engine):
    s, z = logits()
    z.requires_grad_()
    fused.jsd(s, z).backward()
    assert z.grad is None and s.grad.abs().sum() > 0


# Engines


@on_the_cpu  # torch.compile needs its compiler too
def test_compiled_chunks_of_every_length():
    """One compilation for all shapes, a ragged last chunk and another t included (other losses: slow)."""
    for rows, vocabulary, t in ((12, 300, 0.3), (7, 201, 0.6), (5, 20_011, 0.9)):
        s, z = logits(torch.bfloat16, (rows, vocabulary))
        with fused.using("compiled"), pytest.MonkeyPatch.context() as patch:
            patch.setitem(chunks.CHUNK, DEVICE, 5 * vocabulary)
            value, gradient = mean_and_gradient("taid_kl", s, z, t=t)
        expected, expected_gradient = oracle("taid_kl", s, z, t=t)
        assert value.item() == pytest.approx(expected.item(), rel=2e-6)
        assert error(gradient, expected_gradient) < 3e-3


@on_the_cpu
def test_threads_change_nothing():
    pair, before = logits(torch.bfloat16), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with fused.using("cpp"):
                results.append(fused.value_and_gradient("jsd", *pair, teacher_weight=0.1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_using_forces_an_engine_and_gives_way_again():
    s, z = logits()
    usual = fused.engine(s, z)
    with fused.using("compiled"):
        with fused.using("eager"):
            assert fused.engine(s, z) == "eager"
        assert fused.engine(s, z) == "compiled"
    assert fused.engine(s, z) == usual
    with pytest.raises(ValueError, match=r"unknown engine 'fast'.*eager"), fused.using("fast"):
        pass


@on_the_cpu
@pytest.mark.parametrize("make", [lambda x: x.double(), lambda x: x.T.contiguous().T])
def test_logits_that_the_kernel_does_not_take_run_eagerly(make):
    assert fused.engine(*map(make, logits())) == "eager"
    s, z = map(make, logits())
    for engine in ("cpp", "triton"):
        with fused.using(engine), pytest.raises(ValueError, match="unit stride"):
            fused.value_and_gradient("forward_kl", s, z)


@on_the_cpu
@pytest.mark.parametrize("compiler", ["/nowhere/g++", "false"])
def test_without_a_compiler_it_says_so_once_and_runs_eagerly(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("TAID_CACHE", str(tmp_path))
    s, z = logits()
    kernel.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="without its C\\+\\+ kernel"):
            assert fused.engine(s, z) == "eager"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value, _ = mean_and_gradient("taid_kl", s, z)
    finally:
        kernel.library.cache_clear()
    assert value.item() == pytest.approx(oracle("taid_kl", s, z)[0].item(), rel=2e-6)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_gpu_program_reads_and_writes_what_is_asked(inplace):
    """One quick look at the Triton engine, on TAID; all losses on it: slow. Masked rows in the middle and at an end."""
    if fused._gpu() is None:
        pytest.skip("no Triton")
    s, z = logits(shape=(2, 3, 5000))
    mask = torch.tensor([[True, False, True], [True, True, False]])
    with fused.using("triton"):
        value = fused.taid_kl(s * 1.0, z, 0.3, mask=mask, inplace=inplace)
    expected, expected_gradient = oracle("taid_kl", s, z, mask)
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)
    assert error(torch.autograd.grad(value, s)[0], expected_gradient) < 1e-5


def test_a_gpu_program_reads_a_mask_of_any_stride():
    if fused._gpu() is None:
        pytest.skip("no Triton")
    s, z = logits(shape=(4, 50))
    mask = torch.tensor([True, True, False, True, True, False, True, False])[::2]
    with fused.using("triton"):
        value, gradient = mean_and_gradient("taid_kl", s, z, mask)
    expected, expected_gradient = oracle("taid_kl", s, z, mask)
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)
    assert error(gradient, expected_gradient) < 1e-5


# Errors


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, z: fused.forward_kl(s, z[:, 1:]), "one shape"),
        (lambda s, z: fused.jsd(s, z, 0.0), "teacher_weight"),
        (lambda s, z: fused.skew_kl(s, z, 1.0), "lam"),
        (lambda s, z: fused.adaptive_kl(s, z, math.nan), "mu"),
        (lambda s, z: fused.taid_kl(s, z, 1.5), "t must"),
        (lambda s, z: fused.dkd(s, z, LABELS[:2]), "labels"),
        (lambda s, z: fused.tvd(s, z, torch.ones(2, dtype=torch.bool)), r"mask must .* \(12,\), got \(2,\)"),
        (
            lambda s, z: fused.tvd(s, z, 0.5 * torch.ones(ROWS)),
            "mask must hold booleans, or 0 and 1, got 0.5",
        ),
        (lambda s, z: fused.tvd(s, z, 2 * torch.ones(ROWS).long()), "0 and 1, got 2"),
        (lambda s, z: fused.tvd(s, z, torch.full((ROWS,), -INF)), "0 and 1, got -inf"),
        (lambda s, z: fused.tvd(s, z, torch.full((ROWS,), math.nan)), "0 and 1, got nan"),
        (lambda s, z: fused.tvd(s, z, [True] * ROWS), "mask must be a tensor, got list"),
        (lambda s, z: fused.tvd(s, z, weights=-torch.ones(ROWS)), "weights must be finite and not neg.* -1"),
        (lambda s, z: fused.tvd(s, z, weights=torch.full((ROWS,), INF)), "weights must be finite"),
        (lambda s, z: fused.tvd(s, z, weights=torch.full((ROWS,), math.nan)), "got nan"),
        (lambda s, z: fused.tvd(s, z, weights=torch.ones(2)), r"weights must .* \(12,\), got \(2,\)"),
        (lambda s, z: fused.tvd(s, z, weights=torch.ones(ROWS) > 0), "torch.bool: pass a mask"),
        (lambda s, z: fused.tvd(s, z, weights=torch.ones(ROWS).requires_grad_()), "detach them"),
        (lambda s, z: fused.tvd(s, z, inplace=True), "leaf"),
        (lambda s, z: fused.tvd((2 * s)[:1].expand_as(z), z, inplace=True), "expanded"),
        (
            lambda s, z: fused.value_and_gradient("tvd", s, z, s.detach().bfloat16()),
            "out must be torch.float32",
        ),
        (lambda s, z: fused.value_and_gradient("kl", s, z), "unknown loss 'kl'.*forward_kl"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(*logits())
