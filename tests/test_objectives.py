"""Objectives: what a name of the paper's tables stands for, and the state that it keeps."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taid import losses
from taid.logits import Head
from taid.multi_level import mlkd
from taid.objectives import METHODS, TABLE1, TAID, Divergence, Objective, objective
from taid.rollouts import GKDRollouts
from taid.schedule import Adaptive, Linear, Replayed

NAMED = {  # where the papers' name is not the loss's own
    "kl": losses.forward_kl,
    "rkl": losses.reverse_kl,
    "gjs": losses.jsd,
    "gkd": losses.jsd,
    "distillm": losses.skew_kl,
    "taid": losses.taid_kl,
    "mlkd": mlkd,
    "taid_no_adaptive": losses.taid_kl,
    "amid": losses.amid_kl,
}
TABLE = Path(__file__).parents[1] / "analysis" / "paper" / "table1_instruction_tuning.csv"


def logits(n: int = 7, vocab: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(n, vocab, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(vocab, (n,), generator=generator)


def test_table_1_is_the_papers():
    with open(TABLE, newline="") as file:
        published = [row["method"] for row in csv.DictReader(file)]
    assert len(TABLE1) == 11 and set(TABLE1) == set(published)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown method 'KL'; known: " + ", ".join(METHODS)):
        objective("KL")


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_the_mean_over_positions_and_reaches_the_student_alone(method):
    """Oracle: `per_token`, of `taid.losses`, and autograd through it, in fp64."""
    student, teacher, labels = logits()
    student.requires_grad_(), teacher.requires_grad_()
    exact = student.detach().double().requires_grad_()
    built = objective(method)
    loss, values = built(student, teacher, labels), built.per_token(exact, teacher.double(), labels)
    assert values.shape == labels.shape and (values > 0).all()
    assert loss.item() == pytest.approx(values.mean().item(), rel=1e-6)
    loss.backward(), values.mean().backward()
    assert (student.grad - exact.grad).norm() < 1e-5 * exact.grad.norm()  # CTKD cancels at τ = 15.6
    assert teacher.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_no_position_at_all_gives_zero_with_zero_gradient(method):
    student, teacher, labels = (tensor[:0] for tensor in logits())
    student.requires_grad_()
    loss = objective(method)(student, teacher, labels)
    loss.backward()
    assert loss.shape == () and loss.item() == 0 and student.grad.shape == student.shape


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("sft", "ctkd", "dkd")])
def test_a_name_is_the_divergence_of_that_name(method):
    """Oracle: the function of `taid.losses` that the papers mean; TAID's at the t of its state."""
    student, teacher, labels = logits()
    built = objective(method)
    t = (built.state.t,) if isinstance(built, TAID) else ()
    found = built.per_token(student, teacher, labels)
    assert torch.equal(found, (NAMED.get(method) or losses.LOSSES[method])(student, teacher, *t))


def test_taid_moves_with_its_schedule_and_not_with_its_losses():
    built, schedule = objective("taid", t_start=0.2, alpha=0.5), Adaptive(t_start=0.2, alpha=0.5)
    state = schedule.init()
    student, teacher, labels = logits()
    for step, loss in enumerate((0.9, 0.7, 0.8), start=1):
        built(student, teacher, labels)
        assert built.state == state
        assert torch.equal(
            built.per_token(student, teacher, labels), losses.taid_kl(student, teacher, state.t)
        )
        built.update(loss, step / 10)
        state = schedule.update(state, loss, step / 10)
    names = ("t", "momentum", "sigmoid_momentum", "floor_share")
    assert list(built.logs().items()) == [(name, getattr(state, name)) for name in names]


def test_another_bridge_says_so_and_its_options_are_its_own():
    built = objective("amid", mixture=-1.0, t_start=0.2)
    assert "amid_kl, mixture=-1.0" in repr(built) and built.state.t == 0.2
    student, teacher, labels = logits()
    expected = losses.amid_kl(student, teacher, 0.2, -1.0)
    assert torch.equal(built.per_token(student, teacher, labels), expected)
    with pytest.raises(ValueError, match="mixture must be a finite number"):
        objective("amid", mixture=float("nan"))


def test_taid_without_adaptive_update_is_linear_and_ends_at_t_end():
    built = objective("taid_no_adaptive", t_start=0.2, t_end=0.9)
    ts = []
    for step in range(1, 6):
        built.update(1.0, step / 5)
        ts.append(built.state.t)
    assert ts == pytest.approx([0.34, 0.48, 0.62, 0.76, 0.9])


