"""DistillationTrainer, its arguments, and what its runs leave behind."""

from taid.trainer.arguments import DistillationArguments
from taid.trainer.checkpoints import STATE, last_checkpoint
from taid.trainer.distillation import DistillationTrainer

__all__ = ["STATE", "DistillationArguments", "DistillationTrainer", "last_checkpoint"]
