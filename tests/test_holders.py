"""Nobody but the holder: strangers, former holders, other tabs and nodes, and lost scopes."""

from __future__ import annotations

import functools
import typing as t

import pytest

from flask_jobber.api.problems import CODES
from situations import ERROR, ago, put, stored
from support import Client, World

Answer = tuple[int, dict[str, t.Any]]
Act = t.Callable[[Client, int, int], Answer]

LOST, ABSENT = "lease_lost", "not_found"


def _call(method: str, path: str, body: t.Any, client: Client, job_id: int, attempt: int) -> Answer:
    answer = client.open(method, f"/jobs/{job_id}/attempts/{attempt}{path}", body)
    return answer.status_code, answer.json or {}


def _item(kind: str, body: dict[str, t.Any], client: Client, job_id: int, attempt: int) -> Answer:
    answer = client.post("/exchange", {kind: [{"id": job_id, "attempt": attempt, **body}]})
    assert answer.status_code == 200
    assert answer.json is not None
    [outcome] = answer.json["outcomes"]
    assert (outcome.pop("id"), outcome.pop("attempt")) == (job_id, attempt)
    return outcome["status"], outcome


#: All that a holder may do, as calls and as items of an exchange.
ACTS: dict[str, Act] = {
    "deliver": functools.partial(_call, "PUT", "/result", {"result": 1}),
    "fail": functools.partial(_call, "PUT", "/failure", {"error": ERROR}),
    "extend": functools.partial(_call, "PATCH", "", {"progress": 0.5, "note": "half"}),
    "release": functools.partial(_call, "DELETE", "", None),
    "show": functools.partial(_call, "GET", "", None),
    "results": functools.partial(_item, "results", {"result": 1}),
    "failures": functools.partial(_item, "failures", {"error": ERROR}),
    "extensions": functools.partial(_item, "extensions", {"progress": 0.5}),
    "releases": functools.partial(_item, "releases", {"delay_seconds": 5}),
}


class Intrusion(t.NamedTuple):
    """One who does not hold the job, what it tries, and what it is told."""

    client: Client
    attempt: int
    code: str


def _claim(world: World, job_id: int, user: str, node: str | None = None) -> None:
    [job] = world.client(user, node).claim(lease_seconds=600)
    assert job["id"] == job_id


def _lapse(world: World, job_id: int) -> None:
    with world.session():
        put(world, job_id, locked_until=ago(60))


def _stranger_in_scope(world: World, job_id: int) -> list[Intrusion]:
    _claim(world, job_id, "ann")
    bob = world.client("bob")
    return [Intrusion(bob, 1, LOST), Intrusion(bob, 2, ABSENT), Intrusion(bob, 0, ABSENT)]


def _stranger_out_of_scope(world: World, job_id: int) -> list[Intrusion]:
    with world.session():
        put(world, job_id, user_id="ann")
    _claim(world, job_id, "ann")
    return [Intrusion(world.client("bob"), 1, ABSENT)]


def _former_holder(world: World, job_id: int) -> list[Intrusion]:
    _claim(world, job_id, "bob")
    _lapse(world, job_id)
    _claim(world, job_id, "ann")
    bob = world.client("bob")
    return [Intrusion(bob, 1, LOST), Intrusion(bob, 2, LOST), Intrusion(bob, 3, ABSENT)]


def _second_tab(world: World, job_id: int) -> list[Intrusion]:
    _claim(world, job_id, "ann")
    _lapse(world, job_id)
    _claim(world, job_id, "ann")
    return [Intrusion(world.client("ann"), 1, LOST)]


def _other_node(world: World, job_id: int) -> list[Intrusion]:
    _claim(world, job_id, "ann", "left")
    ann = functools.partial(world.client, "ann")
    return [
        Intrusion(ann("right"), 1, LOST),
        Intrusion(ann("LEFT"), 1, LOST),
        Intrusion(ann(), 1, LOST),
        # The names are compared whole: a login is no node.
        Intrusion(world.client("left"), 1, LOST),
        Intrusion(world.client("Ann", "left"), 1, LOST),
    ]


def _scope_changed(world: World, job_id: int) -> list[Intrusion]:
    _claim(world, job_id, "ann")
    with world.session():
        put(world, job_id, user_id="bob")
    return [Intrusion(world.client("ann"), 1, ABSENT), Intrusion(world.client("bob"), 1, LOST)]


@pytest.mark.parametrize(
    "setting",
    [_stranger_in_scope, _stranger_out_of_scope, _former_holder, _second_tab, _other_node, _scope_changed],
)
def test_who_does_not_hold_a_job_can_do_nothing_to_it(
    world: World, setting: t.Callable[[World, int], list[Intrusion]]
) -> None:
    """It is refused with the right code, nothing is changed, and nobody's name is told."""
    job_id = world.enqueue()
    intrusions = setting(world, job_id)
    before = stored(world, job_id)

    for client, attempt, code in intrusions:
        for name, act in ACTS.items():
            status, body = act(client, job_id, attempt)
            assert (status, body["code"]) == (CODES[code].status, code), (name, client.headers, attempt)
            assert stored(world, job_id) == before, name
            assert before[0]["locked_by"] not in str(body), name
            if code == ABSENT:
                assert body == act(client, job_id + 1000, attempt)[1], name
        listed = client.get("/claims").json
        assert listed is not None
        assert [job["attempt"] for job in listed["jobs"] if job["attempt"] == attempt] == []


def test_the_holder_itself_may_do_it_all(world: World) -> None:
    """The same acts that others are refused work for the one who holds the job, on its node."""
    ann = world.client("ann", "left")

    for name, act in ACTS.items():
        job_id = world.enqueue(name, user_id="ann")
        assert [job["id"] for job in ann.claim(types=[name])] == [job_id]
        status, body = act(ann, job_id, 1)
        assert status in (200, 204), (name, body)


def test_items_of_one_exchange_are_each_judged_alone(world: World) -> None:
    """A stranger's items among a holder's own spoil nothing; the outcomes come in the order given."""
    ids = [world.enqueue(priority=-place) for place in range(4)]
    ann, bob = world.client("ann"), world.client("bob")
    assert [job["id"] for job in ann.claim(limit=2)] == ids[:2]
    assert [job["id"] for job in bob.claim(limit=2)] == ids[2:]
    before = {job_id: stored(world, job_id) for job_id in ids}

    answer = ann.post(
        "/exchange",
        {
            "results": [{"id": ids[2], "attempt": 1}, {"id": ids[0], "attempt": 1}],
            "releases": [{"id": ids[3], "attempt": 1}, {"id": ids[1], "attempt": 1}],
        },
    ).json

    assert answer is not None
    assert [outcome["id"] for outcome in answer["outcomes"]] == [ids[2], ids[0], ids[3], ids[1]]
    assert [outcome["status"] for outcome in answer["outcomes"]] == [409, 200, 409, 204]
    assert {outcome["code"] for outcome in answer["outcomes"] if "code" in outcome} == {LOST}
    assert [stored(world, job_id) == before[job_id] for job_id in ids] == [False, False, True, True]


def test_open_claims_are_those_of_this_locker_alone(world: World) -> None:
    """Other users, and other nodes of the same user, have lists of their own."""
    for _ in range(3):
        world.enqueue()
    clients = [world.client("ann"), world.client("ann", "left"), world.client("bob")]
    held = [client.claim()[0]["id"] for client in clients]

    for client, job_id in zip(clients, held, strict=True):
        listed = client.get("/claims").json
        assert listed is not None
        assert [job["id"] for job in listed["jobs"]] == [job_id]
