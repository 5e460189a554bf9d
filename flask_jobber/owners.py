"""What an app asks about the jobs of a thing."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from .core import owners, queries
from .core.store import Store

if t.TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy


class Owners:
    """What a Jobber knows of owners: the things that jobs are enqueued for."""

    if t.TYPE_CHECKING:
        db: SQLAlchemy
        Job: type[t.Any]

        def store(self) -> Store: ...

    def jobs_of(self, thing: t.Any) -> sa.Select[t.Any]:
        """Return a select of a thing's jobs by id, to be narrowed, or given to ``db.session.scalars``.

        :param thing: a mapped object, also one that was deleted; or its reference.
        :raises Invalid: when it can own no jobs.
        """
        reference = owners.reference(self.Job, thing)
        return sa.select(self.Job).where(self.Job.owner_ref == reference).order_by(self.Job.id)

    def count_of(self, thing: t.Any, *, state: str | t.Iterable[str] | None = None) -> int:
        """Count a thing's jobs.

        :param state: those in this state, or in one of these.
        :raises Invalid: when it can own no jobs, or there is no such state.
        """
        return queries.count_of(self.store(), owners.reference(self.Job, thing), state)

    def find_owner(self, reference: str) -> t.Any:
        """Return the thing of a reference, which signals tell, as its row is now; ``None`` when it is gone.

        :raises LookupError: when no class of this process has its table.
        """
        return owners.find(self.Job, self.db.session(), reference)
