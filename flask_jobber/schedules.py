"""The series that an app declares, in code or while it runs."""

from __future__ import annotations

import typing as t

from flask import has_app_context

from .core import payload
from .core import schedule as schedule_verbs
from .core.cadence import Every
from .core.store import Store
from .errors import SetupError

if t.TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy


class Schedules:
    """What a Jobber knows of series."""

    if t.TYPE_CHECKING:
        db: SQLAlchemy

        def store(self) -> Store: ...

    def __init__(self) -> None:
        self._declared: dict[str, dict[str, t.Any]] = {}

    def schedule(self, name: str, type: str, data: t.Any = None, *, every: Every, **spec: t.Any) -> None:
        """Declare a series: a job that runs again and again, never twice for one slot.

        Within an app's context it is made in the caller's transaction, or changed, if it is
        declared otherwise than before. Without one, as when a module is imported, it is
        remembered for :meth:`apply_schedules`.

        :param name: of the series; ``[A-Za-z0-9_.:-]{1,100}``.
        :param every: seconds, a timedelta, a cron line in UTC, or a :class:`Cron`.
        :param spec: further arguments of :meth:`Jobber.enqueue`.
        :raises Invalid, TooLarge: for arguments that are not what they must be.
        :raises SetupError: when code has declared another series with this name.
        """
        spec |= {"type": type, "data": data, "every": every}
        if has_app_context():
            schedule_verbs.declare(self.store(), name, spec)
        elif self._declared.setdefault(payload.check_name("name", name), spec) != spec:
            raise SetupError(f"There is another schedule {name!r} already.")

    def apply_schedules(self) -> None:
        """Make or change the series that code has declared, committing each.

        Those that were ended on purpose stay ended, until they are declared otherwise.
        """
        for name, spec in self._declared.items():
            schedule_verbs.declare(self.store(), name, spec, revive=False)
            self.db.session.commit()

    def unschedule(self, name: str) -> bool:
        """End a series, and return whether there was one.

        Its waiting job is cancelled; one that is being worked on is its last.
        """
        self._declared.pop(name, None)
        return schedule_verbs.end(self.store(), name)
