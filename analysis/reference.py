"""The paper's numbers: `analysis/paper/*.csv`, transcribed from its tables (arXiv 2501.16937v2)."""

from pathlib import Path

import pandas as pd

from analysis.rows import Pair

FOLDER = Path(__file__).parent / "paper"


def table1() -> dict[Pair, dict[str, float]]:
    """MT-Bench score (1–10, higher is better) by teacher–student pair and method, in the paper's order."""
    scores: dict[Pair, dict[str, float]] = {}
    for row in pd.read_csv(FOLDER / "table1_instruction_tuning.csv").itertuples():
        scores.setdefault(Pair(row.teacher, row.student), {})[row.method] = row.mt_bench
    return scores
