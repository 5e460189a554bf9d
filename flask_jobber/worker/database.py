"""Jobs from the app's own database."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import typing as t

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

from ..api.problems import document
from ..core import hold, queries, rates, settle, trust
from ..core.at_once import Delivery
from ..core.claim import Claim, Claims, want
from ..core.engines import is_transient
from ..core.enqueue import begin
from ..core.exchange import Exchange
from ..core.hold import Holder, Item, Outcome
from ..core.payload import WORKER
from ..core.scope import EVERYTHING
from ..errors import JobberError, SetupError, TooManyClaims
from .files import DatabaseFiles
from .job import Job
from .run import Failed, Released, Succeeded
from .seat import Seat
from .source import Answer, Away, Beat, Ring, Settlement, Told, Wish, refused
from .upkeep import Upkeep

if t.TYPE_CHECKING:
    from ..extension import Jobber


class DatabaseSource:
    """An app's Jobber, used beside the database: the locker is ``worker/<name>``."""

    def __init__(self, app: Flask, jobber: Jobber, name: str) -> None:
        self._app, self._jobber, self._name = app, jobber, name
        self._holder = Holder(f"{WORKER}/{name}", EVERYTHING)
        self.label = jobber.name
        with app.app_context():
            self._settings = jobber.settings
            _check_pool(jobber)
        self._seat: Seat | None = None
        self._has_room = True
        #: Seconds until a limit that left jobs out has room.
        self._room_after: float | None = None
        self._upkeep = Upkeep(app, jobber)
        self.most = self._settings.max_claim

    @contextlib.contextmanager
    def _transaction(self) -> t.Iterator[None]:
        """Commit at the end. :raises Away: when the database is busy or away."""
        with self._app.app_context():
            try:
                yield
                self._jobber.db.session.commit()
            except SQLAlchemyError as error:
                if is_transient(error):
                    raise Away(f"the database is busy or away: {_said(error)}") from error
                raise

    def held(self) -> list[Job]:
        with self._transaction():
            return self._jobs(queries.open_claims(self._jobber.store(), self._holder))

    def _jobs(self, claims: t.Iterable[Claim]) -> list[Job]:
        return [
            Job(
                id=claim.id, type=claim.type, data=claim.data, queue=claim.queue, priority=claim.priority,
                attempt=claim.attempt, failures=claim.failures, max_attempts=claim.max_attempts,
                lease_seconds=claim.lease_seconds, enqueued_at=claim.enqueued_at, node=self._name,
                has_files=claim.has_files,
            ).with_files(self._files(Item(claim.id, claim.attempt)))
            for claim in claims
        ]  # fmt: skip

    def _files(self, item: Item) -> DatabaseFiles:
        return DatabaseFiles(self._app, self._jobber, self._holder, item)

    def exchange(self, settled: t.Sequence[Settlement], beats: t.Sequence[Beat], wish: Wish | None) -> Answer:
        seat = self._seat
        if wish is None or seat is None:
            return self._exchange(settled, beats, wish)
        if seat.is_taken:
            return self._look(seat, settled, beats, wish)
        answer = self._exchange(settled, beats, wish)
        if answer.jobs or not self._has_room:
            return answer
        return dataclasses.replace(self._look(seat, (), (), wish), told=answer.told)

    def _exchange(
        self, settled: t.Sequence[Settlement], beats: t.Sequence[Beat], wish: Wish | None
    ) -> Answer:
        with self._transaction():
            if wish is not None:
                rates.precede(self._jobber.store(), self._holder.locker)
            alone = not beats and all(map(_is_plain, settled))
            results, others = (settled, []) if alone else ([], settled)
            items = [_delivery(one.job, t.cast(Succeeded, one.outcome)) for one in results]
            exchange = Exchange(self._jobber.store(), self._holder, items)
            told = [*self._settle(others), *self._beat(beats)]
            if trust.has_locked(self._jobber.store()):  # who claims others then may wait in a ring
                self._jobber.db.session.commit()
            claims = self._claim(wish, exchange)
            told += [_told(one.job, done) for one, done in zip(results, exchange.settle(), strict=True)]
            jobs = self._jobs(claims)
        if told or jobs:
            self._upkeep.is_wanted = True
        pause = 0.0 if jobs else self._settings.idle_seconds * random.uniform(0.75, 1.25)
        self._room_after = claims.retry_after
        return Answer(told, jobs, pause if self._room_after is None else self._room_after)

    def _look(
        self, seat: Seat, settled: t.Sequence[Settlement], beats: t.Sequence[Beat], wish: Wish
    ) -> Answer:
        """Exchange, and be told from now on of what is not there yet."""
        with seat.looking(wish) as found:
            answer = self._exchange(settled, beats, wish)
            found += answer.jobs
        if not self._has_room:  # no news tells when it has
            seat.leave()
        if not seat.is_taken or self._room_after is not None:  # nor when a limit has
            return answer
        return dataclasses.replace(answer, retry_after=math.inf)

    def listen(self, ring: Ring) -> None:
        if self._seat is None:
            self._seat = Seat(self._app, self._jobber, self._holder.locker, ring)

    def rest(self) -> list[Job]:
        if self._seat is not None:
            self._seat.leave()
        return []

    def _settle(self, settled: t.Sequence[Settlement]) -> list[Told]:
        """Settle many of a kind at once; a job that has enqueued others goes by itself."""
        kinds: dict[t.Any, dict[int, tuple[Job, Item]]] = {}
        told: dict[int, Told] = {}
        for place, (job, outcome) in enumerate((one.job, one.outcome) for one in settled):
            if isinstance(outcome, Succeeded) and outcome.enqueued:
                told[place] = self._settle_with_others(job, outcome)
            else:
                verb, item = _item(job, outcome)
                kinds.setdefault(verb, {})[place] = (job, item)
        for verb, items in kinds.items():
            outcomes = verb(self._jobber.store(), self._holder, [item for _, item in items.values()])
            told |= {
                place: _told(job, done)
                for (place, (job, _)), done in zip(items.items(), outcomes, strict=True)
            }
        return [told[place] for place in sorted(told)]

    def _settle_with_others(self, job: Job, outcome: Succeeded) -> Told:
        """Enqueue what the handler has gathered if its result is taken, and neither without the other."""
        store = self._jobber.store()
        begin(store)
        savepoint = store.session.begin_nested()
        verb, item = _item(job, outcome)
        is_first = bool(hold.fence(store, self._holder, [item]))  # else it was taken, and not acknowledged
        told = _told(job, verb(store, self._holder, [item])[0])
        try:
            if told.code is None and is_first:
                self._jobber.enqueue_many(outcome.enqueued)
        except Exception as error:  # a column of the app's own may refuse them as well
            savepoint.rollback()
            return _unfit(job, error)
        savepoint.commit()
        return told

    def _beat(self, beats: t.Sequence[Beat]) -> list[Told]:
        items = [
            hold.Extension(beat.job.id, beat.job.attempt, None, beat.progress, beat.note) for beat in beats
        ]
        outcomes = hold.extend(self._jobber.store(), self._holder, items) if items else []
        return [_told(beat.job, done) for beat, done in zip(beats, outcomes, strict=True)]

    def _claim(self, wish: Wish | None, exchange: Exchange) -> Claims:
        if wish is None or not wish.types:
            return Claims()
        wanted = want(self._jobber.store(), self._holder.locker, **dataclasses.asdict(wish))
        try:
            claims, _ = exchange.claim(wanted, self._jobber.db.session.commit)
            self._has_room = True
        except TooManyClaims:  # it has said so before it took any
            claims, self._has_room = Claims(), False
        return claims

    def waiting(self, wish: Wish) -> int | None:
        with self._transaction():
            return queries.count_due(
                self._jobber.store(), wish.types, wish.queues, wish.min_priority, wish.max_priority
            )

    def tidy(self) -> float | None:
        if not self._settings.tidy_seconds:
            with self._transaction():
                self._jobber.apply_schedules()
            return None
        if self._upkeep.is_due:
            with self._transaction():
                self._upkeep.do()
        return self._upkeep.pause

    def close(self) -> None:
        self.rest()
        with self._app.app_context():
            self._jobber.db.session.remove()


