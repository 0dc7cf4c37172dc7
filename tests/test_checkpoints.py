"""Checkpoints are good, whole and of one method; a run that goes on from one ends as if it had never stopped."""

import json
import math
import shutil
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import datasets
import pytest
import torch
from conftest import tiny_examples, tiny_model, tiny_trainer
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from test_trainer import ADAPTIVE, At, distance, everything, weights
from transformers import AutoModelForCausalLM, TrainingArguments

from taid.objectives import METHODS, TAID, objective
from taid.schedule import Linear
from taid.trainer.checkpoints import BUFFER, GROUPS, KEYS, STATE, last_checkpoint, read_buffer
from taid.trainer.objective import all_finite, of_disk
from taid.trainer.settings import data_seen

SAVE = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}


# Not a number


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_under_a_finite_loss(value, max_grad_norm, tmp_path):
    """The third backward pass goes wrong: the weights stay those of checkpoint-2, which the message names."""
    trainer, calls = tiny_trainer(tmp_path, steps=5, max_grad_norm=max_grad_norm, **SAVE), count(1)
    embeddings = trainer.model.get_input_embeddings().weight
    embeddings.register_hook(lambda gradient: gradient * value if next(calls) == 3 else gradient)
    words = r"gradient in optimizer step 3 is (nan|inf).*as before it, and the last good checkpoint is .*checkpoint-2"
    with pytest.raises(FloatingPointError, match=words):
        trainer.train()
    good = AutoModelForCausalLM.from_pretrained(last_checkpoint(tmp_path))
    assert distance(weights(trainer.model), weights(good)) == 0


def test_no_checkpoint_of_a_student_that_a_step_blew_up(tmp_path):
    """A rate of 1e30 leaves finite weights near 1e30, and logits that are not."""
    trainer = tiny_trainer(tmp_path, "kl", steps=6, optim="sgd", max_grad_norm=0.0, **SAVE)

    def raise_rate():
        trainer.optimizer.param_groups[0]["lr"] = 1e30

    trainer.add_callback(At("on_step_begin", 3, raise_rate))
    with pytest.raises(FloatingPointError, match="after optimizer step 3 the student's logits.*checkpoint-2"):
        trainer.train()
    assert all_finite(trainer.model.parameters())
    assert Path(last_checkpoint(tmp_path)).name == "checkpoint-2" and not (tmp_path / "checkpoint-3").exists()


def test_no_checkpoint_with_an_optimizer_that_is_not_finite(tmp_path):
    trainer = tiny_trainer(tmp_path, "kl", steps=6, **SAVE)

    def overflow():
        next(iter(trainer.optimizer.state.values()))["exp_avg_sq"].fill_(math.inf)

    trainer.add_callback(At("on_step_begin", 3, overflow))
    with pytest.raises(FloatingPointError, match="after optimizer step 3 the student's optimizer's state"):
        trainer.train()


def test_a_last_step_that_blows_up_is_not_passed_over(tmp_path):
    trainer = tiny_trainer(tmp_path, "kl", steps=1, learning_rate=1e30, optim="sgd", max_grad_norm=0.0)
    with pytest.raises(FloatingPointError, match="at the end of training.*no checkpoint"):
        trainer.train()


def test_a_nan_loss_says_whether_the_student_was_broken_before(tmp_path):
    trainer = tiny_trainer(tmp_path, "kl", steps=4)
    trainer.add_callback(At("on_step_begin", 2, lambda: trainer.model.lm_head.weight.data.fill_(math.nan)))
    with pytest.raises(
        FloatingPointError, match="loss of optimizer step 2 is nan; the student's weights were not"
    ):
        trainer.train()


def test_a_checkpoint_of_an_earlier_run_is_not_named(tmp_path):
    tiny_trainer(tmp_path, "kl", steps=2, **SAVE).train()
    trainer = tiny_trainer(tmp_path, "kl", steps=4)
    trainer.add_callback(At("on_step_begin", 2, lambda: trainer.model.lm_head.weight.data.fill_(math.nan)))
    with pytest.raises(FloatingPointError, match="there is no checkpoint"):
        trainer.train()


