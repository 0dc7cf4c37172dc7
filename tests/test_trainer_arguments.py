"""Every argument of the Trainer does what it does there, or is refused: docs/trainer.md says which.

The oracle of what works is plain Trainer: fine-tuning (`sft`) with ours and with it, from one student on one data
set, ends in the same weights and logs the same losses.
"""

import dataclasses
import inspect
import math
import re
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import PAD, tiny_examples, tiny_model, tiny_trainer
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from test_trainer import distance, tokenised, weights
from transformers import (
    DataCollatorForSeq2Seq,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from taid import losses
from taid.data import Collator
from taid.objectives import METHODS, TAID, Divergence, Objective, objective
from taid.trainer import DistillationTrainer
from taid.trainer.objective import ObjectiveTrainer
from taid.trainer.refusals import REFUSED, check_arguments, check_call, check_student

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "trainer.md"
ROWS = tokenised(tiny_examples(44), learn_prompt=False)  # 22 rows
SGD = {"optim": "sgd", "learning_rate": 0.1}

AS_THERE = {  # what is set, a few fields together that do not hide each other
    "nothing": {},
    "epochs": {"max_steps": -1, "num_train_epochs": 1.5, "logging_first_step": True, "logging_steps": 2},
    "schedule": {
        "lr_scheduler_type": "cosine_with_restarts",
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "warmup_steps": 2,
    },
    "accumulation": {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1, "weight_decay": 0.3},
    "adam": {
        "optim": "adamw_torch",
        "adam_beta1": 0.5,
        "adam_beta2": 0.9,
        "adam_epsilon": 1e-2,
        "learning_rate": 1e-2,
    },
    "adafactor": {"optim": "adafactor", "learning_rate": 1e-3},
    "options of an optimizer": {"optim": "rmsprop", "learning_rate": 1e-3, "optim_args": "alpha=0.5"},
    "noise": {"neftune_noise_alpha": 5.0},
    "seeds": {"seed": 7, "data_seed": 3},
    "last batches": {"dataloader_drop_last": True, "max_steps": 8, "torch_empty_cache_steps": 2},
    "workers": {
        "dataloader_num_workers": 1,
        "dataloader_prefetch_factor": 2,
        "dataloader_persistent_workers": True,
    },
    "by length": {"train_sampling_strategy": "group_by_length"},
    "balanced": {"train_sampling_strategy": "batch_rebalance"},
    "in order": {"train_sampling_strategy": "sequential", "dataloader_pin_memory": False},
    "less memory": {"activation_checkpointing": True},
    "half": {"bf16": True},
    "tokens": {"include_num_input_tokens_seen": "non_padding"},
    "validation": {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "eval_delay": 3},
    "plateau": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "loss",
    },
    "the best": {
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "learning_rate": 3.0,
        "save_total_limit": 1,
    },
}


def both(folder, tokenizer, ours=None, plain=None, **arguments) -> tuple[DistillationTrainer, Trainer]:
    """Our trainer and plain Trainer, with the same arguments, each having trained the same student."""
    collator = DataCollatorForSeq2Seq(tokenizer)
    mine = tiny_trainer(
        folder / "ours",
        "sft",
        **{"teacher": None, "steps": 6, "examples": ROWS, "validation": ROWS[:5]} | SGD | arguments,
        collator=collator,
        tokenizer=tokenizer,
    )
    args = dataclasses.replace(mine.args, output_dir=str(folder / "plain"))
    theirs = Trainer(
        deepcopy(mine.model),
        args,
        data_collator=collator,
        processing_class=tokenizer,
        train_dataset=ROWS,
        eval_dataset=ROWS[:5],
    )
    for trainer in (mine, theirs):
        set_seed(trainer.args.seed)  # which construction does, and what is drawn after it differs
        trainer.train()
    return mine, theirs


