"""Task scores by lm-eval, the harness that the paper's leaderboard runs: its tasks, its prompts, its metrics.

Local tasks (`taid.studies.lm_tasks`) need no network. The model is called through `taid.logits.response_logits`, so
that no row of logits is computed but those of the choices, and once for all choices with the same beginning;
on a CPU that is several times faster than lm-eval's own wrapper, with the same numbers.
"""

import io
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # read on import by what follows
from lm_eval import evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from taid.data import IGNORE, pad_right
from taid.logits import response_logits

# The paper's Table 2, the first Open LLM Leaderboard: lm-eval's task → (shots, metric and filter)
LEADERBOARD = {
    "arc_challenge": (25, "acc_norm,none"),
    "hellaswag": (10, "acc_norm,none"),
    "mmlu": (5, "acc,none"),
    "truthfulqa_mc2": (0, "acc,none"),
    "winogrande": (5, "acc,none"),
    "gsm8k": (5, "exact_match,strict-match"),
}


@dataclass(frozen=True)
class Score:
    """The mean over a task's items, and its standard error s/√n, s with n − 1 in its denominator."""

    mean: float
    standard_error: float
    items: int


class LocalModel(TemplateLM):
    """A causal language model as lm-eval wants it, for tasks that choose among answers or score one."""

    def __init__(self, model, tokenizer, tokens_per_batch: int = 2048):
        super().__init__()
        self.model, self.tokenizer, self.tokens_per_batch = model.eval(), tokenizer, tokens_per_batch

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        return self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    def loglikelihood(self, requests, disable_tqdm: bool = True):
        return super().loglikelihood(requests, disable_tqdm=True)

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
        """(log-likelihood [nats], whether it is what greedy decoding gives) of each continuation."""
        sharing: dict[tuple[int, ...], list[int]] = {}  # what the model reads → requests that need it
        for i, (_, context, continuation) in enumerate(requests):
            sharing.setdefault(tuple(context + continuation[:-1]), []).append(i)
        answers: dict[int, tuple[float, bool]] = {}
        for inputs in self._batches(sorted(sharing, key=len)):
            asked = [max(len(requests[i][2]) for i in sharing[ids]) for ids in inputs]  # rows of logits
            log_p = self._log_p(inputs, asked).split(asked)
            for ids, rows in zip(inputs, log_p, strict=True):
                greedy = rows.argmax(-1)
                for i in sharing[ids]:
                    tokens = torch.tensor(requests[i][2], device=rows.device)
                    last = rows[-len(tokens) :]
                    likelihood = last.gather(-1, tokens[:, None]).sum().item()
                    answers[i] = likelihood, bool((greedy[-len(tokens) :] == tokens).all())
        return [answers[i] for i in range(len(requests))]

    def _batches(self, inputs: Sequence[tuple[int, ...]]):
        """Inputs of ascending length in batches that hold about `tokens_per_batch` tokens when padded."""
        batch: list[tuple[int, ...]] = []
        for ids in inputs:
            if batch and (len(batch) + 1) * len(ids) > self.tokens_per_batch:
                yield batch
                batch = []
            batch.append(ids)
        if batch:
            yield batch

    def _log_p(self, inputs: Sequence[tuple[int, ...]], asked: Sequence[int]) -> torch.Tensor:
        """Log-probabilities after the last `asked` tokens of each input, [sum of asked, V], fp32."""
        labels = [  # a label marks the position before it; what it is does not matter
            [IGNORE] * (len(ids) + 1 - count) + [0] * count for ids, count in zip(inputs, asked, strict=True)
        ]
        batch = {
            "input_ids": pad_right([[*ids, self.eot_token_id] for ids in inputs], self.eot_token_id),
            "attention_mask": pad_right([[1] * len(ids) + [0] for ids in inputs], 0),
            "labels": pad_right(labels, IGNORE),
        }
        device = self.model.device
        logits, _ = response_logits(self.model, {name: tensor.to(device) for name, tensor in batch.items()})
        return logits.float().log_softmax(-1)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        raise NotImplementedError("perplexities are measured by taid.evaluation.likelihood")

    def generate_until(self, requests, disable_tqdm: bool = False):
        raise NotImplementedError("no local task generates text: use lm-eval's HFLM for those that do")


def local_tasks(folder: Path) -> TaskManager:
    """The tasks whose YAML files lie in `folder`, and none of lm-eval's own: offline, and read at once."""
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(lm: TemplateLM, manager: TaskManager, tasks: Sequence[str], metric: str) -> dict[str, Score]:
    """Scores of tasks by one metric, without shots (unless a task has its own)."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with redirect_stderr(io.StringIO()):  # a progress bar for every task
        found = evaluator.evaluate(lm, manager.load(list(tasks)), bootstrap_iters=0, log_samples=True)
    return {task: score([item[metric] for item in found["samples"][task]]) for task in tasks}


def leaderboard(
    lm: TemplateLM, manager: TaskManager, tasks: Mapping[str, tuple[int, str]] = LEADERBOARD
) -> dict[str, float]:
    """lm-eval's own results at given numbers of shots, the paper's protocol. For the paper's models:

    leaderboard(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16), TaskManager())
    """
    scores = {}
    for task, (shots, metric) in tasks.items():
        found = evaluator.simple_evaluate(
            lm, tasks=[task], num_fewshot=shots, task_manager=manager, bootstrap_iters=0, log_samples=False
        )
        scores[task] = found["results"][task][metric]
    return scores


def score(values: Sequence[float]) -> Score:
    """Mean and standard error of the items' scores. Raises ValueError for fewer than two."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} items have no standard error: score at least two")
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return Score(float(np.mean(values)), float(error), len(values))
