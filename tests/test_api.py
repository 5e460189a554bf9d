"""Each endpoint: what it answers, to whom, and what it refuses."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import re
import sqlite3
import typing as t

import pytest
from marshmallow import Schema, fields
from werkzeug.test import TestResponse

from conftest import MakeWorld
from flask_jobber import Invalid, ResultRejected
from support import PREFIX, Client, World

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
CLAIMED = {
    "id", "type", "data", "queue", "priority", "attempt", "failures", "max_attempts", "lease_seconds",
    "enqueued_at", "href", "attachments",
}  # fmt: skip
SEEN = {
    "id", "type", "data", "queue", "priority", "state", "attempt", "failures", "max_attempts", "progress",
    "note", "result", "error", "enqueued_at", "run_at", "finished_at", "series", "owner",
    "batch", "href", "attachments",
}  # fmt: skip


def seen(client: Client, job_id: int) -> dict[str, t.Any]:
    response = client.get(f"/jobs/{job_id}")
    assert response.status_code == 200, response.text
    return t.cast(dict[str, t.Any], response.get_json())


def code(response: TestResponse) -> tuple[int, str]:
    return response.status_code, response.get_json()["code"]


def moment(text: str) -> dt.datetime:
    assert INSTANT.fullmatch(text)
    return dt.datetime.fromisoformat(text)


@pytest.fixture
def held(lite: World) -> dict[str, t.Any]:
    """A job that ``ann`` holds."""
    lite.enqueue(data={"n": 1})
    return lite.client().claim()[0]


# -- POST /claims --------------------------------------------------------------------------


def test_a_claim_hands_out_a_job_with_all_that_its_worker_needs(world: World) -> None:
    """And nothing else: not who else there is."""
    before = dt.datetime.now(dt.UTC)
    job_id = world.enqueue("work", {"url": "x"}, queue="q", priority=3, max_attempts=4)
    response = world.client().post("/claims", {})
    assert (response.status_code, response.mimetype) == (200, "application/json")
    body = response.get_json()
    [job] = body["jobs"]
    assert job.keys() == CLAIMED
    assert body["retry_after"] == 0
    assert "Retry-After" not in response.headers
    assert response.headers["Cache-Control"] == "no-store"
    enqueued_at = moment(job.pop("enqueued_at"))
    assert abs(enqueued_at - before) < dt.timedelta(minutes=1)
    assert job == {
        "id": job_id,
        "type": "work",
        "data": {"url": "x"},
        "queue": "q",
        "priority": 3,
        "attempt": 1,
        "failures": 0,
        "max_attempts": 4,
        "lease_seconds": 600,
        "href": f"{PREFIX}/jobs/{job_id}/attempts/1",
        "attachments": [],
    }


def test_an_empty_claim_is_told_when_to_come_again(lite: World) -> None:
    """200 with no jobs; the header is the body's number in whole seconds; not the same for everyone."""
    waits = set()
    for _ in range(20):
        response = lite.client().post("/claims", {})
        assert (response.status_code, response.get_json()["jobs"]) == (200, [])
        seconds = response.get_json()["retry_after"]
        assert 5 * 0.75 <= seconds <= 5 * 1.25
        assert response.headers["Retry-After"] == str(math.ceil(seconds))
        waits.add(seconds)
    assert len(waits) > 1


@pytest.mark.parametrize(
    "body", [{}, {"types": ["a", "b"]}, {"types": ["nothing", "a"]}, {"queues": ["x"]}], ids=str
)
def test_a_claim_may_narrow_types_and_queues(lite: World, body: dict[str, t.Any]) -> None:
    """Both must fit; names that no job has do no harm, nor does one said twice."""
    for type_ in "abc":
        for queue in "xy":
            lite.enqueue(type_, queue=queue)
    body = {name: names * 2 for name, names in body.items()}
    got = {(job["type"], job["queue"]) for job in lite.client().claim(limit=100, **body)}
    wanted = {(t_, q) for t_ in body.get("types", "abc") for q in body.get("queues", "xy") if t_ in "abc"}
    assert got == wanted


def test_a_claim_hands_out_no_more_than_it_is_asked_for(lite: World) -> None:
    """One without a limit; fewer when there are fewer."""
    for _ in range(5):
        lite.enqueue()
    client = lite.client()
    assert len(client.claim()) == 1
    assert len(client.claim(limit=3)) == 3
    assert len(client.claim(limit=100)) == 1


@pytest.mark.parametrize("limit", [0, -1, 4, 100, 101, 10**9])
def test_a_limit_over_its_bound_is_refused(make_world: MakeWorld, sqlite_url: str, limit: int) -> None:
    """Not clamped: a client that asks for more than there may be should know."""
    world = make_world(sqlite_url, JOBBER_MAX_CLAIM=3)
    world.enqueue()
    response = world.client().post("/claims", {"limit": limit})
    assert code(response) == (422, "invalid")
    assert list(response.get_json()["errors"]) == ["limit"]
    assert len(world.client().claim(limit=3)) == 1


def test_waiting_is_capped_and_never_refused_for_its_length(lite: World) -> None:
    """``wait_seconds`` may be of any length; a claim that finds a job does not wait."""
    lite.enqueue()
    assert len(lite.client().claim(wait_seconds=1e9)) == 1
    assert code(lite.client().post("/claims", {"wait_seconds": -1})) == (422, "invalid")


