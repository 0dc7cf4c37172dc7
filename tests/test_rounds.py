"""Repeated rounds with language models: what is trained on what and what is measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PAD, VOCAB, tiny_examples, tiny_model, tiny_trainer
from page_rows import row
from scipy import special, stats

from taid import results, theory
from taid.data import Collator
from taid.logits import response_logits
from taid.studies import instruction_tuning, rounds
from taid.teacher import LiveTeacher

BATCH = Collator(PAD)(tiny_examples(6))
LABELS = response_logits(tiny_model(), BATCH)[1]
KL = instruction_tuning.Run("cpu", "kl", rounds.TEACHER, seed=0, learning_rate=3e-3)


def fresh():
    return tiny_model("gpt_neox", seed=0)


def teacher() -> LiveTeacher:
    return LiveTeacher(tiny_model("stablelm", seed=1))


def logits_of(model) -> torch.Tensor:
    return LiveTeacher(model)(BATCH)


def random_logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(len(LABELS), VOCAB, generator=generator, dtype=torch.float64)


# Training


@pytest.fixture
def train(tmp_path):
    """Two steps of the trainer that the study uses, with its objective."""

    def two_steps(student, target):
        tiny_trainer(tmp_path, "kl", student=student, teacher=target, steps=2).train()

    return two_steps


def test_with_weight_one_every_round_is_plain_distillation(train):
    """Oracle: the trainer with the teacher itself. Equal seeds, so equal to the last bit."""
    plain = fresh()
    train(plain, tiny_model("stablelm", seed=1))
    first, second = map(logits_of, rounds.chain(fresh, teacher(), (1.0, 1.0), train))
    assert torch.equal(first, logits_of(plain)) and torch.equal(second, logits_of(plain))


def test_variants_share_their_first_round_and_part_in_the_second(train):
    def students(weight: float) -> list[torch.Tensor]:
        return [logits_of(model) for model in rounds.chain(fresh, teacher(), (weight, weight), train)]

    repeated, mixed, again = students(0.0), students(0.5), students(0.5)
    assert torch.equal(repeated[0], mixed[0]) and not torch.equal(repeated[1], mixed[1])
    assert all(map(torch.equal, mixed, again))  # deterministic


@pytest.mark.parametrize(
    ("weights", "calls"),
    [((0.0, 0.0, 0.0), 1), ((0.0, 0.5, 0.0), 2), ((0.5, 0.5, 0.5), 3), ((1.0, 1.0, 1.0), 3)],
)
def test_a_round_without_weight_never_asks_the_teacher(weights, calls):
    asked, source = [], teacher()

    def counting(batch):
        asked.append(batch)
        return source(batch)

    list(rounds.chain(fresh, counting, weights, lambda student, target: target(BATCH)))
    assert len(asked) == calls


def test_each_round_starts_afresh_and_learns_from_the_last():
    """Oracle: p^λ q^(1−λ), normalised, in numpy. `train` spoils the students, so that none equals another."""
    p, weights, seen, students = teacher()(BATCH).numpy(), (0.0, 0.0, 0.3, 0.8), [], []

    def train(student, target):
        assert torch.equal(logits_of(student), logits_of(fresh()))
        seen.append(special.softmax(target(BATCH).numpy(), -1))
        with torch.no_grad():
            student.train().get_output_embeddings().weight.mul_(1 + len(seen))

    models = rounds.chain(fresh, teacher(), weights, train)
    students.extend(special.softmax(logits_of(model).double().numpy(), -1) for model in models)
    p = special.softmax(p.astype(float), -1)
    for weight, previous, found in zip(weights, [p, *students], seen, strict=False):
        blend = p**weight * previous ** (1 - weight)
        np.testing.assert_allclose(found, blend / blend.sum(-1, keepdims=True), atol=1e-6)  # fp32 logits


# Measuring


def test_measures_agree_with_scipy():
    z, y, s = random_logits(0), random_logits(1), random_logits(2)
    q, p = (special.softmax(logits.numpy(), -1) for logits in (z, y))
    found = rounds.measures(z, y, s, LABELS)
    entropy = stats.entropy(q, axis=-1)
    assert found["entropy"] == pytest.approx(entropy.mean(), rel=1e-12)
    assert found["effective_support"] == pytest.approx(np.exp(entropy).mean(), rel=1e-12)
    assert found["kl_to_teacher"] == pytest.approx(stats.entropy(p, q, axis=-1).mean(), rel=1e-12)
    assert found["held_out_loss"] == pytest.approx(-np.log(q[range(len(q)), LABELS]).mean(), rel=1e-12)
    assert found["agreement"] == (q.argmax(-1) == p.argmax(-1)).mean()
    parallelogram = 1 + found["signal"] ** 2 - 2 * found["share"]  # ‖y − z‖² / ‖y‖²
    assert found["drift"] ** 2 == pytest.approx(parallelogram, rel=1e-12)


def test_measures_depend_on_distributions_alone():
    """Logits that differ by a constant per token are the same distribution."""
    three, shifts = [random_logits(i) for i in range(3)], torch.randn(3, len(LABELS), 1, dtype=torch.float64)
    shifted = [logits + shift for logits, shift in zip(three, shifts, strict=True)]
    assert rounds.measures(*shifted, LABELS) == pytest.approx(rounds.measures(*three, LABELS), rel=1e-9)


def test_the_teacher_has_all_of_the_signal_and_the_untrained_student_none():
    y, s = random_logits(1), random_logits(2)
    whole, nothing = rounds.measures(y, y, s, LABELS), rounds.measures(s, y, s, LABELS)
    names = ("signal", "share", "drift")
    assert [whole[name] for name in names] == pytest.approx([1, 1, 0])
    assert [nothing[name] for name in names] == pytest.approx([0, 0, 1])
    assert whole["kl_to_teacher"] == pytest.approx(0, abs=1e-12) and whole["agreement"] == 1


@pytest.mark.parametrize("weights", rounds.VARIANTS.values(), ids=rounds.VARIANTS)
def test_drift_never_exceeds_what_is_kept_of_it_plus_the_residual(weights):
    """docs/theory.md, 2.1: e_{t+1} = (1 − λ_t) e_t + R_t, for whatever the rounds give."""
    students = map(random_logits, range(10, 16))
    found = rounds.trajectory(students, random_logits(1), random_logits(2), LABELS, weights)
    for t, weight in enumerate(weights):
        kept = (1 - weight) * found["drift", f"round {t}"]
        assert found["drift", f"round {t + 1}"] <= kept + found["residual", f"round {t + 1}"] + 1e-12


@pytest.mark.parametrize("weights", rounds.VARIANTS.values(), ids=rounds.VARIANTS)
def test_residuals_of_one_size_along_the_teacher_attain_the_bound(weights):
    """docs/theory.md, 2.3, the tight case: every fit leaves y/r₀ of its target, r₀ = 8, until it collapses.
    Oracle: `theory.drift`."""
    y, start = rounds.centred(random_logits(1)), torch.zeros(len(LABELS), VOCAB, dtype=torch.float64)
    students, z = [], y
    for weight in weights:
        z = (1 - weight) * z + weight * y - y / 8
        students.append(z)
    found = rounds.trajectory(students, y, start, LABELS, weights)
    expected = theory.drift([*weights, 1.0]) / 8
    for metric in ("drift", "drift_bound"):
        assert [found[metric, f"round {t}"] for t in range(1, 7)] == pytest.approx(expected[1:], rel=1e-12)
    assert found["signal_strength", "all rounds"] == pytest.approx(8)
    assert found["non_collapse_bound", "all rounds"] == theory.non_collapse_bound(weights)


def test_variants_are_those_of_the_theory():
    """By hand, T = 6: self-distillation has B = 1 + 5; a constant 0.2 has δ_5 = (1 − 0.8⁵)/0.2 = 3.3616."""
    assert rounds.VARIANTS["taid"] == pytest.approx([t / 6 for t in range(6)])
    bounds = {variant: theory.non_collapse_bound(weights) for variant, weights in rounds.VARIANTS.items()}
    assert bounds["self_distillation"] == 6 and bounds["constant"] == pytest.approx(1 + 0.8 * 3.3616)
    assert bounds["taid"] < bounds["constant"]


@pytest.mark.slow
def test_the_first_round_is_table_1s_student(cache):
    """End to end at the scale "smoke". Oracle: Table 1's own run and measurement of KL."""
    kl = replace(KL, scale="smoke")
    values, _ = rounds.measure(rounds.Chain("taid", kl))
    table1, _ = instruction_tuning.measure(kl, "validation")
    assert values["kl_to_teacher", "round 1"] == pytest.approx(table1["kl_to_teacher", "average"], rel=1e-4)
    assert {metric for metric, _ in values} == set(rounds.UNITS)
    assert values["kl_to_teacher", "round 2"] != values["kl_to_teacher", "round 1"]


# Rows


def test_a_chain_is_named_by_everything_that_decides_it(monkeypatch):
    chains = [rounds.Chain(variant, KL) for variant in rounds.VARIANTS]
    chains += [rounds.Chain("taid", replace(KL, **field)) for field in ({"seed": 1}, {"learning_rate": 1e-2})]
    hashes = [results.config_hash(chain.config()) for chain in chains]
    monkeypatch.setitem(rounds.VARIANTS, "taid", (0.0, 0.5))
    hashes.append(results.config_hash(rounds.Chain("taid", KL).config()))
    assert len(set(hashes)) == len(hashes) == 6


def test_the_learning_rate_is_table_1s_choice_for_kl():
    chosen = row(1.0, method="kl", teacher=rounds.TEACHER, config={"learning_rate": 0.01})
    elsewhere = {"method": "rkl", "scale": "smoke", "teacher": "llama-2", "experiment": "table1_search"}
    others = [replace(chosen, config={"learning_rate": 9.0}, **{k: v}) for k, v in elsewhere.items()]
    assert rounds.learning_rate([chosen, *others], "cpu") == 0.01
    with pytest.raises(ValueError, match="run `make table1-protocol-1 SCALE=cpu` first"):
        rounds.learning_rate(others, "cpu")
