"""The command `taid`, as one who has a folder of a student, one of a teacher, and a file of chats."""

import copy
import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from taid.command import runs
from taid.command.cli import main
from taid.command.hub import load_rows
from taid.teacher import write_offline
from taid.text.examples import examples

ROOT = Path(__file__).parents[1]
TEMPLATE = (
    "{% for m in messages %}{{ 'w2' if m['role'] == 'user' else 'w3' }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}w3 {% endif %}"
)
CHAT = [{"role": "user", "content": "w4 w5"}, {"role": "assistant", "content": "w6 w7 w8"}]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with student, teacher and chats.jsonl."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    for seed, name in enumerate(("student", "teacher")):
        tiny_model(seed=seed).save_pretrained(name)
        tokenizer.save_pretrained(name)
    write(tmp_path / "chats.jsonl", [{"messages": CHAT}] * 40)
    return tmp_path


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def words(**options) -> list[str]:
    """distill … with the defaults of these tests."""
    said = {"student": "student", "teacher": "teacher", "dataset": "chats.jsonl", "output": "out", "steps": 4}
    said |= {"use_cpu": True, "disable_tqdm": True}
    pairs = [
        (f"--{name.replace('_', '-')}", str(value))
        for name, value in (said | options).items()
        if value is not None
    ]
    return ["distill", *(word for pair in pairs for word in pair)]


def refused(capsys, arguments: list[str]) -> str:
    """The one line on stderr, after exit code 2."""
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("taid: ")]
    assert code == 2 and len(said) == 1
    return said[0]


def test_distill_leaves_a_student_that_loads_with_its_card_and_curves(here, capsys):
    assert main(words(method="taid", option="t_start=0.25")) == 0
    assert "The student is in out, eval_loss" in capsys.readouterr().out
    model, tokenizer = AutoModelForCausalLM.from_pretrained("out"), AutoTokenizer.from_pretrained("out")
    assert tokenizer.chat_template == TEMPLATE
    before = AutoModelForCausalLM.from_pretrained("student").state_dict()
    assert any((before[name] != tensor).any() for name, tensor in model.state_dict().items())
    assert not list((here / "out").glob("*.bin")) and (here / "out" / "curves.png").stat().st_size > 1000
    curves = rows(here / "out" / "curves.csv")
    assert [row["step"] for row in curves if row["t"]] == ["1", "2", "3", "4"]
    page = (here / "out" / "README.md").read_text()
    for said in (
        "taid",
        "{'t_start': 0.25}",
        "Adaptive(t_start=0.25",
        "chats.jsonl",
        "38 rows",
        "torch",
        "eval_loss",
    ):
        assert said in page


def test_the_examples_of_the_readme_run_as_they_are_printed(here):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^    taid (distill .*)$", text, re.MULTILINE)
    assert main([*shlex.split(command), "--use_cpu", "--steps", "1"]) == 0
    assert AutoModelForCausalLM.from_pretrained("distilled")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    given = {
        "student": AutoModelForCausalLM.from_pretrained("student"),
        "teacher": AutoModelForCausalLM.from_pretrained("teacher"),
        "tokenizer": AutoTokenizer.from_pretrained("student"),
        "dataset": Dataset.from_list([{"messages": CHAT}]),
        "args": TrainingArguments("three-lines", max_steps=1, use_cpu=True, report_to="none"),
    }
    before = copy.deepcopy(given["student"].state_dict())
    exec(compile(code, "README.md", "exec"), given)  # noqa: S102
    assert any((before[name] != tensor).any() for name, tensor in given["student"].state_dict().items())


def test_a_finished_run_is_not_repeated_and_another_not_mixed_in(here, capsys):
    assert main(words()) == 0
    first = (here / "out" / "taid.json").read_text()
    assert main(words()) == 0
    assert (here / "out" / "taid.json").read_text() == first
    assert "holds a run with steps 4, not 5" in refused(capsys, words(steps=5))
    for damaged in ("[]", '{"a'):
        (here / "out" / "taid.json").write_text(damaged)
        assert "taid.json is damaged: choose another --output" in refused(capsys, words())
    (here / "other").mkdir()
    (here / "other" / "thesis.tex").touch()
    assert "other is there, and not a run of taid" in refused(capsys, words(output="other"))


