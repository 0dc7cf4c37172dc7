"""Teachers and students as users give them: names, shared weights, adapters, compiled and checkpointed models."""

import copy
import json
import random
import sys

import pytest
import torch
from conftest import PAD, VOCAB, tiny_examples, tiny_model, tiny_trainer
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from taid.data import Collator
from taid.logits import response_logits
from taid.losses import forward_kl
from taid.objectives import METHODS, objective
from taid.teacher import LiveTeacher, OwnBase, check_callable, live, live_teacher
from taid.teacher.live import share_memory

BATCH = Collator(PAD)(tiny_examples(4))
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def weights(model) -> dict:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def adapted(lora_dropout: float = 0.0, **options) -> PeftModel:
    """A student whose adapters already do something."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = LoraConfig(**LORA, lora_dropout=lora_dropout, init_lora_weights=False, **options)
        return get_peft_model(tiny_model(), config)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# Names


def test_a_teacher_is_loaded_by_name_with_its_tokenizer(tmp_path, teacher, tokenizer):
    """Oracle: the same teacher, given as a model; the tokenizer beside it proves 8 further entries padding."""
    wide = tiny_model(seed=1, vocab_size=VOCAB + 8)
    for folder, model in (("wide", wide), ("as it is", teacher)):
        model.save_pretrained(tmp_path / folder)
    tokenizer.save_pretrained(tmp_path / "wide")
    found = []
    for given in (tmp_path / "as it is", teacher):
        trainer = tiny_trainer(tmp_path / "run", "kl", teacher=given, steps=2, tokenizer=tokenizer)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1]
    trainer = tiny_trainer(
        tmp_path / "run", "kl", teacher=str(tmp_path / "wide"), tokenizer=tokenizer, bf16=True
    )
    assert trainer.teacher.model.dtype == torch.bfloat16 and not trainer.teacher.model.training


def test_a_name_that_gives_no_teacher_is_told_at_construction(tmp_path, teacher):
    with pytest.raises(ValueError, match="no teacher could be loaded from '.*nowhere'.*safetensors"):
        tiny_trainer(tmp_path, "kl", teacher=tmp_path / "nowhere")
    torch.save(teacher.state_dict(), tmp_path / "pytorch_model.bin")  # pickled
    teacher.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no teacher could be loaded"):
        tiny_trainer(tmp_path, "kl", teacher=tmp_path)


def without_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def cut_in_two(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def of_another_width(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 16}))


LACKING = {
    "a layer": (AutoModelForCausalLM, without_a_layer, r"lack model.layers.1..* and \d+ others"),
    "the head, of a reward model": (
        AutoModelForSequenceClassification,
        lambda folder: None,
        "lack lm_head.weight, which Llama",
    ),
    "their shapes": (
        AutoModelForCausalLM,
        of_another_width,
        r"mlp.\w+.weight is \[\d+, \d+\], where its config has \[",
    ),
    "a half": (AutoModelForCausalLM, cut_in_two, "its weights are damaged"),
}


@pytest.mark.parametrize("case", LACKING)
def test_weights_that_a_checkpoint_lacks_are_not_drawn_at_random(case, tmp_path, teacher):
    auto, harm, words = LACKING[case]
    auto.from_config(teacher.config).save_pretrained(tmp_path / "teacher")
    harm(tmp_path / "teacher")
    with pytest.raises(ValueError, match=words):
        tiny_trainer(tmp_path / "run", "kl", teacher=tmp_path / "teacher")


# Models


def test_shared_weights_are_refused(tmp_path, student):
    tied = tiny_model(seed=1)
    tied.set_input_embeddings(student.get_input_embeddings())
    lora = adapted()
    for model, teacher in ((student, student), (student, tied), (lora, lora), (lora.get_base_model(), lora)):
        with pytest.raises(ValueError, match="share weights.*copy.deepcopy"):
            tiny_trainer(tmp_path, "taid", student=model, teacher=teacher)
    tiny_trainer(tmp_path, "taid", student=student, teacher=copy.deepcopy(student), steps=1).train()


def test_views_of_one_storage_are_shared_where_they_overlap(tmp_path, student, teacher):
    """Oracle of what overlaps: the teacher's weight after the student's is filled."""
    rows = torch.randn(3 * VOCAB, 16)
    teacher.lm_head.weight.data = rows[VOCAB - 8 : -VOCAB - 8]
    for start, overlaps in (
        (VOCAB, True),
        (2 * VOCAB, False),
    ):  # side by side: as of one file, packed by a library
        student.lm_head.weight.data = rows[start : start + VOCAB]
        before = teacher.lm_head.weight.clone()
        student.lm_head.weight.data.fill_(start)
        assert torch.equal(teacher.lm_head.weight, before) is not overlaps
        if overlaps:
            with pytest.raises(ValueError, match="share weights.*copy.deepcopy"):
                tiny_trainer(tmp_path, "kl", student=student, teacher=teacher)
        else:
            tiny_trainer(tmp_path, "kl", student=student, teacher=teacher, steps=1).train()


def test_a_buffer_is_shared_as_a_weight_is(tmp_path, student, teacher):
    """As the running means of a classifier, which move in every pass."""
    for model in (student, teacher):
        model.register_buffer("mean", torch.zeros(3))
    tiny_trainer(tmp_path, "kl", student=student, teacher=teacher)
    student.mean = teacher.mean
    with pytest.raises(ValueError, match="share weights"):
        tiny_trainer(tmp_path, "kl", student=student, teacher=teacher)


def test_memory_is_shared_where_what_is_written_is_read():
    """Oracle: some tensors are filled, and others read. Slices of two storages, of any place and step."""
    rng, found = random.Random(0), set()
    for _ in range(300):
        arenas = torch.zeros(40), torch.zeros(40)
        pair = [[_slice(rng, rng.choice(arenas)) for _ in range(rng.randint(0, 3))] for _ in range(2)]
        for tensor in pair[0]:
            tensor.fill_(1.0)
        expected = any(bool(tensor.any()) for tensor in pair[1])
        assert share_memory(*pair) is share_memory(*pair[::-1]) is expected
        found.add(expected)
    assert found == {True, False}


def _slice(rng: random.Random, arena: torch.Tensor) -> torch.Tensor:
    """Some neighbours of a flat tensor, maybe none, maybe as a matrix that is transposed."""
    start = rng.randrange(0, 37)
    return (
        arena[start : start + rng.randint(0, 4)] if rng.random() < 0.7 else arena[start:][:2].reshape(2, 1).T
    )


def test_what_lies_nowhere_is_not_shared():
    """On `meta` every tensor lies at 0. Of a packed tensor the parts count, for itself it lies nowhere."""
    from torch.testing._internal.two_tensor import TwoTensor

    with torch.device("meta"):
        assert not share_memory(tiny_model().parameters(), tiny_model().parameters())
    part = torch.ones(2)
    packed = [TwoTensor(torch.ones(2), torch.ones(2)), TwoTensor(torch.ones(2), part)]
    assert not share_memory(packed[:1], packed[1:]) and share_memory([part], packed[1:])


def test_what_is_called_with_text_is_no_teacher(tmp_path, tokenizer):
    """A tokenizer is callable; a processor and a pipeline, which has a save_pretrained too, are as well."""

    class Pipe:
        save_pretrained = __call__ = print

    with pytest.raises(TypeError, match="the teacher is a .*: pass a language model"):
        tiny_trainer(tmp_path, "kl", teacher=tokenizer)
    with pytest.raises(TypeError, match="the teacher is a Pipe: pass a language model"):
        check_callable(Pipe())
    for weights in (
        list(range(10_000)),
        {"weight": torch.zeros(300, 300)},
    ):  # of which a message shows a part
        with pytest.raises(TypeError, match="(?s)the teacher is .*: pass a language model") as error:
            check_callable(weights)
        assert len(str(error.value)) < 300


def test_a_kl_that_is_asked_for_wants_a_teacher_that_knows():
    def function(batch):
        return None

    for teacher, words in ((None, "there is no teacher"), (function, "a function does not say")):
        check_callable(teacher), check_callable(teacher, False)
        with pytest.raises(ValueError, match=f"eval_kl=True, but {words}.*knows = lambda batch: True"):
            check_callable(teacher, True)
    function.knows = lambda batch: True
    check_callable(function, True)


def test_a_teacher_is_frozen_wherever_it_comes_from(student, teacher):
    teacher.train()
    assert not live_teacher(teacher, student, torch.device("cpu")).model.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("mark", [{"hf_device_map": {"": 0}}, {"is_quantized": True}])
def test_quantised_and_spread_teachers_stay_where_they_are(mark, student, teacher, monkeypatch):
    """bitsandbytes' models raise at `.to`."""
    for name, value in mark.items():
        setattr(teacher, name, value)
    monkeypatch.setattr(teacher, "to", lambda *_: pytest.fail("moved"))
    assert live_teacher(teacher, student, torch.device("cpu")).model is teacher


