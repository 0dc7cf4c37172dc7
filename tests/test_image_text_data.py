"""Questions about pictures: their answers are true, their chance is known, and no image is in two splits."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from taid.studies import image_text_data, sources
from taid.studies.image_text_data import DIGITS, FAMILIES, GARMENTS, IMAGE, NUMBERS, PLACES, Question

ACROSS = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}  # rows, columns


def answer_of(question: Question) -> str:
    """The oracle: what the words of a question ask for, read off its scene by its words alone."""
    scene, words = question.scene, question.prompt.removesuffix("?")
    at = {place: (i // 2, i % 2) for i, place in enumerate(PLACES)}
    named = sorted((p for p in PLACES if p in words), key=words.index)
    last = words.split()[-1]
    if " plus " in words:
        return NUMBERS[sum(DIGITS.index(scene[place]) for place in named)]
    if " greater than " in words:
        first, second = (DIGITS.index(scene[place]) for place in named)
        return "yes" if first > second else "no"
    if named:
        return scene[named[0]]
    here = [place for place, thing in scene.items() if thing == last]
    if words.startswith("where"):
        [place] = here  # it is there once
        return place
    if words.startswith("how many"):
        return NUMBERS[len(here)]
    if words.startswith("is there"):
        return "yes" if here else "no"
    [place] = here
    down, right = ACROSS[words.split()[2]]
    row, column = at[place]
    return scene[PLACES[2 * (row + down) + column + right]]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_true_of_its_picture(family):
    rng = random.Random(1)
    drawn = [FAMILIES[family].draw(rng) for _ in range(500)]
    assert all(question.answer == answer_of(question) for question in drawn)
    assert {len(question.scene) for question in drawn} == {2, 3, 4}
    assert all(
        question.scene[place] in DIGITS
        for question in drawn
        for place in PLACES
        if family in ("read", "compare", "add") and place in question.prompt
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_the_question_alone_scores_no_more_than_chance(family):
    """Two readers learn from 3,000 questions, the likeliest answer to each and the likeliest of all, and answer
    3,000: the better one comes within four standard errors of what is claimed."""
    rng, (draw, chance) = random.Random(2), FAMILIES[family]
    seen: dict[str, Counter] = {"": Counter()}
    for question in (draw(rng) for _ in range(3000)):
        for known in (question.prompt, ""):
            seen.setdefault(known, Counter())[question.answer] += 1
    guesses = {prompt: answers.most_common(1)[0][0] for prompt, answers in seen.items()}
    asked = [draw(rng) for _ in range(3000)]
    by_question = np.mean([guesses[question.prompt] == question.answer for question in asked])
    always = np.mean([guesses[""] == question.answer for question in asked])
    assert abs(max(by_question, always) - chance) < 4 * (chance * (1 - chance) / 3000) ** 0.5


def test_a_description_tells_every_place():
    for question in image_text_data.captions("train", 50)[image_text_data.CAPTIONS]:
        words = zip(PLACES, question.answer.split(), strict=True)
        assert {place: word for place, word in words if word != "nothing"} == question.scene


def test_no_image_is_in_two_splits_and_the_test_is_fashion_mnists_own():
    images = image_text_data.images()
    of = {split: np.concatenate([*things.values()]) for split, things in images.of.items()}
    everything = np.concatenate([*of.values()])
    assert len(everything) == len(set(everything.tolist())) == len(images.pixels) - 1 == 70_000 + 1_797
    garments = {split: np.concatenate([things[g] for g in GARMENTS]) for split, things in images.of.items()}
    assert {split: len(found) for split, found in garments.items()} == {
        "train": 30_000,
        "distil": 24_000,
        "validation": 6_000,
        "test": 10_000,
    }
    test, labels = sources.fashion_mnist("test")
    assert np.array_equal(images.pixels[np.sort(garments["test"])], test)
    assert np.array_equal(images.pixels[images.of["test"]["bag"]], test[labels == 8])
    assert all(len(images.of[split][digit]) > 10 for split in of for digit in DIGITS)


def test_an_image_lies_where_its_scene_has_it():
    """By hand: the second cell is the top right quarter; an empty one is black."""
    pixels = image_text_data.images().pixels
    made = image_text_data.pictures([[3, 70_001, -1, 9]])
    assert made.shape == (1, 1, 56, 56) and made.dtype == torch.float32
    quarters = {(0, 0): 3, (0, 28): 70_001, (28, 28): 9}
    for (y, x), image in quarters.items():
        found = (made[0, 0, y : y + 28, x : x + 28] + 1) * 127.5
        assert np.array_equal(found.round().numpy().astype(np.uint8), pixels[image])
    assert (made[0, 0, 28:, :28] == -1).all()


def test_digits_keep_their_shape():
    """A digit of 8 × 8 is enlarged threefold: every third pixel inside the margin is the original's."""
    digit = np.arange(64).reshape(1, 8, 8) % 17
    large = image_text_data.enlarged(digit)
    assert large.shape == (1, 28, 28)
    assert np.array_equal(large[0, 3:27:3, 3:27:3], (digit[0] * 255 / 16).round())
    assert not large[0, :2].any() and not large[0, :, -2:].any()


def test_examples_say_what_their_scene_says():
    """Oracle: the scene is read back off the picture's cells, by the labels of the images."""
    tokenizer = image_text_data.tokenizer()

    def asked(split):
        return image_text_data.examples(tokenizer, split, image_text_data.questions(split, 20))

    thing = {int(i): name for name, found in image_text_data.images().of["test"].items() for i in found}
    made = asked("test")
    assert len(made) == 20 * len(FAMILIES) and [e["index"] for e in made] == list(range(len(made)))
    for example in made:
        words = tokenizer.decode(example["prompt_ids"], skip_special_tokens=True).strip()
        scene = {
            place: thing[cell] for place, cell in zip(PLACES, example["cells"], strict=True) if cell >= 0
        }
        answer = tokenizer.decode(example["response_ids"], skip_special_tokens=True).strip()
        assert answer == answer_of(Question(scene, words, "")), words
        assert example["prompt_ids"].count(tokenizer.convert_tokens_to_ids(IMAGE)) == 4
    assert max(len(example["response_ids"]) for example in made) == 3  # a place, of two words, and its end
    assert made == asked("test")
    assert made != asked("validation")


def test_every_word_is_one_token():
    tokenizer = image_text_data.tokenizer()
    words = {
        w for f in FAMILIES for q in image_text_data.questions("train", 300)[f] for w in q.prompt[:-1].split()
    }
    assert all(
        len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in words | {*NUMBERS}
    )
