"""Seconds per optimizer step of whole training steps: the paper's cost claim, and TAID's step beside KL's.

Teacher and student are the scale models of Table 1's second pair, freshly initialised, and prompts and responses are
random tokens of fixed lengths: what a step costs depends on shapes alone. A fresh student hardly ever ends a response, so
that sampling runs to the limit; that is what a batch of a trained student's does too, for it ends with its longest.
"""

import copy
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from statistics import mean
from types import SimpleNamespace

from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from benchmarks.measure import Call, timed
from benchmarks.record import code_digest, show
from taid import models, objectives, rollouts
from taid.data import Collator
from taid.trainer import DistillationTrainer

TEACHER, STUDENT = "llama-2", "tinyllama"
PAD, END = 0, 1
GENERATION = "generation"  # beside the methods: a batch of responses drawn from the student, no training


@dataclass(frozen=True)
class Training:
    """Methods side by side: blocks of `steps` optimizer steps take turns, as many blocks as `repetitions`."""

    scale: str
    methods: tuple[str, ...]
    vocab: int
    prompt: int  # tokens
    response: int  # tokens of the data's responses, and of the student's at most
    batch: int
    probability: float  # that GKD samples from the student at a step
    steps: int
    repetitions: int

    def __str__(self) -> str:
        size = f"{self.batch} × ({self.prompt} + {self.response}) tokens, vocabulary {self.vocab:,}"
        return f"{size}, GKD samples {self.probability:g}"

    def config(self) -> dict:
        """Everything that decides the numbers, plain JSON."""
        return asdict(self) | {"code": code_digest(), "pair": [TEACHER, STUDENT]}

    def objective(self, method: str) -> objectives.Objective:
        """`distillm` as it runs without a rise of its validation loss: it never samples. `distillm_sampling`: with its
        threshold at the highest and a buffer that two batches fill, so that replay begins at once."""
        options = {
            "gkd": {"max_new_tokens": self.response, "probability": self.probability},
            "distillm": {"max_new_tokens": self.response},
            "distillm_sampling": {"max_new_tokens": self.response, "threshold": 1.0, "capacity": 2 * self.batch},
        }
        return objectives.objective(method.removesuffix("_sampling"), **options.get(method, {}))


def measure(cell: Training) -> tuple[dict[tuple[str, str, int], float], float]:
    """A job: mean CPU seconds of an optimizer step in each block, and the share of its steps that sampled."""
    started = time.perf_counter()
    values = {}
    for repetition in range(cell.repetitions):
        for method in cell.methods:
            seconds, objective = block(cell, method, seed=repetition)
            values[method, "step", repetition] = mean(seconds)
            if objective.rollouts is not None:
                values[method, "sampled_share", repetition] = objective.logs()["rollout_share"]
        draw = Call(lambda: rollouts.sample_responses(model(STUDENT, cell.vocab), prompts(cell), cell.response, seed=0))
        values[GENERATION, "step", repetition] = timed(draw).cpu
    show(str(cell), values)
    return values, time.perf_counter() - started


def block(cell: Training, method: str, seed: int) -> tuple[list[float], objectives.Objective]:
    """CPU seconds of each of `cell.steps` optimizer steps, from the end of one to the end of the next, with loading of
    data and sampling; an earlier step, in which everything is warmed up, is left out."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DistillationTrainer(
            copy.deepcopy(model(STUDENT, cell.vocab)), model(TEACHER, cell.vocab), cell.objective(method),
            args=TrainingArguments(
                output_dir=scratch, seed=seed, max_steps=cell.steps + 1, per_device_train_batch_size=cell.batch,
                learning_rate=1e-3, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
                remove_unused_columns=False, use_cpu=True,
            ),
            train_dataset=examples(cell), data_collator=Collator(PAD), callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [after - before for before, after in zip(clock.ends, clock.ends[1:])], trainer.objective


class _Clock(TrainerCallback):
    """CPU time at the end of every optimizer step."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.process_time())


@cache
def model(name: str, vocab: int) -> PreTrainedModel:
    """A fresh scale model of that vocabulary."""
    tokens = SimpleNamespace(eos_token_id=END, pad_token_id=PAD)
    return models.scale_model(name, vocab, tokens, seed=0)


def examples(cell: Training) -> list[dict]:
    """As many as one block sees, as of `taid.data.encode`."""
    rng = random.Random(0)
    return [
        {"index": i} | {
            part: [rng.randrange(2, cell.vocab) for _ in range(length)]
            for part, length in (("prompt_ids", cell.prompt), ("response_ids", cell.response))
        }
        for i in range(cell.batch * (cell.steps + 1))
    ]  # fmt: skip


def prompts(cell: Training) -> list[list[int]]:
    """Those of one batch."""
    return [example["prompt_ids"] for example in examples(cell)[: cell.batch]]
