"""Independent jobs over workers (`taid.studies.launchers`), with progress and the time left; the cells of a table."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, TypeVar

from taid import results
from taid.studies.launchers import LAUNCHERS, Absent, Died
from taid.studies.progress import Progress

REFERENCE = Path(__file__).parents[2] / "results"  # the committed rows
TUNING_SEEDS = (100, 101, 102)  # learning rates are chosen on them, or the first; never tested
C = TypeVar("C")  # a cell of a table: a method and what else has a learning rate of its own
R = TypeVar("R")  # a run


_plan: ContextVar[dict | None] = ContextVar("plan", default=None)  # cells of a command that is only planned


class Refused(ValueError):
    """What cannot be done as asked; the message is the sentence that says what to do."""


class Unfinished(Exception):
    """Cells of other shards are missing; the message says how to go on."""


class Workers(NamedTuple):
    """Who does the jobs of a command."""

    at_a_time: int
    launcher: str = "local"
    shard: tuple[int, int] = (1, 1)  # (i, n): every n-th cell from the i-th on


class Arguments(NamedTuple):
    """What a command was given."""

    scale: str
    seeds: int  # 0 … seeds − 1
    workers: Workers
    results: Path


def parser(description: str, scales: Iterable[str], seeds: int = 0, workers: int = 0) -> ArgumentParser:
    """The command line of whatever writes rows; without a default, `seeds` and `workers` are not asked for."""
    made = ArgumentParser(description=description)
    made.add_argument("--scale", choices=[*scales], default="cpu")
    made.add_argument("--results", type=Path, help="folder of the rows (default: runs/<scale>)")
    if seeds:
        made.add_argument("--seeds", type=tested, default=seeds, help=f"seeds 0 … n − 1 (default: {seeds})")
    if workers:
        made.add_argument("--workers", type=positive, default=workers, help="jobs at a time, of one thread")
        made.add_argument("--launcher", choices=[*LAUNCHERS], default="local", help="who does the jobs")
        made.add_argument("--shard", type=shard, default=(1, 1), help="i/n: the i-th of n parts of the cells")
        made.add_argument("--dry-run", action="store_true", help="say what it would take, and stop")
    return made


def command(
    main: Callable,
    description: str,
    scales: Iterable[str],
    seeds: int = 0,
    workers: int = 2,
    tunes: bool = False,
) -> None:
    """Run main(*Arguments) as the command line says; ends with a sentence where that makes no sense.

    A study that `tunes` takes the learning rates that are committed; its main(…, tune) is told to search again.
    """
    made = parser(description, scales, seeds, workers)
    if tunes:
        made.add_argument("--tune", action="store_true", help="search the learning rates again")
    given = made.parse_args()
    folder = rows_folder(made, given.scale, given.results)
    who = Workers(given.workers, given.launcher, given.shard) if workers else Workers(1)
    asked: tuple = Arguments(given.scale, vars(given).get("seeds", 0), who, folder)
    asked = (*asked, *([given.tune] if tunes else []))
    try:
        if vars(given).get("dry_run"):
            print(described(planned(main, *asked), f"{made.prog} --scale {given.scale}"))
        else:
            main(*asked)
    except Unfinished as message:
        print(f"{made.prog}: {message}")
    except (Refused, Absent, Died, results.Damaged, OSError) as error:
        made.exit(2, f"{made.prog}: {error}\n")


def planned(main: Callable, *arguments) -> dict[tuple, list[str]]:
    """{job: its experiments} of all cells of a command, of which none is run; whatever is chosen among runs is the
    first. Nothing is made, fetched or written."""
    token = _plan.set({})
    try:
        main(*arguments)
        return _plan.get() or {}
    finally:
        _plan.reset(token)


def planning() -> bool:
    """Whether a command is only planned."""
    return _plan.get() is not None


def described(cells: Mapping[tuple, Sequence[str]], command: str) -> str:
    """What a command would do, cell by cell, and what it takes as its settings say."""
    lines = [f"{command}: {sum(map(len, cells.values()))} cells"]
    lines += [f"  {', '.join(experiments)}: {' '.join(map(str, job))}" for job, experiments in cells.items()]
    settings = {run.setting.digest: run.setting for run, *_ in cells}
    runs = {
        name: [r for r in dict.fromkeys(run for run, *_ in cells) if r.setting.digest == name]
        for name in settings
    }
    return "\n".join([*lines, *(settings[name].takes(runs[name]) for name in settings)])


def rows_folder(made: ArgumentParser, scale: str, given: Path | None) -> Path:
    """The folder of the rows. Ends the command where smoke rows, which mean nothing, would join reference rows."""
    folder = given or Path("runs") / scale
    if scale == "smoke" and REFERENCE in (folder.resolve(), *folder.resolve().parents):
        made.error(f"rows of the scale smoke mean nothing: they do not go into {folder}, but into runs/smoke")
    if folder.exists() and not folder.is_dir():
        made.error(f"{folder} is no folder: --results names the folder that the rows go into")
    return folder


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def tested(text: str) -> int:
    """How many seeds to test, 0 … n − 1: none of `TUNING_SEEDS`."""
    if (count := positive(text)) > TUNING_SEEDS[0]:
        raise ArgumentTypeError(
            f"seed {TUNING_SEEDS[0]} chooses learning rates and is never tested: ask for fewer"
        )
    return count


def shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n", 1 ≤ i ≤ n."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ArgumentTypeError(f"{text!r} is no part such as 1/4 … 4/4")
    return int(part), int(parts)


def share(workers: Workers | int) -> tuple[int, int]:
    """(i, n): the cells are n parts, and the i-th is this command's; (1, 1) for all."""
    return workers.shard if isinstance(workers, Workers) else (1, 1)


