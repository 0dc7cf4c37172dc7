"""DistillationArguments: the same run from Python, a command line, YAML and JSON."""

import json
from dataclasses import dataclass, fields

import pytest
from conftest import tiny_examples, tiny_model, tiny_tokenizer
from transformers import HfArgumentParser, TrainingArguments

from taid import DistillationArguments, DistillationTrainer
from taid.objectives import SFT, TAID
from taid.trainer.arguments import DEFAULTS, chosen, method_options

VALUES = {
    "method": "taid",
    "method_options": {"t_start": 0.2},
    "max_length": 64,
    "packing": True,
    "fuse_head": True,
}
TRAINING = {
    "max_steps": 3,
    "learning_rate": 0.01,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
}


def from_command_line(folder):
    words = [
        f"--{name}={json.dumps(v) if isinstance(v, dict) else v}" for name, v in (VALUES | TRAINING).items()
    ]
    return HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(
        [*words, f"--output_dir={folder}"]
    )[0]


def from_file(suffix: str):
    def parse(folder):
        path = folder / f"arguments.{suffix}"
        path.write_text(json.dumps(VALUES | TRAINING | {"output_dir": str(folder)}))  # JSON is YAML too
        parser = HfArgumentParser(DistillationArguments)
        return (parser.parse_yaml_file if suffix == "yaml" else parser.parse_json_file)(path)[0]

    return parse


@pytest.mark.parametrize("parse", [from_command_line, from_file("yaml"), from_file("json")])
def test_every_way_to_say_it_is_one(parse, tmp_path):
    arguments = parse(tmp_path)
    assert {name: getattr(arguments, name) for name in VALUES} == VALUES
    assert {name: getattr(arguments, name) for name in ("max_steps", "learning_rate")} == {
        "max_steps": 3,
        "learning_rate": 0.01,
    }


def test_the_trainer_takes_its_options_from_args(tmp_path):
    arguments = DistillationArguments(
        str(tmp_path), method="taid", method_options={"t_start": 0.25}, **TRAINING
    )
    trainer = DistillationTrainer(
        tiny_model(), tiny_model(seed=1), args=arguments, train_dataset=tiny_examples()
    )
    assert isinstance(trainer.objective, TAID) and trainer.objective.state.t == 0.25
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(
    ("keyword", "argument"),
    [
        ({"method": "kl"}, {"method": "taid"}),
        ({"packing": False}, {"packing": True}),
        ({"vocab_size": 40}, {"vocab_size": 48}),
    ],
)
def test_a_conflict_names_both(keyword, argument, tmp_path):
    (name,) = keyword
    with pytest.raises(
        ValueError, match=f"{name} is {keyword[name]!r} as the trainer's keyword, and {argument[name]!r} in"
    ):
        DistillationTrainer(
            tiny_model(), tiny_model(seed=1), args=DistillationArguments(str(tmp_path), **argument), **keyword
        )


@dataclass
class Foreign(TrainingArguments):
    """As TRL's: fields of our names, with defaults of their own."""

    max_length: int | None = 1024
    packing: bool = False
    temperature: float | None = None


def test_options_in_arguments_of_another_class_are_not_dropped(tmp_path):
    for option in ({"max_length": 4}, {"packing": True}, {"temperature": 0.9}):
        ((name, value),) = option.items()
        words = f"Foreign has {name}={value}, which is not read here: pass {name}= to the trainer"
        with pytest.raises(ValueError, match=words):
            DistillationTrainer(
                tiny_model(), tiny_model(seed=1), "kl", args=Foreign(str(tmp_path), **TRAINING, **option)
            )
        assert chosen(Foreign(str(tmp_path), **option), **option) == option  # said to the trainer itself
    defaults = {"max_length": None, "packing": None, "temperature": None, "eval_kl": None}
    for args in (Foreign(str(tmp_path)), TrainingArguments(str(tmp_path)), None):
        assert chosen(args, **defaults) == defaults  # what changes nothing


