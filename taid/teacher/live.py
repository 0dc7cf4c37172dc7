"""A teacher that is a model in memory."""

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from taid.logits import check_language_model, inner, is_encoder_decoder, response_states


class LiveTeacher:
    """A model in evaluation mode, run anew for every batch."""

    def __init__(self, model):
        self.model = model.eval().requires_grad_(False)

    def __call__(self, batch: dict) -> Tensor:
        return self.states(batch)[1].to(batch["labels"].device)

    def knows(self, batch: dict) -> bool:
        """Whether it can answer: always."""
        return True

    @torch.no_grad()
    def states(self, batch: dict) -> tuple[Tensor | None, Tensor, Tensor]:
        """`response_states`, on the model's device."""
        device = next(self.model.parameters()).device
        return response_states(self.model, send_to_device(batch, device))


def check_teacher(teacher: torch.nn.Module, student) -> None:
    """Raises ValueError for a module that cannot teach the student: no language model, or one of other positions."""
    if not hasattr(inner(teacher), "config"):
        raise ValueError(
            f"the teacher is a {type(teacher).__name__} without a config: pass a language model of transformers, its "
            "name or folder, or a function from a batch to logits [n, V] at its n labels"
        )
    check_language_model(teacher, "teacher")
    if is_encoder_decoder(teacher) != is_encoder_decoder(student):
        raise ValueError(
            "one of student and teacher is an encoder–decoder: their labels have other positions"
        )
