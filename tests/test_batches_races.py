"""Batches among many: each is processed exactly once, whoever is killed, and no end is miscounted."""

from __future__ import annotations

import collections
import multiprocessing
import os
import sys
import typing as t
from multiprocessing.process import BaseProcess

import pytest
import sqlalchemy as sa

from batch_work import make_world as make_batch_world
from batch_work import work
from conftest import MakeWorld
from flask_jobber import BatchEnded, Cancelled, LeaseLost
from race_support import LIMIT, compete, engine_of, together, until
from support import World
from tables import renew

LOCKER = "user_ann"
PROCESSES = 16


@pytest.fixture
def world(make_world: MakeWorld, db_url: str) -> World:
    return make_world(db_url, JOBBER_TIDY_SECONDS=0)


# -- many processes, killed --------------------------------------------------------------------


def test_each_batch_is_processed_once_among_processes_that_are_killed(
    db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batches in batches, chains, members that fail and that come later, and processors that break."""
    # So that the server which forks them has imported what they need.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    world, effects = make_batch_world(db_url)
    with world.app.app_context():
        renew(world.db)
    expected, prints = _enqueue(world)
    _work_and_kill(world, db_url)
    with world.session() as session:
        written = collections.defaultdict[int, list[str]](list)
        for row in session.execute(sa.select(effects)):
            written[row.job_id].append(row.result)
        assert written == expected
        states = session.execute(sa.select(world.Job.id, world.Job.state).where(world.Job.type == "print"))
        assert dict(tuple(row) for row in states) == prints
        _check_counters(world)
    engine_of(world).dispose()


def _enqueue(world: World) -> tuple[dict[int, list[str]], dict[int, str]]:
    """Enqueue batches; return what their processors are to write, and how what follows them ends."""
    jobber, expected, prints = world.jobber, dict[int, list[str]](), dict[int, str]()
    with world.session() as session:
        for n in range(3):
            with jobber.batch("stitch", then={"type": "print"}) as outer:
                outer.enqueue_many("tile", range(10 * n))
                for _ in range(n):
                    with outer.batch("stitch") as inner:
                        inner.enqueue_many("tile", range(20))
                    expected[inner.id] = [f"{_results(20)} results"]
            expected[outer.id] = [f"{_results(10 * n) + n} results"]
            prints[outer.job.batch_id] = "succeeded"
        with jobber.batch("stitch", if_failed="cancel", then={"type": "print"}) as broken:
            broken.enqueue_many("tile", range(30))
        expected[broken.id] = ["failed"]
        prints[broken.job.batch_id] = "cancelled"
        session.flush()
    return expected, prints


def _results(tiles: int) -> int:
    """Return how many of so many tiles succeed, those included that they bring."""
    fail = {n for n in range(tiles) if n % 7 == 6}
    return tiles - len(fail) + len({n for n in range(tiles) if n % 10 == 3} - fail)


def _work_and_kill(world: World, url: str, kills: int = 2) -> None:
    """Let processes work; kill all of them each time that a part of the work is done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["batch_work"])
    total = _count(world, world.Job.id.is_not(None))
    for turn in range(kills + 1):
        enough = total * (turn + 1) // (kills + 2)
        workers = [context.Process(target=work, args=(url, n), daemon=True) for n in range(PROCESSES)]
        for worker in workers:
            worker.start()
        if turn < kills:
            until(lambda: _ended(world) >= enough or _are_done(workers), "enough work")  # noqa: B023
            for worker in workers:
                worker.kill()  # unless it was quicker than this test
        for worker in workers:
            worker.join(LIMIT)
        if turn == kills:
            assert [worker.exitcode for worker in workers] == [0] * PROCESSES


def _are_done(workers: t.Iterable[BaseProcess]) -> bool:
    return not any(worker.is_alive() for worker in workers)


def _ended(world: World) -> int:
    return _count(world, world.Job.finished_at.is_not(None))


def _count(world: World, condition: t.Any) -> int:
    with world.session() as session:
        return int(session.scalar(sa.select(sa.func.count()).where(condition)))


