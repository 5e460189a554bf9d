"""Exchange: settle many and claim the next, in one round trip.

It is one transaction, unless it waits or settles copies of jobs that want several results.
"""

from __future__ import annotations

import dataclasses
import typing as t

from flask import Response
from marshmallow import Schema, ValidationError

from ..core import hold, rates, settle, trust
from ..core.at_once import Delivery
from ..core.claim import Claims
from ..core.exchange import Exchange
from ..errors import Invalid, JobberError, TooManyClaims
from . import schemas
from .call import Call, answer, status_of
from .operation import invalid, operation
from .problems import LoginRequired, document
from .schemas import wire_instant
from .views import take

Verb = t.Callable[..., list[hold.Outcome]]
_Items = list[hold.Item | hold.Outcome]


@dataclasses.dataclass(frozen=True, slots=True)
class _List:
    """One of the lists of an exchange.

    :param said: what is answered for an item that went well, and the status, as the
        single call would.
    """

    name: str
    body: Schema
    item: type[hold.Item]
    verb: Verb
    said: t.Callable[[hold.Outcome], dict[str, t.Any]]


def _said_of_failure(outcome: hold.Outcome) -> dict[str, t.Any]:
    run_at = None if outcome.run_at is None else wire_instant(outcome.run_at)
    return {"status": 200, "state": outcome.state, "run_at": run_at}


_LISTS = (
    _List(
        "results",
        schemas.ResultItem(),
        Delivery,
        settle.deliver,
        lambda outcome: {"status": status_of(outcome.state), "state": outcome.state},
    ),
    _List("failures", schemas.FailureItem(), settle.Failure, settle.fail, _said_of_failure),
    _List(
        "extensions",
        schemas.ExtensionItem(),
        hold.Extension,
        hold.extend,
        lambda outcome: {"status": 200, "lease_seconds": outcome.lease_seconds},
    ),
    _List("releases", schemas.ReleaseItem(), hold.Release, hold.release, lambda outcome: {"status": 204}),
)
_Loaded = list[tuple[_List, _Items]]
_PLAIN = frozenset({"id", "attempt", "result", "extras"})
_KEY = schemas.ResultItem(only=("id", "attempt"), unknown="exclude")
_claim_body = schemas.ClaimBody()


@operation("POST", "/exchange", body=schemas.ExchangeBody(), answers={200: schemas.Exchanged()}, large=True)
def exchange(call: Call, *, claim: dict[str, t.Any] | None = None, **given: list[t.Any]) -> Response:
    """Settle many and claim the next. One bad item spoils nothing else."""
    if claim is not None:
        rates.precede(call.store, call.holder.locker)
    loaded = [(kind, _load(call, kind, given.get(kind.name, []))) for kind in _LISTS]
    results = None if claim is None else _results_alone(call, loaded)
    first = loaded if results is None else []
    outcomes = [said for kind, items in first for said in _settle(call, kind, items)]
    if trust.has_locked(call.store):
        call.commit()
    claims, refused = _claim(call, claim, results)
    if results is not None:
        outcomes = list(_told(*loaded[0], results.settle()))
    if claim is None or refused:
        call.commit()
    body = {"outcomes": outcomes, "jobs": call.dump_claims(claims)}
    return answer(body | {"retry_after": call.idle_seconds(claims)} | refused)


def _load(call: Call, kind: _List, given: list[t.Any]) -> _Items:
    """Return each item, or the outcome of one that is not valid.

    :raises Invalid: for an item that does not say which job it is, or too many of them.
    """
    most = call.settings.max_claim
    if len(given) > most:
        raise Invalid({kind.name: [f"At most {most} items."]})
    return [_load_one(kind, place, values) for place, values in enumerate(given)]


def _load_one(kind: _List, place: int, values: dict[str, t.Any]) -> hold.Item | hold.Outcome:
    try:
        said = values if kind.item is Delivery and is_plain(values) else kind.body.load(values)
    except ValidationError as error:
        return hold.Outcome(_name(kind, place, values), error=invalid(error))
    return kind.item(said.pop("id"), said.pop("attempt"), **said)


def is_plain(values: dict[str, t.Any]) -> bool:
    """Whether a result is as :class:`.schemas.ResultItem` would load it.

    Of an exchange of 100 marshmallow took a third, for results that nearly always are.
    """
    extras = values.get("extras")
    return (
        type(values.get("id")) is type(values.get("attempt")) is int
        and (extras is None or type(extras) is dict)
        and values.keys() <= _PLAIN
    )


def _name(kind: _List, place: int, values: dict[str, t.Any]) -> hold.Item:
    try:
        key = _KEY.load(values)
    except ValidationError as error:
        raise Invalid({kind.name: {str(place): error.messages}}) from error
    return hold.Item(key["id"], key["attempt"])


def _results_alone(call: Call, loaded: _Loaded) -> Exchange | None:
    """Return the results, if there is nothing else to settle: the statement of the claim may do it."""
    (_, results), *others = loaded
    sound = [item for item in results if isinstance(item, Delivery)]
    return (
        Exchange(call.store, call.holder, sound) if sound and not any(items for _, items in others) else None
    )


def _settle(call: Call, kind: _List, items: _Items) -> t.Iterator[dict[str, t.Any]]:
    sound = [item for item in items if isinstance(item, hold.Item)]
    return _told(kind, items, kind.verb(call.store, call.holder, sound) if sound else ())


def _told(kind: _List, items: _Items, outcomes: t.Iterable[hold.Outcome]) -> t.Iterator[dict[str, t.Any]]:
    """Yield what is said of each item: of the sound ones what became of them."""
    settled = iter(outcomes)
    for item in items:
        outcome = item if isinstance(item, hold.Outcome) else next(settled)
        key = {"id": outcome.item.job_id, "attempt": outcome.item.attempt}
        yield key | (document(outcome.error) if outcome.error else kind.said(outcome))


def _claim(
    call: Call, wish: dict[str, t.Any] | None, results: Exchange | None
) -> tuple[Claims, dict[str, t.Any]]:
    """Claim what is asked for, and commit; a refusal is told beside the outcomes, which stand."""
    if wish is None:
        return Claims(), {}
    error: JobberError
    try:
        return take(call, results, **_claim_body.load(wish)), {}
    except ValidationError as wrong:
        error = invalid(wrong)
    except (Invalid, TooManyClaims, LoginRequired) as refused:
        error = refused
    return Claims(), {"claim": document(error)}
