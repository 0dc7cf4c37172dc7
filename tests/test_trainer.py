"""The trainer's promises, on models of 7,000 parameters."""

import json
import math
import os
import shutil
from copy import deepcopy
from itertools import chain, count
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, PAD, VOCAB, tiny_examples, tiny_model, tiny_trainer
from ranks import on_two_ranks
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    TrainerCallback,
)

from taid.data import IGNORE, Collator
from taid.losses import forward_kl
from taid.objectives import METHODS, Divergence, objective
from taid.teacher import LiveTeacher, cached_teacher
from taid.trainer import STATE, checkpoints, last_checkpoint

ADAPTIVE = {"t_start": 0.2, "alpha": 1.5}  # so large an α leaves the linear floor in a few steps
SGD = {"optim": "sgd", "learning_rate": 0.1}  # AdamW divides by gradients that may be rounding alone


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights."""
    return max((a[name] - b[name]).abs().max().item() for name in a.keys() | b.keys())


class At(TrainerCallback):
    """Calls `action` at one event of one optimizer step, counted from 1."""

    def __init__(self, event: str, step: int, action):
        def act(args, state, control, **kwargs):
            if state.global_step == step - 1:
                action()

        setattr(self, event, act)


# The loss


def reference_losses(method: str, s, z, labels) -> torch.Tensor:
    """Per-token losses in fp64 from probabilities, not from logarithms: written without `taid.losses`."""
    q, p = s.softmax(-1), z.softmax(-1)
    blended = (0.6 * s + 0.4 * z).softmax(-1)  # TAID starts at t = 0.4
    return {
        "sft": lambda: -q.gather(-1, labels[:, None])[:, 0].log(),
        "kl": lambda: (p * (p / q).log()).sum(-1),
        "rkl": lambda: (q * (q / p).log()).sum(-1),
        "tvd": lambda: 0.5 * (p - q).abs().sum(-1),
        "skew_kl": lambda: (p * (p / (0.1 * p + 0.9 * q)).log()).sum(-1),
        "taid": lambda: (blended * (blended / q).log()).sum(-1),
    }[method]()


def tokenised(examples: list[dict], learn_prompt: bool) -> list[dict]:
    """What an engineer's own script has: one sequence per example; two turns of a chat, or no labels yet."""
    rows = []
    for first, second in zip(examples[::2], examples[1::2], strict=True):
        turns = [
            *((first["prompt_ids"], False), (first["response_ids"], True)),
            *((second["prompt_ids"], False), (second["response_ids"], True)),
        ]
        ids = [token for tokens, _ in turns for token in tokens]
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if not learn_prompt:
            row["labels"] = [token if learned else IGNORE for tokens, learned in turns for token in tokens]
        rows.append(row)
    return rows


LAYOUTS = {  # name → (examples, collator)
    "left-padded prompts": lambda tokenizer: (tiny_examples(), Collator(PAD)),
    "multi-turn, right-padded": lambda tokenizer: (
        tokenised(tiny_examples(), learn_prompt=False),
        DataCollatorForSeq2Seq(tokenizer),
    ),
    "language modelling": lambda tokenizer: (
        tokenised(tiny_examples(), learn_prompt=True),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["sft", "kl", "rkl", "tvd", "skew_kl", "taid"])
def test_loss_is_the_token_mean_of_full_logits(method, layout, tmp_path, student, teacher, tokenizer):
    """Oracle: logits of whole sequences in fp64, shifted by hand, averaged over all labels of the step."""
    examples, collator = LAYOUTS[layout](tokenizer)
    batches = []

    def spy(rows):
        batches.append(collator(rows))
        return batches[-1]

    before, teacher_64 = deepcopy(student).double(), deepcopy(teacher).double()
    trainer = tiny_trainer(
        tmp_path,
        method,
        student=student,
        teacher=teacher,
        steps=1,
        batch=2,
        gradient_accumulation_steps=3,
        examples=examples,
        collator=spy,
    )
    trainer.train()
    losses = []
    for batch in batches[:3]:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "index")}
        with torch.no_grad():
            s, z = (model(**inputs).logits[:, :-1] for model in (before, teacher_64))
        labels = batch["labels"][:, 1:]
        mask = labels != IGNORE
        losses.append(reference_losses(method, s[mask], z[mask], labels[mask]))
    assert len({len(per_batch) for per_batch in losses}) > 1, "the micro-batches must weigh differently"
    assert trainer.state.log_history[0]["loss"] == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)


