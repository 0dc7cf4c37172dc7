"""What a checkpoint holds of the objective, and which checkpoints are whole.

Beside the Trainer's own files lie the objective's state and, of each rank, its replay buffer. The state is
written last, so that a checkpoint that a kill cut short has none; it knows the size of every other file, so that one
that a full disk or a copy cut short is known as well.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from taid.files import write_whole
from taid.objectives import Objective

STATE, BUFFER = "distillation_state.json", "rollouts-{rank}.safetensors"
KEYS = {"method", "objective", "rollouts", "ranks", "weights_only", "position", "data", "optimizer", "files"}
GROUPS = {  # of settings that a run and its checkpoint have alike -> why, and what else can be done
    "data": "so that it would see other examples: resume with the same, pass ignore_data_skip=True to begin the data "
    "anew, or",
    "optimizer_settings": "which would be passed over, for the checkpoint's optimizer and schedule hold theirs: resume "
    "with the same, or",
    "models": "which no checkpoint holds, so that it would be another run: resume with the same, or",
}


def last_checkpoint(output_dir: str) -> str | None:
    """The newest whole checkpoint of a DistillationTrainer in `output_dir`, or None; it warns of damaged ones."""
    folders = [state.parent for state in Path(output_dir).glob(f"checkpoint-*/{STATE}")]
    # a copy, "checkpoint-9-old", is none
    own = [folder for folder in folders if re.fullmatch(r"checkpoint-\d+", folder.name)]
    for folder in sorted(own, key=lambda folder: int(folder.name.split("-")[1]), reverse=True):
        fault = _fault(folder)
        if fault is None:
            return str(folder)
        warnings.warn(f"{fault}: the checkpoint before it is taken", stacklevel=2)
    return None


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write STATE, the last file of a checkpoint, with the sizes of all others."""
    write_whole(folder / STATE, json.dumps(state | {"files": _sizes(folder)}))


def _sizes(folder: Path) -> dict[str, int]:
    """The bytes of each file but STATE."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / STATE]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _fault(folder: Path) -> str | None:
    """What is damaged of a checkpoint with a STATE, if anything is. Older ones do not tell sizes."""
    try:
        written = json.loads((folder / STATE).read_text()).get("files", {})
    except (ValueError, AttributeError):
        return f"{folder / STATE} is damaged"
    there = _sizes(folder)
    for name, size in written.items():
        if there.get(name) != size:
            return f"{folder / name} is damaged, {there.get(name, 'none')} of {size} bytes are there"
    return None


def read_state(folder: Path, objective: Objective, settings: dict[str, dict] | None = None) -> dict:
    """What STATE in `folder` holds. Raises ValueError for a checkpoint that no run of `objective` with `settings`, of
    GROUPS, can go on from: one that is not there, cut short or damaged, of an older version, without the optimizer's
    state, of another objective, or of other settings. (What either does not tell is not compared.)"""
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in folder.parent.glob("checkpoint-*"))) or "no checkpoint"
        raise ValueError(f"{folder} is not there, but {there}: name one of these, or pass True for the last")
    if not (folder / STATE).exists():
        raise ValueError(
            f"{folder} has no {STATE}: it was cut short, or is not of a DistillationTrainer; take another"
        )
    if (fault := _fault(folder)) is not None:
        raise ValueError(f"{fault}: take another checkpoint")
    state = json.loads((folder / STATE).read_text())
    if missing := sorted(KEYS - state.keys()):
        raise ValueError(
            f"{folder} was written by an older version of taid, without {', '.join(missing)}: begin a new run from its "
            f"weights, from_pretrained('{folder}')"
        )
    if state["method"] != repr(objective):
        raise ValueError(
            f"{folder} is a checkpoint of {state['method']}, and this trainer's method is {objective!r}: resume "
            f"with the method it was written by, or begin a new run from its weights, from_pretrained('{folder}')"
        )
    for group, values in (settings or {}).items():
        for name, value in values.items():
            if (before := state.get(group, {}).get(name, value)) != value:
                raise ValueError(
                    f"{folder} is of a run with {name} {before}, and this one has {value}, {GROUPS[group]} begin a "
                    f"new run from its weights, from_pretrained('{folder}')"
                )
    if state["weights_only"]:
        raise ValueError(
            f"{folder} holds no optimizer (save_only_model=True), so that no run can go on from it: begin a new "
            f"one from its weights, from_pretrained('{folder}')"
        )
    return state


def check_optimizer(folder: Path, state: dict, optim: str) -> None:
    """Raises ValueError for an optimizer that cannot go on from what another left in the checkpoint."""
    before, now = (
        "adamw" if name.startswith("adamw_torch") else name for name in (state["optimizer"], optim)
    )
    if before != now:
        raise ValueError(
            f"{folder} holds the state of optim={state['optimizer']!r}, which {optim!r} cannot go on from: resume with "
            f"the same, or begin a new run from its weights, from_pretrained('{folder}')"
        )


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
