"""What DistillationTrainer does not do as it was told, and says so before it begins: docs/trainer.md has every argument."""

import inspect
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.training_args import OptimizerNames

from taid.objectives import METHODS, Objective
from taid.text.chat import check_tokenizer
from taid.trainer.arguments import is_kl

IN_BACKWARD = (  # optimizers that step while gradients are computed: no step is ever whole
    OptimizerNames.LOMO,
    OptimizerNames.ADALOMO,
    OptimizerNames.GALORE_ADAMW_LAYERWISE,
    OptimizerNames.GALORE_ADAMW_8BIT_LAYERWISE,
    OptimizerNames.GALORE_ADAFACTOR_LAYERWISE,
    OptimizerNames.APOLLO_ADAMW_LAYERWISE,
)

OF_ADAPTERS = {  # field of PEFT's configuration, a weight -> what the loss that it weighs does
    "orth_reg_weight": "keeps AdaLoRA's factors orthogonal",
    "auxiliary_loss_weight": "trains the shadow path on its own",
}

RENAMED = {  # keyword of other trainers, or of older versions -> ours
    "tokenizer": "pass processing_class=",
    "max_seq_length": "pass max_length=",
    "teacher_model": "pass teacher=",
    "dataset_text_field": "rename that column of the data set to 'text'",
    "formatting_func": "map the data set with it to a column 'text'",
}

Refusal = tuple[Callable[[TrainingArguments], bool], str]
REFUSED: dict[str, Refusal] = {  # field -> (whether it asks for what we do not do, what to do instead)
    "label_smoothing_factor": (
        lambda args: args.label_smoothing_factor != 0,
        "the loss is the method's: leave it 0; softer targets are a teacher's, objective('kl', temperature=2.0)",
    ),
    "average_tokens_across_devices": (
        lambda args: args.world_size > 1 and not args.average_tokens_across_devices,
        "the loss is a mean over the labels of all ranks, whatever their number: leave it True",
    ),
    "use_liger_kernel": (
        lambda args: args.use_liger_kernel,
        "its loss makes no logits, of which divergences are: patch the model before, apply_liger_kernel_to_llama("
        "fused_linear_cross_entropy=False), and pass fuse_head=True for the same saving",
    ),
    "deepspeed": (
        lambda args: (
            bool(args.deepspeed) or args.deepspeed_plugin is not None
        ),  # by accelerate's configuration
        "its engine moves the weights within the backward pass, before loss and gradient of the step are known to be "
        "finite, and knows no parameters of a method: shard with FSDP2, accelerate launch --config_file launch/fsdp2.yaml",
    ),
    "parallelism_config": (
        lambda args: args.parallelism_config is not None,
        "the loss is counted over ranks with data of their own: leave out tensor, context and sequence parallelism",
    ),
    "optim": (
        lambda args: args.optim in IN_BACKWARD,
        "it steps within the backward pass, before the gradient of the optimizer step is whole and known to be "
        "finite: take another, galore_adamw for galore_adamw_layerwise, adafactor for adalomo",
    ),
    "hub_strategy": (
        lambda args: args.push_to_hub and args.hub_strategy in ("checkpoint", "all_checkpoints"),
        "a checkpoint would be pushed before it is whole: take every_save or end, and push the folder yourself",
    ),
    "label_names": (
        lambda args: args.label_names is not None and "labels" not in args.label_names,
        "validation is of 'labels': add it",
    ),
    "greater_is_better": (
        lambda args: bool(args.greater_is_better) and is_kl(args.metric_for_best_model),
        "TrainingArguments takes every metric but a loss so, and would keep the worst student by its KL, which is the "
        "better the lower: set greater_is_better=False",
    ),
    "accelerator_config": (
        lambda args: args.world_size > 1 and not getattr(args.accelerator_config, "even_batches", True),
        "with even_batches=False a rank without a batch lets the others wait: leave it True, repeated rows count "
        "for nothing",
    ),
}


def check_call(method, keywords: dict, model=None) -> None:
    """Raises TypeError or ValueError for a `method` or a `model` that is none, and for keywords that the Trainer does
    not know or whose loss would not be the method's. (None is no model yet: `model_init` may make it.)"""
    if model is not None and not isinstance(model, torch.nn.Module):
        name = repr(str(model)) if isinstance(model, str | Path) else "…"
        raise TypeError(
            f"model is {model!r:.80}: load the student first, AutoModelForCausalLM.from_pretrained({name})"
        )
    if isinstance(method, type) and issubclass(method, Objective):
        raise TypeError(f"method is the class {method.__name__}: pass an objective, {method.__name__}(…)")
    if not isinstance(method, str | Objective):
        known = ", ".join(METHODS)
        raise TypeError(f"method must be a name ({known}) or an Objective of taid.objectives, got {method!r}")
    check_tokenizer(keywords.get("processing_class"))
    unknown = keywords.keys() - inspect.signature(Trainer.__init__).parameters.keys()
    for name in RENAMED.keys() & unknown:
        raise TypeError(f"unknown argument {name}: {RENAMED[name]}")
    if unknown:
        raise TypeError(
            f"unknown arguments {', '.join(sorted(unknown))}: options of a method go with it, "
            f"method=objective({method!r}, …) of taid.objectives, and settings of training into args"
        )
    if keywords.get("compute_loss_func") is not None:
        raise ValueError(
            "compute_loss_func would take the place of the method: pass the loss of logits as method=Divergence(loss), "
            "of taid.objectives"
        )


