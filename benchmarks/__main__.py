"""Speed and memory, side by side on one thread.

    python -m benchmarks peers     # once: the libraries to compare with, in a folder of their own
    python -m benchmarks losses [--scale smoke|cpu|gpu] [--results runs/cpu]
    python -m benchmarks cost   [--scale smoke|cpu|gpu] [--results runs/cpu]
    python -m analysis speed    [--scale smoke|cpu|gpu] [--results runs/cpu]

`losses`: time, memory and gradients of the losses, alone and with the linear head. `cost`: seconds per
training step of KL, TAID, DistiLLM and GKD. Both print a table per cell and append its rows to
<results>/speed.jsonl; a cell is skipped if this very code has measured it there.
"""

from collections.abc import Callable
from pathlib import Path

from benchmarks import grid, head, losses, peers, training
from benchmarks.record import rows
from taid.studies import jobs

EXPERIMENTS: dict[str, dict[str, Callable]] = {  # command → experiment → how its cells are measured
    "losses": {
        "losses": losses.measure,
        "accuracy": losses.accuracy,
        "scaling_vocab": losses.measure,
        "scaling_rows": losses.measure,
        "head": head.measure,
    },
    "cost": {"step": training.measure, "cost": training.measure},
}


def main(command: str, scale: str, folder: Path) -> None:
    """Measure the cells of a command that have no rows yet, one by one, in a process of one thread."""
    missing = [package for package, version in peers.versions().items() if version is None]
    if missing and command == "losses":
        print(f"no rows for {', '.join(missing)}: `python -m benchmarks peers` installs what is missing")
    for experiment, measure in EXPERIMENTS[command].items():
        cells = {(cell,): [experiment] for cell in grid.cells(experiment, scale)}
        jobs.evaluate(cells, measure, rows, folder / "speed.jsonl", workers=1, title=experiment)


if __name__ == "__main__":
    parser = jobs.parser("Speed, side by side.", grid.SCALES)
    parser.add_argument("command", choices=[*EXPERIMENTS, "peers"])
    arguments = parser.parse_args()
    folder = jobs.rows_folder(parser, arguments.scale, arguments.results)
    if arguments.command == "peers":
        peers.install()
    else:
        main(arguments.command, arguments.scale, folder)
