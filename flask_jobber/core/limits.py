"""What an app says of who gets jobs, and how many."""

from __future__ import annotations

import dataclasses
import typing as t

from .models import MeterMixin, SeatMixin, TurnMixin


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """What is said of the claims of a type, of a queue, or by a login.

    :param name: which; of lockers ``*`` is each.
    :param at_once: so many are held.
    :param rate: so many are handed out in ``per_seconds``, one by one.
    :param burst: so many of them together, after a pause.
    """

    what: t.Literal["type", "queue", "locker"]
    name: str
    at_once: int | None = None
    rate: int | None = None
    per_seconds: float = 1
    burst: int = 1


@dataclasses.dataclass
class Rules:
    """What a Jobber was told, and the tables in which it is counted.

    :param fair_by: the column of jobs whose values take turns.
    :param seats: how many jobs of a concurrency key are in the pool at once, by the key, or by its
        beginning and a ``*``.
    :param limits: of claims, by what they are about and its name.
    """

    Turn: type[TurnMixin]
    Seat: type[SeatMixin]
    Meter: type[MeterMixin]
    fair_by: str | None = None
    seats: dict[str, int] = dataclasses.field(default_factory=dict)

    limits: dict[tuple[str, str], Limit] = dataclasses.field(default_factory=dict)

    @property
    def counts_held(self) -> bool:
        """Whether the end of a job may let another one be claimed."""
        return any(limit.at_once is not None for limit in self.limits.values())

    def seats_of(self, key: str) -> int:
        """Return the limit of a concurrency key: of it, else of its longest beginning, else 1."""
        if key in self.seats:
            return self.seats[key]
        known = [said for said in self.seats if said.endswith("*") and key.startswith(said[:-1])]
        return self.seats[max(known, key=len)] if known else 1