def test_the_lease_is_the_requests_else_the_jobs_else_the_apps(make_world: MakeWorld, db_url: str) -> None:
    """Told in seconds from now, and kept so in the row."""
    world = make_world(db_url, JOBBER_LEASE_SECONDS=100, JOBBER_MAX_LEASE_SECONDS=1000)
    for wanted, lease_for, asked in ((100, None, None), (200, 200, None), (300, 200, 300), (0.5, None, 0.5)):
        job_id = world.enqueue(lease_for=lease_for)
        [job] = world.client().claim(**({} if asked is None else {"lease_seconds": asked}))
        row = world.job(job_id)
        assert job["lease_seconds"] == row.lease_seconds == wanted
        length = (row.locked_until - row.locked_at).total_seconds()
        assert length == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("seconds", [0, -1, 0.0001, 1000.1, 86_400, 1e18])
def test_a_lease_out_of_its_bounds_is_refused(make_world: MakeWorld, sqlite_url: str, seconds: float) -> None:
    """By a claim, by a claim in an exchange and by a heartbeat; what is held stays as it was."""
    world = make_world(sqlite_url, JOBBER_MAX_LEASE_SECONDS=1000)
    world.enqueue()
    world.enqueue()
    client = world.client()
    [job] = client.claim()
    until = world.job(job["id"]).locked_until
    for response in (
        client.post("/claims", {"lease_seconds": seconds}),
        client.extend(job, lease_seconds=seconds),
    ):
        assert code(response) == (422, "invalid")
        assert list(response.get_json()["errors"]) == ["lease_seconds"]
    assert (
        client.post("/exchange", {"claim": {"lease_seconds": seconds}}).get_json()["claim"]["status"] == 422
    )
    assert world.job(job["id"]).locked_until == until
    assert len(client.claim(lease_seconds=1000)) == 1


def test_a_login_may_hold_no_more_than_is_set(make_world: MakeWorld, db_url: str) -> None:
    """429 with ``Retry-After``, whatever node asks; a claim for more than there is room for gets the rest."""
    world = make_world(db_url, JOBBER_MAX_OPEN_CLAIMS=3)
    for _ in range(10):
        world.enqueue()
    one, two = world.client("ann", "one"), world.client("ann", "two")
    assert len(one.claim(limit=2)) == 2
    [job] = two.claim(limit=5)
    for client in (one, two, world.client("ann"), world.client("ann", "three")):
        response = client.post("/claims", {})
        assert code(response) == (429, "too_many_claims")
        assert response.get_json()["retryable"] is True
        assert int(response.headers["Retry-After"]) > 0
    assert len(world.client("an").claim()) == 1
    assert two.release(job).status_code == 204
    assert len(one.claim()) == 1


# -- GET /claims and the hand-out again ----------------------------------------------------


def test_reviving_late_claims_is_no_way_past_the_limit(make_world: MakeWorld, db_url: str) -> None:
    """A heartbeat of a lapsed lease takes room like a claim; others of the same login keep theirs."""
    world = make_world(db_url, JOBBER_MAX_OPEN_CLAIMS=2)
    late, held = [], []
    for kind, jobs in (("first", late), ("second", held)):
        for _ in range(2):
            world.enqueue(type=kind)
        jobs += world.client("ann").claim(types=[kind], limit=2)
        world.pass_time(0 if jobs is held else 3600)
    refused = world.client("ann").extend(late[0])
    assert (refused.status_code, (refused.json or {})["code"]) == (429, "too_many_claims")
    assert world.client("ann").extend(held[0]).status_code == 200
    assert world.client("ann").release(held[0]).status_code == 204
    assert world.client("ann").extend(late[0]).status_code == 200
    assert world.client("ann").extend(late[1]).status_code == 429
    assert world.client("ann").deliver(late[1]).status_code == 200


def test_open_claims_are_listed_to_take_them_up_again(world: World) -> None:
    """Mine, with their attempts, as they were handed out; nobody else's, and none that is over."""
    for user in ("ann", "ann", "ann", "bob"):
        world.enqueue(data={"of": user}, user_id=user)
    client = world.client()
    jobs = client.claim(limit=3, lease_seconds=50)
    world.client("bob").claim()
    client.deliver(jobs[0])
    listed = client.get("/claims").get_json()
    assert listed == {"jobs": jobs[1:]}
    assert [client.get(job["href"]).get_json() for job in jobs[1:]] == jobs[1:]


def test_a_late_claim_is_listed_until_somebody_else_has_it(world: World) -> None:
    """After its lease it is still mine; after another's claim it is not."""
    world.enqueue()
    client = world.client()
    [job] = client.claim(lease_seconds=10)
    world.pass_time(1000)
    assert [one["id"] for one in client.get("/claims").get_json()["jobs"]] == [job["id"]]
    assert client.get(job["href"]).status_code == 200
    [again] = world.client("bob").claim()
    assert (again["attempt"], again["failures"]) == (2, 1)
    assert client.get("/claims").get_json() == {"jobs": []}
    assert code(client.get(job["href"])) == (409, "lease_lost")


def test_a_hand_out_is_shown_to_its_holder_alone(world: World) -> None:
    """Another's is lost, a settled or cancelled one says so, and one that never was is not there."""
    ann, bob, root = world.client("ann"), world.client("bob"), world.client("root")
    world.enqueue()
    [job] = ann.claim()
    assert ann.get(job["href"]).get_json() == job
    assert code(bob.get(job["href"])) == (409, "lease_lost")
    assert code(world.client("ann", "node").get(job["href"])) == (409, "lease_lost")
    assert code(ann.get(f"/jobs/{job['id']}/attempts/2")) == (404, "not_found")
    assert code(ann.get(f"/jobs/{job['id']}/attempts/0")) == (404, "not_found")
    ann.deliver(job, 1)
    assert code(ann.get(job["href"])) == (409, "already_settled")
    world.enqueue()
    [job] = ann.claim()
    root.post(f"/jobs/{job['id']}/cancel")
    assert code(ann.get(job["href"])) == (409, "cancelled")
    assert code(bob.get(job["href"])) == (409, "lease_lost")