def test_a_gradient_that_overflows_in_fp16_is_skipped_until_the_scale_is_found(tmp_path):
    """As PyTorch's GradScaler does, here in place of one that a GPU has."""
    trainer = tiny_trainer(tmp_path, "kl", steps=1)
    scaler = trainer.accelerator.scaler = Mock()
    for scale in (65536.0, 2.0):
        scaler.get_scale.return_value = scale
        trainer._require_finite_step(loss=1.0, norm=math.inf)
    scaler.get_scale.return_value = 1.0
    with pytest.raises(FloatingPointError, match="norm of the gradient in optimizer step 1 is inf"):
        trainer._require_finite_step(loss=1.0, norm=math.inf)
    with pytest.raises(FloatingPointError, match="loss of optimizer step 1 is nan"):
        trainer._require_finite_step(loss=math.nan, norm=1.0)


def test_finite_is_asked_of_numbers_alone():
    good, bad = torch.ones(3), torch.tensor([1.0, math.nan])
    assert all_finite([]) and all_finite([good, torch.ones(2, dtype=torch.int8), torch.tensor([])])
    assert not all_finite([good, bad]) and not all_finite([bad.bfloat16()]) and not all_finite([-good / 0])


# Resuming elsewhere


def test_every_method_has_a_name_of_its_own_that_does_not_change():
    names = [repr(objective(method)) for method in METHODS]
    assert names == [repr(objective(method)) for method in METHODS] and len(set(names)) == len(METHODS)


@pytest.mark.parametrize("other", ["rkl", "gkd", "taid", "ctkd", "sft"])
def test_a_checkpoint_of_another_method_is_refused(other, tmp_path):
    tiny_trainer(tmp_path, "kl", steps=2, **SAVE).train()
    resumed = tiny_trainer(tmp_path, other, steps=2)
    before = weights(resumed.model)
    with pytest.raises(
        ValueError, match=r"checkpoint of Divergence\(forward_kl\), and this trainer's method is "
    ):
        resumed.train(resume_from_checkpoint=True)
    assert distance(weights(resumed.model), before) == 0


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    tiny_trainer(tmp_path, TAID(Linear(0.2)), steps=2, **SAVE).train()
    with pytest.raises(ValueError, match=r"TAID\(Linear\(t_start=0.2.*TAID\(Linear\(t_start=0.3"):
        tiny_trainer(tmp_path, TAID(Linear(0.3)), steps=2).train(resume_from_checkpoint=True)


def test_weights_alone_are_no_run_to_go_on_from(tmp_path):
    tiny_trainer(tmp_path, "kl", steps=2, save_only_model=True, **SAVE).train()
    with pytest.raises(ValueError, match="holds no optimizer"):
        tiny_trainer(tmp_path, "kl", steps=4).train(resume_from_checkpoint=True)


def test_buffers_go_to_as_many_ranks_as_wrote_them(tmp_path):
    full, empty = {"prompt_tokens": torch.arange(3)}, {}
    for rank, buffer in enumerate((empty, full)):
        save_file(buffer, tmp_path / BUFFER.format(rank=rank))
    assert read_buffer(tmp_path, rank=1, ranks=2, written=2)["prompt_tokens"].tolist() == [0, 1, 2]
    for ranks in (1, 3):
        with pytest.raises(ValueError, match=f"buffers of 2 rank.s., and this run has {ranks}: resume on 2"):
            read_buffer(tmp_path, rank=0, ranks=ranks, written=2)
    assert read_buffer(tmp_path, rank=2, ranks=3, written=1) == {}  # GKD's, which buffers nothing


# Going on


class Killed(Exception):
    """In place of a signal."""


def killed(trainer, step: int) -> None:
    """Train up to the beginning of a step."""

    def kill():
        raise Killed

    trainer.add_callback(At("on_step_begin", step, kill))
    with pytest.raises(Killed):
        trainer.train()


