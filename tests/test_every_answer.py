"""Table 1's second protocol at the scale "smoke": teachers taught every answer, and what is measured of it."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from taid import results
from taid.studies import every_answer, instruction_tuning, instructions, jobs, zoo
from taid.studies.every_answer import CPU, METHODS, SEARCH, SETTINGS, SMOKE, UNITS, Run, coverage, entropies
from taid.studies.instructions import JUDGED, VERIFIED

RUN = Run("smoke", "taid", "stablelm-zephyr", seed=100, learning_rate=3e-3)


@pytest.fixture(scope="module")
def here(cache):
    return every_answer.at("smoke")


@pytest.fixture(scope="module")
def protocol_1():
    return instructions.build(SMOKE.size)


@pytest.fixture(scope="module")
def measured(here):
    return every_answer.measure(RUN, "test")[0]


# --- data


def test_every_accepted_answer_is_taught_in_every_phrasing(here, protocol_1):
    """Oracle: the questions of protocol 1, of which each accepted answer is to have a copy."""
    expected = {
        (item.prompt, answer) for item in protocol_1.train for answer in item.answers or [item.response]
    }
    items = here.source.items("train")
    assert {(item.prompt, item.response) for item in items} == expected
    assert len(items) == len(expected) > len(protocol_1.train)
    texts = here.source.data.text["dictionary"]
    assert len(set(texts)) == len(texts) > len(protocol_1.text["dictionary"])


def test_both_protocols_ask_the_same_questions(here, protocol_1):
    for split in ("validation", "test", "judge"):
        asked, before = getattr(here.source.data, split), getattr(protocol_1, split)
        assert sorted(asked, key=str) == sorted(before, key=str)


def test_an_answer_of_a_question_has_logits_of_its_own(here):
    indices = [example["index"] for example in here.source.stream]
    assert len(set(indices)) == len(indices)


# --- measures


def test_every_named_measure_is_measured(here, measured):
    average = set(UNITS) - {"rollout_threshold"}
    expected = {(metric, "average") for metric in average}
    expected |= {("knowledge", c) for c in VERIFIED} | {("prose", c) for c in JUDGED}
    assert set(measured) == expected and all(math.isfinite(value) for value in measured.values())
    for metric, categories in (("knowledge", VERIFIED), ("prose", JUDGED)):
        values = [measured[metric, c] for c in categories]
        assert measured[metric, "average"] == pytest.approx(sum(values) / len(values))
    assert 0 <= measured["mode_coverage", "average"] <= 1 and 0 <= measured["answer_mass", "average"] <= 1
    assert {m for m, _ in here.values(here.source.teacher(RUN.teacher), RUN, "validation")} == average - {
        "train_seconds"
    }


def test_samples_answer_the_same_five_prompts_of_the_test(here, measured):
    """Of a trained student, the student before and the teacher; asked again, a student says the same."""
    runs = [RUN, replace(RUN, method="untrained"), replace(RUN, method="teacher")]
    taid, untrained, teacher = map(every_answer.samples, runs)
    prompts = [prompt for prompt, _ in taid]
    assert prompts == [prompt for prompt, _ in untrained] == [prompt for prompt, _ in teacher]
    category = {item.prompt: item.category for item in here.source.items("test")}
    assert [category[prompt] for prompt in prompts] == list(every_answer.SAMPLED) and len(set(prompts)) == 5
    assert taid == every_answer.samples(RUN) != teacher


def test_prose_pays_no_more_above_people_than_below(here, monkeypatch):
    """By hand: a judge whose likelihood lies 0.5 above or below people's, on a scale of 2 nats."""
    judging = SimpleNamespace(human=dict.fromkeys(JUDGED, -4.0), untrained=dict.fromkeys(JUDGED, -6.0))
    monkeypatch.setattr(here, "judge_of", lambda *_: judging)
    model, found = here.source.student(RUN.student, RUN.seed), {}
    for off in (-0.5, 0.5):
        judging.likelihood = lambda *_, off=off: -4.0 + off
        found[off] = here.values(model, RUN, "validation")
    assert found[0.5] == found[-0.5]
    assert found[0.5]["prose", "average"] == pytest.approx(0.5)
    points = (5 * found[0.5]["knowledge", "average"] + 3 * 7.5) / 8
    assert found[0.5]["score", "average"] == pytest.approx(points)