def _said(error: SQLAlchemyError) -> str:
    """Return what the database says, in a line, without the statement and the data in it."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _check_pool(jobber: Jobber) -> None:
    pool = t.cast(sa.Engine, jobber.db.session().get_bind(jobber.Job)).pool
    if isinstance(pool, sa.StaticPool):
        raise SetupError(
            f"All threads share one connection to the database of the Jobber {jobber.name!r}: one would"
            " commit what another has begun. Give its engine a QueuePool, with pool_size 1 in memory."
        )


def _is_plain(one: Settlement) -> bool:
    """Whether it is a result and nothing else: the statement of the claim may settle it."""
    return isinstance(one.outcome, Succeeded) and not one.outcome.enqueued


def _delivery(job: Job, outcome: Succeeded) -> Delivery:
    return Delivery(job.id, job.attempt, outcome.result, outcome.extras)


def _item(job: Job, outcome: Succeeded | Failed | Released) -> tuple[t.Callable[..., list[Outcome]], Item]:
    key = (job.id, job.attempt)
    if isinstance(outcome, Succeeded):
        return settle.deliver, _delivery(job, outcome)
    if isinstance(outcome, Released):
        return hold.release, hold.Release(*key, outcome.delay_seconds)
    failure = settle.Failure(
        *key, outcome.error, outcome.permanent, outcome.retry_seconds, cancel=outcome.cancel
    )
    return settle.fail, failure


def _unfit(job: Job, error: Exception) -> Told:
    """:raises Exception: the error, when the same may be taken later."""
    if isinstance(error, JobberError):
        return refused(job, document(error))
    if is_transient(error):
        raise error
    return Told(job, "invalid", f"A job that it adds is refused: {error}", held=True)


def _told(job: Job, outcome: Outcome) -> Told:
    if outcome.error is None:
        return Told(job, lease_seconds=outcome.lease_seconds)
    return refused(job, document(outcome.error))
