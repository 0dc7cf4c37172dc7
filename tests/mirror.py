"""A mirror of the hub, laid out as its cache: tiny models of the paper's classes, with tokenizers of their own
classes and chat templates, and tiny data sets in the hub's format. What is written is random."""

import hashlib
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import tiny_model
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import GPTNeoXTokenizer, LlamaTokenizer, PreTrainedTokenizerBase

from taid.studies import hub

TEXT = "the model of a small language learns from its teacher what people say when they ask and answer"
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PHI3_TOKENS = ["<|endoftext|>", "<|assistant|>", *(f"<|placeholder{i}|>" for i in range(1, 5)), "<|system|>", "<|end|>",
               "<|placeholder5|>", "<|placeholder6|>", "<|user|>"]  # fmt: skip


def prose(count: int, rng: random.Random) -> str:
    return " ".join(rng.choice(TEXT.split()) for _ in range(count))


def bpe(size: int, special: list[str], byte_level: bool) -> tuple[dict, list]:
    """(vocabulary, merges) of pieces as Llama has them (▁ for a space, bytes apart), or of bytes as GPT-NeoX has."""
    trained = Tokenizer(models.BPE(byte_fallback=not byte_level))
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trained.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if byte_level
        else pre_tokenizers.Metaspace(replacement="▁", split=True)
    )
    pieces = special if byte_level else [*special, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=pieces, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([prose(2000, random.Random(0)), "<|user|>[INST]/\n."], trainer)
    made = json.loads(trained.to_str())["model"]
    return made["vocab"], [tuple(merge) for merge in made["merges"]]


def llama_tokenizer() -> LlamaTokenizer:
    vocabulary, merges = bpe(340, ["<unk>", "<s>", "</s>"], byte_level=False)
    return LlamaTokenizer(vocab=vocabulary, merges=merges)


def phi3_tokenizer() -> LlamaTokenizer:
    """Llama's, with the tokens that Phi-3 adds; its end of sequence and its padding are one of them."""
    made = llama_tokenizer()
    made.add_special_tokens(
        {"extra_special_tokens": [AddedToken(token, rstrip=True, normalized=False) for token in PHI3_TOKENS]}
    )
    made.eos_token = made.pad_token = "<|endoftext|>"
    made.chat_template = PHI3
    return made


def neox_tokenizer() -> GPTNeoXTokenizer:
    vocabulary, merges = bpe(330, ["<|endoftext|>", "<|padding|>"], byte_level=True)
    return GPTNeoXTokenizer(vocab=vocabulary, merges=merges, pad_token=None)


def with_template(made: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    made.chat_template = template
    return made


def write_model(
    root: Path, name: str, family: str, tokenizer: PreTrainedTokenizerBase, padding: int = 0, **options
):
    """A model and its tokenizer as the snapshot of `name`."""
    folder = root / "made"
    tiny_model(
        family,
        seed=len(name),
        vocab_size=len(tokenizer) + padding,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        max_position_embeddings=256,
        initializer_range=0.1,
        **options,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    publish(root, f"models--{name.replace('/', '--')}", name, folder)


def write_rows(root: Path, name: str, parts: dict[str, list[dict]], readme: str):
    """A data set as the snapshot of `name`: parts are file → rows."""
    folder = root / "made"
    for file, rows in parts.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    (folder / "README.md").write_text(f"---\n{readme}---\n")
    publish(root, f"datasets--{name.replace('/', '--')}", name, folder)


def publish(root: Path, cache: str, name: str, folder: Path):
    """Move the files of a folder into the hub's cache: blobs, and a snapshot of links to them."""
    revision = hub.REVISIONS.get(name, hashlib.sha1(name.encode()).hexdigest())
    blobs, snapshot = root / cache / "blobs", root / cache / "snapshots" / revision
    blobs.mkdir(parents=True, exist_ok=True)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob, link = (
            blobs / hashlib.sha256(path.read_bytes()).hexdigest(),
            snapshot / path.relative_to(folder),
        )
        link.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, blob)
        link.symlink_to(blob)
    refs = root / cache / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(revision)


def conversations(count: int, seed: int, turns: Iterable[int] = (2, 4)) -> list[dict]:
    """Rows as UltraChat's: messages of two or four turns."""
    rng, turns, roles = random.Random(seed), list(turns), ("user", "assistant")
    rows = []
    for i in range(count):
        said = [
            {"content": prose(rng.randint(3, 9), rng), "role": roles[t % 2]} for t in range(rng.choice(turns))
        ]
        rows.append({"prompt": said[0]["content"], "prompt_id": str(i), "messages": said})
    return rows


def write_table1(root: Path) -> None:
    """The models and data of Table 1."""
    write_model(root, "microsoft/Phi-3-mini-4k-instruct", "phi3", phi3_tokenizer(), padding=5)
    write_model(root, "meta-llama/Llama-2-7b-chat-hf", "llama", with_template(llama_tokenizer(), LLAMA2))
    write_model(root, "TinyLlama/TinyLlama_v1.1", "llama", llama_tokenizer())
    write_model(
        root, "stabilityai/stablelm-zephyr-3b", "stablelm", with_template(neox_tokenizer(), ZEPHYR), padding=6
    )
    write_model(root, "EleutherAI/pythia-410m-deduped", "gpt_neox", neox_tokenizer(), padding=6)
    readme = "configs:\n- config_name: default\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train_sft", "test_sft")
    )
    parts = {
        "data/train_sft-00000-of-00001.parquet": conversations(24, seed=0),
        "data/test_sft-00000-of-00001.parquet": conversations(16, seed=1),
    }
    write_rows(root, "HuggingFaceH4/ultrachat_200k", parts, readme)


def write_corpus(root: Path) -> None:
    """The further models and data of Tables 2 and 6; Pythia's tables of 6.9b are longer, as they are on the hub."""
    write_texts(root)
    write_model(root, "microsoft/Phi-3-medium-4k-instruct", "phi3", phi3_tokenizer(), padding=5)
    for size in ("31m", "70m", "160m", "410m", "1b", "2.8b", "6.9b"):
        padding = 20 if size == "6.9b" else 6
        write_model(root, f"EleutherAI/pythia-{size}", "gpt_neox", neox_tokenizer(), padding=padding)


def write_texts(root: Path) -> None:
    """SmolLM-Corpus in ten files, LAMBADA and Winogrande."""
    rng = random.Random(3)
    files = {
        f"fineweb-edu-dedup/train-{i:05d}-of-00010.parquet": [
            {"text": prose(40, rng), "id": str(i)} for _ in range(4)
        ]
        for i in range(10)
    }
    readme = (
        "configs:\n- config_name: fineweb-edu-dedup\n  data_files:\n"
        "  - split: train\n    path: fineweb-edu-dedup/train-*\n"
    )
    write_rows(root, "HuggingFaceTB/smollm-corpus", files, readme)
    lambada = "configs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test-*\n"
    write_rows(
        root,
        "EleutherAI/lambada_openai",
        {"data/test-0.parquet": [{"text": prose(12, rng)} for _ in range(6)]},
        lambada,
    )
    winogrande = [
        {
            "sentence": f"{prose(3, rng)} _ {prose(2, rng)}",
            "option1": "teacher",
            "option2": "student",
            "answer": "12"[i % 2],
        }
        for i in range(12)
    ]
    readme = "configs:\n- config_name: winogrande_xl\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: winogrande_xl/{split}-*\n" for split in ("train", "validation")
    )
    parts = {f"winogrande_xl/{split}-0.parquet": winogrande for split in ("train", "validation")}
    write_rows(root, "allenai/winogrande", parts, readme)
