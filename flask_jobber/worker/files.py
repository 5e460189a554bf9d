"""The files of a job, for its handler, wherever that runs."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import tempfile
import typing as t
from multiprocessing.connection import Connection

from flask import Flask

from ..core import attachments
from ..core.attachments import Content
from ..core.files import open_file
from ..core.hold import Holder, Item
from ..errors import NotFound

if t.TYPE_CHECKING:
    from ..extension import Jobber
    from .job import Job


class Files(t.Protocol):
    """What a handler may do with files. Each may raise what its source raises."""

    def names(self) -> list[str]: ...

    def open(self, name: str) -> t.BinaryIO: ...

    def attach(self, name: str, content: Content, content_type: str | None) -> None: ...


class DatabaseFiles:
    """Beside the database: in a session of their own, whatever the handler does in its."""

    def __init__(self, app: Flask, jobber: Jobber, holder: Holder, item: Item) -> None:
        self._app, self._jobber, self._holder, self._item = app, jobber, holder, item

    def names(self) -> list[str]:
        with self._app.app_context():
            rows = attachments.of(self._jobber.store(), [self._item.job_id])
            return [row.name for row in rows.get(self._item.job_id, ())]

    def open(self, name: str) -> t.BinaryIO:
        with self._app.app_context():
            store = self._jobber.store()
            row = attachments.one(store, self._item.job_id, name)
            if row is None:
                raise NotFound
            return open_file(store.storage, row.key)

    def attach(self, name: str, content: Content, content_type: str | None) -> None:
        with self._app.app_context():
            store = self._jobber.store()
            with attachments.written(store, name, content, content_type) as file:
                attachments.put_by_holder(store, self._holder, self._item, file)
                store.session.commit()


class AskedFiles:
    """In a process of a handler's own, which asks its parent: paths go through the pipe, not bytes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answers: queue.SimpleQueue[tuple[t.Any, str | None]] = queue.SimpleQueue()

    def answer(self, said: tuple[t.Any, str | None]) -> None:
        """Take the parent's answer."""
        self._answers.put(said)

    def _ask(self, *wish: t.Any) -> t.Any:
        self._connection.send(("files", wish))
        value, error = self._answers.get()
        if error is not None:
            raise RuntimeError(error)
        return value

    def names(self) -> list[str]:
        return t.cast(list[str], self._ask("names"))

    def open(self, name: str) -> t.BinaryIO:
        path = self._ask("open", name)
        try:
            return open(path, "rb")
        finally:
            os.unlink(path)  # it goes when it is closed

    def attach(self, name: str, content: Content, content_type: str | None) -> None:
        if isinstance(content, str | os.PathLike):
            self._ask("attach", name, os.path.abspath(content), content_type)
            return
        with tempfile.NamedTemporaryFile() as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                shutil.copyfileobj(content, file)
            file.flush()
            self._ask("attach", name, file.name, content_type)


def serve(job: Job, wish: tuple[t.Any, ...]) -> tuple[t.Any, str | None]:
    """Do for a process what it asks for; return the answer, or the error's text."""
    what, *said = wish
    try:
        if what == "names":
            return job.attachments, None
        if what == "attach":
            return job.attach(*said), None  # type: ignore[func-returns-value]
        return _copied(job, *said), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _copied(job: Job, name: str) -> str:
    """Return the path of a copy, which whoever opens it deletes."""
    with job.open(name) as source, tempfile.NamedTemporaryFile(delete=False) as copy:
        try:
            shutil.copyfileobj(source, copy)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(copy.name)
            raise
        return copy.name
