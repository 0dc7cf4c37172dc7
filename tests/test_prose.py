"""Numbers that README and docs quote are those of the committed pages."""

import re
from pathlib import Path

import numpy as np
import pytest

from analysis import cost, page, rows, speed_rows
from analysis.__main__ import PAGES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"

QUOTED = [  # where, words there, the committed page, and what it has: if rows change, so must the sentence
    ("docs/findings.md", "of 120 such intervals four lie on TAID's side, 41 lie on KL's, 75 hold 0", "README", "Of 120 intervals 4 lie on TAID's side, 41 on KL's, 75 hold 0"),
    ("docs/findings.md", "it knows 0.29 [0.08, 0.49], 0.58 [0.14, 1.03] and 0.17 [0.06, 0.27] points of 10 less", "table1_tuned", "**fails** | −0.17 [−0.27, −0.06]"),
    ("docs/findings.md", "by 0.35 [0.24, 0.47], 0.84 [0.54, 1.13] and 0.16 [0.01, 0.32] points on the linear ramp", "table1_tuned", "**holds** | 0.16 [0.01, 0.32]"),
    ("docs/findings.md", "is 0.019 [0.011, 0.027], 0.050 [0.035, 0.065] and 0.037 [0.028, 0.046] nats further from the teacher", "table1_tuned", "−0.17 [−0.27, −0.06] | 0.014 [−0.052, 0.079] | 0.037 [0.028, 0.046]"),
    ("docs/table1.md", "knowledge −0.29 [−0.49, −0.08] points, KL to the teacher 0.019 [0.011, 0.027]", "table1_tuned", "−0.29 [−0.49, −0.08] | −0.015 [−0.037, 0.006] | 0.019 [0.011, 0.027]"),
    ("docs/table1.md", "−0.58 [−1.03, −0.14], 0.050 [0.035, 0.065]", "table1_tuned", "−0.58 [−1.03, −0.14] | 0.000 [−0.021, 0.022] | 0.050 [0.035, 0.065]"),
    ("docs/table1.md", "its threshold ends at 0.80 of a possible 1", "table1_tuned", "0.80 ± 0.34 (4 seeds)"),
    ("docs/table1.md", "9 of its 12 cells take the highest rate, 0.03", "table1_tuned", "lower edge lie 0 of 36 cells, at its upper edge 9"),
    ("docs/table1.md", "cover 0.061 of a question's several answers and TAID's 0.057, the teacher 0.513", "table1_tuned", "| TAID | 0.057 ± 0.023"),
    ("docs/findings.md", "TAID − KL is 0.01 [−0.03, 0.06] points of 10 for Llama-2", "decide", "| 16,239 | 9.55 ± 0.02 | 9.54 ± 0.04 | 0.01 [−0.03, 0.06] | 8 | false in effect | 3 |"),
    ("docs/findings.md", "nearer to the teacher by 0.011 [0.008, 0.014]", "decide", "**TAID − KL**, n = 8 | 0.01 [−0.03, 0.06] | −0.01 [−0.04, 0.02] | −0.009 [−0.027, 0.009] | 0.011 [0.008, 0.014]"),
    ("docs/findings.md", "−0.02 [−0.11, 0.07] for Llama-2-13B → Pythia, whose sizes are 35 to 1 (a pair of ours, for a wide gap): by the rule, *false in effect* twice", "decide", "| 16,239 | 4.08 ± 0.11 | 4.10 ± 0.11 | −0.02 [−0.11, 0.07] | 8 | false in effect | 4 |"),
    ("docs/findings.md", "and 0.016 [0.010, 0.022] nats per token", "decide", "**TAID − KL**, n = 8 | −0.02 [−0.11, 0.07] | 0.01 [−0.07, 0.08] | 0.007 [−0.017, 0.031] | 0.016 [0.010, 0.022]"),
    ("docs/findings.md", "by 0.033 [0.030, 0.036] and 0.051 [0.045, 0.057] nats, in score above it by 0.09 [0.02, 0.15] (*inconclusive* after Holm) and 0.05 [−0.01, 0.10]", "decide", "**inconclusive** 0.05 [−0.01, 0.10]"),
    ("docs/findings.md", "KL knows 0.67 [−0.12, 1.46], 1.12 [0.14, 2.10] and 0.69 [0.57, 0.82] points more than SFT", "table1_tuned", "| SFT | −1.12 [−2.10, −0.14], 4 seeds"),
    ("docs/table1.md", "−0.60 [−2.61, 1.40] and −0.02 [−0.14, 0.11]", "table1_tuned", "| CTKD | −0.60 [−2.61, 1.40], 4 seeds"),
    ("docs/decide.md", "is 0.90 [0.74, 1.06] after a quarter and 0.43 [0.31, 0.56] after half", "decide", "| 4,060 | **TAID − TAID w/o adaptive update**, n = 8 | 0.90 [0.74, 1.06] |"),
    ("docs/decide.md", "−0.46 [−0.65, −0.28] and −0.45 [−0.56, −0.34] with the second", "decide", "| 4,060 | **TAID − TAID w/o adaptive update**, n = 8 | −0.46 [−0.65, −0.28] |"),
    ("docs/decide.md", "0.033 [0.030, 0.036] and 0.051 [0.045, 0.057] nats nearer to the teacher, by score 0.09 [0.02, 0.15]", "decide", "**supported** 0.09 [0.02, 0.15] | **supported** 0.09 [0.05, 0.13]"),
    ("docs/decide.md", "with TAID (0.002 [−0.005, 0.009])", "decide", "**inconclusive** −0.002 [−0.009, 0.005]"),
    ("docs/decide.md", "TAID is −0.01 [−0.06, 0.05] and 0.06 [−0.04, 0.15] points beside it", "decide", "**inconclusive** −0.01 [−0.06, 0.05]"),
    ("docs/decide.md", "by 0.60 [0.43, 0.78] points at the first pair's 2,000", "decide", "**supported** 0.60 [0.43, 0.78]"),
    ("docs/decide.md", "| Llama-2 → TinyLlama, 5.6 (6.1) | 0.09 [−0.01, 0.19] | −0.16 [−0.44, 0.13]", "decide", "5.23 ± 0.28 | 5.38 ± 0.44 | −0.16 [−0.44, 0.13] | 12 | false in effect"),
    ("docs/decide.md", "| Llama-2-13B → Pythia, 35 (32) | 0.08 [−0.02, 0.18] | 0.00 [−0.09, 0.09]", "decide", "2.94 ± 0.11 | 2.94 ± 0.11 | 0.00 [−0.09, 0.09] | 12 | false in effect"),
    ("docs/decide.md", "(4.08 and 4.10; the teacher 4.51)", "decide", "| teacher | 4.51 ± 0.04 |"),
    ("docs/decide.md", "(9.54 and 9.55; the teacher 9.48)", "decide", "| teacher | 9.48 ± 0.02 |"),
    ("docs/findings.md", "KL (4.94) and DKD (4.83) have better means than TAID (4.65)", "table1", "**4.94 ± 1.55**"),
    ("docs/findings.md", "Adaptive KL is ahead by 0.75 [0.03, 1.46]", "table1", "**inconclusive** −0.75 [−1.46, −0.03]"),
    ("docs/findings.md", "+0.10 [−0.35, 0.56], −0.29 [−0.99, 0.42] and −0.19 [−0.36, −0.02]", "table1", "1.34 | 0.10 [−0.35, 0.56] | 0.28 | −0.29 [−0.99, 0.42] | 0.31 | −0.19 [−0.36, −0.02]"),
    ("docs/findings.md", "+0.26 [0.05, 0.47]; inconclusive after Holm's correction", "README", "0.26 [0.05, 0.47] | 4 | score ↑ [points of 10] | **supported** | inconclusive"),
    ("docs/findings.md", "21 of 33 cells take the grid's upper edge, 0.01", "table1", "21 of 33 cells take the grid's upper edge, 0.01"),
    ("docs/findings.md", "KL gains 0.68 [0.20, 1.16] points", "ablations", "**supported** 0.68 [0.20, 1.16]"),
    ("docs/findings.md", "TAID with one is −0.17 [−0.59, 0.25] points beside it", "ablations", "**inconclusive** −0.17 [−0.59, 0.25]"),
    ("docs/adaptivity.md", "has 0.32 [−0.52, 1.15] points more", "ablations", "**inconclusive** 0.32 [−0.52, 1.15]"),
    ("docs/findings.md", "above 0.9 after 38% of the steps", "table2", "above 0.9 after 38% of its steps"),
    ("docs/findings.md", "0.009 [0.001, 0.016] nats per token further from the teacher; held-out loss and tasks hold 0", "table2", "**TAID − KL**, n = 5 | 0.009 [0.001, 0.016] | 0.009 [−0.003, 0.021] |"),
    ("docs/findings.md", "0.012 [0.006, 0.018] from t = 0.2", "table2", "**(TAID, t_start = 0.2) − KL**, n = 5 | 0.012 [0.006, 0.018] | 0.011 [0.006, 0.017] |"),
    ("docs/findings.md", "0.023 [0.016, 0.030] at a quarter of its α", "table2", "**(TAID, α × ¼) − KL**, n = 5 | 0.023 [0.016, 0.030] | 0.027 [0.020, 0.035] |"),
    ("docs/table2.md", "0.009 [0.001, 0.016] nats per token further from the teacher than KL", "table2", "**contradicted** −0.009 [−0.016, −0.001] | **inconclusive** −0.009 [−0.021, 0.003] | **inconclusive** −0.26 [−0.90, 0.38]"),
    ("docs/table2.md", "38% of the steps with TAID, 43% from t = 0.2 and 84% at α/4", "table2", "above 0.9 after 38% of its steps (43% with t_start = 0.2, 84% with α × ¼)"),
    ("docs/table2.md", "0.009, 0.012 [0.006, 0.018] and 0.023 [0.016, 0.030] behind KL", "table2", "**(TAID, α × ¼) − KL**, n = 5 | 0.023 [0.016, 0.030] |"),
    ("docs/table2.md", "0.011 [0.006, 0.017] and 0.027 [0.020, 0.035]", "table2", "**(TAID, t_start = 0.2) − KL**, n = 5 | 0.012 [0.006, 0.018] | 0.011 [0.006, 0.017] |"),
    ("docs/table2.md", "the teacher 58.8", "table2", "| 58.8 (1 seed) |"),
    ("docs/table2.md", "brings KL from 1.683 to about 1.6 nats per token", "table2", "**1.595 ± 0.003**"),
    ("docs/findings.md", "without it they are −0.09 [−0.54, 0.36]", "table2", "without it TAID − KL is −0.09 [−0.54, 0.36]"),
    ("docs/findings.md", "above its start by 16.9 [13.3, 20.4] percent", "table5", "**supported** 16.9 [13.3, 20.4]"),
    ("docs/findings.md", "by 3.0 [1.3, 4.7]; against KL it is *inconclusive*, 0.1 [−1.6, 1.9]", "table5", "**supported** 3.0 [1.3, 4.7]"),
    ("docs/table5.md", "0.1 [−1.6, 1.9] percent between them", "table5", "**inconclusive** 0.1 [−1.6, 1.9]"),
    ("docs/table5.md", "At one rate for all SFT has 45.4", "table5", "| SFT | 45.4 ± 5.8 |"),
    ("docs/findings.md", "*inconclusive* (0.00 [−0.02, 0.01])", "rounds", "**inconclusive** 0.00 [−0.02, 0.01]"),
    ("docs/findings.md", "−0.028 [−0.043, −0.013] nats per word for a tenfold teacher", "table6_tuned", "**contradicted** −0.028 [−0.043, −0.013]"),
    ("docs/findings.md", "by 0.044 to 0.076 nats per word", "table6_tuned", "between −0.044 and −0.076 nats/word: its interval is below 0 with 4 of 4"),
    ("docs/capacity.md", "the skew KL loses 0.249 ± 0.078 nats", "table6_tuned", "Skew KL | — | −0.249 ± 0.078"),
    ("docs/capacity.md", "RKL 0.221 ± 0.042 and 0.055 ± 0.007", "table6_tuned", "RKL | — | −0.221 ± 0.042"),
    ("docs/capacity.md", "0.028 ± 0.015 nats per word and 0.007 ± 0.006 nats/token", "table6_tuned", "TAID | — | −0.028 ± 0.015"),
    ("docs/capacity.md", "**KL does not fall** (0.000 ± 0.023)", "table6_tuned", "KL | — | 0.000 ± 0.023"),
    ("docs/capacity.md", "by 0.028 [0.009, 0.047] nats more per tenfold teacher", "table6_tuned", "it changes by −0.028 [−0.047, −0.009]"),
    ("docs/capacity.md", "by 0.098 [0.036, 0.160] nats per word", "table6_tuned", "| student Pythia 160M | 0.357 [−0.161, 0.875], 3 seeds | −0.384 [−0.466, −0.302], 3 seeds | 0.098 [0.036, 0.160], 3 seeds"),
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
    ("docs/adaptivity.md", "5.42 points and 0.705 nats", "ablations", "KL, warm-up over 10% of steps | 5.42 ± 1.61"),
    ("docs/official_code.md", "−0.78 [−1.24, −0.32]; 0.738 nats", "departures", "−0.78 [−1.24, −0.32] | 2.779 ± 0.058 | 3.517 ± 0.035 | 0.738 [0.695, 0.781]"),
    ("docs/official_code.md", "−0.53 [−0.68, −0.37]: worse", "departures", "3.68 ± 0.65 | 3.16 ± 0.71 | −0.53 [−0.68, −0.37]"),
    ("docs/official_code.md", "0.00 [−0.02, 0.03]: the same", "departures", "**supported** 0.00 [−0.02, 0.03]"),
    ("docs/official_code.md", "−0.21 [−0.57, 0.16]: *inconclusive*", "departures", "**inconclusive** −0.21 [−0.57, 0.16]"),
    ("docs/official_code.md", "is 0.69 [0.05, 1.34] points against the method and 1.47 [0.77, 2.16]", "departures", "0.69 [0.05, 1.34] | 1.47 [0.77, 2.16]"),
    ("docs/official_code.md", "over CTKD 1.17 and 1.69", "departures", "1.17 [0.67, 1.67] | 1.69 [1.35, 2.04]"),
    ("docs/official_code.md", "0.29 [−0.32, 0.89]", "departures", "KL | 0.29 [−0.32, 0.89]"),
    ("docs/findings.md", "DKD (4.83) have", "table1", "4.83 ± 0.89"),
    ("docs/findings.md", "TAID (4.65)", "table1", "4.65 ± 0.98"),
    ("docs/findings.md", "inconclusive on the other two (+0.10, −0.01)", "table1", "**inconclusive** −0.01 [−0.28, 0.26]"),
    ("docs/findings.md", "inconclusive on the other two (+0.10", "table1", "**inconclusive** 0.10 [−0.16, 0.37]"),
    ("docs/findings.md", "by 0.08 nats per token at least in KL to the teacher and in held-out loss", "table2", "**supported** 0.079 [0.029, 0.129]"),
    ("docs/findings.md", "by 0.08 nats per token at least in KL to the teacher", "table2", "**supported** 0.079 [0.072, 0.087]"),
    ("docs/findings.md", "TAID by 0.106 [0.077, 0.135] nats per token at least in KL to the teacher, 0.060 [0.036, 0.084] in held-out loss", "table2", "**supported** 0.106 [0.077, 0.135] | **supported** 0.060 [0.036, 0.084]"),
    ("docs/table2.md", "0.106 [0.077, 0.135] nats per token behind, in held-out loss SFT, 0.060 [0.036, 0.084]", "table2", "**supported** 0.106 [0.077, 0.135] | **supported** 0.060 [0.036, 0.084] | **inconclusive** 0.63 [−0.61, 1.87] | KL − JSD"),
    ("docs/table2.md", "SFT takes the lowest, 1e-4", "table2", "| SFT | **7.081** |"),
    ("docs/findings.md", "TAID's difference to KL is 0.003 nats per token", "table2", "−0.003 [−0.008, 0.001]"),
    ("docs/findings.md", "0.003 nats per token and 0.02 percent of the tasks", "table2", "**inconclusive** 0.02 [−0.33, 0.37]"),
    ("docs/findings.md", "The 0.02 percent come from *arithmetic*", "table2", "**inconclusive** 0.02 [−0.33, 0.37]"),
    ("docs/findings.md", "Accuracy, 1.4 percent here", "table6_tuned", "20.82 \\| 1.37 ± 0.15"),
    ("docs/findings.md", "t is within 0.001 of a closed form", "adaptivity", "largest size | 0.0010 ± 0.0003"),
    ("docs/findings.md", "C++ on one AVX2 thread is 6 to 25 times", "speed", "TAID C++, bf16: × official | ≥ 12 | 11.5 – 25.3"),
    ("docs/findings.md", "C++ on one AVX2 thread is 6 to", "speed", "TAID C++, fp32: × official | ≥ 7 | 6.21 – 17.5"),
    ("docs/findings.md", "with 1.00 logit tensors of extra memory instead of 5 to 10", "speed", "| taid.fused, C++ | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 |"),
    ("docs/findings.md", "extra memory instead of 5 to 10", "speed", "| official formulas | 9.50 | 5.25 | 9.50 | 5.25 | 9.50 | 5.25 |"),
    ("docs/findings.md", "eager chunks 4.3 to 6 times", "speed", "TAID eager: × official | ≥ 4 | 4.33 – 5.99"),
    ("docs/table2.md", "a *higher* held-out loss (5.35)", "table2", "| 5.358 ± 0.024 |"),
    ("docs/table2.md", "before distillation (5.22)", "table2", "| 5.223 ± 0.053 |"),
    ("docs/table2.md", "40.1 before, 42.9 with KL", "table2", "40.13 ± 0.82"),
    ("docs/table2.md", "42.9 with KL or TAID, 73.5 the teacher", "table2", "| 73.53 (1 seed) |"),
    ("docs/table4.md", "three students score 30.17", "table4", "TAID-LLM-1.5B; ours: TAID | 52.27 | 30.17 ± 0.00 |"),
    ("docs/table4.md", "chance is 29.17, the teacher has 72.50", "table4", "| chance | — | 29.17 | 29.17 |"),
    ("docs/table4.md", "7.82 against 8.24", "table4", "| KL | 8.124 | 7.821 |"),
    ("docs/table5.md", "The teacher answers 56.6% right", "table5", "| teacher | — | 56.6 (1 seed) |"),
    ("docs/table5.md", "the student before distillation 32.3%", "table5", "53.96 | 32.3 ± 4.7 |"),
    ("docs/table5.md", "At *compare* it is at chance itself (48.2%)", "table5", "| 50.0 | 48.2 (1 seed) |"),
    ("docs/table5.md", "at *exists* hardly above (56.0%", "table5", "| 50.0 | 56.0 (1 seed) |"),
    ("docs/capacity.md", "where always the same word has 0.85", "table6", "always the most frequent word 0.85"),
    ("docs/capacity.md", "half the steps 0.02, base 0.05", "table6", "3 seeds | −0.024 [−0.037, −0.012]"),
    ("docs/adaptivity.md", r"$|m| \le 0.017$ where 0.41 would", "adaptivity", "m, largest size (downwards) | 0.0166 ± 0.0037"),
    ("docs/adaptivity.md", "where 0.41 would be needed to move $t$ by 0.05", "adaptivity", "m, size that would move t by 0.05 | 0.4096 ± 0.0000"),
    ("docs/adaptivity.md", "5.42 points and 0.705 nats to the teacher; TAID itself has 4.93 and 0.763", "ablations", "0.705 ± 0.109"),
    ("docs/adaptivity.md", "(5.73 against 4.93 with k = 50)", "ablations", "| TAID, top 50 logits, renormalised | 5.73 ± 0.97 |"),
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
    assert f"then Table 1 for one seed: {cpu} minutes" in readme


COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven")


def means(name: str, experiment: str, metric: str) -> list[dict[str, float]]:
    """Method → mean over seeds, of each pair."""
    found = rows.scores(page.load(PAGES[name], RESULTS, "cpu"), experiment, metric)
    return [{m: float(np.mean([*by.values()])) for m, by in each.items()} for each in found.values()]


def gkds_time() -> list[str]:
    ratios = [each["gkd"] / each["kl"] for each in means("table1", "table1", "train_seconds")]
    return [f"{edge:.1f}" for edge in (min(ratios), max(ratios))]


def mode_seekers() -> list[str]:
    found = means("table1", "table1", "held_out_loss")
    gaps = [each[m] - each["kl"] for each in found for m in ("rkl", "tvd", "distillm")]
    return [f"{edge:.1f}" for edge in (min(gaps), max(gaps))]


def momentum() -> list[str]:
    needed, largest = (
        means("adaptivity", "adaptivity", f"momentum_{m}")[0]["taid"] for m in ("needed", "largest")
    )
    return [f"{needed / largest:.0f}"]


def outcomes_of(claim: str, outcome: str) -> int:
    found = page.findings(PAGES["speed"].comparisons(page.load(PAGES["speed"], RESULTS, "cpu")))
    return sum(f.claim.name == claim and f.verdict.outcome == outcome for f in found)


def cost_supported() -> list[str]:
    settings = len(speed_rows.measured(page.load(PAGES["speed"], RESULTS, "cpu"), "cost", "step"))
    return [COUNTS[outcomes_of("TAID costs what KL costs", "supported")], COUNTS[settings]]


def cost_twice() -> list[str]:
    return [COUNTS[outcomes_of("DistiLLM costs twice as much", "contradicted")]]


def cost_tenfold() -> list[str]:
    return [COUNTS[outcomes_of("GKD costs ten times as much", "contradicted")]]


def gkds_step() -> list[str]:
    steps = speed_rows.measured(page.load(PAGES["speed"], RESULTS, "cpu"), "cost", "step").values()
    found = [estimate.mean for each in steps if (estimate := cost.ratios(each, "gkd"))]
    return [f"{min(found):.1f}", f"{max(found):.0f}"]


def triton() -> list[str]:
    """Of all TAID cells on the GPU: times the official formulas, and times those compiled."""
    frame = page.load(PAGES["speed"], RESULTS / "gpu", "gpu")
    config, times = speed_rows.settings(frame, "losses"), speed_rows.measured(frame, "losses", "time")
    of_taid = [by for task, by in times.items() if config[task]["loss"] == "taid"]
    edges = []
    for other in ("official", "official_compiled"):
        found = [speed_rows.median(by[other]) / speed_rows.median(by["triton"]) for by in of_taid]
        edges += [min(found), max(found)]
    return [f"{edges[0]:.0f}", f"{edges[1]:.0f}", f"{edges[2]:.1f}", f"{edges[3]:.1f}"]


COMPUTED = [  # where, words with places for numbers, and what the rows give for them
    ("docs/findings.md", "GKD costs {} to {} times KL's training time", gkds_time),
    ("docs/findings.md", "the held-out loss of all three is {} to {} nats above KL's", mode_seekers),
    ("docs/findings.md", "the momentum is {} times too small to move t by 0.05", momentum),
    ("docs/findings.md", "*supported* in {} of {} settings", cost_supported),
    ("docs/findings.md", "is *contradicted* in all {})", cost_twice),
    ("docs/findings.md", "GKD costs {} to {} times KL, by how full the machine is", gkds_step),
    ("docs/findings.md", "(ten times TAID: *contradicted* in {}, else inconclusive)", cost_tenfold),
    (
        "docs/findings.md",
        "the Triton engine is {} to {} times as fast as they are, and {} to {} times as fast as torch.compile",
        triton,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "words", "numbers"), COMPUTED, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_number_in_prose_is_what_its_rows_give(place, words, numbers):
    assert words.format(*numbers()) in prose(place)


def prose(place: str) -> str:
    return " ".join((ROOT / place).read_text(encoding="utf-8").split())


PLACES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
SPREAD = re.compile(r"\[(−?\d+\.\d+), (−?\d+\.\d+)\]|(−?\d+\.\d+) ± (\d+\.\d+)")


def turned(number: str) -> str:
    return number[1:] if number.startswith("−") else f"−{number}"


def test_every_interval_in_prose_is_on_a_page():
    """As it stands there, or of the difference the other way round."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in RESULTS.rglob("*.md"))
    seen = 0
    for place in PLACES:
        for low, high, mean, half in SPREAD.findall(prose(place)):
            shown = [f"[{low}, {high}]", f"[{turned(high)}, {turned(low)}]"]
            if mean:
                shown = [f"{mean} ± {half}", f"{turned(mean)} ± {half}"]
            assert any(text in pages for text in shown), f"{place}: {shown[0]} is on no page of results/"
            seen += 1
    assert seen > 40


def test_every_decimal_of_the_findings_is_tested():
    said = prose("docs/findings.md")
    patterns = [re.escape(words) for place, words, *_ in QUOTED if place == "docs/findings.md"]
    patterns += [re.escape(words).replace(r"\{\}", r"[\w.]+") for place, words, _ in COMPUTED]
    patterns.append(SPREAD.pattern)
    held = [found.span() for pattern in patterns for found in re.finditer(pattern, said)]
    for number in re.finditer(r"(?<![\w.])\d+\.\d+(?![\w.])", said):
        inside = any(low <= number.start() < high for low, high in held)
        assert inside, f"add to QUOTED or COMPUTED: …{said[number.start() - 40 : number.end() + 20]}…"


def test_the_readme_is_short():
    words = [
        word for word in (ROOT / "README.md").read_text(encoding="utf-8").split() if re.search(r"\w", word)
    ]
    assert len(words) <= 700
