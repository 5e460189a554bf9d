"""Whom news wakes: as many as there are jobs, those first who may have them, the oldest first."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import time
import types
import typing as t
from unittest import mock

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy.orm import DeclarativeBase, Mapped

from flask_jobber import JobMixin
from flask_jobber.core import scope as scopes
from flask_jobber.core.candidates import Wanted
from flask_jobber.core.news import Fresh, News
from flask_jobber.wakeup.room import Room, Waiter, Wish, read_wish


class Base(DeclarativeBase):
    pass


class Job(JobMixin, Base):
    __tablename__ = "room_job"
    __claim_by__ = ("user_id",)
    user_id: Mapped[str | None]


def wish(scope: t.Any = None, locker: str = "user_1", **said: t.Any) -> Wish:
    condition = sa.true() if scope is None else scope
    return read_wish(Job, Wanted(locker, scopes.read(condition), reserved=False, **said))


@dataclasses.dataclass
class Given:
    """A job that a waiter was given."""

    id: int
    attempt: int = 1


class Rung:
    """Waiters, and who of them was rung, in order."""

    def __init__(self) -> None:
        self.room = Room()
        self.rung: list[str] = []
        #: The id of the last job.
        self.last = 0

    def add(self, name: str, its: Wish | None = None, *, limit: int = 1, user: str | None = None) -> Waiter:
        waiter = Waiter(its or wish(), lambda: self.rung.append(name), limit, user)
        self.room.enter(waiter)
        self.room.looked(waiter, [])
        return waiter

    def hear(self, count: int = 1, **facts: t.Any) -> list[str]:
        ids = range(self.last + 1, self.last + count + 1)
        self.last += count
        self.room.hear(News(jobs={fresh(**facts): tuple(ids)}))
        return self.take()

    def take(self) -> list[str]:
        rung, self.rung = self.rung, []
        return rung


def fresh(**facts: t.Any) -> Fresh:
    return Fresh(**{"type": "work", "queue": "default", "leads": (None,), **facts})


@pytest.fixture
def hall() -> Rung:
    return Rung()


def look(hall: Rung, waiter: Waiter, *found: int, left: t.Collection[int] | None = None) -> list[str]:
    hall.room.look(waiter)
    hall.room.looked(waiter, [Given(id) for id in found], left=left)
    return hall.take()


def test_one_job_wakes_the_oldest_waiter_alone(hall: Rung) -> None:
    """A thousand are as quiet as one."""
    for number in range(1000):
        hall.add(f"w{number}")
    assert hall.hear() == ["w0"]


def test_as_many_are_woken_as_the_jobs_need(hall: Rung) -> None:
    """One that takes three counts for three."""
    hall.add("three", limit=3)
    for name in "abc":
        hall.add(name)
    assert hall.hear(5) == ["three", "a", "b"]


@pytest.mark.parametrize(
    ("other", "facts"),
    [
        (wish(types=("other",)), {}),
        (wish(queues=("other",)), {}),
        (wish(min_priority=5), {"priority": 4}),
        (wish(max_priority=5), {"priority": 6}),
        (wish(locker="user_2/node-1"), {"only_for": "user_1"}),
        (wish(locker="user_2/node-1"), {"not_for": ("node-1",)}),
        (wish(), {"type": "jobber:call"}),
        (wish(Job.user_id == "2"), {"leads": ("1",)}),
        (wish(Job.user_id.is_(None)), {"leads": ("1",)}),
        (wish(sa.or_(Job.user_id == "2", Job.user_id.is_(None))), {"leads": ("1",)}),
    ],
)
def test_who_cannot_have_it_is_not_woken(hall: Rung, other: Wish, facts: dict[str, t.Any]) -> None:
    """What is known without a query."""
    hall.add("other", other)
    assert hall.hear(**facts) == []


@pytest.mark.parametrize(
    ("its", "facts"),
    [
        (wish(types=("work",), queues=("default",), min_priority=0, max_priority=0), {}),
        (wish(locker="user_1/node-1"), {"only_for": "node-1"}),
        (wish(locker="user_1/node-1"), {"only_for": "user_1"}),
        (wish(sa.or_(Job.user_id == "1", Job.user_id.is_(None))), {"leads": ("1",)}),
        (wish(Job.user_id == "1"), {"leads": (False,)}),
        (wish(Job.priority > 5), {}),
        (wish(Job.user_id.in_(["1", "2"])), {"leads": ("3",)}),
    ],
)
def test_who_may_have_it_is_woken(hall: Rung, its: Wish, facts: dict[str, t.Any]) -> None:
    """When in doubt too: only a query can tell."""
    hall.add("its", its)
    assert hall.hear(**facts) == ["its"]


def test_who_finds_nothing_passes_the_call_on_to_another_scope(hall: Rung) -> None:
    """Those of the same scope would find the same nothing."""
    first = hall.add("first", wish(Job.priority > 5))
    hall.add("same", wish(Job.priority > 5))
    other = hall.add("other", wish(Job.priority > 4))
    assert hall.hear() == ["first"]
    assert look(hall, first) == ["other"]
    assert look(hall, other) == []


def test_a_call_for_what_is_gone_goes_no_further(hall: Rung) -> None:
    """A rival, perhaps in another process, has been quicker than who was called."""
    first = hall.add("first", wish(Job.priority > 5))
    hall.add("other", wish(Job.priority > 4))
    assert hall.hear() == ["first"]
    hall.room.look(first)
    assert hall.room.doubted(first) == {1}
    hall.room.looked(first, [], gone=[1])
    assert hall.take() == []


def test_it_is_asked_now_and_then_whether_the_job_is_there(hall: Rung) -> None:
    """Not after each look in vain."""
    waiters = [hall.add(str(number), wish(Job.priority > number)) for number in range(10)]
    hall.hear()
    asked = []
    for number, waiter in enumerate(waiters):
        hall.room.look(waiter)
        asked += [number] if hall.room.doubted(waiter) else []
        hall.room.looked(waiter, [])
    assert asked == [0, 1, 2, 4, 8]


def test_who_leaves_unheard_passes_the_call_on(hall: Rung) -> None:
    """At the end of its wait, or when its client has gone."""
    first = hall.add("first")
    hall.add("second")
    assert hall.hear() == ["first"]
    hall.room.leave(first)
    assert hall.take() == ["second"]


def test_what_comes_while_one_looks_is_looked_for_again(hall: Rung) -> None:
    """The look may have been before the job."""
    only = hall.add("only")
    hall.room.look(only)
    assert hall.hear() == []
    hall.room.looked(only, [])
    assert hall.take() == ["only"]


def test_who_found_another_job_leaves_the_new_one_to_others(hall: Rung) -> None:
    """A call heard during a look that found something is for the next."""
    first = hall.add("first")
    hall.room.look(first)
    second = hall.add("second")
    hall.room.look(second)
    assert hall.hear() == []
    hall.room.looked(first, [Given(99)])
    hall.room.leave(first)
    hall.room.looked(second, [])
    assert hall.take() == ["second"]


def test_who_found_another_job_than_it_was_called_for_passes_the_call_on(hall: Rung) -> None:
    """Who was called for the other one may not take this."""
    both = hall.add("both")
    hall.add("work", wish(types=("work",)))
    other = hall.add("other", wish(types=("other",)))
    assert hall.hear() == ["both"]
    assert hall.hear(type="other") == ["other"]
    assert look(hall, both, 2) == ["work"]
    hall.room.leave(both)
    assert not hall.room.is_called(other)


def test_what_another_was_given_need_not_be_looked_for(hall: Rung) -> None:
    """Neither by who was called for it, nor when the news of it comes late."""
    first, second = hall.add("first"), hall.add("second")
    hall.hear()
    assert hall.room.is_called(first)
    assert look(hall, second, 1, 2) == []
    assert not hall.room.is_called(first)
    assert hall.hear() == []  # of the second
    hall.room.hear(News(jobs={fresh(attempts=1): (2,)}))  # which was given back
    assert hall.take() == ["first"]


def test_news_that_comes_again_calls_nobody_else(hall: Rung) -> None:
    """Somebody is on the way."""
    hall.add("first")
    hall.add("second")
    assert hall.hear() == ["first"]
    hall.last = 0
    assert hall.hear() == []


def test_newer_news_of_a_job_takes_the_place_of_older(hall: Rung) -> None:
    """Another process has handed it out and got it back meanwhile."""
    hall.add("first")
    hall.add("second")
    assert hall.hear() == ["first"]
    hall.room.hear(News(jobs={fresh(attempts=1): (1,)}))
    assert hall.take() == ["first"]


def test_who_left_nothing_need_not_look_when_it_comes_back(hall: Rung) -> None:
    """What comes meanwhile is in a call of those who wait."""
    first = hall.add("first")
    assert not hall.room.is_dry(first)
    assert hall.hear() == ["first"]
    assert look(hall, first, 1, left=()) == []
    hall.room.leave(first)
    hall.add("second")
    assert hall.hear() == ["second"]
    first = hall.add("first")
    assert hall.room.is_dry(first)
    assert not hall.room.is_dry(hall.add("other", wish(types=("other",))))
    assert hall.room.leave(next(iter(hall.room._waiters))) is None
    assert hall.take() == ["first"]


def test_who_comes_back_must_look_for_what_nobody_was_called_for(hall: Rung) -> None:
    """Or was, and left; or came while it looked last."""
    first = hall.add("first")
    look(hall, first, left=())
    assert hall.room.is_dry(first)
    hall.room.leave(first)
    hall.hear()
    assert not hall.room.is_dry(first)
    first = hall.add("first")
    hall.room.look(first)
    assert hall.hear(2) == []
    hall.room.looked(first, [Given(99)], left=())
    assert not hall.room.is_dry(first)


def test_who_comes_back_must_look_for_what_it_left_unheard(hall: Rung) -> None:
    """There was nobody else to be called."""
    first = hall.add("first")
    look(hall, first, left=())
    assert hall.hear() == ["first"]
    assert hall.room.is_dry(first)
    hall.room.leave(first)
    assert not hall.room.is_dry(first)


def test_who_comes_back_need_not_look_for_what_others_are_called_for(hall: Rung) -> None:
    """Though it was there when it looked last; for what nobody has told of it must."""
    first = hall.add("first")
    hall.add("second")
    assert hall.hear(2) == ["first", "second"]
    assert look(hall, first, 1, left=(2,)) == []
    assert hall.room.is_dry(first)
    look(hall, first, left=(3,))
    assert not hall.room.is_dry(first)
    hall.hear()
    assert hall.room.is_dry(first)


def test_who_comes_back_must_look_when_there_may_be_more(hall: Rung) -> None:
    """Nobody knows of what kind."""
    first = hall.add("first")
    look(hall, first, left=())
    hall.room.hear(News(more=True))
    assert not hall.room.is_dry(first)


def test_what_was_left_is_not_known_for_long(hall: Rung, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app may change what its scopes read."""
    first = hall.add("first")
    look(hall, first, left=())
    later = time.monotonic() + 1.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not hall.room.is_dry(first)


