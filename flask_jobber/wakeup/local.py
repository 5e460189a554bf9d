"""News within one process."""

from __future__ import annotations

import functools

from ..commits import on_commit
from ..core.store import Store
from .transport import LocalEar, WireEar


class Local:
    """Reaches whoever waits in this process.

    :param look_every: seconds between two looks, when jobs may come from elsewhere.
    """

    notice = 0.0
    channel: str | None = None

    def __init__(self, look_every: float | None = None) -> None:
        self.look_every = look_every
        self._ears: list[LocalEar | WireEar] = []

    def tell(self, store: Store, text: str) -> None:
        on_commit(store.session, functools.partial(self.say, text))

    def say(self, text: str) -> None:
        for ear in tuple(self._ears):
            ear.hear(text)

    def is_watched(self, store: Store) -> bool:
        return False

    def listen(self) -> LocalEar | WireEar:
        ear = LocalEar(self._ears.remove)
        self._ears.append(ear)
        return ear
