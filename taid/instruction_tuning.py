"""The instruction-tuning study (Table 1): zoo, runs and measurements at one scale.

Everything that is expensive is cached below `taid.sources.cache_dir()` under a digest of what made it, written whole,
and found again by every process: models as safetensors, teacher logits (`taid.teacher.CachedTeacher`).
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from taid import instructions, jobs, models, objectives, results, schedule, sources
from taid.data import Collator, encode, pack, train_tokenizer, write_whole
from taid.evaluation import generation, likelihood, scores
from taid.teacher import CachedTeacher, cached_teacher
from taid.trainer import DistillationTrainer, last_checkpoint

# 207,865 conversations of UltraChat 200k train_sft, 5 epochs, batch 64: the updates that we assume of the paper's run.
PAPER_UPDATES = 207_865 * 5 // 64
PAPER_T_START = {"phi-3-mini": 0.4, "llama-2": 0.2, "stablelm-zephyr": 0.2}  # paper, section 6.1
# official code: DistiLLM with the skew KL for Phi-3 and StableLM, the skew reverse KL for Llama-2
PAPER_DISTILLM_LOSS = {"phi-3-mini": "skew_kl", "llama-2": "skew_rkl", "stablelm-zephyr": "skew_kl"}


@dataclass(frozen=True)
class Training:
    """One phase of training: AdamW, cosine to zero, as in the official code."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0


@dataclass(frozen=True)
class Setting:
    """Everything that decides the study at one scale."""

    scale: str
    size: instructions.Size
    vocab_size: int
    window: int  # tokens of a pre-training example
    dictionary_share: float  # of pre-training windows
    longest: tuple[int, int]  # tokens of prompt and response in training; the paper: 2,048 in all, response 512
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
        raise ValueError(f"unknown scale {scale!r} for the instruction-tuning study; known: {', '.join(SETTINGS)}")
    return SETTINGS[scale]


REFERENCES = ("teacher", "untrained")  # measured beside the methods: the teacher, the student before distillation


@dataclass(frozen=True)
class Run:
    """One student: what `config_hash` sees of it, together with the setting.

    Raises ValueError, naming the known ones, for an unknown scale, pair (by its teacher) or method.
    """

    scale: str
    method: str
    teacher: str
    seed: int
    learning_rate: float

    def __post_init__(self) -> None:
        setting(self.scale)
        if self.teacher not in models.PAIRS:
            pairs = ", ".join(f"{teacher} → {student}" for teacher, student in models.PAIRS.items())
            raise ValueError(f"unknown teacher {self.teacher!r}; known pairs: {pairs}")
        if self.method not in (*objectives.METHODS, *REFERENCES):
            known = ", ".join((*objectives.METHODS, *REFERENCES))
            raise ValueError(f"unknown method {self.method!r}; known: {known}")

    def __str__(self) -> str:
        return f"{self.method} {self.teacher} seed {self.seed} lr {self.learning_rate:g}"

    def config(self) -> dict:
        """Everything that decides the run's numbers, plain JSON."""
        return asdict(self) | {"setting": _digest(asdict(setting(self.scale))), "options": method_options(self)}


def method_options(run: Run) -> dict:
    """The method's hyperparameters: the paper's, per pair where the paper has them per pair."""
    settings = setting(run.scale)
    options = {
        "taid": {"t_start": PAPER_T_START[run.teacher], "alpha": settings.alpha},
        "taid_no_adaptive": {"t_start": PAPER_T_START[run.teacher]},
        "gkd": {"max_new_tokens": scores.MAX_NEW_TOKENS},
        "distillm": {"loss": PAPER_DISTILLM_LOSS[run.teacher], "max_new_tokens": scores.MAX_NEW_TOKENS},
    }
    return options.get(run.method, {})