def test_a_finished_run_takes_no_further_step(tmp_path):
    run = dict(steps=6, **(SAVE | {"save_steps": 2}))
    whole = tiny_trainer(tmp_path, TAID(Linear(0.2)), **run)
    whole.train()
    again = tiny_trainer(tmp_path, TAID(Linear(0.2)), **run)
    with pytest.warns(UserWarning, match="the run was finished, 6 of 6 steps"):
        again.train(resume_from_checkpoint=True)
    assert everything(again) == everything(whole) and again.state.global_step == 6


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("killed_at", [4, 6, 7])
def test_a_stream_shorter_than_the_run_goes_on_where_it_was(killed_at, accumulation, tmp_path):
    """A pass has 5 micro-batches; saved after each step, so within passes and between them."""

    def run(folder):
        stream = (
            datasets.Dataset.from_list(tiny_examples(18)).to_iterable_dataset(num_shards=2).shuffle(seed=0)
        )
        return tiny_trainer(
            folder,
            objective("taid", **ADAPTIVE),
            steps=8,
            examples=stream,
            gradient_accumulation_steps=accumulation,
            **SAVE,
        )

    whole = run(tmp_path / "whole")
    whole.train()
    killed(run(tmp_path / "killed"), killed_at)
    resumed = run(tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    assert everything(resumed) == everything(whole)


def test_a_stream_takes_no_step_of_left_over_micro_batches(tmp_path):
    """5 micro-batches of 4 rows by twos: 2 steps a pass, and the fifth batch weighs nothing. Oracle: the same
    run on the first 16 rows alone."""
    found = []
    for rows in (18, 16):
        stream = datasets.Dataset.from_list(tiny_examples(18)[:rows]).to_iterable_dataset()
        trainer = tiny_trainer(tmp_path, "kl", steps=4, examples=stream, gradient_accumulation_steps=2)
        trainer.train()
        found.append(trainer)
    assert distance(*(weights(trainer.model) for trainer in found)) == 0


def test_state_is_json_of_one_form(tmp_path):
    tiny_trainer(tmp_path, "taid", steps=1, **SAVE).train()
    state = json.loads((tmp_path / "checkpoint-1" / STATE).read_text())
    assert set(state) == KEYS | GROUPS.keys()
    assert len(state["data"].pop("first and last rows")) == 12
    assert state["data"] == {
        "data seed": 42,
        "train_sampling_strategy": "random",
        "dataloader_drop_last": False,
        "rows per step": 4,
        "rows of data": 64,
    }
    files = {path.name: path.stat().st_size for path in (tmp_path / "checkpoint-1").iterdir()}
    assert state["files"] == {name: size for name, size in files.items() if name != STATE}


# Damaged, old and foreign checkpoints: a sentence, and nothing of them is changed


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """The folder of a run of 4 steps, with checkpoints 3 and 4."""
    folder = tmp_path_factory.mktemp("kept")
    tiny_trainer(folder, "kl", steps=4, **SAVE, save_total_limit=2).train()
    return folder


@pytest.fixture
def run_folder(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "run"))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", STATE]
)
def test_a_truncated_checkpoint_is_named_and_the_one_before_it_taken(name, run_folder):
    path = run_folder / "checkpoint-4" / name
    path.write_bytes(path.read_bytes()[:-7])
    before = contents(run_folder)
    with pytest.raises(ValueError, match=rf"checkpoint-4/{name} is damaged.*take another"):
        tiny_trainer(run_folder, "kl", steps=6).train(resume_from_checkpoint=str(path.parent))
    with pytest.warns(UserWarning, match=f"{name} is damaged.*the checkpoint before it is taken"):
        assert last_checkpoint(str(run_folder)) == str(run_folder / "checkpoint-3")
    assert contents(run_folder) == before


def test_a_checkpoint_with_a_file_gone_is_named(run_folder):
    (run_folder / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="optimizer.pt is damaged, none of .* bytes are there"):
        tiny_trainer(run_folder, "kl").train(resume_from_checkpoint=str(run_folder / "checkpoint-4"))


