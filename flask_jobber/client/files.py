"""Files of jobs, streamed both ways: no more than a piece of one is ever in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import pathlib
import tempfile
import typing as t
from urllib.parse import quote

import httpx2

from .errors import ClientError
from .records import Attachment, ClaimedJob, Job, load
from .transport import DOWNLOAD, UPLOAD, Transport

_CHUNK = 262_144
#: The path of a file, or an open one that can be sought.
Source = str | os.PathLike[str] | t.BinaryIO


class Files:
    """What a client does with the files of jobs."""

    _transport: Transport

    def upload(
        self,
        job: ClaimedJob | Job | int,
        name: str,
        file: Source | bytes,
        *,
        type: str | None = None,
        patience: float | None = None,
    ) -> Attachment:
        """Put a file: with a claimed job beside its result, else into the job (or the one of this id).

        One of the same name is replaced when the new one is complete. The server checks its
        SHA-256; after a lost connection it is sent again from its beginning.

        :param file: bytes, a path, or an open file, which is read from its beginning.
        :param type: ``image/png``, ….
        :param patience: seconds after which it is not tried again, instead of the client's.
        :raises LeaseLost, Cancelled, AlreadySettled, NotFound: when the job is not held, or no more.
        :raises Forbidden, IllegalTransition: when the job gets no files from this login, or no more.
        :raises NameTaken, TooLarge, Invalid: when the server does not take it.
        """
        attempt = {"attempt": job.attempt} if isinstance(job, ClaimedJob) else None
        with _opened(file) as content:
            headers = content.headers | ({"Content-Type": type} if type else {})
            sent = {"content": content, "headers": headers, "params": attempt}
            said = self._transport.call(UPLOAD, _id(job), _quoted(name), **sent, patience=patience)
        return load(Attachment, said)

    def download(
        self,
        job: ClaimedJob | Job | int,
        name: str,
        to: str | os.PathLike[str] | t.BinaryIO,
        *,
        patience: float | None = None,
    ) -> None:
        """Get a file, its SHA-256 checked; after a lost connection, what is missing of it.

        :param to: a path, where it appears when it is complete, or a file open for writing and seeking.
        :param patience: seconds after which it is not tried again, instead of the client's.
        :raises NotFound: when there is none that this login may have.
        :raises ClientError: with the code ``broken_file`` when what has come is not what the server has.
        """
        if not isinstance(to, str | os.PathLike):
            self._receive(job, name, to, patience)
            return
        path = pathlib.Path(to)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as part:
            try:
                self._receive(job, name, t.cast(t.BinaryIO, part), patience)
                part.close()
                os.replace(part.name, path)
            except BaseException:
                pathlib.Path(part.name).unlink(missing_ok=True)
                raise

    def _receive(
        self, job: ClaimedJob | Job | int, name: str, to: t.BinaryIO, patience: float | None
    ) -> None:
        taker = _Taker(to)
        self._transport.receive(DOWNLOAD, _id(job), _quoted(name), take=taker.take, patience=patience)


class _Taker:
    """Takes the answers to one download, until there is the whole of a file."""

    def __init__(self, to: t.BinaryIO) -> None:
        self._to, self._start = to, to.tell()
        self._begin()

    def _begin(self) -> None:
        self._digest, self._size = hashlib.sha256(), 0
        self._to.seek(self._start)
        self._to.truncate()

    def take(self, response: httpx2.Response) -> None:
        if response.status_code == 200:  # the first try, or the file is another one now
            self._begin()
        etag = response.headers.get("ETag", "")
        request = response.request
        for piece in response.iter_raw():
            self._to.write(piece)
            self._digest.update(piece)
            self._size += len(piece)
            # Of a next try, should there be one.
            request.headers.update({"Range": f"bytes={self._size}-", "If-Range": etag})
        told = base64.b64encode(self._digest.digest()).decode()
        if f"sha-256=:{told}:" not in response.headers.get("Repr-Digest", ""):
            raise ClientError(
                response.status_code, "broken_file", "What has come is not what the server has."
            )


class _Content:
    """An open file as a body that can be sent again."""

    def __init__(self, file: t.BinaryIO) -> None:
        self._file = file
        digest, size = hashlib.sha256(), 0
        for piece in self:
            digest.update(piece)
            size += len(piece)
        told = base64.b64encode(digest.digest()).decode()
        self.headers = {"Content-Length": str(size), "Repr-Digest": f"sha-256=:{told}:"}

    def __iter__(self) -> t.Iterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(_CHUNK):
            yield piece


@contextlib.contextmanager
def _opened(file: Source | bytes) -> t.Iterator[t.Any]:
    if isinstance(file, bytes):
        yield _Content(io.BytesIO(file))
    elif isinstance(file, str | os.PathLike):
        with pathlib.Path(file).open("rb") as opened:
            yield _Content(opened)
    else:
        yield _Content(file)


def _id(job: ClaimedJob | Job | int) -> int:
    return job if isinstance(job, int) else job.id


def _quoted(name: str) -> str:
    """Return a name as a part of a path. :raises ValueError: for one that would be another path."""
    if not name or name.strip(".") == "" or "/" in name:
        raise ValueError(f"This is no name of a file: {name!r}.")
    return quote(name, safe="")
