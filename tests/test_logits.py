"""Which row of logits belongs to which label: encoder–decoders, packed rows, virtual tokens, and what is refused."""

import pytest
import torch
from conftest import END, PAD, VOCAB, tiny_examples, tiny_model, tiny_trainer
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    DataCollatorWithFlattening,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import CausalLMOutput

from taid.data import IGNORE, Collator
from taid.logits import position_limit, response_head, response_logits, virtual_tokens
from taid.losses import forward_kl
from taid.objectives import objective
from taid.teacher import LiveTeacher

BATCH = Collator(PAD)(tiny_examples(4))
DOCUMENTS = [
    {
        "input_ids": [*e["prompt_ids"], *e["response_ids"]],
        "labels": [IGNORE] * len(e["prompt_ids"]) + e["response_ids"],
    }
    for e in tiny_examples(3, seed=2)
]
PAIRS = {  # of an encoder–decoder, of unequal lengths
    "input_ids": torch.tensor([[5, 6, END, PAD], [7, 8, 9, END]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
    "labels": torch.tensor([[10, 11, 12, 13, END], [14, END, IGNORE, IGNORE, IGNORE]]),
}


def t5(seed: int = 0, **options):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "initializer_factor": 3.0}
    tokens = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(
            T5Config(**{"vocab_size": VOCAB, "dropout_rate": 0.0} | sizes | tokens | options)
        )


def bart(seed: int = 0):
    layers = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
              (("layers", 1), ("ffn_dim", 32), ("attention_heads", 2))}  # fmt: skip
    tokens = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 2, "decoder_start_token_id": 3}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BartConfig(vocab_size=VOCAB, d_model=16, dropout=0.0, init_std=0.3, **layers, **tokens)
        return BartForConditionalGeneration(config)


