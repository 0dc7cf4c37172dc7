"""Teachers: logits at the labels, live or from the cache."""

import json
import os
import random
import threading
import warnings

import numpy as np
import pytest
import torch
from conftest import END, FAMILIES, PAD, VOCAB, tiny_examples, tiny_model
from torch._dynamo.testing import CompileCounter

from taid.data import IGNORE, Collator
from taid.logits import response_logits
from taid.rollouts import to_batch
from taid.teacher import FullLogits, HiddenStates, LiveTeacher, TopLogits, cached_teacher
from taid.teacher import cache as teacher_module

COLLATOR = Collator(PAD)
EXAMPLES = tiny_examples(20)
HALF = 4e-3  # fp16 rounds a logit below 8 by at most 2⁻⁹ = 0.002; as much again for sums in another order


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "logits"


def rows(ids: list[list[int]], labels: list[list[int]], mask: list[list[int]] | None = None) -> dict:
    batch = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
    return batch | {"attention_mask": torch.tensor(mask) if mask else torch.ones_like(batch["input_ids"])}


N = IGNORE
BATCHES = {
    "left-padded prompts": COLLATOR(EXAMPLES[:5]),
    "right-padded": rows(
        [[5, 6, 7, END, PAD], [8, 9, 10, 11, END]],
        [[N, N, 7, END, N], [N, N, N, 11, END]],
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ),
    "multi-turn": rows(
        [[5, 6, 7, 8, 9, END], [9, 8, 7, 6, 5, END]], [[N, 6, N, N, 9, END], [N, N, 7, N, N, N]]
    ),
    "label in column 0": rows([[5, 6, 7], [8, 9, END]], [[5, 6, 7], [8, N, END]]),
    "only column 0": rows([[5, 6, 7], [8, 9, END]], [[5, N, N], [N, N, N]]),
    "a row without labels": rows([[5, 6, 7], [8, 9, END]], [[N, N, N], [N, N, END]]),
    "no labels": rows([[5, 6, 7], [8, 9, END]], [[N, N, N], [N, N, N]]),
    "one column": rows([[5], [6]], [[5], [N]]),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", BATCHES)
def test_logits_are_a_slice_of_the_full_ones(layout, family):
    """Oracle: the model's logits at every position, picked label by label in a loop."""
    batch, model = BATCHES[layout], tiny_model(family).eval()
    full = model(**{name: value for name, value in batch.items() if name not in ("labels", "index")}).logits
    picked = [
        (full[row, column - 1], label)
        for row, labels in enumerate(batch["labels"].tolist())
        for column, label in enumerate(labels)
        if column > 0 and label != IGNORE
    ]
    logits, labels = response_logits(model, batch)
    assert logits.shape == (len(picked), model.config.vocab_size)
    assert labels.tolist() == [label for _, label in picked]
    for found, (expected, _) in zip(logits, picked, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def head_of(model) -> list[int]:
    """The numbers of rows that pass through a model's head from now on."""
    counts = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: counts.append(logits.shape[:-1].numel()))
    return counts


FINISHED = {  # models that do something to the logits of their heads, or share their weights
    "soft-cap": ("gemma2", {"final_logit_softcapping": 2.0, "head_dim": 8}),
    "scale": ("cohere", {"logit_scale": 0.25}),
    "tied": ("llama", {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("family", [*FAMILIES, *FINISHED])
def test_only_the_rows_of_labels_pass_through_the_head(family):
    """Oracle: autograd through whole logits; the same numbers and gradients, of every parameter."""
    name, options = FINISHED.get(family, (family, {}))
    model, batch = tiny_model(name, **options), BATCHES["left-padded prompts"]
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "index")}
    mask = batch["labels"][:, 1:] != IGNORE
    expected = model(**inputs).logits[:, :-1][mask]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(expected.shape, generator=generator)
    gradients = torch.autograd.grad((expected * weights).sum(), list(model.parameters()))
    counts = head_of(model)
    logits, labels = response_logits(model, batch)
    assert counts == [len(labels)] and len(labels) < batch["labels"].numel()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    (logits * weights).sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4)


def test_a_head_that_is_hidden_or_passed_by_gives_the_same(teacher):
    """Rows are then selected from the whole logits."""
    batch = BATCHES["left-padded prompts"]
    logits, _ = response_logits(teacher, batch)

    class Hidden(torch.nn.Module):
        def forward(self, input_ids, attention_mask, position_ids, use_cache):
            return teacher(input_ids, attention_mask, position_ids, use_cache=use_cache)

    class PassedBy(Hidden):
        def get_output_embeddings(self):
            return torch.nn.Linear(16, VOCAB)

    counts = head_of(teacher)
    for model in (Hidden(), PassedBy()):
        torch.testing.assert_close(response_logits(model, batch)[0], logits, atol=1e-5, rtol=0)
    assert counts == [batch["labels"].numel()] * 2


def test_a_model_that_fails_is_left_as_it_was(teacher):
    batch = BATCHES["left-padded prompts"]
    failing = teacher.get_output_embeddings().register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        response_logits(teacher, batch)
    failing.remove()
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "index")}
    assert teacher(**inputs).logits.shape == (*batch["labels"].shape, VOCAB)


