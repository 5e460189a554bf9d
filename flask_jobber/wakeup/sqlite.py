"""News beside an SQLite file: a folder in which each process that waits has a socket.

Whoever commits sends a datagram to each. A socket is a file: who may write the database may
write to it, and nobody else. What comes by it is checked as if anybody could.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import stat
import typing as t
from urllib.parse import quote, unquote, urlsplit

import sqlalchemy as sa

from ..core.news import News
from ..core.store import Store
from .local import Local
from .transport import LocalEar, WireEar

logger = logging.getLogger("flask_jobber")
# What the system takes for the address of a socket, but for its end.
_MOST_PATH = 103
_MOST_BYTES = 65_536
# So many at once may have filled the queue, and others been sent away: Linux takes 11, unless told otherwise.
_FULL = 8
_MOST = 1000
_MORE = News(more=True, unnamed=True).write()
_ENDING = "-wakeup"
# Ends the name of a file that is there while the process of a socket watches.
_WATCHES = ".watches"
# Begins the name of a socket that does not hear yet.
_NEW = ".new-"


def file_of(url: sa.URL) -> str | None:
    """Return the path of a database, or ``None`` for one in memory."""
    name = url.database or ""
    if name.startswith("file:") and sa.util.asbool(url.query.get("uri", False)):
        parts = urlsplit(name)
        name = unquote(parts.path)
        if "mode=memory" in parts.query or url.query.get("mode") == "memory":
            return None
    return None if name in ("", ":memory:") else os.path.realpath(name)


class Sqlite(Local):
    """Reaches every process of this machine that uses the file.

    :param file: path of the database.
    :param table: of the jobs: others may be in the same file.
    :param look_every: seconds between two looks, where there can be no socket.
    """

    def __init__(self, file: str, table: str, look_every: float) -> None:
        super().__init__()
        self._file, self._look_every = file, look_every
        self._prefix = f"{quote(table, safe='')[:40]}."

    def say(self, text: str) -> None:
        super().say(text)
        try:
            with _Folder(self._file) as folder:
                mine = {ear.name for ear in tuple(self._ears) if isinstance(ear, SqliteEar) and ear.is_here}
                for name in folder.names(self._prefix):
                    if name not in mine and not name.endswith(_WATCHES):
                        folder.send(name, text)
        except FileNotFoundError:
            pass  # nobody has listened yet
        except OSError as error:
            logger.warning("other processes were not told of new jobs: %s", error, extra={"action": "tell"})

    def is_watched(self, store: Store) -> bool:
        try:
            with _Folder(self._file) as folder:
                return bool(folder.names(self._prefix, _WATCHES))
        except OSError:  # nobody has listened yet; and whoever tells says what is wrong
            return False

    def listen(self) -> LocalEar | WireEar:
        ear = SqliteEar(self._ears.remove, self._prefix)
        self._ears.append(ear)
        try:
            ear.bind(self._file)
        except OSError as error:
            ear.close()
            self._fall_back(error)
            return super().listen()
        self.look_every = None
        return ear

    def _fall_back(self, error: OSError) -> None:
        if self.look_every is None:
            logger.warning(
                "no socket beside %s, so that jobs of other processes are looked for every %g s: %s",
                self._file, self._look_every, error, extra={"action": "listen"},
            )  # fmt: skip
        self.look_every = self._look_every


class SqliteEar(WireEar):
    """A socket in the folder."""

    def __init__(self, leave: t.Callable[[t.Any], None], prefix: str) -> None:
        super().__init__(leave)
        self._pid = os.getpid()
        self.name = f"{prefix}{self._pid}-{secrets.token_hex(4)}"
        self._socket: socket.socket | None = None
        self._folder: _Folder | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is not that of the process this one was forked from."""
        return self._pid == os.getpid()

    def bind(self, file: str) -> None:
        """Be found in the folder, which is made where there is none."""
        make_folder(file)
        self._folder = _Folder(file)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._folder.bind(self._socket, self.name)
        self.attend(self._socket.fileno())

    def watch(self, watching: bool) -> None:
        if self._folder is not None:
            (self._folder.mark if watching else self._folder.remove)(self.name + _WATCHES)

    def receive(self) -> list[str]:
        assert self._socket  # waited for
        heard: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(heard) < _MOST:
                heard.append(self._socket.recv(_MOST_BYTES))
        told = [text.decode(errors="replace") for text in heard]
        return [*told, _MORE] if len(heard) >= _FULL else told

    def close(self) -> None:
        super().close()
        if self._folder is not None:
            self._folder.remove(self.name)
            self._folder.remove(self.name + _WATCHES)
            self._folder.close()
        if self._socket is not None:
            self._socket.close()