def test_ctkd_reverses_the_gradient_of_its_temperature_as_it_progresses():
    """λ = (1 − cos(π · progress)) / 2: 0 at the start, 1/2 half-way, 1 at the end. Oracle: the derivative of
    τ² KL by central differences in fp64."""
    built = objective("ctkd")
    student, teacher, labels = logits()
    student, teacher = student.double(), teacher.double()
    theta = built.temperature.theta

    def value(at: float) -> Tensor:
        tau = 1 + 20 * torch.sigmoid(torch.tensor(at, dtype=torch.float64))
        return losses.ctkd(student, teacher, tau).mean()

    slope = (value(1 + 1e-4) - value(1 - 1e-4)) / 2e-4
    for progress, factor in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        theta.grad = None
        built.update(1.0, progress)
        built(student, teacher, labels).backward()
        assert theta.grad.item() == pytest.approx(-factor * slope.item(), rel=1e-4, abs=1e-9)  # θ is fp32


@pytest.mark.parametrize("method", METHODS)
def test_state_goes_through_json_unchanged(method):
    trained, restored = objective(method), objective(method)
    for step in range(1, 8):
        trained.update(1 / step, step / 30)
    for parameter in trained.parameters():
        torch.nn.init.constant_(parameter, 1 / 3)
    restored.load_state_dict(json.loads(json.dumps(trained.state_dict())))
    assert restored.state_dict() == trained.state_dict()
    assert restored.logs() == trained.logs()
    student, teacher, labels = logits()
    assert torch.equal(restored(student, teacher, labels), trained(student, teacher, labels))


def test_objectives_of_one_name_share_no_state():
    one, other = objective("taid"), objective("taid")
    one.update(1.0, 0.5)
    assert other.state.updates == 0 and one.state.updates == 1


def test_a_subclass_that_forgets_its_loss_is_told():
    class Mine(Objective):
        pass

    with pytest.raises(TypeError, match="Mine does not say what it minimises"):
        Mine()(*logits())


# Options


class WithoutCheck:
    """A schedule of which a part is missing."""

    def init(self): ...
    def update(self, state, loss, progress): ...


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: objective("kl", foo=1),
            "forward_kl: got an unexpected keyword argument 'foo'; its options: official",
        ),
        (lambda: objective("gkd", foo=1), "foo"),
        (lambda: objective("taid", foo=1), "foo"),
        (lambda: objective("sft", foo=1), "takes no arguments"),
        (lambda: objective("ctkd", tau=1), "tau"),
        (lambda: objective("distillm", loss="taid_kl"), "missing a required argument: 't'"),
        (lambda: objective("distillm", loss="kullback"), "unknown loss 'kullback'; known: forward_kl, "),
        (lambda: objective("skew_kl", lam=2.0), "lam must lie"),
        (lambda: objective("dkd", temperature=-1.0), "temperature must be positive"),
        (lambda: Divergence(losses.dkd), "missing a required argument: 'labels'"),
        (lambda: Divergence(losses.taid_kl), "missing a required argument: 't'"),
        (
            lambda: Divergence(lambda s, z: (s - z).sum(-1), k=3),
            "unexpected keyword argument 'k'; its options: none",
        ),
        (lambda: objective("kl", temperature=0.0), "temperature must be positive"),
        (lambda: objective("kl", ce_weight=1.0), r"ce_weight must lie in \[0, 1\)"),
        (lambda: objective("sft", ce_weight=0.5), "SFT.. takes no temperature or ce_weight"),
        (lambda: objective("ctkd", temperature=2.0), "CTKD.* takes no temperature"),
        (lambda: objective("gkd", ce_weight=0.5), "own samples.*leave out ce_weight"),
        (lambda: objective("kl", temperature="2"), "temperature must be a number, got '2'"),
        (lambda: objective("kl", temperature=None), "temperature must be a number, got None"),
        (lambda: objective("kl", ce_weight="0.1"), "ce_weight must be a number, got '0.1'"),
        (lambda: objective("dkd", temperature="2"), "temperature must be a number, got '2'"),
        (lambda: objective("amid", mixture="a"), "mixture must be a number, got 'a'"),
        (lambda: objective("mlkd", temperatures=()), "at least one temperature"),
        (lambda: objective("mlkd", temperatures=(2.0, 0.0)), "temperature must be positive"),
        (lambda: objective("mlkd", temperatures=3.0), "several temperatures"),
        (lambda: objective("gkd", probability=2), "probability must lie in"),
        (lambda: objective("distillm", increment=-1), "increment must lie in"),
        (lambda: TAID(0.2), r"takes a schedule such as Adaptive\(t_start=0.2\), .*not 0.2"),
        (lambda: TAID(WithoutCheck()), "has init, check and update; not <.*WithoutCheck"),
        (lambda: TAID("adaptive"), "takes a schedule .*; not 'adaptive'"),
        (lambda: TAID(Linear), "takes a schedule .*; not the class Linear"),
    ],
)
def test_options_that_do_not_fit_fail_where_they_are_given(build, words):
    with pytest.raises((TypeError, ValueError), match=words):
        build()


