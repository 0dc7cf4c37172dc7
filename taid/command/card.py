"""The page that a distilled student comes with."""

from pathlib import Path

CURVES = {  # whether they are drawn; None: there are none
    True: "![loss, t and gradient norm by step](curves.png)\n\nThe same as a table: curves.csv.\n\n",
    False: "The curves are in curves.csv.\n\n",
    None: "",
}


def card(record: dict, schedule: str, drawn: bool | None) -> str:
    """A model card as the hub reads it: method, schedule, data, settings, numbers, versions."""
    settings, made = record["settings"], record["provenance"]
    options = f" with {settings['method_options']}" if settings["method_options"] else ""
    teacher = f", distilled from `{settings['teacher']}`" if settings["teacher"] else ""
    numbers = "\n".join(f"| {name} | {value:.4f} |" for name, value in record["metrics"].items())
    left = {"student", "teacher", "method", "method_options", "dataset", "training"}
    left |= {"epochs"} if settings["steps"] else set()
    chosen = {k: v for k, v in settings.items() if k not in left and v is not None} | (
        settings["training"] or {}
    )
    said = "\n".join(f"| {name} | {value} |" for name, value in chosen.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [taid, knowledge-distillation]
---

# {Path(settings["student"]).name} by {settings["method"]}

`{settings["student"]}`{teacher} by the method `{settings["method"]}`{options} of
[taid](https://arxiv.org/abs/2501.16937){f", schedule `{schedule}`" if schedule else ""}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("…"), AutoTokenizer.from_pretrained("…")
```

Data: `{settings["dataset"]}`, {record["rows"][0]} rows to train on and {record["rows"][1]} to validate.
{record["steps"]} steps in {record["seconds"] / 60:.1f} minutes.

| validation, nats per token | |
|---|---|
{numbers or "| none | |"}

| setting | |
|---|---|
{said}

{CURVES[drawn]}Made on {made["date"]} with taid {record["taid"]} (commit {made["commit"]}{", changed" if made["dirty"] else ""}),
{made["versions"]}; {made["device"]}.
"""
