"""The thread of a process that listens for those who wait: one, and awake when it has to be."""

from __future__ import annotations

import threading
import time
import typing as t

import pytest

from flask_jobber.core.candidates import Wanted
from flask_jobber.core.news import News
from flask_jobber.core.scope import EVERYTHING
from flask_jobber.wakeup import wakeup as wakeup_module
from flask_jobber.wakeup.local import Local
from flask_jobber.wakeup.room import Room, Waiter, read_wish
from flask_jobber.wakeup.wakeup import Wakeup
from race_support import LIMIT, start, until
from support import World

#: No look is in time.
RARELY = 3_000


class Quiet(Local):
    """Tells nobody; who stops listening is held up until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.listening, self.leaving, self.go = 0, threading.Event(), threading.Event()

    def listen(self) -> t.Any:
        ear = super().listen()
        self.listening += 1
        close = ear.close

        def hold() -> None:
            self.leaving.set()
            assert self.go.wait(LIMIT)
            self.listening -= 1
            close()

        ear.close = hold  # type: ignore[method-assign]
        return ear


def alone(transport: t.Callable[[], t.Any]) -> Wakeup:
    """Return one of no app, which finds nothing whenever it looks."""
    return Wakeup(lambda everything: (News(), None), transport, horizon=RARELY)


def somebody(job: type[t.Any]) -> Waiter:
    wanted = Wanted("user_1", EVERYTHING)
    return Waiter(read_wish(job, wanted), lambda: None)


def test_who_comes_as_the_thread_ends_gets_one_new_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one does not go on beside it."""
    monkeypatch.setattr(wakeup_module, "_REST", 0.0)
    transport = Quiet()
    one = alone(lambda: transport)
    first, second = (somebody(World("sqlite://").Job) for _ in range(2))
    one.enter(first)
    old = one._thread
    until(lambda: one._ear is not None, "an ear")
    one.leave(first)
    one._stir()
    assert transport.leaving.wait(LIMIT)
    one.enter(second)
    until(lambda: transport.listening == 2, "a second ear")
    transport.go.set()
    assert old is not None
    old.join(LIMIT)
    assert not old.is_alive()
    assert (transport.listening, one._ear is not None) == (1, True)
    one.close()


def test_who_comes_as_nothing_is_due_any_more_makes_it_look() -> None:
    """The thread that sees nobody wait leaves it to whoever comes next, who may come at that moment."""
    one = alone(Local)
    waiter = somebody(World("sqlite://").Job)

    class Turnstile(Room):
        def __len__(self) -> int:
            there = super().__len__()
            if not entering.ident:
                entering.start()
                entering.join(0.2)
            return there

    one.room = Turnstile()
    entering = threading.Thread(target=one.enter, args=(waiter,))
    one._thread, one._due = threading.current_thread(), 0.0
    one._is_due(time.monotonic())
    entering.join(LIMIT)
    assert one._due <= time.monotonic()


def test_all_threads_of_a_process_use_one_way() -> None:
    """Who told by another would not be heard."""
    begun, go = threading.Event(), threading.Event()

    def choose() -> Local:
        begun.set()
        assert go.wait(LIMIT)
        return Local()

    one = alone(choose)
    first = start(lambda: one.transport)
    assert begun.wait(LIMIT)
    second = start(lambda: one.transport)
    go.set()
    assert first.result(LIMIT) is second.result(LIMIT)
