"""A teacher as users give it: a model, its name, or the student's own base."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    TrainingArguments,
)

from taid.logits import check_model, inner, is_classifier, is_encoder_decoder
from taid.sampling import is_sharded
from taid.teacher.cache import OfflineTeacher
from taid.teacher.live import LiveTeacher, OwnBase, check_apart
from taid.teacher.shards import INDEX


def holds_logits(name: str | Path) -> bool:
    """Whether it is a folder of a teacher's logits, of `write_offline`."""
    return (Path(name) / INDEX).exists()


def load_teacher(name: str | Path, student, args: TrainingArguments) -> PreTrainedModel | OfflineTeacher:
    """The model of a folder or of a hub, of the student's kind, from safetensors, in the type that the student
    computes in; of a folder of logits, the teacher that reads them.

    No code of a hub runs. Raises ValueError, saying why, if there is no such model.
    """
    if holds_logits(name):
        return OfflineTeacher(name)
    auto: Any = AutoModelForSeq2SeqLM if is_encoder_decoder(student) else auto_class(inner(student).config)
    auto = AutoModelForImageClassification if is_classifier(student) else auto
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else inner(student).dtype
    try:
        return load_whole(auto, name, dtype)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"no teacher could be loaded from {str(name)!r}: pass the name of a model of a hub, a folder of "
            f"save_pretrained with safetensors, or the model itself. {error}"
        ) from error


def load_whole(auto: Any, name: str | Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """The model by `auto`'s from_pretrained with `options`, from safetensors alone and without code of a hub.

    Raises ValueError for a checkpoint without all of its weights, whole and of the shapes that its config says:
    transformers draws what is missing at random. And whatever from_pretrained raises.
    """
    options |= {"use_safetensors": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}
    try:
        model, told = auto.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(f"its weights are damaged: {error}") from None
    for weight, found, expected in told["mismatched_keys"]:
        raise ValueError(f"its {weight} is {[*found]}, where its config has {[*expected]}")
    if missing := sorted(told["missing_keys"]):
        others = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise ValueError(f"its weights lack {missing[0]}{others}, which {type(model).__name__} has")
    return model


def auto_class(config: PretrainedConfig) -> Any:
    """What loads a causal model of a configuration, with its vision tower where it has one; or, by the name that was
    saved with it, a classifier of images."""
    if any("ForImageClassification" in name for name in config.architectures or ()):
        return AutoModelForImageClassification
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def live_teacher(model: torch.nn.Module, student, device: torch.device) -> LiveTeacher:
    """The model as a teacher on `device`, or, if it is the model inside a student of PEFT, with adapters off.

    A model that is quantised, in shards, or that accelerate has spread over devices stays where it is. Raises ValueError
    for a module that cannot teach the student: no language model, one whose labels have other positions, one
    that shares weights with the student and would learn with it, one that is another on another rank.
    """
    check_teacher(model, student)
    inside = getattr(inner(student), "get_base_model", None)
    if inside is not None and inner(model) is inside():
        return OwnBase(inner(student))
    check_apart(model, student)
    placed = hasattr(model, "hf_device_map") or getattr(model, "is_quantized", False) or is_sharded(model)
    model = model if placed else model.to(device)
    if not is_sharded(model):
        _check_ranks(model)
    return LiveTeacher(model)


def _check_ranks(model: torch.nn.Module) -> None:
    """Raises ValueError on all ranks where their teachers differ, by the sums of their weights."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    sums = torch.stack([weight.detach().sum(dtype=torch.float64).cpu() for weight in model.parameters()])
    of_ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, sums.tolist())
    if differ := [rank for rank, found in enumerate(of_ranks) if found != of_ranks[0]]:
        raise ValueError(
            f"the teacher of rank {differ[0]} has other weights than that of rank 0: load the same on every rank; under "
            "FSDP, fsdp_cpu_ram_efficient_loading leaves all ranks but the first without: set it to false"
        )


def check_teacher(teacher: torch.nn.Module, student) -> None:
    """The ValueErrors of `live_teacher` but for shared weights."""
    if not hasattr(inner(teacher), "config"):
        raise ValueError(
            f"the teacher is a {type(teacher).__name__} without a config: pass a language model of transformers, "
            "its name or folder, or a function from a batch to logits [n, V] at its n labels"
        )
    check_model(teacher, "teacher")
    if is_classifier(teacher) != is_classifier(student):
        raise ValueError("one of student and teacher classifies images, and the other does not")
    if is_classifier(teacher):
        _check_classes(inner(teacher).config, inner(student).config)
    if is_encoder_decoder(teacher) != is_encoder_decoder(student):
        raise ValueError(
            "one of student and teacher is an encoder–decoder: their labels have other positions"
        )


def _check_classes(teacher, student) -> None:
    """Raises ValueError for configs of classifiers whose numbers, or given names, of classes differ."""
    if teacher.num_labels != student.num_labels:
        raise ValueError(
            f"the teacher tells {teacher.num_labels} classes apart, and the student {student.num_labels}: give the "
            f"student a head of as many, num_labels={teacher.num_labels}"
        )
    for i in range(teacher.num_labels):
        names = {str(config.id2label[i]) for config in (teacher, student)} - {f"LABEL_{i}"}
        if len(names) > 1:
            raise ValueError(
                f"class {i} is {teacher.id2label[i]!r} to the teacher and {student.id2label[i]!r} to the student: give "
                "the student the teacher's classes in the teacher's order, and id2label"
            )


def check_callable(teacher, eval_kl: bool | None = None) -> None:
    """Raises TypeError for a teacher that is neither a model nor a function; None is no teacher.

    Raises ValueError where `eval_kl` is asked for, and the teacher does not say of which batches it gives logits.
    """
    tool = hasattr(teacher, "save_pretrained")  # a tokenizer, a processor, a pipeline: called with text
    if teacher is not None and (isinstance(teacher, type) or tool or not callable(teacher)):
        raise TypeError(
            f"the teacher is {f'a {type(teacher).__name__}' if tool else f'{teacher!r:.80}'}: pass a language model, its "
            "name or folder, or a function from a batch to logits [n, V] at its n labels"
        )
    if eval_kl and not hasattr(teacher, "knows"):
        given = "there is no teacher" if teacher is None else "a function does not say what it knows"
        raise ValueError(
            f"eval_kl=True, but {given}: pass a model as the teacher, set teacher.knows = lambda batch: True of a "
            "function that knows every example of validation, or leave eval_kl out"
        )
