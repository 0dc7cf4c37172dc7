"""Table 3: what is measured, what is judged, and how it is shown."""

import itertools
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
import torch
from conftest import PAD, VOCAB, tiny_examples, tiny_model

from analysis import figures, reference, style, table1, table3
from analysis import rows as analysis_rows
from analysis.claims import TABLE3
from analysis.predicates import close, greater, holds_in_paper
from taid import results
from taid.data import Collator
from taid.results import Provenance, Row
from taid.studies import jobs, probability_mass, study
from taid.teacher import LiveTeacher

HERE = Provenance(commit="c0ffee", dirty=False, versions="python 3.11", device="cpu", date="2025-01-01")
LOG2 = math.log(2)
CLAIMS = {claim.name: (part, claim) for part, claims in TABLE3.items() for claim in claims}


def row(value: float, **fields) -> Row:
    default = Row(
        experiment="table3",
        scale="cpu",
        method="taid",
        teacher="phi-3-mini",
        student="tinyllama",
        task="average",
        seed=0,
        metric="head",
        value=value,
        unit="probability",
        higher_is_better=False,
        config={"learning_rate": 0.01},
        config_hash="0",
        seconds=1.0,
        **asdict(HERE),
    )
    return replace(default, **fields)


# Measuring


def probabilities(model, example: dict) -> np.ndarray:
    """softmax over the V real entries at one example's response positions, without padding, fp64: [n, V]"""
    ids, first = example["prompt_ids"] + example["response_ids"], len(example["prompt_ids"])
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0, first - 1 : -1, :VOCAB].double().numpy()
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_masses_agree_with_a_loop_over_tokens():
    """Oracle: numpy, one example at a time. Ragged batches, padded vocabularies; V = 48, so that the tail
    holds the ranks from round(38.4) = 38 on."""
    student = tiny_model(seed=0, vocab_size=VOCAB + 16)
    teacher = tiny_model("phi3", seed=1, vocab_size=VOCAB + 8)
    examples = tiny_examples(11)
    q = np.concatenate([probabilities(student, example) for example in examples])
    p = np.concatenate([probabilities(teacher, example) for example in examples])
    overall = np.tile(np.argsort(-p.mean(0)), (len(q), 1))
    orders = {"": np.argsort(-p), "_own": np.argsort(-q), "_marginal": overall}

    batches = [Collator(PAD)(examples[at : at + 4]) for at in (0, 4, 8)]
    found = probability_mass.masses(student, LiveTeacher(teacher), batches, VOCAB)
    for suffix, order in orders.items():
        ranked = np.take_along_axis(q, order, -1)
        assert found["head" + suffix, "average"] == pytest.approx(ranked[:, :10].sum(-1).mean(), rel=1e-5)
        assert found["tail" + suffix, "average"] == pytest.approx(ranked[:, 38:].sum(-1).mean(), rel=1e-5)
    ranked = np.take_along_axis(q, orders[""], -1).mean(0)
    at_rank = {int(task): value for (metric, task), value in found.items() if metric == "mass_at_rank"}
    assert list(at_rank) == probability_mass.ranks(VOCAB)
    assert list(at_rank.values()) == pytest.approx([ranked[r - 1] for r in at_rank], rel=1e-5)  # fp32 logits


def test_of_itself_the_teacher_and_the_student_give_one_ranking():
    model, batches = tiny_model(), [Collator(PAD)(tiny_examples(8))]
    found = probability_mass.masses(model, LiveTeacher(model), batches, VOCAB)
    assert found["head", "average"] == found["head_own", "average"]
    assert found["tail", "average"] == found["tail_own", "average"]


@pytest.mark.parametrize("vocab_size", [48, 512, 2048, 32_000])
def test_ranks_reach_from_first_to_last_without_repeats(vocab_size):
    ranks = probability_mass.ranks(vocab_size)
    assert (ranks[0], ranks[-1]) == (1, vocab_size) and all(a < b for a, b in itertools.pairwise(ranks))
    assert 20 < len(ranks) <= 40


