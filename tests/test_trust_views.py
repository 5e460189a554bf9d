"""Who sees what of jobs that want several results: their holders, their owner, the operator, others.

Every endpoint is asked. What a holder is told must be the same, word for word, whether its job is
done by it alone, by two, or is gold.
"""

from __future__ import annotations

import json
import random
import re
import typing as t

import pytest
import sqlalchemy as sa
from flask_login import current_user
from werkzeug.test import TestResponse

from conftest import MakeWorld
from flask_jobber.api.operation import OPERATIONS
from flask_jobber.core import lockers
from situations import put
from support import Client, World

DATA = {"n": 1}
KINDS = ("single", "first of two", "second of two", "third, too late", "gold")


class Open(World):
    """Everybody sees all jobs, and enqueues; ``own`` sees its own results, ``root`` may do everything."""

    def __init__(self, url: str, **config: t.Any) -> None:
        super().__init__(url, scoped=False, JOBBER_MAX_WAITERS=0, **config)
        self.jobber.scope(lambda: True)
        self.jobber.permission(_may)


def _may(action: str, job: t.Any) -> bool:
    return (
        current_user.id == "root"
        or action == "enqueue"
        or (action == "result" and job.user_id == current_user.id == "own")
    )


@pytest.fixture(autouse=True)
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.999)


@pytest.fixture
def opened(make_world: MakeWorld, db_url: str) -> t.Callable[..., Open]:
    """Make open worlds on each engine."""
    return lambda **config: t.cast(Open, make_world(db_url, kind=Open, **config))


def ask(world: World, **spec: t.Any) -> int:
    files = {"in.txt": b"input"}
    wanted = {"results_wanted": 2, "agreement": 2, "attachments": files, "user_id": "own", **spec}
    return world.enqueue("work", DATA, **wanted)


def hand_out(world: World, kind: str) -> dict[str, t.Any]:
    """Let ann hold a job of a kind."""
    ann = world.client("ann")
    if kind == "gold":
        with world.session():
            world.jobber.gold("work", DATA, 2, user_id="own")
            gold = world.db.session.scalar(sa.select(world.Job.id))
            world.jobber.attach(gold, "in.txt", b"input")
        ask(world)
        [one] = [job for job in ann.claim(limit=10) if _original(world, job["id"]) == gold]
        for job in ann.get("/claims").json["jobs"]:  # type: ignore[index]
            if job["id"] != one["id"]:
                assert ann.release(job).status_code == 204
        return one
    if kind == "single":
        with world.session():
            store = world.jobber.store()
            lockers.lock(store, ["user_ann"])
            lockers.put(store, "user_ann", {"streak": 50})
        ask(world, adaptive=True)
        return ann.claim()[0]
    if kind == "first of two":
        ask(world)
        return ann.claim()[0]
    if kind == "second of two":
        ask(world)
        _deliver(world, "bob", 2)
        return ann.claim()[0]
    ask(world, results_wanted=3)
    [job] = ann.claim()
    for login in ("bob", "cy"):
        _deliver(world, login, 2)
    return job


def _deliver(world: World, login: str, result: t.Any) -> None:
    client = world.client(login)
    assert client.deliver(client.claim()[0], result).status_code == 200


def _original(world: World, copy_id: int) -> int | None:
    return t.cast("int | None", world.job(copy_id).copy_of)


# -- the holder ------------------------------------------------------------------------------------


def ask_all(client: Client, job_id: int) -> dict[str, t.Any]:
    """Return what every endpoint that changes nothing, or nothing for long, answers to a client."""
    told: dict[str, t.Any] = {}
    for row in OPERATIONS:
        if row.name in _CHANGES or row.public:
            continue
        rule = row.rule.replace("<job_id>", str(job_id)).replace("<attempt>", "1").replace("<name>", "in.txt")
        said = {"headers": {"Last-Event-ID": "0"}} if row.name == "events" else {}
        response = client.open(row.method, rule, _BODIES.get(row.name), **said)
        told[row.name] = _plain(response, job_id)
    return told


#: Tried one by one in :func:`_lives`.
_CHANGES = ("deliver", "fail", "release", "enqueue", "put_attachment")
_BODIES: dict[str, t.Any] = {
    "claim": {"types": ["none"]},
    "extend": {"progress": 0.5, "note": "half"},
    "exchange": {"extensions": [], "claim": {"types": ["none"]}},
    "cancel": {},
    "retry": {},
}


