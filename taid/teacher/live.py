"""A teacher that is a model in memory: one of its own, or the model inside a student of PEFT."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from taid.logits import Head, evaluation_mode, response_head, response_states
from taid.sampling import is_sharded


class LiveTeacher:
    """A model in evaluation mode, run anew for every batch."""

    def __init__(self, model):
        self.model = model.eval().requires_grad_(False)

    def __call__(self, batch: dict) -> Tensor:
        return self.states(batch)[1].to(batch["labels"].device)

    def knows(self, batch: dict) -> bool:
        """Whether it can answer: always."""
        return True

    def states(self, batch: dict) -> tuple[Tensor | None, Tensor, Tensor]:
        """`response_states`, on the model's device."""
        with torch.no_grad(), self._teaching():
            return response_states(self.model, self._here(batch))

    def head(self, batch: dict) -> Head:
        """What would give the logits, see `response_head`."""
        with torch.no_grad(), self._teaching():
            return response_head(self.model, self._here(batch))[0]

    def _here(self, batch: dict) -> dict:
        """The batch on the model's device; of a model that accelerate spreads or offloads, its hooks do the rest."""
        devices = (parameter.device for parameter in self.model.parameters())
        return send_to_device(batch, next((d for d in devices if d.type != "meta"), batch["labels"].device))

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        """Around each pass."""
        yield


class OwnBase(LiveTeacher):
    """The model inside a student of PEFT: for its passes the adapters are off, and dropout with them."""

    def __init__(self, student):
        self.student, self.model = student, student.get_base_model()

    @contextmanager
    def _teaching(self):
        if is_sharded(self.student):
            raise ValueError(
                "the base of a student that ranks share cannot be its teacher: pass a copy of its own"
            )
        wanted = [(parameter, parameter.requires_grad) for parameter in self.student.parameters()]
        try:
            with self.student.disable_adapter(), evaluation_mode(self.student):
                yield
        finally:
            for parameter, grad in wanted:  # PEFT switches them all on again
                parameter.requires_grad_(grad)


def check_apart(teacher: torch.nn.Module, student: torch.nn.Module) -> None:
    """Raises ValueError for a teacher that shares weights or buffers with the student, and would learn with it."""
    if share_memory(*(chain(model.parameters(), model.buffers()) for model in (teacher, student))):
        raise ValueError(
            "teacher and student share weights, so that the teacher would change as the student learns: pass "
            "copy.deepcopy(model) as the teacher, or to cached_teacher. (A student of PEFT can have "
            "student.get_base_model() as its teacher.)"
        )


def share_memory(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether one of some tensors lies, in part at least, where one of the others does.

    Of bytes, not of storages: two models that were read from one file may lie in one storage side by side.
    """
    spans = sorted(
        (*span, owner) for owner, tensors in enumerate((some, others)) for t in tensors for span in _spans(t)
    )
    ends = [("", 0), ("", 0)]  # the furthest place that either has reached
    for device, start, end, owner in spans:
        if ends[1 - owner] > (device, start):
            return True
        ends[owner] = max(ends[owner], (device, end))
    return False


def _spans(tensor: Tensor) -> Iterator[tuple[str, int, int]]:
    """(device, first byte, byte after the last) of a tensor, or of those that it is packed of; none on `meta`."""
    if hasattr(tensor, "__tensor_flatten__"):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        for part in parts:
            yield from _spans(part) if isinstance(part, Tensor) else ()  # a sharded one names its devices too
    elif tensor.layout == torch.strided and tensor.numel() and tensor.data_ptr():
        last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        yield str(tensor.device), start, start + (last + 1) * tensor.element_size()