# -- heartbeat -----------------------------------------------------------------------------


def test_a_heartbeat_grants_the_last_length_again(world: World) -> None:
    """From now; one that says a length changes it for the next."""
    world.enqueue()
    client = world.client()
    [job] = client.claim(lease_seconds=100)
    for body, wanted in (({}, 100), ({"lease_seconds": 50}, 50), ({}, 50), ({"progress": 0.1}, 50)):
        world.pass_time(20)
        response = client.extend(job, **body)
        assert (response.status_code, response.get_json()) == (200, {"lease_seconds": wanted})
        with world.session():
            now = world.jobber.store().now()
        left = (world.job(job["id"]).locked_until - now).total_seconds()
        assert left == pytest.approx(wanted, abs=5)


def test_a_heartbeat_tells_how_far_the_work_is(lite: World) -> None:
    """What it does not say stays; the next holder begins anew."""
    lite.enqueue()
    client = lite.client()
    [job] = client.claim()
    for body, wanted in (
        ({"progress": 0.25}, (0.25, None)),
        ({"note": "a quarter"}, (0.25, "a quarter")),
        ({"progress": 1, "note": ""}, (1, "")),
        ({"progress": 0}, (0, "")),
        ({"note": "\U0001f600" * 500}, (0, "\U0001f600" * 500)),
    ):
        assert client.extend(job, **body).status_code == 200
        shown = seen(client, job["id"])
        assert (shown["progress"], shown["note"]) == wanted
    client.release(job)
    assert (seen(client, job["id"])["progress"], seen(client, job["id"])["note"]) == (None, None)


@pytest.mark.parametrize("body", [{"progress": 1.01}, {"progress": -0.1}, {"note": "x" * 501}], ids=str)
def test_a_heartbeat_out_of_bounds_is_refused(
    lite: World, held: dict[str, t.Any], body: dict[str, t.Any]
) -> None:
    """Nothing of it is done, the lease neither."""
    until = lite.job(held["id"]).locked_until
    response = lite.client().extend(held, **body, lease_seconds=5)
    assert code(response) == (422, "invalid")
    assert response.get_json()["errors"].keys() == body.keys()
    assert lite.job(held["id"]).locked_until == until


# -- results -------------------------------------------------------------------------------


def test_a_result_is_taken_and_shown_to_its_deliverer(world: World) -> None:
    """200 with the state; the job is finished, at an instant."""
    world.enqueue()
    client = world.client()
    [job] = client.claim()
    response = client.deliver(job, {"a": [1]}, extras={"took": 5})
    assert (response.status_code, response.get_json()) == (200, {"state": "succeeded"})
    shown = seen(client, job["id"])
    assert (shown["state"], shown["result"], shown["attempt"]) == ("succeeded", {"a": [1]}, 1)
    assert moment(shown["finished_at"]) >= moment(shown["enqueued_at"])
    assert world.job(job["id"]).extras == {"took": 5}


def test_a_result_is_null_without_one(lite: World, held: dict[str, t.Any]) -> None:
    """An empty body is a result too."""
    response = lite.client().put(f"{held['href']}/result")
    assert (response.status_code, response.get_json()) == (200, {"state": "succeeded"})


class Number(Schema):
    n = fields.Integer(strict=True, required=True)


def test_a_result_that_breaks_its_schema_may_be_corrected(lite: World) -> None:
    """422 that names the fields; the lease is kept and nothing is counted."""
    lite.jobber.job_type("work", schema=Number)
    lite.enqueue()
    client = lite.client()
    [job] = client.claim()
    for result, where in (({"n": "x"}, "n"), ({"m": 1}, "n"), ({}, "n"), (None, "_schema"), ([], "_schema")):
        response = client.deliver(job, result)
        assert code(response) == (422, "invalid_result")
        assert where in response.get_json()["errors"]["result"]
    row = lite.job(job["id"])
    assert (row.state, row.failures, row.locked_by) == ("locked", 0, "user_ann")
    assert lite.history(job["id"])[1:] == [("queued", "locked", "claim")]
    assert client.deliver(job, {"n": 1}).status_code == 200


@pytest.mark.parametrize(
    ("then", "limit", "told", "state"),
    [
        ("release", 2, "release", "scheduled"),
        ("exclude", 2, "exclude", "scheduled"),
        ("correct", 2, "correct", "locked"),
        ("release", 1, "failed", "failed"),
        ("exclude", 1, "failed", "failed"),
        ("correct", 1, "correct", "locked"),
    ],
)
def test_a_rejected_result_tells_why_and_what_then(
    lite: World, then: t.Any, limit: int, told: str, state: str
) -> None:
    """The reason is for the client; what happens to the job is said beside it."""

    @lite.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        raise ResultRejected("too blurred \u00e9", then=then)

    lite.enqueue(max_attempts=limit)
    client = lite.client()
    [job] = client.claim()
    response = client.deliver(job, 1)
    assert code(response) == (422, "result_rejected")
    body = response.get_json()
    assert (body["detail"], body["then"], body["retryable"]) == ("too blurred \u00e9", told, False)
    assert lite.job(job["id"]).state == state


