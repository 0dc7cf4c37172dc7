"""The commands of `SCALE=paper`, from a mirror of the hub with tiny models of the paper's classes to their tables.

A run has two steps; its data are a few rows in the hub's format. What is written is random: nothing here is a result.
"""

import runpy
from dataclasses import replace
from pathlib import Path

import mirror
import numpy as np
import pytest
from test_mt_bench import Server, write

from analysis.__main__ import render
from taid import results
from taid.evaluation import mt_bench
from taid.objectives import TABLE1
from taid.studies import (
    capacity,
    continued_pretraining,
    hub,
    image_text,
    instruction_tuning,
    jobs,
    study,
    taid_llm,
    training,
    ultrachat,
    vision,
    zoo,
)
from taid.studies.training import StepDecay, Training

SCRIPTS = Path(__file__).parents[1] / "paper_experiments"
TWO = Training(2, 2, 1e-3)
PARTS = ("nlvr2", "iconqa")  # of Mantis-Instruct
TABLES_OF_IMAGES = {
    table: replace(
        setting,
        images=replace(setting.images, classes=3, side=side),
        narrow=True,
        **dict.fromkeys(("pretrain_teacher", "distil"), StepDecay(2, 4, 0.05)),
        search_steps=2,
    )
    for side, (table, setting) in zip((8, 32), vision.PAPER.items(), strict=True)
}


def in_this_process(function, todo, workers, title):
    for job in todo:
        yield job, function(*job)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A mirror, a cache, and the settings with few examples and steps."""
    root = tmp_path_factory.mktemp("paper")
    mirror.write_table1(root / "hub")
    mirror.write_corpus(root / "hub")
    mirror.write_mantis(root / "hub", PARTS)
    for setting in TABLES_OF_IMAGES.values():
        write_images(root / "hub", setting.images)
    mirror.write_classifiers(root / "hub", vision.PAPER["table8"].hub_teachers, classes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAID_HUB", str(root / "hub"))
        patch.setenv("TAID_CACHE", str(root / "cache"))
        patch.setattr(jobs, "run", in_this_process)
        judge = Server()
        patch.setenv("OPENAI_API_KEY", "none")
        patch.setenv("OPENAI_BASE_URL", judge.url)
        patch.setenv("TAID_JUDGE", "gpt-4")
        questions = write(root / "questions")
        patch.setattr(ultrachat.sources, "fetch", lambda name: questions)
        patch.setattr(mt_bench, "ANSWER_TOKENS", 4)
        small = {"distil": TWO, "validation": 2, "test": 2, "micro_batch": 1}
        for settings, further in (
            (instruction_tuning.SETTINGS, {"longest_response": 24, "validations": 2}),
            (
                continued_pretraining.SETTINGS,
                {"search_steps": 2, "window": 16, "tasks": ("winogrande",), "items": 4},
            ),
            (taid_llm.SETTINGS, {"window": 16, "tasks": ("winogrande",), "items": 4}),
            (capacity.SETTINGS, {"window": 16, "items": 4}),
            (image_text.SETTINGS, {"longest": 128, "longest_response": 24, "parts": PARTS}),
        ):
            patch.setitem(settings, "paper", replace(settings["paper"], **small, **further))
        patch.setattr(training, "READERS", 1)
        for table, setting in TABLES_OF_IMAGES.items():
            patch.setitem(vision.SETTINGS[table], "paper", setting)
        study.at.cache_clear()
        hub.teacher.cache_clear()
        yield root
        judge.http.shutdown()
    study.at.cache_clear()
    hub.teacher.cache_clear()


def write_images(hub_folder: Path, images: vision.HubImages) -> None:
    """Twelve images to learn from and four held out, of three classes."""
    counts = {"train": 12, images.held_out: 4}
    shape, rng = (images.side, images.side, 3), np.random.default_rng(0)
    pixels = {
        split: rng.integers(256, size=(count, *shape), dtype=np.uint8) for split, count in counts.items()
    }
    mirror.write_images(hub_folder, images, pixels, {s: [i % 3 for i in range(n)] for s, n in counts.items()})


def command(script: str, root: Path, page: str) -> list[results.Row]:
    """The rows that a command leaves, its page rendered from them."""
    main = runpy.run_path(str(next(SCRIPTS.glob(f"{script}*.py"))))["main"]
    main("paper", 1, 1, root / "rows")
    render(page, root / "rows", "paper")
    assert (root / "rows" / f"{page}.md").stat().st_size > 500
    return results.read(root / "rows" / f"{page}.jsonl")


@pytest.mark.slow
def test_tables_1_and_3(root):
    """Every method on every pair; the students of Table 3 are Table 1's, none is trained again."""
    rows = command("01_table1_instruction", root, "table1")
    measured = {(r.method, r.teacher, r.metric) for r in rows if r.experiment == "table1"}
    methods = {*TABLE1, *study.REFERENCES}
    for metric in ("score", "rouge_l", "held_out_loss", "kl_to_teacher"):
        assert measured >= {(method, teacher, metric) for method in methods for teacher in zoo.PAIRS}
    kept = [*(root / "cache").glob("instruction_tuning/*/runs/*")]
    trained = {path: path.stat().st_mtime_ns for path in kept if (path / "config.json").exists()}
    assert len(trained) == len(TABLE1) * len(zoo.PAIRS) and not any(path.suffix == ".work" for path in kept)
    masses = command("03", root, "table3")
    assert {row.method for row in masses} >= {"kl", "rkl", "taid", "teacher"}
    assert all(0 <= row.value <= 1 for row in masses)
    assert trained == {path: path.stat().st_mtime_ns for path in trained}


