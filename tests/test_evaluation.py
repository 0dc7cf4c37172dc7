"""What is measured is what is said: each measure against a slow, plain one of its own, written without batches."""

from statistics import mean

import pytest
import torch
from conftest import END, FAMILIES, PAD, VOCAB, tiny_examples, tiny_model, tiny_tokenizer
from datasets import Dataset
from scipy.stats import chisquare
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from taid.data import Collator
from taid.evaluation.generation import distinct_bigrams, generate
from taid.evaluation.likelihood import held_out_loss, held_out_loss_per_token, kl_to_teacher
from taid.studies import judge as judging
from taid.studies.instructions import CATEGORIES, Instruction
from taid.studies.judge import Judge, by_category, category_scores, evaluate
from taid.teacher import LiveTeacher

EXAMPLES = tiny_examples(24)
NEW_TOKENS = 16


# --- generation


@torch.no_grad()
def by_hand(model, tokenizer, prompt: list[int], ends=(END,), most: int = NEW_TOKENS) -> str:
    """Argmax after argmax, the whole sequence anew for each token: no cache, no batch, no padding."""
    ids = list(prompt)
    for _ in range(most):
        token = model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()
        if token in ends:
            break
        ids.append(token)
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_argmax_in_any_batch(family, tokenizer):
    """Prompts of 2 to 6 tokens share batches, so that padding, position ids and cache would show."""
    model = tiny_model(family).eval()
    expected = [by_hand(model, tokenizer, e["prompt_ids"]) for e in EXAMPLES]
    assert len(set(expected)) > 10, "the model says the same to all"
    assert min(len(text.split()) for text in expected) < NEW_TOKENS, "no response ends before it is cut"
    for size in (1, 5, 64):
        assert generate(model, tokenizer, EXAMPLES, NEW_TOKENS, batch_size=size) == expected
    assert generate(model, tokenizer, EXAMPLES[::-1], NEW_TOKENS) == expected[::-1]


@pytest.mark.parametrize("where", ["generation_config", "config"])
def test_a_response_ends_before_any_end_of_model_and_tokenizer(where, tokenizer):
    """As Phi-3's and Gemma's models, which end a turn by a token that is not their tokenizer's end."""
    model, ends = tiny_model().eval(), list(range(2, 12))
    model.generation_config.eos_token_id = None
    getattr(model, where).eos_token_id = ends
    expected = [by_hand(model, tokenizer, e["prompt_ids"], {END, *ends}) for e in EXAMPLES]
    assert expected != [by_hand(model, tokenizer, e["prompt_ids"]) for e in EXAMPLES]
    assert generate(model, tokenizer, EXAMPLES, NEW_TOKENS) == expected
    said = generate(model, tokenizer, EXAMPLES, NEW_TOKENS, temperature=1.0)
    assert not {word for text in said for word in text.split()} & {f"w{i}" for i in ends}


def without_padding(**special) -> PreTrainedTokenizerFast:
    """As GPT-2's and Llama's."""
    return PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer, **special)


def test_a_tokenizer_needs_no_padding(tokenizer):
    """Padding is masked: with it or without, the same; also where there is no end, and where the model lacks it."""
    model = tiny_model().eval()
    expected = [by_hand(model, tokenizer, e["prompt_ids"]) for e in EXAMPLES]
    assert generate(model, without_padding(eos_token="<end>"), EXAMPLES, NEW_TOKENS) == expected
    added = without_padding(eos_token="<end>")
    added.add_special_tokens({"pad_token": "[PAD]"})
    assert added.pad_token_id == VOCAB
    assert generate(model, added, EXAMPLES, NEW_TOKENS) == expected
    endless, plain = tiny_model(eos_token_id=None, pad_token_id=None).eval(), without_padding()
    expected = [by_hand(endless, plain, e["prompt_ids"], ()) for e in EXAMPLES]
    assert generate(endless, plain, EXAMPLES, NEW_TOKENS) == expected


def test_a_response_ends_where_the_positions_do(tokenizer):
    """GPT-2 of 10 learned positions: 16 tokens do not follow 2 to 6; and a prompt's response is its own in any batch."""
    model = tiny_model("gpt2", max_position_embeddings=10).eval()
    expected = [by_hand(model, tokenizer, e["prompt_ids"], most=10 - len(e["prompt_ids"])) for e in EXAMPLES]
    assert {len(text.split()) for text in expected} >= {4, 8}, "none is cut, or all at once"
    for size in (1, 5, 64):
        assert generate(model, tokenizer, EXAMPLES, NEW_TOKENS, batch_size=size) == expected
    with pytest.raises(ValueError, match="10 tokens leaves no place.*10 positions.*Shorten"):
        generate(model, tokenizer, [*EXAMPLES, {"prompt_ids": [5] * 10}], NEW_TOKENS)


