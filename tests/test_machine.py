"""Any sequence of verbs, against a small model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import typing as t

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from conftest import MakeWorld
from flask_jobber import (
    AlreadySettled,
    Cancelled,
    Constant,
    IllegalTransition,
    JobberError,
    LeaseLost,
    NotFound,
)
from flask_jobber.core.states import TERMINAL, TRANSITIONS, Verb
from machines import run_machine
from situations import ERROR, ago, assert_legal
from support import World

#: Seconds. Time passes in steps of which no number makes a length: whatever is due is due for
#: long, and the time that the test itself takes does not matter.
LENGTH, STEP = 10_000, 4_000


@dataclasses.dataclass
class Model:
    """A job as it should be. Times are seconds of the model's clock."""

    max_attempts: int
    run_at: float
    expires_at: float
    state: str = "queued"
    attempts: int = 0
    failures: int = 0
    holder: str | None = None
    until: float = math.inf
    result: t.Any = None
    delivered: bool = False
    failed_by: tuple[int, str | None] | None = None

    def is_lapsed(self, now: float) -> bool:
        return self.state == "locked" and self.until <= now

    def is_due(self, now: float) -> bool:
        scheduled = self.state == "scheduled" and self.run_at <= now
        return self.state == "queued" or scheduled or self.is_lapsed(now)

    def end_if_dead(self, now: float) -> bool:
        """End it if it is exhausted, or past its time and not held."""
        if self.is_lapsed(now) and self.failures + 1 >= self.max_attempts:
            self.failures += 1
            return self.let_go("failed")
        if self.expires_at <= now and (self.state in ("queued", "scheduled") or self.is_lapsed(now)):
            return self.let_go("expired")
        return False

    def let_go(self, state: str, run_at: float | None = None) -> bool:
        self.state, self.holder = state, None
        self.run_at = self.run_at if run_at is None else run_at
        return True

    def refusal(self, who: str, attempt: int) -> type[JobberError] | None:
        """What one is told who acts on an attempt; nothing when it is the holder."""
        if not 1 <= attempt <= self.attempts:
            return NotFound
        if (who, attempt) != (self.holder, self.attempts):
            return LeaseLost
        told = {"locked": None, "cancelled": Cancelled}
        return told.get(self.state, AlreadySettled if self.delivered else LeaseLost)

    def fail(self, now: float, permanent: bool) -> None:
        self.failures += 1
        self.failed_by = (self.attempts, self.holder)
        spent = permanent or self.failures >= self.max_attempts
        self.let_go("failed" if spent else "scheduled", None if spent else now + LENGTH)

    def call_off(self) -> None:
        self.state = "cancelled"


Refusal = type[JobberError] | None
#: Locker, job, attempt.
Key = tuple[str, int, int]
lockers = st.sampled_from(["ann", "ann/left", "bob"])


