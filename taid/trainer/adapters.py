"""Students of PEFT: adapters on a frozen model."""

from transformers import PreTrainedModel, TrainingArguments, set_seed


def with_adapters(model: PreTrainedModel | None, peft_config, args: TrainingArguments | None):
    """The model with fresh adapters, drawn by the run's seed; all else of it is frozen.

    Raises ImportError without the library peft, ValueError without a model or for one that has adapters.
    """
    try:
        from peft import PeftModel, get_peft_model
    except ImportError as error:
        raise ImportError("peft_config= needs the library peft: pip install peft") from error
    if model is None or isinstance(model, PeftModel):
        raise ValueError("peft_config= puts adapters on model=: pass one, and one that has none yet")
    set_seed(42 if args is None else args.seed)
    return get_peft_model(model, peft_config)
