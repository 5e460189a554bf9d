"""Exchange: settle many and claim the next, in one round trip."""

from __future__ import annotations

import itertools
import typing as t

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from marshmallow import Schema, fields

from conftest import MakeWorld
from flask_jobber import ResultRejected
from flask_jobber.api import schemas
from flask_jobber.api.exchange import is_plain
from support import Client, World

LISTS = ("results", "failures", "extensions", "releases")
ERROR = {"error": {"type": "E", "message": "m"}}


def key(job: t.Mapping[str, t.Any], **body: t.Any) -> dict[str, t.Any]:
    """Return an item for a claimed job."""
    return {"id": job["id"], "attempt": job["attempt"], **body}


def exchange(client: Client, **body: t.Any) -> dict[str, t.Any]:
    response = client.post("/exchange", body)
    assert response.status_code == 200, response.text
    return t.cast(dict[str, t.Any], response.get_json())


def claimed(world: World, count: int, client: Client | None = None, **spec: t.Any) -> list[dict[str, t.Any]]:
    for _ in range(count):
        world.enqueue(**spec)
    return (client or world.client()).claim(limit=count)


def test_one_round_trip_settles_many_and_claims_the_next(world: World) -> None:
    """Each kind does what its single call does, and what was released can be had again at once."""
    client = world.client()
    one, two, three, four = claimed(world, 4)
    world.enqueue(priority=-1)
    said = exchange(
        client,
        results=[key(one, result={"a": 1}, extras={"b": 2})],
        failures=[key(two, **ERROR, retry_seconds=60)],
        extensions=[key(three, progress=0.5, note="half", lease_seconds=99)],
        releases=[key(four)],
        claim={"limit": 5},
    )
    assert [outcome["status"] for outcome in said["outcomes"]] == [200, 200, 200, 204]
    assert [(job["id"], job["attempt"]) for job in said["jobs"]] == [(four["id"], 2), (5, 1)]
    states = [world.job(job["id"]).state for job in (one, two, three, four)]
    assert states == ["succeeded", "scheduled", "locked", "locked"]
    assert (world.job(one["id"]).result, world.job(one["id"]).extras) == ({"a": 1}, {"b": 2})
    assert (world.job(three["id"]).progress, world.job(three["id"]).note) == (0.5, "half")
    assert world.job(four["id"]).failures == 0


def test_outcomes_come_in_the_order_of_the_lists_and_as_given(lite: World) -> None:
    """Results, failures, extensions, releases, whatever the order of the request's members."""
    jobs = claimed(lite, 12)
    three = [list(part) for part in zip(*[iter(jobs)] * 3, strict=True)]
    for part in three:
        part.reverse()
    body = {
        "releases": [key(job) for job in three[3]],
        "extensions": [key(job) for job in three[2]],
        "failures": [key(job, **ERROR) for job in three[1]],
        "results": [key(job) for job in three[0]],
    }
    outcomes = exchange(lite.client(), **body)["outcomes"]
    wanted = [(job["id"], job["attempt"]) for job in itertools.chain(*three)]
    assert [(outcome["id"], outcome["attempt"]) for outcome in outcomes] == wanted


class Number(Schema):
    n = fields.Integer(strict=True, required=True)


