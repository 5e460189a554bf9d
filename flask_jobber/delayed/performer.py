"""Objects and functions as jobs: enqueued as calls, run by a handler of a reserved type."""

from __future__ import annotations

import inspect
import logging
import typing as t

import sqlalchemy as sa
from flask import current_app

from ..core import enqueue as enqueue_verbs
from ..core import payload
from ..core.lanes import Lanes
from ..core.models import JobMixin
from ..errors import Invalid, TooLarge
from ..worker.handlers import Handler, Verdict
from .calls import Call, Codec, call_of, options_of
from .later import Delay, Later
from .names import Names
from .tags import Serializer

if t.TYPE_CHECKING:
    from ..extension import Jobber
    from ..worker.job import Job

logger = logging.getLogger("flask_jobber")
#: The type of these jobs.
PERFORM = f"{payload.RESERVED}perform"
# Where a job carries its call, for its errbacks.
_CALL = "_call"
# A century is a mistake in the unit.
_MOST_SECONDS = 100 * 365.25 * 86_400
#: What a class may say of its jobs, as attributes, properties or methods.
_OPTIONS = ("queue", "priority", "max_attempts", "backoff")


class Performer:
    """What of a Jobber enqueues objects and calls, and runs them.

    :param jobber: it gets the handler of the type, and what is to be done when a job fails.
    """

    def __init__(self, jobber: Jobber) -> None:
        self._jobber = jobber
        self.names = Names(jobber.db)
        self._codec = Codec(Serializer(self.names, jobber.db))
        handler = Handler(PERFORM, self._perform, max_run_seconds=_limit)
        handler.errback(self._tell_error)
        jobber.handlers.add(handler)
        jobber.registry.add_type(PERFORM, on_failure=self._tell_failure)

    # -- at the producer -------------------------------------------------------------------

    def enqueue(self, thing: t.Any, options: t.Mapping[str, t.Any]) -> JobMixin:
        """Enqueue an object that has ``perform()``; see :meth:`flask_jobber.Jobber.enqueue`."""
        if not _performs(thing):
            said = f"This is a name, or an object that has perform(), not {type(thing).__qualname__}."
            raise Invalid({"type": [said]})
        return self._insert(Call(thing, "perform"), options)

    def build(self, thing: t.Any, options: t.Mapping[str, t.Any]) -> JobMixin:
        """Return an unsaved job that asks an object to perform, or calls a function or method."""
        call = Call(thing, "perform") if _performs(thing) else call_of(thing, None, (), {})
        return self._build(call, options)

    def send(
        self,
        target: t.Any,
        method: str | None,
        args: tuple[t.Any, ...],
        kwargs: dict[str, t.Any],
        options: t.Mapping[str, t.Any],
    ) -> JobMixin:
        """Enqueue a call of a function, or of a method of an object, module or class."""
        return self._insert(call_of(target, method, args, kwargs), options)

    def delay(self, target: t.Any, options: t.Mapping[str, t.Any]) -> Delay:
        """Return what enqueues calls of a target's methods."""
        return Delay(target, options, self.send)

    def later(self, function: t.Any, options: t.Mapping[str, t.Any]) -> Later:
        """Declare a function or method that enqueues calls of itself."""
        return self.names.declare(Later(function, options, self.send))

    def _insert(self, call: Call, options: t.Mapping[str, t.Any]) -> JobMixin:
        lanes = Lanes(self._jobber.store())
        return enqueue_verbs.insert(self._jobber.store(), [self._build(call, options, lanes)], lanes)[0]

    def _build(self, call: Call, options: t.Mapping[str, t.Any], lanes: Lanes | None = None) -> JobMixin:
        call.check()
        spec = options_of(call) | _given(options)
        store, data = self._jobber.store(), self._codec.write(call)
        if call.performs:
            data |= _words(call.target)
            spec = _said(call.target, _OPTIONS) | spec
        spec = {**spec, "type": PERFORM, "data": data}
        job = enqueue_verbs.build(store, spec, store.now, lanes=lanes, reserved=True)
        _hook(call, "enqueue", job)
        return job

    # -- where the job runs ----------------------------------------------------------------

    def _perform(self, job: Job) -> t.Any:
        """Make a job's call, with its hooks. What it changes in the session is committed if it returns."""
        session = self._jobber.db.session
        call = self._codec.read(job.data)
        vars(job)[_CALL] = call  # with it, not here: an object that keeps its job would never go
        try:
            _hook(call, "before", job)
            result = call.run(current_app.ensure_sync)
            session.commit()
            _hook(call, "success", job)
        except BaseException:
            session.rollback()
            raise
        finally:
            _hook(call, "after", job)
            session.commit()
        return self._storable(result, job)

    def _storable(self, result: t.Any, job: Job) -> t.Any:
        """Return a result that is JSON, ``None`` for any other: the work is done, whatever it returned."""
        try:
            payload.check_json("result", result, self._jobber.settings.max_result_bytes)
        except (Invalid, TooLarge) as error:
            logger.info("a result is not kept: %s", error, extra={"action": "perform", "job_id": job.id})
            return None
        return result

    def _tell_error(self, job: Job, error: Exception) -> None:
        call = vars(job).get(_CALL)
        if call is not None:  # what cannot be read has no hooks
            _hook(call, "error", job, error)
            self._jobber.db.session.commit()

    def _tell_failure(self, job: t.Any, error: t.Any) -> None:
        """Call the hook for a job that ended failed, in the transaction that ends it."""
        try:
            call = self._codec.read(job.data)
        except Verdict as verdict:
            logger.info("no failure hook: %s", verdict, extra={"action": "on_failure", "job_id": job.id})
            return
        _hook(call, "failure", job)


def _performs(thing: t.Any) -> bool:
    return not isinstance(thing, type) and callable(getattr(thing, "perform", None))


def _words(thing: t.Any) -> dict[str, t.Any]:
    """Return what the data keeps of what an object says."""
    said = _said(thing, ("max_run_seconds", "display_name"))
    data: dict[str, t.Any] = {}
    if "display_name" in said:
        data["call"] = payload.check_text("display_name", said["display_name"], payload.MAX_NOTE)
    if "max_run_seconds" in said:
        length = payload.check_seconds("max_run_seconds", said["max_run_seconds"], _MOST_SECONDS)
        data["max_run_seconds"] = length
    return data


def _said(thing: t.Any, names: tuple[str, ...]) -> dict[str, t.Any]:
    """Return what an object says under some names; the columns of a mapped one are no options."""
    mapper = sa.inspect(type(thing), raiseerr=False)
    columns = () if mapper is None else mapper.attrs.keys()
    values = {name: getattr(thing, name, None) for name in names if name not in columns}
    return _given({name: value() if callable(value) else value for name, value in values.items()})


def _given(options: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {name: value for name, value in options.items() if value is not None}


def _hook(call: Call, name: str, *args: t.Any) -> None:
    """Call a hook of an object that performs, if it has it."""
    if call.performs and inspect.isroutine(hook := getattr(call.target, name, None)):
        current_app.ensure_sync(hook)(*args)


def _limit(job: Job) -> float | None:
    """Return the seconds that a job may run, as its object said when it was enqueued."""
    return job.data.get("max_run_seconds") if isinstance(job.data, dict) else None
