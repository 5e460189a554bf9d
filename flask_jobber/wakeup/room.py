"""Those of this process who wait for jobs, and whom of them news wakes.

One new job wakes one waiter: the one who has waited longest of those who may have it, as
far as can be known without a query. Each waking is a :class:`_Call`. Who answers one and
finds nothing passes it on to the next who would look for something else, if the job is
still there.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
import typing as t

from ..core.candidates import Wanted, arms_of, leading
from ..core.news import Fresh, Lead, News, comparable
from ..core.payload import RESERVED, names_of

Ring = t.Callable[[], None]
# Seconds for which it is known that there was nothing: the app may change what a scope reads.
_MEMORY = 1.0
# Of so many it is remembered that they found nothing, and of so many jobs that they were given.
_MOST_REMEMBERED = 10_000


class Found(t.Protocol):
    """A job that a waiter has been given."""

    @property
    def id(self) -> int: ...

    @property
    def attempt(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is known without a query of what a waiter may have.

    :param scope: who has the same sees the same jobs.
    :param signature: who waits for the same finds the same.
    :param leads: one mapping for each alternative of its scope, of places in ``__claim_by__``
        to the values it compares them with.
    :param names: by which ``only_for`` and ``not_for`` may call it.
    """

    wanted: Wanted
    scope: t.Hashable
    signature: t.Hashable
    leads: tuple[t.Mapping[int, Lead], ...]
    names: frozenset[str]

    def may_have(self, fresh: Fresh) -> bool:
        """Whether such a job may be for it; only its scope may say no when this says yes."""
        return self._wants(fresh) and self._is_for(fresh) and any(_fits(arm, fresh) for arm in self.leads)

    def _wants(self, fresh: Fresh) -> bool:
        wanted = self.wanted
        return (
            (fresh.type in wanted.types if wanted.types is not None else self._takes_any(fresh.type))
            and (wanted.queues is None or fresh.queue in wanted.queues)
            and (wanted.min_priority is None or fresh.priority >= wanted.min_priority)
            and (wanted.max_priority is None or fresh.priority <= wanted.max_priority)
        )

    def _takes_any(self, type_: str) -> bool:
        return self.wanted.reserved or not type_.startswith(RESERVED)

    def _is_for(self, fresh: Fresh) -> bool:
        only = fresh.only_for is None or fresh.only_for in self.names
        return only and self.names.isdisjoint(fresh.not_for)


def _fits(arm: t.Mapping[int, Lead], fresh: Fresh) -> bool:
    return all(
        fresh.leads[place] == value or fresh.leads[place] is False
        for place, value in arm.items()
        if place < len(fresh.leads)
    )


def read_wish(job: type[t.Any], wanted: Wanted) -> Wish:
    """Return what is known of a claim without a query."""
    scope = (wanted.scope.key, repr(sorted(wanted.scope.values.items())))
    bounds = (wanted.min_priority, wanted.max_priority, wanted.reserved)
    signature = (scope, wanted.types, wanted.queues, bounds, wanted.locker)
    arms = tuple(
        {place: said for place, value in leading(job, arm) if (said := _lead(value)) is not False}
        for arm in arms_of(wanted.scope.expression)
    )
    return Wish(wanted, scope, signature, arms, frozenset(names_of(wanted.locker)))


def _lead(value: t.Any) -> Lead:
    return None if value is None else comparable(value)


@dataclasses.dataclass(eq=False, slots=True)
class _Call:
    """To come and look.

    :param fresh: for what, and ``id`` for which job; ``None``: for whatever there may be, which
        whoever finds something leaves to the next.
    :param tried: what those who found nothing had in common with others who need not look.
    """

    fresh: Fresh | None
    id: int | None = None
    tried: set[t.Hashable] = dataclasses.field(default_factory=set)
    #: How many have answered it.
    answers: int = 0
    #: Whether the job has been given to somebody.
    over: bool = False

    def is_for(self, waiter: Waiter) -> bool:
        """Whether the waiter may find what others have not."""
        wish = waiter.wish
        fits = self.fresh is None or wish.may_have(self.fresh)
        return fits and not waiter.dismissed and self._trait(wish) not in self.tried

    def was_in_vain(self, wish: Wish) -> None:
        """Note that one with such a wish has found nothing."""
        self.answers += 1
        self.tried.add(self._trait(wish))

    def _trait(self, wish: Wish) -> t.Hashable:
        # Of one who may have the job, as far as is known, only the scope can have kept it back.
        return wish.signature if self.fresh is None else wish.scope


