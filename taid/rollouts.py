"""Sequences sampled from the student: GKD's mixture and DistiLLM's adaptive replay.

Rollouts replace the responses of a training batch by the student's own, sampled at temperature 1 with the
end-of-sequence token kept. (The official code samples greedily, masks the end, and in its "mixed" path trains
on a draw from the replay buffer instead of the fresh sample.)
"""

import inspect
import random
import warnings
from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from taid.checks import require_count, require_share
from taid.data import IGNORE, join, pad_left, pad_right
from taid.logits import NOT_FOR_THE_MODEL, base_model, inner
from taid.sampling import agreed, pad_token, placeholders, required_ends, sample_responses

TOKENS = {"input_ids", "attention_mask", "position_ids", *NOT_FOR_THE_MODEL}


def prompts_of(batch: dict) -> list[list[int]]:
    """The real tokens before each row's first label. Raises ValueError for a row without label or prompt, and
    for rows of several documents."""
    prompts = _before_labels(batch, batch["input_ids"])
    if not all(prompts):
        raise ValueError(
            f"rollouts need a prompt (labels {IGNORE}) before a response (labelled) in each row, and one row "
            "has none: drop it, or let the collator mask its prompt"
        )
    return prompts


def _before_labels(batch: dict, values: Tensor) -> list[list[int]]:
    """Of values [B, L], one a token, those of the real tokens before each row's first label."""
    labels, positions = batch["labels"], batch.get("position_ids")
    real = batch.get("attention_mask", torch.ones_like(labels)).bool()
    of_tokens = positions is not None and positions.shape == labels.shape
    begins = ((positions == 0) & real).sum(1) if of_tokens else torch.ones(len(labels))
    if real.shape != labels.shape or (begins > 1).any() or "cu_seq_lens_q" in batch:
        raise ValueError("rollouts need one document in each row: let the collator pad, not pack")
    labelled = labels != IGNORE
    first = torch.where(labelled.any(1), labelled.int().argmax(1), 0).tolist()
    return [row[:n][mask[:n]].tolist() for row, mask, n in zip(values, real, first, strict=True)]


def beside_prompts(model, batch: dict) -> dict:
    """What a batch holds beside its tokens, as it belongs to the prompts alone: `types`, further numbers a
    token (token_type_ids), and `media`, images and the like as they are, in the order of their tokens. What is
    `passed_by` is neither.

    Raises ValueError for images in the responses, and for what would have to go on over a sampled response in
    a way that is not known.
    """
    ids, apart = batch["input_ids"], TOKENS | passed_by(model, batch).keys()
    others = {name: value for name, value in batch.items() if name not in apart}
    shapes = {name: value.shape if isinstance(value, Tensor) else () for name, value in others.items()}
    types = {
        name: _before_labels(batch, others[name]) for name, shape in shapes.items() if shape == ids.shape
    }
    media = {name: value for name, value in others.items() if name not in types}
    for name, value in media.items():
        if shapes[name][:2] == ids.shape and not value.is_floating_point():
            raise ValueError(
                f"how {name} goes on over a sampled response is not known: distil without sampling"
            )
    standing = set(placeholders(model))
    if media and standing:
        real = batch.get("attention_mask", torch.ones_like(ids)).bool()
        in_all = sum(token in standing for token in ids[real].tolist())
        if in_all != sum(token in standing for prompt in prompts_of(batch) for token in prompt):
            raise ValueError(
                "a row has an image after its first label, which sampling would replace: let the labels of such "
                "rows begin after the last image"
            )
    return {"types": types, "media": media}


def passed_by(model, batch: dict) -> dict:
    """What of a batch is no tensor and nothing that the model takes: texts, say, or where a row is from. A forward
    with **kwargs passes it by; `generate` would refuse it."""
    taken = _taken(model)
    return {
        name: value
        for name, value in batch.items()
        if name not in TOKENS and (value is None or not (isinstance(value, Tensor) or name in taken))
    }


def _taken(model) -> set[str]:
    """The names that `generate` takes for the model: it refuses others."""
    found = base_model(inner(model))
    calls = [found.forward, getattr(found, "prepare_inputs_for_generation", found.forward)]
    return {name for call in calls for name in inspect.signature(call).parameters}


def to_batch(
    prompts: list[list[int]],
    responses: list[list[int]],
    pad_token_id: int,
    device,
    types: dict | None = None,
    media: dict | None = None,
) -> dict:
    """A training batch from prompts, what is `beside_prompts`, and responses; "sampled" [B] says that they are
    no example of the data set.

    It is laid out as by `taid.data.Collator`; with images, whose models count positions in their own ways,
    padded on the right and without position_ids.
    """
    ones_left = pad_left([[1] * len(p) for p in prompts], 0)
    ones_right = pad_right([[1] * len(r) for r in responses], 0)
    batch = join(pad_left(prompts, pad_token_id), ones_left, pad_right(responses, pad_token_id), ones_right)
    if types or media:
        pairs = list(zip(prompts, responses, strict=True))
        batch = {
            "input_ids": pad_right([p + r for p, r in pairs], pad_token_id),
            "attention_mask": pad_right([[1] * len(p + r) for p, r in pairs], 0),
            "labels": pad_right([[IGNORE] * len(p) + r for p, r in pairs], IGNORE),
        }
        for name, rows in (types or {}).items():  # 0 is text
            values = [row + [0] * len(response) for row, response in zip(rows, responses, strict=True)]
            batch[name] = pad_right(values, 0)
    batch["sampled"] = torch.ones(len(prompts), dtype=torch.bool)
    return {name: tensor.to(device) for name, tensor in batch.items()} | (media or {})


