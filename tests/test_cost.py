"""What a run takes: parameters as published, memory as measured, FLOPs by hand; and a plan runs nothing."""

import runpy
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taid.data import Collator
from taid.studies import cost, jobs, ultrachat
from taid.studies.instruction_tuning import Run
from taid.studies.training import Training, fit

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


@pytest.mark.parametrize("name", BILLIONS)
def test_parameters_are_those_published(name):
    assert cost.published(name).parameters / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)


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


@pytest.mark.parametrize(
    "script", sorted((ROOT / "paper_experiments").glob("*.py")), ids=lambda path: path.stem
)
def test_every_command_can_be_planned(script, monkeypatch, tmp_path):
    """Nothing is made or written; a study that starts from Table 1's rows says so where there are none."""
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
    asked = "smoke", 1, jobs.Workers(1), tmp_path / "rows", *([False] if options.get("tunes") else [])
    try:
        said = jobs.described(jobs.planned(main, *asked), script.stem)
    except jobs.Refused as refused:
        said = str(refused)
    assert "Table 1 has no learning rate" in said or int(said.split()[1]) > 0
    assert not [*tmp_path.iterdir()]
