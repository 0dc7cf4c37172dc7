"""From rows to verdicts and Markdown, on numbers that a hand can check."""

import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis import figures, reference, rows, style, table1, tables
from analysis.__main__ import main
from analysis.claims import METHODS, TABLE1
from analysis.predicates import best, greater, holds_in_paper
from analysis.rows import Pair
from analysis.statistics import gap_in_deviations, mean_interval, paired_interval
from taid.results import Provenance, Row, append

LLAMA = Pair("llama-2", "tinyllama")
PAIRS = tuple(reference.table1())
HERE = Provenance(commit="c0ffee", dirty=False, versions="python 3.11", device="cpu", date="2025-01-01")


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def row(value: float, **fields) -> Row:
    default = Row(
        experiment="table1",
        scale="cpu",
        method="taid",
        teacher=LLAMA.teacher,
        student=LLAMA.student,
        task="average",
        seed=0,
        metric="score",
        value=value,
        unit="points of 10",
        higher_is_better=True,
        config={"learning_rate": 0.01},
        config_hash="0",
        seconds=1.0,
        **asdict(HERE),
    )
    return replace(default, **fields)


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


def frame_of(tmp_path: Path, written: list[Row], scale: str = "cpu"):
    path = tmp_path / "table1.jsonl"
    append(path, written)
    return rows.load(path, scale)


