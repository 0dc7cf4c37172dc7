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
from transformers.trainer_utils import has_length

from taid.data import IGNORE
from taid.fused import forward_kl
from taid.logits import align_vocabularies, check_labels, response_logits


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
    check_labels(labels, logits.shape[-1])
    knows, kl = getattr(teacher, "knows", None), None
    if knows is not None and knows(batch):
        kl = forward_kl(*align_vocabularies(logits, teacher(batch), **vocabularies))
    return cross_entropy(logits.float(), labels, reduction="none"), kl


def examples_in(batch: dict, size: int) -> int:
    """How many examples a batch has, of a loader whose batches have `size`: one a row, or documents of one row, as
    DataCollatorWithFlattening makes of them. Raises ValueError for one row of several examples that cannot be counted."""
    rows = len(batch["labels"])
    if rows == size or rows > 1:
        return rows
    documents = 0 if "position_ids" not in batch else int((batch["position_ids"] == 0).sum())
    if documents != size:
        raise ValueError(
            f"the collator makes one row of {size} examples, and position_ids do not tell them apart, so that on several "
            "ranks it is not known which are repeated at the end: set dataloader_drop_last=True"
        )
    return size


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


def only_rows(batch: dict, rows: int | None, size: int) -> dict:
    """The batch with its labels masked beyond its first `rows` examples, see `examples_in`; None: as it is."""
    if rows is None:
        return batch
    labels = {name: batch[name].clone() for name in ("labels", "shift_labels") if name in batch}
    documents = len(batch["labels"]) == 1 < size
    beyond = (batch["position_ids"] == 0).cumsum(1) > rows if documents else slice(rows, None)
    for masked in labels.values():
        masked[beyond] = IGNORE
    return batch | labels


def validations(args: TrainingArguments, state: TrainerState) -> int:
    """How many validations a run has scheduled before its last step."""
    scheduled = {
        "no": range(0),
        "steps": range(state.eval_steps or 1, state.max_steps, state.eval_steps or 1),
        "epoch": range(1, state.num_train_epochs),
    }
    return sum(at >= args.eval_delay for at in scheduled[args.eval_strategy]) + bool(args.eval_on_start)


class Answered:
    """A model that has given its outputs, in place of another forward pass."""

    def __init__(self, model, outputs):
        self.module, self._outputs = model, outputs

    def __call__(self, **inputs):
        return self._outputs


def counted(data, args: TrainingArguments):
    """A stream as a list where ranks share it out: of what has no length it is not known which rows are repeated."""
    streamed = data is not None and not isinstance(data, dict) and not has_length(data)
    return list(data) if streamed and args.world_size > 1 else data


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
