"""Losses of other libraries, as `python -m benchmarks peers` installs them: in a folder apart, each the version that
benchmarks/requirements.txt pins. Only what is needed of a package is loaded, and its code is used as it is."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from taid.sources import cache_dir

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
TEACHER_WEIGHT = 0.1  # of the generalised JSD, as `taid.losses.jsd` has it; the peers call it beta


def folder() -> Path:
    return cache_dir() / "peers"


def install() -> None:
    """Install the pinned peers; the environment stays as it is."""
    where = ["--no-deps", "--upgrade", "--target", str(folder()), "-r", str(REQUIREMENTS)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *where], check=True)


def versions() -> dict[str, str | None]:
    """Package → installed version, None where it is missing."""
    wanted = [line.split("==")[0] for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    installed = {d.name.lower().replace("_", "-"): d.version for d in metadata.distributions(path=[str(folder())])}
    return {package: installed.get(package) for package in wanted}


def trl_jsd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """TRL's generalised JSD, called as its GKDTrainer calls it."""
    loss = _definition("trl/experimental/gkd/gkd_trainer.py", "generalized_jsd_loss")
    return loss(student_logits, teacher_logits, labels=labels, beta=TEACHER_WEIGHT)


def torchtune_reverse_kl(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """torchtune's ReverseKLLoss."""
    return _definition("torchtune/modules/loss/kd_losses.py", "ReverseKLLoss")()(student_logits, teacher_logits, labels)


def liger_fused_linear_jsd() -> torch.nn.Module:
    """Liger's LigerFusedLinearJSDLoss, its chunked loss in PyTorch alone (the package's kernels need Triton and a GPU),
    with its defaults (torch.compile, chunks of 1,024 rows) but for the cross-entropy on labels, which has weight 0."""
    if (path := str(folder())) not in sys.path:
        sys.path.append(path)  # last, so that nothing of ours is found there
    loss = importlib.import_module("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDLoss
    return loss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=TEACHER_WEIGHT)


@cache
def _definition(file: str, name: str) -> Callable:
    """One function or class of a package's file, which wants nothing but torch: to import the package would take a
    dozen others (TRL: datasets; torchtune: torchao)."""
    path = folder() / file
    wanted = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
    ]  # fmt: skip
    wanted[0].decorator_list = []  # a static method
    found = {"torch": torch, "F": functional, "nn": torch.nn}
    exec(compile(ast.Module(wanted[:1], []), str(path), "exec"), found)
    return found[name]
