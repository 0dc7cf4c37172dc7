"""Sampling from the student: what is sampled, what is learned, what is kept."""

import json
import random
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import END, PAD, VOCAB, tiny_examples, tiny_model, tiny_trainer
from peft import LoraConfig, get_peft_model
from ranks import on_two_ranks
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from transformers import (
    CLIPVisionConfig,
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2LMHeadModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from taid import rollouts as rollouts_module
from taid import sampling
from taid.data import IGNORE, Collator, pad_right
from taid.logits import response_logits
from taid.objectives import objective
from taid.rollouts import DistiLLMRollouts, GKDRollouts, beside_prompts, passed_by, prompts_of, to_batch
from taid.sampling import sample_responses

STUDENTS = ("llama", "gpt_neox")
PROMPTS = [[5], [6, 7, 8, 9], [10, 11]]


@pytest.fixture
def batch():
    return Collator(PAD)(tiny_examples(4))


def chatty(family: str = "llama"):
    """A student that ends a response about every third token."""
    model = tiny_model(family)
    model.get_input_embeddings().weight.data *= 0.5
    head = model.get_output_embeddings()
    head.weight.data = head.weight.data.clone() * 0.2
    head.bias = torch.nn.Parameter(torch.zeros(VOCAB))
    head.bias.data[END] = 3.0
    return model


def gpt2(positions: int):
    """Its positions are a table: one further is an index out of range."""
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": positions}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, eos_token_id=END, pad_token_id=PAD, bos_token_id=END, **sizes)
    )


@pytest.fixture
def free_sampling(monkeypatch):
    """For tests that count many decisions to sample and never look at a sample."""

    def end_at_once(model, prompts, *settings, **beside):
        return [[END]] * len(prompts)

    monkeypatch.setattr(rollouts_module, "sample_responses", end_at_once)


# Prompts


