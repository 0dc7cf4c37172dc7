"""Render results.

python -m analysis table1 [--scale cpu] [--results results]   # writes table1.md and .png beside the rows
python -m analysis report [--scale cpu] [--results results]   # all that has rows
python -m analysis claims [--scale cpu] [--results results]   # every claim with rows, judged
"""

import argparse
from pathlib import Path

from analysis import ablations, adaptivity, figure2, rounds, rows, speed, table1, table2, table3, table6

TABLES = {
    "table1": table1, "table2": table2, "table3": table3, "table6": table6, "rounds": rounds, "figure2": figure2,
    "adaptivity": adaptivity, "ablations": ablations, "speed": speed,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Render results.")
    parser.add_argument("command", choices=[*TABLES, "report", "claims"])
    parser.add_argument("--scale", default="cpu", help="smoke, cpu or paper (default: cpu)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: results/")
    arguments = parser.parse_args()
    folder, scale = arguments.results, arguments.scale
    asked = [arguments.command] if arguments.command in TABLES else TABLES
    frames = {table: rows.load(folder / f"{table}.jsonl", scale) for table in asked}
    frames = {table: frame for table, frame in frames.items() if not frame.empty}
    if not frames:
        first = next(iter(asked))
        parser.exit(1, f"{folder} has no rows of scale {scale}; run `make {first} SCALE={scale}` first\n")
    for table, frame in frames.items():
        if arguments.command == "claims":
            print(f"## {TABLES[table].TITLE}\n\n{TABLES[table].claims(frame)}")
        else:
            TABLES[table].write(frame, folder, scale)


if __name__ == "__main__":
    main()
