"""What each verb does to a job's row and history, when leases lapse, and what is said twice."""

from __future__ import annotations

import datetime as dt
import json
import typing as t

import pytest
import sqlalchemy as sa
from werkzeug.test import TestResponse

from conftest import MakeWorld
from flask_jobber import IllegalTransition, Invalid, NotFound, State, job_cancelled
from flask_jobber.core import scope as scopes
from flask_jobber.core.candidates import Wanted
from flask_jobber.core.claim import claim
from flask_jobber.core.states import Verb
from situations import ERROR, LOCKER, ago, assert_legal, make_one_of_each, put, states, stored
from support import Client, World

Job = dict[str, t.Any]
LEASE = 60
HELD = ("locked_by", "locked_at", "locked_until", "lease_seconds", "progress", "note")
MICROSECOND = dt.timedelta(microseconds=1)


def _hold(world: World, user: str = "ann", **spec: t.Any) -> Job:
    """Enqueue a job and let a user claim it."""
    job_id = world.enqueue(**spec)
    [job] = world.client(user).claim(lease_seconds=LEASE)
    assert job["id"] == job_id
    return job


def _said(answer: TestResponse, status: int = 200) -> t.Any:
    assert answer.status_code == status, answer.text
    return answer.json


class Row(t.NamedTuple):
    """One row of the table of states: what a holder says, and what becomes of the job."""

    say: t.Callable[[Client, Job], TestResponse]
    state: State
    failures: int
    later: bool = False
    max_attempts: int = 3


ROWS = {
    "deliver": Row(lambda ann, job: ann.deliver(job, 1), State.SUCCEEDED, 0),
    "fail": Row(lambda ann, job: ann.fail(job), State.SCHEDULED, 1, later=True),
    "fail-at-the-limit": Row(lambda ann, job: ann.fail(job), State.FAILED, 1, max_attempts=1),
    "fail-for-good": Row(lambda ann, job: ann.fail(job, permanent=True), State.FAILED, 1),
    "release": Row(lambda ann, job: ann.release(job), State.QUEUED, 0),
    "release-for-later": Row(
        lambda ann, job: ann.release(job, "?delay_seconds=90"), State.SCHEDULED, 0, later=True
    ),
}


def test_a_holder_ends_its_hold_as_the_table_of_states_says(world: World) -> None:
    """State, failures and times are written; whoever holds it no more leaves nothing in the row."""
    ann = world.client("ann")
    for name, row in ROWS.items():
        job = _hold(world, type=name, max_attempts=row.max_attempts, data={"a": [1, None]})
        ann.extend(job, progress=0.5, note="half")

        answer = row.say(ann, job)

        after = world.job(job["id"])
        assert (after.state, after.failures, after.attempts) == (row.state, row.failures, 1), name
        assert (after.run_at > dt.datetime.now(dt.UTC)) == row.later, name
        assert (after.finished_at is not None) == (row.state in ("succeeded", "failed")), name
        if row.state != State.SUCCEEDED:
            assert [getattr(after, column) for column in HELD] == [None] * len(HELD), name
        if answer.status_code == 200:
            assert answer.json is not None
            assert answer.json["state"] == row.state
            if "run_at" in answer.json:
                run_at = answer.json["run_at"]
                assert (run_at and dt.datetime.fromisoformat(run_at)) == (after.run_at if row.later else None)
        assert_legal(world.history(job["id"]))
        world.client("root").post(f"/jobs/{job['id']}/cancel")


