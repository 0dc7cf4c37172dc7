"""The study of Table 1 at the scale "smoke": what it measures, what it caches, and what its rows say.

Its numbers mean nothing here, two steps of training; that they are complete, repeatable and well named does.
"""

import math
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from taid import results
from taid.evaluation.likelihood import held_out_loss
from taid.objectives import METHODS, TABLE1
from taid.studies import instruction_tuning, study, training, zoo
from taid.studies.instruction_tuning import SETTINGS, SMOKE, UNITS, Run
from taid.studies.instructions import CATEGORIES, JUDGED

ROOT = Path(__file__).parents[1]
RUN = Run("smoke", "taid", "stablelm-zephyr", seed=0, learning_rate=3e-3)


@pytest.fixture(scope="module")
def measured(cache):
    return instruction_tuning.measure(RUN, "test")


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "fit", refuse)
    monkeypatch.setattr(study, "fit", refuse)


# --- what is measured

OURS = set(UNITS) - {"rouge_l"}  # which chooses at the paper's scale, where people's answers are there


def test_every_named_metric_is_measured(measured):
    values, seconds = measured
    of_categories = {"score", "score_greedy", "score_sampled"}
    expected = {(metric, "average") for metric in OURS} | {(m, c) for m in of_categories for c in CATEGORIES}
    assert set(values) == expected
    assert all(math.isfinite(value) for value in values.values()) and seconds > 0
    for metric in of_categories:
        points = [values[metric, category] for category in CATEGORIES]
        assert all(0 <= value <= 10 for value in points)
        assert values[metric, "average"] == pytest.approx(sum(points) / len(CATEGORIES))
    assert 0 <= values["distinct_bigrams", "average"] <= 1
    assert values["kl_to_teacher", "average"] > 0
    assert (
        0.5 < values["held_out_loss", "average"] / math.log(SMOKE.vocab_size) < 1.5
    )  # hardly trained: near uniform


def test_a_second_call_trains_nothing_and_says_the_same(measured, no_training):
    study.at.cache_clear()  # as in a new process: only what is on disk is left
    assert instruction_tuning.measure(RUN, "test")[0] == measured[0]


def test_the_teacher_is_its_own_teacher(measured):
    values, _ = instruction_tuning.measure(replace(RUN, method="teacher", learning_rate=0.0), "test")
    assert {metric for metric, _ in values} == OURS - {"train_seconds"}
    assert values["kl_to_teacher", "average"] == pytest.approx(
        0, abs=1e-5
    )  # its cached logits are rounded to fp16


def test_the_judges_scale_is_that_of_the_human_responses(measured):
    """Oracle: minus the held-out loss of the judge on the data's own responses."""
    here = instruction_tuning.at("smoke")
    judge = here.judge_of("pythia", 0, "test")
    assert set(judge.human) == set(judge.untrained) == set(JUDGED)
    for category in JUDGED:
        losses = held_out_loss(
            judge.model,
            here.source.encode([i for i in here.source.data.test if i.category == category]),
            here.collator,
        )
        assert judge.human[category] == pytest.approx(-sum(losses) / len(losses), rel=1e-5)


# --- data


def test_copies_of_a_question_share_its_place_in_the_cache(cache):
    here = instruction_tuning.at("smoke")
    assert [e["index"] for e in here.source.examples("train")] == list(
        range(len(here.source.examples("train")))
    )
    count = {
        i: sum(e["index"] == i for e in here.source.stream) for i in range(len(here.source.examples("train")))
    }
    for i, (item, example) in enumerate(
        zip(here.source.data.train, here.source.examples("train"), strict=True)
    ):
        fits = (
            len(example["prompt_ids"]) <= SMOKE.longest[0]
            and len(example["response_ids"]) <= SMOKE.longest[1]
        )
        assert count[i] == fits * (SMOKE.question_copies if item.answers else 1)
    assert all(e is here.source.examples("train")[e["index"]] for e in here.source.stream)


def test_pretraining_mixes_the_dictionary_in(cache, monkeypatch):
    here = instruction_tuning.at("smoke")
    text = here.source.data.text | {"train": here.source.data.text["train"][:2000]}  # all of it takes seconds
    monkeypatch.setattr(here.source, "data", replace(here.source.data, text=text))
    windows = here.source.windows("train")
    prose = instruction_tuning.pack(here.source.tokenizer, here.source.data.text["train"], SMOKE.window)
    assert 1 - len(prose) / len(windows) == pytest.approx(SMOKE.dictionary_share, abs=1e-3)
    assert all(len(w["prompt_ids"] + w["response_ids"]) == SMOKE.window for w in windows)


@pytest.mark.parametrize("split", ["train", "test"])
def test_text_survives_the_tokenizer(cache, split):
    """A verified answer that came back changed could never be right."""
    here = instruction_tuning.at("smoke")
    for item, example in zip(here.source.items(split), here.source.examples(split), strict=True):
        assert (
            here.source.tokenizer.decode(example["response_ids"], skip_special_tokens=True).strip()
            == item.response
        )
        assert (
            here.source.tokenizer.decode(example["prompt_ids"], skip_special_tokens=True).strip()
            == item.prompt
        )


# --- the cache


def test_a_damaged_model_is_trained_again_with_a_warning(measured, cache):
    (weights,) = (instruction_tuning.at("smoke").folder / "runs").glob(
        f"{results.digest(RUN.config())}/*.safetensors"
    )
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="damaged.*training it again"):
        again, _ = instruction_tuning.measure(RUN, "test")
    times = {("train_seconds", "average")}
    assert {k: v for k, v in again.items() if k not in times} == {
        k: v for k, v in measured[0].items() if k not in times
    }
    assert weights.read_bytes() == whole  # training is deterministic