def test_prompts_are_what_precedes_the_first_label():
    ids = torch.tensor([[PAD, PAD, 5, 6, 7, END], [8, 9, 10, 11, END, 12], [PAD, 13, 14, 15, 16, END]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    labels = torch.tensor(
        [
            [IGNORE, IGNORE, IGNORE, IGNORE, 7, END],
            [IGNORE, 9, IGNORE, IGNORE, END, 12],  # two turns: the first response begins at 9
            [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, END],
        ]
    )
    expected = [[5, 6], [8], [13, 14, 15, 16]]
    assert prompts_of({"input_ids": ids, "attention_mask": mask, "labels": labels}) == expected
    right = {  # the same rows, padded on the right, by a collator without an attention mask
        "input_ids": torch.tensor([[5, 6, 7, END, PAD, PAD], ids[1].tolist(), [13, 14, 15, 16, END, PAD]]),
        "labels": torch.tensor(
            [[IGNORE, IGNORE, 7, END, IGNORE, IGNORE], labels[1].tolist(), [IGNORE] * 4 + [END, IGNORE]]
        ),
    }
    assert prompts_of(right) == expected


def test_the_collator_and_prompts_are_inverse(batch):
    assert prompts_of(batch) == [example["prompt_ids"] for example in tiny_examples(4)]


@pytest.mark.parametrize("labels", [[5, 6, END], [IGNORE] * 3, [IGNORE, 6, END]])
def test_a_row_without_prompt_or_response_is_an_error(labels):
    """Labels from the first column; none at all; only padding before the first label."""
    row = {"input_ids": [[PAD, 6, END]], "attention_mask": [[0, 1, 1]], "labels": [labels]}
    with pytest.raises(ValueError, match="need a prompt"):
        prompts_of({name: torch.tensor(value) for name, value in row.items()})


def test_a_batch_of_responses_is_laid_out_as_the_collators(batch):
    examples = tiny_examples(4)
    built = to_batch([e["prompt_ids"] for e in examples], [e["response_ids"] for e in examples], PAD, "cpu")
    assert built.pop("sampled").all() and built.keys() == batch.keys() - {"index"}
    assert all(torch.equal(built[name], batch[name]) for name in built)


# Sampling


@pytest.mark.parametrize("family", STUDENTS)
def test_responses_end_where_the_model_ends_them(family):
    responses = sample_responses(chatty(family), PROMPTS * 20, max_new_tokens=6, seed=0)
    ended = [response for response in responses if END in response]
    assert all(response.index(END) == len(response) - 1 for response in ended)
    assert all(len(response) == 6 for response in responses if END not in response)
    assert len(ended) > 0 and len({len(response) for response in responses}) > 3


@pytest.mark.parametrize("family", STUDENTS)
def test_the_end_is_learned_and_nothing_after_it(family):
    model = chatty(family)
    responses = sample_responses(model, PROMPTS * 5, max_new_tokens=6, seed=0)
    sampled = to_batch(PROMPTS * 5, responses, PAD, "cpu")
    assert any(response[-1] == END for response in responses)
    rows = zip(*(sampled[name] for name in ("input_ids", "attention_mask", "labels")), strict=True)
    for (ids, mask, labels), prompt, response in zip(rows, PROMPTS * 5, responses, strict=True):
        assert ids[mask == 1].tolist() == prompt + response
        assert labels[mask == 1].tolist() == [IGNORE] * len(prompt) + response
        assert (labels[mask == 0] == IGNORE).all()


@pytest.mark.parametrize("family", STUDENTS)
def test_samples_follow_the_models_own_probabilities(family):
    """χ² of 2,000 first tokens against softmax(logits) of the unpadded prompt: with 47 degrees of freedom
    99.99% are below 92. A model's generation_config (a repetition penalty, top-k 1) must not bend them."""
    model = tiny_model(family)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.top_k = 1
    prompts = [[5, 6, 7], [8]] * 2000  # the short one is padded
    tokens = torch.tensor(sample_responses(model, prompts, max_new_tokens=1, seed=0))[:, 0]
    for row, prompt in enumerate(([5, 6, 7], [8])):
        expected = model.eval()(torch.tensor([prompt])).logits[0, -1].softmax(-1) * 2000
        counts = torch.bincount(tokens[row::2], minlength=VOCAB)
        assert ((counts - expected) ** 2 / expected).sum() < 92
    assert model.generation_config.repetition_penalty == 50.0  # given back


def test_what_is_sampled_is_no_top_of_the_vocabulary():
    """As above, of 200 entries: transformers takes the 50 likeliest unless told otherwise. 99.99% are below 280."""
    model = tiny_model(vocab_size=200)
    model.lm_head.weight.data *= 0.2  # so flat that none is unlikely
    tokens = torch.tensor(sample_responses(model, [[5, 6, 7]] * 4000, max_new_tokens=1, seed=0))[:, 0]
    expected = model.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1) * 4000
    assert ((torch.bincount(tokens, minlength=200) - expected) ** 2 / expected).sum() < 280


def test_a_seed_decides_the_sample_and_the_global_generator_does_not(student):
    torch.manual_seed(1)
    first = sample_responses(student, PROMPTS, 8, seed=7)
    state = torch.random.get_rng_state()
    again = sample_responses(student, PROMPTS, 8, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == again != sample_responses(student, PROMPTS, 8, seed=8)


def test_the_mode_of_the_model_is_left_as_it_was(student):
    for training in (True, False):
        student.train(training)
        sample_responses(student, PROMPTS, 2, seed=0)
        assert student.training is training


def test_any_of_several_end_tokens_ends(student):
    student.config.eos_token_id = list(range(2, VOCAB))
    for response in sample_responses(student, PROMPTS * 5, max_new_tokens=5, seed=0):
        assert all(token in (PAD, END) for token in response[:-1])
        assert len(response) == 5 or response[-1] >= 2


@pytest.mark.parametrize("where", ["generation_config", "config"])
def test_any_end_token_of_the_generation_config_ends(where, student):
    """Instruction models name their end of turn there alone; END of the config still ends."""
    getattr(student, where).eos_token_id = list(range(24, VOCAB))
    student.config.eos_token_id = END if where == "generation_config" else student.config.eos_token_id
    for response in sample_responses(student, PROMPTS * 5, max_new_tokens=5, seed=0):
        assert all(token < 24 for token in response[:-1]) and END not in response[:-1]
        assert len(response) == 5 or response[-1] >= 24 or response[-1] == END


@pytest.mark.parametrize("pad", [None, -1, VOCAB])
def test_a_model_without_padding_token_samples_alike(pad, student):
    """−1 stands for none in some configurations; VOCAB was added to the tokenizer alone."""
    expected = sample_responses(student, PROMPTS, 6, seed=0)
    student.config.pad_token_id = student.generation_config.pad_token_id = pad
    assert sample_responses(student, PROMPTS, 6, seed=0) == expected
    student.config.eos_token_id = student.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_id"):
        sample_responses(student, PROMPTS, 2, seed=0)


def test_samples_end_where_the_positions_do():
    model = gpt2(12)
    responses = sample_responses(model, [[5], [6] * 9], max_new_tokens=64, seed=3)
    assert max(map(len, responses)) == 3
    assert max(map(len, sample_responses(model, [[5]], 64, seed=3, positions=7))) == 6
    with pytest.raises(ValueError, match="prompt of 12 tokens leaves no place .* 12 positions"):
        sample_responses(model, [[5], [6] * 12], max_new_tokens=64, seed=0)


def test_the_teachers_positions_bound_samples_too(tmp_path):
    models = {"student": gpt2(64), "teacher": gpt2(24)}
    tiny_trainer(tmp_path, objective("gkd", probability=1.0), steps=2, **models).train()


def test_a_model_that_cannot_generate_or_is_sharded_by_stage_3_is_told(student, monkeypatch):
    with pytest.raises(ValueError, match="Linear cannot generate"):
        sample_responses(torch.nn.Linear(2, 2), PROMPTS, 2, seed=0)
    monkeypatch.setattr(sampling, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="ZeRO-3: set stage 2"):
        sample_responses(student, PROMPTS, 2, seed=0)


def test_a_student_with_gradient_checkpointing_and_a_frozen_part_samples_as_without(student):
    """The cache is used, and a module that was in evaluation mode stays in it."""
    expected = sample_responses(student, PROMPTS, 6, seed=0)
    student.gradient_checkpointing_enable()
    student.train()
    student.model.layers[0].eval()
    assert sample_responses(student, PROMPTS, 6, seed=0) == expected
    assert student.training and student.model.layers[1].training and not student.model.layers[0].training


def test_a_student_of_peft_is_sampled_plainly_too(student):
    """The generation_config belongs to the model inside. Oracle: that model; a fresh adapter changes nothing."""
    expected = sample_responses(student, PROMPTS, 6, seed=0)
    student.generation_config.repetition_penalty = 50.0
    lora = get_peft_model(student, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert sample_responses(lora, PROMPTS, 6, seed=0) == expected
    assert student.generation_config.repetition_penalty == 50.0


# Batches


def test_samples_do_not_depend_on_the_side_of_the_padding(student):
    """The same rows, padded on the right by a standard collator and on the left by ours."""
    rows = [{"input_ids": [*e["prompt_ids"], *e["response_ids"]],
             "labels": [IGNORE] * len(e["prompt_ids"]) + e["response_ids"]} for e in tiny_examples(4)]  # fmt: skip
    right = {
        name: pad_right([row[name] for row in rows], PAD if name == "input_ids" else IGNORE)
        for name in rows[0]
    }
    right["attention_mask"] = pad_right([[1] * len(row["labels"]) for row in rows], 0)
    left = Collator(PAD)(tiny_examples(4))
    found = [GKDRollouts(6, probability=1.0)(student, batch, 0.0, 5) for batch in (right, left)]
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_packed_rows_are_refused(student):
    rows = [{"input_ids": [5, 6, 7, END], "labels": [IGNORE, IGNORE, 7, END]}] * 2
    for flash in (True, False):
        packed = DataCollatorWithFlattening(return_flash_attn_kwargs=flash)(rows)
        with pytest.raises(ValueError, match="one document in each row"):
            GKDRollouts(6, probability=1.0)(student, packed, 0.0, 5)


# Images

IMAGE = 47  # the token that stands for one of an image's four patches


def llava(seed: int = 0):
    """An image-text model, whose tokens for end and padding are its language model's."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **sizes)
    text = tiny_model().config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlavaConfig(
            vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1
        )
        model = LlavaForConditionalGeneration(config)
        model.model.multi_modal_projector.linear_2.weight.data *= 50  # what an image says is heard
    return model


def with_images(prompts: list[list[int]], responses: list[list[int]]) -> dict:
    """A batch, padded on the right, with an image for every four IMAGE tokens in it."""
    rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    labels = [[IGNORE] * len(p) + r for p, r in zip(prompts, responses, strict=True)]
    count = sum(row.count(IMAGE) for row in rows) // 4
    return {
        "input_ids": pad_right(rows, PAD),
        "attention_mask": pad_right([[1] * len(row) for row in rows], 0),
        "labels": pad_right(labels, IGNORE),
        "pixel_values": torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    }


def test_samples_are_drawn_with_the_images_in_view():
    """χ² of 2,000 first tokens against softmax(logits) with the image: 46 degrees of freedom, below 91 for
    99.99%. No token that stands for an image is drawn: there would be no image for it."""
    model = llava()
    batch = with_images([[5, *[IMAGE] * 4, 6, 7]], [[8, END]])
    prompt, pixels = batch["input_ids"][:, :7], batch["pixel_values"]
    logits = [model.eval()(input_ids=prompt, pixel_values=x).logits[0, -1] for x in (pixels, -pixels)]
    expected, other = (x.index_fill(0, torch.tensor([IMAGE]), -torch.inf).softmax(-1) * 2000 for x in logits)
    media = {"pixel_values": pixels.repeat(2000, 1, 1, 1)}
    tokens = torch.tensor(sample_responses(model, prompt.tolist() * 2000, 1, seed=0, media=media))[:, 0]
    counts = torch.bincount(tokens, minlength=VOCAB)
    likely = expected > 0
    assert counts[IMAGE] == 0 and (((counts - expected) ** 2 / expected)[likely]).sum() < 91
    assert (((counts - other) ** 2 / other)[likely]).sum() > 1000


def test_images_stay_with_their_rows():
    """Two images in one row and one in another, as one list. Oracle: each row by itself."""
    model = llava().eval()
    batch = with_images([[*[IMAGE] * 4, 5, *[IMAGE] * 4], [6, *[IMAGE] * 4, 7, 8]], [[8, 9, END], [10, END]])
    sampled = GKDRollouts(5, probability=1.0)(model, batch, 0.0, 3)
    assert torch.equal(sampled["pixel_values"], batch["pixel_values"]) and "position_ids" not in sampled
    logits, labels = response_logits(model, sampled)
    at = 0
    for row, images in ((0, slice(0, 2)), (1, slice(2, 3))):
        ids = sampled["input_ids"][row][sampled["attention_mask"][row].bool()]
        count = (sampled["labels"][row] != IGNORE).sum()
        alone = model(input_ids=ids[None], pixel_values=batch["pixel_values"][images]).logits[
            0, -count - 1 : -1
        ]
        torch.testing.assert_close(logits[at : at + count], alone, atol=1e-4, rtol=0)
        assert torch.equal(labels[at : at + count], ids[-count:])
        at += count


def test_patches_stay_with_their_rows():
    """Qwen2-VL: the patches of all images in one list, three positions a token. Oracle: each row by itself."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    tokens = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": None}
    text = sizes | tokens | {"vocab_size": VOCAB, "num_key_value_heads": 2, "rope_parameters": rope}
    vision = {
        "depth": 1,
        "embed_dim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "temporal_patch_size": 1,
    }
    places = {
        "image_token_id": IMAGE,
        "video_token_id": 46,
        "vision_start_token_id": 45,
        "vision_end_token_id": 44,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=text, vision_config=vision, **places)
        )
    rows = [[45, IMAGE, 44, 5, 45, IMAGE, 44, 6, 7, END], [45, IMAGE, IMAGE, 44, 5, 8, 9, END, PAD, PAD]]
    batch = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor([[1] * 10, [1] * 8 + [0] * 2])}
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE)
    batch["labels"][0, :8] = batch["labels"][1, :5] = IGNORE
    batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    batch["image_grid_thw"] = torch.tensor([[1, 2, 2], [1, 2, 2], [1, 4, 2]])
    batch["pixel_values"] = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    sampled = GKDRollouts(5, probability=1.0)(model.eval(), batch, 0.0, 3)
    logits, _ = response_logits(model, sampled)
    at = 0
    for row, (patches, images) in enumerate(((slice(0, 8), slice(0, 2)), (slice(8, 16), slice(2, 3)))):
        ids = sampled["input_ids"][row][sampled["attention_mask"][row].bool()][None]
        count = (sampled["labels"][row] != IGNORE).sum()
        pixels = {
            "pixel_values": batch["pixel_values"][patches],
            "image_grid_thw": batch["image_grid_thw"][images],
        }
        alone = model(input_ids=ids, mm_token_type_ids=(ids == IMAGE).long(), **pixels).logits[
            0, -count - 1 : -1
        ]
        torch.testing.assert_close(logits[at : at + count], alone, atol=1e-5, rtol=0)
        at += count


