"""A route, what it takes, what it answers and how it refuses, said once beside its view."""

from __future__ import annotations

import dataclasses
import json
import typing as t

from flask import Request, Response
from marshmallow import Schema
from webargs import ValidationError
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from ..core.payload import MAX_DEPTH
from ..errors import Invalid, TooLarge
from .problems import BrokenJson, NotJson
from .schemas import EMPTY

View = t.Callable[..., Response]
# Of any endpoint that needs a login; of any that changes something.
_ALWAYS = ("login_required", "invalid", "internal", "busy")
_UNSAFE = ("cross_site", "too_large", "not_json", "broken_json")
_UNSAFE_STREAM = ("cross_site", "too_large", "broken_body")


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table of endpoints.

    :param answers: status to schema; ``None`` is an answer without a JSON body.
    :param refusals: the codes of its own, besides those that all share.
    :param public: needs no login.
    :param large: its body carries data or results.
    :param headers: those that it heeds, besides those that all do: name to what it is.
    :param stream: its body is bytes, which the view reads.
    :param mimetype: what it answers with when that is no JSON, if there is one for all.
    """

    method: str
    rule: str
    view: View
    body: Schema = EMPTY
    query: Schema = EMPTY
    answers: t.Mapping[int, Schema | None] = dataclasses.field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    public: bool = False
    large: bool = False
    headers: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    stream: bool = False
    mimetype: str | None = None

    @property
    def name(self) -> str:
        return self.view.__name__

    @property
    def takes_body(self) -> bool:
        return self.method not in ("GET", "DELETE") and not self.stream

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code with which this endpoint may refuse."""
        if self.public:
            return ("internal",)
        if self.stream:
            return tuple(dict.fromkeys((*_ALWAYS, *_UNSAFE_STREAM, *self.refusals)))
        unsafe = _UNSAFE if self.takes_body else _UNSAFE[:1] if self.method == "DELETE" else ()
        return tuple(dict.fromkeys((*_ALWAYS, *unsafe, *self.refusals)))

    def arguments(self, request: Request, max_bytes: int) -> dict[str, t.Any]:
        """Return the request's arguments, checked.

        :raises TooLarge, NotJson, BrokenJson, Invalid: in this order.
        """
        values: dict[str, t.Any] = {}
        if self.public:  # a query is nothing but a way past caches
            return values
        if self.takes_body:
            _limit(request, max_bytes)
            values |= _parser.parse(self.body, request, location="json")
        if twice := [name for name, said in request.args.lists() if len(said) > 1]:
            raise Invalid({name: ["Say this once."] for name in twice[:_MOST_ERRORS]})
        if request.args or self.query is not EMPTY:
            values |= _parser.parse(self.query, request, location="query")
        return values


_MOST_ERRORS = 20
_LONGEST_NAME = 100
OPERATIONS: list[Operation] = []


def operation(method: str, rule: str, **facts: t.Any) -> t.Callable[[View], View]:
    """Add a view to the table of endpoints, see :class:`Operation`."""

    def register(view: View) -> View:
        OPERATIONS.append(Operation(method, rule, view, **facts))
        return view

    return register


class _Parser(FlaskParser):
    """Strict: an unknown field is an error, and JSON is what the RFC says."""

    DEFAULT_UNKNOWN_BY_LOCATION = {"json": "raise", "query": "raise"}  # noqa: RUF012

    def load_json(self, req: Request, schema: Schema) -> t.Any:
        return read_json(req)

    def handle_error(
        self, error: ValidationError, req: Request, schema: Schema, **kwargs: t.Any
    ) -> t.NoReturn:
        # webargs puts the location above the fields.
        messages = next(iter(error.messages_dict.values()))
        raise invalid(ValidationError(messages)) from error


_parser = _Parser()


def invalid(error: ValidationError) -> Invalid:
    """Return marshmallow's error as ours, with the first of its messages: an answer stays small."""
    messages = error.messages if isinstance(error.messages, dict) else {"_schema": error.messages}
    return Invalid(_first(messages, iter(range(_MOST_ERRORS))))


def _first(messages: t.Mapping[t.Any, t.Any], room: t.Iterator[int]) -> dict[str, t.Any]:
    kept = {}
    for name, said in messages.items():
        if next(room, None) is None:
            break
        kept[str(name)[:_LONGEST_NAME]] = _first(said, room) if isinstance(said, dict) else said[:1]
    return kept


def _limit(request: Request, max_bytes: int) -> None:
    most = min(max_bytes, request.max_content_length or max_bytes)
    if (request.content_length or 0) > most:
        raise TooLarge(f"The body is over {most} bytes.")
    # A body that does not tell its length would be cut there without a word: see one byte more.
    request.max_content_length = most + 1


def read_json(request: Request) -> t.Any:
    """Return the JSON object in a request's body; an empty body is an empty object.

    :raises NotJson, BrokenJson, Invalid: when there is none.
    """
    body = _read(request)
    if not body:
        return {}
    if not request.is_json:
        raise NotJson
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenJson(f"The body is not JSON in UTF-8: {error}.") from error
    except RecursionError as error:
        raise Invalid({"_schema": [f"It may not nest over {MAX_DEPTH} deep."]}) from error
    except ValueError as error:  # a constant, or an integer of thousands of digits
        raise BrokenJson(f"The body is not JSON that can be read: {error}.") from error
    if not isinstance(value, dict):
        raise Invalid({"_schema": ["The body is a JSON object."]})
    return value


def _read(request: Request) -> bytes:
    most = (request.max_content_length or 0) - 1
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge as error:
        raise TooLarge(f"The body is over {most} bytes.") from error
    except BadRequest as error:  # the client went away, or its chunks are broken
        raise BrokenJson("The body could not be read.") from error
    if len(body) > most:
        raise TooLarge(f"The body is over {most} bytes.")
    return body


def _refuse_constant(name: str) -> t.NoReturn:
    raise ValueError(f"{name} is no JSON")
