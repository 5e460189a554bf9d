"""What an app's Jobber has for those who wait: the room, a thread that listens, and its timer."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time
import typing as t

from ..core.news import News, Notification
from ..core.store import Store
from .lookout import Lookout
from .room import Room, Waiter
from .server import most_waiters
from .transport import Ear, Transport
from .watchers import Watcher, Watchers

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
# Seconds in which who has just asked whether somebody watches has committed.
_SLACK = 1.0


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
        #: How often something was heard, or may have been missed.
        self.heard = 0
        self.watchers = Watchers()
        self._look_at, self._choose = look, transport
        self.lookout = Lookout(self._dismiss)
        self._lock, self._choosing = threading.Lock(), threading.Lock()
        self._chosen: Transport | None = None
        self._places = 0
        self._thread: threading.Thread | None = None
        self._ear: Ear | None = None
        self._closed = threading.Event()
        self._fails = 0
        #: By the monotonic clock: when to look, when to look for everything.
        self._due, self._full = math.inf, 0.0
        self._last_seen = 0.0
        #: Whether others are known to watch, and until when this is believed.
        self._is_watched, self._believed = False, 0.0
        #: Whether others know that somebody watches here, who watched last, and when these are to look.
        self._watching, self._last_watched, self._catch_up = False, -math.inf, math.inf

    @property
    def transport(self) -> Transport:
        # Two would not hear each other.
        with self._choosing:
            self._chosen = self._chosen or self._choose()
            return self._chosen

    # -- telling ---------------------------------------------------------------------------

    def tell(self, store: Store, news: News) -> None:
        """Tell everybody when the transaction commits, see :class:`~flask_jobber.core.news.Teller`."""
        self.transport.tell(store, _written(news))

    def notification(self, news: News) -> Notification | None:
        """Return what tells it, see :class:`~flask_jobber.core.news.Teller`."""
        channel = self.transport.channel
        return None if channel is None else Notification(channel, _written(news))

    def say(self, news: News) -> None:
        """Tell everybody now; what cannot be told is logged."""
        try:
            self.transport.say(_written(news))
        except Exception:  # the database's, or the system's
            logger.exception("news could not be told", extra={"action": "tell"})

    def is_watched(self, store: Store) -> bool:
        """Whether anybody watches, see :class:`~flask_jobber.core.news.Teller`; asked now and then."""
        if len(self.watchers):
            return True
        now = time.monotonic()
        if now >= self._believed:
            self._is_watched = self.transport.is_watched(store)
            self._believed = now + self.transport.notice
        return self._is_watched

    def see_off(self, sender: object, user: t.Any = None, **facts: t.Any) -> None:
        """Tell everybody that a user has logged out; a logout never fails for it."""
        try:
            left = user.get_id()
            if left is not None:
                assert self.transport  # chosen here, in the context of an app
                # Not here: the request may hold the last connection there is.
                news, name = News(left=(left,)), "jobber-logout"
                threading.Thread(target=self.say, args=(news,), name=name, daemon=True).start()
        except Exception:  # the app's own user, or the system's
            logger.exception("a logout could not be told", extra={"action": "logout"})

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
            if not self._start() and self._due == math.inf:  # something was due when nobody waited
                self._due = 0.0
                self._stir()

    def leave(self, waiter: Waiter) -> None:
        self.room.leave(waiter)

    def watch(self, watcher: Watcher) -> None:
        """Let somebody watch, who looks for the first time after this; in the context of an app."""
        self.watchers.enter(watcher)
        with self._lock:
            if not self._start() and not self._watching:
                self._stir()

    def unwatch(self, watcher: Watcher) -> None:
        self.watchers.leave(watcher)

    def close(self) -> None:
        """Let nobody wait any longer, and stop listening."""
        self._closed.set()
        self._dismiss()
        self._stir()
        thread = self._thread
        if thread is not None:
            thread.join(_FAREWELL)

    def _dismiss(self) -> None:
        self.room.close()
        self.watchers.close()

    def _start(self) -> bool:
        """Let the thread run; return whether it did not."""
        if self._thread is not None and self._thread.is_alive():
            return False
        assert self.transport  # chosen here, in the context of an app
        self._full = self._last_seen = 0.0
        self._thread = threading.Thread(target=self._run, name="jobber-wakeup", daemon=True)
        self._thread.start()
        return True

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
            self._ear, self._watching = ear, False
            try:
                # For what was told while nobody listened.
                self._due = self._full = 0.0
                self.heard += bool(self._fails)
                self.watchers.hear(News(unnamed=True))
                while not self._is_over():
                    self._turn(ear)
            finally:
                self._ear = None if self._ear is ear else self._ear

    def _is_over(self) -> bool:
        with self._lock:
            if self._thread is not threading.current_thread():
                return True  # it was, and somebody may have come since, for whom there is another
            now = time.monotonic()
            if len(self.room) or len(self.watchers) or not self._last_seen:
                self._last_seen = now
            over = self._closed.is_set() or now > self._last_seen + _REST
            if over:
                self._thread = None
            return over

    def _turn(self, ear: Ear) -> None:
        now = time.monotonic()
        if self._is_due(now):
            self._look(everything=now >= self._full)
        self._mind(ear)
        until = min(self._due, self._catch_up, self._rest(now))
        for text in ear.wait(min(max(until - time.monotonic(), 0), _LONGEST_WAIT)):
            self._hear(text)
        self._fails = 0

    def _is_due(self, now: float) -> bool:
        """Whether to look; while nobody waits it is left to whoever comes next."""
        with self._lock:
            if self._due <= now and not len(self.room):
                self._due = math.inf
            return self._due <= now

    def _rest(self, now: float) -> float:
        """Return when something is to be given up because nobody needs it."""
        if self._watching and not len(self.watchers):
            return self._last_watched + _REST
        return math.inf if len(self.room) or len(self.watchers) else now + _REST

    def _mind(self, ear: Ear) -> None:
        """Let others know that somebody watches here; let these look for what others did before they knew."""
        now = time.monotonic()
        self._last_watched = now if len(self.watchers) else self._last_watched
        every = self.transport.look_every
        if self._watching is not (watching := now < self._last_watched + _REST):
            ear.watch(watching)
            first = self.transport.notice + _SLACK if every is None else every
            self._watching, self._catch_up = watching, now + first if watching else math.inf
        if self._catch_up <= now:
            self._catch_up = math.inf if every is None else now + every
            self.watchers.hear(News(unnamed=True))

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
        self.watchers.hear(news)


def _written(news: News) -> str:
    text = news.write()
    return text if len(text.encode()) <= _MOST_BYTES else news.short().write()
