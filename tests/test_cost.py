"""What a run takes: parameters as published, memory as measured, FLOPs by hand; and a plan runs nothing."""

import re
import runpy
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import InternVLConfig, InternVLModel, default_data_collator

from taid.data import Collator
from taid.studies import cost, cost_images, jobs, ultrachat, vision
from taid.studies.instruction_tuning import Run
from taid.studies.training import StepDecay, Training, fit
from taid.studies.vision_models import classifier

ROOT = Path(__file__).parents[1]
BILLIONS = {  # of the models' cards and papers
    "microsoft/Phi-3-mini-4k-instruct": 3.82,
    "microsoft/Phi-3-medium-4k-instruct": 13.96,
    "meta-llama/Llama-2-7b-chat-hf": 6.74,
    "TinyLlama/TinyLlama_v1.1": 1.10,
    "stabilityai/stablelm-zephyr-3b": 2.80,
    "EleutherAI/pythia-70m": 0.070,
    "EleutherAI/pythia-410m": 0.405,
    "EleutherAI/pythia-6.9b": 6.86,
    "Qwen/Qwen2-72B-Instruct": 72.7,
    "Qwen/Qwen2-1.5B-Instruct": 1.54,
}
SEEING = {"OpenGVLab/InternVL2-8B": 8.08, "OpenGVLab/InternVL2-2B": 2.21}  # of their own page, tower and all
# Multiplications of one image [10⁹]: He et al. 2016 by torchvision's count, Howard et al. 2017.
MULTIPLICATIONS = {"ResNet18": 1.81, "ResNet50": 4.09, "MobileNet-V1": 0.569}


@pytest.mark.parametrize("name", BILLIONS)
def test_parameters_are_those_published(name):
    assert cost.published(name).parameters / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)


@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_sees_is_its_language_and_its_tower(name):
    """FLOPs of the tower: oracle, PyTorch's counter on the meta device, of an image of 448 × 448."""
    from torch.utils.flop_counter import FlopCounterMode

    tower = cost.tower(name)
    assert (cost.published(name).parameters + tower.parameters) / 1e9 == pytest.approx(SEEING[name], rel=0.01)
    with torch.device("meta"):
        model = InternVLModel(InternVLConfig(text_config={"model_type": "llama", "num_hidden_layers": 0}))
        images = torch.empty(1, 3, 448, 448)
    model.vision_tower.set_attn_implementation("eager")  # whose products the counter sees
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.vision_tower(images)
    seen = cost.Load(tower, None, 1, 1, 1, cost.PATCHES, 0, (cost.PATCHES, 0), causal=False)
    projector = (
        2 * cost.PATCHES * (tower.parameters - sum(p.numel() for p in model.vision_tower.parameters()))
    )
    assert cost.pass_flops(tower, seen) - projector == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_a_classifier_multiplies_as_published(name):
    found = cost_images.counted(name, 1000, 224)
    assert found.flops / 2e9 == pytest.approx(MULTIPLICATIONS[name], rel=0.01)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made under it held at once, beside those of models that were there before."""

    def __init__(self, *models):
        super().__init__()
        self.live = self.peak = 0
        self.known = {p.untyped_storage()._cdata for model in models for p in model.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and (key := leaf.untyped_storage()._cdata) not in self.known:
                size = leaf.untyped_storage().nbytes()
                self.known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(leaf.untyped_storage(), self._gone, key, size)
        return made

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@pytest.mark.slow
@pytest.mark.parametrize(("fused", "width"), [(False, 64), (True, 64), (False, 256)])
def test_memory_is_within_a_tenth_of_what_a_run_holds(fused, width):
    """Oracle: the bytes of all tensors that live at once in two steps of two micro-batches each, in fp32 on the CPU."""
    vocabulary, length, learned, micro_batch = 4096, 128, 64, 4
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 6, "vocab_size": vocabulary,
             "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
    student, teacher = tiny_model("llama", seed=0, **shape), tiny_model("llama", seed=1, **shape)
    examples = [
        {"index": i, "prompt_ids": [5] * (length - learned), "response_ids": [7] * learned} for i in range(32)
    ]
    training = Training(2, 2 * micro_batch, 1e-3)
    options = {"micro_batch": micro_batch, "fuse_head": fused, "gradient_checkpointing": True}
    with Peak(student, teacher) as peak:
        fit(student, examples, Collator(0), training, seed=0, objective="kl", teacher=teacher, **options)
    net = cost.of_model(student)
    load = cost.Load(
        net, net, 2, 2 * micro_batch, micro_batch, length, learned, (length, learned), fused, autocast=False
    )
    found = cost.memory(load)
    expected = found["total"] - found["weights"] - found["teacher"]
    assert peak.peak == pytest.approx(expected, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "student"), [("ResNet56", "ResNet20"), ("VGG13", "VGG8")])
def test_memory_of_a_classifier_is_within_a_tenth_too(teacher, student):
    """Oracle: as above, in two steps of batches of 64."""
    size, classes = 64, 10
    nets = [classifier(name, classes, 3, True, seed) for seed, name in enumerate((student, teacher))]
    rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % classes} for i in range(2 * size)]
    with Peak(*nets) as peak:
        fit(
            nets[0],
            rows,
            default_data_collator,
            StepDecay(2, size, 0.05),
            seed=0,
            objective="kl",
            teacher=nets[1],
        )
    counted = (cost_images.counted(name, classes, 16, narrow=True) for name in (student, teacher))
    found = cost_images.bill(*counted, classes, 2, size)
    expected = found.memory["total"] - found.memory["weights"] - found.memory["teacher"]
    ahead = 4 * size * 3 * 16 * 16  # the next batch, read while one is learned
    assert peak.peak == pytest.approx(expected + ahead, rel=0.1)


def test_flops_are_those_of_the_matrices():
    """Oracle: PyTorch's own counter of a forward pass, less what masks leave out of attention."""
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model("llama", hidden_size=64, intermediate_size=128, vocab_size=512).eval()
    model.set_attn_implementation("eager")  # whose products the counter sees
    batch = torch.arange(2, 66)[None] % 500
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    net = cost.of_model(model)
    load = cost.Load(net, net, 1, 1, 1, 64, 64, (64, 64))
    causal = 2 * 64**2 * net.hidden * net.layers  # the counter has both triangles
    assert cost.pass_flops(net, load) + causal == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert cost.flops(load) == pytest.approx(5 * cost.pass_flops(net, load) - 2 * 64 * 512 * net.hidden)


