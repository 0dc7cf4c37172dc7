"""Local tasks and the model behind lm-eval: what is asked, that nothing of it was read, and the numbers."""

import json
import math
import random
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from conftest import END, FAMILIES, PAD, VOCAB, tiny_model, tiny_tokenizer
from lm_eval.models.huggingface import HFLM

from taid.evaluation import harness
from taid.studies import lm_tasks, prose, sources
from taid.studies.lm_tasks import TASKS

COUNT = 40  # items of a task; the study has 1,000


@cache
def corpus() -> dict[str, list[str]]:
    return prose.corpus()


@cache
def built(seed: int = 0) -> dict[str, list[dict]]:
    return lm_tasks.build(corpus()["tasks"], COUNT, seed)


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
    first, again, other = (lm_tasks.build(corpus()["tasks"][-12:], 5, seed) for seed in (0, 0, 1))
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


def test_sums_are_right_and_only_one_answer_is():
    for item in built()["arithmetic"]:
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
    assert [batch.tolist() for batch in read] == [[[5, 6, 7, END]]]  # the last column is never attended to


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
    assert {task: score.mean for task, score in found.items()} == pytest.approx(own)
    assert found["cloze"].items == 30 and 0 < found["cloze"].mean < 1


def test_a_model_that_knows_the_answers_scores_one_and_one_that_avoids_them_zero(folder, tokenizer):
    """Oracle: a model of one layer whose next token is always the last one + 1."""
    succession = [{"query": f"w{i}", "choices": [f"w{i + 1}", f"w{i + 2}"], "label": 0} for i in range(5, 25)]
    words = [{"text": f"w{i} w{i + 1}"} for i in range(5, 25)]
    lm_tasks.write({"cloze": succession, "last_word": words}, folder)
    successor = torch.full((VOCAB, VOCAB), 0.0)
    successor[torch.arange(VOCAB - 1), torch.arange(1, VOCAB)] = 50.0
    for sign, score in ((1, 1.0), (-1, 0.0)):

        class Successor(torch.nn.Module):
            device = torch.device("cpu")

            def forward(self, input_ids, attention_mask, use_cache):
                return type("Output", (), {"logits": sign * successor[input_ids]})  # noqa: B023

        lm = harness.LocalModel(Successor(), tokenizer)
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
        "last_word": 0.0,
    }
    assert len(lm_tasks.AVERAGED) == 6


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


def test_what_local_tasks_do_not_need_is_refused(tokenizer):
    lm = harness.LocalModel(tiny_model(), tiny_tokenizer())
    for call in (lm.generate_until, lm.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="HFLM|likelihood"):
            call([])
    assert lm.eot_token_id == END != PAD
