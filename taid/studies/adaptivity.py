"""Is the adaptive update adaptive? The schedule without momentum, in closed form, and what traces say.

At momentum 0, σ(m) = ½, the adaptive step gives 1 − t_n = (1 − t_start)(1 − α/2)^n until the linear floor
overtakes it: `predicted`, a function of the step number alone (docs/adaptivity.md). A *trace* is a list with
one dict per optimizer step: its "loss" [nats] and the schedule's state after it (`taid.schedule.State`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy import ndarray as Array
from numpy.lib.stride_tricks import sliding_window_view
from scipy.optimize import brentq
from scipy.special import expit, lambertw

from taid import theory
from taid.schedule import Adaptive, Linear

SHIFT = 0.05  # of t: the least effect of the momentum that we would call one
WINDOWS = 10  # a window is this part of a run

# --- In closed form -----------------------------------------------------------------------------------------


def predicted(alpha: float, updates: int, t_start: float, t_end: float = 1.0, momentum: float = 0.0) -> Array:
    """t_0 … t_N of the adaptive schedule at constant momentum, exactly: [N + 1]."""
    return theory.open_loop(updates, _continuous(alpha, momentum), t_start, t_end)


def crossing(alpha: float, updates: int, t_start: float, t_end: float = 1.0) -> float:
    """Share of the run at which the floor overtakes the adaptive step at momentum 0: 0 at once, 1 never.

    With r = (t_end − t_start)/(1 − t_start) and a = −N log(1 − α/2) ≈ αN/2 it solves 1 − r x = e^(−a x), so
    x = 1/r + W₀(−(a/r) e^(−a/r)) / a, W₀ the principal branch of Lambert's function; x = 0 for a ≤ r.
    """
    a, r = updates * _continuous(alpha) / 2, (t_end - t_start) / (1 - t_start)
    if a <= r:
        return 0.0
    return float(min(1.0, 1 / r + lambertw(-(a / r) * math.exp(-a / r)).real / a))


def momentum_needed(
    alpha: float, updates: int, t_start: float, t_end: float = 1.0, shift: float = SHIFT
) -> float:
    """Least constant |m| that moves t by `shift` anywhere in the run; ∞ if |m| ≤ 1, all there is, does not.

    Constant momentum m is relative progress δ = m in every step: the loss would change by 1 − m each time.
    """
    open_loop = predicted(alpha, updates, t_start, t_end)

    def missing(momentum: float) -> float:
        return shift - np.abs(predicted(alpha, updates, t_start, t_end, momentum) - open_loop).max()

    needed = [brentq(missing, 0.0, end) for end in (-1.0, 1.0) if missing(end) <= 0]
    return min(map(abs, needed), default=math.inf)


def momentum_bound(losses: Array, beta: float) -> float:
    """(1 − β) (log(max J / min J) + Σ excess): no momentum exceeds it under these losses, in any order.

    δ_n = 1 − J_n/J_{n−1} ≤ log J_{n−1} − log J_n. Summed with the weights (1 − β) β^(n−k), by parts, that is
    (1 − β) times an average of earlier log J less the last: the first term, and all there is in the paper's
    update. Ours clips δ at −1, which spares the momentum what a rise exceeds a factor e by: the second, zero
    but for rises by more. Downwards there is no such bound: noise alone pulls, for E[J_n / J_{n−1}] > 1.
    ∞ where a loss is not positive.
    """
    losses = np.asarray(losses, dtype=float)
    if losses.min() <= 0:
        return math.inf
    log = np.log(losses)
    excess = np.maximum(np.diff(log) - 1, 0).sum()
    return float((1 - beta) * (np.ptp(log) + excess))


def _continuous(alpha: float, momentum: float = 0.0) -> float:
    """α′ with e^(−α′n/2) = (1 − α σ(m))^n; 2α σ(m) to first order."""
    return -2 * math.log(max(1 - alpha * float(expit(momentum)), 1e-300))


# --- From traces --------------------------------------------------------------------------------------------


def summary(steps: Sequence[Mapping[str, float]], schedule: Adaptive) -> dict[str, float]:
    """What the trace of an adaptive run says beside the prediction; keys and units in UNITS."""
    momentum = np.array([step["momentum"] for step in steps])
    t = np.array([schedule.t_start, *(step["t"] for step in steps)])
    losses = np.array([step["loss"] for step in steps])
    progress = 1 - losses[1:] / np.maximum(losses[:-1], np.finfo(float).tiny)  # δ
    ratio = np.log(2 * expit(momentum))
    settings = (schedule.alpha, len(steps), schedule.t_start, schedule.t_end)
    found = {
        "alpha_n": schedule.alpha * len(steps),
        "floor_share": steps[-1]["floor_updates"] / len(steps),
        "floor_share_predicted": 1 - crossing(*settings),
        "log_sigmoid_low": ratio.min(),
        "log_sigmoid_high": ratio.max(),
        "momentum_mean": momentum.mean(),
        "momentum_largest": np.abs(momentum).max(),
        "momentum_bound": momentum_bound(losses, schedule.beta),
        "momentum_needed": momentum_needed(*settings),
        "progress_mean": np.clip(progress, -1, 1).mean(),
        "relative_noise_variance": spread(losses)["relative_noise_variance"],
        "deviation": np.abs(t - predicted(*settings)).max(),
        "lead": (t - np.linspace(schedule.t_start, schedule.t_end, len(t))).max(),
    }
    return {metric: float(value) for metric, value in found.items() if math.isfinite(value)}


def noise_variance(losses: Array, width: int) -> Array:
    """Variance [nats²] of the losses [N] about a straight line in every window of `width`: [N − width + 1].

    The line takes the trend away, two degrees of freedom with it: for independent noise the expectation is
    its variance, whatever the line.
    """
    if not 3 <= width <= len(losses):
        raise ValueError(f"a window needs between 3 and all {len(losses)} steps, not {width}")
    windows = sliding_window_view(np.asarray(losses, dtype=float), width)  # [N − width + 1, width]
    x = np.arange(width) - (width - 1) / 2
    centred = windows - windows.mean(-1, keepdims=True)
    residuals = centred - (centred @ x / (x @ x))[:, None] * x
    return (residuals**2).sum(-1) / (width - 2)


def spread(losses: Array) -> dict[str, float]:
    """Readings of "the variance of the objective": of the noise within windows, or of all values of a run; in
    nats², and relative to the mean squared."""
    losses = np.asarray(losses, dtype=float)
    width = window(len(losses))
    noise, means = noise_variance(losses, width), sliding_window_view(losses, width).mean(-1)
    return {
        "noise_variance": float(noise.mean()),
        "relative_noise_variance": float((noise / means**2).mean()),
        "total_variance": float(losses.var(ddof=1)),
        "relative_total_variance": float(losses.var(ddof=1) / losses.mean() ** 2),
    }


def window(updates: int) -> int:
    """Width of a window in steps."""
    return max(3, updates // WINDOWS)


# --- Simulated ----------------------------------------------------------------------------------------------


def simulate(schedule: Linear, losses: Sequence[float] | Array) -> Array:
    """t_0 … t_N of a schedule under given losses [N]."""
    states = [schedule.init()]
    for n, loss in enumerate(losses, start=1):
        states.append(schedule.update(states[-1], loss, n / len(losses)))
    return np.array([state.t for state in states])


def stretched(losses: Array, updates: int, seed: int) -> Array:
    """Losses of a run of `updates` steps that look like measured ones: their trend over the share of steps
    done, times noise drawn from theirs, with replacement."""
    losses = np.asarray(losses, dtype=float)
    width = window(len(losses))
    centres = np.arange(len(losses) - width + 1) + (width - 1) / 2
    means = sliding_window_view(losses, width).mean(-1)
    noise = losses / np.interp(np.arange(len(losses)), centres, means)
    trend = np.interp(np.linspace(0, len(losses) - 1, updates), centres, means)
    return trend * np.random.default_rng(seed).choice(noise, updates)


UNITS = {  # metric -> (unit, whether higher is better); none of these is good or bad
    "alpha_n": ("α · updates", False),
    "floor_share": ("share of updates", False),
    "floor_share_predicted": ("share of updates", False),
    "log_sigmoid_low": ("log of σ(m) / ½", False),
    "log_sigmoid_high": ("log of σ(m) / ½", False),
    "momentum_mean": ("m", False),
    "momentum_largest": ("m", False),
    "momentum_bound": ("m", False),
    "momentum_needed": ("m", False),
    "progress_mean": ("δ", False),
    "deviation": ("difference in t", False),
    "lead": ("difference in t", False),
    "noise_variance": ("nats²", False),
    "relative_noise_variance": ("of the mean squared", False),
    "total_variance": ("nats²", False),
    "relative_total_variance": ("of the mean squared", False),
    "loss": ("nats/token", False),
    "t": ("t", False),
    "t_paper_constant": ("t", False),
    "t_paper_measured": ("t", False),
}
