"""What an app tells a Jobber about itself: hooks, and what is known of each job type."""

from __future__ import annotations

import dataclasses
import typing as t

from marshmallow import Schema, ValidationError

from .errors import Invalid, InvalidResult, SetupError

Function = t.Callable[..., t.Any]
AnySchema = Schema | type[Schema]
_MOST_SCOPES = 500


@dataclasses.dataclass(slots=True)
class JobType:
    """What the app said about one type of work. All of it may be missing."""

    processor: Function | None = None
    on_failure: Function | None = None
    schema: Schema | None = None
    data_schema: Schema | None = None
    backoff: t.Any = None
    #: ``(job) -> None``, for the job of a batch whose members have ended.
    batch: Function | None = None
    #: Whether two results are the same, and what undoes one that is taken back.
    agreement: Function | None = None
    on_revoked: Function | None = None

    @property
    def takes_results(self) -> bool:
        """Whether a result passes through anything of the app's."""
        return self.processor is not None or self.schema is not None

    def load_result(self, result: t.Any) -> t.Any:
        """Return the result as its processor gets it.

        :raises InvalidResult: when it does not fit the schema.
        """
        if self.schema is None:
            return result
        try:
            return self.schema.load(result)
        except ValidationError as error:
            raise InvalidResult({"result": error.messages}) from error

    def check_data(self, data: t.Any) -> None:
        """Refuse input that does not fit the schema.

        :raises Invalid: with the schema's messages.
        """
        if self.data_schema is not None:
            try:
                self.data_schema.load(data)
            except ValidationError as error:
                raise Invalid({"data": error.messages}) from error


class Registry:
    """The hooks, types and feedback of one Jobber. Closed by its first request."""

    def __init__(self) -> None:
        self.hooks: dict[str, Function] = {}
        self.types: dict[str, JobType] = {}
        #: What single jobs name to be called at their end.
        self.feedback: dict[str, Function] = {}
        self.closed = False
        #: The forms of scope that have been looked at, see ``api/identity.py``.
        self.checked_scopes: set[t.Hashable] = set()

    def add_hook(self, name: str, function: Function) -> None:
        """Register the only function of a hook.

        :raises SetupError: when there is one already, or after the first request.
        """
        self._check_open(f"the {name} hook")
        if name in self.hooks:
            raise SetupError(
                f"There is a {name} hook already: {self.hooks[name]!r}. A Jobber has one of each."
            )
        self.hooks[name] = function

    def add_type(self, name: str, **facts: t.Any) -> None:
        """Add what is given (not ``None``) to what is known of a type.

        :raises SetupError: when one of it was said before, or after the first request.
        """
        self._check_open(f"anything for the type {name!r}")
        known = self.types.setdefault(name, JobType())
        for key, value in facts.items():
            if value is None:
                continue
            if getattr(known, key) is not None:
                raise SetupError(f"The type {name!r} has its {key} already; a type has one.")
            setattr(known, key, value() if isinstance(value, type) else value)

    def add_feedback(self, name: str, function: Function) -> None:
        """Register the function that jobs may name.

        :raises SetupError: when the name is taken, or after the first request.
        """
        self._check_open(f"the feedback {name!r}")
        if name in self.feedback:
            raise SetupError(f"There is a feedback {name!r} already: {self.feedback[name]!r}.")
        self.feedback[name] = function

    def note_scope(self, key: t.Hashable) -> None:
        """Remember a form of scope that has been looked at."""
        if len(self.checked_scopes) >= _MOST_SCOPES:  # a hook that writes its values into the SQL
            self.checked_scopes.clear()
        self.checked_scopes.add(key)

    def _check_open(self, what: str) -> None:
        if self.closed:
            raise SetupError(
                f"Register {what} before the first request: import the module that does it"
                " where the app is created."
            )
