"""Fairness: the owners of jobs take turns."""

from __future__ import annotations

import datetime as dt
import typing as t

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_jobber import Jobber, JobMixin, SetupError
from race_support import together
from support import World
from test_claim_plan import claim_within_bounds, settle_statistics

NOW = dt.datetime.now(dt.UTC)


class FairWorld(World):
    """Jobs take turns by user; a column has nothing to do with it."""

    fair_by: str | None = "user_id"

    def _make_jobber(self) -> Jobber:
        return Jobber(self.db, self.Job, fair_by=self.fair_by)

    def add(self, user: str | None, count: int, type: str = "work", **spec: t.Any) -> list[int]:
        with self.session():
            jobs = self.jobber.enqueue_many([{"type": type, "user_id": user, **spec}] * count)
            return [job.id for job in jobs]

    def serve(self, count: int, **wish: t.Any) -> list[str | None]:
        """Hand out jobs one by one and end each; return whose they were."""
        served = list[str | None]()
        for _ in range(count):
            with self.session() as session:
                for claim in self.jobber.claim("worker", **wish):
                    self.jobber.deliver("worker", claim.id, claim.attempt)
                    served.append(session.get(self.Job, claim.id).user_id)
        return served


@pytest.fixture
def fair(make_world: t.Callable[..., World], db_url: str, monkeypatch: pytest.MonkeyPatch) -> FairWorld:
    """A world on each engine."""
    return t.cast(FairWorld, make_world(db_url, kind=FairWorld))


def test_one_with_thousands_does_not_starve_one_with_ten(fair: FairWorld) -> None:
    """Though the ten came last, and hundreds of the thousands were served before."""
    fair.add("ann", 3000)
    fair.serve(50)
    fair.add("bob", 10)
    served = fair.serve(21)
    assert served.count("bob") == 10
    assert served.count("ann") == 11


def test_who_was_served_much_does_not_pay_for_it_when_nothing_waits(fair: FairWorld) -> None:
    """A new owner and an old one begin together."""
    fair.add("ann", 60)
    fair.serve(60)
    fair.add("bob", 40)
    fair.add("ann", 5)
    assert fair.serve(12).count("ann") == 5


def test_jobs_that_are_stuck_let_nobody_overtake(fair: FairWorld) -> None:
    """Nobody takes the first job; a newcomer does not get the turns that all others had long ago."""
    fair.add("eve", 1, only_for="nobody")
    fair.add("ann", 200)
    fair.serve(120)
    fair.add("bob", 100)
    served = fair.serve(100)
    assert served.count("ann") >= 25


def test_many_owners_at_once(fair: FairWorld) -> None:
    """In one enqueue; each gets turns of its own, in the order of its jobs."""
    owners = [f"u{number:03}" for number in range(250)]
    with fair.session():
        specs = [{"type": "work", "user_id": owner} for owner in owners for _ in range(2)]
        fair.jobber.enqueue_many(specs)
    assert sorted(t.cast(list[str], fair.serve(250))) == owners


def test_priorities_come_first(fair: FairWorld) -> None:
    """An owner's urgent jobs are before another's turn."""
    fair.add("bob", 2)
    fair.add("ann", 5, priority=1)
    assert fair.serve(7) == ["ann"] * 5 + ["bob"] * 2


def test_types_take_turns_of_their_own(fair: FairWorld) -> None:
    """Who had many jobs of one type has the first turn of another."""
    fair.add("ann", 20, "a")
    fair.add("ann", 4, "b")
    fair.add("bob", 4, "b")
    assert fair.serve(8, types=["b"]) == ["ann", "bob"] * 4
    fair.add("bob", 2, "a")
    assert fair.serve(4, types=["a", "b"]).count("bob") == 2


def test_due_jobs_take_their_turn(fair: FairWorld) -> None:
    """A thousand that were scheduled and have become due do not go before two that wait."""
    fair.add("ann", 300, run_at=NOW + dt.timedelta(hours=1))
    fair.pass_time(4000)
    fair.add("bob", 2)
    assert fair.serve(5).count("bob") == 2


