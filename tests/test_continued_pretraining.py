"""Table 2: what is trained on what, what is measured, what a cache of logits costs."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny_examples, tiny_trainer

from analysis import reference
from taid import losses, results
from taid.files import cache_dir
from taid.studies import continued_pretraining, lm_tasks, logit_cache, study, training, zoo
from taid.studies.continued_pretraining import TABLE2 as METHODS
from taid.studies.continued_pretraining import UNITS, Run
from taid.studies.logit_cache import bias
from taid.teacher import TopLogits

ROOT = Path(__file__).parents[1]
RUN = Run("smoke", "taid", seed=0, learning_rate=3e-3, steps=4)


@pytest.fixture(scope="module")
def here(cache):
    return continued_pretraining.at("smoke")


@pytest.fixture(scope="module")
def measured(here):
    return continued_pretraining.measure(RUN, "test")


@pytest.fixture
def fits(monkeypatch):
    """The calls of `fit` from now on: (examples, training, seed)."""
    calls, fit = [], training.fit

    def recording(model, examples, *arguments, **options):
        phase = options.get("training") or arguments[1]
        calls.append((examples, phase, options["seed"]))
        return fit(model, examples, *arguments, **options)

    for module in (study, training):
        monkeypatch.setattr(module, "fit", recording)
    return calls


def teacher_of(here):
    return here.source.teacher(here.setting.teacher)


def student_of(here, seed: int):
    return here.source.student(here.setting.student, seed)


def ids(examples: list[dict]) -> set[tuple]:
    return {tuple(e["prompt_ids"] + e["response_ids"]) for e in examples}


# What is trained on what


def test_the_methods_are_the_paper_s():
    assert METHODS == reference.TABLE2_METHODS and len(METHODS) == 8


def test_windows_of_healing_distillation_and_tests_are_of_no_common_document(here):
    """Windows of one document never stand on two sides, but for healing and distillation: of one split, and
    no window of one is of the other."""
    for split in ("validation", "test"):
        assert len(ids(here.source.examples(split))) == getattr(here.setting, split)
        text = " ".join(here.source.tokenizer.decode(e["response_ids"]) for e in here.source.examples(split))
        assert text.strip()
        assert ids(here.source.examples(split)).isdisjoint(
            ids(here.source.examples("train")) | ids(here.source.healing)
        )
    assert ids(here.source.examples("train")).isdisjoint(ids(here.source.healing))
    assert [e["index"] for e in here.source.examples("train")] == list(
        range(len(here.source.examples("train")))
    )


def test_distillation_is_one_pass_over_the_data(here):
    assert len(here.source.examples("train")) == here.setting.distil.steps * here.setting.distil.batch_size


def test_seeds_heal_on_other_windows_and_no_method_changes_a_healed_student(here, fits):
    for seed in (0, 1):
        shutil.rmtree(
            here.folder / "models" / f"healed-{seed}-{continued_pretraining.precision()}", ignore_errors=True
        )
    before = [p.clone() for p in student_of(here, 0).parameters()]
    student_of(here, 1)
    (first, phase, _), (second, *_) = fits
    assert phase == here.setting.heal and ids(first) != ids(second)
    here.distilled(replace(RUN, method="sft", learning_rate=1e-2))
    assert len(fits) == 3  # and it did train
    assert all(map(torch.equal, before, student_of(here, 0).parameters()))


def test_all_methods_see_the_same_batches_in_the_same_order(here, monkeypatch):
    """Identical batches: recorded by the collator, of SFT, KL and TVD."""
    seen, collator = [], here.collator

    def recording(examples):
        seen.append([e["index"] for e in examples])
        return collator(examples)

    here.teacher_logits(here.setting.teacher, "train")  # collated as well
    orders = []
    monkeypatch.setattr(here, "collator", recording)
    for method in ("sft", "kl", "tvd"):
        here.distilled(replace(RUN, method=method, seed=3, learning_rate=7e-3))
        orders.append(list(seen))
        seen.clear()
    assert orders[0] == orders[1] == orders[2]
    assert sorted(i for batch in orders[0] for i in batch) == list(
        range(len(here.source.examples("train")))
    )  # each window once


def test_the_student_is_cut_out_of_the_teacher(here):
    layers = student_of(here, 0).config.num_hidden_layers
    assert layers == here.setting.kept_layers < teacher_of(here).config.num_hidden_layers
    assert continued_pretraining.SETTINGS["cpu"].student == "smollm2-135m-6-layers"


def test_a_measured_run_is_not_trained_again(here, measured, fits):
    values, _ = continued_pretraining.measure(RUN, "test")
    assert fits == []
    assert values == measured[0]


# What is measured


def test_every_named_metric_is_measured(measured):
    values, seconds = measured
    of_tasks = {(m, t) for m in ("accuracy", "standard_error", "chance") for t in lm_tasks.FIRST}
    others = {(m, "average") for m in UNITS if m not in ("accuracy", "standard_error", "chance")}
    assert set(values) == of_tasks | others
    assert all(math.isfinite(value) for value in values.values()) and seconds > 0


def test_the_teacher_is_itself(here):
    """Oracle: KL(p ‖ p) = 0; and its loss on the windows from whole logits."""
    values, _ = continued_pretraining.measure(replace(RUN, method="teacher", steps=0), "validation")
    assert values["kl_to_teacher", "average"] == pytest.approx(0, abs=1e-6)
    batch = here.collator(here.source.examples("validation"))
    with torch.no_grad():
        logits = teacher_of(here)(batch["input_ids"]).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())
    assert values["held_out_loss", "average"] == pytest.approx(expected.item(), rel=1e-5)
    assert not any(metric == "accuracy" for metric, _ in values)  # validation chooses a rate, no more


def test_distillation_brings_the_student_nearer(here):
    start, _ = continued_pretraining.measure(replace(RUN, method="untrained", steps=0), "validation")
    after, _ = continued_pretraining.measure(replace(RUN, method="kl"), "validation")
    assert after["kl_to_teacher", "average"] < start["kl_to_teacher", "average"]


def test_a_run_is_named_by_everything_that_decides_it(monkeypatch):
    changed = [
        replace(RUN, **change)
        for change in (
            {},
            {"scale": "cpu"},
            {"method": "kl"},
            {"seed": 1},
            {"learning_rate": 1e-2},
            {"steps": 2},
        )
    ]
    hashes = [results.config_hash(run.config()) for run in changed]
    monkeypatch.setattr(continued_pretraining, "precision", lambda: "another")
    hashes.append(results.config_hash(RUN.config()))
    assert len(set(hashes)) == len(hashes)


def test_alpha_times_the_number_of_updates_is_the_paper_s():
    assert RUN.options["alpha"] * 4 == pytest.approx(5e-4 * continued_pretraining.PAPER_UPDATES)
    assert replace(RUN, method="kl").options == {}


@pytest.mark.parametrize("change", [{"method": "dkd"}, {"scale": "huge"}])
def test_unknown_names_are_refused_and_known_ones_told(change):
    with pytest.raises(ValueError, match="known: sft, kl|known: smoke, cpu"):
        replace(RUN, **change)


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("flags : fpu sse avx2 fma", False),
        ("flags : fpu avx512f avx512bw avx512_vnni", False),
        ("flags : fpu avx512f avx512_bf16", True),
        ("flags : fpu amx_bf16 amx_tile amx_int8", True),
        ("", False),
        ("Features : asimd", False),
    ],
)
def test_bf16_is_for_processors_that_have_it(flags, fast):
    assert training.bf16_is_fast(f"processor : 0\n{flags}\n") is fast


def test_bf16_is_passed_on_to_training(tmp_path):
    """The student's weights stay fp32, and it learns nearly the same: logits within bfloat16's 2⁻⁸."""
    students = []
    for bf16 in (False, True):
        trainer = tiny_trainer(tmp_path, "kl", steps=3, bf16=bf16, examples=tiny_examples(12))
        trainer.train()
        assert next(trainer.model.parameters()).dtype == torch.float32
        students.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert not torch.equal(*students)
    torch.testing.assert_close(*students, atol=0.05, rtol=0)


# The teacher's cache


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(40, 48, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", logit_cache.PROBED)
def test_the_bias_of_the_exact_teacher_is_none(name):
    assert bias(logit_cache.PROBED[name], logits(0), logits(1), logits(1)) == (0.0, 0.0)


@pytest.mark.parametrize("name", logit_cache.PROBED)
def test_the_bias_shrinks_as_more_is_kept(name):
    def stored(k: int) -> torch.Tensor:
        store = TopLogits(k)
        return store.expand(store.compress(logits(1)), 48)

    loss = logit_cache.PROBED[name]
    value, gradient = zip(*(bias(loss, logits(0), logits(1), stored(k)) for k in (2, 12, 47)), strict=True)
    assert gradient[0] > gradient[1] > gradient[2] and abs(value[0]) > abs(value[2])
    assert gradient[2] < 5e-3  # 47 of 48 kept, and so the 48th as well: fp16 alone


def test_the_bias_of_kl_by_hand():
    """KL with targets p̂ has the gradient (q − p̂)/n, and so the error ‖p − p̂‖/‖q − p‖; fp64."""
    student, teacher, other = (logits(seed).double() for seed in (0, 1, 2))
    q, p, found = (z.softmax(-1) for z in (student, teacher, other))
    value, gradient = bias(losses.forward_kl, student, teacher, other)
    assert gradient == pytest.approx(((p - found).norm() / (q - p).norm()).item())
    kl = [(a * (a.log() - q.log())).sum(-1).mean().item() for a in (p, found)]
    assert value == pytest.approx(kl[1] / kl[0] - 1)


def test_an_even_tail_loses_the_kl_within_the_tail_and_no_more():
    """Oracle, the chain rule in fp64: KL(p ‖ q) = KL(head, the tail's mass) + p(tail) · KL within the tail.
    For a student that is even in the tail itself, the last term becomes zero and the others stay."""
    teacher, store = logits(1).double(), TopLogits(5)
    stored = store.expand(store.compress(teacher), 48)
    tail = torch.ones_like(teacher, dtype=torch.bool).scatter(-1, teacher.topk(5).indices, False)
    student = logits(0).double().masked_fill(tail, -1.0)
    p = teacher.softmax(-1)
    mass = p.where(tail, 0).sum(-1)
    within = (p.where(tail, 0) * (p / (mass[:, None] / 43)).log()).sum(-1)  # 48 − 5 tokens
    error, _ = bias(losses.forward_kl, student, teacher, stored.double())
    whole = losses.forward_kl(student, teacher).mean().item()
    assert error * whole == pytest.approx(-within.mean().item(), rel=0.01)  # fp16 of the head


def test_the_cache_is_measured_in_one_run(here):
    values, _ = logit_cache.measure(logit_cache.Probe("smoke"))
    stores = {task for metric, task in values if metric == "speed_up"}
    assert stores == {"live", *logit_cache.STORES}
    assert values["speed_up", "live"] == 1
    assert values["bytes_per_token", "top-64"] == 64 * 6 + 4
    assert values["bytes_per_token", "hidden"] == 4 * teacher_of(here).config.hidden_size
    assert {task for metric, task in values if metric == "value_error"} == {
        f"{name}, top {k}" for name in logit_cache.PROBED for k in logit_cache.TOP
    }
    assert all(math.isfinite(value) for value in values.values())


# The real teacher


def smollm2_is_cached() -> bool:
    return (cache_dir() / "smollm2" / "model").exists()


@pytest.mark.slow
@pytest.mark.skipif(not smollm2_is_cached(), reason="SmolLM2 is not in the cache: `make table2` fetches it")
def test_the_real_teacher_is_whole():
    """It knows more than a student that was cut out of it; no quantisation is left; the tokeniser fits."""
    model, tokenizer = zoo.smollm2()
    assert model.config.num_hidden_layers == 30 and model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert len(tokenizer) == model.config.vocab_size == 49152
    assert tokenizer.decode(tokenizer.encode("The cat sat.")) == "The cat sat."
    batch = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        [token] = model(**batch).logits[0, -1:].argmax(-1).tolist()
    assert tokenizer.decode(token) == " Paris"


# End to end


@pytest.mark.slow
def test_the_experiment_runs_and_resumes(cache, tmp_path):
    script = ROOT / "paper_experiments" / "02_table2_continued_pretraining.py"
    command = [sys.executable, str(script), "--scale", "smoke", "--results", str(tmp_path)]
    run = partial(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=True)
    run()
    rows = results.read(tmp_path / "table2.jsonl")
    measured = {row.method for row in rows if row.experiment == "table2"}
    assert measured == {*METHODS, *continued_pretraining.REFERENCES}
    run()
    assert results.read(tmp_path / "table2.jsonl") == rows  # nothing ran again
