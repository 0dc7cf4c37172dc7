"""A teacher's logits on a data set, computed once and kept on disk."""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taid.data import IGNORE
from taid.files import locked, write_whole
from taid.logits import output_embeddings
from taid.teacher.live import LiveTeacher


@dataclass(frozen=True)
class FullLogits:
    """All V logits in fp16, 2 V bytes a position: off by at most 0.004 near 10, less than any loss sees."""

    def row(self, live: LiveTeacher) -> np.dtype:
        """The type of what is kept of one position."""
        return np.dtype((np.float16, _vocab_size(live)))

    def encode(self, live: LiveTeacher, batch: dict) -> np.ndarray:
        """What is kept of a batch's n positions, [n] rows."""
        return live(batch).to(torch.float16).cpu().numpy()

    def decode(self, live: LiveTeacher, rows: np.ndarray) -> Tensor:
        """Logits [n, V] in fp32, or in the teacher's own type where that is exact."""
        return torch.from_numpy(rows).float()


@dataclass(frozen=True)
class HiddenStates:
    """What the teacher's head makes its logits of, in the teacher's own type: exact, H numbers a position.

    A batch costs one product with the head. Raises ValueError for a teacher that does something else to its
    logits (a soft-cap, a scale).
    """

    def row(self, live: LiveTeacher) -> np.dtype:
        weight = output_embeddings(live.model).weight
        return np.dtype((_as_numpy(weight[:0]).dtype, weight.shape[1]))

    @torch.no_grad()
    def encode(self, live: LiveTeacher, batch: dict) -> np.ndarray:
        hidden, logits, _ = live.states(batch)
        again = None if hidden is None else output_embeddings(live.model)(hidden[:4]).to(logits)
        if again is None or not torch.allclose(again, logits[:4], rtol=0.02, atol=0.02):
            name = type(live.model).__name__
            raise ValueError(f"{name} does more to its logits than its head does: keep FullLogits() of it")
        return _as_numpy(hidden)

    @torch.no_grad()
    def decode(self, live: LiveTeacher, rows: np.ndarray) -> Tensor:
        head, hidden = output_embeddings(live.model), torch.from_numpy(rows)
        hidden = hidden.view(torch.bfloat16) if head.weight.dtype == torch.bfloat16 else hidden
        return head(hidden.to(head.weight.device))


@dataclass(frozen=True)
class TopLogits:
    """The log-probabilities of the k likeliest tokens in fp16, and of all others together: 6 k + 4 bytes a
    position.

    The others get equal shares of their probability. Of a KL, the head is then right but for rounding, and
    the tail's share too, but not who holds it: see `taid.evaluation.compression`. ValueError for k ≥ V.
    """

    k: int

    def row(self, live: LiveTeacher) -> np.dtype:
        if not 0 < self.k < _vocab_size(live):
            size = _vocab_size(live)
            raise ValueError(f"top {self.k} of {size} entries: keep fewer than there are, at least 1")
        return self._row()

    def encode(self, live: LiveTeacher, batch: dict) -> np.ndarray:
        return self.compress(live(batch))

    def decode(self, live: LiveTeacher, rows: np.ndarray) -> Tensor:
        return self.expand(rows, _vocab_size(live))

    def compress(self, logits: Tensor) -> np.ndarray:
        """Rows [n] of logits [n, V]."""
        log_p = logits.float().log_softmax(-1)
        top = log_p.topk(self.k)
        rows = np.empty(len(log_p), self._row())
        rows["token"], rows["log_p"] = top.indices.cpu(), top.values.cpu()
        rows["log_rest"] = log_p.scatter(-1, top.indices, -math.inf).logsumexp(-1).cpu()
        return rows

    def expand(self, rows: np.ndarray, vocab_size: int) -> Tensor:
        """Logits [n, V] of rows [n]: log-probabilities, but for rounding."""
        tokens, log_p, log_rest = (torch.from_numpy(rows[name].copy()) for name in rows.dtype.names)
        share = log_rest[:, None] - math.log(vocab_size - self.k)  # [n, 1]
        return share.repeat(1, vocab_size).scatter_(-1, tokens.long(), log_p.float())

    def _row(self) -> np.dtype:
        kept = [("token", np.int32, self.k), ("log_p", np.float16, self.k)]
        return np.dtype([*kept, ("log_rest", np.float32)])


Store = FullLogits | HiddenStates | TopLogits


