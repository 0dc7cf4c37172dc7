"""Figure 3: how unsure teachers are, of images and of text.

For every teacher of Tables 7 and 8 and of Table 1: the entropy of its predictions, also as a share of log V, the most
that V classes or tokens can have, and the probability of the class or token that was right. On what students learn
from, and on the test split.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from taid.data import IGNORE
from taid.studies import instruction_tuning, study, vision, zoo
from taid.studies.study import Study, named

MODALITIES = {  # → teacher → the table that it teaches in
    "images": {pair.teacher: table for table, found in vision.TABLES.items() for pair in found.pairs},
    "language": dict.fromkeys(zoo.PAIRS, "table1"),
}
SPLITS = ("train", "test")
SHARES = tuple(i / 20 for i in range(21))  # of the predictions, for the curves
MOST = 50_000  # predictions of a split, the first ones


@dataclass(frozen=True)
class Run(study.Run):
    """The predictions of one teacher; `method` is its modality.

    Raises ValueError, naming the known ones, for an unknown modality, teacher or scale.
    """

    scale: str
    method: str
    teacher: str
    seed: int = 0
    learning_rate: float = 0.0
    student: str = "none"

    def __post_init__(self) -> None:
        named(named(MODALITIES, self.method, "modality"), self.teacher, "teacher")
        named(self.kind.settings, self.scale, "scale")

    def __str__(self) -> str:
        return f"{self.teacher}, {self.method}"

    @property
    def kind(self) -> type[Study]:
        """The study that has the teacher."""
        table = MODALITIES[self.method][self.teacher]
        return vision.STUDIES.get(table, instruction_tuning.InstructionTuning)

    @property
    def setting(self) -> Any:
        return self.kind.settings[self.scale].of(self.teacher)

    def config(self) -> dict[str, Any]:
        return super().config() | {"most": MOST, "shares": list(SHARES)}


def describe(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of predictions, logits [n, V] for labels [n]: each one's entropy [nats], entropy / log V, and probability of its
    label, [n]."""
    log_p = logits.float().log_softmax(-1)
    entropy = torch.special.entr(log_p.exp()).sum(-1)
    target = log_p.gather(-1, labels[:, None])[:, 0].exp()
    return {
        "entropy": entropy,
        "normalised_entropy": entropy / math.log(logits.shape[-1]),
        "target_probability": target,
    }


def labels_of(batch: dict) -> Tensor:
    """[n] what each prediction is to be, in the order of a teacher's logits: of images, or of the tokens that follow."""
    labels = batch["labels"] if batch["labels"].dim() == 1 else batch["labels"][:, 1:]
    return labels[labels != IGNORE]


def summary(found: dict[str, Tensor], split: str) -> dict[tuple[str, str], float]:
    """{(metric, split): mean}, and {("{metric}_at", "{split} {share}"): what that share of the predictions is below}."""
    shares = torch.tensor(SHARES)
    values = {}
    for metric, each in found.items():
        values[metric, split] = each.mean().item()
        for share, value in zip(SHARES, each.quantile(shares).tolist(), strict=True):
            values[f"{metric}_at", f"{split} {share:.2f}"] = value
    return values


def predictions(logits_of: study.Logits, batches: Iterable[dict], vocab_size: int) -> dict[str, Tensor]:
    """`describe` of the first `MOST` predictions; of a vocabulary the entries that a tokenizer knows."""
    found: list[dict[str, Tensor]] = []
    count = 0
    for batch in batches:
        found.append(describe(logits_of(batch)[:, :vocab_size], labels_of(batch)))
        count += len(found[-1]["entropy"])
        if count >= MOST:
            break
    return {name: torch.cat([each[name] for each in found])[:MOST] for name in found[0]}


def measure(run: Run) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of one teacher."""
    started, here = time.perf_counter(), study.at(run.kind, run.scale, run.teacher)
    tokenizer = getattr(here.source, "tokenizer", None)
    entries = run.setting.images.classes if tokenizer is None else len(tokenizer)
    values: dict[tuple[str, str], float] = {}
    for split in SPLITS:
        teacher = here.teacher_logits(run.teacher, split)
        values |= summary(predictions(teacher, here.batches(split), entries), split)
    return values, time.perf_counter() - started


def runs(scale: str) -> Sequence[Run]:
    """Every teacher of the paper's tables that a scale has."""
    return [
        Run(scale, modality, teacher) for modality, teachers in MODALITIES.items() for teacher in teachers
    ]


_OF = {
    "entropy": ("nats", False),
    "normalised_entropy": ("share of log V", False),
    "target_probability": ("probability", True),
}
UNITS = _OF | {f"{metric}_at": unit for metric, unit in _OF.items()}  # neither is good nor bad in itself
rows = partial(study.rows, units=UNITS)
