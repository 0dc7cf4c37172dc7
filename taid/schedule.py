"""How far TAID's intermediate teacher has moved from the student (t = 0) to the teacher (t = 1).

A schedule is a frozen set of hyperparameters; what changes during training is an explicit `State`:

    state = schedule.init()
    state = schedule.update(state, loss, progress)  # once per optimizer step
    state.t

`loss` is the step's J(t), the mean of `taid.losses.taid_kl` over unmasked tokens, in nats; `progress` in
[0, 1] is the share of optimizer steps done, this one included. A state is a dataclass of plain numbers:
`asdict(state)` goes through JSON, and `State(**saved)` is the state again, bit for bit.
"""

import math
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

EPSILON = 1e-15  # ε of the relative progress: our choice, it matters only where the previous loss is zero


@dataclass(frozen=True)
class State:
    """State of a schedule. `updates` = 0 says that there is no `previous_loss` yet."""

    t: float
    momentum: float = 0.0
    previous_loss: float = 0.0
    updates: int = 0
    floor_updates: int = 0
    floor_bound: bool = False
    """Whether the linear floor, above the adaptive step, set `t` last time; `floor_updates` counts these."""

    @property
    def sigmoid_momentum(self) -> float:
        """sigmoid(m), the factor by which the momentum sets the adaptive step; 0.5 at m = 0."""
        return _sigmoid(self.momentum)

    @property
    def floor_share(self) -> float:
        """Share of the updates in which the floor bound; 0 before the first."""
        return self.floor_updates / max(self.updates, 1)


class Schedule(Protocol):
    """How t moves in a run."""

    def init(self) -> State:
        """The state before the first update."""

    def check(self, updates: int) -> None:
        """Warn, before a run of `updates` optimizer steps, of what will not do there what its name says."""

    def update(self, state: State, loss: float, progress: float) -> State:
        """State after one optimizer step, given its loss [nats] and the share of steps done, in [0, 1]."""


