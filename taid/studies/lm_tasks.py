"""Seven small tasks for lm-eval, each shaped like one of the paper's leaderboard, made of held-out documents.

Five need the text of documents that nothing was trained on, or WordNet, which is in no training text; sums
need neither. Items are short, for a CPU has to read thousands of them per model, and few words to choose from
share a context. `write` puts them on disk as lm-eval reads them: JSON lines and a YAML file each.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from taid.files import write_whole
from taid.studies import sources


@dataclass(frozen=True)
class Task:
    """How a task is scored, and what comes of guessing."""

    shape: str  # the task of the leaderboard that it resembles
    choices: int  # 0: the answer is any word

    @property
    def chance(self) -> float:
        return 1 / self.choices if self.choices else 0.0


TASKS = {
    "cloze": Task("ARC", 4),
    "next_sentence": Task("HellaSwag", 2),
    "definition": Task("MMLU", 4),
    "truth": Task("TruthfulQA", 4),
    "pronoun": Task("Winogrande", 4),
    "arithmetic": Task("GSM8K", 4),
    "sums": Task("GSM8K", 4),
    "last_word": Task("LAMBADA", 0),
}
# of "arithmetic" the choices differ in more than in being right (docs/table2.md): "sums" came in its place
FIRST = tuple(task for task in TASKS if task != "sums")
SECOND = tuple(task for task in TASKS if task != "arithmetic")
METRIC = "acc"  # of lm-eval, at all tasks; the choices of an item are of like length

CONTEXT = 24  # words before a blank
OPENING = 8  # words of a sentence to choose
PASSAGE = 32  # words of a passage whose last one is asked for
COMMON = 150  # most frequent words of the documents, too easy to ask for
PRONOUNS = ("he", "she", "it", "they")
EXAMPLE = "11 + 14 = 25"  # what the sums look like; no item asks it

Item = dict[str, object]
Maker = Callable[[Sequence[str], random.Random], Iterator[Item]]


def build(
    texts: Sequence[str], count: int, seed: int, names: Sequence[str] = SECOND
) -> dict[str, list[Item]]:
    """{task: `count` items} of the named tasks, deterministic by `seed`. Items of "last_word" have a "text", all others a
    "query", "choices" and the "label" of the right one.

    Raises ValueError where the documents hold fewer items.
    """
    makers: dict[str, Maker] = {
        "cloze": _cloze,
        "next_sentence": _next_sentence,
        "definition": _definition,
        "truth": _truth,
        "pronoun": _pronoun,
        "arithmetic": _arithmetic,
        "sums": _sums,
        "last_word": _last_word,
    }
    built = {}
    for name in names:
        unique: dict[str, Item] = {}
        for item in makers[name](texts, random.Random(f"{name} {seed}")):
            unique.setdefault(str(item.get("query") or item["text"]), item)
            if len(unique) == count:
                break
        if len(unique) < count:
            held = f"the documents hold {len(unique)} items of {name!r}, not {count}"
            raise ValueError(f"{held}: give more of them")
        built[name] = list(unique.values())
    return built


def write(tasks: dict[str, list[Item]], folder: Path) -> None:
    """The tasks as lm-eval reads them: `folder`/<task>.jsonl, and last <task>.yaml."""
    for name, items in tasks.items():
        data = folder / f"{name}.jsonl"
        write_whole(data, "".join(json.dumps(item) + "\n" for item in items))
        write_whole(folder / f"{name}.yaml", json.dumps(_config(name, data), indent=1))  # JSON is YAML


def _config(name: str, data: Path) -> dict:
    """lm-eval's description of one task."""
    task = TASKS[name]
    form = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
    }
    if not task.choices:
        form = {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text.rsplit(' ', 1)[0]}}",
            "doc_to_target": "{{' ' + text.rsplit(' ', 1)[1]}}",
        }
    return form | {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(data.parent / "arrow")},
        "test_split": "test",
        "num_fewshot": 0,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
    }


