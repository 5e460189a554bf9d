"""Batches: jobs whose results belong together."""

from __future__ import annotations

import datetime as dt
import threading
import typing as t

import pytest
import sqlalchemy as sa

from conftest import MakeWorld
from flask_jobber import (
    BatchEnded,
    DuplicateJob,
    IllegalTransition,
    Invalid,
    NotFound,
    ResultRejected,
    SetupError,
)
from flask_jobber.core.prune import clear
from race_support import LIMIT, engine_of, until
from situations import ERROR, assert_legal
from support import World

LOCKER = "user_ann"


@pytest.fixture
def world(make_world: MakeWorld, db_url: str) -> World:
    """Nothing is tidied but by the test."""
    return make_world(db_url, JOBBER_TIDY_SECONDS=0)


class Stitched:
    """The processor of a batch: what it was called with. It breaks as often as it is told to."""

    def __init__(self, world: World, breaks: int = 0) -> None:
        self.calls: list[tuple[t.Any, list[tuple[t.Any, t.Any]]]] = []
        self.breaks = breaks
        world.jobber.batch_processor("stitch")(self)

    def __call__(self, batch: t.Any, results: t.Iterator[tuple[t.Any, t.Any]]) -> None:
        self.calls.append((batch.data, [(job.data, result) for job, result in results]))
        batch.job.written = f"call {len(self.calls)}"
        if len(self.calls) <= self.breaks:
            raise RuntimeError("the processor broke")


def begin(world: World, tiles: int = 3, **spec: t.Any) -> int:
    """Enqueue a batch of tiles; return its id."""
    with world.session(), world.jobber.batch("stitch", {"picture": 3}, **spec) as batch:
        batch.enqueue_many("tile", range(tiles))
    return int(batch.id)


def hand_out(world: World, **wish: t.Any) -> list[t.Any]:
    with world.session():
        return list(world.jobber.claim(LOCKER, limit=100, **wish))


def deliver(world: World, claim: t.Any, result: t.Any = None) -> None:
    with world.session():
        world.jobber.deliver(LOCKER, claim.id, claim.attempt, result)


def fail(world: World, claim: t.Any) -> None:
    with world.session():
        world.jobber.fail(LOCKER, claim.id, claim.attempt, ERROR, permanent=True)


def process(world: World) -> int:
    with world.session():
        return int(world.jobber.process_submitted())


def progress(world: World, batch_id: int) -> t.Any:
    with world.session():
        return world.jobber.find_batch(batch_id).progress()


def counters(world: World, batch_id: int) -> tuple[int, ...]:
    """Return how many members there are, that succeeded, failed, were cancelled, are held, and are left."""
    now = progress(world, batch_id)
    return (now.total, now.done, now.failed, now.cancelled, now.running, now.left)


# -- from the first member to the last ---------------------------------------------------------


def test_a_batch_is_processed_when_its_last_member_has_ended(world: World) -> None:
    """Once, with its data and all results; until then its job is there and cannot be claimed."""
    stitched = Stitched(world)
    batch_id = begin(world)
    claims = hand_out(world)
    assert [claim.type for claim in claims] == ["tile"] * 3
    for claim in claims:
        assert (process(world), stitched.calls) == (0, [])
        assert world.job(batch_id).state == "blocked"
        deliver(world, claim, claim.data * 10)

    assert world.job(batch_id).state == "submitted"
    assert process(world) == 1
    assert stitched.calls == [({"picture": 3}, [(0, 0), (1, 10), (2, 20)])]
    assert (world.job(batch_id).state, world.job(batch_id).written) == ("succeeded", "call 1")
    assert process(world) == 0
    assert [to for _, to, _ in world.history(batch_id)] == ["blocked", "submitted", "succeeded"]
    assert_legal(world.history(batch_id))


def test_a_batch_is_enqueued_with_the_commit_of_the_caller(world: World) -> None:
    """Rolled back it was never there, neither itself nor its members."""
    with world.session() as session:
        with world.jobber.batch("stitch") as batch:
            batch.enqueue_many("tile", range(3))
        session.rollback()
        assert session.scalar(sa.select(sa.func.count(world.Job.id))) == 0
        with pytest.raises(NotFound):
            world.jobber.find_batch(batch.id)