def test_every_transition_leaves_its_row_of_history(world: World) -> None:
    """With from, to, an instant, the attempt, who held the job, the verb and the error."""
    job = _hold(world)
    world.client("ann", None).fail(job, "no luck", retry_seconds=1)
    world.pass_time(10_000)
    [again] = world.client("bob", "left").claim()
    assert again["attempt"] == 2
    world.client("bob", "left").deliver(again)

    rows = stored(world, job["id"])[1]

    assert [(row["attempt"], row["locker"], row["reason"]) for row in rows] == [
        (0, None, Verb.ENQUEUE),
        (1, "user_ann", Verb.CLAIM),
        (1, "user_ann", Verb.FAIL),
        (2, "user_bob/left", Verb.CLAIM),
        (2, "user_bob/left", Verb.DELIVER),
    ]
    assert_legal(world.history(job["id"]))
    assert [row["error"] for row in rows if row["error"]] == [
        {"type": "Error", "message": "no luck", "traceback": None}
    ]
    ages = [(dt.datetime.now(dt.UTC) - row["at"]).total_seconds() for row in rows]
    assert ages == pytest.approx([10_000, 10_000, 10_000, 0, 0], abs=60)
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)


# -- when a lease is over -------------------------------------------------------------------


def _claim_at(world: World, at: dt.datetime) -> list[int]:
    with world.session():
        wanted = Wanted(locker="user_bob", scope=scopes.read(sa.true()), now=at)
        return [handed_out.id for handed_out in claim(world.jobber.store(), wanted)]


def _locked(world: World) -> tuple[int, dt.datetime]:
    job_id = int(_hold(world)["id"])
    return job_id, world.job(job_id).locked_until


def _scheduled(world: World) -> tuple[int, dt.datetime]:
    job_id = world.enqueue(after=100)
    return job_id, world.job(job_id).run_at


@pytest.mark.parametrize("make", [_locked, _scheduled])
def test_a_job_is_free_at_its_instant_and_not_a_microsecond_before(
    world: World, make: t.Callable[[World], tuple[int, dt.datetime]]
) -> None:
    """``locked_until`` and ``run_at`` are the first instant at which a claim takes it."""
    job_id, instant = make(world)
    before = stored(world, job_id)

    assert _claim_at(world, instant - MICROSECOND) == []
    assert stored(world, job_id) == before
    assert _claim_at(world, instant) == [job_id]


def test_a_job_expires_at_its_instant_and_not_a_microsecond_before(world: World) -> None:
    """``expires_at`` is the first instant at which nobody may begin any more."""
    expires_at = ago(-1000).replace(microsecond=500_000)
    early, late = world.enqueue(expires_at=expires_at), world.enqueue(expires_at=expires_at, priority=-1)

    assert _claim_at(world, expires_at - MICROSECOND) == [early]
    assert _claim_at(world, expires_at) == []
    assert states(world) == {early: State.LOCKED, late: State.EXPIRED}


def test_a_lapsed_lease_frees_the_job_and_counts_one_failure(world: World) -> None:
    """No sweeper is needed: the claim sees it, and writes two rows of history."""
    job = _hold(world)
    bob = world.client("bob")

    world.pass_time(LEASE / 2)
    assert bob.claim() == []
    world.pass_time(LEASE / 2)
    [again] = bob.claim()

    assert (again["attempt"], again["failures"]) == (2, 1)
    assert world.job(job["id"]).failures == 1
    assert world.history(job["id"])[2:] == [
        (State.LOCKED, State.QUEUED, Verb.LAPSE),
        (State.QUEUED, State.LOCKED, Verb.CLAIM),
    ]
    lapse = stored(world, job["id"])[1][2]
    assert (lapse["attempt"], lapse["locker"]) == (1, "user_ann")
    assert lapse["error"]["type"] == "LeaseLapsed"


LATE = {
    "deliver": Row(lambda ann, job: ann.deliver(job, 1), State.SUCCEEDED, 0),
    "fail": Row(lambda ann, job: ann.fail(job), State.SCHEDULED, 1),
    "release": Row(lambda ann, job: ann.release(job), State.QUEUED, 0),
    "extend": Row(lambda ann, job: ann.extend(job), State.LOCKED, 0),
}


