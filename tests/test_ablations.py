"""Variants of TAID: what their gradients are, what a run is named by."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from page_rows import row as row_of
from torch.nn.functional import cross_entropy

from analysis.ablations import GROUPS
from taid import losses, results, schedule
from taid.objectives import TAID
from taid.studies import ablations, instruction_tuning, study, variants

ROOT = Path(__file__).parents[1]
RUN = ablations.Run("cpu", "taid", ablations.TEACHER, seed=0, learning_rate=1e-2)
GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = 2 * torch.randn(2, 7, 11, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(11, (7,), generator=GENERATOR)
Q, P = STUDENT.softmax(-1), TEACHER.softmax(-1)


def loss_and_gradient(loss, t: float, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [n] and the gradient of their sum, [n, V]."""
    student = STUDENT.clone().requires_grad_()
    values = loss(student, TEACHER, LABELS, t, **options)
    return values.detach(), torch.autograd.grad(values.sum(), student)[0]


def gradient(loss, t: float, **options) -> torch.Tensor:
    return loss_and_gradient(loss, t, **options)[1]


def close(found, expected, rtol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12)


# Losses; in fp64, by their gradients


KNOWN = {"reverse": losses.reverse_kl, "probability": losses.forward_kl}


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("name", KNOWN)
def test_two_variants_have_t_times_the_gradient_of_a_known_loss(name, t):
    """docs/theory.md, 4.7; oracle: autograd through the loss without a t, and for KL its closed form q − p."""
    known = gradient(lambda student, teacher, labels, t: KNOWN[name](student, teacher), t)
    close(gradient(variants.BLENDS[name], t), t * known)
    if name == "probability":
        close(known, Q - P)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_their_values_are_smaller_than_t_times_the_loss(t):
    """docs/theory.md, 4.7: by log Σ q^(1−t) p^t, which is below 0, and by convexity."""
    value, _ = loss_and_gradient(variants.reverse, t)
    close(value, t * losses.reverse_kl(STUDENT, TEACHER) + (Q ** (1 - t) * P**t).sum(-1).log())
    assert (value < t * losses.reverse_kl(STUDENT, TEACHER)).all()
    blended, _ = loss_and_gradient(variants.probability, t)
    assert (blended < t * losses.forward_kl(STUDENT, TEACHER)).all()


@pytest.mark.parametrize("t", [0.3, 0.9])
def test_cross_entropy_has_taids_gradient_and_the_entropy_more(t):
    (value, found), (plain, expected) = (
        loss_and_gradient(f, t) for f in (variants.cross_entropy_signal, variants.taid)
    )
    close(found, expected)
    target = losses.interpolate(STUDENT, TEACHER, t)
    close(value - plain, torch.special.entr(target.softmax(-1)).sum(-1))


def test_the_reverse_takes_the_student_first():
    """Oracle: Σ q (log q − log p_t) with p_t held fixed."""
    log_target = losses.interpolate(STUDENT, TEACHER, 0.3).log_softmax(-1)
    close(loss_and_gradient(variants.reverse, 0.3)[0], (Q * (Q.log() - log_target)).sum(-1))


@pytest.mark.parametrize("loss", [variants.taid, variants.probability, variants.over_t])
def test_at_the_end_all_are_the_forward_kl(loss):
    value, found = loss_and_gradient(loss, 1.0)
    close(value, losses.forward_kl(STUDENT, TEACHER))
    close(found, Q - P)


@pytest.mark.parametrize("loss", [variants.taid, variants.probability])
def test_at_the_start_there_is_nothing_to_learn(loss):
    value, found = loss_and_gradient(loss, 0.0)
    close(value, torch.zeros_like(value)), close(found, torch.zeros_like(found))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="t_start > 0"):
        variants.over_t(STUDENT, TEACHER, LABELS, 0.0)
    with pytest.raises(ValueError, match="between 1 and V − 1 = 10, got 11"):
        variants.truncated(TEACHER, 11, tail=True)


def test_divided_by_t_is_divided_by_t():
    close(gradient(variants.over_t, 0.2), gradient(variants.taid, 0.2) / 0.2)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_data_enters_by_its_ratio(ratio):
    value = loss_and_gradient(variants.with_data, 0.4, ratio=ratio)[0]
    data = cross_entropy(STUDENT, LABELS, reduction="none")
    close(value, (1 - ratio) * losses.taid_kl(STUDENT, TEACHER, 0.4) + ratio * data)


