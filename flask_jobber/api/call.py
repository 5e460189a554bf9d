"""One request: who calls, what it works on, and how its answers look."""

from __future__ import annotations

import functools
import json
import random
import typing as t
from urllib.parse import quote

import sqlalchemy as sa
from flask import Response, url_for
from marshmallow import Schema

from ..core import attachments, copies, queries
from ..core.claim import Claim, Claims
from ..core.hold import Holder, Row
from ..core.lockers import login_of
from ..core.scope import in_scope
from ..core.states import State, Verb
from ..core.store import Store
from ..errors import DuplicateJob, NotFound
from . import schemas
from .identity import Action, Identity
from .problems import retry_after

if t.TYPE_CHECKING:
    from ..extension import Jobber

_SERVERS = {"type": "ProcessorError", "message": "The server could not process it.", "traceback": None}


class Call:
    """What a view gets: the store, the client's identity, and the forms of its answers."""

    def __init__(self, jobber: Jobber) -> None:
        self.jobber = jobber
        self.store: Store = jobber.store()
        self.settings = self.store.settings
        self.identity = Identity(jobber.registry, jobber.Job)

    def forget_identity(self) -> None:
        """Let the hooks be asked again."""
        self.identity = Identity(self.jobber.registry, self.jobber.Job)
        for known in ("holder", "sight"):
            self.__dict__.pop(known, None)

    @functools.cached_property
    def holder(self) -> Holder:
        return Holder(self.identity.locker, self.identity.scope)

    @functools.cached_property
    def sight(self) -> sa.ColumnElement[t.Any]:
        """What this client may see: the scope, and of jobs under trust its own copies.

        Of originals it says nothing: see :meth:`permitted`.
        """
        originals = self.identity.has_permissions
        own = copies.sight(self.store, self.identity.login, originals=originals)
        return sa.and_(self.identity.scope.expression, own)

    def permitted(self, rows: t.Sequence[Row]) -> list[Row]:
        """Return jobs without those originals that the permission hook keeps from this client."""
        asked = [row.id for row in rows if row.asked]
        seen = {job.id for job in self._load(asked) if self._sees(job)} if asked else ()
        return [row for row in rows if not row.asked or row.id in seen]

    def _sees(self, job: t.Any) -> bool:
        """Whether a job in the scope may be seen: copies are their logins' and the operator's."""
        if job.copy_of is None and job.trust is None:
            return True
        if job.copy_of is not None and self.is_mine(job.locked_by):
            return True
        actions: tuple[Action, ...] = ("history",) if job.copy_of is not None else ("result", "history")
        may = self.identity.may
        return self.identity.has_permissions and any(may(action, job) for action in actions)

    def commit(self) -> None:
        self.jobber.db.session.commit()

    @functools.cached_property
    def path(self) -> str:
        """The path of the list of jobs."""
        return url_for(".list_jobs")

    def with_files(self, claims: Claims) -> Claims:
        """Read the attachments of jobs.

        Before the commit: what is read after it is rolled back, at which psycopg forgets all that
        it has prepared, and the next claim is planned anew (8 ms).
        """
        claims.files = attachments.of(
            self.store, [claim.id for claim in claims if claim.has_files is not None]
        )
        return claims

    def dump_claims(self, claims: Claims) -> list[dict[str, t.Any]]:
        return [self._dump_claim(claim, claims.files.get(claim.id, ())) for claim in claims]

    def _dump_claim(self, claim: Claim, files: t.Iterable[Row]) -> dict[str, t.Any]:
        """Return a handed-out job as :class:`.schemas.ClaimedJob` would.

        By hand: marshmallow took a quarter of an exchange of 100.
        """
        return {
            "id": claim.id,
            "type": claim.type,
            "data": claim.data,
            "queue": claim.queue,
            "priority": claim.priority,
            "attempt": claim.attempt,
            "failures": claim.failures,
            "max_attempts": claim.max_attempts,
            "lease_seconds": float(claim.lease_seconds),
            "enqueued_at": schemas.wire_instant(claim.enqueued_at),
            "href": f"{self.path}/{claim.id}/attempts/{claim.attempt}",
            "attachments": self.files(files, {None, claim.attempt}),
        }

    def files(self, rows: t.Iterable[Row], attempts: t.Container[int | None]) -> list[dict[str, t.Any]]:
        """Return the attachments of these attempts; ``None`` is what the job came with."""
        return [self.file(row) for row in rows if row.attempt in attempts]

    def file(self, row: Row) -> dict[str, t.Any]:
        """Return an attachment as it is told of."""
        facts = {"name": row.name, "size": row.size, "type": row.content_type, "sha256": row.sha256}
        return facts | {"href": f"{self.path}/{row.job_id}/attachments/{quote(row.name)}"}

    def idle_seconds(self, claims: Claims) -> float:
        """Return how long to wait before the next claim: spread, so that the idle do not come together."""
        if claims.retry_after is not None:
            return claims.retry_after
        return 0.0 if claims else self.settings.idle_seconds * random.uniform(0.75, 1.25)

    def seen(self, rows: t.Sequence[Row]) -> list[dict[str, t.Any]]:
        """Return jobs as anyone in scope may see them."""
        problems = queries.last_errors(self.store, [row.id for row in rows])
        results = self.visible_results(rows)
        files = attachments.of(self.store, [row.id for row in rows if row.has_files is not None])
        return [
            {
                **row._mapping,
                "attempt": row.attempts,
                "result": row.result if row.id in results else None,
                "error": None if row.state == State.SUCCEEDED else _told(problems.get(row.id)),
                "enqueued_at": row.created_at,
                "owner": row.owner_ref,
                "batch": row.batch_id,
                "href": f"{self.path}/{row.id}",
                "attachments": self.files(files.get(row.id, ()), self.seen_attempts(row, results)),
            }
            for row in rows
        ]

    def seen_attempts(self, row: Row, results: t.Container[int]) -> set[int | None]:
        """Return the attempts whose files this client may see of a job: never of a result kept from it."""
        held = row.state == State.LOCKED and row.locked_by == self.identity.locker
        return {None, row.attempts} if held or row.id in results else {None}

    def visible_results(self, rows: t.Sequence[Row]) -> set[int]:
        """Return the ids of those jobs whose result, with its files, this client delivered or may see."""
        delivered = [
            row for row in rows if row.result is not None or (row.has_files is not None and row.delivered)
        ]
        mine = {row.id for row in delivered if self.is_mine(row.locked_by)}
        others = [row.id for row in delivered if row.id not in mine]
        if not others or not self.identity.has_permissions:
            return mine
        return mine | {job.id for job in self._load(others) if self.identity.may("result", job)}

    def _load(self, ids: t.Sequence[int]) -> t.Iterable[t.Any]:
        job = self.store.Job
        return self.store.session.scalars(sa.select(job).where(job.id.in_(ids))).unique().all()

    def load(self, job_id: int) -> t.Any:
        """Return the object of a job in the scope, for the permission hook.

        :raises NotFound: when there is none.
        """
        job, mine = self.store.Job, in_scope(self.store, self.identity.scope.expression, job_id)
        found = self.store.session.scalars(sa.select(job).where(job.id.in_(mine))).unique().one_or_none()
        if found is None or not self._sees(found):
            raise NotFound
        return found

    def one(self, job_id: int) -> Row:
        """Return the row of a job that this client may see.

        :raises NotFound: when there is none.
        """
        row = queries.one(self.store, self.identity.scope.expression, job_id)
        if row.copy_of is not None or row.asked:
            self.load(job_id)
        return row

    def allow(self, there: t.Any, conflict: str) -> None:
        """Agree to what becomes of a job that has the ``unique_key`` of another one.

        :raises DuplicateJob: when this client may not see it: nothing else is told of it.
        :raises Forbidden: when it is to be changed, and the hook does not permit that.
        """
        try:
            queries.one(self.store, self.identity.scope.expression, there.id, current=True)
        except NotFound:
            raise DuplicateJob from None
        if not self._sees(there):
            raise DuplicateJob
        if conflict != "skip":
            self.identity.require("replace", there)

    def is_mine(self, locker: str | None) -> bool:
        """Whether a locker name is this login's, on whatever node."""
        return locker is not None and login_of(locker) == self.identity.login

    def history(self, rows: t.Sequence[Row], *, everything: bool) -> list[dict[str, t.Any]]:
        """Return rows of a history, without the names and tracebacks of others unless ``everything``."""
        return [dict(row._mapping) if everything else self._history_row(row) for row in rows]

    def _history_row(self, row: Row) -> dict[str, t.Any]:
        values, mine = dict(row._mapping), self.is_mine(row.locker)
        values["locker"] = row.locker if mine else None
        values["by"] = row.by if self.is_mine(row.by) else None
        values["error"] = _told(row)
        if values["error"] is not None and not (mine and row.reason == Verb.FAIL):
            values["error"] |= {"traceback": None}
        return values


