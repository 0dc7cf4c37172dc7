"""Imports go one way, and `import taid` is cheap."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"taid", "analysis", "benchmarks", "paper_experiments", "notebooks", "tests"}
ALLOWED = {  # folder → what of ours it may import besides itself
    "taid": set(),
    "analysis": {"taid.results"},
    "paper_experiments": {"taid"},
    "benchmarks": {"taid"},
    "notebooks": {"taid", "analysis"},
}
LAYERS = [  # of the library, lower first; within a layer imports make no circle
    {"files", "checks"},
    {"losses", "multi_level", "schedule", "theory"},
    {"data", "results", "vocabulary", "logits", "sampling"},
    {"text", "fused", "rollouts", "probes"},
    {"objectives", "teacher"},
    {"trainer", "evaluation", "toy", "toy_language", "curves"},
    {"command"},
    {"__main__"},
    {"studies"},
]
HEAVY = {"torch", "transformers"}


def imports(source: str, package: tuple[str, ...] = ()) -> set[str]:
    """Dotted names that a module imports, at its top or inside functions; `package` resolves relative ones.

    `from a import b` counts as "a.b", for b may be a module.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def source_of(path: Path) -> str:
    """Python source; of a notebook its code cells without magics and shell lines."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def imports_of(path: Path) -> set[str]:
    return imports(source_of(path), path.relative_to(ROOT).parent.parts)


def files(folder: str) -> list[Path]:
    found = [path for suffix in ("py", "ipynb") for path in (ROOT / folder).rglob(f"*.{suffix}")]
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def module_of(path: Path) -> str:
    """taid/losses.py → "losses"; taid/evaluation/judge.py → "evaluation"."""
    return path.relative_to(ROOT / "taid").parts[0].removesuffix(".py")


def studies_of(path: Path) -> str:
    """taid/studies/zoo.py → "zoo"."""
    return path.stem


def graph_of(folder: str, module_of: Callable[[Path], str]) -> dict[str, set[str]]:
    """Module of a package → its other modules that it imports."""
    package = folder.replace("/", ".")
    graph: dict[str, set[str]] = {module_of(path): set() for path in files(folder)}
    for path in files(folder):
        names = (name.removeprefix(f"{package}.") for name in imports_of(path) if within(name, package))
        used = {name.split(".")[0] for name in names}
        graph[module_of(path)] |= (used & graph.keys()) - {module_of(path)}
    return graph


def taid_imports() -> dict[str, set[str]]:
    return graph_of("taid", module_of)


def test_the_parser_sees_every_form_of_import():
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom .f import g\nfrom ..h import i\nx; import k"
    assert imports(source, ("taid", "evaluation")) == {
        "a.b",
        "c.d",
        "taid.evaluation.e",
        "taid.evaluation.f.g",
        "taid.h.i",
        "k",
    }


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_only_what_lies_below(folder):
    assert files(folder) or folder not in ("taid", "analysis")
    for path in files(folder):
        ours = {name for name in imports_of(path) if name.split(".")[0] in OURS - {folder}}
        wrong = {name for name in ours if not any(within(name, allowed) for allowed in ALLOWED[folder])}
        assert not wrong, f"{path.relative_to(ROOT)} may not import {wrong}"


def test_analysis_knows_no_torch():
    for path in files("analysis"):
        heavy = {name for name in imports_of(path) if name.split(".")[0] in HEAVY}
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"


def test_every_module_has_its_layer():
    placed = [module for layer in LAYERS for module in layer]
    assert sorted(placed) == sorted(taid_imports().keys() - {"__init__"})


@pytest.mark.parametrize("height", range(len(LAYERS)))
def test_layers_of_taid_import_downwards(height):
    """The wall between library and studies among them: `studies` is the top layer, and nothing imports it."""
    graph, above = taid_imports(), set().union(*LAYERS[height + 1 :])
    for module in LAYERS[height]:
        assert not graph[module] & above, f"taid.{module} imports {graph[module] & above}"
        assert height or not graph[module], f"taid.{module} is at the bottom but imports {graph[module]}"


@pytest.mark.parametrize(("folder", "module_of"), [("taid", module_of), ("taid/studies", studies_of)])
def test_there_are_no_import_cycles(folder, module_of):
    TopologicalSorter(graph_of(folder, module_of)).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", ["taid", "taid.results", "analysis.table1"])
def test_torch_stays_out(module):
    code = f"import sys, {module}; print(sorted({HEAVY} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.alone
def test_importing_taid_takes_under_a_fifth_of_a_second():
    code = "import time; start = time.perf_counter(); import taid; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.2
