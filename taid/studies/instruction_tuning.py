"""The instruction-tuning study (Table 1): pairs of models, runs and measurements at one scale."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from taid import objectives, schedule
from taid.data import Collator, encode, pack, train_tokenizer
from taid.evaluation import generation, likelihood
from taid.files import write_whole
from taid.studies import instructions, jobs, judge, own_answers, study, ultrachat, zoo
from taid.studies.study import PAPER_ALPHA, PAPER_UPDATES, REFERENCES, named
from taid.studies.training import Training, pretrained, save_whole


@dataclass(frozen=True)
class Setting(study.Setting):
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
    distil: Training
    learning_rates: tuple[float, ...]
    validations: int  # how often the validation loss is measured in a run (DistiLLM's threshold needs it)

    pairs: ClassVar[Mapping[str, zoo.Pair]] = {}  # of this scale alone, in place of the study's
    max_new_tokens: ClassVar[int] = judge.MAX_NEW_TOKENS  # of a response that a student writes

    @property
    def alpha(self) -> float:
        """TAID's α (paper: 5e-4) with α · N kept as in the paper."""
        return schedule.scale_alpha(PAPER_ALPHA, self.distil.steps, PAPER_UPDATES)

    def source(self, folder: Path) -> "ScaleModels":
        return ScaleModels(self, folder)

    def data(self) -> instructions.Instructions:
        """What is asked and taught."""
        return instructions.build(self.size)

    def fit_options(self, here: "InstructionTuning", run: "Run") -> dict[str, Any]:
        """Further arguments of `fit`: methods that sample validate."""
        if run.objective().rollouts is None:
            return {}
        return {"validation": here.source.examples("validation"), "validations": self.validations}

    def scores(
        self, here: "InstructionTuning", model: PreTrainedModel, run: "Run", split: str
    ) -> study.Values:
        """What a model's responses are worth; validation only chooses: there the means are all that is kept."""
        judging = here.judge_of(run.student, run.seed, split)
        found = judge.evaluate(model, here.source.tokenizer, judging, here.source.items(split), run.seed)
        values = {("distinct_bigrams", "average"): found.pop("distinct_bigrams")["all"]}
        for metric, by_category in found.items():
            if split != "validation":
                values |= {(metric, category): value for category, value in by_category.items()}
            values[metric, "average"] = mean(by_category.values())
        return values


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
MADE = {setting.scale: setting for setting in (SMOKE, CPU)}  # scales whose models are made here
SETTINGS: dict[str, Any] = MADE | {setting.scale: setting for setting in (own_answers.GPU, ultrachat.PAPER)}


@dataclass(frozen=True)
class Run(study.Run):
    """One student of a pair, which its teacher names.

    Raises ValueError, naming the known ones, for an unknown scale, pair or method.
    """

    known: ClassVar[Sequence[str]] = (*objectives.METHODS, *REFERENCES)
    settings: ClassVar[Mapping[str, Setting]] = SETTINGS
    pairs: ClassVar[Mapping[str, zoo.Pair]] = zoo.PAIRS
    scale: str
    method: str
    teacher: str
    seed: int
    learning_rate: float

    def __post_init__(self) -> None:
        named(self.settings, self.scale, "scale")
        named(self.setting.pairs or self.pairs, self.teacher, "teacher of a pair")
        named(dict.fromkeys(self.known), self.method, "method")

    def __str__(self) -> str:
        return f"{self.method} {self.teacher} seed {self.seed} lr {self.learning_rate:g}"

    @property
    def pair(self) -> zoo.Pair:
        return (self.setting.pairs or self.pairs)[self.teacher]

    @property
    def student(self) -> str:
        return self.pair.student

    @property
    def options(self) -> dict[str, Any]:
        """The paper's, per pair where the paper has them per pair."""
        match self.method:
            case "taid":
                return {"t_start": self.pair.t_start, "alpha": self.setting.alpha}
            case "taid_no_adaptive":
                return {"t_start": self.pair.t_start}
            case "gkd":
                return {"max_new_tokens": self.setting.max_new_tokens}
            case "distillm":
                return {"loss": self.pair.distillm_loss, "max_new_tokens": self.setting.max_new_tokens}
        return {}