def test_a_result_whose_processor_broke_is_accepted(world: World) -> None:
    """202, kept, and shown to its deliverer; repeated it is 202 again, and 200 once it is processed."""
    broken = [True]

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        if broken:
            raise RuntimeError("secret of the server")

    world.enqueue()
    client = world.client()
    [job] = client.claim()
    for _ in range(2):
        response = client.deliver(job, {"a": 1})
        assert (response.status_code, response.get_json()) == (202, {"state": "submitted"})
    assert seen(client, job["id"])["result"] == {"a": 1}
    broken.clear()
    world.pass_time(100_000)
    with world.app.app_context():
        assert world.jobber.process_submitted() == 1
    response = client.deliver(job, {"a": 1})
    assert (response.status_code, response.get_json()) == (200, {"state": "succeeded"})
    assert code(client.deliver(job, {"a": 2})) == (409, "already_settled")


# -- failures and releases -----------------------------------------------------------------


def test_a_failure_tells_when_the_job_runs_again(make_world: MakeWorld, db_url: str) -> None:
    """State and instant; ``retry_seconds`` is the least that is waited, up to the cap."""
    world = make_world(
        db_url, JOBBER_BACKOFF={"strategy": "constant", "first": 100}, JOBBER_MAX_BACKOFF_SECONDS=5000
    )
    client = world.client()
    for retry, wanted in ((None, 100), (0, 100), (50, 100), (1000, 1000), (1e8, 5000)):
        world.enqueue()
        [job] = client.claim()
        now = world.job(job["id"]).locked_at
        asked: dict[str, t.Any] = {} if retry is None else {"retry_seconds": retry}
        response = client.fail(job, **asked)
        assert response.status_code == 200
        assert response.get_json()["state"] == "scheduled"
        waits = (moment(response.get_json()["run_at"]) - now).total_seconds()
        assert waits == pytest.approx(wanted, abs=5)
        assert seen(client, job["id"])["run_at"] == response.get_json()["run_at"]


@pytest.mark.parametrize(("trust", "state"), [(True, "failed"), (False, "scheduled")])
def test_a_permanent_failure_ends_the_job_if_clients_are_trusted(
    make_world: MakeWorld, sqlite_url: str, trust: bool, state: str
) -> None:
    """Without trust it is a failure like any other."""
    world = make_world(sqlite_url, JOBBER_TRUST_FAILURES=trust)
    world.enqueue()
    client = world.client()
    response = client.fail(client.claim()[0], permanent=True)
    assert response.get_json()["state"] == state
    assert (response.get_json()["run_at"] is None) is trust


def test_a_failure_is_shown_without_its_traceback(world: World) -> None:
    """Type and message to whoever sees the job; a long traceback is cut at its beginning."""
    world.enqueue()
    client = world.client()
    [job] = client.claim()
    error = {"type": "T" * 200, "message": "m" * 2000, "traceback": "a" * 10 + "b" * 20_000}
    assert client.put(f"{job['href']}/failure", {"error": error}).status_code == 200
    shown = seen(client, job["id"])
    assert shown["error"] == {"type": "T" * 200, "message": "m" * 2000}
    history = client.get(f"/jobs/{job['id']}/history").get_json()["history"]
    assert history[-1]["error"] == {**error, "traceback": "b" * 20_000}
    for name, text in (("type", "T" * 201), ("message", "m" * 2001), ("type", "")):
        response = client.put(f"{job['href']}/failure", {"error": {**error, name: text}})
        assert code(response) == (422, "invalid")


def test_a_release_gives_the_job_back_uncounted(lite: World) -> None:
    """204 without a body; at once, or after a delay."""
    lite.enqueue()
    client = lite.client()
    for query, state in (
        ("", "queued"),
        ("?delay_seconds=0", "queued"),
        ("?delay_seconds=60.5", "scheduled"),
    ):
        [job] = client.claim()
        response = client.release(job, query)
        assert (response.status_code, response.data) == (204, b"")
        row = lite.job(job["id"])
        assert (row.state, row.failures, row.locked_by) == (state, 0, None)
    assert client.claim() == []
    lite.pass_time(61)
    assert [job["attempt"] for job in client.claim()] == [4]


@pytest.mark.parametrize(
    "query", ["?delay_seconds=-1", "?delay_seconds=86401", "?delay_seconds=x", "?delay=1"]
)
def test_a_release_out_of_bounds_is_refused(lite: World, held: dict[str, t.Any], query: str) -> None:
    """The job is held as before."""
    assert code(lite.client().release(held, query)) == (422, "invalid")
    assert lite.job(held["id"]).state == "locked"


def verbs(client: Client, job: dict[str, t.Any]) -> dict[str, TestResponse]:
    """Try every verb of a holder."""
    return {
        "deliver": client.deliver(job, "other"),
        "fail": client.fail(job),
        "extend": client.extend(job),
        "release": client.release(job),
        "show": client.get(job["href"]),
    }


