"""Numbers that README and docs quote are those of the committed pages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"

QUOTED = [  # where, words there, the committed page, and what it has: if rows change, so must the sentence
    ("docs/findings.md", "of 60 such intervals none lies on TAID's side, 16 lie on KL's, 44 hold 0", "README", "Of 60 intervals 0 lie on TAID's side, 16 on KL's, 44 hold 0"),
    ("docs/findings.md", "KL (4.94) and DKD (4.83) have better means than TAID (4.65)", "table1", "**4.94 ± 1.55**"),
    ("docs/findings.md", "Adaptive KL is ahead by 0.75 [0.03, 1.46]", "table1", "**inconclusive** −0.75 [−1.46, −0.03]"),
    ("docs/findings.md", "+0.10 [−0.35, 0.56], −0.29 [−0.99, 0.42] and −0.19 [−0.36, −0.02]", "table1", "1.34 | 0.10 [−0.35, 0.56] | 0.28 | −0.29 [−0.99, 0.42] | 0.31 | −0.19 [−0.36, −0.02]"),
    ("docs/findings.md", "+0.26 [0.05, 0.47]; inconclusive after Holm's correction", "README", "0.26 [0.05, 0.47] | 4 | score ↑ [points of 10] | **supported** | inconclusive"),
    ("docs/findings.md", "21 of 33 cells take the grid's upper edge, 0.01", "table1", "21 of 33 cells take the grid's upper edge, 0.01"),
    ("docs/findings.md", "KL gains 0.68 [0.20, 1.16] points", "ablations", "**supported** 0.68 [0.20, 1.16]"),
    ("docs/findings.md", "above 0.9 after 38% of the steps", "table2", "above 0.9 after 38% of its steps"),
    ("docs/findings.md", "without it they are −0.09 [−0.54, 0.36]", "table2", "without it TAID − KL is −0.09 [−0.54, 0.36]"),
    ("docs/findings.md", "above its start by 16.9 [13.3, 20.4] percent", "table5", "**supported** 16.9 [13.3, 20.4]"),
    ("docs/findings.md", "by 3.0 [1.3, 4.7]; against KL it is *inconclusive*, 0.1 [−1.6, 1.9]", "table5", "**supported** 3.0 [1.3, 4.7]"),
    ("docs/table5.md", "0.1 [−1.6, 1.9] percent between them", "table5", "**inconclusive** 0.1 [−1.6, 1.9]"),
    ("docs/table5.md", "At one rate for all SFT has 45.4", "table5", "| SFT | 45.4 ± 5.8 |"),
    ("docs/findings.md", "*inconclusive* (0.00 [−0.02, 0.01])", "rounds", "**inconclusive** 0.00 [−0.02, 0.01]"),
    ("docs/findings.md", "−0.007 [−0.011, −0.003] nats per token for a tenfold teacher", "table6", "**contradicted** −0.007 [−0.011, −0.003]"),
    ("docs/findings.md", "by 0.031 to 0.051 nats per word", "table6", "between −0.031 and −0.051 nats/word: its interval is below 0 with 4 of 4"),
    ("docs/findings.md", "(ratio 0.998;", "speed", "training step: TAID over KL | ≤ 1.02 | 0.998"),
    ("docs/capacity.md", "0.043 ± 0.011 nats/token of held-out loss and 0.189 ± 0.041 nats", "table6", "Skew KL | — | −0.189 ± 0.041"),
    ("docs/capacity.md", "0.007 ± 0.004 nats/token and 0.014 ± 0.006 nats per word", "table6", "TAID | — | −0.014 ± 0.006"),
    ("docs/capacity.md", "It loses 0.005 ± 0.005 nats per token", "table6", "KL | — | −0.005 ± 0.005"),
    ("docs/capacity.md", "by 0.031, 0.033, 0.043 and 0.051 nats per last word", "table6", "| −0.031 [−0.042, −0.019] | −0.033 [−0.048, −0.018] | −0.043 [−0.059, −0.026] | −0.051 [−0.067, −0.036] |"),
    ("docs/capacity.md", "within the seeds (−0.017 [−0.035, 0.000])", "table6", "it changes by −0.017 [−0.035, 0.000]"),
    ("docs/table2.md", "0.079 [0.072, 0.087]) and in held-out loss", "table2", "**supported** 0.079 [0.072, 0.087]"),
    ("docs/table2.md", "−0.003 [−0.008, 0.001] and 0.001 [−0.006, 0.008]", "table2", "**inconclusive** 0.001 [−0.006, 0.008]"),
    ("docs/table2.md", "7 to 9 standard errors below a guess", "table2", "below chance, by 7 to 9 standard errors"),
    ("docs/table2.md", "5 of 7 would take another rate", "table2", "5 of 7 would take another rate"),
    ("docs/adaptivity.md", "by 0.033 [0.011, 0.054], supported", "adaptivity", "**supported** 0.033 [0.011, 0.054]"),
    ("docs/adaptivity.md", "(0.68 [0.20, 1.16] points, supported)", "ablations", "**supported** 0.68 [0.20, 1.16]"),
    ("docs/adaptivity.md", "5.42 against 4.93", "ablations", "KL, warm-up over 10% of steps | 5.42 ± 1.61"),
    ("docs/official_code.md", "−0.78 [−1.24, −0.32]; 0.738 nats", "departures", "−0.78 [−1.24, −0.32] | 2.779 ± 0.058 | 3.517 ± 0.035 | 0.738 [0.695, 0.781]"),
    ("docs/official_code.md", "−0.53 [−0.68, −0.37]: worse", "departures", "3.68 ± 0.65 | 3.16 ± 0.71 | −0.53 [−0.68, −0.37]"),
    ("docs/official_code.md", "0.00 [−0.02, 0.03]: the same", "departures", "**supported** 0.00 [−0.02, 0.03]"),
    ("docs/official_code.md", "−0.21 [−0.57, 0.16]: *inconclusive*", "departures", "**inconclusive** −0.21 [−0.57, 0.16]"),
    ("docs/official_code.md", "is 0.69 [0.05, 1.34] points against the method and 1.47 [0.77, 2.16]", "departures", "0.69 [0.05, 1.34] | 1.47 [0.77, 2.16]"),
    ("docs/official_code.md", "over CTKD 1.17 and 1.69", "departures", "1.17 [0.67, 1.67] | 1.69 [1.35, 2.04]"),
    ("docs/official_code.md", "0.29 [−0.32, 0.89]", "departures", "KL | 0.29 [−0.32, 0.89]"),
    ("docs/findings.md", "Adaptive KL loses 0.78 points and its CTKD 0.53", "departures", "**supported** 0.78 [0.32, 1.24]"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "words", "name", "there"), QUOTED, ids=lambda value: value[:25])
def test_a_number_in_prose_is_what_its_page_says(place, words, name, there):
    """The pages are what the rows say, so a sentence that agrees with its page agrees with the rows."""
    said = " ".join((ROOT / place).read_text(encoding="utf-8").split())
    assert words in said, f"{place} does not say so any more: correct QUOTED too"
    page_text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert there in page_text, f"results/{name}.md says something else now: correct {place}"


def test_the_readme_promises_the_minutes_of_make_help():
    [line] = re.findall(r"^table1:.* \| (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    smoke, cpu = line.split()[0], line.split()[2]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert smoke == "2" and "shows in two minutes" in " ".join(readme.split())
    assert 90 < int(cpu) <= 120 and "two hours" in readme


def test_the_readme_is_short():
    words = [
        word for word in (ROOT / "README.md").read_text(encoding="utf-8").split() if re.search(r"\w", word)
    ]
    assert len(words) <= 700