def run(
    function: Callable, jobs: Sequence[tuple], workers: Workers | int, title: str
) -> Iterator[tuple[tuple, Any]]:
    """Yield (job, function(*job)) as the jobs finish, in any order; they start in the order given. A number of
    workers means processes of this machine.

    `function` is a module's own function, so that a fresh process can import it. A job's exception is raised here
    when its turn comes, after which no job starts but the few that the workers hold already; what was yielded before
    it is kept.
    """
    if not jobs or planning():
        return
    who = workers if isinstance(workers, Workers) else Workers(workers)
    launched = LAUNCHERS[who.launcher](function, jobs, who.at_a_time)
    progress = Progress(title, len(jobs), "job")
    with closing(launched):
        for job, value in launched:
            yield job, value
            progress.advance(note=" ".join(map(_name, job)))


def _name(part: object) -> str:
    """Of a job's part, as people read it."""
    return part.__name__ if isinstance(part, type) else str(part)


def evaluate(
    cells: Mapping[tuple, Sequence[str]],
    measure: Callable,
    rows: Callable,
    path: Path,
    workers: Workers | int,
    title: str,
) -> None:
    """Run the jobs with cells that `path` has no rows of, and append their rows as they finish.

    Of a shard it is its part of the jobs. Raises Unfinished if other parts are missing then, where the split is
    "validation", to choose by: a choice from a part of the runs would be another.

    `cells` maps a job to the experiments that its numbers belong to; a job starts with its run, of which
    `config()` together with the experiment makes a cell's hash. measure(*job) returns (values, seconds), and
    rows(run, experiment, values, seconds) the cell's rows.
    """
    part, parts = share(workers)
    todo = _unfinished(path, cells, [*cells][part - 1 :: parts])
    if (plan := _plan.get()) is not None:
        for job in todo:
            plan.setdefault(job, []).extend(cells[job])
        return
    for job, (values, seconds) in run(measure, todo, workers, title):
        for experiment in cells[job]:
            results.append_once(path, rows(job[0], experiment, values, seconds))
    if missing := _unfinished(path, cells, [job for job in cells if parts > 1 and "validation" in job]):
        raise Unfinished(
            f"{path} lacks {len(missing)} of the {len(cells)} runs of {title!r}, and what follows is chosen by all of "
            "them: run every shard (--shard 1/n … n/n), bring their rows together (python -m taid.results merge), and "
            "give the same command again"
        )


