"""Validation and prediction: what plain Trainer gives, and means over labels that no split changes."""

import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import END, PAD, tiny_examples, tiny_model, tiny_tokenizer, tiny_trainer
from datasets import Dataset
from ranks import on_two_ranks
from test_trainer import SGD, distance, tokenised, weights
from torch.nn.functional import kl_div
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer

from taid.data import IGNORE, Collator, tokens_of
from taid.objectives import objective
from taid.teacher import cached_teacher


def predicting(folder, tokenizer, **arguments):
    """A trainer of ours and a plain one, on the same model, data and arguments."""
    rows = tokenised(tiny_examples(14, seed=1), learn_prompt=False)
    functions = {
        name: arguments.pop(name, None) for name in ("compute_metrics", "preprocess_logits_for_metrics")
    }
    ours = tiny_trainer(
        folder,
        "kl",
        examples=rows,
        validation=rows,
        collator=DataCollatorForSeq2Seq(tokenizer),
        per_device_eval_batch_size=3,
        **arguments,
    )
    ours.compute_metrics, ours.preprocess_logits_for_metrics = functions.values()
    plain = Trainer(
        deepcopy(ours.model), args=ours.args, eval_dataset=rows, data_collator=ours.data_collator, **functions
    )
    return ours, plain, rows


def metrics_of(trainer) -> dict:
    return {name: value for name, value in trainer.evaluate().items() if name in ("eval_loss", "eval_seen")}


def seen(evaluated) -> dict:
    """A number of everything that a metric may be given."""
    parts = {"predictions": evaluated.predictions, "labels": evaluated.label_ids}
    parts |= {"inputs": evaluated.inputs, "losses": evaluated.losses}
    return {"seen": {name: float(np.asarray(part).sum()) for name, part in parts.items() if part is not None}}


# Oracle of all that follows: plain Trainer


def test_predictions_are_those_of_the_trainer(tmp_path, tokenizer):
    ours, plain, rows = predicting(tmp_path, tokenizer)
    found, expected = ours.predict(rows), plain.predict(rows)
    assert found.predictions.shape == expected.predictions.shape and found.predictions.ndim == 3
    assert np.array_equal(found.predictions, expected.predictions)
    assert np.array_equal(found.label_ids, expected.label_ids)
    assert found.metrics["test_loss"] == pytest.approx(plain_loss(plain, rows), abs=1e-5)


def plain_loss(plain, rows) -> float:
    """The loss of all labels in one batch."""
    batch = plain.data_collator(rows)
    with torch.no_grad():
        return plain.model(**batch).loss.item()


def test_without_labels_there_are_predictions_and_no_loss(tmp_path, tokenizer):
    ours, plain, rows = predicting(tmp_path, tokenizer)
    bare = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
    found, expected = ours.predict(bare), plain.predict(bare)
    assert np.array_equal(found.predictions, expected.predictions)
    assert found.label_ids is None and "test_loss" not in found.metrics


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"include_for_metrics": ["inputs", "loss"]},
        {"eval_accumulation_steps": 2},
        {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1) + (labels == IGNORE)},
    ],
    ids=lambda asked: "-".join(asked) or "plain",
)
def test_metrics_see_what_the_trainer_shows_them(asked, tmp_path, tokenizer):
    ours, plain, _ = predicting(tmp_path, tokenizer, compute_metrics=seen, **asked)
    found, expected = metrics_of(ours)["eval_seen"], metrics_of(plain)["eval_seen"]
    assert found == pytest.approx(expected, rel=1e-5) and found["predictions"]


def test_metrics_of_batches_see_what_the_trainer_shows_them(tmp_path, tokenizer):
    def build():
        batches = []

        def metric(evaluated, compute_result):
            batches.append(seen(evaluated)["seen"])
            return (
                {"seen": {str(i): b["predictions"] for i, b in enumerate(batches)}} if compute_result else {}
            )

        return metric

    ours, plain, _ = predicting(tmp_path, tokenizer, batch_eval_metrics=True)
    ours.compute_metrics, plain.compute_metrics = build(), build()
    found, expected = metrics_of(ours)["eval_seen"], metrics_of(plain)["eval_seen"]
    assert found == pytest.approx(expected, rel=1e-5) and len(found) == 3


def test_nobody_asks_for_logits_and_none_are_whole(tmp_path, tokenizer):
    """7 rows of up to 30 tokens: the head computes the labels' positions alone."""
    ours, _, rows = predicting(tmp_path, tokenizer)
    computed = []
    ours.model.lm_head.register_forward_hook(
        lambda head, inputs, logits: computed.append(logits[..., 0].numel())
    )
    ours.evaluate()
    assert sum(computed) == sum(label != IGNORE for row in rows for label in row["labels"][1:])
    ours.args.prediction_loss_only = True
    assert ours.predict(rows).predictions is None


def test_validation_without_a_label_says_so(tmp_path, tokenizer):
    ours, _, rows = predicting(tmp_path, tokenizer)
    masked = [row | {"labels": [IGNORE] * len(row["labels"])} for row in rows]
    with pytest.warns(UserWarning, match="no label of the validation set"):
        assert np.isnan(ours.evaluate(masked)["eval_loss"])