def _plain(response: TestResponse, job_id: int) -> tuple[int, str]:
    """Return an answer without what differs between any two jobs."""
    text = response.get_data(as_text=True)
    text = re.sub(r'"retry_after": [\d.]+', '"retry_after": "(seconds)"', text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "(instant)", text)
    text = re.sub(r"^(id|retry): \d+$", r"\1: (number)", text, flags=re.MULTILINE)
    return response.status_code, re.sub(rf'("id": |/jobs/){job_id}\b', r"\1ID", text)


Life = t.Callable[[Client, dict[str, t.Any]], TestResponse]
_LIVES: dict[str, Life] = {
    "right": lambda ann, job: ann.deliver(job, 2),
    "wrong": lambda ann, job: ann.deliver(job, "rubbish"),
    "failed": lambda ann, job: ann.fail(job),
    "failed for good": lambda ann, job: ann.fail(job, permanent=True),
    "released": lambda ann, job: ann.release(job),
    "brought a file": lambda ann, job: ann.put(
        f"/jobs/{job['id']}/attachments/out.txt?attempt={job['attempt']}", data=b"x"
    ),
}


@pytest.mark.parametrize("life", _LIVES)
def test_a_holder_cannot_tell_what_its_job_is(opened: t.Callable[..., Open], life: str) -> None:
    """While it holds it and after, whatever it does: every answer is the same for all kinds."""
    told: dict[str, dict[str, t.Any]] = {}
    for kind in KINDS:
        world = opened(JOBBER_GOLD_RATE=1.0 if kind == "gold" else 0.0)
        job, ann = hand_out(world, kind), world.client("ann")
        held = ask_all(ann, job["id"])
        done = [_plain(_LIVES[life](ann, job), job["id"]) for _ in range(2)]
        ended = ask_all(ann, job["id"])
        told[kind] = {"claim": _told_of_claim(job), "done": done}
        told[kind] |= {f"held: {name}": said for name, said in held.items()}
        told[kind] |= {f"ended: {name}": said for name, said in ended.items()}
    for kind in KINDS:
        for name, said in told["single"].items():
            assert told[kind][name] == said, (kind, name)


def _told_of_claim(job: dict[str, t.Any]) -> str:
    text = re.sub(rf"""("id": |/jobs/){job["id"]}\b""", r"\1ID", json.dumps(job))
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "(instant)", text)


# -- everybody else --------------------------------------------------------------------------------

# Of the jobs, `original` waits for a second answer, `copy` of it was delivered by ann; `held` is
# another that dee holds, `gold` is the kept question, `beside` its copy, which nobody has had yet.
TABLE = """
operation         job       ann  bob  dee  own  root
show_job          original  404  404  404  200  200
show_job          copy      200  404  404  404  200
show_job          held      404  404  200  404  200
show_job          gold      404  404  404  200  200
show_job          beside    404  404  404  404  200
show_history      original  404  404  404  200  200
show_history      copy      200  404  404  404  200
show_history      held      404  404  200  404  200
show_history      gold      404  404  404  200  200
show_history      beside    404  404  404  404  200
list_answers      original  404  404  404  403  200
list_answers      copy      403  404  404  404  200
list_answers      held      404  404  403  404  200
list_answers      gold      404  404  404  403  200
list_answers      beside    404  404  404  404  200
get_attachment    original  404  404  404  200  200
get_attachment    copy      200  404  404  404  200
get_attachment    held      404  404  200  404  200
get_attachment    beside    404  404  404  404  404
put_attachment    original  404  404  404  403  201
put_attachment    copy      403  404  404  404  409
put_attachment    held      404  404  403  404  201
cancel            copy      403  404  404  404  409
cancel            held      404  404  403  404  409
cancel            original  404  404  404  403  200
retry             copy      403  404  404  404  409
retry             held      404  404  403  404  409
retry             original  404  404  404  403  200
show_attempt      copy      409  404  404  404  404
show_attempt      held      404  404  200  404  404
show_attempt      original  404  404  404  404  404
extend            copy      409  404  404  404  404
extend            held      404  404  200  404  404
extend            original  404  404  404  404  404
fail              copy      409  404  404  404  404
fail              held      404  404  200  404  404
fail              original  404  404  404  404  404
deliver           copy      409  404  404  404  404
deliver           held      404  404  409  404  404
deliver           original  404  404  404  404  404
release           copy      409  404  404  404  404
release           held      404  404  409  404  404
release           original  404  404  404  404  404
"""
_ROWS = [line.split() for line in TABLE.strip().splitlines()]
VIEWERS = _ROWS[0][2:]
#: Those that are about no one job: what they tell is tested below.
_OTHERS = {
    "claim", "list_claims", "exchange", "list_jobs", "enqueue", "events", "show_me", "show_batch",
    "cancel_batch",
}  # fmt: skip


