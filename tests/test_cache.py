"""Teachers on disk: found by content, the live one's logits, whole or not at all."""

import copy
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import END, FAMILIES, PAD, VOCAB, tiny_examples, tiny_model, tiny_tokenizer, tiny_trainer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    GPT2Config,
    T5Config,
    T5ForConditionalGeneration,
    default_data_collator,
)

from taid.data import IGNORE, Collator, pack
from taid.objectives import objective
from taid.rollouts import to_batch
from taid.teacher import FullLogits, HiddenStates, LiveTeacher, TopLogits, cached_teacher
from taid.teacher import cache as cache_module
from taid.teacher import shards as shards_module
from taid.teacher.digests import digest, digest_of_model, keys, one_a_row

COLLATOR = Collator(PAD)
EXAMPLES = tiny_examples(20)
HALF = 4e-3  # fp16 rounds a logit below 8 by at most 2⁻⁹ = 0.002; as much again for sums in another order
STORES = {"full": FullLogits(), "hidden": HiddenStates(), "top 5": TopLogits(5)}
READ = {"capture_output": True, "text": True, "check": True}
FAITHFUL = {"full": HALF, "hidden": 1e-5}  # store → tolerance: sums in another order, and fp16


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "logits"


def tokenised(examples=EXAMPLES) -> list[dict]:
    """The examples as most people's data sets have them."""
    return [
        {
            "input_ids": e["prompt_ids"] + e["response_ids"],
            "attention_mask": [1] * len(e["prompt_ids"] + e["response_ids"]),
            "labels": [IGNORE] * len(e["prompt_ids"]) + e["response_ids"],
        }
        for e in examples
    ]


# Examples and their names


def plain(ids, labels, mask=None, **more) -> dict:
    batch = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)} | more
    return batch if mask is None else batch | {"attention_mask": torch.tensor(mask)}


N = IGNORE
SAME = {  # the example 5 6 | 7 END, in forms that say the same
    "alone": plain([[5, 6, 7, END]], [[N, N, 7, END]]),
    "with a mask": plain([[5, 6, 7, END]], [[N, N, 7, END]], [[1, 1, 1, 1]]),
    "padded right": plain([[5, 6, 7, END, PAD]], [[N, N, 7, END, N]], [[1, 1, 1, 1, 0]]),
    "padded left": plain([[PAD, PAD, 5, 6, 7, END]], [[N, N, N, N, 7, END]], [[0, 0, 1, 1, 1, 1]]),
    "padded left, with positions": plain(
        [[PAD, 5, 6, 7, END]],
        [[N, N, N, 7, END]],
        [[0, 1, 1, 1, 1]],
        position_ids=torch.tensor([[0, 0, 1, 2, 3]]),
    ),
    "a mask of booleans": plain([[5, 6, 7, END]], [[N, N, 7, END]], [[True] * 4]),
    "int32": plain([[5, 6, 7, END]], [[N, N, 7, END]], input_ids=torch.tensor([[5, 6, 7, END]]).int()),
    "token types of zero": plain([[5, 6, 7, END]], [[N, N, 7, END]], token_type_ids=torch.zeros(1, 4).long()),
    "a label in column 0": plain([[5, 6, 7, END]], [[5, N, 7, END]]),
    "our collator's": COLLATOR([{"index": 3, "prompt_ids": [5, 6], "response_ids": [7, END]}]),
}
OTHER = {  # examples whose logits differ, or are of other positions
    "another token": plain([[5, 9, 7, END]], [[N, N, 7, END]]),
    "cut short": plain([[6, 7, END]], [[N, 7, END]]),
    "cut at its end": plain([[5, 6, 7]], [[N, N, 7]]),
    "another mask of labels": plain([[5, 6, 7, END]], [[N, 6, 7, END]]),
    "other positions": plain([[5, 6, 7, END]], [[N, N, 7, END]], position_ids=torch.tensor([[1, 2, 3, 4]])),
    "a hole in the mask": plain([[5, 9, 6, 7, END]], [[N, N, N, 7, END]], [[1, 0, 1, 1, 1]]),
    "a mask of documents": plain([[5, 6, 7, END]], [[N, N, 7, END]], [[1, 1, 2, 2]]),
    "token types": plain([[5, 6, 7, END]], [[N, N, 7, END]], token_type_ids=torch.tensor([[0, 0, 1, 1]])),
    "an image": plain([[5, 6, 7, END]], [[N, N, 7, END]], pixel_values=torch.zeros(1, 3, 2, 2)),
    "another image": plain([[5, 6, 7, END]], [[N, N, 7, END]], pixel_values=torch.ones(1, 3, 2, 2)),
    "a number": plain([[5, 6, 7, END]], [[N, N, 7, END]], temperature=2.0),
}


