"""What may enter: JSON, names, texts, lengths and instants, checked once, at the door.

Each function returns the value in the form that is stored and raises
:class:`~flask_jobber.errors.Invalid`, or :class:`~flask_jobber.errors.TooLarge`, with
the name of the field. The rules hold on every engine, whatever the engine itself takes.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import typing as t

from ..errors import Invalid, TooLarge

#: Types and queues.
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
#: Types that begin so are this package's own: made by server code, never handed out over HTTP.
RESERVED = "jobber:"
#: What a client may call its node.
NODE = re.compile(r"[A-Za-z0-9_.-]{1,60}")
#: The login's part of the lockers of workers beside the database: no client's.
WORKER = "worker"
#: What a file may be called: safe in a header, in a path and on any machine.
FILE_NAME = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9_. -]{0,198}[A-Za-z0-9_-])?")
#: What a file may say that it is.
CONTENT_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}")
MAX_DEPTH = 100
MAX_LOCKER = 255
MAX_NOTE = 500
MAX_UNIQUE_KEY = 200
MAX_OWNER = 255
MAX_ERROR_TYPE = 200
MAX_ERROR_MESSAGE = 2_000
MAX_TRACEBACK = 20_000
MAX_ID = 2**63 - 1
#: A century. A longer one is a mistake in the unit.
MAX_SECONDS = 100 * 365.25 * 86_400
_MAX_INT = 2**31 - 1
_FORBIDDEN = re.compile("[\0\ud800-\udfff]")
# An escaped NUL, not a backslash followed by the letters u0000.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# A tuple: a union would be made anew at each look.
_NESTS = (dict, list, tuple)
_canonical = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
).encode


def canonical(value: object) -> str:
    """Return the canonical JSON text: sorted keys, no spaces. Two values are equal when it is."""
    return _canonical(value)


def check_json(field: str, value: object, max_bytes: int) -> None:
    """Refuse what is not JSON, nests too deep, or is too large.

    :param max_bytes: of canonical JSON in UTF-8.
    """
    _check_shape(field, value)
    try:
        text = canonical(value)
        size = len(text.encode())
    except (TypeError, ValueError) as error:  # UnicodeEncodeError: a lone surrogate
        raise Invalid({field: [f"This is not JSON: {error}."]}) from error
    if "\\u0000" in text and _NUL.search(text):
        raise Invalid({field: ["A text may not hold a NUL character."]})
    if size > max_bytes:
        raise TooLarge(f"{field} is {size} bytes of JSON; the limit is {max_bytes}.")


def _check_shape(field: str, value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [v for v in level if isinstance(v, _NESTS)]
        if not level:
            return
        if not all(isinstance(key, str) for v in level if isinstance(v, dict) for key in v):
            raise Invalid({field: ["The keys of a JSON object are texts."]})
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]  # type: ignore[attr-defined]
    raise Invalid({field: [f"It may not nest over {MAX_DEPTH} deep."]})


def check_name(field: str, value: object) -> str:
    """Return a type or queue name."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Invalid({field: [f"A name matches {NAME.pattern}."]})
    return value


