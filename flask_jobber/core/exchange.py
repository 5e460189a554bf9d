"""Exchange: settle results and claim the next, by one statement where that can be."""

from __future__ import annotations

import typing as t

from . import at_once, trust
from .at_once import Delivery
from .candidates import Wanted
from .claim import Claims, can_claim_beside, claim_and_see, claim_beside
from .hold import Holder, Outcome
from .settle import deliver, deliver_others
from .store import Store


class Exchange:
    """The results of one holder, if any: a claim settles them, or who asks what became of them."""

    def __init__(self, store: Store, holder: Holder, items: t.Sequence[Delivery]) -> None:
        self._store, self._holder, self._items = store, holder, items
        self._outcomes: list[Outcome] | None = None

    def settle(self) -> list[Outcome]:
        """Settle what no claim has settled; return what became of each, in the order given."""
        if self._outcomes is None:
            self._outcomes = deliver(self._store, self._holder, self._items)
        return self._outcomes

    def claim(self, wanted: Wanted, commit: t.Callable[[], object]) -> tuple[Claims, set[int] | None]:
        """Settle, and claim as :func:`.claim_and_see` does.

        :param commit: is called between the two where originals were locked: who goes on to claim
            others may wait for them in a ring.
        """
        found = self._claim_beside(wanted)
        if found is not None:
            return found
        self.settle()
        if trust.has_locked(self._store):
            commit()
        return claim_and_see(self._store, wanted)

    def _claim_beside(self, wanted: Wanted) -> tuple[Claims, set[int] | None] | None:
        """Do both by one statement, if it settles all of them."""
        if self._outcomes is not None or not self._items:
            return None
        if not can_claim_beside(self._store, wanted, self._holder):
            return None
        results = at_once.read(self._store, self._holder, self._items)
        if results is None:
            return None
        done, claims, left = claim_beside(self._store, wanted, results)
        self._outcomes = deliver_others(self._store, self._holder, self._items, done)
        return (claims, left) if len(done) == len(self._items) else None
