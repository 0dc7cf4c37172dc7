"""Data sets of text in the trainer: lists, datasets.Dataset, streams; packing, padding and several ranks."""

import copy
from itertools import pairwise
from pathlib import Path

import pandas
import pytest
from conftest import VOCAB, tiny_model, tiny_tokenizer, tiny_trainer
from datasets import Dataset, DatasetDict
from datasets import IterableDataset as DatasetsStream
from ranks import on_two_ranks
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
)

from taid.data import IGNORE, Collator, KeepEnds, pack_documents
from taid.probes import check_packing
from taid.teacher import cached_teacher
from taid.text.examples import MASKS, examples, length_for

TEMPLATE = (
    "{% for m in messages %}{{ 'w2' if m['role'] == 'user' else 'w3' }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}w3 {% endif %}"
)
TEXT = [{"text": "w2 w3"}]
CHATS = [
    [{"role": "user", "content": f"w{i % 40 + 4}"}, {"role": "assistant", "content": " w9" * (i % 5)}]
    for i in range(40)
]


@pytest.fixture(scope="module")
def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class Rows(IterableDataset):
    """A stream that is not of the library datasets."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        yield from self.rows


KINDS = {  # of data set → from a list of rows
    "list": list,
    "Dataset": Dataset.from_list,
    "stream of datasets": lambda rows: DatasetsStream.from_generator(lambda: iter(rows)),
    "shards": lambda rows: Dataset.from_list(rows).to_iterable_dataset(num_shards=3),
    "stream": Rows,
}


def plainly(rows) -> list[dict]:
    return [dict(row) for row in rows]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_set_gives_the_same_examples(kind, packing, chat_tokenizer):
    """Oracle: the list's; of shards, which are packed each for itself, the documents."""
    rows = [{"messages": chat, "source": "x"} for chat in CHATS]
    expected = examples(rows, chat_tokenizer, 32, packing)
    found = plainly(examples(KINDS[kind](rows), chat_tokenizer, 32, packing))
    if kind == "shards" and packing:
        documents = [
            sorted(tuple(d) for row in data for d in documents_of(row)) for data in (found, expected)
        ]
        assert documents[0] == documents[1]
    else:
        assert found == expected


