"""Functions and methods that become jobs when they are called."""

from __future__ import annotations

import functools
import inspect
import typing as t

from ..errors import Invalid, SetupError

#: ``(target, method, args, kwargs, options)`` to a job.
Send = t.Callable[..., t.Any]


class Later:
    """A function or method that enqueues a call of itself; :meth:`now` calls it.

    Of a method the object must be what data may name: mapped, or of a declared class.
    """

    def __init__(self, function: t.Any, options: t.Mapping[str, t.Any], send: Send) -> None:
        if not isinstance(function, classmethod | staticmethod) and not inspect.isfunction(function):
            raise SetupError(f"later is for functions and methods, not for {function!r}.")
        functools.update_wrapper(self, t.cast(t.Any, function))
        self.function: t.Any = function
        #: Calls it.
        self.now: t.Any = function.__func__ if isinstance(function, staticmethod) else function
        self.options = dict(options)
        self._send = send

    def __set_name__(self, owner: type[t.Any], name: str) -> None:
        self.__name__ = name

    def __get__(self, instance: t.Any, owner: type[t.Any] | None = None) -> Later | Bound:
        bound = self.function.__get__(instance, owner)
        return Bound(self, bound) if inspect.ismethod(bound) else self

    def __call__(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Enqueue a call; return the job."""
        return self._send(self, None, args, kwargs, self.options)


class Bound:
    """A method that enqueues a call of itself on its object."""

    def __init__(self, later: Later, method: t.Any) -> None:
        functools.update_wrapper(self, method)
        self.later = later
        self.target = method.__self__
        self.now = method

    def __call__(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Enqueue a call; return the job. :raises Invalid: by ``super()``, which data cannot name."""
        name = self.later.__name__
        if getattr(getattr(self.target, name, None), "later", None) is not self.later:
            # The job would call the method that overrides this one, which would call this one again.
            raise Invalid({"type": [f"{name} is overridden here: call this one by .now(...)."]})
        return self.later._send(self.target, name, args, kwargs, self.later.options)


class Delay:
    """What stands for an object, module or class: its methods enqueue calls of themselves."""

    def __init__(self, target: t.Any, options: t.Mapping[str, t.Any], send: Send) -> None:
        self._target = target
        self._options = options
        self._send = send

    def __getattr__(self, name: str) -> t.Callable[..., t.Any]:
        if name.startswith("_"):
            raise AttributeError(f"{name} is no public method.")

        def enqueue(*args: t.Any, **kwargs: t.Any) -> t.Any:
            return self._send(self._target, name, args, kwargs, self._options)

        return enqueue