class CachedTeacher:
    """The logits of a data set's examples, computed once and kept, as `store` has it, in one mapped file.

    Batches name their examples by "index" [B]. A batch without it (the student's samples) goes to the live
    teacher.
    """

    def __init__(self, live: LiveTeacher, store: Store, rows: np.ndarray, offsets: np.ndarray):
        self.live, self.store, self.rows, self.offsets = live, store, rows, offsets

    def __call__(self, batch: dict) -> Tensor:
        if "index" not in batch:
            return self.live(batch)
        positions = _positions(self.offsets, batch["index"].tolist())
        labels = int((batch["labels"][:, 1:] != IGNORE).sum())
        if len(positions) != labels:
            raise ValueError(
                f"the cache holds {len(positions)} positions for a batch of {labels} labels: the examples are"
                " not its own. Make a cache for this data set, or leave out 'index' for a live teacher."
            )
        return self.store.decode(self.live, self.rows[positions]).to(batch["labels"].device)


def cached_teacher(
    model,
    examples: Sequence[dict],
    collator: Callable,
    folder: Path,
    batch_size: int = 64,
    progress=None,
    store: Store = FullLogits(),
) -> CachedTeacher:
    """The cache of `model`'s logits on `examples` in `folder`, computed now unless a whole one is there.

    The key is a digest of the weights and of the examples, with one of the file. A cache that does not match
    is made again, with a warning. A killed run goes on after its last whole batch; other processes wait for
    the one that computes. `progress` is called with the numbers of examples done and in all.

    Raises ValueError for examples whose "index" is not their position: they would find each other's logits.
    """
    if [e["index"] for e in examples] != list(range(len(examples))):
        raise ValueError("the 'index' of an example must be its position: number a subset or new order anew")
    folder, live = Path(folder), LiveTeacher(model)
    key = {"weights": _digest_of_weights(model), "examples": _digest_of_examples(examples)}
    if store != FullLogits():
        key["store"] = str(store)
    offsets = np.cumsum([0] + [len(e["response_ids"]) for e in examples])
    path, meta = folder / "logits.npy", folder / "meta.json"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not _is_whole(path, meta, key):
            partial, record = folder / "logits.partial", folder / "blocks.txt"
            blocks = _blocks(examples, batch_size)
            _compute(live, store, examples, collator, blocks, offsets, partial, record, key, progress)
            write_whole(meta, json.dumps(key | {"sha256": _digest_of_file(partial)}))
            os.replace(partial, path)  # a kill before this loses nothing: the record is still there
            record.unlink()
    return CachedTeacher(live, store, np.load(path, mmap_mode="r"), offsets)


def _is_whole(path: Path, meta: Path, key: dict) -> bool:
    """Whether the file is what its key says; warns where one is there, but is not."""
    if not (meta.exists() and path.exists()):
        return False
    if meta.read_bytes() == json.dumps(key | {"sha256": _digest_of_file(path)}).encode():
        return True
    warnings.warn(
        f"the logits in {path.parent} are damaged, or of another teacher or data set: computing them again",
        stacklevel=3,
    )
    return False


def _blocks(examples: Sequence[dict], size: int) -> list[list[int]]:
    """The examples in batches of like length."""
    lengths = [len(e["prompt_ids"]) + len(e["response_ids"]) for e in examples]
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def _positions(offsets: np.ndarray, examples: Sequence[int]) -> np.ndarray:
    """The rows of some examples, in their order."""
    return np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in examples])


def _compute(live, store, examples, collator, blocks, offsets, partial, record, key, progress) -> None:
    """Fill `partial` block by block. `record` says, a line a block, which are whole, and their digests."""
    row, header = store.row(live), json.dumps(key | {"blocks": [len(block) for block in blocks]})
    found = record.read_text().splitlines() if record.exists() and partial.exists() else []
    known = dict(line.split(" ", 1) for line in found[1:] if " " in line) if found[:1] == [header] else None
    mode, shape = "w+" if known is None else "r+", (int(offsets[-1]), *row.shape)
    rows = np.lib.format.open_memmap(partial, mode, row.base, shape)
    with open(record, "w" if known is None else "a") as log:
        log.write(f"{header}\n" if known is None else "\n")  # a torn line ends here
        for number, block in enumerate(blocks):
            where = _positions(offsets, block)
            if (known or {}).get(str(number)) == _digest_of_rows(rows[where]):
                continue
            rows[where] = store.encode(live, collator([examples[i] for i in block]))
            rows.flush()
            log.write(f"{number} {_digest_of_rows(rows[where])}\n")
            log.flush()
            if progress:
                progress(sum(map(len, blocks[: number + 1])), len(examples))


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """On the CPU; bfloat16, which numpy does not know, as the integers of its bits."""
    tensor = tensor.detach().cpu()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _vocab_size(live: LiveTeacher) -> int:
    return live.model.config.get_text_config().vocab_size


def _digest_of_rows(rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows)).hexdigest()


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
