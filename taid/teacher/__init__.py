"""Where a teacher's logits come from: a live model, or a cache on disk for every run that sees the example.

A teacher is called with a batch and returns logits [n, V] at the n positions that predict an unmasked label,
row by row, as `response_logits` orders them.
"""

from taid.teacher.cache import CachedTeacher, FullLogits, HiddenStates, Store, TopLogits, cached_teacher
from taid.teacher.live import LiveTeacher

__all__ = [
    "CachedTeacher",
    "FullLogits",
    "HiddenStates",
    "LiveTeacher",
    "Store",
    "TopLogits",
    "cached_teacher",
]
