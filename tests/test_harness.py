"""Local tasks and the model behind lm-eval: what is asked, that nothing of it was read, and the numbers."""

import itertools
import json
import logging
import math
import os
import random
import re
import socket
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import tokenizers
import torch
from conftest import FAMILIES, VOCAB, tiny_model
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from taid.evaluation import harness
from taid.studies import lm_tasks, prose, sources
from taid.studies.lm_tasks import TASKS

COUNT = 40  # items of a task; the study has 1,000


@cache
def corpus() -> dict[str, list[str]]:
    return prose.corpus()


@cache
def built(seed: int = 0) -> dict[str, list[dict]]:
    return lm_tasks.build(corpus()["tasks"], COUNT, seed, TASKS)


# Documents


def test_documents_are_split_whole_and_none_is_lost():
    """But for training documents that quote a document of another split."""
    splits = corpus()
    everything = [*sources.austen().values(), *sources.moby_dick().values(), *sources.sotu().values()]
    plain = {" ".join(text.replace("_", " ").split()) for text in everything}
    together = [text for texts in splits.values() for text in texts]
    assert len(set(together)) == len(together) and set(together) <= plain
    assert len(plain) - len(together) < 0.1 * len(plain)
    assert all(splits.values()) and len(splits["train"]) > len(splits["tasks"]) > len(splits["validation"])


def test_nothing_that_is_tested_stands_in_the_training_text():
    """Oracle: runs of 20 words as plain strings, not hashes; of any two documents of different splits."""

    def runs(texts: list[str]) -> set[str]:
        found = set()
        for text in texts:
            words = re.findall("[a-z0-9']+", text.lower())
            found |= {" ".join(words[i : i + 20]) for i in range(len(words) - 19)}
        return found

    splits = corpus()
    held_out = runs(splits["tasks"] + splits["test"] + splits["validation"])
    words = [word for text in splits["train"] for word in [*re.findall("[a-z0-9']+", text.lower()), "|"]]
    assert not any(" ".join(words[i : i + 20]) in held_out for i in range(len(words) - 19))
    quoted = " ".join(splits["tasks"][0].split()[:400])
    assert not held_out.isdisjoint(runs([quoted]))  # a quotation would be found


def test_equal_runs_of_words_are_equal_shingles():
    """Case, punctuation and line breaks do not hide a quotation."""
    words = [f"w{i}" for i in range(30)]
    spoken, printed = " ".join(words[:25]), "He said: " + ",\n".join(words[5:]).upper() + "!"
    shared = set(prose.shingles([spoken])) & set(prose.shingles([printed]))
    assert len(shared) == 1  # words 5 to 24: one run of twenty, by hand
    assert not set(prose.shingles([" ".join(words[:19])]))


# Items


