"""What the code imports, pyproject.toml names; what pyproject.toml names, requirements.txt pins."""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_architecture import OURS, ROOT, files, imports_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDERS = {  # folder → the extras that it may import from, beside the dependencies
    "taid": ["evaluation", "judge", "peft", "launchers", "notebooks"],
    "analysis": ["analysis", "report"],
    "notebooks": ["notebooks"],
    "paper_experiments": ["evaluation"],
    "benchmarks": ["peft"],
    "tests": ["dev"],
}
ELSEWHERE = {
    "triton",
    "trl",
    "torchtune",
    "liger_kernel",
}  # with torch for GPUs; `python -m benchmarks peers`


def named(lines: list[str]) -> list[Requirement]:
    """Requirements, an extra of ours replaced by what it names."""
    found = []
    for requirement in map(Requirement, lines):
        if requirement.name == "taid":
            for extra in requirement.extras:
                found += named(PROJECT["optional-dependencies"][extra])
        else:
            found.append(requirement)
    return found


def everything() -> list[Requirement]:
    return named([*PROJECT["dependencies"], "taid[dev]"])


def pins() -> list[list[Requirement]]:
    """The blocks of requirements.txt."""
    blocks = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n\n")
    return [[Requirement(line) for line in block.splitlines() if line[0] != "#"] for block in blocks]


def test_the_dev_extra_is_the_sum_of_all():
    extras = named([f"taid[{','.join(PROJECT['optional-dependencies'])}]"])
    assert {str(one) for one in extras} == {str(one) for one in named(["taid[dev]"])}


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_are_named_by_the_extra_they_belong_to(folder):
    allowed = named([*PROJECT["dependencies"], f"taid[{','.join(FOLDERS[folder])}]"])
    allowed = {canonicalize_name(one.name) for one in allowed}
    known = packages_distributions()
    ours = OURS | {path.stem for path in files("tests")} | ELSEWHERE
    for path in files(folder):
        for name in {name.split(".")[0] for name in imports_of(path)} - ours - sys.stdlib_module_names:
            distributions = {canonicalize_name(one) for one in known.get(name, [name])}
            assert distributions & allowed, f"{path.relative_to(ROOT)} imports {name}: name it in pyproject"


def test_the_first_block_pins_what_pyproject_names_within_its_bounds():
    first, wanted = pins()[0], everything()
    assert sorted(one.name for one in first) == sorted({one.name for one in wanted})
    versions = {one.name: next(iter(one.specifier)) for one in first}
    for requirement in wanted:
        assert versions[requirement.name].operator == "=="
        assert requirement.specifier.contains(versions[requirement.name].version), requirement


def follows(requirement: Requirement) -> list[Requirement]:
    """What the installed package asks for by itself and under the extras that `requirement` names."""
    asked = [Requirement(line) for line in requires(requirement.name) or []]
    extras = requirement.extras or {""}
    return [one for one in asked if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras)]


def test_whatever_follows_is_pinned_too():
    pinned = {canonicalize_name(one.name) for block in pins() for one in block}
    todo, seen = everything(), set()
    while todo:
        requirement = todo.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key not in seen:
            seen.add(key)
            todo += follows(requirement)
    assert {name for name, _ in seen} <= pinned


def test_the_lock_has_the_same_versions_and_a_digest_of_every_file():
    """Oracle: requirements.txt. `make lock` writes the lock anew; CUDA's packages come with one build of PyTorch."""
    pinned = {
        canonicalize_name(one.name): next(iter(one.specifier)).version for block in pins() for one in block
    }
    locked = {}
    for name in ("requirements.lock", "requirements-cuda.lock"):
        for entry in re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text(encoding="utf-8"))[1:]:
            requirement, *digests = entry.replace("\\\n", "").split("--hash=sha256:")
            assert digests and all(re.fullmatch(r"[0-9a-f]{64}", one.strip()) for one in digests), requirement
            one = Requirement(requirement)
            locked[canonicalize_name(one.name)] = next(iter(one.specifier)).version
    assert pinned.items() <= locked.items(), "run make lock"
