"""Responses drawn from a model at temperature 1, exactly as it distributes them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import GenerationConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from taid.data import pad_left
from taid.logits import base_model, evaluation_mode, is_encoder_decoder, position_limit

PLACEHOLDER = re.compile(
    r"(image|video|audio|vision|boi|eoi).*token_(id|index)"
)  # a config's names for media's tokens


@torch.no_grad()
def sample_responses(
    model,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    seed: int,
    vocab_size: int | None = None,
    positions: int | None = None,
    *,
    types: dict | None = None,
    media: dict | None = None,
) -> list[list[int]]:
    """One response per prompt at temperature 1, end-of-sequence token included where the model wrote one.

    Drawn are the first `vocab_size` entries of the vocabulary (all: None), none that stands for an image.
    Responses are shorter where prompt and response would take more than `positions`, or than the model has.
    The draw depends on `seed` alone, not on the global generator, so that a resumed run repeats it. `types`
    and `media` as in `taid.rollouts.beside_prompts`. Ranks that share a model's weights have to call together.

    Raises ValueError if the model cannot generate or has no end-of-sequence token that may be drawn, if no position
    is left for a response, and for weights that are sharded by what cannot be sampled from.
    """
    check_sampling(model)
    ends = required_ends(model, vocab_size)
    pad = pad_token(model)
    limits = [limit for limit in (positions, position_limit(model)) if limit is not None]
    longest = max(map(len, prompts))
    room = min([max_new_tokens, *(limit - longest for limit in limits)])
    if room < 1:
        raise ValueError(
            f"a prompt of {longest} tokens leaves no place for a response: the models have {min(limits)} "
            "positions. Shorten the prompts, or drop the example."
        )
    device = next(model.parameters()).device
    per_token = {"attention_mask": [[1] * len(p) for p in prompts]} | (types or {})
    with (
        plain_generation(model),
        evaluation_mode(model),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(seed)
        ids = pad_left(prompts, pad).to(device)
        sequences = model.generate(
            input_ids=ids,
            **{name: pad_left(rows, 0).to(device) for name, rows in per_token.items()},
            **(media or {}),
            max_new_tokens=room,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
            use_cache=True,
            suppress_tokens=_never_sampled(model, vocab_size) or None,
            synced_gpus=is_sharded(model),
        )
    return [_up_to_end(row, ends) for row in sequences[:, ids.shape[1] :].tolist()]


@contextmanager
def plain_generation(model) -> Iterator[None]:
    """Without the model's own generation defaults, which may bend the distribution: a repetition penalty, say."""
    model = base_model(model)
    own_config, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own_config


def end_tokens(model) -> set[int]:
    """All tokens that end a response, by the generation_config, the config, or its part for text."""
    return set(_tokens(model, "eos_token_id"))


def required_ends(model, vocab_size: int | None = None) -> set[int]:
    """The `end_tokens`. Raises ValueError for none, and for none among the first `vocab_size` entries (all: None)."""
    ends = end_tokens(model)
    if not ends:
        raise ValueError("sampling needs model.config.eos_token_id: set it from the tokenizer")
    if vocab_size is not None and min(ends) >= vocab_size:
        raise ValueError(
            f"no sample would end, for the tokens that end one, {sorted(ends)}, are not among the first {vocab_size} "
            "entries, which alone are sampled: raise vocab_size, or distil without sampling"
        )
    return ends


def pad_token(model) -> int:
    """The padding token, or an end in its place: nothing is learned of it, and no response goes on after it."""
    return [*_tokens(model, "pad_token_id"), *_tokens(model, "eos_token_id")][0]


def placeholders(model) -> list[int]:
    """The tokens that stand for images and the like: not to be written, for no image is there."""
    named = (value for name, value in vars(model.config).items() if PLACEHOLDER.fullmatch(name))
    return [value for value in named if isinstance(value, int)]


def is_sharded(model) -> bool:
    """Whether ranks hold parts of the model's weights, by FSDP2: then all of them run it, or none."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def agreed(choice: int, model) -> int:
    """The first rank's choice, on all ranks; with one rank its own."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return choice
    found = torch.tensor(choice, device=next(model.parameters()).device)
    dist.broadcast(found, 0)
    return int(found)


def check_sampling(model) -> None:
    """Raises ValueError for a model that cannot generate, an encoder–decoder, and weights that are sharded by what
    cannot be sampled from."""
    if not hasattr(model, "generate") or is_encoder_decoder(model):
        raise ValueError(
            f"{type(model).__name__} cannot generate as a causal model does: distil it without gkd or distillm"
        )
    fully = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    if fully or is_deepspeed_zero3_enabled():
        sharding = 'FSDP of version 1: set fsdp_config={"version": 2}' if fully else "ZeRO-3: set stage 2"
        raise ValueError(f"no samples can be drawn from a student sharded by {sharding}, or do not sample")


def _tokens(model, name: str) -> list[int]:
    """What the configurations of a model say, one token or several, of those that it has."""
    base = base_model(model)
    configs = [getattr(base, "generation_config", None), base.config, base.config.get_text_config()]
    found = [getattr(config, name, None) for config in configs]
    listed = [token for one in found for token in (one if isinstance(one, list | tuple) else [one])]
    entries = base.config.get_text_config().vocab_size
    return [token for token in listed if token is not None and 0 <= token < entries]


def _never_sampled(model, vocab_size: int | None) -> list[int]:
    """Padding of the vocabulary, and what stands for images."""
    entries = model.config.get_text_config().vocab_size
    beyond = range(entries if vocab_size is None else vocab_size, entries)
    return [*(token for token in placeholders(model) if token < entries), *beyond]


def _up_to_end(tokens: list[int], ends: set[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens
