"""Every committed cell is still named by today's code: a move that changes a hash would orphan its rows.

The oracle is the row itself: its config, made into the `Run` that it describes, has to hash to the
`config_hash` that was written with it. `results/speed.jsonl` is left out: a benchmark's hash holds a digest of
the code that it measured, so that other code is another benchmark.
"""

import importlib.util
from dataclasses import fields
from pathlib import Path

import pytest

from taid import results
from taid.studies import (
    ablations,
    capacity,
    continued_pretraining,
    decide,
    departures,
    drawn_teachers,
    every_answer,
    image_text,
    instruction_tuning,
    logit_cache,
    moving_bridge,
    predictions,
    rounds,
    taid_llm,
    tuned_pretraining,
    vision,
)

ROOT = Path(__file__).parents[1]
STUDIES = (
    "decide",
    "table1",
    "table1_tuned",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "table6_tuned",
    "ablations",
    "adaptivity",
    "departures",
    "figure1",
    "figure2",
    "rounds",
    "table7",
    "table8",
    "figure3",
)
SCRIPTS = {"theory": "11_theory.py", "mode_collapse": "12_mode_collapse.py"}


def made(cls, config: dict):
    return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})


def run_of(row: results.Row):
    """The run that a row's config describes, as today's code makes it."""
    config = row.config
    match row.experiment:
        case "table2_cache":
            return logit_cache.Probe(config["scale"])
        case "rounds":
            return rounds.Chain(config["method"], made(instruction_tuning.Run, config | {"method": "kl"}))
        case name if name.startswith("decide"):
            return made(decide.Run, config)
        case name if name.startswith("table2_tuned"):
            return made(tuned_pretraining.Run, config)
        case name if name.startswith("table2"):
            return made(continued_pretraining.Run, config)
        case name if name.startswith("table4"):
            return made(taid_llm.Run, config)
        case name if name.startswith("table6_tuned"):
            return made(drawn_teachers.Run, config)
        case name if name.startswith(("table6", "capacity")):
            return made(capacity.Run, config)
        case name if name.startswith("table5"):
            return made(image_text.Run, config)
        case name if name.startswith(("ablations", "adaptivity", "figure2")):
            return made(ablations.Run, config)
        case "departures":
            return made(departures.Run, config)
        case "figure1":
            return made(moving_bridge.Run, config)
        case "figure3":
            return made(predictions.Run, config)
        case name if name.startswith(("table7", "table8")):
            return made(vision.Run, config)
        case name if name.startswith("table1_tuned"):
            return made(every_answer.Run, config)
        case name if name.startswith(("table1", "table3")):
            return made(instruction_tuning.Run, config)
        case name:
            raise AssertionError(f"no study is known for {name!r}: add it here with its table")


def cells(table: str) -> list[results.Row]:
    """One row of each cell."""
    return list({row.config_hash: row for row in results.read(ROOT / "results" / f"{table}.jsonl")}.values())


def script(name: str):
    spec = importlib.util.spec_from_file_location("script", ROOT / "paper_experiments" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("table", STUDIES)
def test_every_committed_cell_is_named_by_a_run(table, monkeypatch):
    found = cells(table)
    assert found
    orphans = []
    for row in found:
        # the number format is the machine's, not the code's
        monkeypatch.setattr(continued_pretraining, "precision", lambda row=row: row.config.get("precision"))
        config = run_of(row).config() | {"experiment": row.experiment}
        if results.config_hash(config) != row.config_hash:
            orphans.append(str(row))
    assert not orphans, f"{len(orphans)} of {len(found)} cells of {table} are orphaned, such as {orphans[0]}"


def test_every_committed_cell_of_the_theory_is_named():
    theory = script(SCRIPTS["theory"])
    named = {results.config_hash(theory.cell_config(study, "cpu")) for study in theory.STUDIES}
    assert {row.config_hash for row in cells("theory")} == named


def test_every_committed_cell_of_mode_collapse_is_named():
    study = script(SCRIPTS["mode_collapse"])
    named = {results.config_hash(config) for _, _, config in study.cells(study.SCALES["cpu"])}
    assert {row.config_hash for row in cells("mode_collapse")} == named


def test_no_committed_rows_are_without_this_guard():
    committed = {path.stem for path in (ROOT / "results").glob("*.jsonl")}
    assert committed == {*STUDIES, *SCRIPTS, "speed"}