def check_names(field: str, names: t.Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names of a list, each once; no list stays none."""
    if names is None:
        return None
    if isinstance(names, str) or not names:
        raise Invalid({field: ["This is a list of one or more names."]})
    return tuple(dict.fromkeys(check_name(field, name) for name in names))


def check_file_name(field: str, value: object) -> str:
    """Return the name of an attachment."""
    if not isinstance(value, str) or not FILE_NAME.fullmatch(value):
        raise Invalid({field: [f"The name of an attachment matches {FILE_NAME.pattern}."]})
    return value


def read_content_type(value: str | None) -> str:
    """Return what a file says that it is, without parameters; nonsense is some bytes."""
    said = (value or "").partition(";")[0].strip().lower()
    return said if CONTENT_TYPE.fullmatch(said) else "application/octet-stream"


def check_unreserved(field: str, type_: str) -> str:
    """Return a type that is not reserved."""
    if type_.startswith(RESERVED):
        raise Invalid({field: [f"Types that begin with {RESERVED} are not for this."]})
    return type_


def check_text(field: str, value: object, longest: int, *, cut: bool = False) -> str:
    """Return a text of at most ``longest`` characters; with ``cut``, its beginning."""
    if not isinstance(value, str):
        raise Invalid({field: ["This is not a text."]})
    if _FORBIDDEN.search(value):
        raise Invalid({field: ["A text may hold neither NUL characters nor lone surrogates."]})
    if len(value) > longest and not cut:
        raise Invalid({field: [f"The longest text here is {longest} characters."]})
    return value[:longest]


def check_key(field: str, value: object, longest: int) -> str:
    """Return an identity: not empty, and without the spaces and controls that engines compare differently."""
    text = check_text(field, value, longest)
    if not text or text != text.strip() or not text.isprintable():
        raise Invalid(
            {field: ["This may not be empty, start or end with a space, or hold control characters."]}
        )
    return text


def check_int(field: str, value: object, least: int = -_MAX_INT, most: int = _MAX_INT) -> int:
    """Return a whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Invalid({field: [f"This is a whole number from {least} to {most}."]})
    return value


def check_reference(field: str, value: t.Any) -> int:
    """Return the id of a job, which is given as itself or by its object."""
    return check_int(field, value if isinstance(value, int) else getattr(value, "id", None), 1, MAX_ID)


def check_priorities(least: object, most: object) -> None:
    """Refuse bounds of a claim between which there is nothing; ``None`` is no bound."""
    given = {"min_priority": least, "max_priority": most}
    bounds = [check_int(field, value) for field, value in given.items() if value is not None]
    if bounds != sorted(bounds):
        raise Invalid({"max_priority": ["This is less than min_priority."]})


def check_seconds(field: str, value: object, most: float, *, zero: bool = False) -> float:
    """Return a length in seconds, given as a number or a timedelta."""
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 if zero else 1e-3) <= value <= most:  # type: ignore[operator]
        raise Invalid({field: [f"This is a length of {'0' if zero else '0.001'} to {most:g} seconds."]})
    return float(value)  # type: ignore[arg-type]


def check_instant(field: str, value: object) -> dt.datetime:
    """Return an instant in UTC."""
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        raise Invalid({field: ["An instant is a datetime with a time zone."]})
    try:
        instant = value.astimezone(dt.UTC)
    except OverflowError as error:
        raise Invalid({field: ["This instant is out of range."]}) from error
    # MySQL's DATETIME begins at the year 1000; the upper end leaves room for a lease.
    if not 1000 <= instant.year <= 9000:
        raise Invalid({field: ["This instant is out of range."]})
    return instant


def check_error(value: t.Mapping[str, t.Any]) -> dict[str, str | None]:
    """Return a failure's ``{type, message, traceback}``; a long traceback loses its beginning."""
    traceback = value.get("traceback")
    if traceback is not None:
        check_text("error.traceback", traceback, MAX_TRACEBACK, cut=True)
        traceback = traceback[-MAX_TRACEBACK:]
    return {
        "type": check_key("error.type", value.get("type"), MAX_ERROR_TYPE),
        "message": check_text("error.message", value.get("message"), MAX_ERROR_MESSAGE),
        "traceback": traceback,
    }


def check_locker(value: object) -> str:
    """Return a whole locker name: a login's part, and perhaps a slash and a node."""
    locker = check_key("locker", value, MAX_LOCKER + 61)
    login, slash, node = locker.partition("/")
    if not login or len(login) > MAX_LOCKER or (slash and not NODE.fullmatch(node)):
        raise Invalid({"locker": ["A locker is a login's name, and perhaps a slash and a node."]})
    return locker


def names_of(locker: str) -> tuple[str, ...]:
    """Return what ``only_for`` and ``not_for`` may call a locker: the whole, the login's part, the node."""
    return tuple(dict.fromkeys(name for name in (locker, *locker.partition("/")[::2]) if name))