def test_an_empty_batch_is_processed_at_once(world: World) -> None:
    """There is nothing to wait for."""
    stitched = Stitched(world)
    batch_id = begin(world, 0)
    assert (process(world), stitched.calls) == (1, [({"picture": 3}, [])])
    assert world.job(batch_id).state == "succeeded"


def test_nothing_is_processed_before_the_block_is_left(world: World) -> None:
    """Though what it has committed meanwhile has ended."""
    stitched = Stitched(world)
    with world.session() as session, world.jobber.batch("stitch") as batch:
        batch.enqueue("tile", 1)
        session.commit()
        for claim in hand_out(world):
            deliver(world, claim, 1)
        assert process(world) == 0
        batch.enqueue("tile", 2)
    assert counters(world, batch.id) == (2, 1, 0, 0, 0, 1)
    for claim in hand_out(world):
        deliver(world, claim, 2)
    assert (process(world), stitched.calls) == (1, [(None, [(1, 1), (2, 2)])])


def test_a_processor_that_breaks_is_called_again(world: World) -> None:
    """What it wrote is undone, the results are kept; after so many times the batch has failed."""
    stitched = Stitched(world, breaks=2)
    batch_id = begin(world, 1)
    (claim,) = hand_out(world)
    deliver(world, claim, 5)
    assert process(world) == 1
    assert (world.job(batch_id).state, world.job(batch_id).written) == ("submitted", None)
    assert world.job(claim.id).state == "succeeded"
    assert process(world) == 0  # not yet
    for state in ("submitted", "succeeded"):
        world.pass_time(3600)
        assert (process(world), world.job(batch_id).state) == (1, state)
    assert stitched.calls == [({"picture": 3}, [(0, 5)])] * 3


def test_a_processor_that_breaks_too_often_fails_the_batch(make_world: MakeWorld, db_url: str) -> None:
    """The operator's retry calls it again."""
    world = make_world(db_url, JOBBER_TIDY_SECONDS=0, JOBBER_PROCESSOR_ATTEMPTS=2)
    stitched, heard = Stitched(world, breaks=2), list[t.Any]()
    world.jobber.on_failure("stitch")(lambda job, error: heard.append(error["type"]))
    batch_id = begin(world, 0)
    assert (process(world), world.job(batch_id).state) == (1, "submitted")
    world.pass_time(3600)
    assert (process(world), world.job(batch_id).state) == (1, "failed")
    assert heard == ["RuntimeError"]
    with world.session():
        world.jobber.retry(batch_id)
    assert (process(world), world.job(batch_id).state, len(stitched.calls)) == (1, "succeeded", 3)
    assert_legal(world.history(batch_id))


def test_a_broken_processor_undoes_no_result(world: World) -> None:
    """The last member's result was there before, and its client was told so."""
    Stitched(world, breaks=100)
    begin(world, 1)
    (claim,) = world.client().claim()
    assert world.client().deliver(claim, 1).json == {"state": "succeeded"}
    assert process(world) == 1
    assert world.job(claim["id"]).state == "succeeded"


def test_results_are_read_in_pages_while_it_is_processed(world: World) -> None:
    """More than fit into one; a processor may enqueue, and write to each."""
    read = list[int]()

    @world.jobber.batch_processor("stitch")
    def stitch(batch: t.Any, results: t.Any) -> None:
        for job, result in results:
            read.append(result)
            job.written = f"read {result}"
        world.jobber.enqueue("print", len(read))

    batch_id = begin(world, 1203)
    with world.session() as session:
        tiles = sa.update(world.Job.__table__).where(world.Job.batch_id == batch_id)
        session.execute(tiles.values(state="succeeded", finished_at=sa.func.now(), result=world.Job.data))
        batches = world.jobber.Batch.__table__
        session.execute(sa.update(batches).values(done=1203, remaining=0))
        world.jobber.find_batch(batch_id).close()
    assert (process(world), sorted(read)) == (1, list(range(1203)))
    with world.session() as session:
        written = session.scalars(sa.select(world.Job.written).where(world.Job.batch_id == batch_id))
        assert {*written} == {f"read {n}" for n in range(1203)}
        assert session.scalar(sa.select(world.Job.data).where(world.Job.type == "print")) == 1203


