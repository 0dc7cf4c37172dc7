"""A teacher's logits on a data set, computed once and read from disk by every run that sees an example.

cached_teacher(model, dataset, collator, folder)    computes what is missing; the model stays in memory
write_offline(model, dataset, folder, k=64)         the same, for runs without the model:
OfflineTeacher(folder)                              the teacher of such a run
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from taid import losses
from taid.data import Collator, keeping_ends
from taid.files import locked
from taid.logits import (
    base_model,
    check_model,
    evaluation_mode,
    inner,
    is_classifier,
    is_encoder_decoder,
    output_embeddings,
)
from taid.teacher.digests import Key, keys, one_a_row
from taid.teacher.live import LiveTeacher, check_apart, share_memory
from taid.teacher.shards import Mismatch, Shards, Writer, clear
from taid.teacher.stores import FullLogits, HiddenStates, Kept, Store, TopLogits

SHARD = 2**26  # bytes, about, and one batch at least: what a kill can cost
# Losses that want of the tail its mass; others read the teacher's logit of one token in it (docs/table2.md)
EVEN_TAIL = (losses.forward_kl, losses.tvd, losses.jsd, losses.skew_kl, losses.skew_rkl)


class OfflineTeacher:
    """A teacher of which a folder of logits is all there is (docs/offline_teacher.md): no model in memory.

    An example is found by its content, whatever its place, its padding, and what shares the batch. Raises
    ValueError for a folder that is damaged or keeps hidden states, and for a batch with an example that the
    folder does not hold.
    """

    live: LiveTeacher | None = None

    def __init__(self, folder: str | Path):
        self.shards = Shards(Path(folder))
        if self.live is None and isinstance(self.shards.store, HiddenStates):
            raise ValueError(
                f"{folder} keeps hidden states, which need the teacher's head: use cached_teacher"
            )

    @property
    def vocab_size(self) -> int:
        return self.shards.vocab_size

    @property
    def name_or_path(self) -> str | None:
        """Of the model, as of models: its tokenizer, if it is still there, is compared with the student's."""
        return self.shards.index.get("name")

    @torch.no_grad()
    def __call__(self, batch: dict) -> Tensor:
        """Logits [n, V] at the n positions that predict a label, on the batch's device."""
        found = keys(one_a_row(batch))
        unknown = self._unknown(found)
        if unknown:
            raise ValueError(
                f"{unknown} of {len(found)} examples are not in {self.shards.folder}: the examples are not its "
                "own (another data set, other truncation, template or labels?). Compute the logits of this data "
                "set, cached_teacher or write_offline with the trainer's collator, or pass the teacher's model"
            )
        device = batch["labels"].device
        kept = {name: tensor.to(device) for name, tensor in self.shards.rows(found).items()}
        model = self.live.model if self.live else None
        return self.shards.store.decode(model, kept, self.vocab_size).to(device)

    def knows(self, batch: dict) -> bool:
        """Whether the logits of all examples of a batch are there; not of a batch whose examples it cannot tell."""
        try:
            return not self._unknown(keys(one_a_row(batch)))
        except ValueError:
            return False

    def _unknown(self, found: Sequence[Key]) -> int:
        return sum(key.size > 0 and key.digest not in self.shards for key in found)

    def check(self, objective, student=None) -> None:
        """Raises ValueError for an objective (`taid.objectives`) that these logits cannot teach, or not to this
        student."""
        if not objective.uses_teacher:
            return
        if self.live is None and objective.rollouts is not None:
            raise ValueError(
                "this method trains on the student's own samples too, which no folder of logits holds: pass the "
                "teacher's model, or take a method without rollouts"
            )
        kept, loss = self.shards.store, getattr(objective, "loss", None)
        if isinstance(kept, TopLogits) and kept.k < self.vocab_size and loss not in EVEN_TAIL:
            good = ", ".join(loss.__name__ for loss in EVEN_TAIL)
            raise ValueError(
                f"{objective!r} reads the teacher's logits of unlikely tokens, of which top-{kept.k} has the sum alone "
                f"(docs/offline_teacher.md): keep all (k=None), or take one of {good}. To train on the even tail "
                "all the same, pass teacher=lambda batch: offline(batch)"
            )


