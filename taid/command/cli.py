"""The command `taid`: distil a student, or compare methods. Every error is one sentence, and exit code 2."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from taid import __version__

OWN = {  # options of TrainingArguments that have a short name here
    "output_dir": "output",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch-size",
    "gradient_accumulation_steps": "accumulation",
    "method_options": "option",
}
RESUME = "the same command goes on by itself, from the last checkpoint in --output"
SEEDS = "its runs differ by their seeds, the order of the data: --seeds 3 takes 42, 43 and 44 for each method"
REFUSED = {  # command → options of TrainingArguments that it does otherwise
    "distill": {"resume_from_checkpoint": RESUME},
    "compare": {"resume_from_checkpoint": RESUME, "seed": SEEDS, "data_seed": SEEDS},
}
EXAMPLE = """example:
  taid distill --student ./small --teacher ./large --dataset chats.jsonl --output ./distilled
  taid compare --methods kl taid sft --student ./small --teacher ./large --dataset chats.jsonl --output ./compared

Rows of a data set have messages, prompt and completion, or text. Any option of transformers' TrainingArguments can
follow, by its own name: --warmup_steps 10. The same command goes on where a killed one stopped."""


def positive(kind: type):
    """A parser of numbers > 0."""

    def parse(word: str):
        number = kind(word)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"{word} is not above 0")
        return number

    parse.__name__ = kind.__name__  # what argparse calls it in errors
    return parse


def option(word: str) -> tuple[str, object]:
    """NAME=VALUE, the value as JSON where it is."""
    name, equals, value = word.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{word!r} is not NAME=VALUE, as t_start=0.2")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str):
        self.exit(2, f"taid: {message} ({self.prog} --help lists the options)\n")


def parser() -> Parser:
    top = Parser(
        prog="taid", description="Distil a large language model into a small one.", allow_abbrev=False
    )
    top.add_argument("--version", action="version", version=f"taid {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="{distill,compare}")
    shared = argparse.ArgumentParser(add_help=False)
    needed = shared.add_argument_group("what")
    needed.add_argument(
        "--student", required=True, metavar="MODEL", help="folder of save_pretrained, or hub name"
    )
    needed.add_argument(
        "--teacher", metavar="MODEL", help="likewise, or a folder of its logits; sft needs none"
    )
    needed.add_argument(
        "--dataset", required=True, metavar="DATA", help="json, jsonl, csv or parquet file, folder, hub name"
    )
    needed.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="where the result goes")
    needed.add_argument("--split", help="of the data set (default: train)")
    needed.add_argument(
        "--eval-dataset",
        metavar="DATA",
        help="to validate on, its split validation, else test (default: 5%% of the rows, 200 at most)",
    )
    how = shared.add_argument_group("how")
    how.add_argument(
        "--option",
        type=option,
        action="append",
        metavar="NAME=VALUE",
        help="of the method: t_start=0.2, ce_weight=0.1; of one of several: taid.t_start=0.2",
    )
    length = how.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive(float), default=1.0, help="(default: 1)")
    length.add_argument("--steps", type=positive(int), help="optimizer steps, instead of epochs")
    how.add_argument("--batch-size", type=positive(int), default=8, help="rows (default: 8)")
    how.add_argument("--accumulation", type=positive(int), default=1, help="batches in a step (default: 1)")
    how.add_argument("--learning-rate", type=positive(float), default=1e-4, help="(default: 1e-4)")
    how.add_argument(
        "--max-length", type=positive(int), help="tokens after which a row is cut (default: 1024)"
    )
    how.add_argument("--packing", action="store_true", help="several rows side by side, kept apart")
    keywords: dict[str, Any] = {
        "parents": [shared],
        "epilog": EXAMPLE,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    distill = commands.add_parser("distill", help="train one student", allow_abbrev=False, **keywords)
    distill.add_argument("--method", default="taid", help="a name of taid.METHODS (default: taid)")
    distill.add_argument("--seed", type=int, default=42, help="(default: 42)")
    compare = commands.add_parser(
        "compare", help="train by several methods alike", allow_abbrev=False, **keywords
    )
    compare.add_argument(
        "--methods", nargs="+", required=True, help="names of taid.METHODS; the first is the reference"
    )
    compare.add_argument(
        "--seeds", type=positive(int), default=1, help="runs of each, from seed 42 on (default: 1)"
    )
    return top


def training_options(words: Sequence[str], command: str) -> dict:
    """Further options of TrainingArguments, checked by transformers' own parser. Raises ValueError for one that is
    not known, that has a short name, or that the command does otherwise."""
    if not words:
        return {}
    from transformers import HfArgumentParser, TrainingArguments

    class Strict(HfArgumentParser):
        def error(self, message: str):
            raise ValueError(message)

    # only what was said: a default is not to override ours
    described: Any = TrainingArguments  # a dataclass
    known = Strict(described, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for action in known._actions:
        action.default = argparse.SUPPRESS
    said, unknown = known.parse_known_args(list(words))
    if unknown:
        raise ValueError(f"there is no option {unknown[0]}: taid distill --help lists ours")
    for name in vars(said).keys() & OWN.keys():
        raise ValueError(f"--{name} is called --{OWN[name]} here")
    for name, instead in REFUSED[command].items():
        if name in vars(said):
            raise ValueError(f"leave out --{name} of {command}: {instead}")
    return vars(said)


def method_options(given: Sequence[tuple[str, object]], methods: Sequence[str]) -> dict[str, dict | None]:
    """Method → its options or None: those with a method's name before a dot are its own, and win. Raises ValueError
    for those of a method that is not run, and for one that is given twice."""
    found: dict[str, dict] = {method: {} for method in methods}
    for name, value in sorted(given, key=lambda option: "." in option[0]):
        own, dot, rest = name.rpartition(".")
        if dot and own not in found:
            raise ValueError(f"--option {name}: {own!r} is not run here, but {', '.join(methods)}")
        if [one for one, _ in given].count(name) > 1:
            raise ValueError(f"--option {name} is given twice")
        for method in [own] if dot else methods:
            found[method][rest] = value
    return {method: options or None for method, options in found.items()}


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> str:
    """What to print in the end. Imports torch, which --help and --version do without."""
    training = training_options(rest, arguments.command)
    from taid.command.runs import Settings, compare, distil
    from taid.objectives import METHODS, objective

    methods = arguments.methods if arguments.command == "compare" else [arguments.method]
    options = method_options(arguments.option or (), methods)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
        try:
            uses_teacher = objective(method, **(options[method] or {})).uses_teacher
        except TypeError as error:
            raise ValueError(f"the options do not fit {method}: {error}") from error
        if uses_teacher and not arguments.teacher:
            raise ValueError(f"{method} learns from a teacher: give --teacher, or --method sft")
    if len(set(methods)) < len(methods):
        raise ValueError(f"a method is named twice: {' '.join(methods)}")
    settings = Settings(
        **{
            name: getattr(arguments, name)
            for name in ("student", "teacher", "dataset", "split", "eval_dataset")
        },
        **{name: getattr(arguments, name) for name in ("steps", "epochs", "batch_size", "accumulation")},
        **{name: getattr(arguments, name) for name in ("learning_rate", "max_length", "packing")},
        method=methods[0],
        method_options=options[methods[0]],
        seed=getattr(arguments, "seed", 42),
        training=training or None,
    )
    if arguments.command == "compare":
        seeds = range(42, 42 + arguments.seeds)
        return compare(settings, options, seeds, arguments.output) + f"\nAll in {arguments.output}."
    record = distil(settings, arguments.output)
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in record["metrics"].items())
    drawn = (arguments.output / "curves.png").exists()
    return (
        f"The student is in {arguments.output}{f', {numbers}' if numbers else ''}: see its README.md"
        f"{'' if drawn else '; pip install matplotlib for a plot of its curves'}."
    )


def main(words: Sequence[str] | None = None) -> int:
    arguments, rest = parser().parse_known_args(words)
    try:
        said = run(arguments, rest)
        if os.environ.get("RANK", "0") == "0":  # the first of several ranks
            print(said)
    except (ValueError, OSError, FloatingPointError, ImportError, RuntimeError, SafetensorError) as error:
        print(f"taid: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("taid: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
