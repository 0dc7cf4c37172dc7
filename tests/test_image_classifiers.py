"""Classifiers of images through DistillationTrainer: logits [batch, classes], labels [batch]."""

import copy

import pytest
import torch
from conftest import tiny_model
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from taid.data import IGNORE
from taid.logits import response_head, response_logits
from taid.objectives import METHODS, objective
from taid.studies.vision_models import classifier
from taid.teacher import LiveTeacher, cached_teacher
from taid.trainer import DistillationTrainer

CLASSES = 5
WITHOUT_SAMPLES = [method for method in METHODS if method not in ("gkd", "distillm")]


def resnet(seed: int = 0, classes: int = CLASSES, **options):
    set_seed(seed)
    shape = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**shape, num_channels=1, num_labels=classes, **options))


def vit(seed: int = 1):
    set_seed(seed)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(
        ViTConfig(**shape, image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES)
    )


def examples(count: int = 24, classes: int = CLASSES) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.randn(1, 8, 8, generator=generator), "labels": i % classes}
        for i in range(count)
    ]


def batch_of(rows) -> dict:
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def arguments(folder, **options) -> TrainingArguments:
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "save_strategy": "no",
    }
    defaults |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    return TrainingArguments(str(folder), **defaults | options)


def trained(folder, method="taid", student=None, teacher=None, rows=None, eval_dataset=None, **options):
    student = resnet() if student is None else student
    trainer = DistillationTrainer(
        student,
        vit() if teacher is None else teacher,
        method,
        args=arguments(folder, **options),
        train_dataset=examples() if rows is None else rows,
        eval_dataset=eval_dataset,
    )
    trainer.train()
    return trainer


def distance(one, other) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("method", WITHOUT_SAMPLES)
def test_every_method_without_samples_trains_a_classifier(method, tmp_path):
    before, trainer = resnet(), trained(tmp_path, method)
    assert 0 < distance(trainer.model, before) < 0.2
    assert all(logs["loss"] > 0 for logs in trainer.state.log_history if "loss" in logs)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_sft_is_the_plain_trainer(accumulation, tmp_path):
    """Oracle: transformers' Trainer, whose loss of a classifier is the cross-entropy on its labels."""
    plain = resnet()
    options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
    Trainer(plain, arguments(tmp_path, **options), train_dataset=examples()).train()
    ours = trained(tmp_path, "sft", **options).model
    assert distance(ours, plain) < 1e-6 and distance(ours, resnet()) > 1e-3


def test_a_step_of_kl_by_hand(tmp_path):
    """Oracle: one step of SGD on the mean of KL(p ‖ q) over the images, the first of the batch among them."""
    student, teacher, rows = resnet(), vit().eval(), examples(8)
    trainer = trained(
        tmp_path, "kl", copy.deepcopy(student), teacher, rows, max_steps=1, optim="sgd", max_grad_norm=0.0,
        lr_scheduler_type="constant", learning_rate=0.1,
    )  # fmt: skip
    batch = batch_of(rows)
    p = teacher(batch["pixel_values"]).logits.softmax(-1).detach()
    student.train()
    log_q = student(batch["pixel_values"]).logits.log_softmax(-1)
    (p * (p.log() - log_q)).sum(-1).mean().backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= 0.1 * parameter.grad
    assert distance(trainer.model, student) < 1e-5


def test_ignored_images_count_for_nothing(tmp_path):
    """Oracle: the loss of the other images. (Their pixels still pass through the batch's normalisation.)"""
    model, rows = resnet().eval(), examples(6)
    batch = batch_of(rows)
    batch["labels"][1] = IGNORE
    logits, labels = response_logits(model, batch)
    kept = [0, 2, 3, 4, 5]
    assert torch.equal(labels, batch["labels"][kept])
    assert torch.allclose(logits, model(batch["pixel_values"]).logits[kept])


@pytest.mark.parametrize("whole", [False, True])
def test_validation_is_a_mean_over_images(whole, tmp_path):
    """Oracle: both means by hand, over 11 images in batches of 4; with whole logits for compute_metrics as without."""
    teacher, held_out, seen = vit().eval(), examples(11), []
    trainer = DistillationTrainer(
        resnet(), teacher, "kl", args=arguments(tmp_path, per_device_eval_batch_size=4), eval_dataset=held_out,
        train_dataset=examples(), compute_metrics=(lambda found: seen.append(found) or {}) if whole else None,
    )  # fmt: skip
    metrics, batch = trainer.evaluate(), batch_of(held_out)
    with torch.no_grad():
        q, p = (model.eval()(batch["pixel_values"]).logits.double() for model in (trainer.model, teacher))
    assert metrics["eval_loss"] == pytest.approx(cross_entropy(q, batch["labels"]).item(), rel=1e-5)
    kl = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
    assert metrics["eval_kl"] == pytest.approx(kl.item(), rel=1e-4)
    assert not whole or seen[0].predictions.shape == (11, CLASSES)


