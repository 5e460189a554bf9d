"""Series of objects and functions: what performs or is called again and again."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from delayed_support import Shop
from flask_jobber import Cancel, Invalid, State
from situations import states
from support import World


@pytest.fixture
def shop(lite: World) -> Shop:
    return Shop(lite)


@dataclasses.dataclass
class Report:
    """Asked for by name."""

    title: str
    queue: t.ClassVar[str] = "reports"
    done: t.ClassVar[list[str]] = []
    hooked: t.ClassVar[list[str]] = []

    def enqueue(self, job: t.Any) -> None:
        self.hooked.append(job.queue)

    def perform(self) -> None:
        self.done.append(self.title)


@pytest.fixture
def report(shop: Shop) -> Report:
    Report.done.clear()
    Report.hooked.clear()
    shop.jobber.performable(Report)
    return Report("sales")


def again(shop: Shop) -> None:
    """Do the job that is due, and wait for the next."""
    assert shop.work()[1] is State.SUCCEEDED
    shop.world.pass_time(3600)


def queues(shop: Shop) -> set[str]:
    return {shop.world.job(job_id).queue for job_id in states(shop.world)}


def test_an_object_performs_at_each_slot(shop: Shop, report: Report) -> None:
    """What its class says of its jobs holds for each, and its hook sees the first."""
    with shop.world.session():
        shop.jobber.schedule("sales", report, every=3600)
    again(shop)
    again(shop)
    assert report.done == ["sales", "sales"]
    assert queues(shop) == set(report.hooked) == {"reports"}


def test_a_declared_object_is_left_alone(shop: Shop, report: Report) -> None:
    """However often its schedule is applied there is one job; another object changes that."""
    shop.jobber.schedule("sales", report, every=3600)
    for _ in range(3):
        with shop.world.session():
            shop.jobber.apply_schedules()
    assert len(states(shop.world)) == 1
    with shop.world.session():
        shop.jobber.schedule("sales", Report("costs"), every=3600)
    again(shop)
    assert report.done == ["costs"]


def test_functions_and_methods_are_called_at_each_slot(shop: Shop) -> None:
    """With the options that later was given."""
    calls: list[str] = []

    @shop.jobber.later(queue="night")
    def sweep() -> None:
        calls.append("swept")

    shop.order()
    with shop.world.session() as session:
        shop.jobber.schedule("sweep", sweep, every=3600)
        shop.jobber.schedule("ship", session.get(shop.Order, 1).ship, every=3600)
    for _ in range(2):
        shop.work()
        again(shop)
    assert calls == ["swept", "swept"]
    assert len(shop.done) == 2
    assert queues(shop) == {"night", "default"}


def test_cancel_ends_the_series_of_an_object(shop: Shop, report: Report) -> None:
    def perform(self: Report) -> None:
        raise Cancel("enough")

    shop.jobber.performable(type("Once", (Report,), {"perform": perform}), name="once")
    once = next(thing for thing in Report.__subclasses__() if thing.__name__ == "Once")
    with shop.world.session():
        shop.jobber.schedule("once", once("last"), every=60)
    assert shop.work()[1] is State.CANCELLED
    assert set(states(shop.world).values()) == {State.CANCELLED}


@pytest.mark.parametrize("thing", [5, dict, Report])
def test_what_cannot_be_called_is_refused(shop: Shop, report: Report, thing: t.Any) -> None:
    with shop.world.session(), pytest.raises(Invalid, match="type"):
        shop.jobber.schedule("wrong", thing, every=60)


def test_reserved_types_are_not_scheduled_by_their_text(shop: Shop) -> None:
    with shop.world.session(), pytest.raises(Invalid, match="are not for this"):
        shop.jobber.schedule("wrong", "jobber:perform", {}, every=60)