def test_any_schedule_is_one():
    class Half:
        def init(self):
            return Linear(0.5).init()

        def check(self, updates): ...

        def update(self, state, loss, progress):
            return state

    assert TAID(Half()).state.t == TAID(Replayed((0.5, 0.6))).state.t == 0.5


SETTINGS = {  # pairs that train otherwise
    "gkd's tokens": [objective("gkd", max_new_tokens=n) for n in (4, 8)],
    "gkd's share": [objective("gkd", probability=p) for p in (0.0, 1.0)],
    "distillm's buffer": [objective("distillm", capacity=n) for n in (5, 6)],
    "distillm's threshold": [objective("distillm", threshold=p) for p in (0.0, 0.5)],
    "distillm's increment": [objective("distillm", increment=p) for p in (0.1, 0.3)],
    "in a mixture": [objective("gkd", max_new_tokens=n, temperature=2.0) for n in (4, 8)],
    "taid's kl": [TAID(), TAID(official=True)],
    "taid's samples": [TAID(), TAID(rollouts=GKDRollouts(4))],
}


@pytest.mark.parametrize("pair", SETTINGS)
def test_other_settings_are_another_name(pair):
    """By it a checkpoint knows whose it is."""
    one, other = SETTINGS[pair]
    assert repr(one) != repr(other)


def test_equal_settings_are_one_name_whatever_has_moved():
    moved, fresh = (objective("distillm", threshold=0.5, capacity=4) for _ in range(2))
    for _ in range(3):
        moved.rollouts.on_validation(1.0)
    moved.rollouts.buffer.append(([5], [6]))
    moved.rollouts.batches = moved.rollouts.sampled = 3
    assert moved.rollouts.threshold == pytest.approx(0.7) and repr(moved) == repr(fresh)
    assert repr(objective("gkd", probability=1)) == repr(objective("gkd", probability=1.0))
    assert repr(objective("taid")) == f"TAID({Adaptive(0.4)})"  # as checkpoints have it

    class Mine(GKDRollouts):
        __repr__ = object.__repr__  # an address

    assert repr(Divergence(losses.jsd, Mine(4))) == "Divergence(jsd, Mine)"


@pytest.mark.parametrize("official", [True, False])
def test_an_option_that_the_fused_loss_has_not_goes_to_the_other(official):
    """Oracle: `taid.losses`, whose `official` variant is the cross-entropy."""
    student, teacher, labels = logits()
    built = Divergence(losses.forward_kl, official=official)
    expected = losses.forward_kl(student, teacher, official=official)
    assert built(student, teacher, labels).item() == pytest.approx(expected.mean().item(), rel=1e-6)
    assert not built.fusable and objective("kl").fusable


def own_loss(student, teacher):
    return (student - teacher).abs().sum(-1)


def test_a_loss_of_the_user_with_its_options():
    student, teacher, labels = logits()
    built = Divergence(lambda s, z, *, scale: scale * own_loss(s, z), scale=3.0)
    assert built(student, teacher, labels).item() == pytest.approx(
        3 * own_loss(student, teacher).mean().item()
    )


@pytest.mark.parametrize("wrong", [lambda s, z: (s - z).abs(), lambda s, z: (s - z).abs().mean()])
def test_a_loss_that_is_not_one_number_a_position_is_told_so(wrong):
    """[n, V] would have passed for a loss V times as large, a scalar for one n times as small."""
    with pytest.raises(ValueError, match="for 7 positions: a loss is one number a position"):
        Divergence(wrong)(*logits())


# Temperature and cross-entropy

