"""The continued pre-training study (Table 2): a real teacher, and students cut out of it.

The student is the teacher with a few of its layers (`taid.studies.zoo`), healed by plain fine-tuning on prose:
one healed student per seed, from which all methods start. They then make one pass over the same windows in
the same order; the teacher's hidden states there are computed once for all methods and seeds. What is made
is kept below `taid.files.cache_dir()` under a digest of what made it, whole or not at all.
"""

import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from taid import objectives, schedule
from taid.data import Collator, pack, train_tokenizer
from taid.evaluation import harness, likelihood
from taid.files import cache_dir
from taid.studies import lm_tasks, prose, study, zoo
from taid.studies.study import Training, cached_model, digest, fit, precision
from taid.studies.zoo import prune
from taid.teacher import CachedTeacher, HiddenStates, Store, cached_teacher

TABLE2 = ("sft", "kl", "tvd", "adaptive_kl", "gjs", "skew_kl", "skew_rkl", "taid")  # the paper's order
REFERENCES = ("teacher", "untrained")  # measured beside: the teacher, the healed student before distillation

# Assumed of the paper's run, whose batch we do not know: 20B tokens in batches of 512 · 2,048.
PAPER_UPDATES = 20_000_000_000 // (512 * 2048)
PAPER_T_START = 0.4  # of its pair with this student, Phi-3 → TinyLlama (section 6.1); assumed here as well
PAPER = {  # for machines with accelerators; not run here
    "teacher": "microsoft/Phi-3-medium-4k-instruct",
    "student": "TinyLlama/TinyLlama_v1.1",
    "data": "HuggingFaceTB/smollm-corpus: the first 10%, about 20B tokens, one epoch",
    "tasks": harness.LEADERBOARD,
}


BATCH = 8  # windows, where nothing is trained
POOL = 8  # windows from which healing chooses, for one that a seed reads
SPREAD = 3  # windows cut for one that is taken, so that they are of more documents


@dataclass(frozen=True)
class Setting:
    """Everything that decides the study at one scale."""

    scale: str
    teacher: str
    kept_layers: int  # of the teacher's, in the student
    window: int  # tokens of an example
    heal: Training
    distil: Training  # its learning rate is replaced by each of the grid
    search_steps: int  # of the runs that choose a learning rate
    learning_rates: tuple[float, ...]
    validation: int  # windows
    test: int  # windows
    items: int  # of each task

    @property
    def student(self) -> str:
        return f"{self.teacher}-{self.kept_layers}-layers"


CPU = Setting(
    scale="cpu",
    teacher="smollm2-135m",
    kept_layers=6,
    window=64,
    heal=Training(400, 4, 1e-3, warmup_steps=20),
    distil=Training(160, 4, 3e-4),
    search_steps=40,
    learning_rates=(3e-4, 1e-3, 3e-3),
    validation=48,
    test=128,
    items=1000,
)
SMOKE = replace(
    CPU,
    scale="smoke",
    teacher="tiny-llama",  # made here: nothing large is fetched
    kept_layers=2,
    window=16,
    heal=Training(4, 4, 3e-3),
    distil=Training(4, 4, 3e-3),
    search_steps=2,
    learning_rates=(3e-3, 1e-2),
    validation=4,
    test=8,
    items=12,
)
SETTINGS = {setting.scale: setting for setting in (SMOKE, CPU)}


def setting(scale: str) -> Setting:
    """The setting of a scale. Raises ValueError that names the known ones; for "paper", what it would be."""
    if scale == "paper":
        raise ValueError(f"the paper's scale needs accelerators and its models, and is not run here: {PAPER}")
    if scale not in SETTINGS:
        raise ValueError(f"unknown scale {scale!r} for continued pre-training; known: {', '.join(SETTINGS)}")
    return SETTINGS[scale]