def test_a_late_holder_still_holds_until_somebody_claims(world: World) -> None:
    """Result, failure, release and heartbeat are accepted, and its open claims list the job."""
    ann = world.client("ann")
    for name, row in LATE.items():
        job = _hold(world, type=name, max_attempts=2)
        world.pass_time(LEASE * 2)

        assert [held["id"] for held in _said(ann.get("/claims"))["jobs"]] == [job["id"]]
        assert _said(ann.get(job["href"]))["attempt"] == 1
        assert row.say(ann, job).status_code in (200, 204), name

        after = world.job(job["id"])
        assert (after.state, after.failures) == (row.state, row.failures), name
        if row.state == State.LOCKED:
            assert after.locked_until > dt.datetime.now(dt.UTC)
            assert world.client("bob").claim(types=[name]) == []
        world.client("root").post(f"/jobs/{job['id']}/cancel")


def test_late_results_may_be_refused(make_world: MakeWorld, db_url: str) -> None:
    """With ``JOBBER_LATE_RESULTS = "reject"`` all four are, a look too, and nothing changes."""
    world = make_world(db_url, JOBBER_LATE_RESULTS="reject")
    ann = world.client("ann")
    job = _hold(world)
    assert len(_said(ann.get("/claims"))["jobs"]) == 1
    world.pass_time(LEASE + 1)
    before = stored(world, job["id"])

    for name, row in LATE.items():
        assert _said(row.say(ann, job), 409)["code"] == "lease_lost", name
    assert _said(ann.get(job["href"]), 409)["code"] == "lease_lost"
    assert _said(ann.get("/claims"))["jobs"] == []
    assert stored(world, job["id"]) == before


def test_a_job_that_kills_its_workers_ends_failed(world: World) -> None:
    """After ``max_attempts`` lapses a claim ends it, tells the app once, and goes on to the next job."""
    told: list[tuple[str, t.Any]] = []

    @world.jobber.on_failure("deadly")
    def tell(job: t.Any, error: t.Any) -> None:
        told.append((job.state, error["type"]))

    deadly = world.enqueue("deadly", max_attempts=3, priority=1)
    harmless = world.enqueue()
    ann = world.client("ann")
    for attempt in (1, 2, 3):
        [job] = ann.claim(lease_seconds=LEASE)
        assert (job["id"], job["attempt"], job["failures"]) == (deadly, attempt, attempt - 1)
        world.pass_time(LEASE)

    assert [job["id"] for job in ann.claim()] == [harmless]

    job = world.job(deadly)
    assert (job.state, job.failures, job.attempts) == (State.FAILED, 3, 3)
    assert world.history(deadly)[-1] == (State.LOCKED, State.FAILED, Verb.LAPSE)
    assert_legal(world.history(deadly))
    assert told == [(State.FAILED, "LeaseLapsed")]


def test_a_release_counts_nothing_however_often(world: World) -> None:
    """The attempts grow, the failures do not, and the job is never used up."""
    job_id = world.enqueue(max_attempts=1)
    ann = world.client("ann")

    for attempt in range(1, 6):
        [job] = ann.claim()
        assert (job["attempt"], job["failures"]) == (attempt, 0)
        ann.release(job)

    assert (world.job(job_id).state, world.job(job_id).attempts) == (State.QUEUED, 5)


# -- heartbeats -----------------------------------------------------------------------------


def test_a_heartbeat_grants_the_last_length_again(world: World) -> None:
    """From now; a length of its own replaces it; progress and note stay until they are said anew."""
    ann = world.client("ann")
    job = _hold(world)

    def lease_of(**said: t.Any) -> float:
        world.pass_time(40)
        granted = float(_said(ann.extend(job, **said))["lease_seconds"])
        left = world.job(job["id"]).locked_until - dt.datetime.now(dt.UTC)
        assert granted - 20 < left.total_seconds() <= granted + 1
        return granted

    assert lease_of() == LEASE
    assert lease_of(lease_seconds=300, progress=0.25, note="a quarter") == 300
    assert lease_of(progress=0.5) == 300
    after = world.job(job["id"])
    assert (after.progress, after.note, after.failures) == (0.5, "a quarter", 0)
    assert len(world.history(job["id"])) == 2


