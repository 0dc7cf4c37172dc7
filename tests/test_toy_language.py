"""The exact language against enumeration by loops and against closed forms in the limit of no noise."""

import itertools
import math

import pytest
import torch

from taid.toy import distill
from taid.toy_language import (
    Language,
    Ngram,
    context_probabilities,
    distill_tokens,
    measure,
    sentence_logits,
    shared_word,
)

WEIGHTS = [0.5, 0.3, 0.2]
LANGUAGE = shared_word(3, WEIGHTS, noise=1e-4)
TEACHER = LANGUAGE.next_word_logits()


def random_table(words: int = 3, length: int = 3) -> torch.Tensor:
    contexts = sum(words**n for n in range(length))
    return torch.randn(contexts, words, generator=torch.Generator().manual_seed(0)).double()


def test_sentences_and_contexts_by_enumeration():
    """Oracle: products of softmaxes, word by word; a context is as likely as its sentences together."""
    table = random_table()
    next_word = table.softmax(-1)
    contexts = [prefix for length in range(3) for prefix in itertools.product(range(3), repeat=length)]
    expected_contexts = dict.fromkeys(contexts, 0.0)
    sentences = itertools.product(range(3), repeat=3)
    for sentence, found in zip(sentences, sentence_logits(table).exp(), strict=True):
        expected = math.prod(next_word[contexts.index(sentence[:n]), sentence[n]].item() for n in range(3))
        assert found.item() == pytest.approx(expected, rel=1e-12)
        for n in range(3):
            expected_contexts[sentence[:n]] += expected
    assert context_probabilities(table).tolist() == pytest.approx(list(expected_contexts.values()), rel=1e-12)


def test_the_teacher_says_its_phrases_by_their_weights():
    """Every word is right with probability 1 − noise (1 − 1/V) once the phrase is chosen."""
    p = sentence_logits(TEACHER).exp()
    assert p.sum().item() == pytest.approx(1, rel=1e-12)
    phrase_mass = (LANGUAGE.is_phrase() * p).sum(-1)
    assert phrase_mass.tolist() == pytest.approx(WEIGHTS, rel=4 * LANGUAGE.noise)
    assert LANGUAGE.is_phrase().sum(-1).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("memory", "states"), [(0, 1), (1, 1 + 7), (2, 1 + 7 + 49)])
def test_states_tell_contexts_apart_by_their_last_words(memory, states):
    contexts = [tuple(row) for table in LANGUAGE.contexts() for row in table.tolist()]
    found = Ngram(LANGUAGE, memory).states().tolist()
    assert len(set(found)) == max(found) + 1 == states
    last = [context[len(context) - min(memory, len(context)) :] for context in contexts]
    assert (
        len(set(zip(found, last, strict=True))) == states
    )  # one run of last words per state, one state per run


def test_a_student_that_remembers_everything_has_no_gap():
    student = Ngram(LANGUAGE, memory=2)
    values = measure(student.logits(student.closest(TEACHER)), LANGUAGE)
    assert values["forward_kl"].item() == pytest.approx(0, abs=1e-12)
    assert values["reverse_kl"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("weights", [WEIGHTS, [0.5, 0.5], [0.9, 0.1]])
def test_the_bigram_model_averages(weights):
    """Closed forms at zero noise: phrase mass Σ w², forward KL the entropy of w; noise adds O(n log n)."""
    language = shared_word(len(weights), weights, noise=1e-6)
    student = Ngram(language, memory=1)
    values = measure(student.logits(student.closest(language.next_word_logits())), language)
    assert values["phrase_mass"].item() == pytest.approx(sum(w * w for w in weights), abs=1e-4)
    assert values["forward_kl"].item() == pytest.approx(-sum(w * math.log(w) for w in weights), abs=1e-4)


@pytest.mark.parametrize("level", ["sentences", "teacher", "student"])
def test_forward_kl_finds_the_closest_model_at_either_level(level):
    """By the chain rule the sentence's KL is the sum of its tokens'. On its own sentences the student sees
    other contexts, but these shared words leave the same optimum up to the noise."""
    student = Ngram(LANGUAGE, memory=1)
    start = student.init(2, seed=0)
    if level == "sentences":
        path = distill(student, sentence_logits(TEACHER), "kl", start, 400)
    else:
        path = distill_tokens(student, "kl", start, 400, sentences=level)
    closest = student.logits(student.closest(TEACHER)).exp()
    found = student.logits(path.parameters[-1]).exp()
    torch.testing.assert_close(found, closest.expand(2, -1), atol=2e-3, rtol=0)


def test_reverse_kl_of_sentences_collapses_onto_one_phrase():
    student = Ngram(LANGUAGE, memory=1)
    path = distill(student, sentence_logits(TEACHER), "rkl", student.init(12, seed=0), 400)
    values = measure(student.logits(path.parameters[-1]), LANGUAGE)
    assert values["phrases_covered"].tolist() == [1] * 12
    assert values["phrase_mass"].min() > 0.99
    exact = torch.tensor(WEIGHTS).log().neg()
    nearest = (values["reverse_kl"].unsqueeze(-1) - exact).abs().min(-1)
    assert nearest.values.max() < 0.01  # −log w_k, the noise apart
    assert len(nearest.indices.unique()) > 1  # which phrase depends on the start


def test_reverse_kl_of_tokens_does_not_collapse_but_takes_the_geometric_mean():
    """Closed form: where contexts c share a state, Σ P(c) KL(q ‖ p_c) is least at q ∝ exp(Σ P(c) log p_c)."""
    student = Ngram(LANGUAGE, memory=1)
    path = distill_tokens(student, "rkl", student.init(3, seed=0), 600)
    often, states = context_probabilities(TEACHER), student.states()
    shared = states == 1 + 6  # contexts that end in the middle word, number 6
    share = often[shared] / often[shared].sum()
    expected = (share @ TEACHER[shared]).softmax(-1)
    found = path.parameters[-1][:, 1 + 6].softmax(-1)
    torch.testing.assert_close(found, expected.expand(3, -1), atol=2e-3, rtol=0)
    first = path.parameters[-1][:, 0].softmax(-1)[:, :3]  # the word that chooses the phrase: no collapse
    torch.testing.assert_close(first, torch.tensor(WEIGHTS).double().expand(3, -1), atol=2e-3, rtol=0)


def test_a_language_that_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="one weight per phrase"):
        Language(torch.tensor([[0, 1]]), torch.ones(2), words=2)
    with pytest.raises(ValueError, match="words below 1"):
        Language(torch.tensor([[0, 1]]), torch.ones(1), words=1)
