"""Which files a job has: those it came with, and those that the holder of an attempt has brought."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import itertools
import os
import pathlib
import typing as t

import sqlalchemy as sa
from blinker import NamedSignal

from .. import signals
from ..errors import IllegalTransition, NameTaken, NotFound, TooLarge
from . import files
from .files import Saved
from .hold import Holder, Item, Row, fence, refusal
from .payload import MAX_ID, check_file_name, read_content_type
from .scope import Expression
from .states import TERMINAL
from .store import Store
from .transition import forget

#: Bytes, the path of a file, or an open one.
Content = bytes | os.PathLike[str] | str | t.BinaryIO
#: Files of one job.
MOST = 100
_BATCH = 500
_gone = NamedSignal("jobber-files-gone")


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file that is written and gets its row now."""

    name: str
    content_type: str
    saved: Saved

    def check(self, now: dt.datetime) -> None:
        """:raises TooLarge: when it took so long that it may be collected at any moment."""
        if files.age_of(self.saved.key, now) > files.LONGEST_UPLOAD:
            raise TooLarge(f"An upload may take {files.LONGEST_UPLOAD} seconds.")

    def is_row(self, row: Row) -> bool:
        known = (row.content_type, row.size, row.sha256)
        return known == (self.content_type, self.saved.size, self.saved.sha256)


@contextlib.contextmanager
def written(store: Store, name: str, content: Content, content_type: str | None) -> t.Iterator[File]:
    """Write a file that is to appear within the block; if that raises, there is none.

    :raises Invalid: for a name that is none.
    :raises TooLarge, StorageAway: when it is not taken.
    """
    check_file_name("name", name)
    key = files.new_key(store.now())
    with _opened(content) as chunks:
        saved = files.save(store.storage, key, chunks, store.settings.max_attachment_bytes)
    try:
        yield File(name, read_content_type(content_type), saved)
    except BaseException:
        files.delete(store.storage, [key])
        raise


@contextlib.contextmanager
def _opened(content: Content) -> t.Iterator[t.Iterable[bytes]]:
    if isinstance(content, bytes):
        yield [content]
    elif isinstance(content, str | os.PathLike):
        with pathlib.Path(content).open("rb") as file:
            yield iter(lambda: file.read(files.CHUNK), b"")
    else:
        yield iter(lambda: content.read(files.CHUNK), b"")


def put_by_holder(store: Store, holder: Holder, item: Item, file: File) -> tuple[Row, bool]:
    """Let a file appear that the holder brings, in place of one of the same name.

    :returns: its row, and whether there was none of the name.
    :raises NotFound, LeaseLost, Cancelled, AlreadySettled: when the job is not held.
    :raises NameTaken: when the job came with a file of this name.
    :raises TooLarge: when it has too many.
    """
    if not fence(store, holder, [item]):
        raise refusal(store, holder, item)[0]
    return _put(store, item.job_id, item.attempt, item.attempt, file)


def put_by_producer(
    store: Store, job_id: int, scope: Expression, file: File, *, ended: bool = False
) -> tuple[Row, bool]:
    """Let a file appear that the job comes with, likewise.

    :param ended: whether the job may have ended.
    :raises NotFound: when there is no such job in the scope.
    :raises IllegalTransition: when it has ended.
    :raises NameTaken, TooLarge: as for a holder.
    """
    c = store.jobs.c
    rows = store.lock((c.state, c.attempts), c.id == job_id, scope) if 1 <= job_id <= MAX_ID else ()
    if not rows:
        raise NotFound
    check_unfinished(rows[0].state if not ended else None)
    return _put(store, job_id, None, rows[0].attempts, file)


def check_unfinished(state: str | None) -> None:
    """:raises IllegalTransition: for a job that has ended; what it came with is as it was done."""
    if state in TERMINAL:
        raise IllegalTransition(f"A job that is {state} gets no more attachments.")


def _put(store: Store, job_id: int, attempt: int | None, attempts: int, file: File) -> tuple[Row, bool]:
    """Write the row of a job that this transaction has locked."""
    file.check(store.now())
    known = _present(store, job_id)
    stale = [row for row in known if row.attempt is not None and row.attempt != attempts]
    alive = {row.name: row for row in known if row not in stale}
    same = alive.pop(file.name, None)
    if same is not None and (same.job_id, same.attempt) != (job_id, attempt):
        raise NameTaken
    if same is not None and file.is_row(same):
        forget_files(store, [file.saved.key])
        return same, False
    if len(alive) >= MOST:
        raise TooLarge(f"A job has at most {MOST} attachments.")
    _drop(store, [*stale, same] if same is not None else stale)
    return _insert(store, job_id, attempt, file), same is None