@pytest.mark.slow
def test_table_2(root):
    rows = command("02", root, "table2")
    scored = {(r.method, r.task) for r in rows if (r.experiment, r.metric) == ("table2", "accuracy")}
    assert scored == {(m, "winogrande") for m in (*continued_pretraining.TABLE2, *study.REFERENCES)}
    assert {r.teacher for r in rows} == {"phi-3-medium"} and {r.student for r in rows} == {"tinyllama"}
    page = (root / "rows" / "table2.md").read_text()
    assert "winogrande, like winogrande" in page and "cloze" not in page


@pytest.mark.slow
def test_table_4(root):
    """One arm, one rate; TAID's student is left as others load it, with the data that it was trained on in its card."""
    rows = command("04", root, "table4")
    scored = {(r.method, r.task) for r in rows if (r.experiment, r.metric) == ("table4_text", "accuracy")}
    assert scored == {(m, "winogrande") for m in (*taid_llm.METHODS, *study.REFERENCES)}
    assert {r.experiment for r in rows} == {"table4_text"} and {r.scale for r in rows} == {"paper"}
    assert {(r.teacher, r.student) for r in rows} == {("qwen2-72b", "qwen2-1.5b")}
    [card] = (root / "cache").glob("taid_llm/paper-*/released/text-taid-0/README.md")
    assert "HuggingFaceTB/smollm-corpus" in card.read_text() and "4 rows to train on" in card.read_text()
    page = (root / "rows" / "table4.md").read_text()
    assert "winogrande, like winogrande" in page and "SmolLM2" not in page


@pytest.mark.slow
def test_table_5(root):
    """InternVL2 and Mantis-Instruct; the families are its parts, and chance is known of none."""
    rows = command("05", root, "table5")
    scored = {
        (r.method, r.task)
        for r in rows
        if (r.experiment, r.scale, r.metric) == ("table5", "paper", "accuracy")
    }
    assert scored == {(m, t) for m in (*image_text.METHODS, *study.REFERENCES) for t in (*PARTS, "average")}
    assert {row.metric for row in rows} == set(image_text.UNITS) - {"chance"}
    page = (root / "rows" / "table5.md").read_text()
    assert all(f"| {part} |" in page for part in PARTS) and "handwritten" not in page


@pytest.mark.slow
@pytest.mark.parametrize(("script", "table"), [("07", "table7"), ("08", "table8")])
def test_tables_7_and_8(root, script, table):
    """CIFAR-100, with teachers trained first, and ImageNet, with teachers of the hub."""
    rows = command(script, root, table)
    scored = {(r.method, r.teacher, r.student) for r in rows if r.metric == "accuracy"}
    pairs = vision.TABLES[table].pairs
    assert scored == {(m, p.teacher, p.student) for p in pairs for m in (*vision.METHODS, "teacher")}
    name = f"vision/paper-{TABLES_OF_IMAGES[table].digest}"
    trained = {path.name for path in (root / "cache").glob(f"{name}/models/*")} - {"locks"}
    assert trained == ({pair.teacher for pair in pairs} if table == "table7" else set())


@pytest.mark.slow
def test_table_6(root):
    rows = command("06_table6_capacity", root, "table6")
    scored = {
        (r.method, r.teacher) for r in rows if (r.experiment, r.metric) == ("table6", "last_word_accuracy")
    }
    assert scored >= {(m, t) for m in capacity.METHODS for t in capacity.TEACHERS}
