"""What the studies share: a study is its data, its models and its measures, and all else is here.

    Setting   everything that decides a study at one scale, and where that scale has data and models from
    Source    data and models of a scale: made here from public texts, or taken from a hub
    Run       one student: a cell of a table
    Study     a setting at work in one process: models that are made once and kept, and what is measured of them

What is expensive is kept below `taid.files.cache_dir()` under a digest of what made it, whole or not at all,
and found again by every process.
"""

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from taid import objectives, results
from taid.data import Collator, batches
from taid.files import cache_dir
from taid.results import digest
from taid.studies import jobs
from taid.studies.training import Training, cached_model, device, fit, on_device
from taid.teacher import LiveTeacher, cached_teacher
from taid.trainer import DistillationTrainer

Logits = Callable[[dict], Tensor]  # of a batch, as in `taid.teacher`
Values = Mapping[tuple[str, str], float]  # (metric, task) → value
Units = Mapping[str, tuple[str, bool]]  # metric → (unit, whether higher is better)
Named = TypeVar("Named")
R = TypeVar("R", bound="Run")

# 207,865 conversations of UltraChat 200k train_sft, 5 epochs, batch 64: the updates that we assume of Table 1's runs.
PAPER_UPDATES = 207_865 * 5 // 64
PAPER_ALPHA = 5e-4
REFERENCES = (
    "teacher",
    "untrained",
)  # measured beside the methods: the teacher; the student before distillation


# --- Setting, source, run -----------------------------------------------------------------------------------


def named(known: Mapping[str, Named], name: str, kind: str) -> Named:
    """known[name]. Raises ValueError that names the known ones."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    return known[name]


class Source(ABC):
    """Where a scale has its data and models from."""

    tokenizer: PreTrainedTokenizerBase  # of models for language

    @abstractmethod
    def examples(self, split: str) -> list[dict]:
        """The examples of a split, as of `taid.data`: those to distil on, "validation" or "test"."""

    def training(self, split: str, seed: int) -> Any:
        """Those to distil on as the students of a seed read them; the trainer shuffles what has a length."""
        return self.examples(split)

    @abstractmethod
    def teacher(self, name: str) -> PreTrainedModel:
        """A teacher, ready to teach."""

    @abstractmethod
    def student(self, name: str, seed: int) -> PreTrainedModel:
        """The student of a seed, not yet distilled."""


class Setting(ABC):
    """Base of the frozen dataclasses that hold everything that decides a study at one scale."""

    scale: str
    distil: Training  # its learning rate is replaced by each of the grid
    learning_rates: tuple[float, ...]
    together: ClassVar[int] = 256  # examples that are read at once where nothing is trained
    live: ClassVar[bool] = False  # teachers are asked anew at every batch: no disk would hold their logits

    def fit_options(self, here: Any, run: Any) -> dict[str, Any]:
        """Further arguments of `fit` for a run of the study `here`."""
        return {}

    def takes(self, runs: Sequence[Any]) -> str:
        """What runs of this setting would take."""
        return "what this scale takes stands in `make help`"

    def of(self, pair: str) -> Self:
        """The setting as the pair of a teacher has it, where pairs differ in tokenizer and so in examples."""
        return self

    @property
    def digest(self) -> str:
        """The setting's name in a run's config, and of its folder in the cache."""
        return digest(asdict(self))  # type: ignore[call-overload]  # a dataclass, see above

    @abstractmethod
    def source(self, folder: Path) -> Source:
        """Data and models of this scale, kept below `folder`."""


class Run(ABC):
    """Base of the frozen dataclasses that name one student: what `config_hash` sees of it."""

    if TYPE_CHECKING:  # fields in some studies, properties in others

        @property
        def scale(self) -> str: ...
        @property
        def method(self) -> str: ...
        @property
        def seed(self) -> int: ...
        @property
        def learning_rate(self) -> float: ...
        @property
        def teacher(self) -> str: ...
        @property
        def student(self) -> str: ...

    settings: ClassVar[Mapping[str, Any]]  # scale → setting, where it decides alone

    @property
    def setting(self) -> Any:
        """The setting of its scale. Raises ValueError that names the known ones."""
        return named(self.settings, self.scale, "scale")

    @property
    def options(self) -> dict[str, Any]:
        """The hyperparameters of the method, plain JSON."""
        return {}

    @property
    def task(self) -> str:
        """Of the rows about the run as a whole."""
        return "average"

    @property
    def training(self) -> Training:
        """The phase of training: the setting's, at the run's learning rate."""
        return replace(self.setting.distil, learning_rate=self.learning_rate)

    def objective(self) -> objectives.Objective:
        """What the student is trained on, fresh."""
        return objectives.objective(self.method, **self.options)

    def config(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, plain JSON."""
        return asdict(self) | {"setting": self.setting.digest, "options": self.options}  # type: ignore[call-overload]


