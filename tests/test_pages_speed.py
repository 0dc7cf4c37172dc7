"""The page of speed and cost, on measurements by hand."""

import math
from dataclasses import replace

import pytest
from page_rows import frame_of as framed

from analysis import cost, page, speed, speed_rows
from analysis.claims import COST
from benchmarks import grid, losses, record, training
from taid import results


def rows_of(experiment: str, job, values) -> list[results.Row]:
    return record.rows(job, experiment, values, 1.0)


def frame_of(folder, rows):
    return framed(folder, rows, "smoke")


CELL = losses.Cell("smoke", "taid", 64, 100, "bf16", 3, grid.CONTENDERS)
STEPS = training.Training("smoke", grid.METHODS, 2048, 16, 32, 4, 0.5, 8, 3)


def test_a_ratio_is_a_median_of_repetitions_side_by_side(tmp_path):
    """By hand: 40/10, 90/15, 20/4 have the median 5, the medians 40 and 10 the ratio 4."""
    times = {"official": (40, 90, 20), "eager": (10, 15, 4)}
    values = {(who, "time", i): float(x) for who, found in times.items() for i, x in enumerate(found)}
    frame = frame_of(tmp_path, rows_of("losses", CELL, values))
    assert speed.speedups(frame, "taid", "eager", "official") == [5]
    assert speed.speedups(frame, "taid", "cpp", "official") == []
    text = speed.headline(frame, "smoke").markdown()
    assert "| TAID eager: × official | ≥ 4 | 5.00 | 1 of 1 |" in text
    assert "| TAID compiled: × official | ≥ 5 | — | — |" in text


def test_a_gpu_has_aims_of_its_own(tmp_path):
    cell = replace(CELL, scale="gpu")
    values = {(who, "time", 0): x for who, x in (("official", 0.05), ("triton", 0.0036), ("floor", 0.002))}
    text = page.render(speed.PAGE, framed(tmp_path, rows_of("losses", cell, values), "gpu"), "gpu")
    assert "| TAID Triton: × official | ≥ 5 | 13.9 | 1 of 1 |" in text and "C++" not in text
    assert "| taid.fused, Triton | 0.0036 |" in text and "One GPU" in text


def test_the_last_measurement_of_a_cell_counts(tmp_path, monkeypatch):
    """What an older one had besides (a peer that is gone) is not mixed in."""
    old = rows_of("losses", CELL, {("official", "time", 0): 1.0, ("compiled", "time", 0): 1.0})
    monkeypatch.setattr(losses, "code_digest", lambda module: "other")
    new = rows_of("losses", CELL, {("official", "time", 0): 2.0})
    frame = frame_of(tmp_path, old + new)
    assert speed_rows.measured(frame, "losses", "time") == {str(CELL): {"official": {0: 2.0}}}


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(tmp_path, power):
    """Seconds 3e-9 · V^power; the interval of an exact law has no width."""
    rows = [
        row
        for vocab in (100, 200, 400)
        for row in rows_of(
            "scaling_vocab",
            replace(CELL, vocab=vocab),
            {("eager", "time", i): 3 * vocab ** (power - 1) for i in range(2)},
        )
    ]
    found = speed_rows.exponent(speed_rows.curve(frame_of(tmp_path, rows), "scaling_vocab", "time", "eager"))
    assert (found.mean, found.low, found.high) == pytest.approx((power,) * 3)


def test_an_exponent_wants_two_sizes():
    assert speed_rows.exponent([(100, 1.0), (100, 2.0)]) is None
    assert speed_rows.exponent([(100, 1.0), (200, 0.0)]) is None
    assert speed_rows.exponent([]) is None


def cost_values(**ratios: float) -> dict:
    """Three blocks in which KL takes 1, 1.1 and 1.2 s and the others their multiple, but for a little noise."""
    return {
        (method, "step", i): (1 + i / 10) * ratio * (1 + 0.001 * ((i + len(method)) % 3))
        for method, ratio in ({"kl": 1.0, "generation": 3.0} | ratios).items()
        for i in range(3)
    }


@pytest.mark.parametrize(
    ("ratios", "outcomes"),
    [
        ({"taid": 1.01, "distillm": 2.1, "distillm_sampling": 1.9, "gkd": 9.0}, "ssss"),
        ({"taid": 1.2, "distillm": 1.2, "distillm_sampling": 4.0, "gkd": 3.0}, "cccc"),
        ({"taid": 1.01}, "siii"),
    ],
)
def test_claims_flip_with_the_data(tmp_path, ratios, outcomes):
    frame = frame_of(tmp_path, rows_of("cost", STEPS, cost_values(**ratios)))
    found = page.findings(cost.comparisons(frame))
    assert [finding.claim for finding in found] == list(COST)
    assert "".join(finding.verdict.outcome[0] for finding in found) == outcomes


def test_the_cost_page_shows_ratios_and_the_prediction(tmp_path):
    """Prediction by hand: 1 + 0.5 · 3.3/1.1 = 2.5."""
    frame = frame_of(tmp_path, rows_of("cost", STEPS, cost_values(taid=1.0, gkd=4.0)))
    line = cost.table(frame).splitlines()[2]
    assert line.startswith("| 4 × (16 + 32) | 0.5 | 1.10 | 1.00 [") and "| — | — | 4.00 [" in line
    assert line.endswith("| 2.50 | — | — |")


def test_rendering_is_deterministic_and_draws_what_is_there(tmp_path):
    rows = rows_of("cost", STEPS, cost_values(taid=1.0, gkd=4.0))
    for vocab in (100, 200):
        values = {
            (who, metric, 0): x
            for who, x in (("official", 8.0), ("floor", 0.5))
            for metric in ("time", "memory")
        }
        rows += rows_of("scaling_vocab", replace(CELL, vocab=vocab), values)
    frame = frame_of(tmp_path, rows)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        page.write(speed.PAGE, frame, tmp_path / folder, "smoke")
    for name in ("speed.md", "speed.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    [line, floor] = speed.draw(frame).axes[0].get_lines()
    assert list(line.get_xdata()) == [100, 200] and line.get_ydata() == pytest.approx([5.12e-5, 1.024e-4])
    assert floor.get_linestyle() == "--"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (0.00107, "0.001"), (1.0432, "1.04"), (85.19, "85.2"), (223.5, "224")]
)
def test_three_digits(value, text):
    assert speed_rows.digits(value) == text


def test_an_interval_without_a_second_block_is_not_shown():
    estimate = cost.ratios({"kl": {0: 1.0}, "gkd": {0: 3.0}}, "gkd")
    assert (estimate.low, estimate.high, estimate.n) == (0.0, math.inf, 1)
    assert estimate.mean == pytest.approx(3)
    assert speed_rows.spread(estimate) == "3.00"
