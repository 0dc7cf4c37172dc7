"""Table 2's page: what counts, what is judged, how it is shown, on rows by hand."""

import pytest
from page_rows import frame_of, outcomes
from page_rows import row as any_row

from analysis import page, reference, table2, table2_rows, tasks
from analysis.claims import TABLE2
from analysis.predicates import in_paper
from analysis.reference import TABLE2_METHODS as METHODS
from taid.results import Row


def row(value: float, **fields) -> Row:
    return any_row(value, **{"experiment": "table2", "metric": "kl_to_teacher"} | fields)


def scored(method: str, task: str, accuracy: float, seed: int = 0, error: float = 0.01, chance: float = 0.25):
    found = {"accuracy": accuracy, "standard_error": error, "chance": chance}
    return [row(v, method=method, task=task, metric=metric, seed=seed) for metric, v in found.items()]


def test_a_task_at_which_the_teacher_guesses_is_shown_and_does_not_count(tmp_path):
    """By hand: cloze counts, 0.25 + 1.7 · 0.02; truth does not, 0.25 + 1.6 · 0.02. One-sided at 5%: 1.645."""
    rows = scored("teacher", "cloze", 0.25 + 1.7 * 0.02, error=0.02)
    rows += scored("teacher", "truth", 0.25 + 1.6 * 0.02, error=0.02)
    rows += scored("taid", "cloze", 0.5) + scored("taid", "truth", 0.1)
    frame = frame_of(tmp_path, rows)
    assert table2_rows.averaged(frame) == ["cloze"]
    assert table2_rows.average(frame)["taid"] == {0: 50.0}
    assert "10.0 (1 seed)" in tasks.by_task(frame, METHODS)
    assert "Left out, for the teacher itself is at chance: truth." in table2.headline(frame, "cpu").note
    assert table2_rows.chance(frame) == 25.0


def test_the_average_is_over_tasks_of_seeds_that_have_all(tmp_path):
    rows = [r for task in ("cloze", "truth") for r in scored("teacher", task, 0.9)]
    rows += scored("kl", "cloze", 0.4) + scored("kl", "truth", 0.6) + scored("kl", "cloze", 0.9, seed=1)
    frame = frame_of(tmp_path, rows)
    assert table2_rows.average(frame)["kl"] == {0: pytest.approx(50.0)}


def test_claims_hold_in_the_paper_and_are_judged_by_pairs_of_seeds(tmp_path):
    paper = reference.table2()
    assert all(in_paper(claim, paper["average"]).outcome == "supported" for claim in TABLE2)
    for method in METHODS:  # transcription: the average is that of the six tasks, rounded to two digits
        six = [paper[task][method] for task in paper if task != "average"]
        assert paper["average"][method] == pytest.approx(sum(six) / 6, abs=0.011)
    losses_of = {"taid": 1.0, "kl": 1.1} | {m: 1.2 for m in METHODS if m not in ("taid", "kl")}
    noise = {0: 0.0, 1: 0.3, 2: -0.2}  # moves a seed as a whole, and cancels in pairs
    wiggle = {0: 0.001, 1: -0.001, 2: 0.0}
    rows = [
        row(v + noise[seed] + wiggle[seed] * i, method=m, seed=seed)
        for seed in noise
        for i, (m, v) in enumerate(losses_of.items())
    ]
    frame = frame_of(tmp_path, rows)
    by_kl, by_loss, by_tasks = zip(*outcomes(table2.PAGE, frame).values(), strict=True)
    assert by_kl == ("supported",) * 3 and set(by_loss + by_tasks) == {"inconclusive"}  # no rows


def test_missing_cells_are_dashes_and_equal_rows_give_equal_text(tmp_path):
    frame = frame_of(tmp_path, [row(1.5, method="kl"), *scored("kl", "cloze", 0.5)])
    text = page.render(table2.PAGE, frame, "cpu")
    assert "| KL | **1.500 (1 seed)** | — | — |" in text
    assert text == page.render(table2.PAGE, frame.sample(frac=1, random_state=0), "cpu")
    assert "| KL | 39.91 | — | — | 1.500 (1 seed) |" in text  # no teacher, no average of ours
    table2.draw(frame, "cpu")