@dataclass(frozen=True)
class Run:
    """One student: what `config_hash` sees of it, together with the setting. `steps` of distillation.

    Raises ValueError, naming the known ones, for an unknown scale or method.
    """

    scale: str
    method: str
    seed: int
    learning_rate: float
    steps: int

    def __post_init__(self) -> None:
        setting(self.scale)
        if self.method not in (*TABLE2, *REFERENCES):
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join((*TABLE2, *REFERENCES))}")

    def __str__(self) -> str:
        return f"{self.method} seed {self.seed} lr {self.learning_rate:g}, {self.steps} steps"

    @property
    def teacher(self) -> str:
        return setting(self.scale).teacher

    def config(self) -> dict:
        """Everything that decides the run's numbers, plain JSON."""
        made = {"setting": digest(asdict(setting(self.scale))), "precision": precision()}
        return asdict(self) | made | {"options": self.options()}

    def options(self) -> dict:
        """The hyperparameters of the method; α of TAID keeps α · N as in the paper, α = 5e-4."""
        alpha = schedule.scale_alpha(5e-4, max(self.steps, 1), PAPER_UPDATES)
        return {"t_start": PAPER_T_START, "alpha": alpha} if self.method == "taid" else {}


class Bench:
    """The data of one setting in one process: teacher, windows, and the way to each cached model."""

    def __init__(self, settings: Setting):
        self.settings = settings
        root = cache_dir() / "continued_pretraining"
        self.folder = root / f"{settings.scale}-{digest(asdict(settings))}"
        self.text = prose.corpus()
        self.teacher, self.tokenizer = zoo.smollm2() if settings.scale != "smoke" else self._tiny_teacher()
        self.collator = Collator(self.tokenizer.pad_token_id)
        passes, heals = (phase.steps * phase.batch_size for phase in (settings.distil, settings.heal))
        windows = self._windows("train", passes + POOL * heals)
        self.train, self.healing = numbered(windows[:passes]), windows[passes:]
        self.validation = numbered(self._windows("validation", settings.validation))
        self.test = numbered(self._windows("test", settings.test))

    def _windows(self, split: str, count: int) -> list[dict]:
        """So many windows in random order, of random documents: as many of these as it takes."""
        rng, windows = random.Random(0), []
        for text in rng.sample(self.text[split], len(self.text[split])):
            if len(windows) >= SPREAD * count:
                break
            windows += pack(self.tokenizer, [text], self.settings.window)
        if len(windows) < count:
            raise ValueError(f"the {split} documents hold {len(windows)} windows, not {count}: ask for fewer")
        return rng.sample(windows, count)

    def _tiny_teacher(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """For smoke: a Llama of four layers that has learned next to nothing."""
        tokenizer = train_tokenizer(self.text["validation"], 512)
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

        def train() -> tuple[PreTrainedModel, None]:
            model = AutoModelForCausalLM.from_config(config)
            windows = pack(tokenizer, self.text["validation"], self.settings.window)
            fit(model, windows, Collator(tokenizer.pad_token_id), Training(20, 8, 1e-2), seed=0)
            return model, None

        return cached_model(self.folder / "models" / "teacher", train), tokenizer

    @cache
    def cached_teacher(self, split: str) -> CachedTeacher:
        """The teacher with its hidden states at the windows of "train", "validation" or "test" from disk."""
        return self.cache_of(getattr(self, split), split, HiddenStates())

    def cache_of(self, examples: list[dict], name: str, store: Store) -> CachedTeacher:
        """The teacher with what `store` keeps of it at these examples, on disk under `name`."""
        folder = self.folder / "logits" / name
        return cached_teacher(self.teacher, examples, self.collator, folder, BATCH, store=store)

    def student(self, seed: int) -> PreTrainedModel:
        """The pruned student of a seed, healed on windows of its own, none of which distillation sees."""

        def train() -> tuple[PreTrainedModel, None]:
            heal = self.settings.heal
            windows = random.Random(seed).sample(self.healing, heal.steps * heal.batch_size)
            model = prune(self.teacher, self.settings.kept_layers).requires_grad_()
            title = f"healing, seed {seed}"
            self.fit(model, numbered(windows), heal, seed=seed, checkpoints=work, title=title)
            return model, None

        work = self.folder / "work" / f"healed-{seed}"
        model = cached_model(self.folder / "models" / f"healed-{seed}-{precision()}", train)
        shutil.rmtree(work, ignore_errors=True)
        return model

    def distilled(self, run: Run) -> tuple[PreTrainedModel, dict]:
        """(student, {"seconds": of training, "logs": the objective's last}), trained unless cached."""

        def train() -> tuple[PreTrainedModel, dict]:
            student = self.student(run.seed)
            objective = objectives.objective(run.method, **run.options())
            training = replace(self.settings.distil, learning_rate=run.learning_rate, steps=run.steps)
            teacher = self.cached_teacher("train") if objective.uses_teacher else None
            started = time.perf_counter()
            trainer = self.fit(
                student, self.train, training, seed=run.seed, objective=objective, teacher=teacher
            )
            return student, {"seconds": time.perf_counter() - started, "logs": trainer.objective.logs()}

        folder = self.folder / "runs" / digest(run.config())
        return cached_model(folder, train), json.loads((folder / "record.json").read_text())

    def fit(self, model, examples, training: Training, **options):
        """`taid.studies.study.fit` with what all runs share."""
        options |= {"tokenizer": self.tokenizer, "bf16": precision() == "bf16"}
        return fit(model, examples, self.collator, training, **options)

    def likelihoods(self, model: PreTrainedModel, split: str) -> dict[tuple[str, str], float]:
        """{(metric, "average"): nats/token} on the windows of a split."""
        examples = getattr(self, split)
        losses = likelihood.held_out_loss(model, examples, self.collator, BATCH)
        divergence = likelihood.kl_to_teacher(
            model, self.cached_teacher(split), examples, self.collator, len(self.tokenizer), BATCH
        )
        return {
            ("held_out_loss", "average"): sum(losses) / len(losses),
            ("kl_to_teacher", "average"): divergence,
        }

    def tasks(self) -> Path:
        """The folder of the tasks for lm-eval, made now unless it is there."""
        folder = self.folder / "tasks"
        if not all((folder / f"{task}.yaml").exists() for task in lm_tasks.TASKS):
            lm_tasks.write(lm_tasks.build(self.text["tasks"], self.settings.items, seed=0), folder)
        return folder

    def scores(self, model: PreTrainedModel) -> dict[tuple[str, str], float]:
        """{(metric, task): value} of lm-eval on the tasks, with chance and standard error."""
        lm, manager = harness.LocalModel(model, self.tokenizer), harness.local_tasks(self.tasks())
        found = harness.evaluate(lm, manager, list(lm_tasks.TASKS), lm_tasks.METRIC)
        values = {}
        for task, score in found.items():
            values["accuracy", task] = score.mean
            values["standard_error", task] = score.standard_error
            values["chance", task] = lm_tasks.TASKS[task].chance
        return values


def numbered(examples: list[dict]) -> list[dict]:
    """The examples with their positions as "index", as a cache of logits needs them."""
    return [example | {"index": i} for i, example in enumerate(examples)]


UNITS = {  # metric -> (unit, whether higher is better)
    "held_out_loss": ("nats/token", False),
    "kl_to_teacher": ("nats/token", False),
    "accuracy": ("fraction", True),
    "standard_error": ("fraction", False),
    "chance": ("fraction", False),
    "train_seconds": ("seconds", False),
}


def prepare(scale: str, kind: str, which: int | str) -> None:
    """A job: make and cache a "student" (`which`: its seed) or the teacher's "logits" (a split)."""
    here = bench(scale)
    if kind == "student":
        here.student(int(which))
    else:
        here.cached_teacher(str(which))


def measure(run: Run, split: str) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of one run on a split; task scores on "test" alone."""
    started = time.perf_counter()
    here, values = bench(run.scale), {}
    if run.method == "teacher":
        model = here.teacher
    elif run.method == "untrained":
        model = here.student(run.seed)
    else:
        model, record = here.distilled(run)
        values["train_seconds", "average"] = record["seconds"]
    values |= here.likelihoods(model, split)
    if split == "test":
        values |= here.scores(model)
    return values, time.perf_counter() - started


def rows(run: Run, experiment: str, values: Mapping[tuple[str, str], float], seconds: float):
    """The rows of one cell."""
    return study.rows(run, experiment, values, seconds, UNITS, student=setting(run.scale).student)


@cache
def bench(scale: str) -> Bench:
    """One Bench per process and scale."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return Bench(setting(scale))