def test_images_reach_both_models_in_training(tmp_path):
    batch = with_images([[5, *[IMAGE] * 4, 6], [*[IMAGE] * 4, 6, 7]], [[8, END], [9, 10, END]])
    rows = [{name: value[i] for name, value in batch.items()} for i in range(2)]
    seen = []
    models = {"student": llava(0), "teacher": llava(1)}
    for model in models.values():
        model.model.vision_tower.register_forward_pre_hook(lambda module, inputs: seen.append(module))
    trainer = tiny_trainer(
        tmp_path, objective("gkd", max_new_tokens=4, probability=1.0), examples=rows, steps=1, batch=2,
        collator=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, **models,
    )  # fmt: skip
    trainer.train()
    towers = [seen.count(model.model.vision_tower) for model in models.values()]
    assert towers[0] >= 2 and towers[1] == 1  # to sample and to learn; to teach


def test_images_that_sampling_would_lose_are_refused():
    model = llava()
    later = with_images([[5, *[IMAGE] * 4]], [[8, *[IMAGE] * 4, END]])
    with pytest.raises(ValueError, match="image after its first label"):
        GKDRollouts(5, probability=1.0)(model, later, 0.0, 3)
    with pytest.raises(ValueError, match="buffer keeps no images"):
        DistiLLMRollouts(5, threshold=1.0)(model, with_images([[5, *[IMAGE] * 4]], [[8, END]]), 0.0, 3)
    crossed = with_images([[5, *[IMAGE] * 4]], [[8, END]]) | {
        "cross_attention_mask": torch.ones(1, 7, 2, dtype=int)
    }
    with pytest.raises(ValueError, match="how cross_attention_mask goes on"):
        GKDRollouts(5, probability=1.0)(model, crossed, 0.0, 3)