@pytest.mark.parametrize("method", ["kl", "taid", "sft"])
def test_one_by_eight_equals_eight_by_one(method, tmp_path):
    """Rows have 1 to 9 labels, so that a mean of micro-batches' means is another number."""
    finished = []
    for batch, accumulation in ((8, 1), (1, 8)):
        trainer = tiny_trainer(
            tmp_path,
            objective(method, **ADAPTIVE) if method == "taid" else method,
            steps=5,
            batch=batch,
            gradient_accumulation_steps=accumulation,
            **SGD,
        )
        trainer.train()
        finished.append(trainer)
    one, eight = finished
    assert distance(weights(one.model), weights(eight.model)) < 1e-5
    assert one.objective.state_dict() == pytest.approx(eight.objective.state_dict(), abs=1e-5)


@pytest.mark.parametrize("method", ["ctkd", "taid_no_adaptive"])
def test_training_equals_a_loop_written_out(method, tmp_path, student, teacher):
    """Oracle: PyTorch's AdamW in a loop of a few lines; CTKD's θ climbs the gradient, scaled by λ."""
    steps, rate, batches = 6, 1e-2, []

    def spy(rows):
        batches.append(Collator(PAD)(rows))
        return batches[-1]

    q, p = deepcopy(student).train(), deepcopy(teacher).eval()
    trainer = tiny_trainer(
        tmp_path,
        method,
        student=student,
        teacher=teacher,
        steps=steps,
        collator=spy,
        learning_rate=rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    theta = torch.tensor(-3.0, requires_grad=True)  # τ = 1.9, where the loss depends on it more than at 15.6
    if method == "ctkd":
        trainer.objective.temperature.theta.data.copy_(theta.data)
    trainer.train()
    optimizer = torch.optim.AdamW([*q.parameters(), theta], lr=rate, weight_decay=0.0)
    for step, batch in enumerate(batches[:steps]):
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "index")}
        mask = batch["labels"][:, 1:] != IGNORE
        s = q(**inputs).logits[:, :-1][mask]
        z = p(**inputs).logits[:, :-1][mask].detach()
        if method == "ctkd":
            tau = 1 + 20 * theta.sigmoid()
            log_p, log_q = (z / tau).log_softmax(-1), (s / tau).log_softmax(-1)
            loss = tau**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
        else:
            t = 0.4 + 0.6 * step / steps
            blended = ((1 - t) * s.detach() + t * z).softmax(-1)
            loss = (blended * (blended.log() - s.log_softmax(-1))).sum(-1)
        optimizer.zero_grad()
        loss.mean().backward()
        if method == "ctkd":
            theta.grad *= -(1 - math.cos(math.pi * step / steps)) / 2
        optimizer.step()
    assert distance(weights(trainer.model), weights(q)) < 1e-4  # AdamW enlarges rounding: 1% of one step
    if method == "ctkd":
        found = trainer.objective.temperature.theta.item()
        assert found == pytest.approx(theta.item(), abs=1e-4) and abs(found + 3) > 1e-2


@pytest.mark.parametrize("method", ["kl", "taid_no_adaptive"])
def test_a_soft_cap_is_trained_through(method, tmp_path):
    """Oracle: autograd through whole logits. tanh saves its result, which no loss may write over."""
    student, teacher = tiny_model("gemma2", final_logit_softcapping=2.0, head_dim=8), tiny_model(seed=1)
    batch = Collator(PAD)(tiny_examples(4))
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "index")}
    mask = batch["labels"][:, 1:] != IGNORE
    expected = deepcopy(student).train()
    s, z = (model(**inputs).logits[:, :-1][mask] for model in (expected, teacher.eval()))
    target = (0.6 * s + 0.4 * z if method != "kl" else z).detach()
    torch.nn.functional.kl_div(s.log_softmax(-1), target.softmax(-1), reduction="batchmean").backward()
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    trainer = tiny_trainer(
        tmp_path,
        method,
        student=student,
        teacher=teacher,
        steps=1,
        examples=tiny_examples(4),
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        **SGD,
    )
    trainer.train()
    assert distance(weights(trainer.model), weights(expected)) < 1e-6


