"""Models and data sets of the hub out of a mirror; what is missing in it is said in one sentence."""

import json

import mirror
import pytest
import torch
from conftest import tiny_model
from transformers import TrainingArguments

from taid.data import Collator
from taid.studies import hub, jobs, ultrachat
from taid.studies.training import Training, fit
from taid.studies.ultrachat import Encode, Setting

PHI3, TINY = "microsoft/Phi-3-mini-4k-instruct", "TinyLlama/TinyLlama_v1.1"


@pytest.fixture(scope="module")
def table1(tmp_path_factory):
    root = tmp_path_factory.mktemp("mirror")
    mirror.write_table1(root)
    return root


@pytest.fixture
def hub_folder(table1, monkeypatch, tmp_path):
    monkeypatch.setenv("TAID_HUB", str(table1))
    monkeypatch.setenv("TAID_CACHE", str(tmp_path))
    hub.teacher.cache_clear()
    return table1


def test_a_student_gets_what_its_teachers_tokenizer_adds(hub_folder):
    shared = hub.tokenizer(PHI3)
    own, student = hub.model(TINY), hub.student_for(TINY, shared)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(own, get)().weight, getattr(student, get)().weight
        assert torch.equal(after[: len(before)], before)
        assert len(after) >= len(shared) and len(after) % 64 == 0
        torch.testing.assert_close(after[len(before) :], before.mean(0).expand(len(after) - len(before), -1))
    assert student.config.eos_token_id == shared.eos_token_id == shared.convert_tokens_to_ids("<|endoftext|>")
    assert hub.tokenizer(TINY).pad_token_id == hub.tokenizer(TINY).eos_token_id


def test_a_teacher_of_other_tokens_is_refused(hub_folder):
    with pytest.raises(jobs.Refused, match="token 0 by two names"):
        hub.student_for(TINY, hub.tokenizer("EleutherAI/pythia-410m-deduped"))


@pytest.mark.parametrize(
    ("teacher", "prompt", "response"),
    [
        (PHI3, "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>", "d<|end|><|endoftext|>"),
        ("meta-llama/Llama-2-7b-chat-hf", "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]", "d </s>"),
        (
            "stabilityai/stablelm-zephyr-3b",
            "<|user|>\na<|endoftext|>\n<|assistant|>\nb<|endoftext|>\n<|user|>\nc<|endoftext|>\n<|assistant|>\n",
            "d<|endoftext|>",
        ),
    ],
)
def test_the_last_answer_and_its_end_are_learned(hub_folder, teacher, prompt, response):
    """Oracle: what the template writes, by hand; Phi-3's tokens swallow the space behind them."""
    tokenizer = hub.tokenizer(teacher)
    messages = [{"role": role, "content": text} for role, text in
                (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]  # fmt: skip
    example = Encode(tokenizer, Setting())({"messages": messages})
    assert tokenizer.decode(example["prompt_ids"]).replace("\n", "").replace(" ", "") == "".join(
        prompt.split()
    )
    assert tokenizer.decode(example["response_ids"]).replace(" ", "") == response.replace(" ", "")
    batch = Collator(tokenizer.pad_token_id)([example | {"index": 0}, example | {"index": 1}])
    assert batch["labels"][0, -1] == example["response_ids"][-1]


@pytest.mark.parametrize(
    ("limits", "kept"), [({}, True), ({"longest": 12}, False), ({"longest_response": 3}, False)]
)
def test_long_conversations_and_answers_are_left_out_not_cut(hub_folder, limits, kept):
    [row] = mirror.conversations(1, seed=0, turns=(2,))
    example = Encode(hub.tokenizer(PHI3), Setting(**limits))(row)
    assert bool(example["response_ids"]) == bool(example["prompt_ids"]) == kept


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user", "content": "a"}], [{"role": "assistant", "content": ""}]]
)
def test_rows_without_an_answer_are_left_out(hub_folder, messages):
    example = Encode(hub.tokenizer(PHI3), Setting())({"messages": messages})
    assert example == {"prompt_ids": [], "response_ids": []}


def test_held_out_splits_share_no_conversation(hub_folder):
    source = Setting(validation=6, test=6, pair="phi-3-mini").source(hub_folder)
    splits = {split: [tuple(e["prompt_ids"]) for e in source.examples(split)] for split in ultrachat.SPLITS}
    assert [len(splits["validation"]), len(splits["test"]), len(splits["train"])] == [6, 6, 24]
    assert not set(splits["validation"]) & set(splits["test"])
    assert [e["index"] for e in source.examples("test")] == list(range(6))
    tight = Setting(validation=1, test=1, pair="phi-3-mini", longest=60, longest_response=25).source(
        hub_folder
    )
    assert max(len(e["prompt_ids"]) for split in ("validation", "test") for e in tight.examples(split)) <= 35
    with pytest.raises(ValueError, match="16 usable conversations in test_sft: too few"):
        Setting(validation=16, test=1, pair="phi-3-mini").source(hub_folder).examples("test")


