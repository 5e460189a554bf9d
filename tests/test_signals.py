"""Signals: each after the commit that made it true, and only then."""

from __future__ import annotations

import contextlib
import logging
import typing as t

import pytest
import sqlalchemy as sa

import flask_jobber
from flask_jobber import job_enqueued, job_succeeded
from situations import ERROR, LOCKER, ago, put
from support import World

NAMES = [name for name in flask_jobber.__all__ if name.startswith("job_")]
Heard = list[tuple[str, int, int, str | None]]


@contextlib.contextmanager
def listening(sender: object) -> t.Iterator[Heard]:
    """Collect ``(name, job_id, attempt, locker)`` of every signal of a Jobber."""
    heard: Heard = []

    def receiver(name: str) -> t.Callable[..., None]:
        def receive(sender: object, *, job_id: int, attempt: int, locker: str | None) -> None:
            heard.append((name.removeprefix("job_"), job_id, attempt, locker))

        return receive

    with contextlib.ExitStack() as stack:
        for name in NAMES:
            signal = getattr(flask_jobber, name)
            stack.enter_context(signal.connected_to(receiver(name), sender=sender))
        yield heard


def test_every_transition_has_its_signal(world: World) -> None:
    """With the job, the attempt it belongs to, and who held it then."""
    broken = True

    @world.jobber.processor("work")
    def processor(job: t.Any, result: t.Any) -> None:
        if broken:
            raise RuntimeError("broke")

    ann, bob, root = world.client("ann"), world.client("bob", "left"), world.client("root")
    with listening(world.jobber) as heard:
        job_id = world.enqueue(max_attempts=9)
        [job] = ann.claim()
        ann.extend(job)
        ann.release(job)
        [job] = bob.claim()
        bob.fail(job)
        world.pass_time(10_000)
        [job] = bob.claim()
        world.pass_time(10_000)
        [job] = ann.claim()
        ann.deliver(job, 1)
        ann.deliver(job, 1)
        broken = False
        world.pass_time(10_000)
        with world.app.app_context():
            world.jobber.process_submitted()
        of_the_first = [signal[:1] + signal[2:] for signal in heard if signal[1] == job_id]
        heard.clear()

        other = world.enqueue(unique_key="k")
        world.enqueue(unique_key="k", on_conflict="replace", expires_at=ago(-5))
        root.post(f"/jobs/{other}/cancel")
        root.post(f"/jobs/{other}/retry")
        with world.session():
            put(world, other, expires_at=ago(5))
            world.jobber.expire()
        with world.session():
            world.jobber.retry(other)
        [job] = ann.claim()
        ann.fail(job, permanent=True)

    left, anns = "user_bob/left", "user_ann"
    assert of_the_first == [
        ("enqueued", 0, None), ("claimed", 1, anns), ("released", 1, anns), ("claimed", 2, left),
        ("rescheduled", 2, left), ("claimed", 3, left), ("rescheduled", 3, left), ("claimed", 4, anns),
        ("submitted", 4, anns), ("succeeded", 4, anns),
    ]  # fmt: skip
    assert heard == [
        ("enqueued", other, 0, None), ("replaced", other, 0, None), ("cancelled", other, 0, None),
        ("retried", other, 0, None), ("expired", other, 0, None), ("retried", other, 0, None),
        ("claimed", other, 1, anns), ("failed", other, 1, anns),
    ]  # fmt: skip
    told = {f"job_{name}" for name, *_ in of_the_first} | {f"job_{name}" for name, *_ in heard}
    assert told == set(NAMES)


def test_a_signal_is_sent_after_the_commit(world: World) -> None:
    """Its receiver, and anybody on another connection, sees what it is told of."""
    seen: list[t.Any] = []

    def look(sender: object, **facts: t.Any) -> None:
        table = world.Job.__table__
        with world.db.engine.connect() as other:
            seen.append(other.execute(sa.select(table.c.id, table.c.state)).one())

    with job_enqueued.connected_to(look, sender=world.jobber), world.app.app_context():
        job_id = world.jobber.enqueue("work").id
        assert seen == []
        world.db.session.commit()

    assert seen == [(job_id, "queued")]


def test_a_roll_back_sends_nothing(world: World) -> None:
    """Nor does anything of it come with a later commit of the same session."""
    job_id = world.enqueue()
    with listening(world.jobber) as heard, world.app.app_context():
        for end in (world.db.session.rollback, world.db.session.close, world.db.session.remove):
            world.jobber.enqueue("work")
            world.jobber.cancel(job_id)
            end()
            world.db.session.execute(sa.select(1))
            world.db.session.commit()
            assert heard == []

    assert world.job(job_id).state == "queued"