@pytest.mark.slow
def test_a_compiled_model_settles_on_one_program_for_all_batches(teacher):
    """Oracle: the model itself. Dynamo's limit is 8 compilations of one function."""
    counter = CompileCounter()
    compiled = torch.compile(teacher, backend=counter)
    for seed in range(20):
        batch = COLLATOR(tiny_examples(4, seed))
        torch.testing.assert_close(response_logits(compiled, batch)[0], response_logits(teacher, batch)[0])
        if seed == 7:
            settled = counter.frame_count
    assert counter.frame_count == settled


def test_a_live_teacher_is_frozen_and_in_evaluation_mode(teacher):
    teacher.train()
    logits = LiveTeacher(teacher)(BATCHES["multi-turn"])
    assert not logits.requires_grad and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


# The cache


STORES = {"full": FullLogits(), "hidden": HiddenStates(), "top 5": TopLogits(5)}
FAITHFUL = {"full": HALF, "hidden": 1e-5}  # store → tolerance: sums in another order, and fp16


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
    assert len(cache.rows) == sum(len(e["response_ids"]) for e in EXAMPLES)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_exact_for_every_family(family, folder):
    model = tiny_model(family)
    cache = cached_teacher(model, EXAMPLES, COLLATOR, folder, store=HiddenStates())
    assert cache.rows.shape[1:] == (16,) and cache.rows.dtype == np.float32
    batch = COLLATOR(EXAMPLES[:8])
    torch.testing.assert_close(cache(batch), LiveTeacher(model)(batch), atol=1e-5, rtol=0)


def test_hidden_states_of_a_half_precision_teacher_are_kept_as_they_are(folder, teacher):
    teacher.to(torch.bfloat16)
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder, store=HiddenStates(), batch_size=20)
    batch = COLLATOR(EXAMPLES)
    expected = LiveTeacher(teacher)(batch)
    assert cache(batch).dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(cache(batch), expected, atol=0.05, rtol=0.02)  # 2⁻⁸, other batch, other sums


@pytest.mark.parametrize("name", ["soft-cap", "scale"])
def test_hidden_states_of_a_teacher_that_finishes_its_logits_are_refused(name, folder):
    family, options = FINISHED[name]
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
    assert cache.rows.nbytes == len(cache.rows) * (6 * 5 + 4)


def test_no_top_is_the_whole_vocabulary(folder, teacher):
    for k in (0, VOCAB):
        with pytest.raises(ValueError, match="keep fewer than there are"):
            cached_teacher(teacher, EXAMPLES, COLLATOR, folder, store=TopLogits(k))


