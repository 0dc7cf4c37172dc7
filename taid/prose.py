"""Public-domain prose for continued pre-training, split by document before anything is cut from it."""

import re
from collections.abc import Iterable, Iterator

from taid import sources
from taid.instructions import split_documents

SHARES = {"tasks": 0.12, "test": 0.05, "validation": 0.03, "train": 0.80}
SHINGLE = 20  # words


def corpus(seed: int = 0) -> dict[str, list[str]]:
    """{split: documents} of Austen, Melville and the State of the Union, each shared out alike.

    Speeches quote each other. A training document that has `SHINGLE` words in a row with a document of
    another split is left out, so that nothing that is tested was read in training.
    """
    splits: dict[str, list[str]] = {split: [] for split in SHARES}
    for documents in (sources.austen(), sources.moby_dick(), sources.sotu()):
        for split, texts in split_documents(documents, seed, SHARES).items():
            splits[split] += [" ".join(text.replace("_", " ").split()) for text in texts]
    held_out = set().union(*(shingles(splits[split]) for split in splits if split != "train"))
    splits["train"] = [text for text in splits["train"] if held_out.isdisjoint(shingles([text]))]
    return splits


def shingles(texts: Iterable[str], length: int = SHINGLE) -> Iterator[int]:
    """Hashes of all runs of `length` words, without case and punctuation. Equal runs have equal hashes."""
    for text in texts:
        words = re.findall("[a-z0-9']+", text.lower())
        for start in range(len(words) - length + 1):
            yield hash(tuple(words[start : start + length]))
