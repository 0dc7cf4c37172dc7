"""The continued pre-training study (Table 2): a real teacher, and students cut out of it.

The student is the teacher with a few of its layers (`taid.studies.zoo.prune`), healed by plain fine-tuning on
prose: one healed student per seed, from which all methods start. They then make one pass over the same
windows in the same order; the teacher's hidden states there are computed once for all methods and seeds.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from taid import schedule
from taid.data import Collator, pack, train_tokenizer
from taid.evaluation import harness, likelihood
from taid.studies import lm_tasks, prose, smollm_corpus, study, zoo
from taid.studies.study import PAPER_ALPHA, REFERENCES, Logits, named
from taid.studies.training import Training, cached_model, fit, on_device, precision, pretrained
from taid.teacher import CachedTeacher, HiddenStates, Store, cached_teacher

TABLE2 = ("sft", "kl", "tvd", "adaptive_kl", "gjs", "skew_kl", "skew_rkl", "taid")  # the paper's order

# Assumed of the paper's run, whose batch we do not know: 20B tokens in batches of 512 · 2,048.
PAPER_UPDATES = 20_000_000_000 // (512 * 2048)
PAPER_T_START = 0.4  # of its pair with this student, Phi-3 → TinyLlama (section 6.1); assumed here as well
BATCH = 8  # windows, where nothing is trained
POOL = 8  # windows from which healing chooses, for one that a seed reads
SPREAD = 3  # windows cut for one that is taken, so that they are of more documents


@dataclass(frozen=True)
class Setting(study.Setting):
    """Everything that decides the study at one scale."""

    scale: str
    teacher: str
    kept_layers: int  # of the teacher's, in the student
    window: int  # tokens of an example
    heal: Training
    distil: Training
    search_steps: int  # of the runs that choose a learning rate
    learning_rates: tuple[float, ...]
    validation: int  # windows
    test: int  # windows
    items: int  # of each task
    together: ClassVar[int] = BATCH
    tasks: ClassVar[tuple[str, ...]] = lm_tasks.FIRST

    @property
    def precision(self) -> str:
        return precision()

    @property
    def student(self) -> str:
        return f"{self.teacher}-{self.kept_layers}-layers"

    def source(self, folder: Path) -> "Prose":
        return Prose(self, folder)

    def fit_options(self, here: "ContinuedPretraining", run: "Run") -> dict[str, Any]:
        return {"bf16": precision() == "bf16"}

    def scores(self, here: "ContinuedPretraining", model: PreTrainedModel) -> dict[tuple[str, str], float]:
        """{(metric, task): value} of lm-eval on the tasks, with chance and standard error."""
        lm = harness.LocalModel(model, here.source.tokenizer)
        manager = harness.local_tasks(here.source.tasks())
        found = harness.evaluate(lm, manager, self.tasks, lm_tasks.METRIC)
        values = {}
        for task, score in found.items():
            values["accuracy", task] = score.mean
            values["standard_error", task] = score.standard_error
            values["chance", task] = lm_tasks.TASKS[task].chance
        return values


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
GPU = replace(  # one GPU: as much of the prose as healing and distillation can take, twice the items
    CPU,
    scale="gpu",
    heal=Training(200, 8, 1e-3, warmup_steps=20),
    distil=Training(960, 16, 3e-4),
    search_steps=240,
    test=512,
    items=2000,
)
SETTINGS: dict[str, Any] = {s.scale: s for s in (SMOKE, CPU, GPU, smollm_corpus.PAPER["table2"])}


class Cell(study.Run):
    """A cell of the table: its scale names teacher and student."""

    settings: ClassVar[Mapping[str, Any]] = SETTINGS

    @property
    def teacher(self) -> str:
        return self.setting.teacher

    @property
    def student(self) -> str:
        return self.setting.student


@dataclass(frozen=True)
class Run(Cell):
    """One student; `steps` of distillation.

    Raises ValueError, naming the known ones, for an unknown scale or method.
    """

    known: ClassVar[Sequence[str]] = (*TABLE2, *REFERENCES)
    scale: str
    method: str
    seed: int
    learning_rate: float
    steps: int

    def __post_init__(self) -> None:
        named(self.settings, self.scale, "scale")
        named(dict.fromkeys(self.known), self.method, "method")

    def __str__(self) -> str:
        return f"{self.method} seed {self.seed} lr {self.learning_rate:g}, {self.steps} steps"

    @property
    def training(self) -> Training:
        return replace(super().training, steps=self.steps)

    @property
    def options(self) -> dict[str, Any]:
        """α of TAID keeps α · N as in the paper."""
        alpha = schedule.scale_alpha(PAPER_ALPHA, max(self.steps, 1), PAPER_UPDATES)
        return {"t_start": PAPER_T_START, "alpha": alpha} if self.method == "taid" else {}

    def config(self) -> dict[str, Any]:
        return super().config() | {"precision": self.setting.precision}


class Prose(study.Source):
    """Windows of public prose; SmolLM2 and pieces of it, or, for smoke, of a teacher that is made here."""

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder = setting, folder
        self.text = prose.corpus()
        load = {"smollm2-135m": zoo.smollm2, "tiny-llama": self._tiny_llama}[setting.teacher]
        self._teacher, self.tokenizer = load()
        self.collator = Collator(self.tokenizer.pad_token_id)
        passes, heals = (phase.steps * phase.batch_size for phase in (setting.distil, setting.heal))
        windows = self._windows("train", passes + POOL * heals)
        self.healing = windows[passes:]
        self._examples = {
            "train": numbered(windows[:passes]),
            "validation": numbered(self._windows("validation", setting.validation)),
            "test": numbered(self._windows("test", setting.test)),
        }

    def examples(self, split: str) -> list[dict]:
        return self._examples[split]

    def _windows(self, split: str, count: int) -> list[dict]:
        """So many windows in random order, of random documents: as many of these as it takes."""
        rng = random.Random(0)
        windows: list[dict] = []
        for text in rng.sample(self.text[split], len(self.text[split])):
            if len(windows) >= SPREAD * count:
                break
            windows += pack(self.tokenizer, [text], self.setting.window)
        if len(windows) < count:
            raise ValueError(f"the {split} documents hold {len(windows)} windows, not {count}: ask for fewer")
        return rng.sample(windows, count)

    def _tiny_llama(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A Llama of four layers that has learned next to nothing."""
        tokenizer = train_tokenizer(self.text["validation"], 512)
        shape = zoo.Shape("llama", hidden=32, intermediate=64, layers=4, heads=4, key_value_heads=4)

        def train() -> tuple[PreTrainedModel, None]:
            model = zoo.fresh_model(shape, 512, tokenizer, seed=0, max_length=256)
            windows = pack(tokenizer, self.text["validation"], self.setting.window)
            fit(model, windows, Collator(tokenizer.pad_token_id), Training(20, 8, 1e-2), seed=0)
            return model, None

        return cached_model(self.folder / "models" / "teacher", train), tokenizer

    def teacher(self, name: str) -> PreTrainedModel:
        return self._teacher

    def student(self, name: str, seed: int) -> PreTrainedModel:
        """The pruned student of a seed, healed on windows of its own, none of which distillation sees."""
        heal = self.setting.heal

        def windows() -> list[dict]:
            return numbered(random.Random(seed).sample(self.healing, heal.steps * heal.batch_size))

        return pretrained(
            self.folder,
            f"healed-{seed}-{precision()}",
            seed,
            lambda: zoo.prune(self._teacher, self.setting.kept_layers).requires_grad_(),
            [(heal, windows)],
            collator=self.collator,
            tokenizer=self.tokenizer,
            bf16=precision() == "bf16",
        )

    def tasks(self) -> Path:
        """The folder of the tasks for lm-eval, made now unless it is there."""
        folder = self.folder / "tasks"
        if not all((folder / f"{task}.yaml").exists() for task in self.setting.tasks):
            built = lm_tasks.build(self.text["tasks"], self.setting.items, 0, self.setting.tasks)
            lm_tasks.write(built, folder)
        return folder


