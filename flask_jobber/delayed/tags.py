"""Python values as JSON, and back: Flask's tags, and some of our own. Nothing is pickled or evaluated.

A tagged value is an object of one key, such as ``{" dec": "1.50"}``. An object of the
user's that looks like one is tagged itself.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import inspect
import typing as t

import sqlalchemy as sa
from flask.json.tag import (
    JSONTag,
    PassDict,
    PassList,
    TagBytes,
    TagDict,
    TaggedJSONSerializer,
    TagMarkup,
    TagTuple,
    TagUUID,
)
from flask_sqlalchemy import SQLAlchemy
from markupsafe import Markup
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstanceState

from ..core.payload import canonical
from ..errors import Invalid
from ..worker.handlers import Cancel, Fail, Verdict
from .fields import put_together, take_apart
from .names import Names, is_function

# What may raise while data is read, without the data being at fault.
_NOT_THE_DATA = (Verdict, SQLAlchemyError, OSError)


class _Tag(JSONTag):
    __slots__ = ()
    serializer: Serializer

    @property
    def names(self) -> Names:
        return self.serializer.names


class TagModel(_Tag):
    """A mapped object, by reference: ``[class, [primary key]]``."""

    __slots__ = ()
    key = " model"

    def check(self, value: t.Any) -> bool:
        return self.names.is_mapped(type(value))

    def to_json(self, value: t.Any) -> t.Any:
        return [self.names.name_of(type(value)), [self.serializer.tag(part) for part in _identity(value)]]

    def to_python(self, value: t.Any) -> t.Any:
        name, key = value
        cls = self.names.resolve(name)
        if not self.names.is_mapped(cls):
            raise TypeError(f"{name} is no model")
        # What is in the session may be old; what is not written yet would be lost.
        session = self.serializer.db.session()
        session.flush()
        found = session.get(cls, tuple(key), populate_existing=True)
        if found is None:
            raise Cancel(f"There is no {cls.__name__} {', '.join(map(str, key))} any more.")
        return found


def _identity(thing: t.Any) -> tuple[t.Any, ...]:
    """Return the primary key of a mapped object, which is flushed if it is new.

    :raises Invalid: when it has none, or is deleted.
    """
    state = t.cast(InstanceState[t.Any], sa.inspect(thing))
    if state.pending:
        t.cast(t.Any, state.session).flush()
    if state.identity is None or state.deleted or state.was_deleted:
        said = "is deleted" if state.identity is not None else "has no key yet: add it to the session"
        raise Invalid({"data": [f"This {type(thing).__qualname__} {said}."]})
    return tuple(state.identity)


class TagName(_Tag):
    """A declared class or function, by its name."""

    __slots__ = ()
    key = " name"

    def check(self, value: t.Any) -> bool:
        return inspect.isclass(value) or is_function(value)

    def to_json(self, value: t.Any) -> t.Any:
        return self.names.name_of(value)

    def to_python(self, value: t.Any) -> t.Any:
        return self.names.resolve(value)


class TagEnum(_Tag):
    """A member of a declared enumeration: ``[class, name]``; of flags ``[class, number]``."""

    __slots__ = ()
    key = " enum"

    def check(self, value: t.Any) -> bool:
        return isinstance(value, enum.Enum)

    def to_json(self, value: t.Any) -> t.Any:
        return [self.names.name_of(type(value)), value.value if isinstance(value, enum.Flag) else value.name]

    def to_python(self, value: t.Any) -> t.Any:
        name, member = value
        cls = self.names.resolve(name)
        return cls(member) if issubclass(cls, enum.Flag) else cls[member]


class TagObject(_Tag):
    """An object of a declared class: ``[class, fields]``."""

    __slots__ = ()
    key = " object"

    def check(self, value: t.Any) -> bool:
        return self.names.is_declared(type(value))

    def to_json(self, value: t.Any) -> t.Any:
        return [self.names.name_of(type(value)), self.serializer.tag(take_apart(value))]

    def to_python(self, value: t.Any) -> t.Any:
        name, fields = value
        return put_together(self.names.resolve(name), fields)


class TagText(TagMarkup):
    """Flask's, of markup alone: it takes whatever has ``__html__`` for it."""

    __slots__ = ()

    def check(self, value: t.Any) -> bool:
        return isinstance(value, Markup)