def test_the_lease_is_the_requests_or_the_jobs_or_the_apps(make_world: MakeWorld, db_url: str) -> None:
    """In this order; ``lease_for`` is the job's."""
    world = make_world(db_url, JOBBER_LEASE_SECONDS=77)
    for lease_for in (None, 55, 55):
        world.enqueue(lease_for=lease_for)
    ann = world.client("ann")

    leases = [job["lease_seconds"] for job in (*ann.claim(limit=2), *ann.claim(lease_seconds=33.5))]

    assert leases == [77, 55, 33.5]
    with world.session() as session:
        lengths = [job.locked_until - job.locked_at for job in session.scalars(sa.select(world.Job))]
    assert sorted(length.total_seconds() for length in lengths) == [33.5, 55, 77]


# -- the same said twice ---------------------------------------------------------------------


def test_the_same_result_again_gets_the_answer_that_is_true_now(world: World) -> None:
    """The order of keys means nothing; ``1`` and ``1.0`` are two results, and so are other extras."""
    ann = world.client("ann")
    job = _hold(world)
    result, extras = {"a": 1, "b": [{"c": None, "d": "ä"}]}, {"seconds": 2, "host": "x"}
    reordered = {"b": [{"d": "ä", "c": None}], "a": 1}
    assert _said(ann.deliver(job, result, extras=extras)) == {"state": "succeeded"}
    settled = stored(world, job["id"])

    assert _said(ann.deliver(job, result, extras=extras)) == {"state": "succeeded"}
    assert _said(ann.deliver(job, reordered, extras={"host": "x", "seconds": 2})) == {"state": "succeeded"}
    for other, beside in (
        ({**result, "a": 1.0}, extras),
        ({**result, "a": True}, extras),
        ({**result, "b": [{"c": None, "d": "a\u0308"}]}, extras),
        (None, extras),
        (result, None),
        (result, {}),
        (result, {**extras, "seconds": 3}),
    ):
        assert _said(ann.deliver(job, other, extras=beside), 409)["code"] == "already_settled"

    assert stored(world, job["id"]) == settled


RESULTS: list[t.Any] = [
    None, False, 0, 1.0, -0.0, 2**70, 1.5e300, "", "null", "ä\u2028🦉\\u0000\n", [], {}, {"": None}, [[[]]],
]  # fmt: skip


def test_any_json_is_a_result_and_equals_itself(world: World) -> None:
    """``null`` too: it is delivered, kept, and recognised when it comes again."""
    ann = world.client("ann")
    for result in RESULTS:
        job = _hold(world, data=result)
        assert json.dumps(job["data"]) == json.dumps(result)

        for _ in range(2):
            answer = ann.deliver(job, result)
            assert answer.json == {"state": "succeeded"}, result
        other = 1 if result is None else None
        assert _said(ann.deliver(job, other), 409)["code"] == "already_settled"

        assert json.dumps(world.job(job["id"]).result) == json.dumps(result)
        assert len(world.history(job["id"])) == 3