def test_items_are_deterministic_by_seed():
    first, again, other = (lm_tasks.build(corpus()["tasks"][-12:], 5, seed, TASKS) for seed in (0, 0, 1))
    assert first == again
    assert all(first[task] != other[task] for task in TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_items_are_well_formed(task):
    items = built()[task]
    assert len(items) == COUNT
    if task == "last_word":
        assert all(len(item["text"].split()) > lm_tasks.CONTEXT / 2 for item in items)
        return
    assert len({item["query"] for item in items}) == COUNT
    for item in items:
        assert len(item["choices"]) == len(set(item["choices"])) == TASKS[task].choices
        assert 0 <= item["label"] < TASKS[task].choices
        assert len(item["query"].split()) <= lm_tasks.CONTEXT
    chance = 1 / TASKS[task].choices  # a constant place is as good as a guess: within 4 standard errors
    share = max(Counter(item["label"] for item in items).values()) / COUNT
    assert share < chance + 4 * math.sqrt(chance * (1 - chance) / COUNT)


def test_prose_is_quoted_from_the_documents():
    text = "\n".join(corpus()["tasks"])
    for task in ("cloze", "pronoun", "next_sentence"):
        for item in built()[task]:
            assert f"{item['query']} {item['choices'][item['label']]}" in text
    assert all(item["text"] in text for item in built()["last_word"])


def test_every_pronoun_is_right_equally_often():
    right = Counter(item["choices"][item["label"]] for item in built()["pronoun"])
    assert right == dict.fromkeys(lm_tasks.PRONOUNS, COUNT // 4)


@pytest.mark.parametrize("task", ["arithmetic", "sums"])
def test_sums_are_right_and_only_one_answer_is(task):
    for item in built()[task]:
        a, b = map(int, re.fullmatch(r".*\n(\d+) \+ (\d+) =", item["query"], re.DOTALL).groups())
        assert [int(choice) == a + b for choice in item["choices"]].index(True) == item["label"]


def test_liking_small_numbers_or_large_ones_is_no_better_than_guessing():
    """The sum has each rank among its four choices in a quarter of 1,000 items, within 4 standard errors."""
    maker = lm_tasks._arithmetic([], random.Random(0))
    ranks = Counter()
    for item in (next(maker) for _ in range(1000)):
        numbers = list(map(int, item["choices"]))
        ranks[sorted(numbers).index(numbers[item["label"]])] += 1
    assert all(count == pytest.approx(250, abs=4 * math.sqrt(1000 * 3 / 16)) for count in ranks.values())


@pytest.mark.parametrize(
    "liking", [lambda n: n, lambda n: -n, lambda n: n % 10, lambda n: math.sin(99 * n), hash]
)
def test_whoever_knows_no_sums_is_right_in_one_of_four(liking):
    """Exactly, whatever numbers it likes: the choice it likes best is the same in four items, and right in one."""
    items = built()["sums"]
    best = (max(range(4), key=lambda i, item=item: liking(int(item["choices"][i]))) for item in items)
    assert sum(choice == item["label"] for choice, item in zip(best, items, strict=True)) == COUNT / 4


def test_true_statements_are_wordnet_s_and_false_ones_are_not():
    synsets, senses, _ = sources.wordnet()
    for item in built()["truth"]:
        word = re.fullmatch("An? (.*) is a kind of", item["query"])[1]
        synset = synsets["n", senses["n", word][0]]
        above = {w for symbol, o, _, _ in synset.pointers if symbol == "@" for w in synsets["n", o].words}
        assert [choice in above for choice in item["choices"]] == [
            i == item["label"] for i in range(len(item["choices"]))
        ]


def test_a_frequent_kind_is_as_often_wrong_as_right():
    """Else the favourite answer of all would be a good guess. The commonest, over 1,000 items: right in a
    quarter of the items that offer it, within 4 standard errors."""
    maker = lm_tasks._truth([], random.Random(0))
    items = [next(maker) for _ in range(1000)]
    right = Counter(item["choices"][item["label"]] for item in items)
    offered = Counter(choice for item in items for choice in item["choices"])
    kind, _ = right.most_common(1)[0]
    error = math.sqrt(0.25 * 0.75 / offered[kind])
    assert right[kind] / offered[kind] == pytest.approx(0.25, abs=4 * error)


def test_too_few_documents_are_refused():
    with pytest.raises(ValueError, match="hold 0 items of 'cloze'"):
        lm_tasks.build(["Too short."], 5, 0)


# lm-eval


def word_tasks(folder, count: int = 30, seed: int = 0) -> dict[str, list[dict]]:
    """A choice with answers of one to three tokens, of which two begin alike, and a last word; written."""
    rng = random.Random(seed)

    def words(n: int) -> str:
        return " ".join(f"w{rng.randrange(2, VOCAB)}" for _ in range(n))

    choices = []
    for _ in range(count):
        shared = words(1)
        answers = [f"{shared} {words(1)}", f"{shared} {words(2)}", words(1)]
        choices.append({"query": words(rng.randint(1, 9)), "choices": answers, "label": rng.randrange(3)})
    tasks = {"cloze": choices, "last_word": [{"text": words(rng.randint(3, 12))} for _ in range(count)]}
    lm_tasks.write(tasks, folder)
    return tasks


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tasks"


def whole_log_p(model, tokenizer, context: str, answer: str) -> tuple[float, bool]:
    """(log-likelihood in fp64, greedy or not) of an answer alone, from the whole logits."""
    ids, start = tokenizer.encode(f"{context} {answer}"), len(tokenizer.encode(context))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    target = torch.tensor(ids[start:])
    rows = logits.log_softmax(-1)[start - 1 : -1]
    return rows.gather(-1, target[:, None]).sum().item(), bool((rows.argmax(-1) == target).all())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 60, 10_000])
