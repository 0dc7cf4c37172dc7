"""The image-text study (Tables 5 and 10): a pair of InternVL that answers questions about pictures.

Both models are transformers' InternVL: a vision tower, whose 2 × 2 neighbouring patches become one token, a
projector, and a Llama. As in the paper's pair the tower is of one size in both, and the teacher has about four
times the student's parameters. The student is trained on some questions, as the paper's has been before it is
distilled, then distilled on others. Eight families of questions stand in the place of eight benchmarks. The paper's
own scale: `taid.studies.mantis`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from taid import objectives, schedule
from taid.data import batches
from taid.evaluation.likelihood import whole_responses
from taid.studies import image_text_data, mantis, study
from taid.studies.capacity import text_scores
from taid.studies.image_text_data import FAMILIES, IMAGE, IMAGE_TOKENS, SIDE, PictureCollator
from taid.studies.study import PAPER_ALPHA, PAPER_UPDATES, REFERENCES, named
from taid.studies.training import Training, device, pretrained, save_whole
from taid.studies.zoo import Shape
from taid.teacher import LiveTeacher

METHODS = ("sft", "kl", "taid")
TEACHER, STUDENT = "internvl2-8b", "internvl2-2b"  # 8.08B and 2.21B, 0.30B of each in the vision tower
PATCH = 14  # pixels, as InternVL's; four patches to a token
T_START = 0.4  # the paper's for a ratio of parameters of 3.5 (Table 1); what it used here we do not know
LONGEST_ANSWER = 3  # tokens, its end included


@dataclass(frozen=True)
class Setting(study.Setting):
    """Everything that decides the study at one scale."""

    scale: str
    vision: tuple[int, int, int]  # hidden size, layers, heads of both towers
    teacher: Shape  # of its language model
    student: Shape
    questions: Mapping[str, int]  # split → of each family
    captions: int  # descriptions of pictures
    align: Training  # on captions, of both models
    pretrain_teacher: Training  # on questions, after that
    pretrain_student: Training
    distil: Training
    learning_rates: tuple[float, ...]
    chances: ClassVar[Mapping[str, float]] = {name: 100 * family.chance for name, family in FAMILIES.items()}

    @property
    def alpha(self) -> float:
        """TAID's α (paper: 5e-4) with α · N as in the paper's Table 1, an assumption of ours here."""
        return schedule.scale_alpha(PAPER_ALPHA, self.distil.steps, PAPER_UPDATES)

    def source(self, folder: Path) -> "ScaleModels":
        return ScaleModels(self, folder)


CPU = Setting(
    scale="cpu",
    vision=(64, 2, 4),
    teacher=Shape("llama", 160, 432, 4, 4, 2),
    student=Shape("llama", 80, 216, 3, 4, 2),
    questions={"train": 4000, "distil": 2400, "validation": 200, "test": 600},
    captions=12800,
    align=Training(200, 64, 2e-3, warmup_steps=20),
    pretrain_teacher=Training(1200, 64, 1.5e-3, warmup_steps=120),
    pretrain_student=Training(100, 64, 3e-3, warmup_steps=10),
    distil=Training(300, 64, 3e-3, warmup_steps=30),  # one pass over the questions; a tenth of it to warm up
    learning_rates=(1e-3, 3e-3, 1e-2),
)
SMOKE = replace(
    CPU,
    scale="smoke",
    vision=(16, 1, 2),
    teacher=Shape("llama", 32, 64, 2, 4, 2),
    student=Shape("llama", 16, 32, 1, 2, 1),
    questions={"train": 4, "distil": 4, "validation": 2, "test": 4},
    captions=8,
    align=Training(2, 4, 2e-3),
    pretrain_teacher=Training(2, 4, 1e-3),
    pretrain_student=Training(2, 4, 3e-3),
    distil=Training(4, 4, 3e-3, warmup_steps=1),
    learning_rates=(3e-3, 1e-2),
)
SETTINGS: dict[str, Any] = {setting.scale: setting for setting in (SMOKE, CPU, mantis.PAPER)}


@dataclass(frozen=True)
class Run(study.Run):
    """One student.

    Raises ValueError, naming the known ones, for an unknown scale or method.
    """

    settings: ClassVar[Mapping[str, Any]] = SETTINGS
    scale: str
    method: str
    seed: int
    learning_rate: float

    def __post_init__(self) -> None:
        named(self.settings, self.scale, "scale")
        named(dict.fromkeys((*objectives.METHODS, *REFERENCES)), self.method, "method")

    def __str__(self) -> str:
        return f"{self.method} seed {self.seed} lr {self.learning_rate:g}"

    @property
    def teacher(self) -> str:
        return TEACHER

    @property
    def student(self) -> str:
        return STUDENT

    @property
    def options(self) -> dict[str, Any]:
        match self.method:
            case "taid":
                return {"t_start": T_START, "alpha": self.setting.alpha}
            case "gkd" | "distillm":
                return {"max_new_tokens": LONGEST_ANSWER}
        return {}


def internvl(
    shape: Shape, vision: Sequence[int], tokenizer: PreTrainedTokenizerFast, seed: int
) -> InternVLForConditionalGeneration:
    """A freshly initialised model, deterministic by `seed`, of transformers' own class, embeddings tied.

    Weights are drawn with standard deviation 1 / √hidden: by transformers' 0.02, made for widths of thousands,
    models of this width see nothing for hundreds of steps.
    """
    hidden, layers, heads = vision
    tower = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": (2 * SIDE, 2 * SIDE),
        "patch_size": (PATCH, PATCH),
        "num_channels": 1,
        "layer_scale_init_value": 1.0,
        "initializer_range": hidden**-0.5,
    }
    language = {
        "model_type": shape.model_type,
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden,
        "initializer_range": shape.hidden**-0.5,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = InternVLConfig(
        vision_config=tower,
        text_config=language,
        image_token_id=tokenizer.get_vocab()[IMAGE],
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InternVLForConditionalGeneration(config)


class ScaleModels(study.Source):
    """Questions about real images, and a pair trained on them from scratch."""

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder = setting, folder
        self.collator = PictureCollator(self.tokenizer.pad_token_id)
        self._examples: dict[str, list[dict]] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:  # type: ignore[override]  # made when it is asked for
        folder = self.folder / "tokenizer"
        if not folder.exists():
            save_whole(image_text_data.tokenizer(), None, folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    def examples(self, split: str) -> list[dict]:
        """Of "train", "distil", "validation" or "test", family by family."""
        if split not in self._examples:
            asked = image_text_data.questions(split, self.setting.questions[split])
            self._examples[split] = image_text_data.examples(self.tokenizer, split, asked)
        return self._examples[split]

    def captions(self) -> list[dict]:
        """Descriptions of pictures, on which both models learn to see, as InternVL does at first."""
        described = image_text_data.captions("train", self.setting.captions)
        return image_text_data.examples(self.tokenizer, "train", described)

    def teacher(self, name: str) -> PreTrainedModel:
        return self._model(name, 0, self.setting.teacher, self.setting.pretrain_teacher)

    def student(self, name: str, seed: int) -> PreTrainedModel:
        """Trained from a seed (initialisation and order of data) on the teacher's own questions, for less long."""
        return self._model(name, seed, self.setting.student, self.setting.pretrain_student)

    def _model(self, name: str, seed: int, shape: Shape, training: Training) -> PreTrainedModel:
        def fresh() -> PreTrainedModel:
            return internvl(shape, self.setting.vision, self.tokenizer, seed)

        phases = [(self.setting.align, self.captions), (training, lambda: self.examples("train"))]
        return pretrained(self.folder, f"{name}-{seed}", seed, fresh, phases, collator=self.collator)


