"""What long work tells: a bar at a terminal, few lines elsewhere."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from taid.studies import progress
from taid.studies.progress import Progress, clock

WORK = "from taid.studies.progress import Progress\np = Progress('cells', 50, 'cell')\nfor i in range(50): p.advance(note=str(i))"


def test_a_file_gets_one_line_of_short_work(capsys):
    told = Progress("cells", 50, "cell")
    for i in range(50):
        told.advance(note=f"cell {i}")
    assert capsys.readouterr() == ("[cells 50/50 cells, 0:00, 0:00 left] cell 49\n", "")


def test_a_file_gets_a_line_a_minute_of_long_work(capsys, monkeypatch):
    """Ten cells of 40 seconds each: lines after 80, 160 … 400 seconds, the time left by the pace so far."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    told = Progress("cells", 10, "cell")
    for _ in range(10):
        now[0] += 40
        told.advance()
    assert capsys.readouterr().out.splitlines() == [
        f"[cells {done}/10 cells, {clock(40 * done)}, {clock(40 * (10 - done))} left]"
        for done in (2, 4, 6, 8, 10)
    ]


def test_what_was_done_before_does_not_count_for_the_pace(capsys, monkeypatch):
    """A run that resumes at step 90 of 100 and takes 61 seconds a step has 9 of them left, not 0:06."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    told = Progress("steps", 100, "step", done=90)
    now[0] = 61.0
    told.advance()
    assert capsys.readouterr().out == f"[steps 91/100 steps, 1:01, {clock(9 * 61)} left]\n"


def test_a_terminal_gets_a_bar():
    """Oracle: a pseudo-terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    run = subprocess.run(
        [sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"CI": "true"}
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    assert run.returncode == 0 and run.stdout == b""
    assert "100%" in shown and "50/50" in shown


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (60, "1:00"), (3725, "62:05")])
def test_the_clock(seconds, text):
    assert clock(seconds) == text
