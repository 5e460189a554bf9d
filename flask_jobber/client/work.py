"""A loop that claims, does and delivers, and keeps its leases alive."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import typing as t

from .errors import GONE, ClientError, Disconnected, Invalid, ResultRefused, TooLarge
from .records import JSON, ClaimedJob, claimed
from .transport import CLAIM, EXTEND, Transport, about

if t.TYPE_CHECKING:
    from .line import Line
    from .verbs import JobberClient

logger = logging.getLogger("flask_jobber")

Handler = t.Callable[[ClaimedJob], JSON]
#: What a result can be guilty of, here or at the server, with the lease kept.
_UNDELIVERABLE = (Invalid, TooLarge, TypeError, ValueError, RecursionError)
#: Seconds to wait for a server that does not say how long.
_IDLE_SECONDS = 5.0
# Who is answered within so many has not waited.
_AT_ONCE = 1.0
# Seconds between two looks at whether a claim that waits is to be ended.
_TURN = 0.25


class Loop:
    """One job after the other, see :meth:`.verbs.JobberClient.work`."""

    def __init__(
        self,
        client: JobberClient,
        transport: Transport,
        handlers: t.Mapping[str, Handler],
        wait_seconds: float = 0,
    ) -> None:
        self._client, self._transport, self._handlers = client, transport, handlers
        self._wait_seconds = wait_seconds

    def run(self, until_empty: bool, stop: threading.Event) -> int:
        """Work until there is nothing left, or ``stop`` is set; return how many results were taken."""
        done = 0
        with contextlib.closing(self._client.line(self._transport.patience)) as line, _Watch(stop, line):
            while not stop.is_set():
                try:
                    jobs, pause = self._claim(stop) if until_empty else self._wait(line, stop)
                    done += sum(self._do(job) for job in jobs)
                except ClientError as error:
                    if until_empty or not error.retryable:
                        raise
                    logger.warning("waiting for the server: %s", error, extra=about("wait"))
                    jobs, pause = [], error.retry_after or _IDLE_SECONDS
                if not jobs and (until_empty or stop.wait(pause)):
                    break
        return done

    def _claim(self, stop: threading.Event) -> tuple[list[ClaimedJob], float]:
        """Return the jobs, and the seconds to wait before the next claim."""
        answer = self._transport.call(CLAIM, body={"types": [*self._handlers]}, stop=stop)
        return claimed(answer), answer["retry_after"]

    def _wait(self, line: Line, stop: threading.Event) -> tuple[list[ClaimedJob], float]:
        """Return the same when there is a job, or the server has waited for one."""
        began = time.monotonic()
        body = {"types": [*self._handlers], "wait_seconds": self._wait_seconds}
        try:
            jobs, pause = line.claim(body, stop)
        except Disconnected:
            if not stop.is_set():
                raise
            return [], 0.0
        return jobs, pause if time.monotonic() - began < _AT_ONCE else 0.0

    def _do(self, job: ClaimedJob) -> bool:
        """Do one job and settle it; return whether the server took its result."""
        try:
            with _Heartbeat(self._transport, job) as heartbeat:
                settle = self._handle(job)
            if heartbeat.refusal:
                raise heartbeat.refusal
            return settle()
        except GONE as error:
            logger.warning("held no longer, its outcome is dropped: %s", error, extra=about("drop", job))
            return False
        except (KeyboardInterrupt, SystemExit):
            # Where the job was settled already, the server refuses this; nothing is lost.
            with contextlib.suppress(ClientError):
                self._client.release(job)
            raise

    def _handle(self, job: ClaimedJob) -> t.Callable[[], bool]:
        """Run the handler; return what reports its outcome."""
        try:
            result = self._handlers[job.type](job)
        except Exception as error:
            return functools.partial(self._report, job, error)
        return functools.partial(self._hand_in, job, result)

    def _hand_in(self, job: ClaimedJob, result: JSON) -> bool:
        try:
            state = self._client.deliver(job, result)
        except ResultRefused as refusal:
            logger.warning("result refused: %s", refusal, extra=about("deliver", job))
            # Kept for a corrected result, but a loop has none.
            return self._report(job, refusal) if refusal.lease_kept else False
        except _UNDELIVERABLE as error:
            return self._report(job, error)
        logger.info("job %s", state, extra=about("deliver", job))
        return True

    def _report(self, job: ClaimedJob, error: Exception) -> bool:
        logger.warning("job failed", exc_info=error, extra=about("fail", job))
        self._client.fail(job, error)
        return False


class _Beside:
    """A thread that runs while its block does."""

    def __init__(self, name: str) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> t.Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        raise NotImplementedError


class _Watch(_Beside):
    """Ends a waiting call when ``stop`` is set while its block runs."""

    def __init__(self, stop: threading.Event, line: Line) -> None:
        super().__init__("jobber-watch")
        self._stop, self._line = stop, line

    def _run(self) -> None:
        while not self._over.wait(_TURN):
            if self._stop.is_set():
                self._line.hang_up()
                return


class _Heartbeat(_Beside):
    """Extends a lease every third of it, in a thread, while its block runs or until the job is gone."""

    def __init__(self, transport: Transport, job: ClaimedJob) -> None:
        super().__init__(f"jobber-heartbeat-{job.id}")
        self.refusal: ClientError | None = None
        self._transport, self._job = transport, job
        self._every = job.lease_seconds / 3

    def _run(self) -> None:
        while not self.refusal and not self._over.wait(self._every):
            try:
                self._beat()
            except GONE as error:
                self.refusal = error
            except ClientError as error:
                logger.warning("heartbeat missed: %s", error, extra=about("extend", self._job))

    def _beat(self) -> None:
        # One short try: the next beat is the second, and a result may be waiting for the end of this one.
        timeout = min(self._every, self._transport.timeout)
        job = self._job
        self._transport.call(EXTEND, job.id, job.attempt, body={}, timeout=timeout, patience=0)