def test_a_paper_run_takes_what_its_setting_says():
    kl, sft, gkd = (ultrachat.PAPER.load(Run("paper", m, "llama-2", 0, 1e-4)) for m in ("kl", "sft", "gkd"))
    assert cost.tokens(kl) == kl.steps * 64 * ultrachat.TYPICAL[0]
    assert cost.flops(sft) < cost.flops(kl) and not sft.teacher and kl.fused and not sft.fused
    assert cost.hours(gkd) > cost.hours(kl)
    assert cost.hours(replace(kl, steps=2 * kl.steps)) == pytest.approx(2 * cost.hours(kl))
    parts = cost.memory(kl)
    assert parts["optimizer"] == 2 * parts["gradients"] and parts["teacher"] == pytest.approx(
        2 * 6.74e9, rel=0.01
    )


def test_the_table_in_the_docs_is_what_the_command_prints():
    found = runpy.run_path(str(ROOT / "paper_experiments/00_what_it_takes.py"))["table"]()
    assert found in (ROOT / "docs/paper_scale.md").read_text()


def test_what_no_gpu_holds_is_said_with_what_does(monkeypatch):
    """Of Table 4 the teacher takes 135 GiB: two GPUs of 80 GB beside the student's own."""
    run = next(run for run in students_of("04_table4_taid_llm.py") if run.method == "taid")
    assert "show a job 3, of which the teacher takes 2" in cost.described(run.setting.bill(run))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = run.setting.takes([run])
    assert "teacher 72.7" in text and "missing: a GPU" in text and "missing: the network" in text


def test_what_tables_of_images_take_is_said():
    [run, *_] = students_of("07_table7_cifar100.py")
    text = run.setting.takes([run])
    assert "images" in text and "teachers trained first, as long as a student each: ResNet56" in text
    assert vision.SMOKE.takes([]) == "what this scale takes stands in `make help`"
    [run, *_] = students_of("05_table5_image_text.py")
    assert "student 2.2" in run.setting.takes([run])


def students_of(script: str) -> list:
    return runpy.run_path(str(ROOT / "paper_experiments/00_what_it_takes.py"))["students"](script)


def test_a_plan_has_every_cell_and_runs_none(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "LAUNCHERS", {})
    monkeypatch.setenv("TAID_CACHE", str(tmp_path))
    main = runpy.run_path(str(ROOT / "paper_experiments/01_table1_instruction_tuning.py"))["main"]
    cells = jobs.planned(main, "paper", 2, 1, tmp_path / "rows")
    assert not [*tmp_path.iterdir()] and not jobs.planning()
    experiments = [experiment for each in cells.values() for experiment in each]
    assert {name: experiments.count(name) for name in set(experiments)} == {
        "table1_search": 33, "table1": 66 + 12, "table1_one_rate": 66
    }  # fmt: skip
    text = jobs.described(cells, "01")
    assert "33 × one run" not in text and "llama-2" in text and "missing: a GPU" in text


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
@pytest.mark.parametrize(
    "script", sorted((ROOT / "paper_experiments").glob("*.py")), ids=lambda path: path.stem
)
def test_every_command_can_be_planned(script, scale, monkeypatch, tmp_path):
    """Nothing is made or written. A study that starts from Table 1's rates takes the committed ones, of the scale cpu,
    and says so at smoke, where there are none."""
    monkeypatch.setenv("TAID_CACHE", str(tmp_path))
    source = script.read_text()
    if "jobs.command(" not in source:
        return
    called: list = []
    monkeypatch.setattr(jobs, "command", lambda main, *given, **options: called.append((main, options)))
    runpy.run_path(str(script), run_name="__main__")
    [(main, options)] = called
    if options.get("workers") == 0:  # the theory, which has no cells: `--dry-run` is not among its options
        return
    asked = scale, 1, jobs.Workers(1), tmp_path / "rows", *([False] if options.get("tunes") else [])
    try:
        said = jobs.described(jobs.planned(main, *asked), script.stem)
    except jobs.Refused as refused:
        said = str(refused)
    without_rates = scale == "smoke" and "Table 1 has no learning rate" in said
    assert without_rates or re.search(r"^\S+: [1-9]\d* cells", said)
    assert not [*tmp_path.iterdir()]
