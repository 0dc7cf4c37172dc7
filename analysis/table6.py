"""Table 6, protocol 1, and its map: `results/table6.md` and its figures."""

from functools import partial

from analysis import table6_sections
from analysis.page import Page

PAGE = Page(
    "table6",
    "Table 6, protocol 1: the capacity gap",
    partial(table6_sections.preamble, own="There is one teacher of each size."),
    table6_sections.headline,
    table6_sections.sections,
    table6_sections.comparisons,
    table6_sections.figures,
    targets=("table6-protocol-1",),
    numbers=["table6_capacity_gap"],
)
