"""TAID's parts, one by one: variants of the objective and its schedule around Table 1's first pair.

A `Variant` says what is trained; a `Run` is one student of it, with Table 1's data, models and settings.
Every run keeps its trace: the loss of every optimizer step, and the schedule's state after it. The variants
answer what the paper's reviewers asked, and what the audit of the schedule (`taid.studies.adaptivity`) raises.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from taid import objectives, results, schedule
from taid.files import write_whole
from taid.schedule import Adaptive
from taid.studies import adaptivity, instruction_tuning, jobs, study
from taid.studies.training import Training
from taid.studies.variants import BLENDS, Blend, Traced

TEACHER = "phi-3-mini"
POINTS = 31  # of a curve of Figure 2

# --- Variants -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """TAID of the pair (t_start of the paper, α · N as in the paper) but for what is given here."""

    loss: str = "taid"  # of BLENDS, or a method of `taid.objectives` that has no t
    options: dict[str, object] = field(default_factory=dict)  # of the loss
    alpha: float = 1.0  # in multiples of the paper's; 0 for the linear ramp alone
    beta: float = 0.99
    t_start: float | None = None
    t_end: float = 1.0
    replays: Literal["", "own", "other"] = ""  # t as TAID's run of this seed, or of another, recorded it
    warmup: float = 0.0  # share of the steps in which the learning rate rises from 0


VARIANTS = {
    "taid": Variant(),
    "taid_no_adaptive": Variant(alpha=0),
    "kl": Variant("kl"),
    "constant": Variant(beta=1.0),  # σ(m) = ½
    "replayed": Variant(replays="other"),
    "kl_matched": Variant("matched", {"direction": "kl"}, replays="own"),
    "taid_matched": Variant("matched", {"direction": "taid"}, replays="own"),
    "reverse": Variant("reverse"),
    "with_data_0.1": Variant("with_data", {"ratio": 0.1}),
    "with_data_0.3": Variant("with_data", {"ratio": 0.3}),
    "with_data_0.5": Variant("with_data", {"ratio": 0.5}),
    "over_t": Variant("over_t"),
    "probability": Variant("probability"),
    "sft": Variant("sft"),
    "alpha_0.25": Variant(alpha=0.25),
    "alpha_4": Variant(alpha=4),
    "top_5": Variant("top_k", {"k": 5, "tail": False}),
    "top_5_tail": Variant("top_k", {"k": 5, "tail": True}),
    "top_50": Variant("top_k", {"k": 50, "tail": False}),
    "top_50_tail": Variant("top_k", {"k": 50, "tail": True}),
    "cross_entropy_signal": Variant("cross_entropy_signal"),
    "kl_matched_per_token": Variant("matched", {"direction": "kl", "per_token": True}, replays="own"),
    "kl_warmup_0.1": Variant("kl", warmup=0.1),
    "kl_warmup_0.3": Variant("kl", warmup=0.3),
    "taid_warmup_0.1": Variant(warmup=0.1),
    "t_start_0": Variant(t_start=0.0),
    "t_start_0.2": Variant(t_start=0.2),
    "t_start_0.6": Variant(t_start=0.6),
    "t_start_0.8": Variant(t_start=0.8),
    "t_end_0.8": Variant(t_end=0.8),
    "beta_0": Variant(beta=0.0),
    "beta_0.9": Variant(beta=0.9),
    "beta_0.999": Variant(beta=0.999),
    "alpha_2": Variant(alpha=2),
}
"""In the order of running: what answers most comes first."""

ADAPTIVITY = ("taid", "taid_no_adaptive", "constant", "replayed")
SEARCHED = ("kl_matched", "taid_matched", "over_t", "with_data_0.3")  # their gradients have another size
FIGURE2 = ("taid", "kl", "taid_no_adaptive", "alpha_0.25", "alpha_2", "alpha_4")


@dataclass(frozen=True)
class Run(instruction_tuning.Run):
    """One student of a variant; `method` is the variant's name."""

    known: ClassVar[Sequence[str]] = tuple(VARIANTS)

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.method]

    @property
    def options(self) -> dict:
        return asdict(self.variant) | {"t_start": self.t_start, "alpha": self.alpha, "donor": self.donor_seed}

    @property
    def t_start(self) -> float:
        given = self.variant.t_start
        return self.pair.t_start if given is None else given

    @property
    def alpha(self) -> float:
        return self.variant.alpha * self.setting.alpha

    @property
    def donor_seed(self) -> int | None:
        """Seed of TAID's run whose t is replayed; "other" is the seed before, for seed 0 the seed 1."""
        return {"": None, "own": self.seed, "other": abs(self.seed - 1)}[self.variant.replays]

    @property
    def adaptive(self) -> bool:
        """Whether t follows the adaptive update."""
        return self.variant.loss in BLENDS and not self.variant.replays and self.variant.alpha > 0

    def schedule(self) -> schedule.Linear | schedule.Replayed:
        """Trains the run to be replayed first, unless it is cached."""
        if self.donor_seed is not None:
            donor = replace(self, method="taid", seed=self.donor_seed)
            return schedule.Replayed(curve(trace(donor), donor.t_start))
        if self.variant.alpha == 0:
            return schedule.Linear(self.t_start, self.variant.t_end)
        return self.adaptive_schedule()

    def adaptive_schedule(self) -> Adaptive:
        return schedule.Adaptive(self.t_start, self.variant.t_end, self.alpha, self.variant.beta)

    def objective(self) -> Traced:
        chosen = self.variant
        if chosen.loss not in BLENDS:
            return Traced(objectives.objective(chosen.loss))
        return Traced(Blend(partial(BLENDS[chosen.loss], **chosen.options), self.schedule()))

    @property
    def training(self) -> Training:
        training = super().training
        return replace(training, warmup_steps=round(self.variant.warmup * training.steps))


