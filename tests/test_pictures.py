"""The pictures of docs/pictures are what the code draws; colours tell methods apart, also in grey and to the colour-blind."""

import itertools

import numpy as np
import pictures
import pytest
from matplotlib.colors import to_rgb
from PIL import Image, ImageSequence

from analysis import page
from analysis.style import COLOURS, MARKERS
from analysis.table6_rows import METHODS

# Methods drawn as lines in one panel; where methods are rows of a figure, their names stand beside the dots.
TOGETHER = [
    ("kl", "taid"),  # Figures 1 and 2
    ("kl", "rkl", "taid", "teacher"),  # Table 3
    METHODS,  # Table 6
]
# Machado, Oliveira, Fernandes (2009), severity 1: linear RGB as protanopes, deuteranopes and tritanopes see it
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, vision: str) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as it is seen."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(VISIONS[vision] @ linear, 0, 1) / XYZ.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(first: str, second: str, vision: str) -> float:
    """ΔE*ab: 2.3 is just noticeable."""
    return float(np.linalg.norm(lab(COLOURS[first], vision) - lab(COLOURS[second], vision)))


def test_black_and_white_are_a_hundred_apart():
    """By hand: L* runs from 0 to 100 and a*, b* are 0 for greys, to every eye."""
    for vision in VISIONS:
        assert lab("#000000", vision) == pytest.approx([0, 0, 0], abs=0.1)
        assert lab("#FFFFFF", vision) == pytest.approx([100, 0, 0], abs=0.5)


@pytest.mark.parametrize("vision", VISIONS)
def test_no_two_methods_of_one_panel_look_alike(vision):
    for methods in TOGETHER:
        for first, second in itertools.combinations(methods, 2):
            assert distance(first, second, vision) > 20, (first, second)


def test_lines_of_one_panel_differ_in_grey():
    """By lightness L*, or else by their markers."""
    for methods in TOGETHER:
        for first, second in itertools.combinations(methods, 2):
            gap = abs(lab(COLOURS[first], "normal")[0] - lab(COLOURS[second], "normal")[0])
            assert gap > 8 or MARKERS.get(first) != MARKERS.get(second), (first, second)


def test_every_colour_is_one_methods():
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_the_committed_diagrams_are_what_the_code_draws(tmp_path):
    drawn = {"modules.svg": pictures.modules(), "data_flow.svg": pictures.data_flow()}
    for path in page.save(tmp_path, {}, drawn):
        assert path.read_bytes() == (pictures.FOLDER / path.name).read_bytes(), "python tests/pictures.py"


@pytest.mark.slow
def test_the_committed_animation_is_what_the_code_draws(tmp_path):
    pictures.draw(tmp_path)
    found, committed = (
        [
            np.asarray(frame.convert("RGB"), dtype=int)
            for frame in ImageSequence.Iterator(Image.open(folder / "bridge.gif"))
        ]
        for folder in (tmp_path, pictures.FOLDER)
    )
    assert len(found) == len(committed) == pictures.FRAMES
    for ours, theirs in zip(found, committed, strict=True):
        assert np.abs(ours - theirs).mean() < 1
