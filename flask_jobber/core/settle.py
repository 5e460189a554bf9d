"""Deliver and fail: how a hand-out ends. And results whose processor broke."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import typing as t

import sqlalchemy as sa

from ..errors import InvalidResult, NotFound, ResultRejected
from . import at_once, batches, trust
from .at_once import Delivery, Done
from .engines import utcnow
from .hold import (
    Decision,
    Holder,
    Item,
    Outcome,
    Row,
    change_of,
    finish,
    followed,
    refusal,
    settle,
)
from .lockers import login_of
from .payload import canonical, check_error, check_seconds
from .process import call_processor, check_answer, describe, has_say
from .states import State, Verb
from .store import Store
from .transition import UNHELD, Change

logger = logging.getLogger("flask_jobber")


def deliver(store: Store, holder: Holder, items: t.Sequence[Delivery]) -> list[Outcome]:
    """Take results and call their processors.

    A result that was delivered before by its holder gets the answer that is true now, and
    no second processing.
    """
    results = at_once.read(store, holder, items)
    done = at_once.deliver(store, results) if results is not None else Done()
    return deliver_others(store, holder, items, done)


def deliver_others(store: Store, holder: Holder, items: t.Sequence[Delivery], done: Done) -> list[Outcome]:
    """Take those that are not done yet; return the outcomes of all."""
    rest = [item for item in items if (item.job_id, item.attempt) not in done]
    originals = set[int]()

    def decide(store: Store, row: Row, item: Delivery) -> Decision:
        if row.copy_of is None:
            return _deliver(store, row, item)
        originals.add(row.copy_of)
        return _answer(store, row, item)

    others = iter(settle(store, holder, rest, decide, _repeat) if rest else ())
    for original in sorted(originals):
        _agree(store, original)
    return [done[key] if (key := (item.job_id, item.attempt)) in done else next(others) for item in items]


def _deliver(store: Store, row: Row, item: Delivery) -> Decision:
    verdict = _process(store, row, item.result, item.extras)
    if isinstance(verdict, InvalidResult):
        return Outcome(item, error=verdict), None
    if isinstance(verdict, ResultRejected):
        return _reject(store, row, item, verdict)
    kept = {"result": item.result, "extras": item.extras, "locked_until": None, "lease_seconds": None}
    state, values = (State.SUCCEEDED, ended(row.now)) if verdict is None else _again(store, row, 1)
    error = None if verdict is None else describe(verdict)
    return Outcome(item, state), change_of(row, Verb.DELIVER, state, item, kept | values, error)


def _answer(store: Store, row: Row, item: Delivery) -> Decision:
    """Keep the result of a copy, which no processor gets before others agree with it."""
    verdict = check_answer(store, row, item.result)
    if isinstance(verdict, InvalidResult):
        return Outcome(item, error=verdict), None
    kept = {"result": item.result, "extras": item.extras, "locked_until": None, "lease_seconds": None}
    values = kept | ended(row.now)
    return Outcome(item, State.SUCCEEDED), change_of(row, Verb.DELIVER, State.SUCCEEDED, item, values)


def _agree(store: Store, original: int) -> None:
    """Process the result of which enough have agreed, once; what is rejected was agreed all the same."""
    found = trust.agreed(store, original)
    if found is None:
        return
    row, result, extras = found
    verdict = _process(store, t.cast(Row, row), result, extras)
    state, values, error = State.SUCCEEDED, ended(row.now), None
    if isinstance(verdict, InvalidResult | ResultRejected):
        state, error = State.FAILED, describe(verdict)
    elif verdict is not None:
        state, values = _again(store, t.cast(Row, row), 1)
        error = describe(verdict)
    kept = {"result": result, "extras": extras, **values} if state is not State.FAILED else values
    change = Change(Verb.AGREE, row.id, State.BLOCKED, state, row.attempts, None, error, kept)
    finish(store, [change], {row.id: row})


def _again(store: Store, row: Row, calls: int) -> tuple[State, dict[str, t.Any]]:
    """Return where a result goes whose processor has broken so often."""
    if calls >= store.settings.processor_attempts:
        return State.FAILED, ended(row.now)
    return State.SUBMITTED, {"run_at": later(store, row, calls)}


def _process(store: Store, row: Row, result: t.Any, extras: t.Any) -> Exception | None:
    """Run a result through its type's schema and processor and its feedback; return what they raised."""
    if not has_say(store, row):
        return None
    verdict = call_processor(store, row, result, extras)
    accounted = verdict is None or isinstance(verdict, InvalidResult | ResultRejected)
    return verdict if accounted else _broken(row, t.cast(Exception, verdict))


