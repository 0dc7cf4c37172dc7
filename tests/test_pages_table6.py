"""Table 6: what is judged, and how it is shown, from synthetic rows whose trends are known."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from page_rows import changed
from page_rows import row as any_row
from scipy import stats

from analysis import (
    page,
    reference,
    rows,
    style,
    table6,
    table6_figures,
    table6_rows,
    table6_sections,
    table6_tuned,
)
from analysis.claims import FLAT, TABLE6, TABLE6_BY_TEACHER
from analysis.measures import MEASURES
from analysis.predicates import in_paper
from analysis.table6_rows import page_test
from taid import results
from taid.results import Row
from taid.studies import capacity

SEEDS = range(5)
WIGGLE = (0.0, 0.01, -0.01, 0.02, -0.02)  # of the seeds' slopes, mean 0
SLOPES = {"taid": 0.5, "skew_kl": -0.25, "kl": 0.0}  # per tenfold teacher, on every metric, up is better


def row(metric: str, value: float, **fields) -> Row:
    own = {"experiment": "table6", "teacher": "pythia-1b", "student": "pythia-70m", "task": "base"}
    return any_row(value, metric=metric, **own | fields)


def synthetic(slopes=SLOPES, seeds=SEEDS, teachers=tuple(table6_sections.SIZES)) -> list[Row]:
    """Students on a line over log₁₀ size, a level and a slope for each seed, and their references."""
    found = []
    for metric in table6_sections.METRICS:
        sign = MEASURES[metric].sign
        for teacher in teachers:
            x = math.log10(table6_sections.SIZES[teacher])
            for method, slope in slopes.items():
                for seed in seeds:
                    value = sign * (3 + 0.1 * seed + (slope + WIGGLE[seed]) * x)
                    found.append(row(metric, value, method=method, teacher=teacher, seed=seed))
            if metric != "kl_to_teacher":
                found.append(row(metric, sign * (5 + x), method="teacher", teacher=teacher))
        for method in ("sft", "untrained"):
            found += [row(metric, sign * 2.0, method=method, teacher="none", seed=seed) for seed in seeds]
    found += [row("entropy", 3 - 0.1 * i, method="teacher", teacher=t) for i, t in enumerate(teachers)]
    found += [row("last_word_chance", 0.7, method="untrained", teacher="none", seed=seed) for seed in seeds]
    grid = [{"learning_rate": rate} for rate in (0.001, 0.01, 0.1)]
    return found + [
        row("held_out_loss", 3.0, experiment="table6_search", method=m, teacher=t, config=config)
        for m in slopes
        for t in teachers
        for config in grid
    ]


def mapped() -> list[Row]:
    """A map with gains of 1 (TAID) and −2 (skew KL) on every judged metric, 3 seeds; teachers at τ = 2."""
    found = []
    for variant in capacity.variants(capacity.Run("cpu", "taid", "pythia-1b", 0, 0.01)):
        shared = {"experiment": "table6_map", "task": variant.task, "student": variant.student}
        for metric in table6_sections.JUDGED:
            sign = MEASURES[metric].sign
            for method, gain in (("taid", 1.0), ("skew_kl", -2.0)):
                for seed in range(3):
                    for teacher, share in (("pythia-410m", 0), ("pythia-6.9b", 1)):
                        value = sign * (3 + 0.1 * seed + share * gain)
                        found.append(row(metric, value, method=method, teacher=teacher, seed=seed, **shared))
    for teacher, entropy in (("pythia-410m", 4.0), ("pythia-6.9b", 3.5)):
        shared = {"experiment": "table6_map", "task": "τ = 2", "method": "teacher"}
        found.append(row("entropy", entropy, teacher=teacher, **shared))
    return found


def frame(tmp_path, chosen):
    path = tmp_path / "table6.jsonl"
    results.append(path, chosen)
    return rows.load(path, "cpu")


@pytest.fixture
def full(tmp_path):
    return frame(tmp_path, synthetic() + mapped())


# The paper's numbers


def test_the_papers_table_is_whole_and_its_claims_hold():
    """Facts of the paper's Table 6: TAID rises at every step, skew KL falls at every step."""
    paper = reference.table6()
    assert set(paper) == {"taid", "skew_kl"} and all(
        list(by) == list(table6_sections.SIZES) for by in paper.values()
    )
    assert list(paper["taid"].values()) == sorted(paper["taid"].values())
    assert list(paper["skew_kl"].values()) == sorted(paper["skew_kl"].values(), reverse=True)
    slopes = table6_sections.paper_slopes()
    x = np.log10([0.41, 1.0, 2.8, 6.9])
    for method, by in paper.items():  # oracle: the textbook formula
        y = np.array(list(by.values()))
        assert slopes[method] == pytest.approx(((x - x.mean()) * y).sum() / ((x - x.mean()) ** 2).sum())
    own = [claim for claim in (*TABLE6, *TABLE6_BY_TEACHER) if claim.paper_item == "Table 6"]
    trend, by_teacher = own[:-1], own[-1]
    assert all(in_paper(claim, slopes | {FLAT: 0.0}).outcome == "supported" for claim in trend)
    for teacher in table6_sections.SIZES:
        numbers = {method: by[teacher] for method, by in paper.items()}
        assert in_paper(by_teacher, numbers).outcome == "supported"


