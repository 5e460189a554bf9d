"""What an app's Jobber has for those who wait: the room, a thread that listens, and its timer."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import random
import threading
import time
import typing as t

from ..core.news import News
from ..core.store import Store
from .lookout import Lookout
from .room import Room, Waiter
from .server import most_waiters
from .transport import Ear, Transport

logger = logging.getLogger("flask_jobber")
#: Looks at the database: the news, and the seconds until there may be more.
Look = t.Callable[[bool], tuple[News, float | None]]
# PostgreSQL takes 8,000 bytes in a notification.
_MOST_BYTES = 7_900
# Seconds after which a thread that listens for nobody ends.
_REST = 60.0
_LONGEST_PAUSE = 15.0
# Seconds in which the thread has ended, if it does not wait for a database that is away.
_FAREWELL = 5.0
# The system knows of no wait over 24 days.
_LONGEST_WAIT = 86_400.0


class Wakeup:
    """Tells those who wait in this process, and hears what others tell.

    Nobody looks before something is due: the thread sleeps until it hears something, or
    until the next job is due or the next lease is over. It runs while somebody waits.

    :param look: reads what may be claimed.
    :param transport: chooses how news travels, in the context of an app.
    :param horizon: seconds after which it looks for itself, should nobody have said a word.
    """

    def __init__(self, look: Look, transport: t.Callable[[], Transport], horizon: float) -> None:
        self.room = Room()
        self.horizon = horizon
        self.watched = False
        #: How often something was heard, or may have been missed.
        self.heard = 0
        self._look_at, self._choose = look, transport
        self.lookout = Lookout(self.room.close)
        self._lock = threading.Lock()
        self._places = 0
        self._thread: threading.Thread | None = None
        self._ear: Ear | None = None
        self._closed = threading.Event()
        self._fails = 0
        #: By the monotonic clock: when to look, when to look for everything.
        self._due, self._full = math.inf, 0.0
        self._last_seen = 0.0

    @functools.cached_property
    def transport(self) -> Transport:
        return self._choose()

    # -- telling ---------------------------------------------------------------------------

    def tell(self, store: Store, news: News) -> None:
        """Tell everybody when the transaction commits, see :class:`~flask_jobber.core.news.Teller`."""
        self.transport.tell(store, _written(news))

    def say(self, news: News) -> None:
        """Tell everybody now."""
        self.transport.say(_written(news))

    # -- waiting ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def place(self, environ: t.Mapping[str, t.Any], most: int | None) -> t.Iterator[bool]:
        """Give a request a place to wait in, if there is one; ``most`` places are given in all."""
        most = most_waiters(environ) if most is None else most
        with self._lock:
            free = self._places < most
            self._places += free
        try:
            yield free
        finally:
            with self._lock:
                self._places -= free

    def enter(self, waiter: Waiter) -> None:
        """Let somebody wait, who looks for the first time after this."""
        self.room.enter(waiter)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                assert self.transport  # chosen here, in the context of an app
                self._full = self._last_seen = 0.0
                self._thread = threading.Thread(target=self._run, name="jobber-wakeup", daemon=True)
                self._thread.start()
            elif self._due == math.inf:  # something was due when nobody waited
                self._due = 0.0
                self._stir()

    def leave(self, waiter: Waiter) -> None:
        self.room.leave(waiter)

    def close(self) -> None:
        """Let nobody wait any longer, and stop listening."""
        self._closed.set()
        self.room.close()
        self._stir()
        thread = self._thread
        if thread is not None:
            thread.join(_FAREWELL)

    def _stir(self) -> None:
        ear = self._ear
        if ear is not None:
            ear.stir()

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_over():
            try:
                self._listen()
            except Exception as error:  # the database's, the broker's or the system's
                pause = min(_LONGEST_PAUSE, 0.2 * 2 ** min(self._fails, 10)) * random.uniform(0.75, 1.25)
                self._fails += 1
                logger.warning(
                    "nothing is heard of new jobs; again in %.1f s: %s",
                    pause, error, extra={"action": "listen"},
                )  # fmt: skip
                self._closed.wait(pause)

    def _listen(self) -> None:
        with contextlib.closing(self.transport.listen()) as ear:
            self._ear = ear
            try:
                self._look(everything=True)  # for what was told while nobody listened
                self.heard += bool(self._fails)
                self._fails = 0
                while not self._is_over():
                    self._turn(ear)
            finally:
                self._ear = None

    def _is_over(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if len(self.room) or not self._last_seen:
                self._last_seen = now
            over = self._closed.is_set() or now > self._last_seen + _REST
            if over:
                self._thread = None
            return over

    def _turn(self, ear: Ear) -> None:
        now = time.monotonic()
        if self._due <= now and len(self.room):
            self._look(everything=now >= self._full)
        elif self._due <= now:
            self._due = math.inf  # whoever comes next looks
        until = self._due if len(self.room) else min(self._due, now + _REST)
        for text in ear.wait(min(max(until - time.monotonic(), 0), _LONGEST_WAIT)):
            self._hear(text)

    def _look(self, *, everything: bool) -> None:
        began = time.monotonic()
        news, following = self._look_at(everything)
        now = time.monotonic()
        if everything:
            self._full = began + min(self.horizon, self.transport.look_every or math.inf)
        self._due = min(self._full, math.inf if following is None else now + following)
        self._take(news)

    def _hear(self, text: str) -> None:
        try:
            news = News.read(text)
        except ValueError as error:
            logger.warning("%s", error, extra={"action": "listen"})
            return
        self.heard += 1
        self._take(news)

    def _take(self, news: News) -> None:
        now = time.monotonic()
        if news.wish is not None:  # no index leads to those whose time is over
            self._full = min(self._full, now + news.wish)
        self._due = min(self._due, self._full, math.inf if news.due is None else now + news.due)
        self.room.hear(news)


def _written(news: News) -> str:
    text = news.write()
    return text if len(text.encode()) <= _MOST_BYTES else news.short().write()