def losses_of(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("what", AS_THERE)
def test_fine_tuning_is_that_of_the_trainer(what, tmp_path, tokenizer):
    arguments = dict(AS_THERE[what])
    if "max_steps" in arguments:
        arguments["steps"] = arguments.pop("max_steps")
    ours, plain = both(tmp_path, tokenizer, **arguments)
    tolerance = 0.02 if what == "half" else 1e-4
    assert losses_of(ours) == pytest.approx(losses_of(plain), rel=tolerance) and losses_of(ours)
    assert distance(weights(ours.model), weights(plain.model)) < (1e-2 if what == "half" else 1e-4)
    assert ours.state.num_input_tokens_seen == plain.state.num_input_tokens_seen
    assert ours.state.global_step == plain.state.global_step
    rates = [[e["learning_rate"] for e in t.state.log_history if "learning_rate" in e] for t in (ours, plain)]
    assert rates[0] == pytest.approx(rates[1])


@pytest.mark.parametrize("how", ["optimizers", "optimizer_cls_and_kwargs", "optim"])
def test_optimizers_come_in_three_ways(how, tmp_path):
    """Oracle: each other; CTKD's temperature is in all of them."""

    def run(how):
        student = tiny_model()
        shared = dict(
            teacher=tiny_model(seed=1),
            method="ctkd",
            train_dataset=tiny_examples(),
            data_collator=Collator(PAD),
        )
        args = tiny_trainer(tmp_path, "sft", teacher=None, steps=3, lr_scheduler_type="constant", **SGD).args
        given = {
            "optimizers": {"optimizers": (torch.optim.SGD(student.parameters(), lr=0.1), None)},
            "optimizer_cls_and_kwargs": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})},
            "optim": {},
        }[how]
        trainer = DistillationTrainer(student, args=args, **shared, **given)
        trainer.train()
        return weights(trainer.model) | {"theta": trainer.objective.temperature.theta.detach()}

    assert distance(run(how), run("optim")) < 1e-6 and run(how)["theta"] != 1.0


def test_callbacks_hear_what_is_logged_of_the_objective(tmp_path):
    """As `report_to` does, whose reporters are callbacks; they take plain numbers alone."""
    heard = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append(logs)

    trainer = tiny_trainer(tmp_path, "taid", steps=3)
    trainer.add_callback(Reporter())
    trainer.train()
    ours = {"t", "momentum", "sigmoid_momentum", "floor_share"}
    assert [logs["t"] for logs in heard if "loss" in logs] == pytest.approx([0.6, 0.8, 1.0])
    assert all(ours <= logs.keys() for logs in heard if "loss" in logs)
    assert all(isinstance(value, int | float) for logs in heard for value in logs.values())


# Refused


ASKED = {  # field → a value that is refused; what depends on ranks is asked of arguments that claim to have two
    "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False,
    "use_liger_kernel": True,
    "deepspeed": "zero3.json",
    "parallelism_config": object(),
    "optim": "lomo",
    "hub_strategy": "checkpoint",
    "label_names": ["start_positions"],
    "greater_is_better": True,
    "accelerator_config": {"even_batches": False},
}


class Claimed:
    """TrainingArguments, with one field set after their own checks, of the first of two ranks."""

    world_size, n_gpu, push_to_hub, metric_for_best_model = 2, 1, True, "eval_kl"

    def __init__(self, args, field, value):
        self._args = args
        setattr(self, field, type("Config", (), value)() if isinstance(value, dict) else value)

    def __getattr__(self, name):
        return getattr(self._args, name)


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_not_done_is_refused_with_what_to_do(field, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    check_arguments(args)
    with pytest.raises(ValueError, match=f"^{field}=.* is not for distillation: .{{20}}"):
        check_arguments(Claimed(args, field, ASKED[field]))


def test_deepspeed_by_accelerates_configuration_is_refused_too(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="^deepspeed is not for distillation: .*launch/fsdp2.yaml"):
        check_arguments(Claimed(args, "deepspeed_plugin", object()))


def test_what_is_refused_is_refused_before_the_trainer_sets_up_its_engine(tmp_path, monkeypatch):
    """Else an engine for several ranks may wait for them, or fail with words of its own."""
    monkeypatch.setattr(
        ObjectiveTrainer, "__init__", lambda *args, **kwargs: pytest.fail("an engine is set up")
    )
    with pytest.raises(ValueError, match="^label_smoothing_factor="):
        tiny_trainer(tmp_path, "sft", label_smoothing_factor=0.1)


@pytest.mark.parametrize("arguments", [{"label_smoothing_factor": 0.1}, {"label_names": ["start_positions"]}])
def test_the_trainer_refuses_at_construction(arguments, tmp_path):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}="):
        tiny_trainer(tmp_path, "sft", **arguments)