def test_the_digest_by_hand():
    """Oracle: bytes written out. Labels 7 and END are predicted after tokens 1 and 2."""
    expected = hashlib.sha256(b"".join(n.to_bytes(8, "little") for n in (4, 5, 6, 7, END, 1, 2))).digest()
    assert digest(np.array([5, 6, 7, END]), np.array([1, 2])) == expected
    assert keys(SAME["alone"]) == [(expected, 2)]


@pytest.mark.parametrize("form", SAME)
def test_padding_layout_and_types_do_not_matter(form):
    assert keys(SAME[form]) == keys(SAME["alone"])


def test_what_decides_the_logits_does():
    names = {keys(batch)[0].digest for batch in OTHER.values()} | {keys(SAME["alone"])[0].digest}
    assert len(names) == len(OTHER) + 1


def test_each_row_has_its_own_share_of_other_inputs():
    images = torch.arange(24).reshape(2, 3, 2, 2).bfloat16()
    both = plain([[5, 6], [7, 8]], [[N, 6], [N, 8]], pixel_values=images)
    alone = [
        plain([[5, 6]], [[N, 6]], pixel_values=images[:1]),
        plain([[7, 8]], [[N, 8]], pixel_values=images[1:]),
    ]
    assert keys(both) == [keys(batch)[0] for batch in alone]


def test_texts_are_divided_among_rows_and_what_is_no_row_s_is_whole():
    """Oracle: each example alone; another text, or another record of all, is another example."""
    about = {"meta": {"k": [1]}, "note": None, "three": [1, 2, 3]}
    both = plain([[5, 6], [7, 8]], [[N, 6], [N, 8]], texts=["a", "b"], **about)
    first, second = (
        plain([[i, i + 1]], [[N, i + 1]], texts=[text], **about) for i, text in ((5, "a"), (7, "b"))
    )
    assert keys(both) == [*keys(first), *keys(second)]
    for change in ({"texts": ["b"]}, {"meta": {"k": [2]}}, {"three": [1, 2]}):
        assert keys(first | change) != keys(first)


@pytest.mark.parametrize("kind", [torch.tensor, np.array], ids=["tensors", "arrays"])
def test_images_in_a_list_are_told_apart_in_their_middle(kind):
    """What a large tensor shows of itself leaves that out."""
    image = np.zeros((50, 50))
    other = image.copy()
    other[25, 25] = 1.0
    first, second = (plain([[5, 6]], [[N, 6]], images=[kind(each)]) for each in (image, other))
    assert repr(first["images"]) == repr(second["images"]) and keys(first) != keys(second)


