"""The image-text study: its pair, what it measures, and a student of pictures in a trainer that knows none."""

import importlib.util
import random
from pathlib import Path

import pytest
import torch
from conftest import tiny_trainer

from taid import results
from taid.data import batches
from taid.evaluation.likelihood import whole_responses
from taid.logits import response_logits
from taid.rollouts import GKDRollouts
from taid.studies import image_text
from taid.studies.image_text import CPU, METHODS, STUDENT, TEACHER, Run, by_family, internvl
from taid.studies.image_text_data import FAMILIES, IMAGE
from taid.studies.jobs import TUNING_SEEDS
from taid.studies.zoo import parameters
from taid.teacher import LiveTeacher

ROOT = Path(__file__).parents[1]
HUB = {TEACHER: 8.08, STUDENT: 2.21}  # parameters in billions, from InternVL2's own page; the tower has 0.304


@pytest.fixture(scope="module")
def here(cache):
    return image_text.at("smoke")


@pytest.fixture(scope="module")
def pair(here):
    """Random models of smoke's size: (student, teacher)."""
    setting, tokenizer = here.setting, here.source.tokenizer
    shapes = ((setting.student, 0), (setting.teacher, 1))
    return [internvl(shape, setting.vision, tokenizer, seed).eval() for shape, seed in shapes]


# The pair


def test_the_pair_keeps_the_papers_ratio_and_its_one_size_of_tower(here):
    teacher, student = (internvl(s, CPU.vision, here.source.tokenizer, 0) for s in (CPU.teacher, CPU.student))
    assert parameters(teacher) / parameters(student) == pytest.approx(HUB[TEACHER] / HUB[STUDENT], rel=0.05)
    towers = [parameters(model.model.vision_tower) for model in (teacher, student)]
    assert towers[0] == towers[1] < parameters(student) / 2


