"""Any sequence of enqueues with keys, claims and ends, committed or not, against a model."""

from __future__ import annotations

import copy
import dataclasses
import typing as t

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from conftest import MakeWorld
from flask_jobber import DuplicateJob
from machines import run_machine
from situations import LOCKER, assert_legal
from support import World

#: Seconds, in which nothing becomes due.
LONG = 100_000
KEYS = ("a", "b")
POLICIES = ("raise", "skip", "replace", "reschedule")
WAITING = ("queued", "scheduled")


@dataclasses.dataclass
class Model:
    """A job as it should be."""

    key: str | None
    data: int
    state: str
    path: list[str]
    attempts: int = 0


class Machine(RuleBasedStateMachine):
    """One session, whose objects are all kept, so that it could take any of them for another."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.jobber = world, world.jobber
        self.jobs: dict[int, Model] = {}
        self.committed: dict[int, Model] = {}
        self.objects: dict[int, t.Any] = {}
        self.context = world.app.app_context()

    @initialize()
    def begin(self) -> None:
        with self.world.session() as session:
            for model in (self.world.Job, self.jobber.History):
                session.execute(sa.delete(model))
        self.context.push()
        self.session = self.world.db.session

    def teardown(self) -> None:
        self.session.rollback()
        self.context.pop()

    def _holder(self, key: str | None) -> int | None:
        """Return the unfinished job that has the key."""
        live = (*WAITING, "locked")
        return next(
            (id for id, job in self.jobs.items() if key and job.key == key and job.state in live), None
        )

    def _spec(self, key: str | None, conflict: str, data: int, later: bool) -> dict[str, t.Any]:
        said = {"unique_key": key, "on_conflict": conflict} if key else {}
        return {"type": "work", "data": data, **said, **({"after": LONG} if later else {})}

    def _expect(self, spec: dict[str, t.Any]) -> int | type[DuplicateJob] | None:
        """Let it happen to the model; return which job it meets, ``None`` for a new one."""
        conflict, there = spec.get("on_conflict"), self._holder(spec.get("unique_key"))
        state = "scheduled" if "after" in spec else "queued"
        if there is None or conflict == "skip":
            return there
        job = self.jobs[there]
        if conflict == "raise" or job.state not in WAITING:
            return DuplicateJob
        job.state = state
        job.data = spec["data"] if conflict == "replace" else job.data
        job.path.append(t.cast(str, conflict))
        return there

    def _note(self, spec: dict[str, t.Any], there: int | None, job: t.Any) -> None:
        if there is None:
            assert job.id not in self.jobs
            state = "scheduled" if "after" in spec else "queued"
            self.jobs[job.id] = Model(spec.get("unique_key"), spec["data"], state, ["enqueue"])
        else:
            assert job.id == there
            assert job is self.objects.get(there, job)
        self.objects[job.id] = job

    @rule(
        key=st.sampled_from([None, *KEYS]),
        conflict=st.sampled_from(POLICIES),
        data=st.integers(0, 99),
        later=st.booleans(),
    )
    def enqueue(self, key: str | None, conflict: str, data: int, later: bool) -> None:
        spec = self._spec(key, conflict, data, later)
        there = self._expect(spec)
        if there is DuplicateJob:
            with pytest.raises(DuplicateJob):
                self.jobber.enqueue_many([spec])
        else:
            self._note(spec, t.cast(int | None, there), self.jobber.enqueue_many([spec])[0])

    @rule(
        keys=st.lists(st.sampled_from([None, *KEYS]), max_size=4),
        conflicts=st.lists(st.sampled_from(POLICIES[1:]), min_size=4, max_size=4),
        later=st.booleans(),
    )
    def enqueue_many(self, keys: list[str | None], conflicts: list[str], later: bool) -> None:
        """None of them is done when one of them cannot be."""
        specs = [self._spec(key, conflicts[n], n, later) for n, key in enumerate(keys)]
        begun = [
            s for s in specs if (id := self._holder(s.get("unique_key"))) and self.jobs[id].state == "locked"
        ]
        if any(spec["on_conflict"] != "skip" for spec in begun):
            with pytest.raises(DuplicateJob):
                self.jobber.enqueue_many(specs)
            return
        for spec, job in zip(specs, self.jobber.enqueue_many(specs), strict=True):
            self._note(spec, t.cast(int | None, self._expect(spec)), job)

    @rule(limit=st.integers(1, 2))
    def claim(self, limit: int) -> None:
        due = {id for id, job in self.jobs.items() if job.state == "queued"}
        claims = self.jobber.claim(LOCKER, limit=limit, lease_seconds=LONG / 10)
        assert len(claims) == min(limit, len(due))
        for claim in claims:
            job = self.jobs[claim.id]
            assert claim.id in due
            assert claim.data == job.data
            job.state, job.attempts = "locked", job.attempts + 1
            job.path.append("claim")
            assert claim.attempt == job.attempts

    @precondition(lambda self: any(job.state == "locked" for job in self.jobs.values()))
    @rule(data=st.data(), how=st.sampled_from(["deliver", "release"]))
    def let_go(self, data: st.DataObject, how: str) -> None:
        held = [id for id, job in self.jobs.items() if job.state == "locked"]
        job_id = data.draw(st.sampled_from(held), "job")
        job = self.jobs[job_id]
        getattr(self.jobber, how)(LOCKER, job_id, job.attempts)
        job.state = "succeeded" if how == "deliver" else "queued"
        job.path.append(how)

    @precondition(lambda self: any(job.state in (*WAITING, "locked") for job in self.jobs.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        some = [id for id, job in self.jobs.items() if job.state in (*WAITING, "locked")]
        job_id = data.draw(st.sampled_from(some), "job")
        self.jobber.cancel(job_id)
        self.jobs[job_id].state = "cancelled"
        self.jobs[job_id].path.append("cancel")

    @rule()
    def load(self) -> None:
        """The caller has all of them in its session, as objects of its own."""
        for job in self.session.scalars(sa.select(self.world.Job)):
            assert job is self.objects.setdefault(job.id, job)

    @rule()
    def commit(self) -> None:
        self.session.commit()
        self.committed = copy.deepcopy(self.jobs)

    @rule()
    def roll_back(self) -> None:
        self.session.rollback()
        self.jobs = copy.deepcopy(self.committed)
        self.objects = {
            id: job for id, job in self.objects.items() if id in self.jobs and job in self.session
        }

    @rule(key=st.sampled_from(KEYS), conflict=st.sampled_from(POLICIES[1:]))
    def roll_back_to_a_savepoint(self, key: str, conflict: str) -> None:
        jobs = copy.deepcopy(self.jobs)
        with self.session.begin_nested() as savepoint:
            self.enqueue(key, conflict, 7, False)
            savepoint.rollback()
        self.jobs = jobs
        self.objects = {id: job for id, job in self.objects.items() if id in jobs and job in self.session}

    @invariant()
    def every_object_is_as_the_model_says(self) -> None:
        for job_id, job in self.objects.items():
            model = self.jobs[job_id]
            assert (job.id, job.state, job.data) == (job_id, model.state, model.data)
            assert job.unique_key == (model.key if model.state in (*WAITING, "locked") else None)

    @invariant()
    def every_row_is_as_the_model_says(self) -> None:
        jobs, h = self.world.Job.__table__.c, self.jobber.History.__table__.c
        rows = self.session.execute(sa.select(jobs.id, jobs.state, jobs.data)).all()
        assert {row.id: (row.state, row.data) for row in rows} == {
            job_id: (job.state, job.data) for job_id, job in self.jobs.items()
        }
        paths: dict[int, list[t.Any]] = {job_id: [] for job_id in self.jobs}
        for row in self.session.execute(
            sa.select(h.job_id, h.from_state, h.to_state, h.reason).order_by(h.id)
        ):
            paths[row.job_id].append((row.from_state, row.to_state, row.reason))
        for job_id, path in paths.items():
            assert_legal(path)
            assert [reason for *_, reason in path] == self.jobs[job_id].path


@pytest.fixture
def machine_world(make_world: MakeWorld, db_url: str) -> World:
    return make_world(db_url)


def test_no_sequence_leaves_two_jobs_or_a_stale_object(machine_world: World) -> None:
    """Rows, histories and every object of the session are as the model says after every step."""
    run_machine(Machine, machine_world, on_sqlite=80, elsewhere=12)