def check_objective(chosen: Objective, fuse_head: bool) -> None:
    """Raises ValueError for an objective that has no loss of heads, where one is asked for, or whose state no
    checkpoint holds, nor a second run finds as it was."""
    if fuse_head and not chosen.fusable:
        raise ValueError(f"{type(chosen).__name__} cannot be fused with the head: train without fuse_head")
    changes = type(chosen).update is not Objective.update
    if changes and type(chosen).state_dict is Objective.state_dict:
        name = type(chosen).__name__
        raise ValueError(
            f"{name}.update changes what no state_dict gives: define state_dict and load_state_dict, for state "
            "belongs to a run, and checkpoints hold it"
        )


def check_arguments(args: TrainingArguments | None) -> None:
    """Raises ValueError for what REFUSED says; None are the defaults."""
    if args is None:
        return
    for field, (asks, instead) in REFUSED.items():
        if asks(args):
            given = getattr(args, field)
            said = field if given is None else f"{field}={given!r}"
            raise ValueError(f"{said} is not for distillation: {instead}")
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs: start one process each, torchrun --nproc-per-node={args.n_gpu} …, "
            "or show it a single one, CUDA_VISIBLE_DEVICES=0"
        )


def check_student(model, optimizer=None) -> None:
    """Raises ValueError for a student that has nothing to train, or nothing in the optimizer that was given, or a loss
    of its own beside the method's, or what no checkpoint can hold."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"no parameter of the student, a {type(model).__name__}, is to be trained (was it a teacher, which is "
            "frozen?): call model.requires_grad_(True), or load adapters with PeftModel.from_pretrained(…, "
            "is_trainable=True)"
        )
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    for where, part in {"config": config, "config.get_text_config()": text}.items():
        if getattr(part, "output_router_logits", False):
            raise ValueError(
                f"{type(model).__name__} would add a loss that balances its experts (output_router_logits=True), and "
                f"the method's loss has none: set model.{where}.output_router_logits = False, and watch the balance"
            )
    adapters = model.peft_config.values() if hasattr(model, "get_base_model") else ()
    for field, does in OF_ADAPTERS.items():
        if weight := max((getattr(adapter, field, 0) for adapter in adapters), default=0):
            raise ValueError(
                f"{type(model).__name__} would add a loss that {does} ({field}={weight}), and the method's loss has "
                f"none: set {field}=0 in its configuration, or take LoraConfig"
            )
    _check_optimizer(optimizer, model)
    _check_saving(model)


def _check_optimizer(optimizer, model) -> None:
    """Raises ValueError for an optimizer that was given, and holds nothing of the student that is to be trained."""
    if optimizer is None:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in model.parameters() if parameter.requires_grad):
        raise ValueError(
            "the optimizer holds no parameter of the student that is to be trained: make it of those of the model that "
            "is passed, adapters included (get_peft_model before it, in the place of peft_config=), or pass "
            "optimizer_cls_and_kwargs="
        )


def _check_saving(model) -> None:
    """Raises ValueError for a student whose configurations no checkpoint could hold: transformers looks at them as it
    writes the first, hours into a run."""
    if not isinstance(model, PreTrainedModel):
        return
    configs: dict[str, Any] = {"config": model.config}
    if model.can_generate():
        configs["generation_config"] = model.generation_config
    for name, config in configs.items():
        try:
            with TemporaryDirectory() as folder:
                config.save_pretrained(folder)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"model.{name} cannot be saved, and no checkpoint without it: {error}"
            ) from error


def check_rows(data, args: TrainingArguments) -> None:
    """Raises ValueError for fewer rows than a batch of all ranks, where what is less than one is dropped."""
    shared = getattr(args.accelerator_config, "split_batches", False)  # else each rank has a batch of its own
    batch = args.per_device_train_batch_size * (1 if shared else args.world_size)
    if args.dataloader_drop_last and has_length(data) and len(data) < batch:
        raise ValueError(
            f"train_dataset has {len(data)} rows, less than a batch of {batch}, and dataloader_drop_last=True drops "
            "them all: leave it False, or take smaller batches"
        )
