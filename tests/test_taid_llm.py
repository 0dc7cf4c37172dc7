"""Tables 4 and 9: what is read by whom, what is measured, and the student as others load it."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from taid import results
from taid.studies import continued_pretraining, lm_tasks, study, taid_llm
from taid.studies.jobs import TUNING_SEEDS
from taid.studies.taid_llm import ARMS, BOTH, METHODS, UNITS, Run, TaidLlm

ROOT = Path(__file__).parents[1]
RUN = Run("smoke", "taid", seed=0, learning_rate=3e-3, steps=4, arm="text")


@pytest.fixture(scope="module")
def here(cache):
    return taid_llm.at("smoke")


def ids(examples: list[dict]) -> set[tuple]:
    return {tuple(e["prompt_ids"] + e["response_ids"]) for e in examples}


def plain_words(text: str) -> str:
    """In lower case, as the tokenizer has it, with single spaces."""
    return " ".join(text.lower().split())


def following(tokenizer, examples: list[dict]) -> list[str]:
    """The sentences that the instructions ask for."""
    asked = [e for e in examples if "after this" in tokenizer.decode(e["prompt_ids"])]
    return [plain_words(tokenizer.decode(e["response_ids"], skip_special_tokens=True)) for e in asked]


# What is read


@pytest.mark.parametrize("arm", ARMS)
def test_a_seed_reads_a_part_of_the_pool_the_same_for_all_methods(here, arm):
    runs = [replace(RUN, arm=arm, seed=seed, method=m) for m in METHODS for seed in (0, 1, TUNING_SEEDS[0])]
    parts = [ids(here.source.read(run)) for run in runs]
    assert parts[:3] == parts[3:6] == parts[6:] and len(set(map(frozenset, parts))) == 3
    pool = ids(here.source.examples(f"{arm}-train"))
    assert all(part < pool for part in parts)


def test_nothing_that_is_tested_was_read(here):
    """Of the instructions: no prompt of a test, no question of a task, and no sentence of a held-out document."""
    train, test = (here.source.examples(f"instructions-{split}") for split in ("train", "test"))
    prompts = {tuple(e["prompt_ids"]) for e in train}
    assert prompts.isdisjoint(tuple(e["prompt_ids"]) for e in test)
    questions = [taid_llm.question(here.source.tokenizer.decode(e["prompt_ids"])) for e in train]
    assert not [
        q for q in questions if re.search("mean |define|kind of|sort of", q.partition("after this")[0])
    ]
    read = plain_words(" ".join(here.source.text["train"]))
    held_out = plain_words(
        " ".join(text for split in ("test", "validation", "tasks") for text in here.source.text[split])
    )
    for seen, others, own in ((train, held_out, read), (test, read, held_out)):
        sentences = following(here.source.tokenizer, seen)
        assert sentences and not [s for s in sentences if s in others] and all(s in own for s in sentences)


def test_the_next_sentence_is_the_next_and_neither_is_too_long_or_short():
    """By hand: of five sentences, of 5, 6, 4, 5 and 5 words, two pairs are of the right lengths."""
    text = "One two three four five. Here are six words in all. Only four words here. Again there are five words. And five at last now."
    expected = [("One two three four five.", "Here are six words in all."),
                ("Again there are five words.", "And five at last now.")]  # fmt: skip
    assert list(taid_llm.next_sentences([text])) == [(taid_llm.NEXT.format(a), b) for a, b in expected]


def test_the_student_is_one_whatever_the_seed(here):
    first, second = (here.source.student(here.setting.student, seed) for seed in (0, 7))
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_a_tenth_of_the_steps_is_warm_up_for_all():
    for method in METHODS:
        run = Run("cpu", method, 0, 1e-3, 40, "instructions")
        assert (run.training.warmup_steps, run.training.steps, run.training.learning_rate) == (4, 40, 1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "tvd"}, "known: sft, kl, taid"),
        ({"arm": "prose"}, "known: text, instructions"),
        ({"arm": BOTH}, "known: text, instructions"),
        ({"method": "untrained"}, "arm of untrained .*known: both"),
        ({"scale": "huge"}, "known: smoke, cpu, paper"),
        ({"scale": "paper", "arm": "instructions"}, "known: text"),
    ],
)
def test_what_cannot_be_is_refused_and_the_known_told(change, says):
    with pytest.raises(ValueError, match=says):
        replace(RUN, **change)


def test_a_run_is_named_by_everything_that_decides_it():
    changes = (
        {},
        {"arm": "instructions"},
        {"method": "kl"},
        {"seed": 1},
        {"learning_rate": 1e-2},
        {"steps": 2},
    )
    assert len({results.config_hash(replace(RUN, **change).config()) for change in changes}) == len(changes)


def test_a_run_of_table_2_is_another():
    of_table2 = continued_pretraining.Run("smoke", "taid", 0, 3e-3, 4)
    assert results.config_hash(of_table2.config()) != results.config_hash(RUN.config())


# What is measured


@pytest.fixture(scope="module")
def measured(here):
    return study.measure(TaidLlm, RUN, "test")[0]


def test_every_named_metric_is_measured(measured):
    found = {(metric, task) for metric, task in measured if metric != "sample_loss"}
    likelihoods = {(m, arm) for m in ("held_out_loss", "kl_to_teacher") for arm in ARMS}
    tasks = {(m, t) for m in ("accuracy", "standard_error", "chance") for t in lm_tasks.FIRST}
    assert found == likelihoods | tasks | {("train_seconds", "average")}
    assert all(math.isfinite(value) for value in measured.values())
    assert {metric for metric, _ in measured} == set(UNITS)


def test_samples_say_what_was_given_and_written(here, measured):
    samples = [task for metric, task in measured if metric == "sample_loss"]
    assert len(samples) == len(ARMS) * taid_llm.SAMPLES
    asked = [e["prompt_ids"] for e in here.source.examples("instructions-test")[: taid_llm.SAMPLES]]
    for ids, sample in zip(asked, samples[taid_llm.SAMPLES :], strict=True):
        given = sample.partition(taid_llm.ARROW)[0]
        assert given and given in here.source.tokenizer.decode(ids) and "assistant" not in given


def test_validation_sees_the_run_s_own_arm_alone(here):
    values, _ = study.measure(TaidLlm, replace(RUN, arm="instructions", method="sft"), "validation")
    assert {task for _, task in values} == {"instructions", "average"}


def test_the_teacher_is_its_own_teacher(here):
    teacher = here.source.teacher(here.setting.teacher)
    values = here.likelihoods(teacher, replace(RUN, method="teacher", arm=BOTH), "instructions", "test")
    assert values["kl_to_teacher", "instructions"] == pytest.approx(0, abs=1e-6)


# The student as others load it


def test_the_released_student_loads_and_its_card_tells_what_it_is(here, measured):
    folder = here.release(RUN)
    student, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the whale and the sea", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, here.distilled(RUN)[0](ids).logits)
    page = (folder / "README.md").read_text(encoding="utf-8")
    head, _, body = page.removeprefix("---\n").partition("\n---\n")
    assert "pipeline_tag: text-generation" in head and "by taid" in body
    named = re.findall(r"\w+\.(?:png|jsonl)", body)
    assert all((folder / name).exists() for name in named) and "State of the Union" in body
    values = here.likelihoods(student, RUN, "text", "validation")
    for (metric, _), title in zip(values, ("held-out loss", "KL to the teacher"), strict=True):
        assert f"| {title} [nats/token] | {values[metric, 'text']:.4f} |" in body
    assert "| learning_rate | 0.003 |" in body and "16 rows to train on and 4 to validate" in body


def test_a_folder_without_its_card_is_made_whole(here):
    folder = here.release(RUN)
    (folder / "README.md").unlink()
    assert (here.release(RUN) / "README.md").exists()


# End to end

SCRIPT = ROOT / "paper_experiments" / "04_table4_taid_llm.py"


@pytest.mark.slow
def test_the_experiment_runs_and_resumes(cache, tmp_path):
    command = [sys.executable, str(SCRIPT), "--scale", "smoke", "--results", str(tmp_path)]
    run = partial(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "with its card" in run().stdout
    rows = results.read(tmp_path / "table4.jsonl")
    for arm in ARMS:
        made = {row.method for row in rows if row.experiment == f"table4_{arm}"}
        assert made == {*METHODS, *study.REFERENCES}
    run()
    assert results.read(tmp_path / "table4.jsonl") == rows  # nothing ran again