def prompt_tuned(config, **options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(tiny_model(**options), config(task_type="CAUSAL_LM", num_virtual_tokens=3))


# Encoder–decoders


@pytest.mark.parametrize(
    "make", [t5, bart, lambda: t5(tie_word_embeddings=False)], ids=["t5", "bart", "untied t5"]
)
@pytest.mark.parametrize("collated", [False, True])
def test_label_i_of_an_encoder_decoder_belongs_to_position_i(make, collated):
    """Oracle: the loss that the model itself computes of the same batch, and its gradient."""
    model, batch = make().eval(), dict(PAIRS)
    expected = model(**batch).loss
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    if collated:  # as DataCollatorForSeq2Seq(tokenizer, model=model) does
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    logits, labels = response_logits(model, batch)
    assert labels.tolist() == [10, 11, 12, 13, END, 14, END]
    loss = cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


def test_a_pair_of_encoder_and_decoder_says_nothing_of_its_vocabulary(tmp_path):
    """EncoderDecoderConfig has no vocab_size: the first batch tells."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    halves = [BertConfig(vocab_size=VOCAB, **sizes) for _ in range(2)]
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    config.decoder_start_token_id, config.pad_token_id = 2, PAD
    batch = {"input_ids": torch.tensor([5, 6]), "labels": torch.tensor([7, 8, END])}
    options = {
        "examples": [batch] * 4,
        "collator": lambda rows: {n: torch.stack([r[n] for r in rows]) for n in rows[0]},
    }
    student = EncoderDecoderModel(config=config)
    tiny_trainer(
        tmp_path, "kl", student=student, teacher=EncoderDecoderModel(config=config), steps=1, **options
    ).train()
    with pytest.raises(ValueError, match="student's has 48 entries, the teacher's 56"):
        tiny_trainer(tmp_path, "kl", student=student, teacher=t5(vocab_size=56), steps=1, **options).train()


def test_an_encoder_decoder_is_distilled_at_all_of_its_labels(tmp_path):
    """Oracle: KL of the logits of both models, called by hand; the first label counts, unlike a causal model's."""
    rows = [{name: PAIRS[name][row] for name in PAIRS} for row in range(2)]
    trainer = tiny_trainer(
        tmp_path, "kl", student=t5(0), teacher=t5(1), examples=rows, steps=1, batch=2, learning_rate=0.0,
        collator=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )  # fmt: skip
    trainer.train()
    mask = PAIRS["labels"] != IGNORE
    student, teacher = (model.eval()(**PAIRS).logits[mask] for model in (t5(0), t5(1)))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(
        forward_kl(student, teacher).mean().item(), abs=1e-5
    )


def test_encoder_decoders_are_refused_where_they_cannot_be_distilled(tmp_path):
    with pytest.raises(ValueError, match="one of student and teacher is an encoder–decoder"):
        tiny_trainer(tmp_path, "kl", teacher=t5())
    with pytest.raises(ValueError, match="cannot generate as a causal model does"):
        tiny_trainer(tmp_path, "gkd", student=t5(0), teacher=t5(1))


# Packed rows


def test_a_packed_row_is_its_documents(tmp_path):
    """Numbers among the tensors of a padding-free batch reach both models. Oracle: each document by itself."""
    packed = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(DOCUMENTS)
    assert type(packed["max_length_q"]) is int
    alone = [{name: torch.tensor([row]) for name, row in document.items()} for document in DOCUMENTS]
    for model in (tiny_model(seed=0), tiny_model(seed=1)):
        expected = torch.cat([response_logits(model, document)[0] for document in alone])
        torch.testing.assert_close(response_logits(model, packed)[0], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(LiveTeacher(model)(packed), expected.detach(), atol=1e-5, rtol=0)
    flat = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    tiny_trainer(
        tmp_path, "taid", examples=DOCUMENTS * 4, collator=flat, steps=1, validation=DOCUMENTS
    ).train()


def test_what_begins_a_document_is_not_learned_from_the_one_before():
    packed = dict(DataCollatorWithFlattening()(DOCUMENTS))
    first = len(DOCUMENTS[0]["input_ids"])
    packed["labels"] = packed["labels"].index_fill(1, torch.tensor([first]), 5)
    with pytest.raises(ValueError, match="label stands where position_ids begin anew"):
        response_logits(tiny_model(), packed)


def test_labels_that_the_collator_has_shifted_are_not_shifted_again():
    shifted = {"shift_labels": torch.nn.functional.pad(BATCH["labels"][:, 1:], (0, 1), value=IGNORE)}
    for found, expected in zip(
        response_logits(tiny_model(), BATCH | shifted), response_logits(tiny_model(), BATCH), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_a_request_to_keep_few_logits_is_not_passed_on():
    """With `logits_to_keep` a model returns the last positions alone."""
    expected = response_logits(tiny_model(), BATCH)[0]
    torch.testing.assert_close(response_logits(tiny_model(), BATCH | {"logits_to_keep": 1})[0], expected)


# Virtual tokens


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_move_no_label(config, fuse):
    """Oracle: the model's own loss, for which PEFT pads the labels itself; the tuned prompt is what learns."""
    model = prompt_tuned(config)
    assert virtual_tokens(model) == (3 if config is PromptTuningConfig else 0)
    batch = {name: value for name, value in BATCH.items() if name not in ("index", "position_ids")}
    expected = model(**batch).loss
    (gradient,) = torch.autograd.grad(expected, model.prompt_encoder.parameters())
    if fuse:
        head, labels = response_head(model, batch)
        logits = head.hidden @ head.weight.T
    else:
        logits, labels = response_logits(model, batch)
    loss = cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    (found,) = (parameter.grad for parameter in model.prompt_encoder.parameters())
    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)
    assert gradient.abs().max() > 0


def test_no_other_number_of_positions_is_read():
    """A head that keeps the last position, one that adds an image's, one that gives a class per row."""

    class Other(torch.nn.Module):
        def __init__(self, positions):
            super().__init__()
            self.positions = positions

        def forward(self, input_ids, **kwargs):
            logits = torch.zeros(len(input_ids), input_ids.shape[1] + 4, VOCAB)
            return CausalLMOutput(logits=logits[:, self.positions])

    for positions in (slice(-1, None), slice(None), 0):
        with pytest.raises(ValueError, match="which belong to which is not known"):
            response_logits(Other(positions), BATCH)


# What is no language model


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification, AutoModelForMaskedLM])
def test_a_model_that_predicts_no_next_token_is_refused(auto, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    masked = auto is AutoModelForMaskedLM
    model = auto.from_config(BertConfig(vocab_size=VOCAB, **sizes) if masked else tiny_model().config)
    for given, role in (({"teacher": model}, "teacher"), ({"student": model}, "student")):
        with pytest.raises(
            ValueError, match=f"the {role} is a {type(model).__name__}, which predicts no next token"
        ):
            tiny_trainer(tmp_path, "kl", **given)
    if not masked:
        inputs = {name: value for name, value in BATCH.items() if name != "index"}
        with pytest.raises(ValueError, match="returns no .logits|which belong to which is not known"):
            response_logits(model, inputs)


class Own(torch.nn.Module):
    """A language model of one's own: no config, no output embeddings."""

    def __init__(self):
        super().__init__()
        self.body = tiny_model()

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        return self.body(input_ids, attention_mask, position_ids, use_cache=use_cache)


@pytest.mark.parametrize(
    "model",
    [
        tiny_model("gpt2", max_position_embeddings=8),
        tiny_model("opt", max_position_embeddings=8, word_embed_proj_dim=16, ffn_dim=32),
    ],
    ids=["GPT-2", "OPT"],
)
def test_rows_longer_than_the_positions_are_told_in_words(model):
    ids = torch.full((1, 12), 5)
    with pytest.raises(ValueError, match="a row has 12 tokens, and .* positions for 8: cut the rows"):
        response_logits(model, {"input_ids": ids, "labels": ids})


def test_positions_by_another_name_are_counted():
    config = MptConfig(vocab_size=VOCAB, d_model=16, n_heads=2, n_layers=1, max_seq_len=24)
    assert position_limit(MptForCausalLM(config)) == 24
    assert position_limit(tiny_model("gpt2", max_position_embeddings=8)) == 8


def test_a_module_of_ones_own_is_trained(tmp_path):
    """Oracle: the model inside it."""
    runs = []
    for student in (Own(), tiny_model()):
        trainer = tiny_trainer(tmp_path, "kl", student=student, steps=2)
        trainer.train()
        runs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert runs[0] == pytest.approx(runs[1], abs=1e-6)
    with pytest.raises(ValueError, match="Own cannot generate"):
        tiny_trainer(tmp_path, objective("gkd", probability=1.0), student=Own())


@pytest.mark.parametrize("teacher", [42, object(), LlamaForCausalLM])
def test_what_cannot_teach_is_refused_at_construction(teacher, tmp_path):
    with pytest.raises(TypeError, match="pass a language model, its name or folder, or a function"):
        tiny_trainer(tmp_path, "kl", teacher=teacher)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda batch: torch.zeros(3, VOCAB), r"gave \[3, 48\] for 23 labels"),
        (lambda batch: torch.zeros(*batch["labels"].shape, VOCAB), r"gave \[4, 13, 48\] for 23 labels"),
        (lambda batch: CausalLMOutput(logits=torch.zeros(23, VOCAB)), "gave a CausalLMOutput for 23 labels"),
    ],
)
def test_a_function_that_gives_no_row_per_label_is_told(answer, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        tiny_trainer(tmp_path, "kl", teacher=answer).train()


def test_labels_of_rows_are_no_labels_of_tokens():
    with pytest.raises(ValueError, match="collate the number of one token each"):
        response_logits(tiny_model(), BATCH | {"labels": torch.ones(4, dtype=int)})


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_labels_may_be_of_any_whole_number(dtype):
    """Oracle: those of int64."""
    found, labels = response_logits(tiny_model(), BATCH | {"labels": BATCH["labels"].to(dtype)})
    expected, same = response_logits(tiny_model(), BATCH)
    assert torch.equal(found, expected) and torch.equal(labels, same) and labels.dtype == torch.int64
    with pytest.raises(ValueError, match="torch.float32: collate the number of one token each"):
        response_logits(tiny_model(), BATCH | {"labels": BATCH["labels"].float()})


def test_a_label_of_padding_is_refused():
    """But not where the mask is of another form, or no label is on padding."""
    ids, mask = torch.tensor([[5, 6, END, PAD], [7, 8, 9, END]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    with pytest.raises(ValueError, match="a label stands at a padding token"):
        response_logits(tiny_model(), batch)
    assert len(response_logits(tiny_model(), batch | {"labels": ids.masked_fill(mask == 0, IGNORE)})[1]) == 5
    whole = torch.ones(4, 4, dtype=torch.bool).tril()[None, None].expand(2, 1, 4, 4)
    assert len(response_logits(tiny_model(), batch | {"attention_mask": whole})[1]) == 6


@pytest.mark.parametrize("token", [VOCAB, -1])
def test_a_token_that_the_model_has_not_is_told(token):
    batch = BATCH | {"input_ids": BATCH["input_ids"].index_fill(1, torch.tensor([0]), token)}
    with pytest.raises(ValueError, match=f"has token {token}, and LlamaForCausalLM embeddings for 48"):
        response_logits(tiny_model(), batch)


def test_modules_of_ones_own_are_told_what_they_lack(tmp_path):
    with pytest.raises(ValueError, match="teacher is a Linear without a config"):
        tiny_trainer(tmp_path, "kl", teacher=torch.nn.Linear(3, 3))

    class Tuple(torch.nn.Module):
        def forward(self, input_ids, **kwargs):
            return (torch.zeros(*input_ids.shape, VOCAB),)

    with pytest.raises(ValueError, match="Tuple returns no .logits"):
        response_logits(Tuple(), BATCH)
