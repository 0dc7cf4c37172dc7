"""What a teacher's logits depend on, as digests: the examples of a batch, the model, and files of them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from taid.data import IGNORE

LAYOUT = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}  # of padding-free rows
KNOWN = {"input_ids", "labels", "shift_labels", "attention_mask", "position_ids", "index", "sampled"} | LAYOUT


class Key(NamedTuple):
    """An example by its content, and the number of its positions that predict a label."""

    digest: bytes  # [32]
    size: int


def digest(tokens: np.ndarray, positions: np.ndarray, **others: np.ndarray) -> bytes:
    """The name of an example [32 bytes]: SHA-256 of the number of its tokens, of the tokens, and of the
    positions (from 0) after which a label is predicted, all of them 64-bit integers, little-endian.

    `others` are what else the model reads, by name; an example of text alone has none. The format of files
    (docs/offline_teacher.md) rests on this.
    """
    total = hashlib.sha256(np.array([len(tokens)], "<i8").tobytes())
    for values in (tokens, positions):
        total.update(np.ascontiguousarray(values, "<i8").tobytes())
    for name, values in sorted(others.items()):
        total.update(f"{name} {values.dtype.str} {values.shape}".encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.digest()


def keys(batch: dict) -> list[Key]:
    """The key of each row of a batch that has one example a row, wherever its padding is.

    An example is its real tokens, which of them predict a label, and whatever else the batch has for the model:
    positions that do not simply count the tokens, other inputs (images). Raises ValueError, naming the input,
    where it cannot be told which rows an input belongs to.
    """
    if "input_ids" not in batch:
        raise ValueError("a batch without input_ids names no example: train with the live teacher")
    ids, labels = batch["input_ids"], batch["labels"]
    if ids.shape != labels.shape:
        raise ValueError(
            f"labels {list(labels.shape)} do not stand below input_ids {list(ids.shape)}, as those of a causal "
            "model do: train with the live teacher"
        )
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape != ids.shape:
        raise ValueError(
            f"an attention mask {list(mask.shape)} is not one of rows {list(ids.shape)}, so that no example can "
            "be told from another: train with the live teacher"
        )
    ids, labels, mask = (tensor.cpu().numpy() for tensor in (ids, labels, mask))
    real = mask != 0  # [B, L]
    predicts = np.zeros_like(real)
    predicts[:, :-1] = labels[:, 1:] != IGNORE
    if "shift_labels" in batch:
        predicts = batch["shift_labels"].cpu().numpy() != IGNORE
    if (predicts & ~real).any():
        raise ValueError(
            "a label follows a padding token, which predicts nothing: pad on the right, or label no first token"
        )
    positions, others = _positions(batch, real), dict(_others(batch))
    found = []
    for row, (tokens, here, chosen) in enumerate(zip(ids, real, predicts, strict=True)):
        of_tokens = {"position_ids": positions[row][here] - np.arange(here.sum())}
        of_tokens["attention_mask"] = mask[row][here].astype(np.int64) - 1
        of_tokens |= {name: value[row][here] for name, (value, by_token) in others.items() if by_token}
        more = {
            name: value for name, value in of_tokens.items() if value.any()
        }  # zeros are what models assume
        more |= {name: value[row] for name, (value, by_token) in others.items() if not by_token}
        found.append(Key(digest(tokens[here], np.flatnonzero(chosen[here]), **more), int(chosen.sum())))
    return found


def _positions(batch: dict, real: np.ndarray) -> np.ndarray:
    """Positions as the batch has them; else columns, counted from a row's first real token. [B, L]"""
    if "position_ids" not in batch:
        return np.arange(real.shape[1]) - real.argmax(1)[:, None]
    positions = batch["position_ids"].cpu().numpy()
    if positions.ndim != 2 or positions.shape[1] != real.shape[1]:
        raise ValueError(
            f"position_ids {list(positions.shape)} are not one a token: train with the live teacher"
        )
    return np.broadcast_to(positions, real.shape)