REFUSED = {
    "images of no row": (
        plain([[5, 6]] * 2, [[N, 6]] * 2, pixel_values=torch.zeros(3, 2)),
        "cannot be divided",
    ),
    "a mask of pairs": (plain([[5, 6]], [[N, 6]], [[[[1, 0], [1, 1]]]]), "no example can be told"),
    "labels of a decoder": (plain([[5, 6]], [[5, 6, 7]]), "do not stand below"),
    "a label after padding": (plain([[PAD, 5, 6]], [[N, 5, 6]], [[0, 1, 1]]), "pad on the right"),
    "no tokens": (
        {"inputs_embeds": torch.zeros(1, 2, 4), "labels": torch.tensor([[N, 6]])},
        "names no example",
    ),
    "positions in space": (
        plain([[5, 6]], [[N, 6]], position_ids=torch.zeros(3, 1, 2).long()),
        "not one a token",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_apart_is_refused(case):
    batch, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        keys(one_a_row(batch))


@pytest.mark.parametrize("options", [{}, {"return_flash_attn_kwargs": True, "return_seq_idx": True}])
def test_examples_laid_end_to_end_are_taken_apart(options):
    """Oracle: each example alone."""
    flat = DataCollatorWithFlattening(**options)(tokenised()[:5])
    assert flat["input_ids"].shape[0] == 1
    alone = [keys(DataCollatorForSeq2Seq(tiny_tokenizer())([e]))[0] for e in tokenised()[:5]]
    assert keys(one_a_row(flat)) == alone


def test_examples_end_to_end_of_which_a_first_token_is_learned_are_refused():
    flat = DataCollatorWithFlattening()(tokenised()[:3])
    flat["labels"] = flat["input_ids"]
    with pytest.raises(ValueError, match="first token of an example"):
        one_a_row(flat)


# What is kept


@pytest.mark.parametrize("store", FAITHFUL)
def test_cached_logits_are_the_live_ones_in_any_batch_and_order(store, folder, teacher):
    live = LiveTeacher(teacher)
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder, batch_size=7, store=STORES[store])
    order = random.Random(0).sample(range(20), 20)
    for size in (1, 3, 20):
        for start in range(0, 20, size):
            batch = COLLATOR([EXAMPLES[i] for i in order[start : start + size]])
            torch.testing.assert_close(cache(batch), live(batch), atol=FAITHFUL[store], rtol=0)
    assert cache(batch).dtype == torch.float32
    assert len(cache.shards) == sum(len(e["response_ids"]) for e in EXAMPLES)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_exact_for_every_family(family, folder):
    model = tiny_model(family)
    cache = cached_teacher(model, EXAMPLES, COLLATOR, folder, store=HiddenStates())
    assert cache.shards.bytes_per_token == 16 * 4
    batch = COLLATOR(EXAMPLES[:8])
    torch.testing.assert_close(cache(batch), LiveTeacher(model)(batch), atol=1e-5, rtol=0)


def test_hidden_states_of_a_half_precision_teacher_are_kept_as_they_are(folder, teacher):
    teacher.to(torch.bfloat16)
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder, store=HiddenStates(), batch_size=20)
    batch = COLLATOR(EXAMPLES)
    expected = LiveTeacher(teacher)(batch)
    assert cache(batch).dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(cache(batch), expected, atol=0.05, rtol=0.02)  # 2⁻⁸, other batch, other sums


@pytest.mark.parametrize(
    ("family", "options"),
    [("gemma2", {"final_logit_softcapping": 2.0, "head_dim": 8}), ("cohere", {"logit_scale": 0.25})],
)
def test_hidden_states_of_a_teacher_that_finishes_its_logits_are_refused(family, options, folder):
    with pytest.raises(ValueError, match=r"keep FullLogits\(\) of it"):
        cached_teacher(tiny_model(family, **options), EXAMPLES, COLLATOR, folder, store=HiddenStates())


def test_the_top_is_right_and_the_rest_is_spread_evenly(folder, teacher):
    """Oracle: fp64 probabilities of the live logits, sorted. fp16 holds log p down to −16 within 2⁻⁸."""
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder, store=TopLogits(5))
    batch = COLLATOR(EXAMPLES[::3])
    p, order = LiveTeacher(teacher)(batch).double().softmax(-1).sort(-1, descending=True)
    expected = torch.cat([p[:, :5], (p[:, 5:].sum(-1, keepdim=True) / (VOCAB - 5)).expand(-1, VOCAB - 5)], -1)
    found = cache(batch).double().softmax(-1).gather(-1, order)
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=0)
    assert cache.shards.bytes_per_token == 6 * 5 + 4


def test_the_whole_vocabulary_is_no_tail(folder, teacher):
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder, store=TopLogits(VOCAB))
    batch = COLLATOR(EXAMPLES[::3])
    expected = LiveTeacher(teacher)(batch).log_softmax(-1)
    torch.testing.assert_close(cache(batch), expected, rtol=2**-10, atol=1e-3)


def test_logits_beyond_fp16_are_refused_and_minus_infinity_is_kept(folder, teacher):
    """Some models mask padding entries with the least number of their type. Oracle: their probability is 0."""
    head = teacher.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([7]), -3e38))
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
    assert (cache(COLLATOR(EXAMPLES[:3])).softmax(-1)[:, 7] == 0).all()
    head.weight.data[9] *= 1e6
    with pytest.raises(ValueError, match=r"keep HiddenStates\(\)"):
        cached_teacher(teacher, EXAMPLES, COLLATOR, folder.with_name("huge"))


def test_no_top_is_empty_or_more_than_all(folder, teacher):
    with pytest.raises(ValueError, match=f"top {VOCAB + 1} of {VOCAB} entries"):
        cached_teacher(teacher, EXAMPLES, COLLATOR, folder, store=TopLogits(VOCAB + 1))
    with pytest.raises(ValueError, match="k must be a whole number"):
        TopLogits(0)


