"""One name and one colour per method, in every table and figure. Colour-blind readers can tell them apart."""

from analysis.rows import Pair

NAMES = {
    "sft": "SFT",
    "kl": "KL",
    "rkl": "RKL",
    "tvd": "TVD",
    "adaptive_kl": "Adaptive KL",
    "gkd": "GKD",
    "distillm": "DistiLLM",
    "ctkd": "CTKD",
    "dkd": "DKD",
    "taid_no_adaptive": "TAID w/o adaptive update",
    "taid": "TAID",
    "gjs": "JSD",
    "skew_kl": "Skew KL",
    "skew_rkl": "Skew RKL",
    "teacher": "teacher",
    "untrained": "student before distillation",
    "phi-3-mini": "Phi-3-mini",
    "llama-2": "Llama-2",
    "stablelm-zephyr": "StableLM Zephyr",
    "tinyllama": "TinyLlama",
    "pythia": "Pythia",
}

COLOURS = {  # P. Tol's "muted" scheme; TAID's two and the references from Okabe and Ito's
    "sft": "#777777",
    "kl": "#332288",
    "rkl": "#88CCEE",
    "tvd": "#44AA99",
    "adaptive_kl": "#117733",
    "gkd": "#999933",
    "distillm": "#CC6677",
    "ctkd": "#882255",
    "dkd": "#AA4499",
    "taid_no_adaptive": "#E69F00",
    "taid": "#D55E00",
    "gjs": "#DDCC77",
    "skew_kl": "#661100",
    "skew_rkl": "#6699CC",
    "teacher": "#000000",
    "untrained": "#AAAAAA",
}


def name(key: str) -> str:
    """The printed name of a method or model; what has none is printed as it is."""
    return NAMES.get(key, key)


def pair_name(pair: Pair) -> str:
    return f"{name(pair.teacher)} → {name(pair.student)}"
