"""Workers with accounts: their tokens, what they may, and how they are put out."""

from __future__ import annotations

import itertools
import re
import threading
import typing as t

import pytest
import sqlalchemy as sa

from accounts_support import GRANT, REVOKE, TOKEN, Site, basic
from conftest import MakeWorld
from flask_jobber import Invalid, SetupError, job_released
from flask_jobber.accounts import (
    Credentials,
    NoSuchWorker,
    TooManySecrets,
    WorkerExists,
    Workers,
    limit,
    verbs,
)
from flask_jobber.api.identity import read_scope
from flask_jobber.core.engines import plus_seconds
from race_support import LIMIT, start, watching
from support import PREFIX, World

WELL_KNOWN = "/.well-known/oauth-authorization-server"
HOSTILE = (
    "", " ", "\0", "x\r\nSet-Cookie: a=b", "\ud800", "ü" * 300, "' OR 1=1 --", "%00", "jbw_" + "x" * 3000,
)  # fmt: skip


@pytest.fixture
def site(world: World) -> Site:
    return Site(world)


@pytest.fixture
def small(lite: World) -> Site:
    return Site(lite)


def pass_time(site: Site, seconds: float) -> None:
    """Let time pass for tokens and counters."""
    tables = site.workers._tables
    with site.world.session() as session:
        for column in (tables.token.c.expires_at, tables.failure.c.until):
            earlier = plus_seconds(column, sa.literal(-seconds, sa.Double()))
            session.execute(sa.update(column.table).values({column: earlier}))


def rows(site: Site, name: str) -> list[t.Any]:
    with site.world.session() as session:
        return list(session.execute(sa.select(getattr(site.workers._tables, name))))


# -- the token endpoint -------------------------------------------------------------------


@pytest.mark.parametrize("way", ["basic", "post"])
def test_a_worker_gets_a_token(site: Site, way: str) -> None:
    """By either way of RFC 6749, in its form, and nothing may keep it."""
    credentials = site.create()
    if way == "basic":
        response = site.ask(credentials)
    else:
        said = {"client_id": credentials.client_id, "client_secret": credentials.client_secret}
        response = site.ask(data=GRANT | said)
    assert response.status_code == 200
    assert response.mimetype == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json.keys() == {"access_token", "token_type", "expires_in"}
    assert (response.json["token_type"], response.json["expires_in"]) == ("Bearer", 3600)


def test_only_hashes_are_stored(site: Site) -> None:
    """Neither a secret nor a token stands in any table."""
    credentials = site.create()
    token = site.token(credentials)
    stored = repr([rows(site, name) for name in ("worker", "secret", "token", "hire", "failure")])
    assert credentials.client_id in stored
    assert credentials.client_secret not in stored
    assert token not in stored
    assert credentials.client_secret not in repr(credentials)


def refused(site: Site, credentials: Credentials | None = None, **how: t.Any) -> tuple[int, str]:
    response = site.ask(credentials, **how)
    assert response.mimetype == "application/json", response.text
    assert response.headers["Cache-Control"] == "no-store"
    return response.status_code, response.json["error"]


def test_who_is_not_known_hears_the_same_whatever_is_wrong(site: Site) -> None:
    """No such client, a wrong secret, none, and an account that is locked."""
    known = site.create()
    locked = site.create("other")
    site.do("lock", "other")
    wrong = Credentials("robot", known.client_id, "jbs_wrong")
    unknown = Credentials("robot", "jbw_nobody", known.client_secret)
    answers = [site.ask(one) for one in (wrong, unknown, locked, None)]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert {answer.headers["WWW-Authenticate"] for answer in answers} == {'Basic realm="workers"'}
    assert answers[0].json["error"] == "invalid_client"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_credentials_are_refused(site: Site, text: str) -> None:
    """In the header and in the body; nothing breaks, and no header of the answer is theirs."""
    said = {"client_id": text.encode("utf-8", "replace"), "client_secret": text.encode("utf-8", "replace")}
    quoted = text.encode("utf-8", "replace").decode()
    for response in (site.ask(data=GRANT | said), site.ask(Credentials("", quoted, quoted))):
        assert response.status_code == 401
        assert response.json["error"] == "invalid_client"
        assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize("header", ["Basic", "Basic !", "Basic /w==", "Digest a", "Bearer x", "Basic Og=="])