def test_who_holds_nothing_is_told_that_and_no_more(world: World) -> None:
    """Another's, released or failed: lost. Cancelled and settled say so. Never given out: not there."""
    ann, bob, root = world.client("ann"), world.client("bob"), world.client("root")

    def new() -> dict[str, t.Any]:
        world.enqueue(max_attempts=1)
        return ann.claim()[0]

    situations: dict[str, tuple[dict[str, t.Any], Client]] = {}
    situations["lease_lost of another"] = (job := new(), bob)
    situations["lease_lost other node"] = (job, world.client("ann", "n"))
    situations["lease_lost released"] = (job := new(), ann)
    ann.release(job)
    bob.claim()
    situations["lease_lost failed"] = (job := new(), ann)
    ann.fail(job, "another failure")
    situations["cancelled"] = (job := new(), ann)
    root.post(f"/jobs/{job['id']}/cancel")
    situations["already_settled"] = (job := new(), ann)
    ann.deliver(job, 1)
    absent = {**new(), "attempt": 2}
    absent["href"] = f"{PREFIX}/jobs/{absent['id']}/attempts/2"
    situations["not_found"] = (absent, ann)
    wrong = []
    for title, (job, client) in situations.items():
        before = world.job(job["id"])
        for verb, response in verbs(client, job).items():
            wanted = title.partition(" ")[0]
            if code(response) != (404 if wanted == "not_found" else 409, wanted):
                wrong.append(f"{verb} of {title}: {response.text}")
            if re.search("user_|ann|bob|/n\\b", response.text):
                wrong.append(f"{verb} of {title} names somebody: {response.text}")
        after = world.job(job["id"])
        if (before.state, before.locked_by, before.result) != (after.state, after.locked_by, after.result):
            wrong.append(f"{title} changed")
    assert not wrong, "\n".join(wrong)


# -- seeing jobs ---------------------------------------------------------------------------


def test_a_job_is_shown_as_it_is(lite: World) -> None:
    """Every field, whatever state it is in; never who holds it."""
    job_id = lite.enqueue("work", {"a": 1}, queue="q", priority=-2, max_attempts=3, user_id="ann")
    response = lite.client().get(f"/jobs/{job_id}")
    job = response.get_json()
    assert job.keys() == SEEN
    assert response.headers["Cache-Control"] == "no-store"
    times = {name: job.pop(name) for name in ("enqueued_at", "run_at")}
    assert moment(times["enqueued_at"]) == moment(times["run_at"])
    assert job == {
        "id": job_id, "type": "work", "data": {"a": 1}, "queue": "q", "priority": -2, "state": "queued",
        "attempt": 0, "failures": 0, "max_attempts": 3, "progress": None, "note": None, "result": None,
        "error": None, "finished_at": None, "series": None, "owner": None, "batch": None,
        "href": f"{PREFIX}/jobs/{job_id}", "attachments": [],
    }  # fmt: skip
    assert lite.client().get(job["href"]).status_code == 200


def test_no_answer_names_another_locker(lite: World) -> None:
    """Not in a list, a job, a history or a refusal, while it is held and afterwards."""
    lite.jobber.registry.hooks["locker_name"] = lambda: f"unmistakable_{_user()}"
    for _ in range(4):
        lite.enqueue()
    ann, bob, root = lite.client("ann", "n"), lite.client("bob"), lite.client("root")
    jobs = ann.claim(limit=3)
    ann.deliver(jobs[0], 1)
    ann.fail(jobs[1])
    said = []
    for job in jobs:
        path = f"/jobs/{job['id']}"
        calls = [
            bob.get(path),
            bob.get(f"{path}/history"),
            bob.post(f"{path}/cancel"),
            *verbs(bob, job).values(),
        ]
        said += [call.text for call in calls]
    said += [bob.get("/jobs").text, bob.get("/claims").text, bob.post("/claims", {}).text]
    said += [root.get("/jobs").text, root.get(f"/jobs/{jobs[0]['id']}").text]
    assert not [text for text in said if "unmistakable_ann" in text]


def _user() -> str:
    from flask_login import current_user

    return str(current_user.id)


def test_a_list_is_walked_page_by_page(world: World) -> None:
    """By id; every job once, also when there are new ones meanwhile; the last page has no cursor."""
    ids = [world.enqueue() for _ in range(7)]
    client, pages, query = world.client(), [], "limit=3"
    while True:
        body = client.get(f"/jobs?{query}").get_json()
        pages.append([job["id"] for job in body["jobs"]])
        if body["cursor"] is None:
            break
        query = f"limit=3&cursor={body['cursor']}"
        if len(pages) == 1:
            ids.append(world.enqueue())
    assert pages == [ids[:3], ids[3:6], ids[6:]]


def test_a_full_last_page_is_known_as_the_last(lite: World) -> None:
    """No empty page follows, and a cursor beyond the end is an empty page."""
    for _ in range(4):
        lite.enqueue()
    client = lite.client()
    first = client.get("/jobs?limit=2").get_json()
    last = client.get(f"/jobs?limit=2&cursor={first['cursor']}").get_json()
    assert (len(last["jobs"]), last["cursor"]) == (2, None)
    assert client.get("/jobs?cursor=999999").get_json() == {"jobs": [], "cursor": None}
    assert len(client.get("/jobs?limit=4").get_json()["jobs"]) == 4


def test_a_list_holds_fifty_unless_it_is_asked_for_more(lite: World) -> None:
    """A hundred at the most; more is refused, not clamped."""
    with lite.session():
        lite.jobber.enqueue_many({"type": "work"} for _ in range(120))
    client = lite.client()
    assert len(client.get("/jobs").get_json()["jobs"]) == 50
    assert len(client.get("/jobs?limit=100").get_json()["jobs"]) == 100
    for limit in (0, -1, 101, 1000):
        assert code(client.get(f"/jobs?limit={limit}")) == (422, "invalid")