def outcomes_of(
    world: World,
) -> dict[str, tuple[str, dict[str, t.Any], t.Callable[[Client], dict[str, t.Any]]]]:
    """Return situations: the list, the item's body, and how its job comes about."""
    ann, root = world.client("ann"), world.client("root")

    def held(type: str = "work", **spec: t.Any) -> t.Callable[[Client], dict[str, t.Any]]:
        def make(client: Client) -> dict[str, t.Any]:
            world.enqueue(type, **spec)
            [job] = client.claim(types=[type])
            return job

        return make

    def then(do: t.Callable[[dict[str, t.Any]], t.Any]) -> t.Callable[[Client], dict[str, t.Any]]:
        def make(client: Client) -> dict[str, t.Any]:
            job = held()(client)
            assert do(job).status_code < 300
            return job

        return make

    def reclaimed(job: dict[str, t.Any]) -> t.Any:
        released = ann.release(job)
        assert world.client("bob").claim()[0]["id"] == job["id"]
        return released

    lost = then(reclaimed)
    cancelled = then(lambda job: root.post(f"/jobs/{job['id']}/cancel"))
    delivered = then(lambda job: ann.deliver(job, 1))
    absent = lambda client: {"id": 4_000_000, "attempt": 1}  # noqa: E731
    never = lambda client: {**held()(client), "attempt": 2}  # noqa: E731
    bodies: dict[str, dict[str, t.Any]] = {
        "results": {"result": 1},
        "failures": ERROR,
        "extensions": {},
        "releases": {},
    }
    table: dict[str, t.Any] = {}
    for name, body in bodies.items():
        for title, make in (
            ("held", held()),
            ("lost", lost),
            ("cancelled", cancelled),
            ("delivered", delivered),
            ("absent", absent),
            ("never given out", never),
            ("of another", held(user_id="bob")),
        ):
            table[f"{name} {title}"] = (name, body, make)
    table |= {
        "results different": ("results", {"result": 2}, delivered),
        "results of no schema": ("results", {"result": {"n": "x"}}, held("number")),
        "results too large": ("results", {"result": "x" * 2000}, held()),
        "results with bad extras": ("results", {"extras": []}, held()),
        "results rejected": ("results", {"result": 1}, held("release")),
        "results to correct": ("results", {"result": 1}, held("correct")),
        "results excluded": ("results", {"result": 1}, held("exclude")),
        "results failed": ("results", {"result": 1}, held("release", max_attempts=1)),
        "results submitted": ("results", {"result": 1}, held("broken")),
        "failures permanent": ("failures", {**ERROR, "permanent": True}, held()),
        "failures that cancel": ("failures", {**ERROR, "cancel": True}, held()),
        "failures at the limit": ("failures", ERROR, held(max_attempts=1)),
        "failures without an error": ("failures", {}, held()),
        "failures with a NUL": ("failures", {"error": {"type": "E", "message": "\0"}}, held()),
        "extensions too long": ("extensions", {"lease_seconds": 1e9}, held()),
        "extensions of a length": ("extensions", {"lease_seconds": 7, "progress": 1, "note": "n"}, held()),
        "extensions unknown": ("extensions", {"nope": 1}, held()),
        "releases too late": ("releases", {"delay_seconds": 1e9}, held()),
    }
    del table["releases of another"], table["failures of another"], table["extensions of another"]
    return table


def add_processors(world: World) -> None:
    jobber = world.jobber
    jobber.job_type("number", schema=Number)
    for then in ("release", "correct", "exclude"):

        def reject(job: t.Any, result: t.Any, then: t.Any = then) -> None:
            raise ResultRejected("no good", then=then)

        jobber.processor(then)(reject)

    @jobber.processor("broken")
    def broken(job: t.Any, result: t.Any) -> None:
        raise RuntimeError("the processor")


def test_an_items_outcome_is_what_the_single_call_would_say(make_world: MakeWorld, sqlite_url: str) -> None:
    """Status, code, state and all else: the same situation, told in one way by both."""
    world = make_world(sqlite_url, JOBBER_MAX_RESULT_BYTES=1000, JOBBER_BACKOFF="constant")
    add_processors(world)
    ann, wrong = world.client("ann"), []
    bob = world.client("bob")
    for title, (name, body, make) in outcomes_of(world).items():
        holder = bob if title.endswith("of another") else ann
        alone, job = single(ann, name, make(holder), body), make(holder)
        [outcome] = exchange(ann, **{name: [key(job, **body)]})["outcomes"]
        status, said = alone
        want = {"id": job["id"], "attempt": job["attempt"], "status": status, **said}
        if _plain(outcome) != _plain(want):
            wrong.append(f"{title}: {outcome} is not {want}")
    assert not wrong, "\n".join(wrong)


def single(
    client: Client, name: str, job: dict[str, t.Any], body: dict[str, t.Any]
) -> tuple[int, dict[str, t.Any]]:
    """Make the single call; a release carries its delay in the query."""
    path = f"/jobs/{job['id']}/attempts/{job['attempt']}"
    if name == "releases":
        response = client.delete(path, query_string=body)
    else:
        method, end = {"results": ("PUT", "/result"), "failures": ("PUT", "/failure")}.get(
            name, ("PATCH", "")
        )
        response = client.open(method, path + end, body)
    return response.status_code, response.get_json() if response.data else {}