class Bench:
    """The data of one setting in one process: tokeniser, encoded splits and the way to each cached model."""

    def __init__(self, settings: Setting):
        self.settings = settings
        self.data = instructions.build(settings.size)
        self.folder = sources.cache_dir() / "instruction_tuning" / f"{settings.scale}-{_digest(asdict(settings))}"
        self.tokenizer = self._tokenizer()
        self.collator = Collator(self.tokenizer.pad_token_id)
        self.train, self.validation, self.test = (
            self.encode(split) for split in (self.data.train, self.data.validation, self.data.test)
        )
        # copies share their example, and so its place in a cache of logits
        self.stream = [
            example
            for item, example in zip(self.data.train, self.train, strict=True)
            if len(example["prompt_ids"]) <= settings.longest[0] and len(example["response_ids"]) <= settings.longest[1]
            for _ in range(settings.question_copies if item.answers else 1)
        ]

    def encode(self, items: Sequence[instructions.Instruction]) -> list[dict]:
        return encode(self.tokenizer, [i.prompt for i in items], [i.response for i in items])

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        folder = self.folder / "tokenizer"
        if not folder.exists():
            texts = [f"{i.prompt} {i.response}" for i in self.data.train] + list(self.data.text["train"][:20_000])
            _save_whole(train_tokenizer(texts, self.settings.vocab_size, self.data.words), None, folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    def windows(self, prose: str) -> list[dict]:
        """Packed pre-training examples from "train" or "judge" prose, a share of them from the dictionary."""
        length = self.settings.window
        text = pack(self.tokenizer, self.data.text[prose], length)
        dictionary = pack(self.tokenizer, self.data.text["dictionary"] * 8, length)  # repeated, for many whole windows
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
    def judge(self):
        """The zoo's largest model, trained on prose of documents that no teacher or student has seen."""
        phases = [
            (self.settings.pretrain_judge, lambda: pack(self.tokenizer, self.data.text["judge"], self.settings.window)),
            (self.settings.tune_judge, lambda: self.encode(self.data.judge)),
        ]
        return self._model("judge", 1, phases)

    @cache
    def cached_teacher(self, name: str, split: str) -> CachedTeacher:
        """The teacher with its logits on the examples of "train", "validation" or "test" from disk."""
        return cached_teacher(
            self.teacher(name), getattr(self, split), self.collator, self.folder / "logits" / f"{name}-{split}"
        )

    def _model(self, name: str, seed: int, phases):
        def train():
            model = models.scale_model(name, len(self.tokenizer), self.tokenizer, seed)
            for number, (training, examples) in enumerate(phases):
                title = f"{name} seed {seed}, phase {number + 1} of {len(phases)}"
                fit(model, examples(), self.collator, training, seed=seed, checkpoints=work / str(number), title=title)
            return model, None

        work = self.folder / "work" / f"{name}-{seed}"
        model = _cached(self.folder / "models" / f"{name}-{seed}", train)
        shutil.rmtree(work, ignore_errors=True)
        return model

    def distilled(self, run: Run) -> tuple[torch.nn.Module, dict]:
        """(student, {"seconds": of training, "logs": the objective's last}) of a run, trained now unless cached."""

        def train():
            student = self.student(models.PAIRS[run.teacher], run.seed)
            objective = objectives.objective(run.method, **method_options(run))
            started = time.perf_counter()
            trainer = fit(
                student, self.stream, self.collator, replace(self.settings.distil, learning_rate=run.learning_rate),
                seed=run.seed, objective=objective, tokenizer=self.tokenizer,
                teacher=self.cached_teacher(run.teacher, "train") if objective.uses_teacher else None,
                validation=self.validation if objective.rollouts is not None else None,
                validations=self.settings.validations,
            )
            return student, {"seconds": time.perf_counter() - started, "logs": trainer.objective.logs()}

        folder = self.folder / "runs" / _digest(run.config())
        return _cached(folder, train), json.loads((folder / "record.json").read_text())

    def judge_of(self, student: str, seed: int, split: str) -> scores.Judge:
        """The judge with its scale for the responses of one pre-trained student on one split."""
        items = [i for i in getattr(self.data, split) if i.category in instructions.JUDGED]
        model = self.judge()
        path = self.folder / "scale" / f"{student}-{seed}-{split}.json"
        if not path.exists():
            untrained = generation.generate(
                self.student(student, seed), self.tokenizer, self.encode(items), scores.MAX_NEW_TOKENS, scores.TEMPERATURE, seed
            )
            ends = {}
            for end, responses in (("human", [i.response for i in items]), ("untrained", untrained)):
                ends[end] = {
                    category: mean(scores.log_likelihoods(model, self.tokenizer, self.collator, *chosen))
                    for category, chosen in scores.by_category(items, responses).items()
                }
            write_whole(path, json.dumps(ends))
        return scores.Judge(model, self.tokenizer, self.collator, **json.loads(path.read_text()))

    def measure(self, model, teacher: str, seed: int, split: str) -> dict[tuple[str, str], float]:
        """{(metric, task): value} of a student (or teacher) of a pair on a split; task "average" over categories."""
        items, examples = getattr(self.data, split), getattr(self, split)
        judge = self.judge_of(models.PAIRS[teacher], seed, split)
        found = scores.evaluate(model, self.tokenizer, judge, items, seed)
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
        here.judge()
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
        model = here.student(models.PAIRS[run.teacher], run.seed)
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
    config = run.config() | {"experiment": experiment}
    shared = dict(
        experiment=experiment, scale=run.scale, method=run.method, teacher=run.teacher,
        student=models.PAIRS[run.teacher], seed=run.seed, config=config, config_hash=results.config_hash(config),
        seconds=round(seconds, 2), **asdict(results.provenance()),
    )
    return [
        results.Row(task=task, metric=metric, value=value, unit=units[metric][0], higher_is_better=units[metric][1], **shared)
        for (metric, task), value in values.items()
    ]


@cache
def bench(scale: str) -> Bench:
    """One Bench per process and scale."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return Bench(setting(scale))


def fit(
    model, examples, collator, training: Training, *, seed: int, objective: objectives.Objective | str = "sft",
    teacher=None, tokenizer=None, validation=None, validations: int = 1, checkpoints: Path | None = None,
    title: str = "",
) -> DistillationTrainer:
    """Train `model` in place for one phase; with `checkpoints`, a killed run resumes from there; with a `title`, it
    tells its progress four times."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=str(checkpoints or scratch), seed=seed, max_steps=training.steps,
            per_device_train_batch_size=training.batch_size, learning_rate=training.learning_rate,
            lr_scheduler_type="cosine", warmup_steps=training.warmup_steps, max_grad_norm=1.0, weight_decay=0.0,
            save_strategy="steps" if checkpoints else "no", save_steps=max(training.steps // 4, 1), save_total_limit=2,
            eval_strategy="no" if validation is None else "steps", eval_steps=max(training.steps // validations, 1),
            per_device_eval_batch_size=256, prediction_loss_only=True, logging_steps=max(training.steps // 10, 1),
            report_to="none", disable_tqdm=True, remove_unused_columns=False, use_cpu=not torch.cuda.is_available(),
        )
        trainer = DistillationTrainer(
            model, teacher, objective, args=arguments, train_dataset=examples, eval_dataset=validation,
            data_collator=collator, processing_class=tokenizer,
        )
        resume = last_checkpoint(arguments.output_dir) if checkpoints else None
        trainer.remove_callback(PrinterCallback)
        if title:
            trainer.add_callback(_Progress(title))
        trainer.train(resume_from_checkpoint=resume)
    return trainer


class _Progress(TrainerCallback):
    """One line a quarter of a phase, with the time left."""

    def __init__(self, title: str):
        self.title, self.started, self.first_step = title, time.monotonic(), None

    def on_step_end(self, args, state, control, **kwargs):
        if self.first_step is None:  # a resumed run does not start at 0
            self.first_step = state.global_step - 1
        if state.global_step % max(state.max_steps // 4, 1) == 0:
            pace = (time.monotonic() - self.started) / (state.global_step - self.first_step)
            left = jobs.clock(pace * (state.max_steps - state.global_step))
            print(f"  {self.title}: step {state.global_step} of {state.max_steps}, {left} left", flush=True)


def _cached(folder: Path, train: Callable[[], tuple[PreTrainedModel, dict | None]]) -> PreTrainedModel:
    """The model in `folder`; if there is none, or a damaged one, the model and record that `train` makes, kept there."""
    if folder.exists():
        try:
            return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
        except Exception as error:  # whatever the loader finds wrong
            warnings.warn(f"the model in {folder} is damaged ({error}): training it again", stacklevel=2)
            shutil.rmtree(folder)
    _save_whole(*train(), folder)
    return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)


def _save_whole(thing, record: dict | None, folder: Path) -> None:
    """`save_pretrained` into a temporary folder, then rename: a kill leaves a whole model or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        thing.save_pretrained(Path(scratch) / "whole")
        if record is not None:
            write_whole(Path(scratch) / "whole" / "record.json", json.dumps(record))
        if not folder.exists():
            os.replace(Path(scratch) / "whole", folder)


def _digest(config: dict) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode()).hexdigest()[:12]
