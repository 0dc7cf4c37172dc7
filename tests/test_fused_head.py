"""The fused linear head: against autograd through `taid.losses` in fp64, and in the trainer."""

import math

import pytest
import torch
from conftest import FAMILIES, PAD, VOCAB, tiny_examples, tiny_model, tiny_trainer
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from taid import fused, losses
from taid.data import IGNORE, Collator
from taid.fused import chunks
from taid.fused.head import ROWS, mean
from taid.logits import Head, cut, response_head, response_logits
from taid.losses import LOSSES
from taid.objectives import METHODS, objective

N, V = 2 * ROWS + 22, 300  # three chunks, the last one shorter
LABELS = torch.arange(N) % V
PARAMETERS = {
    "taid_kl": {"t": 0.4},
    "amid_kl": {"t": 0.4},
    "dkd": {"labels": LABELS},
    "ctkd": {"temperature": 2.0},
}
BATCH = Collator(PAD)(tiny_examples(5))


def heads(dtype: torch.dtype = torch.float32, apart: float = 1.0) -> tuple[Head, Head]:
    """A student, with gradients, and a teacher of another width; or of its own, its hidden states `apart`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    student = Head(normal(N, 16), normal(V, 16, scale=0.5), normal(V))
    if apart == 1.0:
        teacher = Head(normal(N, 24), normal(V, 24, scale=0.5))
    else:
        teacher = student._replace(hidden=student.hidden + normal(N, 16, scale=apart))
    return Head(*(x.requires_grad_() for x in student)), teacher


def exact(head: Head) -> tuple[Head, Tensor]:
    """A copy of the head in fp64, and its logits by PyTorch."""
    head = Head(*(None if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in head))
    return head, linear(*head)


def difference(found: Head, expected: Head) -> float:
    """The largest error of a gradient, relative to its norm."""
    pairs = [(x.grad.double(), y.grad) for x, y in zip(found, expected, strict=True)]
    return max(((x - y).norm() / y.norm()).item() for x, y in pairs)


# Values and gradients


@pytest.mark.parametrize("given", ["head", "logits"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_that_of_whole_logits(loss, given):
    """Oracle: autograd through `taid.losses` in fp64, times 3. The teacher gets no gradient."""
    student, teacher = heads()
    (reference, s), (_, z) = exact(student), exact(teacher)
    parameters = PARAMETERS.get(loss, {})
    expected = LOSSES[loss](s, z, **parameters).mean()
    (3 * expected).backward()
    teacher = Head(*(x if x is None else x.requires_grad_() for x in teacher))
    target = teacher if given == "head" else z.float().requires_grad_()
    found = mean(loss, student, target, **parameters)
    (3 * found).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert difference(student, reference) < 2e-6  # CTKD's and TVD's differences of probabilities cancel
    assert teacher.hidden.grad is None and teacher.weight.grad is None
    assert given == "head" or target.grad is None


def test_the_temperature_of_ctkd_gets_its_gradient():
    student, teacher = heads()
    (_, s), (_, z) = exact(student), exact(teacher)
    tau = torch.tensor(2.0, requires_grad=True)
    expected = torch.autograd.grad(losses.ctkd(s, z, tau.double()).mean(), tau)[0]
    found = torch.autograd.grad(mean("ctkd", student, teacher, temperature=tau), tau)[0]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("apart", [1.0, 0.05], ids=["two models", "nearly one"])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)], ids=str
)
def test_half_precision_rounds_once(dtype, bound, apart):
    """Oracle: fp64 from the same rounded inputs. One rounding to bf16 is at most 2⁻⁹ = 2e-3 of an entry."""
    student, teacher = heads(dtype, apart)
    (reference, s), (_, z) = exact(student), exact(teacher)
    (1024 * losses.taid_kl(s, z, 0.4).mean()).backward()  # as loss scaling does: fp16 is coarse below 6e-5
    (1024 * mean("taid_kl", student, teacher, t=0.4)).backward()
    assert all(x.grad.dtype == dtype for x in student)
    assert difference(student, reference) < bound


@pytest.mark.parametrize("given", ["head", "logits"])
@pytest.mark.parametrize("loss", ["taid_kl", "dkd"])
def test_what_is_masked_is_never_read(loss, given):
    """Oracle: the rows of the mask alone. Elsewhere both models hold NaN."""
    student, teacher = heads()
    mask = (torch.arange(N) % 3 == 1).view(2, N // 2)

    def holed(head: Head) -> Head:
        return head._replace(hidden=torch.where(mask[..., None], head.hidden.view(2, N // 2, -1), math.nan))

    parameters = PARAMETERS[loss] | ({"labels": LABELS.view(2, -1)} if loss == "dkd" else {})
    target = holed(teacher) if given == "head" else linear(*holed(teacher))
    found = mean(loss, holed(student), target, mask, **parameters)
    kept = mask.flatten()
    parameters = PARAMETERS[loss] | ({"labels": LABELS[kept]} if loss == "dkd" else {})
    few = [head._replace(hidden=head.hidden[kept]) for head in (student, teacher)]
    expected = mean(loss, *few, **parameters)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(value, student[1:]) for value in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("given", ["head", "logits"])
@pytest.mark.parametrize("loss", ["taid_kl", "ctkd"])
def test_weights_are_those_of_the_weighted_mean(loss, given):
    """Oracle: Σ w · loss / Σ w in fp64, under an int64 mask; rows of weight 0 hold NaN."""
    student, teacher = heads()
    weights, mask = torch.arange(N) % 4 / 3.0, (torch.arange(N) % 5 != 1).long()
    read = (weights * mask > 0)[:, None]
    (reference, s), (_, z) = exact(student), exact(teacher)
    w = (weights * mask).double()
    expected = (w * LOSSES[loss](s, z, **PARAMETERS[loss])).sum() / w.sum()
    expected.backward()
    holed = [head._replace(hidden=torch.where(read, head.hidden, math.nan)) for head in (student, teacher)]
    target = holed[1] if given == "head" else linear(*holed[1])
    found = mean(loss, holed[0], target, mask, weights, **PARAMETERS[loss])
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert difference(student, reference) < 2e-6


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [N - 1, N + 1])
def test_labels_of_other_rows_are_refused(rows, masked):
    """More of them than rows would pass for the right ones under a mask."""
    mask = torch.arange(N) % 2 if masked else None
    with pytest.raises(ValueError, match=rf"rows differ: .*the labels \({rows},\)"):
        mean("dkd", *heads(), mask, labels=torch.arange(rows) % V)


def test_an_empty_mask_gives_zero_with_zero_gradient():
    student, teacher = heads()
    loss = mean("taid_kl", student, teacher, torch.zeros(N, dtype=torch.bool), t=0.4)
    loss.backward()
    assert loss.item() == 0 and all(x.grad.abs().sum() == 0 for x in student)


def test_what_needs_no_gradient_gets_none():
    student, teacher = heads()
    value = mean("taid_kl", student, teacher, t=0.4)
    with torch.no_grad():
        assert mean("taid_kl", student, teacher, t=0.4).item() == value.item()
    frozen = Head(student.hidden, student.weight.detach(), student.bias.detach())
    mean("taid_kl", frozen, teacher, t=0.4).backward()
    expected = torch.autograd.grad(value, student.hidden)[0]
    assert torch.equal(student.hidden.grad, expected) and student.weight.grad is None


def test_a_second_derivative_and_a_second_backward_pass_are_refused():
    student, teacher = heads()
    loss = mean("forward_kl", student, teacher)
    gradient = torch.autograd.grad(loss.square(), student.hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    loss = mean("forward_kl", student, teacher)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_padding_of_a_vocabulary_is_cut():
    student, teacher = heads()
    wide = teacher._replace(weight=torch.cat([teacher.weight, torch.full((20, 24), math.nan)]))
    with pytest.raises(ValueError, match="student's vocabulary has 300 entries, the teacher's 320"):
        mean("forward_kl", student, wide)
    logits = linear(*wide)
    values = [mean("forward_kl", student, x) for x in (teacher, cut(wide, V), cut(logits, V))]
    assert values[1] == values[0] and values[2].item() == pytest.approx(values[0].item(), rel=1e-6)
    mean("forward_kl", cut(student, 200), cut(teacher, 200)).backward()
    assert student.weight.grad[200:].abs().sum() == 0 and student.bias.grad[:200].abs().min() > 0


def test_a_wrong_call_is_answered():
    student, teacher = heads()
    with pytest.raises(ValueError, match="unknown loss 'kl'; known: forward_kl"):
        mean("kl", student, teacher)
    with pytest.raises(ValueError, match="official"):
        mean("forward_kl", student, teacher, official=True)
    with pytest.raises(TypeError, match="'t'"):
        mean("taid_kl", student, teacher)
    for given, mask in ((linear(*teacher)[:-1], None), (teacher, torch.ones(N - 1, dtype=torch.bool))):
        with pytest.raises(ValueError, match=rf"rows differ: the student \({N},\).*\({N - 1},\)"):
            mean("forward_kl", student, given, mask)


# Memory


class Allocations(TorchDispatchMode):
    """The largest new tensor of any operation inside, and the most bytes of them alive at once."""

    def __init__(self):
        super().__init__()
        self.largest = self.peak = 0
        self.alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self.largest = max(self.largest, tensor.numel())
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def _tensors(tree) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, Tensor)]


@pytest.mark.parametrize("given", ["head", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_logits_are_whole(dtype, given, monkeypatch):
    """Beyond the gradients (in fp32 as they are summed), at most 0.6 tensors of n · V logits, none whole."""
    monkeypatch.setitem(
        chunks.CHUNK, "cpu", 2**15
    )  # its few fp32 copies are as small beside these small logits
    n, entries, width = 1024, 2**14, 8
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, width), (entries, width))
    student, teacher = (
        Head(*(torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)) for _ in range(2)
    )
    student.hidden.requires_grad_(), student.weight.requires_grad_()
    target = teacher if given == "head" else linear(*teacher)
    with fused.using("eager"), Allocations() as allocations:
        mean("taid_kl", student, target, t=0.4).backward()
    gradients = 4 * width * (n + entries)
    logits = n * entries * dtype.itemsize
    assert allocations.largest <= n * entries // 8
    assert allocations.peak - gradients < 0.6 * logits
    with Allocations() as whole:  # does it see anything? two logits and what the loss makes of them
        s, z = (linear(*head) for head in (student, teacher))
        losses.taid_kl(s, z, 0.4).mean().backward()
    assert whole.largest == n * entries and whole.peak > 3 * logits


# Models and the trainer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_head_gives_its_logits(family):
    """Oracle: the model's own logits."""
    model = tiny_model(family, tie_word_embeddings=True)
    expected, _ = response_logits(model, BATCH)
    head, labels = response_head(model, BATCH)
    torch.testing.assert_close(linear(*head), expected, atol=1e-5, rtol=1e-5)
    assert len(labels) == (BATCH["labels"] != IGNORE).sum()
    assert head.weight is model.get_input_embeddings().weight


class Adapted(torch.nn.Linear):
    """A head with something beside its weight."""

    def forward(self, hidden):
        return super().forward(hidden) + 0.1 * hidden.sum(-1, keepdim=True)


def adapted():
    model = tiny_model()
    model.lm_head = Adapted(16, VOCAB, bias=False)
    return model


REFUSED = {
    "a soft-cap far above its logits": lambda: tiny_model("gemma2", final_logit_softcapping=30.0, head_dim=8),
    "a scale": lambda: tiny_model("cohere", logit_scale=0.25),
    "an adapter": adapted,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("why", REFUSED)
def test_logits_that_are_not_linear_are_refused(why, dtype):
    with pytest.raises(ValueError, match=r"logits of .*ForCausalLM are not hidden @ weight.T"):
        response_head(REFUSED[why]().to(dtype), BATCH)


def test_a_model_without_head_is_refused(tmp_path):
    model = tiny_model()
    model.get_output_embeddings = lambda: None
    with pytest.raises(ValueError, match="LlamaForCausalLM has no linear head"):
        response_head(model, BATCH)


SGD = {"optim": "sgd", "learning_rate": 0.1}  # AdamW divides by gradients that may be rounding alone
FUSABLE = [method for method in METHODS if method not in ("sft", "mlkd")]


@pytest.mark.parametrize("method", FUSABLE)
def test_training_is_the_same(method, tmp_path, tokenizer):
    """Tied embeddings, a padded vocabulary, and steps of two micro-batches, one of them without labels."""
    trained = []
    for fuse_head in (False, True):
        seen = []

        def collator(rows, seen=seen):
            seen.append(Collator(PAD)(rows))
            if len(seen) % 2:
                seen[-1]["labels"] = torch.full_like(seen[-1]["labels"], IGNORE)
            return seen[-1]

        options = {"max_new_tokens": 5} if method in ("gkd", "distillm") else {}
        built = objective(method, **options)
        built.rollouts = None  # a row without a response has nothing to sample
        trainer = tiny_trainer(
            tmp_path,
            built,
            steps=3,
            gradient_accumulation_steps=2,
            fuse_head=fuse_head,
            teacher="phi3",
            student=tiny_model(vocab_size=VOCAB + 16, tie_word_embeddings=True),
            tokenizer=tokenizer,
            collator=collator,
            **SGD,
        )
        trainer.train()
        trained.append(trainer)
    logs = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in trained]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    whole, fused_head = (t.model.state_dict() for t in trained)
    for name, expected in whole.items():
        torch.testing.assert_close(fused_head[name], expected, atol=1e-5, rtol=1e-4)


