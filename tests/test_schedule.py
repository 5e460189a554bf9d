"""Jobs that run again and again."""

from __future__ import annotations

import datetime as dt
import itertools
import sys
import threading
import typing as t
import zoneinfo

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from conftest import MakeWorld
from flask_jobber import Cron, DuplicateJob, Invalid, ResultRejected, SetupError, job_enqueued
from flask_jobber.core import cadence
from situations import ERROR, ago, assert_legal, put, states, stored
from support import World

LOCKER = "user_ann"
NEVER = "0 3 1 1 *"
Instants = list[dt.datetime]


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def slots(every: t.Any, begin: dt.datetime, number: int) -> Instants:
    """Return the slots of a series that is never late, after a moment."""
    read, found = cadence.read(every), [begin]
    for _ in range(number):
        found.append(cadence.following(read, found[-1], found[-1]))
    return found[1:]


# -- when ------------------------------------------------------------------------------------

CHANGES = [
    # (zone, line, before the change, the slots around it)
    ("Europe/Berlin", "30 2 * * *", "2026-03-28T00:00", "03-28T01:30 03-29T01:00 03-30T00:30"),
    ("Europe/Berlin", "30 2 * * *", "2026-10-24T00:00", "10-24T00:30 10-25T00:30 10-26T01:30"),
    ("Europe/Berlin", "*/20 2 * * *", "2026-03-28T02:00", "03-29T01:00 03-30T00:00 03-30T00:20"),
    ("Europe/Berlin", "*/30 2 * * *", "2026-10-24T23:00", "10-25T00:00 10-25T00:30 10-26T01:00"),
    ("Europe/Berlin", "0 0 * * *", "2026-03-28T12:00", "03-28T23:00 03-29T22:00 03-30T22:00"),
    ("America/New_York", "30 2 * * *", "2026-03-07T00:00", "03-07T07:30 03-08T07:00 03-09T06:30"),
    ("America/New_York", "30 1 * * *", "2026-10-31T00:00", "10-31T05:30 11-01T05:30 11-02T06:30"),
    ("UTC", "30 2 * * *", "2026-03-28T00:00", "03-28T02:30 03-29T02:30 03-30T02:30"),
]


@pytest.mark.parametrize(("zone", "line", "begin", "expected"), CHANGES)
def test_a_time_of_the_day_comes_once_a_day(zone: str, line: str, begin: str, expected: str) -> None:
    """One that the clocks skip at the next moment there is, one that they show twice the first time."""
    found = slots(Cron(line, time_zone=zone), utc(begin), 3)
    assert found == [utc(f"2026-{text}") for text in expected.split()]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
@pytest.mark.parametrize("begin", ["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01"])
def test_a_line_for_every_hour_goes_on_evenly(zone: str, begin: str) -> None:
    """Neither a gap nor a burst when the clocks are changed, whenever one asks."""
    quarter = dt.timedelta(minutes=15)
    start = utc(f"{begin}T00:00") - dt.timedelta(hours=6)
    found = slots(Cron("*/15 * * * *", time_zone=zone), start, 100)
    assert found == [start + quarter * number for number in range(1, 101)]
    for minutes in range(0, 24 * 60, 7):
        now = start + dt.timedelta(minutes=minutes, microseconds=1)
        (following,) = slots(Cron("*/15 * * * *", time_zone=zone), now, 1)
        assert now < following <= now + quarter


def test_half_an_hour_of_change_keeps_the_clocks_hours() -> None:
    """Lord Howe's clocks are changed by thirty minutes; the full hour is that of the clocks."""
    zone = zoneinfo.ZoneInfo("Australia/Lord_Howe")
    for begin in ("2026-04-04T10:00", "2026-10-03T10:00"):
        found = slots(Cron("0 * * * *", time_zone=zone.key), utc(begin), 12)
        assert {instant.astimezone(zone).minute for instant in found} == {0}
        steps = [late - early for early, late in itertools.pairwise(found)]
        assert max(steps) <= dt.timedelta(minutes=90)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_slots_only_grow(zone: str) -> None:
    """From any moment around the changes the next one is later, and the same as from just before it."""
    for line, begin in itertools.product(
        ("30 2 * * *", "*/20 1-3 * * *", "7 * * * *"), ("2026-03-29", "2026-10-25")
    ):
        for minutes in range(-300, 300, 11):
            now = utc(f"{begin}T01:00") + dt.timedelta(minutes=minutes)
            (following,) = slots(Cron(line, time_zone=zone), now, 1)
            assert following > now
            assert slots(Cron(line, time_zone=zone), following - dt.timedelta(microseconds=1), 1) == [
                following
            ]