# The student's own base


@pytest.mark.parametrize("fuse_head", [False, True])
def test_the_base_of_a_student_teaches_without_its_adapters(fuse_head, tmp_path):
    """Oracle: KL to a copy of the base. The student has dropout, which is off for the teacher and on again."""
    student = adapted(lora_dropout=0.5)
    student.train()
    frozen = next(parameter for name, parameter in student.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    own, copied = (
        live_teacher(student.get_base_model(), student, torch.device("cpu")),
        LiveTeacher(tiny_model()),
    )
    assert isinstance(own, OwnBase)
    torch.testing.assert_close(own(BATCH), copied(BATCH))
    head = own.head(BATCH)
    torch.testing.assert_close(head.hidden @ head.weight.T, copied(BATCH))
    assert all(module.training for module in student.modules())
    assert {name: parameter.requires_grad for name, parameter in student.named_parameters()} == before
    runs = []
    for base in (False, True):
        student = adapted()
        teacher = student.get_base_model() if base else tiny_model()
        trainer = tiny_trainer(tmp_path, "kl", student=student, teacher=teacher, steps=3, fuse_head=fuse_head)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], abs=1e-6) and runs[0][0] > 0.01


def test_the_base_of_a_sharded_student_does_not_teach(monkeypatch):
    """Its root gathers the weights, and is not what would be called."""
    monkeypatch.setattr(live, "is_sharded", lambda model: True)
    student = adapted()
    with pytest.raises(ValueError, match="pass a copy of its own"):
        live_teacher(student.get_base_model(), student, torch.device("cpu"))(BATCH)


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_a_tuned_prompt_is_off_for_its_base(config):
    tuned = get_peft_model(tiny_model(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    own = live_teacher(tuned.get_base_model(), tuned, torch.device("cpu"))
    expected = LiveTeacher(tiny_model())(BATCH)
    torch.testing.assert_close(own(BATCH), expected)
    assert (response_logits(tuned, BATCH)[0] - expected).abs().max() > 0.1


# Adapters


@pytest.mark.parametrize("method", ["taid", "gkd"])
def test_lora_trains_adapters_alone_and_resumes_bitwise(method, tmp_path):
    """Oracle of the resumed run: the unbroken one; of what is saved: PEFT, which reads it."""

    def run(folder, **options):
        student = tiny_model()
        return tiny_trainer(
            tmp_path / folder, method, student=student, teacher=student, peft_config=LoraConfig(**LORA),
            steps=6, save_strategy="steps", save_steps=3, **options,
        )  # fmt: skip

    base, whole, resumed = weights(tiny_model()), run("whole"), run("resumed")
    assert isinstance(whole.teacher, OwnBase)
    whole.train()
    inside = weights(whole.model.get_base_model())
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in inside.items() if "lora_" not in name}
    assert kept.keys() == base.keys() and all(torch.equal(kept[name], base[name]) for name in base)
    trained = {name for name, parameter in whole.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in weights(whole.model) if "lora_" in name}
    checkpoint = tmp_path / "whole" / "checkpoint-6"
    assert all("lora_" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    assert not (checkpoint / "model.safetensors").exists()
    read = PeftModel.from_pretrained(tiny_model(), checkpoint)
    torch.testing.assert_close(response_logits(read, BATCH)[0], response_logits(whole.model.eval(), BATCH)[0])
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    found = weights(resumed.model)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(whole.model).items())


def test_adapters_are_drawn_by_the_seed_of_the_run(tmp_path):
    drawn = []
    for noise, seed in ((0, 5), (1, 5), (2, 6)):
        torch.manual_seed(noise)
        trainer = tiny_trainer(tmp_path, "kl", peft_config=LoraConfig(**LORA), seed=seed)
        drawn.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_modules_to_save_are_trained_whole(tmp_path):
    """The head is trained beside the adapters, and its base still teaches with the old one."""
    student = adapted(modules_to_save=["lm_head"])
    trainer = tiny_trainer(tmp_path, "kl", student=student, teacher=student.get_base_model(), steps=2)
    trainer.train()
    torch.testing.assert_close(trainer.teacher(BATCH), LiveTeacher(tiny_model())(BATCH))
    moved = student.get_output_embeddings().modules_to_save["default"].weight
    assert not torch.equal(moved, tiny_model().get_output_embeddings().weight)


def test_a_head_with_an_adapter_is_not_fused(tmp_path):
    student = get_peft_model(tiny_model(), LoraConfig(**LORA | {"target_modules": ["q_proj", "lm_head"]}))
    with pytest.raises(ValueError, match="train it without fuse_head"):
        tiny_trainer(tmp_path, "kl", student=student, fuse_head=True).train()
    tiny_trainer(tmp_path, "kl", student=student, steps=1).train()


@pytest.mark.parametrize("method", ["kl", "gkd"])
@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_a_prompt_is_tuned(config, method, tmp_path):
    """Only the virtual tokens move, and the loss that is logged is that of PEFT's own forward pass."""
    kind = objective(method, probability=1.0, max_new_tokens=4) if method == "gkd" else method
    trainer = tiny_trainer(
        tmp_path, kind, peft_config=config(task_type="CAUSAL_LM", num_virtual_tokens=3), steps=2, batch=4,
        examples=tiny_examples(4), learning_rate=0.0,
    )  # fmt: skip
    trainer.train()
    assert {name.split(".")[0] for name, p in trainer.model.named_parameters() if p.requires_grad} == {
        "prompt_encoder"
    }
    if method == "kl":
        batch = {name: value for name, value in BATCH.items() if name not in ("index", "labels")}
        mask = BATCH["labels"][:, 1:] != -100
        with torch.no_grad():
            logits = trainer.model.eval()(**batch).logits[:, -BATCH["labels"].shape[1] :][:, :-1][mask]
        expected = forward_kl(logits, trainer.teacher(BATCH)).mean().item()
        assert losses(trainer)[0] == pytest.approx(expected, abs=1e-5)


def test_what_peft_config_cannot_do_is_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="one that has none yet"):
        tiny_trainer(tmp_path, "kl", student=adapted(), peft_config=LoraConfig(**LORA))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        tiny_trainer(tmp_path, "kl", peft_config=object())


# Compiled, checkpointed


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_nothing(method, tmp_path):
    """Of LoRA on its own base too, whose adapters are on again when the backward pass recomputes."""
    kind = objective(method, max_new_tokens=4) if method in ("gkd", "distillm") else method
    runs = []
    for on in (False, True):
        student = adapted() if method == "kl" else tiny_model()
        teacher = student.get_base_model() if method == "kl" else tiny_model(seed=1)
        trainer = tiny_trainer(
            tmp_path,
            copy.deepcopy(kind),
            student=student,
            teacher=teacher,
            steps=3,
            gradient_checkpointing=on,
        )
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["argument", "student"])
def test_a_compiled_student_is_trained_alike(how, tmp_path):
    """Through Dynamo and AOTAutograd; Inductor only makes it faster."""
    runs = []
    for compiled in (False, True):
        student, options = tiny_model(), {}
        if compiled and how == "argument":
            options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
        elif compiled:
            student = torch.compile(student, backend="aot_eager")
        trainer = tiny_trainer(tmp_path, "kl", student=student, steps=2, **options)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)
