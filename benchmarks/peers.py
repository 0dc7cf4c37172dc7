"""Losses of other libraries, as `python -m benchmarks peers` installs them: beside the environment, in the
versions of benchmarks/requirements.txt. Of a package only what is needed is loaded, and used as it is."""

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

from taid.files import cache_dir

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
TEACHER_WEIGHT = 0.1  # of the generalised JSD, as in `taid.losses.jsd`; the peers call it beta


def folder() -> Path:
    """Where the peers live."""
    return cache_dir() / "peers"


def install() -> None:
    """Install the pinned peers; the environment stays as it is."""
    where = ["--no-deps", "--upgrade", "--target", str(folder()), "-r", str(REQUIREMENTS)]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *where]
    subprocess.run(command, check=True)


def versions() -> dict[str, str | None]:
    """Package → installed version, None where it is missing."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    found = metadata.distributions(path=[str(folder())])
    installed = {each.name.lower().replace("_", "-"): each.version for each in found}
    return {name: installed.get(name) for name, pinned, _ in (x.partition("==") for x in lines) if pinned}


def trl_jsd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """TRL's generalised JSD, called as its GKDTrainer calls it."""
    loss = _definition("trl/experimental/gkd/gkd_trainer.py", "generalized_jsd_loss")
    return loss(student_logits, teacher_logits, labels=labels, beta=TEACHER_WEIGHT)


def torchtune_reverse_kl(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """torchtune's ReverseKLLoss."""
    loss = _definition("torchtune/modules/loss/kd_losses.py", "ReverseKLLoss")()
    return loss(student_logits, teacher_logits, labels)


def liger_fused_linear_jsd() -> Callable[..., Tensor]:
    """Liger's chunked loss, LigerFusedLinearJSDLoss, in PyTorch alone (its kernels want Triton and a GPU).

    With its defaults, torch.compile and chunks of 1,024 rows, but without cross-entropy on the labels.
    """
    if (path := str(folder())) not in sys.path:
        sys.path.append(path)  # last: it hides nothing of the environment
    loss = importlib.import_module("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDLoss
    return loss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=TEACHER_WEIGHT)


@cache
def _definition(file: str, name: str) -> Callable:
    """One function or class of a package's file, which needs torch alone; the package would want a dozen more
    (TRL: datasets; torchtune: torchao)."""
    path = folder() / file
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    [node] = [x for x in nodes if isinstance(x, ast.FunctionDef | ast.ClassDef) and x.name == name]
    node.decorator_list = []  # a static method
    found: dict = {"torch": torch, "F": functional}
    exec(compile(ast.Module([node], []), str(path), "exec"), found)  # noqa: S102 (a pinned package's own code)
    return found[name]
