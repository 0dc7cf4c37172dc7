"""The paper's claims and ours, table by table: each written once, as a predicate over scores by seed."""

import math
from functools import partial

from analysis import reference
from analysis.predicates import Claim, best, close, greater
from analysis.style import name

METHODS = tuple(next(iter(reference.table1().values())))

TABLE1 = (
    Claim(
        name="TAID is best",
        paper_item="Table 1",
        statement="TAID scores above each of the ten other methods.",
        predicate=partial(best, method="taid", rivals=tuple(m for m in METHODS if m != "taid")),
    ),
    Claim(
        name="adaptive is better",
        paper_item="Table 1",
        statement="TAID scores above TAID without the adaptive update.",
        predicate=partial(greater, first="taid", second="taid_no_adaptive"),
    ),
)

TABLE2_METHODS = tuple(reference.table2()["average"])
TABLE2 = (
    Claim(
        name="TAID is best",
        paper_item="Table 2",
        statement="TAID is above each of the seven other methods.",
        predicate=partial(best, method="taid", rivals=tuple(m for m in TABLE2_METHODS if m != "taid")),
    ),
    Claim(
        name="KL is strong",
        paper_item="Table 2",
        statement="KL is above every method but TAID.",
        predicate=partial(
            best, method="kl", rivals=tuple(m for m in TABLE2_METHODS if m not in ("kl", "taid"))
        ),
    ),
)

TABLE3 = {  # metric → claims about its logarithm
    "tail": (
        Claim(
            name="KL ≈ TAID in the tail",
            paper_item="Table 3",
            statement="TAID's tail mass is within a factor of two of KL's.",
            predicate=partial(close, first="taid", second="kl", margin=math.log(2)),
        ),
        Claim(
            name="KL ≫ RKL in the tail",
            paper_item="Table 3",
            statement="KL's tail mass is more than twice RKL's.",
            predicate=partial(greater, first="kl", second="rkl", margin=math.log(2)),
        ),
        Claim(
            name="TAID ≫ RKL in the tail",
            paper_item="Table 3",
            statement="TAID's tail mass is more than twice RKL's.",
            predicate=partial(greater, first="taid", second="rkl", margin=math.log(2)),
        ),
    ),
    "head": (
        Claim(
            name="RKL is highest in the head",
            paper_item="Table 3",
            statement="RKL's head mass is above KL's and TAID's.",
            predicate=partial(best, method="rkl", rivals=("kl", "taid")),
        ),
    ),
}

FLAT = "a flat line"
TABLE6 = (  # about slopes of scores over log teacher size; FLAT has slope 0
    Claim(
        name="TAID rises with the teacher",
        paper_item="Table 6",
        statement="TAID's student gets better as the teacher grows.",
        predicate=partial(greater, first="taid", second=FLAT),
    ),
    Claim(
        name="skew KL falls with the teacher",
        paper_item="Table 6",
        statement="Skew KL's student gets worse as the teacher grows.",
        predicate=partial(greater, first=FLAT, second="skew_kl"),
    ),
    Claim(
        name="TAID gains more than skew KL",
        paper_item="Table 6",
        statement="TAID's student gains more from a larger teacher than skew KL's.",
        predicate=partial(greater, first="taid", second="skew_kl"),
    ),
)
TABLE6_BY_TEACHER = (
    Claim(
        name="TAID above skew KL",
        paper_item="Table 6",
        statement="TAID's student is better than skew KL's.",
        predicate=partial(greater, first="taid", second="skew_kl"),
    ),
)

REPEATED = "self-distillation"
ROUNDS = {  # metric → claims about it as measured; the paper has no such experiment
    "kl_to_teacher": (
        Claim(
            name="self-distillation drifts away",
            paper_item="theory, 2.6",
            statement="Self-distillation's KL is greater after the last round than after the first.",
            predicate=partial(greater, first=f"{REPEATED}, last round", second=f"{REPEATED}, first round"),
        ),
        Claim(
            name="TAID rounds end nearer",
            paper_item="theory, 3.1",
            statement="After the last round self-distillation's KL is greater than TAID's.",
            predicate=partial(greater, first=f"{REPEATED}, last round", second="TAID, last round"),
        ),
        Claim(
            name="a constant weight ends nearer",
            paper_item="theory, 3.4",
            statement="After the last round self-distillation's KL is greater than that of a constant λ.",
            predicate=partial(greater, first=f"{REPEATED}, last round", second="constant λ, last round"),
        ),
        Claim(
            name="TAID rounds stay",
            paper_item="theory, 2.2",
            statement="TAID's KL after the last round is within 0.05 of that after the first.",
            predicate=partial(close, first="TAID, last round", second="TAID, first round", margin=0.05),
        ),
    ),
    "signal": (
        Claim(
            name="self-distillation loses the signal",
            paper_item="theory, 2.6",
            statement="Self-distillation's signal is greater after the first round than after the last.",
            predicate=partial(greater, first=f"{REPEATED}, first round", second=f"{REPEATED}, last round"),
        ),
    ),
    "entropy": (
        Claim(
            name="self-distillation narrows",
            paper_item="the word collapse",
            statement="Self-distillation's entropy is greater after the first round than after the last.",
            predicate=partial(greater, first=f"{REPEATED}, first round", second=f"{REPEATED}, last round"),
        ),
    ),
}


