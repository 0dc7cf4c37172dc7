"""Tokens, examples and batches."""

import os
import random

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from taid.data import ASSISTANT, END, IGNORE, PAD, USER, Collator, batches, encode, pack, train_tokenizer
from taid.files import write_whole

TEXTS = [
    "what is another word for large?",
    "a vessel that carries passengers or freight.",
    "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little!",
    "it is a truth universally acknowledged; 0123456789",
    "the quick brown fox jumps over the lazy dog",
]
WORDS = ("begin", "end", "large", "small", "vessel", "watercraft", "twelvemonth")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ?.,!;"  # the characters of TEXTS
PAD_ID = 0


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=300, words=WORDS)


# --- tokenizer


@settings(max_examples=50, deadline=None)
@given(text=st.text(LETTERS, max_size=60))
def test_text_comes_back_in_lower_case(tokenizer, text):
    """Up to the space that starts a sequence, as in GPT-2."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids)
    assert decoded.removeprefix(" ") == text.lower().removeprefix(" ")


def test_special_tokens_are_four_and_apart(tokenizer):
    special = tokenizer.convert_tokens_to_ids([PAD, END, USER, ASSISTANT])
    assert len(set(special)) == 4 and special == [0, 1, 2, 3]
    assert tokenizer.pad_token_id == special[0] != tokenizer.eos_token_id == special[1]
    assert tokenizer(f"a{END}b", add_special_tokens=False)["input_ids"].count(special[1]) == 1


def test_words_become_single_tokens(tokenizer):
    """In a text as in an answer; without the list the long ones are spelled."""
    lengths = [len(ids) for ids in tokenizer(list(WORDS), add_special_tokens=False)["input_ids"]]
    assert lengths == [1] * len(WORDS)
    plain = train_tokenizer(TEXTS, vocab_size=300)
    assert len(plain("twelvemonth")["input_ids"]) > 1


def test_a_small_vocabulary_keeps_to_its_size():
    assert len(train_tokenizer(TEXTS, vocab_size=80, words=WORDS)) <= 80


# --- examples


def test_the_chat_template_gives_the_tokens_of_encode(tokenizer):
    """What a chat client would feed at inference, against what was trained on."""
    prompt, response = "What is another word for large?", "big vessel"
    (example,) = encode(tokenizer, [prompt], [response])
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    start = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(chat, return_dict=False)
    assert example["prompt_ids"] == start
    assert example["prompt_ids"] + example["response_ids"] == whole


def test_encode_adds_one_end_and_no_padding(tokenizer):
    examples = encode(tokenizer, TEXTS, TEXTS)
    for i, example in enumerate(examples):
        assert example["index"] == i
        assert example["response_ids"].count(tokenizer.eos_token_id) == 1
        assert example["response_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.pad_token_id not in example["prompt_ids"] + example["response_ids"]
    with pytest.raises(ValueError, match="shorter|longer"):
        encode(tokenizer, TEXTS, TEXTS[:2])


def test_an_empty_response_is_learned_as_its_end(tokenizer):
    (example,) = encode(tokenizer, ["say nothing."], [""])
    assert example["response_ids"] == [tokenizer.eos_token_id]


@pytest.mark.parametrize("length", [2, 7, 16])
def test_pack_covers_the_stream_without_overlap(tokenizer, length):
    windows = pack(tokenizer, TEXTS, length)
    stream = [
        i
        for text in TEXTS
        for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    packed = [i for window in windows for i in window["prompt_ids"] + window["response_ids"]]
    assert packed == stream[: len(packed)] and 0 <= len(stream) - len(packed) < length
    assert {(len(window["prompt_ids"]), len(window["response_ids"])) for window in windows} == {
        (1, length - 1)
    }
    assert [window["index"] for window in windows] == list(range(len(windows)))


# --- batches


def ragged(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)

    def ids(low):
        return [rng.randrange(2, 50) for _ in range(rng.randint(low, 9))]

    return [{"index": 100 + i, "prompt_ids": ids(1), "response_ids": [*ids(0), 1]} for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 17])
def test_the_layout_of_a_batch(count):
    """Read back row by row: prompts end where responses start, in one column for all."""
    examples = ragged(count, seed=count)
    batch = Collator(PAD_ID)(examples)
    start = max(len(e["prompt_ids"]) for e in examples)
    width = start + max(len(e["response_ids"]) for e in examples)
    assert {name: tuple(t.shape) for name, t in batch.items() if name != "index"} == dict.fromkeys(
        ("input_ids", "attention_mask", "position_ids", "labels"), (count, width)
    )
    assert batch["index"].tolist() == [e["index"] for e in examples]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    for row, example in enumerate(examples):
        prompt, response = example["prompt_ids"], example["response_ids"]
        before, after = start - len(prompt), width - start - len(response)
        assert batch["input_ids"][row].tolist() == [PAD_ID] * before + prompt + response + [PAD_ID] * after
        assert (
            batch["attention_mask"][row].tolist() == [0] * before + [1] * len(prompt + response) + [0] * after
        )
        assert batch["labels"][row].tolist() == [IGNORE] * start + response + [IGNORE] * after
        real = batch["position_ids"][row, before : width - after]
        assert real.tolist() == list(range(len(prompt + response)))


def test_a_pad_token_inside_a_response_is_a_label():
    """Labels follow the example's lengths, not token ids: where padding and end are one token, the end is learned."""
    batch = Collator(1)(
        [
            {"index": 0, "prompt_ids": [1, 5], "response_ids": [7, 1]},
            {"index": 1, "prompt_ids": [5], "response_ids": [1]},
        ]
    )
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 7, 1], [IGNORE, IGNORE, 1, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 0]]


def test_examples_need_no_index():
    """Oracle: the batch of the same examples with one."""
    examples = ragged(3, seed=1)
    bare = [{name: ids for name, ids in e.items() if name != "index"} for e in examples]
    found, expected = Collator(PAD_ID)(bare), Collator(PAD_ID)(examples)
    assert expected.keys() - found.keys() == {"index"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("empty", ["prompt_ids", "response_ids"])
def test_an_empty_side_is_an_error(empty):
    examples = ragged(3, seed=0)
    examples[1][empty] = []
    with pytest.raises(ValueError, match="empty prompt or response"):
        Collator(PAD_ID)(examples)


# --- files


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    write_whole(path, "old")
    assert path.read_text() == "old"

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, "new, but cut sh")
    assert path.read_text() == "old"
    write_whole(path, "né")
    assert path.read_text(encoding="utf-8") == "né"


def test_batches_carry_everything_in_order():
    """Tensors move to the device; numbers and words travel along. Data sets are read example by example."""
    examples = [{"n": i} for i in range(7)]

    def collate(rows):
        return {"ids": torch.tensor([row["n"] for row in rows]), "width": len(rows), "name": "x"}

    found = list(batches(examples, collate, 3, "meta"))
    assert [batch["width"] for batch in found] == [3, 3, 1] and found[0]["name"] == "x"
    assert all(batch["ids"].device.type == "meta" for batch in found)
    plain = list(batches(Dataset.from_list(examples), collate, 3))
    assert torch.equal(torch.cat([batch["ids"] for batch in plain]), torch.arange(7))
    assert list(batches([], collate, 3)) == []
