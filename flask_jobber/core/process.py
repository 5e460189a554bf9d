"""Calling the app's code: processors and failure processors, each in a savepoint."""

from __future__ import annotations

import contextlib
import copy
import logging
import traceback
import typing as t

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.attributes import set_committed_value

from ..hooks import Function, JobType
from .engines import TransactionLost
from .models import JobMixin
from .payload import MAX_ERROR_MESSAGE, MAX_ERROR_TYPE, MAX_TRACEBACK
from .store import Store

_ENDINGS = ("commit", "rollback", "close", "reset", "invalidate")
_DEPTH = "jobber_calls"
logger = logging.getLogger("flask_jobber")


def describe(error: BaseException) -> dict[str, str | None]:
    """Return an exception as the history keeps it: ``{type, message, traceback}``, cut to length."""
    told = traceback.TracebackException.from_exception(error)  # copes with a broken __str__
    return {
        "type": type(error).__name__[:MAX_ERROR_TYPE],
        "message": storable(str(told))[:MAX_ERROR_MESSAGE],
        "traceback": storable("".join(told.format()))[-MAX_TRACEBACK:],
    }


def storable(text: str) -> str:
    """Return a text without what no engine keeps."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def has_say(store: Store, row: t.Any) -> bool:
    """Whether code of the app's may be called, or another job ended, when a hold of the job ends."""
    named = (row.on_success, row.on_failure, row.copy_of)
    return row.type in store.types or any(one is not None for one in named)


def call_processor(store: Store, row: t.Any, result: t.Any, extras: t.Any) -> Exception | None:
    """Run a result through its type's schema and processor and its job's feedback.

    What they raise is returned, their work undone. All get copies: what is stored is what
    was delivered.
    """
    known, calls = store.types.get(row.type) or JobType(), list[Function]()
    if known.processor is not None:
        calls.append(known.processor)
    if row.on_success is not None:
        calls.append(find_feedback(store, row.on_success))
    if not calls:
        return call(store, known.load_result, copy.deepcopy(result)) if known.schema else None
    job = load_job(store, row.id)
    # The processor may want what the client added; the row gets it with the result.
    set_committed_value(job, "extras", copy.deepcopy(extras))
    return call(store, _process, known, calls, job, result, (row.state, row.attempts))


def check_answer(store: Store, row: t.Any, result: t.Any) -> Exception | None:
    """Return what the type's schema has against a result that no processor gets yet."""
    known = store.types.get(row.type) or JobType()
    return call(store, known.load_result, copy.deepcopy(result)) if known.schema else None


def _process(
    known: JobType, calls: t.Sequence[Function], job: t.Any, result: t.Any, before: tuple[str, int]
) -> None:
    for function in calls:
        function(job, known.load_result(copy.deepcopy(result)))
        if (job.state, job.attempts) != before:
            raise RuntimeError(
                "A processor may not change the state of its job: raise ResultRejected instead."
            )


def find_feedback(store: Store, name: str) -> Function:
    """Return the app's feedback of a name, or what raises when this process has none."""

    def absent(*args: t.Any) -> t.NoReturn:
        raise LookupError(f"This process knows no feedback {name!r}: import the module that registers it.")

    return store.feedback.get(name, absent)


def call_on_failure(store: Store, row: t.Any, error: t.Any) -> t.Iterator[dict[str, t.Any]]:
    """Call a type's failure processor and a job's feedback; log and describe each that breaks."""
    known = store.types.get(row.type)
    calls = [known.on_failure] if known is not None and known.on_failure is not None else []
    if row.on_failure is not None:
        calls.append(find_feedback(store, row.on_failure))
    for function in calls:
        broken = call(store, function, load_job(store, row.id), error)
        if broken is not None:
            about = {"action": "on_failure", "job_id": row.id}
            logger.error("a failure processor broke", exc_info=broken, extra=about)
            yield describe(broken)


def load_job(store: Store, job_id: int) -> JobMixin:
    """Return the object of a job that this transaction has locked, as it is now."""
    job = store.session.get(store.Job, job_id, populate_existing=True, with_for_update=True)
    assert job is not None, "its row is locked by this transaction"
    return job


def call(store: Store, function: t.Callable[..., t.Any], *args: t.Any) -> Exception | None:
    """Call in a savepoint; return what was raised, all that was done undone."""
    with _marked(store) as mark:
        savepoint = store.session.begin_nested()
        try:
            with _kept_open(store.session):
                function(*args)
                store.session.flush()
            savepoint.commit()
        except Exception as error:
            _undo(store, savepoint, mark, error)
            return error
    return None


@contextlib.contextmanager
def _marked(store: Store) -> t.Iterator[str]:
    """Set a savepoint that the session knows nothing of; one processor may lead to another.

    The session takes its own for gone once an error has passed it, though the app's code
    may have caught that error.
    """
    depth = store.session.info.get(_DEPTH, 0)
    store.session.info[_DEPTH] = depth + 1
    mark = f"jobber_call_{depth}"
    try:
        store.connection.exec_driver_sql(f"SAVEPOINT {mark}")
        yield mark
        store.connection.exec_driver_sql(f"RELEASE SAVEPOINT {mark}")
    finally:
        store.session.info[_DEPTH] = depth


def _undo(store: Store, savepoint: SessionTransaction, mark: str, error: Exception) -> None:
    """Undo what a call has done. :raises TransactionLost: when all is undone, by a deadlock or worse."""
    try:
        savepoint.rollback()
        store.connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {mark}")
    except SQLAlchemyError:
        raise TransactionLost("The database has ended the transaction of a processor.") from error


@contextlib.contextmanager
def _kept_open(session: Session) -> t.Iterator[None]:
    """Refuse whatever ends the transaction: that is not for the app's code here."""

    def refuse(*args: t.Any) -> t.NoReturn:
        raise RuntimeError(
            "A processor may not commit, roll back or close the session: its work and the change"
            " of the job's state are one transaction. For work that may be undone use begin_nested()."
        )

    before = {name: session.__dict__[name] for name in _ENDINGS if name in session.__dict__}
    session.__dict__.update(dict.fromkeys(_ENDINGS, refuse))
    try:
        yield
    finally:
        for name in _ENDINGS:
            del session.__dict__[name]
        session.__dict__.update(before)  # another processor's, when one leads to another