# Prose


def sentences(text: str) -> list[str]:
    """A text cut at its full stops, question and exclamation marks, but not after Mr. and the like."""
    return re.split(r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<=[.!?])\s+(?=[A-Z])", text)


def _places(texts: Sequence[str], rng: random.Random) -> Iterator[tuple[list[str], int]]:
    """(words of a document, a position in it), all of them in random order."""
    documents = [text.split() for text in texts]
    places = [(i, j) for i, words in enumerate(documents) for j in range(CONTEXT, len(words))]
    rng.shuffle(places)
    return ((documents[i], j) for i, j in places)


def _uncommon(texts: Sequence[str]) -> list[str]:
    """Plain words of four letters and more, the most frequent first, without the commonest and the rare."""
    counts = Counter(word for text in texts for word in text.split())
    common = {word for word, _ in counts.most_common(COMMON)}
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    plain = (word for word in ranked if re.fullmatch("[a-z]{4,}", word))
    return [word for word in plain if counts[word] > 1 and word not in common]


def _choice(rng: random.Random, query: str, right: str, wrong: Sequence[str]) -> Item:
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {"query": query, "choices": choices, "label": choices.index(right)}


def _near(ranked: Sequence[str], rank: int, reach: int) -> list[str]:
    """The neighbours of a word in a ranking, up to `reach` on each side."""
    return [*ranked[max(rank - reach, 0) : rank], *ranked[rank + 1 : rank + 1 + reach]]


def _cloze(texts: Sequence[str], rng: random.Random) -> Iterator[Item]:
    """The next word, among three others that are about as frequent."""
    ranked = _uncommon(texts)
    rank = {word: i for i, word in enumerate(ranked)}
    for words, at in _places(texts, rng):
        if words[at] in rank:
            wrong = rng.sample(_near(ranked, rank[words[at]], 30), 3)
            yield _choice(rng, " ".join(words[at - CONTEXT : at]), words[at], wrong)


def _pronoun(texts: Sequence[str], rng: random.Random) -> Iterator[Item]:
    """The pronoun that stands next; each of the four is right equally often."""
    places = (place for place in _places(texts, rng) if place[0][place[1]] in PRONOUNS)
    waiting: dict[str, list] = {pronoun: [] for pronoun in PRONOUNS}
    for words, at in places:
        waiting[words[at]].append(" ".join(words[at - CONTEXT : at]))
        if all(waiting.values()):
            for right, queries in waiting.items():
                yield _choice(rng, queries.pop(0), right, [p for p in PRONOUNS if p != right])


def _next_sentence(texts: Sequence[str], rng: random.Random) -> Iterator[Item]:
    """How the next sentence begins, or one of another document."""
    documents = [sentences(text) for text in texts]
    places = [(i, j) for i, document in enumerate(documents) for j in range(len(document) - 1)]
    rng.shuffle(places)
    for i, j in places:
        query, other = documents[i][j], rng.choice(documents[:i] + documents[i + 1 :])
        right, wrong = (s.split()[:OPENING] for s in (documents[i][j + 1], rng.choice(other)))
        if OPENING <= len(query.split()) <= 2 * OPENING and len(right) == len(wrong) == OPENING:
            yield _choice(rng, query, " ".join(right), [" ".join(wrong)])


def _last_word(texts: Sequence[str], rng: random.Random) -> Iterator[Item]:
    """The word that ends a sentence, after the passage before it. LAMBADA's passages are chosen by people who
    could guess it; ours are not, so the scores are lower."""
    uncommon = set(_uncommon(texts))
    for words, at in _places(texts, rng):
        last = words[at].rstrip(".!?")
        before = words[max(at + 1 - PASSAGE, 0) : at]
        if last != words[at] and last in uncommon:
            yield {"text": " ".join([*before, last])}


# WordNet


@dataclass(frozen=True)
class _Noun:
    word: str
    gloss: str
    category: str
    parents: tuple[str, ...]