def _plain(outcome: dict[str, t.Any]) -> dict[str, t.Any]:
    """Leave out what differs from one moment to the next."""
    return {name: value for name, value in outcome.items() if name != "run_at"} | {
        "run_at": outcome.get("run_at") is not None
    }


@pytest.mark.parametrize("name", LISTS)
def test_a_bad_item_spoils_nothing_beside_it(lite: World, name: str) -> None:
    """Items before and after it, in the same list and the others, and the claim, are as without it."""
    good = claimed(lite, 6)
    [mine] = claimed(lite, 1, lite.client("bob"), user_id="bob")
    lite.enqueue()
    body: dict[str, list[t.Any]] = {
        "results": [key(good[0]), key(good[1])],
        "failures": [key(good[2], **ERROR)],
        "extensions": [key(good[3])],
        "releases": [key(good[4], delay_seconds=60)],
    }
    filler = ERROR if name == "failures" else {}
    bad = [
        key(mine, **filler),
        {"id": 4_000_000, "attempt": 1, **filler},
        {"id": -1, "attempt": 2**70, **filler},
        key(good[5], nope=1, **filler),
    ]
    body[name] = [bad[0], *body[name], *bad[1:]]
    said = exchange(lite.client(), **body, claim={"limit": 2})
    counts = [outcome["status"] for outcome in said["outcomes"] if outcome["status"] >= 400]
    assert counts == [404, 404, 404, 422]
    assert sorted(outcome["status"] for outcome in said["outcomes"] if outcome["status"] < 400) == [
        200
    ] * 4 + [204]
    states = [lite.job(job["id"]).state for job in good]
    assert states == ["succeeded", "succeeded", "scheduled", "locked", "scheduled", "locked"]
    assert lite.job(mine["id"]).state == "locked"
    assert len(said["jobs"]) == 1


def test_a_processor_that_breaks_spoils_only_its_own_item(world: World) -> None:
    """Its work is undone, its result is kept; what stands beside it is committed."""

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        job.written = f"got {result}"
        world.db.session.flush()
        if result == "break":
            raise RuntimeError("broken")
        if result == "reject":
            raise ResultRejected("no")

    one, two, three, four = claimed(world, 4)
    items = [
        key(one, result="a"),
        key(two, result="break"),
        key(three, result="reject"),
        key(four, result="b"),
    ]
    outcomes = exchange(world.client(), results=items)["outcomes"]
    assert [outcome["status"] for outcome in outcomes] == [200, 202, 422, 200]
    assert [outcome.get("code") for outcome in outcomes] == [None, None, "result_rejected", None]
    written = [world.job(job["id"]).written for job in (one, two, three, four)]
    assert written == ["got a", None, None, "got b"]
    assert world.job(two["id"]).result == "break"


def test_the_same_item_twice_is_settled_once(world: World) -> None:
    """The second gets the answer that is true after the first."""
    one, two, three = claimed(world, 3)
    said = exchange(
        world.client(),
        results=[key(one, result=1), key(one, result=1), key(one, result=2)],
        failures=[key(one, **ERROR), key(two, **ERROR), key(two, **ERROR)],
        extensions=[key(one), key(three), key(three)],
        releases=[key(three), key(three)],
    )
    codes = [(outcome["status"], outcome.get("code")) for outcome in said["outcomes"]]
    settled, lost = (409, "already_settled"), (409, "lease_lost")
    assert codes == [
        (200, None), (200, None), settled, settled, (200, None), (200, None), settled, (200, None),
        (200, None), (204, None), lost,
    ]  # fmt: skip
    assert world.job(one["id"]).result == 1
    assert world.job(two["id"]).failures == 1
    reasons = [[reason for _, _, reason in world.history(job["id"])] for job in (one, two, three)]
    assert reasons == [["enqueue", "claim", verb] for verb in ("deliver", "fail", "release")]


