"""News by Redis: published after the commit, heard by one connection for each process that waits.

Redis is trusted with nothing but time. While it is away those of one process hear of each
other, and what comes from others is looked for now and then.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import time
import typing as t

from ..core.news import News
from ..core.store import Store
from ..errors import SetupError
from .local import Local
from .transport import WireEar, keep_alive

if t.TYPE_CHECKING:
    import redis

logger = logging.getLogger("flask_jobber")
#: A client of Redis; it connects when it is used.
Broker: t.TypeAlias = "redis.Redis"
# Whoever commits waits no longer for an answer, nor for a connection.
_TIMEOUT = 1.0
# Seconds for which Redis is told nothing after it has taken long to fail.
_SILENCE = 5.0
# Seconds between two attempts to hear Redis again: the first, the longest.
_PAUSE, _LONGEST_PAUSE = 1.0, 15.0
# More messages than this are not read at a time.
_MOST = 1000
_MORE = News(more=True, unnamed=True).write()


def find_broker(url: str) -> Broker:
    """Return the client for a URL that ``config.py`` has let through.

    :raises ImportError: without redis-py.
    :raises SetupError: for an address that it does not take.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ImportError("JOBBER_WAKEUP_URL needs redis-py: pip install flask-jobber[redis]") from error
    limits = {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT}
    if url.startswith("unix:"):
        del limits["socket_connect_timeout"]
    try:
        return redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), **limits)
    except ValueError as error:
        raise SetupError(f"JOBBER_WAKEUP_URL is not for Redis: {error}") from error


class Redis(Local):
    """Reaches every process that uses the same Redis.

    :param channel: others may use it for another database, and are woken for nothing.
    """

    def __init__(self, broker: Broker, channel: str) -> None:
        super().__init__()
        self._broker, self._channel = broker, channel
        self._token = secrets.token_hex(8)
        self._missed = False
        self._silent_until = 0.0
        self._fails = 0

    @property
    def _origin(self) -> bytes:
        # A fork is another process.
        return f"{self._token}-{os.getpid()}".encode()

    def say(self, text: str) -> None:
        super().say(text)
        if time.monotonic() < self._silent_until:  # each commit would wait for it
            self._missed = True
            return
        missed, self._missed, began = self._missed, False, time.monotonic()
        try:
            for said in (text, _MORE) if missed else (text,):
                self._broker.publish(self._channel, self._origin + b" " + said.encode())
        except Exception as error:  # whatever it is, the transaction is committed
            self._missed = True
            if (now := time.monotonic()) - began > _TIMEOUT / 2:
                self._silent_until = now + _SILENCE
            logger.warning("Redis was not told of new jobs: %s", error, extra={"action": "tell"})

    def is_watched(self, store: Store) -> bool:
        try:
            [(_, watching)] = self._broker.pubsub_numsub(_watched(self._channel))
            return bool(watching)
        except Exception as error:  # whatever it is, the transaction shall be committed
            logger.warning("Redis was not asked who watches: %s", error, extra={"action": "tell"})
            return True

    def listen(self) -> WireEar:
        ear = RedisEar(self._ears.remove, self._origin, _watched(self._channel))
        self._ears.append(ear)
        try:
            ear.connect(self._broker, self._channel)
            self._fails = 0
        except Exception as error:  # its own, or the system's
            pause = min(_LONGEST_PAUSE, _PAUSE * 2 ** min(self._fails, 10)) * random.uniform(0.75, 1.25)
            self._fails += 1
            ear.do_without(error, pause)
        return ear


def _watched(channel: str) -> str:
    """Return the channel that those hear who watch; nothing is told there."""
    return f"{channel}:watch"


class RedisEar(WireEar):
    """A connection of its own, or none for a while.

    :param origin: of what is told in this process, and heard already.
    :param watched: the channel of those who watch.
    """

    def __init__(self, leave: t.Callable[[t.Any], None], origin: bytes, watched: str) -> None:
        super().__init__(leave)
        self._origin, self._watched = origin, watched
        self._connection: t.Any = None
        self._error: Exception | None = None
        self._until = 0.0

    def connect(self, broker: Broker, channel: str) -> None:
        """Subscribe."""
        pool = broker.connection_pool
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._connection.connect()
        self._connection.send_command("SUBSCRIBE", channel)
        self._read()
        # There is no other way to wait for it and for a bell.
        fileno = self._connection._sock.fileno()
        keep_alive(fileno)
        self.attend(fileno)

    def do_without(self, error: Exception, seconds: float) -> None:
        """Hear this process alone, and raise the error at the end."""
        self._error, self._until = error, time.monotonic() + seconds

    def wait(self, seconds: float | None) -> list[str]:
        if self._error is None:
            return super().wait(seconds)
        left = self._until - time.monotonic()
        if left <= 0:
            raise self._error
        return super().wait(left if seconds is None else min(left, seconds))

    def receive(self) -> list[str]:
        if self._error is not None:
            return []
        heard: list[bytes] = []
        while len(heard) < _MOST:
            if not self._connection.can_read(timeout=0):
                break
            kind, *_, said = self._read()
            if kind == b"message":
                heard.append(said)
        else:
            self.stir()  # what is left has been read from the socket, perhaps
        parts = (message.partition(b" ") for message in heard)
        return [text.decode(errors="replace") for origin, _, text in parts if origin != self._origin]

    def watch(self, watching: bool) -> None:
        if self._connection is not None:
            self._connection.send_command("SUBSCRIBE" if watching else "UNSUBSCRIBE", self._watched)

    def _read(self) -> t.Any:
        return self._connection.read_response(disable_decoding=True, push_request=True)

    def close(self) -> None:
        super().close()
        if self._connection is not None:
            self._connection.disconnect()
