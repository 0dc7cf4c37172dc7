"""Responses of a model to prompts, greedy or sampled."""

import itertools
from collections.abc import Sequence

import torch

from taid.data import pad_left
from taid.sampling import plain_generation


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
    `batch_size`, not on the global generator, which stays as it is."""
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    device = next(model.parameters()).device
    model.eval()
    # rows of like length share a batch: the fewer padding tokens, the faster
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["prompt_ids"]))
    responses = [""] * len(examples)
    with plain_generation(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            prompts = [examples[i]["prompt_ids"] for i in chosen]
            ids = pad_left(prompts, tokenizer.pad_token_id).to(device)
            mask = pad_left([[1] * len(p) for p in prompts], 0).to(device)
            sequences = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                use_cache=True,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
            texts = tokenizer.batch_decode(sequences[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                responses[i] = text.strip()
    return responses


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
