"""Head and tail mass: hand-checked numbers, invariances, and loops in numpy as the oracle."""

import math

import numpy as np
import pytest
import torch

from taid.evaluation.mass import log_mean_probability, mass_by_rank, probability_mass

# Five tokens: the student's probabilities, and two rankings of the tokens.
STUDENT = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]], dtype=torch.float64).log()
TEACHER = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]).double()  # its top token is the last


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("ranking", "head", "tail"),
    [(TEACHER, 0.05 + 0.1, 0.4), (STUDENT, 0.4 + 0.3, 0.05), (TEACHER[0], 0.15, 0.4)],
    ids=["teacher", "student", "one ranking"],
)
def test_hand_checked(ranking, head, tail):
    """Head of two; of five tokens the 80–100th percentile is the last rank."""
    masses = probability_mass(STUDENT, ranking, head=2)
    assert torch.cat(masses).tolist() == pytest.approx([head, tail], rel=1e-12)


def test_agrees_with_a_loop():
    """Oracle: numpy, token by token. 57 · 0.8 = 45.6 rounds to 46."""
    student, teacher = random_logits(6, 57), random_logits(6, 57, seed=1)
    head, tail = probability_mass(student, teacher)
    for i in range(6):
        q = np.exp(student[i].double().numpy())
        q /= q.sum()
        order = sorted(range(57), key=lambda token: -teacher[i, token].item())
        assert head[i].item() == pytest.approx(sum(q[order[:10]]), rel=1e-12)
        assert tail[i].item() == pytest.approx(sum(q[order[46:]]), rel=1e-12)


def test_the_order_of_the_vocabulary_is_irrelevant():
    student, teacher = random_logits(4, 40), random_logits(4, 40, seed=1)
    shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    for before, after in zip(
        probability_mass(student, teacher),
        probability_mass(student[:, shuffle], teacher[:, shuffle]),
        strict=True,
    ):
        torch.testing.assert_close(before, after)


def test_no_ranking_gives_the_student_more_head_or_less_tail_than_its_own():
    student, teacher = random_logits(50, 100), random_logits(50, 100, seed=1)
    own_head, own_tail = probability_mass(student, student)
    head, tail = probability_mass(student, teacher)
    assert (own_head > head).all() and (own_tail < tail).all()


def test_tails_of_1e_7_survive_single_precision():
    """Oracle: 20 logits of 0 above 20 of −20, whose tail of 8 has the mass 8 e^−20 / (20 + 20 e^−20)."""
    logits = torch.tensor([[0.0] * 20 + [-20.0] * 20])
    _, tail = probability_mass(logits, logits)
    assert tail.item() == pytest.approx(8 * math.exp(-20) / (20 + 20 * math.exp(-20)), rel=1e-12)


def test_mass_by_rank_is_a_distribution_that_holds_head_and_tail():
    student, teacher = random_logits(3, 7, 50), random_logits(3, 7, 50, seed=1)
    by_rank = mass_by_rank(student, teacher)
    head, tail = probability_mass(student, teacher)
    assert by_rank.sum().item() == pytest.approx(1, rel=1e-12)
    assert by_rank[:10].sum().item() == pytest.approx(head.mean().item(), rel=1e-12)
    assert by_rank[40:].sum().item() == pytest.approx(tail.mean().item(), rel=1e-12)
    assert (mass_by_rank(student, student).diff() <= 0).all()


def test_log_mean_probability_is_the_mean():
    logits = random_logits(3, 7, 20)
    expected = logits.double().softmax(-1).mean((0, 1))
    torch.testing.assert_close(log_mean_probability(logits).exp(), expected)


def test_a_head_that_reaches_into_the_tail_is_refused():
    with pytest.raises(ValueError, match="smaller head"):
        probability_mass(STUDENT, TEACHER, head=5)
