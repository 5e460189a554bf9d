"""Where a worker gets jobs: what the database and a server have in common."""

from __future__ import annotations

import dataclasses
import typing as t

from .job import Job
from .run import Outcome

Ring = t.Callable[[], None]
# After these the job is still held: what was wanted of it was not accepted.
_HELD = frozenset({"invalid_result", "invalid", "too_large", "forbidden", "duplicate", "queue_full"})


class Away(Exception):
    """The source cannot be reached, or is busy. The same is to be asked again, nothing is lost.

    :param retry_after: seconds that it asked for.
    """

    def __init__(self, reason: str, retry_after: float = 0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unheard(Away):
    """While it was listened to, the source may have given jobs of which nothing was heard.

    What is held is to be asked for at once; the source itself need not be away.
    """


class Refused(Exception):
    """The source will have nothing to do with this worker: the login has ended, the address is wrong."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settlement:
    """A job that is done with."""

    job: Job
    outcome: Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat: the lease again from now, and what progress there is to tell."""

    job: Job
    progress: float | None = None
    note: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What is to be claimed."""

    limit: int
    types: tuple[str, ...]
    queues: tuple[str, ...] | None = None
    min_priority: int | None = None
    max_priority: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What the source says of one item.

    :param code: ``None`` when it was taken, else that of the refusal.
    :param held: whether the job is still this worker's.
    """

    job: Job
    code: str | None = None
    detail: str = ""
    held: bool = False
    lease_seconds: float | None = None


def refused(job: Job, problem: t.Mapping[str, t.Any]) -> Told:
    """Return what a problem document says of an item."""
    held = problem["code"] in _HELD or problem.get("then") == "correct"
    detail = f"{problem['detail']} {problem.get('errors') or ''}".strip()
    return Told(job, problem["code"], detail, held)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What came of an exchange.

    :param told: first of the settlements, then of the beats, each in the order given.
    :param retry_after: seconds until the next claim may be worth it; ``inf``: it is listened to,
        and rings.
    """

    told: list[Told]
    jobs: list[Job]
    retry_after: float = 0


class Source(t.Protocol):
    """The database of an app, or a server. Each is used by one thread, but for :meth:`tidy`."""

    #: What it is called in logs.
    label: str
    #: The most items of one list, and the most jobs of one claim.
    most: int

    def held(self) -> list[Job]:
        """Return what this worker holds. :raises Away, Refused: when nobody answers."""
        ...

    def exchange(self, settled: t.Sequence[Settlement], beats: t.Sequence[Beat], wish: Wish | None) -> Answer:
        """Settle, renew and claim. Asked again after :class:`Away`, it does nothing twice.

        :raises Away, Refused: when nobody answers.
        """
        ...

    def listen(self, ring: Ring) -> None:
        """From now on listen to the source after each claim that came back empty.

        :param ring: called in any thread, without any lock, when another claim may be worth it.
        """
        ...

    def rest(self) -> list[Job]:
        """Listen no longer, until the next empty claim: nobody is to do a job.

        :returns: what may have come meanwhile, to be given back; there may be known ones among it.
        """
        ...

    def waiting(self, wish: Wish) -> int | None:
        """Return how many jobs there are to be claimed, ``None`` when that is not to be known."""
        ...

    def tidy(self) -> float | None:
        """Do what the source leaves to its workers; return the seconds until the next time, if any."""
        ...

    def close(self) -> None:
        """Give back what is open."""
        ...
