"""The paper's claims, item by item: each written once, as a predicate over scores by seed."""

import math
from collections.abc import Mapping
from functools import partial

from analysis import reference
from analysis.predicates import Claim, best, close, greater


def above(first: str, second: str, margin: float = 0.0) -> partial:
    return partial(greater, first=first, second=second, margin=margin)


def alike(first: str, second: str, margin: float) -> partial:
    return partial(close, first=first, second=second, margin=margin)


def above_all(method: str, methods: tuple[str, ...], but: tuple[str, ...] = ()) -> partial:
    """`method` above each of `methods` but itself and `but`."""
    return partial(best, method=method, rivals=tuple(m for m in methods if m not in (method, *but)))


FIGURE1 = (  # before the first update; at the end
    (
        Claim(
            "the bridge begins near",
            "Figure 1",
            "Before the first update TAID's target is nearer to the student than KL's.",
            above("taid", "kl"),
        ),
    ),
    (
        Claim(
            "the bridge leads as far",
            "Figure 1",
            "In the end TAID's student is as near to the teacher as KL's, or nearer.",
            above("taid", "kl", -0.02),
        ),
    ),
)

MARGIN = 0.2  # points of the score: a lead below it is none in effect
EFFECT = Claim(
    "a lead too small to matter",
    "our rule",
    f"TAID's lead over KL is below {MARGIN} points.",
    above("kl", "taid", -MARGIN),
)
DECIDE = (
    Claim("TAID above KL", "Tables 1–8", "TAID is above KL.", above("taid", "kl")),
    Claim(
        "adaptive is better",
        "Table 1",
        "TAID is above TAID without the adaptive update.",
        above("taid", "taid_no_adaptive"),
    ),
    Claim(
        "more than small steps",
        "reviewers",
        "TAID is above KL with gradients of TAID's size.",
        above("taid", "kl_matched"),
    ),
)

TABLE1 = (
    Claim(
        "TAID is best",
        "Table 1",
        "TAID scores above each of the ten other methods.",
        above_all("taid", reference.METHODS),
    ),
    Claim(
        "adaptive is better",
        "Table 1",
        "TAID scores above TAID without the adaptive update.",
        above("taid", "taid_no_adaptive"),
    ),
    Claim("TAID above KL", "Table 1", "TAID scores above KL.", above("taid", "kl")),
)

TABLE1_TUNED = (  # one claim on each of the primary measures; `analysis.decision` makes one answer of them
    Claim("TAID above KL", "Table 1", "TAID's student is better than KL's.", above("taid", "kl")),
    Claim(
        "adaptive is better",
        "Table 1",
        "TAID's student is better than that of TAID without the adaptive update.",
        above("taid", "taid_no_adaptive"),
    ),
    Claim(
        "TAID is best",
        "Table 1",
        "TAID's student is better than that of each of the ten other methods.",
        above_all("taid", reference.METHODS),
    ),
)

TABLE2 = (
    Claim(
        "TAID is best",
        "Table 2",
        "TAID is above each of the seven other methods.",
        above_all("taid", reference.TABLE2_METHODS),
    ),
    Claim(
        "KL is strong",
        "Table 2",
        "KL is above every method but TAID.",
        above_all("kl", reference.TABLE2_METHODS, but=("taid",)),
    ),
    Claim("TAID above KL", "Table 2", "TAID is above KL.", above("taid", "kl")),
)

TABLE5 = (
    Claim(
        "TAID above its start",
        "Table 5",
        "TAID's student is above the student before distillation.",
        above("taid", "untrained"),
    ),
    Claim(
        "TAID above cross-entropy",
        "control",
        "TAID's student is above the one trained on by cross-entropy alone.",
        above("taid", "sft"),
    ),
    Claim("TAID above KL", "control", "TAID is above KL.", above("taid", "kl")),
)

TABLE3 = {  # part → claims about the logarithm of its mass
    "tail": (
        Claim(
            "KL ≈ TAID in the tail",
            "Table 3",
            "TAID's tail mass is within a factor of two of KL's.",
            alike("taid", "kl", math.log(2)),
        ),
        Claim(
            "KL ≫ RKL in the tail",
            "Table 3",
            "KL's tail mass is more than twice RKL's.",
            above("kl", "rkl", math.log(2)),
        ),
        Claim(
            "TAID ≫ RKL in the tail",
            "Table 3",
            "TAID's tail mass is more than twice RKL's.",
            above("taid", "rkl", math.log(2)),
        ),
    ),
    "head": (
        Claim(
            "RKL is highest in the head",
            "Table 3",
            "RKL's head mass is above KL's and TAID's.",
            above_all("rkl", ("kl", "taid")),
        ),
    ),
}

TABLE4 = (  # written before the run; the last two are the controls that reviewers asked for
    Claim(
        "TAID above its start",
        "Table 4",
        "TAID's student is better than the same student before training.",
        above("taid", "untrained"),
    ),
    Claim(
        "TAID above cross-entropy",
        "reviewers",
        "TAID's student is better than one trained with cross-entropy alone.",
        above("taid", "sft"),
    ),
    Claim("TAID above KL", "reviewers", "TAID's student is better than KL's.", above("taid", "kl")),
)

