"""What validation measures: means over the labels of a data set, each counted once on however many ranks."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.state import GradientState
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset
from transformers import TrainerState, TrainingArguments

from taid.data import IGNORE
from taid.fused import forward_kl
from taid.logits import align_vocabularies, response_logits


class Sums:
    """Cross-entropy on the labels, and KL(teacher ‖ student) where there is a teacher, summed on this rank."""

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(4, device=device)  # cross-entropy, its labels, KL, its labels

    def reset(self) -> None:
        self._sums.zero_()

    def add(self, losses: Tensor, kl: Tensor | None) -> None:
        """The losses [n] of some labels, and the mean of their KL."""
        n = losses.new_tensor(len(losses))
        added = (losses.sum(), n, losses.new_zeros(()) if kl is None else kl * n, n * (kl is not None))
        self._sums += torch.stack(added)

    def means(self, accelerator) -> tuple[dict[str, float], float]:
        """{"loss": …, "kl": …} over all ranks [nats/token], without what was not measured on every label; and the
        number of labels."""
        loss, labels, kl, labels_of_kl = accelerator.reduce(self._sums, "sum").tolist()
        means = {"loss": loss / labels} if labels else {}
        return means | ({"kl": kl / labels} if labels and labels_of_kl == labels else {}), labels


def losses_and_kl(model, batch: dict, teacher, vocabularies: dict) -> tuple[Tensor, Tensor | None]:
    """The cross-entropy [n] on the labels of a batch, and the mean KL of a teacher that knows its examples."""
    logits, labels = response_logits(model, batch)
    knows, kl = getattr(teacher, "knows", None), None
    if knows is not None and knows(batch):
        kl = forward_kl(*align_vocabularies(logits, teacher(batch), **vocabularies))
    return cross_entropy(logits.float(), labels, reduction="none"), kl


def own_rows(rows: int, rank: int, ranks: int) -> int | None:
    """How many of a rank's `rows` are its own, in the batch that its loader gave last; None for all.

    A last batch too small for all ranks is filled up with the first rows of the data; a rank's are the next `rows`
    of it all. Of a stream that each rank reads for itself the length is not known: None.
    """
    state = GradientState()
    if not state.end_of_dataloader:
        return None
    dataset, rest = state.active_dataloader.dataset, state.remainder
    if not isinstance(dataset, IterableDataset):  # a loader that skips batches does not know its remainder
        rest = len(dataset) % (rows * ranks)
    return min(max(rest - rank * rows, 0), rows) if rest > 0 else None


def only_rows(batch: dict, rows: int | None) -> dict:
    """The batch with its labels masked beyond the first `rows`; None: as it is."""
    if rows is None:
        return batch
    labels = {name: batch[name].clone() for name in ("labels", "shift_labels") if name in batch}
    for masked in labels.values():
        masked[rows:] = IGNORE
    return batch | labels


def validations(args: TrainingArguments, state: TrainerState) -> int:
    """How many validations a run has scheduled before its last step."""
    scheduled = {
        "no": 0,
        "steps": (state.max_steps - 1) // max(state.eval_steps or 1, 1),
        "epoch": max(state.num_train_epochs - 1, 0),
    }
    return scheduled[args.eval_strategy] + bool(args.eval_on_start)


class Answered:
    """A model that has given its outputs, in place of another forward pass."""

    def __init__(self, model, outputs):
        self.module, self._outputs = model, outputs

    def __call__(self, **inputs):
        return self._outputs


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """What is drawn within leaves the generators as they were: a run with validation trains as one without.

    A loader draws a seed as it starts, whatever it loads.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
