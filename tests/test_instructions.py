"""The instruction data keeps its promises on the real texts: splits share nothing, answers are right, none is easy."""

import random
import re
from collections import Counter
from functools import cache

import pytest

from taid.studies import instructions, sources
from taid.studies.instructions import (
    CATEGORIES,
    DOCUMENT_SHARES,
    JUDGED,
    TEMPLATES,
    VERIFIED,
    Instruction,
    Size,
    build,
    split_documents,
)
from taid.studies.judge import verified

SIZE = Size(words=120, passages=300, validation=30, test=80)
SPLITS = ("train", "validation", "test", "judge")
PROSE = {"novel": sources.austen, "voyage": sources.moby_dick, "speech": sources.sotu}


@pytest.fixture(scope="module", autouse=True)
def texts():
    """Each text is parsed once for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("wordnet", "austen", "moby_dick", "sotu"):
            patch.setattr(sources, name, cache(getattr(sources, name)))
        yield


@pytest.fixture(scope="module")
def data(texts):
    return build(SIZE)


def of(items, categories):
    return [item for item in items if item.category in categories]


def prompts(items) -> set[str]:
    return {item.prompt for item in items}


def asked(item: Instruction) -> tuple[str, int]:
    """(word, number of the template) of a verified prompt."""
    matches = [
        (found.group(1), number)
        for number, template in enumerate(TEMPLATES[item.category])
        if (found := re.fullmatch(re.escape(template).replace(r"\{\}", "([a-z]+)"), item.prompt))
    ]
    assert len(matches) == 1, f"{item.prompt!r} fits {len(matches)} templates"
    return matches[0]


def eight_grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


def passage(item: Instruction) -> str:
    """Context and continuation of a judged instruction, without the template's words."""
    return f"{item.prompt.split(': ', 1)[1]} {item.response}"


def test_splits_have_the_sizes_asked_for(data):
    counted = {(split, item.category) for split in SPLITS for item in getattr(data, split)}
    assert counted == {(s, c) for s in SPLITS for c in CATEGORIES} - {("judge", c) for c in VERIFIED}
    wanted = {
        "train": dict.fromkeys(VERIFIED, 3 * SIZE.words) | dict.fromkeys(JUDGED, SIZE.passages),
        "validation": dict.fromkeys(CATEGORIES, SIZE.validation),
        "test": dict.fromkeys(CATEGORIES, SIZE.test),
        "judge": dict.fromkeys(JUDGED, SIZE.passages),
    }
    for split, counts in wanted.items():
        assert Counter(item.category for item in getattr(data, split)) == counts


def test_no_prompt_is_in_two_splits(data):
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        common = prompts(of(getattr(data, a), VERIFIED)) & prompts(of(getattr(data, b), VERIFIED))
        assert not common, (a, b)
    for split in ("train", "validation", "test"):
        items = of(getattr(data, split), VERIFIED)
        assert len(prompts(items)) == len(items), f"{split} asks something twice"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluated_word_is_asked_in_training_in_the_other_phrasings(data, split):
    taught = {}
    for item in of(data.train, VERIFIED):
        word, template = asked(item)
        taught.setdefault((item.category, word, item.answers), set()).add(template)
    for item in of(getattr(data, split), VERIFIED):
        word, template = asked(item)
        assert taught[item.category, word, item.answers] == {0, 1, 2, 3} - {template}


def test_evaluation_words_are_in_one_split(data):
    words = [
        {(i.category, asked(i)[0]) for i in of(split, VERIFIED)} for split in (data.validation, data.test)
    ]
    assert not words[0] & words[1]


def test_every_phrasing_is_trained_and_evaluated(data):
    for split in (data.train, data.test):
        seen = {(item.category, asked(item)[1]) for item in of(split, VERIFIED)}
        assert seen == {(category, number) for category in VERIFIED for number in range(4)}


# --- prose


@pytest.mark.parametrize("category", PROSE)
def test_a_document_is_in_one_split(category):
    documents = PROSE[category]()
    splits = split_documents(documents, seed=0)
    assert sorted(text for texts in splits.values() for text in texts) == sorted(documents.values())
    assert len(set(documents.values())) == len(documents), "two documents are the same"
    for split, share in DOCUMENT_SHARES.items():
        assert abs(len(splits[split]) - share * len(documents)) <= 1
    assert split_documents(documents, 0) == splits != split_documents(documents, 1)
    assert split_documents(dict(reversed(documents.items())), 0) == splits, (
        "the order of the files must not matter"
    )


@pytest.mark.parametrize("category", PROSE)
def test_prose_is_cut_from_its_split_alone(data, category):
    splits = split_documents(PROSE[category](), seed=0)
    for split in SPLITS:
        own = {f"{a} {b}" for text in splits[split] for a, b in instructions._passages(text)}
        assert {passage(item) for item in of(getattr(data, split), (category,))} <= own