def computed(folder, model, examples=EXAMPLES, store=STORES["full"]) -> tuple[int, int]:
    """How many of the four blocks a call computed, and how often it warned."""
    calls = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        cache = cached_teacher(
            model, examples, COLLATOR, folder, 5, progress=lambda *done: calls.append(done), store=store
        )
    if store in (FullLogits(), HiddenStates()):
        batch = COLLATOR(examples[:4])
        torch.testing.assert_close(cache(batch), LiveTeacher(model)(batch), atol=HALF, rtol=0)
    return len(calls), len(warned)


def test_a_whole_cache_is_kept_and_another_teacher_or_data_set_is_not_mistaken_for_it(folder, teacher):
    assert computed(folder, teacher) == (4, 0)
    assert computed(folder, tiny_model(seed=1)) == (0, 0)
    assert computed(folder, tiny_model(seed=2)) == (4, 1)
    shorter = [EXAMPLES[0] | {"response_ids": [*EXAMPLES[0]["response_ids"][:-1], 9]}, *EXAMPLES[1:]]
    assert computed(folder, tiny_model(seed=2), shorter) == (4, 1)
    other_prompt = [shorter[0] | {"prompt_ids": [9, 9]}, *shorter[1:]]
    assert computed(folder, tiny_model(seed=2), other_prompt) == (4, 1)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda folder: flip_a_bit(folder / "logits.npy"),
    "a short file": lambda folder: os.truncate(folder / "logits.npy", 500),
    "an empty key": lambda folder: (folder / "meta.json").write_text(""),
    "a key of garbage": lambda folder: (folder / "meta.json").write_bytes(b"\xff{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt_with_a_warning(damage, folder, teacher):
    computed(folder, teacher)
    DAMAGE[damage](folder)
    assert computed(folder, teacher) == (4, 1)
    assert computed(folder, teacher) == (0, 0)


class Killed(BaseException):
    pass


def kill(*args):
    raise Killed


def killed_in_block(number: int, folder, model, store=STORES["full"]) -> None:
    """A run that dies when it has computed so many blocks and is at work on the next."""
    calls, encode = [], type(store).encode

    def dying(self, live, batch):
        calls.append(batch)
        return kill() if len(calls) > number else encode(self, live, batch)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), pytest.raises(Killed):
        warnings.simplefilter("ignore")
        patch.setattr(type(store), "encode", dying)
        cached_teacher(model, EXAMPLES, COLLATOR, folder, 5, store=store)


@pytest.mark.parametrize("again", [0, 1], ids=["at first", "over another teacher's"])
@pytest.mark.parametrize("store", STORES)
def test_a_killed_run_goes_on_where_it_was(store, again, folder, tmp_path, teacher):
    """Oracle: the file of a run that nothing stopped, byte for byte."""
    if again:
        computed(folder, tiny_model(seed=2), store=STORES[store])
    killed_in_block(1, folder, teacher, STORES[store])
    killed_in_block(2, folder, teacher, STORES[store])
    assert computed(folder, teacher, store=STORES[store]) == (1, again)
    computed(tmp_path / "unbroken", teacher, store=STORES[store])
    assert (folder / "logits.npy").read_bytes() == (tmp_path / "unbroken" / "logits.npy").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["logits.npy", "meta.json"]


