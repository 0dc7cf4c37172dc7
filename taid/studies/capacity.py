"""The capacity gap (Table 6, Figure 2 right): one student, teachers of growing size, on natural text.

The zoo keeps Pythia's architecture (GPT-NeoX) and the paper's ratios at 1/3,000 of the parameters. Documents
of three kinds of prose are shared out whole, before anything is tokenised: teachers and students are
pre-trained on one part, students distilled on another (as the paper distils a pre-trained Pythia on another
corpus), and judged on a third by the last words of sentences, whole, as LAMBADA does, and by held-out loss.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

from torch.nn.functional import log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from taid import losses, objectives, results, schedule
from taid.data import IGNORE, Collator, batches, pack, train_tokenizer
from taid.evaluation.last_words import last_word_scores, last_words
from taid.logits import align_vocabularies
from taid.studies import prose, smollm_corpus, study, zoo
from taid.studies.study import PAPER_ALPHA, PAPER_UPDATES, REFERENCES, Logits, named
from taid.studies.training import Training, device, pretrained, save_whole
from taid.teacher import LiveTeacher

ZOO = {  # name -> (hidden size, layers, heads); at 1,024 entries 1/3,000 of Pythia's parameters
    "pythia-31m": (8, 2, 2),
    "pythia-70m": (16, 2, 2),
    "pythia-160m": (32, 2, 4),
    "pythia-410m": (48, 3, 3),
    "pythia-1b": (72, 4, 4),
    "pythia-2.8b": (128, 4, 8),
    "pythia-6.9b": (208, 4, 13),
}
STUDENT = "pythia-70m"
TEACHERS = ("pythia-410m", "pythia-1b", "pythia-2.8b", "pythia-6.9b")
METHODS = ("taid", "skew_kl", "kl", "rkl", "gjs")  # the first two are the paper's
T_START = 0.2  # the paper's for its wider gaps (Table 1); what it used here we do not know
SHARES = {"test": 0.10, "validation": 0.05, "distil": 0.40, "train": 0.45}  # of the documents
NONE = "none"  # the teacher of a student that has none


@dataclass(frozen=True)
class Setting(study.Setting):
    """Everything that decides the study at one scale."""

    scale: str
    documents: int  # at most, of each kind of prose in each split
    vocab_size: int
    window: int  # tokens of an example
    longest_word: int  # tokens of a last word; the rest of the window is its context
    pool: int  # windows to distil on
    held_out: int  # windows in validation, and in test
    last_words: int  # items in the test
    pretrain_student: Training
    pretrain_teacher: Training  # its learning rate is that of a hidden size of 1, see `teacher_training`
    distil: Training
    learning_rates: tuple[float, ...]
    together: ClassVar[int] = 128
    zoo: ClassVar[Mapping[str, tuple[int, int, int]]] = ZOO

    def teacher_training(self, name: str) -> Training:
        """Learning rate ∝ 1 / hidden size (Yang et al. 2022, μP for Adam): one dial for all sizes."""
        training = self.pretrain_teacher
        return replace(training, learning_rate=training.learning_rate / self.zoo[name][0])

    @property
    def digest(self) -> str:
        return results.config_hash(asdict(self) | {"zoo": self.zoo})

    def source(self, folder: Path) -> "ScaleModels":
        return ScaleModels(self, folder)


CPU = Setting(
    scale="cpu",
    documents=1000,
    vocab_size=1024,
    window=64,
    longest_word=8,
    pool=4800,
    held_out=512,
    last_words=8000,
    pretrain_student=Training(2000, 8, 1e-2, warmup_steps=50),
    pretrain_teacher=Training(3600, 8, 0.4, warmup_steps=100),
    distil=Training(900, 8, 1e-2),
    learning_rates=(3e-3, 1e-2, 3e-2),
)
SMOKE = replace(
    CPU,
    scale="smoke",
    documents=3,
    vocab_size=320,
    pool=24,
    held_out=8,
    last_words=20,
    pretrain_student=Training(2, 4, 1e-2),
    pretrain_teacher=Training(2, 4, 0.4),
    distil=Training(3, 4, 1e-2),
    learning_rates=(3e-3, 1e-2),
)


class Wider(Setting):
    """The same zoo at twice the width: four times the parameters of a layer."""

    zoo: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        name: (2 * hidden, layers, heads) for name, (hidden, layers, heads) in ZOO.items()
    }


GPU = Wider(**vars(CPU) | {"scale": "gpu", "window": 128, "pool": 5400, "distil": Training(900, 24, 1e-2)})
SETTINGS: dict[str, Any] = {s.scale: s for s in (SMOKE, CPU, GPU, smollm_corpus.PAPER["table6"])}


@dataclass(frozen=True)
class Run(study.Run):
    """One student; the last three fields are the map's.

    Raises ValueError, naming the known ones, for an unknown scale, model or method.
    """

    settings: ClassVar[Mapping[str, Any]] = SETTINGS
    scale: str
    method: str
    teacher: str
    seed: int
    learning_rate: float
    student: str = STUDENT
    pace: float = 1.0  # steps, as a multiple of the setting's
    temperature: float = 1.0  # the student learns from softmax(z / temperature)

    def __post_init__(self) -> None:
        named(self.settings, self.scale, "scale")
        named(dict.fromkeys((*TEACHERS, NONE)), self.teacher, "teacher")
        named(ZOO, self.student, "student")
        named(dict.fromkeys((*objectives.METHODS, *REFERENCES)), self.method, "method")

    def __str__(self) -> str:
        return f"{self.method} {self.teacher} {self.task} seed {self.seed} lr {self.learning_rate:g}"

    @property
    def task(self) -> str:
        """Where the run differs from Table 6: the task of its rows, "base" where it does not."""
        if self.student != STUDENT:
            return self.student
        if self.pace != 1:
            return f"steps × {self.pace:g}"
        return "base" if self.temperature == 1 else f"τ = {self.temperature:g}"

    @property
    def training(self) -> Training:
        whole = super().training
        steps, warmup_steps = (round(self.pace * count) for count in (whole.steps, whole.warmup_steps))
        return replace(whole, steps=steps, warmup_steps=warmup_steps)

    @property
    def options(self) -> dict[str, Any]:
        """TAID's α, with α · N that of the paper's Table 1: for Table 6 an assumption of ours."""
        if self.method != "taid":
            return {}
        alpha = schedule.scale_alpha(PAPER_ALPHA, self.training.steps, PAPER_UPDATES)
        return {"t_start": T_START, "alpha": alpha}


def around(runs: Iterable[Run], methods: Sequence[str], seeds: int) -> list[Run]:
    """The map around runs of Table 6: of methods and references, on the first seeds, by the smallest and the largest
    teacher."""
    ends = (TEACHERS[0], TEACHERS[-1], NONE)
    kept = (*methods, *REFERENCES)
    bases = [r for r in runs if r.seed < seeds and r.teacher in ends and r.method in kept]
    return [each for run in bases for each in variants(run) if matters(run, each)]


def variants(run: Run) -> list[Run]:
    """The map around a run of Table 6: one thing changed at a time."""
    return [
        *(replace(run, student=student) for student in ("pythia-31m", "pythia-160m")),
        *(replace(run, pace=pace) for pace in (0.5, 2.0)),
        *(replace(run, temperature=temperature) for temperature in (0.5, 2.0)),
    ]


def matters(run: Run, variant: Run) -> bool:
    """A teacher changes with the temperature alone, an untrained student with its size alone."""
    if run.method == "teacher":
        return variant.temperature != run.temperature
    return run.method != "untrained" or variant.student != run.student


def model(name: str, vocab_size: int, window: int, tokenizer, seed: int, sizes=ZOO) -> PreTrainedModel:
    """A freshly initialised model of the zoo, as `taid.studies.zoo.fresh_model` makes them."""
    hidden, layers, heads = sizes[name]
    shape = zoo.Shape("gpt_neox", hidden, 4 * hidden, layers, heads, heads)
    return zoo.fresh_model(shape, vocab_size, tokenizer, seed, max_length=window)


def documents(limit: int) -> dict[str, list[str]]:
    """{split: texts}, at most `limit` of each kind of prose in each; no document is in two splits."""
    return prose.corpus(SHARES, training=("train", "distil"), limit=limit)


def evenly(items: Sequence[dict], count: int) -> list[dict]:
    """`count` examples, evenly spaced, numbered anew. Raises ValueError where there are fewer."""
    if len(items) < count:
        raise ValueError(f"asked for {count} examples of {len(items)}: ask for fewer, or for more documents")
    return [items[i * len(items) // count] | {"index": i} for i in range(count)]


def text_scores(
    logits_of: Logits, teacher: Logits | None, examples: Iterable[dict], known: int | None = None
) -> dict[str, float]:
    """Means over tokens of held-out loss, entropy and, with a teacher, KL(teacher ‖ model) [nats/token]. `known`
    tokens of the tokenizer are what both vocabularies share, where their tables differ in padding."""
    sums: defaultdict[str, float] = defaultdict(float)
    count = 0
    for batch in examples:
        labels = batch["labels"][:, 1:]
        labels = labels[labels != IGNORE]
        logits = logits_of(batch).float()  # [n, V]
        log_q = log_softmax(logits, -1)
        sums["held_out_loss"] -= log_q.gather(-1, labels[:, None]).sum().item()
        sums["entropy"] -= (log_q.exp() * log_q).sum().item()
        if teacher:
            both = align_vocabularies(logits, teacher(batch), known)
            sums["kl_to_teacher"] += losses.forward_kl(*both).sum().item()
        count += labels.numel()
    return {metric: total / count for metric, total in sums.items()}


def softened(logits_of: Logits, temperature: float) -> Logits:
    """z / temperature: softer distributions above 1, sharper ones below."""
    return logits_of if temperature == 1 else lambda batch: logits_of(batch) / temperature


class ScaleModels(study.Source):
    """Public prose, and models of Pythia's class trained on it from scratch."""

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder = setting, folder
        self.documents = documents(setting.documents)
        self.collator = Collator(self.tokenizer.pad_token_id)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:  # type: ignore[override]  # made when it is asked for
        folder = self.folder / "tokenizer"
        if not folder.exists():
            save_whole(train_tokenizer(self.documents["train"], self.setting.vocab_size), None, folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    @cached_property
    def windows(self) -> dict[str, list[dict]]:
        """Windows to "distil" on, and held-out ones for "validation" and "test"."""
        window, held_out = self.setting.window, self.setting.held_out
        sizes = {"distil": self.setting.pool, "validation": held_out, "test": held_out}
        return {s: evenly(pack(self.tokenizer, self.documents[s], window), n) for s, n in sizes.items()}

    def pretraining(self) -> list[dict]:
        """Windows for teachers and students before distillation."""
        return pack(self.tokenizer, self.documents["train"], self.setting.window)

    def examples(self, split: str) -> list[dict]:
        return self.windows[split]

    def last_words(self, split: str) -> list[dict]:
        """All of a split; the test asks `evenly(…, last_words)` of them."""
        longest = self.setting.longest_word
        return last_words(self.tokenizer, self.documents[split], self.setting.window - longest, longest)

    @cached_property
    def items(self) -> list[dict]:
        return evenly(self.last_words("test"), self.setting.last_words)

    def chance(self) -> float:
        """Share of the test's words that are the most frequent one of the validation documents [percent]."""
        words = Counter(tuple(item["response_ids"]) for item in self.last_words("validation"))
        ((word, _),) = words.most_common(1)
        return 100 * mean(tuple(item["response_ids"]) == word for item in self.items)

    def student(self, name: str, seed: int) -> PreTrainedModel:
        """Pre-trained from a seed (initialisation and order of data)."""
        return self._model(name, seed, self.setting.pretrain_student)

    def teacher(self, name: str) -> PreTrainedModel:
        return self._model(name, 0, self.setting.teacher_training(name))

    def _model(self, name: str, seed: int, training: Training) -> PreTrainedModel:
        def fresh() -> PreTrainedModel:
            setting = self.setting
            return model(name, len(self.tokenizer), setting.window, self.tokenizer, seed, setting.zoo)

        phases = [(training, self.pretraining)]
        return pretrained(self.folder, f"{name}-{seed}", seed, fresh, phases, collator=self.collator)


class Capacity(study.Study[Run]):
    """Table 6 and the map around it."""

    name = "capacity"
    settings: ClassVar[Mapping[str, Setting]] = SETTINGS
    training_split = "distil"

    def run_folder(self, run: Run) -> Path:
        return self.folder / "runs" / results.config_hash(run.config())

    def target(self, run: Run) -> Logits:
        return softened(super().target(run), run.temperature)

    def values(self, model: PreTrainedModel, run: Run, split: str) -> dict[tuple[str, str], float]:
        """Validation only chooses, by held-out loss; a temperature changes no teacher's likeliest word."""
        logits_of: Logits = LiveTeacher(model)
        teacher = None
        if run.method == "teacher":
            logits_of = softened(logits_of, run.temperature)
        elif run.teacher != NONE:
            teacher = softened(self.teacher_logits(self.teacher_of(run), split), run.temperature)
        values = text_scores(logits_of, teacher, self.batches(split), len(self.source.tokenizer))
        if split == "test" and (run.method != "teacher" or run.temperature == 1):
            values |= last_word_scores(
                logits_of, batches(self.source.items, self.collator, self.setting.together, device())
            )
        if run.method == "untrained":
            values["last_word_chance"] = self.source.chance()
        return {(metric, run.task): value for metric, value in values.items()}


UNITS = {  # metric -> (unit, whether higher is better); entropy is neither good nor bad
    "last_word_accuracy": ("percent", True),
    "last_word_log_likelihood": ("nats/word", True),
    "last_word_chance": ("percent", True),
    "held_out_loss": ("nats/token", False),  # a mean over tokens
    "kl_to_teacher": ("nats/token", False),
    "entropy": ("nats/token", False),
    "train_seconds": ("seconds", False),
}
at = partial(study.at, Capacity)
measure = partial(study.measure, Capacity)
rows = partial(study.rows, units=UNITS)
