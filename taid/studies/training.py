"""One phase of training, and models that are trained once and kept, whole or not at all."""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from taid import objectives
from taid.files import locked, write_whole
from taid.studies.progress import Progress
from taid.teacher import auto_class
from taid.trainer import DistillationTrainer, last_checkpoint

READERS = 8  # processes that read images of a hub: always as many, for each has random numbers of its own


@dataclass(frozen=True)
class Training:
    """One phase of training: AdamW, cosine to zero, as in the official code."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """Of TrainingArguments, beside those of `fit`."""
        return {"lr_scheduler_type": "cosine", "max_grad_norm": 1.0, "weight_decay": 0.0}

    def trainer(self, *args, **kwargs) -> DistillationTrainer:
        """The trainer of one phase."""
        return DistillationTrainer(*args, **kwargs)


@dataclass(frozen=True)
class StepDecay(Training):
    """One phase of training as classifiers of images are trained: SGD with momentum, and a learning rate that falls to
    a tenth at each of some shares of the steps, by default CIFAR's (mdistiller, after 150, 180 and 210 of 240 epochs).

    Unlike there, transformers' Trainer spares norms and biases the weight decay.
    """

    momentum: float = 0.9
    weight_decay: float = 5e-4
    decays: tuple[float, ...] = (150 / 240, 180 / 240, 210 / 240)
    max_grad_norm: float = 0.0  # 0: gradients are not clipped

    @property
    def arguments(self) -> dict[str, Any]:
        return {"max_grad_norm": self.max_grad_norm, "weight_decay": self.weight_decay}

    def trainer(self, *args, **kwargs) -> DistillationTrainer:
        return _StepDecayTrainer(self, *args, **kwargs)

    def factor(self, step: int) -> float:
        """The learning rate of a step, counted from 0, in multiples of the largest."""
        rise = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return rise * 0.1 ** sum(step >= share * self.steps for share in self.decays)


class _StepDecayTrainer(DistillationTrainer):
    def __init__(self, training: StepDecay, *args, **kwargs):
        self.training = training
        sgd = {"lr": training.learning_rate, "momentum": training.momentum}
        super().__init__(*args, optimizer_cls_and_kwargs=(torch.optim.SGD, sgd), **kwargs)

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.training.factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler


def fit(
    model: PreTrainedModel,
    examples,
    collator,
    training: Training,
    *,
    seed: int,
    objective: objectives.Objective | str = "sft",
    teacher=None,
    tokenizer=None,
    validation=None,
    validations: int = 1,
    checkpoints: Path | None = None,
    title: str = "",
    bf16: bool = False,
    micro_batch: int | None = None,
    fuse_head: bool = False,
    gradient_checkpointing: bool = False,
    callback: TrainerCallback | None = None,
    readers: int = 0,
) -> DistillationTrainer:
    """Train `model` in place for one phase; with `checkpoints`, a killed run resumes from there; with a
    `title`, it tells its progress; `bf16` is mixed precision. A batch is read in parts of
    `micro_batch` examples, at once unless given, by so many processes as `readers`; ValueError where it is no multiple
    of them."""
    micro_batch = micro_batch or training.batch_size
    if training.batch_size % micro_batch:
        raise ValueError(f"a batch of {training.batch_size} is no multiple of {micro_batch} examples")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=str(checkpoints or scratch),
            seed=seed,
            max_steps=training.steps,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=training.batch_size // micro_batch,
            gradient_checkpointing=gradient_checkpointing,
            learning_rate=training.learning_rate,
            warmup_steps=training.warmup_steps,
            save_strategy="steps" if checkpoints else "no",
            save_steps=max(training.steps // 4, 1),
            save_total_limit=2,
            eval_strategy="no" if validation is None else "steps",
            eval_steps=max(training.steps // validations, 1),
            per_device_eval_batch_size=256 if micro_batch == training.batch_size else micro_batch,
            prediction_loss_only=True,
            logging_steps=max(training.steps // 10, 1),
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=readers,
            use_cpu=device() == "cpu",
            bf16=bf16,
            **training.arguments,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # the others, if any, are a large teacher's: `hub.spread`
        trainer = training.trainer(
            model,
            teacher,
            objective,
            args=arguments,
            train_dataset=examples,
            eval_dataset=validation,
            data_collator=collator,
            processing_class=tokenizer,
            teacher_processing_class=tokenizer,
            eval_kl=False,  # measured once, after training
            fuse_head=fuse_head,
        )
        resume = last_checkpoint(str(checkpoints)) if checkpoints else None
        trainer.remove_callback(PrinterCallback)
        if title:
            trainer.add_callback(_Steps(title))
        if callback:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def device() -> str:
    """ "cuda" where there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(model: Any) -> Any:
    """A model where this machine computes."""
    return model.to(device())


