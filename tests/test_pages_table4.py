"""The page of Tables 4 and 9, on rows by hand."""

import re

import pytest
from page_rows import frame_of, line_of, outcomes
from page_rows import row as any_row

from analysis import page, reference, table4
from analysis.claims import TABLE4
from analysis.predicates import in_paper
from analysis.table4 import ARMS, METHODS, PAGE
from taid.results import Row
from taid.studies import taid_llm

LOSS = {"untrained": 5.0, "sft": 4.9, "kl": 4.7, "taid": 4.6}


def test_page_and_study_speak_of_the_same():
    assert (METHODS, tuple(ARMS), table4.ARROW) == (taid_llm.METHODS, tuple(taid_llm.ARMS), taid_llm.ARROW)
    assert table4.COUNTERPARTS.keys() <= reference.table4().keys()


def written(arm: str, method: str, seed: int, accuracy: float, loss: float) -> list[Row]:
    own = {"experiment": f"table4_{arm}", "method": method, "seed": seed}
    scored = {"accuracy": accuracy, "standard_error": 0.02, "chance": 0.25}
    rows = [any_row(v, metric=metric, task="cloze", **own) for metric, v in scored.items()]
    rows += [any_row(loss, metric=m, task=task, **own) for m in table4.LIKELIHOODS for task in ARMS]
    sample = f"The | book\nsays{table4.ARROW}{method} writes"
    return [*rows, any_row(1.25, metric="sample_loss", task=sample, **own)]


def table_rows(seeds: int = 3, gain: float = 0.04) -> list[Row]:
    """Accuracies 0.40 before, and so much more by SFT, KL and TAID; a seed adds 0.001 to all it trains."""
    rows = []
    for arm in ARMS:
        rows += written(arm, "teacher", 0, 0.9, 4.0) + written(arm, "untrained", 0, 0.40, LOSS["untrained"])
        for seed in range(seeds):
            for rank, method in enumerate(METHODS, start=1):
                wiggle = 0.001 * seed * rank  # not the same for all, or intervals would have no width
                rows += written(arm, method, seed, 0.40 + gain * rank + wiggle, LOSS[method] - wiggle)
    return rows


def test_the_paper_s_numbers_say_of_its_claim_that_it_holds_and_nothing_of_the_controls():
    printed = {own: reference.table4()[model] for model, own in table4.COUNTERPARTS.items()}
    start, *controls = (in_paper(claim, printed) for claim in TABLE4)
    assert start.outcome == "supported" and start.estimate.mean == pytest.approx(52.27 - 46.19)
    assert all(verdict.estimate is None for verdict in controls)


@pytest.mark.parametrize(("gain", "expected"), [(0.04, "supported"), (-0.04, "contradicted")])
def test_claims_flip_with_the_data(tmp_path, gain, expected):
    """Of six verdicts of each claim (two arms, three measures) two are about the tasks."""
    found = outcomes(PAGE, frame_of(tmp_path, table_rows(gain=gain)))
    assert {claim: verdicts[::3] for claim, verdicts in found.items()} == {
        claim.name: [expected] * 2 for claim in TABLE4
    }


def test_the_student_before_training_is_one_for_all_seeds(tmp_path):
    """By hand: TAID 52, 52.3 and 52.6 percent, before 40; s = 0.3, so ± 4.303 · 0.3 / √3 = 0.75."""
    text = page.render(PAGE, frame_of(tmp_path, table_rows()), "cpu")
    assert line_of(text, "**TAID − before**")[1:] == ["6.08", *["12.30 [11.55, 13.05]"] * 2]
    assert line_of(text, "Qwen2-1.5B; ours: student before distillation")[1:] == [
        "46.19",
        *["40.00 (1 seed)"] * 2,
    ]
    assert line_of(text, "Phi-1.5B") == ["Phi-1.5B", "50.39", "—", "—"]
    assert line_of(text, "chance")[1:] == ["—", "25.00", "25.00"]


def test_samples_stand_on_one_line_the_references_once(tmp_path):
    text = page.render(PAGE, frame_of(tmp_path, table_rows(seeds=1)), "cpu")
    lines = [line for line in text.splitlines() if line.startswith("| The \\| book says |")]
    assert len(lines) == 2 + len(ARMS) * len(METHODS)
    assert "| The \\| book says | TAID, instructions | taid writes | 1.25 |" in lines


def test_one_arm_alone_leaves_dashes_in_the_other(tmp_path):
    rows = [row for row in table_rows() if row.experiment == "table4_text"]
    text = page.render(PAGE, frame_of(tmp_path, rows), "cpu")
    assert line_of(text, "TAID-LLM-1.5B; ours: TAID")[3] == "—" and not re.search(r"\bnan\b", text)
    table4.draw(frame_of(tmp_path, rows))
