"""The capacity-gap study: its splits, its zoo, what it measures, and what it runs."""

import importlib.util
import json
import math
import random
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import PAD, tiny_examples, tiny_model

from taid import objectives, results
from taid.data import Collator, train_tokenizer
from taid.evaluation import likelihood
from taid.evaluation.last_words import last_word_scores, last_words
from taid.studies import capacity, jobs, sources, study, training
from taid.studies.capacity import NONE, STUDENT, TEACHERS, ZOO, Run
from taid.studies.zoo import parameters
from taid.teacher import LiveTeacher

ROOT = Path(__file__).parents[1]
PYTHIA = {  # parameters in millions, from the models' cards on the hub
    "pythia-31m": 30.5,
    "pythia-70m": 70.4,
    "pythia-160m": 162.3,
    "pythia-410m": 405.3,
    "pythia-1b": 1011.8,
    "pythia-2.8b": 2775.2,
    "pythia-6.9b": 6857.3,
}
TINY = replace(capacity.SMOKE, documents=20, vocab_size=300, pool=12, held_out=6, last_words=9)
RUN = Run("smoke", "taid", "pythia-1b", 0, 1e-2)


def marker(kind: str, number: int) -> str:
    """A word that stands in one document alone: letters only, to be a last word."""
    return f"{kind}{''.join(chr(ord('a') + int(digit)) for digit in f'{number:03d}')}"


def document(kind: str, number: int) -> str:
    """Sentences of common words, each of which ends in the document's own word."""
    rng = random.Random(f"{kind} {number}")
    common = [
        "the",
        "of",
        "and",
        "a",
        "to",
        "in",
        "he",
        "have",
        "it",
        "that",
        "for",
        "they",
        "with",
        "as",
        "not",
        "on",
        "she",
        "at",
        "by",
        "this",
        "we",
        "you",
        "do",
    ]
    sentences = [[rng.choice(common) for _ in range(rng.randint(5, 30))] for _ in range(12)]
    return "\n ".join(" ".join([*words, marker(kind, number)]) + rng.choice(".!?") for words in sentences)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Small texts of known words, a cache of its own, and the tiny setting as scale "smoke"."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAID_CACHE", str(folder))
        for kind in ("austen", "moby_dick", "sotu"):
            texts = {f"{kind} {i}": document(kind.split("_")[0], i) for i in range(30)}
            patch.setattr(sources, kind, lambda texts=texts: texts)
        patch.setitem(capacity.SETTINGS, "smoke", TINY)
        study.at.cache_clear()
        yield folder
    study.at.cache_clear()


@pytest.fixture(scope="module")
def here(cache):
    return capacity.at("smoke")


@pytest.fixture
def batches():
    return [Collator(PAD)(tiny_examples(16)[at : at + 5]) for at in range(0, 16, 5)]


# --- data


def test_no_document_is_in_two_splits(here):
    """By each document's own word: in one split alone, and in no other split's decoded examples."""
    words = {marker(kind, i) for kind in ("austen", "moby", "sotu") for i in range(30)}
    of = {
        s: {w for w in words if any(w in text for text in texts)}
        for s, texts in here.source.documents.items()
    }
    assert set(of) == {"train", "distil", "validation", "test"} and all(of.values())
    assert sum(map(len, of.values())) == len(set.union(*of.values()))

    examples = {"train": here.source.pretraining(), "words": here.source.items, **here.source.windows}
    for split, chosen in examples.items():
        home = of["test" if split == "words" else split]
        text = " ".join(here.source.tokenizer.decode(e["prompt_ids"] + e["response_ids"]) for e in chosen)
        found = {word for word in words if word in text}
        assert found and found <= home, f"{split} has text of other splits: {found - home}"


