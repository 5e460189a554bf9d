"""Where the bytes of attachments are: a folder, or whatever fsspec knows.

A file is written once under a key of ours and never changed; it is there for nobody until a
row of ``core/attachments.py`` names it. So a broken upload, a crash or a roll-back leaves
nothing but a file without a row, and :func:`.attachments.collect` deletes those.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import logging
import os
import pathlib
import re
import secrets
import typing as t

from ..errors import NotFound, SetupError, StorageAway, TooLarge

logger = logging.getLogger("flask_jobber")
#: What is read and written at a time, in bytes: all that an attachment costs in memory.
CHUNK = 262_144
#: Parts of a storage, each looked through at a time.
SHARDS = 256
#: Seconds that an upload may take. Those whose rows are missing much later are nobody's.
LONGEST_UPLOAD = 43_200
ORPHANED_AFTER = 86_400
# When it was begun, by the database's clock, and what nobody guesses; the last two digits
# are its part of the storage.
_KEY = re.compile(r"[0-9a-f]{8}[0-9a-f]{24}")


@dataclasses.dataclass(frozen=True, slots=True)
class Saved:
    """A file that is written: its key, its length in bytes, the SHA-256 of it in hex."""

    key: str
    size: int
    sha256: str


class Storage(t.Protocol):
    """A place for files. Each method may raise :class:`OSError` or what its library raises."""

    def create(self, key: str) -> t.BinaryIO: ...

    def open(self, key: str) -> t.BinaryIO:
        """Return a file that can be read and sought. :raises FileNotFoundError: without one."""
        ...

    def delete(self, keys: t.Sequence[str]) -> None:
        """Delete what is there of these."""
        ...

    def keys(self, shard: int) -> t.Iterable[str]:
        """Return the keys in one part."""
        ...

    def path(self, key: str) -> str | None:
        """Return the path of a file on this machine, ``None`` when it is elsewhere."""
        ...


def shard_of(key: str) -> str:
    return key[-2:]


def new_key(now: dt.datetime) -> str:
    """Return a key for a file that is begun now, by the database's clock."""
    return f"{int(now.timestamp()):08x}{secrets.token_hex(12)}"


def age_of(key: str, now: dt.datetime) -> float:
    """Return how many seconds ago a file was begun."""
    return now.timestamp() - int(key[:8], 16)


