"""DistillationTrainer: a `transformers.Trainer` that distils a teacher into a student.

    trainer = DistillationTrainer(student, teacher, method="taid", args=TrainingArguments(...),
                                  train_dataset=..., data_collator=..., processing_class=tokenizer)
    trainer.train()

Everything else (data parallelism, mixed precision, logging, checkpoints) is the Trainer's.
"""

import warnings
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, default_data_collator
from transformers.trainer_utils import has_length

from taid.data import IGNORE, Collator
from taid.logits import (
    NOT_FOR_THE_MODEL,
    Head,
    align_vocabularies,
    base_model,
    check_labels,
    check_model,
    check_targets,
    entries_of,
    is_classifier,
    is_encoder_decoder,
    model_inputs,
    position_limit,
    response_head,
    response_logits,
    vocabulary,
)
from taid.objectives import Objective, objective
from taid.probes import check_causal, check_packing, check_padding, shifts_labels
from taid.sampling import check_sampling
from taid.teacher import LiveTeacher, check_callable, check_teacher, live_teacher, load_teacher
from taid.text.examples import Text
from taid.trainer.adapters import with_adapters
from taid.trainer.arguments import chosen, method_options
from taid.trainer.objective import ObjectiveTrainer
from taid.trainer.refusals import check_arguments, check_call, check_objective, check_rows, check_student
from taid.trainer.validation import (
    Answered,
    Sums,
    counted,
    examples_in,
    losses_and_kl,
    only_rows,
    own_randomness,
    own_rows,
    validations,
)
from taid.vocabulary import known_vocabularies, shared_vocabulary

COLUMNS = ("index", "prompt_ids", "response_ids")  # of `taid.data.encode`, read by its Collator


