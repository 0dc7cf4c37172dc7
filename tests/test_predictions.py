"""Figure 3: what is said of a teacher's predictions."""

import math

import pytest
import torch
from conftest import PAD, VOCAB, tiny_examples, tiny_model
from scipy import special, stats

from taid.data import Collator
from taid.studies import predictions
from taid.studies.predictions import SHARES, UNITS, Run, describe, labels_of, summary
from taid.teacher import LiveTeacher

BATCHES = [Collator(PAD)(tiny_examples(6, seed=seed)) for seed in (0, 1)]


def test_a_prediction_is_described_against_scipy():
    """Oracle: scipy's entropy of fp64 softmaxes; an absent entry has none."""
    logits = 3 * torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    logits[0, 3] = -math.inf
    labels = torch.arange(9) % 3
    found, p = describe(logits, labels), special.softmax(logits.double().numpy(), -1)
    assert found["entropy"].numpy() == pytest.approx(stats.entropy(p, axis=-1), abs=1e-5)
    assert found["normalised_entropy"].numpy() == pytest.approx(stats.entropy(p, axis=-1, base=7), abs=1e-5)
    assert found["target_probability"].numpy() == pytest.approx(p[range(9), labels], abs=1e-6)


def test_the_least_and_the_most_sure():
    """By hand: uniform over V has entropy log V, a share of 1; one certain entry has none."""
    found = describe(torch.tensor([[0.0] * 4, [0.0, -1e9, -1e9, -1e9]]), torch.tensor([2, 0]))
    assert found["normalised_entropy"].tolist() == pytest.approx([1, 0])
    assert found["target_probability"].tolist() == pytest.approx([0.25, 1])


def test_labels_are_those_that_a_teachers_logits_predict():
    """Oracle: a model whose every logit is the label itself gives them all the probability 1."""
    live = LiveTeacher(tiny_model(seed=1))
    for batch in BATCHES:
        assert len(labels_of(batch)) == len(live(batch))
    expected = [token for row in BATCHES[0]["labels"].tolist() for token in row[1:] if token != -100]
    assert labels_of(BATCHES[0]).tolist() == expected
    images = {"labels": torch.tensor([3, -100, 5])}
    assert labels_of(images).tolist() == [3, 5]


def test_predictions_are_the_first_of_a_split_and_the_tokenizers_entries(monkeypatch):
    """Of a vocabulary that is padded to 60 entries."""
    teacher = LiveTeacher(tiny_model(seed=1, vocab_size=60))
    every = predictions.predictions(teacher, BATCHES, VOCAB)
    logits = torch.cat([teacher(batch)[:, :VOCAB] for batch in BATCHES])
    whole = describe(logits, torch.cat([*map(labels_of, BATCHES)]))
    assert torch.allclose(every["normalised_entropy"], whole["normalised_entropy"])
    monkeypatch.setattr(predictions, "MOST", 5)
    few = predictions.predictions(teacher, BATCHES, VOCAB)
    assert torch.equal(few["entropy"], every["entropy"][:5])


def test_a_summary_has_the_mean_and_what_shares_lie_below():
    """By hand: of 0, 1 … 20 a share of i/20 is at most i."""
    values = summary({"entropy": torch.arange(21.0)}, "test")
    assert values["entropy", "test"] == 10
    assert [values["entropy_at", f"test {share:.2f}"] for share in SHARES] == pytest.approx([*range(21)])
    assert {metric for metric, _ in values} <= set(UNITS)


def test_every_teacher_of_the_tables_is_asked():
    found = {(run.method, run.teacher) for run in predictions.runs("smoke")}
    assert len(found) == 7 + 3 and ("language", "phi-3-mini") in found and ("images", "ResNet50") in found
    with pytest.raises(ValueError, match="unknown teacher 'ResNet20'; known: ResNet56"):
        Run("smoke", "images", "ResNet20")
    with pytest.raises(ValueError, match="unknown modality 'sound'"):
        Run("smoke", "sound", "ResNet56")
    assert Run("smoke", "images", "VGG13").config() != Run("cpu", "images", "VGG13").config()
