"""Tables 4 and 9: TAID-LLM, and what the paper's reviewers missed beside it.

Claim of the paper: its student, Qwen2-1.5B distilled by TAID from Qwen2-72B, leads the small models on LightEval.

    python paper_experiments/04_table4_taid_llm.py --scale smoke           # 1 minute
    python paper_experiments/04_table4_taid_llm.py --scale cpu --seeds 3   # see `make help`
    python paper_experiments/04_table4_taid_llm.py --scale paper           # GPUs: docs/paper_scale.md
    python -m analysis table4

The teacher is SmolLM2-135M-Instruct, the student four of its thirty layers, healed once. Two arms: running text, as
the released model's tag says, and instructions. In each TAID, KL, cross-entropy alone; beside them the student before
training. The rate of each is chosen by the arm's own held-out loss on validation, with a seed that is never
tested. TAID's student of seed 0 is saved with a model card, as others would load it.
"""

from pathlib import Path

from taid.studies import jobs, study, taid_llm
from taid.studies.taid_llm import BOTH, METHODS, SETTINGS, Run, TaidLlm, measure, rows


def main(scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    setting, path = SETTINGS[scale], folder / "table4.jsonl"
    splits = [f"{arm}-{split}" for arm in setting.arms for split in ("train", "validation", "test")]
    logits = [(setting.teacher, split) for split in splits]
    study.prepare_all(
        TaidLlm, scale, workers, [("tasks", "tasks", 0), ("student", setting.student, 0)], logits
    )

    references = [Run(scale, reference, 0, 0.0, 0, BOTH) for reference in study.REFERENCES]
    cells = {(run, "test"): [f"table4_{arm}" for arm in setting.arms] for run in references}
    jobs.evaluate(cells, measure, rows, path, workers, "references")

    for arm in setting.arms:
        best = chosen(setting, arm, path, workers)

        runs = [
            Run(scale, method, seed, best[method], setting.steps, arm)
            for seed in range(seeds)
            for method in METHODS
        ]
        cells = {(run, "test"): [f"table4_{arm}"] for run in runs}
        jobs.evaluate(cells, measure, rows, path, workers, f"{arm}: students")
        if jobs.planning():
            continue
        made = taid_llm.at(scale).release(Run(scale, "taid", 0, best["taid"], setting.steps, arm))
        print(f"TAID's student of the {arm}, with its card: {made}")


def chosen(setting, arm: str, path: Path, workers: jobs.Workers) -> dict[str, float]:
    """Method → learning rate; of one there is nothing to choose."""
    if len(setting.learning_rates) == 1:
        return dict.fromkeys(METHODS, setting.learning_rates[0])
    grid = [
        Run(setting.scale, method, jobs.TUNING_SEEDS[0], rate, setting.search_steps, arm)
        for method in METHODS
        for rate in setting.learning_rates
    ]
    search = f"table4_{arm}_search"
    cells = {(run, "validation"): [search] for run in grid}
    jobs.evaluate(cells, measure, rows, path, workers, f"{arm}: learning rates")
    found = jobs.measured(path, grid, search, "held_out_loss", arm)
    return jobs.best(found, lambda run: run.method, min)


if __name__ == "__main__":
    jobs.command(main, "Tables 4 and 9: TAID-LLM.", SETTINGS, seeds=1)
