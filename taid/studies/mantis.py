"""Table 5 at the paper's scale: conversations about images of Mantis-Instruct, and InternVL2 of the hub.

The hub has InternVL2 with code of its own, which is not run: a mirror holds it converted for transformers' InternVL,
under its own name. An image is one tile, 448 × 448, and 256 tokens (InternVL2 cuts a large one into up to twelve).
Of a conversation the last answer is learned, as in Table 1; those that are too long, or name other images than
they have, are left out, none is cut. Families are the data set's parts; each has conversations that are held out, and
right is an answer that greedy decoding gives whole.
"""

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import PreTrainedModel

from taid import results, schedule
from taid.data import Collator
from taid.studies import cost, hub, jobs, study, training
from taid.studies.study import PAPER_ALPHA, PAPER_UPDATES
from taid.studies.training import Training
from taid.studies.ultrachat import Encode
from taid.studies.vision_data import rgb, standardised

MANTIS = "TIGER-Lab/Mantis-Instruct"
HUB = {"internvl2-8b": "OpenGVLab/InternVL2-8B", "internvl2-2b": "OpenGVLab/InternVL2-2B"}
PARTS = (
    *(
        "birds-to-words",
        "chartqa",
        "coinstruct",
        "contrastive_caption",
        "docvqa",
        "dreamsim",
        "dvqa",
        "iconqa",
    ),
    *("imagecode", "llava_665k_multi", "lrv_multi", "multi_vqa", "nextqa", "nlvr2", "spot-the-diff", "star"),
    "visual_story_telling",
)
CONVERSATIONS = 721_000  # of its own page
# (tokens, those learned, images) of a conversation, and images of the longest: estimates of ours.
TYPICAL, MOST = (1074, 100, 3), 15
PLACE = "<image>"  # in a message: here an image stands
OPEN, PATCH, CLOSE = "<img>", "<IMG_CONTEXT>", "</img>"  # tokens around an image, and of it
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # InternVL's, of ImageNet


