"""What is said to make is refused at once or reaches the command; nothing is set up by these tests."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_architecture import ROOT

from analysis.__main__ import PAGES

STUDIES = (
    "decide",
    "table1",
    "table1-protocol-1",
    "table2",
    "table2-protocol-1",
    "table3",
    "table4",
    "table5",
    "table6",
    "table6-protocol-1",
    "table7",
    "table8",
    "figure1",
    "figure2",
    "adaptivity",
    "ablations",
    "departures",
    "rounds",
)
PAGE_OF = {
    "table1": "table1_tuned",
    "table1-protocol-1": "table1",
    "table2-protocol-1": "table2",
    "table6": "table6_tuned",
    "table6-protocol-1": "table6",
}  # where it is not the target's own name
SETTINGS = (
    "SCALE",
    "SEEDS",
    "WORKERS",
    "RESULTS",
    "TUNE",
)  # of make, which exports what its command line sets


def make(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """What make would run (-n): commands on stdout, a refusal on stderr; as from a shell, not from `make test`."""
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", *SETTINGS}
    shell = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", "-n", *words], cwd=folder, capture_output=True, text=True, env=shell)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        *((f"{name}={value}", "a whole number from 1") for name in ("SEEDS", "WORKERS") for value in
          ("abc", "0", "-1", "1.5", "", "2 3", "'", "1e3", "$$x")),
        ("SCALE=huge", "one of smoke, cpu"),
        ("SCALE=", "one of smoke, cpu"),
        ("SCALE=smoke cpu", "one of smoke, cpu"),
        ("RESULTS=", "one folder"),
        ("RESULTS=my rows", "without blanks"),
        ("TORCH=cpu", "any takes the PyTorch for CUDA"),
        ("SEED=4", "SEED=4: no such setting"),
        ("seeds=4", "seeds=4: no such setting"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_before_any_work(setting, says):
    run = make("table1", setting)
    assert run.returncode and re.search(says, run.stderr) and not run.stdout
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "folder", ["results", "results/", "./results/gpu", "runs/../results", str(ROOT / "results")]
)
def test_smoke_rows_never_go_among_the_reference_rows(folder):
    assert "reference rows" in make("table1", "SCALE=smoke", f"RESULTS={folder}").stderr
    assert not make("table1", "SCALE=cpu", f"RESULTS={folder}").stderr
    assert not make("table1", "SCALE=smoke", "RESULTS=results2").stderr


def test_a_folder_with_blanks_in_its_name_is_a_folder(tmp_path):
    """In it results and runs are told apart as elsewhere; from another one make is sent there."""
    here = tmp_path / "my own taid"
    here.mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, here)
    assert not make("theory", "SCALE=smoke", folder=here).stderr
    assert "reference rows" in make("theory", "SCALE=smoke", "RESULTS=results", folder=here).stderr
    assert "make -C FOLDER theory" in make("-f", str(here / "Makefile"), "theory", folder=tmp_path).stderr


@pytest.mark.parametrize("target", STUDIES)
def test_settings_reach_the_study_and_its_page(target):
    script, page = make(target, "SEEDS=7", "WORKERS=3", "SCALE=smoke", "RESULTS=here").stdout.splitlines()[
        -2:
    ]
    assert "paper_experiments/" in script
    assert script.rstrip().endswith("--scale smoke --seeds 7 --workers 3 --results here")
    assert page.endswith(f"-m analysis {PAGE_OF.get(target, target)} --scale smoke --results here")


def test_rates_are_searched_again_only_where_they_are_searched():
    for target in ("decide", "table1", "table2", "table6"):
        assert "--tune" in make(target, "TUNE=1").stdout and "--tune" not in make(target).stdout
        assert "search their rates again" in make(target, "TUNE=1", "SCALE=paper").stderr
    for target in ("table3", "table6-protocol-1"):
        assert "table6 alone, at smoke or cpu, search their rates again" in make(target, "TUNE=1").stderr


@pytest.mark.parametrize("target", ["theory", "mode-collapse", "bench", "cost", "figure3"])
def test_seeds_are_refused_where_they_would_be_ignored(target):
    assert "takes no seeds" in make(target, "SEEDS=2").stderr
    assert not make(target).stderr


@pytest.mark.parametrize("target", ["theory", "mode-collapse", "bench", "cost", "verify"])
def test_a_dry_run_or_a_launcher_is_refused_where_it_would_be_ignored(target):
    for said in ("DRY=1", "LAUNCHER=ray"):
        assert (
            f"{target} runs here and at once, it takes no {said.split('=')[0]}" in make(target, said).stderr
        )
    assert "--launcher ray --dry-run" in make("figure3", "DRY=1", "LAUNCHER=ray").stdout


def test_the_paper_s_scale_goes_to_the_hub_or_its_mirror_and_can_be_tried_dry():
    *_, script, page = make("table1", "SCALE=paper", "TAID_HUB=/mirror", "DRY=1").stdout.splitlines()
    assert script.strip().endswith("--scale paper --seeds 1 --workers 1 --results runs/paper --dry-run")
    assert page.lstrip("@").startswith(": ")
    assert "HF_HUB_OFFLINE ?= $(if $(filter paper,$(SCALE)),0,1)" in (ROOT / "Makefile").read_text()


def test_every_page_names_a_target_that_exists():
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {target for page in PAGES.values() for target in page.targets or [page.name]} <= set(targets)


def test_all_runs_every_table_and_figure_of_the_paper():
    """Oracle: the pages of the paper's items."""
    items = set(re.search(r"^PAPER = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    assert {target for target in STUDIES if re.fullmatch(r"(table|figure)\d+", target)} <= items
    assert "cost" in items


def test_the_plan_adds_up_the_minutes_of_every_item():
    """By hand, from the help lines: the first number is of smoke, the second of cpu."""
    lines = dict(re.findall(r"^([a-z0-9-]+):.*## .* \| (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    items = re.search(r"^PAPER = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    for place, scale in enumerate(("smoke", "cpu")):
        texts = {
            item: lines[item].split(" / ")[place]
            for item in (["table1-protocol-1"] if place == 0 else []) + items
        }
        hours = sum(float(re.match(r"[\d.]+", text)[0]) for text in texts.values()) / 60
        plan = subprocess.run(["make", "plan", f"SCALE={scale}"], cwd=ROOT, capture_output=True, text=True)
        assert f"{hours:.1f} hours in all" in plan.stdout
        assert all(
            re.search(rf"^  {item} +{re.escape(text)}$", plan.stdout, re.MULTILINE)
            for item, text in texts.items()
        )


def test_all_hands_its_settings_on_also_to_what_takes_no_seeds():
    run = make("all", "SCALE=smoke", "SEEDS=2")
    assert not run.stderr


def test_mt_bench_needs_a_model_and_hands_on_what_it_is_given():
    assert "mt-bench needs MODEL=folder" in make("mt-bench").stderr
    said = make("mt-bench", "MODEL=here", "PRICE=30 60").stdout.splitlines()[-1]
    assert said.endswith("-m taid.studies.mt_bench --model here --judge gpt-4 --price 30 60")
