"""Models, tokenizers and rows of text by a name on the hub or a path; what cannot be had is said in one sentence."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from taid.teacher import load_whole

FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_model(name: str, role: str) -> PreTrainedModel:
    """A causal language model in fp32, from safetensors alone and without remote code."""
    _check_path(name, role, "config.json", "save_pretrained of a model writes it")
    try:
        return load_whole(AutoModelForCausalLM, name, torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"the {role} {name!r} cannot be loaded as a causal language model: {_first(error)}"
        ) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with a model."""
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"there is no tokenizer with {name!r}: save the student's there, tokenizer.save_pretrained({name!r}) "
            f"({_first(error)})"
        ) from error


def load_rows(name: str, split: str | None, preferred: Sequence[str] = ("train",)):
    """A `datasets.Dataset`: a file of FILES, a folder of save_to_disk or of such files, or a name on the hub.

    `split`: which of several; None: the only one, or the first of `preferred` that is there. Raises ValueError for
    what cannot be read, and where that split is not there.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError("data sets are read by the package datasets: pip install datasets") from None
    path = Path(name)
    try:
        if path.is_file() and not path.stat().st_size:
            raise ValueError("it is empty")
        if path.is_file() and path.suffix in FILES:
            found = datasets.load_dataset(FILES[path.suffix], data_files=str(path))
        elif path.is_file():
            raise ValueError(f"give a file of {', '.join(FILES)}")
        elif any((path / file).exists() for file in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(path))
        elif path.is_dir() or not _is_path(name):
            found = datasets.load_dataset(name)
        else:
            raise ValueError("there is no such file or folder")
    except Exception as error:  # of datasets, pyarrow, fsspec or the hub: one sentence for all
        raise ValueError(f"the data set {name!r} cannot be read: {_first(error)}") from error
    if isinstance(found, datasets.Dataset):  # one split, saved alone; without a name as a file's
        found = {str(found.split or "train"): found}
    wanted = (split,) if split else tuple(found) if len(found) == 1 else tuple(preferred)
    chosen = next((each for each in wanted if each in found), None)
    if chosen is None:
        raise ValueError(
            f"the data set {name!r} has no split {' or '.join(map(repr, wanted))}, but {', '.join(found)}: choose by "
            "--split, which is for --dataset; for --eval-dataset save the one you want alone"
        )
    return found[chosen]


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in FILES


def _check_path(name: str, role: str, file: str, how: str) -> None:
    path = Path(name)
    if path.exists() and not (path / file).exists():
        raise ValueError(f"the {role} {name!r} has no {file}: {how}")
    if not path.exists() and _is_path(name):
        raise ValueError(f"there is no folder {name!r} for the {role}")


def _first(error: BaseException) -> str:
    """The first line of what an error says, or of what caused it."""
    said = str(error.__cause__ or error).strip() or type(error).__name__
    return said.splitlines()[0]
