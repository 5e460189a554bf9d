"""The states of a job and what leads from one to another, as data."""

from __future__ import annotations

import enum
import typing as t


class State(enum.StrEnum):
    """Where a job is in its life. Stored as the word."""

    QUEUED = "queued"
    SCHEDULED = "scheduled"
    LOCKED = "locked"
    SUBMITTED = "submitted"
    #: It waits for other jobs, for a seat of its concurrency key, or for answers; nobody may have it.
    BLOCKED = "blocked"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Verb(enum.StrEnum):
    """What makes a transition; the ``reason`` of its row in the history."""

    ENQUEUE = "enqueue"
    CLAIM = "claim"
    DELIVER = "deliver"
    FAIL = "fail"
    RELEASE = "release"
    LAPSE = "lapse"
    EXPIRE = "expire"
    PROCESS = "process_submitted"
    CANCEL = "cancel"
    RETRY = "retry"
    REPLACE = "replace"
    RESCHEDULE = "reschedule"
    UNBLOCK = "unblock"
    BLOCK = "block"
    ADMIT = "admit"
    AGREE = "agree"
    REVOKE = "revoke"


class Transition(t.NamedTuple):
    """A verb, the states it starts from (none: there was no job) and those it may lead to."""

    verb: Verb
    from_states: frozenset[State]
    to_states: frozenset[State]


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})
UNFINISHED = frozenset(State) - TERMINAL
POOL = frozenset({State.QUEUED, State.SCHEDULED})
#: In the pool or at its door.
WAITING = POOL | {State.BLOCKED}
_ENDED = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})
_HELD = frozenset({State.LOCKED})
_BLOCKED = frozenset({State.BLOCKED})

TRANSITIONS: t.Mapping[Verb, Transition] = {
    row.verb: row
    for row in (
        Transition(Verb.ENQUEUE, frozenset(), WAITING),
        Transition(Verb.CLAIM, POOL | _HELD, _HELD),
        Transition(
            Verb.DELIVER, _HELD, frozenset({State.SUCCEEDED, State.SUBMITTED, State.SCHEDULED, State.FAILED})
        ),
        Transition(Verb.FAIL, _HELD, frozenset({State.SCHEDULED, State.FAILED, State.CANCELLED})),
        Transition(Verb.RELEASE, _HELD, POOL),
        Transition(Verb.LAPSE, _HELD, frozenset({State.QUEUED, State.FAILED})),
        Transition(Verb.EXPIRE, WAITING | _HELD, frozenset({State.EXPIRED})),
        Transition(
            Verb.PROCESS,
            frozenset({State.SUBMITTED}),
            frozenset({State.SUCCEEDED, State.SUBMITTED, State.SCHEDULED, State.FAILED}),
        ),
        Transition(Verb.CANCEL, UNFINISHED, frozenset({State.CANCELLED})),
        Transition(Verb.RETRY, _ENDED, frozenset({State.QUEUED, State.SUBMITTED, State.BLOCKED})),
        Transition(Verb.REPLACE, POOL, POOL),
        Transition(Verb.RESCHEDULE, POOL, POOL),
        Transition(Verb.UNBLOCK, _BLOCKED, POOL | {State.SUBMITTED, State.CANCELLED}),
        Transition(Verb.BLOCK, POOL, _BLOCKED),
        Transition(Verb.ADMIT, _BLOCKED, POOL),
        Transition(Verb.AGREE, _BLOCKED, frozenset({State.SUCCEEDED, State.SUBMITTED, State.FAILED})),
        Transition(
            Verb.REVOKE,
            frozenset({State.SUCCEEDED, State.SUBMITTED}),
            frozenset({State.QUEUED, State.BLOCKED, State.CANCELLED}),
        ),
    )
}