# --- what cannot be had


def test_what_is_missing_is_said(hub_folder, monkeypatch, tmp_path):
    with pytest.raises(jobs.Refused, match="the model EleutherAI/pythia-1b cannot be had: in the mirror"):
        hub.model("EleutherAI/pythia-1b")
    with pytest.raises(jobs.Refused, match="the data set a/b cannot be had"):
        hub.rows("a/b", "train")
    with pytest.raises(jobs.Refused, match="the data set HuggingFaceH4/ultrachat_200k cannot be had.*huge"):
        hub.rows("HuggingFaceH4/ultrachat_200k", "huge")
    monkeypatch.setenv("TAID_HUB", str(tmp_path / "nowhere"))
    with pytest.raises(jobs.Refused, match="is no folder"):
        hub.model(TINY)
    (tmp_path / "hub").mkdir()
    monkeypatch.setenv("TAID_HUB", str(tmp_path))
    with pytest.raises(jobs.Refused, match=r"as the hub's cache does \(its folder hub/ may be meant\)"):
        hub.model(TINY)
    monkeypatch.delenv("TAID_HUB")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(jobs.Refused, match="cannot be had"):
        hub.tokenizer("taid/of-no-one")


def test_a_teacher_is_spread_over_the_gpus_that_its_student_leaves():
    """And one that they do not hold is refused; of a name without a known size nothing is known."""
    gib = 2**30
    assert hub.spread(PHI3, []) == hub.spread(PHI3, [80 * gib]) == hub.spread("a/b", [gib]) == {}
    found = hub.spread("Qwen/Qwen2-72B-Instruct", [80 * gib] * 3)
    assert found == {"device_map": "auto", "max_memory": {1: 80 * gib, 2: 80 * gib}}
    for gpus in ([80 * gib], [80 * gib] * 2):
        with pytest.raises(
            jobs.Refused, match="takes 135 GiB in bf16, and its GPUs have 80: show this job more"
        ):
            hub.spread("Qwen/Qwen2-72B-Instruct", gpus)


def test_of_several_gpus_a_run_takes_the_first(tmp_path, monkeypatch):
    """The trainer refuses a process that would train on several: the others are a teacher's."""

    class OfFour(TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 4

    monkeypatch.setattr("taid.studies.training.TrainingArguments", OfFour)
    student = tiny_model()
    rows = [{"index": i, "prompt_ids": [3], "response_ids": [4, 5]} for i in range(4)]
    trainer = fit(student, rows, Collator(0), Training(1, 2, 1e-3), seed=0)
    assert trainer.args._n_gpu == 1


def test_teachers_are_in_bfloat16_and_learn_nothing(hub_folder):
    teacher = hub.teacher(PHI3)
    assert type(teacher).__name__ == "Phi3ForCausalLM" and not teacher.training
    assert {(p.dtype, p.requires_grad) for p in teacher.parameters()} == {(torch.bfloat16, False)}
    assert {p.dtype for p in hub.model(TINY).parameters()} == {torch.float32}


@pytest.fixture
def snapshot(hub_folder, tmp_path, monkeypatch):
    """A mirror of Phi-3 alone, to be spoiled."""
    mirror.write_model(tmp_path / "own", PHI3, "phi3", mirror.phi3_tokenizer())
    monkeypatch.setenv("TAID_HUB", str(tmp_path / "own"))
    return next((tmp_path / "own").glob("models--*/snapshots/*"))


def test_pickled_weights_are_refused(snapshot):
    (snapshot / "model.safetensors").unlink()
    torch.save(tiny_model("phi3").state_dict(), snapshot / "pytorch_model.bin")
    with pytest.raises(jobs.Refused, match="with safetensors if it is a model"):
        hub.model(PHI3)


def test_code_that_a_model_brings_is_not_run(snapshot, tmp_path):
    """Phi-3's repository carries model code; transformers' own class is used in its place."""
    proof = tmp_path / "ran"
    (snapshot / "modeling_evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((snapshot / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text(json.dumps(config))
    assert type(hub.model(PHI3)).__module__.startswith("transformers.") and not proof.exists()


def test_a_table_without_a_judge_is_refused_before_anything_is_trained(hub_folder, monkeypatch):
    monkeypatch.delenv("TAID_JUDGE", raising=False)
    with pytest.raises(jobs.Refused, match="set TAID_JUDGE"):
        Setting().source(hub_folder).judge()
    monkeypatch.setenv("TAID_JUDGE", "gpt-4")
    assert Setting().source(hub_folder).judge().model == "gpt-4"