def test_learning_rates_are_those_of_table_1():
    def chosen(method: str, rate: float, **fields) -> Row:
        return row(1.0, experiment="table1", method=method, config={"learning_rate": rate}, **fields)

    rows = [chosen("kl", 0.01), chosen("rkl", 0.003), chosen("taid", 0.01), chosen("rkl", 0.003, seed=1)]
    others = [chosen("kl", 9.0, scale="smoke"), chosen("kl", 9.0, teacher="llama-2"), row(1.0, method="kl")]
    found = study.chosen_rates(rows + others, "cpu", "phi-3-mini", probability_mass.CLAIMED)
    assert found == {"kl": 0.01, "rkl": 0.003, "taid": 0.01}
    with pytest.raises(jobs.Refused, match="for kl, rkl with phi-3-mini: run `make table1 SCALE=cpu` first"):
        study.chosen_rates(rows[2:3] + others, "cpu", "phi-3-mini", probability_mass.CLAIMED)


# Finished cells


@dataclass(frozen=True)
class Run:
    seed: int

    def config(self) -> dict:
        return {"seed": self.seed}


def test_only_missing_cells_run_and_each_experiment_gets_its_rows(tmp_path, monkeypatch):
    here = lambda function, todo, workers, title: ((job, function(*job)) for job in todo)  # noqa: E731
    monkeypatch.setattr(jobs, "run", here)  # no processes
    measured = []

    def measure(run, split):
        measured.append((run.seed, split))
        return {("head", "average"): 0.5}, 2.0

    def rows(run, experiment, values, seconds):
        key = results.config_hash(run.config() | {"experiment": experiment})
        [value] = values.values()
        return [row(value, experiment=experiment, seed=run.seed, config_hash=key, seconds=seconds)]

    path = tmp_path / "rows.jsonl"
    jobs.evaluate({(Run(0), "test"): ["a"], (Run(1), "test"): ["a"]}, measure, rows, path, 1, "first")
    jobs.evaluate({(Run(0), "test"): ["a"], (Run(1), "test"): ["a", "b"]}, measure, rows, path, 1, "second")
    assert measured == [(0, "test"), (1, "test"), (1, "test")]  # seed 1 lacked b
    written = [(r.experiment, r.seed, r.seconds) for r in results.read(path)]
    assert written == [("a", 0, 2.0), ("a", 1, 2.0), ("a", 1, 2.0), ("b", 1, 2.0)]


# Claims

NOISE = (-0.01, 0.0, 0.01)


def scores_with(gap: float) -> dict[str, dict[int, float]]:
    """Log masses of two methods: a paired interval of gap ± 4.303 · 0.01 / √3 = gap ± 0.025."""
    return {"taid": {seed: gap + e for seed, e in enumerate(NOISE)}, "kl": dict.fromkeys(range(3), 0.0)}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("gap", "outcome"),
    [
        (0.0, "supported"),
        (LOG2 - 0.03, "supported"),
        (LOG2 - 0.02, "inconclusive"),
        (LOG2 + 0.02, "inconclusive"),
        (LOG2 + 0.03, "contradicted"),
    ],
)
def test_close_means_the_whole_interval_within_the_margin(gap, outcome, sign):
    verdict = close(scores_with(sign * gap), "taid", "kl", LOG2)
    assert verdict.outcome == outcome and verdict.estimate.mean == pytest.approx(sign * gap)


@pytest.mark.parametrize(
    ("gap", "outcome"),
    [
        (LOG2 + 0.03, "supported"),
        (LOG2 + 0.02, "inconclusive"),
        (LOG2 - 0.02, "inconclusive"),
        (LOG2 - 0.03, "contradicted"),
    ],
)
def test_greater_by_a_margin_means_the_whole_interval_above_it(gap, outcome):
    assert greater(scores_with(gap), "taid", "kl", LOG2).outcome == outcome


def test_one_seed_or_none_judges_nothing():
    assert close({"taid": {0: 0.0}, "kl": {0: 0.0}}, "taid", "kl", LOG2).outcome == "inconclusive"
    assert close({"taid": {0: 0.0}}, "taid", "kl", LOG2).estimate is None


def logs(part: str) -> dict[str, float]:
    return {method: math.log(mass) for method, mass in reference.table3()[part].items()}


@pytest.mark.parametrize(
    ("name", "method", "factor"),
    [
        ("KL ≈ TAID in the tail", "taid", 2.1),
        ("KL ≈ TAID in the tail", "taid", 0.5),
        ("KL ≫ RKL in the tail", "kl", 0.4),
        ("TAID ≫ RKL in the tail", "rkl", 2.5),
        ("RKL is highest in the head", "taid", 1.05),
    ],
)
def test_the_papers_numbers_satisfy_each_claim_and_others_would_not(name, method, factor):
    """Tails of 40.2, 8.1, 39.0 in 1e-7: ratios 0.97, 5.0, 4.8; heads of 0.216, 0.227, 0.218."""
    part, claim = CLAIMS[name]
    numbers = logs(part)
    assert holds_in_paper(claim, numbers)
    assert not holds_in_paper(claim, numbers | {method: numbers[method] + math.log(factor)})


