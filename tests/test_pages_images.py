"""The pages of Tables 7 and 8 and Figure 3, on numbers by hand."""

import re

import pytest
from page_rows import frame_of, line_of, outcomes
from page_rows import row as any_row

from analysis import figure3, images, page, reference, table7, table8
from analysis.predicates import in_paper

PAGES = {"table7": table7.PAGE, "table8": table8.PAGE}
ACCURACY = {"sft": 80.0, "kl": 82.0, "ctkd": 81.0, "dkd": 81.5, "mlkd": 79.0, "taid": 83.0}


def table_rows(table: str, accuracy: dict[str, float] = ACCURACY, seeds: int = 3):
    """Every pair alike; seeds move all methods together by 1, and each a little for itself."""
    found = []
    for pair in reference.images(table):
        own = {"experiment": table, "teacher": pair.teacher, "student": pair.student}
        found.append(any_row(90.0, method="teacher", metric="accuracy", **own))
        for seed in range(seeds):
            for i, (method, value) in enumerate(accuracy.items()):
                each = own | {"method": method, "seed": seed}
                found.append(any_row(value + seed + 0.01 * i * (seed - 1), metric="accuracy", **each))
                found.append(any_row(1 - value / 100, metric="held_out_loss", **each))
                found.append(any_row(0.5 + 0.001 * i, metric="kl_to_teacher", **each))
        for rate, value in ((0.03, 70.0), (0.1, 80.0)):
            each = own | {
                "method": "kl",
                "metric": "accuracy",
                "seed": 100,
                "config": {"learning_rate": rate},
            }
            found.append(any_row(value, **each | {"experiment": f"{table}_search"}))
    return found


@pytest.mark.parametrize("table", PAGES)
def test_claims_hold_in_the_paper_and_flip_with_the_data(table, tmp_path):
    """Of each pair the two claims that the paper's own numbers make hold there; here TAID is best everywhere."""
    each = PAGES[table].comparisons(frame_of(tmp_path / "a", table_rows(table)))
    for comparison in each:
        if comparison.paper:
            found = [in_paper(claim, comparison.paper).outcome for claim in comparison.claims]
            assert found == ["supported", "supported", "inconclusive"]  # no student alone in the paper
    found = outcomes(PAGES[table], frame_of(tmp_path / "b", table_rows(table)))
    assert set(found["TAID above KL"][::3]) == set(found["TAID is best"][::3]) == {"supported"}
    if table == "table7":
        assert set(found["MLKD above TAID"][::3]) == {"contradicted"} and len(found["TAID is best"]) == 3
    worst = frame_of(tmp_path / "c", table_rows(table, ACCURACY | {"taid": 60.0, "sft": 90.0}))
    found = outcomes(PAGES[table], worst)
    assert {*found["TAID above KL"][::3], *found["KL above no teacher"][::3]} == {"contradicted"}


@pytest.mark.parametrize("table", PAGES)
def test_paper_and_ours_stand_side_by_side(table, tmp_path):
    """By hand: seeds 0, 1, 2 give KL 82 − 0.01, 83, 84 + 0.01: 83 ± 4.303 · 1.01 / √3 = 2.51."""
    text = page.render(PAGES[table], frame_of(tmp_path, table_rows(table)), "cpu")
    first = next(iter(reference.images(table).values()))
    assert line_of(text, "KL")[1:3] == [f"{first['kl']:.2f}", "83.00 ± 2.51"]
    assert line_of(text, "TAID")[2].startswith("**84.00") and line_of(text, "teacher")[1:3] == ["—", "90.00"]
    gap = line_of(text, "**TAID − KL**, n = 3")
    assert gap[1] == f"{first['taid'] - first['kl']:.2f}" and gap[2].startswith("1.00 [0.90, 1.10]")
    assert ("| student alone |" in text and "72.98" in text) or (table == "table8" and "71.32" in text)