def test_tokens_of_another_tokenizer_are_refused(tokenizer):
    with pytest.raises(ValueError, match=f"token {VOCAB}, and the model {VOCAB} entries: take the tokenizer"):
        generate(tiny_model(), tokenizer, [{"prompt_ids": [5, VOCAB]}], NEW_TOKENS)


def test_nothing_is_no_prompt_and_no_batch(tokenizer):
    with pytest.raises(ValueError, match="a prompt has no token: give it one at least"):
        generate(tiny_model(), tokenizer, [{"prompt_ids": []}], NEW_TOKENS)
    with pytest.raises(ValueError, match="batch_size must be a whole number of examples"):
        generate(tiny_model(), tokenizer, EXAMPLES, NEW_TOKENS, batch_size=-1)
    with pytest.raises(ValueError, match="batch_size must be a whole number of examples"):
        held_out_loss(tiny_model(), EXAMPLES, Collator(PAD), batch_size=0)


def test_sampling_depends_on_the_seed_alone(tokenizer):
    model = tiny_model()
    torch.manual_seed(1)
    first = generate(model, tokenizer, EXAMPLES, NEW_TOKENS, temperature=0.7, seed=5)
    state = torch.manual_seed(2).get_state()
    assert generate(model, tokenizer, EXAMPLES, NEW_TOKENS, temperature=0.7, seed=5) == first
    assert torch.equal(torch.get_rng_state(), state), "the global generator has moved"
    assert generate(model, tokenizer, EXAMPLES, NEW_TOKENS, temperature=0.7, seed=6) != first


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_sampling_follows_the_softmax(tokenizer, temperature):
    """Oracle: softmax(logits / T), whole (no top-k, no top-p): χ² over 6,000 first tokens of one prompt."""
    model, count = tiny_model().eval(), 6000
    prompt = EXAMPLES[0]["prompt_ids"]
    said = generate(model, tokenizer, [EXAMPLES[0]] * count, 1, temperature, seed=0, batch_size=2000)
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
    words = ["", *(f"w{i}" for i in range(2, VOCAB))]  # padding and end are both silent
    expected = torch.cat([expected[:2].sum(0, keepdim=True), expected[2:]]) * count
    common = expected > 5  # χ² wants five expected counts per cell; the others share one with silence
    common[0] = False
    observed = torch.tensor([said.count(word) for word in words], dtype=torch.float64)
    cells = [torch.cat([x[common], x[~common].sum(0, keepdim=True)]).numpy() for x in (observed, expected)]
    assert (
        cells[0].sum() == count and chisquare(*cells).pvalue > 1e-3
    )  # seeds are fixed: passes or fails for good


def test_sampling_is_no_top_of_the_vocabulary(tokenizer):
    """Oracle: softmax(logits) of 200 entries. Transformers draws from the 50 likeliest unless told otherwise. The
    tokenizer has words for 46: χ² over these, and silence."""
    model, prompt, count = tiny_model(vocab_size=200).eval(), EXAMPLES[0]["prompt_ids"], 6000
    model.lm_head.weight.data *= 0.2
    with torch.no_grad():
        q = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    said = generate(model, tokenizer, [EXAMPLES[0]] * count, 1, 1.0, seed=0, batch_size=2000)
    counts = torch.tensor([said.count(f"w{i}") for i in range(2, VOCAB)], dtype=torch.float64)
    cells = [torch.cat([c, count - c.sum(0, keepdim=True)]).numpy() for c in (counts, q[2:VOCAB] * count)]
    assert chisquare(*cells).pvalue > 1e-3


def test_entries_beyond_the_tokenizer_are_silent(tokenizer):
    """A padded vocabulary (Phi-3's) may be sampled from where nothing was learned."""
    model = tiny_model(vocab_size=2 * VOCAB)
    said = generate(model, tokenizer, EXAMPLES, NEW_TOKENS, temperature=2.0)
    assert {word for text in said for word in text.split()} <= {f"w{i}" for i in range(2, VOCAB)}


def test_distinct_bigrams_by_hand():
    assert distinct_bigrams(["a b a b", "b a"]) == 2 / 4  # ab, ba, ab | ba
    assert distinct_bigrams(["a b c", "", "d"]) == 1.0
    assert distinct_bigrams(["a", ""]) == distinct_bigrams([]) == 0.0


# --- likelihood


@torch.no_grad()
def alone(model, example: dict) -> torch.Tensor:
    """fp64 log-probabilities [R, V] at the positions that predict the response, of one sequence without padding."""
    ids = torch.tensor([example["prompt_ids"] + example["response_ids"]])
    logits = model.double()(ids, use_cache=False).logits[0]
    return logits.log_softmax(-1)[len(example["prompt_ids"]) - 1 : -1]