# -- members that do not succeed ---------------------------------------------------------------


def test_a_batch_goes_on_without_those_that_failed(world: World) -> None:
    """Its processor gets the results that there are."""
    stitched = Stitched(world)
    batch_id = begin(world, 4)
    first, second, third, _ = hand_out(world)
    fail(world, first)
    deliver(world, second, 1)
    with world.session():
        world.jobber.cancel(third.id)
        world.db.session.execute(
            sa.update(world.Job).where(world.Job.state == "locked").values(expires_at=sa.func.now())
        )
        world.jobber.release(LOCKER, 5 if third.id == 4 else third.id + 1, 1)
    world.pass_time(60)
    with world.session():
        assert world.jobber.expire() == 1
    assert counters(world, batch_id) == (4, 1, 2, 1, 0, 0)
    assert (process(world), stitched.calls) == (1, [({"picture": 3}, [(1, 1)])])
    assert world.job(batch_id).state == "succeeded"


def test_a_failed_member_may_end_the_batch(world: World) -> None:
    """Then the batch fails at once, its processor is never called, and the rest is cancelled."""
    stitched, heard = Stitched(world), list[t.Any]()
    world.jobber.on_failure("stitch")(lambda job, error: heard.append((job.id, error["type"])))
    batch_id = begin(world, 5, if_failed="cancel")
    first, second, third = hand_out(world)[:3]
    deliver(world, first, 1)
    fail(world, second)
    assert world.job(batch_id).state == "submitted"
    assert process(world) == 1
    assert (world.job(batch_id).state, stitched.calls) == ("failed", [])
    assert heard == [(batch_id, "MembersFailed")]
    assert counters(world, batch_id) == (5, 1, 1, 3, 0, 0)
    assert world.job(third.id).state == "cancelled"
    assert world.history(third.id)[-1] == ("locked", "cancelled", "cancel")
    with world.session():
        world.jobber.retry(batch_id)
    assert (process(world), stitched.calls) == (1, [({"picture": 3}, [(0, 1)])])
    assert_legal(world.history(batch_id))


def test_what_is_left_of_a_large_batch_is_cancelled_piece_by_piece(world: World) -> None:
    """A thousand at once, the others when the app tidies; nobody waits for all of them."""
    batch_id = begin(world, 2503)
    with world.session():
        world.jobber.find_batch(batch_id).cancel(by="user_root")
    assert counters(world, batch_id) == (2503, 0, 0, 1000, 0, 1503)
    with world.session():
        world.jobber.tidy()
    assert counters(world, batch_id) == (2503, 0, 0, 2503, 0, 0)
    with world.session() as session:
        assert not session.scalar(sa.select(world.jobber.Batch.sweep))
        assert {*session.scalars(sa.select(world.Job.state))} == {"cancelled"}


def test_a_batch_that_is_cancelled_is_never_processed(world: World) -> None:
    """Its members are cancelled with it; a holder is told so."""
    stitched = Stitched(world)
    batch_id = begin(world)
    client = world.client()
    (held,) = client.claim()
    with world.session():
        world.jobber.cancel(batch_id)
    assert client.deliver(held, 1).json["code"] == "cancelled"
    assert counters(world, batch_id) == (3, 0, 0, 3, 0, 0)
    assert (process(world), stitched.calls, world.job(batch_id).state) == (0, [], "cancelled")
    with world.session(), pytest.raises(IllegalTransition):
        world.jobber.find_batch(batch_id).cancel()


