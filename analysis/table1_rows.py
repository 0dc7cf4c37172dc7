"""What the pages of Table 1's two protocols share: pairs and methods in the paper's order, a table for each pair."""

from collections.abc import Callable, Mapping

from analysis import figures, reference
from analysis.reference import METHODS
from analysis.rows import REFERENCES, Pair, Scores, without_references
from analysis.statistics import difference
from analysis.style import pair_name
from analysis.tables import Table

Line = Callable[[Pair, str], list[str]]


def pairs(by_pair: Mapping[Pair, Scores]) -> list[Pair]:
    """The paper's pairs in its order, then any others."""
    return list(dict.fromkeys([*reference.table1(), *by_pair]))


def methods(by_pair: Mapping[Pair, Scores]) -> list[str]:
    """The paper's methods in its order, then any others; references apart."""
    others = sorted({method for ours in by_pair.values() for method in without_references(ours)})
    return list(dict.fromkeys([*METHODS, *others]))


def per_pair(
    by_pair: Mapping[Pair, Scores], header: list[str], line: Line, last: tuple[str, ...] = ()
) -> str:
    """A table for each pair that has rows, with the `line(pair, method)` of each method that has; and `last`."""
    listed = (*methods(by_pair), *REFERENCES)
    tables = [
        f"**{pair_name(pair)}**\n\n"
        + Table(
            header, [line(pair, m) for m in listed if m in by_pair[pair]] + [line(pair, m) for m in last]
        ).markdown()
        for pair in pairs(by_pair)
        if pair in by_pair
    ]
    return "\n".join(tables)


def to_kl(ours: Scores) -> figures.Estimates:
    """Each method's difference to KL, as far as it has one."""
    found = {method: difference(ours, method, "kl") for method in without_references(ours) if method != "kl"}
    return {method: estimate for method, estimate in found.items() if estimate}
