"""Rows by hand for the tests of pages, and what a page makes of them."""

from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

from analysis import rows
from analysis.page import Page, findings
from taid.results import Provenance, Row, append, config_hash

HERE = Provenance(commit="c0ffee", dirty=False, versions="python 3.11", device="cpu", date="2025-01-01")


def row(value: float, **fields) -> Row:
    """A row of Table 1's first pair, changed by `fields`."""
    default = Row(
        experiment="table1",
        scale="cpu",
        method="taid",
        teacher="phi-3-mini",
        student="tinyllama",
        task="average",
        seed=0,
        metric="score",
        value=value,
        unit="",
        higher_is_better=True,
        config={"learning_rate": 0.01},
        config_hash="",
        seconds=1.0,
        **asdict(HERE),
    )
    return changed(default, **fields)


def changed(row: Row, **fields) -> Row:
    """With the hash of its config."""
    made = replace(row, **fields)
    return replace(made, config_hash=config_hash(made.config))


def frame_of(folder: Path, written: list[Row], scale: str = "cpu"):
    """The rows of one scale, by way of a file."""
    append(folder / "rows.jsonl", written)
    return rows.load(folder / "rows.jsonl", scale)


def outcomes(page: Page, frame) -> dict[str, list[str]]:
    """Claim → its outcomes, in the order of places and measures."""
    found = defaultdict(list)
    for finding in findings(page.comparisons(frame)):
        found[finding.claim.name].append(finding.verdict.outcome)
    return dict(found)


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def line_of(markdown: str, start: str) -> list[str]:
    """Cells of the first table line whose first cell is `start`."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|")]
