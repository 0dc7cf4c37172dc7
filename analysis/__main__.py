"""Render results.

python -m analysis table1 [--scale cpu] [--results runs/cpu]   # writes table1.md and .png beside the rows
python -m analysis report --results results   # all that has rows; the committed ones
python -m analysis claims --results results   # every claim with rows, judged
"""

import argparse
from pathlib import Path

from analysis import ablations, adaptivity, figure2, rounds, rows, speed, table1, table2, table3, table6

TABLES = {
    "table1": table1, "table2": table2, "table3": table3, "table6": table6, "rounds": rounds, "figure2": figure2,
    "adaptivity": adaptivity, "ablations": ablations, "speed": speed,
}  # fmt: skip
TARGETS = {"speed": "bench"}  # table → the target of make that measures its rows, where the names differ
SCALES = ("smoke", "cpu", "gpu", "paper")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Render results.")
    parser.add_argument("command", choices=[*TABLES, "report", "claims"])
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--results", type=Path, help="folder of the rows (default: runs/<scale>)")
    arguments = parser.parse_args()
    scale = arguments.scale
    folder = arguments.results or Path("runs") / scale
    asked = [arguments.command] if arguments.command in TABLES else TABLES
    frames = {table: rows.load(folder / f"{table}.jsonl", scale) for table in asked}
    frames = {table: frame for table, frame in frames.items() if not frame.empty}
    if not frames:
        first = next(iter(asked))
        place = f"{folder / first}.jsonl has" if len(asked) == 1 else f"{folder} has"
        command = f"make {TARGETS.get(first, first)} SCALE={scale} RESULTS={folder}"
        parser.exit(1, f"{place} no rows of scale {scale}; `{command}` makes them\n")
    for table, frame in frames.items():
        if arguments.command == "claims":
            print(f"## {TABLES[table].TITLE}\n\n{TABLES[table].claims(frame)}")
        else:
            TABLES[table].write(frame, folder, scale)


if __name__ == "__main__":
    main()
