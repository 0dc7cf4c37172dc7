"""Images with labels, as examples for the trainer: Fashion-MNIST at our scale, data sets of a hub at the paper's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from taid.studies import hub, sources
from taid.studies.jobs import Refused

Transform = Callable[[Any], Tensor]  # of a row's image to [channels, side, side]


class Images(Sequence[dict]):
    """Examples {"index", "pixel_values", "labels"}; a transform may draw, so that an image differs from pass to pass."""

    def __init__(self, images: Any, labels: Any, transform: Transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: Any) -> Any:
        return {"index": i, "pixel_values": self.transform(self.images[i]), "labels": int(self.labels[i])}


@dataclass(frozen=True)
class FashionMNIST:
    """Parts of Fashion-MNIST, each pixel the mean of `pool` × `pool`, standardised by the training part."""

    train: int
    validation: int
    test: int
    pool: int
    classes: int = 10
    channels: int = 1

    def splits(self) -> dict[str, Images]:
        """{"train", "validation", "test"}; the first two from the training images, in an order of a fixed seed."""
        images, labels = sources.fashion_mnist("train")
        order = np.random.default_rng(0).permutation(len(images))
        ends = {"train": (0, self.train), "validation": (self.train, self.train + self.validation)}
        if self.train + self.validation > len(images):
            raise ValueError(
                f"{self.train} + {self.validation} images are asked for, and there are {len(images)}"
            )
        parts = {name: (images[order[a:b]], labels[order[a:b]]) for name, (a, b) in ends.items()}
        images, labels = sources.fashion_mnist("test")
        parts["test"] = images[: self.test], labels[: self.test]
        pooled = {
            name: avg_pool2d(torch.tensor(pixels)[:, None].float() / 255, self.pool)
            for name, (pixels, _) in parts.items()
        }
        mean, deviation = pooled["train"].mean(), pooled["train"].std()
        return {
            name: Images((pooled[name] - mean) / deviation, part_labels, lambda image: image)
            for name, (_, part_labels) in parts.items()
        }


@dataclass(frozen=True)
class HubImages:
    """A data set of the hub (`taid.studies.hub`): RGB images, and a number for each class.

    The test's images are those of the split `held_out`; those of validation, if any, are cut from the training's.
    """

    name: str
    image: str  # columns
    label: str
    held_out: str  # split
    classes: int
    mean: tuple[float, float, float]  # of the channels, by which pixels are standardised
    deviation: tuple[float, float, float]
    side: int
    crop: str  # in training: "padded" (CIFAR) or "resized" (ImageNet); each mirrored at random
    validation: int = 0
    channels: int = 3

    def splits(self) -> dict[str, Images]:
        """{"train", "validation", "test"}. Raises jobs.Refused where the data set cannot be had or is another."""
        rows = {"train": hub.rows(self.name, "train"), "test": hub.rows(self.name, self.held_out)}
        for split, found in rows.items():
            if lacking := {self.image, self.label} - set(found.column_names):
                raise Refused(f"{self.name}, {split}, has no column {', '.join(sorted(lacking))}")
        if self.validation >= len(rows["train"]):
            raise Refused(
                f"{self.name} has {len(rows['train'])} training images, {self.validation} for validation"
            )
        parts = rows
        if self.validation:
            cut = rows["train"].train_test_split(self.validation, seed=0)
            parts = {"train": cut["train"], "validation": cut["test"], "test": rows["test"]}
        labels = {name: np.asarray(part[self.label]) for name, part in parts.items()}
        for name, found in labels.items():
            if found.min() < 0 or found.max() >= self.classes:
                raise Refused(f"{self.name}, {name}, has labels outside 0 … {self.classes - 1}")
        drawn = {"padded": padded_crop, "resized": resized_crop}[self.crop]
        crops = {name: drawn if name == "train" else centre_crop for name in parts}
        return {
            name: Images(part[self.image], labels[name], partial(self._pixels, crops[name]))
            for name, part in parts.items()
        }

    def _pixels(self, crop: Callable[[Tensor, int], Tensor], image) -> Tensor:
        """[3, side, side], standardised."""
        return standardised(crop(rgb(image), self.side), self.mean, self.deviation)


def rgb(image) -> Tensor:
    """[3, height, width] in [0, 1] of an image of PIL."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def standardised(pixels: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """(pixels − mean) / deviation, of each channel."""
    centre, scale = (torch.tensor(values)[:, None, None] for values in (mean, deviation))
    return (pixels - centre) / scale


def padded_crop(image: Tensor, side: int) -> Tensor:
    """A random side × side of the image with 4 black pixels on each side of it (He et al. 2016), or its mirror image."""
    return mirrored(random_part(pad(image, (4, 4, 4, 4)), side, side))


def resized_crop(image: Tensor, side: int) -> Tensor:
    """A random part of 8 to 100% of the area, its sides 3:4 to 4:3, as side × side (Szegedy et al. 2015), or its
    mirror image."""
    height, width = image.shape[-2:]
    for _ in range(10):
        area = height * width * torch.empty(()).uniform_(0.08, 1).item()
        ratio = torch.empty(()).uniform_(np.log(3 / 4), np.log(4 / 3)).exp().item()
        wide, high = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            return mirrored(resized(random_part(image, high, wide), side, side))
    return mirrored(centre_crop(image, side))


def centre_crop(image: Tensor, side: int) -> Tensor:
    """The middle side × side, after the shorter side is made side · 256/224; an image of that very size as it is."""
    height, width = image.shape[-2:]
    if (height, width) == (side, side):
        return image
    scale = side * 256 / 224 / min(height, width)
    image = resized(image, max(side, round(scale * height)), max(side, round(scale * width)))
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[:, top : top + side, left : left + side]


def random_part(image: Tensor, height: int, width: int) -> Tensor:
    """height × width of the image, each place as likely."""
    top, left = (
        int(torch.randint(length - part + 1, ()))
        for length, part in zip(image.shape[-2:], (height, width), strict=True)
    )
    return image[:, top : top + height, left : left + width]


def mirrored(image: Tensor) -> Tensor:
    """Left for right in half of the cases."""
    return image.flip(-1) if torch.rand(()) < 0.5 else image


def resized(image: Tensor, height: int, width: int) -> Tensor:
    found = interpolate(image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)
    return found[0].clamp(0, 1)
