"""Logits at the labels, of a live teacher and of any model."""

import pytest
import torch
from conftest import END, FAMILIES, PAD, VOCAB, tiny_examples, tiny_model
from torch._dynamo.testing import CompileCounter

from taid.data import IGNORE, Collator
from taid.logits import response_logits
from taid.teacher import LiveTeacher

COLLATOR = Collator(PAD)
EXAMPLES = tiny_examples(20)


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