def test_feedback_hears_how_a_batch_ends(world: World) -> None:
    """Success, failure, and the end in either case; each once."""
    heard = list[tuple[str, t.Any]]()
    for name in ("well", "badly", "over"):
        world.jobber.feedback(name)(
            lambda job, said, name=name: heard.append((name, said and said["message"]))
        )
    names = {"on_success": "well", "on_failure": "badly", "on_finish": "over"}
    begin(world, 1, **names)
    begin(world, 1, **names, if_failed="cancel")
    first, second = hand_out(world)
    deliver(world, first)
    fail(world, second)
    assert process(world) == 2
    error = "1 failed, 0 were cancelled."
    assert heard == [("well", None), ("over", None), ("badly", error), ("over", error)]


def test_feedback_of_the_end_that_breaks_is_told_and_changes_nothing(world: World) -> None:
    """Where it failed; where it succeeded it is called again with the processor."""

    @world.jobber.feedback("over")
    def over(job: t.Any, said: t.Any) -> None:
        job.written = "undone"
        raise RuntimeError("the feedback broke")

    batch_id = begin(world, 1, if_failed="cancel", on_finish="over")
    fail(world, *hand_out(world))
    assert process(world) == 1
    assert (world.job(batch_id).state, world.job(batch_id).written) == ("failed", None)
    with world.session() as session:
        h = world.jobber.History
        last = session.scalars(sa.select(h).where(h.job_id == batch_id).order_by(h.id.desc())).first()
        assert last.error["message"] == "the feedback broke"


def test_nothing_of_a_batch_is_rejected(world: World) -> None:
    """There is nobody to reject it to: it is called again, as when it breaks."""

    @world.jobber.batch_processor("stitch")
    def stitch(batch: t.Any, results: t.Any) -> None:
        raise ResultRejected("no")

    batch_id = begin(world, 0)
    assert (process(world), world.job(batch_id).state) == (1, "submitted")


def test_a_member_that_failed_may_have_another_life(world: World) -> None:
    """While its batch waits it counts again; later it is no member any more."""
    stitched = Stitched(world)
    batch_id = begin(world, 2)
    first, second = hand_out(world)
    fail(world, first)
    assert counters(world, batch_id) == (2, 0, 1, 0, 1, 1)
    with world.session():
        world.jobber.retry(first.id)
    assert counters(world, batch_id) == (2, 0, 0, 0, 1, 2)
    deliver(world, hand_out(world)[0], 1)
    fail(world, second)
    assert process(world) == 1
    with world.session():
        world.jobber.retry(second.id)
    assert world.job(second.id).batch_id is None
    deliver(world, hand_out(world)[0], 2)
    assert counters(world, batch_id) == (2, 1, 1, 0, 0, 0)
    assert (process(world), len(stitched.calls)) == (0, 1)


def test_what_a_listener_ends_at_the_commit_is_counted(world: World) -> None:
    """Though all else has been counted by then."""
    batch_id = begin(world, 2)
    first, second = hand_out(world)
    ended = list[int]()

    def end(session: t.Any) -> None:
        if not ended and session.get_nested_transaction() is None:
            ended.append(second.id)
            world.jobber.cancel(second.id)

    with world.session() as session:
        world.jobber.cancel(first.id)
        sa.event.listen(session(), "before_commit", end)
    assert counters(world, batch_id) == (2, 0, 0, 2, 0, 0)
    assert world.job(batch_id).state == "submitted"


# -- members that come later -------------------------------------------------------------------


def test_members_are_added_while_it_runs(world: World) -> None:
    """By whoever knows its id, until it has ended."""
    stitched = Stitched(world)
    batch_id = begin(world, 1)
    with world.session():
        world.jobber.find_batch(batch_id).enqueue_many("tile", [7, 8], queue="late")
    assert counters(world, batch_id) == (3, 0, 0, 0, 0, 3)
    for claim in hand_out(world):
        deliver(world, claim, claim.data)
    with world.session(), pytest.raises(BatchEnded):
        world.jobber.find_batch(batch_id).enqueue("tile")
    assert process(world) == 1
    with world.session(), pytest.raises(BatchEnded):
        world.jobber.enqueue("tile", batch=batch_id)
    assert stitched.calls == [({"picture": 3}, [(0, 0), (7, 7), (8, 8)])]
    with world.session() as session:
        assert session.scalar(sa.select(sa.func.count(world.Job.id))) == 4