@dataclass
class Theirs(TrainingArguments):
    """Options of TRL's SFTConfig and GKDConfig that have no name here, with TRL's defaults."""

    lmbda: float = 0.5
    beta: float = 0.5
    max_new_tokens: int = 128
    seq_kd: bool = False
    dataset_text_field: str = "text"
    completion_only_loss: bool | None = None
    truncation_mode: str = "keep_start"


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("lmbda", 1.0, "probability="),
        ("beta", 0.9, "teacher_weight="),
        ("max_new_tokens", 8, "objective.'gkd', max_new_tokens="),
        ("seq_kd", True, "let the teacher write"),
        ("dataset_text_field", "content", "rename that column"),
        ("completion_only_loss", False, "join prompt and completion"),
        ("truncation_mode", "keep_end", "cut the rows before"),
    ],
)
def test_options_of_other_classes_without_a_name_here_are_not_dropped(option, value, instead, tmp_path):
    assert chosen(Theirs(str(tmp_path)), method="gkd") == {"method": "gkd"}
    with pytest.raises(ValueError, match=f"Theirs has {option}={value!r}, .*not read here: .*{instead}"):
        DistillationTrainer(
            tiny_model(), tiny_model(seed=1), "gkd", args=Theirs(str(tmp_path), **TRAINING, **{option: value})
        )


def test_a_default_is_what_the_trainer_does_without(tmp_path):
    """Oracle: runs that are told so."""
    losses = []
    for said in ({}, DEFAULTS):
        args = DistillationArguments(str(tmp_path), method="kl", logging_steps=1, **TRAINING, **said)
        texts = [{"prompt": f"w{i}", "completion": f"w{i + 1} w{i + 2}"} for i in range(2, 22)]
        models = tiny_model(max_position_embeddings=2048), tiny_model(seed=1, max_position_embeddings=2048)
        trainer = DistillationTrainer(
            *models, args=args, train_dataset=texts, processing_class=tiny_tokenizer()
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_a_model_is_the_teacher_of_its_name_and_no_other(tmp_path):
    teacher = tiny_model(seed=1)
    teacher.config.name_or_path = "some/teacher"
    args = DistillationArguments(str(tmp_path), teacher="some/teacher")
    assert chosen(args, teacher=teacher) == {"teacher": teacher}
    with pytest.raises(ValueError, match="'some/teacher' as the trainer's keyword, and 'other' in args"):
        chosen(DistillationArguments(str(tmp_path), teacher="other"), teacher=teacher)


def test_ce_weight_and_temperature_are_the_methods(tmp_path):
    args = DistillationArguments(str(tmp_path), method="kl", ce_weight=0.25, **TRAINING)
    trainer = DistillationTrainer(tiny_model(), tiny_model(seed=1), args=args, temperature=2.0)
    assert (trainer.objective.ce_weight, trainer.objective.temperature) == (0.25, 2.0)
    with pytest.raises(ValueError, match=r"ce_weight is 0.25 as the trainer's keyword, and 0.5 in args"):
        chosen(DistillationArguments(str(tmp_path), ce_weight=0.5), ce_weight=0.25)
    with pytest.raises(ValueError, match=r"temperature is 2.0, and 3.0 in method_options"):
        method_options({"method_options": {"temperature": 3.0}, "ce_weight": None, "temperature": 2.0})


@pytest.mark.parametrize("metric", ["eval_kl", "kl", "eval_chats_kl"])
def test_a_kl_is_the_better_the_lower_where_nobody_says(metric, tmp_path):
    """Oracle: what TrainingArguments knows of a loss; of other metrics and of what is said nothing changes."""
    for name, said, expected in (
        *((metric, None, False), (metric, True, True), ("eval_loss", None, False)),
        *(("accuracy", None, True), ("tackl", None, True), (None, None, None)),
    ):
        args = DistillationArguments(str(tmp_path), metric_for_best_model=name, greater_is_better=said)
        assert args.greater_is_better is expected


def test_options_of_a_method_want_its_name(tmp_path):
    args = DistillationArguments(str(tmp_path), method_options={"t_start": 0.2})
    with pytest.raises(ValueError, match="are for a method given by its name"):
        DistillationTrainer(tiny_model(), method=SFT(), args=args)


def test_all_options_are_keywords_of_the_trainer_too():
    keywords = DistillationTrainer.__init__.__kwdefaults__.keys() | {"teacher", "method"}
    ours, theirs = (
        {each.name for each in fields(kind)} for kind in (DistillationArguments, TrainingArguments)
    )
    assert ours - theirs - keywords == {"method_options"}
