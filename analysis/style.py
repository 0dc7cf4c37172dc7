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
    "mlkd": "MLKD",
    "taid_no_adaptive": "TAID w/o adaptive update",
    "taid": "TAID",
    "gjs": "JSD",
    "skew_kl": "Skew KL",
    "skew_rkl": "Skew RKL",
    "alpha_beta": "α-β-divergence",
    "amid": "TAID, AMiD's bridge",
    "constant": "TAID, σ(m) = ½",
    "replayed": "TAID, t replayed from another seed",
    "kl_matched": "KL, gradients of TAID's size",
    "kl_matched_per_token": "KL, gradients of TAID's size per token",
    "taid_matched": "TAID, gradients of KL's size",
    "over_t": "TAID, loss divided by t",
    "kl_warmup_0.1": "KL, warm-up over 10% of steps",
    "kl_warmup_0.3": "KL, warm-up over 30% of steps",
    "taid_warmup_0.1": "TAID, warm-up over 10% of steps",
    "reverse": "TAID, KL(q ‖ p_t)",
    "probability": "TAID, probabilities blended",
    "with_data_0.1": "TAID, 0.1 of cross-entropy on data",
    "with_data_0.3": "TAID, 0.3 of cross-entropy on data",
    "with_data_0.5": "TAID, 0.5 of cross-entropy on data",
    "top_5": "TAID, top 5 logits, renormalised",
    "top_5_tail": "TAID, top 5 logits, tail spread",
    "top_50": "TAID, top 50 logits, renormalised",
    "top_50_tail": "TAID, top 50 logits, tail spread",
    "cross_entropy_signal": "TAID, cross-entropy as progress signal",
    "alpha_0.25": "TAID, α × ¼",
    "alpha_2": "TAID, α × 2",
    "alpha_4": "TAID, α × 4",
    "beta_0": "TAID, β = 0",
    "beta_0.9": "TAID, β = 0.9",
    "beta_0.999": "TAID, β = 0.999",
    "t_start_0": "TAID, t_start = 0",
    "t_start_0.2": "TAID, t_start = 0.2",
    "t_start_0.6": "TAID, t_start = 0.6",
    "t_start_0.8": "TAID, t_start = 0.8",
    "t_end_0.8": "TAID, t_end = 0.8",
    "kl_official": "KL, official",
    "adaptive_kl_official": "Adaptive KL, official",
    "ctkd_official": "CTKD, official",
    "dkd_official": "DKD, official",
    "teacher": "teacher",
    "untrained": "student before distillation",
    "language": "language",
    "images": "images",
    "phi-3-mini": "Phi-3-mini",
    "llama-2": "Llama-2",
    "llama-2-13b": "Llama-2-13B",
    "stablelm-zephyr": "StableLM Zephyr",
    "tinyllama": "TinyLlama",
    "pythia": "Pythia",
    "smollm2-135m": "SmolLM2-135M",
    "smollm2-135m-6-layers": "six of its layers",
    "smollm2-135m-4-layers": "four of its layers",
    "pythia-31m": "Pythia 31M",
    "pythia-70m": "Pythia 70M",
    "pythia-160m": "Pythia 160M",
    "pythia-410m": "Pythia 410M",
    "pythia-1b": "Pythia 1B",
    "pythia-2.8b": "Pythia 2.8B",
    "pythia-6.9b": "Pythia 6.9B",
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
    "mlkd": "#009E73",
    "taid_no_adaptive": "#E69F00",
    "taid": "#D55E00",
    "kl_matched": "#0072B2",
    "gjs": "#DDCC77",
    "skew_kl": "#661100",
    "skew_rkl": "#6699CC",
    "alpha_beta": "#DDDDDD",
    "amid": "#F0E442",
    "teacher": "#000000",
    "untrained": "#AAAAAA",
    "language": "#004488",  # whose teachers, in Figure 3
    "images": "#BB5566",
}


MARKERS = {
    "kl": "s",
    "rkl": "v",
    "gjs": "D",
    "skew_kl": "^",
}  # in grey the KL and the skew KL look alike; else "o"


def name(key: str) -> str:
    """The printed name of a method or model; what has none is printed as it is."""
    return NAMES.get(key, key)


def pair_name(pair: Pair) -> str:
    return f"{name(pair.teacher)} → {name(pair.student)}"
