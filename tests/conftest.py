"""Tiny models of the families that we train, a tokenizer and ragged examples: no network, no cache."""

import gc
import os
import random
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

if not shutil.which(
    "nvidia-smi"
):  # GPU programs on the CPU: Triton reads this as it is imported, by torch at times
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from taid.data import Collator
from taid.studies import sources, study
from taid.trainer import DistillationTrainer

VOCAB, PAD, END = 48, 0, 1
FAMILIES = ("llama", "phi3", "stablelm", "gpt_neox", "qwen2")

torch.set_num_threads(1)  # the models are tiny, and a fork must not meet a pool of threads
gc.freeze()  # the Trainer collects garbage in every run: what is imported is none


def tiny_model(family: str = "llama", seed: int = 0, vocab_size: int = VOCAB, **options):
    """A random model of 7,000 parameters, with weights so large that two seeds disagree by 1 nat/token."""
    defaults = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }
    if family != "gpt_neox":
        defaults["num_key_value_heads"] = 2
    config = CONFIG_MAPPING[family](**defaults | options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word "w2" … "w47", with padding and end of sequence apart."""
    words = {"<pad>": PAD, "<end>": END} | {f"w{i}": i for i in range(2, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def tiny_examples(count: int = 64, seed: int = 0) -> list[dict]:
    """Examples as of `taid.data.encode`; responses of 1 to 9 tokens, so that no two batches weigh alike."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> list[int]:
        return [rng.randrange(2, VOCAB) for _ in range(rng.randint(low, high))]

    return [
        {"index": i, "prompt_ids": words(2, 6), "response_ids": [*words(0, 8), END]} for i in range(count)
    ]


def tiny_trainer(
    folder: Path,
    method="taid",
    *,
    student=None,
    teacher="llama",
    steps: int = 4,
    batch: int = 4,
    examples=None,
    validation=None,
    collator=Collator(PAD),
    tokenizer=None,
    teacher_tokenizer=None,
    vocab_size=None,
    peft_config=None,
    optimizers=(None, None),
    fuse_head: bool = False,
    eval_kl: bool | None = None,
    max_length: int | None = None,
    packing: bool = False,
    **arguments,
) -> DistillationTrainer:
    """A trainer on the CPU that writes below `folder`; student and teacher are fresh, of seeds 0 and 1."""
    return DistillationTrainer(
        tiny_model(seed=0) if student is None else student,
        tiny_model(teacher, seed=1) if isinstance(teacher, str) and teacher in CONFIG_MAPPING else teacher,
        method,
        args=TrainingArguments(
            **{
                "output_dir": str(folder),
                "max_steps": steps,
                "per_device_train_batch_size": batch,
                "learning_rate": 1e-2,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": True,
            }
            | arguments
        ),
        train_dataset=tiny_examples() if examples is None else examples,
        eval_dataset=validation,
        data_collator=collator,
        processing_class=tokenizer,
        teacher_processing_class=teacher_tokenizer,
        vocab_size=vocab_size,
        peft_config=peft_config,
        optimizers=optimizers,
        fuse_head=fuse_head,
        eval_kl=eval_kl,
        max_length=max_length,
        packing=packing,
    )


@pytest.fixture
def small_disk():
    """`with small_disk(folder, "16k")`: a file system of so many bytes. (A fixture, so that test_results.py, which other
    processes import, need not import this module, which takes seconds.)"""

    @contextmanager
    def disk(folder: Path, size: str):
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)

    return disk


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of the module's own, for its studies: it shares the texts only."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "sources").symlink_to({sources.fetch(name).parent for name in sources.SOURCES}.pop())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAID_CACHE", str(folder))
        study.at.cache_clear()
        yield folder
    study.at.cache_clear()


@pytest.fixture
def student():
    return tiny_model(seed=0)


@pytest.fixture
def teacher():
    return tiny_model(seed=1)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()
