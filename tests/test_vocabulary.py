"""Vocabularies: what is padding, what is another tokenizer's, and what is done about either."""

from copy import deepcopy

import pytest
import torch
from conftest import END, PAD, VOCAB, tiny_model, tiny_tokenizer, tiny_trainer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from taid import vocabulary
from taid.objectives import objective
from taid.sampling import sample_responses
from taid.vocabulary import compared_tokenizers, shared_vocabulary, tokenizer_named, tokenizer_of


class Processor(ProcessorMixin):
    """As of image-text models: a tokenizer inside, no vocabulary of its own."""

    def __init__(self, tokenizer=None):
        super().__init__(tokenizer)


def with_words(words: list[str], splitter=pre_tokenizers.Whitespace) -> PreTrainedTokenizerFast:
    """`tiny_tokenizer` with other words in the places from 2 on."""
    entries = {"<pad>": PAD, "<end>": END} | {word: i for i, word in enumerate(words, start=2)}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token=words[0]))
    tokenizer.pre_tokenizer = splitter()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


WORDS = [f"w{i}" for i in range(2, VOCAB)]


def padded(model, entries: int, weight: float = 0.5):
    """The model with further vocabulary entries, all of embedding `weight`."""
    wide, state = tiny_model(vocab_size=VOCAB + entries), model.state_dict()
    for name, tensor in state.items():
        if len(tensor) == VOCAB:
            state[name] = torch.cat([tensor, tensor.new_full((entries, tensor.shape[1]), weight)])
    wide.load_state_dict(state)
    return wide


def weights(model) -> dict:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# Tokenizers


def test_the_tokenizer_of_a_processor_is_found(tokenizer):
    assert tokenizer_of(tokenizer) is tokenizer and tokenizer_of(Processor(tokenizer)) is tokenizer
    assert tokenizer_of(None) is None and tokenizer_of(str.split) is None


def test_a_tokenizer_that_lies_with_its_model_is_found(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "with")
    tiny_model("qwen2").save_pretrained(tmp_path / "without")  # of which AutoTokenizer makes one of one token
    assert tokenizer_named(str(tmp_path / "with")).get_vocab() == tokenizer.get_vocab()
    for name in (tmp_path / "without", tmp_path / "nowhere", "", None):
        assert tokenizer_named(name and str(name)) is None


def test_added_tokens_count():
    """Of tokenizers of 48 words and two tokens added later, 50 entries mean something (`vocab_size` says 48)."""
    pair = [tiny_tokenizer(), tiny_tokenizer()]
    for each in pair:
        each.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    assert pair[0].vocab_size == VOCAB and compared_tokenizers(*pair) == VOCAB + 2


def test_tokenizers_that_differ_are_told_apart_where_they_begin_to(tokenizer):
    renamed, longer = with_words([*WORDS[:-3], "x", "y", "z"]), with_words([*WORDS, "more"])
    for other, first, theirs in ((renamed, VOCAB - 3, "'x'"), (longer, VOCAB, "'more'")):
        with pytest.raises(
            ValueError, match=f"entry {first} is .* to the student's .*{theirs} to the teacher's"
        ):
            compared_tokenizers(tokenizer, other)
        assert compared_tokenizers(tokenizer, other, vocab_size=first) == first
    with pytest.raises(ValueError, match="differ in more than padding"):
        compared_tokenizers(tokenizer, renamed, vocab_size=VOCAB)
    with pytest.raises(ValueError, match="split a text in two ways"):
        compared_tokenizers(tokenizer, with_words(WORDS, pre_tokenizers.WhitespaceSplit))


# Numbers of entries


@pytest.mark.parametrize(
    ("sizes", "entries"),
    [
        ((48, 48, None, None), 48),  # equal tables, nothing known
        ((64, 64, None, 48), 48),  # both padded alike
        ((32064, 32064, None, 32011), 32011),  # Phi-3
        ((64, 48, None, 48), 48),  # the teacher knows no entry that the student's tokenizer does not
        ((48, 80, 48, None), 48),  # said, or compared
        ((80, 500, 48, None), 48),
        ((48, 48, 50, None), 48),  # a token was added to the tokenizer, no entry to the models
        ((151936, 152064, 151665, None), 151665),  # Qwen2.5, 0.5B and 7B
    ],
)
def test_entries_that_are_shared(sizes, entries):
    assert shared_vocabulary(*sizes) == entries


