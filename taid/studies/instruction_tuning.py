"""The instruction-tuning study (Table 1): zoo, runs and measurements at one scale.

Everything that is expensive is cached below `taid.files.cache_dir()` under a digest of what made it, written whole,
and found again by every process: models as safetensors, teacher logits (`taid.teacher.CachedTeacher`).
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import ClassVar

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from taid import objectives, results, schedule
from taid.data import Collator, encode, pack, train_tokenizer
from taid.evaluation import generation, likelihood
from taid.files import cache_dir, write_whole
from taid.studies import instructions, judge, study, zoo
from taid.studies.study import Training, cached_model, digest, fit, save_whole
from taid.teacher import CachedTeacher, cached_teacher

# 207,865 conversations of UltraChat 200k train_sft, 5 epochs, batch 64: the updates that we assume of the paper's run.
PAPER_UPDATES = 207_865 * 5 // 64
PAPER_T_START = {"phi-3-mini": 0.4, "llama-2": 0.2, "stablelm-zephyr": 0.2}  # paper, section 6.1
# official code: DistiLLM with the skew KL for Phi-3 and StableLM, the skew reverse KL for Llama-2
PAPER_DISTILLM_LOSS = {"phi-3-mini": "skew_kl", "llama-2": "skew_rkl", "stablelm-zephyr": "skew_kl"}


@dataclass(frozen=True)
class Setting:
    """Everything that decides the study at one scale."""

    scale: str
    size: instructions.Size
    vocab_size: int
    window: int  # tokens of a pre-training example
    dictionary_share: float  # of pre-training windows
    longest: tuple[
        int, int
    ]  # tokens of prompt and response in training; the paper: 2,048 in all, response 512
    question_copies: int  # how often a verified instruction stands in the training data for one of prose
    pretrain_student: Training
    pretrain_teacher: Training
    tune_teacher: Training
    pretrain_judge: Training
    tune_judge: Training
    distil: Training  # its learning rate is replaced by each of the grid
    learning_rates: tuple[float, ...]
    validations: int  # how often the validation loss is measured in a run (DistiLLM's threshold needs it)

    @property
    def alpha(self) -> float:
        """TAID's α (paper: 5e-4) with α · N kept as in the paper."""
        return schedule.scale_alpha(5e-4, self.distil.steps, PAPER_UPDATES)


CPU = Setting(
    scale="cpu",
    size=instructions.Size(words=260, passages=3300, validation=60, test=200),
    vocab_size=2048,
    window=64,
    dictionary_share=0.5,
    longest=(22, 12),
    question_copies=3,
    pretrain_student=Training(900, 24, 5e-3, warmup_steps=20),
    pretrain_teacher=Training(1000, 24, 3e-3, warmup_steps=50),
    tune_teacher=Training(500, 64, 3e-3, warmup_steps=50),
    pretrain_judge=Training(600, 24, 3e-3, warmup_steps=50),
    tune_judge=Training(200, 64, 2e-3, warmup_steps=50),
    distil=Training(300, 48, 5e-3),
    learning_rates=(1e-3, 3e-3, 1e-2),
    validations=5,
)
SMOKE = replace(
    CPU,
    scale="smoke",
    size=instructions.Size(words=24, passages=40, validation=4, test=8),
    vocab_size=512,
    pretrain_student=Training(2, 4, 5e-3),
    pretrain_teacher=Training(2, 4, 3e-3),
    tune_teacher=Training(2, 8, 3e-3),
    pretrain_judge=Training(16, 8, 3e-3),  # it has to tell text from noise
    tune_judge=Training(8, 8, 3e-3),
    distil=Training(4, 8, 5e-3),
    learning_rates=(3e-3, 1e-2),
    validations=2,
)
SETTINGS = {setting.scale: setting for setting in (SMOKE, CPU)}


def setting(scale: str) -> Setting:
    """The setting of a scale. Raises ValueError that names the known ones."""
    if scale not in SETTINGS:
        raise ValueError(
            f"unknown scale {scale!r} for the instruction-tuning study; known: {', '.join(SETTINGS)}"
        )
    return SETTINGS[scale]


REFERENCES = (
    "teacher",
    "untrained",
)  # measured beside the methods: the teacher, the student before distillation


@dataclass(frozen=True)
class Run:
    """One student: what `config_hash` sees of it, together with the setting.

    Raises ValueError, naming the known ones, for an unknown scale, pair (by its teacher) or method.
    """

    known: ClassVar[Sequence[str]] = (*objectives.METHODS, *REFERENCES)
    scale: str
    method: str
    teacher: str
    seed: int
    learning_rate: float

    def __post_init__(self) -> None:
        setting(self.scale)
        if self.teacher not in zoo.PAIRS:
            pairs = ", ".join(f"{teacher} → {student}" for teacher, student in zoo.PAIRS.items())
            raise ValueError(f"unknown teacher {self.teacher!r}; known pairs: {pairs}")
        if self.method not in self.known:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(self.known)}")

    def __str__(self) -> str:
        return f"{self.method} {self.teacher} seed {self.seed} lr {self.learning_rate:g}"

    def config(self) -> dict:
        """Everything that decides the run's numbers, plain JSON."""
        return asdict(self) | {"setting": digest(asdict(setting(self.scale))), "options": self.options()}

    def options(self) -> dict:
        """The hyperparameters of the method, plain JSON."""
        return method_options(self)

    def objective(self) -> objectives.Objective:
        """What the student is trained on, fresh."""
        return objectives.objective(self.method, **self.options())

    def training(self) -> Training:
        """The phase of training: the setting's, at the run's learning rate."""
        return replace(setting(self.scale).distil, learning_rate=self.learning_rate)


