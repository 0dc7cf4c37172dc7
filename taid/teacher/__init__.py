"""Where a teacher's logits come from: a live model, or a folder on disk for every run that sees the example.

A teacher is called with a batch and returns logits [n, V] at the n positions that predict an unmasked label,
row by row, as `response_logits` orders them.
"""

from taid.logits import response_logits
from taid.teacher.cache import CachedTeacher, OfflineTeacher, cached_teacher, write_offline
from taid.teacher.given import (
    auto_class,
    check_callable,
    check_teacher,
    holds_logits,
    live_teacher,
    load_teacher,
    load_whole,
)
from taid.teacher.live import LiveTeacher, OwnBase
from taid.teacher.stores import FullLogits, HiddenStates, Store, TopLogits

__all__ = [
    "CachedTeacher",
    "FullLogits",
    "HiddenStates",
    "LiveTeacher",
    "OfflineTeacher",
    "OwnBase",
    "Store",
    "TopLogits",
    "auto_class",
    "cached_teacher",
    "check_callable",
    "check_teacher",
    "holds_logits",
    "live_teacher",
    "load_teacher",
    "load_whole",
    "response_logits",
    "write_offline",
]
