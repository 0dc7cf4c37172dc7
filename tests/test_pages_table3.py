"""Table 3's page: what is judged and how it is shown, on rows by hand."""

import math

import pytest
from page_rows import frame_of, line_of, outcomes
from page_rows import row as any_row

from analysis import figures, page, reference, style, table3
from analysis.claims import TABLE3
from analysis.predicates import in_paper
from taid.results import Row

CLAIMS = {claim.name: (part, claim) for part, claims in TABLE3.items() for claim in claims}


def row(value: float, **fields) -> Row:
    return any_row(value, **{"experiment": "table3"} | fields)


def logs(part: str) -> dict[str, float]:
    return {method: math.log(mass) for method, mass in reference.table3()[part].items()}


@pytest.mark.parametrize(
    ("name", "method", "factor"),
    [
        ("KL ≈ TAID in the tail", "taid", 2.1),
        ("KL ≈ TAID in the tail", "taid", 0.5),
        ("KL ≫ RKL in the tail", "kl", 0.4),
        ("TAID ≫ RKL in the tail", "rkl", 2.5),
        ("RKL is highest in the head", "taid", 1.05),
    ],
)
def test_the_papers_numbers_satisfy_each_claim_and_others_would_not(name, method, factor):
    """Tails of 40.2, 8.1, 39.0 in 1e-7: ratios 0.97, 5.0, 4.8; heads of 0.216, 0.227, 0.218."""
    part, claim = CLAIMS[name]
    numbers = logs(part)
    assert in_paper(claim, numbers).outcome == "supported"
    others = numbers | {method: numbers[method] + math.log(factor)}
    assert in_paper(claim, others).outcome != "supported"


# Rendering

HEAD = {"kl": 0.5, "rkl": 0.6, "taid": 0.52, "teacher": 0.55}
TAIL = {"kl": 4e-5, "rkl": 1e-6, "taid": 3.9e-5, "teacher": 2e-5}
SUFFIXES = ("", "_own", "_marginal")
RANKS = (1, 4, 40, 400, 2048)


def table_rows(seeds: int, tail: dict[str, float] = TAIL, **fields) -> list[Row]:
    """Masses with factors of e^0.01 between seeds, equal by every ranking; the teacher once; five ranks."""
    masses = {"head": ("average", HEAD), "tail": ("average", tail)}
    measured = [(part + s, task, by) for part, (task, by) in masses.items() for s in SUFFIXES]
    measured += [("mass_at_rank", str(rank), {m: h / rank for m, h in HEAD.items()}) for rank in RANKS]
    return [
        row(mass * math.exp(0.01 * seed), metric=metric, task=task, method=method, seed=seed, **fields)
        for metric, task, by in measured
        for method, mass in by.items()
        for seed in range(1 if method == "teacher" else seeds)
    ]


def test_paper_and_ours_stand_side_by_side_with_the_teacher_beside_them(tmp_path):
    text = page.render(table3.PAGE, frame_of(tmp_path, table_rows(3)), "cpu")
    # The tail's logarithms have s = 0.01: the interval is e^(0.01 ± 4.303 · 0.01 / √3), 3.94e-5 to 4.14e-5.
    ours = ["0.505 ± 0.013", "4.04e-05 [3.94e-05, 4.14e-05]"]
    assert line_of(text, "KL") == ["KL", "0.216", ours[0], "4.02e-06", ours[1]]
    assert line_of(text, "teacher") == ["teacher", "—", "0.550", "—", "2.00e-05"]
    assert "V = 2,048" in text and "Seeds: 3" in text and "mean nothing" not in text
    assert text.count("**supported**") == 12  # four claims by three rankings
    # 3.9e-5 / 4e-5 in the tail of every seed
    assert line_of(text, "**TAID − KL**, n = 3 (tail: ÷)")[4] == "× 0.97 [0.97, 0.97]"


def test_claims_flip_with_the_data(tmp_path):
    found = outcomes(table3.PAGE, frame_of(tmp_path, table_rows(3, TAIL | {"rkl": 8e-5})))
    fallen = {"KL ≫ RKL in the tail", "TAID ≫ RKL in the tail"}
    assert found == {name: ["contradicted" if name in fallen else "supported"] * 3 for name in CLAIMS}


def test_a_partial_file_renders_what_it_has(tmp_path):
    whole = table_rows(1, scale="smoke")
    partial = [r for r in whole if r.method in ("kl", "teacher") and not r.metric.endswith("_own")]
    text = page.render(table3.PAGE, frame_of(tmp_path, partial, "smoke"), "smoke")
    assert line_of(text, "KL")[2:] == ["0.500 (1 seed)", "4.02e-06", "4.00e-05 (1 seed)"]
    assert line_of(text, "RKL") == ["RKL", "0.227", "—", "8.10e-07", "—"]
    assert "no rows for RKL" in text and "mean nothing" in text
    assert "**supported**" not in text and "student's own" not in text


def test_equal_rows_give_equal_files(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        page.write(table3.PAGE, frame_of(folder, table_rows(2)), folder, "cpu")
    for name in ("table3.md", "table3.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_figure_draws_a_line_per_method_over_the_ranks(tmp_path):
    curves = table3.by_rank(frame_of(tmp_path, table_rows(1)))
    assert list(curves) == ["kl", "rkl", "taid", "teacher"] and curves["kl"][4] == pytest.approx(0.125)
    ax = figures.Figure().subplots()
    assert figures.mass_by_rank(ax, curves, style.COLOURS, {"head": (1, 10)}) is ax
    drawn = {line.get_color(): list(line.get_ydata()) for line in ax.get_lines()}
    assert drawn == {style.COLOURS[method]: list(masses.values()) for method, masses in curves.items()}
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