def method_options(run: Run) -> dict:
    """The method's hyperparameters: the paper's, per pair where the paper has them per pair."""
    settings = setting(run.scale)
    options = {
        "taid": {"t_start": PAPER_T_START[run.teacher], "alpha": settings.alpha},
        "taid_no_adaptive": {"t_start": PAPER_T_START[run.teacher]},
        "gkd": {"max_new_tokens": judge.MAX_NEW_TOKENS},
        "distillm": {"loss": PAPER_DISTILLM_LOSS[run.teacher], "max_new_tokens": judge.MAX_NEW_TOKENS},
    }
    return options.get(run.method, {})


class Bench:
    """The data of one setting in one process: tokeniser, encoded splits and the way to each cached model."""

    def __init__(self, settings: Setting):
        self.settings = settings
        self.data = instructions.build(settings.size)
        self.folder = cache_dir() / "instruction_tuning" / f"{settings.scale}-{digest(asdict(settings))}"
        self.tokenizer = self._tokenizer()
        self.collator = Collator(self.tokenizer.pad_token_id)
        self.train, self.validation, self.test = (
            self.encode(split) for split in (self.data.train, self.data.validation, self.data.test)
        )
        # copies share their example, and so its place in a cache of logits
        self.stream = [
            example
            for item, example in zip(self.data.train, self.train, strict=True)
            if len(example["prompt_ids"]) <= settings.longest[0]
            and len(example["response_ids"]) <= settings.longest[1]
            for _ in range(settings.question_copies if item.answers else 1)
        ]

    def encode(self, items: Sequence[instructions.Instruction]) -> list[dict]:
        return encode(self.tokenizer, [i.prompt for i in items], [i.response for i in items])

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        folder = self.folder / "tokenizer"
        if not folder.exists():
            texts = [f"{i.prompt} {i.response}" for i in self.data.train] + list(
                self.data.text["train"][:20_000]
            )
            save_whole(train_tokenizer(texts, self.settings.vocab_size, self.data.words), None, folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    def windows(self, prose: str) -> list[dict]:
        """Packed pre-training examples from "train" or "judge" prose, a share of them from the dictionary."""
        length = self.settings.window
        text = pack(self.tokenizer, self.data.text[prose], length)
        dictionary = pack(
            self.tokenizer, self.data.text["dictionary"] * 8, length
        )  # repeated, for many whole windows
        wanted = round(len(text) * self.settings.dictionary_share / (1 - self.settings.dictionary_share))
        return text + [dictionary[i % len(dictionary)] for i in range(wanted)]

    def student(self, name: str, seed: int):
        """The pre-trained student of a seed (initialisation and order of pre-training), not yet tuned."""
        return self._model(name, seed, [(self.settings.pretrain_student, lambda: self.windows("train"))])

    def teacher(self, name: str):
        """The teacher: pre-trained as the students are, longer, then tuned on the training instructions."""
        phases = [
            (self.settings.pretrain_teacher, lambda: self.windows("train")),
            (self.settings.tune_teacher, lambda: self.stream),
        ]
        return self._model(name, 0, phases)

    @cache
    def judge_model(self):
        """The zoo's largest model, trained on prose of documents that no teacher or student has seen."""
        phases = [
            (
                self.settings.pretrain_judge,
                lambda: pack(self.tokenizer, self.data.text["judge"], self.settings.window),
            ),
            (self.settings.tune_judge, lambda: self.encode(self.data.judge)),
        ]
        return self._model("judge", 1, phases)

    @cache
    def cached_teacher(self, name: str, split: str) -> CachedTeacher:
        """The teacher with its logits on the examples of "train", "validation" or "test" from disk."""
        return cached_teacher(
            self.teacher(name),
            getattr(self, split),
            self.collator,
            self.folder / "logits" / f"{name}-{split}",
        )

    def _model(self, name: str, seed: int, phases):
        def train():
            model = zoo.scale_model(name, len(self.tokenizer), self.tokenizer, seed)
            for number, (training, examples) in enumerate(phases):
                title = f"{name} seed {seed}, phase {number + 1} of {len(phases)}"
                fit(
                    model,
                    examples(),
                    self.collator,
                    training,
                    seed=seed,
                    checkpoints=work / str(number),
                    title=title,
                )
            return model, None

        work = self.folder / "work" / f"{name}-{seed}"
        model = cached_model(self.folder / "models" / f"{name}-{seed}", train)
        shutil.rmtree(work, ignore_errors=True)
        return model

    def run_folder(self, run: Run) -> Path:
        """Where the student of a run is kept."""
        return self.folder / "runs" / digest(run.config())

    def distilled(self, run: Run) -> tuple[torch.nn.Module, dict]:
        """(student, record) of a run, trained now unless cached. The record: "seconds" of training, the objective's
        last "logs" and "state"."""

        def train():
            student = self.student(zoo.PAIRS[run.teacher], run.seed)
            objective = run.objective()
            started = time.perf_counter()
            trainer = fit(
                student,
                self.stream,
                self.collator,
                run.training(),
                seed=run.seed,
                objective=objective,
                tokenizer=self.tokenizer,
                teacher=self.cached_teacher(run.teacher, "train") if objective.uses_teacher else None,
                validation=self.validation if objective.rollouts is not None else None,
                validations=self.settings.validations,
            )
            seconds, objective = time.perf_counter() - started, trainer.objective
            return student, {"seconds": seconds, "logs": objective.logs(), "state": objective.state_dict()}

        folder = self.run_folder(run)
        return cached_model(folder, train), json.loads((folder / "record.json").read_text())

    def judge_of(self, student: str, seed: int, split: str) -> judge.Judge:
        """The judge with its scale for the responses of one pre-trained student on one split."""
        items = [i for i in getattr(self.data, split) if i.category in instructions.JUDGED]
        model = self.judge_model()
        path = self.folder / "scale" / f"{student}-{seed}-{split}.json"
        if not path.exists():
            untrained = generation.generate(
                self.student(student, seed),
                self.tokenizer,
                self.encode(items),
                judge.MAX_NEW_TOKENS,
                judge.TEMPERATURE,
                seed,
            )
            ends = {}
            for end, responses in (("human", [i.response for i in items]), ("untrained", untrained)):
                ends[end] = {
                    category: mean(judge.log_likelihoods(model, self.tokenizer, self.collator, *chosen))
                    for category, chosen in judge.by_category(items, responses).items()
                }
            write_whole(path, json.dumps(ends))
        return judge.Judge(model, self.tokenizer, self.collator, **json.loads(path.read_text()))

    def measure(self, model, teacher: str, seed: int, split: str) -> dict[tuple[str, str], float]:
        """{(metric, task): value} of a student (or teacher) of a pair on a split; task "average" over categories."""
        items, examples = getattr(self.data, split), getattr(self, split)
        scale = self.judge_of(zoo.PAIRS[teacher], seed, split)
        found = judge.evaluate(model, self.tokenizer, scale, items, seed)
        values = {("distinct_bigrams", "average"): found.pop("distinct_bigrams")["all"]}
        for metric, by_category in found.items():
            values |= {(metric, category): value for category, value in by_category.items()}
            values[metric, "average"] = mean(by_category.values())
        values["held_out_loss", "average"] = mean(likelihood.held_out_loss(model, examples, self.collator))
        values["kl_to_teacher", "average"] = likelihood.kl_to_teacher(
            model, self.cached_teacher(teacher, split), examples, self.collator, len(self.tokenizer)
        )
        return values


UNITS = {  # metric -> (unit, whether higher is better)
    "score": ("points of 10", True),
    "score_greedy": ("points of 10", True),
    "score_sampled": ("points of 10", True),
    "distinct_bigrams": ("fraction", True),
    "held_out_loss": ("nats/token", False),
    "kl_to_teacher": ("nats/token", False),
    "train_seconds": ("seconds", False),
}


def prepare(scale: str, kind: str, name: str, which: int | str) -> None:
    """A job: train and cache a "student" (`which`: its seed), a "teacher", the "judge", or "logits" (a split)."""
    here = bench(scale)
    if kind == "judge":
        here.judge_model()
    elif kind == "student":
        here.student(name, int(which))
    elif kind == "teacher":
        here.teacher(name)
    else:
        here.cached_teacher(name, str(which))


def measure(run: Run, split: str) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of one run on a split. The methods "teacher" and "untrained" stand
    for the teacher itself and for the student before distillation."""
    started = time.perf_counter()
    here, extra = bench(run.scale), {}
    if run.method == "teacher":
        model = here.teacher(run.teacher)
    elif run.method == "untrained":
        model = here.student(zoo.PAIRS[run.teacher], run.seed)
    else:
        model, record = here.distilled(run)
        extra["train_seconds", "average"] = record["seconds"]
    values = here.measure(model, run.teacher, run.seed, split) | extra
    if split == "validation":  # it only chooses: the averages are enough to keep
        values = {(metric, task): value for (metric, task), value in values.items() if task == "average"}
    return values, time.perf_counter() - started


def rows(
    run: Run, experiment: str, values: dict[tuple[str, str], float], seconds: float, units: dict = UNITS
) -> list[results.Row]:
    """The rows of one cell; `units` maps a metric to (unit, whether higher is better)."""
    return study.rows(run, experiment, values, seconds, units, student=zoo.PAIRS[run.teacher])


@cache
def bench(scale: str) -> Bench:
    """One Bench per process and scale."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return Bench(setting(scale))
