"""Offline teachers: the format as docs/offline_teacher.md has it, written by us and by a stranger."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from conftest import PAD, VOCAB, tiny_examples, tiny_model, tiny_tokenizer, tiny_trainer
from datasets import Dataset
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from taid import DistillationTrainer
from taid.data import IGNORE, Collator
from taid.objectives import METHODS, objective
from taid.teacher import HiddenStates, OfflineTeacher, TopLogits, cached_teacher, write_offline
from taid.teacher import cache as cache_module
from taid.text.examples import examples

ROWS = [
    {
        "input_ids": e["prompt_ids"] + e["response_ids"],
        "labels": [IGNORE] * len(e["prompt_ids"]) + e["response_ids"],
    }
    for e in tiny_examples(24)
]


def collate(rows):
    return DataCollatorForSeq2Seq(tiny_tokenizer())(rows)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "offline"


def losses(tmp_path, teacher, method="kl", **options) -> list[float]:
    trainer = tiny_trainer(tmp_path, method, teacher=teacher, examples=ROWS, collator=collate, **options)
    trainer.train()
    return [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]


# A stranger's writer: numpy, safetensors, hashlib and json; nothing of taid


def strange(
    folder, model, rows=ROWS, k=VOCAB, per_shard=10, half=False, rest=True, spoil=lambda tensors: tensors
):
    """What docs/offline_teacher.md asks for, from whole logits in fp64."""
    folder.mkdir(parents=True)
    digests, lengths, tokens, log_p, log_rest, shards = [], [], [], [], [], {}

    def close():
        tensors = {
            "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
            "lengths": np.array(lengths, np.int64),
            "tokens": np.concatenate(tokens).astype(np.int32),
            "log_p": np.concatenate(log_p).astype(np.float16 if half else np.float32),
        }
        if rest:
            tensors["log_rest"] = np.concatenate(log_rest).astype(np.float32)
        name = f"part-{len(shards)}.safetensors"
        save_file(spoil(tensors), folder / name)
        shards[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for held in (digests, lengths, tokens, log_p, log_rest):
            held.clear()

    for row in rows:
        ids = row["input_ids"]
        positions = [i for i in range(len(ids) - 1) if row["labels"][i + 1] != -100]
        numbers = [len(ids), *ids, *positions]
        digests.append(hashlib.sha256(b"".join(n.to_bytes(8, "little") for n in numbers)).digest())
        lengths.append(len(positions))
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, positions].double().numpy()
        p = np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))
        order = np.argsort(-p, -1)
        tokens.append(order[:, :k])
        log_p.append(np.log(np.take_along_axis(p, order[:, :k], -1)))
        with np.errstate(divide="ignore"):
            log_rest.append(np.log(np.take_along_axis(p, order[:, k:], -1).sum(-1)))
        if len(digests) == per_shard:
            close()
    if digests:
        close()
    index = {
        "format": "teacher logits",
        "version": 1,
        "store": f"top-{k}",
        "vocab_size": VOCAB,
        "shards": shards,
    }
    (folder / "teacher.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("rest", [True, False], ids=["with the rest", "without"])
@pytest.mark.parametrize("method", ["kl", "rkl", "taid", "adaptive_kl", "dkd", "ctkd", "gjs", "skew_rkl"])
def test_a_stranger_s_whole_vocabulary_trains_as_the_live_teacher_does(
    method, rest, folder, tmp_path, teacher
):
    """Oracle: the trainer with the model itself. k = V, so that nothing is lost but fp32's last bits."""
    offline = OfflineTeacher(strange(folder, teacher.eval(), rest=rest))
    found, expected = (losses(tmp_path, t, method, steps=3) for t in (offline, teacher))
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_stranger_s_top_is_ours(folder, tmp_path, teacher):
    """Oracle: the same k, written from fp64 by hand and by `write_offline`; fp16 apart."""
    write_offline(teacher, ROWS, tmp_path / "ours", k=7)
    by_hand = OfflineTeacher(strange(folder, teacher.eval(), k=7, half=True))
    batch = collate(ROWS[3:9])
    torch.testing.assert_close(by_hand(batch), OfflineTeacher(tmp_path / "ours")(batch), atol=1e-2, rtol=0)


