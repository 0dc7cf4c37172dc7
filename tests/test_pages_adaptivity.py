"""The page of the adaptivity audit, on traces under random losses."""

from dataclasses import asdict, replace
from functools import cache

import numpy as np
from page_rows import frame_of as framed
from page_rows import line_of
from page_rows import outcomes as outcomes_of

from analysis import adaptivity as audit
from analysis import page
from analysis.questions import adaptivity as adaptivity_claims
from taid import results
from taid.studies import ablations, adaptivity

RUN = ablations.Run("cpu", "taid", ablations.TEACHER, seed=0, learning_rate=1e-2)
LOSSES = np.random.default_rng(4).lognormal(0.2, 0.1, size=300)


def trace(schedule) -> list[dict[str, float]]:
    """The schedule's states under the losses."""
    steps, state = [], schedule.init()
    for n, loss in enumerate(LOSSES, start=1):
        state = schedule.update(state, loss, n / len(LOSSES))
        steps.append({"loss": loss} | asdict(state))
    return steps


def frame_of(folder, scores: dict[str, float], seeds: int = 3):
    return framed(
        folder, [r for m, score in scores.items() for seed in range(seeds) for r in rows_of(m, seed, score)]
    )


def outcomes(frame) -> dict[str, str]:
    """Claim → its outcome, which all measures share here."""
    return {name: ", ".join(sorted(set(found))) for name, found in outcomes_of(audit.PAGE, frame).items()}


@cache  # a row asks git for its commit
def rows_of(method: str, seed: int, score: float) -> list[results.Row]:
    """A cell as the study writes it: better by `score`, with a trace under random losses."""
    run, noise = (
        replace(RUN, method=method, seed=seed),
        0.01 * np.random.default_rng([seed, len(method)]).normal(),
    )
    values = {
        "score": score + noise,
        "held_out_loss": 3 - score / 2 + noise,
        "kl_to_teacher": 1 - score / 5 + noise,
    }
    if run.adaptive:
        values |= adaptivity.summary(trace(run.schedule()), run.schedule())
    return ablations.rows(run, "adaptivity", {(metric, "average"): v for metric, v in values.items()}, 1.0)


def test_claims_flip_with_the_data(tmp_path):
    shape = frame_of(tmp_path / "a", {"taid": 1.0, "taid_no_adaptive": 0.5, "constant": 1.0, "replayed": 1.0})
    assert outcomes(shape) == {
        "adaptive is better": "supported",
        "the momentum helps": "inconclusive",
        "the momentum changes nothing": "supported",
        "another run's curve does as well": "supported",
        "the momentum is too small": "supported",
        "no loss of this range could do it": "supported",
        "noise outweighs progress": "supported",
        "t is predicted": "supported",
    }
    by_students = [claim.name for claim in adaptivity_claims(0.1)]
    adaptive = frame_of(
        tmp_path / "b", {"taid": 1.0, "taid_no_adaptive": 1.5, "constant": 0.5, "replayed": 0.5}
    )
    assert {name: outcome for name, outcome in outcomes(adaptive).items() if name in by_students} == {
        "adaptive is better": "contradicted",
        "the momentum helps": "supported",
        "the momentum changes nothing": "contradicted",
        "another run's curve does as well": "contradicted",
    }


def test_the_page_works_with_whatever_rows_exist(tmp_path):
    one = frame_of(tmp_path, {"taid": 1.0}, seeds=1)
    text = page.render(audit.PAGE, one, "cpu")
    assert line_of(text, "TAID, σ(m) = ½")[1:3] == ["—", "—"]
    assert set(outcomes(one).values()) == {"inconclusive"}
    page.render(audit.PAGE, frame_of(tmp_path / "none", {"replayed": 1.0}, seeds=2), "cpu")


def test_the_effort_by_hand():
    """0.63^100 = 10^(−20.07)."""
    assert "falls by 37%" in audit.effort(0.37) and "10^20 " in audit.effort(0.37)
