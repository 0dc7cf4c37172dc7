"""Render results.

    python -m analysis table1 [--scale cpu] [--results results]   # writes table1.md and .png beside the rows
    python -m analysis claims [--scale cpu] [--results results]   # prints every claim with its verdict
"""

import argparse
from pathlib import Path

from analysis import rows, table1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Render results.")
    parser.add_argument("command", choices=["table1", "claims"])
    parser.add_argument("--scale", default="cpu", help="smoke, cpu or paper (default: cpu)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: results/")
    arguments = parser.parse_args()
    path, scale = arguments.results / "table1.jsonl", arguments.scale
    frame = rows.load(path, scale)
    if frame.empty:
        parser.exit(1, f"{path} has no rows of scale {scale}; run `make table1 SCALE={scale}` first\n")
    if arguments.command == "table1":
        table1.write(frame, arguments.results, scale)
    else:
        print(table1.claims(frame), end="")


if __name__ == "__main__":
    main()