@pytest.mark.parametrize("absent", [{"weights_only"}, {"position"}, {"data", "files"}])
def test_a_checkpoint_of_an_older_version_says_so(absent, run_folder):
    """It was a KeyError."""
    path = run_folder / "checkpoint-4" / STATE
    state = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in state.items() if name not in absent}))
    with pytest.raises(
        ValueError, match=f"older version of taid, without {', '.join(sorted(absent))}.*from_pre"
    ):
        tiny_trainer(run_folder, "kl", steps=6).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(batch=8), "with rows per step 4, and this one has 8"),
        (dict(gradient_accumulation_steps=2), "with rows per step 4, and this one has 8"),
        (dict(seed=7), "with data seed 42, and this one has 7"),
        (dict(data_seed=0), "with data seed 42, and this one has 0"),
        (
            dict(train_sampling_strategy="group_by_length"),
            "train_sampling_strategy random, and this one has group_by_length",
        ),
        (dict(optim="sgd"), "holds the state of optim='adamw_torch_fused', which 'sgd' cannot go on from"),
        (dict(examples=tiny_examples(60)), "with rows of data 64, and this one has 60"),
        (dict(examples=tiny_examples(seed=1)), "with first and last rows .*would see other examples"),
        (
            dict(dataloader_drop_last=True),
            "with dataloader_drop_last False, and this one has True, .*see other examples",
        ),
        (
            dict(learning_rate=1e-3),
            "with learning_rate 0.01, and this one has 0.001, which would be passed over",
        ),
        (dict(weight_decay=0.1), "with weight_decay 0.0, and this one has 0.1, which would be passed over"),
        (dict(adam_beta2=0.9), "with adam_beta2 0.999, and this one has 0.9, which would be passed over"),
        (dict(teacher=tiny_model(seed=2)), "with teacher's weights .*, which no checkpoint holds"),
        (dict(ignore_data_skip=True, learning_rate=1e-3), "learning_rate 0.01, and this one has 0.001"),
    ],
)
def test_other_examples_under_an_old_checkpoint_are_refused(change, words, run_folder):
    before = contents(run_folder)
    with pytest.raises(ValueError, match=words):
        tiny_trainer(run_folder, "kl", steps=6, **change).train(resume_from_checkpoint=True)
    assert contents(run_folder) == before


