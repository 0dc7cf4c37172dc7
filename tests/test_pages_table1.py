"""Table 1's page, on rows whose numbers a hand can check."""

from dataclasses import replace

import pytest
from page_rows import changed, frame_of, line_of, outcomes, row

from analysis import page, reference, table1
from analysis.claims import TABLE1
from analysis.reference import METHODS
from taid.results import Row

PAIRS = tuple(reference.table1())


def render(frame) -> str:
    return page.render(table1.PAGE, frame, "cpu")


def table_rows(seeds: int, lead: float = 1.0, **fields) -> list[Row]:
    """Headline and two categories of every method and pair: TAID `lead` above ten equal rivals."""
    base = {**dict.fromkeys(METHODS, 4.0), "taid": 4.0 + lead, "teacher": 9.0, "untrained": 1.0}
    return [
        row(
            base[method] + shift + 0.1 * seed,
            method=method,
            seed=seed,
            task=task,
            teacher=pair.teacher,
            student=pair.student,
            **fields,
        )
        for pair in PAIRS
        for method in base
        for seed in range(seeds)
        for task, shift in {"define": -0.5, "novel": 0.5, "average": 0.0}.items()
    ]


def test_the_headline_shows_paper_and_ours_side_by_side(tmp_path):
    text = render(frame_of(tmp_path, table_rows(3)))
    # 5.0, 5.1, 5.2: mean 5.1, ± 4.303 · 0.1 / √3 = 0.25
    assert line_of(text, "TAID")[1:5] == ["**4.05**", "**5.10 ± 0.25**", "**4.27**", "**5.10 ± 0.25**"]
    assert line_of(text, "SFT")[3:5] == ["3.94", "4.10 ± 0.25"]
    assert line_of(text, "teacher")[1:3] == ["—", "9.10 ± 0.25"]
    assert "33 of 33 cells have rows" in text and "Seeds: 3" in text and "mean nothing" not in text
    assert text.count("**supported**") == 9 and "table1_one_rate" not in text


def test_a_partial_file_renders_dashes(tmp_path):
    missing = {("phi-3-mini", method) for method in METHODS} | {("llama-2", "kl")}
    partial = [r for r in table_rows(3) if (r.teacher, r.method) not in missing]
    text = render(frame_of(tmp_path, partial))
    assert line_of(text, "KL") == ["KL", "2.71", "—", "3.99", "—", "2.74", "4.10 ± 0.25"]
    assert "21 of 33 cells have rows" in text
    assert "no rows for KL" in text  # Llama-2's claim, for want of one rival
    assert text.count("no rows for SFT") == 0 and text.count("no rows for TAID") == 3  # Phi-3's three claims


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    text = render(frame_of(tmp_path, table_rows(1)))
    assert line_of(text, "TAID")[2] == "**5.00 (1 seed)**"
    assert "±" not in line_of(text, "KL")[2] and "†" not in line_of(text, "KL")[2]
    assert text.count("**inconclusive**") == 9 and "**supported**" not in text and "inf" not in text
    assert "— (1 seed)" in text  # the separation check


@pytest.mark.parametrize(
    ("lead", "outcome"), [(1.0, "supported"), (0.0, "inconclusive"), (-1.0, "contradicted")]
)
def test_claims_flip_with_the_data(tmp_path, lead, outcome):
    found = outcomes(table1.PAGE, frame_of(tmp_path, table_rows(3, lead)))
    assert found == {claim.name: [outcome] * 3 for claim in TABLE1}


def test_both_protocols_are_judged_apart(tmp_path):
    one_rate = table_rows(3, lead=-1.0, experiment="table1_one_rate")
    text = render(frame_of(tmp_path, table_rows(3) + one_rate))
    headline, _, second = text.partition("## One learning rate for all")
    assert line_of(headline, "TAID")[2] == "**5.10 ± 0.25**" and line_of(second, "TAID")[2] == "3.10 ± 0.25"
    assert text.count("**supported**") == 9 and text.count("**contradicted**") == 9
    assert line_of(headline, "**TAID − KL**, n = 3")[2] == "1.00 [1.00, 1.00]"
    assert line_of(second, "**TAID − KL**, n = 3")[2] == "−1.00 [−1.00, −1.00]"


def test_search_rows_show_the_grid_with_the_chosen_rate_in_bold(tmp_path):
    rates = {0.003: 5.0, 0.01: 6.0, 0.03: 4.0}
    searched = row(0.0, experiment="table1_search")
    search = [changed(searched, value=score, config={"learning_rate": rate}) for rate, score in rates.items()]
    text = render(frame_of(tmp_path, table_rows(1) + search)).partition("## Learning rates")[2]
    assert line_of(text, "method") == ["method", "0.003", "0.01", "0.03"]
    assert line_of(text, "TAID") == ["TAID", "5.00", "**6.00**", "4.00"]


def test_the_cells_at_the_grids_upper_edge_are_counted(tmp_path):
    at_edge = [changed(r, config={"learning_rate": 0.03}) if r.method == "kl" else r for r in table_rows(1)]
    text = render(frame_of(tmp_path, at_edge)).partition("## Learning rates")[2]
    assert "3 of 33 cells take the grid's upper edge, 0.03" in text


def test_references_have_no_learning_rate(tmp_path):
    written = [row(1.0), row(1.0, method="teacher", config={"learning_rate": 0.0})]
    assert "Learning rates: 0.01." in table1.headline(frame_of(tmp_path, written), "cpu").note


def test_the_figure_draws_differences_to_kl(tmp_path):
    paper, ours, *_ = table1.draw(frame_of(tmp_path, table_rows(3)), "cpu").axes
    dots = [line.get_xdata()[0] for line in paper.get_lines() if line.get_marker() == "o"]
    assert dots[-1] == pytest.approx(4.05 - 2.71) and len(dots) == 10  # TAID's; KL is the line at 0
    dots = [line.get_xdata()[0] for line in ours.get_lines() if line.get_marker() == "o"]
    assert dots == pytest.approx([0.0] * 9 + [1.0])


def test_categories_come_from_the_rows(tmp_path):
    text = render(frame_of(tmp_path, table_rows(3))).partition("## Scores per category")[2]
    assert line_of(text, "method") == ["method", "define", "novel"]
    assert line_of(text, "KL") == ["KL", "3.60 ± 0.25", "4.60 ± 0.25"]


def test_the_separation_check_measures_and_warns(tmp_path):
    written = table_rows(3)
    # SFT has s = 0.1, the teacher too: (9.1 − 4.1) / √0.02 = 35.4. Move one category of both to the ceiling.
    moved = {("pythia", "novel", method) for method in ("sft", "teacher")}
    written = [replace(r, value=9.6) if (r.student, r.task, r.method) in moved else r for r in written]
    text = render(frame_of(tmp_path, written)).partition("## Can the benchmark")[2]
    assert line_of(text, "Llama-2 → TinyLlama")[3:] == ["35.4 (pass)", "none"]
    assert line_of(text, "StableLM Zephyr → Pythia")[3:] == ["35.4 (pass)", "novel"]
    close = [replace(r, value=r.value - 4.8) if r.method == "teacher" else r for r in written]
    text = render(frame_of(tmp_path / "close", close)).partition("## Can the benchmark")[2]
    assert line_of(text, "Llama-2 → TinyLlama")[3] == "1.4 (FAIL)"


def test_equal_rows_give_equal_files(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        page.write(table1.PAGE, frame_of(folder, table_rows(2)), folder, "cpu")
    for name in ("table1.md", "table1.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
