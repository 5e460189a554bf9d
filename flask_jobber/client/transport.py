"""Sending and sending again: which calls stand a lost answer is one table (:class:`Verb`)."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
import typing as t

import httpx2

from .errors import ClientError, Disconnected, LeaseLost, from_problem
from .records import given

if t.TYPE_CHECKING:
    from .records import ClaimedJob

logger = logging.getLogger("flask_jobber")

_LOST = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    httpx2.ProxyError,
    httpx2.DecodingError,
)
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
#: What a gateway answers when the app does not.
_GATEWAY = frozenset({429, 502, 503, 504})


class Verb(t.NamedTuple):
    """A call, and how it stands a lost answer.

    :param repeat: sending it again does nothing twice.
    :param done: the refusal of a repetition which tells that the lost request did it.
    """

    method: str
    path: str
    repeat: bool = True
    done: type[ClientError] | tuple[()] = ()


CLAIM = Verb("POST", "/claims")
CLAIMS = Verb("GET", "/claims")
DELIVER = Verb("PUT", "/jobs/{:d}/attempts/{:d}/result")
FAIL = Verb("PUT", "/jobs/{:d}/attempts/{:d}/failure")
EXTEND = Verb("PATCH", "/jobs/{:d}/attempts/{:d}")
RELEASE = Verb("DELETE", "/jobs/{:d}/attempts/{:d}", done=LeaseLost)
EXCHANGE = Verb("POST", "/exchange")
ENQUEUE = Verb("POST", "/jobs")  # it carries an Idempotency-Key
CANCEL = Verb("POST", "/jobs/{:d}/cancel", repeat=False)
RETRY = Verb("POST", "/jobs/{:d}/retry", repeat=False)
JOB = Verb("GET", "/jobs/{:d}")
JOBS = Verb("GET", "/jobs")
EVENTS = Verb("GET", "/events")
BATCH = Verb("GET", "/batches/{:d}")
CANCEL_BATCH = Verb("POST", "/batches/{:d}/cancel", repeat=False)
HISTORY = Verb("GET", "/jobs/{:d}/history")
UPLOAD = Verb("PUT", "/jobs/{:d}/attachments/{}")
DOWNLOAD = Verb("GET", "/jobs/{:d}/attachments/{}")


class Transport:
    """Sends calls with an HTTP client until there is an answer to keep.

    :param timeout: seconds to wait for the network in one try.
    :param patience: seconds after which a call is not tried again.
    :param trace: is told what becomes of each request, see the extension of httpx2.
    """

    def __init__(
        self,
        http: httpx2.Client,
        timeout: float,
        patience: float,
        *,
        trace: t.Callable[[str, t.Mapping[str, t.Any]], None] | None = None,
    ) -> None:
        self._http, self.timeout, self.patience = http, timeout, patience
        self._extensions = given(trace=trace)

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        verb: Verb,
        *ids: int | str,
        body: dict[str, t.Any] | None = None,
        content: t.Iterable[bytes] | None = None,
        headers: t.Mapping[str, str] | None = None,
        params: dict[str, t.Any] | None = None,
        timeout: float | None = None,
        wait_seconds: float | None = None,
        patience: float | None = None,
        stop: threading.Event | None = None,
    ) -> dict[str, t.Any]:
        """Send until there is an answer to keep; return it. What cannot be sent raises at once.

        :param content: bytes instead of a ``body``; iterated again for each try.
        :param wait_seconds: for which the server may wait before it answers.
        :param stop: ends the waiting for another try.
        """
        path = verb.path.format(*ids)
        sent = {"json": body, "content": content, "headers": headers, "params": params}
        timeout = timeout or self.timeout
        request = self._http.build_request(
            verb.method,
            path,
            timeout=httpx2.Timeout(timeout, read=timeout + (wait_seconds or 0)),
            extensions=dict(self._extensions),
            **given(**sent),
        )
        wait = stop.wait if stop else time.sleep
        deadline = time.monotonic() + (self.patience if patience is None else patience)
        return self._insist(lambda: _read(self._http.send(request)), verb, deadline, wait)

    def receive(
        self,
        verb: Verb,
        *ids: int | str,
        take: t.Callable[[httpx2.Response], None],
        patience: float | None = None,
    ) -> None:
        """Send until ``take`` has the whole of an answer that is no JSON.

        :param take: is called within each try, and reads the answer; it may change the headers
            of its request for the next one.
        """
        # A gateway may else compress what has ranges and a digest.
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        path = verb.path.format(*ids)
        request = self._http.build_request(verb.method, path, headers=headers, timeout=self.timeout)

        def send() -> dict[str, t.Any]:
            response = self._http.send(request, stream=True)
            try:
                if response.status_code not in (200, 206):
                    response.read()
                    return _read(response)
                take(response)
            finally:
                response.close()
            return {}

        patience = self.patience if patience is None else patience
        self._insist(send, verb, time.monotonic() + patience, time.sleep)

    def open(
        self, verb: Verb, params: dict[str, t.Any], headers: t.Mapping[str, str], silence: float
    ) -> httpx2.Response:
        """Send until there is an answer that goes on and on; return it, to be closed.

        :param silence: seconds without a byte after which it is given up.
        """
        timeout = httpx2.Timeout(self.timeout, read=max(silence, self.timeout))
        request = self._http.build_request(
            verb.method, verb.path, params=params, headers=headers, timeout=timeout
        )
        opened: list[httpx2.Response] = []

        def send() -> dict[str, t.Any]:
            response = self._http.send(request, stream=True)
            if _is_stream(response):
                opened.append(response)
                return {}
            try:
                response.read()
                raise _foreign(response) if response.is_success else _refused(response)
            finally:
                response.close()

        self._insist(send, verb, time.monotonic() + self.patience, time.sleep)
        return opened[0]

    def _insist(
        self,
        send: t.Callable[[], dict[str, t.Any]],
        verb: Verb,
        deadline: float,
        wait: t.Callable[[float], bool | None],
    ) -> dict[str, t.Any]:
        in_doubt = False
        for tries in itertools.count():
            try:
                return _sent(send)
            except ClientError as error:
                if in_doubt and isinstance(error, verb.done):
                    break
                error.in_doubt = in_doubt = in_doubt or error.in_doubt
                pause = _pause(error, tries)
                final = not error.retryable or (in_doubt and not verb.repeat)
                if final or time.monotonic() + pause >= deadline:
                    raise
                logger.info("again in %.1f s: %s", pause, error, extra=about("try_again"))
                if wait(pause):
                    raise
        return {}


def _sent(send: t.Callable[[], dict[str, t.Any]]) -> dict[str, t.Any]:
    try:
        return send()
    except _LOST as error:
        detail = f"{type(error).__name__}: {error}"
        raise Disconnected(None, detail, in_doubt=not isinstance(error, _UNSENT)) from error


def _is_stream(response: httpx2.Response) -> bool:
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    return response.status_code == 200 and kind == "text/event-stream"


def _refused(response: httpx2.Response) -> ClientError:
    body = _object(response)
    if body is None:
        return _foreign(response)
    return from_problem(response.status_code, body, _retry_after(response))


def _read(response: httpx2.Response) -> dict[str, t.Any]:
    """Return what the app answered; raise what it refused."""
    if response.status_code == 204:
        return {}
    body = _object(response)
    if body is None or not response.is_success:
        raise _refused(response)
    return body


def _object(response: httpx2.Response) -> dict[str, t.Any] | None:
    """Return the JSON object of an answer, ``None`` when it is not of Jobber's kind."""
    kind = "application/json" if response.is_success else "application/problem+json"
    if response.headers.get("Content-Type", "").partition(";")[0] != kind:
        return None
    try:
        body = response.json()
    except ValueError:
        return None
    is_ours = isinstance(body, dict) and (response.is_success or "code" in body)
    return body if is_ours else None


def _foreign(response: httpx2.Response) -> ClientError:
    """Return the error that an answer is which no Jobber gave."""
    request, status = response.request, response.status_code
    place = response.headers.get("Location")
    kind = f"to {place}" if place else response.headers.get("Content-Type", "without a type")
    detail = f"{request.method} {request.url} was answered by no Jobber: {response.reason_phrase} {kind}."
    if status in _GATEWAY:
        return Disconnected(status, detail, retry_after=_retry_after(response))
    return ClientError(status, "unexpected_answer", f"{detail} Is base_url right?")


def _retry_after(response: httpx2.Response) -> float | None:
    # Its other form is a date, which the clock of this machine may be wrong about.
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def _pause(error: ClientError, tries: int) -> float:
    """Return how many seconds to wait: as long as told, and a growing random while (at most 12.8 s)."""
    return (error.retry_after or 0) + random.uniform(0, 0.1 * 2 ** min(tries, 7))


def about(action: str, job: ClaimedJob | None = None) -> dict[str, t.Any]:
    """Return what a log record says beside its message."""
    return {"action": action} | ({"job_id": job.id, "attempt": job.attempt} if job else {})
