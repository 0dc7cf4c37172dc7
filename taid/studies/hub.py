"""Models and data sets of the hub, by name and revision: over the network, or out of a mirror.

`$TAID_HUB` names a mirror: a folder laid out as the hub's own cache, `models--EleutherAI--pythia-70m/snapshots/…`,
such as a copy of ~/.cache/huggingface/hub from a machine that has the network. With it nothing is fetched.
Weights are safetensors, and no code of the hub is run.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from taid.files import cache_dir
from taid.studies import cost, jobs
from taid.studies.training import device, on_device
from taid.teacher import auto_class, load_whole
from taid.vocabulary import tokens

# Commits that public records of others name; what is not listed is taken as it is today ("main").
REVISIONS = {
    "meta-llama/Llama-2-7b-chat-hf": "f5db02db724555f92da89c216ac04704f23d4590",
    "TinyLlama/TinyLlama_v1.1": "ff3c701f2424c7625fdefb9dd470f45ef18b02d6",
    "EleutherAI/pythia-70m": "a39f36b100fe8a5377810d56c3f4789b9c53ac42",
    "EleutherAI/pythia-160m": "50f5173d932e8e61f858120bcb800b97af589f46",
    "EleutherAI/pythia-410m": "9879c9b5f8bea9051dcb0e68dff21493d67e9d4f",
    "EleutherAI/pythia-1b": "f73d7dcc545c8bd326d8559c8ef84ffe92fea6b2",
    "EleutherAI/pythia-2.8b": "2a259cdd96a4beb1cdf467512e3904197345f6a9",
    "HuggingFaceH4/ultrachat_200k": "8049631c405ae6576f93f445c6b8166f76f5505a",
    "HuggingFaceTB/smollm-corpus": "3ba9d605774198c5868892d7a8deda78031a781f",
}
GATED_DATA = ("ILSVRC/imagenet-1k",)
GATED = ("meta-llama/Llama-2-7b-chat-hf", *GATED_DATA)  # whose terms a person accepts on their page first
# Published with code of their own, which is not run: transformers' own classes read them once they are converted.
CONVERTED = ("OpenGVLab/InternVL2-8B", "OpenGVLab/InternVL2-2B")


def mirror() -> Path | None:
    """The folder that `$TAID_HUB` names. Raises jobs.Refused if it is none, or not laid out as the hub's cache."""
    named = os.environ.get("TAID_HUB")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise jobs.Refused(
            f"TAID_HUB={named} is no folder: name one laid out as the hub's cache, or unset it"
        )
    if not [*folder.glob("models--*"), *folder.glob("datasets--*")]:
        inner = " (its folder hub/ may be meant)" if (folder / "hub").is_dir() else ""
        raise jobs.Refused(
            f"TAID_HUB={named} holds no folder models--… or datasets--…, as the hub's cache does{inner}"
        )
    return folder


def where(name: str) -> dict[str, Any]:
    """The arguments of `from_pretrained` and `snapshot_download` that say which files of a name, and where from."""
    folder = mirror()
    found: dict[str, Any] = {"revision": REVISIONS.get(name, "main")}
    return found if folder is None else found | {"cache_dir": str(folder), "local_files_only": True}


def fetched(name: str, kind: str, load):
    """load(), with one sentence, jobs.Refused, for what cannot be had."""
    try:
        return load()
    except jobs.Refused:
        raise
    except Exception as error:  # of hub, transformers, datasets, pyarrow, fsspec: they share no class
        causes = [error, *_causes(error)]
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise jobs.Refused(f"the {kind} {name} cannot be had: {_advice(name, causes)} ({said})") from error


def page(name: str) -> str:
    """Of a model, or of a data set, on the hub."""
    return f"https://huggingface.co/{'datasets/' if name in GATED_DATA else ''}{name}"


def _causes(error: BaseException):
    while error := error.__cause__ or error.__context__:  # type: ignore[assignment]
        yield error