def _broken(row: Row, error: Exception) -> Exception:
    logger.error(
        "a processor broke; its result is kept",
        exc_info=error,
        extra={"action": "process", "job_id": row.id, "attempt": row.attempts},
    )
    return error


def _reject(store: Store, row: Row, item: Item, verdict: ResultRejected) -> Decision:
    if verdict.then == "correct":
        return Outcome(item, State.LOCKED, error=verdict), None
    change = _rejection(store, row, verdict, Verb.DELIVER, State.LOCKED)
    if change.to_state is State.FAILED:
        verdict.then = "failed"
    return Outcome(item, change.to_state, error=verdict), change


def _rejection(store: Store, row: Row, verdict: ResultRejected, verb: Verb, was: State) -> Change:
    error = {"type": "ResultRejected", "message": describe(verdict)["message"], "traceback": None}
    state, values = _failed_once(store, row)
    if verdict.then == "exclude":
        values["not_for"] = sorted({*(row.not_for or ()), login_of(row.locked_by)})
    return Change(verb, row.id, was, state, row.attempts, row.locked_by, error, values)


def _failed_once(
    store: Store, row: Row, *, least: float = 0, permanent: bool = False
) -> tuple[State, dict[str, t.Any]]:
    """Return where one more failure leads, and what it writes."""
    failures = row.failures + 1
    values = dict(UNHELD) | {"failures": failures}
    if permanent or failures >= row.max_attempts:
        return State.FAILED, values | ended(row.now)
    return State.SCHEDULED, values | {"run_at": later(store, row, failures, least)}


def later(store: Store, row: Row, failures: int, least: float = 0) -> dt.datetime:
    """Return the instant after the back-off, which is at least so many seconds, capped."""
    cap = store.settings.max_backoff_seconds
    seconds = max(store.backoff(row.type, row.backoff).delay(failures, cap), min(least, cap))
    return t.cast(dt.datetime, row.now + dt.timedelta(seconds=seconds))


def ended(now: dt.datetime) -> dict[str, t.Any]:
    """Return what the end of a job writes; its unique_key and its seat are free again."""
    return {"finished_at": now, "unique_key": None, "seated": None}


def _repeat(store: Store, holder: Holder, item: Delivery) -> Outcome:
    error, row = refusal(store, holder, item)
    if row is None or canonical([row.result, row.extras]) != canonical([item.result, item.extras]):
        return Outcome(item, error=error)
    return Outcome(item, State(row.state))


@dataclasses.dataclass(frozen=True, slots=True)
class Failure(Item):
    """What went wrong: ``{type, message, traceback}``.

    :param permanent: trying again is no use.
    :param retry_seconds: a lower bound on the back-off.
    :param cancel: nobody is to do the job: it ends cancelled, with the error as the reason.
    """

    error: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    permanent: bool = False
    retry_seconds: float | None = None
    cancel: bool = False

    def check(self, store: Store) -> None:
        check_error(self.error)
        if self.retry_seconds is not None:
            check_seconds("retry_seconds", self.retry_seconds, float("1e9"), zero=True)


def fail(store: Store, holder: Holder, items: t.Sequence[Failure]) -> list[Outcome]:
    """Take failures: back into the pool after a back-off, or to the end."""
    return settle(store, holder, items, _fail, _repeat_failure)


def _fail(store: Store, row: Row, item: Failure) -> Decision:
    if item.cancel and store.settings.trust_failures:
        return _call_off(row, item)
    permanent = item.permanent and store.settings.trust_failures
    state, values = _failed_once(store, row, least=item.retry_seconds or 0, permanent=permanent)
    change = change_of(row, Verb.FAIL, state, item, values, check_error(item.error))
    return Outcome(item, state, run_at=values.get("run_at")), change


def _call_off(row: Row, item: Failure) -> Decision:
    # Who held it stays, as when an operator cancels: told again, it hears "cancelled".
    values = ended(row.now) | {"locked_until": None, "lease_seconds": None}
    change = change_of(row, Verb.FAIL, State.CANCELLED, item, values, check_error(item.error))
    return Outcome(item, State.CANCELLED), change


