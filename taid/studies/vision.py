"""Image classification (Tables 7 and 8): six pairs for small images, two for large ones.

A student is trained from scratch on its labels and its teacher, which was trained before on the same images: by the
field's recipe, SGD and a learning rate in steps, at the paper's scale on CIFAR-100 and ImageNet, at ours on a part of
Fashion-MNIST, with narrow networks. All methods of a seed start from one student and see one stream of batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, default_data_collator

from taid import losses, schedule
from taid.data import batches
from taid.studies import cost, cost_images, hub, jobs, study, training
from taid.studies.cost_images import counted
from taid.studies.study import PAPER_ALPHA, PAPER_UPDATES, REFERENCES, Logits, named
from taid.studies.training import StepDecay, Training, device, pretrained
from taid.studies.vision_data import FashionMNIST, HubImages
from taid.studies.vision_models import classifier
from taid.teacher import LiveTeacher

METHODS = ("sft", "kl", "ctkd", "dkd", "mlkd", "taid")  # the paper's five, and the student alone
T_START = 0.2  # the paper's for its wider gaps (Table 1); what it used here we do not know


class Pair(NamedTuple):
    """A pair of a table, and DKD's β for it (mdistiller, configs/…/dkd)."""

    teacher: str
    student: str
    dkd_beta: float

    def __str__(self) -> str:
        return f"{self.teacher} → {self.student}"


class Table(NamedTuple):
    """The pairs of a table, and the weights of its losses in the literature (mdistiller, configs)."""

    pairs: tuple[Pair, ...]
    ce_weight: float  # of the cross-entropy in KL's loss; taken for CTKD, MLKD and TAID too
    temperature: float  # of KL and DKD; taken for TAID too
    dkd_ce_weight: float = 0.5  # DKD's authors weigh both by 1; ours sum to 1


TABLES = {
    "table7": Table(
        (
            Pair("ResNet56", "ResNet20", 2.0),
            Pair("ResNet110", "ResNet32", 2.0),
            Pair("ResNet32x4", "ResNet8x4", 8.0),
            Pair("WRN-40-2", "WRN-16-2", 6.0),
            Pair("WRN-40-2", "WRN-40-1", 6.0),
            Pair("VGG13", "VGG8", 6.0),
        ),
        ce_weight=0.1,
        temperature=4.0,
    ),
    "table8": Table(
        (Pair("ResNet34", "ResNet18", 0.5), Pair("ResNet50", "MobileNet-V1", 2.0)),
        ce_weight=0.5,
        temperature=1.0,
    ),
}


@dataclass(frozen=True)
class Setting(study.Setting):
    """Everything that decides a table at one scale."""

    scale: str
    images: FashionMNIST | HubImages
    narrow: bool  # networks with a quarter or an eighth of the paper's channels
    pretrain_teacher: StepDecay
    distil: StepDecay
    search_steps: int  # of the runs that choose a learning rate
    learning_rates: tuple[float, ...]  # of one there is nothing to choose
    hub_teachers: tuple[tuple[str, str], ...] = ()  # names on a hub of those that are not trained here

    @property
    def live(self) -> bool:  # type: ignore[override]
        """Training images that differ from pass to pass: their teacher has to see each anew."""
        return isinstance(self.images, HubImages)

    def fit_options(self, here: Any, run: Any) -> dict[str, Any]:
        """Long runs go on after a kill, and images that are drawn anew are read beside the training."""
        return {"checkpoints": here.work_folder(run), "readers": self.readers} if self.live else {}

    @property
    def readers(self) -> int:
        return training.READERS if self.live else 0

    def bill(self, run: Any) -> cost.Bill:
        """What one student of the paper's scale takes."""
        images: Any = self.images
        shape, steps = (images.classes, images.side), run.training.steps
        teacher = counted(run.teacher, *shape) if run.objective().uses_teacher else None
        return cost_images.bill(
            counted(run.student, *shape), teacher, images.classes, steps, run.training.batch_size
        )

    def takes(self, runs: Sequence[Any]) -> str:
        if not isinstance(self.images, HubImages):
            return super().takes(runs)
        known = dict(self.hub_teachers)
        here = sorted({run.teacher for run in runs} - known.keys())
        trained = f"\nteachers trained first, as long as a student each: {', '.join(here)}" if here else ""
        bills = [self.bill(run) for run in runs if run.method not in REFERENCES]
        return hub.takes([*known.values(), self.images.name], bills) + trained

    def source(self, folder: Path) -> "Classifiers":
        return Classifiers(self, folder)


