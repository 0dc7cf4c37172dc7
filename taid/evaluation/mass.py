"""Where a student's probability lies: on the top of a ranking of the vocabulary, or far down in it (Table 3).

The paper's text was not at hand; of its Table 3 we know "head: mass of the top-10 tokens; tail: mass of the
tokens in the 80–100th percentile", but not whose ranking counts. So the ranking is an argument. Our reading is
the teacher's, token by token: what does the student do with what the teacher holds likely or unlikely? The
paper's heads (0.22) look low for ten tokens chosen anew at every position: it may have ranked them only once.

    probability_mass(student, teacher)                         ranked by the teacher at every token (ours)
    probability_mass(student, student)                         ranked by the student itself
    probability_mass(student, log_mean_probability(teacher))   ranked once, by the teacher's mean distribution
"""

import math

from torch import Tensor


def probability_mass(
    logits: Tensor, ranking: Tensor, head: int = 10, tail: float = 0.8
) -> tuple[Tensor, Tensor]:
    """Mass of softmax(logits [..., V]) on the `head` top tokens of a ranking, and past its share `tail`.

    `ranking` are logits, [..., V] or [V], highest first; ties keep the vocabulary's order. The tail is the
    ranks from `tail` · V on, rounded. Both masses are [...], in [0, 1], in fp64. Padding entries (−∞) fill
    the tail's ranks with nothing: cut them off first. Raises ValueError where head and tail would overlap.
    """
    first = round(tail * logits.shape[-1])
    if not 0 < head <= first:
        raise ValueError(f"a head of {head} and a tail from rank {first} overlap: choose a smaller head")
    ranked = _ranked(logits, ranking)
    return ranked[..., :head].sum(-1), ranked[..., first:].sum(-1)


def mass_by_rank(logits: Tensor, ranking: Tensor) -> Tensor:
    """Mean over all tokens of the mass at each rank, [V] in fp64; arguments as in `probability_mass`."""
    return _ranked(logits, ranking).flatten(0, -2).mean(0)


def log_mean_probability(logits: Tensor) -> Tensor:
    """log of the mean of softmax(logits) over all tokens: one ranking of the vocabulary. [..., V] -> [V],
    fp64
    """
    rows = logits.double().log_softmax(-1).flatten(0, -2)  # [n, V]
    return rows.logsumexp(0) - math.log(len(rows))


def _ranked(logits: Tensor, ranking: Tensor) -> Tensor:
    """softmax(logits) with its entries in the order of the ranking, [..., V]; fp64, for tails near 1e-6."""
    order = ranking.argsort(dim=-1, descending=True, stable=True).expand_as(logits)
    return logits.double().softmax(-1).gather(-1, order)