def test_a_document_that_quotes_a_held_out_one_is_not_trained_on(here, monkeypatch):
    """Twenty words of a test document, in another case and punctuation, in one document of each part."""
    quoted = ", ".join(here.source.documents["test"][0].upper().split()[5:25])
    texts = sources.austen()
    chosen = {
        split: next(n for n in texts if " ".join(texts[n].split()) in here.source.documents[split])
        for split in ("train", "distil")
    }
    monkeypatch.setattr(
        sources,
        "austen",
        lambda: {
            name: f"{text} {quoted}" if name in chosen.values() else text for name, text in texts.items()
        },
    )
    again = capacity.documents(TINY.documents)
    for split in ("train", "distil"):
        left_out = set(here.source.documents[split]) - set(again[split])
        assert left_out == {" ".join(texts[chosen[split]].split())}
        assert not any(quoted in text for text in again[split])
    assert again["test"] == here.source.documents["test"]


def test_the_tokeniser_sees_training_documents_alone(here):
    again = train_tokenizer(here.source.documents["train"], TINY.vocab_size)
    assert here.source.tokenizer.get_vocab() == again.get_vocab()


def test_last_words_are_whole_words_in_their_context(here):
    """Oracle: the text up to the word's end, tokenised on its own; which words, by splitting at spaces."""
    context = TINY.window - TINY.longest_word
    texts = here.source.documents["test"]
    items = last_words(here.source.tokenizer, texts, context, TINY.longest_word)
    expected = []
    for text in texts:
        words = text.split()
        for i, word in enumerate(words):
            bare = word.rstrip(".!?")
            if bare == word or len(bare) < 3:
                continue
            ids = here.source.tokenizer(" ".join([*words[:i], bare]))["input_ids"]
            before = here.source.tokenizer(" ".join(words[:i]))["input_ids"]
            target = ids[len(before) :]
            if len(before) >= context and len(target) <= TINY.longest_word:
                expected.append((before[-context:], target))
    assert expected and [(item["prompt_ids"], item["response_ids"]) for item in items] == expected
    assert [item["index"] for item in items] == list(range(len(items)))


def test_a_word_too_long_or_too_early_is_left_out(here):
    tokens = len(here.source.tokenizer(" extraordinarily")["input_ids"])
    early, late = "It was extraordinarily.", "It was all that they had ever seen, extraordinarily."
    for longest, found in ((tokens, 1), (tokens - 1, 0)):
        assert len(last_words(here.source.tokenizer, [late], 8, longest)) == found
        assert not last_words(here.source.tokenizer, [early], 8, longest)
    assert not last_words(here.source.tokenizer, [late.replace("extraordinarily", "Mrs")], 8, tokens)


