"""Table 1 at the paper's scale: UltraChat 200k, and models of the hub.

An example is a conversation in the chat template of the pair's teacher: its last answer is learned, what comes
before it is the prompt (our reading; the official code's labels cover all of it). Left out, as in the official
code, are conversations of more than 2,048 tokens and answers of more than 512. Student and teacher read one
tokenizer, the teacher's (`taid.studies.hub.student_for`). Of the five epochs' students the one that answers best
is kept, by ROUGE-L on held-out conversations, as in the paper.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from taid import results
from taid.data import IGNORE
from taid.evaluation import mt_bench
from taid.evaluation.generation import rouge_of
from taid.evaluation.replies import Endpoint
from taid.studies import cost, hub, jobs, sources, study, zoo
from taid.studies.study import PAPER_ALPHA, PAPER_UPDATES
from taid.studies.training import Training, save_whole
from taid.text.chat import Template, Unusable, conversation

ULTRACHAT = "HuggingFaceH4/ultrachat_200k"
# (tokens, those learned) of a conversation, estimated: the data set's card has 6,721 bytes for a row, in which the first
# question stands twice, and we take 4.5 bytes for a token and 300 tokens for a last answer.
TYPICAL = (1494, 300)
SPLITS = {"train": "train_sft", "validation": "test_sft", "test": "test_sft"}


@dataclass(frozen=True)
class Setting(study.Setting):
    """Everything that decides the study at the paper's scale; the values are the official code's."""

    scale: str = "paper"
    longest: int = 2048  # tokens of a conversation
    longest_response: int = 512
    validation: int = 2000  # conversations to choose by
    test: int = 2000
    distil: Training = Training(PAPER_UPDATES, 64, 1e-4)  # of 5 epochs
    learning_rates: tuple[float, ...] = (1e-4,)
    validations: int = 5  # after each epoch
    micro_batch: int = 8  # conversations that are read at once
    pair: str = ""  # the teacher of the pair that the study is narrowed to
    alpha: ClassVar[float] = PAPER_ALPHA
    pairs: ClassVar[Mapping[str, zoo.Pair]] = zoo.PAIRS
    together: ClassVar[int] = 8
    live: ClassVar[bool] = True

    @property
    def max_new_tokens(self) -> int:
        """Of a response that a student writes."""
        return self.longest_response

    def of(self, pair: str) -> Self:
        return replace(self, pair=pair)

    def source(self, folder: Path) -> "UltraChat":
        return UltraChat(self, folder)

    def takes(self, runs: Sequence[Any]) -> str:
        names = {zoo.MODELS[name].hub: None for run in runs for name in (run.teacher, run.student)}
        bills = [self.bill(run) for run in runs if run.method not in study.REFERENCES]
        judge = "" if os.environ.get("TAID_JUDGE") else "\nmissing: a judge for MT-Bench (TAID_JUDGE)"
        return hub.takes([*names, ULTRACHAT], bills) + judge

    def bill(self, run: Any) -> cost.Bill:
        return cost.bill(self.load(run))

    def load(self, run: Any) -> cost.Load:
        """What the training of one student takes; half of the batches are sampled where a method samples."""
        objective = run.objective()
        teacher = cost.published(zoo.MODELS[run.teacher].hub) if objective.uses_teacher else None
        micro_batches = run.training.steps * run.training.batch_size // self.micro_batch
        return cost.Load(
            cost.published(zoo.MODELS[run.student].hub),
            teacher,
            run.training.steps,
            run.training.batch_size,
            self.micro_batch,
            *TYPICAL,
            longest=(self.longest, self.longest_response),
            fused=objective.fusable,
            sampled=0.0 if objective.rollouts is None else micro_batches / 2,
            new_tokens=self.max_new_tokens,
        )

    def fit_options(self, here: Any, run: Any) -> dict[str, Any]:
        """The hub's, and the best of a run's students is kept; methods that sample validate."""

        def score(student: PreTrainedModel) -> float:
            return here.source.rouge(student, "validation")

        best = KeepBest(here.work_folder(run) / "best", self.validations, score)
        options = hub.training_options(here, run) | {"callback": best}
        if run.objective().rollouts is None:
            return options
        return options | {"validation": here.source.examples("validation"), "validations": self.validations}

    def scores(self, here: Any, model: PreTrainedModel, run: Any, split: str) -> dict[tuple[str, str], float]:
        """10 · ROUGE-L of the greedy responses on validation, to choose by; on "test" MT-Bench's points.

        Answers and judgments are kept beside the student, and none is made or paid for twice.
        """
        rouge = here.source.rouge(model, split)
        if split == "validation":
            return {("score", "average"): 10 * rouge}
        bench, judge = mt_bench.read(sources.fetch("mt_bench")), here.source.judge()
        folder = here.run_folder(run).with_suffix(".mt_bench")
        points = mt_bench.evaluate(model, here.source.tokenizer, judge, bench, folder).points
        return {("rouge_l", "average"): rouge} | {("score", task): value for task, value in points.items()}


class UltraChat(study.Source):
    """Conversations in the teacher's chat template, and the hub's models of a pair."""

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder = setting, folder
        self._examples: dict[str, Any] = {}

    @cached_property
    def tokenizer(self):  # type: ignore[override]  # loaded when it is asked for
        return hub.tokenizer(zoo.MODELS[self.setting.pair].hub)

    def examples(self, split: str) -> Any:
        """A `datasets.Dataset` of examples as of `taid.data.encode`, in random order the held-out ones."""
        if split not in self._examples:
            self._examples[split] = self._encoded(split)
        return self._examples[split]

    def _encoded(self, split: str) -> Any:
        held_out = {
            "validation": (0, self.setting.validation),
            "test": (self.setting.validation, self.setting.test),
        }
        rows = hub.rows(ULTRACHAT, SPLITS[split])
        # named by what makes it, for a tokenizer has no hash that another process would find again
        name = results.digest({"rows": rows._fingerprint, "setting": self.setting.digest})
        encode = Encode(self.tokenizer, self.setting)
        rows = rows.map(encode, remove_columns=rows.column_names, new_fingerprint=name)
        rows = rows.filter(lambda row: row["response_ids"])
        if split in held_out:
            start, count = held_out[split]
            room = self.setting.longest - self.setting.longest_response  # for an answer as long as any
            rows = rows.filter(lambda row: len(row["prompt_ids"]) <= room)
            if len(rows) < start + count:
                raise ValueError(
                    f"{ULTRACHAT} has {len(rows)} usable conversations in {SPLITS[split]}: too few"
                )
            rows = rows.shuffle(seed=0).select(range(start, start + count))
        return rows.map(lambda row, index: {"index": index}, with_indices=True)

    def judge(self) -> Endpoint:
        """The judge of MT-Bench that `$TAID_JUDGE` names, at `$OPENAI_BASE_URL`. Raises jobs.Refused without one."""
        name = os.environ.get("TAID_JUDGE")
        if not name:
            raise jobs.Refused(
                "MT-Bench asks a judge: set TAID_JUDGE (the paper's: gpt-4) and OPENAI_API_KEY, and OPENAI_BASE_URL "
                "for another endpoint of the OpenAI protocol (docs/mt_bench.md)"
            )
        return Endpoint(name)

    def teacher(self, name: str) -> PreTrainedModel:
        return hub.teacher(zoo.MODELS[name].hub)

    def student(self, name: str, seed: int) -> PreTrainedModel:
        """The hub's model whatever the seed; of a pair, with its teacher's tokenizer."""
        where = zoo.MODELS[name].hub
        return hub.student_for(where, self.tokenizer) if self.setting.pair else hub.model(where)

    def rouge(self, model: PreTrainedModel, split: str) -> float:
        """Mean ROUGE-L of the greedy responses to a split."""
        setting = self.setting
        return rouge_of(model, self.tokenizer, self.examples(split), setting.max_new_tokens, setting.together)


class Lengths(Protocol):
    """The setting of a study whose examples are cut: the most tokens of a whole, and of a response."""

    @property
    def longest(self) -> int: ...

    @property
    def longest_response(self) -> int: ...


class Encode:
    """A row with "messages" → {"prompt_ids", "response_ids"}; both empty where the row is not to be used."""

    def __init__(self, tokenizer, setting: Lengths):
        self.template, self.longest = Template(tokenizer), (setting.longest, setting.longest_response)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, list[int]]:
        ids, start = self._tokens(row["messages"])
        whole, response = self.longest
        if not 0 < start < len(ids) <= min(whole, start + response):
            return {"prompt_ids": [], "response_ids": []}
        return {"prompt_ids": ids[:start], "response_ids": ids[start:]}

    def _tokens(self, messages: list[dict]) -> tuple[list[int], int]:
        """The tokens of a conversation up to its last answer's end, and where this answer starts; none of one
        without."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers or not messages[answers[-1]]["content"].strip():
            return [], 0
        try:
            ids, labels = conversation(self.template, messages, answers[-1], None)
        except Unusable:
            return [], 0
        return ids, next(i for i, label in enumerate(labels) if label != IGNORE)


class KeepBest(TrainerCallback):
    """Scores the student after each of `times` equal parts of a run, and in the end gives it the best's weights.

    The best one is kept in `folder`, so that a run that was killed and goes on knows it.
    """

    def __init__(self, folder: Path, times: int, score: Callable[[PreTrainedModel], float]):
        self.folder, self.times, self.score = folder, times, score

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % max(state.max_steps // self.times, 1):
            return
        score, kept = self.score(model), self.folder
        if not kept.exists() or score > json.loads((kept / "record.json").read_text())["score"]:
            shutil.rmtree(kept, ignore_errors=True)
            save_whole(model, {"score": score, "step": state.global_step}, kept)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        best = AutoModelForCausalLM.from_pretrained(self.folder, use_safetensors=True)
        model.load_state_dict(best.state_dict())


PAPER = Setting()