def test_who_found_fewer_than_it_takes_is_called_again(hall: Rung) -> None:
    """A worker goes on waiting for the rest."""
    only = hall.add("only", limit=2)
    hall.room.look(only)
    assert hall.hear() == []
    hall.room.looked(only, [Given(99)])
    assert hall.take() == ["only"]


def test_news_of_whatever_there_may_be_goes_from_one_to_the_next(hall: Rung) -> None:
    """Until those who wait for different things have found nothing."""
    first, second = hall.add("first"), hall.add("second", wish(types=("other",)))
    hall.add("like second", wish(types=("other",)))
    hall.room.hear(News(more=True))
    assert hall.take() == ["first"]
    hall.room.look(first)
    hall.room.looked(first, [Given(99)])
    hall.room.leave(first)
    assert hall.take() == ["second"]
    assert look(hall, second) == []


def test_a_logout_dismisses_that_user(hall: Rung) -> None:
    """And nobody else."""
    ann, bob = hall.add("ann", user="1"), hall.add("bob", user="2")
    hall.room.hear(News(left=("1",)))
    assert (hall.take(), ann.dismissed, bob.dismissed) == (["ann"], True, False)


def test_a_closed_room_lets_nobody_wait(hall: Rung) -> None:
    """Those who are in it, and those who come."""
    here = hall.add("here")
    hall.room.close()
    late = hall.add("late")
    assert (hall.take(), here.dismissed, late.dismissed) == (["here"], True, True)


