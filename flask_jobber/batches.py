"""Batches: jobs whose results belong together, and what the app does with them."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import typing as t
import weakref

from flask import Flask, current_app

from .core import batches as batch_verbs
from .core import cancel as cancel_verbs
from .core import chains, payload, tally
from .core.batches import Progress
from .core.models import BatchMixin, make_companion
from .core.scope import EVERYTHING
from .core.store import Store
from .errors import NotFound, SetupError

if t.TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

    from .hooks import Function, Registry

logger = logging.getLogger("flask_jobber")
F = t.TypeVar("F", bound="Function")
Result = tuple[t.Any, t.Any]
Policy = t.Literal["go_on", "cancel"]


class Batch:
    """A batch: a job of its own, which waits for its members.

    ``id``, ``type``, ``data`` and ``owner`` are those of its job.
    """

    def __init__(self, batches: Batches, batch_id: int) -> None:
        self._batches = batches
        self.id = batch_id

    @property
    def job(self) -> t.Any:
        """The object of its job, in the session."""
        return self._batches.db.session().get(self._batches.Job, self.id)

    @property
    def type(self) -> str:
        return t.cast(str, self.job.type)

    @property
    def data(self) -> t.Any:
        return self.job.data

    @property
    def owner(self) -> t.Any:
        return self.job.owner

    def enqueue(self, type: t.Any, data: t.Any = None, **spec: t.Any) -> t.Any:
        """Add a member to the caller's transaction, see :meth:`Jobber.enqueue`.

        :raises BatchEnded: when it waits no more.
        """
        return self._batches.enqueue(type, data, **spec, batch=self.id)

    def enqueue_many(self, type: str, data: t.Iterable[t.Any], **spec: t.Any) -> list[t.Any]:
        """Add a member for each of many data, in bulk, all or none; ``spec`` is said of all."""
        common = {**spec, "type": type, "batch": self.id}
        return self._batches.enqueue_many({**common, "data": one} for one in data)

    def batch(self, type: str, **spec: t.Any) -> contextlib.AbstractContextManager[Batch]:
        """Begin a batch within this one, which counts as one member of it."""
        return self._batches.batch(type, **spec, batch=self.id)

    def progress(self) -> Progress:
        """Return how far it is, as far as is committed: from counters, whatever its size."""
        return batch_verbs.progress(self._batches.store(), self.id)

    def results(self) -> t.Iterator[Result]:
        """Read the members that succeeded, by id, each with its result; a page at a time."""
        return batch_verbs.results(self._batches.store(), self.id)

    def close(self) -> None:
        """Say that the first members are there; leaving the ``with`` block does."""
        tally.close(self._batches.store(), self.id)

    def cancel(self, *, by: str | None = None) -> None:
        """End it, and cancel its members: a thousand now, the rest when the app tidies.

        :raises IllegalTransition: when it has ended.
        """
        by = None if by is None else payload.check_key("by", by, payload.MAX_LOCKER)
        cancel_verbs.cancel(self._batches.store(), self.id, EVERYTHING.expression, by)


class _Haste:
    """A thread that works when there is something to do, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = self._running = False

    def begin(self, work: t.Callable[[], None]) -> None:
        """Let the work be done once more, from its beginning."""
        with self._lock:
            self._wanted, running, self._running = True, self._running, True
        if not running:
            threading.Thread(target=self._run, args=(work,), name="jobber-batches", daemon=True).start()

    def _run(self, work: t.Callable[[], None]) -> None:
        while self._is_wanted():
            work()

    def _is_wanted(self) -> bool:
        with self._lock:
            self._running, self._wanted = self._wanted, False
            return self._running


