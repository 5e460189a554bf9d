"""A call that is kept as data: what is called, on what, with which arguments."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing as t

from ..errors import Invalid
from ..worker.handlers import Fail
from .later import Bound, Later
from .names import Names
from .tags import Serializer


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A call.

    :param target: a function; or with ``method`` the object or class that has it.
    """

    target: t.Any
    method: str | None
    args: tuple[t.Any, ...] = ()
    kwargs: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)

    @property
    def performs(self) -> bool:
        """Whether it is an object that is asked to perform: such a one has options and hooks."""
        return self.method == "perform" and not inspect.isclass(self.target)

    def function(self) -> t.Callable[..., t.Any]:
        """Return what is to be called.

        :raises LookupError: when the target has no such public method.
        """
        found = self.target
        if self.method is not None:
            found = None if self.method.startswith("_") else getattr(self.target, self.method, None)
        if isinstance(found, Later | Bound):
            found = found.now
        if not inspect.isroutine(found):
            raise LookupError(f"{title(self)} is no public function or method.")
        return t.cast(t.Callable[..., t.Any], found)

    def check(self) -> None:
        """Refuse at the producer what could not be called.

        :raises Invalid: when there is no such function.
        :raises TypeError: when it does not take these arguments.
        """
        try:
            function = self.function()
        except LookupError as error:
            raise Invalid({"type": [str(error)]}) from error
        inspect.signature(function).bind(*self.args, **self.kwargs)

    def run(self, ensure_sync: t.Callable[..., t.Callable[..., t.Any]]) -> t.Any:
        """Make the call. :raises Fail: when the target has no such method any more."""
        try:
            function = self.function()
        except LookupError as error:
            raise Fail(str(error)) from error
        return ensure_sync(function)(*self.args, **self.kwargs)


def title(call: Call) -> str:
    """Return how a call is shown: ``Order.ship``, ``shop.import_csv``, of an object its class alone."""
    target = call.target
    own = target if hasattr(target, "__qualname__") else type(target)
    if call.method is None:
        return f"{own.__module__}.{own.__qualname__}"
    return own.__qualname__ if call.method == "perform" else f"{own.__qualname__}.{call.method}"


def call_of(target: t.Any, method: str | None, args: tuple[t.Any, ...], kwargs: dict[str, t.Any]) -> Call:
    """Return the call of a function, a bound method, or a method by its name."""
    if isinstance(target, types.ModuleType) and method is not None:
        target, method = getattr(target, method, None), None
    if method is None:
        if isinstance(target, Bound):
            target, method = target.target, target.later.__name__
        elif inspect.ismethod(target):
            target, method = target.__self__, target.__name__
        elif not isinstance(target, Later) and not inspect.isroutine(target):
            raise Invalid({"type": ["This is no function or method."]})
    return Call(target, method, args, kwargs)


def options_of(call: Call) -> dict[str, t.Any]:
    """Return the options that ``later`` was given for what is called."""
    found = call.target if call.method is None else getattr(call.target, call.method, None)
    found = found.later if isinstance(found, Bound) else found
    return found.options if isinstance(found, Later) else {}


class Codec:
    """Writes calls as the data of jobs, and reads them."""

    def __init__(self, serializer: Serializer) -> None:
        self._serializer = serializer

    @property
    def names(self) -> Names:
        return self._serializer.names

    def write(self, call: Call) -> dict[str, t.Any]:
        """Return a call as JSON. :raises Invalid: for what has no form, or is not declared."""
        data: dict[str, t.Any] = {"call": title(call), "target": self._serializer.write(call.target)}
        if call.method is not None:
            data["method"] = call.method
        return data | {
            "args": self._serializer.write(list(call.args)),
            "kwargs": {name: self._serializer.write(value) for name, value in call.kwargs.items()},
        }

    def read(self, data: t.Any) -> Call:
        """Return the call that is kept in data, its mapped objects loaded.

        :raises Fail: when it can be read no more, or names what is not declared.
        :raises Cancel: when it refers to a row that is gone.
        """
        shape = {"target": object, "args": list, "kwargs": dict, "method": str | None}
        if not isinstance(data, dict) or not all(isinstance(data.get(k), v) for k, v in shape.items()):
            raise Fail("The data is no call.")
        kwargs = {name: self._serializer.read(value) for name, value in data["kwargs"].items()}
        args = tuple(self._serializer.read(data["args"]))
        return Call(self._serializer.read(data["target"]), data.get("method"), args, kwargs)