def documents_of(row: dict) -> list[list[int]]:
    starts = [i for i, position in enumerate(row["position_ids"]) if position == 0] + [len(row["input_ids"])]
    return [row["input_ids"][a:b] for a, b in pairwise(starts)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_no_use_are_counted_or_refused(kind, chat_tokenizer):
    """None, empty, only the user: a warning with the numbers; nothing else: an error."""
    bad = [{"messages": None}, {"messages": []}, {"messages": CHATS[0][:1]}]
    with pytest.warns(UserWarning, match="left out") as caught:
        found = plainly(examples(KINDS[kind]([*bad, {"messages": CHATS[1]}]), chat_tokenizer, 32))
    assert len(found) == 1
    if kind in ("list", "Dataset"):
        assert "3 of 4 rows of train_dataset are left out" in str(caught[0].message)
        assert "no turn of an assistant to learn: 2 (row 1 first)" in str(caught[0].message)
    with pytest.raises(ValueError, match=r"no row of .*train_dataset can be learned from"):
        plainly(examples(KINDS[kind](3 * bad[1:]), chat_tokenizer, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_columns_are_refused(kind, chat_tokenizer):
    with pytest.raises(ValueError, match="no text to learn in the columns 'conversations'"):
        plainly(examples(KINDS[kind](3 * [{"conversations": "w2"}]), chat_tokenizer, 32))


def test_a_dictionary_of_splits_a_path_and_nothing_are_refused(chat_tokenizer):
    rows = Dataset.from_list([{"text": "w2 w3"}])
    with pytest.raises(
        ValueError, match=r"splits train, test: pass one of them, train_dataset=data\['train'\]"
    ):
        examples(DatasetDict(train=rows, test=rows), chat_tokenizer, 32)
    with pytest.raises(ValueError, match=r"string 'data.jsonl': load it first"):
        examples("data.jsonl", chat_tokenizer, 32)
    with pytest.raises(ValueError, match="train_dataset has no rows"):
        examples([], chat_tokenizer, 32)
    with pytest.raises(ValueError, match="pass processing_class"):
        examples([{"text": "w2 w3"}], None, 32)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (iter(TEXT), "list_iterator, which cannot be read again and again"),
        (5, "int, which cannot be read"),
        (["w2 w3"], "a row of train_dataset is a dictionary from columns to values, not a str"),
        (pandas.DataFrame({"text": ["w2"]}), r"not a DataFrame: .*from_pandas"),
        (DatasetsStream.from_generator(lambda: iter(())), "has no rows"),
    ],
)
def test_what_is_no_data_set_is_refused(data, words, chat_tokenizer):
    with pytest.raises(ValueError, match=words):
        examples(data, chat_tokenizer, 32)


TOKENS = {"input_ids": [2, 3, 1]}


NO_ROW = "a row of train_dataset is a dictionary from columns to values, not a NoneType"


@pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
        ("list", [TOKENS, TEXT[0]], "row 1 of train_dataset has the columns text, and the first input_ids"),
        ("list", [TOKENS | {"labels": None}], "labels None: leave them out of all rows"),
        ("list", [TOKENS, None], NO_ROW),
        ("list", [TEXT[0], None], NO_ROW),
        ("list", [None, TEXT[0]], NO_ROW),
        ("stream", [TOKENS, None], NO_ROW),
        ("stream", [TEXT[0], None], NO_ROW),
    ],
)
def test_rows_of_odd_kinds_are_refused(kind, rows, words, chat_tokenizer):
    with pytest.raises(ValueError, match=words):
        list(examples(KINDS[kind](rows), chat_tokenizer, 32))