def test_a_task_below_chance_is_named_and_what_is_left_without_it(tmp_path):
    """By hand: 0.15 and 0.16 where guessing has 0.25 ± 0.01: 10 and 9 standard errors; cloze has no gap."""
    rows = [r for task in ("cloze", "arithmetic") for r in scored("teacher", task, 0.9)]
    for seed in (0, 1):
        rows += scored("taid", "arithmetic", 0.16, seed) + scored("kl", "arithmetic", 0.15, seed)
        rows += scored("taid", "cloze", 0.5, seed) + scored("kl", "cloze", 0.5, seed)
    text = tasks.below_chance(frame_of(tmp_path, rows))
    assert "In *arithmetic* all 2 methods end below chance, by 9 to 10 standard errors" in text
    assert "without it TAID − KL is 0.00 [0.00, 0.00]" in text and "cloze" not in text
    assert "says nothing about sums" in text


def test_only_of_the_first_sums_is_it_known_why_students_are_below_chance(tmp_path):
    rows = [r for task in ("cloze", "pronoun") for r in scored("teacher", task, 0.9)]
    rows += [
        r for method in ("kl", "taid") for r in scored(method, "pronoun", 0.15) + scored(method, "cloze", 0.5)
    ]
    text = tasks.below_chance(frame_of(tmp_path, rows))
    assert "In *pronoun* all 2 methods end below chance" in text and "sums" not in text


def test_longer_bridges_are_compared_with_kl_and_say_how_long_they_are(tmp_path):
    """By hand: 0.4 + 0.6 (1 − 0.9^n) > 0.9 from n = 18 of 100 on; 1 − 0.8 · 0.9^n from 20 on. 1.2 − 1.1 twice: 0.1."""
    rows = [row(1.1 + 0.1 * seed, method="kl", seed=seed, experiment="table2_tuned") for seed in (0, 1)]
    for method, t_start in (("taid", 0.4), ("t_start_0.2", 0.2)):
        config = {"steps": 100, "options": {"t_start": t_start, "alpha": 0.2}}
        fields = {"experiment": "table2_tuned", "method": method, "config": config}
        rows += [row(1.2 + 0.1 * seed, seed=seed, **fields) for seed in (0, 1)]
    text = page.render(table2.PAGE, frame_of(tmp_path, rows), "cpu")
    assert "above 0.9 after 18% of its steps (20% with t_start = 0.2)" in text
    assert "| **(TAID, t_start = 0.2) − KL**, n = 2 | 0.100 [0.100, 0.100] |" in text


def test_from_where_on_taid_is_kl_by_the_closed_form():
    """By hand: 1 − 0.6 · 0.9^n > 0.9 from n = 18 on; without the adaptive part the floor's 0.4 + 0.6 n / N."""
    assert table2_rows.first_above(0.9, 100, 0.4, 0.2) == 18
    assert table2_rows.first_above(0.9, 60, 0.4, 0.0) == 51


def test_a_second_protocol_comes_first_and_the_first_stays(tmp_path):
    """By hand: rates by the sum of two measures, each a mean over seeds: (2 + 4) / 2 + (1 + 2) / 2 = 4.5."""
    first = [row(1.5, method="kl"), *scored("kl", "arithmetic", 0.2)]
    second = {"experiment": "table2_tuned", "config": {"learning_rate": 1e-3}}
    rows = [row(1.4, method="alpha_0.25", **second)]
    rows += [row(0.5, method="kl", metric="accuracy", task="sums", **second)]
    for seed, loss, divergence in ((100, 2.0, 1.0), (101, 4.0, 2.0)):
        search = second | {"experiment": "table2_tuned_search", "method": "alpha_0.25", "seed": seed}
        rows += [row(loss, metric="held_out_loss", **search), row(divergence, **search)]
    alone, both = (page.render(table2.PAGE, frame_of(tmp_path, r), "cpu") for r in (first, first + rows))
    assert "protocol" not in alone.lower() and "arithmetic, like gsm8k" in alone
    assert both.index("## Task scores, protocol 2") < both.index("## Task scores, protocol 1")
    assert "sums, like gsm8k" in both and "arithmetic, like gsm8k" in both
    assert "| TAID, α × ¼ | **1.400 (1 seed)** |" in both and "| TAID, α × ¼ | **4.500** |" in both
    assert "**(TAID, α × ¼) − KL** |" in both and "t_start = 0.2) − KL" not in both  # no rows, no line
    wheres = {c.where for c in table2.comparisons(frame_of(tmp_path, first + rows))}
    assert wheres == {"protocol 1", "protocol 2"}