FASHION = FashionMNIST(train=6000, validation=2000, test=5000, pool=2)
CPU = Setting(
    scale="cpu",
    images=FASHION,
    narrow=True,
    pretrain_teacher=StepDecay(400, 64, 0.1, warmup_steps=40, max_grad_norm=1.0),
    distil=StepDecay(150, 64, 0.1, warmup_steps=15, max_grad_norm=1.0),
    search_steps=60,
    learning_rates=(0.03, 0.1, 0.3),
)
SMOKE = replace(
    CPU,
    scale="smoke",
    images=FashionMNIST(train=64, validation=32, test=32, pool=2),
    pretrain_teacher=StepDecay(2, 8, 0.05),
    distil=StepDecay(2, 8, 0.05),
    search_steps=1,
    learning_rates=(0.05, 0.1),
)
CIFAR100 = HubImages(
    name="uoft-cs/cifar100",
    image="img",
    label="fine_label",
    held_out="test",
    classes=100,
    mean=(0.5071, 0.4867, 0.4408),  # mdistiller, as RepDistiller
    deviation=(0.2675, 0.2565, 0.2761),
    side=32,
    crop="padded",
)
IMAGENET = HubImages(
    name="ILSVRC/imagenet-1k",
    image="image",
    label="label",
    held_out="validation",
    classes=1000,
    mean=(0.485, 0.456, 0.406),  # torchvision
    deviation=(0.229, 0.224, 0.225),
    side=224,
    crop="resized",
)
CIFAR_STEPS = 240 * 50_000 // 64  # 240 epochs in batches of 64 (mdistiller, configs)
IMAGENET_STEPS = 100 * 1_281_167 // 512  # 100 epochs in batches of 512 (likewise)
PAPER = {
    "table7": Setting(
        scale="paper",
        images=CIFAR100,
        narrow=False,
        pretrain_teacher=StepDecay(CIFAR_STEPS, 64, 0.05),
        distil=StepDecay(CIFAR_STEPS, 64, 0.05),
        search_steps=CIFAR_STEPS,
        learning_rates=(0.05,),
    ),
    "table8": Setting(
        scale="paper",
        images=IMAGENET,
        narrow=False,
        pretrain_teacher=StepDecay(0, 512, 0.2),
        distil=StepDecay(IMAGENET_STEPS, 512, 0.2, weight_decay=1e-4, decays=(0.3, 0.6, 0.9)),
        search_steps=IMAGENET_STEPS,
        learning_rates=(0.2,),
        hub_teachers=(("ResNet34", "microsoft/resnet-34"), ("ResNet50", "microsoft/resnet-50")),
    ),
}
SETTINGS = {table: {setting.scale: setting for setting in (SMOKE, CPU, PAPER[table])} for table in TABLES}


@dataclass(frozen=True)
class Run(study.Run):
    """One student of a pair of a table; `steps` of distillation.

    Raises ValueError, naming the known ones, for an unknown table, scale, pair or method.
    """

    table: str
    scale: str
    method: str
    teacher: str
    student: str
    seed: int
    learning_rate: float
    steps: int

    def __post_init__(self) -> None:
        named(named(SETTINGS, self.table, "table"), self.scale, "scale")
        named(dict.fromkeys((*METHODS, *REFERENCES)), self.method, "method")
        named(
            {str(pair): pair for pair in TABLES[self.table].pairs}, f"{self.teacher} → {self.student}", "pair"
        )

    def __str__(self) -> str:
        pair = f"{self.teacher} → {self.student}"
        return f"{self.method} {pair} seed {self.seed} lr {self.learning_rate:g}, {self.steps} steps"

    @property
    def setting(self) -> Setting:
        return SETTINGS[self.table][self.scale]

    @property
    def pair(self) -> Pair:
        return next(
            p for p in TABLES[self.table].pairs if (p.teacher, p.student) == (self.teacher, self.student)
        )

    @property
    def training(self) -> Training:
        share = self.steps / self.setting.distil.steps
        return replace(
            super().training, steps=self.steps, warmup_steps=round(share * self.setting.distil.warmup_steps)
        )

    @property
    def options(self) -> dict[str, Any]:
        """See `Table`. TAID's α keeps α · N as in the paper's Table 1: for images an assumption of ours."""
        table = TABLES[self.table]
        softened = {"ce_weight": table.ce_weight, "temperature": table.temperature}
        match self.method:
            case "kl":
                return softened
            case "ctkd" | "mlkd":  # temperatures of their own
                return {"ce_weight": table.ce_weight}
            case "dkd":
                own = {"alpha": 1.0, "beta": self.pair.dkd_beta, "temperature": table.temperature}
                return own | {"ce_weight": table.dkd_ce_weight}
            case "taid":
                alpha = schedule.scale_alpha(PAPER_ALPHA, self.steps, PAPER_UPDATES)
                return softened | {"t_start": T_START, "alpha": alpha}
        return {}


