"""What is measured: title, unit, decimals, which way is better. One name for one thing on all pages."""

from dataclasses import dataclass

from analysis.rows import Scores, mapped


@dataclass(frozen=True)
class Measure:
    """A metric as pages show it; `sign` is 1 where more is better, −1 where less is, 0 where neither."""

    title: str
    unit: str = ""
    digits: int = 2
    sign: int = 0
    same: float = 0.0  # what differs by less counts as equal, where a claim asks for that
    ratio: bool = False  # values are logarithms: a difference is shown as the ratio that it is

    @property
    def heading(self) -> str:
        """ "held-out loss ↓ [nats/token]" """
        arrow = {1: " ↑", -1: " ↓", 0: ""}[self.sign]
        return f"{self.title}{arrow}{f' [{self.unit}]' if self.unit else ''}"

    def oriented(self, found: Scores) -> Scores:
        """Turned so that more is better; as measured where neither is."""
        return mapped(found, lambda value: -value) if self.sign < 0 else found


MEASURES = {
    "score": Measure("score", "points of 10", 2, 1, same=0.2),
    "score_greedy": Measure("greedy", "points of 10", 2, 1),
    "score_sampled": Measure("sampled", "points of 10", 2, 1),
    "kl_to_teacher": Measure("KL to the teacher", "nats/token", 3, -1, same=0.02),
    "held_out_loss": Measure("held-out loss", "nats/token", 3, -1, same=0.02),
    "knowledge": Measure("knowledge", "points of 10", 2, 1, same=0.2),
    "prose": Measure("prose, off people's", "nats/token", 3, -1, same=0.02),
    "mode_coverage": Measure("accepted answers covered", "fraction", 3, 1),
    "answer_mass": Measure("mass of accepted answers", "fraction", 3, 1),
    "answer_entropy": Measure("entropy at answers", "nats", 3),
    "distinct_bigrams": Measure("distinct bigrams", "fraction", 3, 1),
    "train_seconds": Measure("training", "s", 0, -1),
    "rollout_threshold": Measure("threshold in the end", "fraction", 2),
    "last_word_accuracy": Measure("last-word accuracy", "percent", 2, 1),
    "last_word_log_likelihood": Measure("last-word log-likelihood", "nats/word", 3, 1),
    "entropy": Measure("entropy", "nats/token", 3),
}
