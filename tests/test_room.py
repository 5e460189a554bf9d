"""Whom news wakes: as many as there are jobs, those first who may have them, the oldest first."""

from __future__ import annotations

import collections
import typing as t

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


class Rung:
    """Waiters, and who of them was rung, in order."""

    def __init__(self) -> None:
        self.room = Room()
        self.rung: list[str] = []

    def add(self, name: str, its: Wish | None = None, *, limit: int = 1, user: str | None = None) -> Waiter:
        waiter = Waiter(its or wish(), lambda: self.rung.append(name), limit, user)
        self.room.enter(waiter)
        self.room.looked(waiter, [])
        return waiter

    def hear(self, count: int = 1, **facts: t.Any) -> list[str]:
        self.room.hear(News(jobs={fresh(**facts): count}))
        return self.take()

    def take(self) -> list[str]:
        rung, self.rung = self.rung, []
        return rung


def fresh(**facts: t.Any) -> Fresh:
    return Fresh(**{"type": "work", "queue": "default", "leads": (None,), **facts})


@pytest.fixture
def hall() -> Rung:
    return Rung()


def look(hall: Rung, waiter: Waiter, *found: Fresh) -> list[str]:
    hall.room.look(waiter)
    hall.room.looked(waiter, found)
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
    assert hall.room.doubted(first) == {fresh()}
    hall.room.looked(first, [], gone=[fresh()])
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
    hall.room.looked(first, [fresh()])
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
    assert look(hall, both, fresh(type="other")) == ["work"]
    hall.room.leave(both)
    assert look(hall, other) == []


def test_who_found_fewer_than_it_takes_is_called_again(hall: Rung) -> None:
    """A worker goes on waiting for the rest."""
    only = hall.add("only", limit=2)
    hall.room.look(only)
    assert hall.hear() == []
    hall.room.looked(only, [fresh()])
    assert hall.take() == ["only"]


def test_news_of_whatever_there_may_be_goes_from_one_to_the_next(hall: Rung) -> None:
    """Until those who wait for different things have found nothing."""
    first, second = hall.add("first"), hall.add("second", wish(types=("other",)))
    hall.add("like second", wish(types=("other",)))
    hall.room.hear(News(more=True))
    assert hall.take() == ["first"]
    hall.room.look(first)
    hall.room.looked(first, [fresh()])
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

    The jobs are counted by type; a waiter's look finds those of its types.
    """

    def __init__(self) -> None:
        super().__init__()
        self.room = Room()
        self.jobs: collections.Counter[str] = collections.Counter()
        self.rung: set[Waiter] = set()
        self.waiting: list[Waiter] = []
        self.looking: dict[Waiter, list[Fresh]] = {}

    def _find(self, waiter: Waiter) -> list[Fresh]:
        found: list[Fresh] = []
        for type_ in waiter.wish.wanted.types or ():
            taken = min(self.jobs[type_], waiter.limit - len(found))
            self.jobs[type_] -= taken
            found += [fresh(type=type_)] * taken
        return found

    def _end(self, waiter: Waiter, found: list[Fresh]) -> None:
        self.room.looked(waiter, found)
        if found:
            self.room.leave(waiter)
            self.rung.discard(waiter)
        else:
            self.waiting.append(waiter)

    @rule(
        types=st.sampled_from([("a",), ("b",), ("a", "b")]), limit=st.integers(1, 3), user=st.integers(0, 2)
    )
    def come(self, types: tuple[str, ...], limit: int, user: int) -> None:
        waiter = Waiter(wish(locker=f"user_{user}", types=types), lambda: None, limit)
        waiter.ring = lambda: self.rung.add(waiter)
        self.room.enter(waiter)
        self._end(waiter, self._find(waiter))

    @rule(type_=st.sampled_from("ab"), count=st.integers(1, 3))
    def enqueue(self, type_: str, count: int) -> None:
        self.jobs[type_] += count
        self.room.hear(News(jobs={fresh(type=type_): count}))

    @precondition(lambda self: self.rung)
    @rule(data=st.data())
    def begin_to_look(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.rung, key=self.waiting.index)))
        self.rung.discard(waiter)
        self.waiting.remove(waiter)
        self.room.look(waiter)
        self.looking[waiter] = self._find(waiter)

    @precondition(lambda self: self.looking)
    @rule(data=st.data())
    def end_the_look(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(list(self.looking)))
        self._end(waiter, self.looking.pop(waiter))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(waiter)
        self.rung.discard(waiter)
        self.room.leave(waiter)

    @invariant()
    def nobody_sleeps_in_front_of_a_job(self) -> None:
        busy = bool(self.rung or self.looking)
        for waiter in self.waiting:
            there = any(self.jobs[type_] for type_ in waiter.wish.wanted.types or ())
            assert not there or busy


TestTavern = Tavern.TestCase
