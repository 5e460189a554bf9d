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
import typing as t

from ..core.candidates import Wanted, arms_of, leading
from ..core.news import Fresh, Lead, News, comparable
from ..core.payload import RESERVED, names_of

Ring = t.Callable[[], None]


class Found(t.Protocol):
    """A job that a waiter has been given."""

    @property
    def type(self) -> str: ...

    @property
    def queue(self) -> str: ...

    @property
    def priority(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is known without a query of what a waiter may have.

    :param scope: who has the same sees the same jobs.
    :param signature: who waits for the same finds the same.
    :param leads: one mapping for each alternative of its scope, of places in ``__claim_by__``
        to the values it compares them with.
    """

    wanted: Wanted
    scope: t.Hashable
    signature: t.Hashable
    leads: tuple[t.Mapping[int, Lead], ...]

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
        names = names_of(self.wanted.locker)
        return (fresh.only_for is None or fresh.only_for in names) and not set(names) & set(fresh.not_for)


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
    return Wish(wanted, scope, signature, arms)


def _lead(value: t.Any) -> Lead:
    return None if value is None else comparable(value)


@dataclasses.dataclass(eq=False, slots=True)
class _Call:
    """To come and look.

    :param fresh: for what; ``None``: for whatever there may be, which whoever finds
        something leaves to the next.
    :param tried: what those who found nothing had in common with others who need not look.
    """

    fresh: Fresh | None
    tried: set[t.Hashable] = dataclasses.field(default_factory=set)
    #: How many have answered it.
    answers: int = 0

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


class Room:
    """Where waiters wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[Waiter, None] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiters)

    def enter(self, waiter: Waiter) -> None:
        """Begin to wait; the waiter is about to look for the first time."""
        with self._lock:
            waiter.looking, waiter.dismissed = [], self._closed
            self._waiters[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer; what the waiter was called for is for others."""
        with self._lock:
            self._waiters.pop(waiter, None)
            calls, waiter.calls, waiter.looking = [*(waiter.looking or ()), *waiter.calls], [], None
            rings = self._pass_on(calls)
        _ring(rings)

    def look(self, waiter: Waiter) -> None:
        """Note that the waiter looks now."""
        with self._lock:
            waiter.looking, waiter.calls = waiter.calls, []

    def doubted(self, waiter: Waiter) -> set[Fresh]:
        """Return what else to look for, after a look in vain: somebody may have been quicker.

        Of each call at its first answer, its second, its fourth and so on: what only its
        scope keeps from a waiter would else cost each of them one more look.
        """
        calls = waiter.looking or ()
        return {call.fresh for call in calls if call.fresh and not call.answers & (call.answers - 1)}

    def looked(self, waiter: Waiter, found: t.Collection[Found], gone: t.Collection[Fresh] = ()) -> None:
        """Note what it found; with less than it would take it may go on waiting.

        :param gone: what nobody can find any more.
        """
        with self._lock:
            calls, waiter.looking = [one for one in waiter.looking or () if one.fresh not in gone], None
            left = _unanswered(calls, found)
            if not found:
                for call in calls:
                    call.was_in_vain(waiter.wish)
            rings = self._pass_on(left, besides=waiter)
            rings += [waiter.ring] if waiter.calls and len(found) < waiter.limit else []
        _ring(rings)

    def hear(self, news: News) -> None:
        """Wake those whom the news concerns."""
        rings: list[Ring] = []
        with self._lock:
            for fresh, count in news.jobs.items():
                rings += self._wake(fresh, count)
            if news.more:
                rings += self._pass_on([_Call(None)])
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

    def _wake(self, fresh: Fresh, count: int) -> list[Ring]:
        """Wake as many as it takes to take so many jobs, those first who do not look already."""
        rings: list[Ring] = []
        busy: list[Waiter] = []
        for waiter in self._waiters:
            if count <= 0:
                return rings
            if not _Call(fresh).is_for(waiter):
                continue
            if _is_busy(waiter):
                busy.append(waiter)
                continue
            rings += _call(waiter, [_Call(fresh) for _ in range(min(count, waiter.limit))])
            count -= waiter.limit
        for waiter in busy:
            _call(waiter, [_Call(fresh) for _ in range(min(max(count, 0), waiter.limit))])
            count -= waiter.limit
        return rings

    def _pass_on(self, calls: t.Iterable[_Call], besides: Waiter | None = None) -> list[Ring]:
        return [ring for call in calls for ring in self._pass_one_on(call, besides)]

    def _pass_one_on(self, call: _Call, besides: Waiter | None) -> list[Ring]:
        fit = (waiter for waiter in self._waiters if waiter is not besides and call.is_for(waiter))
        busy: Waiter | None = None
        for waiter in fit:
            if not _is_busy(waiter):
                return _call(waiter, [call])
            busy = busy or waiter
        return _call(busy, [call]) if busy is not None else []


def _unanswered(calls: t.Sequence[_Call], found: t.Iterable[Found]) -> list[_Call]:
    """Return the calls for other jobs than those: nobody else may be on the way to them."""
    there = collections.Counter((one.type, one.queue, one.priority) for one in found)
    left = []
    for call in calls:
        fresh = call.fresh
        kind = (fresh.type, fresh.queue, fresh.priority) if fresh is not None else None
        if kind is None or not there[kind]:
            left.append(call)
        else:
            there[kind] -= 1
    return left


def _is_busy(waiter: Waiter) -> bool:
    return waiter.looking is not None or bool(waiter.calls)


def _call(waiter: Waiter, calls: list[_Call]) -> list[Ring]:
    """Call a waiter; one who looks at this moment hears of it afterwards."""
    waiter.calls += calls
    return [waiter.ring] if waiter.looking is None else []


def _ring(rings: t.Iterable[Ring]) -> None:
    # Without the lock: who is called may have one of its own, and hold it when it comes here.
    for ring in rings:
        ring()