class _TagIso(JSONTag):
    __slots__ = ()
    kind: t.ClassVar[type[t.Any]]

    def check(self, value: t.Any) -> bool:
        return isinstance(value, self.kind)

    def to_json(self, value: t.Any) -> t.Any:
        return value.isoformat()

    def to_python(self, value: t.Any) -> t.Any:
        return self.kind.fromisoformat(value)


class TagDateTime(_TagIso):
    """A datetime to the microsecond; of its time zone the offset is kept."""

    __slots__ = ()
    key = " d"
    kind = dt.datetime


class TagDate(_TagIso):
    __slots__ = ()
    key = " date"
    kind = dt.date


class TagTime(_TagIso):
    __slots__ = ()
    key = " time"
    kind = dt.time


class TagTimedelta(JSONTag):
    __slots__ = ()
    key = " delta"

    def check(self, value: t.Any) -> bool:
        return isinstance(value, dt.timedelta)

    def to_json(self, value: t.Any) -> t.Any:
        return [value.days, value.seconds, value.microseconds]

    def to_python(self, value: t.Any) -> t.Any:
        return dt.timedelta(*value)


class TagDecimal(JSONTag):
    __slots__ = ()
    key = " dec"

    def check(self, value: t.Any) -> bool:
        return isinstance(value, decimal.Decimal)

    def to_json(self, value: t.Any) -> t.Any:
        return str(value)

    def to_python(self, value: t.Any) -> t.Any:
        return decimal.Decimal(value)


class TagSet(JSONTag):
    """In an order of its own, so that the same set is the same JSON."""

    __slots__ = ()
    key = " set"
    kind: t.ClassVar[type[t.Any]] = set

    def check(self, value: t.Any) -> bool:
        return isinstance(value, self.kind)

    def to_json(self, value: t.Any) -> t.Any:
        return sorted((self.serializer.tag(item) for item in value), key=canonical)

    def to_python(self, value: t.Any) -> t.Any:
        return self.kind(value)


class TagFrozenSet(TagSet):
    __slots__ = ()
    key = " fset"
    kind = frozenset


class TagPlainTuple(TagTuple):
    """Not one with names: it would come back without them."""

    __slots__ = ()

    def check(self, value: t.Any) -> bool:
        return isinstance(value, tuple) and not hasattr(value, "_fields")


class Serializer(TaggedJSONSerializer):
    """Turns values into JSON values and back. Of the text that JSON is in the end it knows nothing."""

    default_tags = [  # noqa: RUF012
        TagModel, TagName, TagEnum, TagObject, TagDict, PassDict, TagPlainTuple, PassList, TagBytes, TagText,
        TagUUID, TagDateTime, TagDate, TagTime, TagTimedelta, TagDecimal, TagSet, TagFrozenSet,
    ]  # fmt: skip

    def __init__(self, names: Names, db: SQLAlchemy) -> None:
        self.names = names
        self.db = db
        super().__init__()

    def tag(self, value: t.Any) -> t.Any:
        """Return a value as JSON.

        :raises Invalid: for what is neither JSON nor has a tag.
        """
        if value is None or type(value) in (str, int, float, bool):
            return value
        for tag in self.order:
            if tag.check(value):
                return tag.tag(value)
        if isinstance(value, str | int | float):
            return value
        raise Invalid({"data": [f"A {type(value).__qualname__} is no JSON: declare its class with"
                                " @jobber.performable and say what its fields are."]})  # fmt: skip

    def write(self, value: t.Any) -> t.Any:
        """Return a whole value as JSON, see :meth:`tag`; a circle is refused too."""
        try:
            return self.tag(value)
        except RecursionError:
            raise Invalid({"data": ["It holds itself, or nests too deep."]}) from None

    def read(self, value: t.Any) -> t.Any:
        """Return the value of JSON; mapped objects are loaded.

        :raises Fail: when it can be read no more, or names what is not declared.
        :raises Cancel: when it refers to a row that is gone.
        """
        if isinstance(value, list):
            return [self.read(item) for item in value]
        if not isinstance(value, dict):
            return value
        inner = {key: self.read(item) for key, item in value.items()}
        try:
            return self.untag(inner)
        except _NOT_THE_DATA:
            raise
        except Exception as error:
            raise Fail(f"The data can be read no more: {type(error).__name__}: {error}") from error
