"""Last words, after LAMBADA (Paperno et al. 2016): can a model finish a sentence that lacks one word?

LAMBADA's passages were filtered by people, who could guess the word from the passage but not from its last
sentence alone; ours are every sentence of a text.
"""

import re
from collections.abc import Callable, Iterable
from statistics import mean

from torch import Tensor

from taid.evaluation.likelihood import whole_responses

# Words whose full stop ends no sentence.
ABBREVIATIONS = {"mrs", "messrs", "esq", "etc", "viz", "col", "gen", "hon", "rev", "capt"}


def last_words(tokenizer, texts: Iterable[str], context: int, longest: int) -> list[dict]:
    """Sentences' last words as examples of `taid.data.encode`, without its end of sequence.

    "prompt_ids": the `context` tokens before the word, "response_ids": its tokens, `longest` at most. A word
    is three letters or more, a space before and a full stop, an exclamation or question mark behind them;
    ABBREVIATIONS are none.
    """
    examples = []
    for text in texts:
        encoded = tokenizer(text, return_offsets_mapping=True)
        starts = {start: i for i, (start, end) in enumerate(encoded["offset_mapping"]) if end > start}
        for word in re.finditer(r" [A-Za-z]{3,}(?=[.!?])", text):
            if word[0][1:].lower() in ABBREVIATIONS:
                continue
            at, end = starts.get(word.start()), starts.get(word.end())
            if at is not None and end is not None and at >= context and end - at <= longest:
                ids = encoded["input_ids"]
                examples.append({"prompt_ids": ids[at - context : at], "response_ids": ids[at:end]})
    return [example | {"index": i} for i, example in enumerate(examples)]


def last_word_scores(logits_of: Callable[[dict], Tensor], batches: Iterable[dict]) -> dict[str, float]:
    """Over `batches` of `last_words`: the share of words that greedy decoding gets right, all tokens of them
    [percent], and the mean of Σ log p over a word's tokens [nats/word]. `logits_of` as in `taid.teacher`."""
    right, likelihoods = whole_responses(logits_of, batches)
    return {"last_word_accuracy": 100 * mean(right), "last_word_log_likelihood": mean(likelihoods)}