class CachedTeacher(OfflineTeacher):
    """A model, and its logits on a data set in a folder. The student's own samples go to the model."""

    def __init__(self, live: LiveTeacher, folder: str | Path):
        self.live = live
        super().__init__(folder)

    @property
    def model(self) -> torch.nn.Module | None:
        """The model that gave the logits, as of a LiveTeacher: its positions limit what is sampled."""
        return self.live.model if self.live is not None else None

    def check(self, objective, student=None) -> None:
        """As of logits without a model. Raises ValueError too for a student that shares what is still run of the
        model: all of it for the student's own samples, and the head for hidden states."""
        super().check(objective)
        if student is None or self.model is None:
            return
        if objective.rollouts is not None:
            check_apart(self.model, student)
        if isinstance(self.shards.store, HiddenStates):
            head = output_embeddings(self.model)
            learned = (parameter for parameter in student.parameters() if parameter.requires_grad)
            if head is not None and share_memory(head.parameters(), learned):
                raise ValueError(
                    f"the student trains the head that makes logits of the hidden states in {self.shards.folder}: "
                    "pass copy.deepcopy(model) to cached_teacher, or keep FullLogits()"
                )

    def __call__(self, batch: dict) -> Tensor:
        if self.live is not None and "sampled" in batch:
            return self.live(batch)
        return super().__call__(batch)


def cached_teacher(
    model,
    examples: Sequence[dict],
    collator: Callable,
    folder: str | Path,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    store: Store = FullLogits(),
    remove_unused_columns: bool = True,
) -> CachedTeacher:
    """The cache of `model`'s logits on `examples` in `folder`; what is not there is computed now.

    `examples` and `collator` are what the trainer gets: a data set with a length (list, `datasets.Dataset`,
    torch), and any collator that gives input_ids and labels. Order and number do not matter: a run may train on
    a part of them. `remove_unused_columns` is that of TrainingArguments. `progress` is called with the numbers of
    examples done and in all. The model is in evaluation mode from now on; what of it may be trained still may.

    Files of another model, of another store, or damaged ones are made again, with a warning. A killed run goes
    on after its last whole shard; other processes wait for the one that computes.
    """
    _check(model, examples)
    folder = _made(folder)
    with locked(folder), _trainable_as_found(model):
        live = LiveTeacher(model)
        writer = _renewed(folder, model, store)
        _write(
            writer,
            live,
            store,
            examples,
            _prepared(model, collator, remove_unused_columns),
            batch_size,
            progress,
        )
    return CachedTeacher(live, folder)


def write_offline(
    model,
    examples: Sequence[dict],
    folder: str | Path,
    k: int | None = 64,
    collator: Callable | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
    remove_unused_columns: bool = True,
) -> None:
    """Write the k largest log-probabilities of `model` on `examples` (None: all logits) for `OfflineTeacher`.

    `collator` is the trainer's, ours if None. The rest is as in `cached_teacher`, but that
    a folder of another teacher is refused, and that `model` is left as it was. Raises ValueError for k not in
    1 … V.
    """
    store: Store = FullLogits() if k is None else TopLogits(k)
    _check(model, examples)
    folder = _made(folder)
    with locked(folder), evaluation_mode(model), _trainable_as_found(model):
        writer = Writer(folder, model, store)
        collate = _prepared(model, collator or Collator(0), remove_unused_columns)
        _write(writer, LiveTeacher(model), store, examples, collate, batch_size, progress)


@contextmanager
def _trainable_as_found(model) -> Iterator[None]:
    """What is frozen within, as a LiveTeacher's model, can be trained again: it may be a student's, or one."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _check(model, examples) -> None:
    """Raises ValueError for what is no causal model in memory, and for examples that cannot be counted."""
    if not isinstance(model, torch.nn.Module) or not hasattr(inner(model), "config"):
        raise ValueError(
            f"{model!r:.80} is no model: load the teacher, AutoModelForCausalLM.from_pretrained(…)"
        )
    check_model(model, "teacher")
    if is_classifier(model):
        raise ValueError("the logits of images are not kept on disk here: train with the live teacher")
    if is_encoder_decoder(model):
        raise ValueError("an encoder–decoder's logits are not kept on disk: train with the live teacher")
    if not hasattr(examples, "__len__") or not hasattr(examples, "__getitem__") or hasattr(examples, "keys"):
        raise ValueError(
            f"a {type(examples).__name__} cannot be counted: give one data set with a length, list(…) of a stream, "
            "one split of a dictionary"
        )
    if not len(examples):
        raise ValueError("there are no examples: give one at least")


def _made(folder: str | Path) -> Path:
    """The folder, there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def _renewed(folder: Path, model, store: Store) -> Writer:
    """The writer of a cache, after what is not of this teacher is removed; warns where something is."""
    words = f"the logits in {folder} are damaged, or of another teacher: computing them again"
    try:
        writer = Writer(folder, model, store)
    except Mismatch:
        clear(folder)
        warnings.warn(words, stacklevel=3)
        return Writer(folder, model, store)
    if writer.damaged:
        warnings.warn(words, stacklevel=3)
    return writer