def test_a_killed_run_goes_on_with_the_same_command(here, monkeypatch):
    """Oracle: the weights of a run that was not killed. Killed after the checkpoint of step 4 of 8."""
    options = {"steps": 8, "save_steps": 4, "learning_rate": 0.01}
    assert main(words(output="whole", **options)) == 0

    with monkeypatch.context() as patch:
        save = runs.DistillationTrainer._save_checkpoint

        def save_and_die(self, *arguments, **keywords):
            save(self, *arguments, **keywords)
            raise KeyboardInterrupt

        patch.setattr(runs.DistillationTrainer, "_save_checkpoint", save_and_die)
        assert main(words(**options)) == 130
    assert (here / "out" / "checkpoint-4").exists() and not (here / "out" / "model.safetensors").exists()
    assert main(words(**options)) == 0
    one, two = (load_file(here / folder / "model.safetensors") for folder in ("whole", "out"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_logs_nothing_is_finished_all_the_same(here):
    write(here / "chats.jsonl", [{"messages": CHAT}] * 12)  # too few to keep some for validation
    assert main([*words(logging_strategy="no"), "--logging_first_step", "false"]) == 0
    page = (here / "out" / "README.md").read_text()
    assert "curves" not in page and (here / "out" / "model.safetensors").exists()
    assert "metrics" in json.loads((here / "out" / "taid.json").read_text())


def test_the_teacher_may_be_a_folder_of_logits(here):
    """Oracle: the same run with the model itself; all logits kept, in fp16."""
    teacher = AutoModelForCausalLM.from_pretrained("teacher")
    kept = examples(load_rows("chats.jsonl", None), AutoTokenizer.from_pretrained("student"), 128)
    write_offline(teacher, kept, here / "logits", k=None)
    losses = []
    for name in ("teacher", "logits"):
        assert main(words(method="kl", teacher=name, output=f"by-{name}")) == 0
        record = json.loads((here / f"by-{name}" / "taid.json").read_text())
        losses.append(record["metrics"]["eval_kl"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[0] > 0.01


def test_an_option_may_be_of_one_method_of_several(here, capsys):
    more = ["--option", "taid.t_start=0.2", "--option", "kl.ce_weight=0.2", "--option", "ce_weight=0.1"]
    assert main(["compare", "--methods", "kl", "taid", *words(output="out", steps=1)[1:], *more]) == 0
    found = {
        method: json.loads((here / "out" / f"{method}-seed42" / "taid.json").read_text())["settings"]
        for method in ("kl", "taid")
    }
    assert found["kl"]["method_options"] == {"ce_weight": 0.2}
    assert found["taid"]["method_options"] == {"t_start": 0.2, "ce_weight": 0.1}
    said = refused(capsys, words(option="kl.ce_weight=0.2"))
    assert "--option kl.ce_weight: 'kl' is not run here, but taid" in said


def test_compare_prints_paired_differences(here, capsys):
    """Oracle: the differences of what each run's record says."""
    arguments = ["compare", "--methods", "kl", "sft", "--seeds", "2", *words(output="out")[1:]]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert (here / "out" / "comparison.md").read_text() in table
    record = {
        (method, seed): json.loads((here / "out" / f"{method}-seed{seed}" / "taid.json").read_text())[
            "metrics"
        ]
        for method in ("kl", "sft")
        for seed in (42, 43)
    }
    for metric in ("eval_loss", "eval_kl"):
        differences = [record["sft", seed][metric] - record["kl", seed][metric] for seed in (42, 43)]
        assert f"| {sum(differences) / 2:+.4f} [" in table
    assert not list((here / "out").glob("*/checkpoint-*"))
    assert len((here / "out" / "comparison.jsonl").read_text().splitlines()) == 4


BAD = {  # what a newcomer does → what is said
    "no teacher": (words(teacher=None), "taid learns from a teacher: give --teacher"),
    "a method that is not": (words(method="magic"), "there is no method 'magic'; there are sft, kl"),
    "no such folder": (words(student="./studnet"), "there is no folder './studnet' for the student"),
    "a folder without a model": (words(student="."), "the student '.' has no config.json"),
    "no such file": (
        words(dataset="chat.jsonl"),
        "the data set 'chat.jsonl' cannot be read: there is no such file",
    ),
    "a file of another kind": (words(dataset="student/tokenizer.json.txt"), "give a file of .json, .jsonl"),
    "no such split": (words(split="test"), "has no split 'test', but train"),
    "an empty file": (words(dataset="student/config.txt"), "cannot be read: it is empty"),
    "an option twice": (
        [*words(option="t_start=0.2"), "--option", "t_start=0.3"],
        "--option t_start is given twice",
    ),
    "a tracker that is not installed": (words(report_to="wandb"), "WandbCallback requires wandb"),
    "no steps": (words(steps=0), "argument --steps: 0 is not above 0"),
    "a negative rate": (words(learning_rate=-1), "argument --learning-rate: -1 is not above 0"),
    "nan": (words(learning_rate="nan"), "nan is not above 0"),
    "a word for a number": (words(batch_size="big"), "invalid int value: 'big'"),
    "an unknown option": (words(lerning_rate=1), "there is no option --lerning-rate"),
    "an option called otherwise here": (words(max_steps=3), "--max_steps is called --steps here"),
    "a wrong option of the method": (words(option="t_strat=0.2"), "the options do not fit taid"),
    "an option without a value": (words(option="t_start"), "'t_start' is not NAME=VALUE"),
    "too long": (words(max_length=4096), "max_length=4096, but a model has 128 positions"),
    "both lengths": ([*words(), "--epochs", "2"], "not allowed with argument"),
    "a method twice": (["compare", "--methods", "kl", "kl", *words()[1:]], "a method is named twice"),
    "nothing": ([], "required"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_one_sentence(name, here, capsys):
    (here / "student" / "config.txt").touch()
    (here / "student" / "tokenizer.json.txt").write_text("w4")
    arguments, said = BAD[name]
    assert said in refused(capsys, arguments)


ELSEWHERE = {  # options of TrainingArguments that would undo what a command does → what it does
    "a seed for all": (
        "compare",
        ["--seed", "7"],
        "leave out --seed of compare.*--seeds 3 takes 42, 43 and 44",
    ),
    "an order for all": ("compare", ["--data_seed=5"], "leave out --data_seed of compare.*--seeds"),
    "another checkpoint": ("compare", ["--resume_from_checkpoint", "x"], "same command goes on by itself"),
    "a checkpoint": ("distill", ["--resume_from_checkpoint", "x"], "same command goes on by itself"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_options_that_would_undo_the_command_s_own_are_refused_before_training(name, here, capsys):
    command, more, said = ELSEWHERE[name]
    methods = ["--methods", "kl", "sft", "--seeds", "2"] if command == "compare" else []
    assert re.search(said, refused(capsys, [command, *methods, *words()[1:], *more]))
    assert not (here / "out").exists()


def test_one_run_takes_an_order_of_its_own(here):
    assert main(words(method="sft", teacher=None, steps=1, seed=7, data_seed=5)) == 0
    settings = json.loads((here / "out" / "taid.json").read_text())["settings"]
    assert settings["seed"] == 7 and settings["training"]["data_seed"] == 5


def test_a_teacher_of_another_tokenizer_is_one_sentence(here, capsys):
    """Of as many tokens, but other ones."""
    path = here / "teacher" / "tokenizer.json"
    path.write_text(path.read_text().replace('"w47"', '"other"'))
    assert "'other' to the teacher's" in refused(capsys, words())
    for file in (here / "teacher").glob("*token*"):
        file.unlink()
    assert (
        main(words()) == 0
    )  # a teacher that lies there without its tokenizer is believed to have the student's


ROWS = {
    "unknown columns": (
        [{"instruction": "x", "output": "y"}] * 40,
        "no text to learn in the columns 'instruction'",
    ),
    "only users": ([{"messages": CHAT[:1]}] * 40, "no turn of an assistant"),
    "no rows": ([], "cannot be read"),
}


@pytest.mark.parametrize("name", ROWS)
def test_data_that_cannot_be_used_is_one_sentence(name, here, capsys):
    rows, said = ROWS[name]
    write(here / "bad.jsonl", rows)
    assert said in refused(capsys, words(dataset="bad.jsonl"))
    (here / "torn.jsonl").write_text('{"messages": [')
    assert "cannot be read" in refused(capsys, words(dataset="torn.jsonl"))


@pytest.mark.parametrize("words", [["--version"], ["distill", "--help"]])
def test_help_needs_no_torch(words):
    code = f"import sys; from taid.command.cli import main; sys.argv = ['taid']\ntry: main({words})\nfinally: assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "taid" in run.stdout


def test_python_m_taid_is_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "taid", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.stdout.startswith("taid ") and run.returncode == 0


@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "csv", "parquet", "folder of files", "saved", "saved splits"]
)
def test_a_data_set_is_a_file_or_a_folder(kind, tmp_path):
    """Oracle: the rows that were written."""
    rows = [{"prompt": f"w{i}", "completion": "w2"} for i in range(5)]
    data, path = Dataset.from_list(rows), tmp_path / f"data.{kind}"
    if kind in ("jsonl", "json"):
        data.to_json(path)
    elif kind == "csv":
        data.to_csv(path)
    elif kind == "parquet":
        data.to_parquet(path)
    elif kind == "folder of files":
        path.mkdir()
        data.to_json(path / "train.jsonl")
    else:
        (data if kind == "saved" else DatasetDict(validation=data.select([0]), train=data)).save_to_disk(path)
    assert list(load_rows(str(path), None)) == rows
    if kind == "saved splits":
        assert list(load_rows(str(path), "validation")) == rows[:1]


def test_a_saved_split_is_the_one_that_is_asked_for(tmp_path):
    """A folder of one split, which knows its name or, made by hand, is "train" as a file's rows are."""
    rows = [{"text": f"w{i}"} for i in range(3)]
    for name, split in {"named": "validation", "unnamed": None}.items():
        path = str(tmp_path / name)
        Dataset.from_list(rows, split=split).save_to_disk(path)
        assert list(load_rows(path, None)) == list(load_rows(path, split or "train")) == rows
        with pytest.raises(ValueError, match=f"no split 'test', but {split or 'train'}: choose by --split"):
            load_rows(path, "test")


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [
        (("train", "test", "validation"), "validation"),
        (("train", "test"), "test"),
        (("train",), "train"),
        (("other",), "other"),
    ],
)
def test_validation_data_are_a_data_set_s_split_for_it(splits, chosen, here):
    """Oracle: as many rows as the split has, one more each."""
    many = {name: Dataset.from_list([{"messages": CHAT}] * (i + 2)) for i, name in enumerate(splits)}
    DatasetDict(many).save_to_disk("given")
    assert main(words(method="sft", teacher=None, steps=1, eval_dataset="given")) == 0
    assert json.loads((here / "out" / "taid.json").read_text())["rows"] == [40, len(many[chosen])]


def test_validation_data_of_other_splits_are_not_guessed(here, capsys):
    splits = ("train", "other")
    DatasetDict({name: Dataset.from_list([{"messages": CHAT}]) for name in splits}).save_to_disk("given")
    said = refused(capsys, words(eval_dataset="given"))
    assert "no split 'validation' or 'test', but train, other" in said and "save the one you want" in said


@pytest.mark.slow
def test_a_real_teacher_into_a_piece_of_it(tmp_path, monkeypatch, capsys):
    """docs/distill.md with fewer rows and steps: SmolLM2's own chat template, and a student that comes nearer."""
    from taid.studies.instructions import Size, build
    from taid.studies.zoo import prune, smollm2

    monkeypatch.chdir(tmp_path)
    teacher, tokenizer = smollm2()
    for name, model in {"teacher": teacher, "student": prune(teacher, 4)}.items():
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    items = build(Size(words=8, passages=8, validation=1, test=1))
    for name, split in {"chats": items.train, "validation": items.validation}.items():
        chats = [
            [{"role": "user", "content": i.prompt}, {"role": "assistant", "content": i.response}]
            for i in split
        ]
        write(tmp_path / f"{name}.jsonl", [{"messages": chat} for chat in chats])
    options = {"eval_dataset": "validation.jsonl", "steps": 6, "batch_size": 4, "learning_rate": 1e-3}
    assert main(["compare", "--methods", "kl", "taid", *words(**options)[1:]]) == 0
    assert "| taid |" in capsys.readouterr().out
    for method in ("kl", "taid"):
        folder = tmp_path / "out" / f"{method}-seed42"
        measured = [float(row["eval_kl"]) for row in rows(folder / "curves.csv") if row["eval_kl"]]
        assert measured[-1] < measured[0]
        assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
