"""Instruction data in eight categories, each with real prompts and responses and a score without a paid judge.

Five ask about words and have a verifier (WordNet knows the answer); three continue prose, and there a judge model
scores the likelihood of the response (`taid.studies.judge`). MT-Bench has eight categories too.

Held out are *prompts*, not facts: a word's facts are asked in three phrasings in training and in a fourth at
evaluation, which other words have in training; evaluation words are divided between validation and test. Prose is
split by document before anything is cut from it.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from taid.studies import sources

VERIFIED = ("define", "kind", "category", "synonym", "opposite")
JUDGED = ("novel", "voyage", "speech")
CATEGORIES = VERIFIED + JUDGED

TEMPLATES = {
    "define": (
        "what does {} mean?",
        "define the word {}.",
        "give the meaning of {}.",
        "explain {} in a few words.",
    ),
    "kind": (
        "what kind of thing is {}?",
        "{} is a kind of what?",
        "name what {} is a kind of.",
        "what sort of thing is {}?",
    ),
    "category": (
        "which category does {} belong to?",
        "in which category is {}?",
        "name the category of {}.",
        "sort {} into a category.",
    ),
    "synonym": (
        "what is another word for {}?",
        "give a synonym of {}.",
        "which word means the same as {}?",
        "name a word close to {}.",
    ),
    "opposite": (
        "what is the opposite of {}?",
        "give the opposite of {}.",
        "which word is contrary to {}?",
        "name an antonym of {}.",
    ),
    "novel": ("continue the novel: {}", "the novel goes on: {}"),
    "voyage": ("continue the voyage: {}", "the voyage goes on: {}"),
    "speech": ("continue the speech: {}", "the speech goes on: {}"),
}
# How a dictionary states the same facts: the plain text from which models learn them before any instruction.
STATEMENTS = {
    "define": "{} means {}.",
    "kind": "{} is a kind of {}.",
    "category": "{} belongs to {}.",
    "synonym": "{} is another word for {}.",
    "opposite": "{} is contrary to {}.",
}
CONTEXT_WORDS, CONTINUATION_WORDS = 8, 5
MAX_CHARACTERS = 72  # of context and continuation together; longer ones are tables and lists
GLOSS_WORDS = 7  # a definition is the first clause of a gloss, if it is this short


@dataclass(frozen=True)
class Instruction:
    """A prompt with a response; `answers` are the responses that a verifier accepts (empty: judged)."""

    category: str
    prompt: str
    response: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instructions:
    """The splits, the `words` that are asked about or are an answer, and for the judge prose instructions from documents of its own; `text` holds plain passages
    for pre-training: prose of the "train" and "judge" documents, and the "dictionary"."""

    train: tuple[Instruction, ...]
    validation: tuple[Instruction, ...]
    test: tuple[Instruction, ...]
    judge: tuple[Instruction, ...]
    words: tuple[str, ...]
    text: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Size:
    """How much to build: words asked about in each verified category, and items per category otherwise."""

    words: int
    passages: int  # training instructions in each judged category, and the judge's
    validation: int
    test: int


Fact = tuple[str, tuple[str, ...]]  # a word and its accepted answers, the most usual first


class _Lexicon:
    """WordNet's plain words, the most frequent first, and what it says of them."""

    def __init__(self) -> None:
        self.synsets, self.senses, self.counts = sources.wordnet()

    def by_frequency(self, parts: str) -> list[tuple[str, str]]:
        """(part of speech, word) of some parts of speech."""
        plain = [k for k in self.counts if k[0] in parts and k in self.senses and _plain(k[1])]
        return sorted(plain, key=lambda key: (-self.counts[key], key))

    def first_sense(self, key: tuple[str, str]) -> sources.Synset:
        return self.synsets[key[0], self.senses[key][0]]

    def kinds(self, synset: sources.Synset) -> list[tuple[str, ...]]:
        """The plain words of each synset that a noun's is a kind of."""
        above = (offset for symbol, offset, _, _ in synset.pointers if symbol == "@")
        return [_plain_words(self.synsets["n", offset]) for offset in above]

    def opposites(self, key: tuple[str, str]) -> Iterator[str]:
        """Of all senses of a word."""
        for synset in (self.synsets[key[0], offset] for offset in self.senses[key]):
            for symbol, other, part, link in synset.pointers:
                source, target = int(link[:2], 16) - 1, int(link[2:], 16) - 1  # words of the two synsets
                if symbol == "!" and synset.words[source].lower() == key[1]:
                    yield self.synsets["a" if part == "s" else part, other].words[target].lower()


def _plain(word: str, longest: int = 12) -> bool:
    return re.fullmatch(f"[a-z]{{3,{longest}}}", word) is not None


def _plain_words(synset: sources.Synset) -> tuple[str, ...]:
    return tuple(word.lower() for word in synset.words if _plain(word))


def _of_nouns(lexicon: _Lexicon) -> dict[str, list[Fact]]:
    """Definitions, kinds and categories of the nouns that have a short gloss and a plain kind."""
    facts: dict[str, list[Fact]] = {"define": [], "kind": [], "category": []}
    for key in lexicon.by_frequency("n"):
        synset = lexicon.first_sense(key)
        gloss, kinds = synset.gloss.split(";")[0].strip().lower(), lexicon.kinds(synset)
        short = len(gloss.split()) <= GLOSS_WORDS and re.fullmatch("[a-z ,'-]+", gloss)
        if short and kinds and kinds[0]:
            facts["define"].append((key[1], (gloss,)))
            facts["kind"].append((key[1], tuple(word for kind in kinds for word in kind)))
            facts["category"].append((key[1], (synset.category,)))
    return facts