def test_library_and_analysis_name_the_same_things():
    assert tuple(table6_sections.SIZES) == capacity.TEACHERS and table6_rows.STUDENT == capacity.STUDENT
    assert set(table6_sections.METHODS) == set(capacity.METHODS) and table6_sections.NONE == capacity.NONE
    assert set(table6_sections.METRICS) <= set(capacity.UNITS)
    for metric, sign in ((m, MEASURES[m].sign) for m in table6_sections.METRICS):
        assert (sign > 0) == capacity.UNITS[metric][1]
    assert set(capacity.ZOO) <= set(style.NAMES)


# Trends


@pytest.mark.parametrize("metric", table6_sections.JUDGED)
def test_slopes_are_those_of_the_lines(full, metric):
    found = table6_sections.slopes(table6_sections.by_teacher(full, metric), MEASURES[metric].sign)
    for method, slope in SLOPES.items():
        assert found[method] == pytest.approx({seed: slope + WIGGLE[seed] for seed in SEEDS})


def test_a_seed_without_all_teachers_has_no_slope(tmp_path):
    chosen = [r for r in synthetic() if (r.method, r.teacher, r.seed) != ("taid", "pythia-2.8b", 3)]
    found = table6_sections.slopes(table6_sections.by_teacher(frame(tmp_path, chosen), "held_out_loss"), -1)
    assert set(found["taid"]) == {0, 1, 2, 4} and set(found["kl"]) == set(SEEDS)


def test_pages_test_is_scipys_on_seeds_by_teachers(full):
    """Five seeds that all rise: the rarest of the (4!)^5 orders, p = 1 / 24^5."""
    ours = table6_sections.by_teacher(full, "held_out_loss")
    up, down = page_test(ours, "taid", -1)
    assert up == pytest.approx(24**-5) and down == pytest.approx(1)
    assert page_test(ours, "skew_kl", -1)[1] == pytest.approx(24**-5)
    data = [[ours[teacher]["taid"][seed] for teacher in table6_sections.SIZES] for seed in SEEDS]
    assert page_test(ours, "taid", 1)[0] == pytest.approx(stats.page_trend_test(data).pvalue)


# Claims


def outcomes(chosen) -> dict[tuple[str, str], set[str]]:
    """(teacher, claim) → its outcomes by the judged metrics, which are alike in these rows."""
    found: dict[tuple[str, str], set[str]] = {}
    for finding in page.findings(table6_sections.comparisons(chosen)):
        found.setdefault((finding.where, finding.claim.name), set()).add(finding.verdict.outcome)
    return found


