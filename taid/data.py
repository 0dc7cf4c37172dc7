"""Tokeniser, examples and batches."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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


def pad_left(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    """[B, max length] with the rows' ends aligned."""
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])


def pad_right(rows: Sequence[list[int]], value: int) -> torch.Tensor:
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


class Collator:
    """Batches examples of `encode` or `pack` by `join`; "index" [B] travels along and names the example in a cache of
    teacher logits. Raises ValueError for an example without a response: it would have no label to learn."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[dict]) -> dict:
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
        return batch | {"index": torch.tensor([e["index"] for e in examples])}