def test_a_kill_while_saving_leaves_no_model(tmp_path):
    class Cut:
        def save_pretrained(self, folder):
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.save_whole(Cut(), None, tmp_path / "models" / "a")
    assert list((tmp_path / "models").iterdir()) == []


# --- settings and runs


def test_an_unknown_scale_or_teacher_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown scale of InstructionTuning 'huge'; known: smoke, cpu"):
        instruction_tuning.at("huge")
    with pytest.raises(
        ValueError, match="unknown teacher of a pair 'gpt-4'; known: phi-3-mini, llama-2, stablelm"
    ):
        replace(RUN, teacher="gpt-4")
    with pytest.raises(ValueError, match="unknown method 'tiad'; known: sft, kl, .*taid"):
        replace(RUN, method="tiad")


def variants(value):
    """The dataclass or number with one number in it changed, each in turn."""
    if is_dataclass(value):
        for field in fields(value):
            for changed in variants(getattr(value, field.name)):
                yield replace(value, **{field.name: changed})
    elif isinstance(value, tuple):
        yield value[:-1]
    elif not isinstance(value, str):
        yield value * 2 if value else 1


def test_a_run_is_named_by_every_hyperparameter_of_its_setting(monkeypatch):
    hashes, changed = [results.config_hash(RUN.config())], list(variants(SMOKE))
    for setting in changed:
        monkeypatch.setitem(SETTINGS, "smoke", setting)
        hashes.append(results.config_hash(RUN.config()))
    assert len(changed) > 30 and len(set(hashes)) == len(hashes)


def test_a_run_is_named_by_what_it_is():
    runs = [
        RUN,
        replace(RUN, scale="cpu"),
        replace(RUN, method="kl"),
        replace(RUN, teacher="llama-2"),
        replace(RUN, seed=1),
        replace(RUN, learning_rate=1e-2),
    ]
    assert len({results.config_hash(run.config()) for run in runs}) == len(runs)


@pytest.mark.parametrize("teacher", zoo.PAIRS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_its_options(method, teacher):
    replace(RUN, method=method, teacher=teacher).objective()


def test_options_are_the_papers_per_pair():
    """Paper, section 6.1: t_start 0.4 for Phi-3, else 0.2. α · N as in its run of 16,239 updates at α = 5e-4."""
    t_start = {
        t: Run("cpu", m, t, 0, 1e-3).options["t_start"]
        for t in zoo.PAIRS
        for m in ("taid", "taid_no_adaptive")
    }
    assert t_start == {"phi-3-mini": 0.4, "llama-2": 0.2, "stablelm-zephyr": 0.2}
    for setting in SETTINGS.values():
        assert setting.alpha * setting.distil.steps == pytest.approx(5e-4 * 16_239)
    skew = {t: Run("cpu", "distillm", t, 0, 1e-3).options["loss"] for t in zoo.PAIRS}
    assert skew == {"phi-3-mini": "skew_kl", "llama-2": "skew_rkl", "stablelm-zephyr": "skew_kl"}


# --- rows


def test_rows_are_complete(measured, tmp_path):
    values, seconds = measured
    rows = instruction_tuning.rows(RUN, "table1", values, seconds)
    assert {(row.metric, row.task): row.value for row in rows} == values
    for row in rows:
        assert (row.method, row.teacher, row.student, row.seed, row.scale) == (
            "taid",
            "stablelm-zephyr",
            "pythia",
            0,
            "smoke",
        )
        assert (row.unit, row.higher_is_better) == UNITS[row.metric]
        assert row.config["learning_rate"] == 3e-3 and row.config["experiment"] == "table1"
        assert row.config_hash == results.config_hash(row.config)
    results.append(tmp_path / "rows.jsonl", rows)
    assert list(results.read(tmp_path / "rows.jsonl")) == rows
    assert (
        rows[0].config_hash != instruction_tuning.rows(RUN, "table1_one_rate", values, seconds)[0].config_hash
    )


@pytest.mark.slow
def test_the_script_fills_table_1_and_does_nothing_twice(cache, tmp_path):
    """Every method on every pair under both protocols, from a cache that may be warm; the second run adds no byte."""
    script = [
        sys.executable,
        "paper_experiments/01_table1_instruction_tuning.py",
        "--scale",
        "smoke",
        "--results",
        str(tmp_path),
    ]
    environment = os.environ | {"TAID_CACHE": str(cache)}
    subprocess.run(script, cwd=ROOT, env=environment, check=True, capture_output=True)
    path = tmp_path / "table1.jsonl"
    rows, content = list(results.read(path)), path.read_bytes()
    cells = {(row.experiment, row.method, row.teacher) for row in rows}
    assert cells == {
        *(
            (e, m, t)
            for e in ("table1", "table1_one_rate", "table1_search")
            for m in TABLE1
            for t in zoo.PAIRS
        ),
        *(("table1", reference, t) for reference in ("teacher", "untrained") for t in zoo.PAIRS),
    }
    rates = {row.config["learning_rate"] for row in rows if row.experiment == "table1_search"}
    assert rates == set(SMOKE.learning_rates)
    assert len({row.config["learning_rate"] for row in rows if row.experiment == "table1_one_rate"}) == 1
    subprocess.run(script, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert path.read_bytes() == content
