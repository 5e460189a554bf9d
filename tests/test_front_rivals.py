"""Claims that are under way at a time keep out of each other's way, and lose nothing by it."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import typing as t

import pytest
import sqlalchemy as sa

from conftest import MakeWorld
from flask_jobber.core import front
from flask_jobber.core.front import Bookmark, Found, Front, Fronts, Start
from race_support import engine_of, in_flight, together
from situations import put
from support import World

pytestmark = pytest.mark.usefixtures("early_places")
NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def world(make_world: MakeWorld, postgres_url: str) -> World:
    return make_world(postgres_url)


# -- where they begin -------------------------------------------------------------------------


def place(job_id: int, priority: int = 0) -> Front:
    return Front(priority, 0, NOW, job_id)


def found(first: int, last: int, priority: int = 0) -> Found:
    """What a look finds that takes jobs of these ids and between."""
    return Found(place(first, priority), place(last + 1, priority), last + 1 - first, True, None)


@pytest.fixture
def fronts() -> Fronts:
    return Fronts()


@pytest.fixture
def bookmark(fronts: Fronts) -> Bookmark:
    """Claims of which one has taken the first job."""
    known = fronts.of("kind")
    commit(fronts, known, fronts.start(known, 1), found(1, 1))
    return known


def commit(fronts: Fronts, bookmark: Bookmark, begun: Start, what: Found) -> None:
    begun.taking.find(what)
    fronts.note(bookmark, begun, what)
    fronts.end(bookmark, begun)


def where(fronts: Fronts, bookmark: Bookmark) -> tuple[int | None, int]:
    """Return the id at which a claim begins, and how many it skips; it takes nothing."""
    begun = fronts.start(bookmark, 1)
    fronts.end(bookmark, begun)
    return begun.front.id if begun.front else None, begun.ahead


def test_a_claim_skips_what_others_may_be_taking(fronts: Fronts, bookmark: Bookmark) -> None:
    """As many as they want, until it is known what they got."""
    assert where(fronts, bookmark) == (1, 0)
    first, second = fronts.start(bookmark, 10), fronts.start(bookmark, 5)
    assert (second.front, second.ahead) == (place(1), 10)
    assert where(fronts, bookmark) == (1, 15)
    first.taking.find(found(2, 11))
    assert where(fronts, bookmark) == (12, 5)
    second.taking.find(found(12, 16))
    assert where(fronts, bookmark) == (17, 0)


def test_who_began_before_is_not_skipped_behind(fronts: Fronts, bookmark: Bookmark) -> None:
    """What the first may be taking stands before what the second took."""
    fronts.start(bookmark, 10)
    second = fronts.start(bookmark, 5)
    second.taking.find(found(12, 16))
    assert where(fronts, bookmark) == (17, 0)


def test_a_claim_that_finds_nothing_is_not_skipped(fronts: Fronts, bookmark: Bookmark) -> None:
    """Nor one that takes jobs of another priority."""
    first, second = fronts.start(bookmark, 10), fronts.start(bookmark, 5)
    first.taking.find(Found(None, None, 0, True, None))
    second.taking.find(found(20, 24, priority=1))
    assert where(fronts, bookmark) == (1, 0)


def test_who_skips_moves_no_place(fronts: Fronts, bookmark: Bookmark) -> None:
    """It has passed what nobody may have taken."""
    first, second = fronts.start(bookmark, 5), fronts.start(bookmark, 5)
    first.taking.find(found(2, 6))
    third = fronts.start(bookmark, 5)
    commit(fronts, bookmark, second, found(7, 11))
    commit(fronts, bookmark, third, found(12, 16))
    fronts.end(bookmark, first)
    assert where(fronts, bookmark) == (1, 0)
    fronts.note(bookmark, first, found(2, 6))
    assert where(fronts, bookmark) == (2, 0)


def test_a_look_at_all_begins_anew(fronts: Fronts, bookmark: Bookmark) -> None:
    """One at a time; who began before it is not heeded then, and moves no place."""
    bookmark.looked_at = bookmark.sent_at = -3601
    whole, late = fronts.start(bookmark, 5), fronts.start(bookmark, 5)
    late.taking.find(found(50, 54))
    assert (whole.front, late.front, late.ahead) == (None, place(1), 5)
    commit(fronts, bookmark, whole, found(1, 5))
    assert where(fronts, bookmark) == (1, 0)
    commit(fronts, bookmark, late, found(50, 54))
    assert where(fronts, bookmark) == (1, 0)


@pytest.mark.parametrize("how", ["undone", "of no use"])
def test_a_look_at_all_that_comes_to_nothing_is_made_by_another(
    fronts: Fronts, bookmark: Bookmark, how: str
) -> None:
    """It is rolled back, or jobs came in meanwhile."""
    bookmark.looked_at = bookmark.sent_at = -3601
    whole = fronts.start(bookmark, 5)
    assert where(fronts, bookmark) == (1, 5)
    if how == "undone":
        fronts.undo(bookmark, whole)
    else:
        fronts.enter([(0, 1, NOW)])
        commit(fronts, bookmark, whole, found(1, 5))
    assert where(fronts, bookmark) == (None, 0)


def test_what_is_undone_is_looked_for_at_the_beginning(fronts: Fronts, bookmark: Bookmark) -> None:
    """Others may have passed it, of another kind too, and move no place."""
    other = fronts.of("other")
    commit(fronts, other, fronts.start(other, 1), found(1, 1))
    first, second = fronts.start(bookmark, 5), fronts.start(bookmark, 5)
    first.taking.find(found(2, 6))
    fronts.undo(bookmark, first)
    commit(fronts, bookmark, second, found(7, 11))
    assert (where(fronts, bookmark), where(fronts, other)) == ((None, 0), (None, 0))


def test_a_transaction_that_takes_long_is_not_heeded(fronts: Fronts, bookmark: Bookmark) -> None:
    """PostgreSQL lets others pass it."""
    fronts.start(bookmark, 5).taking.find(found(2, 6))
    assert where(fronts, bookmark) == (7, 0)
    bookmark.under_way[0].at -= 3601
    assert where(fronts, bookmark) == (1, 0)


# -- and what they take -----------------------------------------------------------------------


@contextlib.contextmanager
def begins(world: World) -> t.Iterator[list[tuple[int | None, int]]]:
    """Note the id at which each claim begins, and how many jobs it skips."""
    seen: list[tuple[int | None, int]] = []

    def note(_: object, cursor: object, statement: str, values: t.Any, *rest: object) -> None:
        if "SKIP LOCKED" in statement:
            seen.append((values.get("_front_id"), values.get("_ahead", 0)))

    sa.event.listen(engine_of(world), "before_cursor_execute", note)
    yield seen
    sa.event.remove(engine_of(world), "before_cursor_execute", note)


@contextlib.contextmanager
def claiming(world: World, limit: int, *, give_back: bool = False) -> t.Iterator[list[int]]:
    """Claim in a transaction of another thread, which ends with the block; yield the ids."""
    got: list[int] = []

    def act() -> None:
        got.extend(job.id for job in world.jobber.claim("user_root", limit=limit))

    with in_flight(world, act, roll_back=give_back):
        yield got


def claim(world: World, limit: int = 1) -> list[int]:
    with world.session():
        return [job.id for job in world.jobber.claim("user_root", limit=limit)]


def test_claims_begin_behind_each_other(world: World) -> None:
    """By one statement each, which passes nothing that is locked."""
    made = [world.enqueue() for _ in range(7)]
    assert claim(world) == made[:1]
    with claiming(world, 2) as first, begins(world) as seen:
        with claiming(world, 2) as second:
            assert claim(world) == made[5:6]
    assert (first, second) == (made[1:3], made[3:5])
    assert seen == [(made[2] + 1, 0), (made[4] + 1, 0)]


def test_what_is_given_back_is_handed_out_first(world: World) -> None:
    """Though others began behind it."""
    made = [world.enqueue() for _ in range(6)]
    assert claim(world) == made[:1]
    with claiming(world, 2, give_back=True):
        assert claim(world) == made[3:4]
    assert claim(world, 3) == [made[1], made[2], made[4]]


def test_what_a_savepoint_gives_back_is_handed_out_next(world: World) -> None:
    """In the same transaction, too."""
    made = [world.enqueue() for _ in range(6)]
    assert claim(world) == made[:1]
    with world.session() as session:
        savepoint = session.begin_nested()
        assert [job.id for job in world.jobber.claim("user_root", limit=2)] == made[1:3]
        savepoint.rollback()
        assert [job.id for job in world.jobber.claim("user_root", limit=2)] == made[1:3]
        assert claim(world) == made[3:4]


def test_a_refused_exchange_leaves_the_look_at_all_to_its_claim(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came back by another process is found by it."""
    client, made = world.client(), [world.enqueue() for _ in range(4)]
    first, _ = client.claim(limit=2)
    with world.session():
        put(world, made[0], state="queued", locked_by=None, locked_until=None)
    monkeypatch.setattr(front, "_FRESH", 0)
    results = [{"id": first["id"], "attempt": 1, "result": 1}]
    said = client.post("/exchange", {"results": results, "claim": {"limit": 1}}).get_json()
    assert [one["status"] for one in said["outcomes"]] == [409]
    assert [job["id"] for job in said["jobs"]] == made[:1]


