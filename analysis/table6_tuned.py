"""Table 6, protocol 2, and its map: `results/table6_tuned.md` and its figures."""

from functools import partial

from analysis import table6_sections
from analysis.page import Page

OWN = (
    "Every seed has a student and four teachers of its own, so that intervals hold what other teachers would change. 10%"
    " warm-up for all; rates by the held-out loss of students and teachers that are not tested."
)

PAGE = Page(
    "table6_tuned",
    "Table 6: the capacity gap, every seed with teachers of its own",
    partial(table6_sections.preamble, own=OWN),
    table6_sections.headline,
    table6_sections.sections,
    table6_sections.comparisons,
    table6_sections.figures,
    targets=("table6",),
    numbers=["table6_capacity_gap"],
)