def test_a_processor_adds_members_in_the_transaction_of_the_end(world: World) -> None:
    """The batch cannot end in between."""
    stitched = Stitched(world)

    @world.jobber.processor("tile")
    def halve(job: t.Any, result: int) -> None:
        if result:
            world.jobber.enqueue("tile", result - 1, batch=job.batch_id)

    batch_id = begin(world, 1)
    for n in (2, 1, 0):
        assert world.job(batch_id).state == "blocked"
        (claim,) = hand_out(world)
        deliver(world, claim, n)
    assert (process(world), stitched.calls) == (1, [({"picture": 3}, [(0, 2), (1, 1), (0, 0)])])


def test_a_member_whose_key_is_taken_is_not_waited_for(world: World) -> None:
    """The transaction goes on without it."""
    world.enqueue("other", unique_key="key")
    with world.session(), world.jobber.batch("stitch") as batch:
        batch.enqueue("tile")
        with pytest.raises(DuplicateJob):
            batch.enqueue("tile", unique_key="key")
        batch_id = batch.id
    assert counters(world, batch_id) == (1, 0, 0, 0, 0, 1)


def test_a_batch_within_a_batch_is_one_of_its_members(world: World) -> None:
    """The outer one ends when the processor of the inner one has gone well."""
    order = list[str]()
    world.jobber.batch_processor("inner")(lambda batch, results: order.append(f"inner {len([*results])}"))
    world.jobber.batch_processor("outer")(lambda batch, results: order.append(f"outer {len([*results])}"))
    with world.session(), world.jobber.batch("outer") as outer:
        outer.enqueue("tile")
        with outer.batch("inner") as inner:
            inner.enqueue_many("tile", range(2))
    assert counters(world, outer.id) == counters(world, inner.id) == (2, 0, 0, 0, 0, 2)
    for claim in hand_out(world):
        deliver(world, claim)
    assert counters(world, outer.id) == (2, 1, 0, 0, 0, 1)
    assert (process(world), order) == (2, ["inner 2", "outer 2"])


def test_the_inner_batches_of_one_that_ends_are_cancelled_with_it(world: World) -> None:
    """With their members."""
    with world.session(), world.jobber.batch("outer") as outer, outer.batch("inner") as inner:
        inner.enqueue_many("tile", range(2))
    with world.session():
        outer.cancel()
    with world.session():
        world.jobber.tidy()
    assert counters(world, outer.id) == (1, 0, 0, 1, 0, 0)
    assert counters(world, inner.id) == (2, 0, 0, 2, 0, 0)


# -- what others may not do --------------------------------------------------------------------


def test_a_batch_is_worth_no_claim_and_no_series(world: World) -> None:
    """What makes no sense is refused where it is said."""
    Stitched(world)
    world.jobber.processor("tile")(lambda job, result: None)
    wrong: list[tuple[str, t.Callable[[], object]]] = [
        ("type", lambda: world.jobber.enqueue("stitch")),
        ("type", lambda: world.jobber.batch("tile").__enter__()),
        ("if_failed", lambda: world.jobber.batch("stitch", if_failed="stop").__enter__()),
        ("on_finish", lambda: world.jobber.batch("stitch", on_finish="nobody").__enter__()),
        ("every", lambda: world.jobber.batch("stitch", every=60).__enter__()),
        ("batch", lambda: world.jobber.enqueue("tile", batch="1")),
        ("batch", lambda: world.jobber.enqueue("tile", batch=True)),
        ("batch", lambda: world.jobber.enqueue("tile", batch=1, every=60)),
    ]
    with world.session() as session:
        for field, call in wrong:
            with pytest.raises(Invalid) as caught:
                call()
            assert [*caught.value.errors] == [field]
        assert session.scalar(sa.select(sa.func.count(world.Job.id))) == 0
        with pytest.raises(BatchEnded):
            world.jobber.enqueue("tile", batch=77)


