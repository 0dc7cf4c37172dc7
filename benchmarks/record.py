"""From measured values to rows, and to a table on the terminal."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path
from statistics import median

from taid import results

Values = Mapping[tuple[str, str, int], float]  # (contender, metric, repetition) → value

ROOT = Path(__file__).parents[1]
UNITS = {  # metric → unit; less of any is better
    "time": "ns/element",
    "wall": "ns/element",
    "memory": "logit tensors",
    "gradient_error": "relative norm",
    "step": "seconds",
    "sampled_share": "fraction",
}


@cache
def code_digest(module: str) -> str:
    """Of the `code` of a benchmark, "benchmarks.losses" as an example: with other code it is another benchmark."""
    total = hashlib.sha256()
    for path in code(module):
        total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()[:12]


def code(module: str) -> list[Path]:
    """The files that measure and are measured: the module, what it imports of this repository, at the top of a file
    or inside functions, and the C++ beside it."""
    finder = ModuleFinder(path=[str(ROOT)])
    finder.import_hook(module)
    names = (vars(found)["__file__"] for found in finder.modules.values())  # None of what Python has built in
    files = {Path(name) for name in names if name}
    return sorted(
        files | {kernel for folder in {file.parent for file in files} for kernel in folder.glob("*.cpp")}
    )


def rows(job, experiment: str, values: Values, seconds: float) -> list[results.Row]:
    """The rows of one job; a contender is the row's method, a repetition its seed."""
    config = job.config() | {"experiment": experiment}
    shared = dict(
        experiment=experiment,
        scale=job.scale,
        teacher="",
        student="",
        task=str(job),
        config=config,
        config_hash=results.config_hash(config),
        seconds=round(seconds, 2),
        higher_is_better=False,
        **asdict(results.provenance()),
    )
    return [
        results.Row(method=who, seed=repetition, metric=metric, value=value, unit=UNITS[metric], **shared)
        for (who, metric, repetition), value in values.items()
    ]


def show(title: str, values: Values) -> None:
    """Print a line per contender: the median of each metric over the repetitions."""
    contenders = dict.fromkeys(who for who, _, _ in values)
    measured = [metric for metric in UNITS if any(metric == found for _, found, _ in values)]
    print(f"\n{title}\n{'':22}" + "".join(f"{f'{metric} [{UNITS[metric]}]':>32}" for metric in measured))
    for contender in contenders:
        line = f"  {contender:20}"
        for metric in measured:
            found = [value for (who, what, _), value in values.items() if (who, what) == (contender, metric)]
            line += f"{median(found):32.4g}" if found else f"{'—':>32}"
        print(line, flush=True)