# --- Study --------------------------------------------------------------------------------------------------


class Study(ABC, Generic[R]):
    """A setting at work in one process. A study says what its students learn on, and what it measures."""

    name: ClassVar[str]  # of its folder in the cache
    settings: ClassVar[Mapping[str, Any]]  # scale → setting
    training_split: ClassVar[str] = "train"  # students are distilled on it

    def __init__(self, setting: Any):
        self.setting = setting
        self.folder = cache_dir() / self.name / f"{setting.scale}-{setting.digest}"
        self.source = setting.source(self.folder)
        self._teachers: dict[tuple[str, str], Logits] = {}

    # what a study may have otherwise

    def run_folder(self, run: R) -> Path:
        """Where the student of a run is kept."""
        return self.folder / "runs" / digest(run.config())

    def work_folder(self, run: R) -> Path:
        """Where a run that can go on after a kill keeps what it has so far."""
        return self.run_folder(run).with_suffix(".work")

    def training_examples(self, run: R) -> Any:
        """What the student of a run is distilled on."""
        return self.source.training(self.training_split, run.seed)

    def teacher_of(self, run: R) -> str:
        """The name of a run's teacher in the source."""
        return run.teacher

    def target(self, run: R) -> Logits:
        """What the student of a run learns from."""
        return self.teacher_logits(self.teacher_of(run), self.training_split)

    def fit_options(self, run: R) -> dict[str, Any]:
        """Further arguments of `fit`: the setting's."""
        return self.setting.fit_options(self, run)

    def keep_logits(self, name: str, split: str) -> Logits:
        """The teacher with what is kept of it at the examples of a split, computed now unless it is there."""
        folder, teacher = self.folder / "logits" / f"{name}-{split}", on_device(self.source.teacher(name))
        return cached_teacher(teacher, self.source.examples(split), self.collator, folder)

    @abstractmethod
    def values(self, model: PreTrainedModel, run: R, split: str) -> Values:
        """What is measured of a model on "validation", to choose by, or on "test"."""

    # what all have

    @cached_property
    def collator(self) -> Callable[[list[dict]], dict]:
        """What makes batches of examples."""
        return Collator(self.source.tokenizer.pad_token_id)

    def batches(self, split: str, size: int | None = None) -> list[dict]:
        """The examples of a split on this machine's device, in batches of a size, else of the setting's."""
        examples, size = self.source.examples(split), size or self.setting.together
        return list(batches(examples, self.collator, size, device()))

    def teacher_logits(self, name: str, split: str) -> Logits:
        """`keep_logits`, opened once for each process; or the teacher itself, where the setting says so."""
        if self.setting.live:
            return LiveTeacher(self.source.teacher(name))
        if (name, split) not in self._teachers:
            self._teachers[name, split] = self.keep_logits(name, split)
        return self._teachers[name, split]

    def fit(
        self,
        student: PreTrainedModel,
        run: R,
        objective: objectives.Objective,
        teacher: Logits | None,
        examples: list[dict] | None = None,
    ) -> DistillationTrainer:
        """Train a student in place as the run says, on `training_examples` unless on others."""
        return fit(
            student,
            self.training_examples(run) if examples is None else examples,
            self.collator,
            run.training,
            seed=run.seed,
            objective=objective,
            teacher=teacher,
            tokenizer=getattr(self.source, "tokenizer", None),
            **self.fit_options(run),
        )

    def distilled(self, run: R) -> tuple[PreTrainedModel, dict[str, Any]]:
        """(student, record) of a run, trained now unless kept. The record: "seconds" of training, the
        objective's last "logs" and "state"."""

        def train() -> tuple[PreTrainedModel, dict[str, Any]]:
            student, objective = self.source.student(run.student, run.seed), run.objective()
            teacher = self.target(run) if objective.uses_teacher else None
            started = time.perf_counter()
            trainer = self.fit(student, run, objective, teacher)
            seconds, objective = time.perf_counter() - started, trainer.objective
            return student, {"seconds": seconds, "logs": objective.logs(), "state": objective.state_dict()}

        folder = self.run_folder(run)
        student = cached_model(folder, train)
        shutil.rmtree(self.work_folder(run), ignore_errors=True)
        return student, json.loads((folder / "record.json").read_text())

    def model(self, run: R) -> tuple[PreTrainedModel, dict[str, float]]:
        """(model, values of its training) of a run: its student, or one of the REFERENCES."""
        if run.method == "teacher":
            return on_device(self.source.teacher(self.teacher_of(run))), {}
        if run.method == "untrained":
            return on_device(self.source.student(run.student, run.seed)), {}
        student, record = self.distilled(run)
        return on_device(student), {"train_seconds": record["seconds"]}

    def prepare(self, kind: str, name: str, which: int | str) -> None:
        """Make and keep a "student" (`which`: its seed), a "teacher", or its "logits" (a split)."""
        if kind == "student":
            self.source.student(name, int(which))
        elif kind == "teacher":
            self.source.teacher(name)
        else:
            self.source.examples(str(which))
            self.teacher_logits(name, str(which))


