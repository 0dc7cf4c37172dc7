"""DistillationTrainer: a `transformers.Trainer` that distils a teacher into a student.

    trainer = DistillationTrainer(student, teacher, method="taid", args=TrainingArguments(...),
                                  train_dataset=..., data_collator=..., processing_class=tokenizer)
    trainer.train()

Everything else (data parallelism, mixed precision, logging, checkpoints) is the Trainer's.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainerCallback

from taid.data import IGNORE, write_whole
from taid.objectives import Objective, objective
from taid.teacher import LiveTeacher, response_logits

STATE, BUFFER = "distillation_state.json", "rollouts.safetensors"


def align_vocabularies(
    student_logits: Tensor, teacher_logits: Tensor, vocab_size: int | None
) -> tuple[Tensor, Tensor]:
    """Cut both [n, V] to one vocabulary if they differ only in padding, that is in entries ≥ `vocab_size`, the number
    of tokens the tokenizer knows (Phi-3 has 32,064 entries for 32,000 tokens).

    Raises ValueError, naming both sizes, if a difference is not known to be padding.
    """
    student, teacher = student_logits.shape[-1], teacher_logits.shape[-1]
    if student == teacher:
        return student_logits, teacher_logits
    smaller = min(student, teacher)
    if vocab_size is None or vocab_size > smaller:
        known = "no tokenizer was given" if vocab_size is None else f"the tokenizer has {vocab_size} tokens"
        raise ValueError(
            f"the student's vocabulary has {student} entries, the teacher's {teacher}, and {known}, so the difference is not "
            "padding alone. Distil between models of one tokenizer, and pass it as processing_class."
        )
    return student_logits[..., :smaller], teacher_logits[..., :smaller]


class DistillationTrainer(Trainer):
    """Trains `model` by `method`, a name of `taid.objectives.METHODS` or an Objective, against `teacher`.

    `teacher`: a causal language model, or a callable from a batch to logits (`taid.teacher.CachedTeacher`); methods
    without a teacher need none. The loss is the sum over unmasked tokens divided by their number in the whole
    optimizer step, over micro-batches and ranks; the objective is updated once per optimizer step from that same mean,
    in training only. Validation (`eval_loss`) is the cross-entropy on the labels [nats/token], the same for all methods.

    Raises ValueError for an unknown method, a missing teacher, a step without any label, vocabularies that differ in
    more than padding; FloatingPointError, naming the step and the last checkpoint, for a loss that is not finite.
    """

    def __init__(self, model: PreTrainedModel, teacher=None, method: str | Objective = "taid", **kwargs):
        self.objective = objective(method) if isinstance(method, str) else method
        if self.objective.uses_teacher and teacher is None:
            raise ValueError(f"{method!r} learns from a teacher: pass teacher=…, or use method='sft'")
        super().__init__(model=model, **kwargs)
        self.model_accepts_loss_kwargs = True  # compute_loss normalises over the whole optimizer step
        if isinstance(teacher, PreTrainedModel):
            teacher = LiveTeacher(teacher.to(self.args.device))
        self.teacher = teacher
        self._step_loss: Tensor | float = 0.0  # this rank's share of the step's mean loss
        self.add_callback(_ObjectiveCallback(self))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, with rollouts in place of data where the method wants them."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        rollouts = self.objective.rollouts
        if rollouts is not None:
            model = self.accelerator.unwrap_model(self.model)
            for i, batch in enumerate(batches):
                draw = (self.state.global_step * len(batches) + i) * self.args.world_size + self.args.process_index
                batches[i] = rollouts(model, batch, self._progress(), self.args.seed * 1_000_003 + draw)
            count = self._get_num_items_in_batch(batches, device)
        if batches and not count:
            raise ValueError(
                f"every label of optimizer step {self.state.global_step + 1} is {IGNORE}: nothing to learn from. Check "
                "that truncation leaves the responses, and that the collator masks prompts only."
            )
        return batches, count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum of the objective over the batch's unmasked tokens / their number in the optimizer step [nats]."""
        logits, labels = response_logits(model, inputs)  # [n, V], [n]
        if not model.training:
            loss = cross_entropy(logits.float(), labels)
            return (loss, {"loss": loss}) if return_outputs else loss
        count = labels.numel() if num_items_in_batch is None else num_items_in_batch
        teacher_logits = None
        if self.objective.uses_teacher:
            vocab_size = None if self.processing_class is None else len(self.processing_class)
            logits, teacher_logits = align_vocabularies(logits, self.teacher(inputs), vocab_size)
        loss = self.objective(logits, teacher_logits, labels).sum() / count
        self._step_loss = self._step_loss + loss.detach()
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over ranks, the count is over all
        return (loss, {"loss": loss}) if return_outputs else loss

    def create_optimizer(self, model=None):
        """The Trainer's optimizer, with the objective's own parameters (CTKD's temperature) as a further group."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        own = [p for p in self.objective.parameters() if p.requires_grad]
        if new and own:
            optimizer.add_param_group({"params": own, "weight_decay": 0.0})
        return optimizer

    def log(self, logs, start_time=None):
        """The Trainer's logs, and the objective's beside the training loss."""
        super().log(logs | self.objective.logs() if "loss" in logs else logs, start_time)

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        if self.objective.rollouts is not None and "eval_loss" in metrics:
            self.objective.rollouts.on_validation(metrics["eval_loss"])
        return metrics

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As the Trainer's; `resume_from_checkpoint=True` takes the last whole checkpoint, passing over one that a kill
        cut short. Raises ValueError if there is none."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"no whole checkpoint in {self.args.output_dir}: train without resume_from_checkpoint")
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _progress(self) -> float:
        return min(1.0, self.state.global_step / max(self.state.max_steps, 1))

    def _finish_step(self) -> None:
        """Before the optimizer moves: check the step's loss, and let the objective see it."""
        loss = float(self.accelerator.reduce(torch.as_tensor(self._step_loss, device=self.args.device), "sum"))
        self._step_loss = 0.0
        step = self.state.global_step + 1
        if not math.isfinite(loss):
            last = last_checkpoint(self.args.output_dir)
            kept = f"the last good checkpoint is {last}" if last else "no checkpoint was saved before (see save_steps)"
            raise FloatingPointError(
                f"the loss of optimizer step {step} is {loss}; the student is as before that step, and {kept}. Lower the "
                "learning rate, or look for NaN or infinite logits in the teacher."
            )
        for parameter in self.objective.parameters():  # outside the model that data parallelism knows
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        self.objective.update(loss, min(1.0, step / self.state.max_steps))

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            rollouts = self.objective.rollouts
            if rollouts is not None:
                save_file(rollouts.tensors(), folder / BUFFER)
            state = {
                "objective": self.objective.state_dict(),
                "rollouts": rollouts.state_dict() if rollouts is not None else None,
            }
            write_whole(folder / STATE, json.dumps(state))  # last: it says that the checkpoint is whole

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        if not (folder / STATE).exists():
            raise ValueError(f"{folder} has no {STATE}: it was cut short, or is not of a DistillationTrainer; resume from another")
        state = json.loads((folder / STATE).read_text())
        self.objective.load_state_dict(state["objective"])
        if self.objective.rollouts is not None:
            self.objective.rollouts.load_state_dict(state["rollouts"])
            self.objective.rollouts.load_tensors(load_file(folder / BUFFER))


class _ObjectiveCallback(TrainerCallback):
    """Calls `_finish_step` where the Trainer has no method to override."""

    def __init__(self, trainer: DistillationTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._finish_step()


def last_checkpoint(output_dir: str) -> str | None:
    """The newest whole checkpoint of a DistillationTrainer in `output_dir`, or None."""
    folders = sorted(Path(output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[-1]))
    whole = [str(folder) for folder in folders if (folder / STATE).exists()]
    return whole[-1] if whole else None