class Rollouts(Protocol):
    """How a method mixes the student's own sequences into training.

    A `__repr__` of its own tells its settings, and nothing that moves: a checkpoint knows by it whose it is.
    """

    def __call__(
        self,
        model,
        batch: dict,
        progress: float,
        seed: int,
        vocab_size: int | None = None,
        positions: int | None = None,
    ) -> dict:
        """The batch to train on: the given one, or one with sampled responses (then with "sampled"), of the
        first `vocab_size` entries of the vocabulary, and of at most `positions` tokens with its prompt. All
        ranks sample or none does; what they sample depends on their own seeds."""

    def on_train_begin(self, validations: int) -> None:
        """Called before a run that has so many validations before its last step: the place to warn."""

    def on_validation(self, loss: float) -> None:
        """Told the validation loss [nats/token] whenever it is measured."""

    def logs(self) -> dict[str, float]: ...
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load_tensors(self, tensors: dict[str, Tensor]) -> None: ...


def settings_of(rollouts: Rollouts) -> str:
    """Its `repr`, or its class's name where that would be an address, another in each process."""
    named = type(rollouts).__repr__ is not object.__repr__
    return repr(rollouts) if named else type(rollouts).__name__


def check_first(model, batch: dict, vocab_size: int | None) -> None:
    """Raises ValueError for a batch, or a model, that cannot be sampled from; draws nothing. Of a run's first batch:
    it may be long until one is sampled."""
    prompts_of(batch)
    beside_prompts(model, batch)
    required_ends(model, vocab_size)


class GKDRollouts:
    """GKD (Agarwal et al. 2024): with `probability`, train on responses freshly sampled from the student.

    Raises ValueError for a probability outside [0, 1], and for less than one new token.
    """

    def __init__(self, max_new_tokens: int, probability: float = 0.5):
        require_count("max_new_tokens", max_new_tokens, "tokens")
        require_share("probability", probability, "the share of batches to sample for")
        self.max_new_tokens, self.probability = int(max_new_tokens), float(probability)
        self.sampled = self.batches = 0

    def __repr__(self):
        return f"GKDRollouts(max_new_tokens={self.max_new_tokens}, probability={self.probability})"

    def __call__(self, model, batch, progress, seed, vocab_size=None, positions=None):
        if not self.batches and self.probability:
            check_first(model, batch, vocab_size)
        self.batches += 1
        if not agreed(random.Random(seed).random() < self.probability, model):
            return batch
        self.sampled += 1
        prompts, beside, limits = prompts_of(batch), beside_prompts(model, batch), (vocab_size, positions)
        taken = _taken(model)
        heard = {kind: {n: v for n, v in named.items() if n in taken} for kind, named in beside.items()}
        responses = sample_responses(model, prompts, self.max_new_tokens, seed, *limits, **heard)
        sampled = to_batch(prompts, responses, pad_token(model), batch["input_ids"].device, **beside)
        return sampled | passed_by(model, batch)

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

    A run's first batch is checked for what sampling will need, for it may be long until φ rises. Raises ValueError
    for φ or its increment outside [0, 1], for less than one new token, and for a buffer of less than one sequence.
    """

    def __init__(
        self, max_new_tokens: int, capacity: int = 1000, threshold: float = 0.0, increment: float = 0.1
    ) -> None:
        require_count("max_new_tokens", max_new_tokens, "tokens")
        require_count("capacity", capacity, "sequences")
        require_share("threshold", threshold, "the share of batches that are the student's")
        require_share("increment", increment, "what the threshold, a share, rises by")
        self.max_new_tokens, self.capacity = int(max_new_tokens), int(capacity)
        self.start, self.increment = float(threshold), float(increment)
        self.threshold, self.previous_loss = self.start, float("inf")
        self.buffer: deque[tuple[list[int], list[int]]] = deque(maxlen=self.capacity)
        self.sampled = self.replayed = self.batches = 0

    def __repr__(self):
        return (
            f"DistiLLMRollouts(max_new_tokens={self.max_new_tokens}, capacity={self.capacity}, "
            f"threshold={self.start}, increment={self.increment})"
        )

    def __call__(self, model, batch, progress, seed, vocab_size=None, positions=None):
        if not self.batches:
            check_first(model, batch, vocab_size)
            self._check_media(model, batch)
        self.batches += 1
        rng = random.Random(seed)
        u = rng.random()
        fresh = u < self.threshold * (1 - progress) or len(self.buffer) < self.capacity
        choice = agreed(0 if u >= self.threshold else 1 if fresh else 2, model)
        if choice == 0:
            return batch
        self._check_media(model, batch)
        if choice == 1:
            self.sampled += 1
            prompts = prompts_of(batch)
            responses = sample_responses(model, prompts, self.max_new_tokens, seed, vocab_size, positions)
            self.buffer.extend(zip(prompts, responses, strict=True))
        else:
            self.replayed += 1
            drawn = rng.sample(list(self.buffer), min(len(batch["input_ids"]), len(self.buffer)))
            prompts, responses = map(list, zip(*drawn, strict=True))
        sampled = to_batch(prompts, responses, pad_token(model), batch["input_ids"].device)
        return sampled | (passed_by(model, batch) if choice == 1 else {})  # a draw's prompts are other rows'

    def _check_media(self, model, batch: dict) -> None:
        if any(beside_prompts(model, batch).values()):
            raise ValueError("the buffer keeps no images and no token types of its sequences: use gkd")

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