def test_types_of_tokens_go_on_as_text():
    batch = with_images([[5, 6], [7, 8, 9]], [[8, END], [9, END]])
    batch["token_type_ids"] = torch.tensor([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]])
    beside = beside_prompts(llava(), {name: value for name, value in batch.items() if name != "pixel_values"})
    assert beside == {"types": {"token_type_ids": [[1, 2], [3, 4, 5]]}, "media": {}}
    built = to_batch(prompts_of(batch), [[10, 11, END], [END]], PAD, "cpu", **beside)
    assert built["token_type_ids"].tolist() == [[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]]
    assert built["input_ids"].tolist() == [[5, 6, 10, 11, END], [7, 8, 9, END, PAD]]
    assert built["labels"].tolist() == [[IGNORE, IGNORE, 10, 11, END], [IGNORE] * 3 + [END, IGNORE]]


# What is no tensor

BESIDE = {"texts": ["a", "b", "c", "d"], "note": None, "meta": {"k": [1]}}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_texts_stay_in_the_batch_and_change_no_sample(student, batch):
    """Oracle: the batch without them."""
    plain = GKDRollouts(5, probability=1.0)(student, batch, 0.0, seed=3)
    found = GKDRollouts(5, probability=1.0)(student, batch | BESIDE, 0.0, seed=3)
    assert {name: found.pop(name) for name in BESIDE} == BESIDE
    assert equal(found, plain)