@pytest.mark.parametrize(
    ("slopes", "rises", "falls", "gains"),
    [
        ({"taid": 0.5, "skew_kl": -0.25}, "supported", "supported", "supported"),
        ({"taid": -0.5, "skew_kl": 0.25}, "contradicted", "contradicted", "contradicted"),
        ({"taid": 0.5, "skew_kl": 0.25}, "supported", "contradicted", "supported"),
        ({"taid": 0.0, "skew_kl": 0.0}, "inconclusive", "inconclusive", "inconclusive"),
    ],
)
def test_claims_follow_the_rows(tmp_path, slopes, rises, falls, gains):
    found = outcomes(frame(tmp_path, synthetic(slopes)))
    assert [found["", claim.name] for claim in TABLE6[:3]] == [{rises}, {falls}, {gains}]


@pytest.mark.parametrize(
    ("kl", "falls", "half"),
    [
        (-0.25, "supported", "supported"),
        (0.0, "inconclusive", "contradicted"),
        (0.5, "contradicted", "contradicted"),
    ],
)
def test_whether_kl_has_a_gap_follows_the_rows(tmp_path, kl, falls, half):
    """Skew KL loses 0.25 per tenfold teacher; TAID gains 0.25, more than KL but in the last case."""
    found = outcomes(frame(tmp_path, synthetic({"taid": 0.25, "skew_kl": -0.25, "kl": kl})))
    assert found["", "KL falls with the teacher"] == {falls}
    assert found["", "KL's gap is half of skew KL's"] == {half}
    assert found["", "TAID gains more than KL"] == {"contradicted" if kl == 0.5 else "supported"}
    below = "contradicted" if kl == 0.5 else "supported"
    assert found["Pythia 6.9B", "TAID above KL"] == {below}


def test_claims_by_teacher_are_paired_and_oriented(full):
    """At 6.9B TAID's line lies above skew KL's, at 410M below, for accuracy and for the loss alike."""
    found = outcomes(full)
    assert found["Pythia 6.9B", "TAID above skew KL"] == {"supported"}
    assert found["Pythia 410M", "TAID above skew KL"] == {"contradicted"}


def test_taid_less_kl_is_told_in_a_sentence(full):
    """By hand: 0.5 · log₁₀ of the size, −0.194 at 0.41 to 0.419 at 6.9; at 1.0 it is 0."""
    said = table6_sections.beside_kl(full)
    assert "between 0.419 and −0.194 nats/word" in said
    assert "below 0 with 1 of 4 teachers, above 0 with 2" in said and "0.500 [0.500, 0.500]" in said


# Check and map


def test_teachers_must_get_strictly_better(tmp_path):
    assert (
        table6_sections.strictly_better([1, 2, 3], 1)
        == "yes"
        == table6_sections.strictly_better([3, 2, 1], -1)
    )
    assert (
        table6_sections.strictly_better([1, 2, 2], 1)
        == "NO"
        == table6_sections.strictly_better([1, 2, 3], -1)
    )
    assert table6_sections.strictly_better([1, None, 3], 1) == "—"
    spoilt = ("teacher", "held_out_loss", "pythia-6.9b")
    worse = [replace(r, value=9.0) if (r.method, r.metric, r.teacher) == spoilt else r for r in synthetic()]
    lines = table6_sections.teachers_check(frame(tmp_path, worse)).splitlines()
    verdicts = {line.split(" | ")[0].strip("| "): line.strip(" |").split(" | ")[-1] for line in lines[2:]}
    assert verdicts["held-out loss ↓ [nats/token]"] == "NO"
    assert verdicts["last-word accuracy ↑ [percent]"] == "yes"


def test_gaps_are_the_largest_teachers_gain_in_every_variant(full):
    span = math.log10(6.9 / 0.41)
    for metric in table6_sections.JUDGED:
        found = table6_sections.gaps(full, metric)
        steps, temperatures = ["steps × 0.5", "steps × 2"], ["τ = 0.5", "τ = 2"]
        assert list(found) == ["base", "pythia-31m", "pythia-160m", *steps, *temperatures]
        base = {seed: (SLOPES["taid"] + WIGGLE[seed]) * span for seed in SEEDS}
        assert found["base"]["taid"] == pytest.approx(base)
        for variant in list(found)[1:]:
            assert found[variant]["taid"] == pytest.approx(dict.fromkeys(range(3), 1.0))
            assert found[variant]["skew_kl"] == pytest.approx(dict.fromkeys(range(3), -2.0))
    assert "| τ = 2 | 4.000 | 3.500 |" in table6_sections.map_table(full)


