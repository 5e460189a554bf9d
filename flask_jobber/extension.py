"""The one object that an app holds."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import logging
import threading
import time
import typing as t

import sqlalchemy as sa
from flask import Flask, current_app
from flask_login import user_logged_out
from flask_sqlalchemy import SQLAlchemy

from .api.blueprint import JobberBlueprint, make_blueprint
from .attachments import Attachments
from .batches import Batches
from .cli import add_commands
from .config import Settings, read_settings
from .core import cancel as cancel_verbs
from .core import claim as claim_verbs
from .core import expire as expire_verbs
from .core import hold, payload, settle
from .core import prune as prune_verbs
from .core.at_once import Delivery
from .core.backoff import Backoff, read_backoff
from .core.claim import Claims
from .core.files import Storage, make_storage
from .core.front import Fronts
from .core.models import (
    AttachmentMixin,
    HistoryMixin,
    JobMixin,
    KeyMixin,
    QueueMixin,
    make_companion,
    make_job,
)
from .core.news import News, hint
from .core.news import look as look_for_jobs
from .core.process import describe
from .core.queues import Queues
from .core.scope import EVERYTHING
from .core.states import State
from .core.store import Store
from .delayed.later import Later
from .delayed.performer import Performer
from .errors import Invalid, SetupError
from .hooks import AnySchema, Function, Registry
from .limits import Limits
from .owners import Owners
from .producer import Length, Producer
from .schedules import Schedules
from .trust import Trust
from .wakeup.choice import choose
from .wakeup.redis import find_broker
from .wakeup.wakeup import Wakeup
from .worker.handlers import Handlers

logger = logging.getLogger("flask_jobber")
F = t.TypeVar("F", bound=Function)


class Tidied(t.NamedTuple):
    """What a tidying did, in jobs."""

    processed: int
    expired: int
    pruned: int


@dataclasses.dataclass(slots=True)
class _State:
    """What a Jobber knows of one app."""

    settings: Settings
    storage: Storage
    wakeup: Wakeup
    next_tidy: float | None = None
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    fronts: Fronts = dataclasses.field(default_factory=Fronts)


class Jobber(Producer, Schedules, Owners, Attachments, Batches, Limits, Trust):
    """Hands an app's jobs to its logged-in users.

    :param db: the app's Flask-SQLAlchemy.
    :param job: the app's class of jobs; without one, a plain class with the table
        ``jobber_job`` is made.
    :param name: tells several Jobbers apart: name of the blueprint and prefix of the tables.
    :param bind_key: the Flask-SQLAlchemy bind of the tables that are made.
    :param volatile: for trifles: PostgreSQL empties the tables that are made when it crashes,
        and is quicker for it (``UNLOGGED``). They are ordinary ones elsewhere.
    :param fair_by: a column of jobs, as ``user_id``: who has few jobs there does not wait for who has
        many of the same type and priority.
    :param settings: override the app's ``JOBBER_`` configuration; keys without the prefix.

    One Jobber may serve several apps; it holds none of them. Hooks and processors belong
    to it. Its verbs for server code act on ``db.session``, in the caller's transaction,
    and never commit, but for :meth:`process_submitted` and :meth:`tidy`.
    """

    def __init__(
        self,
        db: SQLAlchemy,
        job: type[t.Any] | None = None,
        *,
        name: str = "jobber",
        bind_key: str | None = None,
        volatile: bool = False,
        fair_by: str | None = None,
        settings: t.Mapping[str, t.Any] | None = None,
    ) -> None:
        super().__init__()
        if job is not None and not issubclass(job, JobMixin):
            raise SetupError(f"Declare it with class {job.__name__}(JobMixin, db.Model).")
        if job is not None and bind_key is not None:
            raise SetupError("A class of your own says its bind itself: give it a __bind_key__.")
        if job is not None and volatile:
            raise SetupError("A class of your own makes its table itself; volatile=True is not for it.")
        metadata = db.metadatas.setdefault(bind_key, sa.MetaData(info={"bind_key": bind_key}))
        if job is None and f"{name}_job" in metadata.tables:
            raise SetupError(f"There is a table {name}_job already: give this Jobber another name=.")
        self.db = db
        self.name = name
        #: The mapped class of jobs.
        models = t.cast(t.Any, db.Model).registry
        self.Job: type[t.Any] = job or make_job(f"{name}_job", metadata, volatile=volatile, models=models)
        prefix = name if job is None else self.Job.__table__.name
        #: The mapped class of their history.
        self.History = make_companion(self.Job, HistoryMixin, "JobHistory", f"{prefix}_history")
        #: The mapped class of the keys of requests.
        self.IdempotencyKey = make_companion(
            self.Job, KeyMixin, "IdempotencyKey", f"{prefix}_idempotency_key"
        )
        #: The mapped class of declared queues.
        self.Queue = make_companion(self.Job, QueueMixin, "JobQueue", f"{prefix}_queue", lasting=True)
        #: Declares queues, changes, pauses, counts and empties them.
        self.queues = Queues(self.store)
        #: The mapped class of their attachments.
        self.Attachment = make_companion(self.Job, AttachmentMixin, "JobAttachment", f"{prefix}_attachment")
        self._make_batches(f"{prefix}_batch")
        self._set_up_limits(prefix, fair_by)
        self._make_locker(prefix)
        self.registry = Registry()
        #: What ``flask jobber work`` runs.
        self.handlers = Handlers()
        self._performer = Performer(self)
        self._statements: dict[t.Hashable, sa.Executable] = {}
        self._undeclared: set[str] = set()
        self._settings = dict(settings or {})
        self.blueprint: JobberBlueprint = make_blueprint(self)

    def init_app(self, app: Flask) -> None:
        """Read the settings of an app. Registering the blueprint does this too.

        :raises SetupError: for a bad setting, or a second Jobber of the same name.
        :raises ImportError: for a setting that needs an extra which is not there.
        """
        known = app.extensions.setdefault("jobber", {})
        if known.setdefault(self.name, self) is not self:
            raise SetupError(f"This app has a Jobber {self.name!r} already: give the second another name=.")
        states = app.extensions.setdefault("jobber_states", {})
        if self.name not in states:
            settings, folder = self._read_settings(app), self.Attachment.__table__.name
            storage = make_storage(settings.attachments_url, app.instance_path, folder)
            wakeup = self._make_wakeup(app, settings)
            states[self.name] = _State(settings, storage, wakeup)
            user_logged_out.connect(wakeup.see_off, app)  # for as long as the app lives
            add_commands(app)

    def _make_wakeup(self, app: Flask, settings: Settings) -> Wakeup:
        def look(everything: bool) -> tuple[News, float | None]:
            with app.app_context():
                return look_for_jobs(self.store(), everything=everything)

        broker = find_broker(settings.wakeup_url) if settings.wakeup_url else None
        return Wakeup(look, lambda: choose(self.store(), broker), settings.lease_seconds)

    def _read_settings(self, app: Flask) -> Settings:
        settings = read_settings(app.config, self._settings)
        return dataclasses.replace(settings, backoff=_backoff("JOBBER_BACKOFF", settings.backoff))

    def _state(self, app: Flask) -> _State:
        try:
            return t.cast(_State, app.extensions["jobber_states"][self.name])
        except KeyError:
            raise SetupError(
                f"The Jobber {self.name!r} does not know this app: register its blueprint, or init_app(app)."
            ) from None

    @property
    def settings(self) -> Settings:
        """The settings of the current app."""
        return self._here().settings

    @property
    def wakeup(self) -> Wakeup:
        """What the current app has for those who wait."""
        return self._here().wakeup

    def _here(self) -> _State:
        return self._state(current_app._get_current_object())  # type: ignore[attr-defined]

    def store(self) -> Store:
        """Return what the verbs of :mod:`flask_jobber.core` work on, in the current app."""
        session, here = self.db.session(), self._here()
        known = self.registry.types, self.registry.feedback
        tables = self.Job, self.History, self.Queue, self.IdempotencyKey, self.Locker
        found = (self._undeclared, self._statements)
        store = functools.partial(Store, session, *tables, here.settings, *known, self, *found)
        ours = self.Attachment, here.storage, here.wakeup, self.Batch, self._hurry(), self._rules
        return store(*ours, here.fronts)

    # -- what the app registers ------------------------------------------------------------

    def locker_name(self, function: F) -> F:
        """Register ``() -> str``: the identity that holds a job. Default: ``user_<id>``."""
        return self._hook("locker_name", function)

    def scope(self, function: F) -> F:
        """Register ``() -> scope``: which jobs this client may see. Default: every one.

        It returns a column expression, a list of them (all must hold), a mapping of
        column to value (a list means IN, ``None`` means IS NULL), ``True`` or ``False``.
        """
        return self._hook("scope", function)

    def permission(self, function: F) -> F:
        """Register ``(action, job) -> bool`` for enqueue, replace, cancel, retry, history and result.

        Without it all are denied.
        """
        return self._hook("permission", function)

    def _hook(self, name: str, function: F) -> F:
        self.registry.add_hook(name, _synchronous(function))
        return function

    def job_type(
        self,
        type: str,
        *,
        schema: AnySchema | None = None,
        data_schema: AnySchema | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """Say something about a type of work that needs no processor.

        :param schema: a marshmallow schema that results must fit.
        :param data_schema: one that the input must fit, checked at the producer.
        :param backoff: the back-off of jobs that have none of their own.
        """
        name = _own_type(type)
        backoff = None if backoff is None else _backoff(f"the type {name!r}", backoff)
        self.registry.add_type(name, schema=schema, data_schema=data_schema, backoff=backoff)

    def processor(
        self,
        type: str,
        *,
        schema: AnySchema | None = None,
        data_schema: AnySchema | None = None,
        backoff: Backoff | None = None,
    ) -> t.Callable[[F], F]:
        """Register ``(job, result) -> None``: what to do with a result, see :meth:`job_type`.

        It runs in the transaction of the state change and must not commit. It may raise
        :class:`~flask_jobber.errors.ResultRejected`; when it raises anything else, the
        result is kept and it is called again later.
        """
        self.job_type(type, schema=schema, data_schema=data_schema, backoff=backoff)
        return self._typed(type, "processor")

    def on_failure(self, type: str) -> t.Callable[[F], F]:
        """Register ``(job, error) -> None``, called once when a job of the type ends failed."""
        return self._typed(_own_type(type), "on_failure")

    def feedback(self, name: str) -> t.Callable[[F], F]:
        """Register ``(job, result)`` or ``(job, error)`` for the jobs that name it.

        As their ``on_success`` it is called like a :meth:`processor`, after that of the type;
        as their ``on_failure`` like :meth:`on_failure`.
        """
        payload.check_name("name", name)

        def register(function: F) -> F:
            self.registry.add_feedback(name, _synchronous(function))
            return function

        return register

    def _typed(self, type: str, what: str) -> t.Callable[[F], F]:
        def register(function: F) -> F:
            self.registry.add_type(type, **{what: _synchronous(function)})
            return function

        return register

    def performable(self, thing: t.Any = None, *, name: str | None = None) -> t.Any:
        """Declare a class, a function or a module, as a decorator too: jobs may name it.

        :param name: under which jobs keep it; ``module:name`` otherwise.
        :raises SetupError: when the name is taken.
        """
        if thing is None:
            return functools.partial(self.performable, name=name)
        return self._performer.names.declare(thing, name)

    @t.overload
    def later(self, function: t.Callable[..., t.Any], /) -> Later: ...

    @t.overload
    def later(self, /, **options: t.Any) -> t.Callable[[t.Callable[..., t.Any]], Later]: ...

    def later(self, function: t.Any = None, /, **options: t.Any) -> t.Any:
        """Make calls of a function or method enqueue a job and return it; ``.now(...)`` calls it.

        :param options: keywords of :meth:`enqueue`.
        """
        if function is None:
            return functools.partial(self._performer.later, options=options)
        return self._performer.later(function, options)

    # -- verbs for server code -------------------------------------------------------------

    def claim(
        self,
        locker: str,
        *,
        types: t.Sequence[str] | None = None,
        queues: t.Sequence[str] | None = None,
        limit: int = 1,
        lease_seconds: Length | None = None,
        min_priority: int | None = None,
        max_priority: int | None = None,
    ) -> Claims:
        """Hand out up to ``limit`` jobs to a locker, whatever the scope hook says.

        :param min_priority: of this priority at least; ``max_priority``: at most.
        :raises Invalid: for bad names, a limit or lease over its bound, or priorities out of order.
        :raises TooManyClaims: when the locker holds ``MAX_OPEN_CLAIMS``.
        """
        store = self.store()
        wanted = claim_verbs.want(
            store, locker, types=types, queues=queues, limit=limit, lease_seconds=_seconds(lease_seconds),
            min_priority=min_priority, max_priority=max_priority,
        )  # fmt: skip
        return claim_verbs.claim(store, wanted)

    def deliver(
        self,
        locker: str,
        job_id: int,
        attempt: int,
        result: t.Any = None,
        extras: dict[str, t.Any] | None = None,
    ) -> State:
        """Deliver a result; return the job's state then.

        :raises NotFound, LeaseLost, Cancelled, AlreadySettled: when the locker does not hold it.
        :raises InvalidResult, ResultRejected, Invalid, TooLarge: when it is not accepted. A
            rejection is a change like any other: commit it.
        """
        item = Delivery(job_id, attempt, result, extras)
        return t.cast(State, self._settle(settle.deliver, locker, item).state)

    def fail(
        self,
        locker: str,
        job_id: int,
        attempt: int,
        error: BaseException | t.Mapping[str, t.Any],
        *,
        permanent: bool = False,
        retry_seconds: Length | None = None,
        cancel: bool = False,
    ) -> State:
        """Report that the work failed; return the job's state then.

        :param error: an exception, or ``{type, message, traceback}``.
        :param permanent: end it ``failed`` now.
        :param cancel: end it ``cancelled``, with the error as the reason and no failure counted.
        :raises: as :meth:`deliver`.
        """
        said = describe(error) if isinstance(error, BaseException) else error
        item = settle.Failure(job_id, attempt, said, permanent, _seconds(retry_seconds), cancel)
        return t.cast(State, self._settle(settle.fail, locker, item).state)

    def extend(
        self,
        locker: str,
        job_id: int,
        attempt: int,
        *,
        lease_seconds: Length | None = None,
        progress: float | None = None,
        note: str | None = None,
    ) -> float:
        """Renew a lease from now; return its length in seconds. :raises: as :meth:`deliver`."""
        item = hold.Extension(job_id, attempt, _seconds(lease_seconds), progress, note)
        return t.cast(float, self._settle(hold.extend, locker, item).lease_seconds)

    def release(
        self, locker: str, job_id: int, attempt: int, *, delay_seconds: Length = 0, by: str | None = None
    ) -> None:
        """Give a job back unworked; ``by`` whom, when it is not its holder. :raises: as :meth:`deliver`."""
        item = hold.Release(job_id, attempt, _seconds(delay_seconds) or 0, _by(by))
        self._settle(hold.release, locker, item)

    def _settle(
        self, verb: t.Callable[..., list[hold.Outcome]], locker: str, item: hold.Item
    ) -> hold.Outcome:
        holder = hold.Holder(payload.check_locker(locker), EVERYTHING)
        outcome = verb(self.store(), holder, [item])[0]
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def cancel(self, job: t.Any, *, by: str | None = None) -> None:
        """End an unfinished job, or the one with this id.

        :param by: who does, for the history; at most 255 characters.
        :raises NotFound, IllegalTransition: when it cannot be.
        """
        cancel_verbs.cancel(self.store(), _id(job), EVERYTHING.expression, _by(by))

    def retry(self, job: t.Any, *, by: str | None = None) -> None:
        """Give an ended job, or the one with this id, another life.

        :param by: who does, for the history; at most 255 characters.
        :raises NotFound, IllegalTransition, QueueFull: when it cannot be.
        """
        cancel_verbs.retry(self.store(), _id(job), EVERYTHING.expression, _by(by))

    def wake(self) -> None:
        """Let those who wait look again when the transaction commits: what they may see has changed."""
        hint(self.store(), more=True)

    def expire(self, limit: int = 1000) -> int:
        """End jobs that are exhausted or past their ``expires_at``; return how many."""
        return expire_verbs.expire(self.store(), limit)

    def prune(self, limit: int = 1000, older_than: dt.timedelta | None = None) -> int:
        """Delete jobs that finished ``older_than`` ago (``KEEP_FINISHED_DAYS``); return how many."""
        return prune_verbs.prune(self.store(), limit, older_than)

    def process_submitted(self, limit: int = 100) -> int:
        """Call processors again on results they broke on; return how many were tried.

        Commits after each: a processor and the change of state are one transaction.
        """
        done = 0
        while done < limit and settle.process_one(self.store()):
            self.db.session.commit()
            done += 1
        self.db.session.commit()  # ends the transaction of the last look
        return done

    def tidy(self) -> Tidied:
        """Process some results, expire, prune, collect files and apply the schedules, committing each."""
        processed = self.process_submitted()
        expired = self.expire()
        self._tidy_seats()
        self.db.session.commit()
        self.tidy_batches()
        pruned = self.prune()
        self.db.session.commit()
        self.collect_orphans()
        self.apply_schedules()
        return Tidied(processed, expired, pruned)

    def tidy_soon(self) -> None:
        """Tidy in a thread of its own if the last time is ``TIDY_SECONDS`` ago.

        Called after each request: the answer does not wait for it, nor does it depend on
        when the client reads the answer.
        """
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        state = self._state(app)
        if self._is_due(state):
            threading.Thread(target=self._tidy_in, args=(app,), name="jobber-tidy", daemon=True).start()

    def _is_due(self, state: _State) -> bool:
        period, now = state.settings.tidy_seconds, time.monotonic()
        with state.lock:
            first, due = state.next_tidy is None, state.next_tidy is not None and now >= state.next_tidy
            if first or due:
                state.next_tidy = now + period
        return due and period > 0

    def _tidy_in(self, app: Flask) -> None:
        with app.app_context():
            try:
                self.tidy()
            except Exception:
                logger.exception("tidying failed", extra={"action": "tidy"})


def _own_type(type_: str) -> str:
    """Return the name of a type of the app's. :raises SetupError: for one that is reserved."""
    try:
        return payload.check_unreserved("type", payload.check_name("type", type_))
    except Invalid as error:
        if str(type_).startswith(payload.RESERVED):
            raise SetupError(
                f"Types that begin with {payload.RESERVED} are reserved: not {type_!r}."
            ) from error
        raise


def _backoff(where: str, value: t.Any) -> Backoff:
    try:
        return read_backoff(value)
    except ValueError as error:
        raise SetupError(f"{where}: {error}") from error


def _synchronous(function: Function) -> Function:
    """Let an ``async def`` stand wherever a plain function may."""

    @functools.wraps(function)
    def call(*args: t.Any) -> t.Any:
        return current_app.ensure_sync(function)(*args)

    return call


def _seconds(length: Length | None) -> float | None:
    return length.total_seconds() if isinstance(length, dt.timedelta) else length


def _by(name: str | None) -> str | None:
    return None if name is None else payload.check_key("by", name, payload.MAX_LOCKER)


def _id(job: t.Any) -> int:
    return job if isinstance(job, int) else t.cast(int, job.id)