def test_log_likelihoods_are_those_of_one_item_at_a_time(family, tokens, folder, tokenizer):
    """Whatever shares a batch or a beginning. Oracle: a forward pass for each answer."""
    model = tiny_model(family).eval()
    pairs = [(i["query"], answer) for i in word_tasks(folder)["cloze"] for answer in i["choices"]]
    encoded = [((q, a), tokenizer.encode(q), tokenizer.encode(a)) for q, a in pairs]
    lm = harness.LocalModel(model, tokenizer, tokens_per_batch=tokens)
    found = lm._loglikelihood_tokens(encoded)
    expected = [whole_log_p(model, tokenizer, *pair) for pair in pairs]
    assert [likelihood for likelihood, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_answers_with_the_same_beginning_cost_one_pass(tokenizer):
    model, read = tiny_model().eval(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True
    )
    lm = harness.LocalModel(model, tokenizer)
    lm._loglikelihood_tokens([(("", ""), [5, 6, 7], [answer]) for answer in (8, 9, 10, 11)])
    assert [batch.tolist() for batch in read] == [[[5, 6, 7]]]


class Ask:
    """A request of lm-eval."""

    def __init__(self, *args):
        self.args = args


@cache
def byte_pairs() -> tokenizers.Tokenizer:
    """GPT-2's kind of tokens, which take a space before them along; "the cat" is trained in."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(
        ["the cat sat on the mat, and then the cat slept"] * 20,
        tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=bpe.pre_tokenizer.alphabet()
        ),
    )
    return bpe


def byte_tokenizer(adds: str | None = "<s>", **special) -> PreTrainedTokenizerFast:
    """It puts `adds` before every text, as Llama's and Gemma's do."""
    inner = tokenizers.Tokenizer.from_str(byte_pairs().to_str())
    if adds:
        number = inner.token_to_id(adds)
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{adds} $A", special_tokens=[(adds, number)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


BOS, BOTH = {"bos_token": "<s>"}, {"bos_token": "<s>", "eos_token": "</s>"}
TOKENIZERS = {
    "BOS added": lambda: byte_tokenizer(**BOTH),
    "BOS known, not added": lambda: byte_tokenizer(None, **BOTH),
    "no BOS": lambda: byte_tokenizer(None, eos_token="</s>"),
    "EOS added": lambda: byte_tokenizer("</s>", **BOTH),
    "with padding": lambda: byte_tokenizer(**BOTH, pad_token="</s>"),
}
OPTIONS = {
    "as it is": {},
    "BOS wanted": {"add_bos_token": True},
    "BOS unwanted": {"add_bos_token": False},
    "short": {"max_length": 7},
    "another prefix": {"prefix_token_id": 5},
}
MODELS = {
    "llama": lambda: tiny_model("llama", vocab_size=300).eval(),
    "gpt2": lambda: AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=24, initializer_range=0.3)
    ).eval(),
}
PAIRS = [
    ("the cat", " sat"),
    ("the cat", "nap"),
    ("the cat ", "sat"),
    ("the cat  ", " sat on"),
    ("", "the mat"),
    ("", " sat"),
    ("<s>the cat", " slept"),
    ("and", " then the cat slept on the mat"),
    ("the cat sat on the mat, " * 6, "and then"),
    ("the cat sat on the mat, " * 6, "the cat sat"),
    ("the", "\n"),
]


@pytest.mark.parametrize(("tokenizer", "options"), itertools.product(TOKENIZERS, OPTIONS))
@pytest.mark.parametrize("model", MODELS)
def test_every_number_is_that_of_lm_eval_s_own_model(model, tokenizer, options):
    """Oracle: HFLM, one at a time: spaces at the seam, empty and long contexts, special tokens; perplexities.

    Without its `logits_cache`: where two requests share a beginning and score another number of tokens ("" with
    "the mat", "the" with a line break), that gives the second the row of the first.
    """
    torch.manual_seed(0)
    model, tokenizer, options = MODELS[model](), TOKENIZERS[tokenizer](), OPTIONS[options]
    alone = {"batch_size": 1, "device": "cpu", "logits_cache": False}
    theirs = HFLM(pretrained=model, tokenizer=deepcopy(tokenizer), **alone, **options)
    pairs = [
        p for p in PAIRS if len(tokenizer(p[1], add_special_tokens=False).input_ids) <= theirs.max_length
    ]
    requests = [Ask(*pair) for pair in pairs]
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    texts = [Ask("".join(pair)) for pair in PAIRS]
    rolling = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    for tokens, size in ((1, 1), (2048, 3)):
        ours = harness.LocalModel(model, tokenizer, tokens, batch_size=size, **options)
        found = ours.loglikelihood(requests, disable_tqdm=True)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert ours.loglikelihood_rolling(texts, disable_tqdm=True) == pytest.approx(rolling, abs=1e-3)


def test_a_context_too_long_by_hand():
    """The last max_length tokens before the last one; here 7, of a context of 24 and an answer of 2."""
    model, tokenizer = MODELS["llama"](), TOKENIZERS["no BOS"]()
    context = [10 + i for i in range(24)]
    [(found, _)] = harness.LocalModel(model, tokenizer, max_length=7)._loglikelihood_tokens(
        [(None, context, [50, 60])]
    )
    with torch.no_grad():
        log_p = model(torch.tensor([[*context[-6:], 50]])).logits[0].double().log_softmax(-1)
    assert found == pytest.approx((log_p[5, 50] + log_p[6, 60]).item(), abs=1e-4)


EMPTY = {
    "no context": ([], [5]),
    "nothing to score": ([5], []),
    "more to score than is read": ([5], list(range(2, 27))),
}


@pytest.mark.parametrize("case", EMPTY)
def test_what_has_no_likelihood_is_refused(case, tokenizer):
    lm = harness.LocalModel(MODELS["gpt2"](), tokenizer)
    with pytest.raises(ValueError, match="give one at least of each, and no more than the model reads"):
        lm._loglikelihood_tokens([(None, *EMPTY[case])])
    only_the_prefix = byte_tokenizer(**BOTH)  # "<s>" after an empty context is the context
    with pytest.raises(ValueError, match="0 to score"):
        harness.LocalModel(MODELS["llama"](), only_the_prefix).loglikelihood([Ask("", "<s>")])
    with pytest.raises(ValueError, match="0 tokens of context"):  # spaces go to the answer
        harness.LocalModel(MODELS["llama"](), TOKENIZERS["no BOS"]()).loglikelihood([Ask(" ", "cat")])


def test_generation_and_chat_are_lm_eval_s_own(tokenizer):
    model = MODELS["llama"]()
    tokenizer = byte_tokenizer(**BOTH)
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}{% endfor %}"
    theirs = HFLM(pretrained=model, tokenizer=deepcopy(tokenizer), batch_size=2, device="cpu")
    ours = harness.LocalModel(model, tokenizer)
    options = {"until": ["t"], "max_gen_toks": 6}
    asked = [Ask("the cat", options), Ask("and then the", options), Ask("mat", options)]
    assert ours.generate_until(asked, disable_tqdm=True) == theirs.generate_until(asked, disable_tqdm=True)
    chat = [{"role": "user", "content": "the cat"}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat) == "<s>user the cat"
    assert ours.chat_template(True) == tokenizer.chat_template
    assert tokenizer.pad_token is None  # HFLM gives its own copy one


def test_models_of_peft_are_read_with_their_adapters(tokenizer):
    """Oracle: HFLM."""
    config = LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config).eval()
    asked = [Ask("w5 w6", " w7 w8"), Ask("w5", " w9")]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu").loglikelihood(asked)
    found = harness.LocalModel(model, tokenizer).loglikelihood(asked)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in theirs], abs=1e-4)


def test_models_with_an_encoder_are_refused(tokenizer):
    model = T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1))
    with pytest.raises(ValueError, match="has an encoder"):
        harness.LocalModel(model, tokenizer)


@pytest.mark.parametrize("shots", [0, 2])
def test_shots_and_chat_templates_through_the_evaluation(shots, folder, tokenizer, monkeypatch):
    """Oracle: HFLM in the same evaluation."""
    word_tasks(folder, count=8)
    for path in folder.glob("*.yaml"):
        config = json.loads(path.read_text())
        del config["num_fewshot"]
        path.write_text(json.dumps(config))
    model, manager = tiny_model().eval(), harness.local_tasks(folder)
    protocol = {"cloze": (shots, "acc,none"), "last_word": (shots, "acc,none")}
    models = (
        harness.LocalModel(model, tokenizer),
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu"),
    )
    seen = []
    for lm in models:
        logged, own = [], lm._loglikelihood_tokens
        monkeypatch.setattr(
            lm, "_loglikelihood_tokens", lambda r, own=own, to=logged, **k: to.extend(r) or own(r, **k)
        )
        seen.append((harness.leaderboard(lm, manager, protocol), logged))
    assert seen[0] == seen[1] and len(seen[0][1]) == 8 * 3 + 8
    assert all(len(context) > 4 * shots for _, context, _ in seen[0][1])


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_scores_are_those_of_lm_eval_s_own_model(family, folder, tokenizer):
    """Oracle: HFLM of lm-eval 0.4.13, through its own evaluation, item by item the same answers."""
    word_tasks(folder)
    model = tiny_model(family).eval()
    manager = harness.local_tasks(folder)
    found = harness.evaluate(harness.LocalModel(model, tokenizer), manager, ["cloze", "last_word"], "acc")
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")
    assert found == harness.evaluate(theirs, manager, ["cloze", "last_word"], "acc")
    protocol = {"cloze": (0, "acc,none"), "last_word": (0, "acc,none")}
    own = harness.leaderboard(theirs, manager, protocol)
    for task, score in found.items():
        assert (score.mean, score.standard_error) == pytest.approx(own[task])
    assert found["cloze"].items == 30 and 0 < found["cloze"].mean < 1


def test_a_model_that_knows_the_answers_scores_one_and_one_that_avoids_them_zero(folder, tokenizer):
    """Oracle: a model of one layer whose next token is always the last one + 1."""
    succession = [{"query": f"w{i}", "choices": [f"w{i + 1}", f"w{i + 2}"], "label": 0} for i in range(5, 25)]
    words = [{"text": f"w{i} w{i + 1}"} for i in range(5, 25)]
    lm_tasks.write({"cloze": succession, "last_word": words}, folder)
    successor = torch.full((VOCAB, VOCAB), 0.0)
    successor[torch.arange(VOCAB - 1), torch.arange(1, VOCAB)] = 50.0
    model = tiny_model()
    for sign, score in ((1, 1.0), (-1, 0.0)):

        def succession(input_ids, attention_mask, use_cache, sign=sign):
            return type("Output", (), {"logits": sign * successor[input_ids]})

        model.forward = succession
        lm = harness.LocalModel(model, tokenizer)
        found = harness.evaluate(lm, harness.local_tasks(folder), ["cloze", "last_word"], "acc")
        assert [found[task].mean for task in found] == [score, score]
        assert [found[task].standard_error for task in found] == [0.0, 0.0]


def test_the_standard_error_is_that_of_a_proportion():
    """By hand: 3 of 4, s² = (3 · ¼² + ¾²)/3 = ¼, s/√4 = ¼."""
    assert harness.score([1.0, 1.0, 1.0, 0.0]) == harness.Score(0.75, 0.25, 4)
    p, n = 0.3, 1000
    values = np.repeat([1.0, 0.0], [int(p * n), n - int(p * n)])
    assert harness.score(values).standard_error == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    with pytest.raises(ValueError, match="at least two"):
        harness.score([1.0])


def test_tasks_of_a_chance_level_are_declared_with_it():
    assert {task: t.chance for task, t in TASKS.items()} == {
        "cloze": 0.25,
        "next_sentence": 0.5,
        "definition": 0.25,
        "truth": 0.25,
        "pronoun": 0.25,
        "arithmetic": 0.25,
        "sums": 0.25,
        "last_word": 0.0,
    }
    assert (
        len(lm_tasks.FIRST) == len(lm_tasks.SECOND) == 7
    )  # six in the average, as in the paper, and LAMBADA's


def test_the_yaml_reads_local_files_alone(folder):
    word_tasks(folder)
    config = json.loads((folder / "cloze.yaml").read_text())
    assert config["dataset_path"] == "json"
    assert config["dataset_kwargs"]["data_files"] == {"test": str(folder / "cloze.jsonl")}
    manager = harness.local_tasks(folder)
    assert set(manager.all_tasks) == {"cloze", "last_word"}


def test_the_paper_s_protocol_is_the_open_llm_leaderboard():
    """Shots as in the paper's Table 2."""
    shots = {task: count for task, (count, _) in harness.LEADERBOARD.items()}
    assert shots == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "mmlu": 5,
        "truthfulqa_mc2": 0,
        "winogrande": 5,
        "gsm8k": 5,
    }


