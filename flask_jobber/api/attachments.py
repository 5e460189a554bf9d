"""The files of jobs, streamed both ways: no more than a piece of one is ever in memory."""

from __future__ import annotations

import base64
import binascii
import random
import re
import time
import typing as t

from flask import Response, current_app, request
from werkzeug.exceptions import BadRequest, RequestedRangeNotSatisfiable, RequestEntityTooLarge
from werkzeug.wsgi import FileWrapper

from ..core import attachments, files, queries
from ..core.engines import is_transient
from ..core.files import Saved
from ..core.hold import Item, Row
from ..core.payload import FILE_NAME, check_file_name, read_content_type
from ..errors import Invalid, NotFound, TooLarge
from . import schemas
from .call import Call, answer_with
from .operation import operation
from .problems import BrokenBody, Changed, OutOfRange

if t.TYPE_CHECKING:
    from ..extension import Jobber

_RULE = "/jobs/<job_id>/attachments/<name>"
_HELD = ("not_found", "lease_lost", "cancelled", "already_settled")
# A client that has sent gigabytes does not do so again because the database was busy for a moment,
# or because MySQL met a deadlock with a neighbour's file. Seconds.
_PATIENCE = 10.0
#: What browsers show or play, and never run. Everything else they are told is some bytes.
_PASSIVE = re.compile(
    r"image/(?!svg)[a-z0-9.+-]+|audio/[a-z0-9.+-]+|video/[a-z0-9.+-]+|font/[a-z0-9.+-]+"
    r"|text/(plain|csv)|application/(json|pdf|zip|gzip)"
)


class Upload(t.Protocol):
    """Who puts a file, as what."""

    def check(self, call: Call) -> None: ...

    def put(self, call: Call, file: attachments.File) -> tuple[Row, bool]: ...


class _Holders:
    """A file that comes with a result."""

    def __init__(self, job_id: int, attempt: int) -> None:
        self._item = Item(job_id, attempt)

    def check(self, call: Call) -> None:
        queries.open_claim(call.store, call.holder, self._item)

    def put(self, call: Call, file: attachments.File) -> tuple[Row, bool]:
        return attachments.put_by_holder(call.store, call.holder, self._item, file)


class _Producers:
    """A file that the job comes with. The hook is asked for ``attach``: ``enqueue`` may fill columns."""

    def __init__(self, job_id: int) -> None:
        self._id = job_id

    def check(self, call: Call) -> None:
        job = call.load(self._id)
        call.identity.require("attach", job)
        attachments.check_unfinished(job.state)

    def put(self, call: Call, file: attachments.File) -> tuple[Row, bool]:
        self.check(call)
        return attachments.put_by_producer(call.store, self._id, call.identity.scope.expression, file)


@operation(
    "PUT",
    _RULE,
    query=schemas.AttachQuery(),
    answers={200: schemas.Attachment(), 201: schemas.Attachment()},
    refusals=(*_HELD, "forbidden", "illegal_transition", "name_taken"),
    stream=True,
)
def put_attachment(call: Call, job_id: int, name: str, attempt: int | None = None) -> Response:
    """Put a file: into the job, or as its holder beside the result. It appears when it is complete."""
    most = call.settings.max_attachment_bytes
    _check_length(most)
    check_file_name("name", name)
    digest = _said_digest()
    upload: Upload = _Producers(job_id) if attempt is None else _Holders(job_id, attempt)
    upload.check(call)
    key = files.new_key(call.store.now())
    storage = call.store.storage
    call.jobber.db.session.rollback()  # others may have its connection meanwhile
    saved = files.save(storage, key, _body(most), most)
    try:
        _check_digest(digest, saved)
        file = attachments.File(name, read_content_type(request.content_type), saved)
        return _publish(call.jobber, upload, file)
    except BaseException:
        call.jobber.db.session.rollback()
        files.delete(storage, [key])
        raise