@pytest.mark.parametrize("call", ["write_whole", "os.replace"])
def test_a_run_killed_at_its_very_end_has_nothing_to_compute(call, folder, teacher, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if call == "write_whole":
            patch.setattr(teacher_module, "write_whole", kill)
        else:
            patch.setattr(teacher_module, "write_whole", lambda path, text: path.write_text(text))
            patch.setattr(os, "replace", kill)
        computed(folder, teacher)
    assert computed(folder, teacher) == (0, 0)
    assert computed(folder, teacher) == (0, 0)


def tear(path):
    os.truncate(path, path.stat().st_size - 9)


LEFT_BEHIND = {  # what a kill or a disk can do to a run under way → blocks to compute again, of four
    "a flipped bit": (lambda folder: flip_a_bit(folder / "logits.partial"), 2),
    "a lost end": (lambda folder: os.truncate(folder / "logits.partial", 200), 4),
    "a torn line": (lambda folder: tear(folder / "blocks.txt"), 2),
    "no record": (lambda folder: (folder / "blocks.txt").unlink(), 4),
    "no file": (lambda folder: (folder / "logits.partial").unlink(), 4),
    "a record of garbage": (lambda folder: (folder / "blocks.txt").write_text("?\n0 1\n"), 4),
}


@pytest.mark.parametrize("damage", LEFT_BEHIND)
def test_only_whole_blocks_are_believed(damage, folder, teacher):
    """The longest examples are in the last block, and the last five bytes are of one of them or of zeros."""
    killed_in_block(3, folder, teacher)
    harm, again = LEFT_BEHIND[damage]
    harm(folder)
    assert computed(folder, teacher) == (again, 0)


def test_a_run_of_another_teacher_or_batch_size_is_not_continued(folder, teacher):
    killed_in_block(3, folder, tiny_model(seed=2))
    assert computed(folder, teacher) == (4, 0)
    folder = folder.with_name("sizes")
    killed_in_block(3, folder, teacher)
    calls = []
    cached_teacher(teacher, EXAMPLES, COLLATOR, folder, 10, progress=lambda *done: calls.append(done))
    assert calls == [(10, 20), (20, 20)]


def test_one_process_computes_and_the_others_wait(folder, teacher):
    """The second begins while the first is at work, and finds all done."""
    order, encode, second = [], FullLogits.encode, None

    def slow(self, live, batch):
        nonlocal second
        order.append(threading.current_thread().name)
        if second is None:
            second = threading.Thread(target=computed, args=(folder, teacher), name="second")
            second.start()
            second.join(0.2)
        return encode(self, live, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FullLogits, "encode", slow)
        cached_teacher(teacher, EXAMPLES, COLLATOR, folder, 5)
        second.join()
    assert order == ["MainThread"] * 4


def test_stores_are_not_mistaken_for_each_other(folder, teacher):
    assert computed(folder, teacher, store=TopLogits(5)) == (4, 0)
    assert computed(folder, teacher, store=TopLogits(5)) == (0, 0)
    assert computed(folder, teacher, store=TopLogits(6)) == (4, 1)
    assert computed(folder, teacher, store=HiddenStates()) == (4, 1)


def test_the_key_of_full_logits_is_what_it_always_was(folder, teacher):
    """Caches of Table 1 made before there were other stores are found again."""
    computed(folder, teacher)
    assert json.loads((folder / "meta.json").read_text()).keys() == {"weights", "examples", "sha256"}
    assert np.load(folder / "logits.npy").dtype == np.float16


def test_a_batch_without_index_goes_to_the_live_teacher(folder, teacher):
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
    sampled = to_batch([[5, 6], [7]], [[8, END], [9, 10, END]], PAD, "cpu")
    assert torch.equal(cache(sampled), LiveTeacher(teacher)(sampled))


def test_examples_that_are_not_of_the_cache_are_refused(folder, teacher):
    """Both would give an example the logits of another, silently."""
    with pytest.raises(ValueError, match="must be its position"):
        cached_teacher(teacher, EXAMPLES[5:], COLLATOR, folder)
    cache = cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
    longer = EXAMPLES[3] | {"response_ids": EXAMPLES[3]["response_ids"] + [END]}
    with pytest.raises(ValueError, match="not its own"):
        cache(COLLATOR([longer]))


def test_weights_of_any_type_and_shape_have_a_digest(folder, teacher):
    """bfloat16 has no numpy type, and a scalar buffer has no last dimension to view as bytes."""
    teacher.to(torch.bfloat16).register_buffer("scale", torch.tensor(1.0))
    cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
    teacher.scale += 1
    with pytest.warns(UserWarning, match="of another teacher"):
        cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