def test_a_task_that_nobody_knows_is_named(folder, tokenizer):
    word_tasks(folder, count=3)
    lm = harness.LocalModel(tiny_model(), tokenizer)
    with pytest.raises(ValueError, match="no task arc_challenge"):
        harness.leaderboard(lm, harness.local_tasks(folder), {"arc_challenge": (25, "acc_norm,none")})


def test_shots_that_lm_eval_would_leave_out_are_refused(folder, tokenizer):
    word_tasks(folder, count=3)  # whose files say: none
    lm = harness.LocalModel(tiny_model(), tokenizer)
    with pytest.raises(ValueError, match="sets num_fewshot: 0"):
        harness.leaderboard(lm, harness.local_tasks(folder), {"cloze": (2, "acc,none")})


def test_local_tasks_need_no_network_and_nothing_is_set(folder, tokenizer, monkeypatch):
    """The hub's switches are the user's, and a connection would raise. lm-eval speaks as loudly as before."""

    def refuse(*args):
        raise AssertionError(f"a connection to {args}")

    word_tasks(folder, count=3)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = dict(os.environ), logging.getLogger("lm_eval").level
    found = harness.evaluate(
        harness.LocalModel(tiny_model(), tokenizer), harness.local_tasks(folder), ["cloze"], "acc"
    )
    assert found["cloze"].items == 3
    assert (dict(os.environ), logging.getLogger("lm_eval").level) == before


@pytest.mark.slow
@pytest.mark.parametrize("value", ["0", "1", None])
def test_importing_the_harness_leaves_the_hub_as_the_user_has_it(value):
    code = """if True:
        import os, sys
        given = dict(os.environ)
        import taid.evaluation.harness
        import datasets, huggingface_hub
        names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        print({name: os.environ.get(name) for name in names} == {name: given.get(name) for name in names},
              huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_DATASETS_OFFLINE)"""
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    switches = {} if value is None else {"HF_HUB_OFFLINE": value, "HF_DATASETS_OFFLINE": value}
    run = subprocess.run(
        [sys.executable, "-c", code], env=kept | switches, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["True", *[str(value == "1")] * 2]