@pytest.fixture
def staged(opened: t.Callable[..., Open]) -> tuple[Open, dict[str, int]]:
    world = opened(JOBBER_GOLD_RATE=0.0)
    ids = {"original": ask(world)}
    [job] = world.client("ann").claim()
    assert world.client("ann").deliver(job, {"secret": "ann's"}).status_code == 200
    [held] = world.client("dee").claim()
    with world.session():
        ids["gold"] = world.jobber.gold("work", {"n": 2}, {"secret": "gold"}, user_id="own").id
        store = world.jobber.store()
        from flask_jobber.core import trust

        beside = trust.lock(store, [ids["original"]])[ids["original"]]
        trust._enter(store, trust._mix_in(store, ids["gold"], beside))
        beside = world.db.session.scalar(sa.select(world.Job.id).where(world.Job.copy_of == ids["gold"]))
    return world, ids | {"copy": job["id"], "held": held["id"], "beside": beside}


@pytest.mark.parametrize("viewer", VIEWERS)
def test_who_may_see_what(staged: tuple[Open, dict[str, int]], viewer: str) -> None:
    """Each endpoint, each kind of job; what may not be seen is as if it were not there."""
    world, ids = staged
    client = world.client(viewer)
    column = VIEWERS.index(viewer)
    absent = {}
    for name, job, *cells in _ROWS[1:]:
        response = _try(client, name, ids[job])
        assert response.status_code == int(cells[column]), (name, job, response.text)
        if response.status_code == 404:
            absent[name] = absent.get(name) or _try(client, name, 999_999).get_data()
            assert response.get_data() == absent[name], (name, job)


@pytest.mark.parametrize("viewer", VIEWERS)
def test_none_of_them_is_a_batch(staged: tuple[Open, dict[str, int]], viewer: str) -> None:
    """Though a job that waits for answers is blocked as a batch is."""
    world, ids = staged
    client = world.client(viewer)
    absent = client.get("/batches/999999").get_data()
    for job_id in ids.values():
        assert client.get(f"/batches/{job_id}").get_data() == absent
        assert client.post(f"/batches/{job_id}/cancel").status_code == 404


def _try(client: Client, name: str, job_id: int) -> TestResponse:
    [row] = [row for row in OPERATIONS if row.name == name]
    path = row.rule.replace("<job_id>", str(job_id)).replace("<attempt>", "1")
    bodies: dict[str, t.Any] = {
        "deliver": {"result": "another"},
        "fail": {"error": {"type": "E", "message": "m"}},
        "extend": {},
    }
    if name == "put_attachment":
        return client.put(path.replace("<name>", f"more-{job_id}.txt"), data=b"x")
    body = bodies.get(name, {} if row.takes_body else None)
    return client.open(row.method, path.replace("<name>", "in.txt"), body)


def test_every_endpoint_is_in_the_table() -> None:
    tried = {row[0] for row in _ROWS[1:]}
    assert tried | _OTHERS == {row.name for row in OPERATIONS if not row.public}


SEEN = {
    "ann": {"copy"},
    "bob": set[str](),
    "dee": {"held"},
    "own": {"original", "gold"},
    "root": {"original", "gold"},
}


@pytest.mark.parametrize("viewer", VIEWERS)
def test_lists_and_events_tell_of_the_same_jobs(staged: tuple[Open, dict[str, int]], viewer: str) -> None:
    """And of no answer of another's; a page is full, though others lie between."""
    world, ids = staged
    plain = [world.enqueue("plain", None) for _ in range(3)]
    client, names = world.client(viewer), {id: name for name, id in ids.items()}
    listed, cursor = [], "0"
    while cursor:
        page: t.Any = client.get(f"/jobs?limit=2&cursor={cursor}").json
        assert len(page["jobs"]) == 2 or page["cursor"] is None
        listed += page["jobs"]
        cursor = page["cursor"]
    stream = client.get("/events", headers={"Last-Event-ID": "0"}).get_data(as_text=True)
    told = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    for jobs in (listed, told):
        found = {job["id"] for job in jobs}
        assert found & set(plain) == set(plain)
        assert {names[id] for id in found - set(plain)} == SEEN[viewer]
    if viewer != "ann" and viewer != "root":
        text = json.dumps(listed) + stream
        assert "ann's" not in text
    assert "user_" not in json.dumps(listed) + stream


