"""Tables 7 and 8: networks, images, recipe, and the study from its images to its rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_model
from mirror import write_images
from transformers import AutoModelForImageClassification, default_data_collator

from analysis import reference
from taid import results
from taid.studies import jobs, sources, study, vision
from taid.studies.jobs import Refused
from taid.studies.training import StepDecay, fit
from taid.studies.vision import METHODS, SETTINGS, TABLES, Pair, Run
from taid.studies.vision_data import FashionMNIST, HubImages, centre_crop, padded_crop, resized_crop
from taid.studies.vision_models import NETWORKS, classifier
from taid.studies.zoo import parameters

CIFAR = {  # millions of parameters at 100 classes, in the literature's tables (RepDistiller, mdistiller)
    "ResNet20": 0.28,
    "ResNet32": 0.47,
    "ResNet56": 0.86,
    "ResNet110": 1.74,
    "ResNet8x4": 1.23,
    "ResNet32x4": 7.43,
    "WRN-16-2": 0.70,
    "WRN-40-1": 0.57,
    "WRN-40-2": 2.26,
    "VGG8": 3.97,
    "VGG13": 9.46,
}
IMAGENET = {
    "ResNet18": 11.69,
    "ResNet34": 21.80,
    "ResNet50": 25.56,
    "MobileNet-V1": 4.23,
}  # torchvision; MobileNet's paper
RUN = Run("table7", "smoke", "taid", "VGG13", "VGG8", 0, 0.05, 2)


# Networks


@pytest.mark.parametrize(("name", "classes"), [(n, 100) for n in CIFAR] + [(n, 1000) for n in IMAGENET])
def test_a_network_has_the_parameters_that_the_literature_counts(name, classes):
    with torch.device("meta"):
        counted = parameters(classifier(name, classes, 3)) / 1e6
    assert counted == pytest.approx((CIFAR | IMAGENET)[name], abs=0.006)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_narrow_network_sees_small_images_and_keeps_the_order_of_sizes(name):
    """Every pair's teacher is larger at our scale too."""
    model = classifier(name, 10, 1, narrow=True).eval()
    assert model(torch.zeros(2, 1, 14, 14)).logits.shape == (2, 10)
    for table in TABLES.values():
        for pair in table.pairs:
            if pair.student == name:
                assert parameters(classifier(pair.teacher, 10, 1, narrow=True)) > 1.5 * parameters(model)


@pytest.mark.parametrize("name", ["ResNet8x4", "WRN-16-2", "VGG8", "MobileNet-V1"])
def test_a_network_is_saved_and_found_again(name, tmp_path):
    model, images = classifier(name, 10, 1, narrow=True), torch.randn(8, 1, 14, 14)
    for _ in range(50):  # to running means of something
        model(images)
    model.eval().save_pretrained(tmp_path)
    found = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.allclose(found(images).logits, model(images).logits) and found(images).logits.std() > 1e-3


