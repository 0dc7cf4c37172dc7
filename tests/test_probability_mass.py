"""Table 3: what is measured, what is judged, and how it is shown."""

import itertools
from dataclasses import dataclass
from functools import partial

import numpy as np
import page_rows
import pytest
import torch
from conftest import PAD, VOCAB, tiny_examples, tiny_model

from taid import results
from taid.data import Collator
from taid.results import Row
from taid.studies import jobs, probability_mass, study
from taid.teacher import LiveTeacher

row = partial(page_rows.row, experiment="table3", metric="head", unit="probability", higher_is_better=False)


# Measuring


def probabilities(model, example: dict) -> np.ndarray:
    """softmax over the V real entries at one example's response positions, without padding, fp64: [n, V]"""
    ids, first = example["prompt_ids"] + example["response_ids"], len(example["prompt_ids"])
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0, first - 1 : -1, :VOCAB].double().numpy()
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_masses_agree_with_a_loop_over_tokens():
    """Oracle: numpy, one example at a time. Ragged batches, padded vocabularies; V = 48, so that the tail
    holds the ranks from round(38.4) = 38 on."""
    student = tiny_model(seed=0, vocab_size=VOCAB + 16)
    teacher = tiny_model("phi3", seed=1, vocab_size=VOCAB + 8)
    examples = tiny_examples(11)
    q = np.concatenate([probabilities(student, example) for example in examples])
    p = np.concatenate([probabilities(teacher, example) for example in examples])
    overall = np.tile(np.argsort(-p.mean(0)), (len(q), 1))
    orders = {"": np.argsort(-p), "_own": np.argsort(-q), "_marginal": overall}

    batches = [Collator(PAD)(examples[at : at + 4]) for at in (0, 4, 8)]
    found = probability_mass.masses(student, LiveTeacher(teacher), batches, VOCAB)
    for suffix, order in orders.items():
        ranked = np.take_along_axis(q, order, -1)
        assert found["head" + suffix, "average"] == pytest.approx(ranked[:, :10].sum(-1).mean(), rel=1e-5)
        assert found["tail" + suffix, "average"] == pytest.approx(ranked[:, 38:].sum(-1).mean(), rel=1e-5)
    ranked = np.take_along_axis(q, orders[""], -1).mean(0)
    at_rank = {int(task): value for (metric, task), value in found.items() if metric == "mass_at_rank"}
    assert list(at_rank) == probability_mass.ranks(VOCAB)
    assert list(at_rank.values()) == pytest.approx([ranked[r - 1] for r in at_rank], rel=1e-5)  # fp32 logits


def test_of_itself_the_teacher_and_the_student_give_one_ranking():
    model, batches = tiny_model(), [Collator(PAD)(tiny_examples(8))]
    found = probability_mass.masses(model, LiveTeacher(model), batches, VOCAB)
    assert found["head", "average"] == found["head_own", "average"]
    assert found["tail", "average"] == found["tail_own", "average"]


@pytest.mark.parametrize("vocab_size", [48, 512, 2048, 32_000])
def test_ranks_reach_from_first_to_last_without_repeats(vocab_size):
    ranks = probability_mass.ranks(vocab_size)
    assert (ranks[0], ranks[-1]) == (1, vocab_size) and all(a < b for a, b in itertools.pairwise(ranks))
    assert 20 < len(ranks) <= 40


def test_learning_rates_are_those_of_table_1():
    def chosen(method: str, rate: float, **fields) -> Row:
        return row(1.0, experiment="table1", method=method, config={"learning_rate": rate}, **fields)

    rows = [chosen("kl", 0.01), chosen("rkl", 0.003), chosen("taid", 0.01), chosen("rkl", 0.003, seed=1)]
    others = [chosen("kl", 9.0, scale="smoke"), chosen("kl", 9.0, teacher="llama-2"), row(1.0, method="kl")]
    found = study.chosen_rates(rows + others, "cpu", "phi-3-mini", probability_mass.CLAIMED)
    assert found == {"kl": 0.01, "rkl": 0.003, "taid": 0.01}
    with pytest.raises(
        jobs.Refused, match="for kl, rkl with phi-3-mini: run `make table1-protocol-1 SCALE=cpu` first"
    ):
        study.chosen_rates(rows[2:3] + others, "cpu", "phi-3-mini", probability_mass.CLAIMED)


# Finished cells


@dataclass(frozen=True)
class Run:
    seed: int

    def config(self) -> dict:
        return {"seed": self.seed}


def test_only_missing_cells_run_and_each_experiment_gets_its_rows(tmp_path, monkeypatch):
    here = lambda function, todo, workers, title: ((job, function(*job)) for job in todo)  # noqa: E731
    monkeypatch.setattr(jobs, "run", here)  # no processes
    measured = []

    def measure(run, split):
        measured.append((run.seed, split))
        return {("head", "average"): 0.5}, 2.0

    def rows(run, experiment, values, seconds):
        config = run.config() | {"experiment": experiment}
        [value] = values.values()
        return [row(value, experiment=experiment, seed=run.seed, config=config, seconds=seconds)]

    path = tmp_path / "rows.jsonl"
    jobs.evaluate({(Run(0), "test"): ["a"], (Run(1), "test"): ["a"]}, measure, rows, path, 1, "first")
    jobs.evaluate({(Run(0), "test"): ["a"], (Run(1), "test"): ["a", "b"]}, measure, rows, path, 1, "second")
    assert measured == [(0, "test"), (1, "test"), (1, "test")]  # seed 1 lacked b
    written = [(r.experiment, r.seed, r.seconds) for r in results.read(path)]
    assert written == [("a", 0, 2.0), ("a", 1, 2.0), ("b", 1, 2.0)]  # none twice