def test_a_list_may_be_narrowed(world: World) -> None:
    """By state, type and queue, all of which must fit, page by page too."""
    for type_ in ("a", "b"):
        for queue in ("x", "y"):
            for _ in range(2):
                world.enqueue(type_, queue=queue, user_id="ann")
    client = world.client()
    for job in client.claim(types=["a"], limit=2):
        client.deliver(job)

    def ids(query: str) -> list[int]:
        return [job["id"] for job in client.get(f"/jobs?{query}").get_json()["jobs"]]

    assert ids("type=a") == [1, 2, 3, 4]
    assert ids("queue=y") == [3, 4, 7, 8]
    assert ids("state=succeeded") == [1, 2]
    assert ids("type=a&queue=y&state=queued") == [3, 4]
    assert ids("type=b&limit=2&cursor=5") == [6, 7]
    assert ids("type=nothing") == ids("state=expired") == []
    for query in ("state=nope", "state=", "type=a b", "queue=", "id=1", "user_id=ann", "locker=ann"):
        assert code(client.get(f"/jobs?{query}")) == (422, "invalid")


def test_a_list_shows_what_its_client_may_see(lite: World) -> None:
    """Scope and filters hold both; no cursor leads out of the scope."""
    mine = [lite.enqueue(user_id="ann"), lite.enqueue(), lite.enqueue(user_id="ann")]
    lite.enqueue(user_id="bob")
    shown = lite.client().get("/jobs?limit=2").get_json()
    rest = lite.client().get(f"/jobs?limit=2&cursor={shown['cursor']}").get_json()
    assert [job["id"] for job in shown["jobs"] + rest["jobs"]] == mine
    assert len(lite.client("root").get("/jobs").get_json()["jobs"]) == 4


def test_a_result_is_seen_by_its_deliverer_and_by_permission(lite: World) -> None:
    """The login's part decides; to everyone else it is null, in a list too."""
    lite.enqueue()
    ann = lite.client("ann", "node-1")
    [job] = ann.claim()
    ann.deliver(job, {"secret": 1})
    for client, wanted in (
        (ann, {"secret": 1}),
        (lite.client("ann"), {"secret": 1}),
        (lite.client("ann", "node-2"), {"secret": 1}),
        (lite.client("root"), {"secret": 1}),
        (lite.client("bob"), None),
        (lite.client("an"), None),
        (lite.client("ann_"), None),
    ):
        assert seen(client, job["id"])["result"] == wanted
        assert client.get("/jobs").get_json()["jobs"][0]["result"] == wanted


def test_a_history_tells_everything_but_who_else(world: World) -> None:
    """Oldest first; another's name and traceback only by permission."""
    job_id = world.enqueue(max_attempts=3)
    ann, bob, root = world.client("ann", "n"), world.client("bob"), world.client("root")
    [job] = ann.claim()
    error = {"type": "E", "message": "m", "traceback": "t"}
    ann.put(f"{job['href']}/failure", {"error": error})
    world.pass_time(100_000)
    [job] = bob.claim()
    bob.deliver(job, 1)

    def rows(client: Client) -> list[dict[str, t.Any]]:
        body = client.get(f"/jobs/{job_id}/history").get_json()
        assert body.keys() == {"history"}
        for row in body["history"]:
            assert row.keys() == {"from", "to", "at", "attempt", "locker", "by", "reason", "error"}
            moment(row.pop("at"))
        return t.cast(list[dict[str, t.Any]], body["history"])

    whole = rows(root)
    assert [(row["from"], row["to"], row["attempt"], row["locker"], row["reason"]) for row in whole] == [
        (None, "queued", 0, None, "enqueue"),
        ("queued", "locked", 1, "user_ann/n", "claim"),
        ("locked", "scheduled", 1, "user_ann/n", "fail"),
        ("scheduled", "locked", 2, "user_bob", "claim"),
        ("locked", "succeeded", 2, "user_bob", "deliver"),
    ]
    assert [row["error"] for row in whole] == [None, None, error, None, None]
    to_bob = rows(bob)
    assert [row["locker"] for row in to_bob] == [None, None, None, "user_bob", "user_bob"]
    assert to_bob[2]["error"] == {"type": "E", "message": "m", "traceback": None}
    assert [row["locker"] for row in rows(world.client("ann"))] == [
        None,
        "user_ann/n",
        "user_ann/n",
        None,
        None,
    ]
    assert {row["locker"] for row in rows(world.client("eve"))} == {None}


def test_a_history_tells_who_enqueued_cancelled_and_retried(world: World) -> None:
    """Not who held it meanwhile; to that login, or by permission."""
    root = world.client("root", "desk")
    job_id = root.post("/jobs", {"type": "work"}).get_json()["id"]
    world.client("ann").claim()
    root.post(f"/jobs/{job_id}/cancel")
    with world.session():
        world.jobber.retry(job_id, by="the night shift")
        world.jobber.cancel(job_id)

    def rows(user: str) -> list[tuple[str, str | None, str | None]]:
        history = world.client(user).get(f"/jobs/{job_id}/history").get_json()["history"]
        return [(row["reason"], row["locker"], row["by"]) for row in history]

    desk = "user_root/desk"
    assert rows("root") == [
        ("enqueue", None, desk), ("claim", "user_ann", None), ("cancel", "user_ann", desk),
        ("retry", "user_ann", "the night shift"), ("cancel", None, None),
    ]  # fmt: skip
    assert {by for _, _, by in rows("ann")} == {by for _, _, by in rows("bob")} == {None}
    world.jobber.registry.hooks.pop("permission")
    assert [by for _, _, by in rows("root")] == [desk, None, desk, None, None]
    for name in ("", "x" * 256, "a\0"):
        with world.session(), pytest.raises(Invalid):
            world.jobber.retry(job_id, by=name)


