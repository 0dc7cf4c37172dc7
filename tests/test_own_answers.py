"""The scale `gpu`, at a few steps on the CPU: its commands to their pages, on the teacher's own answers."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from test_study import in_this_process

from analysis.__main__ import render
from taid import results
from taid.objectives import TABLE1
from taid.studies import (
    capacity,
    continued_pretraining,
    instruction_tuning,
    instructions,
    jobs,
    own_answers,
    study,
)
from taid.studies.training import Training

SCRIPTS = Path(__file__).parents[1] / "paper_experiments"
PROSE = replace(continued_pretraining.SMOKE, scale="gpu")  # a teacher that is made here
SMALL = {
    "distil": Training(2, 4, 1e-2),
    "learning_rates": (1e-2,),
    "max_new_tokens": 6,
    "prose": PROSE,
    "size": instructions.Size(words=10, passages=4, validation=2, test=3),
    "validations": 1,
}


@pytest.fixture
def small(cache, monkeypatch):
    monkeypatch.setattr(jobs, "run", in_this_process)
    monkeypatch.setitem(instruction_tuning.SETTINGS, "gpu", replace(own_answers.GPU, **SMALL))
    study.at.cache_clear()
    return instruction_tuning.at("gpu")


@pytest.mark.slow
def test_what_is_learned_is_what_the_teacher_says(small):
    """Held-out answers are its greedy ones, so that its own ROUGE-L is 1 wherever it says anything."""
    source = small.source
    assert {len(source.examples(split)) for split in ("train", "test")} == {
        len(source.data.train),
        len(source.data.test),
    }
    assert all(e["response_ids"][-1] == source.tokenizer.eos_token_id for e in source.examples("test"))
    said = sum(len(e["response_ids"]) > 1 for e in source.examples("test")) / len(source.examples("test"))
    teacher = instruction_tuning.Run("gpu", "teacher", "tiny-llama", 0, 0.0)
    scores = small.setting.scores(small, source.teacher(""), teacher, "test")
    assert scores["rouge_l", "average"] == pytest.approx(said, abs=0.05) and said > 0.5
    assert scores["score", "average"] == 10 * scores["rouge_l", "average"]
    kept = {path: path.stat().st_mtime_ns for path in (small.folder / "answers").iterdir()}
    study.at.cache_clear()
    assert instruction_tuning.at("gpu").source.examples("test") == source.examples("test")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_the_pair_is_the_scale_s_own(small):
    run = instruction_tuning.Run("gpu", "distillm", "tiny-llama", 0, 1e-2)
    assert run.student == "tiny-llama-2-layers" and run.options["max_new_tokens"] == 6
    with pytest.raises(ValueError, match="unknown teacher of a pair 'phi-3-mini'"):
        instruction_tuning.Run("gpu", "kl", "phi-3-mini", 0, 1e-2)
    with pytest.raises(ValueError, match="unknown teacher of a pair 'tiny-llama'"):
        instruction_tuning.Run("cpu", "kl", "tiny-llama", 0, 1e-2)


def test_table_6_is_wider_and_keeps_the_ratios():
    for name, (hidden, *rest) in capacity.ZOO.items():
        assert capacity.GPU.zoo[name] == (2 * hidden, *rest)
        rates = [s.teacher_training(name).learning_rate for s in (capacity.CPU, capacity.GPU)]
        assert rates[0] == 2 * rates[1]
    assert (
        capacity.GPU.digest
        != replace(capacity.CPU, **{n: getattr(capacity.GPU, n) for n in vars(capacity.CPU)}).digest
    )


FEW = {"distil": Training(2, 4, 1e-2), "learning_rates": (1e-2,)}
WIDE = {  # of the scale smoke, for Table 6's zoo at twice the width
    name: getattr(capacity.SMOKE, name)
    for name in (
        "documents",
        "vocab_size",
        "pool",
        "held_out",
        "last_words",
        "pretrain_student",
        "pretrain_teacher",
    )
}


@pytest.mark.slow
def test_table_2_at_a_few_steps(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "run", in_this_process)
    monkeypatch.setitem(continued_pretraining.SETTINGS, "gpu", replace(PROSE, search_steps=2, **FEW))
    command("02", "table2", tmp_path)
    rows = results.read(tmp_path / "table2.jsonl")
    scored = {r.method for r in rows if (r.experiment, r.scale, r.metric) == ("table2", "gpu", "accuracy")}
    assert scored == {*continued_pretraining.TABLE2, *study.REFERENCES}


@pytest.mark.slow
def test_table_6_at_a_few_steps(cache, monkeypatch, tmp_path):
    """With the smallest and the largest teacher, which the map needs too."""
    monkeypatch.setattr(jobs, "run", in_this_process)
    monkeypatch.setattr(capacity, "TEACHERS", ends := (capacity.TEACHERS[0], capacity.TEACHERS[-1]))
    monkeypatch.setattr(capacity, "METHODS", methods := ("taid", "skew_kl"))
    monkeypatch.setitem(capacity.SETTINGS, "gpu", replace(capacity.GPU, **WIDE, **FEW))
    command("06", "table6", tmp_path)
    rows = results.read(tmp_path / "table6.jsonl")
    scored = {
        (r.method, r.teacher) for r in rows if (r.experiment, r.metric) == ("table6", "last_word_accuracy")
    }
    assert scored >= {(method, teacher) for method in methods for teacher in ends}
    assert {r.scale for r in rows} == {"gpu"} and "table6_map" in {r.experiment for r in rows}


def command(script: str, page: str, folder: Path) -> None:
    """A table's command at the scale `gpu`, to its page."""
    study.at.cache_clear()
    runpy.run_path(str(next(SCRIPTS.glob(f"{script}*.py"))))["main"]("gpu", 1, 1, folder)
    render(page, folder, "gpu")
    study.at.cache_clear()


@pytest.mark.slow
def test_tables_1_and_3_at_a_few_steps(small, tmp_path):
    for script, page in (("01_table1_instruction", "table1"), ("03", "table3")):
        command(script, page, tmp_path)
    rows = results.read(tmp_path / "table1.jsonl")
    scored = {r.method for r in rows if (r.experiment, r.metric, r.task) == ("table1", "score", "average")}
    assert scored == {*TABLE1, *study.REFERENCES}
    assert {r.method for r in results.read(tmp_path / "table3.jsonl")} >= {"kl", "rkl", "taid", "teacher"}
