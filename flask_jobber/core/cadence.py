"""When the jobs of a series run: every so many seconds, by a cron line, or so long after an end."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re
import typing as t
import zoneinfo

from ..errors import Invalid
from .payload import MAX_SECONDS, check_seconds

_FIELD = r"[0-9A-Za-z*,/?#-]+"
_LINE = re.compile(rf"{_FIELD}( {_FIELD}){{4}}")
# croniter would draw a number for these at every call.
_DRAWN = re.compile(r"(?<![A-Za-z])[HhRr](?![A-Za-z])")
_TICK = dt.timedelta(microseconds=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Cron:
    """A cron line of five fields, by the clocks of a time zone. It needs the extra ``cron``.

    A time that the clocks skip runs once, at the next moment that there is; one that they
    show twice runs once, at the first. A line whose hours are ``*`` names no time of the day:
    it goes on evenly.
    """

    line: str
    time_zone: str = "UTC"


#: What says how long after an end of this kind the next job runs, in seconds.
AFTER_SUCCESS, AFTER_FAILURE = "repeat_after_success", "repeat_after_failure"
#: What ``every=`` takes: seconds, or a cron line.
Every = float | dt.timedelta | str | Cron


def read(value: object) -> dict[str, t.Any]:
    """Return what ``every=`` says as it is stored: ``{seconds}`` or ``{cron, time_zone}``.

    :raises Invalid: when it is neither, or a line that never comes.
    """
    cron = Cron(value) if isinstance(value, str) else value
    if not isinstance(cron, Cron):
        return {"seconds": check_seconds("every", value, MAX_SECONDS)}
    line = " ".join(str(cron.line).split())
    if not _LINE.fullmatch(line) or _DRAWN.search(line):
        raise Invalid({"every": ["A cron line has five fields: minute, hour, day, month, day of the week."]})
    try:
        _by_cron(line, zoneinfo.ZoneInfo(cron.time_zone), dt.datetime.now(dt.UTC))
    except zoneinfo.ZoneInfoNotFoundError as error:
        raise Invalid({"every": [f"There is no time zone {cron.time_zone!r} here."]}) from error
    except (TypeError, ValueError) as error:  # croniter's own are among these
        raise Invalid({"every": [f"{error}."]}) from error
    return {"cron": line, "time_zone": cron.time_zone}


def read_repeats(given: t.Mapping[str, t.Any]) -> dict[str, float]:
    """Return the lengths after which a job is to be repeated, as they are stored; empty if it is not.

    :raises Invalid: for one that is no length.
    """
    names = [name for name in (AFTER_SUCCESS, AFTER_FAILURE) if given.get(name) is not None]
    return {name: check_seconds(name, given[name], MAX_SECONDS, zero=True) for name in names}


def first(every: t.Mapping[str, t.Any], now: dt.datetime) -> dt.datetime:
    """Return the first slot of a series that begins now."""
    return following(every, now, now) if "cron" in every else now


def after_end(
    every: t.Mapping[str, t.Any], slot: dt.datetime, ended: dt.datetime, now: dt.datetime, *, well: bool
) -> dt.datetime | None:
    """Return the slot that follows the end of a job, or ``None`` when that was the last.

    :param well: whether it succeeded.
    """
    if "seconds" in every or "cron" in every:
        return following(every, slot, now)
    length = every.get(AFTER_SUCCESS if well else AFTER_FAILURE)
    # A job that ended before its slot by the database's clock: slots only grow.
    return None if length is None else max(ended + dt.timedelta(seconds=length), slot + _TICK)


def following(every: t.Mapping[str, t.Any], slot: dt.datetime, now: dt.datetime) -> dt.datetime:
    """Return the first slot after both a slot and now: what was missed is not made up for."""
    after = max(slot, now)
    if "seconds" in every:
        length = dt.timedelta(seconds=every["seconds"])
        return slot + ((after - slot) // length + 1) * length
    return _by_cron(every["cron"], zoneinfo.ZoneInfo(every["time_zone"]), after)


def is_same(one: t.Mapping[str, t.Any], other: t.Mapping[str, t.Any]) -> bool:
    """Whether two stored values have the same slots."""
    return all(one.get(name) == other.get(name) for name in ("seconds", "cron", "time_zone"))


def _by_cron(line: str, zone: dt.tzinfo, after: dt.datetime) -> dt.datetime:
    goes_on = line.split()[1] == "*"
    return _evenly(line, zone, after) if goes_on else _by_the_clock(line, zone, after)


def _by_the_clock(line: str, zone: dt.tzinfo, after: dt.datetime) -> dt.datetime:
    times = _times(line, after.astimezone(zone).replace(tzinfo=None))
    return next(instant for time in times if (instant := _instant(time, zone)) > after)


def _evenly(line: str, zone: dt.tzinfo, after: dt.datetime) -> dt.datetime:
    """Go by clocks that are never changed, as far as that is true, then by the changed ones."""
    since, base, offset = after, after, _offset(zone, after)
    while True:
        time = next(_times(line, (base + offset).replace(tzinfo=None)))
        instant = (time - offset).replace(tzinfo=dt.UTC)
        if _offset(zone, instant) == offset:
            return instant
        since = _change(zone, since, instant)
        base, offset = since - _TICK, _offset(zone, since)


def _times(line: str, time: dt.datetime) -> t.Iterator[dt.datetime]:
    """Yield the line's times after this one, all without a zone."""
    try:
        from croniter import croniter
    except ImportError as error:
        raise ImportError('A cron line needs croniter: pip install "flask-jobber[cron]"') from error
    times = croniter(line, time)
    while True:
        yield times.get_next(dt.datetime)


def _instant(time: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """Return when the clocks show a time first; for one they skip, when they skip it."""
    early = time.replace(tzinfo=zone).astimezone(dt.UTC)
    if early.astimezone(zone).replace(tzinfo=None) == time:
        return early
    return _change(zone, time.replace(tzinfo=zone, fold=1).astimezone(dt.UTC), early)


def _change(zone: dt.tzinfo, early: dt.datetime, late: dt.datetime) -> dt.datetime:
    """Return a moment between these two at which the clocks are changed."""
    before, after = math.floor(early.timestamp()), math.ceil(late.timestamp())
    old = _offset(zone, early)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(zone, dt.datetime.fromtimestamp(middle, dt.UTC)) == old:
            before = middle
        else:
            after = middle
    return dt.datetime.fromtimestamp(after, dt.UTC)


def _offset(zone: dt.tzinfo, instant: dt.datetime) -> dt.timedelta:
    return t.cast(dt.timedelta, instant.astimezone(zone).utcoffset())
