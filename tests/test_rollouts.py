"""Sampling from the student: what is sampled, what is learned, what is kept."""

import json

import pytest
import torch
from conftest import END, PAD, VOCAB, tiny_examples, tiny_model
from safetensors.torch import load_file, save_file

from taid import rollouts as rollouts_module
from taid.data import IGNORE, Collator
from taid.logits import response_logits
from taid.rollouts import DistiLLMRollouts, GKDRollouts, prompts_of, sample_responses, to_batch

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


@pytest.fixture
def free_sampling(monkeypatch):
    """For tests that count many decisions to sample and never look at a sample."""

    def end_at_once(model, prompts, *settings):
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


def test_a_model_without_padding_token_is_told(student):
    student.config.pad_token_id = None
    with pytest.raises(ValueError, match="pad_token_id"):
        sample_responses(student, PROMPTS, 2, seed=0)


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
    expected = sum(sample_responses(student, prompts_of(batch), 5, seed=3), [])
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
