"""The official code's formula for TAID in its order of operations: whole tensors, a mask of integers, a blend
in the logits' own type. Written anew from a description of that code; `taid.losses` is what to train with."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from taid.data import IGNORE


def taid_kl(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, t: float) -> Tensor:
    """−Σ p_t log q, its mean over the labels [N] that are not ignored; logits [N, V]."""
    blend = (1 - t) * student_logits.detach() + t * teacher_logits
    p = softmax(blend, dim=-1, dtype=torch.float32)
    absent = torch.isinf(student_logits)
    log_q = log_softmax(student_logits, dim=-1, dtype=torch.float32)
    values = torch.masked_fill(p * log_q, absent, 0).sum(-1)  # [N]
    mask = (labels != IGNORE).int()
    return -(values * mask).sum() / mask.sum()
