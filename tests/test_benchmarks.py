"""The benchmarks: what they measure is what they say, our memory does not grow, and their page tells it."""

from functools import cache, partial
from pathlib import Path

import pytest
import torch

from analysis import page, rows, speed
from benchmarks import grid, head, losses, official, peers, record, training
from benchmarks.measure import Call, interleaved, peak_memory, timed
from taid import losses as taid_losses
from taid import results
from taid.data import IGNORE


@pytest.fixture
def no_peers(tmp_path, monkeypatch):
    """Nothing but what the environment has; yields where peers would be."""
    monkeypatch.setenv("TAID_CACHE", str(tmp_path))
    peers._definition.cache_clear()
    yield tmp_path / "peers"
    peers._definition.cache_clear()


def contender(name: str, loss: str = "taid"):
    found = losses.contenders(loss)
    if name not in found:
        pytest.skip(f"{name} is not there: no C++ compiler")
    return found[name]


# Memory


def resident(field: str) -> int:
    """Bytes of the process's memory, now ("VmRSS") or at its peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
@pytest.mark.parametrize("name", ["eager", "cpp", "cpp_inplace"])
def test_memory_is_what_the_process_grows_by(name):
    """Oracle: the system's account, which sees a kernel's own buffers as well; to 2% of 262 MB of logits. Blocks
    above 32 MiB come straight from the system, so that the account is exact."""
    student, teacher, labels = losses.inputs(2048, 32_000, torch.float32)
    call = Call(partial(losses.gradient, contender(name), student, teacher, labels))
    call.run()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    kept = call.run()
    grown = resident("VmHWM") - before
    del kept
    assert peak_memory(call) == pytest.approx(grown, abs=0.02 * student.nbytes)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
def test_memory_is_had_from_the_system_before_the_clock_starts():
    Path("/proc/self/clear_refs").write_text("5")
    before, seen = resident("VmRSS"), []
    timed(Call(lambda: seen.append(resident("VmHWM") - before), memory=2**28))
    assert seen[0] > 0.98 * 2**28 > resident("VmRSS") - before  # held then, and not any more


def test_memory_peaks_within_a_run():
    """By hand: 4 MB are kept, and 8 MB come and go beside 4 MB that go before the end."""

    def run():
        first = torch.ones(10**6)
        torch.ones(2 * 10**6)
        return first + 1

    assert peak_memory(Call(run)) == 12 * 10**6


@cache
def memory(name: str, rows: int, vocab: int) -> int:
    """Bytes beyond the inputs, fp32, the gradient included."""
    return peak_memory(
        Call(partial(losses.gradient, contender(name), *losses.inputs(rows, vocab, torch.float32)))
    )


@pytest.mark.parametrize(
    ("name", "rows", "least", "most"),
    [("official", 64, 4, 6), ("eager", 2048, 1, 1.05), ("cpp", 64, 1, 1.01), ("cpp_inplace", 64, 0, 0.05)],
)
def test_memory_in_logit_tensors(name, rows, least, most):
    """Against regressions, at Llama 2's vocabulary: the gradient, or nothing in place, and little beside."""
    assert least <= memory(name, rows, 32_000) / (4 * rows * 32_000) <= most


@pytest.mark.parametrize("name", ["official", "eager", "cpp"])
@pytest.mark.parametrize("larger", [(512, 8000), (256, 16_000)], ids=["rows", "vocabulary"])
def test_memory_grows_linearly_with_rows_and_vocabulary(name, larger):
    """Twice the logits, twice the memory, to 2%; eager has chunks beside, of as many rows as fit a fixed size."""
    small, large = memory(name, 256, 8000), memory(name, *larger)
    fixed = small - 4 * 256 * 8000 if name == "eager" else 0
    assert large - fixed == pytest.approx(2 * (small - fixed), rel=0.02)


# Contenders


