"""A language small enough to be exact: averaging and collapse for models of sequences, without noise.

It has K phrases, sentences of L words out of V. The teacher knows them all; an n-gram student remembers the
last words only, so that phrases that share a word get mixed up. All V^L sentences are listed, so every
divergence between sequence distributions is a sum, and with sentences as the cells of `taid.toy`
sequence-level distillation is:

    language = shared_word(count=3)
    student = Ngram(language, memory=1)
    teacher = sentence_logits(language.next_word_logits())
    path = distill(student, teacher, "rkl", student.init(starts=8, seed=0), steps=400)

`distill_tokens` trains as language models are trained: a loss per token, of the teacher's or its own sentences.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from taid.objectives import objective
from taid.toy import Path, descend, expected_loss


@dataclass(frozen=True)
class Language:
    """Phrases [K, L] of word numbers below `words`, their weights [K], and the noise at every word.

    A context is a prefix of 0 … L − 1 words; there are C = 1 + V + … + V^(L−1), shorter first, then in order
    of words.
    """

    phrases: Tensor
    weights: Tensor
    words: int
    noise: float = 1e-3

    def __post_init__(self) -> None:
        if self.phrases.max() >= self.words or len(self.weights) != len(self.phrases):
            raise ValueError(f"need one weight per phrase and words below {self.words}; got {self}")

    @property
    def length(self) -> int:
        return self.phrases.shape[1]

    def contexts(self) -> list[Tensor]:
        """The prefixes of each length l below L, [V^l, l]."""
        return [_words_of(self.words, length) for length in range(self.length)]

    def next_word_logits(self) -> Tensor:
        """Log-probabilities of the next word after each context, [C, V].

        (1 − noise) · P(word | the phrases that begin so) + noise / V; uniform after what begins no phrase.
        """
        tables = []
        for length, prefixes in enumerate(self.contexts()):
            begins = (self.phrases[:, :length] == prefixes.unsqueeze(1)).all(-1)  # [V^l, K]
            follows = torch.nn.functional.one_hot(self.phrases[:, length], self.words)  # [K, V]
            mass = (begins * self.weights) @ follows.double()  # [V^l, V]
            total = mass.sum(-1, keepdim=True)
            p = torch.where(total > 0, mass / total, 1 / self.words)
            tables.append((1 - self.noise) * p + self.noise / self.words)
        return torch.cat(tables).log()

    def is_phrase(self) -> Tensor:
        """Which of the V^L sentences is which phrase: [K, V^L], boolean."""
        return (_words_of(self.words, self.length) == self.phrases.unsqueeze(1)).all(-1)


def shared_word(count: int, weights: list[float] | None = None, noise: float = 1e-3) -> Language:
    """`count` phrases "a_k m c_k" of three words that share the middle one: a bigram model forgets k at m.

    As the noise falls to 0, with weights w: the bigram model of least forward KL says "a_j m c_k" with
    probability w_j w_k, so all but Σ w² of its sentences are no phrases, and KL(p ‖ q) is the entropy of w.
    Under reverse KL every phrase alone is a local optimum, with KL(q ‖ p) = −log w_k.
    """
    first = torch.arange(count)
    phrases = torch.stack([first, torch.full_like(first, 2 * count), count + first], dim=-1)
    share = torch.tensor(weights or [1 / count] * count, dtype=torch.float64)
    return Language(phrases, share, 2 * count + 1, noise)


@dataclass(frozen=True)
class Ngram:
    """Next-word logits that depend on the last `memory` words alone; parameters [..., states, V].

    A state is a run of at most `memory` words: shorter ones are seen only at the beginning of a sentence.
    """

    language: Language
    memory: int = 1

    def init(self, starts: int, seed: int) -> Tensor:
        """Standard normal parameters."""
        generator = torch.Generator().manual_seed(seed)
        shape = (starts, int(self.states().max()) + 1, self.language.words)
        return torch.empty(shape, dtype=torch.float64).normal_(generator=generator)

    def states(self) -> Tensor:
        """State of each context, [C]."""
        words = self.language.words
        found = []
        for length, prefixes in enumerate(self.language.contexts()):
            kept = min(length, self.memory)
            powers = words ** torch.arange(kept - 1, -1, -1)
            shorter = sum(words**n for n in range(kept))
            found.append(shorter + (prefixes[:, length - kept :] * powers).sum(-1))
        return torch.cat(found)

    def next_word_logits(self, parameters: Tensor) -> Tensor:
        """[..., states, V] -> [..., C, V]"""
        return parameters[..., self.states(), :]

    def logits(self, parameters: Tensor) -> Tensor:
        """Log-probabilities of all sentences, [..., V^L]: a student for `taid.toy.distill`."""
        return sentence_logits(self.next_word_logits(parameters))

    def closest(self, next_word_logits: Tensor) -> Tensor:
        """Parameters [states, V] of least forward KL to a teacher [C, V], in closed form: its expected n-gram
        counts.

        States that the teacher never visits are left uniform.
        """
        often = context_probabilities(next_word_logits).unsqueeze(-1)  # [C, 1]
        visits = often * next_word_logits.softmax(-1)  # [C, V]
        states = self.states()
        counts = visits.new_zeros(int(states.max()) + 1, visits.shape[-1]).index_add(0, states, visits)
        return torch.where(counts.sum(-1, keepdim=True) > 0, counts, 1.0).log()


def sentence_logits(next_word_logits: Tensor) -> Tensor:
    """Log-probabilities of all sentences, in the order of their words: [..., C, V] -> [..., V^L]."""
    return _prefix_log_probabilities(next_word_logits)[-1]


def context_probabilities(next_word_logits: Tensor) -> Tensor:
    """How often each context occurs in a sentence, [..., C, V] -> [..., C]; they sum to L."""
    return torch.cat(_prefix_log_probabilities(next_word_logits)[:-1], dim=-1).exp()


def distill_tokens(
    student: Ngram,
    method: str,
    start: Tensor,
    steps: int,
    sentences: Literal["teacher", "student"] = "teacher",
    learning_rate: float = 0.1,
    **options,
) -> Path:
    """Train as language models are trained: the mean per-token loss over contexts, in their exact
    proportions.

    The contexts are those of the teacher's sentences, or of the student's own (GKD), whose frequency is then
    taken as given: no gradient flows through the sampling. `options` are the method's.
    """
    criterion = objective(method, **options)
    teacher_logits = student.language.next_word_logits()  # [C, V]

    def loss(parameters: Tensor) -> Tensor:
        logits = student.next_word_logits(parameters)  # [S, C, V]
        teacher = teacher_logits.expand_as(logits)
        often = context_probabilities(logits.detach() if sentences == "student" else teacher)  # [S, C]
        return (often * expected_loss(criterion, logits, teacher)).sum(-1) / student.language.length

    return descend(criterion, loss, start, steps, learning_rate)


def measure(sentences: Tensor, language: Language) -> dict[str, Tensor]:
    """What students make of the language, from their `sentence_logits` [..., V^L]; every value [...].

    - phrase_mass: mass on all phrases; phrases_covered: those with at least half of their share of it
    - entropy, forward_kl, reverse_kl: of whole sentences [nats]
    """
    log_q, log_p = sentences, sentence_logits(language.next_word_logits())
    q, p, phrases = log_q.exp(), log_p.exp(), language.is_phrase().double().T  # [V^L, K]
    said = q @ phrases  # [..., K]
    phrase_mass = said.sum(-1)
    return {
        "phrases_covered": (said >= 0.5 * language.weights * phrase_mass.unsqueeze(-1)).sum(-1),
        "phrase_mass": phrase_mass,
        "entropy": -(q * log_q).sum(-1),
        "forward_kl": (p * (log_p - log_q)).sum(-1),
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
    }


def _prefix_log_probabilities(next_word_logits: Tensor) -> list[Tensor]:
    """Of the prefixes of each length l = 0 … L, [..., V^l]."""
    log_p = next_word_logits.log_softmax(-1)  # [..., C, V]
    levels = [log_p.new_zeros(*log_p.shape[:-2], 1)]
    done = 0
    while done < log_p.shape[-2]:
        width = levels[-1].shape[-1]
        step = log_p[..., done : done + width, :]  # [..., V^l, V]
        levels.append((levels[-1].unsqueeze(-1) + step).flatten(-2))
        done += width
    return levels


def _words_of(words: int, length: int) -> Tensor:
    """All word sequences of a length in order, [words^length, length]."""
    index = torch.arange(words**length).unsqueeze(-1)
    return index // words ** torch.arange(length - 1, -1, -1) % words
