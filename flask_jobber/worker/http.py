"""Jobs from a server, over HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import logging
import math
import tempfile
import typing as t

from ..client import ClientError, Exchange, JobberClient, KeyReused
from ..client.records import ClaimedJob, Outcome
from ..core.attachments import Content
from ..core.payload import RESERVED
from .job import Job
from .run import Failed, Released, Succeeded
from .scout import Scout
from .source import Answer, Away, Beat, Refused, Ring, Settlement, Told, Unheard, Wish, refused

logger = logging.getLogger("flask_jobber")
#: The most items of a list that a server takes, unless it is set up otherwise.
MOST = 100
# Seconds for which a lost connection to a file is tried again; the lease is kept meanwhile.
_PATIENCE = 60.0


class HttpFiles:
    """From a server."""

    def __init__(self, client: JobberClient, claim: ClaimedJob) -> None:
        self._client, self._claim = client, claim

    def names(self) -> list[str]:
        return [one.name for one in self._claim.attachments]

    def open(self, name: str) -> t.BinaryIO:
        file = tempfile.TemporaryFile()  # noqa: SIM115  the handler closes it
        try:
            self._client.download(self._claim, name, t.cast(t.BinaryIO, file), patience=_PATIENCE)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return t.cast(t.BinaryIO, file)

    def attach(self, name: str, content: Content, content_type: str | None) -> None:
        self._client.upload(self._claim, name, content, type=content_type, patience=_PATIENCE)


class HttpSource:
    """A server, by a client that tries each call once: the loop does the waiting.

    :param client: made with ``patience=0``, and with the worker's name as its ``node``.
    """

    most = MOST

    def __init__(self, client: JobberClient, name: str, label: str) -> None:
        self._client, self._name, self.label = client, name, label
        self._scout: Scout | None = None
        #: How many jobs have been enqueued for a result that is not told yet.
        self._enqueued: dict[tuple[int, int], int] = {}

    def held(self) -> list[Job]:
        with _call():
            self._recall()
            jobs = self._jobs(self._client.claims())
            self._forget()
        return jobs

    def _jobs(self, claims: t.Iterable[ClaimedJob]) -> list[Job]:
        return [
            Job(
                id=claim.id, type=claim.type, data=claim.data, queue=claim.queue, priority=claim.priority,
                attempt=claim.attempt, failures=claim.failures, max_attempts=claim.max_attempts,
                lease_seconds=claim.lease_seconds, enqueued_at=claim.enqueued_at, node=self._name,
                has_files=bool(claim.attachments) or None,
            ).with_files(HttpFiles(self._client, claim))
            for claim in claims
        ]  # fmt: skip

    def exchange(self, settled: t.Sequence[Settlement], beats: t.Sequence[Beat], wish: Wish | None) -> Answer:
        checked = {one.job: self._prepare(one) for one in settled}
        unfit = {job: told for job, told in checked.items() if told is not None}
        fit = [one for one in settled if one.job not in unfit]
        found = self._found() if wish is not None else []
        with _call():
            said = self._exchange(fit, beats, _less(wish, len(found)))
            if said.claim_error is not None and not said.claim_error.retryable:
                raise said.claim_error
        told = unfit | _read(said, fit, beats)
        for one in settled:
            self._enqueued.pop((one.job.id, one.job.attempt), None)
        jobs = [*(one.job for one in settled), *(beat.job for beat in beats)]
        answer = Answer([told[job] for job in jobs], self._jobs([*found, *said.jobs]), said.retry_after or 0)
        return answer if wish is None else self._listen(answer, wish, said.claim_error is None)

    # -- waiting for jobs ------------------------------------------------------------------

    def listen(self, ring: Ring) -> None:
        if self._scout is None:
            self._scout = Scout(self._client.line(), ring)

    def rest(self) -> list[Job]:
        if self._scout is None:
            return []
        try:
            self._recall()
            jobs = self._jobs(self._found())
            self._forget()
        except Unheard:
            jobs = self._held_in_doubt()
        return jobs

    def _held_in_doubt(self) -> list[Job]:
        try:
            return self.held()
        except (Away, Refused) as error:
            logger.warning("%s: what it may have given is not to be known: %s", self.label, error)
            return []

    def _found(self) -> list[ClaimedJob]:
        """Return what the scout has brought. :raises Unheard: when it may have been given something."""
        return [] if self._scout is None else self._scout.found()

    def _listen(self, answer: Answer, wish: Wish, may_wait: bool) -> Answer:
        """Send the scout out for the next job when there is none now."""
        self._forget()
        claim = _claim_body(wish)
        if answer.jobs or self._scout is None or claim is None or not may_wait:
            return answer
        if not self._scout.may_go:
            self._scout.forgive()
            return answer
        self._scout.send(claim)
        return dataclasses.replace(answer, retry_after=math.inf)

    def _recall(self) -> None:
        if self._scout is not None:
            self._scout.recall()

    def _forget(self) -> None:
        if self._scout is not None:
            self._scout.forget()

    def _prepare(self, one: Settlement) -> Told | None:
        """Enqueue what the handler has gathered; return what keeps its result from being sent."""
        if not isinstance(one.outcome, Succeeded):
            return None
        try:
            said = [one.outcome.result, one.outcome.extras]
            json.dumps(said, allow_nan=False, ensure_ascii=False).encode()
            self._enqueue(one.job, one.outcome.enqueued)
        except (TypeError, ValueError, RecursionError) as error:
            return Told(one.job, "invalid", f"It is not JSON: {error}", held=True)
        except ClientError as error:
            # A full queue keeps one job waiting, not the worker: it may be this one that empties it.
            if error.retryable and error.code != "queue_full":
                raise Away(str(error), error.retry_after or 0) from error
            return Told(one.job, error.code, f"A job that it adds is refused: {error}", held=True)
        return None

    def _enqueue(self, job: Job, specs: t.Sequence[dict[str, t.Any]]) -> None:
        key = (job.id, job.attempt)
        for place in range(self._enqueued.get(key, 0), len(specs)):
            # A run of this attempt that crashed may have added it: it is known by its place.
            with contextlib.suppress(KeyReused):
                once = f"jobber:{job.id}.{job.attempt}.{place}"
                self._client.enqueue(**_wired(specs[place]), idempotency_key=once)
            self._enqueued[key] = place + 1

    def _exchange(
        self, settled: t.Sequence[Settlement], beats: t.Sequence[Beat], wish: Wish | None
    ) -> Exchange:
        return self._client.exchange(
            results=[(one.job, one.outcome.result, one.outcome.extras) for one in _all(Succeeded, settled)],
            failures=[
                (one.job, o.error, o.permanent, o.retry_seconds, o.cancel)
                for one in _all(Failed, settled)
                for o in [one.outcome]
            ],
            extensions=[(beat.job, {"progress": beat.progress, "note": beat.note}) for beat in beats],
            releases=[(one.job, one.outcome.delay_seconds) for one in _all(Released, settled)],
            claim=_claim_body(wish),
        )

    def waiting(self, wish: Wish) -> int | None:
        return None

    def tidy(self) -> float | None:
        return None

    def close(self) -> None:
        if self._scout is not None:
            self._scout.close()
        self._client.close()


@contextlib.contextmanager
def _call() -> t.Iterator[None]:
    """:raises Away: when the same call may succeed later, a server that is broken included."""
    try:
        yield
    except ClientError as error:
        if error.retryable or (error.status or 0) >= 500:
            raise Away(str(error), error.retry_after or 0) from error
        raise Refused(str(error)) from error


def _all(kind: type[t.Any], settled: t.Sequence[Settlement]) -> list[t.Any]:
    return [one for one in settled if isinstance(one.outcome, kind)]


def _less(wish: Wish | None, found: int) -> Wish | None:
    """Return what is left to be wished for."""
    if wish is None or wish.limit <= found:
        return None
    return dataclasses.replace(wish, limit=wish.limit - found)


def _claim_body(wish: Wish | None) -> dict[str, t.Any] | None:
    # No server hands out jobs of reserved types.
    types = [type for type in wish.types if not type.startswith(RESERVED)] if wish is not None else []
    if wish is None or not types:
        return None
    body = {
        "types": types, "limit": wish.limit, "queues": wish.queues and list(wish.queues),
        "min_priority": wish.min_priority, "max_priority": wish.max_priority,
    }  # fmt: skip
    return {name: value for name, value in body.items() if value is not None}


def _wired(spec: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return an enqueue's keywords as the client has them: a delay is seconds."""
    wired = {
        name: value.total_seconds() if isinstance(value, dt.timedelta) else value
        for name, value in spec.items()
    }
    if "beside" in wired:
        wired["beside"] = getattr(wired["beside"], "id", wired["beside"])
    if "after" in wired:
        wired["after_seconds"] = wired.pop("after")
    return wired


def _read(said: Exchange, settled: t.Sequence[Settlement], beats: t.Sequence[Beat]) -> dict[Job, Told]:
    """Return what was told of each job, from the outcomes in the order of the lists."""
    orders = (_all(Succeeded, settled), _all(Failed, settled), beats, _all(Released, settled))
    jobs = [one.job for order in orders for one in order]
    return {job: _told(job, outcome) for job, outcome in zip(jobs, said.outcomes, strict=True)}


def _told(job: Job, outcome: Outcome) -> Told:
    error = outcome.error
    if error is None:
        return Told(job, lease_seconds=outcome.lease_seconds)
    said = {"code": error.code, "detail": error.detail, "errors": error.errors, "then": error.then}
    return refused(job, said)
