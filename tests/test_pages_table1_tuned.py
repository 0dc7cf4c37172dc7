"""The page of Table 1's second protocol, and the rule that makes one answer of three measures."""

import json
from dataclasses import replace

import pytest
from page_rows import frame_of, line_of, row

from analysis import page, reference, table1_tuned
from analysis.decision import decide
from analysis.measures import MEASURES
from analysis.page import Finding
from analysis.predicates import Claim, greater
from analysis.table1_tuned import PRIMARY, SEARCH, TEST

LEVEL = {"knowledge": 4.0, "prose": 0.4, "kl_to_teacher": 1.0}
CLAIM = Claim("a", "Table 1", "…", lambda scores: greater(scores, "taid", "kl"))


def table_rows(seeds: int, **lead: float):
    """All methods of the first pair are equal, but for TAID's `lead` on each measure, as measured."""
    return [
        row(
            LEVEL[metric] + 0.01 * seed + (lead.get(metric, 0.0) if method == "taid" else 0.0),
            experiment=TEST,
            method=method,
            seed=seed,
            metric=metric,
            task=task,
        )
        for method in (*reference.METHODS, "skew_kl")
        for metric in PRIMARY
        for task in ("average", {"knowledge": "define", "prose": "novel", "kl_to_teacher": "average"}[metric])
        for seed in range(seeds)
    ]


def render(frame, folder) -> str:
    return page.render(table1_tuned.PAGE, frame, "cpu", folder)


def test_the_headline_has_the_paper_and_three_measures(tmp_path):
    text = render(frame_of(tmp_path, table_rows(3, knowledge=0.5)), tmp_path)
    # 4.5, 4.51, 4.52: mean 4.51, ± 4.303 · 0.01 / √3 = 0.02
    assert line_of(text, "TAID")[1:5] == ["4.05", "4.51 ± 0.02", "0.410 ± 0.025", "1.010 ± 0.025"]
    assert line_of(text, "TAID")[6] == "—"  # the second pair has no rows
    assert line_of(text, "**TAID − KL**, n = 3")[1:3] == ["1.34", "0.50 [0.50, 0.50]"]
    assert "12 of 36 cells have rows" in text


def test_differences_to_kl_are_of_the_seeds_that_both_have(tmp_path):
    """TAID has seeds 0 to 2 of six. KL's knowledge there is 1 more than on the others, which would hide a lead of ½."""
    rows = [r for r in table_rows(6, knowledge=0.5, prose=0.1) if r.method != "taid" or r.seed < 3]
    lucky = [replace(r, value=r.value + (r.metric == "knowledge" and r.seed < 3)) for r in rows]
    text = render(frame_of(tmp_path, lucky), tmp_path)
    assert line_of(text, "KL")[2] == "4.52 ± 0.56" and line_of(text, "TAID")[2].startswith("5.51 ±")
    apart = text.partition("## Differences to KL")[2].partition("##")[0]
    assert line_of(apart, "TAID")[1:3] == ["0.50 [0.50, 0.50], 3 seeds", "−0.100 [−0.100, −0.100], 3 seeds"]
    assert "| KL |" not in apart and "teacher" not in apart.partition("| TAID |")[2]


@pytest.mark.parametrize(
    ("lead", "answer"),
    [
        ({"knowledge": 0.5}, "holds"),
        ({"knowledge": -0.5}, "fails"),
        ({"prose": 0.1}, "fails"),  # a distance: less is better
        ({"knowledge": 0.5, "kl_to_teacher": 0.1}, "a trade"),
        ({}, "no difference"),
    ],
)
def test_the_answer_flips_with_the_data(tmp_path, lead, answer):
    text = render(frame_of(tmp_path, table_rows(3, **lead)), tmp_path).partition("## Decision")[2]
    line = next(line for line in text.splitlines() if "TAID's student is better than KL's." in line)
    assert f"| **{answer}** |" in line


def finding(differences, measure="knowledge"):
    scores = {"taid": dict(enumerate(differences)), "kl": dict.fromkeys(range(len(differences)), 0.0)}
    return Finding("", MEASURES[measure], CLAIM, CLAIM.predicate(scores), None)


def test_three_looks_need_a_smaller_p():
    """Oracle: by hand. Differences 1, 2, 3 have t = 2/(1/√3) = 3.46, p = 0.074; 2, 3, 4 have t = 5.2, p = 0.035,
    which Holm makes 0.105 beside two looks that find nothing."""
    nothing = finding([-1.0, 0.0, 1.0])
    assert decide([finding([2.0, 3.0, 4.0])]) == "holds"
    assert decide([finding([2.0, 3.0, 4.0]), nothing, nothing]) == "open"


def test_one_seed_and_wide_intervals_are_open():
    assert decide([finding([0.0])]) == "open"
    assert decide([finding([-0.3, 0.3, 0.0])]) == "open"
    assert decide([finding([-0.01, 0.01, 0.0])]) == "no difference"


def test_the_search_shows_means_and_counts_the_edges(tmp_path):
    search = [
        row(5 + seed % 3 + rate, experiment=SEARCH, method=m, seed=seed, config={"learning_rate": rate})
        for m in ("taid", "kl")
        for rate in (0.003, 0.01)
        for seed in (100, 101, 102)
    ]
    scored = [row(4.0, experiment=TEST, method=m, config={"learning_rate": 0.01}) for m in ("taid", "kl")]
    text = render(frame_of(tmp_path, table_rows(1) + search + scored), tmp_path)
    text = text.partition("## Learning rates")[2]
    # seeds 100, 101, 102 give 6, 7, 5 and the rate: mean 6.00 and 6.01
    assert line_of(text, "TAID") == ["TAID", "6.00", "**6.01**"]
    assert "upper edge 2" in text and "tuning seeds 100, 101, 102" in text


def test_samples_stand_beside_each_other(tmp_path):
    frame = frame_of(tmp_path, table_rows(1))
    assert "## Samples" not in render(frame, tmp_path)
    (tmp_path / "table1_tuned_samples").mkdir()
    texts = {"kl": [("what is a | b?", "first\nsecond")], "taid": [("what is a | b?", "")]}
    (tmp_path / "table1_tuned_samples" / "phi-3-mini.json").write_text(json.dumps(texts))
    text = render(frame, tmp_path).partition("## Samples")[2]
    assert line_of(text, "method") == ["method", "what is a ¦ b?"]
    assert line_of(text, "KL") == ["KL", "first second"] and line_of(text, "TAID") == ["TAID", "—"]


def test_figures_are_of_differences_and_say_what_is_better(tmp_path):
    apart = [replace(r, value=r.value + 0.02 * len(r.method)) for r in table_rows(3)]
    drawn = table1_tuned.draw_all(frame_of(tmp_path, apart), "cpu")
    assert set(drawn) == {"table1_tuned", "table1_tuned_knowledge", "table1_tuned_prose"}
    _, prose, _ = drawn["table1_tuned"].axes
    dots = [line.get_xdata()[0] for line in prose.get_lines() if line.get_marker() == "o"]
    # methods whose names are longer than KL's are further from people, TAID by 2 letters: to the left
    assert max(dots) == pytest.approx(-0.02) and dots[-2] == pytest.approx(-0.04)
    assert table1_tuned.draw_all(frame_of(tmp_path / "none", [row(1.0)]), "cpu") == {}