def _write(writer: Writer, live, store, examples, collate, batch_size, progress) -> None:
    """Compute what the folder does not hold, shortest examples first, and finish the index."""
    held, wanted = writer.held(), {}  # example → its length in tokens
    for i in range(len(examples)):
        batch = collate([examples[i]])
        if any(key.size and key.digest not in held for key in keys(batch)):
            wanted[i] = batch["input_ids"].shape[1]
    order, first = sorted(wanted, key=wanted.__getitem__), len(examples) - len(wanted)
    new: list[Key] = []
    parts: list[Kept] = []
    for start in range(0, len(order), batch_size):
        batch = collate([examples[i] for i in order[start : start + batch_size]])
        rows = {key.digest: (row, key) for row, key in enumerate(keys(batch)) if key.size}
        chosen = [place for digest, place in rows.items() if digest not in held]
        if chosen:
            kept, vocab_size = _computed(live, store, _rows(batch, [row for row, _ in chosen]))
            if any(len(tensor) != sum(key.size for _, key in chosen) for tensor in kept.values()):
                raise ValueError("the teacher gives other positions than the labels': train with it live")
            parts.append(kept)
            new += [key for _, key in chosen]
            held.update(key.digest for _, key in chosen)
        last = start + batch_size >= len(order)
        if new and (last or sum(t.nbytes for part in parts for t in part.values()) >= SHARD):
            writer.add(
                new, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, vocab_size
            )
            new, parts = [], []
        if progress:
            progress(first + min(start + batch_size, len(order)), len(examples))
    if not held:
        raise ValueError(
            "no example has a label that a token predicts: a folder of logits needs one at least"
        )
    if any(key.digest not in held for i in order[:1] for key in keys(collate([examples[i]])) if key.size):
        raise ValueError("the collator gives an example another form each time, so that no file can hold it")
    writer.finish()


@torch.no_grad()
def _computed(live: LiveTeacher, store: Store, batch: dict) -> tuple[Kept, int]:
    """What is kept of a batch's positions, on the CPU, and V."""
    hidden, logits, _ = live.states(_with_positions(batch))
    if logits.isnan().any():
        raise ValueError(
            "the teacher's logits are NaN for some examples: look at its weights, or at its precision"
        )
    kept = store.encode(live.model, hidden, logits)
    return {name: tensor.cpu() for name, tensor in kept.items()}, logits.shape[-1]


def _prepared(model, collator: Callable, remove_unused_columns: bool) -> Callable[[list[dict]], dict]:
    """The collator as the trainer calls it, with one example a row."""
    collator = keeping_ends(collator)
    known = {"labels", *inspect.signature(base_model(model).forward).parameters}

    def collate(examples: list[dict]) -> dict:
        if remove_unused_columns and "input_ids" in examples[0]:
            examples = [{name: value for name, value in e.items() if name in known} for e in examples]
        if isinstance(collator, Collator) and not examples[0].keys() & {"input_ids", "prompt_ids"}:
            raise ValueError(
                f"the examples have {', '.join(examples[0])}, but no tokens: make them with "
                "taid.text.examples.examples(dataset, tokenizer, max_length), as the trainer does"
            )
        batch = dict(collator(examples))
        if "labels" not in batch:
            raise ValueError("the batches have no labels: pass the collator that the trainer gets")
        return one_a_row(batch)

    return collate


def _rows(batch: dict, rows: list[int]) -> dict:
    """Some rows of a batch."""
    size = len(batch["input_ids"])
    if rows == list(range(size)):
        return batch
    by_row = {
        name: isinstance(value, Tensor) and value.dim() and len(value) == size
        for name, value in batch.items()
    }
    return {name: value[rows] if by_row[name] else value for name, value in batch.items()}


def _with_positions(batch: dict) -> dict:
    """Padding on the left moves no token's position: an example's logits are those of the example alone."""
    mask = batch.get("attention_mask")
    if "position_ids" in batch or mask is None or bool((mask[:, 0] != 0).all()):
        return batch
    return batch | {"position_ids": ((mask != 0).long().cumsum(1) - 1).clamp(min=0)}
