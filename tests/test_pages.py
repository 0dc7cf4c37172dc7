"""The committed pages are what the committed rows say."""

from pathlib import Path

import pytest

from analysis import rows
from analysis.__main__ import TABLES

RESULTS = Path(__file__).parents[1] / "results"
COMMITTED = [(RESULTS, table, "cpu") for table in TABLES] + [(RESULTS / "gpu", "speed", "gpu")]


@pytest.mark.parametrize(
    ("folder", "table", "scale"), COMMITTED, ids=lambda value: getattr(value, "name", value)
)
def test_a_committed_page_is_what_its_rows_say(folder, table, scale):
    frame = rows.load(folder / f"{table}.jsonl", scale)
    assert TABLES[table].render(frame, scale) == (folder / f"{table}.md").read_text(encoding="utf-8")


def test_every_committed_page_is_rendered_from_rows():
    pages = {path.relative_to(RESULTS).with_suffix("") for path in RESULTS.rglob("*.md")}
    assert pages == {(folder / table).relative_to(RESULTS) for folder, table, _ in COMMITTED}