# Data sets and collators, as the Trainer takes them


class Torch(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def left(tokenizer):
    tokenizer.padding_side = "left"
    return tokenizer


DATA = {
    "a list": lambda rows: rows,
    "datasets": Dataset.from_list,
    "datasets of tensors": lambda rows: Dataset.from_list(rows).with_format("torch"),
    "torch": Torch,
    "another column": lambda rows: Dataset.from_list([row | {"text": "so", "n": 3} for row in rows]),
}
COLLATORS = {
    "Seq2Seq": lambda: DataCollatorForSeq2Seq(tiny_tokenizer()),
    "Seq2Seq, left": lambda: DataCollatorForSeq2Seq(left(tiny_tokenizer())),
    "Seq2Seq, to 16": lambda: DataCollatorForSeq2Seq(tiny_tokenizer(), pad_to_multiple_of=16),
    "LanguageModeling": lambda: DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False),
    "default": lambda: default_data_collator,
    "flattening": DataCollatorWithFlattening,
}


def losses(trainer) -> list[float]:
    trainer.train()
    return [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]


@pytest.mark.parametrize(
    ("data", "collator"),
    [*((data, "Seq2Seq") for data in DATA), *(("datasets", collator) for collator in COLLATORS)],
)
def test_the_trainer_s_own_data_sets_and_standard_collators(data, collator, tmp_path, teacher):
    """Oracle: the live teacher, on a shuffled part of the data. No column is ours, and no model is asked."""
    rows = tokenised(EXAMPLES)
    if collator == "default":
        rows = [row for row in rows if len(row["input_ids"]) == len(rows[0]["input_ids"])] * 4
    if collator == "LanguageModeling":
        rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
    collate, whole = COLLATORS[collator](), DATA[data](rows)
    cache = cached_teacher(teacher, whole, collate, tmp_path / "cache", batch_size=7)
    cache.live = None
    part = DATA[data](random.Random(0).sample(rows, len(rows) // 2))
    found, expected = (
        losses(tiny_trainer(tmp_path, "kl", teacher=t, examples=part, collator=collate))
        for t in (cache, teacher)
    )
    assert found == pytest.approx(expected, abs=1e-2)  # fp16 rounds a logit near 4 by up to 2e-3


def test_ends_that_are_padding_too_are_in_the_cache_as_the_trainer_learns_them(tmp_path, teacher):
    """The trainer learns the end of a sequence with this collator too, where plain transformers does not."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": row["input_ids"]} for row in tokenised()]
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    cache = cached_teacher(teacher, rows, collate, tmp_path / "cache")
    cache.live = None
    found, expected = (
        losses(tiny_trainer(tmp_path, "kl", teacher=t, examples=rows, collator=collate))
        for t in (cache, teacher)
    )
    assert found == pytest.approx(expected, abs=1e-2)


def test_left_padding_does_not_move_positions(folder):
    """A model that learned absolute positions. Oracle: each example alone."""
    model, rows, collate = absolute(), tokenised(), DataCollatorForSeq2Seq(left(tiny_tokenizer()))
    cache = cached_teacher(model, rows, collate, folder, batch_size=20)
    for row in rows[:6]:
        batch = collate([row])
        torch.testing.assert_close(cache(batch), LiveTeacher(model)(batch), atol=HALF, rtol=0)


def absolute(n_positions: int = 64):
    torch.manual_seed(0)
    options = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": n_positions}
    return AutoModelForCausalLM.from_config(GPT2Config(**options, initializer_range=0.3)).eval()


def test_texts_beside_the_tokens_are_no_obstacle(folder, tmp_path, teacher):
    """Oracle: the run without them."""
    plain_rows = DataCollatorForSeq2Seq(tiny_tokenizer())

    def with_texts(rows):
        texts = [" ".join(map(str, row["input_ids"])) for row in rows]
        return dict(plain_rows(rows)) | {"texts": texts, "note": None, "meta": {"k": [1]}}

    found = []
    for name, collator in (("without", plain_rows), ("with", with_texts)):
        cached = cached_teacher(teacher, tokenised(), collator, folder / name)
        trainer = tiny_trainer(
            tmp_path, "kl", examples=tokenised(), collator=collator, steps=3, teacher=cached
        )
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1]


def test_a_subset_a_new_order_and_duplicates_need_nothing_new(folder, teacher):
    assert computed(folder, teacher) == (4, 0)
    for part in (EXAMPLES[::-1], EXAMPLES[5:9], [EXAMPLES[3]] * 6):
        assert computed(folder, teacher, part) == (0, 0)
    cache = cached_teacher(teacher, [EXAMPLES[0]] * 9, COLLATOR, folder.with_name("one"))
    assert len(cache.shards) == len(EXAMPLES[0]["response_ids"])


def test_new_examples_are_added_to_the_old(folder, teacher):
    assert computed(folder, teacher, EXAMPLES[:10]) == (2, 0)
    assert computed(folder, teacher, EXAMPLES) == (2, 0)
    assert computed(folder, teacher, EXAMPLES) == (0, 0)


def windows(seed: int) -> list[dict]:
    rng = random.Random(seed)
    return pack(
        tiny_tokenizer(), [" ".join(f"w{rng.randrange(2, VOCAB)}" for _ in range(9)) for _ in range(40)], 8
    )


def test_other_windows_of_equal_length_are_refused(folder, teacher, tmp_path):
    """All packed windows have one length: only their content tells them apart."""
    cache = cached_teacher(teacher, windows(0), COLLATOR, folder)
    with pytest.raises(ValueError, match=r"4 of 4 examples.*not its own"):
        tiny_trainer(tmp_path, "kl", teacher=cache, examples=windows(1)).train()
    mixed = COLLATOR([windows(0)[0], windows(1)[0] | {"index": 1}])
    with pytest.raises(ValueError, match="1 of 2 examples"):
        cache(mixed)
    cut = windows(0)[0] | {"response_ids": windows(0)[0]["response_ids"][:-1]}
    with pytest.raises(ValueError, match="truncation"):
        cache(COLLATOR([cut]))


def test_samples_of_the_student_go_to_the_live_teacher(folder, teacher, tmp_path):
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
    sampled = to_batch([[5, 6], [7]], [[8, END], [9, 10, END]], PAD, "cpu")
    assert torch.equal(cache(sampled), LiveTeacher(teacher)(sampled))
    losses(tiny_trainer(tmp_path, "gkd", teacher=cache, examples=EXAMPLES, steps=6))


def test_samples_fit_the_positions_of_the_cached_model(folder, tmp_path):
    """Oracle: what the model is called with, of a table of 24 positions below a student of 128."""
    short, seen = absolute(n_positions=24), []
    cache = cached_teacher(short, EXAMPLES, COLLATOR, folder)
    short.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    gkd = objective("gkd", probability=1.0, max_new_tokens=64)
    student = tiny_model()
    student.generation_config.eos_token_id = student.config.eos_token_id = 47  # rarely written
    tiny_trainer(tmp_path, gkd, student=student, teacher=cache, examples=EXAMPLES).train()
    assert max(seen) == 24 and len(seen) >= 4


# The model of a cache as a student


def test_a_model_learns_from_its_own_cache(folder, tmp_path, teacher):
    """Born again. Oracle: the cache of a copy; of the first step: KL(p ‖ p) = 0, but for fp16."""
    teacher.get_input_embeddings().weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}
    cache, runs = cached_teacher(teacher, EXAMPLES, COLLATOR, folder), []
    assert before == {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}
    copied = cached_teacher(copy.deepcopy(teacher), EXAMPLES, COLLATOR, folder)
    for given, student in ((copied, copy.deepcopy(teacher)), (cache, teacher)):
        given.check(objective("kl"), student)
        runs.append(losses(tiny_trainer(tmp_path, "kl", student=student, teacher=given, examples=EXAMPLES)))
    assert runs[0] == runs[1] and runs[0][0] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("store", ["full", "hidden"])
def test_adapters_learn_from_the_cache_of_their_base(store, folder, tmp_path, teacher):
    """Oracle: the live base, adapters off."""
    cache, runs = cached_teacher(teacher, EXAMPLES, COLLATOR, folder, store=STORES[store]), []
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    for given in (cache, None):
        torch.manual_seed(0)
        student = get_peft_model(teacher if given else copy.deepcopy(teacher), config)
        cache.check(objective("kl"), student)
        given = given or student.get_base_model()
        runs.append(losses(tiny_trainer(tmp_path, "kl", student=student, teacher=given, examples=EXAMPLES)))
        teacher = tiny_model(seed=1)
    assert runs[0] == pytest.approx(runs[1], abs=1e-2) and runs[0][0] > 0.01


def test_a_student_does_not_move_what_its_teacher_still_runs(folder, teacher):
    """The whole model for samples; for hidden states its head, which adapters elsewhere leave as it is."""
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder, store=HiddenStates())
    for apart in (copy.deepcopy(teacher), None):
        for method in ("kl", "gkd"):
            cache.check(objective(method), apart)
    with pytest.raises(ValueError, match="share weights.*copy.deepcopy.model. as the teacher, or to cached"):
        cache.check(objective("gkd"), teacher)
    with pytest.raises(ValueError, match="trains the head.*copy.deepcopy.model. to cached_teacher"):
        cache.check(objective("kl"), teacher)
    for modules, moves in ((["q_proj"], False), (["lm_head"], True)):
        student = get_peft_model(teacher, LoraConfig(target_modules=modules, task_type="CAUSAL_LM"))
        with pytest.raises(ValueError, match="share weights"):
            cache.check(objective("gkd"), student)
        with pytest.raises(ValueError, match="trains the head") if moves else nullcontext():
            cache.check(objective("kl"), student)
        teacher = student.unload()


def test_a_row_without_labels_needs_no_entry(folder, teacher):
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
    batch = plain([[5, 6, 7], [8, 9, END]], [[N, N, N], [N, N, N]])
    assert cache(batch).shape == (0, VOCAB)


def test_a_stream_an_empty_set_and_masks_at_random_are_refused(folder, teacher):
    for data in (iter(EXAMPLES), {"train": EXAMPLES}, Dataset.from_list(tokenised()).to_iterable_dataset()):
        with pytest.raises(ValueError, match="cannot be counted"):
            cached_teacher(teacher, data, COLLATOR, folder)
    with pytest.raises(ValueError, match="no examples"):
        cached_teacher(teacher, [], COLLATOR, folder)
    calls = iter(range(10**6))
    noisy = lambda rows: COLLATOR([r | {"prompt_ids": [2 + next(calls) % 40, 5]} for r in rows])  # noqa: E731
    with pytest.raises(ValueError, match="another form each time"):
        cached_teacher(teacher, EXAMPLES, noisy, folder)
    with pytest.raises(ValueError, match="no labels"):
        cached_teacher(teacher, [{"input_ids": [5, 6]}], default_data_collator, folder)


def test_what_is_no_causal_model_is_refused(folder):
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1))
    for model, words in (
        ("name/of-a-model", "load the teacher"),
        (torch.nn.Linear(2, 2), "load the teacher"),
        (t5, "live"),
    ):
        with pytest.raises(ValueError, match=words):
            cached_teacher(model, EXAMPLES, COLLATOR, folder)


@pytest.mark.parametrize("store", ["full", "hidden"])
def test_a_head_fused_with_its_loss_takes_cached_logits(store, folder, tmp_path, teacher):
    """Oracle: the same without fuse_head, and the live teacher."""
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder, store=STORES[store])
    found, plain, live = (
        losses(tiny_trainer(tmp_path, "taid", teacher=t, examples=EXAMPLES, fuse_head=fused))
        for t, fused in ((cache, True), (cache, False), (teacher, True))
    )
    assert found == pytest.approx(plain, rel=1e-4) and found == pytest.approx(live, abs=1e-2)


def adapted(alpha: int):
    """A model of PEFT, with adapters that do something."""
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "k_proj", "o_proj", "up_proj"]
    config = LoraConfig(
        r=2, lora_alpha=alpha, init_lora_weights=False, target_modules=targets, task_type="CAUSAL_LM"
    )
    return get_peft_model(tiny_model(seed=1), config)


def test_a_teacher_of_peft_is_kept_with_its_adapters(folder, teacher):
    """Oracle: the live one; adapters of another strength are another teacher."""
    model = adapted(4)
    rows, collate = Dataset.from_list(tokenised()), DataCollatorForSeq2Seq(tiny_tokenizer())
    cache, batch = cached_teacher(model, rows, collate, folder), collate(tokenised()[:5])
    torch.testing.assert_close(cache(batch), LiveTeacher(model)(batch), atol=HALF, rtol=0)
    with pytest.warns(UserWarning, match="another teacher"):
        cached_teacher(adapted(8), rows, collate, folder)


def test_a_teacher_of_nan_is_not_kept(folder, teacher):
    teacher.get_output_embeddings().weight.data[3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        cached_teacher(teacher, EXAMPLES, COLLATOR, folder)


@pytest.mark.alone
def test_finding_the_examples_costs_little(folder, teacher):
    """8 rows of 1,024 tokens: their keys take less than 20 ms, where a step of any model takes longer."""
    batch = plain(torch.randint(2, 40_000, (8, 1024)).tolist(), torch.randint(2, 40_000, (8, 1024)).tolist())
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        keys(one_a_row(batch))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02


# Models and their digests


def test_quantised_teachers_have_a_digest_of_their_packed_weights(folder, teacher):
    """torch's dynamic int8: a state with packed tensors, types and numbers in it."""
    packed = torch.ao.quantization.quantize_dynamic(teacher, {torch.nn.Linear}, dtype=torch.qint8)
    before = digest_of_model(packed)
    assert before == digest_of_model(packed) != digest_of_model(tiny_model(seed=1))
    other = torch.ao.quantization.quantize_dynamic(tiny_model(seed=2), {torch.nn.Linear}, dtype=torch.qint8)
    assert digest_of_model(other) != before
    cache = cached_teacher(packed, EXAMPLES, COLLATOR, folder, batch_size=1)  # inputs are scaled by the batch
    batch = COLLATOR(EXAMPLES[:1])
    torch.testing.assert_close(cache(batch), LiveTeacher(packed)(batch), atol=HALF, rtol=0)


def test_tensors_within_tensors_have_a_digest(teacher):
    """As torchao packs weights. Two that differ inside alone differ."""
    from torch.testing._internal.two_tensor import TwoTensor

    class Packed(torch.nn.Module):
        config = teacher.config

        def __init__(self, second):
            super().__init__()
            self.weight = torch.nn.Parameter(TwoTensor(torch.ones(2), second), requires_grad=False)

    found = {digest_of_model(Packed(torch.tensor(second))) for second in ([1.0, 2.0], [1.0, 3.0], [1.0, 2.0])}
    assert len(found) == 2


def test_weights_of_any_type_and_shape_have_a_digest(folder, teacher):
    """bfloat16 has no numpy type, and a scalar buffer has no last dimension to view as bytes."""
    teacher.to(torch.bfloat16).register_buffer("scale", torch.tensor(1.0))
    cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
    teacher.scale += 1
    with pytest.warns(UserWarning, match="of another teacher"):
        cached_teacher(teacher, EXAMPLES, COLLATOR, folder)


def test_the_configuration_counts_and_the_path_does_not(teacher):
    before = digest_of_model(teacher)
    teacher.config.name_or_path = "elsewhere"
    assert digest_of_model(teacher) == before
    teacher.config.rms_norm_eps = 0.1
    assert digest_of_model(teacher) != before


@pytest.mark.slow
def test_a_digest_is_the_same_in_every_process():
    """Adapters name their layers in a set, whose order Python draws anew."""
    code = """if True:
        import sys; sys.path.insert(0, "tests")
        from test_cache import adapted, digest_of_model
        print(digest_of_model(adapted(4)))"""
    root = Path(__file__).parents[1]
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, cwd=root, **READ
        )
        for seed in "12"
    ]
    assert {run.stdout.strip() for run in runs} == {digest_of_model(adapted(4))}


