"""Tables 2, 4 and 6 at the paper's scale: SmolLM-Corpus, streamed and packed into windows, and models of the hub.

The corpus is its largest part, deduplicated FineWeb-Edu, of which a tenth is about 20B tokens (our reading of "the
first 10%"; the part of Python files holds no text on the hub). Students are trained on its first tenth, held-out
windows come from its last one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel

from taid.data import pack
from taid.evaluation import harness
from taid.studies import cost, hub, jobs, study
from taid.studies.study import PAPER_UPDATES
from taid.studies.training import Training

CORPUS, PART = "HuggingFaceTB/smollm-corpus", "fineweb-edu-dedup"
LAMBADA = "EleutherAI/lambada_openai"
TENTHS = 10
SHUFFLED = 10_000  # documents among which the next one is drawn
PACKED = 1000  # documents that are packed with one another
HUB = {
    "phi-3-medium": "microsoft/Phi-3-medium-4k-instruct",
    "tinyllama": "TinyLlama/TinyLlama_v1.1",
    "qwen2-72b": "Qwen/Qwen2-72B-Instruct",
    "qwen2-1.5b": "Qwen/Qwen2-1.5B-Instruct",
} | {f"pythia-{size}": f"EleutherAI/pythia-{size}" for size in
     ("31m", "70m", "160m", "410m", "1b", "2.8b", "6.9b")}  # fmt: skip
FOLDERS = (
    "arc",
    "hellaswag",
    "mmlu",
    "truthfulqa",
    "winogrande",
    "gsm8k",
)  # of lm-eval's tasks, the leaderboard's
CHANCE = {  # of guessing, at lm-eval's tasks; of TruthfulQA's sets of answers none is known
    "arc_challenge": 0.25, "hellaswag": 0.25, "mmlu": 0.25, "winogrande": 0.5, "gsm8k": 0.0, "truthfulqa_mc2": 0.0,
}  # fmt: skip


class Windows(IterableDataset):
    """Windows of `length` tokens, all of them learned, of documents as they come."""

    def __init__(self, documents, tokenizer, length: int):
        self.documents, self.tokenizer, self.length = documents, tokenizer, length

    def __iter__(self):
        for rows in self.documents.iter(batch_size=PACKED):
            yield from pack(self.tokenizer, rows["text"], self.length)

    def set_epoch(self, epoch: int) -> None:
        """Another order in every pass."""
        self.documents.set_epoch(epoch)


class Corpus(study.Source):
    """Windows of SmolLM-Corpus in the tokens of one model, and models of the hub."""

    def __init__(self, setting: Any, tokenizer_of: str):
        self.setting, self.tokenizer_of = setting, tokenizer_of
        self._held_out: dict[str, list[dict]] = {}

    @cached_property
    def tokenizer(self):  # type: ignore[override]  # loaded when it is asked for
        return hub.tokenizer(HUB[self.tokenizer_of])

    def tenth(self, index: int):
        """The documents of a tenth of the corpus's files, streamed."""
        stream = hub.rows(CORPUS, "train", PART, streaming=True)
        if stream.num_shards < TENTHS:
            raise jobs.Refused(
                f"{CORPUS} has {stream.num_shards} files in {PART}: a tenth needs {TENTHS} or more"
            )
        return stream.shard(TENTHS, index, contiguous=True)

    def examples(self, split: str) -> Any:
        """Held-out windows, "validation" before "test"; of the training split what a seed of 0 reads."""
        if split not in ("validation", "test"):
            return self.training(split, 0)
        if split not in self._held_out:
            self._held_out[split] = self._last_windows(split)
        return self._held_out[split]

    def _last_windows(self, split: str) -> list[dict]:
        first, last = self.setting.validation, self.setting.validation + self.setting.test
        bounds = {"validation": (0, first), "test": (first, last)}
        found = list(
            islice(Windows(self.tenth(TENTHS - 1), self.tokenizer, self.setting.window), *bounds[split])
        )
        if len(found) < bounds[split][1] - bounds[split][0]:
            raise jobs.Refused(f"the last tenth of {CORPUS} holds too few windows for {split}: {len(found)}")
        return [window | {"index": i} for i, window in enumerate(found)]

    def training(self, split: str, seed: int) -> Windows:
        documents = self.tenth(0).shuffle(seed=seed, buffer_size=SHUFFLED)
        return Windows(documents, self.tokenizer, self.setting.window)

    def teacher(self, name: str) -> PreTrainedModel:
        return hub.teacher(HUB[name])

    def student(self, name: str, seed: int) -> PreTrainedModel:
        """The hub's model whatever the seed, with the tokens that are distilled."""
        return hub.student_for(HUB[name], self.tokenizer)


def bill_of(setting: Any, run: Any) -> cost.Bill:
    """What the training of one student on windows takes."""
    objective = run.objective()
    teacher = cost.published(HUB[run.teacher]) if objective.uses_teacher else None
    window, training = (setting.window, setting.window - 1), run.training
    student, micro_batch = cost.published(HUB[run.student]), setting.micro_batch
    size = training.steps, training.batch_size, micro_batch
    return cost.bill(cost.Load(student, teacher, *size, *window, window, objective.fusable))


def takes(setting: Any, runs: Sequence[Any], data: Sequence[str]) -> str:
    """`hub.takes` of runs on windows."""
    names = {HUB[name]: None for run in runs for name in (run.teacher, run.student) if name in HUB}
    return hub.takes(
        [*names, *data], [bill_of(setting, run) for run in runs if run.method not in study.REFERENCES]
    )