@pytest.mark.parametrize("metric", ["eval_kl", "kl", "eval_chats_kl"])
def test_the_best_student_is_the_nearest_to_its_teacher(metric, tmp_path):
    """Oracle: the smallest KL that the run has logged, which is not that of its last step, at so large a rate."""
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "learning_rate": 0.3,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    sets = {"chats": tiny_examples(8, seed=1)} if "chats" in metric else tiny_examples(8, seed=1)
    with pytest.raises(ValueError, match="^greater_is_better=True .*set greater_is_better=False"):
        tiny_trainer(tmp_path, "kl", validation=sets, **best)
    trainer = tiny_trainer(tmp_path, "kl", validation=sets, greater_is_better=False, **best)
    trainer.train()
    name = metric.removeprefix("eval_")
    measured = [entry[f"eval_{name}"] for entry in trainer.state.log_history if f"eval_{name}" in entry]
    assert trainer.state.best_metric == min(measured) < max(measured)
    again = trainer.evaluate()
    assert again[f"eval_{name}"] == pytest.approx(min(measured))


class Forgetful(Objective):
    def update(self, loss, progress):
        self.last = loss


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"method": TAID}, TypeError, r"method is the class TAID: pass an objective, TAID\("),
        ({"method": losses.forward_kl}, TypeError, "method must be a name"),
        ({"method": "taid", "t_start": 0.2}, TypeError, "unknown arguments t_start: .*objective.'taid', …"),
        (
            {"method": "kl", "tokenizer": None},
            TypeError,
            "unknown argument tokenizer: pass processing_class=",
        ),
        ({"method": "kl", "max_seq_length": 8}, TypeError, "max_seq_length: pass max_length="),
        ({"method": "kl", "teacher_model": None}, TypeError, "teacher_model: pass teacher="),
        ({"method": "kl", "dataset_text_field": "x"}, TypeError, "dataset_text_field: rename .* to 'text'"),
        ({"method": "kl", "packing": "false"}, ValueError, "^packing must be True or False, got 'false'"),
        ({"method": "kl", "fuse_head": "no"}, ValueError, "^fuse_head must be True or False, got 'no'"),
        ({"method": "kl", "eval_kl": "false"}, ValueError, "^eval_kl must be True or False, got 'false'"),
        ({"method": "kl", "vocab_size": "48"}, ValueError, "^vocab_size='48': name the number"),
        ({"method": "kl", "temperature": math.nan}, ValueError, "^temperature must be positive, got nan"),
        ({"method": "kl", "compute_loss_func": print}, ValueError, "compute_loss_func would take the place"),
        ({"method": Forgetful()}, ValueError, "Forgetful.update changes what no state_dict gives"),
        (
            {"method": Divergence(losses.forward_kl, official=True), "fuse_head": True},
            ValueError,
            "cannot be fused",
        ),
        ({"method": objective("kl", ce_weight=0.5), "fuse_head": True}, ValueError, "Mixed cannot be fused"),
    ],
)
def test_what_is_no_method_is_said_at_construction(keywords, error, words, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(error, match=words):
        DistillationTrainer(tiny_model(), tiny_model(seed=1), args=args, **keywords)


@pytest.mark.parametrize("model", ["gpt2", Path("gpt2"), dict(name="gpt2")])
def test_a_name_is_no_student(model):
    with pytest.raises(
        TypeError, match=r"^model is .*gpt2.*load the student first, AutoModel.*from_pretrained\("
    ):
        check_call("kl", {}, model)
    check_call("kl", {}, None)  # of model_init
    check_call("kl", {}, tiny_model())


def test_a_loss_that_balances_experts_is_refused(tmp_path):
    """Oracle of what would be lost: the model's own loss has more than the cross-entropy."""
    experts = tiny_model("mixtral", num_local_experts=2, output_router_logits=True)
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[3, 4, 5]])}
    output = experts(**batch)
    plain = torch.nn.functional.cross_entropy(output.logits[0, :-1], batch["labels"][0, 1:])
    assert output.loss > plain + 1e-4
    with pytest.raises(ValueError, match="balances its experts.*output_router_logits = False"):
        tiny_trainer(tmp_path, "sft", student=experts)
    experts.config.output_router_logits = False
    tiny_trainer(tmp_path, "kl", student=experts, steps=1).train()