def _synonyms(lexicon: _Lexicon) -> Iterator[Fact]:
    for key in lexicon.by_frequency("nva"):
        if others := tuple(w for w in _plain_words(lexicon.first_sense(key)) if w != key[1]):
            yield key[1], others


def _opposites(lexicon: _Lexicon) -> Iterator[Fact]:
    for key in lexicon.by_frequency("nvar"):
        opposites = tuple(lexicon.opposites(key))
        if opposites and _plain(opposites[0], longest=14):
            yield key[1], opposites


def _facts(words: int) -> dict[str, list[Fact]]:
    """{verified category: its facts, one a word}, the most frequent words first."""
    lexicon = _Lexicon()
    found = _of_nouns(lexicon)
    found |= {"synonym": list(_synonyms(lexicon)), "opposite": list(_opposites(lexicon))}
    facts = {}
    for category in VERIFIED:
        unique = dict(reversed(found[category]))  # the first of a word wins, and the order is turned back
        if len(unique) < words:
            raise ValueError(
                f"only {len(unique)} words for {category!r}: ask for at most that many, not {words}"
            )
        facts[category] = list(unique.items())[::-1][:words]
    return facts


def _passages(text: str) -> list[tuple[str, str]]:
    """Consecutive (context, continuation) pairs of a document, in lower case."""
    words = re.sub(r"[^a-z0-9.,;:!?' -]+", " ", text.lower().replace("_", "")).split()
    step = CONTEXT_WORDS + CONTINUATION_WORDS
    starts = [
        i for i in range(0, len(words) - step, step) if len(" ".join(words[i : i + step])) <= MAX_CHARACTERS
    ]
    return [
        (" ".join(words[i : i + CONTEXT_WORDS]), " ".join(words[i + CONTEXT_WORDS : i + step]))
        for i in starts
    ]


# Shares of the documents of each kind of prose. The judge's are its own, so that it has seen what no student has.
DOCUMENT_SHARES = {"test": 0.10, "validation": 0.05, "judge": 0.40, "train": 0.45}


def split_documents(
    documents: dict[str, str], seed: int, shares: Mapping[str, float] = DOCUMENT_SHARES
) -> dict[str, list[str]]:
    """{split: texts}: whole documents, shuffled by `seed`, then shared out."""
    names = sorted(documents)
    random.Random(seed).shuffle(names)
    splits, start, share = {}, 0, 0.0
    for split, fraction in shares.items():
        share += fraction
        end = round(share * len(names))
        splits[split] = [documents[name] for name in names[start:end]]
        start = end
    return splits


def build(size: Size, seed: int = 0, every_answer: bool = False) -> Instructions:
    """All instruction data, deterministic by `seed`, from WordNet 3.0, Austen, Melville and the State of the Union.

    Of a question's accepted answers the first is taught; with `every_answer` each, in an instruction and in a
    statement of its own. What is asked in validation and test is the same.

    Raises ValueError where the sources hold fewer items than `size` asks for, SourceUnavailable if one is missing.
    """
    rng = random.Random(seed)
    splits: dict[str, list[Instruction]] = {"train": [], "validation": [], "test": [], "judge": []}
    text: dict[str, list[str]] = {"train": [], "judge": [], "dictionary": []}
    words = set()
    for category, facts in _facts(size.words).items():
        held_out = []
        for word, answers in facts:
            prompts = [template.format(word) for template in TEMPLATES[category]]
            held_out.append(
                Instruction(category, prompts.pop(rng.randrange(len(prompts))), answers[0], answers)
            )
            taught = dict.fromkeys(answers if every_answer else answers[:1])
            splits["train"] += [
                Instruction(category, prompt, answer, answers) for prompt in prompts for answer in taught
            ]
            words |= {word} if category == "define" else {word, *taught}
            text["dictionary"] += [STATEMENTS[category].format(word, answer) for answer in taught]
        if size.validation + size.test > len(held_out):
            raise ValueError(
                f"{size.validation} + {size.test} evaluation words of {len(held_out)} in {category!r}"
            )
        rng.shuffle(held_out)
        splits["validation"] += held_out[: size.validation]
        splits["test"] += held_out[size.validation : size.validation + size.test]
    documents = {"novel": sources.austen(), "voyage": sources.moby_dick(), "speech": sources.sotu()}
    wanted = {
        "train": size.passages,
        "judge": size.passages,
        "validation": size.validation,
        "test": size.test,
    }
    for category, by_name in documents.items():
        for split, texts in split_documents(by_name, seed).items():
            passages = [passage for document in texts for passage in _passages(document)]
            rng.shuffle(passages)
            if len(passages) < wanted[split]:
                raise ValueError(
                    f"only {len(passages)} {split} passages for {category!r}, not {wanted[split]}"
                )
            chosen = passages[: wanted[split]]
            splits[split] += [
                Instruction(category, TEMPLATES[category][i % 2].format(context), response)
                for i, (context, response) in enumerate(chosen)
            ]
            if split in text:
                text[split] += [f"{context} {response}" for context, response in passages]
    for items in splits.values():
        rng.shuffle(items)
    for sentences in text.values():
        rng.shuffle(sentences)
    return Instructions(
        **{k: tuple(v) for k, v in splits.items()},
        words=tuple(sorted(words)),
        text={k: tuple(v) for k, v in text.items()},
    )