def test_a_teacher_may_be_a_folder_or_a_function(tmp_path):
    """Oracle: the same teacher as a model."""
    teacher = vit().eval()
    teacher.save_pretrained(tmp_path / "teacher")
    live = LiveTeacher(teacher)
    given = (teacher, str(tmp_path / "teacher"), lambda batch: live(batch))
    models = [trained(tmp_path, "taid", teacher=one).model for one in given]
    assert distance(models[0], models[1]) < 1e-6 and distance(models[0], models[2]) < 1e-6


def test_a_run_resumes_from_its_checkpoint(tmp_path):
    whole = trained(tmp_path / "a", max_steps=4)
    trained(tmp_path / "b", max_steps=4, save_strategy="steps", save_steps=2)
    resumed = DistillationTrainer(
        resnet(), vit(), "taid", args=arguments(tmp_path / "b", max_steps=4), train_dataset=examples()
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert distance(resumed.model, whole.model) < 1e-6
    assert resumed.objective.state == whole.objective.state


def shaped(labels) -> list[dict]:
    return [row | {"labels": label} for row, label in zip(examples(8), labels, strict=True)]


REFUSED = {  # what is passed → what is said
    "a teacher of language": (dict(teacher=tiny_model()), "one of student and teacher classifies images"),
    "a student of language": (dict(student=tiny_model(), teacher=vit()), "one of student and teacher classifies"),
    "other classes": (dict(teacher=resnet(1, 7)), "tells 7 classes apart, and the student 5.*num_labels=7"),
    "classes in another order": (
        dict(
            student=resnet(id2label=dict(enumerate("abcde"))), teacher=resnet(1, id2label=dict(enumerate("bacde")))
        ),
        "class 0 is 'b' to the teacher and 'a' to the student",
    ),
    "its own teacher": (dict(student=(own := resnet()), teacher=own), "share weights"),
    "no head": (dict(student=AutoModel.from_config(resnet().config)), "the student is a ResNetModel"),
    "samples": (dict(method="gkd"), "a classifier writes none"),
    "a fused head": (dict(fuse_head=True), "no linear head to be seen at work"),
    "packing": (dict(packing=True), "packing and max_length are for text"),
    "a label too large": (dict(rows=shaped([5] * 8)), "label 5 is not one of the 5"),
    "soft labels": (dict(rows=shaped([0.5] * 8)), r"labels are \[8\], torch.float32: collate the number of one class"),
    "several labels": (dict(rows=shaped([[1, 0]] * 8)), r"labels are \[8, 2\]"),
    "no labels": (dict(rows=[{"pixel_values": row["pixel_values"]} for row in examples(8)]), "no labels"),
    "logits of other classes": (dict(teacher=lambda batch: torch.zeros(8, 7)), "the teacher's 7"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_with_a_sentence(what, tmp_path):
    given, says = REFUSED[what]
    given = {"student": resnet(), "teacher": vit(), "method": "kl", "rows": examples(8)} | given
    student, teacher, method, rows = (given.pop(name) for name in ("student", "teacher", "method", "rows"))
    method = objective("gkd", max_new_tokens=2) if method == "gkd" else method
    with pytest.raises(ValueError, match=says):
        DistillationTrainer(
            student, teacher, method, args=arguments(tmp_path), train_dataset=rows, **given
        ).train()


def test_logits_of_images_are_not_kept_on_disk(tmp_path):
    with pytest.raises(ValueError, match="train with the live teacher"):
        cached_teacher(vit(), examples(), batch_of, tmp_path)
    with pytest.raises(ValueError, match="no linear head"):
        response_head(resnet(), batch_of(examples(2)))


def test_a_model_with_maps_for_logits_is_refused():
    class Segmenter(type(classifier("ResNet20", CLASSES, 1, narrow=True))):
        def forward(self, **batch):
            output = super().forward(**batch)
            output.logits = output.logits[..., None]
            return output

    model = Segmenter(classifier("ResNet20", CLASSES, 1, narrow=True).config)
    with pytest.raises(ValueError, match=r"returns logits \[2, 5, 1\] for 2 labels"):
        response_logits(model, batch_of(examples(2)))