def test_a_seed_names_a_network_and_leaves_the_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = (next(classifier("VGG8", 10, 1, True, seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(torch.rand(3), expected)
    with pytest.raises(ValueError, match="unknown classifier 'ResNet21'; known: ResNet20"):
        classifier("ResNet21", 10, 1)


def test_a_depth_is_what_its_name_says():
    """He et al. count the layers with weights, 6n + 2, but no shortcuts; Zagoruyko and Komodakis the convolutions, 6n
    + 4, shortcuts among them; Simonyan and Zisserman three linear layers, of which one is here."""
    for name, further in {
        "ResNet56": 1,
        "ResNet8x4": 1,
        "WRN-40-2": 3,
        "WRN-16-2": 3,
        "VGG8": 3,
        "VGG13": 3,
    }.items():
        modules = classifier(name, 10, 1, narrow=True).modules()
        convolutions = [m for m in modules if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
        assert len(convolutions) + further == NETWORKS[name].depth


# Images


@pytest.fixture
def clothes(monkeypatch):
    """40 training and 12 test images of one grey each, its number; labels in turn."""

    def images(split):
        count = {"train": 40, "test": 12}[split]
        grey = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((1, 28, 28), np.uint8)
        return grey + (100 if split == "test" else 0), (np.arange(count) % 10).astype(np.uint8)

    monkeypatch.setattr(sources, "fashion_mnist", images)


def test_no_image_is_in_two_splits_and_labels_stay_with_their_images(clothes):
    splits = FashionMNIST(train=25, validation=15, test=12, pool=2).splits()
    values = {
        name: [round(e["pixel_values"].mean().item(), 4) for e in part] for name, part in splits.items()
    }
    assert len({v for part in values.values() for v in part}) == 25 + 15 + 12
    assert splits["train"][0]["pixel_values"].shape == (1, 14, 14)
    pixels = torch.stack([e["pixel_values"] for e in splits["train"]])
    assert pixels.mean().abs() < 1e-5 and pixels.std().item() == pytest.approx(1, abs=1e-4)
    greys = sorted(
        (v, e["labels"])
        for name in ("train", "validation")
        for v, e in zip(values[name], splits[name], strict=True)
    )
    assert [label for _, label in greys] == [i % 10 for i in range(40)]
    with pytest.raises(ValueError, match="30 \\+ 15 images are asked for, and there are 40"):
        FashionMNIST(train=30, validation=15, test=12, pool=2).splits()


TINY = HubImages(
    "ours/tiny", "img", "fine_label", "test", 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 8, "padded", 2
)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A data set of a hub: 10 training and 4 test images, 8 × 8, of three classes, in PNG as CIFAR-100's."""
    pixels = np.random.default_rng(0).integers(256, size=(14, 8, 8, 3), dtype=np.uint8)
    labels = [i % 3 for i in range(14)]
    parts = {"train": slice(10), "test": slice(10, 14)}
    of = [{split: whole[part] for split, part in parts.items()} for whole in (pixels, labels)]
    write_images(tmp_path / "hub", TINY, *of)
    monkeypatch.setenv("TAID_HUB", str(tmp_path / "hub"))
    monkeypatch.setenv("TAID_CACHE", str(tmp_path / "cache"))
    return pixels, labels


def test_images_of_a_hub_are_standardised_and_drawn_anew_in_training_alone(mirror):
    """Oracle: the pixels that were written, (x / 255 − mean) / deviation."""
    pixels, labels = mirror
    splits = TINY.splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 8, "validation": 2, "test": 4}
    expected = (pixels[10] / 255 - TINY.mean) / TINY.deviation
    found = splits["test"][0]
    assert np.allclose(found["pixel_values"].permute(1, 2, 0), expected, atol=1e-5)
    assert found["labels"] == labels[10] and torch.equal(
        found["pixel_values"], splits["test"][0]["pixel_values"]
    )
    torch.manual_seed(0)
    views = torch.stack([splits["train"][0]["pixel_values"] for _ in range(5)])
    assert views.shape == (5, 3, 8, 8) and len({view.sum().item() for view in views}) > 1
    batch = default_data_collator([splits["train"][i] for i in (0, 3)])
    assert batch["pixel_values"].shape == (2, 3, 8, 8) and batch["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"name": "ours/none"}, "data set ours/none cannot be had: in the mirror"),
        ({"image": "picture"}, "has no column picture"),
        ({"classes": 2}, r"has labels outside 0 … 1"),
        ({"validation": 10}, "10 training images, 10 for validation"),
        ({"held_out": "dev"}, "cannot be had"),
    ],
)
def test_a_data_set_that_is_another_is_refused(mirror, changed, says):
    with pytest.raises(Refused, match=says):
        replace(TINY, **changed).splits()


def test_crops():
    image = torch.arange(1.0, 1 + 3 * 8 * 8).reshape(3, 8, 8) / 200
    torch.manual_seed(0)
    crops = [padded_crop(image, 8) for _ in range(40)]
    assert all(crop.shape == image.shape for crop in crops)
    assert any((crop == 0).any() for crop in crops)  # black from beyond the edge
    inside = {value.item() for value in image.flatten()} | {0.0}
    assert all(value.item() in inside for crop in crops for value in crop.flatten())
    wide = torch.rand(3, 20, 31)
    assert resized_crop(wide, 8).shape == centre_crop(wide, 8).shape == (3, 8, 8)
    assert centre_crop(torch.rand(3, 5, 4), 8).shape == (3, 8, 8)  # smaller than what is asked for
    assert torch.equal(centre_crop(image, 8), image)
    flat = torch.full((3, 20, 31), 0.25)
    assert torch.allclose(resized_crop(flat, 8), torch.full((3, 8, 8), 0.25))


# The recipe


def test_the_learning_rate_falls_in_steps(tmp_path):
    """By hand: CIFAR's 240 epochs fall after 150, 180 and 210; before, a warm-up along a line."""
    training = StepDecay(240, 64, 0.05)
    assert [training.factor(step) for step in (0, 149, 150, 179, 180, 210, 239)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.001, 0.001]
    )
    assert [StepDecay(240, 64, 0.05, warmup_steps=10).factor(step) for step in (0, 5, 10)] == [0, 0.5, 1]


@pytest.mark.parametrize("method", ["sft", "ctkd"])
def test_training_is_sgd_with_momentum(method):
    """Oracle: torch's SGD in a loop over the same single batch; CTKD's temperature moves with it."""
    training, rows = StepDecay(4, 6, 0.1, weight_decay=0.0, decays=(0.5,)), [
        {"pixel_values": torch.randn(1, 14, 14), "labels": i % 10} for i in range(6)
    ]  # fmt: skip
    student, plain = (classifier("VGG8", 10, 1, True).train() for _ in range(2))
    trainer = fit(
        student, rows, default_data_collator, training, seed=0, objective=method,
        teacher=None if method == "sft" else classifier("VGG8", 10, 1, True, seed=1),
    )  # fmt: skip
    if method == "ctkd":
        assert trainer.objective.temperature.theta.item() != 1
        return
    batch = default_data_collator(rows)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 * training.factor(step)
        optimizer.zero_grad()
        plain(**batch).loss.backward()
        optimizer.step()
    for found, expected in zip(student.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


def test_pairs_and_methods_are_the_papers():
    for table, found in TABLES.items():
        paper = reference.images(table)
        assert [(pair.teacher, pair.student) for pair in found.pairs] == [*paper]
        assert all(tuple(numbers) == METHODS[1:] for numbers in paper.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("table", TABLES)
def test_every_method_takes_its_options(table, method):
    for scale, setting in SETTINGS[table].items():
        for pair in TABLES[table].pairs:
            run = Run(table, scale, method, pair.teacher, pair.student, 0, 0.1, setting.distil.steps)
            run.objective()
            assert run.training.steps == setting.distil.steps and run.training.learning_rate == 0.1
            assert run.training.warmup_steps == setting.distil.warmup_steps


def test_taid_and_kl_are_weighed_alike_and_short_runs_keep_the_shape():
    kl, taid = (replace(RUN, method=method).options for method in ("kl", "taid"))
    assert {k: taid[k] for k in kl} == kl == {"ce_weight": 0.1, "temperature": 4.0}
    assert taid["alpha"] * RUN.steps == pytest.approx(5e-4 * 16_239)
    cpu = replace(RUN, scale="cpu", steps=SETTINGS["table7"]["cpu"].search_steps)
    assert cpu.training.warmup_steps / cpu.training.steps == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"table": "table9"}, "unknown table 'table9'"),
        ({"scale": "huge"}, "unknown scale 'huge'; known: smoke, cpu, paper"),
        ({"method": "rkl"}, "unknown method 'rkl'; known: sft, kl"),
        ({"student": "ResNet20"}, "unknown pair 'VGG13 → ResNet20'; known: ResNet56 → ResNet20"),
    ],
)
def test_a_run_that_is_none_is_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        replace(RUN, **changed)