def test_a_broken_header_is_no_client(small: Site, header: str) -> None:
    """Whatever stands in it."""
    assert refused(small, headers={"Authorization": header}) == (401, "invalid_client")


def test_a_request_that_is_not_as_it_must_be_is_refused(small: Site) -> None:
    """Each by what the RFC calls it."""
    known = small.create()
    secret = {"client_id": known.client_id, "client_secret": known.client_secret}
    invalid = (400, "invalid_request")
    assert refused(small, known, data=GRANT | secret) == invalid  # two ways at once
    assert refused(small, known, data={"grant_type": ["client_credentials"] * 2}) == invalid
    assert refused(small, known, data=None, json=GRANT) == invalid
    assert refused(small, known, path=f"{TOKEN}?client_secret=x") == invalid
    assert refused(small, path=f"{TOKEN}?grant_type=client_credentials", data=secret) == invalid
    assert refused(small, known, data={}) == invalid
    assert refused(small, known, data={"grant_type": "password"}) == (400, "unsupported_grant_type")
    assert refused(small, known, data=GRANT | {"scope": "admin"}) == (400, "invalid_scope")
    assert refused(small, known, data=GRANT | {"x": "y" * 20_000}) == (413, "invalid_request")
    assert rows(small, "token") == []


def test_other_methods_are_told_which_one(small: Site) -> None:
    """In JSON too."""
    for path, method in itertools.product((TOKEN, REVOKE), ("GET", "PUT", "PATCH", "DELETE")):
        response = small.world.app.test_client().open(path, method=method)
        assert (response.status_code, response.json["error"]) == (405, "invalid_request")
        assert response.headers["Allow"] == "POST"


def test_without_tls_only_this_machine_is_served(make_world: MakeWorld, sqlite_url: str) -> None:
    """Unless the app trusts its network."""
    site = Site(make_world(sqlite_url))
    known = site.create()
    for host, status in {"app.example": 400, "10.0.0.1": 400, "127.0.0.1:80": 200, "[::1]:5000": 200}.items():
        assert site.ask(known, base_url=f"http://{host}").status_code == status, host
    assert site.ask(known, base_url="https://app.example").status_code == 200
    trusting = Site(make_world(sqlite_url), allow_http=True)
    assert trusting.ask(trusting.create(), base_url="http://app.example").status_code == 200


