"""What a checkpoint holds of the objective, and which checkpoints are whole.

Beside the Trainer's own files lie the objective's state and, of each rank, its replay buffer. The state is
written last, so that a checkpoint that a kill cut short has none.
"""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from taid.objectives import Objective

STATE, BUFFER = "distillation_state.json", "rollouts-{rank}.safetensors"


def last_checkpoint(output_dir: str) -> str | None:
    """The newest whole checkpoint of a DistillationTrainer in `output_dir`, or None."""
    states = Path(output_dir).glob(f"checkpoint-*/{STATE}")
    numbered = {state.parent.name.split("-")[1]: state.parent for state in states}
    steps = [number for number in numbered if number.isdigit()]
    return str(numbered[max(steps, key=int)]) if steps else None


def read_state(folder: Path, objective: Objective) -> dict:
    """What STATE in `folder` holds. Raises ValueError for a checkpoint that no run of `objective` can go on
    from: one cut short, without the optimizer's state, or of another objective."""
    if not (folder / STATE).exists():
        raise ValueError(
            f"{folder} has no {STATE}: it was cut short, or is not of a DistillationTrainer; take another"
        )
    state = json.loads((folder / STATE).read_text())
    if state["method"] != repr(objective):
        raise ValueError(
            f"{folder} is a checkpoint of {state['method']}, and this trainer's method is {objective!r}: resume "
            f"with the method it was written by, or begin a new run from its weights, from_pretrained('{folder}')"
        )
    if state["weights_only"]:
        raise ValueError(
            f"{folder} holds no optimizer (save_only_model=True), so that no run can go on from it: begin a new "
            f"one from its weights, from_pretrained('{folder}')"
        )
    return state


def read_buffer(folder: Path, rank: int, ranks: int, written: int) -> dict[str, Tensor]:
    """The replay buffer of a rank, one of `ranks`, from a checkpoint that `written` ranks wrote.

    Raises ValueError where the numbers differ and there is a buffer to share out: no run goes on as it was.
    """
    if ranks == written:
        return load_file(folder / BUFFER.format(rank=rank))
    if any(load_file(folder / BUFFER.format(rank=other)) for other in range(written)):
        raise ValueError(
            f"{folder} holds the replay buffers of {written} rank(s), and this run has {ranks}: resume on {written}"
        )
    return {}