def test_ctkd_trains_its_temperature_in_an_optimizer_of_the_user(tmp_path, student):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer = tiny_trainer(tmp_path, "ctkd", student=student, optimizers=(optimizer, None), steps=3)
    trainer.train()
    assert trainer.objective.temperature.theta.item() != 1.0


@pytest.mark.parametrize("method", METHODS)
def test_a_micro_batch_without_labels_weighs_nothing(method, tmp_path):
    """Half of the micro-batches hold prompts alone: the step is that of the other half."""
    seen = count()

    def every_second_masked(rows):
        batch = Collator(PAD)(rows)
        if next(seen) % 2:
            batch["labels"] = torch.full_like(batch["labels"], IGNORE)
        return batch

    trainers = [
        tiny_trainer(tmp_path, method, steps=1, gradient_accumulation_steps=2, collator=every_second_masked),
        tiny_trainer(tmp_path, method, steps=1),
    ]
    for trainer in trainers:
        trainer.objective.rollouts = None  # a row without a response has nothing to sample
        trainer.train()
    assert distance(*(weights(trainer.model) for trainer in trainers)) < 1e-6


# Schedule and logs


def test_one_schedule_update_per_optimizer_step_and_none_in_validation(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        "taid",
        steps=5,
        batch=2,
        gradient_accumulation_steps=3,
        validation=tiny_examples(8, seed=1),
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    assert trainer.objective.state.updates == 5
    assert trainer.objective.state.previous_loss == pytest.approx(trainer.state.log_history[-3]["loss"])
    before = trainer.objective.state_dict()
    trainer.evaluate()
    assert trainer.objective.state_dict() == before
    assert sum("eval_loss" in logs for logs in trainer.state.log_history) == 5 + 1
    training = [logs for logs in trainer.state.log_history if "loss" in logs]
    floor = [0.4 + 0.6 * n / 5 for n in range(1, 6)]  # it binds in so short a run
    assert [logs["t"] for logs in training] == pytest.approx(floor)
    assert all({"momentum", "sigmoid_momentum", "floor_share"} <= logs.keys() for logs in training)


def test_validation_loss_counts_every_label_alike(tmp_path, student):
    """Oracle: the cross-entropy of all labels in one fp64 batch; batches of 3 leave a smaller last one."""
    validation = tiny_examples(10, seed=1)
    batch = Collator(PAD)(validation)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "index")}
    logits = deepcopy(student).double()(**inputs).logits
    labels = batch["labels"][:, 1:]
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    for size in (3, 10):
        trainer = tiny_trainer(
            tmp_path, "kl", student=student, validation=validation, per_device_eval_batch_size=size
        )
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
        assert trainer.predict(validation).metrics["test_loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_thresholds_learn_from_validation_during_training_alone(tmp_path):
    trainer = tiny_trainer(tmp_path, "distillm", validation=tiny_examples(4, seed=1), learning_rate=0.0)
    for _ in range(3):
        trainer.evaluate()
    assert trainer.objective.rollouts.threshold == 0
    trainer = tiny_trainer(
        tmp_path,
        "distillm",
        validation=tiny_examples(4, seed=1),
        learning_rate=0.0,
        steps=4,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.objective.rollouts.max_new_tokens = 4
    trainer.train()
    assert trainer.objective.rollouts.threshold == pytest.approx(0.3)  # four equal losses: three did not fall


# Every method and family


def sampling_objective(method: str):
    """The objective, with student sequences in every batch where the method has any."""
    options = {
        "gkd": {"probability": 1.0, "max_new_tokens": 5},
        "distillm": {"threshold": 1.0, "capacity": 6, "max_new_tokens": 5},
    }
    return objective(method, **options.get(method, {}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_every_family(method, family, tmp_path):
    trainer = tiny_trainer(tmp_path, sampling_objective(method), teacher=family, steps=2)
    before = weights(trainer.model)
    trainer.train()
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert 0 < distance(weights(trainer.model), before) < 0.1


def test_methods_of_one_seed_see_one_stream_of_batches(tmp_path):
    def stream(method, seed):
        seen = []

        def spy(rows):
            seen.append([row["index"] for row in rows])
            return Collator(PAD)(rows)

        tiny_trainer(tmp_path, sampling_objective(method), steps=20, collator=spy, seed=seed).train()
        return seen

    expected = stream("sft", seed=3)
    assert sorted(chain.from_iterable(expected[:16])) == list(range(64))  # an epoch sees every example once
    for method in ("kl", "taid", "ctkd", "gkd", "distillm"):
        assert stream(method, seed=3) == expected
    assert stream("sft", seed=4) != expected


def test_default_arguments_keep_the_columns_of_the_collator(tmp_path, teacher):
    """`remove_unused_columns` would take "prompt_ids", and "index" by which the cache finds its logits."""
    examples = tiny_examples(16)
    cache = cached_teacher(teacher, examples, Collator(PAD), tmp_path / "cache")
    cache.live = None  # a call of the live teacher would fail
    trainer = tiny_trainer(tmp_path, "kl", teacher=cache, examples=examples)
    assert trainer.args.remove_unused_columns
    trainer.train()
    live = tiny_trainer(tmp_path, "kl", teacher=teacher, examples=examples)
    live.train()
    losses = [[logs["loss"] for logs in t.state.log_history if "loss" in logs] for t in (trainer, live)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)  # fp16 rounds a logit near 4 by up to 2e-3


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_bf16_autocast_computes_the_loss_in_fp32(loss, tmp_path, monkeypatch):
    """Oracle: KL(p ‖ q) of the same bf16 logits in double; bf16 itself keeps 8 bits."""
    method = "kl" if loss == "fused" else Divergence(lambda s, z: forward_kl(s, z))
    call, seen = Divergence.__call__, []
    monkeypatch.setattr(Divergence, "__call__", lambda *given: seen.append(given[1:3]) or call(*given))
    trainer = tiny_trainer(tmp_path, method, steps=1, bf16=True, teacher=tiny_model(seed=1).bfloat16())
    trainer.train()
    ((s, z),) = seen
    assert z.dtype == torch.bfloat16 and (s.bfloat16() == s).all()  # the Trainer upcasts the student's
    q, p = (logits.detach().double().log_softmax(-1) for logits in (s, z))
    expected = (p.exp() * (p - q)).sum(-1).mean().item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)


# Checkpoints


def resumable(folder, method: str, **arguments):
    """A run of 10 steps with a checkpoint every 4 and all the state that its method can have."""
    options = {
        "taid": ADAPTIVE,
        "gkd": {"max_new_tokens": 5},
        "distillm": {"max_new_tokens": 5, "threshold": 0.6, "capacity": 8},
    }
    return tiny_trainer(
        folder,
        objective(method, **options.get(method, {})),
        steps=10,
        gradient_accumulation_steps=2,
        examples=tiny_examples(24),
        validation=tiny_examples(8, seed=1),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=4,
        **arguments,
    )


def everything(trainer) -> dict:
    """All that training leaves behind: exact, for comparison by ==."""
    rollouts = trainer.objective.rollouts
    logs = [
        {k: v for k, v in logs.items() if k in ("step", "loss", "eval_loss", "t", "temperature")}
        for logs in trainer.state.log_history
    ]
    return {
        "weights": {name: tensor.tolist() for name, tensor in weights(trainer.model).items()},
        "objective": trainer.objective.state_dict(),
        "rollouts": rollouts and rollouts.state_dict(),
        "buffer": rollouts and {name: tensor.tolist() for name, tensor in rollouts.tensors().items()},
        "logs": [entry for entry in logs if len(entry) > 1],
    }


def killed(trainer, step: int) -> None:
    """Train in a child process that dies, without any clean-up, between two micro-batches of a step."""
    child = os.fork()
    if child == 0:
        try:
            trainer.add_callback(At("on_substep_end", step, lambda: os._exit(9)))
            trainer.train()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("method", ["taid", "ctkd", "gkd", "distillm"])
def test_killed_and_resumed_ends_as_never_killed(method, tmp_path):
    whole = resumable(tmp_path / "whole", method)
    whole.train()
    killed(resumable(tmp_path / "killed", method), step=7)
    assert Path(last_checkpoint(tmp_path / "killed")).name == "checkpoint-4"
    resumed = resumable(tmp_path / "killed", method)
    resumed.train(resume_from_checkpoint=True)
    assert everything(resumed) == everything(whole)
    if method == "taid":
        assert whole.objective.state.floor_share < 1  # the adaptive step did act
    if method == "gkd":
        assert 0 < whole.objective.rollouts.sampled < 20
    if method == "distillm":
        assert whole.objective.rollouts.sampled and whole.objective.rollouts.replayed


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    trainer = resumable(tmp_path, "taid")
    trainer.train()
    assert Path(last_checkpoint(tmp_path)).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / STATE).unlink()
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "checkpoint-best")
    assert Path(last_checkpoint(tmp_path)).name == "checkpoint-8"
    with pytest.raises(ValueError, match="cut short"):
        resumable(tmp_path, "taid").train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    resumed = resumable(tmp_path, "taid")
    resumed.train(resume_from_checkpoint=True)
    assert everything(resumed) == everything(trainer)
    with pytest.raises(ValueError, match="no whole checkpoint"):
        resumable(tmp_path / "elsewhere", "taid").train(resume_from_checkpoint=True)


@pytest.mark.parametrize("again", [False, True], ids=["in a new folder", "over an earlier run"])
def test_a_kill_while_saving_leaves_the_checkpoint_before(again, tmp_path, monkeypatch):
    """Even with save_total_limit=1: the old one goes when the new one is whole. And what an earlier run left
    under the same name does not pass for the new one."""
    limit = None if again else 1
    if again:
        resumable(tmp_path, "kl").train()
        shutil.rmtree(tmp_path / "checkpoint-10")
    whole = checkpoints.write_whole

    def power_cut(path, text):
        if path.parent.name == "checkpoint-8":
            raise KeyboardInterrupt
        whole(path, text)

    monkeypatch.setattr(checkpoints, "write_whole", power_cut)
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path, "kl", save_total_limit=limit).train()
    assert Path(last_checkpoint(tmp_path)).name == "checkpoint-4"
    monkeypatch.undo()
    resumable(tmp_path, "kl", save_total_limit=limit).train(resume_from_checkpoint=True)
    assert len(list(tmp_path.glob("checkpoint-*"))) == (3 if again else 1)
    assert Path(last_checkpoint(tmp_path)).name == "checkpoint-10"