@pytest.mark.parametrize("loss", grid.LOSSES)
@pytest.mark.parametrize("name", ["plain", "eager", "cpp", "cpp_inplace"])
def test_contenders_compute_the_loss_they_stand_for(loss, name):
    """Oracle: autograd through `taid.losses` in fp64, a third of the labels ignored. fp32 rounds by 1e-7."""
    student, teacher, labels = losses.inputs(30, 50, torch.float32)
    labels[::3] = IGNORE
    exact = losses.gradient(partial(losses._plain, loss), student.double(), teacher.double(), labels)
    found = losses.gradient(contender(name, loss), student.clone(), teacher, labels)
    assert torch.equal(found[::3], torch.zeros(10, 50))
    torch.testing.assert_close(found.double(), exact, atol=1e-7, rtol=1e-5)


def test_the_official_formulas_are_those_of_the_losses():
    """`taid.losses` has them as `official=True`, computed another way; here t, mask and value in fp32."""
    student, teacher, labels = losses.inputs(30, 50, torch.float32)
    labels[::3] = IGNORE
    student.requires_grad_()
    values = taid_losses.taid_kl(student, teacher, 0.4, official=True)
    expected = taid_losses.masked_mean(values, labels != IGNORE)
    found = official.taid_kl(student, teacher, labels, 0.4)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, student)[0] for x in (found, expected)), atol=1e-8, rtol=1e-5
    )


def test_a_gradient_written_over_the_logits_is_not_copied():
    student, teacher, labels = losses.inputs(4, 50, torch.float32)
    assert (
        losses.gradient(contender("cpp_inplace"), student, teacher, labels).data_ptr() == student.data_ptr()
    )


def test_the_error_of_the_gradient_is_that_of_rounding():
    """bf16 has 8 bits: rounded to nearest, 0.17% at random mantissas (1/√12 of a spacing of 2⁻⁷ … 2⁻⁸)."""
    values, _ = losses.accuracy(losses.Accuracy("smoke", "taid", 4, 4000, "bf16", 0.05))
    assert 0.001 < values["eager", "gradient_error", 0] < 0.003
    assert (
        values["official", "gradient_error", 0] > 0.1
    )  # it blends in bf16, where 0.05 apart is next to equal


def test_heads_agree():
    """Oracle: the matmuls and `taid.losses` in fp64."""
    cell = head.Cell("smoke", "taid", 40, 60, 8, 12, "fp32", 1)
    inputs = head.inputs(cell)
    labels = torch.zeros(cell.rows, dtype=torch.long)

    def gradients(which, tensors):
        return torch.autograd.grad(which(*tensors, labels), tensors[:2])

    doubled = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    exact = gradients(partial(head._matmuls, partial(losses._plain, "taid")), doubled)
    for name, which in head.heads("taid").items():
        for found, expected in zip(gradients(which, inputs), exact, strict=True):
            torch.testing.assert_close(
                found.double(), expected, atol=1e-7, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_calls_take_turns_and_slow_ones_stop_early():
    order = []
    calls = {name: Call(partial(order.append, name), partial(order.append, f"({name})")) for name in "ab"}
    times = interleaved(calls, {"a": 3, "b": 1})
    assert "".join(order) == "(a)a(b)b(a)a(a)a"
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 1}


# Peers


def test_a_missing_peer_is_left_out(no_peers):
    assert set(peers.versions().values()) == {None} and set(peers.versions()) == {
        "trl",
        "torchtune",
        "liger-kernel",
    }
    assert not {"trl", "torchtune"} & {*losses.contenders("gjs"), *losses.contenders("rkl")}
    assert "liger" not in head.heads("gjs") and "fused_head" in head.heads("gjs")


def test_of_a_peer_only_the_function_is_loaded(no_peers):
    """Its file wants a module that is not there, and a class around the function a base that is not there."""
    file = no_peers / "trl/experimental/gkd/gkd_trainer.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import not_there\n\nclass Trainer(not_there.Base):\n    @staticmethod\n"
        "    def generalized_jsd_loss(student, teacher, labels=None, beta=0.5):\n"
        "        return beta * F.softmax(student - teacher, -1).sum() + torch.zeros(())\n"
    )
    (no_peers / "trl-9.9.dist-info").mkdir()
    (no_peers / "trl-9.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 9.9\n")
    assert peers.versions()["trl"] == "9.9" and "trl" in losses.contenders("gjs")
    assert float(peers.trl_jsd(torch.ones(3, 5), torch.zeros(3, 5), None)) == pytest.approx(0.3)


