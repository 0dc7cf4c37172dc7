"""Sequences sampled from the student: GKD's mixture and DistiLLM's adaptive replay.

Rollouts replace the responses of a training batch by the student's own, sampled at temperature 1 with the
end-of-sequence token kept. (The official code samples greedily, masks the end, and in its "mixed" path trains
on a draw from the replay buffer instead of the fresh sample.)
"""

import random
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig

from taid.data import IGNORE, join, pad_left, pad_right


def prompts_of(batch: dict) -> list[list[int]]:
    """The real tokens before each row's first label. Raises ValueError for a row without label or prompt."""
    labelled = batch["labels"] != IGNORE
    first = torch.where(labelled.any(1), labelled.int().argmax(1), 0).tolist()
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    rows = zip(batch["input_ids"], real, first, strict=True)
    prompts = [ids[:n][mask[:n]].tolist() for ids, mask, n in rows]
    if not all(prompts):
        raise ValueError(
            f"rollouts need a prompt (labels {IGNORE}) before a response (labelled) in each row, and one row "
            "has none: drop it, or let the collator mask its prompt"
        )
    return prompts


def to_batch(prompts: list[list[int]], responses: list[list[int]], pad_token_id: int, device) -> dict:
    """A training batch from prompts and responses, as `taid.data.Collator` lays them out; "sampled" [B] says
    that no data set holds its rows."""
    ones_left = pad_left([[1] * len(p) for p in prompts], 0)
    ones_right = pad_right([[1] * len(r) for r in responses], 0)
    batch = join(pad_left(prompts, pad_token_id), ones_left, pad_right(responses, pad_token_id), ones_right)
    batch["sampled"] = torch.ones(len(prompts), dtype=torch.bool)
    return {name: tensor.to(device) for name, tensor in batch.items()}


@contextmanager
def plain_generation(model) -> Iterator[None]:
    """Without the model's own generation defaults, which may bend the distribution: a repetition penalty, say."""
    own_config, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own_config


@torch.no_grad()
def sample_responses(
    model, prompts: list[list[int]], max_new_tokens: int, seed: int, vocab_size: int | None = None
) -> list[list[int]]:
    """One response per prompt at temperature 1, end-of-sequence token included where the model wrote one.

    Of the vocabulary only the first `vocab_size` entries are drawn (all: None). The draw depends on `seed` alone, not on the global generator, so that a resumed run repeats it.
    Raises ValueError if the model has no end-of-sequence or padding token.
    """
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    if end is None or pad is None:
        raise ValueError(
            "sampling needs model.config.eos_token_id and pad_token_id: set both from the tokenizer, to "
            "different tokens"
        )
    device = next(model.parameters()).device
    ids = pad_left(prompts, pad).to(device)
    mask = pad_left([[1] * len(p) for p in prompts], 0).to(device)
    was_training = model.training
    model.eval()
    with plain_generation(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        sequences = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=end,
            pad_token_id=pad,
            use_cache=True,
            suppress_tokens=_beyond(vocab_size, model),
        )
    model.train(was_training)
    ends = {end} if isinstance(end, int) else set(end)
    return [_up_to_end(row, ends) for row in sequences[:, ids.shape[1] :].tolist()]


def _beyond(vocab_size: int | None, model) -> list[int] | None:
    """The entries that must not be sampled, None for none."""
    entries = model.config.get_text_config().vocab_size
    return list(range(vocab_size, entries)) if vocab_size is not None and vocab_size < entries else None


