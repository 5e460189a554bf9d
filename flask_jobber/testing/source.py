"""A source of jobs in memory."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
import typing as t

from ..worker.job import Job
from ..worker.run import Failed, Outcome, Released, Succeeded
from ..worker.source import Answer, Away, Beat, Ring, Settlement, Told, Wish

# What a worker that gets nothing is told to wait.
_IDLE_SECONDS = 0.01
# What it knows of the jobs that a handler enqueues.
_KEPT = ("type", "data", "queue", "priority", "max_attempts", "after")


@dataclasses.dataclass
class _Row:
    """A job in the source: the keywords of the :class:`Job` that is handed out."""

    facts: dict[str, t.Any]
    due: float = 0
    #: The code that its holder is to hear; ``None``: it is held.
    lost: str | None = "not_found"
    open: bool = True


class FakeSource:
    """A :class:`~flask_jobber.worker.source.Source` for tests of handlers and of what runs them.

    Time stands still in it until :meth:`travel`; leases do not lapse.

    >>> source = FakeSource()
    >>> source.add("double", 21)
    1
    """

    label = "fake"
    most = 100

    def __init__(self, *, node: str = "testing", lease_seconds: float = 600, max_attempts: int = 10) -> None:
        self._defaults = {"node": node, "lease_seconds": lease_seconds, "max_attempts": max_attempts}
        self._rows: dict[int, _Row] = {}
        self._ids = itertools.count(1)
        self._now = 0.0
        self._away = 0
        self._rings: list[Ring] = []
        #: What was settled and taken, in order.
        self.settled: list[Settlement] = []
        #: The heartbeats that were heard, in order.
        self.beats: list[Beat] = []
        self.tidied = 0
        self.closed = False

    # -- for the test ----------------------------------------------------------------------

    def add(self, type: str, data: t.Any = None, *, after: float = 0, **facts: t.Any) -> int:
        """Add a job and return its id.

        :param after: seconds until it is due.
        :param facts: any of :class:`~flask_jobber.worker.job.Job`'s own fields.
        """
        job_id = next(self._ids)
        plain = {"queue": "default", "priority": 0, "attempt": 0, "failures": 0}
        said = {"id": job_id, "type": type, "data": data, "enqueued_at": dt.datetime.now(dt.UTC)}
        self._rows[job_id] = _Row({**self._defaults, **plain, **said, **facts}, self._now + after)
        self._ring()
        return job_id

    def travel(self, seconds: float) -> None:
        """Let time pass: jobs that wait for another try are due."""
        self._now += seconds
        self._ring()

    def go_away(self, calls: int = 1) -> None:
        """Answer the next calls with :class:`~flask_jobber.worker.source.Away`."""
        self._away = calls

    def cancel(self, job_id: int) -> None:
        """End a job; its holder hears ``cancelled``."""
        self._rows[job_id].open, self._rows[job_id].lost = False, "cancelled"

    def lapse(self, job_id: int) -> None:
        """Take a job from its holder, who hears ``lease_lost``; it can be claimed again."""
        self._rows[job_id].lost = "lease_lost"
        self._ring()

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """The last outcome of each job, by its id."""
        return {one.job.id: one.outcome for one in self.settled}

    @property
    def left(self) -> list[int]:
        """The ids of the jobs that have not ended."""
        return [job_id for job_id, row in self._rows.items() if row.open]

    # -- for the worker --------------------------------------------------------------------

    def held(self) -> list[Job]:
        self._answer()
        return [Job(**row.facts) for row in self._rows.values() if row.lost is None]

    def exchange(self, settled: t.Sequence[Settlement], beats: t.Sequence[Beat], wish: Wish | None) -> Answer:
        self._answer()
        told = [*map(self._settle, settled), *map(self._beat, beats)]
        jobs = [] if wish is None else [self._hand_out(row) for row in self._due(wish)]
        pause = math.inf if self._rings else _IDLE_SECONDS
        return Answer(told, jobs, 0 if jobs else pause)

    def listen(self, ring: Ring) -> None:
        self._rings.append(ring)

    def rest(self) -> list[Job]:
        return []

    def waiting(self, wish: Wish) -> int | None:
        self._answer()
        return len(self._due(dataclasses.replace(wish, limit=len(self._rows))))

    def tidy(self) -> float | None:
        self._answer()
        self.tidied += 1
        return None

    def close(self) -> None:
        self.closed = True

    def _ring(self) -> None:
        for ring in self._rings:
            ring()

    def _answer(self) -> None:
        if self._away:
            self._away -= 1
            raise Away("the fake source is away")

    def _due(self, wish: Wish) -> list[_Row]:
        rows = [
            row
            for row in self._rows.values()
            if row.open
            and row.lost is not None
            and row.due <= self._now
            and row.facts["type"] in wish.types
            and (wish.queues is None or row.facts["queue"] in wish.queues)
            and (wish.min_priority is None or row.facts["priority"] >= wish.min_priority)
            and (wish.max_priority is None or row.facts["priority"] <= wish.max_priority)
        ]
        return sorted(rows, key=lambda row: (-row.facts["priority"], row.due))[: wish.limit]

    def _hand_out(self, row: _Row) -> Job:
        row.lost = None
        row.facts["attempt"] += 1
        return Job(**row.facts)

    def _refusal(self, job: Job) -> str | None:
        row = self._rows.get(job.id)
        if row is None:
            return "not_found"
        return "lease_lost" if row.facts["attempt"] != job.attempt else row.lost

    def _beat(self, beat: Beat) -> Told:
        code = self._refusal(beat.job)
        if code is not None:
            return Told(beat.job, code)
        self.beats.append(beat)
        return Told(beat.job, held=True, lease_seconds=beat.job.lease_seconds)

    def _settle(self, settlement: Settlement) -> Told:
        job, outcome = settlement.job, settlement.outcome
        code = self._refusal(job)
        if code is None:
            self.settled.append(settlement)
            self._end(self._rows[job.id], outcome)
        return Told(job, code)

    def _end(self, row: _Row, outcome: Outcome) -> None:
        row.lost = "lease_lost"
        self._ring()
        if isinstance(outcome, Succeeded):
            row.open, row.lost = False, "already_settled"
            for spec in outcome.enqueued:
                self.add(**{name: spec[name] for name in _KEPT if name in spec})
        elif isinstance(outcome, Released):
            row.due = self._now + outcome.delay_seconds
        else:
            self._end_failed(row, outcome)

    def _end_failed(self, row: _Row, outcome: Failed) -> None:
        row.due = self._now + (outcome.retry_seconds or 0)
        row.facts["failures"] += 1
        over = row.facts["failures"] >= row.facts["max_attempts"]
        if outcome.cancel or outcome.permanent or over:
            row.open = False
