"""What is kept of a teacher's position, and the logits that it gives back."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from taid.checks import require_count
from taid.logits import output_embeddings

Kept = dict[str, Tensor]  # name → [n, …], of n positions


def top(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probabilities [n, k] of the k likeliest tokens, these tokens [n, k], that of all others together [n])
    of logits [n, V]."""
    log_p = logits.log_softmax(-1)
    likeliest = log_p.topk(k)
    rest = log_p.scatter(-1, likeliest.indices, -math.inf).logsumexp(-1)
    return likeliest.values, likeliest.indices, rest


def spread(log_p: Tensor, tokens: Tensor, log_rest: Tensor, vocab_size: int) -> Tensor:
    """Logits [n, V] of what `top` gives: all other tokens have equal shares of their probability."""
    share = log_rest - math.log(max(vocab_size - tokens.shape[-1], 1))  # [n]
    return share[:, None].repeat(1, vocab_size).scatter_(-1, tokens, log_p)


@dataclass(frozen=True)
class FullLogits:
    """All V logits in fp16, 2 V bytes a position: off by at most 0.004 near 10, less than any loss sees.

    Raises ValueError for logits above 65,504, which fp16 has not; far below 0 they are −∞, as good as that.
    """

    name = "full"

    def encode(self, model, hidden: Tensor | None, logits: Tensor) -> Kept:
        """What is kept of n positions, of what enters the model's head [n, H] and of its logits [n, V]."""
        kept = logits.to(torch.float16)
        if kept.isposinf().any():
            raise ValueError(f"logits up to {logits.max():.3g} do not fit in fp16: keep HiddenStates()")
        return {"logits": kept}

    def decode(self, model, kept: Kept, vocab_size: int) -> Tensor:
        """Logits [n, V] in fp32, or in the teacher's own type where that is exact."""
        return kept["logits"].float()


@dataclass(frozen=True)
class HiddenStates:
    """What the teacher's head makes its logits of, in the teacher's own type: exact, H numbers a position.

    A batch costs one product with the head. Raises ValueError for a teacher that does something else to its
    logits (a soft-cap, a scale).
    """

    name = "hidden"

    @torch.no_grad()
    def encode(self, model, hidden: Tensor | None, logits: Tensor) -> Kept:
        head = output_embeddings(model)
        if head is not None and hidden is not None:
            again = head(hidden[:4]).to(logits)
            if torch.allclose(again, logits[:4], rtol=0.02, atol=0.02):
                return {"hidden": hidden}
        name = type(model).__name__
        raise ValueError(f"{name} does more to its logits than its head does: keep FullLogits() of it")

    @torch.no_grad()
    def decode(self, model, kept: Kept, vocab_size: int) -> Tensor:
        head = output_embeddings(model)
        assert head is not None  # `encode` has seen it
        return head(kept["hidden"].to(next(head.parameters()).device))


@dataclass(frozen=True)
class TopLogits:
    """The log-probabilities of the k likeliest tokens in fp16, and of all others together: 6 k + 4 bytes a
    position.

    The others get equal shares of their probability. Of a KL, the head is then right but for rounding, and
    the tail's share too, but not who holds it: see docs/table2.md. ValueError for k > V, and for k that is no
    whole number from 1 on.
    """

    k: int

    def __post_init__(self) -> None:
        require_count("k", self.k, "logits to keep")

    @property
    def name(self) -> str:
        return f"top-{self.k}"

    def encode(self, model, hidden: Tensor | None, logits: Tensor) -> Kept:
        return self.compress(logits)

    def decode(self, model, kept: Kept, vocab_size: int) -> Tensor:
        return self.expand(kept, vocab_size)

    def compress(self, logits: Tensor) -> Kept:
        """What is kept of logits [n, V]."""
        if self.k > logits.shape[-1]:
            raise ValueError(f"top {self.k} of {logits.shape[-1]} entries: keep all of them at most")
        log_p, tokens, log_rest = top(logits.float(), self.k)
        return {"tokens": tokens.int(), "log_p": log_p.half(), "log_rest": log_rest}

    def expand(self, kept: Kept, vocab_size: int) -> Tensor:
        """Logits [n, V] of what was kept: log-probabilities, but for rounding."""
        return spread(kept["log_p"].float(), kept["tokens"].long(), kept["log_rest"].float(), vocab_size)


Store = FullLogits | HiddenStates | TopLogits


def store(name: str) -> Store:
    """The store of a name: "full", "hidden", "top-64" (any k). ValueError for another."""
    plain: dict[str, Store] = {"full": FullLogits(), "hidden": HiddenStates()}
    if name in plain:
        return plain[name]
    if name.startswith("top-") and name[4:].isdigit():
        return TopLogits(int(name[4:]))
    raise ValueError(f"{name!r} is no way to keep logits: full, hidden or top-64 (any number)")
