"""What a model does that its class does not say, tried on a few tokens before training begins."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taid.data import Collator, batches
from taid.logits import (
    base_model,
    entries_of,
    evaluation_mode,
    inner,
    is_classifier,
    is_encoder_decoder,
    response_logits,
    virtual_tokens,
)

SAME = 0.02  # of a norm: bf16 rounds by up to 0.004
BEFORE = 1e-3  # of a norm: what a causal model computes before a token does not change with it at all


def _tokens(model, *ids: int) -> Tensor:
    """[1, n] tokens of the model's vocabulary, where its weights are."""
    entries = entries_of(model) or max(ids) + 1
    return torch.tensor([[i % entries for i in ids]], device=next(model.parameters()).device)


def _unknown(model) -> bool:
    """Whether a few tokens tell nothing of the model: it has no config, is for images or has an encoder, has no weights
    yet, or rounds all of a row by its largest entry."""
    found = base_model(inner(model))
    if not hasattr(found, "config"):
        return True
    kinds = {type(module).__module__.partition(".quantization")[0] for module in found.modules()}
    empty = any(weight.is_meta for weight in found.parameters())
    other = is_classifier(found) or is_encoder_decoder(found)
    return other or empty or bool(kinds & {"torch.ao", "torch.ao.nn.quantized"})


def _ask(model, **inputs: Any) -> Any:
    """The model's output; None from one that needs more than these inputs: its first batch tells."""
    try:
        with torch.no_grad(), evaluation_mode(model):
            plain = getattr(model, "_orig_mod", model)  # a model is compiled for its batches alone
            return plain(**inputs, use_cache=False)
    except Exception:  # whatever it is that the model misses
        return None


def check_causal(model, role: str) -> None:
    """Raises ValueError for a decoder whose logits at a token change with the tokens after it, which it is to predict."""
    if _unknown(model):
        return
    one, other = (_ask(model, input_ids=_tokens(model, 3, 4, *rest)) for rest in ((5, 6), (7, 8)))
    if getattr(one, "logits", None) is None or one.logits.shape[:2] != (1, 4):
        return
    before, changed = one.logits[:, :2].float(), other.logits[:, :2].float()
    if (before - changed).norm() > BEFORE * before.norm():
        raise ValueError(
            f"the {role}, a {type(base_model(inner(model))).__name__}, sees the tokens that it is to predict: load a "
            "causal model, or this one with config.is_decoder=True"
        )


def shifts_labels(model) -> bool:
    """Whether the model's own loss moves labels on by one, as causal models of transformers do: BartForCausalLM,
    XLNetLMHeadModel and their kind have label i belong to logits i. True where it is not known."""
    if _unknown(model):
        return True
    ids = _tokens(model, 3, 4, 5, 6)
    output = _ask(model, input_ids=ids, labels=ids)
    loss, logits = getattr(output, "loss", None), getattr(output, "logits", None)
    if loss is None or logits is None or logits.shape[:2] != (1, 4):
        return True
    moved = cross_entropy(logits[0, :-1].float(), ids[0, 1:])
    return bool((loss - moved).abs() <= (loss - cross_entropy(logits[0].float(), ids[0])).abs())


def check_padding(model, what: str) -> None:
    """Raises ValueError if a prompt that is padded on the left, by `taid.data.Collator`, has other logits than alone."""
    if _unknown(model) or virtual_tokens(model):  # virtual ones PEFT itself puts before the padding
        return
    short, long, response = (_tokens(model, *ids)[0].tolist() for ids in ((5,), (3, 4, 5, 6, 7), (6, 7)))
    examples = [
        {"index": i, "prompt_ids": ids, "response_ids": response} for i, ids in enumerate((short, long))
    ]
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), evaluation_mode(model):
            alone, beside = (
                response_logits(model, batch)[0][:2].float()
                for rows in (examples[:1], examples)
                for batch in batches(rows, Collator(0), len(rows), device)
            )
    except Exception:  # whatever it is that the model misses: the first batch tells
        return
    if (alone - beside).norm() > SAME * alone.norm():
        raise ValueError(
            f"{type(base_model(inner(model))).__name__} says other things of a prompt with padding before it, and {what}:"
            " its attention mask or position_ids do not reach it. Use a model that keeps to them"
        )


@torch.no_grad()
def check_packing(model, rows: int = 1) -> None:
    """Raises ValueError if documents that are packed side by side see each other in this model.

    Tried on two documents of three tokens, in batches of as many `rows`: the second one's logits are to be
    those that it has alone, whatever stands before it.
    """
    first, other, second = (
        _tokens(model, start, start + 1, start + 2).repeat(rows, 1) for start in (1, 7, 4)
    )

    def logits(*documents):
        ids = torch.cat(documents, dim=1)
        positions = torch.cat([torch.arange(3, device=ids.device) for _ in documents]).repeat(rows, 1)
        return model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, -3:].float()

    try:
        with evaluation_mode(model):
            packed, beside, alone = logits(first, second), logits(other, second), logits(second)
    except TypeError:  # it takes no position_ids
        packed = beside = alone = torch.tensor(torch.nan)
    if not torch.equal(packed, beside) or (packed - alone).norm() > SAME * alone.norm():
        name = type(model).__name__
        attention = getattr(model.config, "_attn_implementation", None)
        raise ValueError(
            f"in {name} (attention {attention}, {rows} rows a batch) packed documents see each other: train with "
            "packing=False, or load the model with attn_implementation='sdpa'; flash attention keeps them apart "
            "with per_device_train_batch_size=1"
        )
