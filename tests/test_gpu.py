"""Training on a GPU beside training on the CPU. Without a GPU nothing here runs; tests/test_fused.py has the losses."""

import pytest
import torch
from conftest import tiny_model, tiny_trainer
from torch.nn.functional import linear

from taid import fused, losses
from taid.fused.head import mean
from taid.logits import Head
from taid.objectives import METHODS, objective

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SGD = {"optim": "sgd", "learning_rate": 0.1}  # AdamW divides by gradients that may be rounding alone


def curve(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_default_engine_is_tritons():
    s, z = torch.randn(2, 3, 50, device="cuda")
    assert fused.engine(s, z) == "triton"
    assert fused.engine(s.double(), z.double()) == fused.engine(s.T, z.T) == "eager"


def test_a_gradient_written_over_a_slice_is_scaled_there_alone():
    """Oracle: `taid.losses` in fp64, times 3. The logits beside the slice stay as they are."""
    s, z = torch.randn(2, 3, 6, 50, device="cuda")
    s.requires_grad_()
    model_output = s * 1.0
    (3 * fused.taid_kl(model_output[:, :-1], z[:, :-1], 0.3, inplace=True)).backward()
    exact = s.detach().double().requires_grad_()
    (3 * losses.taid_kl(exact[:, :-1], z[:, :-1].double(), 0.3).mean()).backward()
    torch.testing.assert_close(s.grad.double(), exact.grad, atol=1e-7, rtol=1e-4)
    assert torch.equal(model_output[:, -1], s[:, -1])


@pytest.mark.parametrize("fuse_head", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_training_is_that_of_the_cpu(method, fuse_head, tmp_path):
    """Losses and weights after five steps; methods that sample draw other tokens there, so they get none to draw."""
    if method in ("sft", "mlkd") and fuse_head:
        pytest.skip("no loss to fuse")
    trained = []
    for use_cpu in (True, False):
        built = objective(method, **({"max_new_tokens": 5} if method in ("gkd", "distillm") else {}))
        built.rollouts = None
        trainer = tiny_trainer(
            tmp_path / str(use_cpu),
            built,
            steps=5,
            use_cpu=use_cpu,
            fuse_head=fuse_head,
            student=tiny_model(),
            **SGD,
        )
        trainer.train()
        trained.append(trainer)
    assert next(trained[1].model.parameters()).is_cuda
    assert curve(trained[1]) == pytest.approx(curve(trained[0]), rel=1e-4)
    for expected, found in zip(trained[0].model.parameters(), trained[1].model.parameters(), strict=True):
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("method", ["gkd", "distillm"])
def test_sampling_is_a_function_of_the_seed(method, tmp_path):
    curves = []
    for again in range(2):
        built = objective(method, max_new_tokens=5, **({"threshold": 1.0} if method == "distillm" else {}))
        trainer = tiny_trainer(tmp_path / str(again), built, steps=6, use_cpu=False)
        trainer.train()
        assert built.logs()["rollout_share"] > 0
        curves.append(curve(trainer))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("method", ["taid", "ctkd", "gkd"])
def test_killed_and_resumed_ends_as_never_killed(method, tmp_path):
    options = {"use_cpu": False, "save_strategy": "steps", "save_steps": 3, "steps": 6}
    built = [objective(method, **({"max_new_tokens": 5} if method == "gkd" else {})) for _ in range(2)]
    whole = tiny_trainer(tmp_path, built[0], **options)
    whole.train()
    resumed = tiny_trainer(tmp_path, built[1], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert curve(resumed)[3:] == pytest.approx(curve(whole)[3:], rel=1e-5)
    for key, value in built[0].state_dict().items():
        assert built[1].state_dict()[key] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("fuse_head", [False, True])
def test_bf16_autocast(fuse_head, tmp_path):
    """Oracle: fp32, to the precision of bf16 matmuls."""
    curves = []
    for bf16 in (False, True):
        trainer = tiny_trainer(tmp_path, steps=5, use_cpu=False, bf16=bf16, fuse_head=fuse_head, **SGD)
        trainer.train()
        curves.append(curve(trainer))
    assert curves[1] == pytest.approx(curves[0], rel=0.02)


def test_the_fused_head_makes_no_whole_logits():
    """4,096 × 64,000 logits of two sides in bf16 are 1 GB; beyond the gradients a quarter of that is used.
    Oracle of the gradients: the matmuls and `taid.losses` in fp32."""
    generator = torch.Generator("cuda").manual_seed(0)
    rows, vocabulary, width = 4096, 64_000, 64

    def head() -> Head:
        shapes = ((rows, width), (vocabulary, width))
        return Head(*(torch.randn(s, generator=generator, device="cuda").mul(0.5).bfloat16() for s in shapes))

    student, teacher = head(), head()
    for x in student[:2]:
        x.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = torch.autograd.grad(mean("taid_kl", student, teacher, t=0.4), student[:2])
    assert torch.cuda.max_memory_allocated() - before < rows * vocabulary + 8 * width * (rows + vocabulary)
    exact = [Head(*(x.detach().float() for x in each[:2])) for each in (student, teacher)]
    for x in exact[0][:2]:
        x.requires_grad_()
    logits = [linear(*each[:2]).bfloat16().float() for each in exact]
    for expected, gradient in zip(
        torch.autograd.grad(losses.taid_kl(*logits, 0.4).mean(), exact[0][:2]), found, strict=True
    ):
        assert (gradient - expected).norm() < 0.01 * expected.norm()