def loss_alone(model, example: dict) -> float:
    responses = torch.tensor(example["response_ids"])
    return -alone(model, example).gather(1, responses[:, None]).mean().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_loss_is_that_of_each_example_alone(family):
    model = tiny_model(family).eval()
    expected = [loss_alone(tiny_model(family).eval(), example) for example in EXAMPLES]
    for size in (1, 7, 256):
        found = held_out_loss(model, EXAMPLES, Collator(PAD), batch_size=size)
        assert found == pytest.approx(expected, rel=1e-4)  # fp32 against fp64, losses up to 9 nats
    assert held_out_loss(model, [], Collator(PAD)) == []


def test_a_mean_over_tokens_is_not_one_over_examples():
    """Oracle: each example alone in fp64, its mean weighted by the number of its tokens, or not."""
    losses = [loss_alone(tiny_model().eval(), example) for example in EXAMPLES]
    counts = [len(example["response_ids"]) for example in EXAMPLES]
    expected = sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)
    model = tiny_model()
    for size in (1, 7, 256):
        found = held_out_loss_per_token(model, EXAMPLES, Collator(PAD), batch_size=size)
        assert found == pytest.approx(expected, rel=1e-5)
    assert abs(expected - mean(losses)) > 0.01


def test_losses_of_a_data_set_of_any_kind():
    """As `datasets` and other collators have it; a label in the first column predicts nothing."""
    rows = [
        {"input_ids": e["prompt_ids"] + e["response_ids"], "labels": e["prompt_ids"] + e["response_ids"]}
        for e in EXAMPLES
    ]
    model, collator = tiny_model(), DataCollatorForSeq2Seq(tiny_tokenizer())
    expected = [
        loss_alone(model, {"prompt_ids": row["input_ids"][:1], "response_ids": row["input_ids"][1:]})
        for row in rows
    ]
    model.float()
    found = held_out_loss(model, Dataset.from_list(rows), collator, batch_size=7)
    assert found == pytest.approx(expected, rel=1e-4)


def test_an_example_without_labels_has_no_loss():
    rows = [
        {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[-100, 6]])},
        {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[5, -100]])},
    ]
    with pytest.raises(ValueError, match="example 1 has no label"):
        held_out_loss(tiny_model(), rows, lambda batch: batch[0], batch_size=1)
    with pytest.raises(ValueError, match="no labels"):
        held_out_loss_per_token(tiny_model(), rows[1:], lambda batch: batch[0], batch_size=1)


def test_kl_to_teacher_is_the_mean_over_tokens():
    """Oracle: Σ p (log p − log q) in fp64, every token weighing alike however long its response."""
    student, teacher = tiny_model("llama", 0).eval(), tiny_model("phi3", 1).eval()
    found = kl_to_teacher(student, LiveTeacher(teacher), EXAMPLES, Collator(PAD), VOCAB, batch_size=7)
    each = [
        (p.exp() * (p - q)).sum(-1)
        for e in EXAMPLES
        for p, q in [(alone(tiny_model("phi3", 1).eval(), e), alone(tiny_model("llama", 0).eval(), e))]
    ]
    assert found == pytest.approx(torch.cat(each).mean().item(), rel=1e-4)


def test_kl_at_no_label_is_no_number():
    silent = [{"input_ids": [5, 6], "labels": [-100, -100]}]
    with pytest.raises(ValueError, match="no example has a label"):
        kl_to_teacher(tiny_model(), LiveTeacher(tiny_model()), silent, Collator(PAD), VOCAB)


def test_kl_of_a_model_to_itself_is_zero():
    model = tiny_model().eval()
    assert kl_to_teacher(model, LiveTeacher(model), EXAMPLES, Collator(PAD), VOCAB) == pytest.approx(
        0, abs=1e-6
    )


def test_kl_takes_padding_of_the_vocabulary_and_no_other_difference():
    student, teacher = tiny_model(), LiveTeacher(tiny_model("phi3", vocab_size=VOCAB + 8))
    assert kl_to_teacher(student, teacher, EXAMPLES, Collator(PAD), VOCAB) > 0
    with pytest.raises(ValueError, match=f"{VOCAB} entries, the teacher's {VOCAB + 8}"):
        kl_to_teacher(student, teacher, EXAMPLES, Collator(PAD), VOCAB + 4)


# --- scores

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture
def chat(tokenizer):
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


PROSE = [Instruction("novel", f"w{i} w{i + 1}", f"w{i + 2}") for i in range(2, 12)]
NOISE = [f"w3 w3 w3 w{40 - i}" for i in range(len(PROSE))]


@pytest.fixture
def judge(chat):
    model, collator = tiny_model(), Collator(PAD)
    ends = {
        end: {"novel": mean(judging.log_likelihoods(model, chat, collator, PROSE, responses))}
        for end, responses in (("human", human_responses(model, chat)), ("untrained", NOISE))
    }
    assert ends["human"]["novel"] > ends["untrained"]["novel"]
    return Judge(model, chat, collator, **ends)