class Folder:
    """A folder of this machine, or one that several machines share."""

    def __init__(self, path: str) -> None:
        self._root = pathlib.Path(path)

    def create(self, key: str) -> t.BinaryIO:
        path = self._path(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return t.cast(t.BinaryIO, _Durable(path))

    def open(self, key: str) -> t.BinaryIO:
        return self._path(key).open("rb")

    def delete(self, keys: t.Sequence[str]) -> None:
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def keys(self, shard: int) -> t.Iterable[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root / f"{shard:02x}") as found:
            yield from (entry.name for entry in found if _KEY.fullmatch(entry.name))

    def path(self, key: str) -> str:
        return str(self._path(key).absolute())

    def _path(self, key: str) -> pathlib.Path:
        return self._root / shard_of(key) / key


class _Durable:
    """A file that is on the disk, with its name, once it is closed: its row will promise that."""

    def __init__(self, path: pathlib.Path) -> None:
        self._folder = path.parent
        self._file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Remote:
    """A place that fsspec knows by its URL."""

    def __init__(self, url: str, folder: str) -> None:
        try:
            import fsspec.core
        except ImportError as error:
            raise ImportError(
                f"JOBBER_ATTACHMENTS_URL {_told(url)!r} needs fsspec: pip install flask-jobber[files]"
            ) from error
        self._url, self._folder = url, folder
        self._find = fsspec.core.url_to_fs
        try:
            self._place()
        except ValueError as error:
            raise SetupError(f"JOBBER_ATTACHMENTS_URL cannot be {_told(url)!r}: {error}") from error

    def _place(self) -> tuple[t.Any, str]:
        # Asked each time: fsspec keeps one for each thread, and makes new ones after a fork.
        found, root = self._find(self._url)
        return found, f"{root.rstrip('/')}/{self._folder}"

    def create(self, key: str) -> t.BinaryIO:
        found, root = self._place()
        found.makedirs(f"{root}/{shard_of(key)}", exist_ok=True)
        return t.cast(t.BinaryIO, found.open(f"{root}/{shard_of(key)}/{key}", "wb"))

    def open(self, key: str) -> t.BinaryIO:
        found, root = self._place()
        # Its own way of reading ahead keeps little.
        return t.cast(t.BinaryIO, found.open(f"{root}/{shard_of(key)}/{key}", "rb"))

    def delete(self, keys: t.Sequence[str]) -> None:
        found, root = self._place()
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                found.rm_file(f"{root}/{shard_of(key)}/{key}")

    def keys(self, shard: int) -> t.Iterable[str]:
        found, root = self._place()
        found.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            names = (str(name).rpartition("/")[2] for name in found.ls(f"{root}/{shard:02x}", detail=False))
            yield from (name for name in names if _KEY.fullmatch(name))

    def path(self, key: str) -> None:
        return None


def _told(url: str) -> str:
    # What follows the scheme may hold a password.
    return f"{url.partition('://')[0]}://…"


def make_storage(url: str | None, instance: str, folder: str) -> Storage:
    """Return the place of a Jobber's files.

    :param url: a URL, or a path, relative to ``instance``; ``None`` is ``jobber_attachments`` there.
    :param folder: the Jobber's own folder in it.
    :raises SetupError: for a URL that fsspec does not know.
    :raises ImportError: when it needs a library that is not there; it says which.
    """
    if url is not None and "://" in url and not url.startswith("file://"):
        return Remote(url, folder)
    path = (url or "jobber_attachments").removeprefix("file://")
    return Folder(os.path.join(instance, path, folder))


def save(storage: Storage, key: str, chunks: t.Iterable[bytes], most: int) -> Saved:
    """Write a file, piece by piece. What breaks on the way leaves none.

    :param most: bytes.
    :raises TooLarge: when it is larger.
    :raises StorageAway: when the storage does not take it.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with _storing("written"):
            file = storage.create(key)
        with _closing(file):
            for chunk in chunks:
                size += len(chunk)
                if size > most:
                    raise TooLarge(f"An attachment may be {most} bytes.")
                digest.update(chunk)
                with _storing("written"):
                    file.write(chunk)
    except BaseException:
        delete(storage, [key])
        raise
    return Saved(key, size, digest.hexdigest())


@contextlib.contextmanager
def _closing(file: t.BinaryIO) -> t.Iterator[None]:
    try:
        yield
    except BaseException:
        _discard(file)
        raise
    with _storing("written"):
        file.close()


def _discard(file: t.Any) -> None:
    """Close what is not to be kept; some storages can forget it before it is there."""
    with contextlib.suppress(Exception):
        if hasattr(file, "discard"):
            file.discard()
    with contextlib.suppress(Exception):
        file.close()


@contextlib.contextmanager
def _storing(done: str) -> t.Iterator[None]:
    """Turn whatever a storage raises, each library in its own way, into one error of ours."""
    try:
        yield
    except Exception as error:
        logger.exception("a file could not be %s", done, extra={"action": "storage"})
        raise StorageAway from error


def open_file(storage: Storage, key: str) -> t.BinaryIO:
    """Return a file to be read and sought.

    :raises NotFound: when it is gone: replaced or pruned at this moment, or lost; that is logged.
    :raises StorageAway: when the storage does not answer.
    """
    try:
        return storage.open(key)
    except FileNotFoundError as error:
        logger.error("the file of an attachment is not there: %s", key, extra={"action": "storage"})
        raise NotFound from error
    except Exception as error:
        logger.exception("a file could not be opened", extra={"action": "storage"})
        raise StorageAway from error


def keys(storage: Storage, shard: int) -> t.Iterator[str]:
    """Yield the keys in one part of a storage, as far as it tells them now."""
    try:
        yield from storage.keys(shard)
    except Exception:
        logger.exception("files could not be listed now", extra={"action": "storage"})


def delete(storage: Storage, keys: t.Sequence[str]) -> None:
    """Delete files; what cannot be deleted now is collected later."""
    try:
        storage.delete(keys)
    except Exception:
        logger.exception("files could not be deleted now", extra={"action": "storage"})
