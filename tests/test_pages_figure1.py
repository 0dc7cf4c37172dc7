"""Figure 1's page, on numbers by hand."""

import pytest
from page_rows import frame_of, line_of, outcomes, row

from analysis import page
from analysis.figure1 import PAGE, SNAPSHOTS, draw

SHARES = ("0.00", "0.10", "0.50", "1.00")


def frame(folder, first: dict[str, float], last: dict[str, float], seeds: int = 3):
    """Distances that fall from `first` to `last` along a straight line, the seed's hundredth above them."""
    found = []
    for method in first:
        for seed in range(seeds):
            own = {"experiment": "figure1", "method": method, "seed": seed}
            for share in SHARES:
                value = first[method] + (last[method] - first[method]) * float(share) + 0.01 * seed
                found += [row(value, metric=m, task=share, **own) for m in ("kl_to_target", "kl_to_teacher")]
                found.append(row(0.4 + 0.6 * float(share), metric="t", task=share, **own))
                for who, p in (("student", 0.2), ("target", 0.3), ("teacher", 0.4)):
                    found += [row(p / r, metric=who, task=f"{share} rank {r}", **own) for r in (1, 2, 10)]
    return frame_of(folder, found)


def test_claims_flip_with_the_data(tmp_path):
    near = frame(tmp_path / "a", {"kl": 2.0, "taid": 0.5}, {"kl": 1.0, "taid": 1.0})
    expected = {"the bridge begins near": ["supported"], "the bridge leads as far": ["supported"]}
    assert outcomes(PAGE, near) == expected
    far = frame(tmp_path / "b", {"kl": 0.5, "taid": 2.0}, {"kl": 1.0, "taid": 1.1})
    assert outcomes(PAGE, far) == {key: ["contradicted"] for key in expected}


def test_the_table_says_how_far_and_how_much_nearer(tmp_path):
    """By hand: KL falls from 2 to 1, TAID's from 0.5 to 1; seeds add 0, 0.01, 0.02 to both."""
    text = page.render(PAGE, frame(tmp_path, {"kl": 2.0, "taid": 0.5}, {"kl": 1.0, "taid": 1.0}), "cpu")
    cells = line_of(text, "50%")
    assert cells[1] == "0.70" and cells[2].startswith("1.510") and cells[3].startswith("0.760")
    assert cells[-1].startswith("−0.750")


def test_the_figure_shows_both_distances_and_the_bridge(tmp_path):
    target, teacher, *moments = draw(frame(tmp_path, {"kl": 2.0, "taid": 0.5}, {"kl": 1.0, "taid": 1.0})).axes
    assert {line.get_label() for line in target.get_lines()} == {"KL", "TAID"}
    assert list(target.get_lines()[0].get_ydata()) == pytest.approx([2.01, 1.91, 1.51, 1.01])
    assert len(teacher.get_lines()) == 2 and len(moments) == len(SNAPSHOTS)
    drawn = {line.get_label(): list(line.get_ydata()) for line in moments[0].get_lines()}
    assert drawn["TAID's target"] == pytest.approx([0.3, 0.15, 0.03])