def test_the_rest_follows_from_the_top(folder, tmp_path, teacher):
    """Oracle: the stranger's own sum of the others, in fp64."""
    model = teacher.eval()
    with_rest = OfflineTeacher(strange(folder, model, k=7))
    without = OfflineTeacher(strange(tmp_path / "without", model, k=7, rest=False))
    batch = collate(ROWS[:6])
    torch.testing.assert_close(with_rest(batch), without(batch), atol=1e-3, rtol=0)
    assert with_rest(batch).exp().sum(-1).allclose(torch.ones(1), atol=1e-3)


def spoiled(**changes):
    """A change of some tensors of a shard, by name."""
    return lambda tensors: {
        name: np.ascontiguousarray(changes.get(name, lambda value: value)(value))
        for name, value in tensors.items()
    }


def normalised(log_p):
    return log_p - np.logaddexp.reduce(log_p, -1, keepdims=True)


WRONG = {
    "logits for log-probabilities": ({"spoil": spoiled(log_p=lambda x: x + 3)}, "do not add up to 1"),
    "NaN": ({"spoil": spoiled(log_p=lambda x: x * np.nan)}, "do not add up to 1"),
    "softmax of the top alone": ({"spoil": spoiled(log_p=normalised), "rest": False}, "top alone"),
    "a token twice": ({"spoil": spoiled(tokens=lambda x: x * 0 + 5)}, "names a token twice"),
    "tokens beyond": ({"spoil": spoiled(tokens=lambda x: x + VOCAB)}, f"vocabulary of {VOCAB}"),
    "another k": ({"spoil": spoiled(tokens=lambda x: x[:, :3], log_p=lambda x: x[:, :3])}, "has tokens"),
    "fewer rows": ({"spoil": spoiled(lengths=lambda x: x + 1)}, "positions by lengths"),
    "hex digests": ({"spoil": spoiled(digests=lambda x: x.repeat(2, -1))}, "has digests"),
    "no lengths": (
        {"spoil": lambda tensors: {name: v for name, v in tensors.items() if name != "lengths"}},
        "lacks lengths",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_of_the_format_is_refused_with_the_file_and_the_reason(case, folder, teacher):
    options, words = WRONG[case]
    with pytest.raises(ValueError, match=rf"part-0.safetensors.*{words}"):
        OfflineTeacher(strange(folder, teacher.eval(), k=7, **options))


def change(folder, **more):
    path = folder / "teacher.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


BROKEN = {
    "a cut file": (
        lambda f: (f / "part-1.safetensors").write_bytes(b"short"),
        "part-1.safetensors is damaged",
    ),
    "a lost file": (
        lambda f: (f / "part-1.safetensors").unlink(),
        "part-1.safetensors is damaged or missing",
    ),
    "no index": (lambda f: (f / "teacher.json").unlink(), "has no teacher.json"),
    "another version": (lambda f: change(f, version=2), "is not of"),
    "no shards": (lambda f: change(f, shards={}), "holds no example"),
    "an unknown store": (lambda f: change(f, store="best"), "no way to keep logits"),
    "hidden states": (lambda f: change(f, store="hidden", shards={}), "holds no example"),
    "a number for a store": (lambda f: change(f, store=5), "is not of"),
    "a list of shards": (lambda f: change(f, shards=[]), "is not of"),
    "garbage": (lambda f: (f / "teacher.json").write_text("["), "is damaged"),
    "a list": (lambda f: (f / "teacher.json").write_text("[]"), "is damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_folder_is_refused(case, folder, teacher):
    strange(folder, teacher.eval(), k=7)
    harm, words = BROKEN[case]
    harm(folder)
    with pytest.raises(ValueError, match=words):
        OfflineTeacher(folder)


# Ours


def test_no_model_is_needed_and_every_even_tail_method_trains(folder, tmp_path, teacher):
    """Finite losses near the live teacher's: an even tail is off by less the more is kept."""
    write_offline(teacher, ROWS, folder, k=40)
    for method in ("kl", "tvd", "gjs", "skew_kl", "skew_rkl"):
        found, expected = (losses(tmp_path, t, method, steps=2) for t in (OfflineTeacher(folder), teacher))
        assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_all_logits_teach_every_method_without_samples(folder, tmp_path, teacher):
    write_offline(teacher, ROWS, folder, k=None)
    for method in METHODS:
        if objective(method).rollouts is None:
            found, expected = (
                losses(tmp_path, t, method, steps=2) for t in (OfflineTeacher(folder), teacher)
            )
            assert found == pytest.approx(expected, rel=2e-2, abs=1e-3)  # fp16


@pytest.mark.parametrize("method", ["rkl", "taid", "taid_no_adaptive", "adaptive_kl", "ctkd", "dkd"])
def test_a_tail_is_not_for_methods_that_look_into_it(method, folder, tmp_path, teacher):
    write_offline(teacher, ROWS, folder, k=7)
    with pytest.raises(ValueError, match=r"reads the teacher's logits of unlikely tokens.*keep all"):
        tiny_trainer(tmp_path, method, teacher=OfflineTeacher(folder))
    offline = OfflineTeacher(folder)
    assert all(map(math.isfinite, losses(tmp_path, lambda batch: offline(batch), method, steps=2)))


@pytest.mark.parametrize("method", ["gkd", "distillm"])
def test_samples_are_in_no_folder(method, folder, tmp_path, teacher):
    write_offline(teacher, ROWS, folder, k=None)
    with pytest.raises(ValueError, match="student's own samples"):
        tiny_trainer(tmp_path, method, teacher=OfflineTeacher(folder))


@pytest.mark.parametrize("packing", [False, True])
def test_text_is_looked_up_by_the_tokens_that_the_trainer_makes_of_it(packing, folder, tmp_path, teacher):
    """Oracle: the live teacher. One folder serves rows of one text and rows of several, packed."""
    tokenizer = tiny_tokenizer()
    texts = Dataset.from_list([{"text": tokenizer.decode(row["input_ids"][:-1])} for row in ROWS])
    write_offline(teacher, examples(texts, tokenizer, max_length=32), folder, k=None)

    def trained(teacher) -> list[float]:
        trainer = DistillationTrainer(
            tiny_model(),
            teacher,
            "taid",
            args=tiny_trainer(tmp_path, "sft", steps=3).args,
            train_dataset=texts,
            processing_class=tokenizer,
            max_length=32,
            packing=packing,
        )
        trainer.train()
        return [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]

    assert trained(OfflineTeacher(folder)) == pytest.approx(trained(teacher), abs=1e-2)  # fp16


def test_tokens_in_any_form_are_written_without_a_collator(folder, teacher):
    """One entry for an example as a row with labels, without, of arrays, padded, and as ours."""
    whole = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in ROWS]
    write_offline(teacher, whole, folder, k=7)
    calls = []
    for rows in (
        [{"input_ids": row["input_ids"]} for row in ROWS],
        [{"input_ids": np.array(row["input_ids"])} for row in ROWS],
        [{"input_ids": row["input_ids"], "text": "so"} for row in ROWS],
        [
            {"prompt_ids": row["input_ids"][:1], "response_ids": row["input_ids"][1:], "index": 0}
            for row in ROWS
        ],
    ):
        write_offline(teacher, rows, folder, k=7, progress=lambda *done: calls.append(done))
    assert not calls
    with pytest.raises(ValueError, match=r"no tokens: make them with taid.text.examples.examples"):
        write_offline(teacher, [{"text": "w5 w6"}], folder, k=7)


def test_what_has_no_teacher_needs_none(folder, tmp_path, teacher):
    write_offline(teacher, ROWS, folder, k=7)
    tiny_trainer(tmp_path, "sft", teacher=OfflineTeacher(folder))


def test_hidden_states_are_of_no_use_without_the_model(folder, teacher):
    cached_teacher(teacher, ROWS, collate, folder, store=HiddenStates())
    with pytest.raises(ValueError, match="need the teacher's head"):
        OfflineTeacher(folder)


def test_another_example_is_refused(folder, teacher):
    write_offline(teacher, ROWS[:10], folder, k=7)
    with pytest.raises(ValueError, match="2 of 3 examples are not in"):
        OfflineTeacher(folder)(collate([ROWS[0], ROWS[11], ROWS[12]]))


def test_what_cannot_be_written_is_refused_before_anything_is(folder, teacher):
    silent = [{"input_ids": [2, 3], "labels": [-100, -100]}]
    with pytest.raises(ValueError, match="no example has a label that a token predicts"):
        write_offline(teacher, silent, folder, k=7)
    assert not (folder / "teacher.json").exists()
    for k in ("7", 7.0, 0):
        with pytest.raises(ValueError, match="k must be a whole number of logits to keep"):
            write_offline(teacher, ROWS, folder, k=k)


def test_a_writer_goes_on_and_refuses_what_is_not_its_own(folder, tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD", 1)
    calls = []
    write_offline(teacher, ROWS[:8], folder, k=7, batch_size=4)
    write_offline(teacher, ROWS, folder, k=7, batch_size=4, progress=lambda *done: calls.append(done))
    assert calls == [(12, 24), (16, 24), (20, 24), (24, 24)]
    with pytest.raises(ValueError, match="take another folder"):
        write_offline(tiny_model(seed=2), ROWS, folder, k=7)
    with pytest.raises(ValueError, match="take another folder"):
        write_offline(teacher, ROWS, folder, k=8)
    by_hand = strange(tmp_path / "other", teacher.eval(), k=7)
    for write in (
        lambda: write_offline(teacher, ROWS, by_hand, k=7),
        lambda: cached_teacher(teacher, ROWS, collate, by_hand, store=TopLogits(7)),
    ):
        with pytest.raises(ValueError, match="another tool"):
            write()
    OfflineTeacher(by_hand)  # and left it as it was


def test_a_model_that_was_written_down_is_left_as_it_was(folder, teacher):
    teacher.train()
    teacher.get_input_embeddings().weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}
    write_offline(teacher, ROWS, folder, k=7)
    assert teacher.training
    assert before == {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}


def test_a_vocabulary_of_another_size_is_refused_before_training(folder, tmp_path):
    write_offline(tiny_model(seed=1, vocab_size=VOCAB + 300), ROWS, folder, k=7)
    with pytest.raises(ValueError, match=f"{VOCAB + 300}"):
        tiny_trainer(tmp_path, "kl", teacher=OfflineTeacher(folder))


def test_a_folder_s_name_is_a_teacher(folder, tmp_path, teacher):
    write_offline(teacher, ROWS, folder, k=7)
    assert losses(tmp_path, str(folder)) == losses(tmp_path, OfflineTeacher(folder))
    with pytest.raises(ValueError, match="unlikely tokens"):
        tiny_trainer(tmp_path, "taid", teacher=folder)


def test_the_tokenizer_of_the_teacher_that_was_written_down_is_compared(folder, tmp_path, teacher):
    """Where it lies beside the model: with one entry that means another word the numbers would mean nothing."""
    tokenizer = tiny_tokenizer()
    teacher.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_offline(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), ROWS, folder, k=7)
    losses(tmp_path, OfflineTeacher(folder), tokenizer=tokenizer)
    words = {f"w{i}": (i * 7) % VOCAB for i in range(VOCAB)}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")))
    with pytest.raises(ValueError, match="differ in more than padding"):
        tiny_trainer(tmp_path, "kl", teacher=OfflineTeacher(folder), tokenizer=other)


def test_our_collator_s_examples_and_theirs_are_one(folder, teacher):
    """The same texts, by our Collator and by a standard one: one entry, and no second computation."""
    ours, calls = tiny_examples(24), []
    write_offline(teacher, ROWS, folder, k=7)
    write_offline(teacher, ours, folder, k=7, collator=Collator(PAD), progress=lambda *d: calls.append(d))
    assert not calls
    torch.testing.assert_close(
        OfflineTeacher(folder)(Collator(PAD)(ours[:5])), OfflineTeacher(folder)(collate(ROWS[:5]))
    )
