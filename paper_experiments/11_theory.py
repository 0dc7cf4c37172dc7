"""Theory. The claim: TAID escapes collapse once the signal r₀ grows like √T; self-distillation never does.

Beyond it: r₀ > B rules a collapse out and r₀ ≤ √B forces one, whatever κ is; the objective leads from the
reverse to the forward KL; the adaptive schedule is an open loop. Derivations: docs/theory.md.
Figures: notebooks/theory.ipynb.

    python paper_experiments/11_theory.py                # cpu: 1 minute on one core
    python paper_experiments/11_theory.py --scale smoke  # 3 seconds, not to be kept
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from taid import theory
from taid.results import Row, append_once, cell_rows, finished
from taid.schedule import Adaptive
from taid.studies import jobs


@dataclass(frozen=True)
class Scale:
    points: int  # of the phase diagram along either axis, and the greatest T
    size: int  # N, labels of a problem
    draws: int  # directions of the labels, or rows of logits
    lengths: tuple[int, ...]  # T
    updates: int  # of the adaptive schedule


SCALES = {"smoke": Scale(12, 4, 5, (4, 16), 300), "cpu": Scale(100, 16, 100, (4, 16, 64, 256), 15_000)}


def phase_diagram(scale, rng):
    lengths = np.arange(1, scale.points + 1)
    signals = np.geomspace(1.05, 1.1 * scale.points, scale.points)
    spectrum = np.geomspace(1, 100, scale.size)
    repeated, taid = theory.phase_diagram(rng.normal(size=scale.size), spectrum, lengths, signals)
    bound = np.array([theory.non_collapse_bound(theory.linear_schedule(last)) for last in lengths])[:, None]
    yield "self_distillation", "phase diagram", "collapsed", repeated.mean(), "share of points"
    yield "taid", "phase diagram", "collapsed", taid.mean(), "share of points"
    yield "taid", "phase diagram", "collapsed_above_bound", taid[signals > bound].sum(), "points"
    yield "taid", "phase diagram", "survived_below_root", (~taid)[signals**2 <= bound].sum(), "points"
    yield "taid", "phase diagram", "collapsed_unlike_self_distillation", (taid & ~repeated).sum(), "points"


def tightness(scale, rng):
    directions = rng.normal(size=(scale.draws, scale.size))
    for last in scale.lengths:
        schedule = theory.linear_schedule(last)
        for condition in (1, 1e2, 1e4, 1e6, 1e8):
            critical = theory.critical_signal(directions, np.geomspace(1, condition, scale.size), schedule)
            ratio = critical / theory.non_collapse_bound(schedule)
            task = f"T={last} κ={condition:g}"
            for name, summary in (("lowest", np.min), ("median", np.median), ("highest", np.max)):
                yield "taid", task, f"{name}_critical_signal", summary(ratio), "of the bound"


def objective(scale, rng):
    student, teacher = 2 * rng.normal(size=(2, scale.draws, 50))
    steps, reverse = 2.0 ** -np.arange(4, 12), theory.rkl_gradient(student, teacher)
    taid = [(t, theory.taid_gradient(student, teacher, t)) for t in steps]
    first = np.array([np.abs(g - t * reverse).sum(-1) for t, g in taid])  # [t, rows]
    second = np.array([np.abs(g - theory.taid_expansion(student, teacher, t)).sum(-1) for t, g in taid])
    bounds = np.array([t * theory.taid_remainder(student, teacher, t) for t in steps])
    for name, error in (("first", first), ("second", second)):
        order = np.polyfit(np.log(steps), np.log(error.mean(-1)), 1)[0]
        yield "taid", "expansion", f"error_of_{name}_order", order, "power of t"
    yield "taid", "expansion", "remainder", (first / bounds).max(), "largest ratio to its bound"


def open_loop(scale, rng):
    n = np.arange(1, scale.updates + 1)
    noise = np.exp(0.05 * rng.normal(size=scale.updates))
    losses = (2.2 + 1.8 * (1 + n / 30) ** -0.25) * noise  # nats: a power law, as of a language model
    for product in (1, 4, 7.5, 20):  # αN; the paper's α with N = 15,000 gives 7.5
        schedule = Adaptive(t_start=0.4, alpha=product / scale.updates)
        states = [schedule.init()]
        for progress, loss in zip(n / scale.updates, losses, strict=True):
            states.append(schedule.update(states[-1], loss, progress))
        t, momentum = np.array([(state.t, abs(state.momentum)) for state in states]).T
        error = np.abs(t - theory.open_loop(scale.updates, schedule.alpha, 0.4)).max()
        bound = theory.open_loop_error(momentum.max(), schedule.alpha, 0.4)
        lead = (t - theory.linear_schedule(scale.updates, 0.4)).max()
        yield "taid", f"αN={product:g}", "open_loop_error", error, "difference in t"
        yield "taid", f"αN={product:g}", "open_loop_error_bound", bound, "difference in t"
        yield "taid", f"αN={product:g}", "lead_over_linear", lead, "difference in t"


STUDIES = (phase_diagram, tightness, objective, open_loop)


def cell_config(study, scale: str) -> dict:
    """Everything that decides the numbers of a cell."""
    return {"study": study.__name__, "seed": 0, **asdict(SCALES[scale])}


def cell(study, scale: str) -> list[Row]:
    start = time.perf_counter()
    names = ("method", "task", "metric", "value", "unit")
    found = list(study(SCALES[scale], np.random.default_rng(0)))
    return cell_rows(
        [dict(zip(names, (*number[:3], float(number[3]), number[4]), strict=True)) for number in found],
        cell_config(study, scale),
        experiment="theory",
        scale=scale,
        teacher="labels",
        student="fit",
        seed=0,
        higher_is_better=False,
        seconds=time.perf_counter() - start,
    )


def main(name: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    for study in STUDIES:
        rows = cell(study, name)
        if rows[0].config_hash not in finished(folder / "theory.jsonl"):
            append_once(folder / "theory.jsonl", rows)
        for row in rows:
            print(f"{row.method:18}{row.task:16}{row.metric:36}{row.value:12.6g} {row.unit}")


if __name__ == "__main__":
    jobs.command(main, __doc__.splitlines()[0], SCALES, workers=0)
