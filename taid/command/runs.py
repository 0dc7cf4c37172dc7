"""One distillation from names and paths to a folder with a student that is trained, and several to compare."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from scipy.stats import t as student_t

import taid
from taid import curves
from taid.command.card import card
from taid.command.hub import load_model, load_rows, load_tokenizer
from taid.files import write_whole
from taid.results import provenance
from taid.teacher import holds_logits
from taid.trainer import DistillationTrainer
from taid.trainer.arguments import DistillationArguments
from taid.trainer.checkpoints import last_checkpoint
from taid.trainer.refusals import check_arguments

RECORD = "taid.json"  # in the folder of a run: what it is, and once it is finished what came out
VALIDATION = ("validation", "test")  # of several splits those to validate on, as they are preferred
HELD_OUT, MOST = 0.05, 200  # of the rows are kept for validation where there is no data set for it
METRICS = {"eval_loss": "held-out loss [nats/token]", "eval_kl": "KL to the teacher [nats/token]"}


@dataclass(frozen=True)
class Settings:
    """A run: all that decides its numbers, but the contents of what the names name."""

    student: str
    dataset: str
    teacher: str | None = None
    method: str = "taid"
    method_options: dict | None = None
    split: str | None = None
    eval_dataset: str | None = None
    steps: int | None = None  # None: as many as the epochs have
    epochs: float = 1.0
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-4
    max_length: int | None = None
    packing: bool = False
    seed: int = 42
    training: dict | None = None  # further TrainingArguments, by their own names

    def arguments(self, output: Path, validate: bool) -> DistillationArguments:
        """Twenty lines of log and five checkpoints a run; the last is kept."""
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        values = {
            "output_dir": str(output),
            "method": self.method,
            "method_options": self.method_options,
            "max_length": self.max_length,
            "packing": self.packing or None,
            "max_steps": self.steps or -1,
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "bf16": bf16,
            "logging_steps": 0.05,
            "logging_first_step": True,
            "save_steps": 0.2,
            "save_total_limit": 1,
            "eval_strategy": "steps" if validate else "no",
            "eval_steps": 0.2,
            "report_to": "none",
        }
        return DistillationArguments(**(values | (self.training or {})))


def distil(settings: Settings, output: Path) -> dict:
    """Train and leave in `output` the student, its tokenizer, a model card, curves and RECORD, whose values are
    returned. Goes on after a kill; a finished run is not repeated.

    Raises ValueError for whatever cannot be, FloatingPointError for a loss that is not finite.
    """
    record = _record(settings, output)
    if "metrics" in record:
        return record
    check_arguments(settings.arguments(output, False))  # before models are loaded
    student, tokenizer = load_model(settings.student, "student"), load_tokenizer(settings.student)
    train, validation = _data(settings)
    trainer = DistillationTrainer(
        student,
        _teacher(settings.teacher),
        args=settings.arguments(output, validation is not None),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
    )
    if trainer.args.should_save:
        write_whole(output / RECORD, json.dumps(record, indent=2))
    trainer.train(resume_from_checkpoint=last_checkpoint(str(output)))
    metrics = trainer.evaluate() if validation is not None else {}
    weights = trainer.accelerator.get_state_dict(trainer.model)  # of all ranks, where they share the student
    history = trainer.state.log_history
    record |= {
        "taid": taid.__version__,
        "rows": [len(train), 0 if validation is None else len(validation)],
        "steps": trainer.state.global_step,
        "seconds": sum(row.get("train_runtime", 0.0) for row in history),
        "metrics": {name: value for name, value in metrics.items() if name in METRICS},
        "provenance": asdict(provenance(Path(taid.__file__).parent)),
    }
    if trainer.args.should_save:
        student = trainer.accelerator.unwrap_model(trainer.model)
        student.save_pretrained(output, state_dict=weights)
        tokenizer.save_pretrained(output)
        write_whole(output / "curves.csv", curves.table(history))
        drawn = curves.draw(history, output / "curves.png")
        write_whole(
            output / "README.md", card(record, str(getattr(trainer.objective, "schedule", "")), drawn)
        )
        write_whole(output / RECORD, json.dumps(record, indent=2))  # last: it says that the run is finished
    return record


def _record(settings: Settings, output: Path) -> dict:
    """What the folder says of the run. Raises ValueError if it holds something else."""
    path = output / RECORD
    if not path.exists():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(
                f"{output} is there, and not a run of taid: choose another --output, or remove it"
            )
        return {"settings": asdict(settings)}
    try:
        record = json.loads(path.read_text())
        said = dict(record["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: choose another --output, or remove it") from error
    for name, value in json.loads(json.dumps(asdict(settings))).items():
        if said.get(name) != value:
            raise ValueError(
                f"{output} holds a run with {name} {said.get(name)!r}, not {value!r}: choose another --output, or "
                "remove it"
            )
    return record


def _teacher(name: str | None):
    """The model, or the name of a folder of its logits, which the trainer reads itself."""
    return name if name is None or holds_logits(name) else load_model(name, "teacher")


def _data(settings: Settings):
    """(training rows, rows to validate on or None): the given ones, or a share of the training rows, whatever the seed."""
    train = load_rows(settings.dataset, settings.split)
    if settings.eval_dataset:
        return train, load_rows(settings.eval_dataset, None, VALIDATION)
    held_out = min(MOST, int(HELD_OUT * len(train)))
    if not held_out:
        return train, None
    parts = train.train_test_split(test_size=held_out, seed=0)
    return parts["train"], parts["test"]


def compare(
    settings: Settings, methods: Mapping[str, dict | None], seeds: Sequence[int], output: Path
) -> str:
    """Each method, with its options, with each seed and the same budget, in folders of `output`; the table, which
    lies there too.

    Raises ValueError as `distil`, and if there is nothing to validate on.
    """
    if not settings.teacher:
        raise ValueError("a comparison measures the KL to a teacher: give --teacher")
    if (
        settings.eval_dataset is None
        and int(HELD_OUT * len(load_rows(settings.dataset, settings.split))) == 0
    ):
        raise ValueError(f"too few rows to keep {HELD_OUT:.0%} for validation: give --eval-dataset")
    found = {}
    for method, options in methods.items():
        for seed in seeds:
            folder = output / f"{method}-seed{seed}"
            own = replace(settings, method=method, method_options=options, seed=seed)
            found[method, seed] = distil(own, folder)
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)  # another rank may be at it
    text = table(found, [*methods], seeds)
    write_whole(output / "comparison.md", text)
    rows = [{"method": m, "seed": s, "seconds": r["seconds"], **r["metrics"]} for (m, s), r in found.items()]
    write_whole(output / "comparison.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    return text


def table(found: dict[tuple[str, int], dict], methods: Sequence[str], seeds: Sequence[int]) -> str:
    """Means over seeds, and differences to the first method by seed, as Markdown."""
    first, several = methods[0], len(seeds) > 1
    lines = []
    for metric, name in METRICS.items():
        values = {m: [found[m, s]["metrics"].get(metric) for s in seeds] for m in methods}
        if any(value is None for each in values.values() for value in each):
            continue
        lines += [f"**{name}**, lower is better", ""]
        lines += [
            f"| method | mean | minus {first}{' [95%]' if several else ''} | minutes |",
            "|---|---|---|---|",
        ]
        for method in methods:
            minutes = mean(found[method, seed]["seconds"] for seed in seeds) / 60
            pairs = [a - b for a, b in zip(values[method], values[first], strict=True)]
            difference = "" if method == first else _interval(pairs)
            lines.append(f"| {method} | {mean(values[method]):.4f} | {difference} | {minutes:.1f} |")
        lines.append("")
    seeds_said = ", ".join(map(str, seeds))
    note = f"Seeds {seeds_said}: the order of the data. " + (
        "Intervals: Student's t of the differences by seed."
        if several
        else "One seed has no interval: give --seeds 3 to tell a difference from chance."
    )
    return "\n".join([*lines, note, ""])


def _interval(differences: Sequence[float]) -> str:
    """Mean and, of two and more, its 95% interval."""
    center = mean(differences)
    if len(differences) == 1:
        return f"{center:+.4f}"
    n = len(differences)
    half = student_t.ppf(0.975, n - 1) * stdev(differences) / n**0.5
    return f"{center:+.4f} [{center - half:.4f}, {center + half:.4f}]"
