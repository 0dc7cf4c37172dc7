"""Where a teacher's logits come from: a live model, or a cache on disk for every run that sees the example.

A teacher is called with a batch and returns logits [n, V] at the n positions that predict an unmasked label,
row by row, as `response_logits` orders them.
"""

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taid.data import IGNORE, write_whole

NOT_FOR_THE_MODEL = ("labels", "index")


def response_logits(model, batch: dict) -> tuple[Tensor, Tensor]:
    """(logits [n, V], labels [n]) of the n unmasked labels of a causal language model's batch.

    Position i predicts the label at i + 1, so a label in column 0 counts as masked. Logits before the first
    label of the batch are never computed where the model takes `logits_to_keep`; with `taid.data.Collator`
    that leaves little but responses.
    """
    labels = batch["labels"][:, 1:]  # [B, L - 1]
    mask = labels != IGNORE
    columns = mask.any(0).nonzero()
    first = int(columns[0]) if len(columns) else labels.shape[1] - 1
    inputs = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}
    keep = labels.shape[1] + 1 - first
    if _takes_logits_to_keep(model):
        inputs["logits_to_keep"] = keep
    logits = model(**inputs, use_cache=False).logits[:, -keep:-1]  # [B, L - 1 - first, V]
    mask = mask[:, first:]
    return logits[mask], labels[:, first:][mask]


def _takes_logits_to_keep(model) -> bool:
    inner = getattr(model, "module", model)  # inside DistributedDataParallel
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


class LiveTeacher:
    """A model in evaluation mode, run anew for every batch."""

    def __init__(self, model):
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: dict) -> Tensor:
        device = next(self.model.parameters()).device
        logits, _ = response_logits(self.model, {name: value.to(device) for name, value in batch.items()})
        return logits.to(batch["labels"].device)


class CachedTeacher:
    """Logits of a data set's examples, computed once, kept in fp16 in one memory-mapped file.

    Batches name their examples by "index" [B]. A batch without it (the student's samples) goes to the live
    teacher. fp16 rounds a logit near 10 by at most 0.004, far below what a loss in nats can see.
    """

    def __init__(self, live: LiveTeacher, logits: np.ndarray, offsets: np.ndarray):
        self.live, self.logits, self.offsets = live, logits, offsets

    def __call__(self, batch: dict) -> Tensor:
        if "index" not in batch:
            return self.live(batch)
        index = batch["index"].cpu().numpy()
        rows = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in index])
        labels = int((batch["labels"][:, 1:] != IGNORE).sum())
        if len(rows) != labels:
            raise ValueError(
                f"the cache holds {len(rows)} positions for a batch of {labels} labels: the examples are not "
                "those of the cache. Make one for this data set, or leave out 'index' for a live teacher."
            )
        return torch.from_numpy(self.logits[rows]).float().to(batch["labels"].device)


def cached_teacher(
    model, examples: Sequence[dict], collator: Callable, folder: Path, batch_size: int = 64, progress=None
) -> CachedTeacher:
    """The cache of `model`'s logits on `examples` in `folder`, computed now unless a whole one is there.

    The key is a digest of the weights and of the examples, with one of the file. A cache that does not match
    is rebuilt with a warning. Both files are written whole, the key last.

    Raises ValueError for examples whose "index" is not their position: they would find each other's logits.
    """
    if [e["index"] for e in examples] != list(range(len(examples))):
        raise ValueError("the 'index' of an example must be its position: number a subset or new order anew")
    folder = Path(folder)
    key = {"weights": _digest_of_weights(model), "examples": _digest_of_examples(examples)}
    offsets = np.cumsum([0] + [len(e["response_ids"]) for e in examples])
    path, meta = folder / "logits.npy", folder / "meta.json"
    live = LiveTeacher(model)
    if meta.exists() and path.exists():
        if meta.read_bytes() == json.dumps(key | {"sha256": _digest_of_file(path)}).encode():
            return CachedTeacher(live, np.load(path, mmap_mode="r"), offsets)
        warnings.warn(
            f"the logits in {folder} are damaged, or of another teacher or data set: computing them again",
            stacklevel=2,
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"logits.{os.getpid()}.partial"
    cache = np.lib.format.open_memmap(partial, "w+", np.float16, (int(offsets[-1]), model.config.vocab_size))
    lengths = [len(e["prompt_ids"]) + len(e["response_ids"]) for e in examples]
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        logits = live(collator([examples[i] for i in chosen])).to(torch.float16).cpu().numpy()
        at = np.cumsum([0] + [len(examples[i]["response_ids"]) for i in chosen])
        for i, begin, end in zip(chosen, at[:-1], at[1:], strict=True):
            cache[offsets[i] : offsets[i + 1]] = logits[begin:end]
        if progress:
            progress(start + len(chosen), len(order))
    cache.flush()
    del cache
    os.replace(partial, path)
    write_whole(meta, json.dumps(key | {"sha256": _digest_of_file(path)}))
    return CachedTeacher(live, np.load(path, mmap_mode="r"), offsets)


def _digest_of_weights(model) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _digest_of_examples(examples: Sequence[dict]) -> str:
    tokens = [[e["prompt_ids"], e["response_ids"]] for e in examples]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
