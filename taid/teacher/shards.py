"""A teacher's logits on disk: a folder of shards in safetensors and an index, docs/offline_teacher.md.

An example is found by its digest (`taid.teacher.digests`), so that neither its place in a data set matters nor
who wrote it down.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from taid.files import write_whole
from taid.teacher.digests import Key, digest_of_file, digest_of_model
from taid.teacher.stores import FullLogits, HiddenStates, Kept, Store, TopLogits, store

INDEX, PARTIAL = "teacher.json", "teacher.partial.json"
FORMAT = {"format": "teacher logits", "version": 1}
NAMES: dict[type, set[str]] = {
    FullLogits: {"logits"},
    HiddenStates: {"hidden"},
    TopLogits: {"tokens", "log_p"},  # and "log_rest", or what the others leave of 1
}
MASS = 0.05  # by which a position's probabilities may miss 1: bf16 keeps 8 bits of log p


class Shards:
    """What a folder holds. Reads every file once to compare digests, at the disk's speed; then maps them.

    Raises ValueError for a folder without index, a shard that is damaged, or one that is not of the format.
    """

    def __init__(self, folder: Path):
        self.folder, self.index = folder, read_index(folder)
        self.store, self.vocab_size = store(self.index["store"]), int(self.index["vocab_size"])
        self._files: list = []
        self._places: dict = {}
        for name, expected in self.index["shards"].items():
            if not is_whole(folder / name, expected):
                raise ValueError(f"{folder / name} is damaged or missing: write it again")
            self._add(folder / name)
        if not self._files:
            raise ValueError(f"{folder} holds no example: write one at least")

    def _add(self, path: Path) -> None:
        check(path, self.store, self.vocab_size)
        file = safe_open(path, "pt")
        ends = np.cumsum(file.get_tensor("lengths").numpy()).tolist()
        for digest, start, end in zip(_digests(file), [0, *ends], ends, strict=False):
            self._places[digest] = len(self._files), start, end
        self._files.append(file)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        """The number of positions."""
        return sum(end - start for _, start, end in self._places.values())

    @property
    def bytes_per_token(self) -> int:
        """Of what is kept of a position, without its example's digest."""
        return sum(kept.shape[1:].numel() * kept.element_size() for kept in self.rows([]).values())

    def rows(self, keys: Sequence[Key]) -> Kept:
        """What is kept of the positions of some examples, one after the other. KeyError for an unknown one."""
        places = [self._places[key.digest] for key in keys if key.size]
        held = [end - start for _, start, end in places]
        if held != [key.size for key in keys if key.size]:
            raise ValueError(
                f"{self.folder} holds {sum(held)} rows for {sum(key.size for key in keys)} labels"
            )
        parts = [
            {name: self._files[file].get_slice(name)[start:end] for name in self._names(file)}
            for file, start, end in places or [(0, 0, 0)]
        ]
        kept = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if isinstance(self.store, TopLogits) and "log_rest" not in kept:
            kept["log_rest"] = (-kept["log_p"].double().exp().sum(-1)).log1p().nan_to_num(-torch.inf).float()
        return kept

    def _names(self, file: int) -> set[str]:
        return set(self._files[file].keys()) - {"digests", "lengths"}


def is_whole(path: Path, digest: str) -> bool:
    """Whether a file is there, and what it was when it was written."""
    return path.is_file() and digest_of_file(path) == digest


def read_index(folder: Path, name: str = INDEX) -> dict:
    """The index of a folder, its keys checked. Raises ValueError in words."""
    if not (folder / name).is_file():
        unfinished = " (a writer has not finished: run it again)" if (folder / PARTIAL).exists() else ""
        raise ValueError(f"{folder} has no {name}, so it holds no teacher's logits{unfinished}")
    try:
        index = json.loads((folder / name).read_text())
        missing = {"format", "version", "store", "vocab_size", "shards"} - index.keys()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / name} is damaged: write it again") from error
    kinds = {"store": str, "vocab_size": int, "shards": dict}
    wrong = missing or not all(isinstance(index[key], kind) for key, kind in kinds.items())
    if wrong or {key: index[key] for key in FORMAT} != FORMAT:
        raise ValueError(f"{folder / name} is not of {FORMAT} with store, vocab_size and shards")
    return index


def check(path: Path, store: Store, vocab_size: int) -> None:
    """That a shard is of the format. Raises ValueError, naming the file and what is wrong."""
    try:
        with safe_open(path, "pt") as file:
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no file of safetensors: {error}") from error
    wrong = _fault(kept, store, vocab_size)
    if wrong:
        raise ValueError(f"{path} {wrong}; see docs/offline_teacher.md")