def test_a_rolled_back_savepoint_sends_nothing_of_its_own(world: World) -> None:
    """What was released into one that was rolled back counts as rolled back; the rest is sent in order."""
    with listening(world.jobber) as heard:
        with world.session() as session:
            session.execute(sa.update(world.Job).values(note=None))  # begins the transaction
            world.jobber.enqueue("first")
            outer = session.begin_nested()
            world.jobber.enqueue("lost")
            with session.begin_nested():
                world.jobber.enqueue("lost", unique_key="k")
            outer.rollback()
            with session.begin_nested():
                world.jobber.enqueue("second")
                inner = session.begin_nested()
                world.jobber.enqueue("lost", unique_key="k")
                inner.rollback()
                world.jobber.enqueue("third", unique_key="k")
            assert heard == []
        with world.session() as session:
            kept = session.execute(sa.select(world.Job.id, world.Job.type).order_by(world.Job.id)).all()

    assert [row.type for row in kept] == ["first", "second", "third"]
    assert [job_id for _, job_id, *_ in heard] == [row.id for row in kept]


def test_a_savepoint_that_never_ended_goes_with_the_one_around_it(lite: World) -> None:
    """Whoever rolls the outer one back need not know of the inner."""
    with listening(lite.jobber) as heard:
        with lite.session() as session:
            outer = session.begin_nested()
            session.begin_nested()
            lite.jobber.enqueue("lost")
            outer.rollback()
            lite.jobber.enqueue("kept")
        with lite.session() as session:
            [kept] = session.scalars(sa.select(lite.Job.id))
    assert [job_id for _, job_id, *_ in heard] == [kept]


def test_what_is_refused_sends_nothing(lite: World) -> None:
    """A stranger's result, a rejected wish, a taken key, a claim that finds nothing."""
    job_id = lite.enqueue(unique_key="k")
    ann, bob = lite.client("ann"), lite.client("bob")
    [job] = ann.claim()
    with listening(lite.jobber) as heard:
        assert bob.deliver(job).status_code == 409
        assert bob.post(f"/jobs/{job_id}/cancel").status_code == 403
        assert bob.claim() == []
        with lite.session(), pytest.raises(flask_jobber.DuplicateJob):
            lite.jobber.enqueue("work", unique_key="k")
    assert heard == []


def test_a_receiver_that_raises_is_logged_and_breaks_nothing(
    lite: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What it hears of has happened; the next signals are sent all the same."""

    def raise_(sender: object, **facts: t.Any) -> None:
        raise RuntimeError("no mail server")

    with listening(lite.jobber) as heard, job_enqueued.connected_to(raise_, sender=lite.jobber):
        job_id = lite.enqueue()
        with lite.session():
            lite.jobber.enqueue_many([{"type": "work"}] * 2)
            lite.jobber.cancel(job_id)

    assert lite.job(job_id).state == "cancelled"
    assert [name for name, *_ in heard][-1] == "cancelled"
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info and str(record.exc_info[1]) for record in errors] == ["no mail server"] * 3
    assert errors[0].job_id == job_id  # type: ignore[attr-defined]


def test_a_receiver_may_use_the_session(world: World) -> None:
    """It begins a transaction of its own, whose commit sends signals in turn."""

    def follow(sender: t.Any, *, job_id: int, **facts: t.Any) -> None:
        job = world.db.session.get_one(world.Job, job_id)
        sender.enqueue("next", job.result)
        world.db.session.commit()

    world.enqueue()
    ann = world.client("ann")
    [job] = ann.claim()
    with job_succeeded.connected_to(follow, sender=world.jobber), listening(world.jobber) as heard:
        assert ann.deliver(job, "onwards").json == {"state": "succeeded"}

    [following] = ann.claim(types=["next"])
    assert following["data"] == "onwards"
    assert sorted(name for name, *_ in heard) == ["enqueued", "succeeded"]


def test_a_commit_that_fails_sends_nothing(lite: World) -> None:
    """The database has the last word."""

    def refuse(session: object) -> None:
        raise RuntimeError("refused")

    with listening(lite.jobber) as heard, lite.app.app_context():
        lite.jobber.enqueue("work")
        session = lite.db.session()
        sa.event.listen(session, "before_commit", refuse)
        with pytest.raises(RuntimeError, match="refused"):
            session.commit()
        sa.event.remove(session, "before_commit", refuse)
        session.rollback()
        session.execute(sa.select(1))
        session.commit()
    assert heard == []


def test_many_signals_come_in_the_order_of_what_happened(lite: World) -> None:
    """Within one transaction of several verbs."""
    with listening(lite.jobber) as heard, lite.session():
        job_id = lite.jobber.enqueue("work", max_attempts=1).id
        lite.jobber.claim(LOCKER)
        lite.jobber.fail(LOCKER, job_id, 1, ERROR)
        lite.jobber.retry(job_id)

    assert heard == [
        ("enqueued", job_id, 0, None), ("claimed", job_id, 1, LOCKER), ("failed", job_id, 1, LOCKER),
        ("retried", job_id, 1, None),
    ]  # fmt: skip
