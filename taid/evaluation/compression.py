"""What a cache of the top k teacher logits does to a loss (`taid.teacher.TopLogits`)."""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # (student's, teacher's logits) [n, V] -> [n], as in `taid.losses`


def bias(loss: Loss, student: Tensor, teacher: Tensor, stored: Tensor) -> tuple[float, float]:
    """(error of the value, error of the gradient) of a loss at `stored` in place of the teacher's [n, V].

    Both are relative: (L̂ − L)/L of the means over tokens, signed; and ‖Ĝ − G‖/‖G‖ of their gradients with
    respect to the student's logits, in the norm over all n · V entries.
    """
    value, gradient = _value_and_gradient(loss, student, teacher)
    found, moved = _value_and_gradient(loss, student, stored)
    return (found - value) / value, ((moved - gradient).norm() / gradient.norm()).item()


def _value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    leaf = student.detach().clone().requires_grad_()
    mean = loss(leaf, teacher).mean()
    [gradient] = torch.autograd.grad(mean, leaf)
    return mean.item(), gradient