def test_what_the_model_does_not_take_is_not_handed_to_generate(student, batch):
    """Llama has no token types, and `generate` refuses a name that it does not know. Oracle: without them."""
    plain = GKDRollouts(5, probability=1.0)(student, batch, 0.0, seed=3)
    more = {"token_type_ids": batch["attention_mask"] * 2, "score": torch.arange(4.0)}
    found = GKDRollouts(5, probability=1.0)(student, batch | more, 0.0, seed=3)
    assert torch.equal(found["score"], more["score"])
    assert found["token_type_ids"].shape == found["input_ids"].shape
    ours, theirs = ({"i": b["input_ids"][b["attention_mask"] == 1]} for b in (found, plain))
    assert equal(ours, theirs)


def test_a_list_that_the_model_takes_is_handed_to_it():
    batch = {"pixel_values": [torch.ones(3, 8, 8)], "images": ["a.png"], "inputs_embeds": None}
    assert passed_by(llava(), batch) == {"images": ["a.png"], "inputs_embeds": None}


def test_texts_stay_with_fresh_samples_and_not_with_draws(student, batch):
    rollouts, plain = (DistiLLMRollouts(4, capacity=4, threshold=1.0) for _ in range(2))
    for progress in (0.0, 1.0):  # fresh, then drawn
        found, expected = rollouts(student, batch | BESIDE, progress, 3), plain(student, batch, progress, 3)
        kept = {name: found.pop(name) for name in BESIDE if name in found}
        assert kept == (BESIDE if progress == 0 else {}) and equal(found, expected)
    assert rollouts.sampled == rollouts.replayed == 1