# KL to the teacher


def test_a_label_of_another_tokenizer_is_told_in_validation(tmp_path):
    rows = [{"input_ids": [5, 6, END], "labels": [IGNORE, 60, END]}] * 8
    with pytest.raises(ValueError, match="label 60 is not one of the 48 tokens"):
        tiny_trainer(tmp_path, "kl", validation=rows, batch=8).evaluate()


def test_kl_to_the_teacher_counts_every_label_alike(tmp_path, student, teacher):
    """Oracle: PyTorch's KL of whole logits in fp64."""
    validation = tiny_examples(10, seed=1)
    batch = Collator(PAD)(validation)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "index")}
    mask = batch["labels"][:, 1:] != IGNORE
    s, z = (deepcopy(m).double()(**inputs).logits[:, :-1][mask].log_softmax(-1) for m in (student, teacher))
    expected = kl_div(s, z, log_target=True, reduction="batchmean").item()
    for method in ("kl", "taid", "sft"):
        options = dict(student=student, teacher=teacher, validation=validation, per_device_eval_batch_size=3)
        trainer = tiny_trainer(tmp_path, method, **options)
        assert trainer.evaluate()["eval_kl"] == pytest.approx(expected, abs=1e-5)
    assert tiny_trainer(tmp_path, "kl", **options).predict(validation).metrics["test_kl"] > 0
    assert "eval_kl" not in tiny_trainer(tmp_path, "kl", eval_kl=False, **options).evaluate()
    assert "eval_kl" not in tiny_trainer(tmp_path, "sft", **options | {"teacher": None}).evaluate()


def test_a_cache_answers_for_what_it_knows(tmp_path, teacher):
    known, unknown = tiny_examples(6), tiny_examples(4, seed=1)
    cache = cached_teacher(teacher, known, Collator(PAD), tmp_path / "cache")
    found = {}
    for name, validation in {"known": known, "unknown": unknown}.items():
        found[name] = tiny_trainer(tmp_path, "kl", teacher=cache, validation=validation).evaluate()
    live = tiny_trainer(tmp_path, "kl", teacher=teacher, validation=known).evaluate()
    assert found["known"]["eval_kl"] == pytest.approx(live["eval_kl"], abs=1e-2)  # kept in fp16
    assert "eval_kl" not in found["unknown"] and found["unknown"]["eval_loss"] > 0


# DistiLLM's threshold


def distilling(folder, validation, **arguments):
    options = dict(steps=4, validation=validation, eval_strategy="steps", eval_steps=1, learning_rate=0.0)
    return tiny_trainer(folder, objective("distillm", max_new_tokens=4), **options | arguments)


@pytest.mark.parametrize("sets", [1, 2])
def test_the_threshold_hears_of_all_validation_sets(sets, tmp_path):
    """Four equal losses: three did not fall."""
    names = {f"set{i}": tiny_examples(4, seed=1 + i) for i in range(sets)}
    trainer = distilling(tmp_path, names if sets > 1 else names["set0"])
    trainer.train()
    assert trainer.objective.rollouts.threshold == pytest.approx(0.3)