def test_a_type_is_of_batches_or_of_jobs(lite: World) -> None:
    """Results that somebody brings have a processor; a batch has one of its own."""
    lite.jobber.processor("tile")(lambda job, result: None)
    with pytest.raises(SetupError, match="tile"):
        lite.jobber.batch_processor("tile")(lambda batch, results: None)
    Stitched(lite)
    with pytest.raises(SetupError, match="stitch"):
        Stitched(lite)


def test_members_are_kept_until_their_batch_has_ended(world: World) -> None:
    """Their results are still to be read."""
    stitched = Stitched(world)
    begin(world, 2)
    first, second = hand_out(world)
    deliver(world, first, 1)
    world.pass_time(30 * 86400)
    with world.session():
        assert world.jobber.prune() == 0
    deliver(world, second, 2)
    with world.session():
        assert world.jobber.prune() == 0
    assert (process(world), len(stitched.calls[0][1])) == (1, 2)
    world.pass_time(30 * 86400)
    with world.session() as session:
        assert world.jobber.prune() == 3
        assert session.scalar(sa.select(sa.func.count(world.jobber.Batch.id))) == 0


def test_members_that_are_deleted_or_emptied_from_their_queue_are_not_waited_for(world: World) -> None:
    """They count as cancelled."""
    Stitched(world)
    batch_id = begin(world, 3)
    (claim,) = world.client().claim()
    with world.session():
        assert world.jobber.queues.empty("default") == 2
    assert counters(world, batch_id) == (3, 0, 0, 2, 1, 1)
    with world.session():
        clear(world.jobber.store(), claim["id"] - 1, claim["id"], limit=10)
    assert counters(world, batch_id) == (3, 0, 0, 3, 0, 0)
    assert process(world) == 1


def test_progress_tells_the_rate_and_the_time_to_go(world: World) -> None:
    """From counters and two instants."""
    batch_id = begin(world, 4)
    before = progress(world, batch_id)
    assert (before.rate, before.seconds_left) == (None, None)
    assert (before.state, before.data) == ("blocked", {"picture": 3})
    deliver(world, hand_out(world)[0])
    with world.session() as session:
        batches = world.jobber.Batch.__table__
        begun = world.job(batch_id).created_at
        session.execute(sa.update(batches).values(last_at=begun + dt.timedelta(seconds=2)))
    now = progress(world, batch_id)
    assert (now.rate, now.seconds_left, now.running) == (0.5, 6.0, 3)


# -- where it runs -----------------------------------------------------------------------------


def test_it_is_processed_soon_by_a_thread_of_the_process_that_ends_it(
    make_world: MakeWorld, db_url: str
) -> None:
    """Nobody tidies, and nobody who delivers waits for it."""
    world = make_world(db_url)
    go, done = threading.Event(), threading.Event()

    @world.jobber.batch_processor("stitch")
    def stitch(batch: t.Any, results: t.Any) -> None:
        assert go.wait(LIMIT)
        done.set()

    ids = [begin(world, 1), begin(world, 1)]
    client = world.client()
    results = [{"id": claim["id"], "attempt": 1} for claim in client.claim(limit=2)]
    outcomes = client.post("/exchange", {"results": results}).get_json()["outcomes"]
    assert [one["status"] for one in outcomes] == [200, 200]
    assert not done.is_set()
    go.set()
    until(lambda: [world.job(one).state for one in ids] == ["succeeded"] * 2, "the processor")
    until(lambda: "jobber-batches" not in {one.name for one in threading.enumerate()}, "its end")


def test_a_thread_that_meets_trouble_leaves_it_to_who_tidies(
    make_world: MakeWorld, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and the batch stays submitted."""
    world = make_world(sqlite_url)
    sa.event.listen(engine_of(world), "before_cursor_execute", _refuse_in_threads)
    batch_id = begin(world, 0)
    until(lambda: "batches were not processed" in caplog.text, "the log")
    assert world.job(batch_id).state == "submitted"


def _refuse_in_threads(*facts: t.Any) -> None:
    if threading.current_thread().name == "jobber-batches":
        raise RuntimeError("no database")