# The study


def in_this_process(function, todo, workers, title):
    for job in todo:
        yield job, function(*job)


@pytest.fixture
def tiny(clothes, tmp_path, monkeypatch):
    """The study on the grey images: one pair, two methods and the student alone."""
    monkeypatch.setenv("TAID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jobs, "run", in_this_process)
    monkeypatch.setattr(vision, "METHODS", ("sft", "kl", "taid"))
    images = FashionMNIST(train=24, validation=10, test=12, pool=2)
    setting = replace(vision.SMOKE, images=images, learning_rates=(0.05, 0.1))
    monkeypatch.setitem(SETTINGS["table7"], "smoke", setting)
    monkeypatch.setitem(TABLES, "table7", TABLES["table7"]._replace(pairs=(Pair("VGG13", "VGG8", 6.0),)))
    study.at.cache_clear()
    yield tmp_path
    study.at.cache_clear()


@pytest.mark.slow
def test_a_table_from_its_images_to_its_rows(tiny):
    vision.evaluate("table7", "smoke", 2, 1, tiny)
    rows = results.read(tiny / "table7.jsonl")
    students = {(r.experiment, r.method, r.seed, r.config["learning_rate"]) for r in rows}
    searched = {(m, s, lr) for e, m, s, lr in students if e == "table7_search"}
    assert searched == {(m, 100, lr) for m in ("sft", "kl", "taid") for lr in (0.05, 0.1)}
    tested = {(m, s) for e, m, s, _ in students if e == "table7"}
    assert tested == {("teacher", 0), *((m, s) for m in ("sft", "kl", "taid") for s in (0, 1))}
    assert {r.metric for r in rows} == set(vision.UNITS)
    count = len(rows)
    vision.evaluate("table7", "smoke", 2, 1, tiny)  # finished
    assert len(results.read(tiny / "table7.jsonl")) == count


def test_what_is_measured_of_a_student(tiny):
    """Oracle: accuracy, loss and KL by hand over the test images at once; the teacher's logits by index in any order."""
    here = study.at(vision.Table7, "smoke")
    teacher, student = here.source.teacher("VGG13").eval(), classifier("VGG8", 10, 1, True, 3).eval()
    batch = default_data_collator([here.source.examples("test")[i] for i in range(12)])
    with torch.no_grad():
        q, p = (m(batch["pixel_values"]).logits.double().log_softmax(-1) for m in (student, teacher))
    expected = {
        "accuracy": 100 * (q.argmax(-1) == batch["labels"]).double().mean().item(),
        "held_out_loss": -q.gather(-1, batch["labels"][:, None]).mean().item(),
        "kl_to_teacher": (p.exp() * (p - q)).sum(-1).mean().item(),
    }
    found = here.values(student, RUN, "test")
    assert found == {(m, "average"): pytest.approx(v, rel=1e-4, abs=1e-6) for m, v in expected.items()}
    turned = {name: value.flip(0) for name, value in batch.items()}
    logits = here.teacher_logits("VGG13", "test")
    assert torch.equal(logits(turned).flip(0), logits(batch))


def test_students_of_one_seed_start_alike_and_teachers_are_found_again(tiny, monkeypatch):
    here = study.at(vision.Table7, "smoke")
    made = here.source.teacher("VGG13")
    one, same = (here.source.student("VGG8", 0) for _ in range(2))
    assert all(map(torch.equal, one.parameters(), same.parameters()))
    monkeypatch.setattr("taid.studies.training.fit", lambda *a, **k: pytest.fail("trained again"))
    assert all(map(torch.equal, here.source.teacher("VGG13").parameters(), made.parameters()))


def test_the_papers_scale_runs_on_a_tiny_mirror(mirror, monkeypatch):
    """CIFAR-100's code with a tiny data set in its place: teachers see the images anew, and a run resumes."""
    setting = replace(
        vision.PAPER["table7"], images=TINY, narrow=True, pretrain_teacher=StepDecay(2, 4, 0.05),
        distil=StepDecay(4, 4, 0.05),
    )  # fmt: skip
    monkeypatch.setitem(SETTINGS["table7"], "paper", setting)
    monkeypatch.setattr("taid.studies.training.READERS", 0)
    study.at.cache_clear()
    run = replace(RUN, scale="paper", steps=4)
    values, _ = vision.measure(run, "test")
    assert setting.live and values["accuracy", "average"] in (0, 25, 50, 75, 100)
    assert not study.at(vision.Table7, "paper").work_folder(run).exists()
    study.at.cache_clear()


def test_a_hub_without_the_teachers_says_so(mirror):
    source = vision.Classifiers(vision.PAPER["table8"], mirror)
    with pytest.raises(Refused, match="the model microsoft/resnet-34 cannot be had: in the mirror"):
        source.teacher("ResNet34")


def test_a_model_of_language_is_no_student_here():
    with pytest.raises(ValueError, match="classifies images"):
        fit(
            tiny_model(),
            [],
            default_data_collator,
            StepDecay(1, 1, 0.1),
            seed=0,
            objective="kl",
            teacher=classifier("VGG8", 10, 1, True),
        )
