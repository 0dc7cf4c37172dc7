"""Tokeniser, examples and batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from taid.checks import require_count

IGNORE = -100  # the label of a position that no loss counts, as in transformers
PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, words: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level BPE in lower case with a chat template. Padding and end of sequence are two tokens, so that the
    end of a response is learned (the official code masks it, since there they are one).

    `words` are repeated until they are the most frequent ones, so that as many as fit become single tokens: a small
    model learns a fact about one token much sooner than about a spelling.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    special = [PAD, END, USER, ASSISTANT]
    bpe.train_from_iterator(
        [*texts, *[" ".join(words)] * 300],
        trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, additional_special_tokens=[USER, ASSISTANT]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(tokenizer, prompts: Sequence[str], responses: Sequence[str]) -> list[dict]:
    """One example a pair: {"index", "prompt_ids", "response_ids"}; the prompt in the tokeniser's chat template, the
    response with the end-of-sequence token that the student has to learn."""
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p}], add_generation_prompt=True, tokenize=False
        )
        for p in prompts
    ]
    prompt_ids = tokenizer(chats, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    return [
        {"index": i, "prompt_ids": prompt, "response_ids": [*response, tokenizer.eos_token_id]}
        for i, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True))
    ]


def pack(tokenizer, texts: Sequence[str], length: int) -> list[dict]:
    """Texts joined by end-of-sequence tokens and cut into examples of `length` tokens, all of them learned
    (`prompt_ids` holds the first token only). For pre-training."""
    stream = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    return [
        {"index": i, "prompt_ids": stream[at : at + 1], "response_ids": stream[at + 1 : at + length]}
        for i, at in enumerate(range(0, len(stream) - length + 1, length))
    ]


def batches(
    examples: Sequence[dict], collator: Callable, size: int, device: torch.device | str = "cpu"
) -> Iterator[dict]:
    """The examples in batches of at most `size`, in their order: tensors on `device`, all else as it is."""
    require_count("batch_size", size, "examples")
    for start in range(0, len(examples), size):
        batch = collator([examples[i] for i in range(start, min(start + size, len(examples)))])
        yield {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }


def pad_left(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    """[B, max length] with the rows' ends aligned."""
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])