def _fault(kept: Kept, store: Store, vocab_size: int) -> str | None:
    """What is wrong with the tensors of a shard, if anything is."""
    missing = (NAMES[type(store)] | {"digests", "lengths"}) - kept.keys()
    if missing:
        return f"lacks {', '.join(sorted(missing))}"
    digests, lengths = kept.pop("digests"), kept.pop("lengths")
    if digests.dtype != torch.uint8 or digests.shape != (len(lengths), 32):
        return f"has digests {list(digests.shape)} of {digests.dtype}, not [{len(lengths)}, 32] of uint8"
    count = int(lengths.sum())
    if any(len(tensor) != count for tensor in kept.values()):
        sizes = {name: len(tensor) for name, tensor in kept.items()}
        return f"has {count} positions by lengths, but {sizes}"
    width = {FullLogits: ("logits", vocab_size), TopLogits: ("tokens", getattr(store, "k", 0))}.get(
        type(store)
    )
    if width and kept[width[0]].shape != (count, width[1]):
        return f"has {width[0]} {list(kept[width[0]].shape)}, not [{count}, {width[1]}]"
    return _fault_of_top(kept, store.k, vocab_size) if isinstance(store, TopLogits) else None


def _fault_of_top(kept: Kept, k: int, vocab_size: int) -> str | None:
    """What is wrong with the tokens or probabilities of positions, if anything is."""
    tokens, log_p = kept["tokens"].long(), kept["log_p"].double()
    if log_p.shape != tokens.shape:
        return f"has log_p {list(log_p.shape)} for tokens {list(tokens.shape)}"
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= vocab_size):
        return f"has tokens from {tokens.min()} to {tokens.max()}, of a vocabulary of {vocab_size}"
    if (tokens.sort(-1).values.diff(dim=-1) == 0).any():
        return "names a token twice at one position"
    mass = log_p.exp().sum(-1)
    whole = mass + kept["log_rest"].double().exp() if "log_rest" in kept else mass.clamp(min=1 - MASS / 2)
    if not ((whole - 1).abs() < MASS).all():
        return "has positions whose probabilities do not add up to 1: log_p is over the whole vocabulary, at temperature 1"
    if "log_rest" not in kept and k < vocab_size and len(mass) and (mass > 1 - 1e-6).all():
        return f"has {k} probabilities that are all there is at every position: do not normalise over the top alone"
    return None


def _digests(file) -> list[bytes]:
    return [bytes(row) for row in file.get_tensor("digests").numpy()]


class Mismatch(ValueError):
    """A folder that holds something else than what is to be written to it."""


class Writer:
    """Shards added to a folder one by one, and an index that is there when all are.

    A killed writer's shards are found by the next one, checked, and kept.
    Raises Mismatch for a folder of another teacher, another store, or a damaged index; ValueError for one that
    another tool has written.
    """

    def __init__(self, folder: Path, model, store: Store):
        self.folder = folder
        about = {"model": digest_of_model(model), "name": getattr(model, "name_or_path", None)}
        shards: dict[str, str] = {}  # file → its digest
        self.index: dict[str, Any] = FORMAT | {"store": store.name, "vocab_size": None} | about
        self.index["shards"] = shards
        self.damaged: list[str] = []
        found = next((name for name in (PARTIAL, INDEX) if (folder / name).exists()), None)
        if found is None:
            return
        try:
            index = read_index(folder, found)
        except ValueError as error:
            raise Mismatch(str(error)) from error
        if "model" not in index:
            raise ValueError(
                f"{folder} was written by another tool: read it with OfflineTeacher, or take another"
            )
        if (index["store"], index["model"]) != (store.name, about["model"]):
            raise Mismatch(
                f"{folder} holds {index['store']} logits of another teacher, say: take another folder"
            )
        self.index["vocab_size"] = index["vocab_size"]
        whole = {name: is_whole(folder / name, digest) for name, digest in index["shards"].items()}
        self.index["shards"] = {name: index["shards"][name] for name in whole if whole[name]}
        self.damaged = [name for name in whole if not whole[name]]

    def held(self) -> set[bytes]:
        """The digests of the examples that are there."""
        found: set[bytes] = set()
        for name in self.index["shards"]:
            with safe_open(self.folder / name, "pt") as file:
                found.update(_digests(file))
        return found

    def add(self, keys: Sequence[Key], kept: Kept, vocab_size: int) -> None:
        """Write a shard of the positions of some examples."""
        if self.index["vocab_size"] not in (None, vocab_size):
            raise ValueError(
                f"the teacher has {vocab_size} logits here and {self.index['vocab_size']} elsewhere"
            )
        number = max((int(name[6:11]) for name in self.index["shards"]), default=-1) + 1
        path = self.folder / f"shard-{number:05d}.safetensors"
        digests = np.frombuffer(b"".join(key.digest for key in keys), np.uint8).reshape(-1, 32)
        about = {
            "digests": torch.from_numpy(digests.copy()),
            "lengths": torch.tensor([key.size for key in keys]),
        }
        save_file(about | {name: tensor.contiguous() for name, tensor in kept.items()}, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)
        self.index["vocab_size"] = vocab_size
        self.index["shards"][path.name] = digest_of_file(path)
        write_whole(self.folder / PARTIAL, json.dumps(self.index, indent=1))

    def finish(self) -> None:
        """Put the index in its place."""
        text = json.dumps(self.index, indent=1)
        if not (self.folder / INDEX).exists() or (self.folder / INDEX).read_text() != text:
            write_whole(self.folder / INDEX, text)
        (self.folder / PARTIAL).unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what writers have left in a folder."""
    for path in (folder / INDEX, folder / PARTIAL, *folder.glob("shard-*.safetensors*")):
        path.unlink(missing_ok=True)
