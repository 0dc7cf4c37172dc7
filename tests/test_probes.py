"""What a model does that its class does not say: oracles are the families' own losses and logits."""

import pytest
import torch
from conftest import PAD, tiny_examples, tiny_model, tiny_tokenizer, tiny_trainer
from test_trainer import tokenised
from transformers import (
    BartConfig,
    BartForCausalLM,
    DataCollatorForSeq2Seq,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from taid.data import IGNORE
from taid.probes import check_causal, check_padding, shifts_labels

VOCAB = 48


def bart() -> BartForCausalLM:
    torch.manual_seed(0)
    heads = {"decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    return BartForCausalLM(
        BartConfig(vocab_size=VOCAB, d_model=16, decoder_layers=2, dropout=0.0, init_std=0.3, **heads)
    )


def xlnet() -> XLNetLMHeadModel:
    torch.manual_seed(0)
    return XLNetLMHeadModel(XLNetConfig(vocab_size=VOCAB, d_model=16, n_layer=2, n_head=2, d_inner=32))


def rwkv() -> RwkvForCausalLM:
    torch.manual_seed(0)
    return RwkvForCausalLM(
        RwkvConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mamba", "bloom", "gemma3_text", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_models_pass_every_probe(family, dtype):
    model = tiny_model(family).to(dtype)
    check_causal(model, "student")
    check_padding(model, "")
    assert shifts_labels(model) and model.training is tiny_model(family).training


@pytest.mark.parametrize("make", [xlnet, lambda: tiny_model("bert")], ids=["XLNet", "BERT, is_decoder=False"])
def test_a_model_that_sees_what_follows_is_refused(make, tmp_path):
    """Even with the small weights of a fresh model, where a token moves the logits before it by a four-hundredth."""
    with pytest.raises(ValueError, match="the student, a .*, sees the tokens that it is to predict"):
        tiny_trainer(tmp_path, "sft", student=make(), steps=1)
    with pytest.raises(ValueError, match="the teacher, a .*, sees the tokens"):
        tiny_trainer(tmp_path, "kl", teacher=make(), steps=1)


def test_labels_that_a_family_has_elsewhere_are_asked_for(tmp_path):
    """Oracle: BartForCausalLM's own loss, whose label i belongs to logits i."""
    rows, collate = tokenised(tiny_examples(8), learn_prompt=False), DataCollatorForSeq2Seq(tiny_tokenizer())
    with pytest.raises(ValueError, match="to BartForCausalLM itself label i belongs to logits i"):
        tiny_trainer(tmp_path, "sft", student=bart(), examples=rows, collator=collate, steps=1).train()

    def moved(examples):
        batch = collate(examples)
        following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
        return {**batch, "shift_labels": following}

    trainer = tiny_trainer(tmp_path, "sft", student=bart(), examples=rows, collator=moved, steps=1, batch=8)
    batch, losses = moved(rows), []
    trainer.compute_loss, compute = (
        lambda *a, **k: losses.append(compute(*a, **k)) or losses[-1],
        trainer.compute_loss,
    )
    with torch.no_grad():
        own = (
            bart()
            .eval()(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["shift_labels"])
            .loss
        )
    trainer.train()
    assert losses[0].item() == pytest.approx(own.item(), abs=1e-5)


def test_a_family_with_an_own_place_for_labels_learns_from_rows(tmp_path):
    """Rows of ours have labels under their tokens, whatever the family: SFT's loss is the shifted cross-entropy."""
    assert not shifts_labels(bart()) and not shifts_labels(xlnet())
    rows = tokenised(tiny_examples(8), learn_prompt=False)
    tiny_trainer(tmp_path, "sft", student=bart(), examples=rows, collator=None, steps=1).train()


@pytest.mark.parametrize("make", [bart, rwkv])
def test_a_model_whose_padding_is_seen_is_not_sampled_from(make, tmp_path):
    with pytest.raises(ValueError, match="says other things of a prompt with padding before it"):
        tiny_trainer(tmp_path, "gkd", student=make(), steps=1)


def test_an_encoder_is_not_given_the_answer(tmp_path):
    """Rows of text or of prompt and response do not say what the encoder reads."""
    config = T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=PAD
    )
    t5, rows = T5ForConditionalGeneration(config), [{"prompt": "w3", "completion": "w4 w5"}] * 4
    for examples in (rows, tiny_examples(4)):
        with pytest.raises(ValueError, match="pass data_collator=DataCollatorForSeq2Seq"):
            tiny_trainer(tmp_path, "sft", student=t5, teacher=None, examples=examples, collator=None)


def test_what_cannot_be_asked_passes():
    """No weights yet; a model of images."""
    with torch.device("meta"):
        check_causal(tiny_model(), "student")
        assert shifts_labels(tiny_model())