def test_different_attempts_of_one_job_are_different_items(lite: World) -> None:
    """The stale one is refused, the present one is settled, in whatever order they stand."""
    for stale_first in (True, False):
        [old] = claimed(lite, 1)
        lite.client().release(old)
        [new] = lite.client().claim()
        items = [key(old, result="old"), key(new, result="new")]
        outcomes = exchange(lite.client(), results=items if stale_first else items[::-1])["outcomes"]
        assert {(o["attempt"], o["status"], o.get("code")) for o in outcomes} == {
            (1, 409, "lease_lost"),
            (2, 200, None),
        }
        assert lite.job(new["id"]).result == "new"


# -- the claim -----------------------------------------------------------------------------


def test_without_a_claim_none_is_made(lite: World) -> None:
    """An empty exchange does nothing."""
    lite.enqueue()
    bodies: list[dict[str, t.Any]] = [{}, {"results": []}, {name: [] for name in LISTS}]
    for body in bodies:
        said = exchange(lite.client(), **body)
        assert (said["outcomes"], said["jobs"]) == ([], [])
        assert "claim" not in said
    assert lite.job(1).state == "queued"


def test_an_empty_claim_claims_one(lite: World) -> None:
    """As ``POST /claims`` with an empty body does."""
    for _ in range(3):
        lite.enqueue()
    said = exchange(lite.client(), claim={})
    assert [job["id"] for job in said["jobs"]] == [1]
    assert said["retry_after"] == 0
    assert said["jobs"][0].keys() == lite.client().claim()[0].keys()


def test_a_claim_that_finds_nothing_is_told_when_to_come_again(lite: World) -> None:
    """In the body, as a claim alone is."""
    said = exchange(lite.client(), claim={"limit": 5})
    assert said["jobs"] == []
    assert 3 < said["retry_after"] < 7


def test_a_claim_takes_what_a_single_one_would(lite: World) -> None:
    """Types, queues, number and lease."""
    for type_, queue in itertools.product("ab", "xy"):
        lite.enqueue(type_, queue=queue)
    said = exchange(
        lite.client(), claim={"types": ["a"], "queues": ["x", "y"], "limit": 5, "lease_seconds": 7}
    )
    assert [(job["type"], job["queue"], job["lease_seconds"]) for job in said["jobs"]] == [
        ("a", "x", 7),
        ("a", "y", 7),
    ]


@pytest.mark.parametrize(
    ("claim", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": "1"}, "limit"),
        ({"types": []}, "types"),
        ({"types": ["a b"]}, "types"),
        ({"lease_seconds": 0}, "lease_seconds"),
        ({"lease_seconds": 86_401}, "lease_seconds"),
        ({"wait_seconds": -1}, "wait_seconds"),
        ({"nope": 1}, "nope"),
    ],
    ids=str,
)
def test_a_claim_that_is_refused_is_told_beside_the_outcomes(
    lite: World, claim: dict[str, t.Any], field: str
) -> None:
    """The outcomes stand, nothing is handed out, and the refusal is the single call's."""
    [job] = claimed(lite, 1)
    lite.enqueue()
    said = exchange(lite.client(), results=[key(job)], claim=claim)
    assert [outcome["status"] for outcome in said["outcomes"]] == [200]
    assert said["jobs"] == []
    assert said["claim"] == lite.client().post("/claims", claim).get_json()
    assert (said["claim"]["status"], list(said["claim"]["errors"])) == (422, [field])
    assert lite.job(job["id"]).state == "succeeded"


def test_a_claim_over_what_one_may_hold_is_refused_after_settling(
    make_world: MakeWorld, sqlite_url: str
) -> None:
    """What is settled in the same exchange makes room; without room it is 429, told in ``claim``."""
    world = make_world(sqlite_url, JOBBER_MAX_OPEN_CLAIMS=2)
    one, two = claimed(world, 2)
    for _ in range(3):
        world.enqueue()
    client = world.client()
    said = exchange(client, extensions=[key(one)], claim={"limit": 2})
    assert [outcome["status"] for outcome in said["outcomes"]] == [200]
    assert (said["claim"]["status"], said["claim"]["code"], said["claim"]["retryable"]) == (
        429,
        "too_many_claims",
        True,
    )
    assert said["jobs"] == []
    said = exchange(client, results=[key(one), key(two)], claim={"limit": 5})
    assert len(said["jobs"]) == 2
    assert "claim" not in said