def test_a_model_is_drawn_by_its_seed_alone(here):
    def weights(seed):
        model = internvl(here.setting.student, here.setting.vision, here.source.tokenizer, seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    torch.manual_seed(5)
    first = weights(0)
    assert torch.equal(first, weights(0)) and not torch.equal(first, weights(1))


def test_the_answer_hangs_on_the_picture(here, pair):
    """Another picture, other logits: the images do reach the answer's positions."""
    batch = here.collator(here.source.examples("test")[:4])
    own, _ = response_logits(pair[0], batch)
    other, _ = response_logits(pair[0], batch | {"pixel_values": -batch["pixel_values"]})
    assert (own - other).abs().max() > 1e-4


# What is measured


def test_accuracy_is_that_of_greedy_decoding(here, pair):
    """Oracle: `generate`, token by token, with the picture in view. Half of the answers are what it wrote."""
    student, examples = pair[0], here.source.examples("test")[::4]
    written = []
    for example in examples:
        batch = here.collator([example])
        made = student.generate(
            input_ids=torch.tensor([example["prompt_ids"]]),
            pixel_values=batch["pixel_values"],
            max_new_tokens=2,
            do_sample=False,
            eos_token_id=-1,
        )
        written.append(made[0, len(example["prompt_ids"]) :].tolist())
    told = [
        example | {"response_ids": words if i % 2 else [words[0], words[1] ^ 1]}
        for i, (example, words) in enumerate(zip(examples, written, strict=True))
    ]
    right, _ = whole_responses(LiveTeacher(student), batches(told, here.collator, 5))
    assert right == [bool(i % 2) for i in range(len(told))]


def test_values_are_means_over_families(here, pair, monkeypatch):
    """Oracle: the families by hand, from one pass over everything."""
    run = Run("smoke", "untrained", 0, 0.0)
    examples = here.source.examples("test")
    monkeypatch.setattr(
        "taid.studies.image_text.whole_responses",
        lambda logits_of, made: ([bool(i % 3) for batch in made for i in batch["index"].tolist()], []),
    )
    values = here.values(pair[0], run, "test")
    by_hand = {
        family: 100
        * sum(e["index"] % 3 > 0 for e in examples if e["family"] == family)
        / here.setting.questions["test"]
        for family in FAMILIES
    }
    assert {f: values["accuracy", f] for f in FAMILIES} == pytest.approx(by_hand)
    assert values["accuracy", "average"] == pytest.approx(sum(by_hand.values()) / 8)
    assert values["chance", "where"] == 25 and values["chance", "average"] == pytest.approx(100 * 1.85 / 8)
    on_validation = here.values(pair[0], run, "validation")
    assert ("accuracy", "average") in on_validation and ("accuracy", "where") not in on_validation
    assert all(isinstance(value, float) for value in values.values())
    assert {metric for metric, _ in values} <= image_text.UNITS.keys()


def test_families_keep_all_examples(here):
    examples = here.source.examples("validation")
    assert [e for asked in by_family(examples).values() for e in asked] == examples
    assert list(by_family(examples)) == list(FAMILIES)


def test_the_teachers_kept_logits_are_those_that_it_gives(here):
    """With the pictures among what names an example: oracle, the teacher itself."""
    kept, live = here.teacher_logits(TEACHER, "validation"), LiveTeacher(here.source.teacher(TEACHER))
    examples = list(here.source.examples("validation"))
    random.Random(0).shuffle(examples)
    for batch in batches(examples, here.collator, 5):
        torch.testing.assert_close(kept(batch), live(batch), atol=2e-3, rtol=1e-3)  # kept in half precision
    batch = here.collator(examples[:2])
    with pytest.raises(ValueError, match="examples are not in"):
        kept(batch | {"pixel_values": batch["pixel_values"].flip(0)})


# The trainer takes pictures as it takes anything else


def test_a_student_of_pictures_samples_with_them_in_view(here, pair):
    """GKD's own responses: what is beside the prompt stays, and no image token is drawn."""
    batch = here.collator(here.source.examples("distil")[:6])
    sampled = GKDRollouts(4, probability=1.0)(pair[0], batch, 0.0, seed=3)
    assert torch.equal(sampled["pixel_values"], batch["pixel_values"])
    image = here.source.tokenizer.convert_tokens_to_ids(IMAGE)
    responses = sampled["input_ids"][sampled["labels"] != -100]
    assert len(responses) >= 6 and not (responses == image).any()
    logits, labels = response_logits(pair[0], sampled)
    assert torch.isfinite(logits).all() and torch.equal(labels, responses)


@pytest.mark.parametrize("method", ["taid", "gkd"])
def test_a_teacher_by_its_folder_teaches_as_the_model_does(here, pair, tmp_path, method):
    """Oracle: the same run with the model given; the folder's model is loaded with its tower."""
    student, teacher = pair
    teacher.save_pretrained(tmp_path / "teacher")
    trained = []
    for given in (teacher, str(tmp_path / "teacher")):
        fresh = internvl(here.setting.student, here.setting.vision, here.source.tokenizer, 0)
        trainer = tiny_trainer(
            tmp_path,
            method,
            student=fresh,
            teacher=given,
            examples=here.source.examples("distil"),
            collator=here.collator,
            steps=2,
            remove_unused_columns=False,
        )
        trainer.train()
        trained.append(torch.cat([p.detach().flatten() for p in fresh.parameters()]))
    before = torch.cat([p.detach().flatten() for p in student.parameters()])
    assert torch.equal(*trained) and not torch.equal(trained[0], before)


# Runs


def test_every_method_starts_from_the_student_of_its_seed_and_moves_it(here):
    untrained = {seed: here.source.student(STUDENT, seed) for seed in (0, 1)}
    assert not torch.equal(*(model.lm_head.weight for model in untrained.values()))
    students = {m: here.model(Run("smoke", m, 0, 1e-2))[0] for m in METHODS}
    heads = [untrained[0].lm_head.weight, *(model.lm_head.weight for model in students.values())]
    assert all(not torch.equal(a, b) for i, a in enumerate(heads) for b in heads[:i])


def test_what_cannot_be_run_is_refused_with_what_can():
    with pytest.raises(ValueError, match="unknown method 'klx'; known: "):
        Run("cpu", "klx", 0, 1e-3)
    with pytest.raises(ValueError, match="unknown scale 'huge'; known: smoke, cpu, paper"):
        Run("huge", "kl", 0, 1e-3)


def test_all_methods_warm_up_for_a_tenth():
    for method in METHODS:
        training = Run("cpu", method, 0, 1e-2).training
        assert (training.warmup_steps, training.learning_rate) == (training.steps // 10, 1e-2)


@pytest.mark.slow
def test_the_script_runs_whole_and_again_for_nothing(cache, tmp_path):
    spec = importlib.util.spec_from_file_location(
        "script", ROOT / "paper_experiments/05_table5_image_text.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main("smoke", 2, 1, tmp_path)
    rows = results.read(tmp_path / "table5.jsonl")
    cells = {(r.experiment, r.method, r.seed) for r in rows}
    searched = {("table5_search", method, TUNING_SEEDS[0]) for method in METHODS}
    tested = {("table5", method, seed) for method in (*METHODS, "untrained") for seed in (0, 1)}
    alike = {("table5_one_rate", method, seed) for method in METHODS for seed in (0, 1)}
    assert cells == searched | tested | alike | {("table5", "teacher", 0)}
    before = (tmp_path / "table5.jsonl").read_bytes()
    script.main("smoke", 2, 1, tmp_path)
    assert (tmp_path / "table5.jsonl").read_bytes() == before