def pad_right(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """[B, max length] with the rows' starts aligned."""
    width = max(map(len, rows))
    return torch.tensor([list(row) + [value] * (width - len(row)) for row in rows])


def join(
    prompts: torch.Tensor, prompt_mask: torch.Tensor, responses: torch.Tensor, response_mask: torch.Tensor
) -> dict:
    """A batch from left-padded prompts [B, P] and right-padded responses [B, R].

    Every response starts at column P, so that logits are only needed from column P − 1 on, and prompts are ready for
    generation. Keys: input_ids, attention_mask, position_ids, labels, all [B, P + R]; labels are IGNORE off the response.
    """
    mask = torch.cat([prompt_mask, response_mask], dim=1)
    return {
        "input_ids": torch.cat([prompts, responses], dim=1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "labels": torch.cat(
            [torch.full_like(prompts, IGNORE), responses.masked_fill(response_mask == 0, IGNORE)], dim=1
        ),
    }


def tokens_of(example: Mapping) -> tuple[list[int], list[int]]:
    """(input ids, labels) of an example: of `encode`, or of "input_ids" with "labels", or all of them learned.

    Raises ValueError for labels of another length, or that are None.
    """
    if "prompt_ids" in example:
        prompt, response = _list(example["prompt_ids"]), _list(example["response_ids"])
        return prompt + response, [IGNORE] * len(prompt) + response
    ids = _list(example["input_ids"])
    if "labels" in example:
        if example["labels"] is None:
            raise ValueError(
                "an example has labels None: leave them out of all rows, and every token is learned"
            )
        labels = _list(example["labels"])
    else:
        real = example.get("attention_mask", [1] * len(ids))
        labels = [token if here else IGNORE for token, here in zip(ids, real, strict=True)]
    if len(ids) != len(labels):
        raise ValueError(
            f"an example has {len(ids)} input_ids and {len(labels)} labels: a label stands under its own token, "
            f"{IGNORE} where nothing is to be learned (models with an encoder need a data_collator of their own)"
        )
    return ids, labels


def _list(values) -> list:
    """Of a list, an array or a tensor."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _is_text(value) -> bool:
    """Nothing that a model could take: a string, messages, or none."""
    inner = value[0] if isinstance(value, list | tuple) and value else value
    return inner is None or isinstance(inner, str | dict)


def pack_documents(examples: Sequence[dict], length: int) -> list[dict]:
    """Whole examples side by side in rows of at most `length` tokens, position_ids counted anew in each.

    From that alone the models of transformers keep documents apart, see `taid.probes.check_packing`. The first
    token of a document is no label: what is before it belongs to another. First fit, the longest ones first.
    """
    pairs = [tokens_of(example) for example in examples]
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0])):
        size = len(pairs[i][0])
        at = next((row for row, room in enumerate(free) if room >= size), None)
        if at is None:
            at = len(rows)
            rows.append([])
            free.append(length)
        rows[at].append(i)
        free[at] -= size
    return [
        {
            "input_ids": [token for i in row for token in pairs[i][0]],
            "labels": [label for i in row for label in (IGNORE, *pairs[i][1][1:])],
            "position_ids": [position for i in row for position in range(len(pairs[i][0]))],
        }
        for row in sorted(map(sorted, rows))
    ]


class Collator:
    """Batches examples, all of one kind: of `encode` or `pack` by `join`, and "index" [B] travels along, if any; of
    "input_ids" (see `tokens_of`) padded on the right; of `pack_documents` likewise, without an attention mask,
    the padding a document of its own.

    Raises ValueError for an example without a response, which would have no label to learn, and for columns
    that it would lose.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[dict]) -> dict:
        if "prompt_ids" in examples[0]:
            return self._joined(examples)
        known = {"input_ids", "labels", "attention_mask", "position_ids", "index"}
        if lost := {name for name, value in examples[0].items() if name not in known and not _is_text(value)}:
            raise ValueError(
                f"no collator was given for the columns {', '.join(sorted(lost))}: pass data_collator"
            )
        ids, labels = zip(*map(tokens_of, examples), strict=True)
        batch = {"input_ids": pad_right(ids, self.pad_token_id), "labels": pad_right(labels, IGNORE)}
        if "position_ids" in examples[0]:
            width = batch["input_ids"].shape[1]
            positions = [[*e["position_ids"], *range(width - len(e["position_ids"]))] for e in examples]
            return batch | {"position_ids": torch.tensor(positions)}
        masks = [e.get("attention_mask", [1] * len(e["input_ids"])) for e in examples]
        return batch | {"attention_mask": pad_right(masks, 0)}

    def _joined(self, examples: Sequence[dict]) -> dict:
        prompts, responses = [e["prompt_ids"] for e in examples], [e["response_ids"] for e in examples]
        if not all(responses) or not all(prompts):
            raise ValueError(
                "an example has an empty prompt or response: drop it, or shorten its prompt when you truncate"
            )
        ones_left = pad_left([[1] * len(p) for p in prompts], 0)
        ones_right = pad_right([[1] * len(r) for r in responses], 0)
        batch = join(
            pad_left(prompts, self.pad_token_id),
            ones_left,
            pad_right(responses, self.pad_token_id),
            ones_right,
        )
        numbered = "index" in examples[0]
        return batch | ({"index": torch.tensor([e["index"] for e in examples])} if numbered else {})


class KeepEnds:
    """transformers' DataCollatorForLanguageModeling, but what it masks as padding is what the attention mask does.

    It tells padding by its token, and where that is the end-of-sequence token too, no end is ever learned. Raises
    ValueError where it would lose labels, or has masked tokens to guess (mlm=True).
    """

    def __init__(self, collator: DataCollatorForLanguageModeling):
        if collator.mlm:
            raise ValueError("DataCollatorForLanguageModeling masks tokens to guess: pass mlm=False")
        self.collator = collator

    def __call__(self, examples: Sequence) -> dict:
        if "labels" in examples[0]:
            raise ValueError(
                "DataCollatorForLanguageModeling makes every token a label, and would lose the labels that the "
                "examples have: leave out data_collator, or use DataCollatorForSeq2Seq"
            )
        batch = self.collator(examples)
        if "attention_mask" not in batch:
            raise ValueError(
                "padding cannot be told from the end of a sequence: give examples as {'input_ids': …}, or set "
                "tokenizer.pad_token to another token than eos_token"
            )
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE)}


def keeping_ends(collator: Any) -> Callable:
    """`KeepEnds` of transformers' own collator; another as it is, a subclass that makes its labels itself too."""
    own = isinstance(collator, DataCollatorForLanguageModeling) and (
        type(collator).torch_call is DataCollatorForLanguageModeling.torch_call
        and type(collator).__call__ is DataCollatorForLanguageModeling.__call__
    )
    return KeepEnds(collator) if own else collator