@dataclass(frozen=True)
class Linear:
    """t = t_start + (t_end − t_start) · progress: TAID without the adaptive update."""

    t_start: float = 0.0
    t_end: float = 1.0

    def __post_init__(self) -> None:
        _require_numbers(t_start=self.t_start, t_end=self.t_end)
        if not 0 <= self.t_start <= self.t_end <= 1:
            raise ValueError(f"need 0 ≤ t_start ≤ t_end ≤ 1, got t_start={self.t_start}, t_end={self.t_end}")

    def init(self) -> State:
        return State(t=self.t_start)

    def check(self, updates: int) -> None:
        """Nothing to warn of."""

    def update(self, state: State, loss: float, progress: float) -> State:
        """State after one optimizer step, given its loss and the share of steps done, in [0, 1].

        A loss that is not finite leaves the whole state as it was; `t` is then below the linear floor until
        the next finite loss.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be steps done / steps in all, in [0, 1]; got {progress}")
        if not math.isfinite(loss):
            return state
        momentum, step = self._step(state, loss)
        floor = (1 - progress) * self.t_start + progress * self.t_end  # in this form exactly t_end at the end
        floor_bound = floor > state.t + step
        return replace(
            state,
            t=min(self.t_end, max(floor, state.t + step)),
            momentum=momentum,
            previous_loss=loss,
            updates=state.updates + 1,
            floor_updates=state.floor_updates + floor_bound,
            floor_bound=floor_bound,
        )

    def _step(self, state: State, loss: float) -> tuple[float, float]:
        """The momentum, and how far `t` moves where the linear floor is not higher: not at all."""
        return 0.0, 0.0


@dataclass(frozen=True)
class Adaptive(Linear):
    """TAID's adaptive update, never below the linear schedule:

        δ_n = (J_{n-1} − J_n) / (J_{n-1} + ε)      relative progress of the objective
        m_n = β m_{n-1} + (1 − β) δ_n              momentum, m_0 = 0
        t_{n+1} = min(t_end, max(t_linear, t_n + α · sigmoid(m_n) · (1 − t_n)))

    Defaults are the paper's; its t_start is 0.4 (Phi-3 → TinyLlama) or 0.2. The first update has no
    J_{n-1}: δ = 0. β = 1 freezes the momentum at 0: sigmoid(m) = ½ whatever the loss does.

    A departure: δ is clipped to [−1, 1], which binds only where the loss more than doubles in one update.
    Unclipped it falls without bound as J_{n-1} nears 0, where a run from t_start = 0 begins, and a single
    such step keeps sigmoid(m) at 0 for thousands of updates.
    """

    alpha: float = 5e-4
    beta: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_numbers(alpha=self.alpha, beta=self.beta)
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be positive, got {self.alpha}; for no adaptive step use Linear")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], got {self.beta}")

    def check(self, updates: int) -> None:
        """Warn where the adaptive step never leaves the linear floor (see `inert_below`)."""
        least = inert_below(self.alpha, self.t_start, self.t_end)
        if updates <= least:
            advice = f"taid.schedule.scale_alpha({self.alpha:g}, {updates}, paper_updates)"
            warnings.warn(
                f"TAID's adaptive update is inert in this run: with alpha={self.alpha:g} it leaves the linear "
                f"ramp only in runs of more than {least:.0f} updates, and this one has {updates}. "
                f"Keep α · N with {advice}, or say what you get: taid.schedule.Linear.",
                stacklevel=2,
            )

    def _step(self, state: State, loss: float) -> tuple[float, float]:
        momentum = self.beta * state.momentum + (1 - self.beta) * _relative_progress(state, loss)
        return momentum, self.alpha * _sigmoid(momentum) * (1 - state.t)


@dataclass(frozen=True)
class Replayed:
    """t as recorded in another run, t_0 … t_N, whatever the loss does: the nearest recorded value.

    In a run of N updates that is exactly the recorded curve. Raises ValueError for a curve that falls, leaves
    [0, 1] or has fewer than two values.
    """

    curve: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.curve) < 2 or not 0 <= self.curve[0] <= self.curve[-1] <= 1:
            raise ValueError("curve must hold t_0 … t_N, N ≥ 1, within [0, 1]")
        if not all(before <= after for before, after in pairwise(self.curve)):
            raise ValueError("curve must never fall: record t once per optimizer step, t_start first")

    def init(self) -> State:
        return State(t=self.curve[0])

    def check(self, updates: int) -> None:
        """Nothing to warn of."""

    def update(self, state: State, loss: float, progress: float) -> State:
        t = self.curve[round(progress * (len(self.curve) - 1))]
        return replace(state, t=t, previous_loss=loss, updates=state.updates + 1)


def require_schedule(given: object) -> None:
    """Raises TypeError for what is no schedule: a number, a name, or a class instead of one of its objects."""
    if isinstance(given, type) or not all(hasattr(given, name) for name in ("init", "check", "update")):
        found = f"the class {given.__name__}" if isinstance(given, type) else repr(given)
        raise TypeError(
            f"TAID(…) takes a schedule such as Adaptive(t_start=0.2), which has init, check and update; not {found}"
        )


def inert_below(alpha: float, t_start: float = 0.0, t_end: float = 1.0) -> float:
    """Number of updates N = (2/α) (t_end − t_start)/(1 − t_start) below which the adaptive step never leaves
    the linear floor; 2/α for t_end = 1, whatever t_start is: 4,000 for the paper's α.

    While m ≈ 0 the step is α/2 · (1 − t); the floor rises by (t_end − t_start)/N per update. The step is
    largest at t = t_start, and wins there only if N is greater.
    """
    return 2 / alpha * (t_end - t_start) / (1 - t_start) if t_start < 1 else 0.0


def scale_alpha(alpha: float, updates: int, paper_updates: int) -> float:
    """α for a run of `updates` steps that keeps α · N of the paper's run of `paper_updates` steps."""
    if not (updates >= 1 and paper_updates >= 1 and 0 < alpha < math.inf):
        raise ValueError(
            f"α must be positive, and both runs need at least one update: got {alpha}, {updates} and {paper_updates}"
        )
    return alpha * paper_updates / updates


def _require_numbers(**values: object) -> None:
    """Raises ValueError for text and None. (That of `taid.checks` would bring torch in.)"""
    for name, value in values.items():
        if not hasattr(value, "__float__"):
            raise ValueError(f"{name} must be a number, got {value!r}")


def _sigmoid(m: float) -> float:
    return 1 / (1 + math.exp(-m))  # |m| ≤ 1, as δ is


def _relative_progress(state: State, loss: float) -> float:
    if state.updates == 0:
        return 0.0
    change = (state.previous_loss - loss) / (abs(state.previous_loss) + EPSILON)
    return min(1.0, max(-1.0, change))
