"""Render results.

python -m analysis table1 [--scale cpu] [--results runs/cpu]   # writes table1.md and .png beside the rows
python -m analysis report --results results   # all that has rows; the committed ones
python -m analysis claims --results results   # every claim with rows, judged: README.md and forest.png
"""

import argparse
from importlib import import_module
from pathlib import Path

from analysis import page, verdicts

MODULES = (  # the pages, in the order of the verdicts
    "decide",
    "table1_tuned",
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6_tuned",
    "table6",
    "table7",
    "table8",
    "figure1",
    "figure2",
    "figure3",
    "adaptivity",
    "ablations",
    "departures",
    "rounds",
    "speed",
)
SCALES = ("smoke", "cpu", "gpu", "paper")
PAGES: dict[str, page.Page] = {name: import_module(f"analysis.{name}").PAGE for name in MODULES}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Render results.")
    parser.add_argument("command", choices=[*PAGES, "report", "claims"])
    parser.add_argument("--scale", default="cpu", choices=SCALES, help="default: cpu")
    parser.add_argument("--results", type=Path, help="folder of the rows (default: runs/<scale>)")
    arguments = parser.parse_args()
    folder = arguments.results or Path("runs") / arguments.scale
    try:
        render(arguments.command, folder, arguments.scale)
    except (ValueError, OSError) as error:
        parser.exit(2, f"analysis {arguments.command}: {error}\n")


def render(command: str, folder: Path, scale: str) -> None:
    """Write what is asked for and show its headline.

    A page without rows shows the paper's numbers alone, and what would write ours. Raises NoRows for one page, or
    verdicts, without any numbers. Of many pages those without are named and left out.
    """
    asked = [PAGES[command]] if command in PAGES else PAGES.values()
    frames, missing = [], {}
    for each in asked:
        try:
            frames.append((each, page.load(each, folder, scale)))
        except page.NoRows as error:
            missing[each.name] = error
    if command == "claims":
        if not frames:
            raise next(iter(missing.values()))
        print(verdicts.write(frames, folder, scale))
    else:
        for each, frame in frames:
            print(page.summary(each, frame, scale, page.write(each, frame, folder, scale)))
    for name, reason in missing.items():
        if command != "claims" and PAGES[name].numbers and scale != "gpu":  # whose rows are benchmarks alone
            print(page.write_unfilled(PAGES[name], reason, folder, scale))
        elif command == name:
            raise reason
        else:
            print(f"left out: {reason}")


if __name__ == "__main__":
    main()
