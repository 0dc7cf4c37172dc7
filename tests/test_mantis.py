"""Table 5 at the paper's scale: Mantis-Instruct and InternVL2 out of a mirror; what cannot be used is left out or said."""

import io
import json
import zipfile

import mirror
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from taid.logits import response_logits
from taid.studies import hub, jobs, mantis
from taid.studies.mantis import (
    CLOSE,
    DEVIATION,
    HUB,
    MANTIS,
    MEAN,
    OPEN,
    PATCH,
    PLACE,
    Conversations,
    Setting,
)

PARTS = ("nlvr2", "iconqa")
SMALL = Setting(longest=128, longest_response=24, validation=1, test=2, parts=PARTS)
IMAGE = {"bytes": None, "path": "0_0.png"}  # of the first row


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("mantis")
    mirror.write_mantis(root, PARTS)
    return root


@pytest.fixture
def source(root, monkeypatch, tmp_path):
    monkeypatch.setenv("TAID_HUB", str(root))
    monkeypatch.setenv("TAID_CACHE", str(tmp_path))
    hub.teacher.cache_clear()
    return SMALL.source(tmp_path)


def talk(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_an_image_is_its_tokens_and_the_last_answer_is_learned(source):
    """Oracle: ChatML by hand, four tokens for an image."""
    row = {"conversation": talk(f"{PLACE}a", "b", "c", "d"), "images": [IMAGE]}
    found, tokenizer = Conversations(source, "nlvr2")(row), source.tokenizer
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    seen = (
        turn.format("user", f"{OPEN}{PATCH * 4}{CLOSE}a")
        + turn.format("assistant", "b")
        + turn.format("user", "c")
    )
    assert tokenizer.decode(found["prompt_ids"]) == tokenizer.decode(
        tokenizer(f"{seen}<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    )
    assert found["prompt_ids"].count(tokenizer.convert_tokens_to_ids(PATCH)) == 4
    assert tokenizer.decode(found["response_ids"]).replace(" ", "") == "d<|im_end|>"
    assert found["family"] == "nlvr2" and found["images"] == [IMAGE]


@pytest.mark.parametrize(
    ("conversation", "images"),
    [
        (talk("a", "b"), [IMAGE]),  # no place for it
        (talk(f"{PLACE}{PLACE}a", "b"), [IMAGE]),
        (talk(f"{PLACE}a", "b"), []),
        (talk(f"{PLACE}a", "b"), None),
        (None, [IMAGE]),
        (talk(f"{PLACE}a"), [IMAGE]),  # no answer
        (talk(f"{PLACE}a", ""), [IMAGE]),
        (talk(f"{PLACE}a", "b"), [IMAGE | {"path": "nowhere.png"}]),
        (talk(f"{PLACE}{PATCH}a", "b"), [IMAGE]),  # a token of an image in the text
        (talk(f"{PLACE}a", "b " * 200), [IMAGE]),
        (talk(f"{PLACE * 40}a", "b"), [IMAGE] * 40),
        ([{"role": "user", "content": PLACE}, {"role": "assistant", "content": None}], [IMAGE]),
    ],
)
def test_what_cannot_be_used_is_left_out(source, conversation, images):
    found = Conversations(source, "nlvr2")({"conversation": conversation, "images": images})
    assert found["prompt_ids"] == found["response_ids"] == []


def test_no_conversation_is_in_two_splits_and_every_part_is_in_each(source):
    splits = {name: source.examples(name) for name in ("distil", "validation", "test")}
    assert {name: len(rows) for name, rows in splits.items()} == {"distil": 10, "validation": 2, "test": 4}
    assert all(set(rows["family"]) == set(PARTS) for rows in splits.values())
    names = [(row["family"], row["images"][0]["path"]) for rows in splits.values() for row in rows]
    assert len(set(names)) == len(names) == 16
    assert [row["index"] for row in splits["distil"]] == list(range(10))


def test_pictures_are_those_of_the_archive_or_of_the_row_in_their_order(source, root):
    """Oracle: the pixels of the files, by PIL; 28 × 28 is the tower's own size."""
    pixels = np.random.default_rng(0).integers(256, size=(28, 28, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(data := io.BytesIO(), "png")
    examples = [*source.examples("distil")][:3]
    batch = source.collator([*examples, examples[0] | {"images": [{"bytes": data.getvalue(), "path": ""}]}])
    assert len(batch["pixel_values"]) == sum(len(example["images"]) for example in examples) + 1
    expected = (pixels / 255 - MEAN) / DEVIATION
    assert np.allclose(batch["pixel_values"][-1].permute(1, 2, 0), expected, atol=1e-5)
    own = [source.collator([example])["pixel_values"] for example in examples]
    assert torch.equal(torch.cat(own), batch["pixel_values"][:-1])


def test_processes_that_read_beside_the_training_read_the_same(source):
    examples = [*source.examples("distil")]
    alone = source.collator(examples)["pixel_values"]  # the archive is open here before they are forked
    loaded = DataLoader(examples, batch_size=2, collate_fn=source.collator, num_workers=2)
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in loaded]), alone)


def test_an_answer_hangs_on_the_second_of_two_images(source):
    model = source.student("internvl2-2b", 0).eval()
    example = next(row for row in source.examples("distil") if len(row["images"]) == 2)
    batch = source.collator([example])
    own, _ = response_logits(model, batch)
    turned, _ = response_logits(model, batch | {"pixel_values": batch["pixel_values"].flip(0)})
    assert type(model).__name__ == "InternVLForConditionalGeneration" and not torch.allclose(own, turned)


def spoiled(root, tmp_path, monkeypatch, change):
    """The mirror with one snapshot's files changed."""
    own = tmp_path / "own"
    mirror.write_mantis(own, PARTS)
    change(own)
    monkeypatch.setenv("TAID_HUB", str(own))
    return SMALL.source(tmp_path)


def archive_of(own):
    return next(own.glob("datasets--*/snapshots/*")) / "nlvr2" / "train_images.zip"


def cut(own):
    path = archive_of(own)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def empty(own):
    archive_of(own).unlink()
    zipfile.ZipFile(archive_of(own), "w").close()


def otherwise(own):
    path = next(own.glob("models--*2B*/snapshots/*")) / "config.json"
    config = json.loads(path.read_text()) | {"image_seq_length": 9}
    path.unlink()
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda own: archive_of(own).unlink(), "train_images.zip cannot be read: fetch TIGER-Lab/Mantis-Instruct whole"),
        (cut, "train_images.zip cannot be read"),
        (empty, r"nlvr2, has 0 usable conversations of 8: too few"),
        (otherwise, r"see an image as \(tokens, token\) \[\(4, .*\(9, .*convert both alike"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused_before_anything_is_trained(root, tmp_path, monkeypatch, change, says):
    monkeypatch.setenv("TAID_CACHE", str(tmp_path / "cache"))
    with pytest.raises(jobs.Refused, match=says):
        spoiled(root, tmp_path, monkeypatch, change).examples("distil")


def test_what_is_no_image_is_named(source):
    with pytest.raises(ValueError, match=r"7\.png of .*nlvr2, is no image"):
        source.collator.pictures.pixels("nlvr2", {"bytes": b"no", "path": "7.png"})


def test_a_pair_with_code_of_its_own_is_to_be_converted(monkeypatch):
    monkeypatch.delenv("TAID_HUB", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        jobs.Refused, match="convert it for transformers' InternVL and put it into a mirror, TAID_HUB"
    ):
        hub.model(HUB["internvl2-2b"])
    assert MANTIS not in hub.CONVERTED and set(hub.CONVERTED) == set(HUB.values())
    missing = hub.missing([*HUB.values(), MANTIS])
    assert any(HUB["internvl2-8b"] in what and "converted" in what for what in missing)


def test_parts_are_the_published_ones():
    """Oracle: Mantis's own list of what it trains on has seventeen."""
    assert len(set(mantis.PARTS)) == 17 and [*mantis.PARTS] == sorted(mantis.PARTS)
