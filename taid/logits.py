"""What a model says at the labelled positions of a batch: its logits, or the head that would give them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn.functional import pad

from taid.data import IGNORE
from taid.vocabulary import shared_vocabulary

NOT_FOR_THE_MODEL = ("labels", "shift_labels", "index", "sampled", "logits_to_keep", "num_items_in_batch")
BEFORE_THE_CACHE = ("PREFIX_TUNING", "CARTRIDGE")  # PEFT's methods whose virtual tokens have no logits
ENTRIES = 4096  # of a weight in half precision, converted at a time: 4 MB at H = 256
POSITIONS = ("max_position_embeddings", "max_seq_len")  # their number in a config; the second of MPT
PROBE, TOLERANCE = 64.0, 0.02  # of `response_head`; bf16 rounds by up to 0.004


NO_LABEL_AT_0 = {  # beside the labels, of one shape with them: what is wrong with a label where it is 0
    "attention_mask": "a label stands at a padding token, where attention_mask is 0, so that padding would be learned: "
    f"set it to {IGNORE}, or leave 'labels' out of the rows if all real tokens are to be learned",
    "position_ids": "a label stands where position_ids begin anew, so that the document before it, or padding, would "
    f"learn it: set the first label of each document to {IGNORE}, as DataCollatorWithFlattening does",
}


class Head(NamedTuple):
    """Logits hidden @ weight.T + bias, [..., V], not computed yet."""

    hidden: Tensor  # [..., H]
    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]


def response_logits(model, batch: dict) -> tuple[Tensor, Tensor]:
    """(logits [n, V], labels [n]) of the n unmasked labels of a language model's batch, as `targets` has them.

    Only these n rows pass through the head: all else that the model does to its logits (a soft-cap, a scale)
    it does to them. Of a model without output embeddings, or that does not call them, they are selected from
    the whole logits.

    Of a classifier of images row i of the logits belongs to label i. Raises ValueError for a model whose logits
    are not one row per label: which belong to which is not known.
    """
    _, logits, labels = response_states(model, batch)
    return logits, labels


def response_states(
    model, batch: dict, through: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(hidden [n, H], logits [m, V], labels [n]) as in `response_logits`; `hidden` is what enters the head.

    In its place `through(hidden)`, [m, H], passes the head. Where `hidden` is None there was no head to see,
    and the logits are those of all n labels.
    """
    following = targets(model, batch)  # [B, L], of a classifier [B]
    if is_classifier(model):
        return None, *_of_classes(model, batch, following)
    rows = (following != IGNORE).flatten().nonzero()[:, 0]  # [n]
    before = virtual_tokens(model)
    shape = (len(following), before + following.shape[1])
    hidden = passed = None

    @torch.compiler.disable  # a compiled model would compile itself anew for every batch's rows
    def select(head, inputs):
        nonlocal hidden, passed
        states, *others = inputs  # [B, L, H]
        if states.shape[:2] != shape:
            return None
        hidden = states[:, before:].flatten(0, 1).index_select(0, rows.to(states.device))
        passed = through(hidden)
        return passed[None], *others

    head = output_embeddings(model)
    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        output = model(**model_inputs(model, batch), use_cache=False)
    except IndexError:  # of a table of positions or of tokens
        _check_positions(model, following)
        _check_tokens(model, batch)
        raise
    finally:
        if hook is not None:
            hook.remove()
    logits = getattr(output, "logits", None)
    if logits is None:
        raise ValueError(f"{_name(model)} returns no .logits: distil models for language (…ForCausalLM)")
    if logits.dim() != 3 or logits.shape[:2] != (shape if passed is None else (1, len(passed))):
        raise ValueError(
            f"{_name(model)} returns logits {list(logits.shape)} for {list(following.shape)} labels: which belong to "
            "which is not known. Distil models that return one row of logits per input token (or per label of a "
            "decoder), and no others."
        )
    if hidden is None:
        return None, logits[:, before:].flatten(0, 1)[rows], following.flatten()[rows]
    return hidden, logits[0], following.flatten()[rows]


def _check_positions(model, following: Tensor) -> None:
    """Raises ValueError for rows [B, L] longer than the model has positions."""
    limit = position_limit(model)
    if limit is not None and following.shape[1] > limit:
        raise ValueError(
            f"a row has {following.shape[1]} tokens, and {_name(model)} positions for {limit}: cut the rows, to "
            f"max_length={limit} at most"
        )


def _check_tokens(model, batch: dict) -> None:
    """Raises ValueError for a token of a batch that the model has no embedding for."""
    entries, ids = embeddings_of(model), batch.get("input_ids")
    if entries is None or not isinstance(ids, Tensor):
        return
    wrong = ids[(ids < 0) | (ids >= entries)]
    if len(wrong):
        raise ValueError(
            f"the batch has token {wrong[0].item()}, and {_name(model)} embeddings for {entries}: was the data made by "
            "another tokenizer? For tokens that were added, model.resize_token_embeddings(len(tokenizer))"
        )


