"""The one display of long work, cells of a table or steps of a training: at a terminal a bar with the time left;
in a pipe, a file or CI a line at the end, and before it one a minute at most."""

import re
import time
from multiprocessing import current_process

from tqdm import tqdm

EVERY = 60  # seconds between two lines


class Progress:
    """`total` units of work under a title, of which `done` are done before. Bars of workers go below the caller's."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0):
        worker = re.search(r"(\d+)$", current_process().name)  # "MainProcess", "SpawnProcess-2"
        place = int(worker[1]) if worker else 0
        self.title, self.total, self.unit, self.done, self.first = title, total, unit, done, done
        self.started = self.said = time.monotonic()
        # disable=None: no bar where standard error is no terminal
        self.bar = tqdm(
            total=total, initial=done, desc=title, unit=unit, disable=None, leave=not place, position=place
        )

    def advance(self, by: int = 1, note: str = "") -> None:
        """So many more are done, the last of them `note`."""
        self.done += by
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(by)
        now = time.monotonic()
        if self.bar.disable and (self.done == self.total or now - self.said >= EVERY):
            self.said, passed = now, now - self.started
            left = passed / (self.done - self.first) * (self.total - self.done)
            of = f"[{self.title} {self.done}/{self.total} {self.unit}s, {clock(passed)}, {clock(left)} left]"
            print(f"{of} {note}".strip(), flush=True)
        if self.done == self.total:
            self.bar.close()


def clock(seconds: float) -> str:
    """Minutes and seconds, "3:07"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
