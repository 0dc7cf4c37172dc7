"""A Trainer whose runs carry an objective: from its beginning or a checkpoint, through finite steps, to a good end."""

import math
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import has_length, rotate_checkpoints
from transformers.training_args import OptimizerNames

from taid.logits import evaluation_mode, response_states
from taid.objectives import Objective
from taid.text.examples import Text
from taid.trainer.checkpoints import (
    BUFFER,
    STATE,
    check_optimizer,
    last_checkpoint,
    read_buffer,
    read_state,
    write_state,
)
from taid.trainer.settings import data_seen, models_beside, optimizer_settings

FEW = 4  # positions whose logits tell whether the student says something finite


class ObjectiveTrainer(Trainer):
    """State belongs to a run, and a checkpoint holds all of it; none is of a student that is not finite."""

    model: PreTrainedModel
    objective: Objective
    teacher: Any
    _text: Text
    _models: dict[str, Any]  # what no checkpoint holds of them
    _grad_norm: Tensor | float | None = None  # of the optimizer step, before clipping
    _last_inputs: dict | None = None  # the last micro-batch that was trained on
    _last_good: str | None = None  # this run's last checkpoint

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As the Trainer's; `resume_from_checkpoint=True` takes the last whole checkpoint, passing over one
        that a kill cut short. Raises ValueError if there is none."""
        self._models = models_beside(self.model, self.teacher)  # before ranks share their weights
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"no whole checkpoint in {self.args.output_dir}: train from the beginning")
        if resume_from_checkpoint:
            settings, folder = self._settings(), Path(resume_from_checkpoint)
            if self.args.ignore_data_skip:
                del settings["data"]
            state = read_state(folder, self.objective, settings)
            check_optimizer(folder, state, OptimizerNames(self.args.optim).value)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self._require_finite("at the end of training", "it is not to be used")
        return output

    def _inner_training_loop(self, batch_size=None, args=None, resume_from_checkpoint=None, **kwargs):
        """One run from its beginning or from a checkpoint: `train` starts several where memory runs out
        (`auto_find_batch_size`), and a search or a sweep calls `train` again and again."""
        self.objective.reset()
        self._last_inputs, self._last_good = None, resume_from_checkpoint
        if resume_from_checkpoint is not None:
            self._load_objective(Path(resume_from_checkpoint))
        return super()._inner_training_loop(
            batch_size=batch_size, args=args, resume_from_checkpoint=resume_from_checkpoint, **kwargs
        )

    def _load_objective(self, folder: Path) -> None:
        state, buffer = read_state(folder, self.objective), None
        if self.objective.rollouts is not None:
            buffer = read_buffer(folder, self.args.process_index, self.args.world_size, state["ranks"])
        self.objective.restore(state["objective"], state["rollouts"], buffer)

    def _init_training_state(self, max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial):
        """The Trainer's, but a stream, whose length it does not know, is entered in the pass that was left."""
        start = super()._init_training_state(
            max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or self.args.ignore_data_skip or has_length(self.train_dataset):
            return start
        return tuple(read_state(Path(resume_from_checkpoint), self.objective)["position"])

    def _settings(self) -> dict[str, dict]:
        """What a checkpoint's run and this one must have alike, see GROUPS."""
        max_length = None if self._text.given else self._text.max_length
        return {
            "data": data_seen(self.args, self.train_dataset, max_length),
            "optimizer_settings": optimizer_settings(self.args),
            "models": self._models,
        }

    def _position(self) -> tuple[int, int]:
        """(passes, micro-batches of the next pass) of a stream seen, from the Trainer's count of epochs: to it a
        stream is as long as the whole run."""
        passes = int(self.state.epoch or 0)
        length = self.state.max_steps * self.args.gradient_accumulation_steps
        return passes, round(((self.state.epoch or 0) - passes) * length)

    def _run_epoch(self, *args, **kwargs):
        """The Trainer's; but the run of a checkpoint that was its last takes no further step."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
            return
        steps = f"{self.state.global_step} of {self.state.max_steps} steps"
        warnings.warn(
            f"the run was finished, {steps}: nothing is trained. Raise max_steps to go on.", stacklevel=2
        )
        self.control.should_training_stop = True

    def _save_checkpoint(self, model, trial):
        self._require_finite(
            f"after optimizer step {self.state.global_step}", "no checkpoint is written of it"
        )
        run = self._get_output_dir(trial)
        folder = Path(run) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / STATE).unlink(missing_ok=True)  # an earlier run's is not whole while it is written over
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # none goes before this is whole
        try:
            super()._save_checkpoint(model, trial)
            self._save_objective(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not of_disk(error):
                raise RuntimeError(f"{folder} could not be written: {error}. {self._kept()}") from error
            free = (
                f"{shutil.disk_usage(run).free:,} bytes are free there" if Path(run).is_dir() else "no folder"
            )
            raise OSError(
                f"{folder} could not be written, {free}: {error}. Make room, or name another output_dir, and resume; "
                f"{self._kept()}"
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(run, limit, self.state.best_model_checkpoint, use_mtime=True)
        self._last_good = str(folder)

    def _save_objective(self, folder: Path) -> None:
        """What a checkpoint holds beside the Trainer's files."""
        rollouts = self.objective.rollouts
        if rollouts is not None:
            save_file(rollouts.tensors(), folder / BUFFER.format(rank=self.args.process_index))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            state = {
                "method": repr(self.objective),
                "ranks": self.args.world_size,
                "weights_only": self.args.save_only_model,
                "position": self._position(),
                **self._settings(),
                "optimizer": OptimizerNames(self.args.optim).value,
                "objective": self.objective.state_dict(),
                "rollouts": rollouts.state_dict() if rollouts is not None else None,
            }
            write_state(folder, state)  # last: it says that the checkpoint is whole

    def _get_grad_norm(self, model, grad_norm=None):
        """The Trainer's, kept for `_require_finite_step`."""
        self._grad_norm = super()._get_grad_norm(model, grad_norm)
        return self._grad_norm

    def _require_finite_step(self, loss: float, norm: float) -> None:
        """Raises FloatingPointError, before the optimizer moves, for a loss or a gradient that is not finite.

        In fp16 a gradient that overflows skips its step and halves the scale of the loss, as long as that is above
        1: so the scale is found.
        """
        step = self.state.global_step + 1
        if not math.isfinite(loss):
            self._fail(f"the loss of optimizer step {step} is {loss}")
        scaler = getattr(self.accelerator, "scaler", None)
        skipped = scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1
        if not math.isfinite(norm) and not skipped:
            self._fail(f"the norm of the gradient in optimizer step {step} is {norm}, at a loss of {loss}")

    def _fail(self, what: str) -> NoReturn:
        fault = self._fault()
        before = (
            f"the student's {fault} were not finite before it" if fault else "the student is as before it"
        )
        raise FloatingPointError(
            f"{what}; {before}, and {self._kept()}. Lower the learning rate, or look for NaN or infinite logits "
            "in the teacher."
        )

    def _require_finite(self, when: str, consequence: str) -> None:
        if fault := self._fault():
            raise FloatingPointError(
                f"{when} the student's {fault} are not finite: {consequence}, and {self._kept()}. Lower the "
                "learning rate."
            )

    def _kept(self) -> str:
        good = self._last_good
        return f"the last good checkpoint is {good}" if good else "there is no checkpoint (see save_steps)"

    def _fault(self) -> str | None:
        """What of the student is not finite, if anything; the same on all ranks."""
        states = getattr(self.optimizer, "state", {}).values()
        parts: dict[str, list[Tensor]] = {
            "weights": [*self.model.parameters(), *self.objective.parameters()],
            "optimizer's state": [v for state in states for v in state.values() if isinstance(v, Tensor)],
            "logits": self._last_logits(),
        }
        for name, tensors in parts.items():
            bad = torch.tensor(float(not all_finite(tensors)), device=self.args.device)
            if self.accelerator.reduce(bad, "sum"):
                return name
        return None

    @torch.no_grad()
    def _last_logits(self) -> list[Tensor]:
        """Their log-sum-exp at a few positions of the last micro-batch, by the student as it is now: a step too
        large leaves finite weights that say nothing finite; an entry of −∞ alone is no fault."""
        if self._last_inputs is None:
            return []
        with evaluation_mode(self.model):
            _, logits, _ = response_states(self.model, self._last_inputs, lambda hidden: hidden[:FEW])
        return [logits.float().logsumexp(-1)]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no entry is NaN or infinite; of sharded tensors, on this rank; quantised ones pass."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    plain = [t for t in local if type(t) in (Tensor, Parameter) and t.is_floating_point() and t.itemsize > 1]
    return all(tensor.detach().isfinite().all().cpu() for tensor in plain)


def of_disk(error: Exception) -> bool:
    """Whether an error is of writing a file: torch and safetensors have their own for a disk that is full."""
    torchs = ("PytorchStreamWriter", "inline_container")
    return isinstance(error, OSError | SafetensorError) or any(word in str(error) for word in torchs)
