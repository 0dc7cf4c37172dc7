"""Public-domain prose to train on, split by document before anything is cut from it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from taid.studies import sources
from taid.studies.instructions import split_documents

SHARES = {"tasks": 0.12, "test": 0.05, "validation": 0.03, "train": 0.80}
SHINGLE = 20  # words


def corpus(
    shares: Mapping[str, float] = SHARES, training: Sequence[str] = ("train",), limit: int | None = None
) -> dict[str, list[str]]:
    """{split: documents} of Austen, Melville and the State of the Union, each shared out alike; of each kind
    of prose at most `limit` documents in a split.

    Speeches quote each other. A document of a `training` split that has `SHINGLE` words in a row with one of
    another split is left out, so that nothing that is tested was read in training.
    """
    splits: dict[str, list[str]] = {split: [] for split in shares}
    for documents in (sources.austen(), sources.moby_dick(), sources.sotu()):
        for split, texts in split_documents(documents, seed=0, shares=shares).items():
            splits[split] += [" ".join(text.replace("_", " ").split()) for text in texts[:limit]]
    held_out = set().union(*(shingles(splits[split]) for split in splits if split not in training))
    for split in training:
        splits[split] = [text for text in splits[split] if held_out.isdisjoint(shingles([text]))]
    return splits


def shingles(texts: Iterable[str], length: int = SHINGLE) -> Iterator[int]:
    """Hashes of all runs of `length` words, without case and punctuation. Equal runs have equal hashes."""
    for text in texts:
        words = re.findall("[a-z0-9']+", text.lower())
        for start in range(len(words) - length + 1):
            yield hash(tuple(words[start : start + length]))