def _told(row: Row | None) -> dict[str, t.Any] | None:
    """Return the error of a row of history as a client may see it.

    What the server's own code raised may hold its statements and other people's data.
    """
    if row is None or row.error is None:
        return None
    processed = row.reason in (Verb.DELIVER, Verb.PROCESS, Verb.AGREE) or row.from_state == State.FAILED
    if processed and row.error["type"] not in ("ResultRejected", "NoAgreement"):
        return dict(_SERVERS)
    return dict(row.error)


def answer(payload: t.Any, status: int = 200, headers: t.Mapping[str, str] | None = None) -> Response:
    """Return a JSON answer. It is for this client alone, so nothing may keep it."""
    response = Response(json.dumps(payload), status, mimetype="application/json")
    response.headers.update({"Cache-Control": "no-store", **(headers or {})})
    return response


def answer_with(schema: Schema, value: t.Any, status: int = 200, **headers: str) -> Response:
    """Return a value in the form of a schema."""
    return answer(schema.dump(value), status, headers)


def answer_claims(call: Call, claims: Claims) -> Response:
    """Return handed-out jobs; when there is none, with the time to wait."""
    seconds = call.idle_seconds(claims)
    headers = {} if claims else {"Retry-After": retry_after(seconds)}
    return answer({"jobs": call.dump_claims(claims), "retry_after": seconds}, headers=headers)


def status_of(state: State | None) -> int:
    """Return 202 for a result that is accepted and not yet processed."""
    return 202 if state is State.SUBMITTED else 200