def test_gold_shows_the_owner_and_the_batch_of_the_job_beside_it(staged: tuple[Open, dict[str, int]]) -> None:
    """And is found by them."""
    world, ids = staged
    batch_id = world.enqueue("batch")
    with world.session():
        put(world, ids["original"], owner_ref="album/5", batch_id=batch_id)
    eve = world.client("eve")
    held = {job["id"] for job in eve.claim(limit=10)} - {batch_id}
    assert ids["beside"] in held
    for job_id in (ids["beside"], *held):
        said: t.Any = eve.get(f"/jobs/{job_id}").json
        assert (said["owner"], said["batch"]) == ("album/5", batch_id)
    for narrowed in ("owner=album/5", f"batch={batch_id}"):
        listed: t.Any = eve.get(f"/jobs?{narrowed}").json
        assert {job["id"] for job in listed["jobs"]} == held


def test_a_holder_brings_no_file_of_a_name_that_its_job_came_with(
    staged: tuple[Open, dict[str, int]],
) -> None:
    """As of any job; what the job came with is read as before."""
    world, ids = staged
    path, dee = f"/jobs/{ids['held']}/attachments/in.txt", world.client("dee")
    refused = dee.put(f"{path}?attempt=1", data=b"mine")
    assert (refused.status_code, refused.json["code"]) == (409, "name_taken")  # type: ignore[index]
    assert world.client("root").put(path, data=b"mine").status_code == 409
    assert (dee.get(path).status_code, dee.get(path).data) == (200, b"input")


def test_a_file_that_the_job_gets_later_hides_behind_its_holders(staged: tuple[Open, dict[str, int]]) -> None:
    world, ids = staged
    path, dee = f"/jobs/{ids['held']}/attachments/late.txt", world.client("dee")
    assert dee.put(f"{path}?attempt=1", data=b"mine").status_code == 201
    with world.session():
        world.jobber.attach(ids["original"], "late.txt", b"theirs")
    assert (dee.get(path).status_code, dee.get(path).data) == (200, b"mine")
    files = dee.get("/claims").json["jobs"][0]["attachments"]  # type: ignore[index]
    assert [file["name"] for file in files] == ["in.txt", "late.txt"]


@pytest.mark.parametrize("viewer", ["bob", "own", "root"])
def test_a_unique_key_tells_nothing_of_a_job_that_is_not_seen(
    opened: t.Callable[..., Open], viewer: str
) -> None:
    world = opened()
    job_id = ask(world, unique_key="k")
    said = world.client(viewer).post("/jobs", {"type": "work", "unique_key": "k", "on_conflict": "skip"})
    seen = world.client(viewer).get(f"/jobs/{job_id}").status_code == 200
    assert seen == (viewer != "bob")
    assert said.status_code == (200 if seen else 409), said.text
    assert seen or str(job_id) not in said.text.replace("409", "")


def test_the_operator_sees_whose_each_answer_is(staged: tuple[Open, dict[str, int]]) -> None:
    world, ids = staged
    said: t.Any = world.client("root").get(f"/jobs/{ids['original']}/answers").json
    facts = [(one["id"], one["is"], one["login"], one["result"]) for one in said["answers"]]
    assert facts == [
        (ids["copy"], "answered", "user_ann", {"secret": "ann's"}),
        (ids["held"], "held", "user_dee", None),
    ]


def test_the_owner_sees_what_was_agreed_and_nothing_before(staged: tuple[Open, dict[str, int]]) -> None:
    world, ids = staged
    own = world.client("own")
    before: t.Any = own.get(f"/jobs/{ids['original']}").json
    assert (before["state"], before["result"]) == ("blocked", None)
    dee = world.client("dee")
    [job] = dee.get("/claims").json["jobs"]  # type: ignore[index]
    dee.deliver(job, {"secret": "ann's"})
    after: t.Any = own.get(f"/jobs/{ids['original']}").json
    assert (after["state"], after["result"]) == ("succeeded", {"secret": "ann's"})
    assert world.client("bob").get(f"/jobs/{ids['original']}").status_code == 404
    history: t.Any = own.get(f"/jobs/{ids['original']}/history").json
    assert [row["locker"] for row in history["history"]] == [None, None]