def make_folder(file: str) -> None:
    """Make the folder of a database's sockets: for those who may write the file and make files beside it."""
    database, above = os.stat(file), os.stat(os.path.dirname(file))
    rights = stat.S_IRWXU | (above.st_mode & stat.S_ISVTX)
    for whose in (0o070, 0o007):
        may_write = database.st_mode & whose & 0o022
        rights |= above.st_mode & whose if may_write else 0
    with contextlib.suppress(FileExistsError):
        os.mkdir(file + _ENDING, stat.S_IRWXU)
        _give(file + _ENDING, database, rights)


def _give(path: str, database: os.stat_result, rights: int, folder: int | None = None) -> None:
    """Let a file of ours be the database's: root may have come first."""
    owner = database.st_uid if os.geteuid() == 0 else -1
    with contextlib.suppress(PermissionError):
        os.chown(path, owner, database.st_gid, dir_fd=folder)
    os.chmod(path, rights, dir_fd=folder)


class _Folder:
    """The folder of a database's sockets, while it is open.

    :raises FileNotFoundError: when there is none.
    :raises OSError: when it is not to be trusted.
    """

    def __init__(self, file: str) -> None:
        self._path, self._database = file + _ENDING, os.stat(file)
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self._check(os.stat(os.path.dirname(file)))
        except OSError:
            self.close()
            raise

    def _check(self, above: os.stat_result) -> None:
        # Where everybody may make files, as in /tmp, somebody else may have made this one.
        owners = (os.geteuid(), self._database.st_uid)
        if above.st_mode & stat.S_ISVTX and os.fstat(self._fd).st_uid not in owners:
            raise PermissionError(errno.EPERM, "it belongs to somebody else", self._path)

    def names(self, prefix: str, ending: str = "") -> list[str]:
        return [name for name in os.listdir(self._fd) if name.startswith(prefix) and name.endswith(ending)]

    def bind(self, one: socket.socket, name: str) -> None:
        """Give a socket its name, once whoever sends to it is heard: a deaf one would be removed."""
        new = _NEW + name
        one.bind(self._address(new))
        _give(new, self._database, os.fstat(self._fd).st_mode & 0o666, self._fd)
        os.rename(new, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def mark(self, name: str) -> None:
        """Make an empty file."""
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, stat.S_IRUSR | stat.S_IWUSR, dir_fd=self._fd))

    def send(self, name: str, text: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.setblocking(False)
            try:
                one.sendto(text.encode(), self._address(name))
            except (BlockingIOError, FileNotFoundError):
                pass  # it is full, and will be looked for more; or closed
            except ConnectionRefusedError:
                for one_of_it in (name, name + _WATCHES):
                    self.remove(one_of_it)  # its process was killed
            except OSError as error:
                logger.warning("%s was not told of new jobs: %s", name, error, extra={"action": "tell"})

    def _address(self, name: str) -> str:
        path = os.path.join(self._path, name)
        return path if len(os.fsencode(path)) <= _MOST_PATH else f"/proc/self/fd/{self._fd}/{name}"

    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
