"""The ablations' page, on rows by hand."""

import numpy as np
from page_rows import frame_of as framed
from page_rows import line_of, row
from page_rows import outcomes as outcomes_of

from analysis import page
from analysis.ablations import GROUPS, PAGE, marked
from taid.results import Row

VARIANTS = [method for group in GROUPS.values() for method in group]


def cell(method: str, seed: int, score: float, **fields) -> list[Row]:
    """As the study writes it: better by `score` in all measures, but for a little noise."""
    noise = 0.01 * np.random.default_rng([seed, *method.encode()]).normal()
    values = {"score": score, "held_out_loss": 3 - score / 4, "kl_to_teacher": 1 - score / 8}
    own = {"experiment": "ablations", "method": method, "seed": seed} | fields
    return [row(value + noise, metric=metric, **own) for metric, value in values.items()]


def frame_of(folder, scores: dict[str, float], seeds: int = 4):
    return framed(
        folder, [r for m, score in scores.items() for seed in range(seeds) for r in cell(m, seed, score)]
    )


def outcomes(frame) -> dict[str, set[str]]:
    return {name: set(found) for name, found in outcomes_of(PAGE, frame).items()}


def test_claims_flip_with_the_data(tmp_path):
    equal = dict.fromkeys(VARIANTS, 1.0)
    up = outcomes(frame_of(tmp_path / "a", equal | {"taid": 2.0, "with_data_0.3": 3.0}))
    assert up["taid > kl"] == up["taid > kl_matched"] == up["with_data_0.3 > taid"] == {"supported"}
    assert up["with_data_0.1 > taid"] == up["top_50 = taid"] == {"contradicted"}
    assert up["α is best"] == up["t_start is best"] == {"supported"}
    down = outcomes(frame_of(tmp_path / "b", equal | {"kl": 2.0, "alpha_4": 2.0}))
    assert down["taid > kl"] == down["α is best"] == {"contradicted"}
    assert down["top_50 = taid"] == down["beta_0 = taid"] == {"supported"}


def test_marks_are_corrected_for_all_comparisons(tmp_path):
    """By hand: four seeds, three degrees of freedom; t is 3.18 for 95%, 12.9 for 50 comparisons."""
    found = {
        "taid": dict.fromkeys(range(4), 0.0),
        "kl": {0: 0.9, 1: 1.1, 2: 0.9, 3: 1.1},
        "sft": {0: 0.3, 1: 0.9, 2: 0.3, 3: 0.9},
    }
    assert marked(found, "kl", 2, count=50).endswith("‡")
    assert marked(found, "sft", 2, count=1).endswith("‡")
    assert not marked(found, "sft", 2, count=50).endswith("‡")
    assert marked(found, "taid", 2, count=1) == marked(found, "rkl", 2, count=1) == "—"


def test_a_variant_without_rows_is_a_dash(tmp_path):
    text = page.render(PAGE, frame_of(tmp_path, {"taid": 1.0, "kl": 0.5}, seeds=1), "cpu")
    assert line_of(text, "SFT")[1:] == ["—"] * 6 and "Another learning rate" not in text


def test_the_search_is_shown_apart(tmp_path):
    searched = [
        cell("over_t", 0, score, experiment="ablations_search", config={"learning_rate": rate})[0]
        for rate, score in ((1e-3, 0.25), (1e-2, 0.75))
    ]
    text = page.render(PAGE, framed(tmp_path, [*cell("taid", 0, 1.0), *searched]), "cpu")
    found = text.partition("## Another learning rate?")[2]
    assert line_of(found, "variant") == ["variant", "0.001", "0.01"]
    assert [cell[:3] for cell in line_of(found, "TAID, loss divided by t")[1:]] in (
        ["0.2", "0.7"],
        ["0.2", "0.8"],
    )