# Ranges

OUT_OF_RANGE = {
    "a share above 1": (lambda: GKDRollouts(4, probability=2), r"probability must lie in \[0, 1\], .* got 2"),
    "a share below 0": (lambda: GKDRollouts(4, -1), "probability must lie"),
    "no share": (lambda: GKDRollouts(4, float("nan")), "probability must lie in .* got nan"),
    "a text": (lambda: GKDRollouts(4, "0.5"), "probability must be a number, got '0.5'"),
    "no token": (
        lambda: GKDRollouts(0),
        "max_new_tokens must be a whole number of tokens, at least 1, got 0",
    ),
    "a text of a number": (lambda: GKDRollouts("8"), "max_new_tokens must be .*, got '8'"),
    "a part of a token": (lambda: DistiLLMRollouts(2.5), "max_new_tokens must be .*, got 2.5"),
    "no buffer": (lambda: DistiLLMRollouts(4, capacity=0), "capacity must be a whole number of sequences"),
    "a threshold of 3": (lambda: DistiLLMRollouts(4, threshold=3), "threshold must lie in .* got 3"),
    "a falling threshold": (lambda: DistiLLMRollouts(4, increment=-1), "increment must lie in .* got -1"),
}


@pytest.mark.parametrize("case", OUT_OF_RANGE)
def test_settings_out_of_range_are_refused_where_they_are_given(case):
    build, words = OUT_OF_RANGE[case]
    with pytest.raises(ValueError, match=words):
        build()


def test_the_ends_of_the_ranges_are_within():
    for share in (0, 1):
        GKDRollouts(1, share)
        DistiLLMRollouts(1, capacity=1, threshold=share, increment=share)


# GKD


def test_gkd_samples_the_share_that_it_should(student, batch, free_sampling):
    """300 draws with probability 0.3: 90 ± 4 · 7.9 holds for all but 1 seed in 10,000."""
    rollouts = GKDRollouts(max_new_tokens=1, probability=0.3)
    changed = sum(rollouts(student, batch, 0.0, seed) is not batch for seed in range(300))
    assert abs(changed - 90) < 32
    assert rollouts.logs() == {"rollout_share": changed / 300}
    never, always = GKDRollouts(1, probability=0.0), GKDRollouts(1, probability=1.0)
    assert all(never(student, batch, 0.0, seed) is batch for seed in range(20))
    assert all(always(student, batch, 0.0, seed) is not batch for seed in range(20))


def test_gkd_trains_on_the_prompts_of_the_batch_with_fresh_responses(student, batch):
    sampled = GKDRollouts(max_new_tokens=5, probability=1.0)(student, batch, 0.0, seed=3)
    assert sampled["sampled"].all() and "index" not in sampled  # no cache holds the teacher's logits for it
    assert prompts_of(sampled) == prompts_of(batch)
    expected = [*chain.from_iterable(sample_responses(student, prompts_of(batch), 5, seed=3))]
    assert response_logits(student, sampled)[1].tolist() == expected


# DistiLLM


def test_the_threshold_rises_only_when_validation_does_not_fall_and_stops_at_1():
    rollouts = DistiLLMRollouts(max_new_tokens=1)
    thresholds = []
    for loss in (3.0, 2.0, 2.0, 2.5, 1.0, *[1.0] * 12):
        rollouts.on_validation(loss)
        thresholds.append(rollouts.threshold)
    rising = [min(1.0, 0.2 + 0.1 * n) for n in range(1, 13)]
    assert thresholds == pytest.approx([0, 0, 0.1, 0.2, 0.2, *rising])
    assert max(thresholds) == 1.0


