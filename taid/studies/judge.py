"""Scores from 0 to 10 per category, as MT-Bench gives, without a paid judge.

Verified categories: 10 × the share of responses that the verifier accepts.
Judged categories: the mean log-likelihood per token of the responses under a judge model, on a scale on which the
untrained student's responses get 0 and the human ones 10; a response counts once, however often it is given.

The headline follows MT-Bench in answering greedily where there is a right answer and sampling where there is not. It
samples at temperature 1, not at MT-Bench's 0.7: likelihood rewards blandness, and at 0.7 every tuned model is likelier
than people are (the scale's ceiling), whereas at 1 a model that writes as people do scores 10.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from taid.data import encode
from taid.evaluation.generation import distinct_bigrams, generate
from taid.evaluation.likelihood import held_out_loss
from taid.studies.instructions import CATEGORIES, JUDGED, VERIFIED, Instruction

TEMPERATURE = 1.0
MAX_NEW_TOKENS = 16


def verified(instructions: Sequence[Instruction], responses: Sequence[str]) -> float:
    """10 × the share of responses that are one of the instruction's accepted answers (case and outer space ignored)."""
    right = sum(
        response.strip().lower() in instruction.answers
        for instruction, response in zip(instructions, responses, strict=True)
    )
    return 10 * right / len(instructions)


@dataclass(frozen=True)
class Judge:
    """A language model that scores prose by its likelihood.

    `untrained` and `human` hold, by category, the mean log-likelihoods per token of the two ends of the scale. Raises
    ValueError where they are not apart: then the judge cannot tell text from noise.
    """

    model: object
    tokenizer: object
    collator: Callable
    human: dict[str, float]
    untrained: dict[str, float]

    def __post_init__(self):
        for category, high in self.human.items():
            if not high > self.untrained[category]:
                raise ValueError(
                    f"the judge finds human responses ({high:.2f} nats/token) no likelier than an untrained student's "
                    f"({self.untrained[category]:.2f}) in {category!r}: train it longer"
                )

    def score(self, category: str, instructions: Sequence[Instruction], responses: Sequence[str]) -> float:
        """10 (ℓ − ℓ_untrained) / (ℓ_human − ℓ_untrained), cut to [0, 10], ℓ the `likelihood`."""
        low, high = self.untrained[category], self.human[category]
        found = self.likelihood(category, instructions, responses)
        return min(10.0, max(0.0, 10 * (found - low) / (high - low)))

    def likelihood(
        self, category: str, instructions: Sequence[Instruction], responses: Sequence[str]
    ) -> float:
        """Mean log-likelihood per token of the responses [nats/token].

        A response that was given to an earlier prompt as well counts ℓ_untrained: what answers every prompt answers
        none. (Without this "of the", said to everything, scored 9 to 10.)
        """
        likelihoods = log_likelihoods(self.model, self.tokenizer, self.collator, instructions, responses)
        first = {response: i for i, response in reversed(list(enumerate(responses)))}
        counted = [
            value if first[r] == i else self.untrained[category]
            for i, (value, r) in enumerate(zip(likelihoods, responses, strict=True))
        ]
        return mean(counted)


def log_likelihoods(model, tokenizer, collator, instructions, responses: Sequence[str]) -> list[float]:
    """Log-likelihood per token of each response under `model`, end of sequence included [nats/token]."""
    examples = encode(tokenizer, [i.prompt for i in instructions], responses)
    return [-loss for loss in held_out_loss(model, examples, collator)]


def by_category(instructions: Sequence[Instruction], responses: Sequence[str]) -> dict[str, tuple[list, ...]]:
    """{category: (its instructions, their responses)}, categories in their fixed order."""
    pairs = list(zip(instructions, responses, strict=True))
    return {
        category: tuple(map(list, zip(*chosen, strict=True)))
        for category in CATEGORIES
        if (chosen := [pair for pair in pairs if pair[0].category == category])
    }


def category_scores(
    judge: Judge, instructions: Sequence[Instruction], responses: Sequence[str]
) -> dict[str, float]:
    """{category: points of 10} for one response to each instruction."""
    return {
        category: verified(*items) if category in VERIFIED else judge.score(category, *items)
        for category, items in by_category(instructions, responses).items()
    }


def evaluate(
    model, tokenizer, judge: Judge, instructions: Sequence[Instruction], seed: int
) -> dict[str, dict[str, float]]:
    """{metric: {category: points of 10}} for "score_greedy", "score_sampled" and the headline "score", and
    {"distinct_bigrams": {"all": fraction}} of the sampled responses."""
    examples = encode(tokenizer, [i.prompt for i in instructions], [i.response for i in instructions])
    greedy = generate(model, tokenizer, examples, MAX_NEW_TOKENS)
    sampled = generate(model, tokenizer, examples, MAX_NEW_TOKENS, TEMPERATURE, seed)
    scores = {
        "score_greedy": category_scores(judge, instructions, greedy),
        "score_sampled": category_scores(judge, instructions, sampled),
    }
    scores["score"] = {
        category: scores["score_sampled" if category in JUDGED else "score_greedy"][category]
        for category in scores["score_greedy"]
    }
    return scores | {"distinct_bigrams": {"all": distinct_bigrams(sampled)}}
