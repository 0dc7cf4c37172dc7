"""Questions about pictures, each with one answer that can be checked.

A picture is a grid of two by two cells, two to four of which hold a real image: a garment of Fashion-MNIST
or one of scikit-learn's handwritten digits. A question asks what is to be seen in it, in the words of one of eight
families. Answers are drawn before the rest of a picture, evenly, so that what can be scored without looking
(`Family.chance`) is known.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from taid.data import Collator, encode, train_tokenizer
from taid.studies.sources import fashion_mnist

PLACES = ("top left", "top right", "bottom left", "bottom right")
GARMENTS = ("tee", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
DIGITS = NUMBERS[:10]
THINGS = (*GARMENTS, *DIGITS)  # in the order of `Images.labels`
EMPTY = -1  # a cell without image
SIDE = 28  # pixels of a cell
SHARES = {"train": 0.5, "distil": 0.4, "validation": 0.1}  # of the images that are not the test's
IMAGE, IMAGE_TOKENS = "<|image|>", 4  # of a picture: one token for each cell
VOCABULARY = 320  # entries at most: enough to make every word one token

Scene = dict[str, str]  # place → the thing that is there


class Question(NamedTuple):
    scene: Scene
    prompt: str
    answer: str


class Family(NamedTuple):
    """A kind of question."""

    draw: Callable[[random.Random], Question]
    chance: float  # share of right answers, at best, of who reads the question alone


# --- The families -------------------------------------------------------------------------------------------


def what(rng: random.Random) -> Question:
    at, *others = places(rng)
    scene = {at: rng.choice(GARMENTS)} | filled(rng, others)
    return Question(scene, f"what is {at}?", scene[at])


def read(rng: random.Random) -> Question:
    at, *others = places(rng)
    scene = {at: rng.choice(DIGITS)} | filled(rng, others)
    return Question(scene, f"which digit is {at}?", scene[at])


def where(rng: random.Random) -> Question:
    at, *others = places(rng)
    thing = rng.choice(THINGS)
    return Question({at: thing} | filled(rng, others, but=thing), f"where is the {thing}?", at)


def count(rng: random.Random) -> Question:
    number, thing = rng.randint(0, 4), rng.choice(THINGS)
    chosen = places(rng, at_least=number)
    scene = dict.fromkeys(chosen[:number], thing) | filled(rng, chosen[number:], but=thing)
    return Question(scene, f"how many are {thing}?", NUMBERS[number])


def exists(rng: random.Random) -> Question:
    at, *others = places(rng)
    thing, there = rng.choice(THINGS), rng.random() < 0.5
    scene = filled(rng, [at, *others], but=thing) | ({at: thing} if there else {})
    return Question(scene, f"is there a {thing}?", yes_or_no(there))


def compare(rng: random.Random) -> Question:
    (a, b, *others), digits = places(rng), rng.sample(range(10), 2)
    scene = {a: DIGITS[digits[0]], b: DIGITS[digits[1]]} | filled(rng, others)
    return Question(scene, f"is {a} greater than {b}?", yes_or_no(digits[0] > digits[1]))


def add(rng: random.Random) -> Question:
    (a, b, *others), digits = places(rng), rng.choices(range(10), k=2)
    scene = {a: DIGITS[digits[0]], b: DIGITS[digits[1]]} | filled(rng, others)
    return Question(scene, f"what is {a} plus {b}?", NUMBERS[sum(digits)])


def beside(rng: random.Random) -> Question:
    at = rng.choice(PLACES)
    vertical, horizontal = at.split()
    side, neighbour = rng.choice(
        [
            ("below" if vertical == "top" else "above", f"{OPPOSITE[vertical]} {horizontal}"),
            (f"{OPPOSITE[horizontal]} of", f"{vertical} {OPPOSITE[horizontal]}"),
        ]
    )
    digit, garment = rng.choice(DIGITS), rng.choice(GARMENTS)
    rest = [place for place in PLACES if place not in (at, neighbour)]
    others = filled(rng, rng.sample(rest, rng.randint(0, 2)), but=digit)
    return Question({at: digit, neighbour: garment} | others, f"what is {side} the {digit}?", garment)


def describe(rng: random.Random) -> Question:
    scene = filled(rng, places(rng))
    return Question(scene, "describe", " ".join(scene.get(place, "nothing") for place in PLACES))


CAPTIONS = "describe"  # no family of the tests: what models learn to see by
FAMILIES = {
    "what": Family(what, 1 / 10),
    "read": Family(read, 1 / 10),
    "where": Family(where, 1 / 4),
    "count": Family(count, 1 / 5),
    "exists": Family(exists, 1 / 2),
    "compare": Family(compare, 1 / 2),
    "add": Family(add, 1 / 10),  # ten of a hundred pairs of digits make nine
    "beside": Family(beside, 1 / 10),
}
OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


def places(rng: random.Random, at_least: int = 2) -> list[str]:
    """The places of a picture's images, two to four, in random order."""
    return rng.sample(PLACES, rng.randint(max(at_least, 2), 4))


