"""Losses on held-out examples, teacher-forced."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy

from taid.logits import align_vocabularies, response_logits
from taid.losses import forward_kl


@torch.no_grad()
def held_out_loss(model, examples: Sequence[dict], collator: Callable, batch_size: int = 256) -> list[float]:
    """Cross-entropy of each example's response, end of sequence included [nats/token]."""
    model.eval()
    means = []
    for batch in _batches(model, examples, collator, batch_size):
        logits, labels = response_logits(model, batch)
        losses = cross_entropy(logits.float(), labels, reduction="none")
        lengths = (batch["labels"] != -100).sum(1).tolist()
        means += [part.mean().item() for part in losses.split(lengths)]
    return means


@torch.no_grad()
def kl_to_teacher(
    model, teacher, examples: Sequence[dict], collator: Callable, vocab_size: int, batch_size: int = 256
) -> float:
    """Mean KL(teacher ‖ student) over the tokens of the responses [nats/token]; `teacher` as in `taid.teacher`."""
    model.eval()
    total, count = 0.0, 0
    for batch in _batches(model, examples, collator, batch_size):
        logits, labels = response_logits(model, batch)
        total += forward_kl(*align_vocabularies(logits, teacher(batch), vocab_size)).sum().item()
        count += labels.numel()
    return total / count


def _batches(model, examples, collator, batch_size):
    device = next(model.parameters()).device
    for start in range(0, len(examples), batch_size):
        batch = collator(examples[start : start + batch_size])
        yield {name: tensor.to(device) for name, tensor in batch.items()}
