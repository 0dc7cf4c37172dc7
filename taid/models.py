"""The zoo: the paper's models at two scales.

`SCALE_MODELS` keeps the paper's architectures (transformers' own classes) and the size ratios within each pair at
about 1/5000 of the parameters; `HUB_MODELS` names the paper's checkpoints. At our scale embeddings are tied, since
otherwise they would be all there is; `scale_model` says what else differs.
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CONFIG_MAPPING, PreTrainedModel

# The paper, Table 1: teacher -> student. Ratios of parameters: 3.5, 6.1, 6.8.
PAIRS = {
    "phi-3-mini": "tinyllama",
    "llama-2": "tinyllama",
    "stablelm-zephyr": "pythia",
}
HUB_MODELS = {
    "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",  # 3.8B
    "llama-2": "meta-llama/Llama-2-7b-chat-hf",  # 6.7B
    "stablelm-zephyr": "stabilityai/stablelm-zephyr-3b",  # 2.8B
    "tinyllama": "TinyLlama/TinyLlama_v1.1",  # 1.1B
    "pythia": "EleutherAI/pythia-410m-deduped",  # 0.4B
}

# name -> (model type, hidden size, intermediate size, layers, heads, key-value heads)
SCALE_MODELS = {
    "phi-3-mini": ("phi3", 112, 248, 4, 4, 4),
    "llama-2": ("llama", 144, 300, 5, 4, 4),
    "stablelm-zephyr": ("stablelm", 96, 240, 4, 4, 4),
    "tinyllama": ("llama", 64, 176, 2, 4, 2),
    "pythia": ("gpt_neox", 32, 128, 2, 4, 4),
    "judge": ("qwen2", 176, 448, 5, 4, 2),  # the zoo's largest, of a family that no pair uses
}
PADDED_ENTRIES = {"phi-3-mini": 64}  # Phi-3 pads its vocabulary from 32,000 to 32,064


def scale_model(name: str, vocab_size: int, tokenizer, seed: int, max_length: int = 256) -> PreTrainedModel:
    """A freshly initialised scale model, deterministic by `seed`; its vocabulary is padded where the original's is.

    Raises ValueError for an unknown name.
    """
    if name not in SCALE_MODELS:
        raise ValueError(f"unknown scale model {name!r}; known: {', '.join(SCALE_MODELS)}")
    model_type, hidden, intermediate, layers, heads, kv_heads = SCALE_MODELS[name]
    options = dict(
        vocab_size=vocab_size + PADDED_ENTRIES.get(name, 0), hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=max_length,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if model_type != "gpt_neox":
        options["num_key_value_heads"] = kv_heads
    config = CONFIG_MAPPING[model_type](**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model


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