class ScaleModels(study.Source):
    """Instructions made from public texts, and models of the paper's classes trained on them from scratch."""

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder = setting, folder
        self.data = setting.data()
        self.tokenizer = self._tokenizer()
        self.collator = Collator(self.tokenizer.pad_token_id)
        self._examples = {split: self.encode(self.items(split)) for split in ("train", "validation", "test")}
        # copies share their example, and so its place in a cache of logits
        self.stream = [
            example
            for item, example in zip(self.items("train"), self._examples["train"], strict=True)
            if len(example["prompt_ids"]) <= setting.longest[0]
            and len(example["response_ids"]) <= setting.longest[1]
            for _ in range(setting.question_copies if item.answers else 1)
        ]

    def items(self, split: str) -> Sequence[instructions.Instruction]:
        """The instructions of "train", "validation" or "test"."""
        return {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}[split]

    def examples(self, split: str) -> list[dict]:
        return self._examples[split]

    def training(self, split: str, seed: int) -> list[dict]:
        return self.stream

    def encode(self, items: Sequence[instructions.Instruction]) -> list[dict]:
        return encode(self.tokenizer, [i.prompt for i in items], [i.response for i in items])

    def windows(self, prose: str) -> list[dict]:
        """Packed pre-training examples from "train" or "judge" prose, a share of them from the dictionary."""
        length, share = self.setting.window, self.setting.dictionary_share
        text = pack(self.tokenizer, self.data.text[prose], length)
        dictionary = pack(self.tokenizer, self.data.text["dictionary"] * 8, length)  # for many whole windows
        wanted = round(len(text) * share / (1 - share))
        return text + [dictionary[i % len(dictionary)] for i in range(wanted)]

    def student(self, name: str, seed: int) -> PreTrainedModel:
        """Pre-trained from a seed (initialisation and order of data), not yet tuned."""
        return self._model(name, seed, [(self.setting.pretrain_student, lambda: self.windows("train"))])

    def teacher(self, name: str) -> PreTrainedModel:
        """Pre-trained as the students are, longer, then tuned on the training instructions."""
        phases = [
            (self.setting.pretrain_teacher, lambda: self.windows("train")),
            (self.setting.tune_teacher, lambda: self.stream),
        ]
        return self._model(name, 0, phases)

    def judge(self) -> PreTrainedModel:
        """The zoo's largest model, trained on prose of documents that no teacher or student has seen."""
        window = self.setting.window
        phases = [
            (self.setting.pretrain_judge, lambda: pack(self.tokenizer, self.data.text["judge"], window)),
            (self.setting.tune_judge, lambda: self.encode(self.data.judge)),
        ]
        return self._model("judge", 1, phases)

    def _model(self, name: str, seed: int, phases) -> PreTrainedModel:
        def fresh() -> PreTrainedModel:
            size = len(self.tokenizer)
            if name == "judge":
                return zoo.fresh_model(zoo.JUDGE, size, self.tokenizer, seed, max_length=256)
            return zoo.scale_model(name, size, self.tokenizer, seed)

        return pretrained(self.folder, f"{name}-{seed}", seed, fresh, phases, collator=self.collator)

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        folder = self.folder / "tokenizer"
        if not folder.exists():
            texts = [f"{i.prompt} {i.response}" for i in self.data.train]
            texts += self.data.text["train"][:20_000]
            save_whole(train_tokenizer(texts, self.setting.vocab_size, self.data.words), None, folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)


class InstructionTuning(study.Study[Run]):
    """Table 1: score, prose and knowledge of students that were distilled on instructions."""

    name = "instruction_tuning"
    settings: ClassVar[Mapping[str, Setting]] = SETTINGS
    _judge: PreTrainedModel | None = None

    def prepare(self, kind: str, name: str, which: int | str) -> None:
        """As of every study, and the "judge"."""
        if kind == "judge":
            self.judge_model()
        else:
            super().prepare(kind, name, which)

    def judge_model(self) -> PreTrainedModel:
        """The source's, opened once."""
        if self._judge is None:
            self._judge = self.source.judge()
        return self._judge

    def judge_of(self, student: str, seed: int, split: str) -> judge.Judge:
        """The judge with its scale for the responses of one pre-trained student on one split."""
        tokenizer, model = self.source.tokenizer, self.judge_model()
        items = [i for i in self.source.items(split) if i.category in instructions.JUDGED]
        path = self.folder / "scale" / f"{student}-{seed}-{split}.json"
        if not path.exists():
            untrained = generation.generate(
                self.source.student(student, seed),
                tokenizer,
                self.source.encode(items),
                judge.MAX_NEW_TOKENS,
                judge.TEMPERATURE,
                seed,
            )
            ends = {}
            for end, responses in (("human", [i.response for i in items]), ("untrained", untrained)):
                ends[end] = {
                    category: mean(judge.log_likelihoods(model, tokenizer, self.collator, *chosen))
                    for category, chosen in judge.by_category(items, responses).items()
                }
            write_whole(path, json.dumps(ends))
        return judge.Judge(model, tokenizer, self.collator, **json.loads(path.read_text()))

    def values(self, model: PreTrainedModel, run: Run, split: str) -> dict[tuple[str, str], float]:
        """The task "average" is the mean over categories."""
        examples, size = self.source.examples(split), self.setting.together
        values = {**self.setting.scores(self, model, run, split)}
        losses = likelihood.held_out_loss(model, examples, self.collator, size)
        values["held_out_loss", "average"] = mean(losses)
        teacher, entries = self.teacher_logits(run.teacher, split), len(self.source.tokenizer)
        values["kl_to_teacher", "average"] = likelihood.kl_to_teacher(
            model, teacher, examples, self.collator, entries, size
        )
        return values


UNITS = {  # metric -> (unit, whether higher is better)
    "score": ("points of 10", True),
    "score_greedy": ("points of 10", True),
    "score_sampled": ("points of 10", True),
    "distinct_bigrams": ("fraction", True),
    "rouge_l": ("fraction", True),
    "held_out_loss": ("nats/token", False),  # a mean over examples
    "kl_to_teacher": ("nats/token", False),
    "train_seconds": ("seconds", False),
}


def prepare_pair(scale: str, teacher: str, seeds: Iterable[int], workers: jobs.Workers | int) -> None:
    """Make and keep what runs of a pair need, unless Table 1 has: judge, teacher, its logits, students."""
    models = [("judge", "judge", 0), ("teacher", teacher, 0)]
    models += [("student", zoo.PAIRS[teacher].student, seed) for seed in seeds]
    logits = [(teacher, split) for split in ("train", "test")]
    study.prepare_all(InstructionTuning, scale, workers, models, logits)


at = partial(study.at, InstructionTuning)
measure = partial(study.measure, InstructionTuning)
rows = partial(study.rows, units=UNITS)
