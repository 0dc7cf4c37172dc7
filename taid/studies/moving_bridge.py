"""The idea of TAID (Figure 1), from real runs: KL's fixed teacher, and TAID's bridge from the student to it.

While a student of Table 1's first pair is distilled, its test tokens are looked at before the first update, at
shares of the updates done, and at the end: how far is the student from what it learns from at that moment, how
far from the teacher, how unsure is each of the three, and where does each have its mass.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from taid import losses
from taid.logits import align_vocabularies, evaluation_mode, response_logits
from taid.objectives import Objective
from taid.studies import instruction_tuning, study
from taid.studies.study import Logits
from taid.studies.variants import Traced

TEACHER, METHODS = "phi-3-mini", ("kl", "taid")
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the updates done
RANKS = 10  # of the teacher's tokens, the likeliest first


@dataclass(frozen=True)
class Run(instruction_tuning.Run):
    """One student, looked at on its way."""

    known: ClassVar[Sequence[str]] = METHODS

    def config(self) -> dict[str, Any]:
        return super().config() | {"shares": list(SHARES), "ranks": RANKS}


class Watched(Traced):
    """An objective that calls look(share, t) before the updates at which one of `shares` of them is done."""

    def __init__(self, inner: Objective, look: Callable[[float, float], None], shares: Sequence[float]):
        super().__init__(inner)
        self.look, self.shares, self.updates = look, shares, 0

    def on_train_begin(self, updates):
        super().on_train_begin(updates)
        self.updates = updates

    def update(self, loss, progress):
        done = round(progress * self.updates) - 1  # the optimizer has yet to move
        for share in self.shares:
            if done == round(share * self.updates):
                self.look(share, self.logs().get("t", 1.0))
        super().update(loss, progress)


@torch.no_grad()
def picture(
    model: PreTrainedModel, teacher: Logits, t: float, batches: Sequence[dict], vocab_size: int
) -> dict[str, float]:
    """Means over the tokens of the batches, of the student q, its target p_t and the teacher p.

    {who}_entropy [nats]; kl_to_target and kl_to_teacher, KL(p_t ‖ q) and KL(p ‖ q) [nats/token];
    "{who} rank {r}", the probability of the teacher's r-th likeliest token.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    count = 0
    with evaluation_mode(model):
        for batch in batches:
            q, p = align_vocabularies(response_logits(model, batch)[0], teacher(batch), vocab_size)
            for name, value in _sums(q, p, losses.interpolate(q, p, t)).items():
                sums[name] += value
            count += len(q)
    return {name: total / count for name, total in sums.items()} | {"t": t}


def _sums(q: Tensor, p: Tensor, target: Tensor) -> dict[str, float]:
    ranked = p.topk(RANKS, -1).indices  # [n, RANKS]
    found = {"kl_to_target": losses.forward_kl(q, target), "kl_to_teacher": losses.forward_kl(q, p)}
    for who, logits in {"student": q, "target": target, "teacher": p}.items():
        probabilities = logits.float().softmax(-1)
        found[f"{who}_entropy"] = torch.special.entr(probabilities).sum(-1)
        for rank, column in enumerate(probabilities.gather(-1, ranked).T, start=1):
            found[f"{who} rank {rank}"] = column
    return {name: values.sum().item() for name, values in found.items()}


def measure(run: Run) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of one run; a task names the share of updates done, and for the
    metrics "student", "target" and "teacher" the rank as well."""
    started, pictures = time.perf_counter(), {}
    here = instruction_tuning.at(run.scale)
    source, batches = here.source, here.batches("test")
    student, teacher = source.student(run.student, run.seed), here.teacher_logits(run.teacher, "test")

    def look(share: float, t: float) -> None:
        pictures[share] = picture(student, teacher, t, batches, len(source.tokenizer))

    watched = Watched(run.objective(), look, SHARES[:-1])
    here.fit(student, run, watched, here.target(run))
    look(SHARES[-1], watched.logs().get("t", 1.0))
    values = {}
    for share, found in pictures.items():
        for name, value in found.items():
            metric, _, rank = name.partition(" ")
            values[metric, f"{share:.2f} {rank}".strip()] = value
    return values, time.perf_counter() - started


UNITS = {  # metric -> (unit, whether higher is better); what is neither good nor bad has to say something
    "t": ("share of the way", False),
    "kl_to_target": ("nats/token", False),
    "kl_to_teacher": ("nats/token", False),
    **{f"{who}_entropy": ("nats", False) for who in ("student", "target", "teacher")},
    **dict.fromkeys(("student", "target", "teacher"), ("probability", False)),
}
rows = partial(study.rows, units=UNITS)
