"""DistillationArguments: transformers' TrainingArguments with our options, for HfArgumentParser, YAML and JSON."""

import re
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from taid.text.examples import MAX_LENGTH


@dataclass
class DistillationArguments(TrainingArguments):
    """What DistillationTrainer takes beside TrainingArguments, under the trainer's own names; None: its default."""

    _VALID_DICT_FIELDS = sorted([*TrainingArguments._VALID_DICT_FIELDS, "method_options"])

    method: str | None = field(default=None, metadata={"help": "A name of taid.METHODS (default: taid)."})
    method_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The method's own options, as JSON: '{\"t_start\": 0.2}'."}
    )
    ce_weight: float | None = field(
        default=None, metadata={"help": "Share of the cross-entropy (default: 0)."}
    )
    temperature: float | None = field(default=None, metadata={"help": "Of both models' logits (default: 1)."})
    teacher: str | None = field(
        default=None, metadata={"help": "Name on the hub, or folder of a model or of its logits."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens after which a text is cut."})
    packing: bool | None = field(default=None, metadata={"help": "Several texts to a row, kept apart."})
    fuse_head: bool | None = field(default=None, metadata={"help": "Never make a batch's logits whole."})
    eval_kl: bool | None = field(
        default=None, metadata={"help": "Measure the KL to the teacher (default: true)."}
    )
    vocab_size: int | None = field(
        default=None,
        metadata={"help": "The first entries mean the same to student and teacher; no others count."},
    )

    def __post_init__(self):
        if self.greater_is_better is None and is_kl(self.metric_for_best_model):
            self.greater_is_better = False  # which TrainingArguments knows of a loss alone
        super().__post_init__()


def is_kl(metric: str | None) -> bool:
    """Whether a metric is a divergence by its name, "eval_kl" or that of one of several validation sets."""
    return metric is not None and re.search(r"(^|_)kl$", metric) is not None


DEFAULTS = {  # what an option is where nobody sets it, if not None
    "ce_weight": 0,
    "temperature": 1,
    "max_length": MAX_LENGTH,
    "packing": False,
    "fuse_head": False,
    "eval_kl": True,
}
ELSEWHERE = {  # option of TRL's classes that has no field here -> (what changes nothing, what to do instead)
    "lmbda": ((0.5,), "pass method=objective('gkd', probability=…)"),
    "beta": ((0.5,), "pass method=Divergence(losses.jsd, GKDRollouts(…), teacher_weight=…) of taid"),
    "max_new_tokens": ((128,), "pass method=objective('gkd', max_new_tokens=…)"),
    "seq_kd": ((False,), "let the teacher write the responses of the data set before"),
    "teacher_model_name_or_path": ((None,), "pass teacher="),
    "model_init_kwargs": ((None,), "load the student with them"),
    "teacher_model_init_kwargs": ((None,), "load the teacher with them, and pass teacher="),
    "dataset_text_field": (("text",), "rename that column of the data set to 'text'"),
    "dataset_kwargs": ((None,), "prepare the data set before"),
    "completion_only_loss": (
        (None, True),
        "join prompt and completion in a column 'text', all of which is learned",
    ),
    "chat_template_path": ((None,), "set the tokenizer's chat_template"),
    "eos_token": ((None,), "set the tokenizer's eos_token"),
    "pad_token": ((None,), "set the tokenizer's pad_token"),
    "eval_packing": ((None, False), "leave it out, for validation is never packed"),
    "truncation_mode": (("keep_start",), "cut the rows before, for max_length keeps their beginning"),
    "loss_type": (("nll",), "pass method="),
}
SWITCHES = ("packing", "fuse_head", "eval_kl")


def chosen(args: TrainingArguments | None, **keywords) -> dict[str, Any]:
    """Each option as the trainer's keyword has it, or `args`, or None.

    Raises ValueError, naming both, where they have it otherwise; a model is not another teacher than its name. And
    where arguments of another class, TRL's say, have an option of ours, which may mean something else there, unless
    it is given as the keyword too, or changes nothing; and for a switch that is no boolean.
    """
    ours, found = isinstance(args, DistillationArguments), {}
    if not ours:
        _check_elsewhere(args)
    for name, keyword in keywords.items():
        argument = getattr(args, name, None)
        if not ours and keyword is None and argument is not None and argument != DEFAULTS.get(name):
            raise ValueError(
                f"{type(args).__name__} has {name}={argument!r}, which is not read here: pass {name}= to the trainer, "
                "or take DistillationArguments"
            )
        argument = argument if ours else None
        same = (
            keyword == argument
            if isinstance(keyword, str | int | float | dict)
            else _name(keyword) == argument
        )
        if keyword is not None and argument is not None and not same:
            raise ValueError(
                f"{name} is {_name(keyword)!r} as the trainer's keyword, and {argument!r} in args: give it once"
            )
        found[name] = argument if keyword is None else keyword
    for name in SWITCHES:
        if not isinstance(found.get(name), bool | None):
            raise ValueError(f"{name} must be True or False, got {found[name]!r}")
    return found


def _check_elsewhere(args: TrainingArguments | None) -> None:
    """Raises ValueError for what ELSEWHERE says."""
    for name, (harmless, instead) in ELSEWHERE.items():
        if (value := getattr(args, name, harmless[0])) not in harmless:
            raise ValueError(f"{type(args).__name__} has {name}={value!r}, which is not read here: {instead}")


def method_options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a method by name: `method_options`, ce_weight and temperature. ValueError for one said twice."""
    options = dict(given["method_options"] or {})
    for name in ("ce_weight", "temperature"):
        if name in options and given[name] not in (None, options[name]):
            raise ValueError(f"{name} is {given[name]}, and {options[name]} in method_options: give it once")
        if given[name] is not None:
            options[name] = given[name]
    return options


def _name(value) -> Any:
    """Of a model the name or folder that it was loaded from; of anything else what can be read of it."""
    return getattr(getattr(value, "config", None), "name_or_path", None) or value