def test_a_job_that_was_handed_out_has_had_its_turn(fair: FairWorld) -> None:
    """Given back, with a delay or without, or failed, it waits for no second one."""
    ids = fair.add("ann", 30)
    with fair.session():
        claims = fair.jobber.claim("worker", limit=3)
        fair.jobber.release("worker", claims[0].id, 1)
        fair.jobber.release("worker", claims[1].id, 1, delay_seconds=5)
        fair.jobber.fail("worker", claims[2].id, 1, {"type": "E", "message": "m", "traceback": None})
    fair.pass_time(1000)
    with fair.session():
        again = fair.jobber.claim("worker", limit=3)
    assert sorted(claim.id for claim in again) == ids[:3]


def test_enqueuers_of_one_owner_at_once(fair: FairWorld) -> None:
    """No turn is given twice, and none is left out."""
    together(8, lambda number: fair.add("ann", 5))
    with fair.session() as session:
        turns = session.scalars(sa.select(fair.Job.turn).order_by(fair.Job.turn)).all()
        last = session.scalar(sa.select(fair.jobber.Turn.turn))
    assert turns == list(range(1, 41))
    assert last == 40


def test_an_owner_given_as_an_object(make_world: t.Callable[..., World], db_url: str) -> None:
    """Its key is known before the job's row has it."""
    world = make_world(db_url, kind=_World)
    with world.session() as session:
        ann, bob = world.Person(), world.Person()
        session.add_all([ann, bob])
        session.flush()
        jobs = world.jobber.enqueue_many([{"type": "work", "person": ann}] * 3)
        jobs += world.jobber.enqueue_many([{"type": "work", "person": bob}])
        assert [job.turn for job in jobs] == [1, 2, 3, 1]


class _World(FairWorld):
    fair_by = "person_id"

    def _make_job_class(self) -> type[t.Any]:
        class Person(self.db.Model):  # type: ignore[name-defined, misc]
            id: Mapped[int] = mapped_column(primary_key=True)

        class Job(JobMixin, self.db.Model):  # type: ignore[name-defined, misc]
            person_id: Mapped[int | None] = mapped_column(sa.ForeignKey("person.id"))
            person = sa.orm.relationship(Person)
            user_id: Mapped[str | None] = mapped_column(sa.String(20))

        self.Person = Person
        return Job


def test_a_claim_costs_the_same(fair: FairWorld) -> None:
    """The order of turns is read from the index, with very many jobs of one owner."""
    with fair.session() as session:
        given = {"type": "work", "state": "queued", "max_attempts": 3, "run_at": NOW, "user_id": "ann"}
        rows = [given | {"turn": turn} for turn in range(1, 10_001)]
        session.execute(sa.insert(fair.Job.__table__), rows)
        turn = fair.jobber.Turn(type="work", priority=0, value="ann", turn=10_000)
        session.add(turn)
    bobs = fair.add("bob", 2)
    settle_statistics(fair)
    root = fair.client("root")
    found = [claim_within_bounds(root, fair)["id"] for _ in range(4)]
    assert bobs[1] in found
    claim_within_bounds(root, fair, types=["work"])
    claim_within_bounds(fair.client("ann"), fair)


def test_turns_are_forgotten(fair: FairWorld) -> None:
    """Of owners that nothing was enqueued for in a long time; others keep theirs."""
    fair.add("ann", 2)
    fair.add("bob", 1)
    with fair.session() as session:
        session.execute(
            sa.update(fair.jobber.Turn)
            .where(fair.jobber.Turn.value == "ann")
            .values(used_at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        )
    with fair.session() as session:
        fair.jobber.prune()
        assert session.scalars(sa.select(fair.jobber.Turn.value)).all() == ["bob"]


def test_without_it_nothing_is_written(world: World) -> None:
    """And every job has the turn 0."""
    world.enqueue(user_id="ann")
    with world.session() as session:
        assert session.scalar(sa.select(world.Job.turn)) == 0
        assert session.scalars(sa.select(world.jobber.Turn)).all() == []


def test_a_column_that_is_none() -> None:
    """It says which there are."""
    with pytest.raises(SetupError, match="owner_ref"):
        Jobber(SQLAlchemy(), fair_by="absent")
