"""Figure 2's page: t over training and the objective, on curves by hand."""

import math

import pytest
from page_rows import frame_of, line_of, outcomes, row

from analysis import page
from analysis.claims import ALPHA, VARIANCE
from analysis.figure2 import EARLY, PAGE, VARIANCES, draw
from taid.results import Row

SHARES = ("0.0000", EARLY, "1.0000")
METHODS = ("kl", "taid", "alpha_0.25", "alpha_4")


def rows_of(method: str, seed: int, early: float, variance: float) -> list[Row]:
    """A run whose t is `early` a fifth into it, and whose variances are `variance`, but for the seed's factor."""
    factor = math.exp(0.01 * seed)
    curves = {"t": (0.4, early, 1.0), "loss": (2.0, 1.0, 0.5), "noise_variance": (variance,) * 3}
    values = {(metric, task): v for metric, by in curves.items() for task, v in zip(SHARES, by, strict=True)}
    values |= {(metric, "average"): variance * factor for metric in VARIANCES}
    own = {"experiment": "figure2", "method": method, "seed": seed}
    return [
        row(v, metric=metric, task=task, **own)
        for (metric, task), v in values.items()
        if (method, metric) != ("kl", "t")
    ]


def frame(folder, early: dict[str, float], variance: dict[str, float], seeds: int = 3):
    found = [r for m in variance for s in range(seeds) for r in rows_of(m, s, early.get(m, 0.5), variance[m])]
    return frame_of(folder, found)


def test_claims_flip_with_the_data(tmp_path):
    """KL with more variance than TAID, then with less; t that obeys α, then the reverse."""
    obeys = {"alpha_0.25": 0.5, "taid": 0.6, "alpha_4": 0.9}
    more, less = ({m: v if m == "kl" else 0.1 for m in METHODS} for v in (0.3, 0.01))
    found = outcomes(PAGE, frame(tmp_path / "a", obeys, more))
    assert found == {c.name: ["supported"] for c in ALPHA} | {c.name: ["supported"] * 4 for c in VARIANCE}
    reverse = {"alpha_0.25": 0.9, "taid": 0.6, "alpha_4": 0.5}
    found = outcomes(PAGE, frame(tmp_path / "b", reverse, less))
    assert found == {c.name: ["contradicted"] for c in ALPHA} | {
        c.name: ["contradicted"] * 4 for c in VARIANCE
    }


def test_the_table_ends_with_the_ratio(tmp_path):
    text = page.render(PAGE, frame(tmp_path, {}, {"kl": 0.4, "taid": 0.1}), "cpu")
    assert line_of(text, "**TAID ÷ KL**")[1:] == ["× 0.25 [0.25, 0.25]"] * 4
    assert line_of(text, "TAID w/o adaptive update")[1:] == ["—"] * 4


def test_the_figure_shows_means_over_seeds(tmp_path):
    _, own, objective, noise = draw(frame(tmp_path, {"taid": 0.6}, {"kl": 0.4, "taid": 0.1})).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in own.get_lines()}
    assert drawn["TAID"] == pytest.approx([0.4, 0.6, 1.0])
    assert len(objective.get_lines()) == 2 and list(noise.get_lines()[0].get_ydata()) == pytest.approx(
        [0.4] * 3
    )
