"""Students cut out of a teacher: a causal language model with some of its layers taken away."""

import copy
import re

from transformers import AutoModelForCausalLM, PreTrainedModel


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


LAYER = re.compile(r"\blayers\.(\d+)\.")


def _original(name: str, chosen: list[int]) -> str:
    """The name in the whole model of a weight of the pruned one."""
    return LAYER.sub(lambda match: f"layers.{chosen[int(match[1])]}.", name, count=1)