def test_a_loss_that_balances_experts_below_a_tower_is_refused():
    """Its setting is the text's; oracle as above."""
    sizes = dict(hidden_size=16, intermediate_size=32, num_heads=2, num_attention_heads=2)
    text = dict(vocab_size=48, num_hidden_layers=2, num_key_value_heads=2, head_dim=8, moe_intermediate_size=16,
        num_experts=2, num_experts_per_tok=1, router_aux_loss_coef=1.0, output_router_logits=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]})  # fmt: skip
    tower = dict(depth=1, out_hidden_size=16, deepstack_visual_indexes=[0])
    model = Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(
            text_config=sizes | text, vision_config=sizes | tower, image_token_id=46, video_token_id=47,
            vision_start_token_id=44, vision_end_token_id=45,
        )
    )  # fmt: skip
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[3, 4, 5]])}
    output = model(**batch)
    plain = torch.nn.functional.cross_entropy(output.logits[0, :-1], batch["labels"][0, 1:])
    assert output.loss > plain + 1e-4
    words = r"balances its experts.*model.config.get_text_config\(\).output_router_logits = False"
    with pytest.raises(ValueError, match=words):
        check_student(model)
    model.config.get_text_config().output_router_logits = False
    check_student(model)


def test_a_loss_of_adapters_is_refused(tmp_path):
    """Oracle of what would be lost: PEFT's own loss has more than the cross-entropy."""
    options = dict(init_r=4, target_r=2, tinit=1, tfinal=1, total_step=10)
    for weight, lost in ((0.5, True), (0.0, False)):
        config = AdaLoraConfig(
            **options, orth_reg_weight=weight, target_modules=["q_proj"], task_type="CAUSAL_LM"
        )
        student = get_peft_model(tiny_model(), config)
        batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[3, 4, 5]])}
        output = student(**batch)
        plain = torch.nn.functional.cross_entropy(output.logits[0, :-1], batch["labels"][0, 1:])
        assert bool(output.loss > plain + 1e-2) is lost
        if lost:
            with pytest.raises(ValueError, match="keeps AdaLoRA's factors orthogonal.*set orth_reg_weight=0"):
                tiny_trainer(tmp_path, "sft", student=student)
        else:
            tiny_trainer(tmp_path, "kl", student=student, steps=1).train()


def test_an_optimizer_that_holds_nothing_of_the_student_is_refused(tmp_path):
    """Made of the model before `peft_config` puts adapters on it, whose weights alone are trained."""
    student, lora = tiny_model(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    stale = torch.optim.AdamW(student.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the optimizer holds no parameter of the student.*get_peft_model"):
        tiny_trainer(tmp_path, "kl", student=student, peft_config=lora, optimizers=(stale, None))
    student = get_peft_model(tiny_model(), lora)
    before = weights(student)
    own = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad][:2], lr=0.1)
    tiny_trainer(tmp_path, "kl", student=student, optimizers=(own, None)).train()
    moved = {name for name, tensor in weights(student).items() if (tensor != before[name]).any()}
    assert len(moved) == 2  # a part of them is a choice


