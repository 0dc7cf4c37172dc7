"""From rows to verdicts and Markdown, on numbers that a hand can check."""

import math

import numpy as np
import pytest
from page_rows import by_seed, frame_of, row
from scipy import stats

from analysis import figures, reference, rows, style, tables
from analysis.claims import TABLE1
from analysis.measures import Measure
from analysis.page import Comparison, by_claim, findings
from analysis.predicates import best, close, greater, in_paper
from analysis.reference import METHODS
from analysis.rows import REFERENCES, Pair
from analysis.statistics import (
    difference,
    gap_in_deviations,
    holm,
    mean_interval,
    p_value,
    paired_interval,
    rank_agreement,
    rank_stability,
)

LLAMA, PHI = Pair("llama-2", "tinyllama"), Pair("phi-3-mini", "tinyllama")
PAIRS = tuple(reference.table1())


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


@pytest.mark.parametrize("bound", [-0.5, 0.0, 2.0])
def test_p_values_agree_with_scipy_and_with_the_interval(bound):
    values = list(np.random.default_rng(1).normal(size=6))
    assert p_value(values, bound) == pytest.approx(stats.ttest_1samp(values, bound).pvalue, rel=1e-12)
    edge = mean_interval(values).low
    assert p_value(values, edge) == pytest.approx(0.05) and p_value([1.0], 0) == 1.0
    assert p_value([2.0, 2.0], 2.0) == 1.0 and p_value([2.0, 2.0], 0.0) == 0.0


def test_holm_by_hand():
    # ascending 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1: 0.04, 0.06, 0.06 (never less than the one before), 0.5
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_the_order_of_methods_is_compared_with_the_papers():
    """By hand: one swap of neighbours among five is ρ = 1 − 6 · 2 / (5 · 24) = 0.9."""
    paper = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    same = {method: by_seed(v, v + 0.1) for method, v in paper.items()}
    swapped = same | {"a": by_seed(2, 2.1), "b": by_seed(1, 1.1)}
    found = rank_agreement(paper, same)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))
    assert rank_agreement(paper, swapped).mean == pytest.approx(0.9)
    assert rank_stability(swapped) == pytest.approx(1)
    torn = {method: by_seed(v, -v) for method, v in paper.items()}
    assert rank_stability(torn) == pytest.approx(-1)
    found = rank_agreement(paper, torn | {"a": by_seed(1, -0.5)})
    assert found.low < 0 < found.high
    assert rank_agreement(paper, {"a": {0: 1.0}}) is None and rank_stability({"a": {0: 1.0}}) is None


def test_ranks_agree_with_scipy():
    ours, theirs = np.random.default_rng(2).normal(size=(2, 9)).round(1)  # with ties
    named = [{str(i): v for i, v in enumerate(values)} for values in (theirs, ours)]
    found = rank_agreement(named[0], {method: {0: v} for method, v in named[1].items()})
    assert found.mean == pytest.approx(stats.spearmanr(ours, theirs).statistic) and found.n == 1


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
        assert all(in_paper(claim, numbers).outcome == "supported" for claim in TABLE1)
    # Bold cells of the paper's table: TAID 4.05, 4.27, 3.05; without its lead the claim must fail.
    beaten = {**reference.table1()[LLAMA], "dkd": 4.30}
    assert [in_paper(claim, beaten).outcome for claim in TABLE1] == ["contradicted", "supported", "supported"]


def test_a_verdict_can_be_corrected():
    """Differences 1, 2, 3: 2 ± 2.48, p = 0.074; 2, 3, 4: 3 ± 2.48, p = 0.035, and 0.07 as one of two."""
    assert greater({"a": by_seed(1, 2, 3), "b": by_seed(0, 0, 0)}, "a", "b").outcome == "inconclusive"
    verdict = greater({"a": by_seed(2, 3, 4), "b": by_seed(0, 0, 0)}, "a", "b")
    assert verdict.p == pytest.approx(0.035, abs=5e-4) and verdict.outcome == "supported"
    assert verdict.at(2 * verdict.p) == "inconclusive"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("gap", "outcome"),
    [
        (0.0, "supported"),
        (0.66, "supported"),
        (0.68, "inconclusive"),
        (0.71, "inconclusive"),
        (0.73, "contradicted"),
    ],
)
def test_close_means_the_whole_interval_within_the_margin(gap, outcome, sign):
    """A paired interval of gap ± 4.303 · 0.01 / √3 = gap ± 0.025, a margin of log 2 = 0.693."""
    scores = {"taid": by_seed(*(sign * gap + NOISE)), "kl": by_seed(0, 0, 0)}
    verdict = close(scores, "taid", "kl", math.log(2))
    assert verdict.outcome == outcome and verdict.estimate.mean == pytest.approx(sign * gap)


