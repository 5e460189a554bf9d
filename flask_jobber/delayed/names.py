"""Names: the classes, functions and modules that stored data may mean, and no others."""

from __future__ import annotations

import inspect
import types
import typing as t

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import registry

from ..errors import Invalid, SetupError
from ..worker.handlers import Fail
from .later import Later

_HINT = "decorate it with @jobber.performable"
N = t.TypeVar("N")


def full_name(thing: t.Any) -> str:
    """Return ``module:name`` of a class or function, the bare name of a module."""
    if isinstance(thing, types.ModuleType):
        return thing.__name__
    return f"{thing.__module__}:{thing.__qualname__}"


def is_function(thing: object) -> bool:
    """Whether a thing is a function, also one that is called later."""
    return inspect.isfunction(thing) or isinstance(thing, Later)


class Names:
    """What a Jobber's own data may name: what was declared to it, and the mapped classes of its ``db``."""

    def __init__(self, db: SQLAlchemy) -> None:
        self._db = db
        self._declared: dict[str, t.Any] = {}
        # By identity: a metaclass may say that two classes are equal.
        self._names: dict[int, str] = {}
        self._models: dict[str, type[t.Any]] = {}

    def declare(self, thing: N, name: str | None = None) -> N:
        """Let data name this; return it.

        :param name: kept in the data; the module's and its own otherwise, so that a thing
            that moves or is renamed keeps its jobs if it keeps this.
        :raises SetupError: when the name is another's, or this is nothing that has one.
        """
        if not (inspect.isclass(thing) or inspect.ismodule(thing) or is_function(thing)):
            raise SetupError(f"Declare classes, functions and modules, not {thing!r}.")
        if name is None:
            name = full_name(thing)
        if self._declared.setdefault(name, thing) is not thing:
            raise SetupError(f"The name {name!r} is taken by {self._declared[name]!r}: give another name=.")
        self._names[id(thing)] = name
        return thing

    def is_mapped(self, cls: type[t.Any]) -> bool:
        """Whether a class is one of the models of the ``db``."""
        mapper = sa.inspect(cls, raiseerr=False)
        return mapper is not None and mapper.class_ is cls and self._model(full_name(cls)) is cls

    def is_declared(self, thing: object) -> bool:
        """Whether data may name this."""
        return self._find(thing) is not None

    def name_of(self, thing: t.Any) -> str:
        """Return the name of what is declared.

        :raises Invalid: when it is not.
        """
        name = self._find(thing)
        if name is None:
            called = getattr(thing, "__qualname__", repr(thing))
            raise Invalid({"data": [f"{called} is not declared to this Jobber: {_HINT}."]})
        return name

    def _find(self, thing: t.Any) -> str | None:
        if id(thing) in self._names:
            return self._names[id(thing)]
        if inspect.isclass(thing):
            return full_name(thing) if self.is_mapped(thing) else None
        if inspect.isfunction(thing):
            name = full_name(thing)
            return name if self._of_module(name) is thing else None
        return None

    def resolve(self, name: object) -> t.Any:
        """Return what a name stands for. Nothing is imported for it.

        :raises Fail: when nothing is declared by this name.
        """
        if isinstance(name, str):
            for look in (self._declared.get, self._model, self._of_module):
                found = look(name)
                if found is not None:
                    return found
        raise Fail(
            f"Nothing is declared to this Jobber by the name {name!r}: {_HINT}, and import its module."
        )

    def _model(self, name: str) -> type[t.Any] | None:
        if name not in self._models:  # more may have been mapped meanwhile
            mapped: registry = t.cast(t.Any, self._db.Model).registry
            self._models = {full_name(mapper.class_): mapper.class_ for mapper in mapped.mappers}
        return self._models.get(name)

    def _of_module(self, name: str) -> t.Any:
        """Return a public function that a declared module defines."""
        module, _, own = name.partition(":")
        found = None if own.startswith("_") else vars(self._declared.get(module, object)).get(own)
        return found if inspect.isfunction(found) and full_name(found) == name else None
