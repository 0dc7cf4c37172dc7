"""Teachers: logits at the labels, live or from the cache."""

import os
import random
import warnings

import numpy as np
import pytest
import torch
from conftest import END, FAMILIES, PAD, tiny_examples, tiny_model

from taid import teacher as teacher_module
from taid.data import IGNORE, Collator
from taid.rollouts import to_batch
from taid.teacher import LiveTeacher, cached_teacher, response_logits

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


def test_logits_before_the_first_label_are_not_computed(teacher):
    """And a model that cannot leave them out gives the same."""
    widths = []
    head = teacher.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: widths.append(logits.shape[1]))
    batch = BATCHES["left-padded prompts"]
    logits, _ = response_logits(teacher, batch)
    responses = max(len(e["response_ids"]) for e in EXAMPLES[:5])
    assert widths == [responses + 1]

    class Whole(torch.nn.Module):
        def forward(self, input_ids, attention_mask, position_ids, use_cache):
            return teacher(input_ids, attention_mask, position_ids, use_cache=use_cache)

    torch.testing.assert_close(response_logits(Whole(), batch)[0], logits, atol=1e-5, rtol=0)
    assert widths[1] == batch["input_ids"].shape[1]


def test_a_live_teacher_is_frozen_and_in_evaluation_mode(teacher):
    teacher.train()
    logits = LiveTeacher(teacher)(BATCHES["multi-turn"])
    assert not logits.requires_grad and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


# The cache


def test_cached_logits_are_the_live_ones_in_any_batch_and_order(folder, teacher):
    cache, live = cached_teacher(teacher, EXAMPLES, COLLATOR, folder, batch_size=7), LiveTeacher(teacher)
    order = random.Random(0).sample(range(20), 20)
    for size in (1, 3, 20):
        for start in range(0, 20, size):
            batch = COLLATOR([EXAMPLES[i] for i in order[start : start + size]])
            torch.testing.assert_close(cache(batch), live(batch), atol=HALF, rtol=0)
    assert cache.logits.dtype == np.float16 and cache(batch).dtype == torch.float32
    assert len(cache.logits) == sum(len(e["response_ids"]) for e in EXAMPLES)


def fresh_or_kept(folder, model, examples=EXAMPLES) -> str:
    """Whether a call computed anything, and whether it warned."""
    calls = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        cache = cached_teacher(model, examples, COLLATOR, folder, progress=lambda *done: calls.append(done))
    batch = COLLATOR(examples[:4])
    torch.testing.assert_close(cache(batch), LiveTeacher(model)(batch), atol=HALF, rtol=0)
    return f"{'fresh' if calls else 'kept'}, {len(warned)} warnings"


def test_a_whole_cache_is_kept_and_another_teacher_or_data_set_is_not_mistaken_for_it(folder, teacher):
    assert fresh_or_kept(folder, teacher) == "fresh, 0 warnings"
    assert fresh_or_kept(folder, tiny_model(seed=1)) == "kept, 0 warnings"
    assert fresh_or_kept(folder, tiny_model(seed=2)) == "fresh, 1 warnings"
    shorter = [EXAMPLES[0] | {"response_ids": EXAMPLES[0]["response_ids"][:-1] + [9]}, *EXAMPLES[1:]]
    assert fresh_or_kept(folder, tiny_model(seed=2), shorter) == "fresh, 1 warnings"
    other_prompt = [shorter[0] | {"prompt_ids": [9, 9]}, *shorter[1:]]
    assert fresh_or_kept(folder, tiny_model(seed=2), other_prompt) == "fresh, 1 warnings"


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
    fresh_or_kept(folder, teacher)
    DAMAGE[damage](folder)
    assert fresh_or_kept(folder, teacher) == "fresh, 1 warnings"
    assert fresh_or_kept(folder, teacher) == "kept, 0 warnings"


@pytest.mark.parametrize("again", [False, True], ids=["at first", "over another teacher's"])
@pytest.mark.parametrize("where", ["between batches", "before the key"])
def test_a_cache_whose_writer_was_killed_is_rebuilt(where, again, folder, teacher, monkeypatch):
    if again:
        fresh_or_kept(folder, tiny_model(seed=2))

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        patch.setattr(teacher_module, "write_whole", kill)
        progress = kill if where == "between batches" else None
        cached_teacher(teacher, EXAMPLES, COLLATOR, folder, batch_size=5, progress=progress)
    assert fresh_or_kept(folder, teacher) == f"fresh, {int(again)} warnings"


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
    with pytest.raises(ValueError, match="not those of the cache"):
        cache(COLLATOR([longer]))


def test_weights_of_any_type_and_shape_have_a_digest(folder, teacher):
    """bfloat16 has no numpy type, and a scalar buffer has no last dimension to view as bytes."""
    teacher.to(torch.bfloat16).register_buffer("scale", torch.tensor(1.0))
    cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
    teacher.scale += 1
    with pytest.warns(UserWarning, match="of another teacher"):
        cached_teacher(teacher, EXAMPLES, COLLATOR, folder)