def human_responses(model, tokenizer) -> list[str]:
    """Likely ones, all different: what the judge itself would say, and the prompt's own word."""
    examples = [{"prompt_ids": tokenizer(item.prompt)["input_ids"]} for item in PROSE]
    said = generate(model, tokenizer, examples, 2)
    return [f"{text} {item.response}" for text, item in zip(said, PROSE, strict=True)]


def test_the_judges_scale_ends_at_0_and_10(judge, chat):
    assert judge.score("novel", PROSE, human_responses(judge.model, chat)) == 10
    assert judge.score("novel", PROSE, NOISE) == 0


def test_the_judge_is_linear_in_the_log_likelihood_and_cut(judge, monkeypatch):
    low, high = judge.untrained["novel"], judge.human["novel"]
    different = [f"w{i}" for i in range(len(PROSE))]
    for share, expected in ((-1, 0), (0, 0), (0.25, 2.5), (0.5, 5), (1, 10), (3, 10)):
        monkeypatch.setattr(
            judging, "log_likelihoods", lambda *a, at=low + share * (high - low): [at] * len(PROSE)
        )
        assert judge.score("novel", PROSE, different) == pytest.approx(expected, abs=1e-9)


def test_a_response_counts_once(judge, monkeypatch):
    """Ten human-like responses of which n are different score n points."""
    monkeypatch.setattr(judging, "log_likelihoods", lambda *a: [judge.human["novel"]] * len(PROSE))
    for n in (1, 4, 10):
        assert judge.score("novel", PROSE, [f"w{i % n}" for i in range(10)]) == pytest.approx(n, abs=1e-9)


def test_a_judge_that_cannot_tell_text_from_noise_is_refused():
    with pytest.raises(ValueError, match="'novel': train it longer"):
        Judge(None, None, None, human={"novel": -3.0}, untrained={"novel": -3.0})


def test_log_likelihoods_are_per_token(chat):
    """−held_out_loss of prompt and response, whatever stands in the batch beside it."""
    model, collator = tiny_model(), Collator(PAD)
    responses = ["w9", "w4 " * 9]
    alone = [
        judging.log_likelihoods(model, chat, collator, [i], [r])[0]
        for i, r in zip(PROSE, responses, strict=False)
    ]
    assert judging.log_likelihoods(model, chat, collator, PROSE[:2], responses) == pytest.approx(
        alone, rel=1e-5
    )


def test_categories_keep_their_order_and_pairs():
    items = [Instruction(c, f"{c} {i}", "") for i in range(2) for c in reversed(CATEGORIES)]
    found = by_category(items, [item.prompt for item in items])
    assert list(found) == list(CATEGORIES)
    for category, (chosen, responses) in found.items():
        assert [item.prompt for item in chosen] == responses == [f"{category} 0", f"{category} 1"]
    assert list(by_category(items[:1], ["x"])) == [items[0].category]


def test_category_scores_by_hand(judge):
    items = (
        [Instruction("kind", "w2", "a", ("a",))] * 4
        + [Instruction("opposite", "w2", "b", ("b", "c"))] * 2
        + PROSE
    )
    responses = ["a", "A ", "b", "", "c", "a", *NOISE]
    assert category_scores(judge, items, responses) == {"kind": 5.0, "opposite": 5.0, "novel": 0.0}


def test_the_headline_is_greedy_for_answers_and_sampled_for_prose(chat, monkeypatch):
    """A student that answers right greedily only, and writes well sampled only, has 10 in both."""
    items = [
        Instruction("kind", "w2", "right", ("right",)),
        *(Instruction("novel", f"w{i}", "good") for i in (2, 3)),
    ]
    asked = []

    def fake(model, tokenizer, examples, max_new_tokens, temperature=0.0, seed=0):
        asked.append((len(examples), max_new_tokens, temperature, seed))
        return ["wrong", "good 1", "good 2"] if temperature else ["right", "bad 1", "bad 2"]

    monkeypatch.setattr(judging, "generate", fake)
    monkeypatch.setattr(judging, "log_likelihoods", lambda *a: [-1.0 if "good" in r else -3.0 for r in a[-1]])
    judge = Judge(None, chat, None, human={"novel": -1.0}, untrained={"novel": -3.0})
    assert evaluate(None, chat, judge, items, seed=4) == {
        "score_greedy": {"kind": 10.0, "novel": 0.0},
        "score_sampled": {"kind": 0.0, "novel": 10.0},
        "score": {"kind": 10.0, "novel": 10.0},
        "distinct_bigrams": {"all": 1.0},
    }
    assert asked == [(3, judging.MAX_NEW_TOKENS, 0.0, 0), (3, judging.MAX_NEW_TOKENS, judging.TEMPERATURE, 4)]
