"""What goes over the wire, as Python has it: frozen records in, plain mappings out."""

from __future__ import annotations

import dataclasses
import datetime as dt
import traceback as tb
import typing as t

from .errors import ClientError, from_problem

JSON = t.Any
_MAX_ERROR_TYPE = 200
_MAX_MESSAGE = 2_000
_MAX_TRACEBACK = 20_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file of a job.

    :param size: bytes.
    :param sha256: in hexadecimal.
    """

    name: str
    size: int
    type: str
    sha256: str
    href: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """A job that was handed out to this client.

    :param attempt: the number of the hand-out; with ``id`` it names what is held.
    :param lease_seconds: how long it is held from the hand-out, unless extended.
    :param enqueued_at: an aware instant.
    :param href: the path of this attempt on the server.
    """

    id: int
    type: str
    data: JSON = dataclasses.field(hash=False)
    queue: str
    priority: int
    attempt: int
    failures: int
    max_attempts: int
    lease_seconds: float
    enqueued_at: dt.datetime
    href: str
    attachments: tuple[Attachment, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as one who may see it sees it; who holds it is not told.

    :param progress: 0 to 1, from the holder's heartbeats.
    :param result: ``None`` also when this login may not see it.
    :param series: what repeated jobs have in common.
    :param owner: the reference of the thing it is for, ``<table>/<key>``.
    :param batch: the id of the batch, or the job, that waits for its end.
    """

    id: int
    type: str
    data: JSON = dataclasses.field(hash=False)
    queue: str
    priority: int
    state: str
    attempt: int
    failures: int
    max_attempts: int
    progress: float | None
    note: str | None
    result: JSON = dataclasses.field(hash=False)
    error: JSON = dataclasses.field(hash=False)
    enqueued_at: dt.datetime
    run_at: dt.datetime | None
    finished_at: dt.datetime | None
    series: str | None = None
    owner: str | None = None
    batch: int | None = None
    href: str
    attachments: tuple[Attachment, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How far a batch is.

    :param total: its members; of them ``done`` succeeded, ``failed`` failed or expired, ``running``
        are held and ``left`` have not ended.
    :param rate: ends a second; ``seconds_left`` until all have ended, at this rate.
    """

    id: int
    type: str
    state: str
    data: JSON = dataclasses.field(hash=False)
    owner: str | None
    total: int
    done: int
    failed: int
    cancelled: int
    running: int
    left: int
    rate: float | None
    seconds_left: float | None
    enqueued_at: dt.datetime
    finished_at: dt.datetime | None
    href: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRow:
    """One transition of a job. ``from_`` is the wire's ``from``, a keyword of Python's.

    :param locker: who held it, or holds it now; ``None`` also when this login may not know.
    :param by: who enqueued, cancelled or retried it by a request, likewise.
    """

    from_: str | None
    to: str
    at: dt.datetime
    attempt: int
    locker: str | None
    reason: str | None
    by: str | None = None
    error: JSON = dataclasses.field(hash=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one item of an exchange.

    :param status: what the single call would have answered.
    :param state: the job's state now, for a result or a failure.
    :param lease_seconds: for how long it is held from now, for an extension.
    :param error: ``None`` when the item was taken.
    """

    id: int
    attempt: int
    status: int
    state: str | None = None
    lease_seconds: float | None = None
    error: ClientError | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The answer to an exchange.

    :param outcomes: of the results, failures, extensions, releases, each in the order given.
    :param jobs: what was claimed.
    :param retry_after: seconds to wait before the next claim when there was no job.
    :param claim_error: why the claim was refused; the outcomes hold all the same.
    """

    outcomes: tuple[Outcome, ...]
    jobs: tuple[ClaimedJob, ...]
    retry_after: float | None
    claim_error: ClientError | None


def given(**fields: t.Any) -> dict[str, t.Any]:
    """Return those that are not ``None``: the server has its own defaults."""
    return {name: value for name, value in fields.items() if value is not None}


class Held(t.Protocol):
    """Whatever tells which hand-out of which job it is."""

    @property
    def id(self) -> int: ...

    @property
    def attempt(self) -> int: ...


def name(job: Held) -> dict[str, int]:
    return {"id": job.id, "attempt": job.attempt}


def delivery(result: JSON, extras: t.Mapping[str, t.Any] | None = None) -> dict[str, t.Any]:
    return {"result": result} | given(extras=extras)


def failure(
    error: BaseException | str | t.Mapping[str, t.Any],
    permanent: bool = False,
    retry_seconds: float | None = None,
    cancel: bool = False,
) -> dict[str, t.Any]:
    said = _said(error)
    # What an older server does not know is not said without need.
    return {"error": said, "permanent": permanent} | given(retry_seconds=retry_seconds, cancel=cancel or None)


def _said(error: BaseException | str | t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    if isinstance(error, BaseException):
        return _describe(error)
    return {"type": "Error", "message": _cut(error)} if isinstance(error, str) else dict(error)


def _describe(error: BaseException) -> dict[str, str]:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    told = tb.TracebackException.from_exception(error)  # survives a __str__ that breaks
    return {
        "type": name[-_MAX_ERROR_TYPE:],
        "message": _cut(str(told)),
        "traceback": _clean("".join(told.format()))[-_MAX_TRACEBACK:],
    }


def _cut(message: str) -> str:
    return _clean(message)[:_MAX_MESSAGE]


def _clean(text: str) -> str:
    """Return a text without what the server refuses in texts."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def quoted(key: str) -> str:
    """Return an idempotency key as its header has it. :raises ValueError: for what no header holds."""
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"An idempotency key is of visible ASCII characters, unlike {key!r}.")
    return '"' + key.replace("\\", r"\\").replace('"', r"\"") + '"'


def instant(value: dt.datetime | None) -> str | None:
    if value is not None and value.tzinfo is None:
        raise ValueError(f"An instant has a time zone, unlike {value!r}.")
    return value.isoformat() if value else None


def claimed(answer: t.Mapping[str, t.Any]) -> list[ClaimedJob]:
    return [load(ClaimedJob, job) for job in answer["jobs"]]


def exchanged(answer: t.Mapping[str, t.Any]) -> Exchange:
    refused = answer.get("claim")
    return Exchange(
        outcomes=tuple(_outcome(item) for item in answer["outcomes"]),
        jobs=tuple(claimed(answer)),
        retry_after=answer["retry_after"],
        claim_error=refused and from_problem(refused["status"], refused),
    )


def _outcome(item: dict[str, t.Any]) -> Outcome:
    return load(Outcome, item | {"error": from_problem(item["status"], item) if "code" in item else None})


_Loaded = t.TypeVar("_Loaded", Attachment, Batch, ClaimedJob, Job, HistoryRow, Outcome)


def load(cls: type[_Loaded], body: t.Mapping[str, t.Any]) -> _Loaded:
    """Return an object of the fields that it has; what a newer server says beside them is left out."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: _parsed(name, value) for name, value in body.items() if name in names})


def _parsed(name: str, value: t.Any) -> t.Any:
    if name == "attachments":
        return tuple(load(Attachment, one) for one in value)
    is_instant = (name == "at" or name.endswith("_at")) and value is not None
    return dt.datetime.fromisoformat(value) if is_instant else value