# Training steps

TINY = training.Training("smoke", ("kl", "gkd"), 32, 3, 4, 2, 1.0, 2, 1)


@pytest.mark.parametrize(
    ("method", "share"), [("kl", None), ("distillm", 0), ("distillm_sampling", 2 / 3), ("gkd", 1)]
)
def test_a_block_times_every_step_and_samples_as_the_method_does(method, share):
    """Three steps with the warm-up. Two of them fill DistiLLM's buffer, from which the third is drawn."""
    seconds, objective = training.block(TINY, method, seed=0)
    assert len(seconds) == 2 and min(seconds) > 0
    assert objective.logs().get("rollout_share") == share


# Rows and their page


def test_rows_are_results_and_a_finished_cell_is_known(tmp_path):
    cell = losses.Cell("smoke", "taid", 4, 50, "fp32", 2, ("official", "eager"))
    values, seconds = losses.measure(cell)
    results.append(tmp_path / "speed.jsonl", record.rows(cell, "losses", values, seconds))
    read = results.read(tmp_path / "speed.jsonl")
    assert {row.method for row in read} == {"official", "eager", "floor"}
    assert {row.metric for row in read} <= record.UNITS.keys() and min(row.value for row in read) >= 0
    assert results.config_hash(cell.config() | {"experiment": "losses"}) in results.finished(
        tmp_path / "speed.jsonl"
    )
    assert (
        read[0].config["code"] == record.code_digest("benchmarks.losses")
        and read[0].versions
        and read[0].device
    )
    text = page.render(speed.PAGE, rows.load(tmp_path / "speed.jsonl", "smoke"), "smoke")
    assert "| 4 × 50, fp32 |" in text and "mean nothing" in text


@pytest.mark.parametrize("scale", grid.SCALES)
@pytest.mark.parametrize(
    "experiment", ["losses", "accuracy", "scaling_vocab", "scaling_rows", "head", "step", "cost"]
)
def test_cells_have_names_of_their_own(experiment, scale):
    """The name is what tells the rows of two cells apart."""
    cells = grid.cells(experiment, scale)
    assert cells and len({str(cell) for cell in cells}) == len(
        {results.config_hash(c.config()) for c in cells}
    )


def test_other_code_is_another_cell(tmp_path, monkeypatch):
    """Code that is imported, at the top or when it is wanted, and a kernel beside it; not what stands elsewhere."""
    files = {
        "benchmarks/__init__.py": "",
        "benchmarks/speed.py": "import math, torch\nfrom taid import fused\n",
        "taid/__init__.py": "",
        "taid/fused/__init__.py": "def gpu():\n    from taid.fused import gpu\n",
        "taid/fused/gpu.py": "",
        "taid/fused/kernel.cpp": "",
        "taid/fused/notes.txt": "",
        "taid/prose.py": "from taid import fused\n",
        "taid/studies/kernel.cpp": "",
    }
    monkeypatch.setattr(record, "ROOT", tmp_path)

    def digest() -> str:
        record.code_digest.cache_clear()
        return record.code_digest("benchmarks.speed")

    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    changes = {}
    for name, text in files.items():
        before = digest()
        (tmp_path / name).write_text(text + "# other\n")
        changes[name] = digest() != before
    record.code_digest.cache_clear()
    unchanged = [name for name, changed in changes.items() if not changed]
    assert unchanged == ["taid/fused/notes.txt", "taid/prose.py", "taid/studies/kernel.cpp"]


def test_the_losses_are_measured_without_the_studies():
    """So that work on a study leaves the rows of the losses as they are; those of a training step have a trainer."""
    losses_code, training_code = (
        {str(path.relative_to(record.ROOT)) for path in record.code(f"benchmarks.{name}")}
        for name in ("losses", "training")
    )
    measured = {"benchmarks/losses.py", "taid/losses.py", "taid/fused/kernel.cpp", "taid/fused/gpu.py"}
    assert measured <= losses_code and "taid/trainer/distillation.py" in training_code - losses_code
    assert not any("studies" in name for name in losses_code)