@pytest.mark.parametrize(
    "sizes",
    [
        (48, 500, None, 48),  # the student's table is as long as its tokenizer: the teacher's knows more
        (48, 80, None, 48),
        (52, 500, None, 48),  # both longer, but by more than padding
        (32064, 151936, None, 32011),
        (500, 500, None, 48),  # as long as each other, and too long for padding
        (151936, 151936, None, 150911),
        (48, 64, None, None),
        (64, 48, None, 52),
        (48, 64, 52, None),
    ],
)
def test_entries_that_may_mean_something_are_not_cut(sizes):
    with pytest.raises(ValueError, match=f"more than padding: the student's has {sizes[0]} .* {sizes[1]}, "):
        shared_vocabulary(*sizes)


def test_a_guess_is_said():
    with pytest.warns(UserWarning, match="entries from 48 on are taken for padding"):
        assert shared_vocabulary(52, 64, None, 48) == 48


# In training


@pytest.mark.parametrize("wide", [("teacher",), ("student",), ("student", "teacher")])
@pytest.mark.parametrize("method", ["kl", "taid", "dkd"])
def test_padding_of_a_vocabulary_is_cut(method, wide, tmp_path, student, teacher, tokenizer):
    """32 entries beyond the tokenizer's, with logits far from −∞, change neither loss nor gradient."""
    runs = []
    for entries in (0, 32):
        given = {"student": deepcopy(student), "teacher": deepcopy(teacher)}
        given |= {name: padded(given[name], entries) for name in wide}
        trainer = tiny_trainer(
            tmp_path, method, steps=1, tokenizer=tokenizer, teacher_tokenizer=tokenizer, **given
        )
        trainer.train()
        runs.append(trainer)
    plain, cut = runs
    assert cut.state.log_history[0]["loss"] == pytest.approx(plain.state.log_history[0]["loss"], abs=1e-6)
    found = weights(cut.model)
    for name, expected in weights(plain.model).items():
        torch.testing.assert_close(found[name][: len(expected)], expected, atol=1e-5, rtol=0)


def test_another_tokenizer_is_refused_with_what_to_pass(tmp_path, tokenizer):
    """At construction for models; with the first batch for a callable, whose width nobody knows before."""
    teacher = tiny_model("qwen2", vocab_size=500)
    words = f"{VOCAB} entries, the teacher's 500, the tokenizer has 48 tokens.*teacher_processing_class=…"
    with pytest.raises(ValueError, match=words):
        tiny_trainer(tmp_path, "kl", teacher=teacher, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="no tokenizer was given"):
        tiny_trainer(tmp_path, "kl", teacher=teacher)
    called = tiny_trainer(tmp_path, "kl", teacher=lambda batch: torch.zeros(23, 500), tokenizer=tokenizer)
    with pytest.raises(ValueError, match=words):
        called.train()
    other = with_words([f"v{i}" for i in range(498)])
    for given in (other, Processor(other)):
        with pytest.raises(ValueError, match="entry 2 is 'w2' to the student's tokenizer and 'v0'"):
            tiny_trainer(tmp_path, "kl", teacher=teacher, tokenizer=tokenizer, teacher_tokenizer=given)
    with pytest.raises(ValueError, match="teacher_processing_class is a str"):
        tiny_trainer(tmp_path, "kl", teacher=teacher, tokenizer=tokenizer, teacher_tokenizer="qwen")


def test_a_number_of_entries_is_one(tmp_path):
    with pytest.raises(ValueError, match="vocab_size=0: name the number"):
        tiny_trainer(tmp_path, "kl", vocab_size=0)


def test_tables_that_are_too_long_are_refused_until_the_tokenizers_are_known(tmp_path, tokenizer):
    """500 entries may be another tokenizer's, whatever the tables of both sides."""
    models = {"student": tiny_model(vocab_size=500), "teacher": tiny_model(seed=1, vocab_size=500)}
    with pytest.raises(ValueError, match="has 500 entries, the teacher's 500, the tokenizer has 48 tokens"):
        tiny_trainer(tmp_path, "kl", tokenizer=tokenizer, **models)
    for known in ({"teacher_tokenizer": tokenizer}, {"vocab_size": VOCAB}):
        tiny_trainer(tmp_path, "kl", steps=1, tokenizer=tokenizer, **models, **known).train()