class DistillationTrainer(ObjectiveTrainer):
    """Trains `model` by `method`, a name of `taid.objectives.METHODS` or an Objective, against `teacher`.

    `teacher`: a model of the student's kind, for language or a classifier of images, the name or folder of one, or a callable from batch to logits
    (`taid.teacher.CachedTeacher`); methods without a teacher need none. A student of PEFT, or made one by
    `peft_config`, may learn from the model inside it: its adapters are off for the teacher's passes.

    The loss is the sum over unmasked tokens divided by their number in the whole optimizer step, over
    micro-batches and ranks; the objective is updated once per optimizer step from that mean, in training only.
    Validation is the cross-entropy on the labels (`eval_loss`), and KL(teacher ‖ student) on them (`eval_kl`,
    unless `eval_kl=False`), in nats per token, for all methods and batch sizes alike; DistiLLM needs it: without
    it no student text is sampled. docs/trainer.md has every promise with its tests, and every argument.

    Padding of a vocabulary, which neither tokenizer knows, is cut from both logits and never sampled. The
    tokenizers, `processing_class` and `teacher_processing_class`, or those that lie with models loaded by name,
    are compared. `vocab_size=n` says that the first n entries mean the same to both, and to distil no others.

    `fuse_head=True`: the logits of a training batch are never whole (`taid.fused.head`). Not for SFT, for
    losses that `taid.fused` has not, for models whose logits are not hidden @ weight.T + bias (a soft-cap, a
    scale, an adapter on the head: ValueError in the first step) or whose weights are sharded over ranks.

    `args`: TrainingArguments, or `taid.trainer.arguments.DistillationArguments`, which hold our options too. Data sets
    may hold text (`taid.text.chat.LAYOUTS`), which is made tokens of if no `data_collator` is given: the first
    `max_length` of each row, by `packing` several rows in one.

    Raises ValueError for an unknown method, a missing teacher, a step without any label, vocabularies that
    differ in more than padding; FloatingPointError, naming the step and the last checkpoint, for a loss that
    is not finite.
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        teacher=None,
        method: str | Objective | None = None,
        *,
        teacher_processing_class=None,
        vocab_size: int | None = None,
        peft_config=None,
        ce_weight: float | None = None,
        temperature: float | None = None,
        fuse_head: bool | None = None,
        eval_kl: bool | None = None,
        max_length: int | None = None,
        packing: bool | None = None,
        **kwargs,
    ):
        given = {"teacher": teacher, "method": method, "vocab_size": vocab_size, "fuse_head": fuse_head}
        given |= {"eval_kl": eval_kl, "max_length": max_length, "packing": packing, "method_options": None}
        given = chosen(kwargs.get("args"), **given, ce_weight=ce_weight, temperature=temperature)
        teacher, method, options = given["teacher"], given["method"] or "taid", method_options(given)
        if options and not isinstance(method, str):
            raise ValueError(f"the options {options} are for a method given by its name, not for {method!r}")
        check_call(method, kwargs, model)
        self.objective = objective(method, **options) if isinstance(method, str) else method
        check_objective(self.objective, given["fuse_head"])
        if self.objective.uses_teacher and teacher is None:
            name = method if isinstance(method, str) else type(method).__name__
            raise ValueError(f"{name!r} learns from a teacher: pass teacher=…, or use method='sft'")
        check_arguments(kwargs.get("args"))  # before an engine that is refused is set up
        if peft_config is not None:
            model = with_adapters(model, peft_config, kwargs.get("args"))
        super().__init__(model=model, **kwargs)
        check_arguments(self.args)
        check_student(self.model, self.optimizer)
        # compute_loss normalises over the labels of the whole optimizer step, but those in column 0
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = not (is_encoder_decoder(self.model) or is_classifier(self.model))
        if isinstance(teacher, str | Path):
            teacher = load_teacher(teacher, self.model, self.args)
        self._vocabularies = known_vocabularies(
            self.model, self.processing_class, teacher, teacher_processing_class, given["vocab_size"]
        )
        check_model(self.model, "student")
        check_causal(self.model, "student")
        if self.objective.rollouts is not None:
            if is_classifier(self.model):
                raise ValueError(
                    f"{self.objective!r} samples text from the student, and a classifier writes none"
                )
            check_sampling(self.model)
            check_padding(self.model, "this method samples from such")
        if isinstance(teacher, torch.nn.Module):
            check_teacher(teacher, self.model)
            check_causal(teacher, "teacher")
            self._check_vocabulary(entries_of(teacher))
            teacher = live_teacher(teacher, self.model, self.args.device)
        elif hasattr(teacher, "check"):  # logits on disk
            self._check_vocabulary(teacher.vocab_size)
            teacher.check(self.objective, self.model)
        else:
            check_callable(teacher, given["eval_kl"])
        self.teacher, self.fuse_head = teacher, bool(given["fuse_head"])
        self.eval_kl = given["eval_kl"] is not False
        self._prepare_data(kwargs.get("data_collator"), given["max_length"], bool(given["packing"]))
        self._step_loss = torch.zeros((), device=self.args.device)  # this rank's share of the step's mean
        self._sums = Sums(self.args.device)
        self._validated: list[tuple[dict[str, float], float]] = []  # means and labels of the last validation
        self._whole_logits = False  # whether somebody asks for the logits of a validation batch
        self.add_callback(_ObjectiveCallback(self))

    def _check_vocabulary(self, entries: int | None) -> None:
        """The ValueError of a teacher's vocabulary, where the sizes are known: else the first batch tells."""
        own = entries_of(self.model)
        if own is not None and entries is not None:
            shared_vocabulary(own, entries, **self._vocabularies)

    def _prepare_data(self, collator, max_length: int | None, packing: bool) -> None:
        """Without a collator the data sets may hold text, see `taid.text.examples`, and ours makes batches of them."""
        loading = self.accelerator.dataloader_config
        if loading.dispatch_batches is None:  # else one rank reads a stream for all, and joins their batches,
            loading.dispatch_batches = False  # which differ in length
        if collator is None and is_classifier(self.model):
            collator = default_data_collator
        if collator is None and is_encoder_decoder(self.model):
            raise ValueError(
                f"{type(self.model).__name__} has an encoder, and rows do not say what it reads: make input_ids and "
                "labels of them, and pass data_collator=DataCollatorForSeq2Seq(tokenizer, model=model)"
            )
        ours = collator is None or isinstance(collator, Collator)  # whose labels stand under their tokens
        self._labels_unclear = not ours and not shifts_labels(self.model)
        models = [m for m in (self.model, getattr(self.teacher, "model", None)) if m is not None]
        self._text = Text(self.processing_class, models, collator, max_length, packing, self.args.world_size)
        if packing and self.objective.rollouts is not None:
            raise ValueError(
                "this method samples from prompts, which packed rows have not: leave out packing"
            )
        if packing:
            for model in models:
                check_packing(model, min(2, self.args.per_device_train_batch_size))
        self.data_collator = self._text.collator
        with self.args.main_process_first(desc="tokens"):
            self.train_dataset = self._text.examples(self.train_dataset, "train_dataset", packing)
            check_rows(self.train_dataset, self.args)
            if isinstance(self.eval_dataset, dict):
                named = self.eval_dataset.items()
                self.eval_dataset = {name: self._text.examples(data, name) for name, data in named}
            else:
                self.eval_dataset = self._text.examples(self.eval_dataset, "eval_dataset")

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, rollouts in place of data where the method has them."""
        self._step_loss.zero_()
        for parameter in self.objective.parameters():
            parameter.grad = None  # the Trainer zeroes the model's alone
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) < num_batches and not has_length(self.train_dataset):
            return [], None  # a stream's pass ends with too few for a step: the Trainer would not take it
        balanced = self.args.train_sampling_strategy == "batch_rebalance"  # ranks' batches differ in size
        own = self._own_rows(batches[-1]) if batches and not balanced else None
        if self.objective.rollouts is not None:
            model = self.accelerator.unwrap_model(self.model)
            first = self.state.global_step * self.args.gradient_accumulation_steps
            for i, batch in enumerate(batches):
                draw = (first + i) * self.args.world_size + self.args.process_index
                seed = self.args.seed * 1_000_003 + draw
                batches[i] = self.objective.rollouts(model, batch, self._progress(), seed, *self._limits())
        if own is not None:
            batches[-1] = only_rows(batches[-1], own, self._batch_size())
        if own is not None or self.objective.rollouts is not None:
            count = self._get_num_items_in_batch(batches, device)
        if batches and count is None:
            raise ValueError(f"the batches have no labels: let the collator add them, {IGNORE} on prompts")
        if batches and not count:
            raise ValueError(
                f"every label of optimizer step {self.state.global_step + 1} is {IGNORE}: nothing to learn. "
                "Check that truncation leaves the responses, and that the collator masks prompts only."
            )
        return batches, count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective's mean, weighted by the batch's share of the labels of the optimizer step [nats]."""
        if not model.training:
            return self._validate(model, inputs, return_outputs)
        self._last_inputs = inputs
        self._require_clear(inputs)
        student, labels = response_head(model, inputs) if self.fuse_head else response_logits(model, inputs)
        teacher = None
        if self.objective.uses_teacher:
            targets = self._targets(inputs)
            check_targets(targets, labels)
            student, teacher = align_vocabularies(student, targets, **self._vocabularies)
        check_labels(labels, vocabulary(student))
        if self.fuse_head:
            with self.accelerator.autocast():
                mean = self.objective.of_heads(student, teacher, labels)
        else:
            mean = self.objective(student, teacher, labels)
        loss = mean * (len(labels) / num_items_in_batch)
        self._step_loss += loss.detach()
        loss = loss * self.accelerator.num_processes  # for gradients are averaged over ranks
        return (loss, {"loss": loss}) if return_outputs else loss

    def _require_clear(self, batch: dict) -> None:
        """Raises ValueError for labels of which it is not known what they belong to."""
        if self._labels_unclear and "shift_labels" not in batch:
            raise ValueError(
                f"to {type(self.model).__name__} itself label i belongs to logits i, and here, as to other causal "
                "models, to those before it; which yours are cannot be told: collate shift_labels, [batch, length], too,"
                f" what each position is to predict and {IGNORE} where nothing"
            )

    def _validate(self, model, inputs, return_outputs):
        """The cross-entropy on the labels [nats/token]; with whole logits, as the Trainer has them, if asked."""
        self._require_clear(inputs)
        inputs = only_rows(inputs, self._own_rows(inputs), self._batch_size())
        answered, outputs = model, {}
        if self._whole_logits:
            outputs = model(**model_inputs(model, inputs))
            answered = Answered(self.model, outputs)
        losses, kl = losses_and_kl(
            answered, inputs, self.teacher if self.eval_kl else None, self._vocabularies
        )
        self._sums.add(losses, kl)
        return (losses.mean(), outputs) if return_outputs else losses.mean()

    def _own_rows(self, batch: dict) -> int | None:
        """See `own_rows`; None where a batch is not filled up with rows of others."""
        args = self.args
        if args.world_size == 1 or args.dataloader_drop_last or "labels" not in batch:
            return None
        return own_rows(examples_in(batch, self._batch_size()), args.process_index, args.world_size)

    def _batch_size(self) -> int:
        """The examples of a rank's batch."""
        size = self._train_batch_size if self.model.training else self.args.eval_batch_size
        return size // self.args.world_size if self.accelerator.split_batches else size

    def _limits(self) -> tuple[int | None, int | None]:
        """The entries of the vocabulary that may be sampled, and the teacher's number of positions; None: any."""
        vocab_size, known = self._vocabularies["vocab_size"], self._vocabularies["known"]
        teacher = getattr(self.teacher, "model", None)
        positions = None if teacher is None else position_limit(teacher)
        return known if vocab_size is None else vocab_size, positions

    @torch.no_grad()
    def _targets(self, inputs) -> Tensor | Head:
        """The teacher's logits [n, V], or what would give them."""
        if self.fuse_head and isinstance(self.teacher, LiveTeacher):
            return self.teacher.head(inputs)
        return self.teacher(inputs)

    def create_optimizer(self, model=None):
        """The Trainer's, with the objective's parameters (CTKD's temperature) as a further group."""
        optimizer = super().create_optimizer(model)
        known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        own = [p for p in self.objective.parameters() if p.requires_grad and p not in known]
        for parameter in own:
            parameter.data = parameter.data.to(self.args.device)
        if own:
            optimizer.add_param_group({"params": own, "weight_decay": 0.0})
        return optimizer

    def log(self, logs, start_time=None):
        """The Trainer's logs, and the objective's beside the training loss."""
        super().log(logs | self.objective.logs() if "loss" in logs else logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        self._whole_logits = not prediction_loss_only
        if "labels" not in inputs:
            inputs = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        """The Trainer's, but the loss is a mean over labels, not over batches of means."""
        self._sums.reset()
        with own_randomness(self.args.device):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means, labels = self._sums.means(self.accelerator)
        self._validated.append((means, labels))
        if not labels and f"{metric_key_prefix}_loss" in output.metrics:
            warnings.warn(
                f"no label of the validation set is other than {IGNORE}: its loss is NaN", stacklevel=2
            )
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def _evaluate(self, *args, **kwargs):
        """The validation that a run has scheduled. DistiLLM's threshold hears of it: of the mean over the
        labels of all validation sets."""
        self._validated.clear()
        metrics = super()._evaluate(*args, **kwargs)
        measured = [(means["loss"], labels) for means, labels in self._validated if labels]
        if self.objective.rollouts is not None and measured:
            total = sum(loss * labels for loss, labels in measured)
            self.objective.rollouts.on_validation(total / sum(labels for _, labels in measured))
        return metrics

    def get_eval_dataloader(self, eval_dataset=None):
        if isinstance(eval_dataset, str):  # the name of one of several
            self.eval_dataset[eval_dataset] = counted(self.eval_dataset[eval_dataset], self.args)
        elif eval_dataset is None:
            self.eval_dataset = counted(self.eval_dataset, self.args)
        else:
            eval_dataset = counted(self._text.examples(eval_dataset, "eval_dataset"), self.args)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        data = counted(self._text.examples(test_dataset, "test_dataset"), self.args)
        return super().get_test_dataloader(data)

    def _set_signature_columns_if_needed(self):
        """What `remove_unused_columns` leaves to the collator; a wrapped model's forward itself names nothing."""
        super()._set_signature_columns_if_needed()
        inside = base_model(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        columns = {*self._signature_columns, *COLUMNS, *signature(inside.forward).parameters}
        self._signature_columns = list(columns)

    def _progress(self) -> float:
        return min(1.0, self.state.global_step / max(self.state.max_steps, 1))

    def _finish_step(self) -> None:
        """Before the optimizer moves: check the step's loss and gradient, and let the objective see the loss."""
        loss = self.accelerator.reduce(self._step_loss, "sum").item()
        norms = [self._grad_norm or 0.0]
        for parameter in self.objective.parameters():  # outside the model that data parallelism knows
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
                norms.append(parameter.grad.norm())
        self._require_finite_step(loss, float(sum(norms)))
        self.objective.update(loss, min(1.0, (self.state.global_step + 1) / self.state.max_steps))


class _ObjectiveCallback(TrainerCallback):
    """Calls the objective and `_finish_step` where the Trainer has no method to override."""

    def __init__(self, trainer: DistillationTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        objective = self.trainer.objective
        if state.is_world_process_zero:
            objective.on_train_begin(state.max_steps)
            if objective.rollouts is not None:
                objective.rollouts.on_train_begin(validations(args, state))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._finish_step()