def _repeat_failure(store: Store, holder: Holder, item: Failure) -> Outcome:
    """Count the same failure once: the second gets the answer that is true now."""
    error, _ = refusal(store, holder, item)
    h, c = store.history.c, store.jobs.c
    reported = (
        sa.select(c.state, c.run_at, h.error)
        .join_from(store.history, store.jobs, c.id == h.job_id)
        .where(c.id == item.job_id, c.attempts == item.attempt)
        .where(h.attempt == item.attempt, h.locker == holder.locker, h.reason == Verb.FAIL.value)
        .where(h.from_state == State.LOCKED.value)
    )
    # Out of scope it is not found.
    row = store.execute(store.current(reported)).first() if not isinstance(error, NotFound) else None
    if row is None or row.error != check_error(item.error) or row.state == State.CANCELLED:
        return Outcome(item, error=error)
    return Outcome(item, State(row.state), run_at=row.run_at if row.state == State.SCHEDULED else None)


def process_one(store: Store) -> bool:
    """Run the processor of one submitted result that is due; return whether there was one."""
    row = _next_submitted(store)
    if row is None:
        return False
    # What was never handed out, nor were copies of it, is a batch.
    is_batch = not row.attempts and not row.asked
    verdict = _process_batch(store, row) if is_batch else _process(store, row, row.result, row.extras)
    change = _settle_submitted(store, row, verdict)
    finish(store, [change], {row.id: row})
    if change.to_state is State.FAILED and is_batch:
        batches.after_failure(store, change)
    return True


def _process_batch(store: Store, row: Row) -> Exception | None:
    verdict = batches.process(store, row)
    return verdict if verdict is None or isinstance(verdict, batches.MembersFailed) else _broken(row, verdict)


def _next_submitted(store: Store) -> Row | None:
    c = store.jobs.c
    due = (c.state == sa.literal_column(f"'{State.SUBMITTED}'"), c.run_at <= utcnow())
    columns = (
        c.state, c.attempts, c.failures, c.max_attempts, c.backoff, c.not_for, c.locked_by, c.result,
        c.extras, *followed(store), c.trust.is_not(sa.null()).label("asked"), utcnow().label("now"),
    )  # fmt: skip
    # Another process may have the first; each locks one, whichever is free.
    for job_id in (
        store.execute(sa.select(c.id).where(*due).order_by(c.run_at, c.id).limit(50)).scalars().all()
    ):
        rows = store.lock(columns, c.id == job_id, *due, skip_locked=True)
        if rows:
            return rows[0]
    return None


def _settle_submitted(store: Store, row: Row, verdict: Exception | None) -> Change:
    was, to = State.SUBMITTED, State.SUCCEEDED
    values: dict[str, t.Any] = ended(row.now)
    if verdict is None:
        return Change(Verb.PROCESS, row.id, was, to, row.attempts, row.locked_by, None, values)
    if isinstance(verdict, ResultRejected) and row.asked:  # nobody holds it, or could do it again alone
        values |= {"result": sa.null(), "extras": None}
        return Change(Verb.PROCESS, row.id, was, State.FAILED, row.attempts, None, describe(verdict), values)
    if isinstance(verdict, ResultRejected):
        release = ResultRejected(verdict.reason)
        change = _rejection(store, row, release, Verb.PROCESS, was)
        return dataclasses.replace(change, values=change.values | {"result": sa.null(), "extras": None})
    final = isinstance(verdict, batches.MembersFailed)
    to, values = (State.FAILED, values) if final else _again(store, row, _calls(store, row) + 1)
    return Change(Verb.PROCESS, row.id, was, to, row.attempts, row.locked_by, describe(verdict), values)


def _calls(store: Store, row: Row) -> int:
    """Return how often the processor has broken on this result since the operator's last retry."""
    h = store.history.c
    retried = sa.select(sa.func.max(h.id)).where(h.job_id == row.id, h.reason == Verb.RETRY.value)
    broken = sa.select(sa.func.count()).where(
        h.job_id == row.id,
        h.to_state == State.SUBMITTED.value,
        h.reason.not_in([Verb.RETRY.value, Verb.UNBLOCK.value]),
        h.attempt == row.attempts,
        h.id > sa.func.coalesce(retried.scalar_subquery(), 0),
    )
    return t.cast(int, store.execute(store.current(broken)).scalar_one())