def _advice(name: str, causes: list[BaseException]) -> str:
    folder, revision = mirror(), REVISIONS.get(name, "main")
    if name in CONVERTED and folder is None:
        return (
            "the hub has it with code of its own, which is not run: convert it for transformers' InternVL and put it "
            "into a mirror, TAID_HUB (docs/paper_scale.md)"
        )
    if folder is not None:
        return f"in the mirror {folder} look for revision {revision} of it, with safetensors if it is a model"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"accept its licence on {page(name)}, then `hf auth login`"
    if os.environ.get("HF_HUB_OFFLINE") == "1" or any(isinstance(c, LocalEntryNotFoundError) for c in causes):
        return "set TAID_HUB to a mirror, or HF_HUB_OFFLINE=0 on a machine with the network"
    return "it needs the network, its own name and, of a model, weights as safetensors"


# --- Models and tokenizers ----------------------------------------------------------------------------------


def model(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """A model for language, with or without images, or a classifier of images, as its configuration says, on this
    machine's device: safetensors alone, no code of the hub. `options`: further ones of from_pretrained."""

    def load() -> PreTrainedModel:
        return load_whole(auto_class(config(name)), name, dtype, **options | where(name))

    found = fetched(name, "model", load)
    return found if options else on_device(found)


@lru_cache(maxsize=1)
def teacher(name: str) -> PreTrainedModel:
    """A model to learn from, in bf16, where `spread` puts it; the one before it is let go."""
    gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return model(name, torch.bfloat16, **spread(name, gpus)).eval().requires_grad_(False)


def spread(name: str, gpus: Sequence[int]) -> dict[str, Any]:
    """Where a teacher goes, as from_pretrained is told, on GPUs of so many bytes: of several the first is the student's,
    and the teacher's layers are spread over the others. Raises jobs.Refused for one known to be larger than these."""
    room = dict(enumerate(gpus)) if len(gpus) < 2 else dict([*enumerate(gpus)][1:])
    size = 2 * cost.published(name).parameters if name in cost.PUBLISHED else 0
    if gpus and size > sum(room.values()):
        raise jobs.Refused(
            f"{name} takes {size / cost.GIB:.0f} GiB in bf16, and its GPUs have {sum(room.values()) / cost.GIB:.0f}: show "
            "this job more of them (CUDA_VISIBLE_DEVICES=0,1,2); the first is the student's, the others the teacher's"
        )
    return {} if len(gpus) < 2 else {"device_map": "auto", "max_memory": room}


def config(name: str):
    """A model's configuration."""
    return fetched(
        name, "model", lambda: AutoConfig.from_pretrained(name, trust_remote_code=False, **where(name))
    )


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model; one without padding pads with its end, which masks never mistake for a real one."""
    found = fetched(
        name, "model", lambda: AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where(name))
    )
    if found.eos_token_id is None:
        raise jobs.Refused(
            f"the tokenizer of {name} has no end-of-sequence token: nothing would learn to end"
        )
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    return found


def student_for(name: str, shared: Tokenizer) -> PreTrainedModel:
    """A student in fp32 that reads the tokens of `shared`, its teacher's tokenizer.

    Phi-3's tokenizer is Llama's with further tokens, among them those that end a turn, which a student has to
    learn to write: its tables get a row for each, of the mean of all (Hewitt 2021). Raises jobs.Refused where
    the first entries of the two tokenizers differ.
    """
    student: Any = model(name)
    own = tokenizer(name)
    theirs = {i: token for token, i in shared.get_vocab().items()}
    different = [i for token, i in own.get_vocab().items() if theirs.get(i, token) != token]
    if different:
        raise jobs.Refused(
            f"{name} and its teacher call token {min(different)} by two names: they share no vocabulary"
        )
    if len(student.get_input_embeddings().weight) < tokens(shared):
        student.resize_token_embeddings(tokens(shared), pad_to_multiple_of=64, mean_resizing=False)
        _fill_with_mean(student, tokens(own))
    for part in (student.config, student.generation_config):
        part.eos_token_id, part.pad_token_id, part.bos_token_id = (
            shared.eos_token_id,
            shared.pad_token_id,
            None,
        )
    return student


@torch.no_grad()
def _fill_with_mean(student: Any, known: int) -> None:
    """The rows from `known` on: the mean of those before."""
    for table in (student.get_input_embeddings(), student.get_output_embeddings()):
        table.weight[known:] = table.weight[:known].mean(0)


# --- Data sets ----------------------------------------------------------------------------------------------


def rows(name: str, split: str, subset: str | None = None, streaming: bool = False):
    """A split of a data set, a `datasets.Dataset`, or its stream."""
    import datasets  # seconds, and not all scales need it

    def load():
        at = (
            {"path": str(dataset_folder(name))}
            if mirror()
            else {"path": name, "revision": REVISIONS.get(name)}
        )
        options = {} if streaming else {"cache_dir": str(cache_dir() / "datasets")}
        return datasets.load_dataset(**at, name=subset, split=split, streaming=streaming, **options)

    return fetched(name, "data set", load)


def dataset_folder(name: str) -> Path:
    """The folder of a data set's files: in the mirror, or fetched whole."""
    return Path(
        fetched(name, "data set", lambda: snapshot_download(name, repo_type="dataset", **where(name)))
    )


@contextmanager
def mirrored() -> Iterator[None]:
    """Data sets that others load by their names, lm-eval its tasks', come from the mirror, if there is one."""
    import datasets

    if mirror() is None:
        yield
        return
    original = datasets.load_dataset

    def load(path: str, *args, **kwargs):
        return original(str(dataset_folder(path)), *args, **kwargs)

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = original


# --- What it takes ------------------------------------------------------------------------------------------

PACKAGES = ("datasets", "lm_eval", "openai", "rouge_score")


def takes(names: Iterable[str], bills: Sequence[cost.Bill]) -> str:
    """What runs take, each distinct one once, all together, on disk, and what is missing here."""
    lines = [f"{count} × one run:\n{text}" for text, count in Counter(map(cost.described, bills)).items()]
    spent, hours = cost.summed(bills)
    nets = [cost.published(name) for name in names if name in cost.PUBLISHED]
    disk = sum(2 * net.parameters for net in nets) + sum(4 * each.student for each in bills)
    working = max((16 * each.student for each in bills), default=0)  # two checkpoints and the best
    lines.append(
        f"together: {spent:.2e} FLOPs, {hours:,.0f} hours on one {cost.H100.name}; on disk {disk / 1e9:,.0f} GB of "
        f"models, {working / 1e9:,.0f} GB of a run that goes on"
    )
    return "\n".join([*lines, *(f"missing: {what}" for what in missing(names))])


def missing(names: Iterable[str]) -> list[str]:
    """What this machine lacks for models and data sets of these names, a sentence each."""
    found = [f"the package {name}" for name in PACKAGES if find_spec(name) is None]
    if device() == "cpu":
        found.append("a GPU: on a CPU none of this ends")
    folder = mirror()
    for name in dict.fromkeys(names):
        caches = [] if folder is None else [*folder.glob(f"*--{name.replace('/', '--')}")]
        if folder is not None and not caches:
            found.append(f"{name} in the mirror {folder}")
        elif folder is None and name in CONVERTED:
            found.append(f"{name} converted for transformers' InternVL, in a mirror (TAID_HUB)")
        elif folder is None and name in GATED:
            found.append(f"maybe access to {name}: accept its licence on {page(name)}")
    if folder is None and os.environ.get("HF_HUB_OFFLINE") == "1":
        found.append("the network (HF_HUB_OFFLINE=1) or a mirror (TAID_HUB)")
    return found


# --- Training -----------------------------------------------------------------------------------------------


def training_options(here: Any, run: Any) -> dict[str, Any]:
    """Of `fit`: mixed precision, activations computed twice, logits that are never whole where a loss allows it,
    and a run that goes on after a kill. `here`: the study."""
    return {
        "bf16": True,
        "micro_batch": here.setting.micro_batch,
        "gradient_checkpointing": True,
        "fuse_head": run.objective().fusable,
        "checkpoints": here.work_folder(run),
    }
