"""The app's own columns, as far as a client may set them: ``__client_columns__``."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import typing as t
import uuid

import sqlalchemy as sa
from marshmallow import ValidationError, fields, validate
from sqlalchemy.exc import DataError, IntegrityError

from ..core.enqueue import Spec
from ..core.models import OURS, JobMixin
from ..core.payload import check_instant
from ..errors import Invalid, SetupError
from . import schemas

_FIELDS: t.Mapping[type, t.Callable[..., fields.Field[t.Any]]] = {
    bool: schemas.Bool,
    str: fields.String,
    float: schemas.Number,
    decimal.Decimal: fields.Decimal,
    uuid.UUID: fields.UUID,
    dt.date: fields.Date,
    dt.datetime: schemas.Instant,
}
_MOST_DIGITS, _MOST_PLACES = 30, 1000
_BITS = ((sa.BigInteger, 63), (sa.SmallInteger, 15), (sa.Integer, 31))


def check(job: type[JobMixin]) -> None:
    """Refuse a class of jobs that lets clients set what cannot be.

    :raises SetupError: for a name that is no column of the app's, or a keyword of ours, or one
        whose type has no JSON.
    """
    for name in job.__client_columns__:
        if name in OURS or name not in job.__mapper__.columns:  # type: ignore[attr-defined]
            raise SetupError(f"__client_columns__: {name!r} is no column of the app's own.")
        if name in Spec.__annotations__:  # it would be taken for ours, which clients may not say
            raise SetupError(f"__client_columns__: {name!r} is a keyword of enqueue(); rename the column.")
        _field(job, name)


def load(job: type[JobMixin], given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the values of columns that a client has given as JSON.

    :raises Invalid: for a column that clients may not set, or a value that is none of its type.
    """
    loaded, errors = dict[str, t.Any](), dict[str, t.Any]()
    for name, value in given.items():
        try:
            if name not in job.__client_columns__:
                raise ValidationError("There is no such column that a client may set.")
            loaded[name] = _stored(_field(job, name).deserialize(value))
        except ValidationError as error:
            errors[name[:100]] = [str(error.messages[0])]
    if errors:
        raise Invalid({"columns": dict(list(errors.items())[:20])})
    return loaded


def _stored(value: t.Any) -> t.Any:
    """Return a value as a column takes it: an instant in UTC."""
    if not isinstance(value, dt.datetime):
        return value
    try:
        return check_instant("columns", value)
    except Invalid as error:
        raise ValidationError("This instant is out of range.") from error


def _field(job: type[JobMixin], name: str) -> fields.Field[t.Any]:
    """Return the marshmallow field of a column."""
    column = job.__mapper__.columns[name]  # type: ignore[attr-defined]
    kind = column.type
    options: dict[str, t.Any] = {"required": True, "allow_none": bool(column.nullable)}
    if isinstance(kind, sa.Enum):
        return fields.Enum(kind.enum_class, **options) if kind.enum_class else _one_of(kind.enums, options)
    try:
        python_type = kind.python_type
    except NotImplementedError:
        python_type = object
    if python_type is int:
        bits = next((bits for cls, bits in _BITS if isinstance(kind, cls)), 31)
        bounds = validate.Range(-(2**bits), 2**bits - 1)
        return fields.Integer(strict=True, validate=bounds, **options)
    if python_type not in _FIELDS:
        raise SetupError(f"__client_columns__: {name!r} is of a type that is no JSON; fill it by the hook.")
    return _FIELDS[python_type](validate=list(_checks(kind, python_type)), **options)


def _checks(kind: t.Any, python_type: type) -> t.Iterator[t.Callable[[t.Any], t.Any]]:
    """Yield what some engines would refuse, and some cut."""
    if python_type is str:
        yield _check_text
        if kind.length is not None:
            yield validate.Length(max=kind.length)
    if python_type is decimal.Decimal:
        digits = _MOST_DIGITS if kind.precision is None else kind.precision - (kind.scale or 0)
        limit = decimal.Decimal(10) ** digits
        yield _check_exponent
        yield validate.Range(-limit, limit, min_inclusive=False, max_inclusive=False)


def _one_of(words: t.Sequence[str], options: t.Mapping[str, t.Any]) -> fields.Field[t.Any]:
    return fields.String(validate=validate.OneOf(words), **options)


def _check_exponent(number: decimal.Decimal) -> None:
    # Drivers write all the zeros: of 1e-999999999 a gigabyte.
    if abs(t.cast(int, number.as_tuple().exponent)) > _MOST_PLACES:
        raise ValidationError("This number has too large an exponent.")


def _check_text(text: str) -> None:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValidationError("A text may hold neither NUL characters nor lone surrogates.")


@contextlib.contextmanager
def accountable(own: t.Mapping[str, t.Any]) -> t.Iterator[None]:
    """Tell the client of a row that the database refuses for what the client has set in it.

    :raises Invalid: with the names of these columns.
    """
    try:
        yield
    except (IntegrityError, DataError) as error:
        if not own:
            raise
        raise Invalid({"columns": {name: ["The database does not take this."] for name in own}}) from error