def _publish(jobber: Jobber, upload: Upload, file: attachments.File) -> Response:
    """Let the file appear, if whoever sent it may still do that: identity and scope are asked again."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        call = Call(jobber)
        try:
            row, created = upload.put(call, file)
            call.commit()
            break
        except Exception as error:
            if not is_transient(error) or time.monotonic() > deadline:
                raise
            jobber.db.session.rollback()
            time.sleep(random.uniform(0, 0.05))  # two who met in a deadlock do not meet again
    return answer_with(schemas.Attachment(), call.file(row), 201 if created else 200, ETag=f'"{row.sha256}"')


def _check_length(most: int) -> None:
    """Refuse early what is too large, and what does not say where it ends."""
    if (request.content_length or 0) > most:
        raise TooLarge(f"An attachment may be {most} bytes.")
    if "Transfer-Encoding" in request.headers and not request.environ.get("wsgi.input_terminated"):
        raise Invalid({"Content-Length": ["Say how many bytes there are."]})
    # The app's own limit is for its forms. One byte more, to tell what is cut from what ends.
    request.max_content_length = most + 1


def _body(most: int) -> t.Iterator[bytes]:
    """Yield the body in pieces.

    :raises BrokenBody: when it ends before its time.
    """
    left = request.content_length
    try:
        while piece := request.stream.read(files.CHUNK):
            left = None if left is None else left - len(piece)
            yield piece
    except RequestEntityTooLarge as error:
        raise TooLarge(f"An attachment may be {most} bytes.") from error
    except (BadRequest, OSError) as error:  # the client went away, or its chunks are broken
        raise BrokenBody from error
    if left:
        raise BrokenBody


def _said_digest() -> bytes | None:
    """Return the SHA-256 that the client says the file has (RFC 9530)."""
    for header in ("Repr-Digest", "Content-Digest"):
        for said in request.headers.get(header, "").split(","):
            algorithm, _, value = said.strip().partition("=")
            if algorithm.lower() == "sha-256":
                return _read_digest(header, value)
    return None


def _read_digest(header: str, value: str) -> bytes:
    try:
        digest = base64.b64decode(value.strip().removeprefix(":").removesuffix(":"), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != 32:
        raise Invalid({header: ["It is sha-256=:the digest in base64:."]})
    return digest


def _check_digest(said: bytes | None, saved: Saved) -> None:
    if said is not None and said.hex() != saved.sha256:
        raise Invalid({"Repr-Digest": [f"What has arrived has the SHA-256 {saved.sha256}; send it again."]})


@operation(
    "GET",
    _RULE,
    answers={200: None, 206: None, 304: None},
    refusals=("not_found", "changed", "out_of_range"),
)
def get_attachment(call: Call, job_id: int, name: str) -> Response:
    """Get a file, or a range of it."""
    row = _find(call, job_id, name)
    path = call.store.storage.path(row.key) if current_app.config["USE_X_SENDFILE"] else None
    response = Response(direct_passthrough=True)
    _describe(response, row)
    if path is not None:  # who gets this header reads the file, ranges too
        response.headers["X-Sendfile"] = path
        return _conditional(response, None)
    file = files.open_file(call.store.storage, row.key)
    response.response = FileWrapper(file, files.CHUNK)
    try:
        return _conditional(response, row.size)
    except BaseException:
        file.close()
        raise


def _find(call: Call, job_id: int, name: str) -> Row:
    """Return the row of a file that this client may have."""
    if not FILE_NAME.fullmatch(name):
        raise NotFound
    job = call.one(job_id)
    row = attachments.one(call.store, job_id, name) if job.has_files is not None else None
    if row is None:
        raise NotFound
    if row.attempt is not None and row.attempt not in call.seen_attempts(job, call.visible_results([job])):
        raise NotFound
    return row


def _describe(response: Response, row: Row) -> None:
    """Say what it is, in a way that no browser runs it: alone, in a frame, or from another page."""
    passive = _PASSIVE.fullmatch(row.content_type)
    response.content_length = row.size
    response.set_etag(row.sha256)
    digest = base64.b64encode(bytes.fromhex(row.sha256)).decode()
    response.headers.update(
        {
            "Content-Type": row.content_type if passive else "application/octet-stream",
            "Content-Disposition": f'attachment; filename="{row.name}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "private, no-cache",
            "Repr-Digest": f"sha-256=:{digest}:",
        }
    )


def _conditional(response: Response, size: int | None) -> Response:
    """Answer what the client has not yet: all of it, a range, or nothing."""
    # Of several ranges at once, or of anything but bytes, a server may send the whole.
    ranges = size is not None and bool(re.fullmatch("bytes=[^,]*", request.headers.get("Range", "")))
    try:
        response.make_conditional(request, accept_ranges=ranges, complete_length=size)
    except RequestedRangeNotSatisfiable as error:
        raise OutOfRange(size or 0) from error
    if response.status_code == 412:
        raise Changed
    return response
