"""The paper's numbers: `analysis/paper/*.csv`, transcribed from its tables (arXiv 2501.16937v2)."""

from pathlib import Path

import pandas as pd

from analysis.rows import Pair

FOLDER = Path(__file__).parent / "paper"
IMAGES = {"table7": "table7_cifar100", "table8": "table8_imagenet"}  # table → its file


def table1() -> dict[Pair, dict[str, float]]:
    """MT-Bench score (1–10, higher is better) by teacher–student pair and method, in the paper's order."""
    scores: dict[Pair, dict[str, float]] = {}
    for row in pd.read_csv(FOLDER / "table1_instruction_tuning.csv").itertuples():
        scores.setdefault(Pair(row.teacher, row.student), {})[row.method] = row.mt_bench
    return scores


def table2() -> dict[str, dict[str, float]]:
    """Score [percent] by task of the leaderboard, "average" last, and method."""
    scores: dict[str, dict[str, float]] = {}
    for row in pd.read_csv(FOLDER / "table2_pretraining.csv").itertuples():
        scores.setdefault(row.task, {})[row.method] = row.score
    return scores


def table3() -> dict[str, dict[str, float]]:
    """Mean probability by part ("head": top 10 tokens; "tail": 80–100th percentile) and method."""
    masses = pd.read_csv(FOLDER / "table3_probability_mass.csv", index_col="method")
    columns = {"head": "head_top10_mass", "tail": "tail_80_100_percentile_mass"}
    return {part: masses[column].to_dict() for part, column in columns.items()}


def table4() -> dict[str, float]:
    """LightEval average [percent] of small models, TAID-LLM-1.5B last."""
    return dict(pd.read_csv(FOLDER / "table4_taid_llm.csv").itertuples(index=False, name=None))


def table5() -> dict[str, float]:
    """Average of the Open VLM Leaderboard [percent] by model; Table 10 has its eight benchmarks one by one."""
    return pd.read_csv(FOLDER / "table5_taid_vlm.csv", index_col="model").open_vlm_lb.to_dict()


def table6() -> dict[str, dict[str, float]]:
    """LAMBADA accuracy (our reading) [percent] of Pythia 70M, by method and teacher, smallest teacher first."""
    scores: dict[str, dict[str, float]] = {}
    for row in pd.read_csv(FOLDER / "table6_capacity_gap.csv").itertuples():
        scores.setdefault(row.method, {})[row.teacher] = row.score
    return scores


def images(table: str) -> dict[Pair, dict[str, float]]:
    """Top-1 accuracy [percent] of Table 7 or 8, "table7" or "table8", by teacher–student pair and method."""
    accuracy: dict[Pair, dict[str, float]] = {}
    for row in pd.read_csv(FOLDER / f"{IMAGES[table]}.csv").itertuples():
        accuracy.setdefault(Pair(row.teacher, row.student), {})[row.method] = row.top1_accuracy
    return accuracy


METHODS = tuple(next(iter(table1().values())))  # the paper's eleven, in its order
TABLE2_METHODS = tuple(table2()["average"])
# The released Pythia 70M, not distilled, on lambada_openai: accuracy and standard error [percent]. Not in the paper.
PYTHIA_70M = (18.46, 0.54)
