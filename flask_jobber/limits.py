"""What an app says of who gets jobs, and how many."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from .core import payload, seats
from .core.limits import Limit, Rules
from .core.models import MeterMixin, SeatMixin, TurnMixin, make_companion
from .core.store import Store
from .errors import Invalid, SetupError


class Limits:
    """What a Jobber knows of fairness and limits."""

    if t.TYPE_CHECKING:
        Job: type[t.Any]

        def store(self) -> Store: ...

        _rules: Rules

    def _set_up_limits(self, prefix: str, fair_by: str | None) -> None:
        if fair_by is not None and fair_by not in self.Job.__table__.c:
            names = ", ".join(sa.inspect(self.Job).columns.keys())
            raise SetupError(f"fair_by names a column of the jobs, not {fair_by!r}; there are {names}.")
        #: The mapped class of the turns of owners.
        self.Turn = make_companion(self.Job, TurnMixin, "JobTurn", f"{prefix}_turn")
        #: The mapped class of concurrency keys.
        self.Seat = make_companion(self.Job, SeatMixin, "JobSeat", f"{prefix}_seat")
        #: The mapped class of meters of claims.
        self.Meter = make_companion(self.Job, MeterMixin, "JobMeter", f"{prefix}_meter")
        self._rules = Rules(self.Turn, self.Seat, self.Meter, fair_by)

    def limit(
        self,
        *,
        key: str | None = None,
        type: str | None = None,
        queue: str | None = None,
        locker: str | None = None,
        at_once: int | None = None,
        rate: int | None = None,
        per_seconds: float | dt.timedelta = 1,
        burst: int = 1,
    ) -> None:
        """Say how many jobs of one key, type, queue or locker there may be; said again, it is changed.

        :param key: a ``concurrency_key``, or the beginning of keys and a ``*``: of each ``at_once`` are
            in the pool, one if nothing is said.
        :param locker: a login, or ``*``: each of them.
        :param at_once: so many are held; of a locker ``MAX_OPEN_CLAIMS`` says it.
        :param rate: so many are handed out in ``per_seconds``, one by one, evenly.
        :param burst: so many of them may go together, after a pause.
        :raises Invalid: for what is no limit.
        """
        about = {"key": key, "type": type, "queue": queue, "locker": locker}
        said = [(what, name) for what, name in about.items() if name is not None]
        if len(said) != 1:
            raise Invalid({"key": ["Say one of key, type, queue and locker."]})
        ((what, name),) = said
        if what == "key":
            self._limit_key(name, at_once, rate)
        else:
            limit = Limit(t.cast(t.Any, what), name, at_once, rate, _seconds(per_seconds), burst)
            self._rules.limits[what, name] = _checked(limit)

    def _limit_key(self, key: str, at_once: int | None, rate: int | None) -> None:
        if at_once is None or rate is not None:
            raise Invalid({"at_once": ["Of a key say this, and no rate."]})
        payload.check_key("key", key, payload.MAX_UNIQUE_KEY)
        self._rules.seats[key] = payload.check_int("at_once", at_once, 1)

    def _tidy_seats(self) -> None:
        seats.tidy(self.store())


def _seconds(length: float | dt.timedelta) -> float:
    return payload.check_seconds("per_seconds", length, payload.MAX_SECONDS)


def _checked(limit: Limit) -> Limit:
    """:raises Invalid: for what is no limit."""
    if limit.what == "locker":
        payload.check_key("locker", limit.name, payload.MAX_LOCKER)
        if limit.at_once is not None:
            raise Invalid({"at_once": ["Of lockers the setting MAX_OPEN_CLAIMS says it."]})
    else:
        payload.check_name(limit.what, limit.name)
    if limit.at_once is None and limit.rate is None:
        raise Invalid({"rate": ["Say at_once, a rate, or both."]})
    for name in ("at_once", "rate", "burst"):
        if getattr(limit, name) is not None:
            payload.check_int(name, getattr(limit, name), 1)
    return limit