# Several ranks


RANKED = ("sft", "taid", "ctkd", "kl")  # "kl" with the head fused


def ranked(folder, method: str, batch: int):
    return tiny_trainer(
        folder,
        objective(method, **ADAPTIVE) if method == "taid" else method,
        steps=5,
        batch=batch,
        gradient_accumulation_steps=2,
        validation=tiny_examples(8, seed=1),
        fuse_head=method == "kl",
        **SGD,
    )


def replaying(folder):
    sampling = objective("distillm", max_new_tokens=4, threshold=0.7, capacity=4)
    return tiny_trainer(folder, sampling, steps=8, batch=2, save_strategy="steps", save_steps=4)


def _rank(rank: int, folder: Path) -> dict:
    """What each of two processes does and finds."""
    found = {}
    for method in RANKED:
        trainer = ranked(folder, method, batch=2)
        trainer.train()
        eval_loss = trainer.evaluate()["eval_loss"]
        found[method] = (weights(trainer.model), trainer.objective.state_dict(), eval_loss)
    whole, resumed = replaying(folder / "replay"), replaying(folder / "replay")
    whole.train()
    resumed.train(resume_from_checkpoint=str(folder / "replay" / "checkpoint-4"))
    found["replay"] = [
        (weights(t.model), t.objective.rollouts.tensors(), t.objective.rollouts.replayed)
        for t in (whole, resumed)
    ]
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    return on_two_ranks(_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("method", RANKED)
def test_two_ranks_equal_one(method, two_ranks, tmp_path):
    """Ranks have unequal numbers of labels: neither a mean of ranks' means nor a local t would do."""
    trainer = ranked(tmp_path, method, batch=4)
    trainer.train()
    for found, state, eval_loss in (rank[method] for rank in two_ranks):
        assert distance(found, weights(trainer.model)) < 1e-6
        assert state == pytest.approx(trainer.objective.state_dict(), abs=1e-5)
        assert eval_loss == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-5)
    if method == "ctkd":
        assert state["theta"] != 1.0