def test_a_database_that_is_away_is_said_to_be(small: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client may try again; what broke is not told."""
    known = small.create()

    def away(*args: t.Any) -> t.NoReturn:
        raise sa.exc.TimeoutError("secret details")

    monkeypatch.setattr(verbs, "authenticate", away)
    response = small.ask(known)
    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
    assert int(response.headers["Retry-After"]) > 0
    assert "secret details" not in response.text


# -- failures -----------------------------------------------------------------------------


def test_a_thousand_wrong_secrets_are_not_looked_at(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten are; then not even the right one is, from there, until the minute is over."""
    known, other = site.create(), site.create("other")
    looked = list[str]()
    authenticate = verbs.authenticate
    monkeypatch.setattr(
        verbs, "authenticate", lambda book, *said: looked.append(said[1]) or authenticate(book, *said)
    )
    answers = list[int]()
    for number in range(1000):
        wrong = Credentials("robot", known.client_id, f"jbs_{number}")
        answers.append(site.ask(wrong, address="10.0.0.1").status_code)
    most = limit.MOST_OF_CLIENT
    assert answers == [401] * most + [429] * (1000 - most)
    assert len(looked) == most

    response = site.ask(known, address="10.0.0.1")
    assert (response.status_code, response.json["error"]) == (429, "too_many_failures")
    assert 0 < int(response.headers["Retry-After"]) <= limit.WINDOW_SECONDS
    assert site.ask(known, path=REVOKE, data={"token": "x"}, address="10.0.0.1").status_code == 429
    # Nobody else is kept out by it: not the worker elsewhere, nor another worker there.
    assert site.ask(known, address="10.0.0.2").status_code == 200
    assert site.ask(other, address="10.0.0.1").status_code == 200
    pass_time(site, limit.WINDOW_SECONDS)
    assert site.ask(known, address="10.0.0.1").status_code == 200


def test_an_address_that_tries_many_clients_is_shut_out(site: Site) -> None:
    """Whatever it sends; an IPv6 network is one address."""
    known = site.create()
    for number in range(limit.MOST_OF_ADDRESS):
        unknown = Credentials("x", f"jbw_{number}", "x")
        assert site.ask(unknown, address=f"2001:db8::{number:x}").status_code == 401
    assert site.ask(known, address="2001:db8::ffff").status_code == 429
    assert site.ask(known, address="2001:db8:0:1::1").status_code == 200


def test_counters_are_bounded_and_begin_anew(site: Site) -> None:
    """One row for a counter, used again when its window is over."""
    known = site.create()
    wrong = Credentials("robot", known.client_id, "x")
    for _ in range(3):
        site.ask(wrong)
    assert [row.count for row in rows(site, "failure")] == [3, 3]
    pass_time(site, limit.WINDOW_SECONDS)
    site.ask(wrong)
    assert [row.count for row in rows(site, "failure")] == [1, 1]
    assert all(0 <= row.slot < 2 * limit._SLOTS for row in rows(site, "failure"))


def test_failures_at_once_are_all_counted(site: Site) -> None:
    """None is lost between reading and writing."""
    known = site.create()
    wrong = Credentials("robot", known.client_id, "x")
    statuses = list[int]()
    threads = [
        threading.Thread(target=lambda: statuses.append(site.ask(wrong).status_code)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = statuses.count(401)  # a database that is busy says 503, and counts nothing
    assert set(statuses) <= {401, 503}
    assert [row.count for row in rows(site, "failure")] == [counted, counted]


def test_a_failure_that_meets_a_deadlock_is_to_be_sent_again(make_world: MakeWorld, mariadb_url: str) -> None:
    """MariaDB ends the transaction, and the savepoint in it: what follows must not break over that."""
    site = Site(make_world(mariadb_url))
    failure = site.world.db.metadata.tables["jobber_failure"]
    guess = {**GRANT, "client_id": "nobody", "client_secret": "wrong"}
    with watching(site.world) as watch, site.world.app.app_context():
        session = site.world.db.session
        site.world.jobber.enqueue_many([{"type": "work"}] * 50)  # the other one is the lighter to undo
        session.execute(sa.update(failure).values(count=1))  # locks the place of all rows
        guesser = start(lambda: site.ask(data=guess))
        watch.until_waits(guesser)
        session.execute(sa.insert(failure).values(slot=0, count=1, until=sa.func.now()))
        session.rollback()
    response = guesser.result(LIMIT)
    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
    assert site.ask(data=guess).status_code == 401


# -- tokens -------------------------------------------------------------------------------


def claims(site: Site, token: str, **how: t.Any) -> int:
    return site.world.client(token).get("/claims", **how).status_code


def test_a_token_ends(site: Site) -> None:
    """When its time is over; who uses it hears what RFC 6750 wants."""
    token = site.token(site.create())
    pass_time(site, 3599)
    assert claims(site, token) == 200
    pass_time(site, 1)
    response = site.world.client(token).get("/claims")
    assert (response.status_code, response.json["code"]) == (401, "login_required")
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_forged_tokens_are_nobody(site: Site) -> None:
    """Cut, changed, a hash, a secret, one's own invention; no other person either."""
    credentials = site.create()
    token = site.token(credentials)
    changed = token[:-1] + ("A" if token[-1] != "A" else "B")
    stored = rows(site, "token")[0].hash
    for forged in (token[:-1], changed, f"{token}A", f"jbt_{stored}", "jbt_", f"{token},{token}"):
        assert claims(site, forged) == 401, forged


def test_a_token_counts_nowhere_but_in_its_header(site: Site) -> None:
    """Not in the query string, not in the body, not as another scheme."""
    token = site.token(site.create())
    nobody = site.world.client(None)
    assert nobody.get(f"/claims?access_token={token}").status_code == 401
    assert nobody.post("/claims", {"access_token": token}).status_code == 401
    assert nobody.get("/claims", headers={"Authorization": f"Basic {token}"}).status_code == 401
    assert nobody.get("/claims", headers={"Authorization": token}).status_code == 401
    assert site.world.client(token).get(f"/claims?access_token={token}").status_code == 422


def test_a_token_is_revoked_by_its_worker_alone(site: Site) -> None:
    """RFC 7009: 200 whatever the token is; another's is left alone. A dead one stays dead."""
    robot, other = site.create(), site.create("other")
    mine, theirs = site.token(robot), site.token(other)
    for token in (mine, theirs, "jbt_nothing", "\0"):
        response = site.ask(robot, path=REVOKE, data={"token": token})
        assert response.status_code == 200
    assert (claims(site, mine), claims(site, theirs)) == (401, 200)
    assert claims(site, mine) == 401  # replayed
    assert refused(site, robot, path=REVOKE, data={}) == (400, "invalid_request")
    assert refused(site, None, path=REVOKE, data={"token": theirs}) == (401, "invalid_client")
    assert refused(site, robot, path=f"{REVOKE}?token={theirs}", data={"x": "y"}) == (400, "invalid_request")


def test_tokens_are_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have expired are forgotten, and the oldest of too many."""
    monkeypatch.setattr(verbs, "MOST_TOKENS", 3)
    credentials = site.create()
    tokens = [site.token(credentials) for _ in range(5)]
    assert [claims(site, token) for token in tokens] == [401, 401, 200, 200, 200]
    pass_time(site, 3600)
    site.token(credentials)
    assert len(rows(site, "token")) == 1


# -- metadata -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/oauth"])
def test_the_server_describes_itself(small: Site, path: str) -> None:
    """RFC 8414, where it wants it: the issuer is what the address was made of."""
    from authlib.oauth2.rfc8414 import AuthorizationServerMetadata

    client = small.world.app.test_client()
    response = client.get(WELL_KNOWN + path, base_url="https://app.example")
    assert response.status_code == 200
    told = response.json
    AuthorizationServerMetadata(told).validate()
    assert told["issuer"] == f"https://app.example{path}"
    assert told["token_endpoint"] == "https://app.example/oauth/token"
    assert told["revocation_endpoint"] == "https://app.example/oauth/revoke"
    assert told["grant_types_supported"] == ["client_credentials"]


# -- what a worker may --------------------------------------------------------------------


def test_a_worker_has_the_jobs_of_the_queues_that_hired_it(site: Site) -> None:
    """None without one; each verb looks again."""
    credentials = site.create()
    worker = site.client(credentials)
    ids = {queue: site.world.enqueue(queue=queue) for queue in ("a", "b", "c")}
    assert worker.claim(limit=9) == []
    assert worker.get("/jobs").json["jobs"] == []
    site.do("hire", "a", "robot")
    site.do("hire", "b", "robot")
    assert {job["queue"] for job in worker.claim(limit=9)} == {"a", "b"}
    assert [job["id"] for job in worker.get("/jobs").json["jobs"]] == [ids["a"], ids["b"]]
    assert worker.get(f"/jobs/{ids['c']}").status_code == 404
    assert worker.get(f"/jobs/{ids['a']}").status_code == 200


def test_a_worker_of_many_queues_has_them_all(site: Site) -> None:
    """More than are told one by one."""
    queues = [f"q{number}" for number in range(12)]
    worker = site.client(site.create("robot", *queues))
    for queue in [*queues, "other"]:
        site.world.enqueue(queue=queue)
    assert sorted(job["queue"] for job in worker.claim(limit=99)) == sorted(queues)


def test_a_worker_holds_by_its_account_and_node(site: Site) -> None:
    """Another worker of the same queue, and a person, hold nothing of it."""
    credentials = site.create("robot", "default")
    other = site.client(site.create("other", "default"))
    job_id = site.world.enqueue()
    node = site.client(credentials, "n1")
    [job] = node.claim()
    assert site.world.job(job_id).locked_by == "account:robot/n1"
    people = [site.world.client(name) for name in ("ann", "root")]
    for stranger in (site.client(credentials, "n2"), other, *people):
        assert stranger.deliver(job).json["code"] == "lease_lost"
    assert node.deliver(job, 1).status_code == 200
    assert node.get(f"/jobs/{job_id}").json["result"] == 1
    assert other.get(f"/jobs/{job_id}").json["result"] is None


def test_permissions_are_for_people(site: Site) -> None:
    """The app's hook is not asked about a worker."""
    worker = site.client(site.create("robot", "default"))
    job_id = site.world.enqueue()
    assert worker.post("/jobs", {"type": "work"}).status_code == 403
    for verb in ("cancel", "retry"):
        assert worker.post(f"/jobs/{job_id}/{verb}").status_code == 403


def test_the_app_may_let_workers_do_more(world: World) -> None:
    """By a hook of their own, which is told who asks."""
    site = Site(world)
    asked = list[t.Any]()

    @site.workers.permission
    def may(worker: t.Any, action: str, job: t.Any) -> bool:
        asked.append((worker.name, action))
        return action == "enqueue" and job.queue == "default"

    with pytest.raises(SetupError):
        site.workers.permission(may)
    worker = site.client(site.create("robot", "default"))
    assert worker.post("/jobs", {"type": "work"}).status_code == 201
    assert worker.post("/jobs", {"type": "work", "queue": "x"}).status_code == 403
    assert asked == [("robot", "enqueue")] * 2


def test_a_person_cannot_take_an_accounts_name(world: World) -> None:
    """A hook that lets people choose their names fails closed for such a one."""
    world.jobber.locker_name(lambda: "account:robot")
    site = Site(world)
    worker = site.client(site.create("robot", "default"))
    world.enqueue()
    [job] = worker.claim()
    response = world.client("ann").deliver(job)
    assert (response.status_code, response.json["code"]) == (500, "internal")
    assert worker.deliver(job).status_code == 200


# -- out ----------------------------------------------------------------------------------


class Held(t.NamedTuple):
    worker: t.Any
    jobs: list[dict[str, t.Any]]


@pytest.fixture
def held(site: Site) -> Held:
    """A worker that holds two jobs of one queue and one of another, on two nodes."""
    credentials = site.create("robot", "a", "b")
    for queue in ("a", "a", "b"):
        site.world.enqueue(queue=queue)
    other = site.client(site.create("robot-2", "a"))
    site.world.enqueue(queue="a")
    jobs = [
        *site.client(credentials).claim(queues=["a"]),
        *site.client(credentials, "n1").claim(queues=["a"]),
        *site.client(credentials, "n1").claim(queues=["b"]),
    ]
    [theirs] = other.claim()
    return Held(site.client(credentials), [*jobs, theirs])


def states(site: Site, held: Held) -> list[str]:
    return [site.world.job(job["id"]).state for job in held.jobs]


@pytest.mark.parametrize("verb", ["lock", "destroy"])
def test_who_is_put_out_is_out_at_once(site: Site, held: Held, verb: str) -> None:
    """Its tokens are dead, its claims back with no failure counted, and told by history and signal."""
    released = list[t.Any]()
    with job_released.connected_to(lambda sender, **facts: released.append(facts["locker"])):
        assert site.do(verb, "robot") == 3
    assert states(site, held) == ["queued"] * 3 + ["locked"]
    assert sorted(released) == ["account:robot", "account:robot/n1", "account:robot/n1"]
    job = site.world.job(held.jobs[0]["id"])
    assert (job.failures, job.locked_by, job.locked_until) == (0, None, None)
    assert site.world.history(job.id)[-1] == ("locked", "queued", "release")
    assert held.worker.deliver(held.jobs[0]).status_code == 401
    assert held.worker.get("/claims").status_code == 401


def test_who_is_unlocked_logs_in_again(site: Site) -> None:
    """With the secret it had; tokens of before stay dead."""
    credentials = site.create("robot", "default")
    before = site.token(credentials)
    site.do("lock", "robot")
    assert site.ask(credentials).status_code == 401
    site.do("unlock", "robot")
    assert claims(site, before) == 401
    assert claims(site, site.token(credentials)) == 200


def test_a_destroyed_name_is_free_and_begins_with_nothing(site: Site) -> None:
    """Neither its secret nor its queues come back."""
    old = site.create("robot", "default")
    token = site.token(old)
    site.do("destroy", "robot")
    assert site.ask(old).status_code == 401
    new = site.create("robot")
    assert new.client_id != old.client_id
    assert claims(site, token) == 401
    site.world.enqueue()
    assert site.client(new).claim() == []


def test_fired_from_one_queue_it_keeps_the_others(site: Site, held: Held) -> None:
    """Its claims of that queue are back at once; it may not deliver what it held."""
    assert site.do("fire", "a", "robot") == (True, 2)
    assert states(site, held) == ["queued", "queued", "locked", "locked"]
    assert held.worker.deliver(held.jobs[0]).status_code == 404
    assert held.worker.claim(limit=9) == []
    assert site.do("fire", "a", "robot") == (False, 0)


def test_a_reset_makes_a_new_secret(site: Site) -> None:
    """The old one and all tokens are dead; what it holds it keeps."""
    old = site.create("robot", "default")
    site.world.enqueue()
    client = site.client(old)
    [job] = client.claim()
    new = site.do("reset", "robot")
    assert (new.client_id, new.client_secret != old.client_secret) == (old.client_id, True)
    assert client.deliver(job).status_code == 401
    assert site.ask(old).status_code == 401
    assert site.client(new).deliver(job).status_code == 200


def test_secrets_of_several_machines_are_good_together(site: Site) -> None:
    """Up to a number."""
    first = site.create()
    second = site.do("add_secret", "robot")
    assert site.token(first) != site.token(second)
    for _ in range(verbs.MOST_SECRETS - 2):
        site.do("add_secret", "robot")
    with pytest.raises(TooManySecrets):
        site.do("add_secret", "robot")


def test_a_right_that_is_taken_away_is_not_used_any_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that began before waits for nobody and leaves nothing behind: no order loses a job."""
    credentials = site.create("robot", "default")
    worker = site.client(credentials)
    for _ in range(30):
        site.world.enqueue()
    go = threading.Barrier(2)

    def claim() -> None:
        go.wait()
        for _ in range(10):
            if worker.post("/claims", {"limit": 3}).status_code not in (200, 503):
                break

    thread = threading.Thread(target=claim)
    thread.start()
    go.wait()
    for _ in range(20):  # a database that is busy may refuse
        try:
            site.do("fire", "default", "robot")
            break
        except sa.exc.OperationalError:
            continue
    thread.join()
    with site.world.session() as session:
        states = session.scalars(sa.select(site.world.Job.state)).all()
    assert set(states) == {"queued"}


def seen_by(site: Site, worker: t.Any) -> list[int]:
    """Return the ids of the jobs in a worker's scope."""
    scope = read_scope(site.world.Job, worker.jobber_scope())
    return list(site.world.db.session.scalars(sa.select(site.world.Job.id).where(scope)))


@pytest.mark.parametrize("verb", ["lock", "destroy"])
def test_a_request_that_is_under_way_has_no_right_any_more(site: Site, verb: str) -> None:
    """Who came in before is looked at again where the jobs are."""
    token = site.token(site.create("robot", "default"))
    job_id = site.world.enqueue()
    with site.world.app.app_context():
        worker = site.workers.load(token)
        assert seen_by(site, worker) == [job_id]
        site.world.db.session.rollback()
        site.do(verb, "robot")
        assert seen_by(site, worker) == []


def test_who_takes_a_right_away_waits_for_those_that_use_it(site: Site) -> None:
    """Where rows can be held: else a claim could follow that nobody takes back."""
    engine = sa.make_url(site.world.app.config["SQLALCHEMY_DATABASE_URI"]).get_backend_name()
    token = site.token(site.create("robot", "default"))
    impatient = {"postgresql": "SET lock_timeout = 50", "mysql": "SET innodb_lock_wait_timeout = 1"}
    with site.world.app.app_context():
        worker = site.workers.load(token)
        scope = worker.jobber_scope() if worker else None
        if engine == "sqlite":  # the write itself looks
            assert "SELECT" in str(scope)
            return
        with site.world.app.app_context():
            session = site.world.db.session
            session.execute(sa.text(impatient[engine]))
            with pytest.raises(sa.exc.OperationalError):
                site.workers.fire("default", "robot")
            session.rollback()
        site.world.db.session.rollback()
        assert site.workers.fire("default", "robot") == (True, 0)


# -- names --------------------------------------------------------------------------------


def test_names_that_are_not_there_are_said_to_be(site: Site) -> None:
    """By every verb; so are bad ones and those that are taken."""
    for verb in ("add_secret", "reset", "lock", "unlock", "destroy", "seen", "stats"):
        for name in ("nobody", "", "a/b", "\0", "ROBOT"):
            with pytest.raises(NoSuchWorker):
                site.do(verb, name)
    for verb in ("hire", "fire"):
        with pytest.raises(NoSuchWorker):
            site.do(verb, "default", "nobody")
    site.create()
    with pytest.raises(WorkerExists):
        site.do("create", "robot")
    for name in ("", "a b", "a/b", "x" * 61, "ü", "robot\n"):
        with pytest.raises(Invalid):
            site.do("create", name)
    for verb in ("hire", "fire"):
        with pytest.raises(Invalid):
            site.do(verb, "no queue", "robot")
    assert site.do("hire", "default", "robot") is True
    assert site.do("hire", "default", "robot") is False


def test_a_jobber_has_one_workers(small: Site) -> None:
    """A second would have the same tables."""
    with pytest.raises(SetupError):
        Workers(small.world.jobber)


def test_nothing_secret_is_seen(site: Site) -> None:
    """What an operator sees of an account."""
    credentials = site.create("robot", "a", "b")
    site.token(credentials)
    [seen] = site.do("seen", "robot")
    assert (seen["queues"], seen["locked"], seen["tokens"], seen["held"]) == (["a", "b"], False, 1, 0)
    assert seen["last_login_at"] is not None
    assert not re.search(r"jbs_|jbt_|[0-9a-f]{64}", repr(seen))


@pytest.mark.parametrize("path", ["/openapi.json", "/jobber.js"])
def test_what_is_public_stays_so(small: Site, path: str) -> None:
    """With a dead token too."""
    with small.world.client("jbt_dead").get(PREFIX + path) as response:
        assert response.status_code == 200


def test_a_header_takes_nothing_with_it(small: Site) -> None:
    """A node that is no name is refused, and told in no header."""
    worker = small.client(small.create("robot", "default"))
    for node in ("a b", "a/b", "ü", "x" * 61, "a,b"):
        response = worker.get("/claims", headers={"Jobber-Node": node.encode().decode("latin-1")})
        assert response.status_code == 422
    assert basic("a", "b")["Authorization"].startswith("Basic ")