def test_no_student_sequence_before_validation_calls_for_them(student, batch):
    rollouts = DistiLLMRollouts(max_new_tokens=1)
    assert all(rollouts(student, batch, 0.5, seed) is batch for seed in range(30))
    assert not rollouts.buffer


def test_fresh_sequences_give_way_to_replayed_ones_as_training_proceeds(student, batch, free_sampling):
    """With a full buffer fresh ones have probability φ (1 − progress), replayed ones φ · progress."""
    for progress in (0.0, 0.5, 1.0):
        rollouts = DistiLLMRollouts(max_new_tokens=1, capacity=4, threshold=0.6)
        rollouts.buffer.extend([([5], [END])] * 4)
        for seed in range(300):
            rollouts(student, batch, progress, seed)
        fresh, replayed = 300 * 0.6 * (1 - progress), 300 * 0.6 * progress
        assert abs(rollouts.sampled - fresh) < 35 and abs(rollouts.replayed - replayed) < 35  # 4 σ, σ ≤ 8.7
        assert rollouts.logs()["rollout_share"] == rollouts.sampled / 300


def test_the_buffer_fills_first_and_keeps_the_newest(student, batch):
    rollouts = DistiLLMRollouts(max_new_tokens=3, capacity=10, threshold=1.0)
    expected = []
    for seed in range(3):  # late in training, but not full: still fresh
        sampled = rollouts(student, batch, 1.0, seed)
        responses = sample_responses(student, prompts_of(batch), 3, seed)
        expected += zip(prompts_of(sampled), responses, strict=True)
    assert list(rollouts.buffer) == expected[-10:]
    replay = rollouts(student, batch, 1.0, seed=3)
    assert rollouts.replayed == 1 and rollouts.sampled == 3
    assert len(replay["input_ids"]) == 4
    assert all(prompt in [p for p, _ in expected[-10:]] for prompt in prompts_of(replay))
    assert list(rollouts.buffer) == expected[-10:]  # replay adds nothing


def test_what_cannot_be_sampled_from_is_refused_in_the_first_step(student, batch):
    """Though the threshold is 0; the same words as where it samples."""
    packed = DataCollatorWithFlattening()(
        [{"input_ids": [5, 6, 7, END], "labels": [IGNORE, IGNORE, 7, END]}] * 2
    )
    whole = batch | {"labels": batch["input_ids"]}
    images = with_images([[5, *[IMAGE] * 4]], [[8, END]])
    cases = [(student, packed, "one document"), (student, whole, "need a prompt")]
    for model, unfit, words in [*cases, (llava(), images, "buffer keeps no images")]:
        for threshold in (0.0, 1.0):
            with pytest.raises(ValueError, match=words):
                DistiLLMRollouts(4, threshold=threshold)(model, unfit, 0.0, 3)
    for model, unfit, words in cases:
        with pytest.raises(ValueError, match=words):  # though it samples for one batch in a million
            GKDRollouts(4, probability=1e-6)(model, unfit, 0.0, 3)
    assert GKDRollouts(4, probability=0)(student, whole, 0.0, 3) is whole  # and none here
    with pytest.raises(ValueError, match=r"no sample would end.*\[1\], are not among the first 1 entries"):
        sample_responses(student, PROMPTS, 2, seed=0, vocab_size=END)
    for rollouts in (DistiLLMRollouts(4), GKDRollouts(4, probability=1e-6)):
        with pytest.raises(ValueError, match="no sample would end.*raise vocab_size"):
            rollouts(student, batch, 0.0, 3, vocab_size=END)
    student.config.eos_token_id = student.generation_config.eos_token_id = None
    student.config.pad_token_id = PAD
    for rollouts in (DistiLLMRollouts(4), DistiLLMRollouts(4, threshold=1.0), GKDRollouts(4, 1e-6)):
        with pytest.raises(ValueError, match="eos_token_id: set it"):
            rollouts(student, batch, 0.0, 3)


