"""Task scores by lm-eval, the harness that the paper's leaderboard runs: its tasks, its prompts, its metrics.

Tasks whose data are local files (`taid.studies.lm_tasks`) need no network. The model is called through
`taid.logits.response_logits`, so that no row of logits is computed but those of the choices, and once for all
choices with the same beginning; on a CPU that is several times faster than lm-eval's own class, HFLM, with the
same numbers but in one case, where HFLM's are wrong unless it has `logits_cache=False`: of requests that read the
same tokens and score different numbers of them, ("a b", " c") and ("a", " b c"), the shorter continuation gets the
longer one's first rows of logits.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from taid.data import IGNORE, pad_right
from taid.logits import inner, response_logits

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


class LocalModel(HFLM):
    """lm-eval's own model class, reading no more than is asked for.

    `tokens_per_batch`: about as many tokens are read at once, padding among them. `options` are HFLM's, such as
    `max_length`, `add_bos_token` and `batch_size` (of generate_until); softmax is in fp32 unless they say
    otherwise. Everything but `loglikelihood` is HFLM's: special tokens, chat templates, perplexities, generation.
    """

    def __init__(self, model, tokenizer, tokens_per_batch: int = 2048, **options):
        options = {"softmax_dtype": "float32", "batch_size": 8} | options
        super().__init__(
            inner(model), tokenizer=deepcopy(tokenizer), **options
        )  # HFLM gives it a padding token
        self.tokens_per_batch = tokens_per_batch
        if self.backend != "causal":
            raise ValueError(
                f"{type(model).__name__} has an encoder, and this class reads causal models: take HFLM"
            )

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
        """(log-likelihood [nats], whether it is what greedy decoding gives) of each continuation.

        A context too long is cut on its left. Raises ValueError for an empty context or continuation, and for a
        continuation longer than the model.
        """
        sharing: dict[tuple[int, ...], list[int]] = {}  # what the model reads → requests that need it
        for i, (strings, context, continuation) in enumerate(requests):
            if not context or not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"{len(context)} tokens of context and {len(continuation)} to score: give one at least of each, "
                    f"and no more than the model reads ({self.max_length}), in {strings}"
                )
            sharing.setdefault(tuple((context + continuation[:-1])[-self.max_length :]), []).append(i)
        answers: dict[int, tuple[float, bool]] = {}
        for inputs in self._batches(sorted(sharing, key=len)):
            asked = [max(len(requests[i][2]) for i in sharing[ids]) for ids in inputs]  # rows of logits
            log_p = self._log_p(inputs, asked).split(asked)
            for ids, rows in zip(inputs, log_p, strict=True):
                greedy = rows.argmax(-1)
                for i in sharing[ids]:
                    strings, _, continuation = requests[i]
                    tokens = torch.tensor(continuation, device=rows.device)
                    likelihood = rows[-len(tokens) :].gather(-1, tokens[:, None]).sum().item()
                    answers[i] = likelihood, bool((greedy[-len(tokens) :] == tokens).all())
                    if strings is not None:
                        self.cache_hook.add_partial("loglikelihood", strings, answers[i])
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
        """Log-probabilities after the last `asked` tokens of each input, [sum of asked, V]."""
        marks = [
            [IGNORE] * (len(ids) - count) + [0] * count for ids, count in zip(inputs, asked, strict=True)
        ]
        batch = {
            "input_ids": pad_right(inputs, 0),
            "attention_mask": pad_right([[1] * len(ids) for ids in inputs], 0),
            "shift_labels": pad_right(
                marks, IGNORE
            ),  # says which rows to compute; what it is does not matter
        }
        batch |= {"labels": batch["shift_labels"]}
        logits, _ = response_logits(
            self.model, {name: tensor.to(self.device) for name, tensor in batch.items()}
        )
        return logits.log_softmax(-1, dtype=self.softmax_dtype)


def local_tasks(folder: Path) -> TaskManager:
    """The tasks whose YAML files lie in `folder`, and none of lm-eval's own: offline, and read at once."""
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(lm: TemplateLM, manager: TaskManager, tasks: Sequence[str], metric: str) -> dict[str, Score]:
    """Scores of tasks by one metric, without shots (unless a task has its own)."""
    with _quiet():
        found = evaluator.evaluate(lm, manager.load(list(tasks)), bootstrap_iters=0, log_samples=True)
    return {task: score([item[metric] for item in found["samples"][task]]) for task in tasks}


@contextmanager
def _quiet():
    """Without lm-eval's warnings and its progress bar for every task."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def leaderboard(
    lm: TemplateLM,
    manager: TaskManager,
    tasks: Mapping[str, tuple[int, str]] = LEADERBOARD,
    items: int | None = None,
) -> dict[str, tuple[float, float]]:
    """{task: (mean, standard error)}, lm-eval's own results at given numbers of shots, the paper's protocol, on the
    first `items` of each task (None: all); lm-eval's own tasks come from the hub:

    leaderboard(LocalModel(model, tokenizer), TaskManager())

    Raises ValueError, naming it, for a task that `manager` does not know, or whose own file sets its shots.
    """
    unknown = set(tasks) - set(manager.all_tasks)
    if unknown:
        raise ValueError(f"no task {', '.join(sorted(unknown))}: TaskManager() knows lm-eval's own")
    scores = {}
    for task, (shots, metric) in tasks.items():
        found = evaluator.simple_evaluate(
            lm,
            tasks=[task],
            num_fewshot=shots,
            task_manager=manager,
            limit=items,
            bootstrap_iters=1,  # errors of means are exact all the same, and none is left out
            log_samples=False,
        )
        given = found["n-shot"].get(task, shots)
        if given != shots:
            raise ValueError(
                f"{task} sets num_fewshot: {given} in its file, which lm-eval prefers to {shots}"
            )
        name, rule = metric.split(",")
        values = found["results"][task]
        scores[task] = values[metric], values[f"{name}_stderr,{rule}"]
    return scores


def score(values: Sequence[float]) -> Score:
    """Mean and standard error of the items' scores. Raises ValueError for fewer than two."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} items have no standard error: score at least two")
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return Score(float(np.mean(values)), float(error), len(values))
