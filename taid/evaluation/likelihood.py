"""Losses on held-out examples, teacher-forced.

`held_out_loss` in the tables' rows is one of two means [nats/token], which differ where examples differ in length:

    mean over examples    mean(held_out_loss(…)): an example counts once, however long its response (Tables 1, 2)
    mean over tokens      held_out_loss_per_token(…): a token counts once (Table 6, rounds; the trainer's eval_loss)

Table 2's windows are of one length, so that there both are the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from taid.data import IGNORE, batches
from taid.logits import align_vocabularies, response_logits
from taid.losses import forward_kl


@torch.no_grad()
def held_out_loss(model, examples: Sequence[dict], collator: Callable, batch_size: int = 256) -> list[float]:
    """Cross-entropy of each example's response, end of sequence included [nats/token]: a mean over its tokens.

    Raises ValueError for an example without a label, which has no loss.
    """
    losses = list(_losses(model, examples, collator, batch_size))
    empty = [i for i, part in enumerate(losses) if not len(part)]
    if empty:
        raise ValueError(f"example {empty[0]} has no label, and so no loss: leave it out")
    return [part.mean().item() for part in losses]


@torch.no_grad()
def held_out_loss_per_token(
    model, examples: Sequence[dict], collator: Callable, batch_size: int = 256
) -> float:
    """Cross-entropy of the responses, a mean over all their tokens [nats/token]; ValueError if there are none."""
    losses = list(_losses(model, examples, collator, batch_size))
    count = sum(map(len, losses))
    if not count:
        raise ValueError("the examples have no labels, and so no loss")
    return sum(part.double().sum().item() for part in losses) / count


def _losses(model, examples, collator, batch_size) -> Iterator[Tensor]:
    """−log q(label) of the labels of each example, [n] in fp32."""
    model.eval()
    for batch in batches(examples, collator, batch_size, next(model.parameters()).device):
        logits, labels = response_logits(model, batch)
        lengths = (batch["labels"][:, 1:] != IGNORE).sum(1).tolist()
        yield from cross_entropy(logits.float(), labels, reduction="none").split(lengths)


@torch.no_grad()
def whole_responses(
    logits_of: Callable[[dict], Tensor], batches: Iterable[dict]
) -> tuple[list[bool], list[float]]:
    """Of each example: whether greedy decoding gives its response, all tokens of it, and Σ log p over them
    [nats]. `logits_of` as in `taid.teacher`."""
    right: list[bool] = []
    likelihoods: list[float] = []
    for batch in batches:
        mask = batch["labels"][:, 1:] != IGNORE
        labels, lengths = batch["labels"][:, 1:][mask], mask.sum(1).tolist()
        logits = logits_of(batch).float()  # [n, V]
        at_label = log_softmax(logits, -1).gather(-1, labels[:, None])[:, 0]
        right += [hits.all().item() for hits in (logits.argmax(-1) == labels).split(lengths)]
        likelihoods += [part.sum().item() for part in at_label.split(lengths)]
    return right, likelihoods


@torch.no_grad()
def kl_to_teacher(
    model, teacher, examples: Sequence[dict], collator: Callable, vocab_size: int, batch_size: int = 256
) -> float:
    """Mean KL(teacher ‖ student) over the tokens of the responses [nats/token]; `teacher` as in `taid.teacher`."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches(examples, collator, batch_size, next(model.parameters()).device):
        logits, labels = response_logits(model, batch)
        total += forward_kl(*align_vocabularies(logits, teacher(batch), vocab_size)).sum().item()
        count += labels.numel()
    if not count:
        raise ValueError("no example has a label: there is nothing to compare the teacher at")
    return total / count