# Rendering


def test_paper_and_ours_stand_side_by_side_and_apart(full):
    table = page.render(table6.PAGE, full, "cpu")
    line = next(line for line in table.splitlines() if line.startswith("| TAID |"))
    mean = 3.2 + 0.5 * math.log10(0.41)
    assert f"| 20.82 \\| {mean:.2f} ± " in line
    assert "| KL | — \\| 3.20 ± " in table and "| RKL | — \\| — |" in table
    assert "always the most frequent word 0.70" in table


def test_rates_at_the_edge_are_bold(tmp_path):
    chosen = [
        changed(r, config={"learning_rate": 0.1}) if (r.method, r.experiment) == ("kl", "table6") else r
        for r in synthetic()
    ]
    table = table6_sections.rates_table(frame(tmp_path, chosen))
    assert "| KL | **0.1** | **0.1** | **0.1** | **0.1** |" in table and "| TAID | 0.01 | 0.01 |" in table


def test_the_gain_at_one_rate_is_the_smaller_loss(tmp_path):
    """By hand: the loss of skew KL's student rises from 3 to 3.25 at the rate of 0.1, and nowhere else."""
    worse = {
        "experiment": "table6_search",
        "method": "skew_kl",
        "teacher": "pythia-6.9b",
        "learning_rate": 0.1,
    }
    chosen = [
        replace(r, value=3.25)
        if worse == {key: r.config.get(key, getattr(r, key, None)) for key in worse}
        else r
        for r in synthetic()
    ]
    table = table6_sections.fixed_rates(frame(tmp_path, chosen))
    assert "| Skew KL | 0.000 | 0.000 | −0.250 |" in table and "| TAID | 0.000 | 0.000 | 0.000 |" in table
    assert "| RKL | — | — | — |" in table


def axes(figure):
    return [ax for ax in figure.axes if ax.lines]


def test_the_figure_draws_the_papers_numbers_and_ours(full):
    paper, _, loss, accuracy = axes(table6_figures.draw(full, "cpu"))
    theirs = [list(by.values()) for by in reference.table6().values()]
    assert [list(line.get_ydata()) for line in paper.lines][:-1] == theirs
    assert (
        list(paper.lines[-1].get_ydata()) == [reference.PYTHIA_70M[0]] * 2
    )  # the student before distillation
    taid = accuracy.lines[0]
    assert list(taid.get_xdata()) == list(table6_sections.SIZES.values())
    expected = [3.2 + 0.5 * math.log10(size) for size in table6_sections.SIZES.values()]
    assert list(taid.get_ydata()) == pytest.approx(expected)
    assert loss.yaxis_inverted() and not accuracy.yaxis_inverted()


def test_the_maps_figure_draws_every_gap(full):
    for ax in axes(table6_figures.draw_map(full)):
        dots = [line for line in ax.lines if line.get_marker() != "None"]
        assert (
            len(dots) == 2 * 7 + 1
        )  # the map's two methods, in the base and in six variants; KL in the base