@pytest.mark.parametrize(
    ("probabilities", "share"),
    [((0.5, 0.5), 1), ((0.25, 0.24), 1 / 2), ((1.0, 0.0), 1 / 2), ((0.1, 0.1, 0.1), 0), ((1 / 6,) * 3, 1)],
)
def test_a_mode_is_covered_from_half_of_an_even_share_on(probabilities, share):
    assert coverage(probabilities) == pytest.approx(share)


def test_the_probability_of_an_answer_is_the_product_of_its_tokens(here):
    """Oracle: the chain rule, token by token, in fp64."""
    model = here.source.student("pythia", 100)
    item = next(i for i in here.source.items("test") if len(set(i.answers)) > 1)
    [found] = here.answers(model, [item])
    assert len(found) == len(set(item.answers))
    for answer, probability in zip(dict.fromkeys(item.answers), found, strict=True):
        [example] = here.source.encode([replace(item, response=answer)])
        ids = torch.tensor([example["prompt_ids"] + example["response_ids"]])
        logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
        start = len(example["prompt_ids"])
        chain = sum(logs[at - 1, ids[0, at]].item() for at in range(start, ids.shape[1]))
        assert math.log(probability) == pytest.approx(chain, rel=1e-4)


def test_entropy_is_that_of_the_first_token(here):
    """A model whose logits are all 0 is even over its vocabulary: ln V."""
    model = here.source.student("pythia", 100)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    [example, *_] = here.source.encode(here.source.items("test")[:1])
    found = entropies(model, [example | {"response_ids": example["response_ids"][:1]}], here.collator)
    assert found == pytest.approx([math.log(model.config.vocab_size)])


def test_distillms_threshold_is_told(here):
    values, _ = every_answer.measure(replace(RUN, method="distillm"), "validation")
    assert 0 <= values["rollout_threshold", "average"] <= 1


# --- settings and runs


def test_all_methods_warm_up_for_a_tenth_and_see_the_data_more_than_once():
    assert CPU.distil.warmup_steps == CPU.distil.steps // 10
    assert {Run("cpu", m, t, 0, 1e-3).training.warmup_steps for m in METHODS for t in zoo.PAIRS} == {
        CPU.distil.steps // 10
    }
    assert CPU.learning_rates == (1e-3, 3e-3, 1e-2, 3e-2)


def test_a_run_of_one_protocol_is_none_of_the_other():
    for scale, setting in SETTINGS.items():
        assert setting.digest != instruction_tuning.SETTINGS[scale].digest
        run = Run(scale, "kl", "phi-3-mini", 0, 1e-3)
        other = instruction_tuning.Run(scale, "kl", "phi-3-mini", 0, 1e-3)
        assert results.config_hash(run.config()) != results.config_hash(other.config())
        assert run.options == other.options


# --- learning rates


def test_rates_that_are_committed_are_not_searched_again(monkeypatch, tmp_path):
    """By hand: the points favour 3e-3 for KL, 1e-3 for TAID; KL's are committed. `afresh` asks for them again."""
    committed, own, asked = tmp_path / "committed", tmp_path / "own" / "table1_tuned.jsonl", []

    def evaluate(cells, measure, rows, path, workers, title):
        done = results.finished(path)
        for run, split in cells:
            if results.config_hash(run.config() | {"experiment": SEARCH}) in done:
                continue
            better = run.learning_rate == (3e-3 if run.method == "kl" else 1e-3)
            results.append(path, rows(run, SEARCH, {("score", "average"): 5.0 + better}, 1.0))
            asked.append((run.method, split))

    monkeypatch.setattr(jobs, "REFERENCE", committed)
    monkeypatch.setattr(jobs, "evaluate", evaluate)
    monkeypatch.setattr(every_answer, "prepare", lambda *arguments: None)
    tuned = partial(every_answer.tuned, "cpu", zoo.PAIRS["llama-2"], workers=1)
    assert tuned(("kl",), committed / own.name) == {"kl": 3e-3}
    count = len(SETTINGS["cpu"].learning_rates) + 2 * (len(SETTINGS["cpu"].tuning_seeds) - 1)
    assert asked == [("kl", "validation")] * count
    asked.clear()
    assert tuned(("kl", "taid"), own) == {"kl": 3e-3, "taid": 1e-3}
    assert asked == [("taid", "validation")] * count
    asked.clear()
    assert tuned(("kl",), own, afresh=True) == {"kl": 3e-3} and len(asked) == count