def test_the_threshold_hears_the_mean_over_the_labels_of_all_sets(tmp_path):
    """Oracle: one validation of both sets together."""
    sets = {"a": tiny_examples(3, seed=1), "b": tiny_examples(9, seed=2)}
    together = [row | {"index": i} for i, row in enumerate([*sets["a"], *sets["b"]])]
    found = []
    for validation in (sets, together):
        trainer = distilling(tmp_path, validation)
        trainer.train()
        found.append(trainer.objective.rollouts.previous_loss)
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_the_threshold_does_not_hear_of_other_evaluations(tmp_path):
    trainer = distilling(tmp_path, tiny_examples(4, seed=1), eval_strategy="no", eval_steps=None)
    with pytest.warns(UserWarning, match="DistiLLM will sample nothing"):
        trainer.train()
    for _ in range(3):
        trainer.evaluate()
    assert trainer.objective.rollouts.threshold == 0


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        ({"eval_strategy": "no"}, True),
        ({"eval_steps": 2}, True),  # of 4: after step 2, and at the end
        ({"eval_steps": 2, "eval_on_start": True}, False),
        ({"eval_steps": 1}, False),
        ({"eval_steps": 1, "eval_delay": 3}, True),
        ({"eval_steps": 1, "eval_delay": 2}, False),  # at the delay itself, after step 2, and after step 3
        (
            {
                "eval_strategy": "epoch",
                "max_steps": -1,
                "num_train_epochs": 2,
                "per_device_train_batch_size": 32,
            },
            True,
        ),
    ],
)
def test_a_run_that_will_sample_nothing_says_so(arguments, warned, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distilling(tmp_path, tiny_examples(4, seed=1), **arguments).train()
    assert any("DistiLLM will sample nothing" in str(warning.message) for warning in caught) == warned


# Randomness


def test_a_run_with_validation_trains_as_one_without(tmp_path):
    """Dropout draws from the generator that a validation loader seeds itself from; and a metric draws too."""

    def draws(evaluated):
        return {"noise": np.random.rand() + torch.rand(()).item()}

    found = []
    for eval_strategy in ("no", "steps"):
        student = tiny_model(attention_dropout=0.5)
        trainer = tiny_trainer(
            tmp_path,
            "kl",
            student=student,
            validation=tiny_examples(4, seed=1),
            eval_strategy=eval_strategy,
            eval_steps=1,
        )
        trainer.compute_metrics = draws
        trainer.train()
        found.append(weights(trainer.model))
    assert distance(*found) == 0


# Two ranks: last batches that are not whole


def uneven(folder, method: str, batch: int, **arguments):
    """10 rows, 4 at a time, for 3 passes: 2 are left in each; validation of 5."""
    options = dict(
        steps=9,
        batch=batch,
        examples=tiny_examples(10),
        validation=tiny_examples(5, seed=1),
        per_device_eval_batch_size=batch,
        logging_steps=1,
    )
    return tiny_trainer(folder, method, **options | SGD | arguments)


UNEVEN = ("kl", "taid", "ctkd", "sft")
FLATTENED = (9, 5, 3, 1)


def numbered(rows: int) -> list[dict]:
    return [
        dict(zip(("input_ids", "labels"), tokens_of(row), strict=True)) for row in tiny_examples(rows, seed=2)
    ]


def flattened(folder, batch: int, rows: int) -> list[float]:
    """The losses of one pass over so many rows, each batch joined to one, and the loss of validation on them."""
    data = numbered(rows)
    options = {"train_sampling_strategy": "sequential", "num_train_epochs": 1, "logging_steps": 1}
    trainer = tiny_trainer(
        folder,
        "kl",
        collator=DataCollatorWithFlattening(),
        examples=data,
        validation=data,
        batch=batch,
        steps=-1,
        per_device_eval_batch_size=batch,
        **options | SGD | {"learning_rate": 0.0},
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return [before, *(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)]


def streamed(folder, batch: int, rows: int) -> float:
    stream = Dataset.from_list(numbered(rows)).to_iterable_dataset()
    collate, size = DataCollatorForSeq2Seq(tiny_tokenizer()), {"per_device_eval_batch_size": batch}
    return tiny_trainer(folder, "kl", collator=collate, validation=stream, **size).evaluate()["eval_loss"]


def measured(trainer) -> dict:
    trainer.train()
    logs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics = trainer.evaluate()
    return {
        "weights": weights(trainer.model),
        "losses": logs,
        "metrics": [metrics["eval_loss"], metrics["eval_kl"]],
        "predictions": len(trainer.predict(tiny_examples(5, seed=1)).predictions),
    }


def _rank(rank: int, folder) -> dict:
    found = {method: measured(uneven(folder, method, batch=2)) for method in UNEVEN}
    saved = uneven(folder / "kl", "kl", batch=2, save_strategy="steps", save_steps=4)
    saved.train()
    resumed = uneven(folder / "kl", "kl", batch=2)
    resumed.train(resume_from_checkpoint=str(folder / "kl" / "checkpoint-4"))
    found["flattened"] = [flattened(folder, batch=2, rows=rows) for rows in FLATTENED]
    found["streamed"] = [streamed(folder, batch=2, rows=rows) for rows in FLATTENED]
    found["resumed"] = distance(weights(saved.model), weights(resumed.model))
    for method in ("gkd", "distillm"):
        sampling = {"gkd": {"probability": 1.0}, "distillm": {"threshold": 1.0, "capacity": 4}}[method]
        uneven(folder, objective(method, max_new_tokens=3, **sampling), batch=2).train()
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    return on_two_ranks(_rank, tmp_path_factory.mktemp("uneven"))


@pytest.mark.parametrize("method", UNEVEN)
def test_two_ranks_with_an_uneven_end_equal_one(method, two_ranks, tmp_path):
    """A rank without rows of its own gets the first ones again, and they count for nothing."""
    expected = measured(uneven(tmp_path, method, batch=4))
    for found in (rank[method] for rank in two_ranks):
        assert distance(found["weights"], expected["weights"]) < 1e-5
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-5)
        assert found["predictions"] == expected["predictions"] == 5


@pytest.mark.parametrize("at", range(len(FLATTENED)), ids=[f"{rows} rows" for rows in FLATTENED])
def test_repeated_rows_count_for_nothing_where_batches_are_joined(at, two_ranks, tmp_path):
    """Oracle: one process with batches of four; of a stream as well."""
    rows = FLATTENED[at]
    expected = flattened(tmp_path, batch=4, rows=rows)
    whole = streamed(tmp_path, batch=4, rows=rows)
    for rank in two_ranks:
        assert rank["flattened"][at] == pytest.approx(expected, abs=1e-5)
        assert rank["streamed"][at] == pytest.approx(whole, abs=1e-5)


def test_an_uneven_end_is_resumed_as_it_was(two_ranks):
    """Step 4 is the first of the second pass: its loader skips a batch, and does not know its remainder."""
    assert [rank["resumed"] for rank in two_ranks] == [0, 0]
