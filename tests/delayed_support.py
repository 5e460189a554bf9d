"""A shop whose objects and functions become jobs, and what runs them as a worker does."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import typing as t

import sqlalchemy as sa
from marshmallow import Schema, fields
from sqlalchemy.orm import Mapped, mapped_column

from flask_jobber import State
from flask_jobber.core.claim import Claim
from flask_jobber.delayed.performer import PERFORM
from flask_jobber.worker.job import Job
from flask_jobber.worker.run import Failed, Outcome, Released, Succeeded, run
from support import World


class Color(enum.Enum):
    RED = "#f00"
    BLUE = "#00f"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: t.Any
    y: t.Any = 0


class Money:
    """Says itself what it is made of."""

    def __init__(self, amount: int, currency: str) -> None:
        self.amount, self.currency = amount, currency

    def to_job(self) -> list[t.Any]:
        return [self.amount, self.currency]

    @classmethod
    def from_job(cls, value: list[t.Any]) -> Money:
        return cls(*value)


class AddressSchema(Schema):
    street = fields.String()
    since = fields.Date()


class Address:
    """A schema says what it is made of."""

    job_schema = AddressSchema

    def __init__(self, street: str, since: dt.date) -> None:
        self.street, self.since = street, since


class Shop:
    """An app with mapped things; all that is done is noted in ``done``."""

    def __init__(self, world: World) -> None:
        self.world, self.db, self.jobber = world, world.db, world.jobber
        self.done: list[t.Any] = []
        self.Order = self._make_order()
        self.keep = self.jobber.performable(lambda value: self.done.append(value), name="keep")
        for thing in (Color, Right, Point, Money, Address):
            self.jobber.performable(thing)
        with world.app.app_context():
            self.db.create_all()

    def _make_order(self) -> t.Any:
        shop, jobber = self, self.jobber

        class Order(self.db.Model):  # type: ignore[name-defined, misc]
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str] = mapped_column(sa.String(50), default="")
            #: Columns that are called like what a class may say of its jobs.
            priority: Mapped[int] = mapped_column(default=7)
            queue: Mapped[str] = mapped_column(sa.String(50), default="of the shop")

            def perform(self) -> str:
                shop.done.append(("performed", self.id, self.title))
                return self.title

            def ship(self, *args: t.Any, **kwargs: t.Any) -> None:
                shop.done.append(("shipped", self.id, self.title, args, kwargs))

            def rename(self, title: str) -> None:
                self.title = title

            def _secret(self) -> None:
                shop.done.append("secret")

            @classmethod
            def count(cls, least: int) -> int:
                return least + shop.db.session.query(cls).count()

            @jobber.later
            def bill(self, *, twice: bool = False) -> str:
                """Send a bill."""
                shop.done.append(("billed", self.id, twice))
                return "billed"

            @jobber.later(priority=5, queue="mail", max_attempts=2)
            def remind(self, text: str) -> str:
                shop.done.append(("reminded", self.id, text))
                return text

        return Order

    def order(self, id: int = 1, title: str = "tea") -> int:
        """Put an order into the database; return its id."""
        with self.world.session() as session:
            session.add(self.Order(id=id, title=title))
        return id

    def enqueue(self, act: t.Callable[[], t.Any]) -> int:
        """Enqueue by an act; return the job's id."""
        with self.world.session():
            return int(act().id)

    def given(self, value: t.Any) -> t.Any:
        """Return a value as a job gets it that was enqueued with it."""
        self.enqueue(lambda: self.jobber.send_later(self.keep, value))
        assert self.work()[1] is State.SUCCEEDED
        return self.done.pop()

    def work(self) -> tuple[Outcome, State]:
        """Do the next job as a worker does; return what came of it, and its state then."""
        with self.world.session():
            (claim,) = self.jobber.claim("server", types=[PERFORM])
        with self.world.app.app_context():
            outcome = run(self.jobber.handlers[PERFORM], job_of(claim))
        with self.world.session():
            return outcome, self._settle(claim, outcome)

    def _settle(self, claim: Claim, outcome: Outcome) -> State:
        hold = ("server", claim.id, claim.attempt)
        if isinstance(outcome, Succeeded):
            return self.jobber.deliver(*hold, outcome.result, outcome.extras)
        if isinstance(outcome, Released):
            self.jobber.release(*hold, delay_seconds=outcome.delay_seconds)
            return State.QUEUED
        assert isinstance(outcome, Failed)
        ends = {"permanent": outcome.permanent, "cancel": outcome.cancel}
        return self.jobber.fail(*hold, outcome.error, **ends)

    def put(self, data: t.Any) -> None:
        """Put a job into the table whose data nobody has checked."""
        with self.world.session() as session:
            session.add(self.world.Job(type=PERFORM, data=data, max_attempts=3))


def job_of(claim: Claim) -> Job:
    """Return a claim as a handler sees it."""
    return Job(**dataclasses.asdict(claim), node="server")
