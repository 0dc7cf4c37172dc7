"""The official code's departures: what is trained, what a run is named by, and the page, on rows by hand."""

from dataclasses import replace

import pytest
import torch
from conftest import PAD, tiny_examples
from page_rows import frame_of, line_of, outcomes
from page_rows import row as row_of

from analysis import page, questions
from analysis.departures import PAGE, draw
from taid import losses
from taid.data import Collator
from taid.objectives import DKD
from taid.studies import departures, instruction_tuning, study
from taid.studies.departures import DEPARTING, METHODS, OFFICIAL, PerPosition, Run

RUN = Run("cpu", "kl", departures.TEACHER, seed=0, learning_rate=1e-2)
GENERATOR = torch.Generator().manual_seed(0)


def logits(rows: int) -> torch.Tensor:
    return 2 * torch.randn(rows, 11, generator=GENERATOR, dtype=torch.float64)


def test_dkd_is_divided_by_all_positions():
    """Oracle: `masked_mean(official=True)` of the same losses, laid out with prompts and padding between them."""
    batch = Collator(PAD)(tiny_examples(6))
    mask = batch["labels"] >= 0
    count = int(mask.sum())
    student, teacher, labels = logits(count), logits(count), torch.randint(11, (count,))
    objective = PerPosition()
    assert torch.equal(objective.watched(lambda batch: teacher)(batch), teacher)
    whole = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(
        mask, losses.dkd(student, teacher, labels)
    )
    expected = losses.masked_mean(whole, mask, official=True)
    torch.testing.assert_close(objective(student, teacher, labels), expected)
    assert expected < DKD()(student, teacher, labels)  # for there is padding


def test_dkd_without_its_batches_is_refused():
    with pytest.raises(AssertionError, match="watched"):
        PerPosition()(logits(3), logits(3), torch.tensor([0, 1, 2]))


def test_objectives_are_those_of_the_losses():
    assert repr(replace(RUN, method="kl_official").objective()) == "Divergence(forward_kl, official=True)"
    assert repr(replace(RUN, method="ctkd_official").objective()) == "CTKD(official=True)"
    assert repr(replace(RUN, method="adaptive_kl_official").objective()).endswith(
        "adaptive_kl, official=True)"
    )
    assert isinstance(replace(RUN, method="dkd_official").objective(), PerPosition)
    assert type(replace(RUN, method="dkd").objective()) is DKD


@pytest.mark.parametrize("method", ["taid", *DEPARTING])
def test_what_does_not_depart_is_table_1s_run(method):
    """So that its student is not trained again."""
    fields = ("cpu", method, departures.TEACHER, 0, 1e-2)
    assert Run(*fields).config() == instruction_tuning.Run(*fields).config()


def test_an_official_variant_takes_its_methods_rate_and_another_name():
    rates = dict(zip(("taid", *DEPARTING), (0.01, 0.02, 0.03, 0.04, 0.05), strict=True))
    made = {run.method: run for run in departures.runs("cpu", 0, rates)}
    assert list(made) == list(METHODS)
    for method in DEPARTING:
        assert made[method + OFFICIAL].learning_rate == made[method].learning_rate == rates[method]
        assert made[method + OFFICIAL].config() != made[method].config()
    with pytest.raises(ValueError, match="unknown method 'rkl_official'"):
        replace(RUN, method="rkl_official")


def test_page_and_study_speak_of_the_same_methods():
    assert (questions.DEPARTING, questions.OFFICIAL) == (DEPARTING, OFFICIAL)


def frame(folder, scores: dict[str, float], seeds: int = 3):
    """Better by `score` in all measures, but for the seed's hundredth, of another sign for every other seed."""
    found = []
    for method, score in scores.items():
        for seed in range(seeds):
            noise = 0.01 * (-1) ** seed * len(method) / 20
            own = {"experiment": "departures", "method": method, "seed": seed}
            values = {"score": score, "held_out_loss": 3 - score / 4, "kl_to_teacher": 1 - score / 8}
            found += [row_of(value + noise, metric=metric, **own) for metric, value in values.items()]
    return frame_of(folder, found)


def test_claims_flip_with_the_data(tmp_path):
    same = outcomes(PAGE, frame(tmp_path / "a", dict.fromkeys(METHODS, 2.0)))
    assert set(same["kl is the same"]) == set(same["dkd is the same"]) == {"supported"}
    worse = dict.fromkeys(METHODS, 2.0) | {method + OFFICIAL: 1.0 for method in DEPARTING}
    found = outcomes(PAGE, frame(tmp_path / "b", worse))
    assert set(found["kl is the same"]) == {"contradicted"}
    assert set(found["ctkd is better"]) == set(found["adaptive_kl is better"]) == {"supported"}


def test_differences_by_hand(tmp_path):
    scores = dict.fromkeys(METHODS, 2.0) | {"ctkd_official": 1.5, "taid": 3.0}
    rows = frame(tmp_path, scores, seeds=1)
    text = page.render(PAGE, rows, "cpu")
    first, second = (part for part in text.split("## ") if "| CTKD |" in part)
    assert line_of(first, "CTKD")[1:4] == ["2.00 (1 seed)", "1.51 (1 seed)", "−0.50 (1 seed)"]
    assert line_of(second, "CTKD")[1:3] == ["1.00 (1 seed)", "1.50 (1 seed)"]
    assert len(draw(rows).axes) == 3


@pytest.mark.slow
def test_a_departure_is_trained_and_measured(cache):
    """End to end at the scale "smoke": DKD's official student is another one, and has the averages alone."""
    runs = [replace(RUN, scale="smoke", method=method) for method in ("dkd", "dkd_official")]
    values = [departures.measure(run, "test")[0] for run in runs]
    assert {task for _, task in values[0]} == {"average"} and values[0].keys() == values[1].keys()
    assert values[0]["kl_to_teacher", "average"] != values[1]["kl_to_teacher", "average"]
    assert study.rows(runs[1], "departures", values[1], 1.0, instruction_tuning.UNITS)