def _unfinished(path: Path, cells: Mapping[tuple, Sequence[str]], some: Iterable[tuple]) -> list[tuple]:
    """The jobs of `some` with a cell that `path` has no rows of."""
    done = results.finished(path)
    return [
        job
        for job in some
        if any(results.config_hash(job[0].config() | {"experiment": e}) not in done for e in cells[job])
    ]


def measured(
    path: Path, runs: Iterable, experiment: str | Callable[[Any], str], metric: str, task: str
) -> dict:
    """{run: value} of one metric and task of an experiment, or of each run's own, for the runs that have rows in
    `path`; a later row wins. What is planned counts as 0."""
    values = {r.config_hash: r.value for r in results.read(path) if (r.metric, r.task) == (metric, task)}
    of = experiment if callable(experiment) else lambda run: experiment
    hashes = {run: results.config_hash(run.config() | {"experiment": of(run)}) for run in runs}
    planned = {job[0]: 0.0 for job in _plan.get() or ()}
    return {
        run: values.get(h, planned.get(run)) for run, h in hashes.items() if h in values or run in planned
    }


def best(found: Mapping, cell: Callable, order: Callable) -> dict:
    """{cell(run): the learning rate with the best mean over seeds}, from {run: value}; `order` is min or max."""
    cells: dict = {}
    for run, value in found.items():
        cells.setdefault(cell(run), {}).setdefault(run.learning_rate, []).append(value)
    return {name: order(rates, key=lambda rate: mean(rates[rate])) for name, rates in cells.items()}


def halving(
    rates: Mapping[C, Sequence[float]],
    run: Callable[[C, float, int], R],
    seeds: Sequence[int],
    scores: Callable[[Sequence[R]], Mapping[R, float]],
) -> dict[C, float]:
    """{cell: its learning rate}, by one rule for all: run(cell, rate, seed) of every rate on the first seed, of the
    better half on the other seeds too; the best mean score wins. `scores` measures what it has not measured before.
    """
    left = dict(rates)
    for some, keep in ((seeds[:1], lambda count: max(1, count // 2)), (seeds, lambda count: 1)):
        runs = {
            (cell, rate): [run(cell, rate, s) for s in some] for cell, each in left.items() for rate in each
        }
        found = scores([one for ones in runs.values() for one in ones])
        score = {each: mean(found[one] for one in ones) for each, ones in runs.items()}
        for cell, each in left.items():
            order = sorted(each, key=lambda rate: score[cell, rate], reverse=True)
            left[cell] = order[: keep(len(order))]
    return {cell: rate for cell, (rate,) in left.items()}


def searched(
    path: Path,
    experiment: str | Callable[[R], str],
    metrics: Mapping[str, int],
    fill: Callable[[Sequence[R]], None],
    task: str = "average",
    afresh: bool = False,
) -> Callable[[Sequence[R]], Mapping[R, float]]:
    """The `scores` that `halving` asks for: of each run the sum of its metrics, each times its sign.

    They are in `path` or, unless `afresh`, among the committed rows; fill(runs) appends to `path` what is in neither of
    all those that are not committed, so that a shard's part of them is the same after a kill.
    """
    reference = REFERENCE / path.name
    committed = [] if afresh or reference.resolve() == path.resolve() else [reference]

    def known(runs: Sequence[R], paths: Sequence[Path]) -> dict[R, float]:
        sums = dict.fromkeys(runs, 0.0)
        for metric, sign in metrics.items():
            found: dict[R, float] = {}
            for each in paths:
                found |= measured(each, runs, experiment, metric, task)
            sums = {run: before + sign * found[run] for run, before in sums.items() if run in found}
        return sums

    def scores(runs: Sequence[R]) -> dict[R, float]:
        if known(runs, [*committed, path]).keys() < {*runs}:
            kept = known(runs, committed) if committed else {}
            fill([run for run in runs if run not in kept])
        return known(runs, [*committed, path])

    return scores


def rows(folder: Path, table: str) -> list[results.Row]:
    """The committed rows of a table, then those in a folder, so that what was measured there wins."""
    return [*results.read(REFERENCE / f"{table}.jsonl"), *results.read(folder / f"{table}.jsonl")]
