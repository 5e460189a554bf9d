"""The files of jobs, for server code."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from .core import attachments as verbs
from .core import files, payload
from .core.attachments import Content
from .core.hold import Row
from .core.scope import EVERYTHING
from .core.store import Store
from .errors import Invalid, TooLarge


@dataclasses.dataclass(frozen=True, slots=True)
class Attachment:
    """A file of a job.

    :param size: bytes.
    :param sha256: in hexadecimal.
    :param attempt: the hand-out whose holder has brought it; ``None``: the job came with it.
    """

    name: str
    content_type: str
    size: int
    sha256: str
    attempt: int | None
    _key: str = dataclasses.field(repr=False)
    _storage: files.Storage = dataclasses.field(repr=False)

    def open(self) -> t.BinaryIO:
        """Return the file, to be read and closed.

        :raises NotFound: when it is gone.
        :raises StorageAway: when its place does not answer.
        """
        return files.open_file(self._storage, self._key)


class Attachments:
    """What a Jobber knows of files."""

    if t.TYPE_CHECKING:

        def store(self) -> Store: ...

    def attach(self, job: t.Any, name: str, content: Content, *, content_type: str | None = None) -> None:
        """Give a job, or the one with this id, a file, in the caller's transaction.

        One of the same name is replaced.

        :param content: bytes, the path of a file, or an open one.
        :raises Invalid: for a name that is none.
        :raises TooLarge: when it is over ``MAX_ATTACHMENT_BYTES``, or there are too many.
        :raises NotFound: when there is no such job.
        :raises NameTaken: when the result brings a file of this name.
        :raises StorageAway: when the place of the files does not take it.
        """
        store, job_id = self.store(), job if isinstance(job, int) else job.id
        with verbs.written(store, name, content, content_type) as file:
            verbs.put_by_producer(store, job_id, EVERYTHING.expression, file, ended=True)

    def _attaching(
        self, contents: t.Mapping[str, Content], on_conflict: str | None
    ) -> t.ContextManager[t.Callable[[t.Any], t.Any]]:
        if not contents:
            return contextlib.nullcontext(lambda job: job)
        if on_conflict in ("skip", "reschedule"):
            raise Invalid({"attachments": [f"With {on_conflict}, attach to the job that is returned."]})
        return _attaching(self.store(), contents)

    def attachments(self, job: t.Any) -> list[Attachment]:
        """Return the files of a job, or of the one with this id, by name.

        They are those that it came with, and those of its last hand-out, which has delivered
        its result, does so now (in a processor), or may do so.
        """
        store, job_id = self.store(), job if isinstance(job, int) else job.id
        return [_told(store, row) for row in verbs.of(store, [job_id]).get(job_id, ())]

    def collect_orphans(self, parts: int = 1) -> int:
        """Delete files over a day old that belong to no job; return how many. It commits.

        :param parts: of the 256 parts of the storage, so many are looked through, from a random one on.
        """
        first, count = int.from_bytes(os.urandom(1)), 0
        for part in range(first, first + parts):
            store = self.store()
            count += verbs.collect(store, part % files.SHARDS)
            store.session.commit()
        return count


@contextlib.contextmanager
def _attaching(store: Store, contents: t.Mapping[str, Content]) -> t.Iterator[t.Callable[[t.Any], t.Any]]:
    """Write files, and give what lets them appear in a job: there is no job if one cannot be written."""
    for name in contents:
        payload.check_file_name("attachments", name)
    if len(contents) > verbs.MOST:
        raise TooLarge(f"A job has at most {verbs.MOST} attachments.")
    with contextlib.ExitStack() as stack:
        saved = [stack.enter_context(verbs.written(store, *one, None)) for one in contents.items()]

        def attach(job: t.Any) -> t.Any:
            for file in saved:
                verbs.put_by_producer(store, job.id, EVERYTHING.expression, file, ended=True)
            return job

        yield attach


def _told(store: Store, row: Row) -> Attachment:
    facts = (row.name, row.content_type, row.size, row.sha256, row.attempt)
    return Attachment(*facts, row.key, store.storage)
