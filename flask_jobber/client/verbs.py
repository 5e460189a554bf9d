"""One method for each verb of the protocol."""

from __future__ import annotations

import datetime as dt
import threading
import typing as t
import uuid

import httpx2

from .events import Events
from .files import Files
from .line import Line, keep
from .records import (
    JSON,
    Batch,
    ClaimedJob,
    Exchange,
    Held,
    HistoryRow,
    Job,
    claimed,
    delivery,
    exchanged,
    failure,
    given,
    instant,
    load,
    name,
    quoted,
)
from .transport import (
    BATCH,
    CANCEL,
    CANCEL_BATCH,
    CLAIM,
    CLAIMS,
    DELIVER,
    ENQUEUE,
    EXCHANGE,
    EXTEND,
    FAIL,
    HISTORY,
    JOB,
    JOBS,
    RELEASE,
    RETRY,
    Transport,
)
from .work import Handler, Loop

if t.TYPE_CHECKING:
    from httpx2._types import AuthTypes, CookieTypes, HeaderTypes

#: What an exchange takes: a job, and in their order the arguments of deliver and of fail.
Result = tuple[Held, JSON] | tuple[Held, JSON, t.Mapping[str, t.Any] | None]
Failed = BaseException | str | t.Mapping[str, t.Any]
Failure = (
    tuple[Held, Failed]
    | tuple[Held, Failed, bool]
    | tuple[Held, Failed, bool, float | None]
    | tuple[Held, Failed, bool, float | None, bool]
)


