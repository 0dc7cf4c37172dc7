"""Table 5's page: the paper's models beside ours, families one by one, on rows by hand."""

import re

import pytest
from page_rows import frame_of, line_of, outcomes
from page_rows import row as any_row

from analysis import page, reference, table5
from analysis.claims import TABLE5
from taid.results import Row
from taid.studies.image_text import STUDENT, TEACHER
from taid.studies.image_text_data import FAMILIES
from taid.studies.mantis import HUB

MEANS = {"teacher": 80.0, "untrained": 50.0, "sft": 60.0, "kl": 64.0, "taid": 65.0}


def row(value: float, **fields) -> Row:
    return any_row(
        value,
        **{"experiment": "table5", "teacher": TEACHER, "student": STUDENT, "metric": "accuracy"} | fields,
    )


def table_rows(seeds: int, means: dict[str, float] = MEANS, **fields) -> list[Row]:
    """Accuracies a point apart between seeds; families stand 1, 2, … above the average; the teacher once."""
    found = []
    for method, mean in means.items():
        for seed in range(1 if method == "teacher" else seeds):
            base = {"method": method, "seed": seed} | fields
            found.append(row(mean + seed, **base))
            found += [row(mean + seed + i, task=family, **base) for i, family in enumerate(FAMILIES)]
            if method == "untrained":
                found += [row(100 * f.chance, metric="chance", task=n, **base) for n, f in FAMILIES.items()]
            found.append(row(2 - mean / 100, metric="held_out_loss", **base))
    return found


def test_the_papers_models_stand_beside_those_in_their_place(tmp_path):
    """By hand: 65, 66, 67 are 66 ± 4.303 · 1 / √3."""
    text = page.render(table5.PAGE, frame_of(tmp_path, table_rows(3)), "cpu")
    assert line_of(text, "TAID (TAID-VLM-2B)")[1:3] == ["56.43", "**66.0 ± 2.5**"]
    assert line_of(text, "student before distillation (InternVL2-2B)")[1:3] == ["53.96", "51.0 ± 2.5"]
    assert line_of(text, "KL")[1:3] == ["—", "65.0 ± 2.5"] and line_of(text, "teacher")[2] == "80.0 (1 seed)"
    assert line_of(text, "PaliGemma")[1:3] == ["46.56", "—"]
    assert line_of(text, "**TAID − KL**, n = 3")[1:3] == ["—", "1.0 [1.0, 1.0]"]
    assert all(model in text for model in reference.table5())


def test_families_stand_one_by_one_with_their_chance(tmp_path):
    text = page.render(table5.PAGE, frame_of(tmp_path, table_rows(2)), "cpu")
    where = line_of(text, "where")
    assert where[2:4] == ["25.0", "82.0 (1 seed)"] and where[-1] == "1.0 [1.0, 1.0]"
    assert [*table5.ASKED] == [*FAMILIES]


def test_claims_follow_the_rows_and_the_papers_own_numbers(tmp_path):
    frame = frame_of(tmp_path / "a", table_rows(3))
    assert {name: found[0] for name, found in outcomes(table5.PAGE, frame).items()} == {
        claim.name: "supported" for claim in TABLE5
    }
    fallen = frame_of(tmp_path / "b", table_rows(3, MEANS | {"taid": 55.0}))
    assert [found[0] for found in outcomes(table5.PAGE, fallen).values()] == [
        "supported",
        "contradicted",
        "contradicted",
    ]
    [start, *controls] = page.findings(table5.comparisons(frame))[:3]
    assert start.paper.outcome == "supported" and not any(control.paper for control in controls)


def test_one_rate_for_all_stands_apart(tmp_path):
    alike = table_rows(2, {"sft": 61.0, "kl": 63.0, "taid": 66.0}, experiment="table5_one_rate")
    text = page.render(table5.PAGE, frame_of(tmp_path, table_rows(2) + alike), "cpu")
    whole, apart = text.split("## One learning rate for all")
    assert "All at 0.01" in apart and line_of(apart, "**TAID − KL**, n = 2")[1] == "3.0 [3.0, 3.0]"
    assert line_of(whole, "**TAID − KL**, n = 2")[2] == "1.0 [1.0, 1.0]"


def test_rates_are_those_of_the_search(tmp_path):
    searched = [
        row(value, method="kl", seed=100, experiment="table5_search", config={"learning_rate": rate})
        for value, rate in ((41.0, 0.001), (44.0, 0.003))
    ]
    text = page.render(table5.PAGE, frame_of(tmp_path, table_rows(1) + searched), "cpu")
    assert "| KL | 41.0 | **44.0** |" in text and "tuning seed 100" in text


@pytest.mark.parametrize("method", ["teacher", "untrained", "taid"])
def test_rows_of_one_method_render(tmp_path, method):
    part = [r for r in table_rows(1) if r.method == method]
    frame = frame_of(tmp_path, part)
    assert not re.search(r"\b(nan|inf)\b", page.render(table5.PAGE, frame, "cpu"))
    table5.PAGE.figures(frame, "cpu")


def test_equal_rows_give_equal_files(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        page.write(table5.PAGE, frame_of(folder, table_rows(2)), folder, "cpu")
    for name in ("table5.md", "table5.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_paper_s_models_are_named_as_the_study_names_them():
    assert HUB[STUDENT].rpartition("/")[2] == table5.PLACES["untrained"]