def line_of(markdown: str, start: str) -> list[str]:
    """Cells of the first table line that starts with `start`."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# Statistics


def test_the_interval_of_three_integers_by_hand():
    # mean 2, s = 1, t(0.975, 2) = 4.303: ± 4.303 / √3 = 2.484
    estimate = mean_interval([1, 2, 3])
    assert (estimate.mean, estimate.n) == (2, 3)
    assert (estimate.low, estimate.high) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.995])
def test_intervals_agree_with_scipy(confidence):
    first, second = np.random.default_rng(0).normal(size=(2, 7))
    oracle = stats.ttest_1samp(first, 0).confidence_interval(confidence)
    ours = mean_interval(list(first), confidence)
    assert (ours.low, ours.high) == pytest.approx((oracle.low, oracle.high), rel=1e-12)
    oracle = stats.ttest_rel(first, second).confidence_interval(confidence)
    ours = paired_interval(by_seed(*first), by_seed(*second), confidence)
    assert (ours.low, ours.high) == pytest.approx((oracle.low, oracle.high), rel=1e-12)


def test_one_value_tells_nothing_about_the_spread():
    estimate = mean_interval([3.0])
    assert (estimate.low, estimate.mean, estimate.high) == (-math.inf, 3.0, math.inf)


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_pairing_removes_what_the_seeds_share_and_ignores_the_rest():
    first, second = {0: 11, 1: 21, 2: 31, 7: 1000}, {2: 30, 1: 20, 0: 10, 9: -1000}
    estimate = paired_interval(first, second)
    assert (estimate.low, estimate.mean, estimate.high, estimate.n) == (1, 1, 1, 3)


def test_a_gap_in_standard_deviations_by_hand():
    assert gap_in_deviations([9], [1, 2, 3]) == 7  # (9 − 2) / 1
    assert gap_in_deviations([8, 10, 12], [1, 3]) == pytest.approx(8 / math.sqrt(4 + 2))
    assert math.isnan(gap_in_deviations([9], [2]))
    assert gap_in_deviations([9], [2, 2]) == math.inf


# Claims

RIVALS = ("kl", "rkl", "sft")
NOISE = np.array([-0.01, 0.0, 0.01])


def scores_with(lead: float, seeds: int = 3) -> dict[str, dict[int, float]]:
    """TAID `lead` above three rivals, each with noise of its own."""
    patterns = {rival: by_seed(*np.roll(NOISE, k)[:seeds]) for k, rival in enumerate(RIVALS)}
    return {"taid": by_seed(*[lead] * seeds), **patterns}


@pytest.mark.parametrize(
    ("lead", "outcome"), [(1.0, "supported"), (0.0, "inconclusive"), (-1.0, "contradicted")]
)
def test_claims_flip_with_the_data(lead, outcome):
    scores = scores_with(lead)
    assert best(scores, "taid", RIVALS).outcome == outcome
    verdict = greater(scores, "taid", "kl")
    assert verdict.outcome == outcome and verdict.estimate.mean == pytest.approx(lead)


def test_best_needs_every_rival_beaten_and_names_the_strongest():
    scores = scores_with(1.0)
    scores["rkl"] = by_seed(0.8, 1.0, 1.2)  # a tie
    verdict = best(scores, "taid", RIVALS)
    assert verdict.outcome == "inconclusive" and verdict.estimate.mean == pytest.approx(0)
    assert "TAID − RKL" in verdict.explanation and "not beaten: RKL" in verdict.explanation


def test_contradiction_is_corrected_for_the_number_of_rivals():
    # Differences −3, −4, −5: −4 ± 2.48 at 95%, but ± 4.42 at 1 − 0.05/3; −4, −5, −6 stay below 0 even so.
    scores = {**scores_with(0.0), "rkl": by_seed(3, 4, 5)}
    assert greater(scores, "taid", "rkl").outcome == "contradicted"
    assert stats.t.ppf(1 - 0.05 / 3 / 2, 2) / math.sqrt(3) == pytest.approx(4.42, abs=0.01)
    assert best(scores, "taid", RIVALS).outcome == "inconclusive"
    assert best({**scores, "rkl": by_seed(4, 5, 6)}, "taid", RIVALS).outcome == "contradicted"


def test_one_seed_and_missing_rows_are_inconclusive():
    assert best(scores_with(9.0, seeds=1), "taid", RIVALS).outcome == "inconclusive"
    assert greater(scores_with(9.0, seeds=1), "taid", "kl").outcome == "inconclusive"
    scores = scores_with(1.0)
    del scores["kl"]
    verdict = best(scores, "taid", RIVALS)
    assert verdict.outcome == "inconclusive" and "no rows for KL" in verdict.explanation
    assert greater(scores, "taid", "kl").estimate is None
    assert best({}, "taid", RIVALS).estimate is None
    assert greater({"taid": {0: 1.0}, "kl": {1: 0.0}}, "taid", "kl").estimate is None  # no seed in common


def test_the_papers_own_numbers():
    for numbers in reference.table1().values():
        assert all(holds_in_paper(claim, numbers) for claim in TABLE1)
    # Bold cells of the paper's table: TAID 4.05, 4.27, 3.05; without its lead the claim must fail.
    beaten = {**reference.table1()[LLAMA], "dkd": 4.30}
    assert [holds_in_paper(claim, beaten) for claim in TABLE1] == [False, True]


def test_the_paper_has_eleven_methods_and_three_pairs():
    assert len(METHODS) == 11 and len(PAIRS) == 3
    assert all(tuple(numbers) == METHODS for numbers in reference.table1().values())
    assert reference.table1()[LLAMA]["taid"] == 4.27


# Rows


def test_the_last_row_of_a_cell_wins_but_search_rates_stay_apart(tmp_path):
    low, high = {"learning_rate": 0.001}, {"learning_rate": 0.01}
    written = [
        row(1.0, config=low),
        row(2.0, config=high),
        row(3.0, config=low, experiment="table1_search"),
        row(4.0, config=high, experiment="table1_search"),
        row(5.0, config=high, experiment="table1_search"),
        row(9.0, scale="smoke"),
    ]
    frame = frame_of(tmp_path, written)
    assert rows.scores(frame, "table1", "score") == {LLAMA: {"taid": {0: 2.0}}}
    search = frame[frame.experiment == "table1_search"]
    assert dict(zip(search.learning_rate, search.value)) == {0.001: 3.0, 0.01: 5.0}


def test_no_rows_give_an_empty_selection(tmp_path):
    assert rows.scores(rows.load(tmp_path / "none.jsonl", "cpu"), "table1", "score") == {}


# Tables


def test_cells():
    assert tables.value(by_seed(1, 2, 3), seeds=3) == "2.00 ± 2.48"
    assert tables.value(by_seed(1, 2, 3), seeds=5) == "2.00 ± 2.48 (3 seeds)"
    assert tables.value(by_seed(3.14), seeds=1) == "3.14 (1 seed)"
    assert tables.value(None, seeds=3) == "—"
    assert tables.number(-0.001) == "0.00" and tables.number(-1.5, 1) == "−1.5"


def test_best_is_bold_and_a_tie_is_marked():
    scores = {"a": by_seed(1, 2, 3), "b": by_seed(1, 3, 2), "c": by_seed(0, 1, 2.5), "d": by_seed(0, 1, 2)}
    # a and b have equal means; a − c = 1, 1, 0.5 and a − d = 1, 1, 1 lie above 0.
    assert tables.marks(scores) == {"a": "**{}**", "b": "{} †"}
    assert tables.marks({"a": {0: 1.0}, "b": {0: 0.9}}) == {"a": "**{}**"}  # one seed tells no tie
    assert tables.marks({}) == {}


def test_the_headline_shows_paper_and_ours_side_by_side(tmp_path):
    text = table1.render(frame_of(tmp_path, table_rows(3)), "cpu")
    # 5.0, 5.1, 5.2: mean 5.1, ± 4.303 · 0.1 / √3 = 0.25
    assert line_of(text, "TAID")[1:5] == ["**4.05**", "**5.10 ± 0.25**", "**4.27**", "**5.10 ± 0.25**"]
    assert line_of(text, "SFT")[3:5] == ["3.94", "4.10 ± 0.25"]
    assert line_of(text, "teacher")[1:3] == ["—", "9.10 ± 0.25"]
    assert "33 of 33 cells have rows" in text and "Seeds: 3" in text and "mean nothing" not in text
    assert text.count("**supported**") == 6 and "table1_one_rate" not in text


def test_a_partial_file_renders_dashes(tmp_path):
    missing = {("phi-3-mini", method) for method in METHODS} | {("llama-2", "kl")}
    partial = [r for r in table_rows(3) if (r.teacher, r.method) not in missing]
    text = table1.render(frame_of(tmp_path, partial), "cpu")
    assert line_of(text, "KL") == ["KL", "2.71", "—", "3.99", "—", "2.74", "4.10 ± 0.25"]
    assert "21 of 33 cells have rows" in text
    assert "no rows for KL" in text  # Llama-2's claim, for want of one rival
    assert text.count("no rows for SFT") == 0 and text.count("no rows for TAID") == 2  # Phi-3's two claims


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    text = table1.render(frame_of(tmp_path, table_rows(1)), "cpu")
    assert line_of(text, "TAID")[2] == "**5.00 (1 seed)**"
    assert "±" not in line_of(text, "KL")[2] and "†" not in line_of(text, "KL")[2]
    assert text.count("**inconclusive**") == 6 and "**supported**" not in text and "inf" not in text
    assert "— (1 seed)" in text  # the separation check


@pytest.mark.parametrize(("lead", "outcome"), [(0.0, "inconclusive"), (-1.0, "contradicted")])
def test_a_table_without_a_lead_does_not_support_the_claims(tmp_path, lead, outcome):
    text = table1.claims(frame_of(tmp_path, table_rows(3, lead)))
    assert text.count(f"**{outcome}**") == 6


def test_smoke_says_that_its_numbers_mean_nothing(tmp_path):
    text = table1.render(frame_of(tmp_path, table_rows(1, scale="smoke"), scale="smoke"), "smoke")
    assert "the numbers mean nothing" in text and "ours (smoke)" in text


def test_both_protocols_are_judged_apart(tmp_path):
    one_rate = table_rows(3, lead=-1.0, experiment="table1_one_rate")
    text = table1.render(frame_of(tmp_path, table_rows(3) + one_rate), "cpu")
    headline, _, second = text.partition("## One learning rate for all")
    assert line_of(headline, "TAID")[2] == "**5.10 ± 0.25**" and line_of(second, "TAID")[2] == "3.10 ± 0.25"
    assert text.count("**supported**") == 6 and text.count("**contradicted**") == 6


def test_search_rows_show_the_grid_with_the_chosen_rate_in_bold(tmp_path):
    rates = {0.003: 5.0, 0.01: 6.0, 0.03: 4.0}
    searched = row(0.0, experiment="table1_search")
    search = [replace(searched, value=score, config={"learning_rate": rate}) for rate, score in rates.items()]
    text = table1.render(frame_of(tmp_path, table_rows(1) + search), "cpu").partition("## Learning rates")[2]
    assert line_of(text, "method") == ["method", "0.003", "0.01", "0.03"]
    assert line_of(text, "TAID") == ["TAID", "5.00", "**6.00**", "4.00"]


def test_categories_come_from_the_rows(tmp_path):
    text = table1.render(frame_of(tmp_path, table_rows(3)), "cpu").partition("## Scores per category")[2]
    assert line_of(text, "method") == ["method", "define", "novel"]
    assert line_of(text, "KL") == ["KL", "3.60 ± 0.25", "4.60 ± 0.25"]


def test_the_separation_check_measures_and_warns(tmp_path):
    written = table_rows(3)
    # SFT has s = 0.1, the teacher too: (9.1 − 4.1) / √0.02 = 35.4. Move one category of both to the ceiling.
    moved = {("pythia", "novel", method) for method in ("sft", "teacher")}
    written = [replace(r, value=9.6) if (r.student, r.task, r.method) in moved else r for r in written]
    text = table1.render(frame_of(tmp_path, written), "cpu").partition("## Can the benchmark")[2]
    assert line_of(text, "Llama-2 → TinyLlama")[3:] == ["35.4 (pass)", "none"]
    assert line_of(text, "StableLM Zephyr → Pythia")[3:] == ["35.4 (pass)", "novel"]
    close = [replace(r, value=r.value - 4.8) if r.method == "teacher" else r for r in written]
    text = table1.render(frame_of(tmp_path / "close", close), "cpu").partition("## Can the benchmark")[2]
    assert line_of(text, "Llama-2 → TinyLlama")[3] == "1.4 (FAIL)"


def test_rendering_is_deterministic_and_writes_beside_the_rows(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        frame = frame_of(folder, table_rows(2))
        table1.write(frame, folder, "cpu")
    for name in ("table1.md", "table1.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["analysis", "claims", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "`make table1 SCALE=cpu RESULTS=" in capsys.readouterr().err
    append(tmp_path / "table1.jsonl", table_rows(3))
    main()
    assert capsys.readouterr().out.count("**supported**") == 6


# Figures


def test_every_method_has_a_name_and_a_colour_of_its_own():
    assert {*METHODS, *table1.REFERENCES} <= set(style.COLOURS) <= set(style.NAMES)
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)


def test_dots_draw_what_they_are_given_in_the_order_of_the_methods():
    ax = figures.Figure().subplots()
    estimates = {"kl": mean_interval([1, 2, 3]), "taid": mean_interval([5.0])}
    assert figures.dots(ax, estimates, ["sft", "kl", "taid"], style.COLOURS) is ax
    drawn = [(list(line.get_xdata()), list(line.get_ydata()), line.get_color()) for line in ax.get_lines()]
    whisker, dot, single = drawn  # no line for sft, no whisker for one seed
    assert whisker[0] == pytest.approx([2 - 2.484, 2 + 2.484], abs=1e-3) and whisker[1] == [1, 1]
    assert dot == ([2.0], [1], style.COLOURS["kl"]) and single == ([5.0], [2], style.COLOURS["taid"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["SFT", "KL", "TAID"]
