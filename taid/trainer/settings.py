"""What a run may not change as it goes on from a checkpoint, by name, in plain numbers and words: for JSON, and to be
compared one by one."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import has_length

from taid.logits import base_model
from taid.results import digest
from taid.sampling import is_sharded

OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
ADAPTERS = ("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern")
ENDS = 4  # rows at either end of the data that are read
FIRST = 4  # entries of each weight that are read


def data_seen(args: TrainingArguments, data, max_length: int | None) -> dict[str, Any]:
    """What decides which examples a step sees, of `max_length` tokens where rows of text are cut here. Memory may decide
    the size of batches, and one reader the rows."""
    found: dict[str, Any] = {
        "data seed": args.seed if args.data_seed is None else args.data_seed,
        "train_sampling_strategy": args.train_sampling_strategy,
        "dataloader_drop_last": args.dataloader_drop_last,
    }
    if max_length is not None:
        found["max_length"] = max_length
    if not args.auto_find_batch_size:
        found["rows per step"] = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
    if has_length(data):
        found["rows of data"] = len(data)
    if (rows := _rows_at_the_ends(data)) is not None:
        found["first and last rows"] = digest(rows, _plain)
    return found


def optimizer_settings(args: TrainingArguments) -> dict[str, Any]:
    """What a checkpoint's optimizer and schedule hold, in the place of the arguments."""
    return {name: getattr(args, name) for name in OPTIMIZER}


def models_beside(student, teacher) -> dict[str, Any]:
    """What no checkpoint holds of the models that a run needs: the teacher, where it is one in memory, the base of
    adapters, and what the adapters are."""
    found: dict[str, Any] = {"teacher's weights": _weights(getattr(teacher, "model", None))}
    adapters = getattr(student, "peft_config", None)
    if adapters is not None and hasattr(student, "get_base_model"):
        found["weights under its adapters"] = _weights(base_model(student))
        found["adapters"] = {
            name: {field: _plain(getattr(adapter, field, None)) for field in ADAPTERS}
            for name, adapter in adapters.items()
        }
    return {name: value for name, value in found.items() if value is not None}


def _weights(model) -> str | None:
    """A digest of the first entries of all weights that are not trained; None where ranks hold parts of them."""
    if not isinstance(model, torch.nn.Module) or is_sharded(model):
        return None
    plain = [p for p in model.parameters() if type(p) is torch.nn.Parameter and not p.is_meta]
    still = [parameter for parameter in plain if not parameter.requires_grad]
    return digest([[*parameter.shape, *parameter.flatten()[:FIRST].tolist()] for parameter in still])


def _rows_at_the_ends(data) -> list | None:
    """Of a list, or of a data set of the library datasets without its transform; to read others may draw."""
    data = data.with_format(None) if hasattr(data, "with_format") else data
    of_datasets = hasattr(data, "column_names") and has_length(data)
    if not isinstance(data, Sequence) and not of_datasets:
        return None
    return [data[i] for i in sorted({*range(len(data))[:ENDS], *range(len(data))[-ENDS:]})]


def _plain(value: Any) -> Any:
    """What JSON can hold: a set in its order, a tensor's numbers, of anything else its kind."""
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, str | int | float | dict | list | None):
        return value
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__
