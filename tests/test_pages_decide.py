"""The page of the deciding experiment, on numbers by hand."""

import math

import pytest
from page_rows import frame_of, line_of, outcomes, row
from scipy import stats

from analysis import page
from analysis.decide import PAGE, decision, draw, draw_curves, seeds_needed
from analysis.statistics import Estimate, mean_interval

METRICS = ("score", "knowledge", "prose", "kl_to_teacher", "mode_coverage", "held_out_loss", "answer_entropy")
HERE = "Llama-2 → TinyLlama"


def frame(folder, taid: float, updates=(300, 16239), seeds: int = 4):
    """KL 5.0, TAID `taid`, both with a wave over seeds that the difference does not have, and 0.01 of noise."""
    found = []
    for seed in range(seeds):
        who = {"teacher": "llama-2", "student": "tinyllama", "seed": seed}
        for metric in METRICS:
            for method, level in (("teacher", 9.0), ("untrained", 1.0)):
                found.append(row(level, experiment="decide", method=method, metric=metric, **who))
            for n in updates:
                for method, level in (("kl", 5.0), ("taid", taid + 0.01 * seed)):
                    for task, share in (("0.125", 0.3), ("0.25", 0.5), ("0.5", 0.7), ("average", 1.0)):
                        value = share * (level + math.sin(seed))
                        own = {"experiment": f"decide_{n}", "method": method, "metric": metric, "task": task}
                        found.append(row(value, **own, **who))
    return frame_of(folder, found)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.5, "true"),
        (-0.3, 0.1, "false in effect"),
        (0.05, 0.15, "true, and false in effect"),
        (-0.1, 0.3, "open"),
        (-math.inf, math.inf, "open"),
    ],
)
def test_the_rule(low, high, expected):
    assert decision(Estimate((low + high) / 2, low, high, 8)) == expected


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 0.4), (0.02, 0.1), (-0.3, 0.5), (0.1, 0.3)])
def test_so_many_seeds_would_close_it_and_one_less_would_not(mean, deviation):
    """Oracle: the interval of as many values of that mean and deviation."""
    spread = [mean - deviation / math.sqrt(2), mean + deviation / math.sqrt(2)]  # n − 1 below: deviation
    needed = seeds_needed(spread)

    def closed(n: int) -> bool:
        half = stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n)
        return decision(Estimate(mean, mean - half, mean + half, n)) != "open"

    assert closed(needed) and (needed == 2 or not closed(needed - 1))


def test_one_seed_says_nothing_of_how_many_are_needed():
    assert seeds_needed([0.3]) is None
    assert decision(mean_interval([0.3])) == "open"


def test_claims_and_the_rule_flip_with_the_data(tmp_path):
    better, worse = frame(tmp_path / "a", taid=5.5), frame(tmp_path / "b", taid=4.5)
    up, down = outcomes(PAGE, better)["TAID above KL"], outcomes(PAGE, worse)["TAID above KL"]
    flip = {"supported": "contradicted", "contradicted": "supported"}
    assert down == [flip[outcome] for outcome in up] and up[0] == "supported"
    assert "| true |" in page.render(PAGE, better, "cpu")
    assert "| false in effect |" in page.render(PAGE, worse, "cpu")


def test_the_headline_by_hand(tmp_path):
    """TAID − KL is 0.5 + 0.01 × seed: 0.515 over four seeds."""
    cells = line_of(page.render(PAGE, frame(tmp_path, taid=5.5), "cpu"), HERE)
    assert (cells[1] == "300" and cells[4].startswith("0.51 [")) or cells[4].startswith("0.52 [")
    assert cells[5:7] == ["4", "true"]


def test_figures_have_a_point_per_number_of_updates_and_share(tmp_path):
    found = frame(tmp_path, taid=5.5)
    first = draw(found).axes[0]
    (line,) = [line for line in first.get_lines() if line.get_label() == HERE]
    assert list(line.get_xdata()) == [300, 16239] and list(line.get_ydata()) == pytest.approx([0.515, 0.515])
    curves = {line.get_label(): line for line in draw_curves(found).axes[0].get_lines()}
    assert {"KL", "TAID", "teacher"} <= curves.keys()
    assert list(curves["KL"].get_xdata()) == [0, 0.125, 0.25, 0.5, 1]
    assert curves["KL"].get_ydata()[0] == pytest.approx(1.0)


def test_more_updates_do_not_overwrite_fewer(tmp_path):
    """Rows of one seed and method at two numbers of updates are two cells."""
    text = page.render(PAGE, frame(tmp_path, taid=5.5), "cpu")
    assert f"## {HERE}, 16,239 updates" in text and f"## {HERE}, 300 updates" in text


def test_without_taid_there_is_no_verdict(tmp_path):
    some = frame(tmp_path, taid=5.5)
    text = page.render(PAGE, some[some.method != "taid"], "cpu")
    assert line_of(text, HERE)[4] == "—" and "no rows for TAID" in text
    assert "inconclusive** —" not in text  # nothing was judged