def test_the_first_step_alone_is_checked_and_draws_nothing(student, batch, monkeypatch):
    looked = []
    monkeypatch.setattr(rollouts_module, "required_ends", lambda model, size: looked.append(model) or {END})
    rollouts, torch_state, state = DistiLLMRollouts(4), torch.random.get_rng_state(), random.getstate()
    assert all(rollouts(student, batch, 0.5, seed) is batch for seed in range(5))
    assert len(looked) == 1
    assert random.getstate() == state and torch.equal(torch.random.get_rng_state(), torch_state)


@pytest.mark.parametrize("fill", [0, 2])
def test_state_and_buffer_survive_a_checkpoint(fill, tmp_path, student, batch):
    """Restored rollouts go on exactly as the saved ones do."""
    rollouts = DistiLLMRollouts(max_new_tokens=4, capacity=6, threshold=1.0)
    for seed in range(fill):
        rollouts(student, batch, 0.0, seed)
    if fill:
        rollouts.on_validation(1 / 3)
    save_file(rollouts.tensors(), tmp_path / "buffer.safetensors")
    restored = DistiLLMRollouts(max_new_tokens=4, capacity=6)
    restored.load_state_dict(json.loads(json.dumps(rollouts.state_dict(), allow_nan=False)))
    restored.load_tensors(load_file(tmp_path / "buffer.safetensors"))
    assert restored.buffer == rollouts.buffer and len(restored.buffer) == min(6, 4 * fill)
    for seed in range(10, 16):
        ours, theirs = (r(student, batch, 0.5, seed) for r in (restored, rollouts))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        for each in (restored, rollouts):
            each.on_validation(0.5)
    assert restored.state_dict() == rollouts.state_dict()


@pytest.mark.parametrize(
    ("method", "settings", "others"),
    [
        ("gkd", {"probability": 0.0}, {"probability": 1.0}),
        ("distillm", {"capacity": 4, "threshold": 1.0}, {"capacity": 8, "threshold": 1.0}),
    ],
)
def test_a_run_goes_on_with_the_same_sampling_alone(method, settings, others, tmp_path):
    def trainer(steps: int, chosen: dict):
        how = objective(method, max_new_tokens=4, **chosen)
        return tiny_trainer(tmp_path, how, steps=steps, save_strategy="steps", save_steps=2)

    trainer(2, settings).train()
    name, value = next(iter(others.items()))
    with pytest.raises(
        ValueError, match=rf"checkpoint of .*{name}={settings[name]}.*method is .*{name}={value}"
    ):
        trainer(3, others).train(resume_from_checkpoint=True)
    trainer(3, settings).train(resume_from_checkpoint=True)


# Several ranks


def _rank(rank: int, folder: Path) -> list:
    """What each of two processes does that share a student by FSDP2, with seeds as the trainer draws them."""
    mesh, model, found = init_device_mesh("cpu", (2,)), tiny_model(), []
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh)
    batch = Collator(PAD)(tiny_examples(4)[2 * rank : 2 * rank + 2])
    for rollouts in (GKDRollouts(6, 0.5), DistiLLMRollouts(6, capacity=4, threshold=0.7)):
        for step in range(8):
            mixed = rollouts(model, batch, step / 8, 42 * 1_000_003 + 2 * step + rank)
            response_logits(model, mixed)[0].sum().backward()
            prompts, labels = prompts_of(mixed), mixed["labels"]
            found.append(("sampled" in mixed, prompts, labels[labels != IGNORE].tolist()))
    with pytest.raises(ValueError, match="FSDP of version 1"):
        sample_responses(
            FullyShardedDataParallel(tiny_model(), device_id=torch.device("cpu")), PROMPTS, 2, seed=0
        )
    return found


def test_ranks_that_share_a_student_sample_together(tmp_path):
    """They hung, for each decided by its own seed. Oracle of the samples: the whole model, of the rank's seed."""
    ranks = on_two_ranks(_rank, tmp_path)
    decisions = [[sampled for sampled, _, _ in found] for found in ranks]
    assert decisions[0] == decisions[1] and {*decisions[0][:8]} == {*decisions[0][8:]} == {True, False}
    for rank, found in enumerate(ranks):
        for step, (sampled, prompts, labels) in enumerate(found[:8]):
            if sampled:
                alone = sample_responses(tiny_model(), prompts, 6, 42 * 1_000_003 + 2 * step + rank)
                assert labels == [*chain.from_iterable(alone)]