def test_the_same_failure_twice_counts_once(world: World) -> None:
    """The second gets the answer that is true now; another failure has lost the lease."""
    ann = world.client("ann")
    job = _hold(world, max_attempts=3)
    first = _said(ann.fail(job, "out of paper"))
    assert first["state"] == "scheduled"
    settled = stored(world, job["id"])

    assert _said(ann.fail(job, "out of paper")) == first
    assert _said(ann.fail(job, "out of ink"), 409)["code"] == "lease_lost"
    assert _said(ann.deliver(job, 1), 409)["code"] == "lease_lost"
    assert _said(ann.extend(job), 409)["code"] == "lease_lost"
    assert _said(ann.release(job), 409)["code"] == "lease_lost"
    assert _said(world.client("bob").fail(job, "out of paper"), 409)["code"] == "lease_lost"
    assert _said(world.client("ann", "left").fail(job, "out of paper"), 409)["code"] == "lease_lost"
    assert stored(world, job["id"]) == settled

    world.pass_time(10_000)
    [again] = ann.claim()
    assert _said(ann.fail(job, "out of paper"), 409)["code"] == "lease_lost"
    assert _said(ann.fail(again, "out of paper", permanent=True))["state"] == "failed"
    assert _said(ann.fail(again, "out of paper")) == {"state": "failed", "run_at": None}
    assert world.job(job["id"]).failures == 2


def test_a_failure_after_a_result_comes_too_late(world: World) -> None:
    """It is ``already_settled``, as is everything else the holder says then."""
    ann = world.client("ann")
    job = _hold(world)
    ann.deliver(job, 1)
    settled = stored(world, job["id"])

    for answer in (ann.fail(job), ann.extend(job), ann.release(job), ann.get(job["href"])):
        assert _said(answer, 409)["code"] == "already_settled"

    assert stored(world, job["id"]) == settled


# -- failures --------------------------------------------------------------------------------


def test_a_permanent_failure_is_honoured_if_clients_are_trusted(make_world: MakeWorld, db_url: str) -> None:
    """Without ``TRUST_FAILURES`` it is a failure like any other."""
    world = make_world(db_url, JOBBER_TRUST_FAILURES=False)
    job = _hold(world)

    assert _said(world.client("ann").fail(job, permanent=True))["state"] == "scheduled"


def test_a_failure_may_call_the_job_off(world: World) -> None:
    """It ends cancelled with the error as the reason, nothing is counted, and its key is free again."""
    ann = world.client("ann")
    job = _hold(world, unique_key="one", max_attempts=1)
    heard: list[str] = []

    def hear(sender: t.Any, **facts: t.Any) -> None:
        heard.append(facts["locker"])

    with job_cancelled.connected_to(hear):
        assert _said(ann.fail(job, "gone", cancel=True)) == {"state": "cancelled", "run_at": None}

    after = world.job(job["id"])
    assert (after.state, after.failures, after.unique_key) == ("cancelled", 0, None)
    assert after.finished_at is not None
    row, rows = stored(world, job["id"])
    assert (rows[-1]["from_state"], rows[-1]["reason"], rows[-1]["locker"]) == ("locked", "fail", "user_ann")
    assert rows[-1]["error"]["message"] == "gone"
    assert heard == ["user_ann"]
    for again in (ann.fail(job, "gone", cancel=True), ann.fail(job), ann.deliver(job, 1), ann.extend(job)):
        assert _said(again, 409)["code"] == "cancelled"
    assert stored(world, job["id"]) == (row, rows)


def test_who_is_not_trusted_cancels_nothing(make_world: MakeWorld, db_url: str) -> None:
    """Without ``TRUST_FAILURES`` it is a failure like any other."""
    world = make_world(db_url, JOBBER_TRUST_FAILURES=False)
    job = _hold(world)

    assert _said(world.client("ann").fail(job, cancel=True))["state"] == "scheduled"
    assert world.job(job["id"]).failures == 1


@pytest.mark.parametrize(("asked", "least", "most"), [(1, 3, 4), (500, 500, 501), (9e8, 1000, 1001)])
def test_a_hint_of_a_client_is_a_lower_bound_that_is_capped(
    make_world: MakeWorld, sqlite_url: str, asked: float, least: float, most: float
) -> None:
    """``retry_seconds`` neither shortens the back-off nor goes over ``MAX_BACKOFF_SECONDS``."""
    backoff = {"strategy": "constant", "first": 4}
    world = make_world(sqlite_url, JOBBER_BACKOFF=backoff, JOBBER_MAX_BACKOFF_SECONDS=1000)
    job = _hold(world)

    run_at = dt.datetime.fromisoformat(_said(world.client("ann").fail(job, retry_seconds=asked))["run_at"])

    assert run_at == world.job(job["id"]).run_at
    assert least - 20 < (run_at - dt.datetime.now(dt.UTC)).total_seconds() <= most


