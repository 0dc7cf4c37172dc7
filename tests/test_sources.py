"""Texts are parsed as their formats say (`test_packages.py`: how they are had). Only the tests of the real texts read
the cache, or fill it."""

import hashlib
import json
import struct
import zlib

import numpy as np
import pytest

from taid.studies import sources
from taid.studies.sources import SOURCES, fetch


def write(folder, files: dict[str, bytes]):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# --- formats


def r_database(*vectors: list[str], kind: int = 16) -> bytes:
    """Chunks of an R lazy-load database, written from R Internals 1.8: header, version 3, encoding, one vector each."""

    def integers(*values):
        return struct.pack(f">{len(values)}i", *values)

    chunks = []
    for lines in vectors:
        data = b"X\n" + integers(3, 0x040201, 0x030500, 5) + b"UTF-8" + integers(kind, len(lines))
        for line in lines:
            data += integers(0x040009, len(line.encode())) + line.encode()  # CHARSXP, ASCII or UTF-8
        chunks.append(struct.pack(">I", len(data)) + zlib.compress(data))
    return b"".join(chunks)


def test_the_r_reader_reads_what_r_writes():
    vectors = [["EMMA", "", "naïve — “quoted”", "x" * 300], [], ["one"]]
    assert sources._r_character_vectors(r_database(*vectors)) == vectors


def test_the_r_reader_refuses_other_objects():
    with pytest.raises(ValueError, match="type 13, expected a character vector"):
        sources._r_character_vectors(r_database(["a"], kind=13))  # INTSXP
    data = zlib.compress(b"RDX3\n")
    with pytest.raises(ValueError, match="XDR"):
        sources._r_character_vectors(struct.pack(">I", 5) + data)


def test_austen_is_cut_at_its_chapters(tmp_path, monkeypatch):
    novels = [
        ["EMMA", "by Jane Austen", "CHAPTER I", "Emma Woodhouse,", "handsome", "Chapter 2", "Mr. Weston"],
        ["PERSUASION", "Chapter 1", "Sir"],
    ]
    (tmp_path / "Rdata.rdb").write_bytes(r_database(*novels))
    monkeypatch.setattr(sources, "fetch", lambda name: tmp_path)
    documents = sources.austen()
    assert list(documents.values()) == ["Emma Woodhouse,\nhandsome\n", "Mr. Weston\n", "Sir\n"]
    assert [name.split(" / ")[0] for name in documents] == ["Emma", "Emma", "Persuasion"]


def test_moby_dick_is_its_chapters_alone(tmp_path, monkeypatch):
    """The package also holds the whole book as data.txt: were it a document, no split would be clean."""
    write(
        tmp_path,
        {
            "chapter_1.txt": b"LOOMINGS.\n\nCall me\n\nIshmael.",
            "data.txt": b"ALL\n\nCall me Ishmael.",
            "chapter_1.json": b"{}",
        },
    )
    monkeypatch.setattr(sources, "fetch", lambda name: tmp_path)
    assert sources.moby_dick() == {"chapter_1": "Call me\n\nIshmael."}


def test_speeches_keep_their_names(tmp_path, monkeypatch):
    write(
        tmp_path, {"1790_washington_n.json": json.dumps({"year": 1790, "text": "Fellow citizens"}).encode()}
    )
    monkeypatch.setattr(sources, "fetch", lambda name: tmp_path)
    assert sources.sotu() == {"1790_washington_n": "Fellow citizens"}


# wndb(5WN): offset, lexicographer file, type, words in hexadecimal, pointers in decimal, frames of verbs, gloss
WORDNET = {
    "data.noun": "  1 This software and database is being provided ...\n"
    '00000100 05 n 02 dog 0 Canis_familiaris 0 001 @ 00000200 n 0000 | a pet; "the dog barked all night"  \n'
    "00000200 03 n 01 animal 0 000 | a living organism | or so  \n",
    "data.verb": "00000300 30 v 01 rise 0 001 ! 00000400 v 0101 02 + 02 00 + 22 01 | go up  \n"
    "00000400 30 v 0a " + " ".join(f"w{i} 0" for i in range(10)) + " 000 00 | go down  \n",
    "data.adj": "00000500 00 s 01 galore(ip) 0 001 & 00000500 a 0000 | in great numbers  \n",
    "data.adv": "00000600 02 r 01 well 0 000 | in a good way  \n",
    "index.noun": "  1 This software ...\ndog n 2 3 @ ~ + 2 1 00000100 00000200  \nanimal n 1 0 1 1 00000200  \n",
    "index.verb": "rise v 1 1 ! 1 1 00000300  \n",
    "index.adj": "galore a 1 1 & 1 0 00000500  \n",
    "index.adv": "well r 1 0 1 1 00000600  \n",
    "cntlist.rev": "dog%1:05:00:: 1 42\ndog%1:03:00:: 2 3\nrise%2:30:00:: 1 7\ngalore%5:00:00:many:00 1 1\nwell%4:02:00:: 1 9\n",
}