def _of_classes(model, batch: dict, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [n, classes], labels [n]) of the labelled images of a classifier's batch."""
    logits = getattr(model(**model_inputs(model, batch)), "logits", None)
    if logits is None or logits.dim() != 2 or len(logits) != len(labels):
        found = "no .logits" if logits is None else f"logits {list(logits.shape)}"
        raise ValueError(
            f"{_name(model)} returns {found} for {len(labels)} labels: distil classifiers that return one row of "
            "logits an image, [batch, classes], and models for language"
        )
    rows = labels != IGNORE
    return logits[rows], labels[rows]


def targets(model, batch: dict) -> Tensor:
    """[B, L] what each position of the model's logits is to predict, IGNORE where nothing.

    In a causal model position i predicts the label at i + 1, so that a label in column 0 counts as masked; in
    an encoder–decoder, position i of the decoder predicts label i. Of a classifier of images [B], the labels.
    Raises ValueError for a label at position 0 of a later document of a packed row: the document before would
    learn it; for a label of padding; and for labels of another shape or type.
    """
    labels = batch["labels"]
    if is_classifier(model):
        if labels.dim() != 1 or labels.is_floating_point():
            kind = f"{list(labels.shape)}, {labels.dtype}"
            raise ValueError(f"labels are {kind}: collate the number of one class an image, [batch], int64")
        return labels.long()
    if labels.dim() != 2 or labels.is_floating_point():
        kind = f"{list(labels.shape)}, {labels.dtype}"
        raise ValueError(f"labels are {kind}: collate the number of one token each, [batch, length], int64")
    if is_encoder_decoder(model):
        return labels.long()
    if "shift_labels" in batch:
        return batch["shift_labels"].long()
    following = labels[:, 1:] != IGNORE
    beside = {name: batch.get(name) for name in NO_LABEL_AT_0}
    wrong = {
        name: following & (each[:, 1:] == 0)
        for name, each in beside.items()
        if isinstance(each, Tensor) and each.shape == labels.shape
    }
    if wrong and torch.stack([*wrong.values()]).any():  # a GPU is waited for once
        raise ValueError(next(NO_LABEL_AT_0[name] for name, found in wrong.items() if found.any()))
    return pad(labels[:, 1:], (0, 1), value=IGNORE).long()


def model_inputs(model, batch: dict) -> dict:
    """What of a batch the model is called with; an encoder–decoder's `decoder_input_ids` are its labels, moved
    on by one as it does itself, where the batch has none."""
    inputs = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}
    if is_encoder_decoder(model) and not inputs.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}:
        shifted = getattr(inner(model), "prepare_decoder_input_ids_from_labels", None)
        if shifted is None:
            raise ValueError(f"{_name(model)} does not say how its decoder starts: collate decoder_input_ids")
        inputs["decoder_input_ids"] = shifted(labels=batch["labels"])
    return inputs


def check_model(model, role: str) -> None:
    """Raises ValueError for a model of transformers that predicts no next token and no class of an image: a
    classifier of text, a base without a head, a masked language model."""
    found = base_model(inner(model))
    classifies = is_classifier(found) and "ForImageClassification" in _name(found)
    if (
        type(found).__module__.startswith("transformers.models.")
        and not found.can_generate()
        and not classifies
    ):
        raise ValueError(
            f"the {role} is a {_name(found)}, which predicts no next token: load it as …ForCausalLM, "
            "…ForConditionalGeneration, or by AutoModelForCausalLM.from_pretrained; a classifier of images as "
            "…ForImageClassification"
        )


def is_classifier(model) -> bool:
    """Whether the model takes images and writes nothing: row i of its logits [B, classes] belongs to label i of [B]."""
    found = base_model(inner(model))
    images = getattr(found, "main_input_name", None) == "pixel_values"
    return images and not found.can_generate()


def is_encoder_decoder(model) -> bool:
    """Whether position i of the model's logits belongs to label i, as of T5 and BART."""
    return getattr(getattr(inner(model), "config", None), "is_encoder_decoder", False)


def virtual_tokens(model) -> int:
    """The number of positions that PEFT's prompt tuning puts before the input's, in the logits as well."""
    config: Any = getattr(inner(model), "active_peft_config", None)
    prompt_learning = config is not None and config.is_prompt_learning and not is_encoder_decoder(model)
    return config.num_virtual_tokens if prompt_learning and config.peft_type not in BEFORE_THE_CACHE else 0


def entries_of(model) -> int | None:
    """The length of the model's vocabulary, of a classifier its classes; None where its config does not say."""
    config: Any = getattr(inner(model), "config", None)
    if is_classifier(model):
        return config.num_labels
    return getattr(config.get_text_config(), "vocab_size", None) if config is not None else None


def embeddings_of(model) -> int | None:
    """The number of tokens that the model can read; None where it has no table of them that says so."""
    try:
        table = inner(model).get_input_embeddings()
    except (AttributeError, NotImplementedError):  # no model of transformers, or one of images
        return None
    return getattr(table, "num_embeddings", None)


def position_limit(model) -> int | None:
    """The number of tokens that the model has positions for; None where it says nothing."""
    config = getattr(inner(model), "config", None)
    text = config.get_text_config() if config is not None else None
    limit = next((size for name in POSITIONS if (size := getattr(text, name, None))), 0)
    return limit - virtual_tokens(model) if limit > 0 else None


@contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """Without dropout; each module gets back the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def inner(model):
    """The model inside DistributedDataParallel, or the model."""
    return getattr(model, "module", model)


def base_model(model):
    """The model inside PEFT's, or the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def output_embeddings(model) -> torch.nn.Module | None:
    """The head of a model, or of the model inside DistributedDataParallel; None if it names none."""
    found = inner(model)
    return found.get_output_embeddings() if hasattr(found, "get_output_embeddings") else None


def head_logits(head: Head, rows: slice) -> Tensor:
    """The logits [r, V] of some rows of a head."""
    dtype = arithmetic(head.weight)
    hidden = head.hidden[rows].to(dtype)
    logits = hidden.new_empty(len(hidden), len(head.weight))
    for entries, w in weight_blocks(head.weight, dtype):
        torch.mm(hidden, w.T, out=logits[:, entries])
    return logits if head.bias is None else logits.add_(head.bias)


def arithmetic(weight: Tensor) -> torch.dtype:
    """The type of a head's matmuls and logits."""
    device = weight.device.type
    if device == "cpu":
        return torch.promote_types(weight.dtype, torch.float32)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def weight_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The weight [V, H] in another type; on a CPU, where small matmuls are as quick, never copied whole."""
    size = ENTRIES if weight.dtype != dtype and weight.device.type == "cpu" else len(weight)
    for at in range(0, len(weight), size):
        entries = slice(at, at + size)
        yield entries, weight[entries].to(dtype)


def response_head(model, batch: dict) -> tuple[Head, Tensor]:
    """(head, labels [n]) of a batch's n unmasked labels: `response_logits`, not computed yet.

    Raises ValueError for a model whose logits are not hidden @ weight.T + bias, as with a soft-cap, a scale
    or an adapter on the head. One row tells: it alone passes the head, so large that a cap would bind.
    """
    hidden, found, labels = response_states(model, batch, lambda hidden: PROBE * hidden[:1])
    head = output_embeddings(model)
    if hidden is None or not isinstance(head, torch.nn.Linear):
        raise ValueError(f"{_name(model)} has no linear head to be seen at work: train it without fuse_head")
    student = Head(hidden, head.weight, head.bias)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        expected = head_logits(student._replace(hidden=PROBE * hidden[:1]), slice(None))
    # NaN passes: the trainer has words for a student that diverged
    if found.shape != expected.shape or (found - expected).norm() > TOLERANCE * expected.norm():
        raise ValueError(
            f"the logits of {_name(model)} are not hidden @ weight.T + bias, so that no loss can be fused "
            "with its head (does it cap or scale them?): train it without fuse_head"
        )
    return student, labels


def _name(model) -> str:
    return type(inner(model)).__name__


def vocabulary(logits: Head | Tensor) -> int:
    """V."""
    return len(logits.weight) if isinstance(logits, Head) else logits.shape[-1]


def cut(logits: Head | Tensor, entries: int) -> Head | Tensor:
    """The first entries of the vocabulary alone: the others are padding."""
    if entries == vocabulary(logits):
        return logits
    if isinstance(logits, Tensor):
        return logits[..., :entries]
    bias = None if logits.bias is None else logits.bias[:entries]
    return Head(logits.hidden, logits.weight[:entries], bias)


@overload
def align_vocabularies(
    student: Tensor, teacher: Tensor, vocab_size: int | None = None, known: int | None = None
) -> tuple[Tensor, Tensor]: ...
@overload
def align_vocabularies(
    student: Tensor | Head, teacher: Tensor | Head, vocab_size: int | None = None, known: int | None = None
) -> tuple[Tensor | Head, Tensor | Head]: ...
def align_vocabularies(
    student: Tensor | Head, teacher: Tensor | Head, vocab_size: int | None = None, known: int | None = None
) -> tuple[Tensor | Head, Tensor | Head]:
    """Both logits [n, V], or heads that would give them, cut to their `shared_vocabulary`; its ValueError."""
    shared = shared_vocabulary(vocabulary(student), vocabulary(teacher), vocab_size, known)
    return cut(student, shared), cut(teacher, shared)


def check_targets(targets, labels: Tensor) -> None:
    """Raises ValueError for what a teacher gave if it is not logits [n, V] at n labels, or their head."""
    if isinstance(targets, Head) or (isinstance(targets, Tensor) and targets.shape[:-1] == labels.shape):
        return
    found = list(targets.shape) if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
    raise ValueError(
        f"the teacher gave {found} for {len(labels)} labels: it has to give logits [n, V], one row per unmasked "
        "label, as response_logits(model, batch)[0] of taid.logits does"
    )


def check_labels(labels: Tensor, entries: int) -> None:
    """Raises ValueError for a label [n] that is none of the first entries of the vocabulary."""
    wrong = labels[(labels < 0) | (labels >= entries)]
    if len(wrong):
        raise ValueError(
            f"label {wrong[0].item()} is not one of the {entries} tokens (or classes) to distil: was the data "
            f"made by another tokenizer? (What is not to be learned has label {IGNORE}.)"
        )