def test_a_run_goes_on_longer_or_on_data_begun_anew(run_folder):
    """What a checkpoint does not decide. Oracle of the rate: the linear schedule of as many steps."""
    longer = tiny_trainer(run_folder, "kl", steps=8, lr_scheduler_type="linear")
    longer.train(resume_from_checkpoint=True)
    rates = {e["step"]: e["learning_rate"] for e in longer.state.log_history if "learning_rate" in e}
    assert [rates[step] for step in (6, 7, 8)] == pytest.approx([0.00375, 0.0025, 0.00125])
    anew = tiny_trainer(
        run_folder, "kl", steps=10, batch=8, examples=tiny_examples(seed=1), ignore_data_skip=True
    )
    anew.train(resume_from_checkpoint=True)
    assert anew.state.global_step == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(lora_alpha=64), "with adapters .*'lora_alpha': 8, .*'lora_alpha': 64, .*no checkpoint holds"),
        (dict(student=tiny_model(seed=7)), "with weights under its adapters .*, which no checkpoint holds"),
        ({}, None),
    ],
)
def test_adapters_go_on_as_they_are_on_the_base_they_are_of(change, words, tmp_path):
    """A checkpoint holds the adapters' weights alone. Oracle of the last case: the unbroken run."""

    def run(folder, steps, student=None, lora_alpha=8):
        lora = LoraConfig(
            r=4, lora_alpha=lora_alpha, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        return tiny_trainer(folder, "kl", steps=steps, student=student, peft_config=lora, **SAVE)

    run(tmp_path, 2).train()
    resumed = run(tmp_path, 4, **change)
    if words is not None:
        with pytest.raises(ValueError, match=words):
            resumed.train(resume_from_checkpoint=True)
        return
    resumed.train(resume_from_checkpoint=True)
    whole = run(tmp_path / "whole", 4)
    whole.train()
    assert distance(weights(whole.model), weights(resumed.model)) == 0


def test_a_checkpoint_that_tells_no_settings_is_gone_on_from(run_folder):
    """As those of versions before they were written."""
    path = run_folder / "checkpoint-4" / STATE
    state = {name: value for name, value in json.loads(path.read_text()).items() if name in KEYS}
    state["data"] = {name: state["data"][name] for name in ("data seed", "rows per step", "rows of data")}
    path.write_text(json.dumps(state))
    resumed = tiny_trainer(run_folder, "kl", steps=6, learning_rate=1e-3, teacher=tiny_model(seed=2))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6


def test_a_data_set_is_known_by_its_rows_whatever_they_hold():
    """Lists and data sets of the library datasets; what else may draw is not read."""
    args, rows = TrainingArguments(use_cpu=True, report_to="none"), tiny_examples(20)

    def seen(data):
        return data_seen(args, data, None).get("first and last rows")

    plain = datasets.Dataset.from_list(rows)
    drawing = plain.with_transform(lambda row: {"x": [torch.rand(1)]})
    assert seen(rows) == seen(tiny_examples(20)) != seen(rows[::-1])
    assert seen(plain) == seen(datasets.Dataset.from_list(rows)) == seen(drawing) != seen(plain.shuffle(1))
    odd = [{"image": object(), "pixels": torch.ones(2)}, {"image": object(), "pixels": torch.ones(2)}]
    assert seen(odd) == seen([dict(row, image=object()) for row in odd])
    assert seen(rows[:1]) is not None and seen(plain.to_iterable_dataset()) is None is seen(None)


def test_a_copy_of_a_checkpoint_is_not_the_last(run_folder):
    for name in ("checkpoint-9-old", "checkpoint-9a", "checkpoint-"):
        shutil.copytree(run_folder / "checkpoint-3", run_folder / name)
    assert Path(last_checkpoint(str(run_folder))).name == "checkpoint-4"


def test_a_checkpoint_that_is_not_there_is_no_damaged_one(run_folder):
    with pytest.raises(
        ValueError, match="checkpoint-99 is not there, but checkpoint-3, checkpoint-4: name one"
    ):
        tiny_trainer(run_folder, "kl").train(resume_from_checkpoint=str(run_folder / "checkpoint-99"))


def test_room_is_asked_for_where_the_disk_is_the_reason_alone(tmp_path):
    """Layers that share a module by hand: transformers cannot save such, and says why."""
    shared = tiny_model()
    shared.model.layers[1].mlp = shared.model.layers[0].mlp
    with pytest.raises(RuntimeError, match="checkpoint-1 could not be written: .*shared tensors") as error:
        tiny_trainer(tmp_path, "kl", student=shared, **SAVE).train()
    assert "Make room" not in str(error.value) and not of_disk(error.value)
    for full in (
        OSError("No space left"),
        SafetensorError("I/O"),
        RuntimeError("PytorchStreamWriter failed"),
    ):
        assert of_disk(full)


@pytest.mark.slow
def test_a_disk_that_is_full_keeps_the_checkpoint_before(tmp_path, small_disk):
    """A checkpoint takes 130 kB; the third has no room."""
    disk, run = tmp_path / "disk", dict(steps=6, **SAVE)
    with small_disk(disk, "400k"):
        with pytest.raises(
            OSError,
            match=r"checkpoint-3 could not be written, [\d,]+ bytes are free.*last good checkpoint is .*checkpoint-2",
        ):
            tiny_trainer(disk, "kl", **run).train()
        last = Path(last_checkpoint(str(disk)))
        for path in disk.glob("checkpoint-*"):
            if path != last:
                shutil.rmtree(path)
        resumed = tiny_trainer(disk, "kl", **(run | {"save_strategy": "no"}))
        resumed.train(resume_from_checkpoint=True)
    whole = tiny_trainer(tmp_path / "whole", "kl", steps=6, lr_scheduler_type="constant")
    whole.train()
    assert distance(weights(whole.model), weights(resumed.model)) == 0


def test_a_file_in_the_place_of_the_folder_is_a_sentence(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OSError, match="run"):
        tiny_trainer(tmp_path / "run", "kl", **SAVE).train()
    assert (tmp_path / "run").read_text() == "mine"