# --- Table 2 ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PretrainingSetting(study.Setting):
    """Everything that decides Table 2 at the paper's scale. The batch and the learning rate are assumptions."""

    scale: str = "paper"
    teacher: str = "phi-3-medium"
    student: str = "tinyllama"
    window: int = 2048
    distil: Training = Training(20_000_000_000 // (512 * 2048), 512, 1e-4)
    search_steps: int = 20_000_000_000 // (512 * 2048)  # of one rate there is nothing to choose
    learning_rates: tuple[float, ...] = (1e-4,)
    validation: int = 256  # windows
    test: int = 1024
    micro_batch: int = 8  # windows that are read at once
    tasks: tuple[str, ...] = tuple(harness.LEADERBOARD)
    items: int | None = None  # of each task; all
    precision: ClassVar[str] = "bf16"
    together: ClassVar[int] = 8
    live: ClassVar[bool] = True

    def source(self, folder: Path) -> "Leaderboard":
        return Leaderboard(self, self.teacher)

    def bill(self, run: Any) -> cost.Bill:
        return bill_of(self, run)

    def takes(self, runs: Sequence[Any]) -> str:
        return takes(self, runs, [CORPUS])

    def fit_options(self, here: Any, run: Any) -> dict[str, Any]:
        return hub.training_options(here, run)

    def scores(self, here: Any, model: PreTrainedModel) -> dict[tuple[str, str], float]:
        """{(metric, task): value} of the Open LLM Leaderboard, by lm-eval with the paper's shots."""
        tasks = {task: harness.LEADERBOARD[task] for task in self.tasks}
        with hub.mirrored():
            lm = harness.LocalModel(model, here.source.tokenizer)
            found = harness.leaderboard(lm, here.source.tasks(), tasks, self.items)
        values = {}
        for task, (mean, error) in found.items():
            values["accuracy", task] = mean
            values["standard_error", task] = error
            values["chance", task] = CHANCE[task]
        return values


class Leaderboard(Corpus):
    """The corpus, and lm-eval's own tasks."""

    def tasks(self) -> TaskManager:
        """lm-eval's, read once."""
        return _task_manager()


@lru_cache(maxsize=1)
def _task_manager() -> TaskManager:
    """Of the leaderboard's folders alone: lm-eval takes 17 s to look through all of its own."""
    folder = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_path=[str(folder / name) for name in FOLDERS], include_defaults=False)


# --- Table 4 ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaidLlmSetting(PretrainingSetting):
    """Everything that decides Table 4 at the paper's scale: its models, and all else as in Table 2, which is an
    assumption, the tasks too, for LightEval's single ones were not at hand."""

    teacher: str = "qwen2-72b"
    student: str = "qwen2-1.5b"
    arms: ClassVar[Mapping[str, str]] = {"text": CORPUS}

    @property
    def steps(self) -> int:
        return self.distil.steps

    def phase(self, arm: str) -> Training:
        return self.distil

    def source(self, folder: Path) -> "OneArm":
        return OneArm(self, self.teacher)


class OneArm(Leaderboard):
    """The corpus under the names that Table 4 gives its splits, "text-validation" and so on."""

    def examples(self, split: str) -> Any:
        return super().examples(split.removeprefix("text-"))

    def read(self, run: Any) -> Windows:
        """What a run's seed reads."""
        return self.training("train", run.seed)


# --- Table 6 ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CapacitySetting(study.Setting):
    """Everything that decides Table 6 at the paper's scale. Data, steps and learning rate are assumptions."""

    scale: str = "paper"
    window: int = 2048
    distil: Training = Training(PAPER_UPDATES, 64, 1e-4)
    learning_rates: tuple[float, ...] = (1e-4,)
    validation: int = 256  # windows
    test: int = 1024
    micro_batch: int = 8
    items: int | None = None  # of LAMBADA; all
    together: ClassVar[int] = 8
    live: ClassVar[bool] = True

    def source(self, folder: Path) -> "Lambada":
        return Lambada(self, "pythia-70m")

    def bill(self, run: Any) -> cost.Bill:
        return bill_of(self, run)

    def takes(self, runs: Sequence[Any]) -> str:
        return takes(self, runs, [CORPUS, LAMBADA])

    def fit_options(self, here: Any, run: Any) -> dict[str, Any]:
        return hub.training_options(here, run)


class Lambada(Corpus):
    """The corpus, and the last words of LAMBADA as lm-eval asks for them: whole, after all that comes before."""

    @cached_property
    def items(self) -> list[dict]:
        rows = hub.rows(LAMBADA, "test", "default")
        rows = rows if self.setting.items is None else rows.select(range(self.setting.items))
        return [self._item(i, text) for i, text in enumerate(rows["text"])]

    def _item(self, index: int, text: str) -> dict:
        context, word = text.rsplit(" ", 1)
        before, whole = (self.tokenizer(part)["input_ids"] for part in (context, f"{context} {word}"))
        return {"index": index, "prompt_ids": before, "response_ids": whole[len(before) :]}

    def chance(self) -> float:
        """Share of the words that are the most frequent one [percent]: what no guess without reading exceeds."""
        words = Counter(tuple(item["response_ids"]) for item in self.items)
        return 100 * max(words.values()) / len(self.items)


PAPER: Mapping[str, study.Setting] = {
    "table2": PretrainingSetting(),
    "table4": TaidLlmSetting(),
    "table6": CapacitySetting(),
}