def bf16_is_fast(cpuinfo: str) -> bool:
    """Whether a processor, described as in Linux' /proc/cpuinfo, has instructions for bfloat16.

    They are AMX's and AVX-512's. Without them PyTorch emulates it, 15 times slower than fp32.
    """
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpuinfo.split())


@cache
def precision() -> str:
    """ "bf16" where this machine's GPU, or without one its processor, is made for it, else "fp32"."""
    if device() == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    path = Path("/proc/cpuinfo")
    return "bf16" if path.exists() and bf16_is_fast(path.read_text()) else "fp32"


class _Steps(TrainerCallback):
    """Tells the optimizer steps of a phase."""

    def __init__(self, title: str):
        self.title = title

    def on_train_begin(self, args, state, control, **kwargs):
        self.progress = Progress(self.title, state.max_steps, "step", done=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.advance()


# --- Kept models --------------------------------------------------------------------------------------------


def cached_model(folder: Path, train: Callable[[], tuple[PreTrainedModel, dict | None]]) -> PreTrainedModel:
    """The model in `folder`; if there is none, or a damaged one, the model and record that `train` makes, kept there.

    One process trains it; another that wants it meanwhile waits."""
    with locked(folder.parent / "locks" / folder.name):
        if folder.exists():
            try:
                return _loaded(folder)
            except Exception as error:  # whatever the loader finds wrong
                warnings.warn(f"the model in {folder} is damaged ({error}): training it again", stacklevel=2)
                shutil.rmtree(folder)
        save_whole(*train(), folder)
    return _loaded(folder)


def _loaded(folder: Path) -> PreTrainedModel:
    auto = auto_class(AutoConfig.from_pretrained(folder))
    return auto.from_pretrained(folder, use_safetensors=True)


def save_whole(thing, record: dict | None, folder: Path) -> None:
    """`save_pretrained` into a temporary folder, then rename: a kill leaves a whole model or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        thing.save_pretrained(Path(scratch) / "whole")
        if record is not None:
            write_whole(Path(scratch) / "whole" / "record.json", json.dumps(record))
        if not folder.exists():
            os.replace(Path(scratch) / "whole", folder)


def pretrained(
    folder: Path,
    name: str,
    seed: int,
    fresh: Callable[[], PreTrainedModel],
    phases: Sequence[tuple[Training, Callable[[], Sequence[dict]]]],
    **options,
) -> PreTrainedModel:
    """The model kept as `folder`/models/`name`.

    If it is not there, `fresh()` is trained by each phase on the examples that it makes, in the order of
    `seed`, and resumes after a kill; `options` are those of `fit`.
    """
    work = folder / "work" / name

    def train() -> tuple[PreTrainedModel, None]:
        model = fresh()
        for number, (training, examples) in enumerate(phases):
            title, here = f"{name}, phase {number + 1} of {len(phases)}", work / str(number)
            fit(model, examples(), training=training, seed=seed, checkpoints=here, title=title, **options)
        return model, None

    model = cached_model(folder / "models" / name, train)
    shutil.rmtree(work, ignore_errors=True)  # the checkpoints of a run that was not killed
    return model