# -- cancel, retry, expire, prune -------------------------------------------------------------


def test_cancel_works_at_once_and_the_holder_hears_of_it(world: World) -> None:
    """Whatever the holder does then is refused with ``cancelled``; a stranger hears no more than before."""
    root, ann = world.client("root"), world.client("ann")
    job = _hold(world)

    assert _said(root.post(f"/jobs/{job['id']}/cancel"))["state"] == "cancelled"
    settled = stored(world, job["id"])

    for answer in (
        ann.deliver(job, 1), ann.fail(job), ann.extend(job), ann.release(job), ann.get(job["href"]),
    ):  # fmt: skip
        assert _said(answer, 409)["code"] == "cancelled"
    assert _said(world.client("bob").extend(job), 409)["code"] == "lease_lost"
    assert _said(ann.get("/claims"))["jobs"] == []
    assert stored(world, job["id"]) == settled


def test_retry_gives_a_job_another_life(world: World) -> None:
    """It is due now; failures, exclusions, holder, end and an ``expires_at`` gone by are forgotten."""
    job = _hold(world, not_for="user_bob", max_attempts=1, expires_at=ago(-500))
    world.client("ann").fail(job)
    world.pass_time(1000)

    answer = _said(world.client("root").post(f"/jobs/{job['id']}/retry"))

    assert (answer["state"], answer["failures"], answer["finished_at"]) == ("queued", 0, None)
    after = world.job(job["id"])
    assert (after.not_for, after.expires_at, after.locked_by, after.attempts) == (None, None, None, 1)
    assert abs(after.run_at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
    [again] = world.client("bob").claim()
    assert (again["id"], again["attempt"]) == (job["id"], 2)
    assert _said(world.client("ann").fail(job), 409)["code"] == "lease_lost"


def test_retry_keeps_an_expires_at_that_has_not_passed(world: World) -> None:
    """A cancelled job that comes back still expires when it was to."""
    expires_at = ago(-3600)
    job_id = world.enqueue(expires_at=expires_at, after=1800)
    with world.session():
        world.jobber.cancel(job_id)
        world.jobber.retry(job_id)

    assert (world.job(job_id).state, world.job(job_id).expires_at) == (State.QUEUED, expires_at)


@pytest.mark.parametrize("name", ["cancel", "retry"])
def test_the_servers_verbs_take_a_job_or_its_id_and_refuse_the_rest(lite: World, name: str) -> None:
    """An ended or unfinished job is an illegal transition, an absent one not found."""
    job_id = lite.enqueue()
    verb = getattr(lite.jobber, name)
    with lite.session() as session:
        if name == "retry":
            lite.jobber.cancel(job_id)
        verb(session.get(lite.Job, job_id))
        with pytest.raises(IllegalTransition, match=name):
            verb(job_id)
        for absent in (0, -1, job_id + 1, 2**63, 2**80):
            with pytest.raises(NotFound):
                verb(absent)

    assert lite.job(job_id).state == ("cancelled" if name == "cancel" else "queued")


def test_what_is_exhausted_and_past_its_time_has_failed(world: World) -> None:
    """A lapsed job that has attempts left is expired and counts nothing; a held one is left alone."""
    ids = {}
    for name, max_attempts in (("spare", 2), ("used up", 1), ("held", 1)):
        ids[name] = _hold(world, max_attempts=max_attempts, expires_at=ago(-1000))["id"]
    queued = world.enqueue(expires_at=ago(-1000))
    with world.session():
        for name, job_id in ids.items():
            until = ago(-60 if name == "held" else 60)
            put(world, job_id, expires_at=ago(5), locked_until=until)
        put(world, queued, expires_at=ago(5))

    with world.session():
        assert world.jobber.expire() == 3
        assert world.jobber.expire() == 0

    jobs = {name: world.job(job_id) for name, job_id in ids.items()}
    assert {name: (job.state, job.failures) for name, job in jobs.items()} == {
        "spare": (State.EXPIRED, 0),
        "used up": (State.FAILED, 1),
        "held": (State.LOCKED, 0),
    }
    assert world.job(queued).state == State.EXPIRED
    assert _said(world.client("ann").deliver({"href": f"/jobs/{ids['held']}/attempts/1"}))


def test_expire_ends_no_more_than_it_is_told(world: World) -> None:
    """Of what is due to end, up to ``limit``, the rest the next time."""
    ids = [world.enqueue(expires_at=ago(-5)) for _ in range(3)]
    with world.session():
        for job_id in ids:
            put(world, job_id, expires_at=ago(5))

        assert [world.jobber.expire(limit=2) for _ in range(3)] == [2, 1, 0]


def test_prune_forgets_what_has_ended_long_ago(world: World) -> None:
    """With its history; unfinished jobs and fresh ends stay, and ids are never given twice."""
    with world.session():
        old, fresh, waiting = (int(world.jobber.enqueue("work").id) for _ in range(3))
        for job_id in (old, fresh):
            world.jobber.cancel(job_id)
        put(world, old, finished_at=ago(15 * 86_400))
        put(world, waiting, created_at=ago(15 * 86_400), run_at=ago(15 * 86_400))

        assert world.jobber.prune() == 1
        assert world.jobber.prune(older_than=dt.timedelta(days=1)) == 0

    assert states(world) == {fresh: State.CANCELLED, waiting: State.QUEUED}
    assert world.history(old) == []
    with world.session():
        assert world.jobber.prune(limit=1, older_than=dt.timedelta()) == 1
        world.jobber.cancel(waiting)
    with world.session():
        assert world.jobber.prune(older_than=dt.timedelta()) == 1
    assert world.enqueue() > waiting
    assert states(world).keys().isdisjoint({old, fresh, waiting})


# -- the verbs without HTTP -------------------------------------------------------------------


def test_every_verb_joins_its_callers_transaction(world: World) -> None:
    """A roll-back undoes it whole, whichever it was."""
    ids = make_one_of_each(world)
    jobber = world.jobber
    verbs: dict[str, t.Callable[[], object]] = {
        "claim": lambda: jobber.claim(LOCKER, limit=10),
        "deliver": lambda: jobber.deliver(LOCKER, ids["locked"], 1, 1),
        "fail": lambda: jobber.fail(LOCKER, ids["locked"], 1, ERROR),
        "extend": lambda: jobber.extend(LOCKER, ids["locked"], 1, progress=1, note="n"),
        "release": lambda: jobber.release(LOCKER, ids["locked"], 1),
        "cancel": lambda: jobber.cancel(ids["queued"]),
        "retry": lambda: jobber.retry(ids["failed"]),
        "expire": lambda: jobber.expire(),
        "prune": lambda: jobber.prune(older_than=dt.timedelta()),
    }
    with world.session() as session:
        session.execute(sa.update(world.Job).values(max_attempts=1))
    before = {job_id: stored(world, job_id) for job_id in ids.values()}

    for name, verb in verbs.items():
        with world.app.app_context():
            assert verb() != 0
            world.db.session.rollback()
        assert {job_id: stored(world, job_id) for job_id in ids.values()} == before, name


def test_an_object_that_the_caller_holds_is_as_new_after_a_verb(lite: World) -> None:
    """The verbs write past the session's objects, and let them be read again."""
    jobber = lite.jobber
    with lite.session():
        job = jobber.enqueue("work")
        assert job.state == State.QUEUED
        jobber.claim(LOCKER, lease_seconds=LEASE)
        assert (job.state, job.attempts, job.locked_by) == (State.LOCKED, 1, LOCKER)
        jobber.extend(LOCKER, job.id, 1, lease_seconds=300, progress=0.5)
        assert (job.lease_seconds, job.progress) == (300, 0.5)
        job.written = "kept"
        jobber.release(LOCKER, job.id, 1)
        assert (job.state, job.locked_by, job.written) == (State.QUEUED, None, "kept")
        jobber.cancel(job)
        assert job.finished_at is not None
        jobber.retry(job)
        assert job.finished_at is None


@pytest.mark.parametrize(
    "wish",
    [
        {"limit": 0}, {"limit": 101}, {"limit": 1.0}, {"types": []}, {"types": "work"}, {"types": ["a b"]},
        {"queues": []}, {"queues": [None]}, {"lease_seconds": 0}, {"lease_seconds": 86_401},
        {"lease_seconds": "60"}, {"locker": ""}, {"locker": "a/b/c"}, {"locker": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_wish_of_server_code_is_refused_by_name(lite: World, wish: dict[str, t.Any]) -> None:
    """As a client's would be; nothing is handed out."""
    job_id = lite.enqueue()

    with lite.session(), pytest.raises(Invalid) as refused:
        lite.jobber.claim(**{"locker": LOCKER, **wish})
    assert list(refused.value.errors) == list(wish)
    assert lite.job(job_id).state == State.QUEUED


def test_the_servers_own_verbs_do_the_same(world: World) -> None:
    """The verbs of a holder take the locker as an argument, and no scope."""
    job_id = world.enqueue(user_id="bob")
    jobber = world.jobber

    with world.session():
        assert jobber.claim(LOCKER, types=["other"]) == []
        [first] = jobber.claim(LOCKER, types=["work"], queues=["default"], lease_seconds=LEASE)
        assert (first.id, first.attempt, first.lease_seconds) == (job_id, 1, LEASE)
        assert jobber.extend(LOCKER, job_id, 1, progress=0.5) == LEASE
        jobber.release(LOCKER, job_id, 1)
        assert jobber.claim(LOCKER)[0].attempt == 2
        assert jobber.fail(LOCKER, job_id, 2, ValueError("no")) == State.SCHEDULED
        put(world, job_id, run_at=ago(1))
        [third] = jobber.claim("other/node-1")
        assert jobber.deliver("other/node-1", job_id, third.attempt, [1], {"x": 1}) == State.SUCCEEDED

    job = world.job(job_id)
    assert (job.result, job.extras, job.locked_by, job.attempts) == ([1], {"x": 1}, "other/node-1", 3)
    error = stored(world, job_id)[1][-3]["error"]
    assert (error["type"], error["message"]) == ("ValueError", "no")


def test_lengths_may_be_timedeltas(lite: World) -> None:
    """Wherever a verb takes a length, it takes seconds or a timedelta."""
    minutes = dt.timedelta(minutes=2)
    with lite.session() as session:
        job = lite.jobber.enqueue("work", lease_for=minutes, after=dt.timedelta())
        assert lite.jobber.claim(LOCKER)[0].lease_seconds == 120
        assert lite.jobber.extend(LOCKER, job.id, 1, lease_seconds=minutes * 2) == 240
        lite.jobber.release(LOCKER, job.id, 1, delay_seconds=minutes)
        session.refresh(job)
        assert 60 < (job.run_at - dt.datetime.now(dt.UTC)).total_seconds() <= 120
        put(lite, job.id, run_at=ago(1))
        lite.jobber.claim(LOCKER, lease_seconds=minutes)
        lite.jobber.fail(LOCKER, job.id, 2, ERROR, retry_seconds=minutes)
        session.refresh(job)
        assert (job.run_at - dt.datetime.now(dt.UTC)).total_seconds() > 60
