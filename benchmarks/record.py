"""From measured values to rows, and to a table on the terminal."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import median

from taid import results

ROOT = Path(__file__).parents[1]
MEASURED = ("benchmarks", "taid")  # folders whose code decides the numbers
UNITS = {  # metric -> unit; of all, less is better
    "time": "ns/element",
    "wall": "ns/element",
    "memory": "logit tensors",
    "gradient_error": "relative norm",
    "step": "seconds",
    "sampled_share": "fraction",
}


@cache
def code_digest() -> str:
    """The code that was measured: what it was measured with as well. Other code is another benchmark."""
    total = hashlib.sha256()
    files = (path for folder in MEASURED for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp"))
    for path in sorted(files):
        total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()[:12]


def rows(job, experiment: str, values: Mapping[tuple[str, str, int], float], seconds: float) -> list[results.Row]:
    """The rows of one job from its {(contender, metric, repetition): value}; a repetition stands for a seed."""
    config = job.config() | {"experiment": experiment}
    shared = dict(
        experiment=experiment, scale=job.scale, teacher="", student="", task=str(job), higher_is_better=False,
        config=config, config_hash=results.config_hash(config), seconds=round(seconds, 2),
        **asdict(results.provenance()),
    )  # fmt: skip
    return [
        results.Row(method=contender, seed=repetition, metric=metric, value=value, unit=UNITS[metric], **shared)
        for (contender, metric, repetition), value in values.items()
    ]


def show(title: str, values: Mapping[tuple[str, str, int], float]) -> None:
    """Print a table: a line per contender with the median of each metric, the first contender's time as unit."""
    names = list(dict.fromkeys(name for name, _, _ in values))
    metrics = [metric for metric in UNITS if any(found == metric for _, found, _ in values)]
    print(f"\n{title}")
    print("".join(["  " + " " * 20, *(f"{f'{metric} [{UNITS[metric]}]':>32}" for metric in metrics)]))
    for name in names:
        cells = []
        for metric in metrics:
            found = [value for (who, what, _), value in values.items() if (who, what) == (name, metric)]
            cells.append(f"{median(found):32.4g}" if found else f"{'—':>32}")
        print("".join([f"  {name:20}", *cells]), flush=True)
