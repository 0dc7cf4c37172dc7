"""From measured values to rows, and to a table on the terminal."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
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
def code_digest() -> str:
    """Of the code that is measured and measures: other code is another benchmark."""
    total = hashlib.sha256()
    files = (path for folder in ("benchmarks", "taid") for path in (ROOT / folder).rglob("*"))
    for path in sorted(path for path in files if path.suffix in (".py", ".cpp")):
        total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()[:12]


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