WITH_TEACHER = [name for name in METHODS if name != "sft"]
SOFTENED = [name for name in WITH_TEACHER if name not in ("ctkd", "dkd")]
MIXED = [name for name in WITH_TEACHER if name not in ("gkd", "distillm")]


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_a_mixture_is_what_its_formula_says(method):
    """(1 − w) τ² L(s/τ, z/τ) − w log q(label), in fp64, with value and gradient."""
    student, teacher, labels = logits()
    tau = 2.0 if method in SOFTENED else 1.0
    weight = 0.3 if method in MIXED else 0.0
    options = ({"temperature": tau} if method in SOFTENED else {}) | {"ce_weight": weight}
    built, inner = objective(method, **options), objective(method)
    student.requires_grad_()
    exact = student.detach().double().requires_grad_()
    distilled = inner.per_token(exact / tau, teacher.double() / tau, labels)
    data = -exact.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    expected = (1 - weight) * tau**2 * distilled + weight * data
    assert torch.allclose(built.per_token(exact, teacher.double(), labels), expected)
    loss = built(student, teacher, labels)
    loss.backward(), expected.mean().backward()
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-6)
    assert (student.grad - exact.grad).norm() < 1e-5 * exact.grad.norm()


def test_the_gradient_keeps_its_size_as_the_temperature_grows():
    """What τ² is for: without it the gradient at τ = 100 would be ten thousand times smaller."""
    student, teacher, labels = logits()
    norms = []
    for tau in (20.0, 100.0):
        leaf = student.clone().requires_grad_()
        objective("kl", temperature=tau)(leaf, teacher, labels).backward()
        norms.append(leaf.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


@pytest.mark.parametrize("bias", [True, False])
def test_a_temperature_is_fused_with_the_head(bias):
    """Oracle: the same objective on whole logits."""
    generator = torch.Generator().manual_seed(0)
    heads = [
        Head(*(torch.randn(*shape, generator=generator) for shape in ((7, 5), (11, 5), (11,))[: 2 + bias]))
        for _ in range(2)
    ]
    labels = torch.randint(11, (7,), generator=generator)
    built = objective("taid", temperature=2.0)
    whole = [h.hidden @ h.weight.T + (0 if h.bias is None else h.bias) for h in heads]
    assert built.fusable
    assert built.of_heads(*heads, labels).item() == pytest.approx(built(*whole, labels).item(), rel=1e-5)
    assert not objective("kl", ce_weight=0.1).fusable


@pytest.mark.parametrize("tau", [2.0, 3.0])
def test_a_temperature_rounds_no_logits_of_16_bits(tau):
    """Oracle: the same bf16 numbers in fp64. Divided in bf16 a teacher this near has a gradient 15% off at τ = 3."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((64, 8), (50, 8)))
    student = (hidden.float() @ weight.float().T).bfloat16()
    teacher = (student + 0.05 * torch.randn(64, 50, generator=generator)).bfloat16()
    labels = torch.zeros(64, dtype=torch.long)
    built = objective("kl", temperature=tau)
    leaf, exact = student.clone().requires_grad_(), student.double().requires_grad_()
    loss, expected = built(leaf, teacher, labels), built(exact, teacher.double(), labels)
    loss.backward(), expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert (leaf.grad - exact.grad).norm() < 5e-3 * exact.grad.norm()  # it is rounded to bf16 once
    heads = [(Head(h, w), h.double() @ w.double().T) for h, w in ((hidden, weight), (1.01 * hidden, weight))]
    of_heads, whole = (
        built.of_heads(heads[0][0], heads[1][0], labels),
        built(heads[0][1], heads[1][1], labels),
    )
    assert of_heads.item() == pytest.approx(whole.item(), rel=1e-3)


def test_a_mixture_without_cross_entropy_asks_nothing_of_the_label():
    """A label that the student holds for impossible, −log 0 = ∞, with weight 0: 0 · ∞ would be NaN."""
    built, labels = objective("kl", temperature=2.0), torch.tensor([2])
    student, teacher = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[0.0, 2.0, -torch.inf]])
    assert built.per_token(student, teacher, labels).item() == pytest.approx(
        built(student, teacher, labels).item(), rel=1e-4
    )


def test_a_mixture_keeps_the_state_of_its_objective():
    mixed = objective("taid", ce_weight=0.2, temperature=3.0)
    mixed.update(1.0, 0.5)
    assert mixed.state_dict() == mixed.inner.state_dict() and mixed.logs()["t"] == mixed.inner.state.t > 0.4
    assert list(objective("ctkd", ce_weight=0.2).parameters())
    assert objective("gkd", temperature=2.0).rollouts is not None
    assert repr(mixed).startswith("Mixed(TAID(Adaptive(")


def test_nothing_to_mix_is_the_objective_itself():
    assert isinstance(objective("taid", ce_weight=0.0, temperature=1.0), TAID)