class JobberClient(Files):
    """One login's view of a flask_jobber app. Threads may share it; close it, or use ``with``.

    Every method raises a :class:`ClientError`, and :class:`Disconnected` when no answer came.

    :param base_url: the blueprint's address, prefix included: ``https://example.org/jobber``.
    :param auth: a bearer token, :class:`ClientCredentials`, or anything httpx2 takes.
    :param node: names this machine among those of the same login.
    :param timeout: seconds to wait for the network in one try.
    :param patience: seconds after which a call is not tried again; ``0`` tries once,
        ``math.inf`` waits out any outage.
    :param options: more for :class:`httpx2.Client`: ``verify``, ``proxy``, ``transport``, ….
    :raises ValueError: when ``base_url`` is no address of the web.
    """

    def __init__(
        self,
        base_url: str,
        auth: str | AuthTypes | None = None,
        *,
        headers: HeaderTypes | None = None,
        cookies: CookieTypes | None = None,
        node: str | None = None,
        timeout: float = 30,
        patience: float = 60,
        **options: t.Any,
    ) -> None:
        if httpx2.URL(base_url).scheme not in ("http", "https"):
            raise ValueError(f"base_url begins with http:// or https://, unlike {base_url!r}.")
        self._options = options | {
            "base_url": base_url,
            "auth": _bearer(auth) if isinstance(auth, str) else auth,
            "headers": _headers(headers, node),
            "cookies": httpx2.Cookies(cookies).jar,  # shared by all its connections
            "timeout": timeout,
        }
        self._transport = Transport(httpx2.Client(**self._options), timeout, patience)

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def claim(
        self,
        types: t.Sequence[str] | None = None,
        limit: int = 1,
        *,
        queues: t.Sequence[str] | None = None,
        lease_seconds: float | None = None,
        wait_seconds: float | None = None,
        min_priority: int | None = None,
        max_priority: int | None = None,
    ) -> list[ClaimedJob]:
        """Claim up to ``limit`` jobs; an empty list when there is none.

        :param types: of these types only; ``None`` for any.
        :param lease_seconds: how long to hold them; ``None`` leaves it to the server.
        :param wait_seconds: how long the server may wait for a job to come.
        :param min_priority: of this priority at least; ``max_priority``: at most.
        :raises Invalid: when the server does not take an argument.
        :raises TooManyClaims: when this login holds as many as it may, for all of ``patience``.
        """
        lengths = given(lease_seconds=lease_seconds, wait_seconds=wait_seconds)
        priorities = given(min_priority=min_priority, max_priority=max_priority)
        body = given(types=types, queues=queues, limit=limit) | lengths | priorities
        return claimed(self._transport.call(CLAIM, body=body, wait_seconds=wait_seconds))

    def line(self, patience: float = 0) -> Line:
        """Return a connection for claims that wait, which another thread may end. Close it."""
        own = {"limits": httpx2.Limits(max_connections=1), "transport": keep(self._options.get("transport"))}
        return Line(httpx2.Client(**self._options | own), self._transport.timeout, patience)

    def claims(self) -> list[ClaimedJob]:
        """Return what this login (and node) holds now, to resume after a crash."""
        return claimed(self._transport.call(CLAIMS))

    def deliver(self, job: ClaimedJob, result: JSON, extras: t.Mapping[str, t.Any] | None = None) -> str:
        """Hand in the result; return the job's state: succeeded, or submitted until it is used.

        :param extras: what there is to say beside the result.
        :raises ResultRefused: when it does not fit, or the app rejects it.
        :raises LeaseLost, Cancelled, AlreadySettled, NotFound: when the job is not held, or no more.
        :raises Invalid, TooLarge: when the server takes no such JSON.
        :raises TypeError, ValueError, RecursionError: when it is not JSON; nothing was sent.
        """
        state: str = self._transport.call(DELIVER, job.id, job.attempt, body=delivery(result, extras))[
            "state"
        ]
        return state

    def fail(
        self,
        job: ClaimedJob,
        error: Failed,
        permanent: bool = False,
        retry_seconds: float | None = None,
        cancel: bool = False,
    ) -> str:
        """Report a failure; return the state: ``scheduled`` for another try, ``failed`` or ``cancelled``.

        :param error: an exception, told with its traceback, a text, or ``{type, message, traceback}``.
        :param permanent: trying again is no use.
        :param retry_seconds: a lower bound on the wait before the next try.
        :param cancel: nobody is to do it: the job ends cancelled, no failure is counted.
        :raises LeaseLost, Cancelled, AlreadySettled, NotFound: when the job is not held, or no more.
        """
        body = failure(error, permanent, retry_seconds, cancel)
        state: str = self._transport.call(FAIL, job.id, job.attempt, body=body)["state"]
        return state

    def extend(
        self,
        job: ClaimedJob,
        lease_seconds: float | None = None,
        *,
        progress: float | None = None,
        note: str | None = None,
    ) -> float:
        """Hold the job longer; return for how many seconds from now.

        :param lease_seconds: ``None`` grants the last length again.
        :param progress: 0 to 1.
        :param note: a text for people, up to 500 characters.
        :raises LeaseLost, Cancelled, AlreadySettled, NotFound: when the job is not held, or no more.
        """
        body = given(lease_seconds=lease_seconds, progress=progress, note=note)
        return float(self._transport.call(EXTEND, job.id, job.attempt, body=body)["lease_seconds"])

    def release(self, job: ClaimedJob, delay_seconds: float | None = None) -> None:
        """Give the job back unworked; that counts as no failure.

        :param delay_seconds: how long nobody gets it.
        :raises LeaseLost, Cancelled, AlreadySettled, NotFound: when the job is not held, or no more.
        """
        self._transport.call(RELEASE, job.id, job.attempt, params=given(delay_seconds=delay_seconds))

    def exchange(
        self,
        *,
        results: t.Iterable[Result] = (),
        failures: t.Iterable[Failure] = (),
        extensions: t.Iterable[Held | tuple[Held, t.Mapping[str, t.Any]]] = (),
        releases: t.Iterable[Held | tuple[Held, float]] = (),
        claim: t.Mapping[str, t.Any] | None = None,
    ) -> Exchange:
        """Settle many jobs and claim the next in one round trip. A refused item spoils no other.

        When an answer was lost, the repetition tells ``lease_lost`` of releases that were done.

        :param results: ``(job, result)`` or ``(job, result, extras)``.
        :param failures: ``(job, error)``, and in this order what else :meth:`fail` takes.
        :param extensions: jobs, or ``(job, {"progress": …, "note": …, "lease_seconds": …})``.
        :param releases: jobs, or ``(job, delay_seconds)``.
        :param claim: the arguments of :meth:`claim`; ``{}`` claims one job of any type.
        :raises Invalid: when the whole is not as the server wants it; then nothing was done.
        """
        body = {
            "results": [name(job) | delivery(*rest) for job, *rest in results],
            "failures": [name(job) | failure(*rest) for job, *rest in failures],
            "extensions": [name(job) | given(**said) for job, said in _pairs(extensions, {})],
            "releases": [name(job) | given(delay_seconds=delay) for job, delay in _pairs(releases, None)],
        } | given(claim=claim)
        wait_seconds = (claim or {}).get("wait_seconds")
        return exchanged(self._transport.call(EXCHANGE, body=body, wait_seconds=wait_seconds))

    def enqueue(
        self,
        type: str,
        data: JSON = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        run_at: dt.datetime | None = None,
        after_seconds: float | None = None,
        expires_at: dt.datetime | None = None,
        max_attempts: int | None = None,
        unique_key: str | None = None,
        on_conflict: t.Literal["raise", "skip", "replace", "reschedule"] | None = None,
        concurrency_key: str | None = None,
        only_for: str | None = None,
        only_for_seconds: float | None = None,
        not_for: t.Sequence[str] | None = None,
        repeat_after_success: float | None = None,
        repeat_after_failure: float | None = None,
        batch: int | None = None,
        beside: int | None = None,
        idempotency_key: str | None = None,
        **columns: JSON,
    ) -> Job:
        """Enqueue a job: one, however often it is sent until there is an answer.

        :param run_at, expires_at: aware instants.
        :param on_conflict: what becomes of the unfinished job that has the ``unique_key``, which is then
            returned: ``skip`` leaves it, ``replace`` gives it this one's content, ``reschedule`` its time.
        :param concurrency_key: so many jobs of it are in the pool at once as the app says.
        :param only_for: the one locker, login or node that may have it; ``not_for``: those that may not.
        :param only_for_seconds: so long after it is due others may have it too.
        :param repeat_after_success: make another one so many seconds after it succeeded, and so on;
            ``repeat_after_failure``: after it failed or expired.
        :param batch: the id of the batch that it is a member of; ``beside``: that of a job that this
            client holds, whose batch it is to be in.
        :param idempotency_key: 1 to 255 visible ASCII characters; a new one otherwise. Give one of
            your own to enqueue once from several calls, such as before and after a crash.
        :param columns: the app's own columns, those that it lets clients set.
        :raises Forbidden: when this login may enqueue no such job.
        :raises BatchEnded, NotFound: when nothing can be added to the batch.
        :raises QueueFull: when its queue has no room, for all of ``patience``.
        :raises Duplicate: when an unfinished job has the ``unique_key``, and ``on_conflict`` says nothing,
            or it has been begun and cannot be changed any more.
        :raises KeyReused: when the ``idempotency_key`` was sent with other arguments.
        :raises Invalid, TooLarge: when the server does not take an argument.
        :raises TypeError, ValueError, RecursionError: when an argument is not JSON, or an instant is naive.
        """
        body = {"type": type, "data": data} | given(
            queue=queue,
            priority=priority,
            run_at=instant(run_at),
            after_seconds=after_seconds,
            expires_at=instant(expires_at),
            max_attempts=max_attempts,
            unique_key=unique_key,
            on_conflict=on_conflict,
            concurrency_key=concurrency_key,
            only_for=only_for,
            only_for_seconds=only_for_seconds,
            not_for=not_for,
            repeat_after_success=repeat_after_success,
            repeat_after_failure=repeat_after_failure,
            batch=batch,
            beside=beside,
            columns=columns or None,
        )
        headers = {
            "Idempotency-Key": quoted(uuid.uuid4().hex if idempotency_key is None else idempotency_key)
        }
        return load(Job, self._transport.call(ENQUEUE, body=body, headers=headers))

    def cancel(self, id: int) -> Job:
        """End an unfinished job.

        :raises IllegalTransition: when it has ended.
        :raises Forbidden, NotFound: when this login may not.
        """
        return load(Job, self._transport.call(CANCEL, id))

    def retry(self, id: int) -> Job:
        """Take a failed, cancelled or expired job back into the pool.

        :raises IllegalTransition: when it is none of these.
        :raises Forbidden, NotFound: when this login may not.
        """
        return load(Job, self._transport.call(RETRY, id))

    def batch(self, id: int) -> Batch:
        """Return how far a batch is. :raises NotFound: when there is none that this login may see."""
        return load(Batch, self._transport.call(BATCH, id))

    def cancel_batch(self, id: int) -> Batch:
        """End a batch and cancel its members. :raises: as :meth:`cancel`."""
        return load(Batch, self._transport.call(CANCEL_BATCH, id))

    def job(self, id: int) -> Job:
        """Return a job.

        :raises NotFound: when there is none that this login may see.
        """
        return load(Job, self._transport.call(JOB, id))

    def jobs(
        self,
        *,
        state: str | None = None,
        type: str | None = None,
        queue: str | None = None,
        series: str | None = None,
        owner: str | None = None,
        batch: int | None = None,
        page_size: int | None = None,
    ) -> t.Iterator[Job]:
        """Yield the jobs that this login may see, by id, asking for page after page.

        :param owner: the reference of a thing, ``<table>/<key>``.
        :raises Invalid: when the server does not take an argument.
        """
        narrow = given(state=state, type=type, queue=queue, series=series, owner=owner, batch=batch)
        params = narrow | given(limit=page_size)
        while True:
            page = self._transport.call(JOBS, params=params)
            yield from (load(Job, job) for job in page["jobs"])
            if page["cursor"] is None:
                return
            params["cursor"] = page["cursor"]

    def events(
        self,
        *,
        job: int | t.Iterable[int] | None = None,
        type: str | None = None,
        queue: str | None = None,
        owner: str | None = None,
        cursor: str | None = None,
    ) -> t.Generator[Job, None, None]:
        """Yield jobs that this login may see whenever they are changed, as they are then.

        It goes on by itself after a lost connection, where it was: a job may be told twice, none
        is missed. Where the server cannot say any more what has changed, all that are asked for
        are told. Close it to end it; leaving a loop over it does when nothing else holds it.

        :param job: the id or up to 100 ids of those to hear of.
        :param cursor: the ``Last-Event-ID`` from which to go on; it begins now otherwise.
        :raises LoginRequired: when the login has ended.
        :raises Invalid: when the server does not take an argument.
        :raises Disconnected: when the server is away for all of ``patience``.
        """
        ids = None if job is None else [job] if isinstance(job, int) else list(job)
        narrow = given(type=type, queue=queue, owner=owner)
        params = narrow | given(job=None if ids is None else ",".join(map(str, ids)))
        heard = Events(self._transport, params, lambda: self.jobs(**narrow), cursor)
        yield from heard.hear()

    def history(self, id: int) -> list[HistoryRow]:
        """Return the transitions of a job, oldest first.

        :raises NotFound: when there is no such job that this login may see.
        """
        rows = self._transport.call(HISTORY, id)["history"]
        return [load(HistoryRow, row | {"from_": row["from"]}) for row in rows]

    def work(
        self,
        handlers: t.Mapping[str, Handler],
        until_empty: bool = False,
        stop: threading.Event | None = None,
        *,
        wait_seconds: float = 25,
    ) -> int:
        """Claim, do and deliver one job after the other; return how many results the server took.

        A job is held by heartbeats at every third of its lease while its handler runs; when they
        tell that it is held no longer, its result is dropped. A handler that raises, or returns
        what is not deliverable, has failed. ``KeyboardInterrupt`` and ``SystemExit`` release the
        job and leave the loop.

        :param handlers: type to what does the work: it takes the :class:`ClaimedJob` and returns the result.
        :param until_empty: end when no job is due, or when no answer comes for all of
            ``patience``; otherwise both are waited out.
        :param stop: ends the loop, once the job at hand is done, and the waiting for one.
        :param wait_seconds: how long the server may wait for a job to come before it is asked again.
        :raises ClientError: what is not ``retryable``: the login has ended, ….
        """
        return Loop(self, self._transport, handlers, wait_seconds).run(until_empty, stop or threading.Event())


def _pairs(items: t.Iterable[t.Any], without: t.Any) -> list[tuple[t.Any, t.Any]]:
    return [item if isinstance(item, tuple) else (item, without) for item in items]


def _bearer(token: str) -> t.Callable[[httpx2.Request], httpx2.Request]:
    def sign(request: httpx2.Request) -> httpx2.Request:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


def _headers(headers: HeaderTypes | None, node: str | None) -> httpx2.Headers:
    merged = httpx2.Headers(headers)
    merged.setdefault("Accept", "application/json")
    if node is not None:
        merged["Jobber-Node"] = node
    return merged
