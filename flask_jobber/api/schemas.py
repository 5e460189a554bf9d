"""What goes over the wire, each shape once: for requests, answers and the OpenAPI document."""

from __future__ import annotations

import datetime as dt
import re
import typing as t

from marshmallow import Schema, ValidationError, fields, validate

from ..core import payload
from ..core.owners import REFERENCE
from ..core.states import State
from ..core.unique import Conflict

# marshmallow formats an error's text: braces stand twice.
_NAME_ERROR = f"A name matches {payload.NAME.pattern}.".replace("{", "{{").replace("}", "}}")
_Name = validate.Regexp(f"^{payload.NAME.pattern}\\Z", error=_NAME_ERROR)
_Series = validate.Regexp(r"^[A-Za-z0-9_.:~-]{1,100}\Z", error="This is no name of a series.")
_Reference = validate.Regexp(f"^{REFERENCE.pattern}\\Z", error="A reference is <table>/<key>.")
_STATES = [state.value for state in State]
_IDS = "[0-9]{1,18}(,[0-9]{1,18}){0,99}"


class Number(fields.Float):
    """A JSON number: neither a text that looks like one nor NaN."""

    def _deserialize(self, value: t.Any, attr: str | None, data: t.Any, **kwargs: t.Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class QueryNumber(Number):
    """A number in a query: digits and perhaps a point, not all that Python reads as one."""

    def _deserialize(self, value: t.Any, attr: str | None, data: t.Any, **kwargs: t.Any) -> float:
        if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", value):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(float(value), attr, data, **kwargs)


class QueryInteger(fields.Integer):
    """A whole number in a query."""

    def _deserialize(self, value: t.Any, attr: str | None, data: t.Any, **kwargs: t.Any) -> int:
        if not re.fullmatch("[0-9]{1,9}", value):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class Bool(fields.Boolean):
    """``true`` or ``false``."""

    def _deserialize(self, value: t.Any, attr: str | None, data: t.Any, **kwargs: t.Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Instant(fields.AwareDateTime):
    """RFC 3339; sent with ``Z``."""

    def _serialize(
        self, value: dt.datetime | None, attr: str | None, obj: t.Any, **kwargs: t.Any
    ) -> str | None:
        return None if value is None else wire_instant(value)


def wire_instant(value: dt.datetime) -> str:
    """Return an instant as it is sent: RFC 3339, UTC, microseconds, ``Z``."""
    return value.astimezone(dt.UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


class Unread(fields.Nested):
    """A JSON object that is read later, on its own, so that its errors spoil nothing beside it."""

    def _deserialize(
        self, value: t.Any, attr: str | None, data: t.Any, partial: t.Any = None, **kwargs: t.Any
    ) -> t.Any:
        if not isinstance(value, dict):
            raise self.make_error("type", input=value, type="object")
        return value


class Short(fields.List):  # type: ignore[type-arg]  # generic since marshmallow 4
    """A list whose length is checked before its items."""

    _longest = 1000

    def _deserialize(self, value: t.Any, attr: str | None, data: t.Any, **kwargs: t.Any) -> list[t.Any]:
        if isinstance(value, list) and len(value) > self._longest:
            raise ValidationError(f"At most {self._longest} items.")
        return super()._deserialize(value, attr, data, **kwargs)


class Unreads(Short):
    """A list of JSON objects that are read later."""

    def __init__(self, schema: type[Schema]) -> None:
        super().__init__(Unread(schema))

    def _deserialize(self, value: t.Any, attr: str | None, data: t.Any, **kwargs: t.Any) -> list[t.Any]:
        # As it would be item by item, without a call for each.
        if isinstance(value, list) and len(value) <= self._longest and all(type(v) is dict for v in value):
            return value
        return super()._deserialize(value, attr, data, **kwargs)


def _names() -> Short:
    return Short(fields.String(validate=_Name), validate=validate.Length(1))


class Empty(Schema):
    """No fields."""


EMPTY = Empty()


class ClaimBody(Schema):
    types = _names()
    queues = _names()
    limit = fields.Integer(
        strict=True,
        load_default=1,
        validate=validate.Range(1),
        metadata={"description": "At most MAX_CLAIM."},
    )
    lease_seconds = Number(validate=validate.Range(0, min_inclusive=False))
    wait_seconds = Number(load_default=0.0, validate=validate.Range(0))
    min_priority = fields.Integer(strict=True)
    max_priority = fields.Integer(strict=True)


class ExtendBody(Schema):
    lease_seconds = Number(validate=validate.Range(0, min_inclusive=False))
    progress = Number(validate=validate.Range(0, 1))
    note = fields.String(validate=validate.Length(max=payload.MAX_NOTE))


class ResultBody(Schema):
    result = fields.Raw(load_default=None, allow_none=True, metadata={"description": "Any JSON."})
    extras = fields.Dict(keys=fields.String(), allow_none=True)


class ErrorBody(Schema):
    type = fields.String(required=True, validate=validate.Length(1, payload.MAX_ERROR_TYPE))
    message = fields.String(required=True, validate=validate.Length(max=payload.MAX_ERROR_MESSAGE))
    traceback = fields.String(allow_none=True, metadata={"description": "Only the end is kept."})


class FailureBody(Schema):
    error = fields.Nested(ErrorBody, required=True)
    permanent = Bool(load_default=False)
    retry_seconds = Number(validate=validate.Range(0))
    cancel = Bool(
        load_default=False,
        metadata={"description": "Nobody is to do it: the job ends cancelled, no failure is counted."},
    )


class ReleaseBody(Schema):
    delay_seconds = Number(validate=validate.Range(0))


class ReleaseQuery(Schema):
    delay_seconds = QueryNumber(validate=validate.Range(0))


class _ItemKey(Schema):
    id = fields.Integer(strict=True, required=True)
    attempt = fields.Integer(strict=True, required=True)


class ResultItem(ResultBody, _ItemKey):
    pass


class FailureItem(FailureBody, _ItemKey):
    pass


class ExtensionItem(ExtendBody, _ItemKey):
    pass


class ReleaseItem(ReleaseBody, _ItemKey):
    pass


class ExchangeBody(Schema):
    results = Unreads(ResultItem)
    failures = Unreads(FailureItem)
    extensions = Unreads(ExtensionItem)
    releases = Unreads(ReleaseItem)
    claim = Unread(ClaimBody)


class ListQuery(Schema):
    cursor = fields.String(validate=validate.Regexp(r"^[0-9]{1,18}\Z", error="This is no cursor of ours."))
    limit = QueryInteger(load_default=50, validate=validate.Range(1, 100))
    state = fields.String(validate=validate.OneOf(_STATES))
    type = fields.String(validate=_Name)
    queue = fields.String(validate=_Name)
    series = fields.String(validate=_Series)
    owner = fields.String(
        validate=_Reference, metadata={"description": "The reference of a thing: <table>/<key>."}
    )
    batch = QueryInteger(validate=validate.Range(1))


class Ids(fields.Field):  # type: ignore[type-arg]  # generic since marshmallow 4
    """Ids of jobs in a query, with commas between them."""

    def _deserialize(self, value: t.Any, attr: str | None, data: t.Any, **kwargs: t.Any) -> tuple[int, ...]:
        if not re.fullmatch(_IDS, value):
            raise ValidationError("These are 1 to 100 ids, with commas between them.")
        return tuple(dict.fromkeys(int(text) for text in value.split(",")))


class EventsQuery(Schema):
    job = Ids(metadata={"type": "string", "pattern": f"^({_IDS})$", "description": "Ids: 7 or 7,8,9."})
    type = fields.String(validate=_Name)
    queue = fields.String(validate=_Name)
    owner = fields.String(
        validate=_Reference, metadata={"description": "The reference of a thing: <table>/<key>."}
    )


class EnqueueBody(Schema):
    type = fields.String(required=True, validate=_Name)
    data = fields.Raw(allow_none=True, metadata={"description": "Any JSON."})
    queue = fields.String(validate=_Name)
    priority = fields.Integer(strict=True)
    run_at = Instant()
    after_seconds = Number(validate=validate.Range(0))
    expires_at = Instant()
    max_attempts = fields.Integer(strict=True, validate=validate.Range(1))
    unique_key = fields.String(validate=validate.Length(1, payload.MAX_UNIQUE_KEY))
    on_conflict = fields.String(
        validate=validate.OneOf(t.get_args(Conflict)),
        metadata={"description": "What becomes of the job that has the unique_key; raise (409) otherwise."},
    )
    concurrency_key = fields.String(
        metadata={"description": "So many jobs of it at once as the app says, else one."},
        validate=validate.Length(1, payload.MAX_UNIQUE_KEY),
    )
    only_for = fields.String(metadata={"description": "The one locker, login or node that may have it."})
    only_for_seconds = Number(
        metadata={"description": "Others may have it too, so long after it is due."},
        validate=validate.Range(0, min_inclusive=False),
    )
    not_for = Short(fields.String(), metadata={"description": "Lockers, logins or nodes that may not."})
    repeat_after_success = Number(
        metadata={"description": "Another one, so many seconds after it succeeded, and so on."},
        validate=validate.Range(0),
    )
    repeat_after_failure = Number(
        metadata={"description": "Another one, so many seconds after it failed or expired, and so on."},
        validate=validate.Range(0),
    )
    columns = fields.Dict(
        keys=fields.String(),
        metadata={"description": "Columns of the app's own, those that it lets clients set."},
    )
    batch = fields.Integer(
        strict=True,
        validate=validate.Range(1, payload.MAX_ID),
        metadata={"description": "The batch that it is a member of; it needs a permission."},
    )
    beside = fields.Integer(
        strict=True,
        validate=validate.Range(1, payload.MAX_ID),
        metadata={"description": "A job that this client holds: the new one is in the same batch."},
    )


class AttachQuery(Schema):
    attempt = QueryInteger(
        validate=validate.Range(1),
        metadata={"description": "Of its holder: the file comes with the result, else with the job."},
    )


class Attachment(Schema):
    name = fields.String(required=True)
    size = fields.Integer(required=True)
    type = fields.String(required=True)
    sha256 = fields.String(required=True)
    href = fields.String(required=True)


class ClaimedJob(Schema):
    id = fields.Integer(required=True)
    type = fields.String(required=True)
    data = fields.Raw(required=True, allow_none=True)
    queue = fields.String(required=True)
    priority = fields.Integer(required=True)
    attempt = fields.Integer(required=True)
    failures = fields.Integer(required=True)
    max_attempts = fields.Integer(required=True)
    lease_seconds = fields.Float(required=True)
    enqueued_at = Instant(required=True)
    href = fields.String(required=True)
    attachments = fields.List(fields.Nested(Attachment), required=True)


class Claimed(Schema):
    jobs = fields.List(fields.Nested(ClaimedJob), required=True)
    retry_after = fields.Float(required=True, metadata={"description": "Seconds until the next claim."})


class Claims(Schema):
    jobs = fields.List(fields.Nested(ClaimedJob), required=True)


class Lease(Schema):
    lease_seconds = fields.Float(required=True)


class Settled(Schema):
    state = fields.String(required=True, validate=validate.OneOf(_STATES))


class Failed(Settled):
    run_at = Instant(required=True, allow_none=True)


class JobError(Schema):
    type = fields.String(required=True)
    message = fields.String(required=True)


class SeenJob(Schema):
    id = fields.Integer(required=True)
    type = fields.String(required=True)
    data = fields.Raw(required=True, allow_none=True)
    queue = fields.String(required=True)
    priority = fields.Integer(required=True)
    state = fields.String(required=True, validate=validate.OneOf(_STATES))
    attempt = fields.Integer(required=True)
    failures = fields.Integer(required=True)
    max_attempts = fields.Integer(required=True)
    progress = fields.Float(required=True, allow_none=True)
    note = fields.String(required=True, allow_none=True)
    result = fields.Raw(required=True, allow_none=True)
    error = fields.Nested(JobError, required=True, allow_none=True)
    enqueued_at = Instant(required=True)
    run_at = Instant(required=True)
    finished_at = Instant(required=True, allow_none=True)
    series = fields.String(
        required=True, allow_none=True, metadata={"description": "What repeated jobs have in common."}
    )
    owner = fields.String(required=True, allow_none=True, metadata={"description": "<table>/<key>"})
    batch = fields.Integer(
        required=True, allow_none=True, metadata={"description": "The job that waits for its end."}
    )
    href = fields.String(required=True)
    attachments = fields.List(fields.Nested(Attachment), required=True)


class SeenJobs(Schema):
    jobs = fields.List(fields.Nested(SeenJob), required=True)
    cursor = fields.String(required=True, allow_none=True, metadata={"description": "null on the last page."})


class Batch(Schema):
    id = fields.Integer(required=True)
    type = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(_STATES))
    data = fields.Raw(required=True, allow_none=True)
    owner = fields.String(required=True, allow_none=True, metadata={"description": "<table>/<key>"})
    total = fields.Integer(required=True, metadata={"description": "Members."})
    done = fields.Integer(required=True, metadata={"description": "Those that succeeded."})
    failed = fields.Integer(required=True, metadata={"description": "Those that failed or expired."})
    cancelled = fields.Integer(required=True)
    running = fields.Integer(required=True, metadata={"description": "Those that are held now."})
    left = fields.Integer(required=True, metadata={"description": "Those that have not ended."})
    rate = fields.Float(required=True, allow_none=True, metadata={"description": "Ends a second."})
    seconds_left = fields.Float(
        required=True, allow_none=True, metadata={"description": "Until all have ended, at this rate."}
    )
    enqueued_at = Instant(required=True, attribute="created_at")
    finished_at = Instant(required=True, allow_none=True)
    href = fields.String(required=True)


class HistoryError(JobError):
    traceback = fields.String(required=True, allow_none=True)


class HistoryRow(Schema):
    from_ = fields.String(required=True, allow_none=True, data_key="from", attribute="from_state")
    to = fields.String(required=True, attribute="to_state")
    at = Instant(required=True)
    attempt = fields.Integer(required=True)
    locker = fields.String(required=True, allow_none=True)
    by = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Who enqueued, cancelled or retried it by a request."},
    )
    reason = fields.String(required=True)
    error = fields.Nested(HistoryError, required=True, allow_none=True)


class History(Schema):
    history = fields.List(fields.Nested(HistoryRow), required=True)


class Problem(Schema):
    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    code = fields.String(required=True)
    retryable = fields.Boolean(required=True)
    errors = fields.Dict(keys=fields.String())
    then = fields.String(validate=validate.OneOf(["correct", "release", "exclude", "failed"]))


class ItemOutcome(Schema):
    id = fields.Integer(required=True)
    attempt = fields.Integer(required=True)
    status = fields.Integer(required=True)
    state = fields.String(validate=validate.OneOf(_STATES))
    run_at = Instant(allow_none=True)
    lease_seconds = fields.Float()
    type = fields.String()
    title = fields.String()
    detail = fields.String()
    code = fields.String()
    retryable = fields.Boolean()
    errors = fields.Dict(keys=fields.String())
    then = fields.String()


class Exchanged(Schema):
    outcomes = fields.List(fields.Nested(ItemOutcome), required=True)
    jobs = fields.List(fields.Nested(ClaimedJob), required=True)
    retry_after = fields.Float(required=True)
    claim = fields.Nested(Problem, metadata={"description": "Why the claim was refused, when it was."})


class Record(Schema):
    claims = fields.Integer(required=True)
    valid = fields.Integer(required=True)
    invalid = fields.Integer(required=True)
    lapses = fields.Integer(required=True)
    median_seconds = fields.Float(required=True, allow_none=True)


class Me(Schema):
    login = fields.String(required=True)
    node = fields.String(required=True, allow_none=True)
    blocked = fields.Boolean(required=True, metadata={"description": "Then it is handed nothing."})
    record = fields.Nested(
        Record,
        required=True,
        metadata={"description": "Of jobs that want several results, as it stood when the day (UTC) began."},
    )
    max_open_claims = fields.Integer(required=True, allow_none=True)
    claims_left_today = fields.Integer(required=True, allow_none=True)


class Answer(Schema):
    id = fields.Integer(required=True)
    is_ = fields.String(
        required=True,
        data_key="is",
        attribute="is",
        validate=validate.OneOf(["waiting", "held", "answered", "gone"]),
    )
    login = fields.String(required=True, allow_none=True)
    result = fields.Raw(required=True, allow_none=True)
    href = fields.String(required=True)


class Answers(Schema):
    answers = fields.List(fields.Nested(Answer), required=True)
