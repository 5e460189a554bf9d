"""What a worker shows of itself."""

from __future__ import annotations

import io

import pytest

from flask_jobber.testing import FakeSource
from flask_jobber.worker import status
from flask_jobber.worker.plan import Counts, Orders
from flask_jobber.worker.status import Status
from flask_jobber.worker.worker import Worker
from worker_support import Clock, supply
from worker_support import handlers as known
from worker_support import quick as quick

# -- what it shows ------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Done, failed, how many in a second, how many now; a bar where it is known how many there are."""
    clock = Clock()
    monkeypatch.setattr(status, "time", clock)
    shown, known_total, none = Status(Terminal()), Status(Terminal(), 8), Status(Terminal(), 0)
    clock.now += 4
    counts = Counts(succeeded=4, failed=1, released=1, dropped=0)
    line = "4 done, 1 failed, 1.5/s, 2 running"
    assert shown.line(counts, 2) == line
    assert known_total.line(counts, 2) == f"[{'#' * 18}{'.' * 6}] 6/8 {line}"
    assert known_total.line(Counts(succeeded=9), 0).startswith(f"[{'#' * 24}] 9/9 ")
    assert none.line(Counts(), 0).startswith(f"[{'.' * 24}] 0/1 0 done")


def test_the_line_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only when it changes, no wider than the terminal, and what was longer is wiped."""
    monkeypatch.setattr(status, "time", Clock())
    monkeypatch.setenv("COLUMNS", "25")
    stream = Terminal()
    shown = Status.of_terminal(stream)
    shown.show(Counts(succeeded=10), 1)
    shown.show(Counts(succeeded=10), 1)
    first = "10 done, 0 failed, 10000"
    assert stream.getvalue() == f"\r{first}"
    monkeypatch.setenv("COLUMNS", "11")
    shown.show(Counts(succeeded=10), 1)
    assert stream.getvalue() == f"\r{first}\r{first[:10].ljust(24)}"
    shown.close(Counts(succeeded=10))
    assert stream.getvalue().endswith("\n")


def test_without_a_terminal_there_is_the_log_alone() -> None:
    """Nothing is written over in a file."""
    stream = io.StringIO()
    for quiet in (Status.of_terminal(stream, 5), Status.silent()):
        quiet.show(Counts(), 1)
        quiet.close(Counts())
    assert stream.getvalue() == ""


def test_a_worker_shows_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come of the jobs, in the end with nothing running."""
    monkeypatch.setenv("COLUMNS", "200")
    source, stream = FakeSource(max_attempts=1), Terminal()
    for said in ("fine", "fine", "break", "snooze"):
        source.add("thread", said)
    worker = Worker([supply(source, known)], Orders(burst=True), status=Status.of_terminal(stream, 4))
    assert worker.run() == 0
    assert worker.plan.counts == Counts(succeeded=2, failed=1, released=1)
    last = stream.getvalue().rpartition("\r")[2]
    assert last.startswith(f"[{'#' * 24}] 4/4 2 done, 1 failed, ")
    assert last.rstrip().endswith("/s, 0 running")