class Classifiers(study.Source):
    """Images of a scale, and classifiers of them: trained here from scratch, or named on a hub."""

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder = setting, folder

    @cached_property
    def splits(self) -> Mapping[str, Sequence]:
        return self.setting.images.splits()

    def examples(self, split: str):
        return self.splits[split]

    def student(self, name: str, seed: int) -> PreTrainedModel:
        images = self.setting.images
        return classifier(name, images.classes, images.channels, self.setting.narrow, seed)

    def teacher(self, name: str) -> PreTrainedModel:
        if name in dict(self.setting.hub_teachers):
            return hub.model(dict(self.setting.hub_teachers)[name])
        phases = [(self.setting.pretrain_teacher, lambda: self.examples("train"))]
        fresh = partial(self.student, name, 0)
        options = {"collator": default_data_collator, "readers": self.setting.readers}
        made = pretrained(self.folder, name, 0, fresh, phases, **options)
        return made.to(device())  # type: ignore[arg-type]  # as transformers has it wrapped


class ImageClassification(study.Study[Run]):
    """Tables 7 and 8: how often a student is right about an image."""

    name = "vision"

    @cached_property
    def collator(self):
        return default_data_collator

    def keep_logits(self, name: str, split: str) -> Logits:
        """In memory, and looked up by a batch's "index"."""
        live = LiveTeacher(self.source.teacher(name))
        logits = torch.cat([live(batch) for batch in self.batches(split)])
        return lambda batch: logits[batch["index"]]

    def values(self, model: PreTrainedModel, run: Run, split: str) -> dict[tuple[str, str], float]:
        student, right, loss, divergence, count = LiveTeacher(model), 0, 0.0, 0.0, 0
        teacher = self.teacher_logits(run.teacher, split)
        for batch in batches(self.source.examples(split), self.collator, self.setting.together, device()):
            logits, labels = student(batch).float(), batch["labels"]
            right += int((logits.argmax(-1) == labels).sum())
            loss += cross_entropy(logits, labels, reduction="sum").item()
            divergence += losses.forward_kl(logits, teacher(batch)).sum().item()
            count += len(labels)
        values = {"accuracy": 100 * right / count, "held_out_loss": loss / count}
        if run.method != "teacher":
            values["kl_to_teacher"] = divergence / count
        return {(metric, run.task): value for metric, value in values.items()}


class Table7(ImageClassification):
    """Small images."""

    settings: ClassVar[Mapping[str, Setting]] = SETTINGS["table7"]


class Table8(ImageClassification):
    """Large images."""

    settings: ClassVar[Mapping[str, Setting]] = SETTINGS["table8"]


STUDIES: dict[str, type[ImageClassification]] = {"table7": Table7, "table8": Table8}
UNITS = {  # metric -> (unit, whether higher is better)
    "accuracy": ("percent", True),
    "held_out_loss": ("nats/image", False),
    "kl_to_teacher": ("nats/image", False),
    "train_seconds": ("seconds", False),
}
rows = partial(study.rows, units=UNITS)


def measure(run: Run, split: str) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of one run on a split."""
    return study.measure(STUDIES[run.table], run, split)


def evaluate(table: str, scale: str, seeds: int, workers: jobs.Workers, folder: Path) -> None:
    """The rows of a table: a learning rate for each method and pair, chosen by validation accuracy in short runs; then
    the students of each seed, and the teachers, on the test images. Finished cells are skipped."""
    setting, path, pairs = SETTINGS[table][scale], folder / f"{table}.jsonl", TABLES[table].pairs
    teachers = [("teacher", name, 0) for name in dict.fromkeys(pair.teacher for pair in pairs)]
    study.prepare_all(STUDIES[table], scale, workers, teachers, logits=[])

    def run(method: str, pair: Pair, seed: int, rate: float, steps: int) -> Run:
        return Run(table, scale, method, pair.teacher, pair.student, seed, rate, steps)

    each = [(method, pair) for pair in pairs for method in METHODS]
    best = dict.fromkeys(each, setting.learning_rates[0])
    if len(setting.learning_rates) > 1:
        grid = [
            run(*cell, jobs.TUNING_SEEDS[0], rate, setting.search_steps)
            for cell in each
            for rate in setting.learning_rates
        ]
        cells = {(one, "validation"): [f"{table}_search"] for one in grid}
        jobs.evaluate(cells, measure, rows, path, workers, "learning rates")
        found = jobs.measured(path, grid, f"{table}_search", "accuracy", "average")
        best = jobs.best(found, lambda one: (one.method, one.pair), max)

    for seed in range(seeds):
        runs = [run(*cell, seed, best[cell], setting.distil.steps) for cell in each]
        if seed == 0:
            runs += [run("teacher", pair, 0, 0.0, 0) for pair in pairs]
        cells = {(one, "test"): [table] for one in runs}
        jobs.evaluate(cells, measure, rows, path, workers, f"seed {seed}")