@dataclasses.dataclass(eq=False, slots=True)
class Waiter:
    """Who waits: ``ring`` is called, in any thread, when it shall look.

    :param limit: how many jobs it would take.
    :param user: the id of the user whose login it is.
    """

    wish: Wish
    ring: Ring
    limit: int = 1
    user: str | None = None
    calls: list[_Call] = dataclasses.field(default_factory=list)
    #: What it is looking for at this moment; ``None``: it waits.
    looking: list[_Call] | None = None
    #: Whether it is to wait no longer.
    dismissed: bool = False
    #: The age of what was known when it began to look.
    age: int = 0


class _Left(t.NamedTuple):
    """What one who looked has left, and until when there is nothing else but what is told."""

    ids: frozenset[int]
    until: float


class Room:
    """Where waiters wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[Waiter, None] = {}
        self._closed = False
        #: Calls for jobs, by their ids.
        self._calls: dict[int, _Call] = {}
        #: The last attempts of jobs that were given to waiters: news of earlier ones is old.
        self._given: collections.OrderedDict[int, int] = collections.OrderedDict()
        #: By signatures: which jobs were left, and until when this is believed.
        self._left: collections.OrderedDict[t.Hashable, _Left] = collections.OrderedDict()
        self._age = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def enter(self, waiter: Waiter) -> None:
        """Begin to wait; the waiter is about to look for the first time."""
        with self._lock:
            waiter.looking, waiter.dismissed, waiter.age = [], self._closed, self._age
            self._waiters[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer; what the waiter was called for is for others."""
        with self._lock:
            self._waiters.pop(waiter, None)
            calls, waiter.calls, waiter.looking = [*(waiter.looking or ()), *waiter.calls], [], None
            rings = self._pass_on(calls)
        _ring(rings)

    def is_called(self, waiter: Waiter) -> bool:
        """Whether there still is something to look for."""
        with self._lock:
            waiter.calls = [call for call in waiter.calls if not call.over]
            return bool(waiter.calls)

    def is_dry(self, waiter: Waiter) -> bool:
        """Whether there is nothing but what others are called for, as one like this has just seen."""
        with self._lock:
            left = self._left.get(waiter.wish.signature)
            return (
                left is not None
                and left.until > time.monotonic()
                and all(id in self._calls or id in self._given for id in left.ids)
            )

    def look(self, waiter: Waiter) -> None:
        """Note that the waiter looks now."""
        with self._lock:
            waiter.looking, waiter.calls, waiter.age = waiter.calls, [], self._age

    def doubted(self, waiter: Waiter) -> set[int]:
        """Return which jobs to look for by their ids, after a look in vain: somebody may have been quicker.

        Of each call at its first answer, its second, its fourth and so on: what only its
        scope keeps from a waiter would else cost each of them one more look.
        """
        calls = waiter.looking or ()
        return {
            call.id for call in calls if call.id and not call.over and not call.answers & (call.answers - 1)
        }

    def looked(
        self,
        waiter: Waiter,
        found: t.Collection[Found],
        gone: t.Collection[int] = (),
        left: t.Collection[int] | None = None,
    ) -> None:
        """Note what it found; with less than it would take it may go on waiting.

        :param gone: ids of jobs that nobody can find any more.
        :param left: ids of all that it saw and did not take, if it knows.
        """
        with self._lock:
            calls, waiter.looking = waiter.looking or [], None
            self._end(gone)
            self._end(map(self._give, found))
            if not found:
                for call in calls:
                    call.was_in_vain(waiter.wish)
            if left is not None and waiter.age == self._age:
                until = time.monotonic() + _MEMORY
                _remember(self._left, waiter.wish.signature, _Left(frozenset(left), until))
            rings = self._pass_on(calls, besides=waiter)
            rings += [waiter.ring] if _is_called(waiter) and len(found) < waiter.limit else []
        _ring(rings)

    def hear(self, news: News) -> None:
        """Wake those whom the news concerns."""
        rings: list[Ring] = []
        with self._lock:
            for fresh, ids in news.jobs.items():
                rings += self._wake(fresh, [_Call(fresh, id) for id in ids if self._is_new(fresh, id)])
            if news.more:
                rings += self._pass_on([_Call(None)])
                self._forget_left()
            rings += self._dismiss(lambda waiter: waiter.user is not None and waiter.user in news.left)
        _ring(rings)

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._lock:
            self._closed = True
            rings = self._dismiss(lambda waiter: True)
        _ring(rings)

    # -- with the lock ---------------------------------------------------------------------

    def _dismiss(self, which: t.Callable[[Waiter], bool]) -> list[Ring]:
        gone = [waiter for waiter in self._waiters if which(waiter)]
        for waiter in gone:
            waiter.dismissed = True
        return [waiter.ring for waiter in gone]

    def _is_new(self, fresh: Fresh, id: int) -> bool:
        """Whether nobody was given this job yet, nor is called for it."""
        known = self._calls.get(id)
        called = known is not None and known.fresh is not None and known.fresh.attempts >= fresh.attempts
        return not called and self._given.get(id, 0) <= fresh.attempts

    def _wake(self, fresh: Fresh, calls: list[_Call]) -> list[Ring]:
        """Wake as many as it takes to take these jobs, those first who do not look already."""
        ids = [call.id for call in calls if call.id is not None]
        self._end(ids)
        self._calls.update(zip(ids, calls, strict=True))
        rings: list[Ring] = []
        busy: list[Waiter] = []
        for waiter in self._waiters:
            if not calls:
                return rings
            if not calls[0].is_for(waiter):
                continue
            if _is_busy(waiter):
                busy.append(waiter)
                continue
            rings += _call(waiter, calls[: waiter.limit])
            calls = calls[waiter.limit :]
        for waiter in busy:
            _call(waiter, calls[: waiter.limit])
            calls = calls[waiter.limit :]
        for call in calls:
            self._drop(call)
        return rings

    def _pass_on(self, calls: t.Iterable[_Call], besides: Waiter | None = None) -> list[Ring]:
        return [ring for call in calls if not call.over for ring in self._pass_one_on(call, besides)]

    def _pass_one_on(self, call: _Call, besides: Waiter | None) -> list[Ring]:
        fit = (waiter for waiter in self._waiters if waiter is not besides and call.is_for(waiter))
        busy: Waiter | None = None
        for waiter in fit:
            if not _is_busy(waiter):
                return _call(waiter, [call])
            busy = busy or waiter
        if busy is None:
            self._drop(call)
            return []
        return _call(busy, [call])

    def _drop(self, call: _Call) -> None:
        """Forget a call for which there is nobody: who comes must look."""
        call.over = True
        if call.id is not None and self._calls.get(call.id) is call:
            del self._calls[call.id]
        self._forget_left()

    def _end(self, ids: t.Iterable[int]) -> None:
        """Let nobody look for these any more."""
        for id in ids:
            call = self._calls.pop(id, None)
            if call is not None:
                call.over = True

    def _give(self, found: Found) -> int:
        """Note that a job was given to somebody: the news of it may still be on its way."""
        _remember(self._given, found.id, found.attempt)
        return found.id

    def _forget_left(self) -> None:
        self._left.clear()
        self._age += 1


def _remember(memory: collections.OrderedDict[t.Any, t.Any], key: t.Hashable, value: t.Any) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _MOST_REMEMBERED:
        memory.popitem(last=False)


def _is_called(waiter: Waiter) -> bool:
    return any(not call.over for call in waiter.calls)


def _is_busy(waiter: Waiter) -> bool:
    return waiter.looking is not None or _is_called(waiter)


def _call(waiter: Waiter, calls: list[_Call]) -> list[Ring]:
    """Call a waiter; one who looks at this moment hears of it afterwards."""
    waiter.calls += calls
    return [waiter.ring] if waiter.looking is None else []


def _ring(rings: t.Iterable[Ring]) -> None:
    # Without the lock: who is called may have one of its own, and hold it when it comes here.
    for ring in rings:
        ring()