def test_a_claim_takes_what_others_leave(world: World) -> None:
    """It skips what they might have taken; what it misses it looks for at the beginning, and tells first."""
    made = [world.enqueue() for _ in range(4)]
    assert claim(world) == made[:1]
    with claiming(world, 1), begins(world) as seen:
        with world.session():
            [bookmark] = world.jobber.store().fronts._kinds.values()
        bookmark.under_way[-1].most, bookmark.under_way[-1].end = 2, None  # its answer is on its way
        assert claim(world, 2) == made[2:]
    assert seen == [(made[0], 2), (None, 0)]


def test_many_at_a_time_do_each_job_once(world: World) -> None:
    """By exchanges of several, until there are none."""
    made = [world.enqueue() for _ in range(300)]

    def work(number: int) -> list[int]:
        client, done, held = world.client(), list[int](), list[t.Any]()
        while True:
            results = [{"id": job["id"], "attempt": job["attempt"], "result": number} for job in held]
            said = client.post("/exchange", {"results": results, "claim": {"limit": 7}}).get_json()
            assert all(one["status"] == 200 for one in said["outcomes"])
            done += [one["id"] for one in said["outcomes"]]
            held = said["jobs"]
            if not held:
                return done

    done = collections.Counter(job_id for some in together(6, work) for job_id in some)
    assert done == dict.fromkeys(made, 1)


def test_nobody_is_passed_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While many claim all the time: some looks at all, and whoever was passed has been taken."""
    looks, move = [0], Bookmark.move

    def count(bookmark: Bookmark, place: t.Any, at: float, *, whole: bool) -> None:
        move(bookmark, place, at, whole=whole)
        looks[0] += whole and place is not None

    monkeypatch.setattr(Bookmark, "move", count)
    monkeypatch.setattr(front, "_FRESH", 0.1)
    with world.session() as session:
        given = {"type": "work", "state": "queued", "max_attempts": 10}
        session.execute(sa.insert(world.Job.__table__), [given] * 8000)

    def work(number: int) -> list[tuple[int, int]]:
        taken: list[tuple[int, int]] = []
        while looks[0] < 30 and (ids := claim(world, 4)):
            taken += [(looks[0], job_id) for job_id in ids]
        return taken

    taken = sorted(entry for some in together(4, work) for entry in some)
    assert len({job_id for _, job_id in taken}) == len(taken)
    waited, first = 0, looks[0]  # before the first of so many looks somebody took a job behind
    for _, look in sorted(((job_id, look) for look, job_id in taken), reverse=True):
        first = min(first, look)
        waited = max(waited, look - first)
    assert waited <= 8