def test_a_teacher_that_is_not_in_memory_is_refused():
    with torch.device("meta"):
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.ones(2))
    model.config = tiny_model().config
    with pytest.raises(ValueError, match="load it whole"):
        digest_of_model(model)


# Whole or not at all


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD", 1)  # one for each batch


def computed(folder, model, examples=EXAMPLES, store=STORES["full"]) -> tuple[int, int]:
    """How many blocks of five a call computed, and how often it warned."""
    calls = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        cache = cached_teacher(
            model, examples, COLLATOR, folder, 5, progress=lambda *done: calls.append(done), store=store
        )
    if store in (FullLogits(), HiddenStates()):
        batch = COLLATOR(examples[:4])
        torch.testing.assert_close(cache(batch), LiveTeacher(model)(batch), atol=HALF, rtol=0)
    assert (folder / "teacher.json").exists() and not (folder / "teacher.partial.json").exists()
    return len(calls), len(warned)


def test_a_whole_cache_is_kept_and_another_teacher_is_not_mistaken_for_it(folder, teacher):
    assert computed(folder, teacher) == (4, 0)
    assert computed(folder, tiny_model(seed=1)) == (0, 0)
    assert computed(folder, tiny_model(seed=2)) == (4, 1)


def test_stores_are_not_mistaken_for_each_other(folder, teacher):
    assert computed(folder, teacher, store=TopLogits(5)) == (4, 0)
    assert computed(folder, teacher, store=TopLogits(5)) == (0, 0)
    assert computed(folder, teacher, store=TopLogits(6)) == (4, 1)
    assert computed(folder, teacher, store=HiddenStates()) == (4, 1)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


