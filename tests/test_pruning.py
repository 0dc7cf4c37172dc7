"""Layer-pruned students: which layers are kept, and that what is left is a whole model."""

import itertools

import pytest
import torch
from conftest import END, FAMILIES, PAD, VOCAB
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from taid.studies.zoo import keep_layers, prune

TOTAL = 5
IDS = torch.arange(2, 32).view(2, 15)


def deep_model(family: str, layers: int = TOTAL, **options):
    """A random model, with weights so large that each of its layers matters."""
    if family != "gpt_neox":
        options = {"num_key_value_heads": 2} | options
    config = CONFIG_MAPPING[family](
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


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
