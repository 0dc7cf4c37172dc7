"""The zoo: the paper's models at two scales, students cut out of a teacher, and a real pre-trained teacher.

`MODELS` names the paper's checkpoints and keeps their architectures (transformers' own classes) and the size ratios
within each of the `PAIRS` at about 1/5000 of the parameters. At our scale embeddings are tied, since
otherwise they would be all there is; `scale_model` says what else differs.
"""

import copy
import re
from typing import Any, NamedTuple

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from taid.files import cache_dir
from taid.studies.sources import fetch
from taid.studies.study import named
from taid.studies.training import cached_model, save_whole


class Shape(NamedTuple):
    """What decides a scale model's size."""

    model_type: str  # of transformers
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int


class Model(NamedTuple):
    """A model of the paper, at its scale and at ours."""

    hub: str
    shape: Shape
    padding: int = 0  # entries of the vocabulary beyond the tokenizer's


class Pair(NamedTuple):
    """A pair of the paper's Table 1, and what the paper sets for each."""

    teacher: str
    student: str
    t_start: float  # paper, section 6.1
    distillm_loss: str  # official code


MODELS = {
    "phi-3-mini": Model(  # 3.8B; Phi-3 pads its vocabulary from 32,000 to 32,064
        "microsoft/Phi-3-mini-4k-instruct", Shape("phi3", 112, 248, 4, 4, 4), padding=64
    ),
    "llama-2": Model("meta-llama/Llama-2-7b-chat-hf", Shape("llama", 144, 300, 5, 4, 4)),  # 6.7B
    "llama-2-13b": Model("meta-llama/Llama-2-13b-chat-hf", Shape("llama", 224, 480, 6, 4, 4)),  # 13.0B
    "stablelm-zephyr": Model("stabilityai/stablelm-zephyr-3b", Shape("stablelm", 96, 240, 4, 4, 4)),  # 2.8B
    "tinyllama": Model("TinyLlama/TinyLlama_v1.1", Shape("llama", 64, 176, 2, 4, 2)),  # 1.1B
    "pythia": Model("EleutherAI/pythia-410m-deduped", Shape("gpt_neox", 32, 128, 2, 4, 4)),  # 0.4B
}
JUDGE = Shape("qwen2", 176, 448, 5, 4, 2)  # larger than Table 1's models, of a family that no pair uses
PAIRS = {  # by the teacher; ratios of parameters in the paper: 3.5, 6.1, 6.8
    pair.teacher: pair
    for pair in (
        Pair("phi-3-mini", "tinyllama", 0.4, "skew_kl"),
        Pair("llama-2", "tinyllama", 0.2, "skew_rkl"),
        Pair("stablelm-zephyr", "pythia", 0.2, "skew_kl"),
    )
}


def scale_model(name: str, vocab_size: int, tokenizer, seed: int, max_length: int = 256) -> PreTrainedModel:
    """A freshly initialised scale model, deterministic by `seed`; its vocabulary is padded where the original's is.

    Raises ValueError for an unknown name.
    """
    model = named(MODELS, name, "scale model")
    return fresh_model(model.shape, vocab_size + model.padding, tokenizer, seed, max_length)


def fresh_model(shape: Shape, vocab_size: int, tokenizer, seed: int, max_length: int) -> PreTrainedModel:
    """A freshly initialised model, deterministic by `seed`, of transformers' own class, embeddings tied."""
    options = {
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if shape.model_type != "gpt_neox":
        options["num_key_value_heads"] = shape.key_value_heads
    config = CONFIG_MAPPING[shape.model_type](**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def parameters(model: torch.nn.Module) -> int:
    """The number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


# --- Students cut out of a teacher --------------------------------------------------------------------------

LAYER = re.compile(r"\blayers\.(\d+)\.")  # in the name of a weight


def keep_layers(total: int, kept: int) -> list[int]:
    """The indices of `kept` of `total` layers, evenly spaced, first and last among them.

    Layer i of the student is layer i · (total − 1) / (kept − 1) of the teacher, rounded: keep_layers(30, 6)
    is [0, 6, 12, 17, 23, 29]. Raises ValueError unless 2 ≤ kept ≤ total.
    """
    if not 2 <= kept <= total:
        raise ValueError(f"cannot keep {kept} of {total} layers with first and last: keep 2 to {total}")
    return [round(i * (total - 1) / (kept - 1)) for i in range(kept)]


def prune(model: PreTrainedModel, kept: int) -> PreTrainedModel:
    """A new model of the same class with `keep_layers(total, kept)` of the layers, weights as they are.

    Embeddings, final norm and head are copies of the model's, tied where they were. Raises ValueError for
    weights not named "…layers.0.…", as those of Llama, GPT-NeoX, Qwen2, Phi-3 and most others are.
    """
    config, weights = copy.deepcopy(model.config), model.state_dict()
    if not any(LAYER.search(name) for name in weights):
        name = type(model).__name__
        raise ValueError(f"{name} names no weight 'layers.0.…': prune knows such models alone")
    chosen = keep_layers(config.num_hidden_layers, kept)
    config.num_hidden_layers = kept
    if vars(config).get("layer_types"):  # sliding or full attention, layer by layer
        config.layer_types = [config.layer_types[i] for i in chosen]
    student = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    student.load_state_dict({name: weights[_original(name, chosen)] for name in student.state_dict()})
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device)


def _original(name: str, chosen: list[int]) -> str:
    """The name in the whole model of a weight of the pruned one."""
    return LAYER.sub(lambda match: f"layers.{chosen[int(match[1])]}.", name, count=1)


# --- A real pre-trained teacher -----------------------------------------------------------------------------


def smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct (Apache-2.0), (model in fp32, tokeniser with its chat template), out of the cache or
    the Python package that carries it.

    The package holds the weights as GGUF, quantised to four bits. They are read once, made fp32, and kept as
    safetensors: the teacher of our studies is the quantised model, not the original.

    Raises taid.studies.sources.SourceUnavailable if the package cannot be had.
    """
    folder = cache_dir() / "smollm2"
    if not (folder / "tokenizer").exists():
        save_whole(_from_package(AutoTokenizer), None, folder / "tokenizer")
    model = cached_model(folder / "model", lambda: (_plain(_from_package(AutoModelForCausalLM)), None))
    return model.eval(), AutoTokenizer.from_pretrained(folder / "tokenizer")


def _from_package(loader: Any):
    folder = fetch("smollm2")
    [file] = folder.glob("*.gguf")
    return loader.from_pretrained(folder, gguf_file=file.name)


def _plain(model: Any) -> PreTrainedModel:
    """The model without the marks of its quantisation: its weights are plain fp32, and can be saved."""
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    return model.float()