FIRST = "shard-00000.safetensors"
DAMAGE = {  # what a disk can do → blocks to compute again, of four
    "a flipped bit": (lambda folder: flip_a_bit(folder / FIRST), 1),
    "a short file": (lambda folder: os.truncate(folder / FIRST, 500), 1),
    "a lost file": (lambda folder: (folder / FIRST).unlink(), 1),
    "an empty index": (lambda folder: (folder / "teacher.json").write_text(""), 4),
    "an index of garbage": (lambda folder: (folder / "teacher.json").write_bytes(b"\xff{"), 4),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_computed_again_with_a_warning(damage, folder, teacher):
    computed(folder, teacher)
    harm, again = DAMAGE[damage]
    harm(folder)
    assert computed(folder, teacher) == (again, 1)
    assert computed(folder, teacher) == (0, 0)


class Killed(BaseException):
    pass


def kill(*args):
    raise Killed


def killed_in_block(number: int, folder, model, store=STORES["full"]) -> None:
    """A run that dies when it has computed so many blocks and is at work on the next."""
    calls, encode = [], type(store).encode

    def dying(self, *args):
        calls.append(args)
        return kill() if len(calls) > number else encode(self, *args)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), pytest.raises(Killed):
        warnings.simplefilter("ignore")
        patch.setattr(type(store), "encode", dying)
        cached_teacher(model, EXAMPLES, COLLATOR, folder, 5, store=store)


