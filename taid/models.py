"""The zoo: the paper's models at two scales.

`SCALE_MODELS` keeps the paper's architectures (transformers' own classes) and the size ratios within each pair at
about 1/5000 of the parameters; `HUB_MODELS` names the paper's checkpoints. At our scale embeddings are tied, since
otherwise they would be all there is; `scale_model` says what else differs.
"""

from typing import NamedTuple

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

# The paper, Table 1: teacher -> student. Ratios of parameters: 3.5, 6.1, 6.8.
PAIRS = {"phi-3-mini": "tinyllama", "llama-2": "tinyllama", "stablelm-zephyr": "pythia"}
HUB_MODELS = {
    "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",  # 3.8B
    "llama-2": "meta-llama/Llama-2-7b-chat-hf",  # 6.7B
    "stablelm-zephyr": "stabilityai/stablelm-zephyr-3b",  # 2.8B
    "tinyllama": "TinyLlama/TinyLlama_v1.1",  # 1.1B
    "pythia": "EleutherAI/pythia-410m-deduped",  # 0.4B
}


class Shape(NamedTuple):
    """What decides a scale model's size."""

    model_type: str  # of transformers
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int


SCALE_MODELS = {
    "phi-3-mini": Shape("phi3", 112, 248, 4, 4, 4),
    "llama-2": Shape("llama", 144, 300, 5, 4, 4),
    "stablelm-zephyr": Shape("stablelm", 96, 240, 4, 4, 4),
    "tinyllama": Shape("llama", 64, 176, 2, 4, 2),
    "pythia": Shape("gpt_neox", 32, 128, 2, 4, 4),
    "judge": Shape("qwen2", 176, 448, 5, 4, 2),  # the zoo's largest, of a family that no pair uses
}
PADDED_ENTRIES = {"phi-3-mini": 64}  # Phi-3 pads its vocabulary from 32,000 to 32,064


def scale_model(name: str, vocab_size: int, tokenizer, seed: int, max_length: int = 256) -> PreTrainedModel:
    """A freshly initialised scale model, deterministic by `seed`; its vocabulary is padded where the original's is.

    Raises ValueError for an unknown name.
    """
    if name not in SCALE_MODELS:
        raise ValueError(f"unknown scale model {name!r}; known: {', '.join(SCALE_MODELS)}")
    return fresh_model(
        SCALE_MODELS[name], vocab_size + PADDED_ENTRIES.get(name, 0), tokenizer, seed, max_length
    )


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


def hub_model(name: str) -> tuple[PreTrainedModel, object]:
    """(model, tokenizer) of the paper from the hub, as safetensors and without remote code."""
    if name not in HUB_MODELS:
        raise ValueError(f"unknown hub model {name!r}; known: {', '.join(HUB_MODELS)}")
    where = HUB_MODELS[name]
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16, use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(where)


def parameters(model: torch.nn.Module) -> int:
    """The number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())
