"""The probability-mass study (Table 3): where the mass of Table 1's students lies.

Measured on the response tokens of the test split, teacher-forced, under three rankings of the vocabulary, for
we do not know whose the paper means (see `taid.evaluation.mass`). The metrics `head` and `tail` rank by the
teacher at every token, our main reading; `…_own` by the student; `…_marginal` once, by the teacher's mean.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from taid.evaluation.mass import log_mean_probability, mass_by_rank, probability_mass
from taid.logits import response_logits
from taid.studies import instruction_tuning, study

CLAIMED = ("kl", "rkl", "taid")  # the paper's Table 3


def ranks(vocab_size: int, count: int = 40) -> list[int]:
    """About `count` ranks from 1 to V, evenly spaced in the logarithm."""
    return sorted({round(rank) for rank in np.geomspace(1, vocab_size, count)})


def measure(run: instruction_tuning.Run) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of a run's student, or of the teacher ("teacher")."""
    started = time.perf_counter()
    here = instruction_tuning.at(run.scale, run.teacher)
    model, teacher = here.model(run)[0], here.teacher_logits(run.teacher, "test")
    values = masses(model, teacher, here.batches("test"), len(here.source.tokenizer))
    return values, time.perf_counter() - started


@torch.no_grad()
def masses(
    model, teacher: Callable[[dict], Tensor], batches: Sequence[dict], vocab_size: int
) -> dict[tuple[str, str], float]:
    """{(metric, task): mean over response tokens}; `teacher` as in `taid.teacher`.

    Head and tail by each ranking have the task "average"; "mass_at_rank", by the teacher's, has the rank.
    """
    model.eval()
    marginal = _marginal(
        teacher(batch)[:, :vocab_size] for batch in batches
    )  # asked twice, and never all kept
    sums: dict[str, float] = {}
    count, at_rank = 0, torch.zeros(vocab_size, dtype=torch.float64)
    for batch in batches:
        target = teacher(batch)[:, :vocab_size]  # [n, V]; padding would fill the tail
        count += len(target)
        logits = response_logits(model, batch)[0][:, :vocab_size]
        for suffix, ranking in {"": target, "_own": logits, "_marginal": marginal}.items():
            for part, mass in zip(("head", "tail"), probability_mass(logits, ranking), strict=True):
                sums[part + suffix] = sums.get(part + suffix, 0.0) + mass.sum().item()
        at_rank += mass_by_rank(logits, target).cpu() * len(target)
    values = {(metric, "average"): total / count for metric, total in sums.items()}
    return values | {("mass_at_rank", str(r)): at_rank[r - 1].item() / count for r in ranks(vocab_size)}


def _marginal(batches: Iterable[Tensor]) -> Tensor:
    """log of the mean distribution over the tokens of all batches of logits, [n, V] each -> [V]."""
    totals, counts = zip(
        *((log_mean_probability(x) + math.log(len(x)), len(x)) for x in batches), strict=True
    )
    return torch.stack(totals).logsumexp(0) - math.log(sum(counts))


UNITS = dict.fromkeys(
    ("mass_at_rank", *(part + by for part in ("head", "tail") for by in ("", "_own", "_marginal"))),
    ("probability", False),
)
rows = partial(study.rows, units=UNITS)