def test_an_interval_keeps_its_step_and_makes_nothing_up() -> None:
    """However late a job ended, the next slot is the first to come."""
    begin, hour = utc("2026-01-01T00:00"), cadence.read(dt.timedelta(hours=1))
    for late, expected in ((0, 1), (1, 1), (60, 2), (61, 2), (600, 11)):
        now = begin + dt.timedelta(minutes=late)
        assert cadence.following(hour, begin, now) == begin + dt.timedelta(hours=expected)
    # A worker whose job ended before its slot, by the database's clock.
    assert cadence.following(hour, begin, begin - dt.timedelta(minutes=5)) == begin + dt.timedelta(hours=1)


@pytest.mark.parametrize(
    "every",
    [
        0, -5, "", "* * * *", "* * * * * *", "@daily", "61 * * * *", "0 0 30 2 *", "R * * * *", "H H * * *",
        "0 3 * * 9", "a b c d e", "0 3 * * *\0", Cron("0 3 * * *", time_zone="Mars/Base"), Cron("", "UTC"),
        Cron("0 3 * * *", "../etc"), Cron(5), Cron("0 3 * * *", time_zone=None), [], {}, True, 1e12, b"0",  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_is_no_cadence_is_refused(lite: World, every: t.Any) -> None:
    """Where it is declared, so that no job ends without a next one."""
    with lite.session(), pytest.raises(Invalid) as refused:
        lite.jobber.enqueue("work", every=every)
    assert list(refused.value.errors) == ["every"]


def test_without_the_extra_a_cron_line_says_what_to_install(
    lite: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds need nothing."""
    monkeypatch.setitem(sys.modules, "croniter", None)
    lite.enqueue(every=60)
    with pytest.raises(ImportError, match=r"flask-jobber\[cron\]"):
        lite.enqueue(every="0 3 * * *")


# -- the chain -------------------------------------------------------------------------------


def _rows(world: World, series: str = "nightly") -> list[t.Any]:
    with world.session() as session:
        jobs = session.scalars(sa.select(world.Job).order_by(world.Job.id)).all()
        found = [job for job in jobs if job.series == series]
        for job in found:
            session.refresh(job)
            session.expunge(job)
        return found


def _schedule(
    world: World, every: t.Any = 3600, name: str = "nightly", type: str = "work", **spec: t.Any
) -> None:
    with world.session():
        world.jobber.schedule(name, type, every=every, **spec)


def _claim(world: World) -> t.Any:
    with world.session():
        (claim,) = world.jobber.claim(LOCKER, lease_seconds=80_000)
    return claim


def _succeed(world: World) -> int:
    claim = _claim(world)
    with world.session():
        world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
    return int(claim.id)


def _fail(world: World, **how: t.Any) -> int:
    claim = _claim(world)
    with world.session():
        world.jobber.fail(LOCKER, claim.id, claim.attempt, ERROR, **how)
    return int(claim.id)


def _expire(world: World) -> int:
    (job,) = (job for job in _rows(world) if job.finished_at is None)
    with world.session():
        put(world, job.id, expires_at=ago(5))
        assert world.jobber.expire() == 1
    return int(job.id)


ENDS: dict[str, t.Callable[[World], int]] = {
    "succeeded": _succeed,
    "failed": lambda world: _fail(world, permanent=True),
    "expired": _expire,
}


@pytest.mark.parametrize("state", ENDS)
def test_the_end_of_a_job_makes_the_next_one(world: World, state: str) -> None:
    """One slot later, with all that was said of the first, and as new as that one was."""
    world.jobber.feedback("tell")(lambda job, said: None)
    heard: list[int] = []

    def hear(sender: t.Any, **facts: t.Any) -> None:
        heard.append(facts["job_id"])

    said = {
        "queue": "q", "priority": 3, "max_attempts": 4, "lease_for": 60.0,
        "backoff": {"strategy": "constant", "first": 5.0, "jitter": 0}, "only_for": LOCKER,
        "not_for": ["left"], "on_success": "tell", "on_failure": "tell", "user_id": "ann",
        "written": "by the app",
    }  # fmt: skip
    _schedule(world, data={"n": [1]}, only_for_seconds=90, **said)
    with job_enqueued.connected_to(hear):
        old_id = ENDS[state](world)
    old, new = _rows(world)
    assert (old.id, old.state, old.unique_key) == (old_id, state, None)
    assert (new.state, new.type, new.data) == ("scheduled", "work", {"n": [1]})
    assert {name: getattr(new, name) for name in said} == said
    assert new.run_at == new.slot == old.slot + dt.timedelta(hours=1)
    assert new.only_for_until == new.slot + dt.timedelta(seconds=90)
    assert (new.attempts, new.failures, new.result, new.finished_at) == (0, 0, None, None)
    assert new.locked_by is None
    assert new.created_at >= old.created_at
    assert heard == [new.id]
    assert world.history(new.id) == [(None, "scheduled", "enqueue")]
    assert_legal(world.history(old_id))


def test_missed_slots_run_once(world: World) -> None:
    """A night without workers makes one job, not twelve."""
    _schedule(world)
    world.pass_time(12 * 3600 + 5)
    _succeed(world)
    old, new = _rows(world)
    assert (new.slot - old.slot) == dt.timedelta(hours=13)
    assert new.state == "scheduled"


def test_a_slot_is_kept_by_back_off_and_late_ends(world: World) -> None:
    """A failure that is tried again moves ``run_at``; the next slot is counted from the slot."""
    _schedule(world, backoff="constant")
    begin = _rows(world)[0].slot
    _fail(world)
    (job,) = _rows(world)
    assert (job.state, job.slot) == ("scheduled", begin)
    assert job.run_at > begin
    world.pass_time(600)
    moved = _rows(world)[0].slot
    _succeed(world)
    assert [job.slot for job in _rows(world)] == [moved, moved + dt.timedelta(hours=1)]


def test_expires_at_keeps_its_distance_from_the_slot(world: World) -> None:
    """Each job of a series has as long to begin as the first."""
    _schedule(world, expires_at=ago(-600))
    (old,) = _rows(world)
    _succeed(world)
    assert _rows(world)[1].expires_at - _rows(world)[1].slot == old.expires_at - old.slot


def test_a_rejections_exclusion_is_for_one_job(world: World) -> None:
    """The next job keeps away whom the declaration does."""

    @world.jobber.processor("work")
    def reject(job: t.Any, result: t.Any) -> None:
        raise ResultRejected("no good", then="exclude")

    _schedule(world, max_attempts=1, not_for=["left"])
    claim = _claim(world)
    with world.session(), pytest.raises(ResultRejected):
        world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
    old, new = _rows(world)
    assert (old.not_for, new.not_for) == (["left", LOCKER], ["left"])


def test_a_result_whose_processor_broke_holds_the_series_up(world: World) -> None:
    """Until it is processed: there is one unfinished job at the most."""
    calls: list[int] = []

    @world.jobber.processor("work")
    def break_once(job: t.Any, result: t.Any) -> None:
        calls.append(result)
        if len(calls) == 1:
            raise RuntimeError("broke once")

    _schedule(world)
    job_id = _succeed(world)
    assert [job.state for job in _rows(world)] == ["submitted"]
    with world.session():
        put(world, job_id, run_at=ago(60))
        world.jobber.process_submitted()
    assert [job.state for job in _rows(world)] == ["succeeded", "scheduled"]


@pytest.mark.parametrize("how", ["operator", "holder"])
def test_cancel_ends_a_series(world: World, how: str) -> None:
    """Whoever cancels."""
    _schedule(world)
    if how == "holder":
        _fail(world, cancel=True)
    else:
        with world.session():
            world.jobber.cancel(_rows(world)[0].id)
    assert [job.state for job in _rows(world)] == ["cancelled"]


def test_a_job_that_can_have_no_next_ends_all_the_same(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The series is over, logged and recorded; claims that meet such a job go on."""
    every = Cron("0 3 * * *", time_zone="Europe/Berlin")
    _schedule(world, every, expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(days=400))
    with world.session() as session:
        (job,) = session.scalars(sa.select(world.Job))
        job.every = {**job.every, "time_zone": "Mars/Base"}
        job.run_at = job.expires_at = ago(60)
    world.enqueue("other")
    assert [job["type"] for job in world.client().claim()] == ["other"]
    (job,) = _rows(world)
    assert (job.state, "a series has ended" in caplog.text) == ("expired", True)
    with world.session():
        rows = world.jobber.History.__table__
        last = world.db.session.execute(sa.select(rows).where(rows.c.job_id == job.id)).all()[-1]
        assert (last.to_state, last.error["type"]) == ("expired", "ZoneInfoNotFoundError")


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_retried_job_runs_alone(world: World, state: str) -> None:
    """The series has gone on without it, or is over: there is no second chain."""
    _schedule(world)
    job_id = _fail(world, permanent=state == "failed", cancel=state == "cancelled")
    following = len(_rows(world)) - 1
    assert following == (state == "failed")
    with world.session():
        world.jobber.retry(job_id)
    _succeed(world)
    assert world.job(job_id).state == "succeeded"
    assert len(_rows(world)) == 1 + following


def test_enqueue_may_begin_a_series_without_a_name(world: World) -> None:
    """Now, or at its ``run_at``; by a cron line at its next slot."""
    with world.session():
        jobber = world.jobber
        now = jobber.enqueue("now", every=60)
        later = jobber.enqueue("later", every=60, run_at=ago(-600))
        cron = jobber.enqueue("cron", every=NEVER)
        again = jobber.enqueue("now", every=60)
        assert (now.state, later.state, cron.state) == ("queued", "scheduled", "scheduled")
        assert now.series != again.series
        assert (later.slot - now.slot).total_seconds() == pytest.approx(600, abs=5)
        with pytest.raises(Invalid) as refused:
            jobber.enqueue("work", every=60, unique_key="mine")
    assert list(refused.value.errors) == ["unique_key"]
    _succeed(world)
    with world.session() as session:
        waiting = session.scalars(sa.select(world.Job.type).where(world.Job.finished_at.is_(None))).all()
    assert sorted(waiting) == ["cron", "later", "now", "now"]


def test_ordinary_jobs_pay_nothing(world: World) -> None:
    """Neither a claim nor a delivery executes more than before there were series."""
    world.enqueue()
    plain = _executed_by_a_delivery(world)
    world.enqueue(every=3600)
    repeated = _executed_by_a_delivery(world)
    with world.app.app_context():
        assert len(plain) == {"postgresql": 1, "sqlite": 2}.get(world.db.engine.dialect.name, 3)
    assert len(repeated) > len(plain)


def _executed_by_a_delivery(world: World) -> list[str]:
    claim, executed = _claim(world), list[str]()

    def note(*given: t.Any) -> None:
        executed.append(given[2])

    with world.session():
        event.listen(world.db.engine, "before_cursor_execute", note)
        world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
        event.remove(world.db.engine, "before_cursor_execute", note)
    return executed


# -- declarations ----------------------------------------------------------------------------


def test_a_schedule_may_be_declared_again_and_again(world: World) -> None:
    """Nothing is made or changed, while it waits, is worked on, or has gone on."""
    for _ in range(2):
        _schedule(world, data=[1], priority=2)
    (job,) = _rows(world)
    before = stored(world, job.id)
    _schedule(world, data=[1], priority=2)
    assert stored(world, job.id) == before
    claim = _claim(world)
    _schedule(world, data=[1], priority=2)
    assert stored(world, job.id)[0]["every"] == before[0]["every"]
    with world.session():
        world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
    _schedule(world, data=[1], priority=2)
    assert [job.state for job in _rows(world)] == ["succeeded", "scheduled"]


def test_a_changed_declaration_changes_the_waiting_job(world: World) -> None:
    """What it is and when it comes; a slot that is due stays."""
    _schedule(world, NEVER, data=1, user_id="ann")
    (old,) = _rows(world)
    _schedule(world, NEVER, data=2, priority=5, not_for="left", type="other", user_id="bob")
    (new,) = _rows(world)
    assert (new.id, new.slot, new.run_at, new.state) == (old.id, old.slot, old.run_at, "scheduled")
    assert (new.data, new.priority, new.not_for, new.type, new.user_id) == (2, 5, ["left"], "other", "bob")
    _schedule(world, 60, data=2)
    (moved,) = _rows(world)
    assert moved.run_at == moved.slot
    assert (moved.slot - dt.datetime.now(dt.UTC)).total_seconds() == pytest.approx(60, abs=10)
    assert (moved.priority, moved.not_for, moved.type) == (0, None, "work")
    world.pass_time(100)
    due = _rows(world)[0].slot
    _schedule(world, 30, data=2)
    assert (_rows(world)[0].slot, _rows(world)[0].every["seconds"]) == (due, 30)
    assert len(_rows(world)) == 1


def test_a_changed_declaration_lets_a_running_job_end(world: World) -> None:
    """It is the old series' last; the new one begins beside it."""
    _schedule(world, 3600, data=1)
    claim = _claim(world)
    _schedule(world, NEVER, data=2)
    old, new = _rows(world)
    assert (old.state, old.data, new.state, new.data) == ("locked", 1, "scheduled", 2)
    with world.session():
        world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
    assert [job.state for job in _rows(world)] == ["succeeded", "scheduled"]


@pytest.mark.parametrize("running", [False, True])
def test_a_series_is_ended_by_its_name(world: World, running: bool) -> None:
    """Its waiting job is cancelled, a running one is its last; then it may begin anew."""
    _schedule(world, 60)
    claim = _claim(world) if running else None
    with world.session():
        assert world.jobber.unschedule("nightly") is True
        assert world.jobber.unschedule("nightly") is False
        assert world.jobber.unschedule("other") is False
    if claim is not None:
        with world.session():
            world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
    end = "succeeded" if running else "cancelled"
    assert [job.state for job in _rows(world)] == [end]
    _schedule(world, 60)
    assert [job.state for job in _rows(world)] == [end, "queued"]


def test_a_slot_that_has_not_come_is_free_again(world: World) -> None:
    """A cron series that is ended and begun anew on one day has the same slot."""
    for _ in range(3):
        _schedule(world, NEVER)
        with world.session():
            world.jobber.unschedule("nightly")
    _schedule(world, NEVER)
    assert [job.state for job in _rows(world)] == ["cancelled"] * 3 + ["scheduled"]
    assert [job.slot is None for job in _rows(world)] == [True] * 3 + [False]


def test_a_slot_that_another_job_has_had_is_passed_over(world: World) -> None:
    """A job that ended before its slot keeps it."""
    _schedule(world, NEVER, expires_at=ago(60))
    _expire(world)
    with world.session():
        world.jobber.unschedule("nightly")
    _schedule(world, NEVER)
    old, _, new = _rows(world)
    assert (old.state, new.state) == ("expired", "scheduled")
    assert new.slot > old.slot


def test_a_processor_may_end_its_own_series(world: World) -> None:
    """Or change it: its job is the last of the old one."""

    @world.jobber.processor("work")
    def end(job: t.Any, result: t.Any) -> None:
        world.jobber.unschedule("nightly")

    _schedule(world)
    _succeed(world)
    assert [job.state for job in _rows(world)] == ["succeeded"]


def test_declarations_in_code_are_applied_later(world: World) -> None:
    """Without an app's context they are remembered; tidying applies them, once."""
    world.jobber.schedule("nightly", "work", {"n": 1}, every=NEVER, priority=1)
    world.jobber.schedule("nightly", "work", {"n": 1}, every=NEVER, priority=1)
    with pytest.raises(SetupError, match="nightly"):
        world.jobber.schedule("nightly", "work", every=60)
    with pytest.raises(Invalid):
        world.jobber.schedule("a b", "work", every=60)
    for _ in range(2):
        with world.app.app_context():
            world.jobber.apply_schedules()
            world.jobber.tidy()
        assert [(job.state, job.data, job.priority) for job in _rows(world)] == [("scheduled", {"n": 1}, 1)]


@pytest.mark.parametrize("pruned", [False, True])
def test_what_was_ended_on_purpose_is_not_brought_back_by_code(world: World, pruned: bool) -> None:
    """Not even when all that is old was forgotten; a changed declaration, or a call, begins anew."""
    jobber = world.jobber
    jobber.schedule("nightly", "work", every=60)
    with world.app.app_context():
        jobber.apply_schedules()
    _succeed(world)
    with world.session():
        jobber.cancel(_rows(world)[-1].id)
        if pruned:
            assert jobber.prune(older_than=dt.timedelta(seconds=-60)) == 1
    with world.app.app_context():
        jobber.tidy()
    assert [job.state for job in _rows(world)][-1] == "cancelled"
    jobber._declared.clear()  # another process has newer code
    jobber.schedule("nightly", "work", every=60, priority=1)
    with world.app.app_context():
        jobber.tidy()
    assert [job.state for job in _rows(world)][-1] == "queued"


def test_a_running_job_that_was_made_the_last_stays_the_last(world: World) -> None:
    """A process that still declares its series does not begin it anew."""
    world.jobber.schedule("nightly", "work", every=60)
    with world.app.app_context():
        world.jobber.apply_schedules()
    claim = _claim(world)
    with world.session():
        world.jobber.unschedule("nightly")
    world.jobber.schedule("nightly", "work", every=60)  # another process
    with world.app.app_context():
        world.jobber.apply_schedules()
        world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
        world.jobber.tidy()
    assert [job.state for job in _rows(world)] == ["succeeded"]


@pytest.mark.parametrize("how", ["running", "unscheduled", "retried"])
def test_newer_code_begins_anew_whatever_became_of_the_last_job(world: World, how: str) -> None:
    """It goes on alone; the declaration that it was made by is kept, so that another one is told from it."""
    jobber = world.jobber
    jobber.schedule("nightly", "work", every=60)
    with world.app.app_context():
        jobber.apply_schedules()
    claim = _claim(world)
    with world.session():
        if how == "unscheduled":
            jobber.unschedule("nightly")
        elif how == "retried":
            jobber.cancel(claim.id)
            jobber.retry(claim.id)
    jobber._declared.clear()  # another process
    jobber.schedule("nightly", "work", every=60, priority=1)
    with world.app.app_context():
        jobber.tidy()
    assert [job.priority for job in _rows(world)] == [0, 1]


def test_a_series_whose_job_was_deleted_goes_on(world: World) -> None:
    """By hand, past all verbs: nobody has ended it."""
    world.jobber.schedule("nightly", "work", every=60)
    with world.app.app_context():
        world.jobber.apply_schedules()
    _succeed(world)
    with world.session() as session:
        session.execute(sa.delete(world.Job).where(world.Job.id == _rows(world)[-1].id))
    with world.app.app_context():
        world.jobber.tidy()
    assert [job.state for job in _rows(world)] == ["succeeded", "queued"]


def test_a_declaration_may_be_taken_back_before_it_is_applied(world: World) -> None:
    """Then there is nothing to apply."""
    world.jobber.schedule("nightly", "work", every=60)
    with world.app.app_context():
        assert world.jobber.unschedule("nightly") is False
        world.jobber.apply_schedules()
    assert _rows(world) == []


def test_a_call_begins_anew_what_was_ended(world: World) -> None:
    """Alike or not."""
    _schedule(world)
    with world.session():
        world.jobber.cancel(_rows(world)[0].id)
    _schedule(world)
    assert [job.state for job in _rows(world)] == ["cancelled", "queued"]


def test_series_without_a_name_are_pruned_like_all_else(world: World) -> None:
    """Nobody declares them again."""
    job_id = world.enqueue(every=60)
    with world.session():
        world.jobber.cancel(job_id)
        assert world.jobber.prune(older_than=dt.timedelta(seconds=-60)) == 1


def test_a_key_of_a_series_cannot_be_taken(lite: World) -> None:
    """A job of another's would stop it."""
    _schedule(lite)
    (job,) = _rows(lite)
    with lite.session(), pytest.raises(Invalid):
        lite.jobber.enqueue("work", unique_key=job.unique_key)


def test_a_schedule_is_checked_like_an_enqueue(lite: World) -> None:
    """And needs its ``every``."""
    for name, spec, field in (
        ("a b", {"every": 60}, "name"),
        ("nightly", {"every": None}, "every"),
        ("nightly", {"every": 60, "priority": "x"}, "priority"),
        ("nightly", {"every": 60, "unique_key": "k"}, "unique_key"),
        ("nightly", {"every": 60, "series": "x"}, "series"),
    ):
        with lite.session(), pytest.raises(Invalid) as refused:
            lite.jobber.schedule(name, "work", **spec)
        assert list(refused.value.errors) == [field]
    assert _rows(lite) == []


# -- at once ---------------------------------------------------------------------------------


def at_once(world: World, *acts: t.Callable[[], None]) -> list[BaseException]:
    """Run each act in a thread of its own, in its own context, committed; return what they raised."""
    barrier, errors = threading.Barrier(len(acts)), list[BaseException]()

    def run(act: t.Callable[[], None]) -> None:
        with world.app.app_context():
            barrier.wait()
            try:
                act()
                world.db.session.commit()
            except BaseException as error:
                errors.append(error)
                world.db.session.rollback()

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


@pytest.mark.parametrize("every", [3600, NEVER])
def test_many_declare_one_schedule_at_once(world: World, every: t.Any) -> None:
    """Processes that start together make one series."""
    for round in range(4):
        name = f"series-{round}"
        declare = [lambda name=name: world.jobber.schedule(name, "work", every=every)] * 6
        assert at_once(world, *declare) == []
        assert len(_rows(world, name)) == 1


def test_an_end_and_declarations_at_once_make_one_next_job(world: World) -> None:
    """Whichever comes first, there is one unfinished job and no slot twice."""
    _schedule(world, 3600)
    for round in range(6):
        claim = _claim(world)
        deliver = lambda claim=claim: world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)  # noqa: E731
        declare = [
            lambda every=every: world.jobber.schedule("nightly", "work", every=every)
            for every in (3600, 3600, 3600 + round % 2)
        ]
        errors = at_once(world, deliver, *declare)
        assert [error for error in errors if not isinstance(error, DuplicateJob)] == []
        rows = _rows(world)
        assert len([job for job in rows if job.every and job.finished_at is None]) == 1
        taken = [job.slot for job in rows if job.slot is not None]
        assert len(taken) == len(set(taken))
        with world.session() as session:
            session.execute(sa.delete(world.Job.__table__))
        _schedule(world, 3600)


def test_one_slot_has_one_row(make_world: MakeWorld, db_url: str) -> None:
    """The table itself refuses a second one."""
    world = make_world(db_url)
    _schedule(world)
    (job,) = _rows(world)
    other = world.enqueue()
    with world.app.app_context(), pytest.raises(sa.exc.IntegrityError):
        put(world, other, series="nightly", slot=job.slot)


def test_a_declaration_that_cannot_be_made_keeps_no_other_from_it(world: World) -> None:
    """What is wrong is told, when all others are made."""
    world.jobber.schedule("first", "report", {"x": float("nan")}, every=60)
    world.jobber.schedule("second", "report", every=60)
    with world.session(), pytest.raises(Invalid) as caught:
        world.jobber.apply_schedules()
    assert caught.value.__notes__ == ["in the schedule 'first'"]
    assert [world.job(job_id).series for job_id in states(world)] == ["second"]


def test_a_changed_declaration_says_anew_when_jobs_expire(world: World) -> None:
    soon, now = dt.timedelta(hours=1), dt.datetime.now(dt.UTC)
    for every in (60, 61):  # another cadence, so that it is another declaration
        expires = now + soon if every == 60 else None
        with world.session():
            world.jobber.schedule("nightly", "report", every=every, run_at=now + soon / 2, expires_at=expires)
        assert (_rows(world)[0].expires_at is None) == (expires is None)