def test_a_history_shows_no_traceback_of_the_servers_to_a_worker(lite: World) -> None:
    """What broke in a processor is no failure of the client's: its code and paths stay here."""

    @lite.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        raise RuntimeError("broken")

    lite.enqueue()
    ann = lite.client()
    [job] = ann.claim()
    assert ann.deliver(job, 1).status_code == 202
    row = ann.get(f"/jobs/{job['id']}/history").get_json()["history"][-1]
    assert row["locker"] == "user_ann"
    assert row["error"]["traceback"] is None
    whole = lite.client("root").get(f"/jobs/{job['id']}/history").get_json()["history"][-1]
    assert "in process" in whole["error"]["traceback"]


def test_the_error_shown_is_the_last_one(lite: World) -> None:
    """Of a failure, a rejection or a lapse; none before the first."""
    job_id = lite.enqueue()
    client = lite.client()
    assert seen(client, job_id)["error"] is None
    client.fail(client.claim()[0], "first")
    lite.pass_time(100_000)
    client.fail(client.claim()[0], "second")
    assert seen(client, job_id)["error"] == {"type": "Error", "message": "second"}
    lite.pass_time(100_000)
    client.claim(lease_seconds=1)
    lite.pass_time(100_000)
    client.claim()
    assert seen(client, job_id)["error"]["type"] == "LeaseLapsed"
    listed = client.get("/jobs").get_json()["jobs"][0]
    assert listed == seen(client, job_id)


# -- making jobs ---------------------------------------------------------------------------


def test_an_enqueued_job_is_shown_with_its_place(world: World) -> None:
    """201, the job as it is seen, and where it is."""
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    body = {
        "type": "work", "data": {"a": 1}, "queue": "q", "priority": 7, "run_at": later.isoformat(),
        "expires_at": (later + dt.timedelta(hours=1)).isoformat(), "max_attempts": 2, "unique_key": "k",
    }  # fmt: skip
    response = world.client("root").post("/jobs", body)
    assert response.status_code == 201
    job = response.get_json()
    assert job.keys() == SEEN
    assert response.headers["Location"] == job["href"] == f"{PREFIX}/jobs/{job['id']}"
    assert moment(job["run_at"]) == later
    given = {name: job[name] for name in ("type", "data", "queue", "priority", "max_attempts", "state")}
    assert given == {
        "type": "work", "data": {"a": 1}, "queue": "q", "priority": 7, "max_attempts": 2,
        "state": "scheduled",
    }  # fmt: skip
    row = world.job(job["id"])
    assert (row.expires_at, row.unique_key) == (later + dt.timedelta(hours=1), "k")
    assert world.history(job["id"]) == [(None, "scheduled", "enqueue")]


def test_a_job_may_be_enqueued_for_somebody(world: World) -> None:
    """As a rule, or for a while; a length for nobody is refused."""
    root = world.client("root")
    given = {"type": "work", "only_for": "user_ann", "not_for": ["right", "user_bob"]}
    response = root.post("/jobs", {**given, "only_for_seconds": 60})
    assert response.status_code == 201
    row = world.job(response.get_json()["id"])
    assert (row.only_for, row.not_for) == ("user_ann", ["right", "user_bob"])
    assert (row.only_for_until - row.run_at).total_seconds() == pytest.approx(60, abs=5)
    assert world.job(root.post("/jobs", given).get_json()["id"]).only_for_until is None
    assert [job["id"] for job in world.client("ann").claim()] == [row.id]
    for bad in ({"only_for_seconds": 5}, {"not_for": "ann"}, {"not_for": [""]}, {"only_for": ""}):
        refused = root.post("/jobs", {"type": "work", **bad})
        assert (refused.status_code, list(refused.get_json()["errors"])) == (422, list(bad))


def test_an_enqueue_needs_a_type_alone(lite: World) -> None:
    """All else has its default."""
    job = lite.client("root").post("/jobs", {"type": "work"}).get_json()
    assert (job["data"], job["queue"], job["priority"], job["max_attempts"]) == (None, "default", 0, 10)
    assert job["state"] == "queued"
    response = lite.client("root").post("/jobs", {})
    assert list(response.get_json()["errors"]) == ["type"]


def test_an_enqueue_may_say_how_long_to_wait(lite: World) -> None:
    """An instant or a length, not both; what is past is at once."""
    client = lite.client("root")
    job = client.post("/jobs", {"type": "work", "after_seconds": 3600}).get_json()
    assert job["state"] == "scheduled"
    wait = moment(job["run_at"]) - moment(job["enqueued_at"])
    assert wait.total_seconds() == pytest.approx(3600, abs=5)
    for body in (
        {"after_seconds": 0},
        {"run_at": "2001-01-01T00:00:00Z"},
        {"run_at": "2001-01-01T00:00:00+14:00"},
    ):
        assert client.post("/jobs", {"type": "work", **body}).get_json()["state"] == "queued"
    both = client.post("/jobs", {"type": "work", "after_seconds": 1, "run_at": "2030-01-01T00:00:00Z"})
    assert code(both) == (422, "invalid")
    assert list(both.get_json()["errors"]) == ["after_seconds"]
    long = client.post("/jobs", {"type": "work", "after_seconds": 1e10})
    assert list(long.get_json()["errors"]) == ["after_seconds"]