def _up_to_end(tokens: list[int], ends: set[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens


class Rollouts(Protocol):
    """How a method mixes the student's own sequences into training."""

    def __call__(self, model, batch: dict, progress: float, seed: int, vocab_size: int | None = None) -> dict:
        """The batch to train on: the given one, or one with sampled responses (then with "sampled"), of the
        first `vocab_size` entries of the vocabulary."""

    def on_train_begin(self, validations: int) -> None:
        """Called before a run that has so many validations before its last step: the place to warn."""

    def on_validation(self, loss: float) -> None:
        """Told the validation loss [nats/token] whenever it is measured."""

    def logs(self) -> dict[str, float]: ...
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load_tensors(self, tensors: dict[str, Tensor]) -> None: ...


class GKDRollouts:
    """GKD (Agarwal et al. 2024): with `probability`, train on responses freshly sampled from the student."""

    def __init__(self, max_new_tokens: int, probability: float = 0.5):
        self.max_new_tokens, self.probability = max_new_tokens, probability
        self.sampled = self.batches = 0

    def __call__(self, model, batch, progress, seed, vocab_size=None):
        self.batches += 1
        if random.Random(seed).random() >= self.probability:
            return batch
        self.sampled += 1
        prompts = prompts_of(batch)
        responses = sample_responses(model, prompts, self.max_new_tokens, seed, vocab_size)
        return to_batch(prompts, responses, model.config.pad_token_id, batch["input_ids"].device)

    def on_train_begin(self, validations):
        """It needs none."""

    def on_validation(self, loss):
        """GKD's mixture is fixed."""

    def logs(self):
        return {"rollout_share": self.sampled / max(self.batches, 1)}

    def state_dict(self):
        return {"sampled": self.sampled, "batches": self.batches}

    def load_state_dict(self, state):
        self.sampled, self.batches = state["sampled"], state["batches"]

    def tensors(self):
        return {}

    def load_tensors(self, tensors):
        """Nothing is buffered."""


class DistiLLMRollouts:
    """DistiLLM (Ko et al. 2024): an adaptive share of student sequences, most of them replayed from a buffer.

    The threshold φ starts at 0 and rises by 0.1, up to 1, whenever the validation loss has not fallen since
    the last measurement. A batch uses student sequences with probability φ: fresh ones with probability
    φ (1 − progress), or as long as the buffer is not full, else a draw from the buffer, which keeps the last
    `capacity` sequences.
    """

    def __init__(
        self, max_new_tokens: int, capacity: int = 1000, threshold: float = 0.0, increment: float = 0.1
    ) -> None:
        self.max_new_tokens, self.capacity, self.increment = max_new_tokens, capacity, increment
        self.threshold, self.previous_loss = threshold, float("inf")
        self.buffer: deque[tuple[list[int], list[int]]] = deque(maxlen=capacity)
        self.sampled = self.replayed = self.batches = 0

    def __call__(self, model, batch, progress, seed, vocab_size=None):
        self.batches += 1
        rng = random.Random(seed)
        u = rng.random()
        if u >= self.threshold:
            return batch
        if u < self.threshold * (1 - progress) or len(self.buffer) < self.capacity:
            self.sampled += 1
            prompts = prompts_of(batch)
            responses = sample_responses(model, prompts, self.max_new_tokens, seed, vocab_size)
            self.buffer.extend(zip(prompts, responses, strict=True))
        else:
            self.replayed += 1
            drawn = rng.sample(list(self.buffer), min(len(batch["input_ids"]), len(self.buffer)))
            prompts, responses = map(list, zip(*drawn, strict=True))
        return to_batch(prompts, responses, model.config.pad_token_id, batch["input_ids"].device)

    def on_train_begin(self, validations):
        if validations < 2 and self.threshold == 0:
            warnings.warn(
                "DistiLLM will sample nothing: its threshold starts at 0 and rises when the validation loss does not "
                f"fall from one validation to the next, and this run has {validations} before its last step. Pass "
                "eval_dataset=… and eval_strategy='steps' with smaller eval_steps, or a threshold above 0, "
                "objective('distillm', threshold=0.5)",
                stacklevel=2,
            )

    def on_validation(self, loss):
        if loss >= self.previous_loss:
            self.threshold = min(1.0, self.threshold + self.increment)
        self.previous_loss = loss

    def logs(self):
        batches = max(self.batches, 1)
        return {
            "rollout_threshold": self.threshold,
            "rollout_share": self.sampled / batches,
            "replay_share": self.replayed / batches,
        }

    def state_dict(self):
        counts = {"sampled": self.sampled, "replayed": self.replayed, "batches": self.batches}
        previous = None if self.previous_loss == float("inf") else self.previous_loss  # JSON has no infinity
        return {"threshold": self.threshold, "previous_loss": previous} | counts

    def load_state_dict(self, state):
        self.threshold = state["threshold"]
        self.previous_loss = float("inf") if state["previous_loss"] is None else state["previous_loss"]
        self.sampled, self.replayed, self.batches = state["sampled"], state["replayed"], state["batches"]

    def tensors(self):
        """The buffer as flat token lists and their lengths, oldest first."""
        if not self.buffer:
            return {}
        tensors = {}
        for name, rows in zip(("prompt", "response"), zip(*self.buffer, strict=True), strict=True):
            tensors[f"{name}_tokens"] = torch.tensor([token for row in rows for token in row])
            tensors[f"{name}_lengths"] = torch.tensor([len(row) for row in rows])
        return tensors

    def load_tensors(self, tensors):
        self.buffer.clear()
        if tensors:
            prompts, responses = (
                tensors[f"{name}_tokens"].split(tensors[f"{name}_lengths"].tolist())
                for name in ("prompt", "response")
            )
            pairs = zip(prompts, responses, strict=True)
            self.buffer.extend((prompt.tolist(), response.tolist()) for prompt, response in pairs)
