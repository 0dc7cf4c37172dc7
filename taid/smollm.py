"""SmolLM2-135M-Instruct (Apache-2.0), a real pre-trained teacher, out of the Python package that carries it.

The package holds the weights as GGUF, quantised to four bits. They are read once, made fp32, and kept as
safetensors: the teacher of our studies is the quantised model, not the original.
"""

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from taid.runs import cached_model, save_whole
from taid.sources import cache_dir, fetch


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model in fp32, tokeniser with its chat template), from the cache or else the package.

    Raises taid.sources.SourceUnavailable if the package cannot be had.
    """
    folder = cache_dir() / "smollm2"
    if not (folder / "tokenizer").exists():
        save_whole(_from_package(AutoTokenizer), None, folder / "tokenizer")
    model = cached_model(folder / "model", lambda: (_plain(_from_package(AutoModelForCausalLM)), None))
    return model.eval(), AutoTokenizer.from_pretrained(folder / "tokenizer")


def _from_package(loader: type):
    folder = fetch("smollm2")
    [file] = folder.glob("*.gguf")
    return loader.from_pretrained(folder, gguf_file=file.name)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model without the marks of its quantisation: its weights are plain fp32, and can be saved."""
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    return model.float()
