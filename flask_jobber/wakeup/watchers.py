"""Those of this process who hear of jobs that are changed, whoever changes them."""

from __future__ import annotations

import dataclasses
import threading
import typing as t

from ..core.news import News

# More than this is not kept one by one.
_MOST = 1000


@dataclasses.dataclass(eq=False, slots=True)
class Watcher:
    """Who watches: ``ring`` is called, in any thread, when there is something to look at.

    :param jobs: the ids of those it watches; ``None``: any.
    :param user: the id of the user whose login it is.
    """

    ring: t.Callable[[], None]
    jobs: frozenset[int] | None = None
    user: str | None = None
    #: Ids of jobs that are not as they were; or there may be any.
    changed: set[int] = dataclasses.field(default_factory=set)
    unnamed: bool = False
    #: Whether it is to watch no longer.
    dismissed: bool = False

    @property
    def has_news(self) -> bool:
        return self.unnamed or bool(self.changed)

    def _hear(self, news: News) -> bool:
        """Note what concerns it; return whether it is to be rung."""
        had, ended = self.has_news, self.dismissed
        self.changed |= set(news.changed) if self.jobs is None else self.jobs.intersection(news.changed)
        self.unnamed |= news.unnamed or len(self.changed) > _MOST
        self.dismissed |= self.user is not None and self.user in news.left
        if self.unnamed:
            self.changed.clear()
        return (self.has_news and not had) or (self.dismissed and not ended)


class Watchers:
    """All who watch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: set[Watcher] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._watchers)

    def enter(self, watcher: Watcher) -> None:
        with self._lock:
            watcher.dismissed = watcher.dismissed or self._closed
            self._watchers.add(watcher)

    def leave(self, watcher: Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)

    def take(self, watcher: Watcher) -> tuple[set[int], bool]:
        """Take what a watcher has heard: ids, and whether there may be others."""
        with self._lock:
            heard = watcher.changed, watcher.unnamed
            watcher.changed, watcher.unnamed = set(), False
        return heard

    def hear(self, news: News) -> None:
        """Ring those whom the news concerns."""
        if not (news.changed or news.unnamed or news.left):
            return
        with self._lock:
            rung = [watcher for watcher in self._watchers if watcher._hear(news)]
        for watcher in rung:
            watcher.ring()

    def close(self) -> None:
        """Let nobody watch any longer."""
        with self._lock:
            self._closed, rung = True, list(self._watchers)
            for watcher in rung:
                watcher.dismissed = True
        for watcher in rung:
            watcher.ring()
