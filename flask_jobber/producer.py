"""How the app's own code enqueues."""

from __future__ import annotations

import datetime as dt
import typing as t

from .core import chains
from .core.attachments import Content
from .core.backoff import Backoff
from .core.cadence import Every
from .core.store import Store
from .core.unique import Conflict
from .delayed.later import Delay

if t.TYPE_CHECKING:
    from .delayed.performer import Performer

#: Seconds.
Length = float | dt.timedelta


class Producer:
    """What a Jobber does for those who have work to be done."""

    if t.TYPE_CHECKING:
        _performer: Performer

        def store(self) -> Store: ...

        def _attaching(
            self, contents: t.Mapping[str, Content], on_conflict: str | None
        ) -> t.ContextManager[t.Callable[[t.Any], t.Any]]: ...

    def enqueue(
        self,
        type: t.Any,
        data: t.Any = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        run_at: dt.datetime | None = None,
        after: Length | None = None,
        expires_at: dt.datetime | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | t.Mapping[str, t.Any] | str | None = None,
        lease_for: Length | None = None,
        unique_key: str | None = None,
        on_conflict: Conflict | None = None,
        concurrency_key: str | None = None,
        only_for: str | None = None,
        only_for_seconds: Length | None = None,
        not_for: str | t.Iterable[str] | None = None,
        on_success: str | None = None,
        on_failure: str | None = None,
        every: Every | None = None,
        repeat_after_success: Length | None = None,
        repeat_after_failure: Length | None = None,
        owner: t.Any = None,
        attachments: t.Mapping[str, Content] | None = None,
        **columns: t.Any,
    ) -> t.Any:
        """Add a job to the caller's transaction and return it, flushed.

        :param type: what kind of work, ``[A-Za-z0-9_.:-]{1,100}`` like ``queue``; or, without data,
            an object of a declared class (:meth:`performable`) that has ``perform()``.
        :param data: JSON.
        :param queue: ``default`` otherwise.
        :param priority: higher runs first; its queue's or 0 otherwise.
        :param run_at: not before this instant (an aware datetime), or ``after`` a length.
        :param expires_at: an instant after which nobody need begin.
        :param max_attempts: failures that end it; ``MAX_ATTEMPTS`` otherwise.
        :param backoff: its own back-off; its type's or ``BACKOFF`` otherwise.
        :param lease_for: the lease it wants; its queue's or ``LEASE_SECONDS`` otherwise.
        :param unique_key: taken until the job ends.
        :param on_conflict: what becomes of the job that has it, which is then returned: ``skip`` leaves it,
            ``replace`` gives it this one's content, ``reschedule`` its time; ``raise`` otherwise.
        :param concurrency_key: so many jobs of it at once as :meth:`limit` says, else one.
        :param only_for: the one locker, login or node that may have it; ``not_for``: those
            that may not.
        :param only_for_seconds: so long after it is due others may have it too.
        :param on_success: the :meth:`feedback` that gets its result; ``on_failure``: its error.
        :param every: run it again and again, see :meth:`schedule`; this one has no name.
        :param repeat_after_success: make another one so long after it succeeded, and so on;
            ``repeat_after_failure``: after it failed or expired.
        :param owner: the thing it is for, a mapped object, see :meth:`jobs_of`.
        :param attachments: files by their names: bytes, paths or open files, see :meth:`attach`.
        :param columns: the app's own columns; ``batch``, ``then``, ``wait_for`` and ``if_failed``, which
            link it to other jobs, see :meth:`batch`; and ``results_wanted``, ``agreement``,
            ``max_results`` and ``adaptive``: it wants the results of several logins, see ``docs/trust.md``.

        Lengths are seconds or timedeltas.

        :raises Invalid, TooLarge: for input that is not what it must be.
        :raises DuplicateJob: when the ``unique_key`` is taken, or by a job that has been begun and so
            cannot be changed; the transaction goes on.
        :raises QueueFull: when its queue has no room; the transaction goes on.
        """
        own = {
            "queue": queue, "priority": priority, "run_at": run_at, "after": after, "expires_at": expires_at,
            "max_attempts": max_attempts, "backoff": backoff, "lease_for": lease_for,
            "unique_key": unique_key, "on_conflict": on_conflict, "only_for": only_for,
            "only_for_seconds": only_for_seconds, "not_for": not_for, "on_success": on_success,
            "on_failure": on_failure, "every": every, "repeat_after_success": repeat_after_success,
            "repeat_after_failure": repeat_after_failure, "owner": owner, "concurrency_key": concurrency_key,
        }  # fmt: skip
        with self._attaching(attachments or {}, on_conflict) as attach:
            if data is None and type is not None and not isinstance(type, str):
                return attach(self._performer.enqueue(type, {**columns, **own}))
            return attach(self.enqueue_many([{**columns, **own, "type": type, "data": data}])[0])

    def enqueue_many(self, specs: t.Iterable[t.Mapping[str, t.Any]]) -> list[t.Any]:
        """Add many jobs at once, all or none; each a mapping of :meth:`enqueue`'s arguments."""
        return list(chains.enqueue(self.store(), specs))

    def send_later(self, function: t.Callable[..., t.Any], *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Enqueue a call of a declared function, or of a method of an object, see :meth:`delay`."""
        return self._performer.send(function, None, args, kwargs, {})

    def delay(self, target: t.Any, **options: t.Any) -> Delay:
        """Return what stands for ``target``: calling a public method of it enqueues that call.

        :param target: a mapped object, an object of a declared class, or a declared class or module.
        :param options: keywords of :meth:`enqueue`.
        """
        return self._performer.delay(target, options)