@pytest.mark.parametrize("again", [0, 1], ids=["at first", "over another teacher's"])
@pytest.mark.parametrize("store", STORES)
def test_a_killed_run_goes_on_where_it_was(store, again, folder, tmp_path, teacher):
    """Oracle: the files of a run that nothing stopped, byte for byte."""
    if again:
        computed(folder, tiny_model(seed=2), store=STORES[store])
    killed_in_block(1, folder, teacher, STORES[store])
    killed_in_block(2, folder, teacher, STORES[store])
    assert computed(folder, teacher, store=STORES[store]) == (1, 0)
    computed(tmp_path / "unbroken", teacher, store=STORES[store])
    content = [
        {path.name: path.read_bytes() for path in f.iterdir()} for f in (folder, tmp_path / "unbroken")
    ]
    assert content[0] == content[1] and len(content[0]) == 5


@pytest.mark.parametrize("call", ["write_whole", "os.replace", "save_file"])
def test_a_run_killed_at_its_end_leaves_nothing_half(call, folder, teacher, monkeypatch):
    """In the last shard, or in the index: what was whole is kept, and no reader takes the rest for whole."""
    calls = iter(range(100))
    target = os if call == "os.replace" else shards_module
    original = getattr(target, call.split(".")[-1])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            target, call.split(".")[-1], lambda *args: original(*args) if next(calls) < 3 else kill()
        )
        computed(folder, teacher)
    with pytest.raises(ValueError, match="not finished"):
        shards_module.Shards(folder)
    blocks, warned = computed(folder, teacher)
    assert blocks < 4 and not warned
    assert computed(folder, teacher) == (0, 0)


def test_one_process_computes_and_the_others_wait(folder, teacher):
    """The second begins while the first is at work, and finds all done."""
    order, encode, second = [], FullLogits.encode, None

    def slow(self, *args):
        nonlocal second
        order.append(threading.current_thread().name)
        if second is None:
            second = threading.Thread(target=computed, args=(folder, teacher), name="second")
            second.start()
            second.join(0.2)
        return encode(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FullLogits, "encode", slow)
        cached_teacher(teacher, EXAMPLES, COLLATOR, folder, 5)
        second.join()
    assert order == ["MainThread"] * 4