# -- the envelope --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(("results", "releases"), (None, {}, "x", [1], [[]], [None], [{}], [{"id": 1}])),
        ("results", [{"attempt": 1}]),
        ("failures", [{"id": "1", "attempt": 1}]),
        ("extensions", [{"id": 1, "attempt": 1.5}]),
        ("releases", [{"id": True, "attempt": 1}]),
        *itertools.product(("claim",), (None, [], 1, True, "x")),
        ("claims", {}),
        ("result", []),
    ],
    ids=str,
)
def test_a_broken_envelope_is_refused_as_a_whole(lite: World, name: str, value: t.Any) -> None:
    """Nothing of it is done, not even what is sound."""
    [job] = claimed(lite, 1)
    lite.enqueue()
    sound = {"extensions": [key(job, note="x")], "claim": {}}
    response = lite.client().post("/exchange", {**sound, name: value})
    assert (response.status_code, response.get_json()["code"]) == (422, "invalid")
    assert list(response.get_json()["errors"]) == [name]
    assert (lite.job(job["id"]).note, lite.job(2).state) == (None, "queued")


@pytest.mark.parametrize("name", LISTS)
def test_more_items_than_a_claim_may_hand_out_are_refused(
    make_world: MakeWorld, sqlite_url: str, name: str
) -> None:
    """``MAX_CLAIM`` bounds each list."""
    world = make_world(sqlite_url, JOBBER_MAX_CLAIM=3)
    jobs = claimed(world, 3)
    filler = ERROR if name == "failures" else {}
    items = [key(job, **filler) for job in jobs]
    response = world.client().post("/exchange", {name: [*items, items[0]], "claim": {}})
    assert (response.status_code, list(response.get_json()["errors"])) == (422, [name])
    assert [world.job(job["id"]).state for job in jobs] == ["locked"] * 3
    assert len(exchange(world.client(), **{name: items})["outcomes"]) == 3


def test_as_many_items_as_are_allowed_are_settled_at_once(world: World) -> None:
    """A hundred of each list, one transaction, in order."""
    jobs = []
    for _ in range(4):
        with world.session():
            world.jobber.enqueue_many({"type": "work"} for _ in range(100))
        jobs.append(world.client().claim(limit=100))
    said = exchange(
        world.client(),
        results=[key(job, result=job["id"]) for job in jobs[0]],
        failures=[key(job, **ERROR) for job in jobs[1]],
        extensions=[key(job, lease_seconds=50) for job in jobs[2]],
        releases=[key(job) for job in jobs[3]],
        claim={"limit": 100},
    )
    assert [outcome["status"] for outcome in said["outcomes"]] == [200] * 300 + [204] * 100
    assert [outcome["id"] for outcome in said["outcomes"]] == [job["id"] for part in jobs for job in part]
    assert [job["id"] for job in said["jobs"]] == [job["id"] for job in jobs[3]]
    with world.session() as session:
        rows = session.execute(
            sa.select(world.Job.id, world.Job.result).where(world.Job.state == "succeeded")
        )
        assert {row.id: row.result for row in rows} == {job["id"]: job["id"] for job in jobs[0]}


def test_an_exchange_of_another_login_settles_nothing(world: World) -> None:
    """Every item is fenced by the sender's own name."""
    jobs = claimed(world, 4)
    bob = world.client("bob")
    said = exchange(
        bob,
        results=[key(jobs[0])],
        failures=[key(jobs[1], **ERROR)],
        extensions=[key(jobs[2])],
        releases=[key(jobs[3])],
    )
    assert {(outcome["status"], outcome["code"]) for outcome in said["outcomes"]} == {(409, "lease_lost")}
    assert [world.job(job["id"]).state for job in jobs] == ["locked"] * 4


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, database=None)
@given(
    st.dictionaries(st.sampled_from(["id", "attempt", "result", "extras", "more"]), _JSON)
    | st.fixed_dictionaries(
        {"id": st.integers(), "attempt": st.integers()},
        optional={"result": _JSON, "extras": st.none() | st.dictionaries(st.text(), _JSON, max_size=3)},
    )
)
def test_a_plain_result_is_what_the_schema_makes_of_it(values: dict[str, t.Any]) -> None:
    """What is not plain, the schema may refuse or change."""
    if is_plain(values):
        assert {"result": None, **values} == schemas.ResultItem().load(values)