def adaptivity(margin: float) -> tuple[Claim, ...]:
    """Claims about any measure, higher is better; what differs by less than `margin` is the same."""
    return (
        Claim(
            name="adaptive is better",
            paper_item="Table 1",
            statement="TAID is better than the linear ramp.",
            predicate=partial(greater, first="taid", second="taid_no_adaptive"),
        ),
        Claim(
            name="the momentum helps",
            paper_item="the method",
            statement="TAID is better than with σ(m) = ½ held constant.",
            predicate=partial(greater, first="taid", second="constant"),
        ),
        Claim(
            name="the momentum changes nothing",
            paper_item="ours",
            statement=f"With σ(m) = ½ held constant TAID is the same to within {margin:g}.",
            predicate=partial(close, first="constant", second="taid", margin=margin),
        ),
        Claim(
            name="another run's curve does as well",
            paper_item="ours",
            statement=f"With t replayed from another seed TAID is the same to within {margin:g}.",
            predicate=partial(close, first="replayed", second="taid", margin=margin),
        ),
    )


AUDIT = (  # about numbers of TAID's traces by name
    Claim(
        name="the momentum is too small",
        paper_item="ours",
        statement="The momentum that would move t by 0.05 is greater than the largest that occurs.",
        predicate=partial(greater, first="momentum_needed", second="momentum_largest"),
    ),
    Claim(
        name="no loss of this range could do it",
        paper_item="ours",
        statement="It is greater than any momentum that losses between the largest and the least can give.",
        predicate=partial(greater, first="momentum_needed", second="momentum_bound"),
    ),
    Claim(
        name="noise outweighs progress",
        paper_item="ours",
        statement="δ is below 0 on average: the noise of batches outweighs the progress.",
        predicate=partial(greater, first="none", second="progress_mean"),
    ),
    Claim(
        name="t is predicted",
        paper_item="ours",
        statement="t stays within 0.02 of its closed form at momentum 0.",
        predicate=partial(close, first="deviation", second="none", margin=0.02),
    ),
)

FIGURE2 = {  # metric → claims: about t at a fifth of the run, and the logarithm of variances
    "t": (
        Claim(
            name="larger α, earlier t",
            paper_item="Figure 2 left",
            statement="A fifth into the run t is greater with 4 α than with α.",
            predicate=partial(greater, first="alpha_4", second="taid"),
        ),
        Claim(
            name="smaller α, later t",
            paper_item="Figure 2 left",
            statement="A fifth into the run t is greater with α than with α/4.",
            predicate=partial(greater, first="taid", second="alpha_0.25"),
        ),
    ),
    **{
        variance: (
            Claim(
                name="TAID's variance is lower",
                paper_item="Figure 2 middle",
                statement="KL's variance is greater than TAID's.",
                predicate=partial(greater, first="kl", second="taid"),
            ),
        )
        for variance in (
            "noise_variance",
            "relative_noise_variance",
            "total_variance",
            "relative_total_variance",
        )
    },
}


def ablations(margin: float) -> tuple[Claim, ...]:
    """The reviewers' questions about any measure, higher is better; less than `margin` is the same."""

    def better(first: str, second: str = "taid") -> Claim:
        what = f"{name(first)}: better than {name(second)}."
        return Claim(f"{first} > {second}", "reviewers", what, partial(greater, first=first, second=second))

    def equal(first: str) -> Claim:
        same = partial(close, first=first, second="taid", margin=margin)
        return Claim(f"{first} = taid", "reviewers", f"{name(first)}: the same as TAID.", same)

    def optimal(what: str, rivals: tuple[str, ...]) -> Claim:
        return Claim(
            f"{what} is best",
            "paper",
            f"The paper's {what} is the best of those tried.",
            partial(best, method="taid", rivals=rivals),
        )

    return (
        better("taid", "kl"),
        better("taid", "kl_matched"),
        better("taid", "kl_matched_per_token"),
        better("taid_matched", "kl"),
        better("taid", "kl_warmup_0.1"),
        better("taid", "kl_warmup_0.3"),
        better("taid", "over_t"),
        better("taid", "reverse"),
        better("taid", "probability"),
        better("with_data_0.1"),
        better("with_data_0.3"),
        better("with_data_0.5"),
        equal("top_50_tail"),
        equal("top_50"),
        equal("top_5_tail"),
        equal("top_5"),
        equal("cross_entropy_signal"),
        equal("beta_0"),
        equal("beta_0.9"),
        equal("beta_0.999"),
        optimal("α", ("alpha_0.25", "alpha_2", "alpha_4")),
        optimal("t_start", ("t_start_0", "t_start_0.2", "t_start_0.6", "t_start_0.8")),
    )


COST = (  # about logarithms of seconds per optimizer step; "about" is within a factor of √2
    Claim(
        name="TAID costs what KL costs",
        paper_item="cost",
        statement="TAID's step takes as long as KL's, to within 5%.",
        predicate=partial(close, first="taid", second="kl", margin=math.log(1.05)),
    ),
    Claim(
        name="DistiLLM costs twice as much",
        paper_item="cost",
        statement="DistiLLM's step takes about twice TAID's.",
        predicate=partial(close, first="distillm", second="twice TAID's", margin=math.log(2) / 2),
    ),
    Claim(
        name="DistiLLM that samples costs twice as much",
        paper_item="cost",
        statement="DistiLLM's step takes about twice TAID's when it samples.",
        predicate=partial(close, first="distillm_sampling", second="twice TAID's", margin=math.log(2) / 2),
    ),
    Claim(
        name="GKD costs ten times as much",
        paper_item="cost",
        statement="GKD's step takes about ten times TAID's.",
        predicate=partial(close, first="gkd", second="ten times TAID's", margin=math.log(2) / 2),
    ),
)
