"""The library alone installs, names what it exports, and loads it on first use."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import setuptools

import taid

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", taid.__all__)
def test_exports_are_the_modules_own(name):
    assert getattr(taid, name) is getattr(import_module(taid._EXPORTS[name]), name)


def test_torch_comes_with_the_trainer_and_not_before():
    code = (
        "import sys, taid; before = 'torch' in sys.modules; taid.DistillationTrainer; "
        "print(before, 'torch' in sys.modules, taid.DistillationTrainer.__module__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True", "taid.trainer.distillation"]


def test_an_unknown_attribute_names_the_exports():
    with pytest.raises(
        AttributeError,
        match="no attribute 'Distiller'; it exports DistillationTrainer, DistillationArguments, METHODS",
    ):
        taid.Distiller  # noqa: B018
    assert not hasattr(taid, "nope")
    with pytest.raises(ImportError, match="Distiller"):
        from taid import Distiller  # noqa: F401


def test_one_version_everywhere():
    """pyproject.toml, the package, the citation and the newest heading of the changelog."""
    files = {
        "pyproject.toml": r'^version = "(.+)"',
        "CITATION.cff": r"^version: (.+)",
        "CHANGELOG.md": r"^## (\d\S+)",
    }
    found = {
        re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)[1] for name, pattern in files.items()
    }
    assert found == {taid.__version__}
    assert re.fullmatch(r"\d+\.\d+\.\d+", taid.__version__), "semantic versioning"


@pytest.mark.slow
def test_the_wheel_holds_taid_alone(tmp_path):
    """Built from a copy as `pip install .` does; every source of taid, the C++ kernel's included, and nothing beside it."""
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "runs", "__pycache__")
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert wheel.name == f"taid-{taid.__version__}-py3-none-any.whl"
    sources = {
        path.relative_to(ROOT)
        for suffix in ("py", "cpp", "typed")
        for path in (ROOT / "taid").rglob(f"*.{suffix}")
    }
    assert {name for name in names if ".dist-info" not in name.parts[0]} == sources
    assert any(name.name == "LICENSE" for name in names)


@pytest.mark.slow
def test_the_source_archive_installs_and_answers(tmp_path):
    """sdist → wheel → a fresh environment: the command says its version, and no torch is imported for it."""
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "runs", "__pycache__")
    )
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    archive = tmp_path / f"taid-{taid.__version__}.tar.gz"
    with tarfile.open(archive) as held:
        names = {Path(*Path(name).parts[1:]) for name in held.getnames()}
    assert {Path("CHANGELOG.md"), Path("CITATION.cff"), Path("LICENSE"), Path("taid/py.typed")} <= names
    assert not any(name.parts[:1] == ("tests",) for name in names)
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", str(fresh)], check=True)
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        str(archive),
    ]
    built = {**os.environ, "PYTHONPATH": str(Path(setuptools.__file__).parents[1])}
    subprocess.run([fresh / "bin/python", *install], check=True, env=built)
    run = subprocess.run(
        [fresh / "bin/taid", "--version"], capture_output=True, text=True, check=True, env=built
    )
    assert run.stdout == f"taid {taid.__version__}\n"