def test_what_no_checkpoint_can_hold_is_said_at_construction(tmp_path):
    """Oracle: transformers' own words, hours later."""
    bent, odd = tiny_model(), tiny_model()
    bent.generation_config.temperature, bent.generation_config.do_sample = 0.9, False
    odd.config.mine = torch.zeros(2)
    for model, part in ((bent, "generation_config"), (odd, "config")):
        with pytest.raises((ValueError, TypeError)) as theirs:
            model.save_pretrained(tmp_path / "plain")
        with pytest.raises(ValueError, match=f"^model.{part} cannot be saved, and no checkpoint") as ours:
            tiny_trainer(tmp_path, "kl", student=model)
        assert str(theirs.value) in str(ours.value)


def test_rows_that_are_all_dropped_are_refused(tmp_path):
    """It trained no step, and said nothing."""
    few = dict(examples=tiny_examples(3), dataloader_drop_last=True)
    with pytest.raises(ValueError, match="train_dataset has 3 rows, less than a batch of 4.*smaller batches"):
        tiny_trainer(tmp_path, "kl", **few)
    trainer = tiny_trainer(tmp_path, "kl", batch=3, steps=2, **few)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("wrap", [partial(torch.compile, backend="eager"), torch.nn.DataParallel])
def test_a_wrapped_student_has_its_columns(wrap, tmp_path, tokenizer):
    """Oracle: the student itself, on rows of tokens, of which the Trainer would take those that forward names."""
    found = []
    for student in (tiny_model(), wrap(tiny_model())):
        trainer = tiny_trainer(
            tmp_path, "kl", student=student, examples=ROWS, collator=None, tokenizer=tokenizer, steps=2
        )
        trainer.train()
        found.append(losses_of(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and len(found[0]) == 2


def test_a_student_without_anything_to_train_is_refused(tmp_path):
    """A former teacher is one, and so are adapters that were loaded to be used."""
    former = tiny_model(seed=1)
    tiny_trainer(tmp_path, "kl", teacher=former)
    get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    used = PeftModel.from_pretrained(tiny_model(), tmp_path / "lora")
    for student in (former, used):
        for method in ("sft", "kl"):
            with pytest.raises(
                ValueError, match="no parameter of the student.*requires_grad_.True.*is_trainable"
            ):
                tiny_trainer(tmp_path, method, student=student)
    tiny_trainer(tmp_path, "kl", student=former.requires_grad_(True), steps=1).train()
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "lora", is_trainable=True)
    tiny_trainer(tmp_path, "kl", student=again, steps=1).train()


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("sft", "gkd", "distillm")])
def test_a_mixture_trains(method, tmp_path):
    options = {"ce_weight": 0.5} | ({} if method in ("ctkd", "dkd") else {"temperature": 2.0})
    trainer = tiny_trainer(tmp_path, objective(method, **options), steps=2)
    trainer.train()
    assert all(0 < loss < 20 for loss in losses_of(trainer))


# The page


def rows_of_page() -> dict[str, tuple[str, str]]:
    """{argument: (status, note)} of the tables of docs/trainer.md."""
    found = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\w+) \|(.*)\|$", PAGE.read_text(), flags=re.M)
    return {name: (status, note) for names, status, note in found for name in re.findall(r"`(\w+)`", names)}


def test_every_argument_stands_in_the_page():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = inspect.signature(DistillationTrainer.__init__).parameters.keys() - {"kwargs"}
    theirs = inspect.signature(Trainer.__init__).parameters.keys()
    assert rows_of_page().keys() == (fields | ours | theirs) - {"self"}


def test_the_page_and_the_code_refuse_the_same():
    refused = {name for name, (status, _) in rows_of_page().items() if status == "refused"}
    assert refused == REFUSED.keys() | {"compute_loss_func"}
    assert {status for status, _ in rows_of_page().values()} == {"works", "refused", "untested", "unused"}


def test_the_tests_that_the_page_names_exist():
    named = set(re.findall(r"\btest_\w+", PAGE.read_text()))
    files = {path.stem: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    defined = {name for text in files.values() for name in re.findall(r"^def (test_\w+)", text, flags=re.M)}
    assert named and named <= defined | files.keys(), named - defined - files.keys()