@pytest.mark.parametrize("direction", ["kl", "taid"])
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_matched_gradients_have_ones_direction_and_the_others_size(direction, t):
    """Oracle: the gradients q − p and q − p_t themselves."""
    target = losses.interpolate(STUDENT, TEACHER, t).softmax(-1)
    of = {"kl": Q - P, "taid": Q - target}
    own, other = of[direction], of["taid" if direction == "kl" else "kl"]
    whole = gradient(variants.matched, t, direction=direction)
    close(whole, own * other.norm() / own.norm())
    each = gradient(variants.matched, t, direction=direction, per_token=True)
    close(each, own * other.norm(dim=-1, keepdim=True) / own.norm(dim=-1, keepdim=True))


def test_where_both_agree_nothing_is_scaled_to_nan():
    student = TEACHER.clone().requires_grad_()
    value = variants.matched(student, TEACHER, LABELS, 0.5, direction="kl").sum()
    assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, student)[0]).all()


@pytest.mark.parametrize("k", [1, 5, 10])
def test_truncated_logits_keep_the_largest_and_with_a_tail_their_mass(k):
    """Oracle: numpy, by sorting."""
    p = P.numpy()
    top = np.argsort(-p, axis=-1)[:, :k]
    with_tail = variants.truncated(TEACHER, k, tail=True).softmax(-1).numpy()
    renormalised = variants.truncated(TEACHER, k, tail=False).softmax(-1).numpy()
    for row, (kept, whole) in enumerate(zip(top, p, strict=True)):
        np.testing.assert_allclose(with_tail[row, kept], whole[kept])
        others = np.delete(with_tail[row], kept)
        np.testing.assert_allclose(others, (1 - whole[kept].sum()) / (11 - k))
        np.testing.assert_allclose(renormalised[row, kept], whole[kept] / whole[kept].sum())
        assert not np.delete(renormalised[row], kept).any()


def test_all_but_one_logit_with_the_tail_is_all_of_them():
    close(gradient(variants.top_k, 0.5, k=10, tail=True), gradient(variants.taid, 0.5))


