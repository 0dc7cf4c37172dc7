"""What the paper's tables take at the paper's own scale, before they cost money.

    python paper_experiments/00_what_it_takes.py               # the table of docs/paper_scale.md: seconds, on any machine
    python paper_experiments/01_table1_….py --scale paper --dry-run   # one table, cell by cell, and what is missing here

Cells are those that the tables' own commands would run with one seed; nothing is run, fetched or written. Formulas
stand in `taid.studies.cost`. Table 3 measures students of Table 1 and trains none.
"""

import runpy
from pathlib import Path

from taid.studies import cost, jobs
from taid.studies.study import REFERENCES

SCRIPTS = {
    "Table 1": "01_table1_instruction_tuning.py",
    "Table 2": "02_table2_continued_pretraining.py",
    "Table 4": "04_table4_taid_llm.py",
    "Table 5": "05_table5_image_text.py",
    "Table 6 and its map": "06_table6_capacity_gap.py",
    "Table 7": "07_table7_cifar100.py",
    "Table 8": "08_table8_imagenet.py",
}
HEADER = (
    "item",
    "student ← teacher",
    "runs",
    "10⁹ tokens or images, all",
    "FLOPs, all",
    *cost.PARTS,
    "hours, all",
)


def students(script: str) -> list:
    """The runs of a table that train a student, each once."""
    main = runpy.run_path(str(Path(__file__).parent / script))["main"]
    cells = jobs.planned(main, "paper", 1, 1, Path("nowhere"))
    return [run for run in dict.fromkeys(job[0] for job in cells) if run.method not in REFERENCES]


def lines(item: str, runs: list) -> list[list[str]]:
    """One for each pair; memory of its largest run [GiB]."""
    pairs: dict[tuple[str, str], list[cost.Bill]] = {}
    for run in runs:
        teacher = run.teacher if run.objective().uses_teacher else "no teacher"
        pairs.setdefault((run.student, teacher), []).append(run.setting.bill(run))
    found = []
    for (student, teacher), bills in pairs.items():
        flops, hours = cost.summed(bills)
        largest = max((each.memory for each in bills), key=lambda parts: parts["total"])
        read = sum(each.read for each in bills) / 1e9
        parts = [short(largest[part] / cost.GIB, 1) if part in largest else "—" for part in cost.PARTS]
        amounts = [str(len(bills)), short(read, 1), f"{flops:.1e}"]
        found.append([item, f"{student} ← {teacher}", *amounts, *parts, short(hours, 0)])
    return found


def short(value: float, digits: int) -> str:
    """So many digits after the point, but one that counts of what would be 0."""
    return f"{value:,.{digits}f}" if value == 0 or value >= 0.5 * 10**-digits else f"{value:.1g}"


def table() -> str:
    """All items, as Markdown."""
    body = [line for item, script in SCRIPTS.items() for line in lines(item, students(script))]
    rows = [list(HEADER), ["---"] * len(HEADER), *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
