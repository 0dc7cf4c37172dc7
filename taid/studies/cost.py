"""What runs with models of the hub take, before they cost money: memory by part, FLOPs, hours, disk.

Of a student of P parameters and a teacher of Q, L layers of width h and i, V entries, and micro-batches of T tokens of
which n are learned [bytes]:

    weights      4 P, and under autocast 2 P of their copies        gradients  4 P        optimizer  8 P (AdamW)
    teacher      2 Q
    activations  4 L T h, what checkpointing keeps, and one layer's own, b T (11 h + 6 i)
    logits       3 b n V: the student's, their gradient, the teacher's
    fused head   two chunks of max(64, n / 16) rows, 8 V rows, and the head's gradient in fp32, 4 V h

b is 2 under autocast and else 4. A layer's own and the logits are never there at once: the larger one counts.

    FLOPs of a token  2 (P − tables) + 2 s h L, s the length of an example, and 2 V h where it is learned: once for the
                      teacher; for the student three times, four with checkpointing
    hours             FLOPs / (peak · utilisation), and for every token sampled 4 P / bandwidth a micro-batch

A model of images and text is two of these, the language and the tower, whose tokens are patches; added (`joined`).
Classifiers of images: `taid.studies.cost_images`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, InternVLConfig, InternVLModel

PATCHES = 32 * 32 + 1  # that InternVL's tower sees of an image, with one for the whole
CHUNK = 64  # rows of the fused head's, see `taid.fused.head`


class Gpu(NamedTuple):
    """A GPU as its maker describes it; of its peak training gets the share `utilisation`, an assumption."""

    name: str
    peak: float  # FLOPs a second, dense, bf16
    bandwidth: float  # bytes a second
    memory: float  # bytes
    utilisation: float = 0.4


H100 = Gpu("H100 SXM 80 GB", 989e12, 3.35e12, 80e9)


class Published(NamedTuple):
    """The shape of a published model."""

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocab_size: int
    tied: bool = False


PUBLISHED = {  # as their configurations on the hub have it
    "microsoft/Phi-3-mini-4k-instruct": Published("phi3", 3072, 8192, 32, 32, 32, 32_064),
    "microsoft/Phi-3-medium-4k-instruct": Published("phi3", 5120, 17_920, 40, 40, 10, 32_064),
    "meta-llama/Llama-2-7b-chat-hf": Published("llama", 4096, 11_008, 32, 32, 32, 32_000),
    "TinyLlama/TinyLlama_v1.1": Published("llama", 2048, 5632, 22, 32, 4, 32_000),
    "stabilityai/stablelm-zephyr-3b": Published("stablelm", 2560, 6912, 32, 32, 32, 50_304),
    "EleutherAI/pythia-31m": Published("gpt_neox", 256, 1024, 6, 8, 8, 50_304),
    "EleutherAI/pythia-70m": Published("gpt_neox", 512, 2048, 6, 8, 8, 50_304),
    "EleutherAI/pythia-160m": Published("gpt_neox", 768, 3072, 12, 12, 12, 50_304),
    "EleutherAI/pythia-410m": Published("gpt_neox", 1024, 4096, 24, 16, 16, 50_304),
    "EleutherAI/pythia-410m-deduped": Published("gpt_neox", 1024, 4096, 24, 16, 16, 50_304),
    "EleutherAI/pythia-1b": Published("gpt_neox", 2048, 8192, 16, 8, 8, 50_304),
    "EleutherAI/pythia-2.8b": Published("gpt_neox", 2560, 10_240, 32, 32, 32, 50_304),
    "EleutherAI/pythia-6.9b": Published("gpt_neox", 4096, 16_384, 32, 32, 32, 50_432),
    "OpenGVLab/InternVL2-8B": Published("llama", 4096, 14_336, 32, 32, 8, 92_553),  # without the tower
    "OpenGVLab/InternVL2-2B": Published("llama", 2048, 8192, 24, 16, 8, 92_553),
    "Qwen/Qwen2-72B-Instruct": Published("qwen2", 8192, 29_568, 80, 64, 8, 152_064),
    "Qwen/Qwen2-1.5B-Instruct": Published("qwen2", 1536, 8960, 28, 12, 2, 151_936, tied=True),
}


class Net(NamedTuple):
    """What of a model decides what it takes."""

    parameters: int
    tables: int  # parameters of the embedding and of the head
    hidden: int
    intermediate: int
    layers: int
    vocab_size: int


@cache
def published(name: str) -> Net:
    """A published model, counted on the meta device: without its weights."""
    return of_shape(PUBLISHED[name])


def of_shape(shape: Published) -> Net:
    options: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "tie_word_embeddings": shape.tied,
        "pad_token_id": None,
    }
    if shape.model_type != "gpt_neox":
        options["num_key_value_heads"] = shape.key_value_heads
    with torch.device("meta"):
        return of_model(AutoModelForCausalLM.from_config(CONFIG_MAPPING[shape.model_type](**options)))


@cache
def tower(name: str) -> Net:
    """The vision tower of an InternVL of the hub, with the projector to its language."""
    language = {"model_type": "llama", "hidden_size": PUBLISHED[name].hidden, "num_hidden_layers": 0}
    with torch.device("meta"):
        model: Any = InternVLModel(InternVLConfig(text_config=language))
    parts = model.vision_tower, model.multi_modal_projector
    shape = model.config.vision_config
    size = sum(p.numel() for part in parts for p in part.parameters())
    return Net(size, 0, shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers, 0)


def of_model(model) -> Net:
    """Of any language model of transformers whose width and depth have their usual names."""
    tables = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    config = model.config
    return Net(
        sum(p.numel() for p in model.parameters()),
        sum(table.numel() for table in tables),
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.vocab_size,
    )


@dataclass(frozen=True)
class Load:
    """The training of one student."""

    student: Net
    teacher: Net | None  # none: it has no teacher
    steps: int
    batch_size: int  # examples of a step
    micro_batch: int  # examples that are read at once
    length: int  # tokens of an example; of the longest one for memory, see `longest`
    learned: int  # of these
    longest: tuple[int, int]  # (tokens, learned) of the longest example
    fused: bool = False
    autocast: bool = True
    sampled: float = 0.0  # micro-batches whose responses the student samples
    new_tokens: int = 0  # of such a response
    causal: bool = True  # attention sees what comes before; a tower's sees all, at twice the FLOPs


def memory(load: Load) -> dict[str, float]:
    """Bytes by part, and their "total": of layer and logits the larger one."""
    student, teacher = load.student, load.teacher
    tokens, learned = (load.micro_batch * count for count in load.longest)
    size = 2 if load.autocast else 4
    kept = 4 * student.layers * tokens * student.hidden
    layer = size * tokens * (11 * student.hidden + 6 * student.intermediate)
    whole = 3 * size * learned * student.vocab_size
    rows = max(CHUNK, learned // 16)
    fused = 8 * student.vocab_size * rows + 4 * student.vocab_size * student.hidden
    parts: dict[str, float] = {
        "weights": (6 if load.autocast else 4) * student.parameters,
        "gradients": 4 * student.parameters,
        "optimizer": 8 * student.parameters,
        "teacher": 2 * teacher.parameters if teacher else 0,
        "activations": kept + layer,
        "logits": whole,
        "logits, head fused": fused,
    }
    fixed = sum(parts[name] for name in ("weights", "gradients", "optimizer", "teacher"))
    return parts | {"total": fixed + kept + max(layer, fused if load.fused else whole)}


def flops(load: Load) -> float:
    """Of the whole run: student with gradients and checkpointing, teacher."""
    examples = load.steps * load.batch_size
    teacher = pass_flops(load.teacher, load) if load.teacher else 0.0
    head = 2 * load.learned * load.student.vocab_size * load.student.hidden
    return examples * (4 * pass_flops(load.student, load) - head + teacher)  # the head is not computed twice


def pass_flops(net: Net, load: Load) -> float:
    """Of one example, forward."""
    body = 2 * (net.parameters - net.tables) * load.length
    attention = (2 if load.causal else 4) * load.length**2 * net.hidden * net.layers
    return body + attention + 2 * load.learned * net.vocab_size * net.hidden


def hours(load: Load, gpu: Gpu = H100) -> float:
    """On one GPU."""
    sampling = load.sampled * load.new_tokens * 4 * load.student.parameters / gpu.bandwidth
    return (flops(load) / (gpu.peak * gpu.utilisation) + sampling) / 3600


def tokens(load: Load) -> int:
    """Read in training."""
    return load.steps * load.batch_size * load.length


PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "teacher",
    "activations",
    "logits",
    "logits, head fused",
    "total",
)
GIB = 2**30


class Bill(NamedTuple):
    """What one run takes."""

    student: int  # parameters
    teacher: int  # 0: none
    unit: str  # of what it reads
    read: int
    memory: Mapping[str, float]  # bytes by part; without "logits, head fused" where there is no such head
    flops: float
    hours: float  # on one GPU


def bill(load: Load, gpu: Gpu = H100) -> Bill:
    teacher = load.teacher.parameters if load.teacher else 0
    spent = flops(load), hours(load, gpu)
    return Bill(load.student.parameters, teacher, "tokens", tokens(load), memory(load), *spent)


def joined(first: Bill, second: Bill) -> Bill:
    """Both at once, as the language and the tower of one run; what is read is the first one's."""
    memory = {part: first.memory[part] + second.memory[part] for part in PARTS}
    flops, hours = first.flops + second.flops, first.hours + second.hours
    student, teacher = first.student + second.student, first.teacher + second.teacher
    return Bill(student, teacher, first.unit, first.read, memory, flops, hours)