def test_no_logits_of_a_training_step_are_whole(tmp_path):
    """Models of H = 16 and V = 2048, 240 labels a batch: nothing else is as large as n · V."""
    examples = [example | {"response_ids": [1] * 30} for example in tiny_examples(8)]
    for fuse_head in (False, True):
        models = [tiny_model(seed=seed, vocab_size=2048) for seed in range(2)]
        trainer = tiny_trainer(
            tmp_path,
            "taid_no_adaptive",
            student=models[0],
            teacher=models[1],
            examples=examples,
            batch=8,
            steps=1,
            fuse_head=fuse_head,
        )
        with Allocations() as allocations:
            trainer.train()
        assert (allocations.largest < 240 * 2048) == fuse_head


def test_what_cannot_be_fused_is_said_in_the_first_step(tmp_path):
    capped = tiny_model("gemma2", final_logit_softcapping=30.0, head_dim=8)
    for method, models, message in (
        ("kl", {"student": capped}, "Gemma2ForCausalLM are not hidden"),
        ("kl", {"teacher": capped}, "Gemma2ForCausalLM are not hidden"),
        ("sft", {}, "SFT cannot be fused with the head"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_trainer(tmp_path, method, fuse_head=True, **models).train()


def test_a_student_that_diverged_is_not_taken_for_a_model_without_linear_head(tmp_path):
    student = tiny_model()
    student.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 1 is nan"):
        tiny_trainer(tmp_path, "kl", student=student, fuse_head=True).train()


def test_taid_begins_where_it_is_its_own_teacher():
    """At t = 0 the teacher is the student's own memory, which the gradient is written over: it was refused."""
    student, teacher = heads(torch.float32)
    loss = mean("taid_kl", student, teacher, t=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and student.hidden.grad.abs().max() < 1e-6
