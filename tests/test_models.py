"""The zoo keeps the paper's architectures and ratios of size."""

import json

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer

from taid.studies.zoo import HUB_MODELS, PAIRS, SCALE_MODELS, hub_model, parameters, scale_model

VOCAB_SIZE = 2048  # of the scale "cpu"
CLASSES = {
    "phi-3-mini": "Phi3ForCausalLM",
    "llama-2": "LlamaForCausalLM",
    "tinyllama": "LlamaForCausalLM",
    "stablelm-zephyr": "StableLmForCausalLM",
    "pythia": "GPTNeoXForCausalLM",
    "judge": "Qwen2ForCausalLM",
}
BILLIONS = {
    "phi-3-mini": 3.8,
    "llama-2": 6.7,
    "stablelm-zephyr": 2.8,
    "pythia": 0.41,
    "tinyllama": 1.1,
}  # paper, Table 1


@pytest.fixture(scope="module")
def zoo(tokenizer):
    return {name: scale_model(name, VOCAB_SIZE, tokenizer, seed=0) for name in SCALE_MODELS}


def test_every_model_has_the_papers_class(zoo):
    assert {name: type(model).__name__ for name, model in zoo.items()} == CLASSES
    assert set(PAIRS) | set(PAIRS.values()) == set(HUB_MODELS) == set(SCALE_MODELS) - {"judge"}


@pytest.mark.parametrize(("teacher", "student"), PAIRS.items())
def test_size_ratios_are_the_papers(zoo, teacher, student):
    ours = parameters(zoo[teacher]) / parameters(zoo[student])
    assert ours == pytest.approx(BILLIONS[teacher] / BILLIONS[student], rel=0.05)


def test_the_judge_is_larger_than_every_teacher_and_of_no_pairs_family(zoo):
    assert parameters(zoo["judge"]) > max(parameters(zoo[teacher]) for teacher in PAIRS)
    assert not any(isinstance(zoo[name], type(zoo["judge"])) for name in HUB_MODELS)


def test_parameters_counts_tied_ones_once(zoo):
    model = zoo["tinyllama"]
    stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    assert parameters(model) == sum(stored.values())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_only_phi_pads_its_vocabulary(zoo):
    """As 32,064 entries for 32,000 tokens: the embedding and the logits have both."""
    sizes = {name: model.config.vocab_size for name, model in zoo.items()}
    assert sizes == dict.fromkeys(SCALE_MODELS, VOCAB_SIZE) | {"phi-3-mini": VOCAB_SIZE + 64}
    assert zoo["phi-3-mini"](torch.tensor([[5, 6]])).logits.shape == (1, 2, VOCAB_SIZE + 64)


@pytest.mark.parametrize("name", SCALE_MODELS)
def test_weights_depend_on_the_seed_alone(zoo, name, tokenizer):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    again, other = (scale_model(name, VOCAB_SIZE, tokenizer, seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for (key, a), b, c in zip(
        zoo[name].state_dict().items(), again.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
        assert not torch.equal(a, c) or a.unique().numel() <= 1, (
            f"{key} is drawn, but not by the seed"
        )  # norms, biases


def test_special_tokens_are_the_tokenizers(zoo, tokenizer):
    for model in zoo.values():
        assert (model.config.pad_token_id, model.config.eos_token_id) == (
            tokenizer.pad_token_id,
            tokenizer.eos_token_id,
        )
        assert model.config.bos_token_id is None


@pytest.mark.parametrize(
    ("function", "kind"), [(lambda n: scale_model(n, 64, None, 0), "scale"), (hub_model, "hub")]
)
def test_an_unknown_name_names_the_known_ones(function, kind):
    known = SCALE_MODELS if kind == "scale" else HUB_MODELS
    with pytest.raises(ValueError, match=f"unknown {kind} model 'gpt-4'; known: {', '.join(known)}"):
        function("gpt-4")


# --- hub models, from a folder in the hub's place


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tiny_model("phi3").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setitem(HUB_MODELS, "phi-3-mini", str(tmp_path))
    return tmp_path


def test_a_hub_model_comes_with_its_tokenizer_in_bfloat16(folder):
    model, tokenizer = hub_model("phi-3-mini")
    assert type(model).__name__ == "Phi3ForCausalLM"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for (name, ours), theirs in zip(model.named_parameters(), tiny_model("phi3").parameters(), strict=True):
        assert torch.equal(ours, theirs.to(torch.bfloat16)), name
    assert tokenizer("w5 w7")["input_ids"] == [5, 7]


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("phi3").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        hub_model("phi-3-mini")


def test_code_that_a_model_brings_is_not_run(folder):
    """Phi-3's repository carries model code; transformers' own class is used in its place."""
    proof = folder / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = hub_model("phi-3-mini")
    assert type(model).__module__.startswith("transformers.") and not proof.exists()