@pytest.fixture
def wordnet(tmp_path, monkeypatch):
    write(tmp_path, {name: content.encode() for name, content in WORDNET.items()})
    monkeypatch.setattr(sources, "fetch", lambda name: tmp_path)
    return sources.wordnet()


def test_wordnet_synsets(wordnet):
    synsets, _, _ = wordnet
    assert len(synsets) == 6
    dog = synsets["n", "00000100"]
    assert (dog.category, dog.words, dog.pointers) == (
        "animal",
        ("dog", "Canis_familiaris"),
        (("@", "00000200", "n", "0000"),),
    )
    assert dog.gloss == 'a pet; "the dog barked all night"'
    assert synsets["n", "00000200"].gloss == "a living organism | or so"
    assert synsets["n", "00000200"].category == "thing"  # lexnames(5WN): 03 is noun.Tops
    assert synsets["v", "00000300"].pointers == (("!", "00000400", "v", "0101"),), "frames are not pointers"
    assert synsets["v", "00000400"].words == tuple(f"w{i}" for i in range(10)), (
        "the count of words is hexadecimal"
    )
    assert synsets["a", "00000500"].words == ("galore",), "without its syntactic marker"
    assert synsets["v", "00000300"].category == ""


def test_wordnet_senses_and_counts(wordnet):
    _, senses, counts = wordnet
    assert senses["n", "dog"] == ["00000100", "00000200"]
    assert senses["n", "animal"] == ["00000200"]
    assert senses["r", "well"] == ["00000600"]
    assert counts == {("n", "dog"): 45, ("v", "rise"): 7, ("a", "galore"): 1, ("r", "well"): 9}


# --- the real texts


def test_idx_is_big_endian_with_the_last_dimension_fastest():
    """By hand: 2 × 3 unsigned bytes."""
    data = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    assert sources.idx(data).tolist() == [[1, 2, 3], [4, 5, 255]]
    with pytest.raises(ValueError, match="reshape"):
        sources.idx(data[:-1])


@pytest.mark.parametrize(("split", "each"), [("train", 6000), ("test", 1000)])
def test_the_real_fashion_mnist_is_whole(split, each):
    """Xiao et al. 2017: ten classes of equal size. A trouser (1) is two legs: dark between them, at the hem."""
    images, labels = sources.fashion_mnist(split)
    assert images.shape == (10 * each, 28, 28) and images.dtype == labels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [each] * 10
    hem = images[labels == 1, 22:26].mean((0, 1))
    assert hem[13:15].mean() < 0.5 * hem[9:12].mean()


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(ValueError, match="'validation'; known: train, test"):
        sources.fashion_mnist("validation")


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_the_packages_still_carry_the_known_texts(name, tmp_path, monkeypatch):
    """Downloaded afresh; the digest is computed here as `sha256sum` would, over names and contents."""
    monkeypatch.setenv("TAID_CACHE", str(tmp_path))
    files = sorted(fetch(name).glob(SOURCES[name].pattern), key=lambda path: path.name)
    whole = b"".join(
        path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest() for path in files
    )
    assert hashlib.sha256(whole).hexdigest() == SOURCES[name].sha256


def test_the_real_wordnet_is_whole():
    """Oracle: wnstats(7WN) of WordNet 3.0, synsets and unique strings by part of speech."""
    synsets, senses, _ = sources.wordnet()
    assert {p: sum(part == p for part, _ in synsets) for p in "nvar"} == {
        "n": 82_115,
        "v": 13_767,
        "a": 18_156,
        "r": 3_621,
    }
    assert {p: sum(part == p for part, _ in senses) for p in "nvar"} == {
        "n": 117_798,
        "v": 11_529,
        "a": 21_479,
        "r": 4_481,
    }


def test_the_real_prose_is_whole():
    """Oracles: the chapters of the printed novels; Moby-Dick's 135; a speech for most years from 1790 on."""
    novels = [name.split(" / ")[0] for name in sources.austen()]
    assert {title: novels.count(title) for title in novels} == {
        "Sense And Sensibility": 50,
        "Pride And Prejudice": 61,
        "Mansfield Park": 48,
        "Emma": 55,
        "Northanger Abbey": 31,
        "Persuasion": 24,
    }
    chapters = sources.moby_dick()
    assert len(chapters) == 135
    assert any("Call me Ishmael." in text for text in chapters.values())
    assert max(map(len, chapters.values())) < sum(map(len, chapters.values())) / 20, (
        "a document is no chapter"
    )
    speeches = sources.sotu()
    assert len(speeches) == 233
    assert min(map(len, speeches.values())) > 1000
