"""Every state by every verb, as the table of transitions says."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
from werkzeug.test import TestResponse

from flask_jobber import State
from flask_jobber.core import tally
from flask_jobber.core.states import POOL, TERMINAL, TRANSITIONS, UNFINISHED, Verb
from situations import ERROR, HOLDER, SITUATIONS, ago, assert_legal, make_one_of_each, put, stored
from support import Client, World

Act = t.Callable[[World, Client, int, str], TestResponse | None]

# Situations that the state alone would allow, and the verb does not.
_NOT_YET = {
    Verb.CLAIM: {"scheduled", "locked"},
    Verb.LAPSE: {"locked"},
    Verb.EXPIRE: {"locked", "blocked"},
}
_OTHER_RESULT = {"n": 2}
_OTHER_ERROR = {**ERROR, "message": "broke otherwise"}


def _href(job_id: int) -> str:
    return f"/jobs/{job_id}/attempts/1"


def _on_all(world: World, verb: t.Callable[[], object], **columns: t.Any) -> None:
    """Write columns of all jobs, then call a verb that looks for its jobs itself."""
    with world.session() as session:
        if columns:
            session.execute(sa.update(world.Job.__table__).values(columns))
        verb()


# What the operator ``root`` does to whichever job, the holder to its own, and the server
# to all that it finds.
_ACTS: dict[Verb, Act] = {
    Verb.CLAIM: lambda world, holder, job_id, type_: holder.post("/claims", {"types": [type_]}),
    Verb.DELIVER: lambda world, holder, job_id, type_: holder.put(
        f"{_href(job_id)}/result", {"result": _OTHER_RESULT}
    ),
    Verb.FAIL: lambda world, holder, job_id, type_: holder.put(
        f"{_href(job_id)}/failure", {"error": _OTHER_ERROR}
    ),
    Verb.RELEASE: lambda world, holder, job_id, type_: holder.delete(_href(job_id)),
    Verb.CANCEL: lambda world, holder, job_id, type_: world.client("root").post(f"/jobs/{job_id}/cancel"),
    Verb.RETRY: lambda world, holder, job_id, type_: world.client("root").post(f"/jobs/{job_id}/retry"),
    Verb.LAPSE: lambda world, holder, job_id, type_: _on_all(world, world.jobber.expire),
    Verb.EXPIRE: lambda world, holder, job_id, type_: _on_all(world, world.jobber.expire),
    Verb.PROCESS: lambda world, holder, job_id, type_: _on_all(world, world.jobber.process_submitted),
    Verb.UNBLOCK: lambda world, holder, job_id, type_: _on_all(
        world, lambda: tally.close(world.jobber.store(), job_id)
    ),
}
_PREPARED: dict[Verb, dict[str, t.Any]] = {
    Verb.LAPSE: {"max_attempts": 1},
    Verb.EXPIRE: {"expires_at": ago(60)},
}


def _is_legal(verb: Verb, situation: str) -> bool:
    state, _ = SITUATIONS[situation]
    return state in TRANSITIONS[verb].from_states and situation not in _NOT_YET.get(verb, ())


def _assert_refused(verb: Verb, situation: str, answer: TestResponse | None) -> None:
    if answer is None:
        return
    assert answer.json is not None
    if verb is Verb.CLAIM:
        assert answer.json["jobs"] == []
        return
    code = "illegal_transition" if verb in (Verb.CANCEL, Verb.RETRY) else SITUATIONS[situation][1]
    assert answer.json["code"] == code, (verb, situation)
    assert answer.status_code == (404 if code == "not_found" else 409)


@pytest.mark.parametrize("verb", sorted(_ACTS))
def test_a_verb_makes_exactly_the_transitions_of_the_table(world: World, verb: Verb) -> None:
    """In every other situation it is refused and changes nothing, neither row nor history."""
    ids = make_one_of_each(world)
    _on_all(world, lambda: None, **_PREPARED.get(verb, {}))
    before = {situation: stored(world, job_id) for situation, job_id in ids.items()}
    holder = world.client(HOLDER)

    for situation, job_id in ids.items():
        answer = _ACTS[verb](world, holder, job_id, situation)
        if not _is_legal(verb, situation):
            _assert_refused(verb, situation, answer)
            assert stored(world, job_id) == before[situation], (verb, situation)
            continue
        assert answer is None or answer.status_code in (200, 204), (verb, situation, answer.text)
        history = world.history(job_id)
        assert_legal(history)
        added = history[len(before[situation][1]) :]
        assert added[-1][2] == verb
        assert world.job(job_id).state == added[-1][1]
        lapsed = [(State.LOCKED, State.QUEUED, Verb.LAPSE)]
        assert added[:-1] == (lapsed if (verb, situation) == (Verb.CLAIM, "lapsed") else [])


@pytest.mark.parametrize("act", ["extend", "show"])
def test_a_heartbeat_and_a_look_are_no_transitions(world: World, act: str) -> None:
    """Whoever holds the job may; anyone else hears why not; the history says nothing."""
    ids = make_one_of_each(world)
    before = {situation: stored(world, job_id) for situation, job_id in ids.items()}
    holder = world.client(HOLDER)

    for situation, job_id in ids.items():
        code = SITUATIONS[situation][1]
        answer = holder.patch(_href(job_id), {}) if act == "extend" else holder.get(_href(job_id))
        assert answer.json is not None
        assert answer.json.get("code") == code, situation
        assert answer.status_code == (200 if code is None else 404 if code == "not_found" else 409)
        row, history = stored(world, job_id)
        assert history == before[situation][1]
        if code is not None or act == "show":
            assert row == before[situation][0], situation
        else:
            assert row["locked_until"] > before[situation][0]["locked_until"]


def test_the_table_knows_every_state() -> None:
    """Each can be reached, and each be left: ``succeeded`` when a result is taken back."""
    to_states = frozenset[State]().union(*(row.to_states for row in TRANSITIONS.values()))
    from_states = frozenset[State]().union(*(row.from_states for row in TRANSITIONS.values()))

    assert to_states == frozenset(State)
    assert from_states == frozenset(State)
    assert TERMINAL.isdisjoint(UNFINISHED)
    assert POOL < UNFINISHED
    assert set(TRANSITIONS) == set(Verb)


@pytest.mark.parametrize(
    "columns",
    [
        {"state": "lost"},
        {"state": "locked", "locked_by": None},
        {"state": "locked", "locked_by": "user_ann", "locked_until": None},
        {"state": "succeeded", "finished_at": None},
        {"state": "queued", "finished_at": ago(1)},
        {"state": "succeeded", "finished_at": ago(1), "unique_key": "k"},
    ],
    ids=lambda columns: "-".join(columns),
)
def test_the_database_refuses_rows_that_no_verb_writes(lite: World, columns: dict[str, t.Any]) -> None:
    """The constraints mirror the table of states."""
    job_id = lite.enqueue()

    with lite.app.app_context(), pytest.raises(sa.exc.IntegrityError):
        put(lite, job_id, **columns)