def _others(batch: dict) -> Iterator[tuple[str, tuple[Any, bool]]]:
    """(name, (value [B, …], whether it is one of tokens [B, L, …])) of all that `digest` calls others."""
    size = batch["input_ids"].shape
    for name, value in batch.items():
        if name in KNOWN:
            continue
        if not isinstance(value, Tensor):
            listed = isinstance(value, list | tuple) and len(value) == size[0]
            rows = [value[i : i + 1] if listed else value for i in range(size[0])]  # as in a batch of its own
            yield name, ([np.frombuffer(_said(row), np.uint8) for row in rows], False)
            continue
        by_row = value.dim() > 0 and len(value) == size[0]
        if not by_row and size[0] > 1:
            raise ValueError(
                f"{name} {list(value.shape)} cannot be divided among {size[0]} rows, so that no example can be "
                "told from another: train with the live teacher, or with one row a batch"
            )
        value = value.detach().cpu().contiguous()
        value = value if by_row else value[None]
        value = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
        yield name, (value.numpy(), value.shape[:2] == size)


def _said(value) -> bytes:
    """All of a value: the `repr` of a tensor or array leaves out the middle of a large one."""
    if isinstance(value, Tensor):
        return b"".join(_bytes(value, "what lies beside the tokens"))
    if isinstance(value, np.ndarray):  # of objects, too, whose bytes are addresses
        return _said([str(value.dtype), value.shape, value.tolist()])
    if isinstance(value, list | tuple):
        return b"[" + b", ".join(map(_said, value)) + b"]"
    if isinstance(value, dict):
        return b"{" + b", ".join(_said(name) + b": " + _said(each) for name, each in value.items()) + b"}"
    return repr(value).encode()


def one_a_row(batch: dict) -> dict:
    """The batch with one example a row, padded on the right, where a collator has laid several end to end.

    They lie so where nothing is padded and positions begin anew, or "cu_seq_lens_q" says where they begin
    (DataCollatorWithFlattening). Attention is then within an example, as flash attention has it.
    """
    if "input_ids" not in batch:
        return batch
    starts = _starts(batch)
    if len(starts) == len(batch["input_ids"]):
        return batch
    unknown = batch.keys() - KNOWN
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: whose of the examples in a row? Train with the live teacher"
        )
    if (batch["labels"].flatten()[starts[1:]] != IGNORE).any():
        raise ValueError(
            f"the first token of an example in a row has a label, not {IGNORE}: let the collator mask it"
        )
    fill = {"input_ids": 0, "labels": IGNORE, "position_ids": 0, "attention_mask": 0}
    flat = {name: batch[name].flatten() for name in fill if name in batch}
    flat["attention_mask"] = torch.ones_like(flat["input_ids"])
    pieces = {name: values.tensor_split(starts[1:].cpu()) for name, values in flat.items()}
    return {
        name: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill[name])
        for name, parts in pieces.items()
    }


def _starts(batch: dict) -> Tensor:
    """Where examples begin in the rows of a batch, laid end to end."""
    ids = batch["input_ids"]
    begins = torch.zeros_like(ids, dtype=torch.bool)
    begins[:, 0] = True
    if "cu_seq_lens_q" in batch and len(ids) == 1:
        begins[0, batch["cu_seq_lens_q"][:-1].long()] = True
    elif "attention_mask" not in batch and batch.get("position_ids", ids[:0]).shape == ids.shape:
        begins[:, 1:] = batch["position_ids"].diff(dim=1) != 1
    return begins.flatten().nonzero()[:, 0]


def digest_of_model(model) -> str:
    """Of a model's weights, packed ones too, with its class, configuration and adapters.

    Raises ValueError for weights that are not in memory.
    """
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    adapters = {name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()}
    about = [type(model).__name__, config, adapters]
    total = hashlib.sha256(json.dumps(about, sort_keys=True, default=_in_order).encode())
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode())
        for part in _bytes(value, name):
            total.update(part)
    return total.hexdigest()


def _in_order(value):
    """A set, whose order is another in each process, sorted; anything else by its name."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _bytes(value, name: str) -> Iterator[bytes]:
    """What a state has under a name: a tensor of any kind, tensors packed together, or a plain value."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _bytes(part, name)
    elif not isinstance(value, Tensor):
        yield repr(value).encode()
    elif value.is_meta:
        raise ValueError(
            f"{name} is not in memory (offloaded?), so that the teacher has no digest: load it whole"
        )
    elif value.is_quantized:
        yield from _bytes(value.dequantize(), name)
    elif hasattr(value, "__tensor_flatten__"):  # a subclass of packed tensors
        names, about = value.__tensor_flatten__()
        yield repr(about).encode()
        yield from _bytes([getattr(value, inner) for inner in names], name)
    else:
        yield f"{value.dtype} {list(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
