"""Table 1 on one GPU with what can be had offline: SmolLM2-135M-Instruct, a student of some of its layers, and the
teacher's own answers.

The prompts are Table 1's instructions (`taid.studies.instructions`), the responses what the teacher says: sampled
in training, greedy on held-out prompts. Students are healed on prose first, as Table 2's are. The score is
10 · ROUGE-L of a student's greedy responses against the teacher's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from taid import schedule
from taid.data import encode
from taid.evaluation.generation import generate, rouge_of
from taid.files import locked, write_whole
from taid.studies import continued_pretraining, instructions, study, zoo
from taid.studies.study import PAPER_ALPHA, PAPER_UPDATES
from taid.studies.training import Training, on_device, precision


@dataclass(frozen=True)
class Setting(study.Setting):
    """Everything that decides the study at one scale."""

    scale: str
    prose: continued_pretraining.Setting  # whose teacher and healed students these are
    size: instructions.Size
    max_new_tokens: int  # of a response
    distil: Training
    learning_rates: tuple[float, ...]
    validations: int
    live: ClassVar[bool] = True

    @property
    def pairs(self) -> Mapping[str, zoo.Pair]:
        """One, with the paper's t_start for a wide gap."""
        return {self.prose.teacher: zoo.Pair(self.prose.teacher, self.prose.student, 0.2, "skew_kl")}

    @property
    def alpha(self) -> float:
        """TAID's α (paper: 5e-4) with α · N kept as in the paper."""
        return schedule.scale_alpha(PAPER_ALPHA, self.distil.steps, PAPER_UPDATES)

    def source(self, folder: Path) -> "OwnAnswers":
        return OwnAnswers(self, folder)

    def fit_options(self, here: Any, run: Any) -> dict[str, Any]:
        """Mixed precision where it is fast; methods that sample validate."""
        options: dict[str, Any] = {"bf16": precision() == "bf16"}
        if run.objective().rollouts is None:
            return options
        return options | {"validation": here.source.examples("validation"), "validations": self.validations}

    def scores(self, here: Any, model: PreTrainedModel, run: Any, split: str) -> dict[tuple[str, str], float]:
        examples, tokenizer = here.source.examples(split), here.source.tokenizer
        rouge = rouge_of(model, tokenizer, examples, self.max_new_tokens, self.together)
        return {("score", "average"): 10 * rouge, ("rouge_l", "average"): rouge}


GPU = Setting(
    scale="gpu",
    prose=replace(continued_pretraining.GPU, kept_layers=10),
    size=instructions.Size(words=260, passages=3300, validation=40, test=120),
    max_new_tokens=64,
    distil=Training(800, 64, 3e-4, warmup_steps=80),
    learning_rates=(1e-4, 3e-4, 1e-3),
    validations=8,
)


class OwnAnswers(study.Source):
    """Instructions with the teacher's answers, the teacher, and its pruned and healed students."""

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder = setting, folder
        self.prose = setting.prose.source(folder)
        self.tokenizer = self.prose.tokenizer
        self._examples: dict[str, list[dict]] = {}

    @cached_property
    def data(self) -> instructions.Instructions:
        return instructions.build(self.setting.size)

    def examples(self, split: str) -> list[dict]:
        if split not in self._examples:
            prompts = [item.prompt for item in getattr(self.data, split)]
            self._examples[split] = encode(self.tokenizer, prompts, self.answers(split, prompts))
        return self._examples[split]

    def answers(self, split: str, prompts: list[str]) -> list[str]:
        """The teacher's, made once: at temperature 1 in training, greedy elsewhere."""
        path = self.folder / "answers" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            if not path.exists():
                asked = encode(self.tokenizer, prompts, [""] * len(prompts))
                teacher, temperature = on_device(self.prose.teacher("")), 1.0 if split == "train" else 0.0
                limit = self.setting.max_new_tokens
                write_whole(path, json.dumps(generate(teacher, self.tokenizer, asked, limit, temperature)))
        return json.loads(path.read_text())

    def judge(self) -> None:
        """None is trained here."""

    def teacher(self, name: str) -> PreTrainedModel:
        return self.prose.teacher(name)

    def student(self, name: str, seed: int) -> PreTrainedModel:
        return self.prose.student(name, seed)