# Rendering

HEAD = {"kl": 0.5, "rkl": 0.6, "taid": 0.52, "teacher": 0.55}
TAIL = {"kl": 4e-5, "rkl": 1e-6, "taid": 3.9e-5, "teacher": 2e-5}
SUFFIXES = ("", "_own", "_marginal")
RANKS = (1, 4, 40, 400, 2048)


def table_rows(seeds: int, tail: dict[str, float] = TAIL, **fields) -> list[Row]:
    """Masses with factors of e^0.01 between seeds, equal by every ranking; the teacher once; five ranks."""
    masses = {"head": ("average", HEAD), "tail": ("average", tail)}
    measured = [(part + s, task, by) for part, (task, by) in masses.items() for s in SUFFIXES]
    measured += [("mass_at_rank", str(rank), {m: h / rank for m, h in HEAD.items()}) for rank in RANKS]
    return [
        row(mass * math.exp(0.01 * seed), metric=metric, task=task, method=method, seed=seed, **fields)
        for metric, task, by in measured
        for method, mass in by.items()
        for seed in range(1 if method == "teacher" else seeds)
    ]


def frame_of(tmp_path, written: list[Row], scale: str = "cpu"):
    results.append(tmp_path / "table3.jsonl", written)
    return analysis_rows.load(tmp_path / "table3.jsonl", scale)


def line_of(markdown: str, start: str) -> list[str]:
    """Cells of the first table line that starts with `start`."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_paper_and_ours_stand_side_by_side_with_the_teacher_beside_them(tmp_path):
    text = table3.render(frame_of(tmp_path, table_rows(3)), "cpu")
    # The tail's logarithms have s = 0.01: the interval is e^(0.01 ± 4.303 · 0.01 / √3), 3.94e-5 to 4.14e-5.
    ours = ["0.505 ± 0.013", "4.04e-05 [3.94e-05, 4.14e-05]"]
    assert line_of(text, "KL") == ["KL", "0.216", ours[0], "4.02e-06", ours[1]]
    assert line_of(text, "teacher") == ["teacher", "—", "0.550", "—", "2.00e-05"]
    assert "V = 2,048" in text and "Seeds: 3" in text and "mean nothing" not in text
    assert text.count("**supported**") == 12  # four claims by three rankings


def test_claims_flip_with_the_data(tmp_path):
    text = table3.claims(frame_of(tmp_path, table_rows(3, TAIL | {"rkl": 8e-5})))
    # KL ≈ TAID and the head stay; both "≫ RKL" fall
    assert text.count("**supported**") == 6 and text.count("**contradicted**") == 6


def test_a_partial_file_renders_what_it_has(tmp_path):
    whole = table_rows(1, scale="smoke")
    partial = [r for r in whole if r.method in ("kl", "teacher") and not r.metric.endswith("_own")]
    text = table3.render(frame_of(tmp_path, partial, "smoke"), "smoke")
    assert line_of(text, "KL")[2:] == ["0.500 (1 seed)", "4.02e-06", "4.00e-05 (1 seed)"]
    assert "| RKL |" not in text and "no rows for RKL" in text and "mean nothing" in text
    assert "**supported**" not in text and "student's own" not in text


def test_rendering_is_deterministic(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        table3.write(frame_of(folder, table_rows(2)), folder, "cpu")
    for name in ("table3.md", "table3.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_figure_draws_a_line_per_method_over_the_ranks(tmp_path):
    curves = table3.by_rank(frame_of(tmp_path, table_rows(1)))
    assert list(curves) == ["kl", "rkl", "taid", "teacher"] and curves["kl"][4] == pytest.approx(0.125)
    ax = figures.Figure().subplots()
    assert figures.mass_by_rank(ax, curves, style.COLOURS, {"head": (1, 10)}) is ax
    drawn = {line.get_color(): list(line.get_ydata()) for line in ax.get_lines()}
    assert drawn == {style.COLOURS[method]: list(masses.values()) for method, masses in curves.items()}
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_references_have_no_learning_rate_in_table_1(tmp_path):
    student = row(1.0, experiment="table1", metric="score")
    written = [student, replace(student, method="teacher", config={"learning_rate": 0.0})]
    assert "Learning rates: 0.01." in table1.headline(frame_of(tmp_path, written), "cpu", "table1")