class ContinuedPretraining(study.Study[Run]):
    """Table 2: likelihood and task scores of students that were distilled on running text."""

    name = "continued_pretraining"
    settings: ClassVar[Mapping[str, Setting]] = SETTINGS

    def keep_logits(self, name: str, split: str) -> Logits:
        """The teacher with its hidden states at the windows of a split from disk."""
        return self.cache_of(self.source.examples(split), split, HiddenStates())

    def cache_of(self, examples: list[dict], name: str, store: Store) -> CachedTeacher:
        """The teacher with what `store` keeps of it at these examples, on disk under `name`."""
        folder, teacher = self.folder / "logits" / name, self.source.teacher(self.setting.teacher)
        size = self.setting.together
        return cached_teacher(on_device(teacher), examples, self.collator, folder, size, store=store)

    def values(self, model: PreTrainedModel, run: Run, split: str) -> dict[tuple[str, str], float]:
        """Likelihoods with the task "average"; scores of the tasks on "test" alone."""
        examples, teacher = self.source.examples(split), self.teacher_logits(run.teacher, split)
        size, entries = self.setting.together, len(self.source.tokenizer)
        losses = likelihood.held_out_loss(model, examples, self.collator, size)
        divergence = likelihood.kl_to_teacher(model, teacher, examples, self.collator, entries, size)
        values = {
            ("held_out_loss", "average"): sum(losses) / len(losses),
            ("kl_to_teacher", "average"): divergence,
        }
        return values | self.scores(model) if split == "test" else values

    def prepare(self, kind: str, name: str, which: int | str) -> None:
        """As of every study, and the "tasks"."""
        if kind == "tasks":
            self.source.tasks()
        else:
            super().prepare(kind, name, which)

    def scores(self, model: PreTrainedModel) -> dict[tuple[str, str], float]:
        """{(metric, task): value} of the setting's tasks."""
        return self.setting.scores(self, model)


def numbered(examples: list[dict]) -> list[dict]:
    """The examples with their positions as "index", as a cache of logits needs them."""
    return [example | {"index": i} for i, example in enumerate(examples)]


UNITS = {  # metric -> (unit, whether higher is better)
    "held_out_loss": ("nats/token", False),  # over examples, which are of one length
    "kl_to_teacher": ("nats/token", False),
    "accuracy": ("fraction", True),
    "standard_error": ("fraction", False),
    "chance": ("fraction", False),
    "train_seconds": ("seconds", False),
}
at = partial(study.at, ContinuedPretraining)
measure = partial(study.measure, ContinuedPretraining)
rows = partial(study.rows, units=UNITS)
