"""Questions beyond the paper's claims, the theory's and the reviewers': claims like those of `analysis.claims`."""

from analysis.claims import above, above_all, alike
from analysis.predicates import Claim
from analysis.style import name

REPEATED = "self-distillation"
FIRST, LAST = f"{REPEATED}, first round", f"{REPEATED}, last round"
ROUNDS = {  # metric → claims about it as measured; the paper has no such experiment
    "kl_to_teacher": (
        Claim(
            "self-distillation drifts away",
            "theory, 2.6",
            "Self-distillation's KL is greater after the last round than after the first.",
            above(LAST, FIRST),
        ),
        Claim(
            "TAID rounds end nearer",
            "theory, 3.1",
            "After the last round self-distillation's KL is greater than TAID's.",
            above(LAST, "TAID, last round"),
        ),
        Claim(
            "a constant weight ends nearer",
            "theory, 3.4",
            "After the last round self-distillation's KL is greater than that of a constant λ.",
            above(LAST, "constant λ, last round"),
        ),
        Claim(
            "TAID rounds stay",
            "theory, 2.2",
            "TAID's KL after the last round is within 0.05 of that after the first.",
            alike("TAID, last round", "TAID, first round", 0.05),
        ),
    ),
    "signal": (
        Claim(
            "self-distillation loses the signal",
            "theory, 2.6",
            "Self-distillation's signal is greater after the first round than after the last.",
            above(FIRST, LAST),
        ),
        *(
            Claim(
                f"{variant} collapses",
                "theory, 2.4",
                f"Collapse, which r₀ ≤ √B forces: the last round leaves less than half of {variant}'s signal.",
                above(f"{variant}, half of the first round", f"{variant}, last round"),
            )
            for variant in (REPEATED, "TAID", "constant λ")
        ),
    ),
    "entropy": (
        Claim(
            "self-distillation narrows",
            "the word collapse",
            "Self-distillation's entropy is greater after the first round than after the last.",
            above(FIRST, LAST),
        ),
    ),
}


def adaptivity(margin: float) -> tuple[Claim, ...]:
    """Claims about any measure, higher is better; what differs by less than `margin` is the same."""
    return (
        Claim(
            "adaptive is better",
            "of Table 1",
            "TAID is better than the linear ramp.",
            above("taid", "taid_no_adaptive"),
        ),
        Claim(
            "the momentum helps",
            "the method",
            "TAID is better than with σ(m) = ½ held constant.",
            above("taid", "constant"),
        ),
        Claim(
            "the momentum changes nothing",
            "ours",
            "With σ(m) = ½ held constant TAID is the same.",
            alike("constant", "taid", margin),
        ),
        Claim(
            "another run's curve does as well",
            "ours",
            "With t replayed from another seed TAID is the same.",
            alike("replayed", "taid", margin),
        ),
    )


AUDIT = (  # about numbers of TAID's traces by name
    Claim(
        "the momentum is too small",
        "ours",
        "The momentum that would move t by 0.05 is greater than the largest that occurs.",
        above("momentum_needed", "momentum_largest"),
    ),
    Claim(
        "no loss of this range could do it",
        "ours",
        "It is greater than any momentum that losses between the largest and the least can give.",
        above("momentum_needed", "momentum_bound"),
    ),
    Claim(
        "noise outweighs progress",
        "ours",
        "δ is below 0 on average: the noise of batches outweighs the progress.",
        above("none", "progress_mean"),
    ),
    Claim(
        "t is predicted",
        "ours",
        "t stays within 0.02 of its closed form at momentum 0.",
        alike("deviation", "none", 0.02),
    ),
)


def ablations(margin: float) -> tuple[Claim, ...]:
    """The reviewers' questions about any measure, higher is better; less than `margin` is the same."""

    def better(first: str, second: str = "taid") -> Claim:
        what = f"{name(first)}: better than {name(second)}."
        return Claim(f"{first} > {second}", "reviewers", what, above(first, second))

    def equal(first: str) -> Claim:
        return Claim(
            f"{first} = taid", "reviewers", f"{name(first)}: the same as TAID.", alike(first, "taid", margin)
        )

    def optimal(what: str, rivals: tuple[str, ...]) -> Claim:
        statement = f"The paper's {what} is the best of those tried."
        return Claim(f"{what} is best", "paper", statement, above_all("taid", rivals))

    return (
        better("taid", "kl"),
        better("taid", "kl_matched"),
        better("taid", "kl_matched_per_token"),
        better("taid_matched", "kl"),
        better("taid", "kl_warmup_0.1"),
        better("taid", "kl_warmup_0.3"),
        better("kl_warmup_0.1", "kl"),
        better("taid_warmup_0.1", "kl_warmup_0.1"),
        better("taid_warmup_0.1", "taid"),
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


DEPARTING = ("kl", "adaptive_kl", "ctkd", "dkd")  # baselines that the official code has otherwise
OFFICIAL = "_official"


def departures(margin: float) -> tuple[Claim, ...]:
    """What a departure of the official code should do, by its formula; less than `margin` is the same."""

    def same(method: str, why: str) -> Claim:
        statement = f"{name(method)} as in the official code trains the same student: {why}."
        return Claim(
            f"{method} is the same", "official code", statement, alike(method + OFFICIAL, method, margin)
        )

    def better(method: str, why: str) -> Claim:
        statement = f"{name(method)} is better than as in the official code: {why}."
        return Claim(f"{method} is better", "official code", statement, above(method, method + OFFICIAL))

    return (
        same("kl", "the gradient is the same"),
        better("adaptive_kl", "there the head's gaps are those of other tokens"),
        better("ctkd", "there the temperature never moves"),
        same("dkd", "a scale of the loss, which AdamW divides out"),
    )