@cache
def at(kind: type[Study], scale: str, pair: str | None = None) -> Any:
    """The study of a kind at a scale, one in each process; or as the `pair` of a teacher has it, see `Setting.of`.

    Raises ValueError that names the known scales.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    whole = named(kind.settings, scale, f"scale of {kind.__name__}")
    setting = whole if pair is None else whole.of(pair)
    return kind(setting) if pair is None or setting != whole else at(kind, scale)


# --- Jobs, cells, rows --------------------------------------------------------------------------------------


def prepare(kind: type[Study], scale: str, *what) -> None:
    """A job: `Study.prepare` at a scale."""
    of_teacher = what[0] in ("teacher", "logits")
    at(kind, scale, what[1] if of_teacher else None).prepare(*what)


def prepare_all(
    kind: type[Study],
    scale: str,
    workers: jobs.Workers | int,
    models: Iterable[tuple],
    logits: Iterable[tuple],
) -> None:
    """Make and keep models, (kind, name, seed), then teachers' logits, (name, split), in the order given."""
    if jobs.planning():
        return
    at(kind, scale)  # the data, before any worker wants them
    todo = {"models": models, "teacher logits": [("logits", *which) for which in logits]}
    for title, which in todo.items():
        list(jobs.run(prepare, [(kind, scale, *what) for what in which], workers, title))


def measure(kind: type[Study], run: Run, split: str) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of one run on a split; REFERENCES stand for themselves."""
    started = time.perf_counter()
    here = at(kind, run.scale, run.teacher)
    model, values = here.model(run)
    of_training = {(metric, run.task): value for metric, value in values.items()}
    return here.values(model, run, split) | of_training, time.perf_counter() - started


def rows(run: Run, experiment: str, values: Values, seconds: float, units: Units) -> list[results.Row]:
    """The rows of one cell."""
    each = (
        {"metric": metric, "task": task, "value": value}
        | dict(zip(("unit", "higher_is_better"), units[metric], strict=True))
        for (metric, task), value in values.items()
    )
    return results.cell_rows(
        each,
        run.config() | {"experiment": experiment},
        experiment=experiment,
        scale=run.scale,
        method=run.method,
        teacher=run.teacher,
        student=run.student,
        seed=run.seed,
        seconds=round(seconds, 2),
    )


def chosen_rates(
    rows: Iterable[results.Row], scale: str, teacher: str, needed: Iterable[str]
) -> dict[str, float]:
    """Method → the learning rate that Table 1 chose for it with a teacher, by its validation score.

    Raises jobs.Refused if it has chosen none for one of the methods that are `needed`.
    """
    table1 = [row for row in rows if (row.experiment, row.scale, row.teacher) == ("table1", scale, teacher)]
    rates = {row.method: row.config["learning_rate"] for row in table1}
    if missing := sorted(set(needed) - rates.keys()):
        names = ", ".join(missing)
        raise jobs.Refused(
            f"Table 1 has no learning rate for {names} with {teacher}: run `make table1-protocol-1 SCALE={scale}` first"
        )
    return rates