def test_a_unique_key_is_taken_until_its_job_ends(world: World) -> None:
    """409 ``duplicate``, which leaves nothing; afterwards it is free."""
    client = world.client("root")
    body = {"type": "work", "unique_key": "\u00e9 k"}
    first = client.post("/jobs", body).get_json()["id"]
    for _ in range(2):
        assert code(client.post("/jobs", body)) == (409, "duplicate")
    assert client.post("/jobs", {"type": "work"}).status_code == 201
    client.post(f"/jobs/{first}/cancel")
    assert client.post("/jobs", body).status_code == 201
    assert len(client.get("/jobs").get_json()["jobs"]) == 3


def test_data_is_checked_by_its_types_schema(lite: World) -> None:
    """At the producer, after the permission."""
    lite.jobber.job_type("number", data_schema=Number)
    client = lite.client("root")
    for data in ({"n": "x"}, {}, None, [1], {"n": 1, "m": 1}):
        response = client.post("/jobs", {"type": "number", "data": data})
        assert code(response) == (422, "invalid")
        assert list(response.get_json()["errors"]) == ["data"]
    assert client.post("/jobs", {"type": "number", "data": {"n": 1}}).status_code == 201
    assert len(client.get("/jobs").get_json()["jobs"]) == 1


# -- operators -----------------------------------------------------------------------------


def test_a_cancel_ends_a_job_and_a_retry_begins_it_again(world: World) -> None:
    """200 with the job as it is then; what cannot be is 409."""
    root, ann = world.client("root"), world.client("ann")
    job_id = world.enqueue()
    [job] = ann.claim()
    ann.fail(job)
    response = root.post(f"/jobs/{job_id}/cancel", {})
    assert (response.status_code, response.get_json()) == (200, seen(root, job_id))
    assert response.get_json()["state"] == "cancelled"
    assert response.get_json()["finished_at"]
    assert code(root.post(f"/jobs/{job_id}/cancel")) == (409, "illegal_transition")
    response = root.post(f"/jobs/{job_id}/retry")
    assert (response.status_code, response.get_json()) == (200, seen(root, job_id))
    shown = response.get_json()
    assert (shown["state"], shown["failures"], shown["attempt"], shown["finished_at"]) == (
        "queued",
        0,
        1,
        None,
    )
    assert code(root.post(f"/jobs/{job_id}/retry")) == (409, "illegal_transition")
    assert [job["attempt"] for job in ann.claim()] == [2]


def test_an_operator_may_cancel_what_another_holds(lite: World) -> None:
    """The holder hears of it at its next call, whatever that is."""
    lite.enqueue()
    ann, root = lite.client("ann"), lite.client("root")
    [job] = ann.claim()
    assert root.post(f"/jobs/{job['id']}/cancel").status_code == 200
    for response in verbs(ann, job).values():
        assert code(response) == (409, "cancelled")
    assert ann.get("/claims").get_json() == {"jobs": []}
    assert seen(ann, job["id"])["result"] is None


# -- a database that is busy ---------------------------------------------------------------


def test_a_busy_database_is_told_as_that(make_world: MakeWorld, sqlite_url: str) -> None:
    """503 with ``Retry-After``: the one refusal besides 429 that is worth sending again as it is."""
    world = make_world(sqlite_url, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0}})
    for _ in range(2):
        world.enqueue()
    client = world.client("root")
    [job] = client.claim()
    key = {"id": job["id"], "attempt": job["attempt"]}
    with contextlib.closing(
        sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        refusals = [
            client.post("/claims", {}),
            client.extend(job),
            client.deliver(job, 1),
            client.fail(job),
            client.release(job),
            client.post("/jobs", {"type": "work"}),
            client.post("/exchange", {"results": [key], "claim": {}}),
            client.post(f"/jobs/{job['id']}/cancel"),
        ]
        assert client.get("/claims").get_json() == {"jobs": [job]}
    for response in refusals:
        assert code(response) == (503, "busy")
        assert response.get_json()["retryable"] is True
        assert int(response.headers["Retry-After"]) > 0
    assert client.deliver(job, 1).status_code == 200


# -- forms of answers ----------------------------------------------------------------------


def test_instants_are_utc_whatever_the_client_said(world: World) -> None:
    """RFC 3339 with ``Z``, to the microsecond, on every engine."""
    text = "2040-05-06T07:08:09.123456+05:30"
    job = world.client("root").post("/jobs", {"type": "work", "run_at": text}).get_json()
    assert job["run_at"] == "2040-05-06T01:38:09.123456Z"
    assert seen(world.client("root"), job["id"])["run_at"] == job["run_at"]


def test_answers_are_for_one_client_and_for_now(lite: World, held: dict[str, t.Any]) -> None:
    """Nothing in between may keep them."""
    client = lite.client()
    for response in (
        client.get("/jobs"),
        client.get("/claims"),
        client.get(held["href"]),
        client.get(f"/jobs/{held['id']}/history"),
        client.extend(held),
        client.deliver(held),
    ):
        assert response.headers["Cache-Control"] == "no-store"


def test_a_problem_is_told_in_one_form(lite: World, held: dict[str, t.Any]) -> None:
    """RFC 9457 with our members; ``errors`` and ``then`` only where they mean something."""
    client = lite.client()
    for response in (
        client.get("/jobs/4000000"),
        client.post("/claims", {"limit": 0}),
        lite.client("bob").deliver(held),
        lite.client(None).get("/jobs"),
    ):
        body = response.get_json()
        assert response.mimetype == "application/problem+json"
        assert body["type"] == "about:blank"
        assert body["status"] == response.status_code
        assert body["title"]
        assert body["detail"]
        assert body["retryable"] is False
        assert ("errors" in body) is (response.status_code == 422)
        assert "then" not in body
        assert "Retry-After" not in response.headers