class Tavern(RuleBasedStateMachine):
    """Jobs come, waiters come, look, find and go: none waits in front of a job that it might have.

    A waiter's look finds jobs of its types; news of a job may come long after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.room = Room()
        self.ids = itertools.count(1)
        #: Those to be claimed: their types; and how often each was handed out.
        self.jobs: dict[int, str] = {}
        self.attempts: collections.Counter[int] = collections.Counter()
        self.untold: list[News] = []
        self.rung: set[Waiter] = set()
        self.waiting: list[Waiter] = []
        self.looking: dict[Waiter, tuple[list[Given], list[int]]] = {}
        # A clock of its own: what a room remembers for a second must not depend on the machine.
        self.now = 0.0
        clock = types.SimpleNamespace(monotonic=lambda: self.now)
        self.clock = mock.patch("flask_jobber.wakeup.room.time", clock)
        self.clock.start()

    def teardown(self) -> None:
        self.clock.stop()

    @rule(seconds=st.sampled_from([0.5, 1.1]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    def _find(self, waiter: Waiter) -> tuple[list[Given], list[int]]:
        types = waiter.wish.wanted.types or ()
        there = [id for id, type_ in self.jobs.items() if type_ in types]
        return [self._hand_out(id) for id in there[: waiter.limit]], there[waiter.limit :]

    def _hand_out(self, id: int) -> Given:
        del self.jobs[id]
        self.attempts[id] += 1
        return Given(id, self.attempts[id])

    def _end(self, waiter: Waiter, found: list[Given], left: list[int] | None) -> None:
        self.room.looked(waiter, found, left=left)
        if found:
            self.room.leave(waiter)
            self.rung.discard(waiter)
        else:
            self.waiting.append(waiter)

    def _put(self, type_: str, ids: t.Sequence[int]) -> None:
        for id in ids:
            self.jobs[id] = type_
            self.untold.append(News(jobs={fresh(type=type_, attempts=self.attempts[id]): (id,)}))

    @rule(
        types=st.sampled_from([("a",), ("b",), ("a", "b")]), limit=st.integers(1, 3), user=st.integers(0, 2)
    )
    def come(self, types: tuple[str, ...], limit: int, user: int) -> None:
        waiter = Waiter(wish(locker=f"user_{user}", types=types), lambda: None, limit)
        waiter.ring = lambda: self.rung.add(waiter)
        self.room.enter(waiter)
        if self.room.is_dry(waiter):
            self._end(waiter, [], None)
        else:
            self.looking[waiter] = self._find(waiter)

    @rule(type_=st.sampled_from("ab"), count=st.integers(1, 3))
    def enqueue(self, type_: str, count: int) -> None:
        self._put(type_, [next(self.ids) for _ in range(count)])

    @precondition(lambda self: set(self.attempts) - set(self.jobs))
    @rule(type_=st.sampled_from("ab"), data=st.data())
    def release(self, type_: str, data: st.DataObject) -> None:
        self._put(type_, [data.draw(st.sampled_from(sorted(set(self.attempts) - set(self.jobs))))])

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def another_process_takes_one(self, data: st.DataObject) -> None:
        self._hand_out(data.draw(st.sampled_from(sorted(self.jobs))))

    @precondition(lambda self: self.untold)
    @rule()
    def tell(self) -> None:
        self.room.hear(self.untold.pop(0))

    @precondition(lambda self: self.rung)
    @rule(data=st.data())
    def begin_to_look(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.rung, key=self.waiting.index)))
        self.rung.discard(waiter)
        if not self.room.is_called(waiter):
            return
        self.waiting.remove(waiter)
        self.room.look(waiter)
        self.looking[waiter] = self._find(waiter)

    @precondition(lambda self: self.looking)
    @rule(data=st.data())
    def end_the_look(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(list(self.looking)))
        self._end(waiter, *self.looking.pop(waiter))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(waiter)
        self.rung.discard(waiter)
        self.room.leave(waiter)

    @invariant()
    def nobody_sleeps_in_front_of_a_job(self) -> None:
        busy = bool(self.looking) or any(map(self.room.is_called, self.rung))
        untold = {id for news in self.untold for ids in news.jobs.values() for id in ids}
        there = {type_ for id, type_ in self.jobs.items() if id not in untold}
        for waiter in self.waiting:
            assert busy or there.isdisjoint(waiter.wish.wanted.types or ())


TestTavern = Tavern.TestCase