def filled(rng: random.Random, chosen: Sequence[str], but: str | None = None) -> Scene:
    """Any thing but one in each of the places."""
    return {place: rng.choice([thing for thing in THINGS if thing != but]) for place in chosen}


def yes_or_no(truth: bool) -> str:
    return "yes" if truth else "no"


# --- Images and pictures ------------------------------------------------------------------------------------


class Images(NamedTuple):
    """All images, a black one last, and which of each thing belong to a split."""

    pixels: np.ndarray  # uint8 [n + 1, 28, 28]
    of: dict[str, dict[str, np.ndarray]]  # split → thing → indices


@cache
def images() -> Images:
    """Fashion-MNIST and scikit-learn's digits, shared out before any picture is made: none is in two splits.

    The test has Fashion-MNIST's own, and of the digits the last quarter, whose writers are mostly others.
    """
    (garments, kinds), (garments_test, kinds_test) = fashion_mnist("train"), fashion_mnist("test")
    digits = load_digits()
    black = np.zeros((1, SIDE, SIDE), np.uint8)
    pixels = np.concatenate([garments, garments_test, enlarged(digits.images), black])
    labels = np.concatenate([kinds, kinds_test, len(GARMENTS) + digits.target])
    held_out = np.zeros(len(labels), bool)
    held_out[len(garments) : len(garments) + len(garments_test)] = True
    held_out[-(len(digits.target) // 4) :] = True
    of: dict[str, dict[str, np.ndarray]] = {split: {} for split in (*SHARES, "test")}
    for label, thing in enumerate(THINGS):
        of["test"][thing] = np.flatnonzero(held_out & (labels == label))
        rest = np.flatnonzero(~held_out & (labels == label))
        ends = [round(share * len(rest)) for share in np.cumsum([*SHARES.values()])[:-1]]
        of |= {
            split: of[split] | {thing: part} for split, part in zip(SHARES, np.split(rest, ends), strict=True)
        }
    return Images(pixels, of)


def enlarged(digits: np.ndarray) -> np.ndarray:
    """Digits [n, 8, 8] of 0 … 16 as images uint8 [n, 28, 28]: each pixel three times as large, in a black margin."""
    large = digits.repeat(3, axis=1).repeat(3, axis=2) * (255 / 16)
    return np.pad(large, ((0, 0), (2, 2), (2, 2))).round().astype(np.uint8)


def pictures(cells: Sequence[Sequence[int]]) -> Tensor:
    """[B, 1, 56, 56] from −1 (black) to 1: the grids of images [B, 4] by their indices, in the order of PLACES."""
    grid = torch.from_numpy(images().pixels[np.array(cells)]).float() / 127.5 - 1  # [B, 4, 28, 28]
    rows = grid.unflatten(1, (2, 2)).transpose(2, 3)  # [B, 2, 28, 2, 28]
    return rows.reshape(len(cells), 1, 2 * SIDE, 2 * SIDE)


# --- Examples -----------------------------------------------------------------------------------------------


def questions(split: str, each: int) -> dict[str, list[Question]]:
    """`each` questions of every family, by family; other splits have others."""
    return {name: drawn(family.draw, f"{split} {name}", each) for name, family in FAMILIES.items()}


def captions(split: str, count: int) -> dict[str, list[Question]]:
    """`count` whole descriptions of pictures."""
    return {CAPTIONS: drawn(describe, f"{split} {CAPTIONS}", count)}


def drawn(draw: Callable[[random.Random], Question], seed: str, count: int) -> list[Question]:
    rng = random.Random(seed)
    return [draw(rng) for _ in range(count)]


def cells_of(scene: Scene, split: str, rng: random.Random) -> list[int]:
    """An image of the split for each thing of a scene: indices [4], in the order of PLACES."""
    of = images().of[split]
    return [int(rng.choice(of[scene[place]])) if place in scene else EMPTY for place in PLACES]


def examples(tokenizer, split: str, by_family: Mapping[str, list[Question]]) -> list[dict]:
    """Examples of `taid.data.encode` with the "cells" of their pictures and their "family", family by family;
    images are the split's."""
    rng = random.Random(split)
    asked = [(name, question) for name, found in by_family.items() for question in found]
    encoded = encode(
        tokenizer, [IMAGE * IMAGE_TOKENS + q.prompt for _, q in asked], [q.answer for _, q in asked]
    )
    return [
        example | {"family": name, "cells": cells_of(question.scene, split, rng)}
        for example, (name, question) in zip(encoded, asked, strict=True)
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the families is a token, and one stands for a cell of a picture."""
    by_family = questions("words", 500) | captions("words", 500)
    asked = [question for found in by_family.values() for question in found]
    made = train_tokenizer([f"{q.prompt} {q.answer}" for q in asked], VOCABULARY)
    made.add_tokens(IMAGE, special_tokens=True)
    return made


class PictureCollator:
    """Batches of `taid.data.Collator` with the pictures as "pixel_values"."""

    def __init__(self, pad_token_id: int):
        self.text = Collator(pad_token_id)

    def __call__(self, examples: Sequence[dict]) -> dict:
        return self.text(examples) | {"pixel_values": pictures([example["cells"] for example in examples])}