@pytest.mark.parametrize(
    ("gap", "outcome"),
    [(0.73, "supported"), (0.71, "inconclusive"), (0.68, "inconclusive"), (0.66, "contradicted")],
)
def test_greater_by_a_margin_means_the_whole_interval_above_it(gap, outcome):
    scores = {"taid": by_seed(*(gap + NOISE)), "kl": by_seed(0, 0, 0)}
    assert greater(scores, "taid", "kl", math.log(2)).outcome == outcome


def test_less_is_better_where_a_measure_says_so():
    loss = {
        m: by_seed(*(v + k * NOISE))
        for k, (m, v) in enumerate({"taid": 1.0, "taid_no_adaptive": 2.0}.items())
    }
    adaptive = TABLE1[1:2]
    less, more = (Comparison("", Measure("loss", sign=sign), loss, adaptive) for sign in (-1, 1))
    assert [f.verdict.outcome for f in findings([less, more])] == ["supported", "contradicted"]
    [group] = by_claim(findings([less, more]))
    assert group[0].verdict.estimate.mean == pytest.approx(1)  # the primary measure is the first


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
    assert rows.scores(frame, "table1", "score") == {PHI: {"taid": {0: 2.0}}}
    search = frame[frame.experiment == "table1_search"]
    assert dict(zip(search.learning_rate, search.value, strict=True)) == {0.001: 3.0, 0.01: 5.0}


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


def test_the_line_of_taid_less_kl_says_over_how_many_seeds():
    found = {"taid": by_seed(2, 3, 4), "kl": by_seed(1, 1, 1, 9)}
    assert tables.versus((found, 2), ({}, 2)) == ["**TAID − KL**, n = 3", "2.00 [−0.48, 4.48]", "—"]
    assert tables.versus((found, 1), ({"taid": {0: 1.0}, "kl": {0: 0.5}}, 1))[0] == "**TAID − KL**, n = 1–3"
    assert tables.versus(({}, 2)) == ["**TAID − KL**", "—"]


def test_a_table_is_aligned_for_a_terminal_and_has_no_markdown():
    table = tables.Table(["method", "a head of many words"], [["KL", "**1.00** †"], ["TAID", "2 \\| 3"]])
    assert table.aligned().splitlines() == [
        "            a head",
        "           of many",
        "method       words",
        "KL          1.00 †",
        "TAID         2 | 3",
    ]
    assert tables.Table(["method"], [], "a note").markdown() == ""


def test_a_ratio_is_shown_as_one():
    logs = difference({"a": by_seed(*np.log([2, 2])), "b": by_seed(0, 0)}, "a", "b")
    assert tables.effect(logs, Measure("", ratio=True)) == "× 2.00 [2.00, 2.00]"
    assert tables.effect(logs, Measure("", digits=1)) == "0.7 [0.7, 0.7]"


# Figures


def test_every_method_has_a_name_and_a_colour_of_its_own():
    assert {*METHODS, *REFERENCES} <= set(style.COLOURS) <= set(style.NAMES)
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


def test_a_heat_map_has_the_number_of_every_cell():
    panels = {"a pair": {"kl": {"define": -0.04, "novel": 2.0}, "rkl": {"define": 1.0, "novel": -3.0}}}
    ax, *_ = figures.heat_maps(panels, "score").axes
    assert [text.get_text() for text in ax.texts] == ["0.0", "2.0", "1.0", "−3.0"]  # a zero has no sign
    assert [label.get_text() for label in ax.get_yticklabels()] == ["KL", "RKL"]
    assert ax.images[0].get_clim() == (-3.0, 3.0)