def test_each_rank_resumes_its_own_replay_buffer(two_ranks):
    buffers = []
    for found in two_ranks:
        (whole, buffer, replayed), (resumed, buffer_resumed, _) = found["replay"]
        assert distance(whole, resumed) == 0 and replayed > 0
        assert all(torch.equal(buffer[name], buffer_resumed[name]) for name in buffer)
        buffers.append({name: tensor.tolist() for name, tensor in buffer.items()})
    assert buffers[0] != buffers[1]


# Bad input


def test_nan_stops_before_the_weights_move_and_names_step_and_checkpoint(tmp_path, student, teacher):
    live, calls = LiveTeacher(teacher), count(1)

    def breaks_at_step_6(batch):
        logits = live(batch)
        if next(calls) == 2 * 6:  # the second micro-batch of the step
            logits[0, 0] = math.nan
        return logits

    trainer = tiny_trainer(
        tmp_path,
        objective("taid", **ADAPTIVE),
        student=student,
        teacher=breaks_at_step_6,
        steps=10,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=5,
    )
    with pytest.raises(FloatingPointError, match=r"step 6 is nan.*checkpoint-5"):
        trainer.train()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-5")
    assert distance(weights(trainer.model), weights(saved)) == 0
    state = json.loads((tmp_path / "checkpoint-5" / STATE).read_text())
    assert trainer.objective.state_dict() == state["objective"]
    resumed = tiny_trainer(
        tmp_path, objective("taid", **ADAPTIVE), teacher=teacher, steps=10, gradient_accumulation_steps=2
    )
    resumed.train(resume_from_checkpoint=True)
    assert resumed.objective.state.updates == 10


