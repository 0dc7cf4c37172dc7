"""The zoo keeps the paper's architectures and ratios of size; what is pruned is a whole model."""

import itertools
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, VOCAB, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from taid.studies.decide import ARMS
from taid.studies.zoo import JUDGE, MODELS, PAIRS, fresh_model, keep_layers, parameters, prune, scale_model

VOCAB_SIZE = 2048  # of the scale "cpu"
CLASSES = {
    "phi-3-mini": "Phi3ForCausalLM",
    "llama-2": "LlamaForCausalLM",
    "llama-2-13b": "LlamaForCausalLM",
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
    models = {name: scale_model(name, VOCAB_SIZE, tokenizer, seed=0) for name in MODELS}
    return models | {"judge": fresh_model(JUDGE, VOCAB_SIZE, tokenizer, seed=0, max_length=256)}


def test_every_model_has_the_papers_class(zoo):
    assert {name: type(model).__name__ for name, model in zoo.items()} == CLASSES
    pairs = (PAIRS | ARMS).values()
    assert {name for pair in pairs for name in (pair.teacher, pair.student)} == set(MODELS)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_size_ratios_are_the_papers(zoo, pair):
    ours = parameters(zoo[pair.teacher]) / parameters(zoo[pair.student])
    assert ours == pytest.approx(BILLIONS[pair.teacher] / BILLIONS[pair.student], rel=0.05)


def test_the_judge_is_larger_than_every_teacher_and_of_no_pairs_family(zoo):
    assert parameters(zoo["judge"]) > max(parameters(zoo[teacher]) for teacher in PAIRS)
    assert not any(isinstance(zoo[name], type(zoo["judge"])) for name in MODELS)


def test_the_readme_tells_sizes_as_they_are(zoo):
    """By the paper's Table 1: students of 1.1B and 0.41B parameters."""
    smaller = [BILLIONS[pair.student] * 1e9 / parameters(zoo[pair.student]) for pair in PAIRS.values()]
    assert min(smaller) > 4500 and max(smaller) < 5000 and round(parameters(zoo["judge"]) / 1e6) == 2
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "nearly five thousand times smaller" in readme and "a 2M-parameter model" in readme


def test_parameters_counts_tied_ones_once(zoo):
    model = zoo["tinyllama"]
    stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    assert parameters(model) == sum(stored.values())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_only_phi_pads_its_vocabulary(zoo):
    """As 32,064 entries for 32,000 tokens: the embedding and the logits have both."""
    sizes = {name: model.config.vocab_size for name, model in zoo.items()}
    assert sizes == dict.fromkeys(zoo, VOCAB_SIZE) | {"phi-3-mini": VOCAB_SIZE + 64}
    assert zoo["phi-3-mini"](torch.tensor([[5, 6]])).logits.shape == (1, 2, VOCAB_SIZE + 64)


@pytest.mark.parametrize("name", MODELS)
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


def test_an_unknown_name_names_the_known_ones():
    with pytest.raises(ValueError, match=f"unknown scale model 'gpt-4'; known: {', '.join(MODELS)}"):
        scale_model("gpt-4", 64, None, 0)


# --- students cut out of a teacher

TOTAL = 5
IDS = torch.arange(2, 32).view(2, 15)


def deep_model(family: str, layers: int = TOTAL, **options):
    """A random model, with weights so large that each of its layers matters."""
    return tiny_model(family, num_hidden_layers=layers, **options).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


# Which layers


@given(st.integers(2, 200), st.data())
def test_layers_are_evenly_spaced_with_first_and_last_kept(total, data):
    """No two gaps differ by more than one layer; the ends are the teacher's; no layer is kept twice."""
    kept = data.draw(st.integers(2, total))
    chosen = keep_layers(total, kept)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert len(chosen) == kept and (chosen[0], chosen[-1]) == (0, total - 1)
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


def test_smollm2_s_six_of_thirty():
    """By hand: multiples of 29/5 = 5.8, rounded."""
    assert keep_layers(30, 6) == [0, 6, 12, 17, 23, 29]
    assert keep_layers(30, 30) == list(range(30))


@pytest.mark.parametrize("kept", [0, 1, 6])
def test_an_impossible_number_of_layers_is_refused(kept):
    with pytest.raises(ValueError, match="keep 2 to 5"):
        keep_layers(5, kept)


# The pruned model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_is_the_whole_one_with_layers_skipped(family):
    """Oracle: the whole model, in which the layers that are not kept pass their input on."""
    model = deep_model(family)
    student = prune(model, 3)
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: inputs[0])
        for i, layer in enumerate(model.get_decoder().layers)
        if i not in (0, 2, 4)
    ]
    skipping = logits(model)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(logits(student.eval()), skipping, atol=1e-6, rtol=1e-6)
    assert (skipping - logits(model)).abs().max() > 0.1  # the layers left out do matter


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_the_cache_equals_generation_without(family):
    """It would not, were the layers' places in the cache still the teacher's."""
    student = prune(deep_model(family), 3).eval()
    sampled = [
        student.generate(IDS, max_new_tokens=12, do_sample=False, use_cache=cached, eos_token_id=None)
        for cached in (True, False)
    ]
    assert torch.equal(*sampled) and sampled[0].shape == (2, 27)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_is_left_alone_and_shares_no_memory(family):
    model = deep_model(family)
    before = logits(model)
    student = prune(model, 2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert model.config.num_hidden_layers == TOTAL and torch.equal(logits(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_survives_the_disk(family, tmp_path):
    """The config says how many layers there are, and of which kind."""
    student = prune(deep_model(family), 3).eval()
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.num_hidden_layers == 3
    torch.testing.assert_close(logits(again), logits(student), atol=1e-6, rtol=1e-6)


def test_tied_embeddings_stay_tied():
    student = prune(deep_model("llama", tie_word_embeddings=True), 2)
    assert student.get_input_embeddings().weight is student.get_output_embeddings().weight


def test_kinds_of_attention_go_with_their_layers():
    """Layers 0, 2 and 4 of full, sliding, sliding, full, sliding."""
    full, sliding = "full_attention", "sliding_attention"
    kinds = [full, sliding, sliding, full, sliding]
    model = deep_model("qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=4)
    student = prune(model, 3)
    assert student.config.layer_types == [full, sliding, sliding]
    assert [layer.self_attn.sliding_window for layer in student.get_decoder().layers] == [None, 4, 4]


def test_half_precision_is_kept():
    assert prune(deep_model("llama").to(torch.bfloat16), 2).dtype == torch.bfloat16


def test_a_model_of_other_names_is_refused():
    config = CONFIG_MAPPING["gpt2"](vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=2)
    with pytest.raises(ValueError, match="GPT2LMHeadModel names no weight"):
        prune(AutoModelForCausalLM.from_config(config), 2)
