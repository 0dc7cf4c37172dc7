"""What the studies share: a study that brings its data, models and measures alone, at two scales, to its rows.

One scale makes its models, the other finds them in a folder, as one would from a hub: a scale is a source of
data and of models, and nothing else of the study knows which.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny_examples, tiny_model, tiny_tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from taid import results
from taid.data import Collator
from taid.logits import response_logits
from taid.studies import jobs, study
from taid.studies.training import Training

FOLDER: dict[str, Path] = {}  # of the models that one scale finds


class Made(study.Source):
    tokenizer = tiny_tokenizer()

    def examples(self, split):
        return tiny_examples(8, seed=len(split))

    def teacher(self, name):
        return tiny_model(seed=1)

    def student(self, name, seed):
        return tiny_model(seed=2 + seed)


class Found(Made):
    def teacher(self, name):
        return AutoModelForCausalLM.from_pretrained(FOLDER["hub"] / name)


@dataclass(frozen=True)
class Setting(study.Setting):
    scale: str
    distil: Training = Training(2, 4, 1e-2)
    learning_rates: tuple[float, ...] = (1e-2, 3e-2)

    def source(self, folder):
        return Found() if self.scale == "paper" else Made()


SETTINGS = {scale: Setting(scale) for scale in ("smoke", "paper")}


@dataclass(frozen=True)
class Run(study.Run):
    scale: str
    method: str
    seed: int
    learning_rate: float
    teacher: str = "large"
    student: str = "small"

    @property
    def setting(self):
        return SETTINGS[self.scale]


class Study(study.Study[Run]):
    name = "test"
    settings = SETTINGS

    def values(self, model, run, split):
        logits, labels = response_logits(model.eval(), self.collator(self.source.examples(split)))
        return {("held_out_loss", run.task): cross_entropy(logits, labels).item()}


measure = partial(study.measure, Study)
rows = partial(
    study.rows, units={"held_out_loss": ("nats/token", False), "train_seconds": ("seconds", False)}
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TAID_CACHE", str(tmp_path / "cache"))
    FOLDER["hub"] = tmp_path / "hub"
    tiny_model(seed=1).save_pretrained(tmp_path / "hub" / "large")
    study.at.cache_clear()
    yield tmp_path
    study.at.cache_clear()


def in_this_process(function, todo, workers, title):
    for job in todo:
        yield job, function(*job)


def test_a_study_needs_its_data_models_and_measures_alone(cache, monkeypatch):
    """The same teacher made here and found in a folder: the same numbers, other cells."""
    monkeypatch.setattr(jobs, "run", in_this_process)
    path = cache / "rows.jsonl"
    for scale in SETTINGS:
        study.prepare_all(Study, scale, 1, [("student", "small", 0)], [("large", "train")])
        runs = [Run(scale, method, 0, 1e-2) for method in ("kl", "untrained", "teacher")]
        jobs.evaluate({(run, "test"): ["table"] for run in runs}, measure, rows, path, 1, "table")
    found = {(r.scale, r.method): r for r in results.read(path) if r.metric == "held_out_loss"}
    for method in ("kl", "untrained", "teacher"):
        assert found["smoke", method].value == found["paper", method].value
        assert found["smoke", method].config_hash != found["paper", method].config_hash
    assert len({row.value for row in found.values()}) == 3
    assert (found["paper", "kl"].teacher, found["paper", "kl"].student) == ("large", "small")


def test_nothing_is_measured_or_trained_twice(cache, monkeypatch):
    run = Run("smoke", "taid", 0, 1e-2)
    first, _ = measure(run, "test")
    study.at.cache_clear()  # as in a new process

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(study, "fit", refuse)
    assert measure(run, "test")[0] == first


def test_a_student_is_trained_on_its_source_and_its_teacher(cache):
    """Oracle: the library's trainer itself, on the same examples, from the same weights."""
    here, run = study.at(Study, "smoke"), Run("smoke", "kl", 0, 1e-2)
    student, record = here.distilled(run)
    plain = tiny_model(seed=2)
    study.fit(
        plain,
        tiny_examples(8, seed=len("train")),
        Collator(0),
        run.training,
        seed=0,
        objective="kl",
        teacher=here.target(run),
        tokenizer=Made.tokenizer,
    )
    assert record["seconds"] > 0
    assert all(map(torch.equal, student.parameters(), plain.parameters()))


def test_a_run_is_named_by_its_setting():
    config = Run("smoke", "kl", 0, 1e-2).config()
    assert config["setting"] == results.digest(
        {"scale": "smoke", "distil": vars(Training(2, 4, 1e-2)), "learning_rates": [1e-2, 3e-2]}
    )
    with pytest.raises(ValueError, match="unknown scale of Study 'huge'; known: smoke, paper"):
        study.at(Study, "huge")