def runs(scale: str, seed: int, rates: dict[str, float], names: Sequence[str] = tuple(VARIANTS)) -> list[Run]:
    """The runs of a seed at the learning rates that Table 1 chose: SFT at its own, the others at TAID's."""
    return [Run(scale, name, TEACHER, seed, rates[name if name == "sft" else "taid"]) for name in names]


def prepare(scale: str, seeds: int, workers: jobs.Workers | int) -> None:
    """What the runs of `seeds` seeds need; seed 0 replays seed 1's t."""
    instruction_tuning.prepare_pair(scale, TEACHER, range(max(seeds, 2)), workers)


def learning_rates(rows: Iterable[results.Row], scale: str) -> dict[str, float]:
    """Method → the rate that Table 1 chose for it on this pair. Raises ValueError without TAID's and SFT's."""
    return study.chosen_rates(rows, scale, TEACHER, ("taid", "sft"))


def trace(run: Run) -> list[dict[str, float]]:
    """Of every optimizer step its "loss" and the schedule's state after it (`taid.schedule.State`)."""
    return instruction_tuning.at(run.scale).distilled(run)[1]["state"]["steps"]


def curve(steps: Sequence[dict[str, float]], t_start: float) -> tuple[float, ...]:
    """t_0 … t_N of a trace."""
    return (t_start, *(step["t"] for step in steps))


def measure(run: Run) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, "average"): value}, seconds) of a run: Table 1's measures on the test split, kept
    beside the student, and the audit of its schedule where that is adaptive."""
    started = time.perf_counter()
    path = instruction_tuning.at(run.scale).run_folder(run) / "test.json"
    if not path.exists():
        values, _ = instruction_tuning.measure(run, "test")
        write_whole(
            path, json.dumps({metric: v for (metric, task), v in values.items() if task == "average"})
        )
    values = json.loads(path.read_text())
    if run.adaptive:
        values |= adaptivity.summary(trace(run), run.adaptive_schedule())
    return {(metric, "average"): value for metric, value in values.items()}, time.perf_counter() - started


def curves(run: Run) -> tuple[dict[tuple[str, str], float], float]:
    """A job: ({(metric, task): value}, seconds) of Figure 2, left and middle, for one run.

    `adaptivity.spread` has the task "average". At the shares of steps done that the other tasks name, to four
    decimals: t; the mean "loss" and its "noise_variance" in a window about the step; and t as the schedule
    gives it in a run of the paper's length with its α, under a constant loss and under this run's, stretched.
    """
    started = time.perf_counter()
    steps, shares = trace(run), np.linspace(0, 1, POINTS)
    losses = np.array([step["loss"] for step in steps])
    width, at = adaptivity.window(len(losses)), shares * len(losses)
    centres = np.arange(len(losses) - width + 1) + (width + 1) / 2  # in steps, the first is 1
    series: dict[str, tuple[np.ndarray, Sequence[float] | np.ndarray]] = {
        "loss": (centres, sliding_window_view(losses, width).mean(-1)),
        "noise_variance": (centres, adaptivity.noise_variance(losses, width)),
    }
    if "t" in steps[0]:
        series["t"] = np.arange(len(steps) + 1), curve(steps, run.t_start)
    if run.adaptive:
        alpha = schedule.scale_alpha(run.alpha, study.PAPER_UPDATES, len(steps))
        paper = replace(run.adaptive_schedule(), alpha=alpha)
        every = np.linspace(0, len(steps), study.PAPER_UPDATES + 1)
        given = {
            "t_paper_constant": np.ones(study.PAPER_UPDATES),
            "t_paper_measured": adaptivity.stretched(losses, study.PAPER_UPDATES, run.seed),
        }
        series |= {metric: (every, adaptivity.simulate(paper, values)) for metric, values in given.items()}
    found = {(metric, "average"): value for metric, value in adaptivity.spread(losses).items()}
    for metric, (x, y) in series.items():
        inside = (x[0] <= at) & (at <= x[-1])
        for share, value in zip(shares[inside], np.interp(at[inside], x, y), strict=True):
            found[metric, f"{share:.4f}"] = float(value)
    return found, time.perf_counter() - started


rows = partial(study.rows, units=instruction_tuning.UNITS | adaptivity.UNITS)