class Machine(RuleBasedStateMachine):
    """Calls a verb, asks the model what should come of it, and compares everything.

    Few rules with a choice in each: of many rules, most examples would leave out most.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.jobber = world, world.jobber
        self.jobs: dict[int, Model] = {}
        self.clock = 0.0
        self.hand_outs: dict[tuple[int, int], str] = {}

    @initialize()
    def begin(self) -> None:
        with self.world.session() as session:
            for table in (self.world.Job.__table__, self.jobber.History.__table__):
                session.execute(sa.delete(table))
        for max_attempts in (1, 2, 2, 3):
            self.enqueue(later=False, expires=False, max_attempts=max_attempts)
        self.pass_time_and_claim(steps=0, who="ann", limit=3)

    @rule(later=st.booleans(), expires=st.booleans(), max_attempts=st.integers(1, 3))
    def enqueue(self, later: bool, expires: bool, max_attempts: int) -> None:
        job_id = self.world.enqueue(
            max_attempts=max_attempts,
            after=LENGTH if later else None,
            expires_at=ago(-LENGTH) if expires else None,
        )
        end = self.clock + LENGTH
        model = Model(max_attempts, end if later else self.clock, end if expires else math.inf)
        model.state = "scheduled" if later else "queued"
        self.jobs[job_id] = model

    @rule(steps=st.integers(0, 4), who=lockers, limit=st.integers(1, 3))
    def pass_time_and_claim(self, steps: int, who: str, limit: int) -> None:
        self._pass_time(steps)
        with self.world.session():
            claims = self.jobber.claim(who, limit=limit, lease_seconds=LENGTH)
        # It ends the dead ones that it meets; whether it met them all is not said.
        self._end_dead(only={job_id for job_id, job in self._rows().items() if job.state in TERMINAL})
        free = {job_id for job_id, job in self.jobs.items() if job.is_due(self.clock)}
        free -= {job_id for job_id in free if dataclasses.replace(self.jobs[job_id]).end_if_dead(self.clock)}
        assert len(claims) == min(limit, len(free))
        for claim in claims:
            assert claim.id in free
            job = self.jobs[claim.id]
            job.failures += job.is_lapsed(self.clock)
            job.attempts += 1
            job.state, job.holder, job.until = "locked", who, self.clock + LENGTH
            assert (claim.attempt, claim.failures) == (job.attempts, job.failures)
            assert (claim.id, claim.attempt) not in self.hand_outs
            self.hand_outs[claim.id, claim.attempt] = who

    @rule(
        data=st.data(),
        verb=st.sampled_from([Verb.DELIVER, Verb.FAIL, Verb.RELEASE, "extend"]),
        steps=st.sampled_from([0, 0, 3]),
        stranger=st.sampled_from([None, None, None, "ann", "ann/left", "bob"]),
        offset=st.sampled_from([0, 0, 0, 0, -1, 1]),
    )
    def hold(self, data: st.DataObject, verb: str, steps: int, stranger: str | None, offset: int) -> None:
        """Act as the holder, or as somebody else or on another attempt, perhaps when the lease is over."""
        self._pass_time(steps)
        # Mostly jobs that are held, or were.
        known = [job_id for job_id in self.jobs if (job_id, 1) in self.hand_outs]
        job_id = data.draw(st.sampled_from(known + known + list(self.jobs)), "job")
        job = self.jobs[job_id]
        who = stranger or self.hand_outs.get((job_id, job.attempts), "ann")
        attempt = job.attempts + offset
        act = {Verb.DELIVER: self._deliver, Verb.FAIL: self._fail, Verb.RELEASE: self._release}
        act.get(t.cast(Verb, verb), self._extend)(
            data, job, job.refusal(who, attempt), (who, job_id, attempt)
        )

    def _deliver(self, data: st.DataObject, job: Model, refusal: Refusal, key: Key) -> None:
        result = data.draw(st.sampled_from([None, 1, 1.0, {"a": 1}]), "result")
        same = refusal is AlreadySettled and repr(result) == repr(job.result)
        with self._expect(None if same else refusal):
            assert self.jobber.deliver(*key, result) == "succeeded"
        if refusal is None:
            job.state, job.result, job.delivered = "succeeded", result, True

    def _fail(self, data: st.DataObject, job: Model, refusal: Refusal, key: Key) -> None:
        permanent, cancel = data.draw(st.sampled_from([(False, False), (True, False), (True, True)]), "how")
        who, _, attempt = key
        same = refusal is LeaseLost and job.failed_by == (attempt, who) and job.state != "cancelled"
        same = same and attempt == job.attempts
        if refusal is None:
            job.call_off() if cancel else job.fail(self.clock, permanent)
        with self._expect(None if same else refusal):
            assert self.jobber.fail(*key, ERROR, permanent=permanent, cancel=cancel) == job.state

    def _release(self, data: st.DataObject, job: Model, refusal: Refusal, key: Key) -> None:
        later = data.draw(st.booleans(), "later")
        with self._expect(refusal):
            self.jobber.release(*key, delay_seconds=LENGTH if later else 0)
        if refusal is None:
            job.let_go("scheduled" if later else "queued", self.clock + LENGTH if later else None)

    def _extend(self, data: st.DataObject, job: Model, refusal: Refusal, key: Key) -> None:
        with self._expect(refusal):
            assert self.jobber.extend(*key) == LENGTH
        if refusal is None:
            job.until = self.clock + LENGTH

    @rule(data=st.data(), verb=st.sampled_from([Verb.EXPIRE, Verb.RETRY, Verb.RETRY, Verb.CANCEL]))
    def operate(self, data: st.DataObject, verb: Verb) -> None:
        if verb is Verb.EXPIRE:
            with self.world.session():
                assert self.jobber.expire() == self._end_dead()
            return
        job_id = data.draw(st.sampled_from(list(self.jobs)), "job")
        job = self.jobs[job_id]
        legal = job.state in TRANSITIONS[verb].from_states
        with self._expect(None if legal else IllegalTransition):
            getattr(self.jobber, verb)(job_id)
        if legal and verb is Verb.CANCEL:
            job.state = "cancelled"
        elif legal:
            job.failures = 0
            job.expires_at = job.expires_at if job.expires_at > self.clock else math.inf
            job.let_go("queued", self.clock)

    def _pass_time(self, steps: int) -> None:
        if steps:
            self.world.pass_time(steps * STEP)
            self.clock += steps * STEP

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        rows = self._rows()
        assert rows.keys() == self.jobs.keys()
        for job_id, job in self.jobs.items():
            row = rows[job_id]
            assert (row.state, row.attempts, row.failures) == (job.state, job.attempts, job.failures)
            assert row.locked_by == job.holder
            assert (row.finished_at is not None) == (job.state in TERMINAL)

    @invariant()
    def every_history_is_a_path_that_leads_to_the_state(self) -> None:
        history = self.jobber.History
        paths: dict[int, list[tuple[str | None, str, str]]] = {job_id: [] for job_id in self.jobs}
        with self.world.session() as session:
            for row in session.execute(sa.select(history.__table__).order_by(history.__table__.c.id)):
                paths[row.job_id].append((row.from_state, row.to_state, row.reason))
                if row.reason == "claim":
                    assert self.hand_outs[row.job_id, row.attempt] == row.locker
        for job_id, path in paths.items():
            assert_legal(path)
            assert path[-1][1] == self.jobs[job_id].state
            assert [reason for *_, reason in path].count("claim") == self.jobs[job_id].attempts

    @contextlib.contextmanager
    def _expect(self, refusal: type[JobberError] | None) -> t.Iterator[None]:
        """Act in a transaction of its own, which is to be refused or not."""
        with self.world.session(), pytest.raises(refusal) if refusal else contextlib.nullcontext():
            yield

    def _end_dead(self, only: t.Container[int] | None = None) -> int:
        chosen = [job for job_id, job in self.jobs.items() if only is None or job_id in only]
        return sum(job.end_if_dead(self.clock) for job in chosen)

    def _rows(self) -> dict[int, t.Any]:
        with self.world.session() as session:
            return {row.id: row for row in session.execute(sa.select(self.world.Job.__table__))}


@pytest.fixture
def machine_world(make_world: MakeWorld, db_url: str) -> World:
    return make_world(db_url, JOBBER_BACKOFF=Constant(LENGTH))


def test_no_sequence_of_verbs_leaves_the_model(machine_world: World) -> None:
    """States, attempts, failures, holders, answers and histories are as the model says after every step."""
    run_machine(Machine, machine_world, on_sqlite=40, elsewhere=6)