@cache
def _nouns() -> list[_Noun]:
    """Nouns in their first sense, without plurals, the most frequent first."""
    synsets, senses, counts = sources.wordnet()
    known = counts.keys() & senses.keys()
    words = [word for part, word in known if part == "n" and re.fullmatch("[a-z]{2,11}[a-rt-z]", word)]
    nouns = []
    for word in sorted(words, key=lambda word: (-counts["n", word], word)):
        synset = synsets["n", senses["n", word][0]]
        gloss = re.split("[;(]", synset.gloss)[0].strip()
        above = [synsets["n", offset].words for symbol, offset, _, _ in synset.pointers if symbol == "@"]
        parents = tuple(w for names in above for w in names if re.fullmatch("[a-z]{3,12}", w))
        nouns.append(_Noun(word, gloss, synset.category, parents))
    return nouns


def _definition(texts: Sequence[str], rng: random.Random) -> Iterator[Item]:
    """The word for a gloss, among three that are about as frequent."""
    nouns = [n for n in _nouns() if 3 <= len(n.gloss.split()) <= 12 and n.word not in n.gloss]
    ranked = [noun.word for noun in nouns]
    for rank in rng.sample(range(len(nouns)), len(nouns)):
        wrong = rng.sample(_near(ranked, rank, 50), 3)
        yield _choice(rng, f"The word that means {nouns[rank].gloss} is", ranked[rank], wrong)


def _truth(texts: Sequence[str], rng: random.Random) -> Iterator[Item]:
    """What a thing is a kind of: one statement is true, three are false.

    The false ones are true of random other nouns, so that a frequent answer is as often wrong as right.
    """
    nouns = [noun for noun in _nouns() if noun.parents]
    for noun in rng.sample(nouns, len(nouns)):
        others = [n for n in rng.sample(nouns, 40) if n.category != noun.category]
        wrong = list(dict.fromkeys(n.parents[0] for n in others if n.parents[0] not in noun.parents))[:3]
        if len(wrong) == 3:
            article = "An" if noun.word[0] in "aeiou" else "A"
            yield _choice(rng, f"{article} {noun.word} is a kind of", noun.parents[0], wrong)


# Sums


def _arithmetic(texts: Sequence[str], rng: random.Random) -> Iterator[Item]:
    """A sum below 100 after a worked one, among numbers near it; as often the smallest as the largest of
    them, for a model that knows nothing still likes small numbers better, or large ones."""
    pairs = [(a, b) for a in range(12, 50) for b in range(2, 50)]
    for a, b in rng.sample(pairs, len(pairs)):
        below = rng.randrange(4)
        wrong = rng.sample((-10, -2, -1), below) + rng.sample((1, 2, 10), 3 - below)
        yield _choice(rng, f"{EXAMPLE}\n{a} + {b} =", str(a + b), [str(a + b + d) for d in wrong])


def _sums(texts: Sequence[str], rng: random.Random) -> Iterator[Item]:
    """A sum below 100 after a worked one. Four items in a row have the same choices, n, n + 1, n + 10 and n + 11, and
    each is right in one of them: whoever likes some numbers better than others, and cannot add, is right in one of
    four, exactly."""
    pairs: dict[int, list[tuple[int, int]]] = {}
    for a, b in product(range(2, 98), repeat=2):
        if a + b < 100 and f"{a} + {b} = {a + b}" != EXAMPLE:
            pairs.setdefault(a + b, []).append((a, b))
    for terms in pairs.values():
        rng.shuffle(terms)
    while blocks := [n for n in range(20, 89) if all(pairs[n + d] for d in (0, 1, 10, 11))]:
        n = rng.choice(blocks)
        choices = [str(n + d) for d in rng.sample((0, 1, 10, 11), 4)]
        for label in rng.sample(range(4), 4):
            a, b = pairs[int(choices[label])].pop()
            yield {"query": f"{EXAMPLE}\n{a} + {b} =", "choices": choices, "label": label}
