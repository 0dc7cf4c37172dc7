"""Several ranks by the committed configurations: as one process with the same global batch, and the same t everywhere.

Two processes of gloo on the CPU, with the environment that `accelerate launch --config_file launch/….yaml` makes.
accelerate shards on GPUs alone, so that its state is told that these ranks shard; from there on all is its own.
"""

import json
import os
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, prepare_multi_gpu_env
from conftest import PAD, tiny_examples, tiny_model, tiny_tokenizer, tiny_trainer
from ranks import on_two_ranks
from test_trainer import ADAPTIVE, distance
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from taid.command.cli import main
from taid.data import Collator
from taid.objectives import objective
from taid.teacher import OfflineTeacher, write_offline
from taid.trainer import DistillationTrainer

LAUNCH = Path(__file__).parents[1] / "launch"
CONFIGS = sorted(path.stem for path in LAUNCH.glob("*.yaml"))
TEXTS = [{"text": " ".join(f"w{2 + (7 * i + 3 * j) % 44}" for j in range(2 + i % 9))} for i in range(80)]
RUN = dict(steps=5, gradient_accumulation_steps=2, optim="adamw_torch", adam_epsilon=1e-3)
pytestmark = pytest.mark.slow  # two processes, each with ten runs


def environment(config: str) -> dict[str, str]:
    """What `accelerate launch` sets for a configuration."""
    words = ["--config_file", str(LAUNCH / f"{config}.yaml"), "script.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    before = dict(os.environ)
    made = prepare_multi_gpu_env(Namespace(**vars(arguments)))
    return {
        name: value
        for name, value in made.items()
        if before.get(name) != value and not name.startswith("MASTER")
    }


def sharding_on_the_cpu() -> None:
    """Ranks on the CPU shard as those on GPUs do, in this process from now on."""
    init = AcceleratorState.__init__

    def sharded(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = sharded


def whole(model) -> dict[str, torch.Tensor]:
    """The weights, those in shards brought together."""
    return {
        name.removeprefix("module."): (w.full_tensor() if isinstance(w, DTensor) else w).detach().clone()
        for name, w in model.state_dict().items()
    }


def trained(folder: Path, batch: int, teacher, method="taid", resume: str | None = None, **options) -> dict:
    """A run: its weights, t after each step, and losses."""
    ts: list[float] = []

    class Watched(DistillationTrainer):
        def _finish_step(self):
            super()._finish_step()
            ts.append(getattr(self.objective.state, "t", 0.0) if method == "taid" else 0.0)

    chosen = objective(method, **ADAPTIVE) if method == "taid" else method
    settings = RUN | {"validation": tiny_examples(8, seed=1)} | options
    trainer = tiny_trainer(folder, chosen, batch=batch, teacher=teacher, **settings)
    trainer.__class__ = Watched
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    return {
        "weights": whole(trainer.model),
        "t": ts,
        "measured": [metrics["eval_loss"], metrics["eval_kl"]],
        "sharded": any(isinstance(p, DTensor) for p in trainer.model.parameters()),
    }


def teachers(folder: Path) -> dict:
    return {
        "live": tiny_model(seed=1),
        "bf16": tiny_model(seed=1).bfloat16(),
        "offline": OfflineTeacher(folder / "offline"),
    }


VARIANTS = {
    "live": {},
    "bf16": {},
    "offline": {},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "fused head": {"fuse_head": True, "method": "kl"},
    "packed": {
        "examples": TEXTS,
        "validation": TEXTS[:8],
        "packing": True,
        "max_length": 24,
        "collator": None,
        "tokenizer": tiny_tokenizer(),
    },
}
FOR = {"ddp": (*VARIANTS,), "fsdp2": ("live", "bf16", "gradient checkpointing", "packed")}


def program(config: str, shared: Path, rank: int, folder: Path) -> dict:
    """What each of two ranks does."""
    os.environ |= environment(config)
    sharding_on_the_cpu()
    found = {}
    for name in FOR[config]:
        teacher = teachers(shared).get(name, tiny_model(seed=1))
        found[name] = trained(folder / name, 2, teacher, **VARIANTS[name])
    if config == "fsdp2":
        split = AutoModelForCausalLM.from_pretrained(
            shared / "teacher", distributed_config=DistributedConfig(fsdp_size=2)
        )
        assert all(isinstance(weight, DTensor) for weight in split.parameters())
        found["teacher in shards"] = trained(folder / "split", 2, split)
    saving = dict(save_strategy="steps", save_steps=2)
    unbroken = trained(folder / "saved", 2, tiny_model(seed=1), **saving)
    resumed = trained(folder / "saved", 2, tiny_model(seed=1), resume=str(folder / "saved" / "checkpoint-4"))
    found["resumed"] = distance(unbroken["weights"], resumed["weights"])
    saved = AutoModelForCausalLM.from_pretrained(folder / "saved" / "checkpoint-5")
    found["saved"] = distance(unbroken["weights"], whole(saved))
    with pytest.raises(
        ValueError, match="teacher of rank 1 has other weights.*fsdp_cpu_ram_efficient_loading"
    ):
        tiny_trainer(folder / "other", "kl", teacher=tiny_model(seed=1 + rank))
    return found


def command(config: str, shared: Path, rank: int, folder: Path) -> int:
    """`taid distill` on each of two ranks: its exit code."""
    os.environ |= environment(config)
    sharding_on_the_cpu()
    return distill(shared, folder / "out", batch=2)


def distill(shared: Path, output: Path, batch: int) -> int:
    words = f"distill --student {shared}/student --teacher {shared}/teacher --dataset {shared}/texts.jsonl"
    words += (
        f" --output {output} --batch-size {batch} --accumulation 2 --steps 4 --learning-rate 0.1 --optim sgd"
    )
    return main([*words.split(), "--option", "alpha=1.5", "--use_cpu", "True", "--disable_tqdm", "True"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A teacher, and its logits of all examples."""
    folder = tmp_path_factory.mktemp("shared")
    for seed, name in enumerate(("student", "teacher")):
        tiny_model(seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in TEXTS))
    examples = tiny_examples() + tiny_examples(8, seed=1)
    write_offline(tiny_model(seed=1), examples, folder / "offline", k=None, collator=Collator(PAD))
    return folder


@pytest.fixture(scope="module")
def ranks(shared, tmp_path_factory) -> dict:
    return {
        config: on_two_ranks(partial(program, config, shared), tmp_path_factory.mktemp(config))
        for config in FOR
    }


def test_each_configuration_is_accelerates_own_and_tested():
    """Its reader refuses an unknown key."""
    assert [*CONFIGS] == [*FOR]
    for config in CONFIGS:
        assert load_config_from_file(str(LAUNCH / f"{config}.yaml")).num_processes == 8


@pytest.mark.parametrize("config", FOR)
def test_ranks_are_as_one_process_with_the_same_global_batch(config, ranks, shared, tmp_path):
    """Weights, losses and t of every step, on both ranks; accumulation included."""
    for name in FOR[config]:
        teacher = teachers(shared).get(name, tiny_model(seed=1))
        one = trained(tmp_path / name, 4, teacher, **VARIANTS[name])
        first, second = (rank[name] for rank in ranks[config])
        assert first["t"] == second["t"] and len(first["t"]) == 5
        for found in (first, second):
            assert distance(found["weights"], one["weights"]) < 1e-6, name
            assert found["t"] == pytest.approx(one["t"], abs=1e-6)
            assert found["measured"] == pytest.approx(one["measured"], abs=1e-6)
            assert found["sharded"] == (config == "fsdp2")


@pytest.mark.parametrize("config", FOR)
def test_the_command_is_as_one_process(config, shared, tmp_path):
    """And leaves a whole student, which `from_pretrained` reads."""
    assert on_two_ranks(partial(command, config, shared), tmp_path) == [0, 0]
    assert distill(shared, tmp_path / "one", batch=4) == 0
    two, one = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "one"))
    assert distance(whole(two), whole(one)) < 1e-6
    first, alone = (json.loads((tmp_path / name / "taid.json").read_text()) for name in ("out", "one"))
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)


def test_a_teacher_in_shards_teaches_as_a_whole_one(ranks):
    for rank in ranks["fsdp2"]:
        assert distance(rank["teacher in shards"]["weights"], rank["live"]["weights"]) < 1e-6


@pytest.mark.parametrize("config", FOR)
def test_a_resumed_run_and_its_checkpoint_are_the_unbroken_one(config, ranks):
    assert [(rank["resumed"], rank["saved"]) for rank in ranks[config]] == [(0, 0)] * 2