class ImageText(study.Study[Run]):
    """Tables 5 and 10."""

    name = "image_text"
    settings: ClassVar[Mapping[str, Any]] = SETTINGS
    training_split = "distil"

    @cached_property
    def collator(self) -> Any:  # type: ignore[override]  # batches as of the base's, with pictures
        return self.source.collator

    def values(self, model: PreTrainedModel, run: Run, split: str) -> dict[tuple[str, str], float]:
        """The task "average" is the mean over families; validation only chooses: there it is all that is kept."""
        logits_of = LiveTeacher(model)
        teacher = None if run.method == "teacher" else self.teacher_logits(run.teacher, split)
        examples = self.source.examples(split)

        def in_batches(some: Sequence[dict]) -> Iterator[dict]:
            return batches(some, self.collator, self.setting.together, device())

        right = {
            family: 100.0 * mean(whole_responses(logits_of, in_batches(asked))[0])
            for family, asked in by_family(examples).items()
        }
        values = {("accuracy", "average"): mean(right.values())}
        values |= {
            (metric, "average"): value
            for metric, value in text_scores(logits_of, teacher, in_batches(examples)).items()
        }
        if split != "validation":
            values |= {("accuracy", family): value for family, value in right.items()}
        if run.method == "untrained" and (chances := self.setting.chances):
            values |= {("chance", family): chances[family] for family in right}
            values["chance", "average"] = mean(chances[family] for family in right)
        return values


def by_family(examples: Sequence[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for example in examples:
        found.setdefault(example["family"], []).append(example)
    return found


UNITS = {  # metric -> (unit, whether higher is better); entropy is neither good nor bad
    "accuracy": ("percent", True),
    "chance": ("percent", True),
    "held_out_loss": ("nats/token", False),  # a mean over tokens
    "kl_to_teacher": ("nats/token", False),
    "entropy": ("nats/token", False),
    "train_seconds": ("seconds", False),
}
at = partial(study.at, ImageText)
measure = partial(study.measure, ImageText)
rows = partial(study.rows, units=UNITS)