FLAT, HALF_OF_SKEW = "a flat line", "half of skew KL's slope"
READING = "Figure 2 right, our reading"  # which has KL and RKL unstable over teachers, without numbers here
TABLE6 = (  # about slopes of scores over log teacher size; FLAT has slope 0
    Claim(
        "TAID rises with the teacher",
        "Table 6",
        "TAID's student gets better as the teacher grows.",
        above("taid", FLAT),
    ),
    Claim(
        "skew KL falls with the teacher",
        "Table 6",
        "Skew KL's student gets worse as the teacher grows.",
        above(FLAT, "skew_kl"),
    ),
    Claim(
        "TAID gains more than skew KL",
        "Table 6",
        "TAID's student gains more from a larger teacher than skew KL's.",
        above("taid", "skew_kl"),
    ),
    Claim(
        "TAID gains more than KL",
        READING,
        "TAID's student gains more from a larger teacher than KL's.",
        above("taid", "kl"),
    ),
    Claim(
        "KL falls with the teacher",
        READING,
        "KL's student gets worse as the teacher grows.",
        above(FLAT, "kl"),
    ),
    Claim(
        "KL's gap is half of skew KL's",
        READING,
        "KL's student loses at least half of what skew KL's loses.",
        above(HALF_OF_SKEW, "kl"),
    ),
    Claim(
        "RKL falls with the teacher",
        READING,
        "RKL's student gets worse as the teacher grows.",
        above(FLAT, "rkl"),
    ),
)
TABLE6_BY_TEACHER = (
    Claim(
        "TAID above skew KL", "Table 6", "TAID's student is better than skew KL's.", above("taid", "skew_kl")
    ),
    Claim("TAID above KL", READING, "TAID's student is better than KL's.", above("taid", "kl")),
)

ALPHA = (  # about t a fifth into the run
    Claim(
        "larger α, earlier t",
        "Figure 2 left",
        "A fifth into the run t is greater with 4 α than with α.",
        above("alpha_4", "taid"),
    ),
    Claim(
        "smaller α, later t",
        "Figure 2 left",
        "A fifth into the run t is greater with α than with α/4.",
        above("taid", "alpha_0.25"),
    ),
)
VARIANCE = (  # about the logarithm of a variance of the objective
    Claim(
        "TAID's variance is lower",
        "Figure 2 middle",
        "KL's variance is greater than TAID's.",
        above("kl", "taid"),
    ),
)


LANGUAGE, IMAGES = "language", "images"  # whose teachers
FIGURE3 = {  # metric → claims about it; language's teachers one by one, each beside the mean of the images'
    "entropy": (
        Claim(
            "language is less sure",
            "Figure 3, our reading",
            "Teachers of language have a higher entropy.",
            above(LANGUAGE, IMAGES),
        ),
    ),
    "normalised_entropy": (
        Claim(
            "language is less sure of its many",
            "ours",
            "Teachers of language have a higher entropy as a share of log V.",
            above(LANGUAGE, IMAGES),
        ),
    ),
    "target_probability": (
        Claim(
            "language is less often right",
            "Figure 3, our reading",
            "Teachers of images give what is right a higher probability.",
            above(IMAGES, LANGUAGE),
        ),
    ),
}


def images(item: str, paper: Mapping[str, float]) -> tuple[Claim, ...]:
    """Claims about a pair of Table 7 or 8, whose accuracies in the paper are `paper`: those that its numbers make, and
    the premise of all distillation."""
    rivals = tuple(paper)
    best_of_all = max(paper, key=paper.__getitem__)
    return (
        Claim("TAID above KL", item, "TAID's student is better than KL's.", above("taid", "kl")),
        Claim(
            "TAID is best" if best_of_all == "taid" else "MLKD above TAID",
            item,
            "TAID's student is better than those of the four other methods."
            if best_of_all == "taid"
            else "MLKD's student is better than TAID's.",
            above_all("taid", rivals) if best_of_all == "taid" else above("mlkd", "taid"),
        ),
        Claim(
            "KL above no teacher",
            "the field",
            "KL's student is better than one without a teacher.",
            above("kl", "sft"),
        ),
    )


COST = (  # about logarithms of seconds per optimizer step; "about" is within a factor of √2
    Claim(
        "TAID costs what KL costs",
        "cost",
        "TAID's step takes as long as KL's, to within 5%.",
        alike("taid", "kl", math.log(1.05)),
    ),
    Claim(
        "DistiLLM costs twice as much",
        "cost",
        "DistiLLM's step takes about twice TAID's.",
        alike("distillm", "twice TAID's", math.log(2) / 2),
    ),
    Claim(
        "DistiLLM that samples costs twice as much",
        "cost",
        "DistiLLM's step takes about twice TAID's when it samples.",
        alike("distillm_sampling", "twice TAID's", math.log(2) / 2),
    ),
    Claim(
        "GKD costs ten times as much",
        "cost",
        "GKD's step takes about ten times TAID's.",
        alike("gkd", "ten times TAID's", math.log(2) / 2),
    ),
)
