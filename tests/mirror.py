"""A mirror of the hub, laid out as its cache: tiny models of the paper's classes, with tokenizers of their own
classes and chat templates, and tiny data sets in the hub's format. What is written is random."""

import hashlib
import io
import json
import os
import random
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import tiny_model
from datasets import Dataset, Features, Image, Value
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GPTNeoXTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
)

from taid.studies import hub, mantis
from taid.studies.vision_data import HubImages
from taid.studies.vision_models import classifier

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
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
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


def qwen2_tokenizer() -> Qwen2Tokenizer:
    """Padding is what ends a document, and the end of a turn what ends a sequence."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary, merges = bpe(330, special, byte_level=True)
    made = Qwen2Tokenizer(vocab=vocabulary, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.add_special_tokens({"extra_special_tokens": special[1:2]})
    return with_template(made, CHATML)


def internvl_tokenizer() -> LlamaTokenizer:
    """InternLM2's is Llama's, with ChatML's tokens and those around images."""
    made = llama_tokenizer()
    added = ["<|im_start|>", "<|im_end|>", mantis.OPEN, mantis.PATCH, mantis.CLOSE]
    made.add_special_tokens({"extra_special_tokens": added})
    return with_template(made, CHATML)


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


def write_internvl(root: Path, name: str, hidden: int):
    """An InternVL in transformers' format: pictures of 28 × 28, of 4 × 4 patches, are four tokens each."""
    tokenizer, folder = internvl_tokenizer(), root / "made"
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": (28, 28), "patch_size": (7, 7)}  # fmt: skip
    language = {"model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": 32,
                "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1,
                "max_position_embeddings": 256, "tie_word_embeddings": False}  # fmt: skip
    config = InternVLConfig(
        vision_config=tower,
        text_config=language,
        image_token_id=tokenizer.convert_tokens_to_ids(mantis.PATCH),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(hidden)
        InternVLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    publish(root, f"models--{name.replace('/', '--')}", name, folder)


def write_mantis(root: Path, parts: Sequence[str], count: int = 8):
    """InternVL2's pair, and parts of Mantis-Instruct: images in an archive, those of the last part in its rows."""
    for name, hidden in zip(mantis.HUB.values(), (32, 16), strict=True):
        write_internvl(root, name, hidden)
    rng, rows, files = random.Random(5), {}, {}
    readme = "configs:\n"
    for part in parts:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            rows[f"{part}/train-0.parquet"] = [
                conversation_about(i, part == parts[-1], archive, rng) for i in range(count)
            ]
        files[f"{part}/train_images.zip"] = packed.getvalue()
        readme += f"- config_name: {part}\n  data_files:\n  - split: train\n    path: {part}/train-*\n"
    write_rows(root, mantis.MANTIS, rows, readme, files)


def conversation_about(number: int, inline: bool, archive: zipfile.ZipFile, rng: random.Random) -> dict:
    """A row of one or two images, asked about in two turns."""
    images = []
    for i in range(1 + number % 2):
        pixels = np.array([rng.randrange(256) for _ in range(3 * 20 * 24)], np.uint8).reshape(20, 24, 3)
        PIL.Image.fromarray(pixels).save(data := io.BytesIO(), "png")
        path = f"{number}_{i}.png"
        archive.writestr(path, data.getvalue())
        images.append({"bytes": data.getvalue() if inline else None, "path": path})
    asked = [f"{'<image>' * len(images)} {prose(3, rng)}", prose(2, rng), prose(2, rng), prose(2, rng)]
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(asked)]
    return {"id": str(number), "images": images, "conversation": said, "source": "made"}


def write_images(root: Path, images: HubImages, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]):
    """A data set of images as the snapshot of its name: split → [n, height, width, 3] and numbers of classes."""
    folder = root / "made"
    folder.mkdir(parents=True, exist_ok=True)
    for split in pixels:
        columns = {images.image: [PIL.Image.fromarray(image) for image in pixels[split]]}
        columns[images.label] = labels[split]
        features = Features({images.image: Image(), images.label: Value("int64")})
        Dataset.from_dict(columns, features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    publish(root, f"datasets--{images.name.replace('/', '--')}", images.name, folder)


def write_classifiers(root: Path, teachers: Iterable[tuple[str, str]], classes: int):
    """Narrow networks under the names that their teachers have on the hub."""
    for network, name in teachers:
        classifier(network, classes, 3, narrow=True).save_pretrained(root / "made")
        publish(root, f"models--{name.replace('/', '--')}", name, root / "made")


def write_rows(
    root: Path, name: str, parts: dict[str, list[dict]], readme: str, files: dict[str, bytes] | None = None
):
    """A data set as the snapshot of `name`: parts are file → rows, beside files as they are."""
    folder = root / "made"
    for file, data in (files or {}).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
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
    """The further models and data of Tables 2, 4 and 6; the tables of Pythia 6.9b and of Qwen2-72B are longer, as they
    are on the hub."""
    write_texts(root)
    write_model(root, "Qwen/Qwen2-72B-Instruct", "qwen2", qwen2_tokenizer(), padding=20)
    write_model(
        root, "Qwen/Qwen2-1.5B-Instruct", "qwen2", qwen2_tokenizer(), padding=6, tie_word_embeddings=True
    )
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
