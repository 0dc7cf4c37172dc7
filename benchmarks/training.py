"""Seconds per optimizer step: the paper's cost claim, and TAID's step beside KL's.

Teacher and student are the scale models of Table 1's second pair, on a GPU (scale "gpu") of the paper's own
sizes, freshly initialised, prompts and responses random tokens of fixed lengths: a step's cost depends on
shapes alone. A fresh student hardly ever ends a
response, so that sampling runs to its limit, as it does for a trained student's batch, which ends with its
longest response.
"""

import copy
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import pairwise
from statistics import mean
from types import SimpleNamespace

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from benchmarks.losses import device_of
from benchmarks.measure import Call, clock, timed
from benchmarks.record import Values, code_digest, show
from taid import objectives
from taid.data import Collator
from taid.sampling import sample_responses
from taid.schedule import scale_alpha
from taid.studies import zoo
from taid.studies.study import PAPER_UPDATES
from taid.trainer import DistillationTrainer

TEACHER, STUDENT = "llama-2", "tinyllama"
PAD, END = 0, 1
PAPER_SHAPES = {  # Llama 2 7B and TinyLlama 1.1B, but for their embeddings, tied here
    TEACHER: zoo.Shape("llama", 4096, 11_008, 32, 32, 32),
    STUDENT: zoo.Shape("llama", 2048, 5632, 22, 32, 4),
}
GENERATION = "generation"  # beside the methods: one batch of responses drawn from the student, no training


@dataclass(frozen=True)
class Training:
    """Methods side by side: blocks of `steps` optimizer steps take turns, `repetitions` blocks each."""

    scale: str
    methods: tuple[str, ...]
    vocab: int
    prompt: int  # tokens
    response: int  # tokens of the data's responses, and of the student's
    batch: int
    probability: float  # of a step of GKD to sample from the student
    steps: int
    repetitions: int

    def __str__(self) -> str:
        size = f"{self.batch} × ({self.prompt} + {self.response}) tokens, vocabulary {self.vocab:,}"
        return f"{size}, GKD samples {self.probability:g}"

    def config(self) -> dict:
        """Everything that decides the numbers, plain JSON."""
        return asdict(self) | {"code": code_digest(__name__), "pair": [TEACHER, STUDENT]}


def measure(cell: Training) -> tuple[Values, float]:
    """A job: mean seconds of a step (`clock`) and the share of steps that sampled, per block; seconds of it all."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    prompts = [example["prompt_ids"] for example in examples(cell)[: cell.batch]]
    student = model(STUDENT, cell.vocab, device_of(cell.scale))
    draw = Call(
        partial(sample_responses, student, prompts, cell.response, seed=0), device=device_of(cell.scale)
    )
    values = {}
    for repetition in range(cell.repetitions):
        for method in cell.methods:
            seconds, objective = block(cell, method, seed=repetition)
            values[method, "step", repetition] = mean(seconds)
            if objective.rollouts is not None:
                values[method, "sampled_share", repetition] = objective.logs()["rollout_share"]
        values[GENERATION, "step", repetition] = (
            timed(draw).wall if device_of(cell.scale) != "cpu" else timed(draw).busy
        )
    show(str(cell), values)
    return values, time.perf_counter() - started


def objective_of(cell: Training, method: str) -> objectives.Objective:
    """`distillm` as it runs while its validation loss falls: it never samples. `distillm_sampling`: at its
    highest threshold, with a buffer that two batches fill, so that replay begins at once."""
    options: dict[str, dict] = {
        "taid": {"alpha": scale_alpha(5e-4, cell.steps + 1, PAPER_UPDATES)},
        "gkd": {"max_new_tokens": cell.response, "probability": cell.probability},
        "distillm": {"max_new_tokens": cell.response},
        "distillm_sampling": {"max_new_tokens": cell.response, "threshold": 1.0, "capacity": 2 * cell.batch},
    }
    return objectives.objective(method.removesuffix("_sampling"), **options.get(method, {}))


def block(cell: Training, method: str, seed: int) -> tuple[list[float], objectives.Objective]:
    """(seconds of `cell.steps` optimizer steps, the objective after them).

    A step lasts from the end of the one before to its own, loading and sampling included; a first is warm-up.
    """
    device = device_of(cell.scale)
    ends, chosen = _Ends(device), objective_of(cell, method)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DistillationTrainer(
            copy.deepcopy(model(STUDENT, cell.vocab, device)),
            model(TEACHER, cell.vocab, device),
            chosen,
            args=TrainingArguments(
                output_dir=scratch,
                seed=seed,
                max_steps=cell.steps + 1,
                learning_rate=1e-3,
                per_device_train_batch_size=cell.batch,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=device == "cpu",
                bf16=device != "cpu",
            ),
            train_dataset=examples(cell),
            data_collator=Collator(PAD),
            callbacks=[ends],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [after - before for before, after in pairwise(ends.seconds)], chosen


class _Ends(TrainerCallback):
    """When every optimizer step ended."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(clock(self.device))


@cache
def model(name: str, vocab: int, device: str) -> PreTrainedModel:
    """A fresh scale model or, on a GPU, one of the paper's size, the teacher in bf16."""
    ids = SimpleNamespace(eos_token_id=END, pad_token_id=PAD)
    if device == "cpu":
        return zoo.scale_model(name, vocab, ids, seed=0)
    with torch.device(device):
        fresh = zoo.fresh_model(PAPER_SHAPES[name], vocab, ids, seed=0, max_length=2048)
    return fresh.bfloat16() if name == TEACHER else fresh


def examples(cell: Training) -> list[dict]:
    """As many as a block sees, as of `taid.data.encode`."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(2, cell.vocab) for _ in range(count)]

    return [
        {"index": i, "prompt_ids": tokens(cell.prompt), "response_ids": tokens(cell.response)}
        for i in range(cell.batch * (cell.steps + 1))
    ]
