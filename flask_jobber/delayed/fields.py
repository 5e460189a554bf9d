"""How an object of a declared class becomes fields, and an object again."""

from __future__ import annotations

import dataclasses
import typing as t

from marshmallow import Schema

from ..errors import Invalid


def take_apart(thing: t.Any) -> t.Any:
    """Return what :func:`put_together` makes the object of: mostly a mapping of its fields.

    :raises Invalid: when its class says nothing of its fields.
    """
    cls = type(thing)
    if hasattr(cls, "to_job"):
        return thing.to_job()
    if (schema := _schema(cls)) is not None:
        return schema.dump(thing)
    attributes = _attributes(cls)
    if attributes is None:
        raise Invalid({"data": [f"{cls.__qualname__} has no fields: make it a dataclass, or give it a"
                                " job_schema (marshmallow), or to_job() and from_job()."]})  # fmt: skip
    return {argument: getattr(thing, attribute) for argument, attribute in attributes.items()}


def put_together(cls: type[t.Any], value: t.Any) -> t.Any:
    """Return an object of a class, made of what was taken apart."""
    if hasattr(cls, "from_job"):
        return cls.from_job(value)
    if (schema := _schema(cls)) is not None:
        value = schema.load(value)
        if isinstance(value, cls):  # made by its post_load
            return value
    return cls(**value)


def _schema(cls: type[t.Any]) -> Schema | None:
    schema = getattr(cls, "job_schema", None)
    return schema() if isinstance(schema, type) else schema


def _attributes(cls: type[t.Any]) -> dict[str, str] | None:
    """Return by each argument of the constructor the attribute that holds it."""
    if dataclasses.is_dataclass(cls):
        return {field.name: field.name for field in dataclasses.fields(cls) if field.init}
    if hasattr(cls, "__attrs_attrs__"):
        return {field.alias: field.name for field in cls.__attrs_attrs__ if field.init}
    return None