@pytest.mark.parametrize("category", PROSE)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluated_prose_is_not_in_what_is_trained_on(data, category, split):
    """By shared runs of eight words. Presidents quote each other and the constitution: up to 1 in 20 may share one.

    The whole book beside its chapters, once a document of "voyage", shared one with 2 of 3.
    """
    trained = set().union(*(eight_grams(text) for text in data.text["train"]))
    trained |= set().union(*(eight_grams(passage(item)) for item in of(data.train, JUDGED)))
    items = of(getattr(data, split), (category,))
    shared = [passage(item) for item in items if eight_grams(passage(item)) & trained]
    assert len(shared) <= len(items) / 20, shared[:5]


def test_the_judge_reads_other_documents_than_the_students(data):
    own, theirs = (set().union(*map(eight_grams, data.text[name])) for name in ("judge", "train"))
    assert len(own & theirs) < 0.05 * len(own)  # set phrases of three centuries of speeches


def test_passages_are_consecutive_words():
    words = [f"w{i}" for i in range(40)]
    found = instructions._passages(" ".join(words).upper())
    assert found == [
        (" ".join(words[i : i + 8]), " ".join(words[i + 8 : i + 13])) for i in (0, 13, 26)
    ]  # context 8, continuation 5, no overlap
    assert instructions._passages("too short") == []


# --- answers


def test_the_verifier_accepts_every_listed_answer_and_nothing_else(data):
    for item in of(data.test, VERIFIED):
        assert item.response == item.answers[0]
        for answer in item.answers:
            assert answer and answer == answer.strip().lower()
            for variant in (answer, f" {answer}\n", answer.upper(), answer.title()):
                assert verified([item], [variant]) == 10
            for wrong in (f"{answer}s", f"{answer} {answer}", f"{answer}.", answer[:-1]):
                assert wrong in item.answers or verified([item], [wrong]) == 0
        assert verified([item], [""]) == verified([item], [item.prompt]) == 0
    assert all(not item.answers for split in SPLITS for item in of(getattr(data, split), JUDGED))


def test_the_score_counts_right_answers():
    items = [Instruction("kind", f"what is {w}?", "a", ("a", "b")) for w in "wxyz"]
    assert verified(items, ["a", "B ", "c", ""]) == 5.0


@pytest.mark.parametrize("category", VERIFIED)
def test_no_constant_answer_scores(data, category):
    """Whatever is said to all prompts, be it every accepted answer in turn, gets less than 2.5 of 10."""
    items = of(data.test, (category,))
    best = max(
        verified(items, [answer] * len(items)) for answer in {a for item in items for a in item.answers}
    )
    assert 0 < best < 2.5


@pytest.mark.parametrize(
    ("category", "word", "answers"),
    [
        ("define", "winter", ("the coldest season of the year",)),
        ("kind", "ship", ("vessel", "watercraft")),
        ("category", "boy", ("person",)),
        ("synonym", "car", ("auto", "automobile", "machine", "motorcar")),
        ("opposite", "good", ("bad", "evil")),
    ],
)
def test_answers_are_those_of_wordnet(category, word, answers):
    """Oracle: the dictionary itself, `wn WORD -over -hypen -antsn -antsa` of WordNet 3.0."""
    facts = dict(instructions._facts(600)[category])
    assert tuple(dict.fromkeys(facts[word])) == answers


def test_words_and_dictionary_cover_what_is_asked(data):
    answers = {item.response for item in of(data.train, VERIFIED) if item.category != "define"}
    words = {asked(item)[0] for item in of(data.train, VERIFIED)}
    assert set(data.words) == words | answers and list(data.words) == sorted(data.words)
    assert len(data.text["dictionary"]) == SIZE.words * len(VERIFIED)
    for item in of(data.test, VERIFIED):
        word, _ = asked(item)
        assert instructions.STATEMENTS[item.category].format(word, item.response) in data.text["dictionary"]


# --- build


def test_build_depends_on_the_seed_alone(data):
    random.seed(7)
    state = random.getstate()
    assert build(SIZE) == data
    assert random.getstate() == state
    other = build(SIZE, seed=1)
    for split in SPLITS:
        assert prompts(getattr(other, split)) != prompts(getattr(data, split))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (Size(10**5, 1, 1, 1), r"only \d+ words for 'define': ask for at most that many, not 100000"),
        (Size(20, 1, 11, 10), "11 \\+ 10 evaluation words of 20 in 'define'"),
        (Size(20, 10**6, 1, 1), r"only \d+ judge passages for 'novel', not 1000000"),
    ],
)
def test_too_much_asked_is_an_error_with_the_count(size, message):
    with pytest.raises(ValueError, match=message):
        build(size)
