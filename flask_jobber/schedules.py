"""The series that an app declares, in code or while it runs."""

from __future__ import annotations

import logging
import typing as t

from flask import has_app_context

from .core import enqueue as enqueue_verbs
from .core import payload
from .core import schedule as schedule_verbs
from .core.cadence import Every
from .core.models import JobMixin
from .core.store import Store
from .errors import JobberError, QueueFull, SetupError

if t.TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

    from .delayed.performer import Performer

logger = logging.getLogger("flask_jobber")


class Schedules:
    """What a Jobber knows of series."""

    if t.TYPE_CHECKING:
        db: SQLAlchemy
        _performer: Performer

        def store(self) -> Store: ...

    def __init__(self) -> None:
        self._declared: dict[str, tuple[t.Any, t.Any, dict[str, t.Any]]] = {}

    def schedule(self, name: str, type: t.Any, data: t.Any = None, *, every: Every, **spec: t.Any) -> None:
        """Declare a series: a job that runs again and again, never twice for one slot.

        Within an app's context it is made in the caller's transaction, or changed, if it is
        declared otherwise than before. Without one, as when a module is imported, it is
        remembered for :meth:`apply_schedules`.

        :param name: of the series; ``[A-Za-z0-9_.:-]{1,100}``.
        :param type: as of :meth:`Jobber.enqueue`; or a declared function or a method, which is called
            without arguments.
        :param every: seconds, a timedelta, a cron line in UTC, or a :class:`Cron`.
        :param spec: further arguments of :meth:`Jobber.enqueue`.
        :raises Invalid, TooLarge: for arguments that are not what they must be.
        :raises QueueFull: when it is to begin, and its queue has no room.
        :raises SetupError: when code has declared another series with this name.
        """
        declared = (type, data, {**spec, "every": every})
        if has_app_context():
            schedule_verbs.declare(self.store(), name, self._build(*declared))
        elif self._declared.setdefault(payload.check_name("name", name), declared) != declared:
            raise SetupError(f"There is another schedule {name!r} already.")

    def apply_schedules(self) -> None:
        """Make or change the series that code has declared, committing each.

        Those that were ended on purpose stay ended, until they are declared otherwise. One
        whose queue is full begins another time.

        :raises Invalid, TooLarge, TypeError: for one that cannot be made, when all others are.
        """
        errors = [error for name in list(self._declared) if (error := self._apply(name)) is not None]
        if errors:
            raise errors[0]

    def _apply(self, name: str) -> Exception | None:
        declared = self._declared.get(name)
        if declared is None:  # taken back meanwhile
            return None
        try:
            schedule_verbs.declare(self.store(), name, self._build(*declared), revive=False)
            self.db.session.commit()
        except QueueFull as error:
            self.db.session.rollback()
            logger.warning("the schedule %r does not begin yet: %s", name, error)
        except (JobberError, TypeError) as error:
            self.db.session.rollback()
            error.add_note(f"in the schedule {name!r}")
            return error
        return None

    def _build(self, type: t.Any, data: t.Any, spec: t.Mapping[str, t.Any]) -> JobMixin:
        """Return an unsaved job."""
        if isinstance(type, str) or data is not None:
            store = self.store()
            return enqueue_verbs.build(store, {**spec, "type": type, "data": data}, store.now)
        return self._performer.build(type, spec)

    def unschedule(self, name: str) -> bool:
        """End a series, and return whether there was one.

        Its waiting job is cancelled; one that is being worked on is its last.
        """
        self._declared.pop(name, None)
        return schedule_verbs.end(self.store(), name)
