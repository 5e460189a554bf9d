"""A claim may ask for jobs between two priorities."""

from __future__ import annotations

import typing as t

import pytest

from flask_jobber import Invalid
from situations import ago, put
from support import World

LEVELS = (-2, 0, 1, 2, 5)
#: What is asked for, and the priorities that are handed out, in order.
BOUNDS: list[tuple[dict[str, int], list[int]]] = [
    ({}, [5, 2, 1, 0, -2]),
    ({"min_priority": 1}, [5, 2, 1]),
    ({"max_priority": 1}, [1, 0, -2]),
    ({"min_priority": 0, "max_priority": 2}, [2, 1, 0]),
    ({"min_priority": 2, "max_priority": 2}, [2]),
    ({"min_priority": 3, "max_priority": 4}, []),
    ({"min_priority": -(2**31) + 1, "max_priority": 2**31 - 1}, [5, 2, 1, 0, -2]),
]
KINDS: dict[str, dict[str, t.Any]] = {
    "queued": {},
    "scheduled": {"state": "scheduled", "run_at": ago(60)},
    "lapsed": {"state": "locked", "locked_by": "user_bob", "locked_until": ago(60), "attempts": 1},
}


def _one_of_each_level(world: World, kind: str) -> None:
    ids = [world.enqueue(priority=priority) for priority in LEVELS]
    with world.session():
        for job_id in ids:
            put(world, job_id, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_takes_what_is_between_its_bounds(world: World, kind: str) -> None:
    """Queued, scheduled and lapsed ones alike; the bounds belong to it."""
    for bounds, expected in BOUNDS:
        _one_of_each_level(world, kind)
        assert [job["priority"] for job in world.client().claim(limit=20, **bounds)] == expected
        world.client().claim(limit=20)


def test_server_code_claims_between_bounds_too(world: World) -> None:
    """And so does an exchange."""
    _one_of_each_level(world, "queued")
    with world.session():
        (claim,) = world.jobber.claim("ann", min_priority=2, max_priority=4)
    assert claim.priority == 2
    body = {"claim": {"max_priority": -1, "limit": 5}}
    answer = world.client().post("/exchange", body).get_json()
    assert [job["priority"] for job in answer["jobs"]] == [-2]


@pytest.mark.parametrize(
    "bounds",
    [{"min_priority": 2, "max_priority": 1}, {"min_priority": 2**31}, {"max_priority": -(2**31)}],
)
def test_bounds_that_hold_nothing_are_refused(lite: World, bounds: dict[str, int]) -> None:
    """A claim between them would be empty for ever."""
    lite.enqueue()
    answer = lite.client().post("/claims", bounds)
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid")
    assert set(answer.get_json()["errors"]) <= bounds.keys()
    told = lite.client().post("/exchange", {"claim": bounds}).get_json()
    assert (told["jobs"], told["claim"]["code"]) == ([], "invalid")
    with lite.session(), pytest.raises(Invalid):
        lite.jobber.claim("ann", **bounds)


@pytest.mark.parametrize("value", ["1", 1.5, None, []])
def test_a_bound_is_a_whole_number(lite: World, value: t.Any) -> None:
    """Nothing else is taken for one."""
    assert lite.client().post("/claims", {"min_priority": value}).status_code == 422


def test_claims_with_bounds_and_without_do_not_mix(world: World) -> None:
    """Statements are kept; one client's bounds are never another's."""
    _one_of_each_level(world, "queued")
    ann, bob = world.client("ann"), world.client("bob")
    assert [job["priority"] for job in ann.claim(max_priority=0)] == [0]
    assert [job["priority"] for job in bob.claim()] == [5]
    assert [job["priority"] for job in bob.claim(max_priority=1)] == [1]
    assert [job["priority"] for job in ann.claim(min_priority=1)] == [2]