@pytest.mark.parametrize(
    "keep",
    [
        lambda r: r.method == "teacher",
        lambda r: r.experiment == "table6_search",
        lambda r: r.seed == 0 and r.experiment != "table6_map",
        lambda r: r.teacher in ("pythia-410m", "none"),
        lambda r: r.method == "taid",
        lambda r: r.experiment == "table6_map",
        lambda r: r.metric == "held_out_loss",
        lambda r: r.task in ("base", "τ = 2") and r.seed < 2,
    ],
    ids=[
        "teachers",
        "search",
        "one seed",
        "one teacher",
        "one method",
        "map alone",
        "one metric",
        "part of the map",
    ],
)
def test_any_part_of_the_rows_renders(tmp_path, keep):
    """As a run that was cut short leaves them; equal rows give equal text."""
    part = frame(tmp_path, [r for r in synthetic() + mapped() if keep(r)])
    page.write(table6.PAGE, part, tmp_path, "cpu")
    text = (tmp_path / "table6.md").read_text()
    assert text == page.render(table6.PAGE, part, "cpu") and not re.search(r"\b(nan|inf)\b", text.lower())
    assert (tmp_path / "table6.png").exists()


# Protocol 2


def of_own_teachers() -> list[Row]:
    """The rows of protocol 2: a teacher of each size for every seed."""
    found = []
    for r in synthetic() + mapped():
        seeds = SEEDS if r.method == "teacher" else [r.seed]
        experiment = r.experiment.replace("table6", "table6_tuned")
        found += [replace(r, experiment=experiment, seed=seed) for seed in seeds]
    return found


def test_the_second_protocol_is_judged_as_the_first(tmp_path):
    second = page.render(table6_tuned.PAGE, frame(tmp_path, of_own_teachers()), "cpu")
    first = page.render(table6.PAGE, frame(tmp_path / "first", synthetic() + mapped()), "cpu")
    assert "There is one teacher" in first and "There is one teacher" not in second
    assert "(table6_tuned_map.svg)" in second and "(table6_map.svg)" in first
    verdicts = [line for line in first.splitlines() if "**supported**" in line or "**contradicted**" in line]
    assert verdicts and set(verdicts) <= set(second.splitlines())  # the same numbers
    # 5 + log₁₀ 0.41
    assert "| teacher | 4.613 ± 0.000 |" in second and "| teacher | 4.613 (1 seed) |" in first


def test_numbers_that_know_their_rows_render_alike(tmp_path):
    """As on the site; but for what a number tells of its rows."""
    chosen = frame(tmp_path, of_own_teachers())
    plain, traced = (page.render(table6_tuned.PAGE, f, "cpu") for f in (chosen, rows.traced(chosen)))
    assert "traced" in traced and re.sub(r"</?span[^>]*>", "", traced) == plain


def test_teachers_of_every_seed_must_get_better(tmp_path):
    """One seed's largest teacher is worse than its smaller ones, though the mean over seeds is not."""
    spoilt = ("teacher", "last_word_accuracy", "pythia-6.9b", 2)
    worse = [
        replace(r, value=r.value - 0.5) if (r.method, r.metric, r.teacher, r.seed) == spoilt else r
        for r in of_own_teachers()
    ]
    for rows_, said in ((of_own_teachers(), "yes"), (worse, "NO")):
        lines = table6_sections.teachers_check(frame(tmp_path / said, rows_)).splitlines()
        line = next(line for line in lines if line.startswith("| last-word accuracy"))
        assert line.strip(" |").endswith(said), line


def test_a_file_has_the_search_of_its_own_protocol(tmp_path):
    """Every rate was tried on the first tuning seed alone: the gain at one rate is told of that."""
    later = [
        row("held_out_loss", 9.0, experiment="table6_tuned_search", method="taid", teacher=teacher, seed=101)
        for teacher in table6_sections.SIZES
    ]
    searched = [r for r in of_own_teachers() if r.experiment == "table6_tuned_search"]
    chosen = [replace(r, seed=100) for r in searched]
    table = table6_sections.fixed_rates(frame(tmp_path, chosen + later))
    assert "(validation, seed 100)" in table and "| TAID | 0.000 | 0.000 | 0.000 |" in table


def test_rates_that_were_not_searched_here_are_still_told(tmp_path):
    """As where they are the committed ones."""
    tested = [r for r in of_own_teachers() if not r.experiment.endswith("_search")]
    table = table6_sections.rates_table(frame(tmp_path, tested))
    assert "those of the committed rows" in table and "| TAID | 0.01 |" in table and "Is a gap" not in table