def test_examples_are_taken_evenly_and_numbers_anew():
    items = [{"index": i, "value": i} for i in range(10)]
    assert [item["value"] for item in capacity.evenly(items, 4)] == [0, 2, 5, 7]
    assert [item["index"] for item in capacity.evenly(items, 4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="11 examples of 10: ask for fewer"):
        capacity.evenly(items, 11)


def test_chance_is_the_share_of_validations_most_frequent_word(here):
    counted = Counter(tuple(item["response_ids"]) for item in here.source.last_words("validation"))
    most = max(counted.values())
    candidates = [word for word, number in counted.items() if number == most]
    shares = [sum(tuple(item["response_ids"]) == word for item in here.source.items) for word in candidates]
    assert any(
        here.source.chance() == pytest.approx(100 * share / len(here.source.items)) for share in shares
    )


# --- zoo


@pytest.mark.parametrize("name", ZOO)
def test_sizes_keep_pythias_ratios(name):
    """At 1/3,000 to within 15%, teachers to within 5% of the paper's ratio to the student."""

    class Tokens:
        eos_token_id, pad_token_id = 1, 0

    sizes = {
        n: parameters(capacity.model(n, capacity.CPU.vocab_size, 64, Tokens, 0)) for n in {name, STUDENT}
    }
    assert sizes[name] == pytest.approx(PYTHIA[name] * 1e6 / 3000, rel=0.15)
    if name in TEACHERS:
        assert sizes[name] / sizes[STUDENT] == pytest.approx(PYTHIA[name] / PYTHIA[STUDENT], rel=0.05)


def test_teachers_learn_at_rates_inverse_to_their_width():
    rates = [capacity.CPU.teacher_training(name).learning_rate * ZOO[name][0] for name in TEACHERS]
    assert rates == pytest.approx([capacity.CPU.pretrain_teacher.learning_rate] * len(TEACHERS))
    assert len({replace(capacity.CPU.teacher_training(name), learning_rate=0) for name in TEACHERS}) == 1


# --- runs


def test_alpha_times_steps_is_the_papers_at_every_pace():
    for pace in (0.5, 1.0, 2.0):
        run = Run("cpu", "taid", TEACHERS[0], 0, 1e-2, pace=pace)
        assert run.training.steps == pace * capacity.CPU.distil.steps
        assert run.options["alpha"] * run.training.steps == pytest.approx(5e-4 * (207_865 * 5 // 64))
    assert Run("cpu", "kl", TEACHERS[0], 0, 1e-2).options == {}


def test_variants_change_one_thing_and_have_names_and_hashes_of_their_own():
    runs = [RUN, *capacity.variants(RUN)]
    for variant in runs[1:]:
        changed = {key for key, value in asdict(variant).items() if value != asdict(RUN)[key]}
        assert len(changed) == 1 and changed <= {"student", "pace", "temperature"}
    assert len({run.task for run in runs}) == len({json.dumps(run.config()) for run in runs}) == len(runs)
    for field, values in (("pace", (0.5, 2)), ("temperature", (0.5, 2))):
        assert sorted(getattr(run, field) for run in runs)[:: len(runs) - 1] == list(values)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": "huge"}, "unknown scale 'huge'.*smoke, cpu"),
        ({"teacher": "pythia-12b"}, "unknown teacher 'pythia-12b'.*pythia-410m"),
        ({"student": "gpt"}, "unknown student 'gpt'.*pythia-31m"),
        ({"method": "magic"}, "unknown method 'magic'.*taid"),
    ],
)
def test_a_run_names_what_is_known(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(RUN, **changed)


# --- measures


def fp64(model, batch: dict, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities [n, V], labels [n]) of one example of a batch, alone and without padding."""
    labels = batch["labels"][row]
    ids = batch["input_ids"][row][batch["attention_mask"][row] == 1]
    target = labels[labels != -100]
    logits = model.eval().double()(ids[None]).logits[0, -len(target) - 1 : -1]
    model.float()
    return logits.log_softmax(-1).detach(), target


def test_last_word_scores_agree_with_greedy_decoding(batches):
    """Oracle: `generate`, greedy, on each prompt alone; log-likelihoods from fp64. The labels of every second
    example are what the model itself says, so that words both right and wrong occur."""
    model = tiny_model("gpt_neox")
    right, likelihoods = [], []
    for number, batch in enumerate(batches):
        for row in range(len(batch["labels"])):
            labels = batch["labels"][row]
            prompt = batch["input_ids"][row][(batch["attention_mask"][row] == 1) & (labels == -100)]
            length = int((labels != -100).sum())
            said = model.generate(
                prompt[None],
                attention_mask=torch.ones_like(prompt)[None],
                max_new_tokens=length,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=PAD,
            )[0, len(prompt) :]
            if (row + number) % 2:
                batch["labels"][row][labels != -100] = said
                batch["input_ids"][row][labels != -100] = said
            right.append(torch.equal(said, batch["labels"][row][labels != -100]))
            log_p, target = fp64(model, batch, row)
            likelihoods.append(log_p.gather(-1, target[:, None]).sum().item())
    found = last_word_scores(LiveTeacher(model), batches)
    assert found["last_word_accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert found["last_word_log_likelihood"] == pytest.approx(sum(likelihoods) / len(right), rel=1e-5)  # fp32
    assert 0 < sum(right) < len(right)


def test_text_scores_agree_with_the_evaluation_of_table_1():
    """Oracle: `taid.evaluation.likelihood` for loss and KL (weighted by tokens), fp64 for the entropy."""
    student, teacher = tiny_model("gpt_neox"), LiveTeacher(tiny_model("gpt_neox", seed=1))
    examples, collator = tiny_examples(16), Collator(PAD)
    batches = [collator(examples[at : at + 5]) for at in range(0, 16, 5)]
    found = capacity.text_scores(LiveTeacher(student), teacher, batches)
    lengths = [len(e["response_ids"]) for e in examples]
    by_example = likelihood.held_out_loss(student, examples, collator)
    loss = sum(mean * n for mean, n in zip(by_example, lengths, strict=True)) / sum(lengths)
    assert found["held_out_loss"] == pytest.approx(loss, rel=1e-5)  # fp32
    kl = likelihood.kl_to_teacher(student, teacher, examples, collator, 48)
    assert found["kl_to_teacher"] == pytest.approx(kl, rel=1e-5)
    rows = [(batch, row) for batch in batches for row in range(len(batch["labels"]))]
    log_p = torch.cat([fp64(student, batch, row)[0] for batch, row in rows])
    assert found["entropy"] == pytest.approx(-(log_p.exp() * log_p).sum(-1).mean().item(), rel=1e-5)


def test_temperature_softens_the_teacher(batches):
    """H(softmax(z / τ)) rises with τ, from the argmax at 0 to log V."""
    live = LiveTeacher(tiny_model())
    temperatures = (1e-4, 0.5, 1, 2, 1e4)
    at = [capacity.text_scores(capacity.softened(live, t), None, batches)["entropy"] for t in temperatures]
    assert at == sorted(at) and at[0] == pytest.approx(0, abs=1e-3) and at[-1] == pytest.approx(math.log(48))
    assert capacity.softened(live, 1.0) is live


# --- what is run


@pytest.fixture(scope="module")
def script():
    """The experiment's module, with its jobs run here: fresh processes would not see the small texts."""
    path = ROOT / "paper_experiments/06_table6_capacity_gap.py"
    spec = importlib.util.spec_from_file_location("table6", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["table6"] = module
    spec.loader.exec_module(module)
    return module


def in_this_process(function, todo, workers, title):
    yield from ((job, function(*job)) for job in todo)


@pytest.fixture(scope="module")
def filled(cache, script, tmp_path_factory):
    """(folder, rows) of a whole run of one seed with two methods."""
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "run", in_this_process)
        patch.setattr(script, "METHODS", ("taid", "skew_kl"))
        patch.setattr(script, "MAP_METHODS", ("taid",))
        script.main("smoke", 1, 1, folder)
    return folder, results.read(folder / "table6.jsonl")


@pytest.mark.slow
def test_every_cell_is_filled_once(filled):
    _, rows = filled
    cells = Counter((r.config_hash, r.metric) for r in rows)
    assert set(cells.values()) == {1}
    of = {(r.experiment, r.method, r.teacher, r.task) for r in rows}
    students = {*((m, t) for m in ("taid", "skew_kl") for t in TEACHERS), ("sft", NONE)}
    references = {*(("teacher", t) for t in TEACHERS), ("untrained", NONE)}
    assert {(m, t) for e, m, t, _ in of if e == "table6_search"} == students
    assert {(m, t) for e, m, t, _ in of if e == "table6"} == students | references
    tasks = {variant.task for variant in capacity.variants(RUN)}
    around = {(m, t, task) for e, m, t, task in of if e == "table6_map"}
    assert around == {
        *(("taid", t, task) for t in (TEACHERS[0], TEACHERS[-1]) for task in tasks),
        *(("teacher", t, task) for t in (TEACHERS[0], TEACHERS[-1]) for task in ("τ = 0.5", "τ = 2")),
        *(("untrained", NONE, student) for student in ("pythia-31m", "pythia-160m")),
    }


@pytest.mark.slow
def test_the_learning_rate_is_the_grids_best_on_validation(filled):
    _, rows = filled
    losses = {
        (r.method, r.teacher, r.config["learning_rate"]): r.value
        for r in rows
        if (r.experiment, r.metric) == ("table6_search", "held_out_loss")
    }
    chosen = {
        (r.method, r.teacher): r.config["learning_rate"]
        for r in rows
        if r.experiment in ("table6", "table6_map") and r.config["learning_rate"]
    }
    assert len(chosen) == 9
    for (method, teacher), rate in chosen.items():
        of_cell = {r: loss for (m, t, r), loss in losses.items() if (m, t) == (method, teacher)}
        assert set(of_cell) == set(TINY.learning_rates) and of_cell[rate] == min(of_cell.values())


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_adds_nothing(filled, script, monkeypatch):
    folder, _ = filled
    before = (folder / "table6.jsonl").read_bytes()
    study.at.cache_clear()  # as in a new process

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    for module in (study, training):
        monkeypatch.setattr(module, "fit", refuse)
    monkeypatch.setattr(jobs, "run", in_this_process)
    monkeypatch.setattr(script, "METHODS", ("taid", "skew_kl"))
    monkeypatch.setattr(script, "MAP_METHODS", ("taid",))
    script.main("smoke", 1, 1, folder)
    assert (folder / "table6.jsonl").read_bytes() == before


def test_all_methods_of_a_seed_see_one_stream_and_another_seed_another(cache, monkeypatch):
    """What the teacher is asked for, in order, by the examples' numbers; and from equal students."""
    seen, starts = [], []
    live = capacity.Capacity.teacher_logits

    def spy(here, name, split):
        teacher = live(here, name, split)

        def asked(batch):
            seen.append(batch["index"].tolist())
            return teacher(batch)

        return asked

    fit = study.fit
    monkeypatch.setattr(capacity.Capacity, "teacher_logits", spy)
    monkeypatch.setattr(
        study,
        "fit",
        lambda student, *a, **k: (
            starts.append(next(student.parameters()).detach().clone()),
            fit(student, *a, **k),
        )[1],
    )
    here, streams = capacity.at("smoke"), {}
    here.source.student(STUDENT, 1)
    starts.clear()
    for method, teacher, seed in (("kl", TEACHERS[0], 0), ("rkl", TEACHERS[-1], 0), ("kl", TEACHERS[0], 1)):
        seen.clear()
        here.distilled(Run("smoke", method, teacher, seed, 4e-3))
        streams[method, seed] = list(seen)
    assert len(streams["kl", 0]) == TINY.distil.steps
    assert streams["kl", 0] == streams["rkl", 0] != streams["kl", 1]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_rows_say_what_was_measured(here):
    run = replace(RUN, temperature=2.0)
    values, seconds = capacity.measure(run, "test")
    assert {metric for metric, _ in values} == set(capacity.UNITS) - {"last_word_chance"}
    assert all(math.isfinite(value) for value in values.values()) and seconds > 0
    rows = capacity.rows(run, "table6_map", values, seconds)
    assert {(row.metric, row.task): row.value for row in rows} == values
    for row in rows:
        assert (row.method, row.teacher, row.student, row.task) == ("taid", "pythia-1b", STUDENT, "τ = 2")
        assert (row.unit, row.higher_is_better) == capacity.UNITS[row.metric]
        assert row.config_hash == results.config_hash(run.config() | {"experiment": "table6_map"})


def test_methods_are_known_and_the_papers_come_first():
    assert set(capacity.METHODS) <= set(objectives.METHODS) and capacity.METHODS[:2] == ("taid", "skew_kl")