def test_a_number_of_entries_wants_a_teacher(tmp_path):
    with pytest.raises(ValueError, match="vocab_size=20 is what student and teacher share.*leave it out"):
        tiny_trainer(tmp_path, "sft", teacher=None, vocab_size=20)


def test_nothing_is_looked_for_without_a_teacher(tmp_path, monkeypatch):
    """A name may be a hub's, and the hub far away."""
    monkeypatch.setattr(vocabulary, "cached_file", lambda *_: pytest.fail("looked for a tokenizer"))
    student = tiny_model()
    student.name_or_path = "somebody/model"
    tiny_trainer(tmp_path, "sft", student=student, teacher=None)


def test_tables_of_one_length_are_compared_too(tmp_path, tokenizer):
    """The tokenizers lie with the models here, as with models of a hub."""
    folders = tmp_path / "student", tmp_path / "teacher"
    for folder, saved in zip(folders, (tokenizer, with_words(WORDS[::-1])), strict=True):
        tiny_model().save_pretrained(folder)
        saved.save_pretrained(folder)
    student, teacher = (type(tiny_model()).from_pretrained(folder) for folder in folders)
    for given in (None, tokenizer):
        with pytest.raises(ValueError, match="entry 2 is 'w2' to the student's"):
            tiny_trainer(tmp_path, "kl", student=student, teacher=teacher, tokenizer=given)
    tiny_trainer(
        tmp_path, "kl", student=student, teacher=teacher, tokenizer=tokenizer, teacher_tokenizer=tokenizer
    )


@pytest.mark.parametrize("wrap", [lambda tokenizer: tokenizer, Processor])
def test_a_processor_is_as_good_as_its_tokenizer(wrap, tmp_path, tokenizer):
    models = {"student": tiny_model(vocab_size=52), "teacher": tiny_model(seed=1, vocab_size=64)}
    with pytest.warns(UserWarning, match="taken for padding"):
        trainer = tiny_trainer(tmp_path, "kl", steps=1, tokenizer=wrap(tokenizer), **models)
        trainer.train()
    assert trainer._limits()[0] == VOCAB


def test_labels_of_another_tokenizer_are_refused(tmp_path, tokenizer):
    """The last word, 47, is a token of both models, but beyond what the caller says they share."""
    examples = [{"index": 0, "prompt_ids": [5], "response_ids": [VOCAB - 1, END]}] * 4
    with pytest.raises(ValueError, match="label 47 is not one of the 40 tokens"):
        tiny_trainer(tmp_path, "kl", vocab_size=40, examples=examples).train()


# In sampling


@pytest.mark.parametrize("teacher_entries", [0, 16])
@pytest.mark.parametrize("method", ["gkd", "distillm"])
def test_padding_is_never_sampled(method, teacher_entries, tmp_path, student, teacher, tokenizer):
    """A student that would sample little else: its 16 padding entries have the largest logits."""
    options = {"probability": 1.0} if method == "gkd" else {"threshold": 1.0}
    seen = []

    def recorded(batch):
        seen.append(batch["labels"])
        return live(batch)

    trainer = tiny_trainer(
        tmp_path,
        objective(method, max_new_tokens=8, **options),
        student=padded(student, 16, weight=20.0),
        teacher=padded(teacher, teacher_entries) if teacher_entries else teacher,
        tokenizer=tokenizer,
    )
    live, trainer.teacher = trainer.teacher, recorded
    trainer.train()
    assert len(seen) == 4 and all(labels.max() < VOCAB for labels in seen)


def test_what_may_be_sampled_keeps_its_odds(student):
    """χ² of 4,000 first tokens of the first 20 entries against softmax of their logits: 19 degrees of freedom,
    below 51 for 99.99%."""
    drawn = sample_responses(student, [[5, 6]] * 4000, 1, seed=0, vocab_size=20)
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=20)
    expected = student.eval()(torch.tensor([[5, 6]])).logits[0, -1, :20].softmax(-1) * 4000
    assert len(counts) == 20 and ((counts - expected) ** 2 / expected).sum() < 51