def _check_counters(world: World) -> None:
    """Check that the counters of every batch are what counting its members gives."""
    job, session = world.Job, world.db.session
    counted: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    grouped = sa.select(job.batch_id, job.state, sa.func.count()).group_by(job.batch_id, job.state)
    for batch_id, state, number in session.execute(grouped.where(job.batch_id.is_not(None))):
        counted[batch_id][state] += number
    for row in session.scalars(sa.select(world.jobber.Batch)):
        now = counted[row.id]
        told = (row.total, row.done, row.failed, row.cancelled, row.remaining, row.sweep)
        assert told == (now.total(), now["succeeded"], now["failed"], now["cancelled"], 0, False)


# -- two at once -------------------------------------------------------------------------------


def _begin(world: World, tiles: int, **spec: t.Any) -> tuple[int, list[t.Any]]:
    """Begin a batch and claim its members."""
    with world.session():
        with world.jobber.batch("stitch", **spec) as batch:
            batch.enqueue_many("tile", range(tiles))
        world.db.session.commit()
        return batch.id, world.jobber.claim(LOCKER, limit=100)


def _deliver(world: World, *claims: t.Any) -> None:
    with world.session():
        for claim in claims:
            world.jobber.deliver(LOCKER, claim.id, claim.attempt)


def _remaining(world: World, batch_id: int) -> int:
    with world.session():
        return int(world.jobber.find_batch(batch_id).progress().left)


def test_of_members_that_end_at_once_one_is_the_last(world: World) -> None:
    """Round after round, in threads that begin together."""
    for _ in range(5):
        batch_id, claims = _begin(world, 6)
        together(6, lambda number: _deliver(world, claims[number]))  # noqa: B023
        assert [reason for *_, reason in world.history(batch_id)] == ["enqueue", "unblock"]
        assert _remaining(world, batch_id) == 0


def test_who_adds_to_a_batch_keeps_its_last_end_waiting(world: World) -> None:
    """The end is counted after it, and is not the last."""
    batch_id, claims = _begin(world, 1)
    compete(
        world,
        lambda: world.jobber.find_batch(batch_id).enqueue("tile"),
        lambda: _deliver(world, *claims),
    )
    assert (_remaining(world, batch_id), world.job(batch_id).state) == (1, "blocked")


def test_who_adds_while_the_last_one_ends_adds_or_is_told(world: World) -> None:
    """Never a member that nobody waits for."""
    added = 0
    for _ in range(5):
        batch_id, claims = _begin(world, 1)

        def add() -> bool:
            try:
                with world.session():
                    world.jobber.find_batch(batch_id).enqueue("more")  # noqa: B023
            except BatchEnded:
                return False
            return True

        acts: list[t.Callable[[], bool | None]] = [add, lambda: _deliver(world, *claims)]  # noqa: B023
        did = together(2, lambda number: acts[number]())  # noqa: B023
        state = "blocked" if did[0] else "submitted"
        assert (world.job(batch_id).state, _remaining(world, batch_id)) == (state, int(bool(did[0])))
        added += bool(did[0])
    assert 0 <= added <= 5


def test_a_batch_is_cancelled_or_processed(world: World) -> None:
    """Never both, when it is cancelled while its last member ends."""
    for _ in range(5):
        batch_id, claims = _begin(world, 1)

        def cancel() -> None:
            with world.session():
                world.jobber.find_batch(batch_id).cancel()  # noqa: B023

        def end() -> None:
            try:
                _deliver(world, *claims)  # noqa: B023
            except (Cancelled, LeaseLost):
                return

        acts = [cancel, end]
        together(2, lambda number: acts[number]())  # noqa: B023
        assert world.job(batch_id).state == "cancelled"
        assert _remaining(world, batch_id) == 0
        assert [to for _, to, _ in world.history(batch_id)] in (
            ["blocked", "cancelled"],
            ["blocked", "submitted", "cancelled"],
        )


def test_members_of_several_batches_end_in_any_order(world: World) -> None:
    """Each transaction counts in the order of the batches: none waits for another in a circle."""
    (first, some), (second, others) = _begin(world, 4), _begin(world, 4)
    pairs = [pair if n % 2 else pair[::-1] for n, pair in enumerate(zip(some, others, strict=True))]
    together(4, lambda number: _deliver(world, *pairs[number]))
    for batch_id in (first, second):
        assert [reason for *_, reason in world.history(batch_id)] == ["enqueue", "unblock"]
