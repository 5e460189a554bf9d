"""Owners: the things that jobs are enqueued for, kept as a short text.

``album/5`` is the row 5 of the table ``album``; of a key of several columns the parts stand
between commas, of a bind its key stands before a colon. No foreign key: a thing may go before
its jobs, and things of all tables own jobs alike.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
import typing as t
import uuid
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Mapper, Session, object_session, registry
from sqlalchemy.orm.exc import DetachedInstanceError

from ..errors import Invalid
from .payload import MAX_ID, MAX_OWNER

#: The form of a reference: no more characters than these, so that it fits in a query as it is.
REFERENCE = re.compile(rf"(?=.{{1,{MAX_OWNER}}}\Z)[A-Za-z0-9_.~%:-]+/[A-Za-z0-9_.~%,-]*")


def _integer(text: str) -> int:
    if len(text) > len(str(MAX_ID)) or not -MAX_ID <= int(text) <= MAX_ID:
        raise ValueError("No engine keeps such a number.")
    return int(text)


_READ: t.Mapping[type, t.Callable[[str], t.Any]] = {
    int: _integer,
    str: str,
    uuid.UUID: uuid.UUID,
    dt.date: dt.date.fromisoformat,
    dt.datetime: dt.datetime.fromisoformat,
    decimal.Decimal: decimal.Decimal,
}


class Owned:
    """What a job knows of its owner."""

    #: Where the classes of things are mapped, if not beside the class of jobs.
    __models__: t.ClassVar[registry | None] = None

    if t.TYPE_CHECKING:
        owner_ref: Mapped[str | None]

    @property
    def owner(self) -> t.Any:
        """The thing it was enqueued for, as its row is now; ``None`` without one, or when it is gone.

        :raises DetachedInstanceError: when the job is in no session.
        :raises LookupError: when no class of this process has the thing's table.
        """
        if self.owner_ref is None:
            return None
        session = object_session(self)
        if session is None:
            raise DetachedInstanceError("A job loads its owner by its session, and this one is in none.")
        return find(type(self), session, self.owner_ref)

    @owner.setter
    def owner(self, thing: t.Any) -> None:
        self.owner_ref = None if thing is None else reference(type(self), thing)


def reference(job: type[Owned], thing: t.Any) -> str:
    """Return the reference of a thing, which is flushed if it is new; a reference stays as it is.

    :raises Invalid: when it is no mapped object of the app's, or one without a key.
    """
    if isinstance(thing, str):
        return _known(job, thing)
    state = sa.inspect(thing, raiseerr=False)
    if not isinstance(state, sa.orm.state.InstanceState):
        raise _invalid(f"{type(thing).__name__} is no model of the app's.")
    if state.pending:
        t.cast(Session, state.session).flush()
    if state.identity_key is None:
        raise _invalid("It has no key yet: add it to the session first.")
    cls, key, *_ = state.identity_key
    parts = [_written(part) for part in key]
    found = _known(job, f"{_name(sa.inspect(cls))}/{','.join(parts)}")
    read = _identity(_mapper(job, found), found)
    if read is None or [_written(part) for part in read] != parts:
        raise _invalid("Its key is not of the type of its column.")
    return found


def _known(job: type[Owned], text: str) -> str:
    if not REFERENCE.fullmatch(text):
        raise _invalid(f"A reference is <table>/<key>, of at most {MAX_OWNER} characters.")
    if _mapper(job, text) is None:
        raise _invalid("No model of the app's has this table.")
    return text


def _invalid(why: str) -> Invalid:
    return Invalid({"owner": [why]})


def _written(part: object) -> str:
    """Return a part of a key as text that holds neither commas nor slashes."""
    if type(part) not in _READ:
        raise _invalid(f"A key may not be of {type(part).__name__}.")
    text = part.isoformat() if isinstance(part, dt.date) else str(part)
    return quote(text, safe="")


def find(job: type[Owned], session: Session, text: str) -> t.Any:
    """Return the thing of a reference as its row is now, or ``None`` when there is none.

    :raises LookupError: when no class of this process has the thing's table.
    """
    mapper = _mapper(job, text)
    if mapper is None:
        raise LookupError(f"No model has the table of {text!r}: import the module that maps it.")
    identity = _identity(mapper, text)
    if identity is None:
        return None
    session.flush()  # what is not written yet would be read over
    return session.get(mapper.class_, identity, populate_existing=True)


def _mapper(job: type[Owned], text: str) -> Mapper[t.Any] | None:
    """Return the mapper of the classes whose table a reference names."""
    name = text.partition("/")[0]
    models = job.__models__ or sa.inspect(job).registry
    known = (mapper for mapper in models.mappers if _is_base(mapper) and _name(mapper) == name)
    return min(known, key=lambda mapper: mapper.class_.__qualname__, default=None)


def _is_base(mapper: Mapper[t.Any]) -> bool:
    """Whether its objects are known by its own class, not by one above it."""
    return mapper.identity_key_from_primary_key(())[0] is mapper.class_


def _name(mapper: Mapper[t.Any]) -> str:
    table = mapper.local_table
    if not isinstance(table, sa.Table):
        return ""
    bind = table.metadata.info.get("bind_key")
    return quote(f"{bind}:{table.fullname}" if bind else table.fullname, safe=":")


def _identity(mapper: Mapper[t.Any] | None, text: str) -> tuple[t.Any, ...] | None:
    """Return the primary key that a reference holds, ``None`` when it cannot be one."""
    if mapper is None:
        return None
    parts = text.partition("/")[2].split(",")
    if len(parts) != len(mapper.primary_key):
        return None
    try:
        return tuple(_reader(c)(unquote(part)) for c, part in zip(mapper.primary_key, parts, strict=True))
    except (ValueError, ArithmeticError):
        return None


def _reader(column: sa.ColumnElement[t.Any]) -> t.Callable[[str], t.Any]:
    try:
        kind = column.type.python_type
    except NotImplementedError:
        return str
    return _READ.get(kind, str)
