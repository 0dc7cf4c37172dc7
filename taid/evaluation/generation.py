"""Responses of a model to prompts, greedy or sampled."""

import itertools
from collections.abc import Container, Iterator, Sequence

import torch

from taid.checks import require_count
from taid.data import pad_left
from taid.logits import entries_of, position_limit
from taid.sampling import end_tokens, pad_token, plain_generation


@torch.no_grad()
def generate(
    model,
    tokenizer,
    examples: Sequence[dict],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
) -> list[str]:
    """One response per example of `taid.data.encode`; temperature 0 is greedy. Sampling depends on `seed` and
    `batch_size`, not on the global generator, which stays as it is.

    A response ends before the first token that ends one to the model or to the tokenizer, or where the model has no
    more positions. Raises ValueError for a prompt that leaves none, and for one of tokens that the model lacks.
    """
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    require_count("batch_size", batch_size, "examples")
    device = next(model.parameters()).device
    model.eval()
    _check_tokens(model, examples)
    rooms = [room(model, len(example["prompt_ids"]), max_new_tokens) for example in examples]
    ends, padding = end_tokens(model) | ({tokenizer.eos_token_id} - {None}), _padding(model, tokenizer)
    # rows of like length share a batch: the fewer padding tokens, the faster
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["prompt_ids"]))
    responses = [""] * len(examples)
    with plain_generation(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for chosen in _batches(order, rooms, batch_size):
            prompts = [examples[i]["prompt_ids"] for i in chosen]
            ids = pad_left(prompts, padding).to(device)
            mask = pad_left([[1] * len(p) for p in prompts], 0).to(device)
            sequences = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=rooms[chosen[0]],
                use_cache=True,
                eos_token_id=sorted(ends) or None,
                pad_token_id=padding,
                **sampling,
            )
            # an end that is no special token of the tokenizer would be text, and so would padding after it
            said = [_before(row, ends) for row in sequences[:, ids.shape[1] :].tolist()]
            texts = tokenizer.batch_decode(said, skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                responses[i] = text.strip()
    return responses


def room(model, prompt: int, max_new_tokens: int) -> int:
    """The number of tokens that can follow `prompt` tokens, at most `max_new_tokens`. Raises ValueError for none."""
    limit = position_limit(model)
    if limit is None:
        return max_new_tokens
    if prompt >= limit:
        raise ValueError(
            f"a prompt of {prompt} tokens leaves no place for a response: the model has {limit} positions. Shorten "
            "it, or drop it."
        )
    return min(max_new_tokens, limit - prompt)


def _batches(order: Sequence[int], rooms: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Neighbours of `order` with the same room: a short prompt's response must not depend on a long one beside it."""
    for _, group in itertools.groupby(order, key=lambda i: rooms[i]):
        alike = list(group)
        yield from (alike[start : start + batch_size] for start in range(0, len(alike), batch_size))


def _padding(model, tokenizer) -> int:
    """What fills a batch, masked before a prompt and cut off after a response: any token that the model has."""
    entries, known = entries_of(model), tokenizer.pad_token_id
    if known is not None and (entries is None or known < entries):
        return known
    return pad_token(model) if end_tokens(model) else 0


def _before(tokens: Sequence[int], ends: Container[int]) -> list[int]:
    return list(itertools.takewhile(lambda token: token not in ends, tokens))


def _check_tokens(model, examples: Sequence[dict]) -> None:
    """Raises ValueError for a prompt without a token, or with one that the model does not have."""
    entries = entries_of(model)
    if not all(len(example["prompt_ids"]) for example in examples):
        raise ValueError("a prompt has no token: give it one at least, the tokenizer's bos token, say")
    largest = max((token for example in examples for token in example["prompt_ids"]), default=0)
    if entries is not None and largest >= entries:
        raise ValueError(
            f"a prompt has token {largest}, and the model {entries} entries: take the tokenizer that it was trained with"
        )


def rouge_l(references: Sequence[str], responses: Sequence[str]) -> float:
    """Mean ROUGE-L F of responses to references, in [0, 1], words stemmed (Lin 2004; Google's package rouge-score).

    Raises ValueError where there is nothing to compare.
    """
    from rouge_score.rouge_scorer import RougeScorer  # nltk comes with it, which takes its time

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    found = [scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(references, responses, strict=True)]
    if not found:
        raise ValueError("no response to score")
    return sum(found) / len(found)


def rouge_of(model, tokenizer, examples: Sequence[dict], max_new_tokens: int, batch_size: int = 256) -> float:
    """Mean ROUGE-L of a model's greedy responses to examples of `taid.data.encode`, against theirs."""
    said = generate(model, tokenizer, examples, max_new_tokens, batch_size=batch_size)
    wanted = tokenizer.batch_decode(
        [example["response_ids"] for example in examples], skip_special_tokens=True
    )
    return rouge_l([text.strip() for text in wanted], said)


def distinct_bigrams(texts: Sequence[str]) -> float:
    """Distinct word bigrams / all word bigrams, in [0, 1] (distinct-2, Li et al. 2016); 0 if there are none."""
    bigrams = [pair for text in texts for words in [text.split()] for pair in itertools.pairwise(words)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0