def test_the_room_for_a_teacher_and_the_rates_are_shown(tmp_path):
    """By hand: the teacher's 90 above 80, 81, 82."""
    frame = frame_of(tmp_path, table_rows("table8"))
    parts = images.ImagesPage("table8", "", "")
    assert parts.room(frame).body[0][1:3] == ["90.00", "81.00 ± 2.48"]
    assert parts.room(frame).body[0][3].startswith("9.00 [6.52, 11.48]")
    rates = dict(zip(parts.learning_rates(frame).header, parts.learning_rates(frame).body[0], strict=True))
    assert rates["KL"] == "0.01" and "0.03, 0.1" in parts.learning_rates(frame).note


@pytest.mark.parametrize("table", PAGES)
def test_a_run_cut_short_renders(table, tmp_path):
    whole = table_rows(table, seeds=1)
    for number, part in enumerate((whole[:1], whole[:9], [r for r in whole if r.method == "taid"])):
        frame = frame_of(tmp_path / str(number), part)
        text = page.render(PAGES[table], frame, "cpu")
        assert not re.search(r"\bnan\b", text) and "**supported**" not in text
        PAGES[table].figures(frame, "cpu")


def test_the_figure_has_a_panel_for_each_pair(tmp_path):
    drawn = PAGES["table7"].figures(frame_of(tmp_path, table_rows("table7")), "cpu")["table7"]
    assert len(drawn.axes) == 2 * len(reference.images("table7"))


# Figure 3


def figure3_rows(language: tuple[float, ...], image: tuple[float, ...], target: tuple[float, float]):
    found = []
    for modality, values, right in (("language", language, target[0]), ("images", image, target[1])):
        for number, value in enumerate(values):
            own = {
                "experiment": "figure3",
                "method": modality,
                "teacher": f"{modality} {number}",
                "student": "none",
            }
            for split in ("test", "train"):
                numbers = {
                    "entropy": value,
                    "normalised_entropy": value / 7,
                    "target_probability": right + 0.01 * number,
                }
                for metric, each in numbers.items():
                    found.append(any_row(each, metric=metric, task=split, **own))
                    found += [
                        any_row(each * share, metric=f"{metric}_at", task=f"{split} {share:.2f}", **own)
                        for share in (0.0, 0.5, 1.0)
                    ]
    return found


def test_figure_3s_claims_flip_with_the_data(tmp_path):
    """Three teachers of language, each beside the mean of two of images."""
    unsure = frame_of(tmp_path / "a", figure3_rows((3.0, 3.1, 3.2), (0.4, 0.6), (0.3, 0.8)))
    found = outcomes(figure3.PAGE, unsure)
    assert set(found) == {
        "language is less sure",
        "language is less sure of its many",
        "language is less often right",
    }
    assert all(each == ["supported"] * 2 for each in found.values())
    sure = outcomes(
        figure3.PAGE, frame_of(tmp_path / "b", figure3_rows((0.1, 0.11, 0.12), (0.4, 0.6), (0.9, 0.5)))
    )
    assert all(each == ["contradicted"] * 2 for each in sure.values())


def test_figure_3s_table_has_every_teacher_and_both_means(tmp_path):
    frame = frame_of(tmp_path, figure3_rows((3.0, 3.1, 3.2), (0.4, 0.6), (0.3, 0.8)))
    text = page.render(figure3.PAGE, frame, "cpu")
    assert line_of(text, "language 1")[1:5] == ["language", "3.100", "0.443", "0.310"]
    means = [line for line in text.splitlines() if line.startswith("| **mean**")]
    assert "3.100" in means[0] and "0.500" in means[1]
    entropy, _, target = figure3.draw(frame).axes
    assert len(entropy.get_lines()) == 5
    assert list(target.get_lines()[0].get_xdata()) == pytest.approx([0, 0.15, 0.3])
    assert list(target.get_lines()[0].get_ydata()) == [0, 0.5, 1]


def test_figure_3_without_one_side_judges_nothing(tmp_path):
    frame = frame_of(tmp_path, figure3_rows((3.0, 3.1, 3.2), (), (0.3, 0.8)))
    assert {o for each in outcomes(figure3.PAGE, frame).values() for o in each} == {"inconclusive"}
    page.render(figure3.PAGE, frame, "cpu")
    figure3.draw(frame)
