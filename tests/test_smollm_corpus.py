"""SmolLM-Corpus in windows, and LAMBADA's last words, out of a mirror of the hub."""

from itertools import islice

import mirror
import pytest

from taid.evaluation import harness
from taid.studies import hub, jobs
from taid.studies.smollm_corpus import CHANCE, CapacitySetting, PretrainingSetting, Windows

SETTING = CapacitySetting(window=16, validation=2, test=3)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    mirror.write_texts(root)
    mirror.write_model(root, "EleutherAI/pythia-70m", "gpt_neox", mirror.neox_tokenizer(), padding=6)
    return root


@pytest.fixture
def source(texts, monkeypatch, tmp_path):
    monkeypatch.setenv("TAID_HUB", str(texts))
    monkeypatch.setenv("TAID_CACHE", str(tmp_path))
    return SETTING.source(tmp_path)


def test_students_read_the_first_tenth_and_are_tested_on_the_last(source):
    assert {row["id"] for row in source.tenth(0)} == {"0"} and {row["id"] for row in source.tenth(9)} == {"9"}
    held_out = [*source.examples("validation"), *source.examples("test")]
    assert len(held_out) == 5 and len({tuple(e["response_ids"]) for e in held_out}) == 5
    ids = [
        token
        for e in islice(Windows(source.tenth(9), source.tokenizer, 16), 5)
        for token in e["response_ids"]
    ]
    assert ids == [token for e in held_out for token in e["response_ids"]]
    window = next(iter(source.training("distil", 0)))
    read = window["prompt_ids"] + window["response_ids"]
    begin = [
        [source.tokenizer(row["text"])["input_ids"][:16] for row in source.tenth(tenth)] for tenth in (0, 9)
    ]
    assert read in begin[0] and read not in begin[1]


def test_windows_are_whole_documents_one_after_another(source):
    """Oracle: the texts of the file, joined by the end of sequence, by hand."""
    documents = [row["text"] for row in source.tenth(9)]
    expected = [
        i for text in documents for i in (*source.tokenizer(text)["input_ids"], source.tokenizer.eos_token_id)
    ]
    found = [
        t for e in Windows(source.tenth(9), source.tokenizer, 16) for t in e["prompt_ids"] + e["response_ids"]
    ]
    assert found == expected[: len(found)] and len(expected) - len(found) < 16


@pytest.mark.slow
def test_a_seed_is_an_order_of_documents(source):
    first, again, other = ([e["response_ids"] for e in source.training("distil", seed)] for seed in (0, 0, 1))
    assert first == again != other


def test_fewer_files_than_tenths_are_refused(source, monkeypatch, tmp_path):
    readme = "configs:\n- config_name: fineweb-edu-dedup\n  data_files:\n  - split: train\n    path: part/*.parquet\n"
    mirror.write_rows(
        tmp_path / "few", "HuggingFaceTB/smollm-corpus", {"part/0.parquet": [{"text": "a"}]}, readme
    )
    monkeypatch.setenv("TAID_HUB", str(tmp_path / "few"))
    with pytest.raises(jobs.Refused, match="has 1 files in fineweb-edu-dedup: a tenth needs 10"):
        source.tenth(0)


def test_last_words_are_those_of_lm_eval(source):
    """Oracle: the templates of its task lambada_openai, all but the last word, and " " + the last word."""
    texts = hub.rows("EleutherAI/lambada_openai", "test", "default")["text"]
    assert len(source.items) == len(texts) == 6
    for item, text in zip(source.items, texts, strict=True):
        *words, last = text.split(" ")
        assert source.tokenizer.decode(item["prompt_ids"]) == " ".join(words)
        assert source.tokenizer.decode(item["response_ids"]) == f" {last}"
    assert 100 / 6 <= source.chance() <= 100


def test_every_task_of_the_leaderboard_is_among_lm_eval_s():
    """And CHANCE knows what a guess is worth at each."""
    known = PretrainingSetting().source(None).tasks().all_tasks
    assert set(harness.LEADERBOARD) <= set(known) and set(CHANCE) == set(harness.LEADERBOARD)
