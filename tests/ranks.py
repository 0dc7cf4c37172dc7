"""Two gloo processes of one program, each a rank, and what they found."""

import datetime
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

RANKS, PATIENCE = 2, datetime.timedelta(minutes=5)  # a rank that waits in vain is an error, not a hang


def on_two_ranks(program: Callable, folder: Path) -> list:
    """program(rank, folder) on each of two processes of gloo: what they return, tensors included."""
    torch.multiprocessing.start_processes(_rank, (program, folder), nprocs=RANKS, start_method="fork")
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(RANKS)]


def _rank(rank: int, program: Callable, folder: Path) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "localhost"}
    os.environ |= {name: str(value) for name, value in own.items()}
    AcceleratorState._reset_state(reset_partial_state=True)  # the parent's single process, inherited by fork
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS, timeout=PATIENCE)
    torch.save(program(rank, folder), folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
