"""A teacher that is a model in memory."""

import torch
from torch import Tensor

from taid.logits import response_states


class LiveTeacher:
    """A model in evaluation mode, run anew for every batch."""

    def __init__(self, model):
        self.model = model.eval().requires_grad_(False)

    def __call__(self, batch: dict) -> Tensor:
        return self.states(batch)[1].to(batch["labels"].device)

    @torch.no_grad()
    def states(self, batch: dict) -> tuple[Tensor | None, Tensor, Tensor]:
        """`response_states`, on the model's device."""
        device = next(self.model.parameters()).device
        return response_states(self.model, {name: value.to(device) for name, value in batch.items()})