def _present(store: Store, job_id: int) -> list[Row]:
    """Return the files of a job, and those that its original came with."""
    a, c = store.attachments.c, store.jobs.c
    known = store.execute(store.current(sa.select(c.has_files, c.copy_of).where(c.id == job_id))).one()
    # Known from the locked row: where there are none, MySQL is not asked to lock the gap.
    if known.has_files is None:
        return []
    files = sa.select(store.attachments)
    own = store.execute(store.current(files.where(a.job_id == job_id))).all()
    if known.copy_of is None:
        return list(own)
    # Not locked: its rows are not this job's.
    return [*own, *store.execute(files.where(a.job_id == known.copy_of, a.attempt.is_(None)))]


def _drop(store: Store, rows: t.Sequence[Row]) -> None:
    if rows:
        a = store.attachments.c
        store.execute(sa.delete(store.attachments).where(a.id.in_([row.id for row in rows])))
        forget_files(store, [row.key for row in rows])


def _insert(store: Store, job_id: int, attempt: int | None, file: File) -> Row:
    a, c = store.attachments.c, store.jobs.c
    facts = dataclasses.asdict(file.saved) | {"name": file.name, "content_type": file.content_type}
    store.execute(sa.insert(store.attachments).inline().values(job_id=job_id, attempt=attempt, **facts))
    store.execute(sa.update(store.jobs).where(c.id == job_id).values(has_files=True))
    forget(store, job_id)
    return store.execute(sa.select(store.attachments).where(a.key == file.saved.key)).one()


def of(store: Store, job_ids: t.Sequence[int]) -> dict[int, list[Row]]:
    """Return the files of jobs by their ids: those a job came with, and those of its last attempt."""
    if not job_ids:
        return {}
    a = store.attachments.c
    j = store.jobs.c
    rows = store.execute(_told(store).where(j.id.in_(job_ids)).order_by(j.id, a.name)).all()
    return {job_id: _own_first(group) for job_id, group in itertools.groupby(rows, lambda row: row.job_id)}


def _own_first(rows: t.Iterable[Row]) -> list[Row]:
    """Leave out what the original of a copy got after the copy had a file of that name."""
    by_name: dict[str, Row] = {}
    for row in rows:
        if row.own or row.name not in by_name:
            by_name[row.name] = row
    return list(by_name.values())


def one(store: Store, job_id: int, name: str) -> Row | None:
    """Return the row of one file, as :func:`of`."""
    a = store.attachments.c
    rows = store.execute(_told(store).where(store.jobs.c.id == job_id, a.name == name)).all()
    return next(iter(_own_first(rows)), None)


def _valid(store: Store) -> sa.Select[t.Any]:
    """Select what is of use: not what the holders of attempts that came to nothing have brought."""
    a, c = store.attachments.c, store.jobs.c
    joined = store.attachments.join(store.jobs, c.id == a.job_id)
    return (
        sa.select(store.attachments)
        .select_from(joined)
        .where(sa.or_(a.attempt.is_(None), a.attempt == c.attempts))
    )


def _told(store: Store) -> sa.Select[t.Any]:
    """Select what a job has, by the id of the job: a copy has the files that its original came with."""
    a, c = store.attachments.c, store.jobs.c
    owners = sa.or_(a.job_id == c.id, a.job_id == c.copy_of)
    files = [column for column in a if column is not a.job_id]
    mine = sa.case((a.job_id == c.id, a.attempt == c.attempts), else_=sa.false())
    return (
        sa.select(*files, c.id.label("job_id"), (a.job_id == c.id).label("own"))
        .select_from(store.jobs.join(store.attachments, owners))
        .where(sa.or_(a.attempt.is_(None), mine))
    )


def forget_all(store: Store, job_ids: t.Sequence[int]) -> None:
    """Delete the rows of jobs that are being deleted, and their files once that is committed."""
    a = store.attachments.c
    for job_id in job_ids:  # one by one, as their jobs
        keys = store.execute(sa.select(a.key).where(a.job_id == job_id)).scalars().all()
        store.execute(sa.delete(store.attachments).where(a.job_id == job_id))
        forget_files(store, keys)


def forget_files(store: Store, keys: t.Sequence[str]) -> None:
    """Delete files when, and only when, the transaction commits. A crash before that leaves orphans."""
    signals.announce(store.session, _gone, store.sender, storage=store.storage, keys=keys)


@_gone.connect
def _delete(sender: object, storage: files.Storage, keys: t.Sequence[str]) -> None:
    files.delete(storage, keys)


def collect(store: Store, shard: int) -> int:
    """Delete the orphans in one part of the storage, with their rows; return how many.

    An orphan was begun over a day ago and has no row (its upload broke, its transaction was
    rolled back), or one of no use: its job is gone, or another attempt came after its own.
    """
    now, count = store.now(), 0
    keys = (key for key in files.keys(store.storage, shard) if files.age_of(key, now) > files.ORPHANED_AFTER)
    while batch := list(itertools.islice(keys, _BATCH)):
        a = store.attachments.c
        used = set(store.execute(_valid(store).with_only_columns(a.key).where(a.key.in_(batch))).scalars())
        if orphans := [key for key in batch if key not in used]:
            store.execute(sa.delete(store.attachments).where(a.key.in_(orphans)))
            forget_files(store, orphans)
            count += len(orphans)
    return count
