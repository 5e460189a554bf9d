"""Work that is not taken on trust: what an app says about it, and does to those who deliver it."""

from __future__ import annotations

import datetime as dt
import typing as t

from .core import copies, enqueue, hold, lockers, payload, trust
from .core import revoke as revoke_verbs
from .core.lockers import Record
from .core.models import LockerMixin, make_companion
from .core.news import hint
from .core.store import Store
from .errors import Invalid
from .hooks import Function

F = t.TypeVar("F", bound=Function)


class Trust:
    """What a Jobber knows of agreement, gold and the records of logins."""

    if t.TYPE_CHECKING:
        Job: type[t.Any]

        def store(self) -> Store: ...

        def _typed(self, type: str, what: str) -> t.Callable[[F], F]: ...

    def _make_locker(self, prefix: str) -> None:
        #: The mapped class of the records of logins.
        self.Locker: type[LockerMixin] = make_companion(
            self.Job, LockerMixin, "JobLocker", f"{prefix}_locker", lasting=True
        )

    def agreement(self, type: str) -> t.Callable[[F], F]:
        """Register ``(one, other) -> bool``: whether two results of a type are the same.

        Default: equal JSON. For numbers that may differ a little: ``close_to(rel=…, abs=…)``.
        """
        return self._typed(type, "agreement")

    def on_revoked(self, type: str) -> t.Callable[[F], F]:
        """Register ``(job, result) -> None``: what undoes a result that is taken back.

        It runs in the transaction that opens the job again, before that; what it raises goes to
        whoever revokes.
        """
        return self._typed(type, "on_revoked")

    def gold(self, type: str, data: t.Any, answer: t.Any, **columns: t.Any) -> t.Any:
        """Keep a question whose answer is known, and return the job that keeps it; ``cancel`` ends its use.

        At ``GOLD_RATE`` it is mixed in beside jobs of its type that want several results.

        :param columns: the app's own columns, of the kept job alone.
        :raises Invalid, TooLarge: as :meth:`enqueue`.
        """
        store = self.store()
        payload.check_json("answer", answer, store.settings.max_result_bytes)
        spec = {**columns, "type": type, "data": data, "queue": trust.GOLD, "results_wanted": 1}
        job = enqueue.build(store, spec, store.now)
        job.trust, job.result = {"gold": True, "copies": []}, answer
        return enqueue.insert(store, [job])[0]

    def answers(self, job: t.Any) -> list[copies.Answer]:
        """Return the copies of a job, or of the one with this id, and what they brought, by id.

        :raises NotFound: when there is no such job.
        """
        return copies.answers(self.store(), job if isinstance(job, int) else job.id)

    def record(self, login: str) -> Record:
        """Return what is known of a login; an empty record if nothing is."""
        return lockers.read(self.store(), login)

    def lockers(self) -> list[Record]:
        """Return the records of all logins, by name."""
        return lockers.all_(self.store())

    def block(self, login: str) -> int:
        """Hand a login nothing any more, and take back what it holds; return how many jobs.

        What it has delivered stands: see :meth:`revoke`.
        """
        store = self.store()
        count = hold.take_back(store, login)
        lockers.set_blocked(store, _login(login), True)
        return count

    def unblock(self, login: str) -> None:
        """Hand a login jobs again."""
        store = self.store()
        lockers.set_blocked(store, _login(login), False)
        hint(store, more=True)  # it may be waiting

    def revoke(
        self, login: str, *, since: dt.datetime | None = None, until: dt.datetime | None = None
    ) -> int:
        """Take back what a login delivered from one moment to before another; return how many jobs.

        They are open again, for others. Of one with several results, what was agreed stands while
        enough others agree.

        :raises Invalid: for a moment without a time zone.
        """
        for name, moment in (("since", since), ("until", until)):
            if moment is not None:
                payload.check_instant(name, moment)
        return revoke_verbs.revoke(self.store(), _login(login), since, until)


def _login(name: str) -> str:
    """Return a login. :raises Invalid: for a name that is none; a client chooses that of its node."""
    payload.check_key("login", name, payload.MAX_LOCKER)
    if "/" in name:
        raise Invalid({"login": ["This is a login, without a node."]})
    return name