@pytest.mark.parametrize("name", variants.BLENDS)
def test_half_precision_is_computed_in_single(name):
    options = {"with_data": {"ratio": 0.5}, "top_k": {"k": 3, "tail": True}, "matched": {"direction": "kl"}}
    half = STUDENT.bfloat16(), TEACHER.bfloat16()
    found, expected = (
        variants.BLENDS[name](*(x.to(kind) for x in half), LABELS, 0.5, **options.get(name, {}))
        for kind in (torch.bfloat16, torch.float64)
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_blend_of_taids_loss_is_taid():
    line = schedule.Adaptive(0.4, alpha=0.1)
    blend, plain = variants.Blend(variants.taid, line), TAID(line)
    for step, loss in enumerate((2.0, 1.0, 1.5), start=1):
        found, expected = (objective(STUDENT, TEACHER, LABELS) for objective in (blend, plain))
        close(found, expected, rtol=1e-6)  # TAID's own may be fused, and round elsewhere
        blend.update(loss, step / 3), plain.update(loss, step / 3)
    assert blend.state == plain.state and blend.state.t > 0.4


# Runs


def trace_of(run: ablations.Run) -> list[dict[str, float]]:
    return [{"loss": 1.0, "t": 0.5 + run.seed / 100}, {"loss": 1.0, "t": 1.0}]


@pytest.mark.parametrize("name", ablations.VARIANTS)
def test_every_variant_trains(name, monkeypatch):
    """Its objective has a gradient, its name stands for it in JSON, and the page shows it."""
    monkeypatch.setattr(ablations, "trace", trace_of)
    run = replace(RUN, method=name)
    objective = run.objective()
    student, teacher = torch.randn(2, 7, 60, generator=GENERATOR)  # more than 50 tokens
    loss = objective(student.requires_grad_(), teacher, LABELS)
    assert loss.ndim == 0 and torch.autograd.grad(loss, student)[0].abs().sum() > 0
    objective.update(loss.item(), 1.0)
    assert json.loads(json.dumps(run.config())) == run.config()
    assert name in {method for group in GROUPS.values() for method in group}


def test_a_run_is_named_by_everything_that_decides_it(monkeypatch):
    runs = [replace(RUN, method=name) for name in ablations.VARIANTS]
    runs += [replace(RUN, seed=1), replace(RUN, scale="smoke"), replace(RUN, learning_rate=3e-3)]
    hashes = [results.config_hash(run.config()) for run in runs]
    monkeypatch.setitem(ablations.VARIANTS, "taid", ablations.Variant(beta=0.5))
    hashes.append(results.config_hash(RUN.config()))
    assert len(set(hashes)) == len(hashes) == len(ablations.VARIANTS) + 4


def test_schedules_are_the_variants(monkeypatch):
    monkeypatch.setattr(ablations, "trace", trace_of)
    paper = schedule.Adaptive(0.4, alpha=instruction_tuning.CPU.alpha)
    found = {name: replace(RUN, method=name, seed=2).schedule() for name in ablations.VARIANTS}
    assert found["taid"] == paper and found["taid_no_adaptive"] == schedule.Linear(0.4)
    assert found["alpha_4"] == replace(paper, alpha=4 * paper.alpha)
    assert found["constant"] == replace(paper, beta=1.0) and found["beta_0"] == replace(paper, beta=0.0)
    assert found["t_start_0"] == replace(paper, t_start=0.0)
    assert found["t_end_0.8"] == replace(paper, t_end=0.8)
    assert found["replayed"] == schedule.Replayed((0.4, 0.51, 1.0))  # seed 1's
    assert found["kl_matched"] == schedule.Replayed((0.4, 0.52, 1.0))  # its own
    assert [replace(RUN, method="replayed", seed=seed).donor_seed for seed in range(4)] == [1, 0, 1, 2]


def test_warm_up_is_a_share_of_the_steps():
    steps = instruction_tuning.CPU.distil.steps
    assert replace(RUN, method="kl_warmup_0.1").training.warmup_steps == steps // 10
    assert RUN.training == replace(instruction_tuning.CPU.distil, learning_rate=1e-2)


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown method 'rkl'; known: taid, taid_no_adaptive, kl, constant"):
        replace(RUN, method="rkl")


def test_learning_rates_are_table_1s_choice():
    table1 = [
        row_of(1.0, method=method, config={"learning_rate": rate})
        for method, rate in (("taid", 0.01), ("sft", 0.003))
    ]
    others = [replace(table1[0], **{key: "llama-2"}) for key in ("teacher", "scale", "experiment")]
    rates = ablations.learning_rates([*table1, *others], "cpu")
    chosen = {run.method: run.learning_rate for run in ablations.runs("cpu", 0, rates)}
    assert chosen == dict.fromkeys(ablations.VARIANTS, 0.01) | {"sft": 0.003}
    with pytest.raises(
        ValueError, match="for sft with phi-3-mini: run `make table1-protocol-1 SCALE=cpu` first"
    ):
        ablations.learning_rates(table1[:1], "cpu")


def test_table_1s_runs_keep_their_names():
    """Oracle: the hashes in the committed rows. Another hash would train every student of Table 1 again."""
    rows = [
        r for r in results.read(ROOT / "results" / "table1.jsonl") if r.experiment == "table1" and r.seed == 0
    ]
    assert {row.method for row in rows} > {"taid", "kl", "distillm", "teacher"}
    for row in rows:
        run = instruction_tuning.Run(
            row.scale, row.method, row.teacher, row.seed, row.config["learning_rate"]
        )
        assert results.config_hash(run.config() | {"experiment": "table1"}) == row.config_hash


@pytest.mark.slow
def test_tracing_leaves_table_1s_student_as_it_is_and_trains_once(cache, monkeypatch):
    """End to end at the scale "smoke". Oracle: Table 1's own TAID student, untraced and with a fused loss,
    which rounds elsewhere in fp32."""
    run = replace(RUN, scale="smoke")
    values, _ = ablations.measure(run)
    table1, _ = instruction_tuning.measure(
        instruction_tuning.Run("smoke", "taid", ablations.TEACHER, 0, 1e-2), "test"
    )
    same = {key: value for key, value in table1.items() if key in values and key[0] != "train_seconds"}
    assert ("score", "average") in same
    assert {key: values[key] for key in same} == pytest.approx(same, rel=1e-5)
    monkeypatch.setattr(study, "fit", None)  # nothing trains again
    assert ablations.measure(run)[0] == values
    curves, _ = ablations.curves(run)
    assert {"t", "loss", "noise_variance", "t_paper_constant", "t_paper_measured"} <= {
        metric for metric, _ in curves
    }
    assert curves["t", "1.0000"] == curves["t_paper_constant", "1.0000"] == 1.0