def described(found: Bill, gpu: Gpu = H100) -> str:
    """One run, a line a part."""
    largest = " (the larger of one layer's own and the logits counts)"
    lines = [
        f"    {part:20} {size / GIB:8.1f} GiB{largest if part == 'total' else ''}"
        for part, size in found.memory.items()
    ]
    size = f"student {found.student / 1e9:.2f}B" + (
        f", teacher {found.teacher / 1e9:.2f}B" if found.teacher else ""
    )
    took = f"{found.read / 1e9:.2f}B {found.unit}, {found.flops:.2e} FLOPs, {found.hours:,.0f} hours on one {gpu.name}"
    return "\n".join([f"  {size}: {took}", *lines, *_gpus(found, gpu)])


def _gpus(found: Bill, gpu: Gpu) -> list[str]:
    """Where one GPU does not hold it: how many a job needs, the student's and the teacher's (`hub.spread`)."""
    if found.memory["total"] <= gpu.memory:
        return []
    own = found.memory["total"] - found.memory["teacher"]
    theirs = -int(-found.memory["teacher"] // gpu.memory)
    if own > gpu.memory:
        return [f"    the student alone takes more than one {gpu.name}: a smaller micro_batch"]
    return [
        f"    more than one {gpu.name} holds: show a job {1 + theirs}, of which the teacher takes {theirs}"
    ]


def summed(bills: Iterable[Bill]) -> tuple[float, float]:
    """(FLOPs, hours) of several runs."""
    listed = list(bills)
    return sum(each.flops for each in listed), sum(each.hours for each in listed)