UNREAD = {mask: f"train_dataset has {mask}, and no labels: add 'labels'" for mask in MASKS}
UNREAD |= {"seq_lengths": "several documents, with seq_lengths: add 'position_ids'"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", UNREAD)
def test_columns_that_would_be_dropped_are_refused(kind, column, chat_tokenizer):
    """But not beside labels and positions, which say the same in our form."""
    row = TOKENS | {column: [0, 0, 1]}
    read = row | {"labels": [IGNORE, IGNORE, 1], "position_ids": [0, 1, 2]}
    for packing in (False, True):
        with pytest.raises(ValueError, match=UNREAD[column]):
            list(examples(KINDS[kind](3 * [row]), chat_tokenizer, 32, packing))
        found = plainly(examples(KINDS[kind](3 * [read]), chat_tokenizer, 32, packing))
        assert found[0]["labels"][:3] == read["labels"]


def test_masks_are_refused_under_a_collator_that_does_not_read_them(tmp_path, chat_tokenizer):
    for collator in (COLLATORS["language modelling"](chat_tokenizer), DataCollatorWithFlattening()):
        with pytest.raises(ValueError, match="train_dataset has completion_mask, and no labels"):
            tiny_trainer(
                tmp_path, "kl", examples=[TOKENS | {"completion_mask": [0, 1, 1]}], collator=collator
            )


def test_no_name_and_no_raw_tokenizer_is_a_processing_class(tmp_path, chat_tokenizer):
    for given, words in (
        ("gpt2", r"'gpt2': load it, AutoTokenizer.from_pretrained\('gpt2'\)"),
        (
            chat_tokenizer.backend_tokenizer,
            "tokenizers.Tokenizer: pass transformers' PreTrainedTokenizerFast",
        ),
    ):
        with pytest.raises(TypeError, match=words):
            tiny_trainer(tmp_path, examples=TEXT, collator=None, tokenizer=given)
        with pytest.raises(TypeError, match=words):
            examples(TEXT, given, 32)


def test_a_padding_token_that_a_model_cannot_read_is_refused(tmp_path, chat_tokenizer):
    """Until the model has an embedding for it."""
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    for collator in (None, DataCollatorForSeq2Seq(tokenizer)):
        given = dict(
            method="sft", teacher=None, examples=[TOKENS] * 4, collator=collator, tokenizer=tokenizer
        )
        with pytest.raises(
            ValueError, match=r"padding token is 48, and a model has embeddings for 48 tokens"
        ):
            tiny_trainer(tmp_path, **given)
        tiny_trainer(tmp_path, student=tiny_model(vocab_size=49), **given)


def test_cut_rows_are_counted(chat_tokenizer):
    with pytest.warns(UserWarning, match="1 of 2 rows of train_dataset are cut after max_length=3"):
        assert len(examples([{"text": "w4 w5"}, {"text": "w4 w5 w6"}], chat_tokenizer, 3)) == 2


def test_a_length_no_model_has_is_refused(student):
    assert length_for([student], None) == 128
    with pytest.raises(ValueError, match="max_length=129, but a model has 128 positions"):
        length_for([student], 129)
    with pytest.raises(ValueError, match="2 tokens at least"):
        length_for([student], 1)


# --- packing


def test_packed_rows_hold_whole_documents_within_the_length():
    """By hand: 5 and 3, 4 and 4, 2 fit into eight tokens."""
    rows = [{"input_ids": list(range(10 * n, 10 * n + n))} for n in (2, 3, 4, 4, 5)]
    packed = pack_documents(rows, 8)
    assert sorted(len(row["input_ids"]) for row in packed) == [2, 8, 8]
    assert sorted(d for row in packed for d in documents_of(row)) == sorted(row["input_ids"] for row in rows)
    for row in packed:
        heads = [i for i, position in enumerate(row["position_ids"]) if position == 0]
        assert all(row["labels"][i] == IGNORE for i in heads)
        others = [i for i in range(len(row["labels"])) if i not in heads]
        assert all(row["labels"][i] == row["input_ids"][i] for i in others)


@pytest.mark.parametrize("family", ["llama", "phi3", "stablelm", "gpt_neox", "qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_are_learned_as_if_alone(family, attention, tmp_path, chat_tokenizer):
    """Oracle: the loss of the same documents, padded."""
    rows = [{"messages": chat} for chat in CHATS[:8]]
    losses = []
    for packing in (False, True):
        student = tiny_model(family, attn_implementation=attention)
        trainer = tiny_trainer(
            tmp_path,
            "kl",
            student=student,
            teacher=tiny_model(family, seed=1),
            steps=1,
            batch=8,
            examples=rows,
            collator=None,
            tokenizer=chat_tokenizer,
            max_length=24,
            packing=packing,
        )
        assert ("position_ids" in trainer.train_dataset[0]) == packing
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_model_in_which_documents_leak_is_refused(tmp_path, chat_tokenizer):
    """Mamba's state runs on over the row; BLOOM takes no positions."""
    from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2))
    for model in (mamba, bloom):
        with pytest.raises(ValueError, match="packed documents see each other: train with packing=False"):
            check_packing(model)
    check_packing(tiny_model(), rows=2)
    with pytest.raises(ValueError, match="samples from prompts, which packed rows have not"):
        tiny_trainer(tmp_path, "gkd", examples=TEXT, collator=None, tokenizer=chat_tokenizer, packing=True)
    with pytest.raises(ValueError, match="without data_collator"):
        tiny_trainer(tmp_path, tokenizer=chat_tokenizer, packing=True)
    with pytest.raises(ValueError, match="holds tokens, which max_length does not cut"):
        tiny_trainer(tmp_path, collator=None, tokenizer=chat_tokenizer, max_length=8)


# --- padding that is the end


COLLATORS = {
    "ours": lambda tokenizer: None,
    "language modelling": lambda tokenizer: DataCollatorForLanguageModeling(tokenizer, mlm=False),
    "sequence to sequence": DataCollatorForSeq2Seq,
    "flattening": lambda tokenizer: DataCollatorWithFlattening(),
}


@pytest.mark.parametrize("name", COLLATORS)
def test_the_end_is_learned_where_it_is_the_padding_too(name, tmp_path, chat_tokenizer):
    """Each row of tokens has its end labelled once; padding is not."""
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": [5] * n + [tokenizer.eos_token_id]} for n in (1, 2, 5)]
    if name == "sequence to sequence":
        rows = [row | {"labels": list(row["input_ids"])} for row in rows]
    trainer = tiny_trainer(
        tmp_path, "kl", examples=rows, collator=COLLATORS[name](tokenizer), tokenizer=tokenizer
    )
    labels = trainer.data_collator(rows)["labels"]
    assert (labels == tokenizer.eos_token_id).sum() == 3
    assert (labels[:, 1:] != IGNORE).sum() == 8 or name == "flattening"


def test_a_collator_that_would_lose_labels_is_refused(tokenizer):
    with pytest.raises(ValueError, match="would lose the labels"):
        KeepEnds(DataCollatorForLanguageModeling(tokenizer, mlm=False))(
            [{"input_ids": [2, 3], "labels": [-100, 3]}]
        )
    with pytest.raises(ValueError, match="pixel_values: pass data_collator"):
        Collator(0)([{"input_ids": [2, 3], "messages": CHATS[0], "source": "x", "pixel_values": [1]}])
    with pytest.raises(ValueError, match="2 input_ids and 1 labels"):
        Collator(0)([{"input_ids": [2, 3], "labels": [3]}])


class Completions(DataCollatorForLanguageModeling):
    """Masks three tokens itself, as TRL's DataCollatorForCompletionOnlyLM did a prompt."""

    def torch_call(self, examples):
        batch = super().torch_call(examples)
        batch["labels"][:, :3] = IGNORE
        return batch


def test_a_collator_s_own_labels_are_kept(tmp_path, student, chat_tokenizer):
    """Oracle: the collator's batch; in a cache, the number of logits that an example has."""
    rows, collator = [{"input_ids": [5, 6, 7, 8, 1]}] * 4, Completions(chat_tokenizer, mlm=False)
    trainer = tiny_trainer(tmp_path, "kl", examples=rows, collator=collator)
    assert trainer.data_collator(rows)["labels"].tolist() == [[IGNORE] * 3 + [8, 1]] * 4
    cache = cached_teacher(student, rows, collator, tmp_path / "cache")
    assert len(cache(collator(rows[:1]))) == 2


@pytest.mark.parametrize("kind", ["list", "Dataset", "shards"])
def test_text_under_a_collator_that_pads_tokens_is_refused(kind, tmp_path, chat_tokenizer):
    for collator in (DataCollatorForSeq2Seq(chat_tokenizer), COLLATORS["language modelling"](chat_tokenizer)):
        with pytest.raises(ValueError, match=r"holds text, and .* pads tokens: leave out data_collator"):
            tiny_trainer(
                tmp_path, examples=KINDS[kind](3 * TEXT), collator=collator, tokenizer=chat_tokenizer
            )


# --- streams that are not of the library datasets


class Orders(Rows):
    """A stream that has another order in every pass."""

    def set_epoch(self, epoch):
        self.rows = [*self.rows[epoch:], *self.rows[:epoch]]


def test_a_stream_hears_of_its_passes(tmp_path, chat_tokenizer):
    """Oracle: plain Trainer, and the same rows in the order that they then have."""
    heard = []

    class Heard(Orders):
        def set_epoch(self, epoch):
            heard.append(epoch)

    rows = [{"input_ids": [i + 2, i + 2, 1]} for i in range(8)]
    tiny_trainer(tmp_path, "kl", examples=Heard(rows), collator=None, tokenizer=chat_tokenizer).train()
    ours, heard[:] = list(heard), []
    trainer = tiny_trainer(tmp_path, "kl")
    Trainer(tiny_model(), trainer.args, Collator(0), Heard(rows)).train()
    assert ours == heard and max(ours) > 0
    stream = examples(Orders(rows), chat_tokenizer, 32)
    stream.set_epoch(3)
    assert plainly(stream) == rows[3:] + rows[:3]


class Iterables:
    """No torch stream: it knows no workers."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("row", [{"input_ids": [2, 3, 1]}, {"text": "w2 w3"}])
def test_workers_share_a_stream_out(row, packing, chat_tokenizer):
    """Oracle: one process."""
    stream = examples(Iterables([row] * 8 + [{"input_ids": [9, 9]}]), chat_tokenizer, 7, packing)
    one, two = (list(DataLoader(stream, batch_size=None, num_workers=n)) for n in (0, 2))
    found = [sorted(str(example["input_ids"]) for example in examples) for examples in (one, two)]
    assert found[0] == found[1] and len(one) == (5 if packing else 9)


# --- the trainer


@pytest.mark.parametrize("method", ["taid", "gkd"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_trainer_takes_text(kind, method, tmp_path, chat_tokenizer):
    """Training, validation within and after it, and prediction; oracle of eval_loss: another kind of the data set."""
    rows = [{"messages": chat} for chat in CHATS]
    trainer = tiny_trainer(
        tmp_path,
        method,
        examples=KINDS[kind](rows),
        validation={"a": KINDS[kind](rows[:8]), "b": rows[:8]},
        tokenizer=chat_tokenizer,
        collator=None,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    losses = {
        name: value
        for log in trainer.state.log_history
        for name, value in log.items()
        if name.endswith("_loss")
    }
    assert losses["eval_a_loss"] == pytest.approx(losses["eval_b_loss"], abs=1e-5)
    assert trainer.evaluate(KINDS[kind](rows[:8]))["eval_loss"] == pytest.approx(
        losses["eval_a_loss"], abs=1e-5
    )


# --- several ranks

STREAMS = {
    "stream": lambda: Rows(STREAMED),
    "stream of datasets": lambda: DatasetsStream.from_generator(lambda: iter(STREAMED)),
    "as many shards as ranks": lambda: Dataset.from_list(STREAMED).to_iterable_dataset(num_shards=2),
    "shards that do not divide": lambda: Dataset.from_list(STREAMED).to_iterable_dataset(num_shards=3),
}
STREAMED = [{"messages": [{"role": "user", "content": f"w{i + 4}"}, *CHATS[i][1:]]} for i in range(24)]


def _rank(rank: int, folder: Path) -> dict:
    """What each of two processes does: one epoch of each stream; the rows that it learned from."""
    tokenizer, found = tiny_tokenizer(), {}
    tokenizer.chat_template = TEMPLATE
    for name, stream in STREAMS.items():
        trainer = tiny_trainer(
            folder,
            "kl",
            examples=stream(),
            collator=None,
            tokenizer=tokenizer,
            steps=6,
            batch=1,
            gradient_accumulation_steps=2,
        )
        compute_loss, found[name] = trainer.compute_loss, []

        def spy(model, inputs, seen=found[name], compute_loss=compute_loss, **kwargs):
            rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
            seen.extend(ids[real].tolist() for ids, real in rows)
            return compute_loss(model, inputs, **kwargs)

        trainer.compute_loss = spy
        trainer.train()
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    return on_two_ranks(_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", STREAMS)
def test_ranks_share_a_stream_out(name, two_ranks, chat_tokenizer):
    """In one pass each row is learned from once, by one rank."""
    one, other = ([tuple(row) for row in rank[name]] for rank in two_ranks)
    stream = {tuple(row["input_ids"]) for row in examples(STREAMED, chat_tokenizer, 128)}
    assert set(one) | set(other) == stream and not set(one) & set(other)