@dataclass(frozen=True)
class Setting(study.Setting):
    """Everything that decides Table 5 at the paper's scale. Batch, steps, learning rate and lengths are assumptions."""

    scale: str = "paper"
    longest: int = 4096  # tokens of a conversation
    longest_response: int = 512
    validation: int = 20  # conversations of each part
    test: int = 100
    distil: Training = Training(CONVERSATIONS // 64, 64, 1e-4)  # one epoch
    learning_rates: tuple[float, ...] = (1e-4,)
    micro_batch: int = 2  # conversations that are read at once
    parts: tuple[str, ...] = PARTS
    together: ClassVar[int] = 2
    live: ClassVar[bool] = True
    chances: ClassVar[Mapping[str, float]] = {}  # of guessing: not known

    @property
    def alpha(self) -> float:
        """TAID's α (paper: 5e-4) with α · N as in the paper's Table 1, an assumption of ours here."""
        return schedule.scale_alpha(PAPER_ALPHA, self.distil.steps, PAPER_UPDATES)

    def source(self, folder: Path) -> "Mantis":
        return Mantis(self)

    def fit_options(self, here: Any, run: Any) -> dict[str, Any]:
        return hub.training_options(here, run) | {"readers": training.READERS}

    def takes(self, runs: Sequence[Any]) -> str:
        bills = [self.bill(run) for run in runs if run.method not in study.REFERENCES]
        return hub.takes([*HUB.values(), MANTIS], bills)

    def bill(self, run: Any) -> cost.Bill:
        """What one student takes: its language, and its tower on the patches of all images."""
        objective = run.objective()
        student, teacher = HUB[run.student], HUB[run.teacher] if objective.uses_teacher else None
        language = cost.published(student), cost.published(teacher) if teacher else None
        tower = cost.tower(student), cost.tower(teacher) if teacher else None
        (length, learned, images), longest = TYPICAL, (self.longest, self.longest_response)
        steps, batch, parts = self.distil.steps, self.distil.batch_size, self.micro_batch
        patches, of_all = cost.PATCHES, (cost.PATCHES, 0)
        read = cost.Load(*language, steps, batch, parts, length, learned, longest, objective.fusable)
        seen = cost.Load(*tower, steps, batch * images, parts * MOST, patches, 0, of_all, causal=False)
        return cost.joined(cost.bill(read), cost.bill(seen))


class Mantis(study.Source):
    """Conversations with their images, and the hub's pair."""

    def __init__(self, setting: Setting):
        self.setting = setting

    @cached_property
    def tokenizer(self):  # type: ignore[override]  # loaded when it is asked for
        return hub.tokenizer(HUB["internvl2-8b"])

    @cached_property
    def image(self) -> list[int]:
        """The tokens of an image. Raises jobs.Refused where the two models, or the tokenizer, have others."""
        seen = {(c.image_seq_length, c.image_token_id) for c in map(hub.config, HUB.values())}
        known = self.tokenizer.get_vocab()
        if seen != {(count := min(seen)[0], known.get(PATCH))} or not {OPEN, CLOSE} <= known.keys():
            raise jobs.Refused(
                f"{' and '.join(HUB.values())} see an image as (tokens, token) {sorted(seen)}, and their tokenizer has "
                f"{PATCH} as {known.get(PATCH)}: convert both alike for transformers' InternVL"
            )
        return [known[OPEN], *[known[PATCH]] * count, known[CLOSE]]

    @cached_property
    def collator(self) -> "ImageCollator":
        side = hub.config(HUB["internvl2-8b"]).vision_config.image_size[0]
        return ImageCollator(self.tokenizer.pad_token_id, Pictures(hub.dataset_folder(MANTIS), side))

    def examples(self, split: str) -> Any:
        """A `datasets.Dataset` of "distil", "validation" or "test": examples as of `taid.data.encode` with their
        "images" and their "family"."""
        return self.splits[split]

    @cached_property
    def splits(self) -> dict[str, Any]:
        from datasets import concatenate_datasets

        held_out = self.setting.validation + self.setting.test
        bounds = {"validation": (0, self.setting.validation), "test": (self.setting.validation, held_out)}
        shuffled = [self._encoded(part).shuffle(seed=0) for part in self.setting.parts]
        splits = {}
        for split, (start, stop) in (bounds | {"distil": (held_out, None)}).items():
            whole = concatenate_datasets([rows.select(range(len(rows))[start:stop]) for rows in shuffled])
            splits[split] = whole.map(lambda row, index: {"index": index}, with_indices=True)
        return splits

    def _encoded(self, part: str) -> Any:
        """The conversations of a part that can be used. Raises jobs.Refused where there are too few."""
        from datasets import Features

        rows = hub.rows(MANTIS, "train", part)
        if lacking := {"conversation", "images"} - set(rows.column_names):
            raise jobs.Refused(f"{MANTIS}, {part}, has no column {', '.join(sorted(lacking))}")
        name = results.digest(
            {"rows": rows._fingerprint, "setting": self.setting.digest, "image": self.image}
        )
        encode, features = Conversations(self, part), Features(columns())
        found = rows.map(encode, remove_columns=rows.column_names, features=features, new_fingerprint=name)
        found = found.filter(lambda row: row["response_ids"])
        if len(found) <= self.setting.validation + self.setting.test:
            raise jobs.Refused(
                f"{MANTIS}, {part}, has {len(found)} usable conversations of {len(rows)}: too few (of an answer, with "
                f"as many images as {PLACE}, of which all are there, of at most {self.setting.longest} tokens)"
            )
        return found

    def teacher(self, name: str) -> PreTrainedModel:
        return hub.teacher(HUB[name])

    def student(self, name: str, seed: int) -> PreTrainedModel:
        """The hub's model whatever the seed."""
        return hub.student_for(HUB[name], self.tokenizer)


def columns() -> dict[str, Any]:
    """Of an example, as the library datasets names types."""
    from datasets import List, Value

    tokens, image = List(Value("int64")), {"bytes": Value("binary"), "path": Value("string")}
    return {"prompt_ids": tokens, "response_ids": tokens, "images": List(image), "family": Value("string")}


class Conversations:
    """A row with "conversation" and "images" → {"prompt_ids", "response_ids", "images", "family"}; no tokens of one that
    is not to be used."""

    def __init__(self, source: Mantis, part: str):
        self.encode, self.part, self.pictures = (
            Encode(source.tokenizer, source.setting),
            part,
            source.collator.pictures,
        )
        self.image = source.image
        self.text = OPEN + PATCH * self.image.count(self.image[1]) + CLOSE

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        images, messages = row["images"] or [], row["conversation"] or []
        messages = [
            turn | {"content": (turn["content"] or "").replace(PLACE, self.text)} for turn in messages
        ]
        found = self.encode({"messages": messages})
        seen = [*found["prompt_ids"], *found["response_ids"]].count(self.image[1])
        there = bool(images) and all(self.pictures.has(self.part, image) for image in images)
        if not there or seen != len(images) * self.image.count(self.image[1]):
            found = {"prompt_ids": [], "response_ids": []}
        return found | {"images": images, "family": self.part}


class Pictures:
    """Images of conversations: {"bytes", "path"}, the bytes in the row or in the part's archive, train_images.zip."""

    def __init__(self, folder: Path, side: int):
        self.folder, self.side = folder, side

    def has(self, part: str, image: Mapping[str, Any]) -> bool:
        return bool(image["bytes"]) or image["path"] in archive(self.folder / part).NameToInfo

    def pixels(self, part: str, image: Mapping[str, Any]) -> Tensor:
        """[3, side, side], standardised. Raises ValueError, naming it, for what is no image."""
        try:
            data = image["bytes"] or archive(self.folder / part).read(image["path"])
            found = rgb(Image.open(io.BytesIO(data)))
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{image['path']} of {MANTIS}, {part}, is no image: {error}") from error
        size = (self.side, self.side)
        sized = interpolate(found[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
        return standardised(sized.clamp(0, 1), MEAN, DEVIATION)


def archive(folder: Path) -> zipfile.ZipFile:
    """The images of a part, unpacked one by one as they are read."""
    return _opened(folder / "train_images.zip", os.getpid())


@cache
def _opened(path: Path, process: int) -> zipfile.ZipFile:
    """Once in each process: two that read through one file would move its place for each other."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise jobs.Refused(f"the images {path} cannot be read: fetch {MANTIS} whole ({error})") from error


class ImageCollator:
    """Batches of `taid.data.Collator` with the images of all examples, one after the other, as "pixel_values"."""

    def __init__(self, pad_token_id: int, pictures: Pictures):
        self.text, self.pictures = Collator(pad_token_id), pictures

    def __call__(self, examples: Sequence[dict]) -> dict:
        images = [(example["family"], image) for example in examples for image in example["images"]]
        pixels = torch.stack([self.pictures.pixels(*each) for each in images])
        return self.text(examples) | {"pixel_values": pixels}


PAPER = Setting()
