"""Between one source and the crew: claims, heartbeats, results, in one exchange after the other."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
import time
import typing as t

from .crew import Crew, Place
from .handlers import Handlers
from .job import Job
from .plan import Plan
from .run import Failed, Outcome, Released, Succeeded
from .source import Answer, Away, Beat, Refused, Settlement, Source, Told, Unheard

logger = logging.getLogger("flask_jobber")
# Heartbeats come at this part of a lease, those that tell of progress sooner.
_BEATS_PER_LEASE = 3
_SOONEST_BEAT = 1.0
# Seconds of the longest pause before a source that is away is asked again.
_LONGEST_PAUSE = 15.0
# Seconds for which a worker that leaves tries to give its jobs back.
_FAREWELL = 5.0
# Jobs that end in a row wait for each other, to be settled at once: so many seconds for the next.
_LINGER = 0.002
# So many are worth an exchange: it costs little more than their own work.
_ENOUGH = 50
# Whoever hears one of these holds the job no longer.
_GONE = frozenset({"not_found", "lease_lost", "cancelled", "already_settled"})


@dataclasses.dataclass(slots=True)
class _Running:
    """A job that is being done: when it is to be heard of next, and when it is to end."""

    next_beat: float
    limit: float = math.inf
    deadline: float = math.inf
    last_beat: float = -math.inf


@dataclasses.dataclass(slots=True)
class _Round:
    """What is to be said in the next exchange; ``rest``: nothing, nor is the source to be listened to."""

    settled: list[Settlement]
    beats: list[Beat]
    limit: int
    rest: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Supply:
    """A source, and the handlers of its jobs."""

    source: Source
    handlers: Handlers
    place: Place = Place()  # noqa: RUF009  it is frozen


class Feed:
    """Keeps a crew at work with the jobs of one source."""

    def __init__(self, supply: Supply, crew: Crew, plan: Plan) -> None:
        self._source, self._handlers, self._place = supply.source, supply.handlers, supply.place
        self._crew, self._plan = crew, plan
        self._wish = plan.orders.wish(self._handlers.types)
        self._outbox: list[Settlement] = []
        self._running: dict[Job, _Running] = {}
        #: Held no longer, though the handlers have not ended.
        self._lost: dict[Job, _Running] = {}
        #: Held since before, and not begun again.
        self._taken_up: list[Job] = []
        self._stuck: set[Job] = set()
        self._next_claim = 0.0
        #: Whether the source will ring, and has since the last claim began.
        self._listens = self._rung = False
        self._begun_at = self._ended_at = 0.0
        #: Seconds that the last exchange took.
        self._cost = 0.0
        self._lingers = False
        self._is_empty = False
        self._fails = 0
        #: Why it has ended before its time.
        self.error: Exception | None = None
        self.ended = False

    @property
    def running(self) -> int:
        return len(self._running)

    def run(self) -> None:
        """Work until the plan says that it is over."""
        try:
            with self._plan.bell:
                self._plan.expect(self)
            self._take_up()
            if not self._plan.orders.burst:
                self._source.listen(self._ring)
            while (round_ := self._next_round()) is not None:
                if round_.rest:
                    self._rest()
                else:
                    self._exchange(round_)
        except Exception as error:
            self.error = error
            known = isinstance(error, Refused)
            logger.error("%s: %s", self._source.label, error, exc_info=None if known else error)
        finally:
            self._end()

    def _end(self) -> None:
        with self._plan.bell:
            for job in self._running:
                self._crew.abandon(job)
            self.ended = True
            self._plan.pass_over(self)
            self._plan.bell.notify_all()
        self._source.close()

    # -- talking to the source -------------------------------------------------------------

    def _take_up(self) -> None:
        """Take up what a worker of this name held before, or was given without hearing of it."""
        while not self._plan.stopping:
            try:
                held = self._source.held()
            except Away as away:
                self._wait_out(away)
                continue
            fresh = self._unknown(held)
            for job in fresh:
                logger.info("%s: job %s is taken up again", self._source.label, job.id, extra=_about(job))
            self._taken_up += fresh
            self._fails = 0
            return

    def _unknown(self, jobs: t.Iterable[Job]) -> list[Job]:
        known = {(job.id, job.attempt) for job in self._known()}
        return [job for job in jobs if (job.id, job.attempt) not in known]

    def _known(self) -> list[Job]:
        return [*self._running, *self._taken_up, *(one.job for one in self._outbox)]

    def _exchange(self, round_: _Round) -> None:
        began = time.monotonic()
        try:
            wish = dataclasses.replace(self._wish, limit=round_.limit) if round_.limit else None
            answer = self._source.exchange(round_.settled, round_.beats, wish)
        except Away as away:
            self._give_back(round_.limit)
            if not isinstance(away, Unheard):
                self._wait_out(away)
            if round_.limit:  # it may have given jobs whose answer was lost
                self._take_up()
            return
        except BaseException:
            self._give_back(round_.limit)
            raise
        self._fails, self._cost = 0, time.monotonic() - began
        with self._plan.bell:
            self._outbox = self._outbox[len(round_.settled) :]
            self._hear(round_, answer)
            self._begin(round_, answer)

    # -- listening to it -------------------------------------------------------------------

    def _ring(self) -> None:
        with self._plan.bell:
            self._rung, self._next_claim = True, 0.0
            self._plan.bell.notify_all()

    def _listens_in_vain(self) -> bool:
        """Whether the source may give jobs for which there is nobody."""
        may_do = self._plan.may_claim and self._plan.share(self) and not self._taken_up
        return self._listens and not may_do and (self._rung or not self._plan.may_claim)

    def _rest(self) -> None:
        unwanted = self._source.rest()
        with self._plan.bell:
            self._listens, self._next_claim = False, 0.0
            self._outbox += [Settlement(job, Released()) for job in self._unknown(unwanted)]

    def _give_back(self, slots: int) -> None:
        with self._plan.bell:
            self._plan.use(slots, 0)

    def _wait_out(self, away: Away) -> None:
        """Wait for a source that is away, longer each time, unless the worker leaves."""
        pause = max(away.retry_after, min(_LONGEST_PAUSE, 0.2 * 2 ** min(self._fails, 10)))
        leaving = self._plan.leaving
        if leaving:
            pause = min(pause, _FAREWELL / 10)
        self._fails += 1
        until = time.monotonic() + pause * random.uniform(0.75, 1.25)
        logger.warning("%s: %s; again in %.1f s", self._source.label, away, pause)
        with self._plan.bell:
            self._plan.pass_over(self)
            while (left := until - (now := time.monotonic())) > 0 and not self._gives_up():
                self._end_late_ones(now)
                self._plan.bell.wait(max(min(left, self._next_end() - now), 0))
                if self._plan.leaving and not leaving:
                    break

    def _gives_up(self) -> bool:
        """Whether nothing is worth waiting for: the worker ends and has nothing to tell."""
        return self._plan.stopping and not self._known()

    # -- what is said ----------------------------------------------------------------------

    def _next_round(self) -> _Round | None:
        """Wait until there is something to say; ``None`` when it is over."""
        with self._plan.bell:
            while not self._is_over():
                now = time.monotonic()
                self._end_late_ones(now)
                if self._plan.leaving:
                    self._give_up_all()
                self._begin_taken_up(now)
                if self._linger(now):
                    continue
                if self._listens_in_vain():
                    return _Round([], [], 0, rest=True)
                round_ = self._gather(now)
                if round_.settled or round_.beats or round_.limit:
                    return round_
                self._plan.bell.wait(self._pause(now))
        return None

    def _linger(self, now: float) -> bool:
        """Wait a moment for more jobs to end, if some have and there may be; return whether it was so.

        Not for longer than an exchange takes, which is all that it saves.
        """
        until = min(self._begun_at + self._cost, self._ended_at + _LINGER)
        self._lingers = self._is_worth_waiting() and now < until
        if self._lingers:
            self._plan.bell.wait(until - now)
        return self._lingers

    def _is_worth_waiting(self) -> bool:
        return bool(self._running) and 0 < len(self._outbox) < _ENOUGH

    def _is_over(self) -> bool:
        since = self._plan.leaving_since
        if since is not None and self._fails and time.monotonic() > since + _FAREWELL:
            return True
        done = self._plan.is_full or (self._plan.orders.burst and self._is_empty)
        return done and not self._known() and not self._listens

    def _gather(self, now: float) -> _Round:
        most = self._source.most
        beats = [self._beat(job, now) for job, run in self._running.items() if run.next_beat <= now]
        return _Round(self._outbox[:most], beats[:most], self._slots(now))

    def _beat(self, job: Job, now: float) -> Beat:
        run = self._running[job]
        run.last_beat, run.next_beat = now, now + job.lease_seconds / _BEATS_PER_LEASE
        return Beat(job, **job.take_news())

    def _slots(self, now: float) -> int:
        """Take the slots for which jobs are to be claimed."""
        if not self._plan.may_claim or self._taken_up or now < self._next_claim:
            return 0
        self._rung = False
        return self._plan.take(self, self._source.most)

    def _pause(self, now: float) -> float | None:
        """Return the seconds until there may be something to say without any bell."""
        times = [self._next_end(), *(run.next_beat for run in self._running.values())]
        if self._plan.may_claim and self._plan.share(self) and not self._taken_up:
            times.append(self._next_claim)
        soonest = min(times)
        return None if soonest == math.inf else max(soonest - now, 0)

    def _next_end(self) -> float:
        return min((run.deadline for run in self._handled().values()), default=math.inf)

    def _handled(self) -> dict[Job, _Running]:
        """Return all jobs whose handlers run."""
        return self._running | self._lost

    # -- what is heard ---------------------------------------------------------------------

    def _hear(self, round_: _Round, answer: Answer) -> None:
        settled = len(round_.settled)
        for one, told in zip(round_.settled, answer.told[:settled], strict=True):
            self._hear_of_end(one, told)
        for told in answer.told[settled:]:
            self._hear_of_beat(told)

    def _hear_of_end(self, one: Settlement, told: Told) -> None:
        counts, outcome = self._plan.counts, one.outcome
        if told.code is None or told.code == "result_rejected":
            kind = "released" if isinstance(outcome, Released) else "failed"
            kind = "succeeded" if told.code is None and isinstance(outcome, Succeeded) else kind
            setattr(counts, kind, getattr(counts, kind) + 1)
        if told.code is None:
            return
        logger.warning(
            "%s: job %s: %s (%s)",
            self._source.label, one.job.id, told.detail, told.code, extra=_about(one.job),
        )  # fmt: skip
        if told.held and not isinstance(outcome, Failed):
            error = {"type": told.code, "message": told.detail[:2000], "traceback": None}
            self._outbox.append(Settlement(one.job, Failed(error)))
        elif told.code != "result_rejected":
            counts.dropped += 1

    def _hear_of_beat(self, told: Told) -> None:
        if told.job not in self._running:
            return
        if told.code in _GONE:
            self._lost[told.job] = self._running.pop(told.job)
            self._plan.counts.dropped += 1
            self._crew.abandon(told.job)
            logger.warning(
                "%s: job %s is held no longer (%s); what its handler returns is dropped",
                self._source.label, told.job.id, told.code, extra=_about(told.job),
            )  # fmt: skip
        elif told.lease_seconds is not None:
            self._crew.renew(told.job, told.lease_seconds)
        elif told.code is not None:
            logger.warning(
                "%s: job %s: its heartbeat is refused: %s (%s)",
                self._source.label, told.job.id, told.detail, told.code, extra=_about(told.job),
            )  # fmt: skip

    # -- jobs begin and end ----------------------------------------------------------------

    def _begin(self, round_: _Round, answer: Answer) -> None:
        if not round_.limit:
            if round_.settled and self._plan.orders.burst:  # what is settled may have led to more
                self._is_empty, self._next_claim = False, 0.0
            return
        self._is_empty = not answer.jobs
        self._plan.use(round_.limit, len(answer.jobs))
        self._plan.feed(self, hungry=bool(answer.jobs))
        self._listens = answer.retry_after == math.inf
        at_once = answer.jobs or self._rung
        self._next_claim = 0.0 if at_once else time.monotonic() + answer.retry_after
        self._begun_at = time.monotonic() if answer.jobs else 0.0
        for job in answer.jobs:
            self._start(job, time.monotonic() + job.lease_seconds / _BEATS_PER_LEASE)

    def _begin_taken_up(self, now: float) -> None:
        while self._taken_up and not self._plan.stopping:
            job = self._taken_up[0]
            if job.type not in self._wish.types:
                self._outbox.append(Settlement(job, Released()))
            elif self._plan.take(self, 1):
                self._plan.use(1, 1)
                self._start(job, now)  # its lease may be over: it is renewed at once
            else:
                break
            del self._taken_up[0]
        if self._plan.is_full:
            self._outbox += [Settlement(job, Released()) for job in self._taken_up]
            self._taken_up.clear()

    def _start(self, job: Job, next_beat: float) -> None:
        self._running[job] = _Running(next_beat)
        job.call_on_news(lambda: self._hasten(job))
        job.call_on_begin(lambda: self._begun(job))
        self._crew.start(self._handlers[job.type], job, self._place, self._finished)

    def _begun(self, job: Job) -> None:
        limit = self._handlers[job.type].limit(job)
        if limit is None:
            return
        with self._plan.bell:
            run = self._handled().get(job)
            if run is not None:
                run.limit, run.deadline = limit, time.monotonic() + limit
                self._plan.bell.notify_all()

    def _hasten(self, job: Job) -> None:
        with self._plan.bell:
            run = self._running.get(job)
            if run is not None:
                run.next_beat = min(run.next_beat, max(time.monotonic(), run.last_beat + _SOONEST_BEAT))
                self._plan.bell.notify_all()

    def _finished(self, job: Job, outcome: Outcome | None) -> None:
        with self._plan.bell:
            if self._running.pop(job, None) is not None:
                self._outbox.append(Settlement(job, Released() if outcome is None else outcome))
            else:
                logger.info("job %s: what its handler returned is dropped", job.id, extra=_about(job))
            self._lost.pop(job, None)
            if job in self._stuck:
                self._stuck.discard(job)
                self._plan.count_stuck(-1)
            self._ended_at = time.monotonic()
            # One that waits for many is not woken by each.
            self._plan.vacate(ring=not (self._lingers and self._is_worth_waiting()))

    def _end_late_ones(self, now: float) -> None:
        for job, run in self._handled().items():
            if run.deadline <= now:
                self._end_late(job, run)

    def _end_late(self, job: Job, run: _Running) -> None:
        message = f"It ran longer than its {run.limit:g} seconds."
        if self._lost.pop(job, None) is None:
            del self._running[job]
            error = {"type": "RanTooLong", "message": message, "traceback": None}
            self._outbox.append(Settlement(job, Failed(error)))
        logger.warning("job %s: %s", job.id, message, extra=_about(job))
        self._stuck.add(job)
        self._plan.count_stuck(1)
        self._crew.interrupt(job)

    def _give_up_all(self) -> None:
        """Release what runs: its handlers are told, not waited for."""
        for job in self._running:
            self._crew.abandon(job)
            self._outbox.append(Settlement(job, Released()))
        self._running.clear()


def _about(job: Job) -> dict[str, t.Any]:
    return {"action": "work", "job_id": job.id, "attempt": job.attempt}