class Batches:
    """What a Jobber knows of batches."""

    if t.TYPE_CHECKING:
        db: SQLAlchemy
        Job: type[t.Any]
        registry: Registry

        def store(self) -> Store: ...

        def _state(self, app: Flask) -> t.Any: ...

        def process_submitted(self, limit: int = 100) -> int: ...

        def enqueue(self, type: t.Any, data: t.Any = None, **spec: t.Any) -> t.Any: ...

        def enqueue_many(self, specs: t.Iterable[t.Mapping[str, t.Any]]) -> list[t.Any]: ...

    def _make_batches(self, tablename: str) -> None:
        #: The mapped class of what jobs that wait for others know of them.
        self.Batch: type[BatchMixin] = make_companion(self.Job, BatchMixin, "JobBatch", tablename)
        self._hastes: weakref.WeakKeyDictionary[Flask, _Haste] = weakref.WeakKeyDictionary()

    def _hurry(self) -> t.Callable[[], None]:
        """Return what lets the current app process what is submitted, soon and not in this thread."""
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        return functools.partial(self._process_soon, app)

    def _process_soon(self, app: Flask) -> None:
        if self._state(app).settings.tidy_seconds:
            self._hastes.setdefault(app, _Haste()).begin(functools.partial(self._process_in, app))

    def _process_in(self, app: Flask) -> None:
        with app.app_context():
            try:
                self.process_submitted()
                self.tidy_batches()
            except Exception:  # whoever tidies tries again
                logger.exception("batches were not processed", extra={"action": "process"})

    def batch_processor(self, type: str) -> t.Callable[[F], F]:
        """Register ``(batch, results) -> None``: what to do when the members of a batch have ended.

        ``results`` yields ``(job, result)`` for each that succeeded. It is called once when the
        last of them has ended, in the transaction in which the batch succeeds, and must not
        commit; when it raises, it is called again later, like a processor.
        """
        payload.check_unreserved("type", payload.check_name("type", type))

        def register(function: F) -> F:
            known = self.registry.types.get(type)
            if known is not None and known.takes_results:
                raise SetupError(f"The type {type!r} has a processor or a schema of results: name another.")
            self.registry.add_type(type, batch=functools.partial(self._process, function))
            return function

        return register

    def _process(self, function: Function, job: t.Any) -> None:
        batch = Batch(self, job.id)
        current_app.ensure_sync(function)(batch, batch.results())

    @contextlib.contextmanager
    def batch(
        self,
        type: str,
        data: t.Any = None,
        *,
        if_failed: Policy = "go_on",
        on_finish: str | None = None,
        **spec: t.Any,
    ) -> t.Iterator[Batch]:
        """Begin a batch in the caller's transaction; its first members are added in the block.

        :param type: of its job, which is never handed out, see :meth:`batch_processor`.
        :param if_failed: what a member means that failed, expired or was cancelled: ``go_on``, its
            processor is called with the results that there are; ``cancel``, the batch fails at
            once and the rest is cancelled.
        :param on_finish: the :meth:`feedback` that is called when it has succeeded or failed, with
            ``(job, error)``; ``on_success`` and ``on_failure`` for either alone.
        :param spec: further keywords of :meth:`enqueue`: ``owner``, ``batch`` (that it is a member
            of), the app's columns.

        :raises Invalid, TooLarge, BatchEnded: as :meth:`enqueue`.
        """
        counters = {"processed": True, "if_failed": if_failed, "on_finish": on_finish, "open": True}
        job = chains.begin(self.store(), {**spec, "type": type, "data": data}, **counters)
        batch = Batch(self, job.id)
        yield batch
        batch.close()

    def find_batch(self, batch: t.Any) -> Batch:
        """Return a batch by its id or its job, also to add to it. :raises NotFound: when there is none."""
        batch_id = payload.check_reference("batch", batch)
        if not batch_verbs.is_batch(self.store(), batch_id):
            raise NotFound
        return Batch(self, batch_id)

    def tidy_batches(self) -> None:
        """Cancel the members that are left of batches that have ended, committing some at a time."""
        for batch_id in batch_verbs.to_be_swept(self.store()):
            while batch_verbs.sweep(self.store(), batch_id):
                self.db.session.commit()
        self.db.session.commit()