def test_nan_before_the_first_checkpoint_says_so(tmp_path):
    def broken(batch):
        return torch.full(((batch["labels"] != IGNORE).sum(), VOCAB), math.nan)

    with pytest.raises(FloatingPointError, match="step 1 is nan.*no checkpoint"):
        tiny_trainer(tmp_path, "kl", teacher=broken).train()


def test_a_step_without_any_label_is_an_error(tmp_path):
    def masked(rows):
        batch = Collator(PAD)(rows)
        return batch | {"labels": torch.full_like(batch["labels"], IGNORE)}

    def unlabelled(rows):
        return {name: value for name, value in Collator(PAD)(rows).items() if name != "labels"}

    expected = {masked: "every label of optimizer step 1 is -100", unlabelled: "have no labels"}
    for collator, message in expected.items():
        with pytest.raises(ValueError, match=message):
            tiny_trainer(tmp_path, "kl", collator=collator).train()


def test_what_is_missing_is_said_before_training(tmp_path):
    with pytest.raises(ValueError, match="unknown method 'tiad'; known: sft, kl, .*taid"):
        tiny_trainer(tmp_path, "tiad")
    with pytest.raises(ValueError, match="'taid' learns from a teacher"):
        tiny_trainer(tmp_path, "taid", teacher=None)
    with pytest.raises(ValueError, match="'TAID' learns from a teacher"):
        tiny_trainer(tmp_path, objective("taid"), teacher=None)
    tiny_trainer(tmp_path, "sft", teacher=None, steps=1).train()
