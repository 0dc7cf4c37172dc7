"""Figure 1: when a student is looked at, and what is seen."""

import math

import pytest
import torch
from conftest import PAD, VOCAB, tiny_examples, tiny_model, tiny_trainer
from scipy import special, stats

from taid.data import Collator
from taid.logits import response_logits
from taid.objectives import TAID
from taid.schedule import Linear
from taid.studies import moving_bridge
from taid.studies.moving_bridge import RANKS, SHARES, UNITS, Run, Watched, picture
from taid.teacher import LiveTeacher

BATCHES = [Collator(PAD)(tiny_examples(6, seed=seed)) for seed in (0, 1)]


def test_a_student_is_looked_at_before_the_updates_at_which_a_share_is_done(tmp_path):
    """Oracle: the linear schedule, whose t after n of 40 updates is 0.2 + 0.8 n / 40."""
    seen, student = [], tiny_model(seed=0)

    def look(share, t):
        seen.append((share, t, next(student.parameters()).detach().clone()))

    watched = Watched(TAID(Linear(0.2)), look, SHARES[:-1])
    before = next(student.parameters()).detach().clone()
    tiny_trainer(tmp_path, watched, student=student, steps=40).train()
    assert [share for share, _, _ in seen] == list(SHARES[:-1])
    assert [t for _, t, _ in seen] == pytest.approx([0.2 + 0.8 * share for share in SHARES[:-1]])
    assert torch.equal(seen[0][2], before) and not torch.equal(seen[1][2], before)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_a_picture_against_scipy(t):
    """Oracle: fp64 probabilities by hand, over both batches' tokens at once."""
    student, teacher = tiny_model(seed=0), tiny_model("phi3", seed=1)
    live = LiveTeacher(teacher)
    found = picture(student, live, t, BATCHES, VOCAB)
    with torch.no_grad():
        s = torch.cat([response_logits(student, batch)[0] for batch in BATCHES]).double().numpy()
        z = torch.cat([live(batch) for batch in BATCHES]).double().numpy()
    q, p, target = (special.softmax(x, -1) for x in (s, z, (1 - t) * s + t * z))
    expected = {"t": t, "kl_to_target": stats.entropy(target, q, axis=-1).mean()}
    expected["kl_to_teacher"] = stats.entropy(p, q, axis=-1).mean()
    for who, of in (("student", q), ("target", target), ("teacher", p)):
        expected[f"{who}_entropy"] = stats.entropy(of, axis=-1).mean()
        for rank in range(1, RANKS + 1):
            expected[f"{who} rank {rank}"] = of[range(len(p)), (-p).argsort(-1)[:, rank - 1]].mean()
    assert found == pytest.approx(expected, abs=1e-5)
    assert student.training  # as it was


def test_every_metric_has_a_unit():
    found = picture(tiny_model(seed=0), LiveTeacher(tiny_model(seed=1)), 0.5, BATCHES[:1], VOCAB)
    assert {name.partition(" ")[0] for name in found} == set(UNITS)
    assert all(math.isfinite(value) for value in found.values())


def test_a_run_is_named_by_where_it_is_looked_at(monkeypatch):
    run = Run("cpu", "taid", "phi-3-mini", 0, 1e-2)
    before = run.config()
    monkeypatch.setattr(moving_bridge, "SHARES", (0.0, 1.0))
    assert run.config() != before
    with pytest.raises(ValueError, match="unknown method 'rkl'; known: kl, taid"):
        Run("cpu", "rkl", "phi-3-mini", 0, 1e-2)
