"""Ways to do the same work, which take turns: once each in each round, so that noise hits all alike."""

from __future__ import annotations

import collections
import dataclasses
import sys
import typing as t

from . import cpu
from .table import Line

#: Seconds to warm up again in each round: each connection plans each statement anew after a vacuum.
AGAIN = 0.3


class Key(t.NamedTuple):
    """The name of one way."""

    shape: str
    server: str
    clients: int

    def __str__(self) -> str:
        return f"{self.shape}, {self.server}, {self.clients} clients"


@dataclasses.dataclass(frozen=True)
class Way:
    """One way.

    :param run: works for so many seconds, returns the number of jobs and the seconds they took; raises
        OSError when it cannot.
    :param spenders: whose processor time is counted, as :func:`.cpu.spent` has it.
    :param every: 3 for a way that takes a turn in every third round.
    :param warm: seconds that it works before the first round. A connection's statements are prepared when
        they have been made five times, and their plans kept after five times more.
    """

    run: t.Callable[[float], tuple[float, float]]
    spenders: t.Mapping[str, t.Callable[[], t.Iterable[int]]]
    every: int = 1
    warm: float = 0


@dataclasses.dataclass
class Seen:
    """What the rounds have seen of one way.

    :param rates: jobs a second, of each round.
    """

    rates: list[float] = dataclasses.field(default_factory=list)
    jobs: float = 0
    spent: cpu.Spent = dataclasses.field(default_factory=cpu.Spent)

    def add(self, jobs: float, took: float, spent: cpu.Spent) -> None:
        self.rates.append(jobs / took)
        self.jobs += jobs
        both = collections.Counter(self.spent.seconds)
        both.update(spent.seconds)
        self.spent.seconds = dict(both)

    @property
    def line(self) -> Line:
        return Line("", self.rates, {})

    @property
    def costs(self) -> dict[str, float]:
        """Milliseconds of processor time for each job, by columns of a table."""
        return self.spent.per_job(self.jobs)


class Course:
    """Ways that take turns, and what was seen of each."""

    def __init__(self) -> None:
        self.ways: dict[Key, Way] = {}
        self.seen: dict[Key, Seen] = {}
        self.left_out: dict[str, object] = {}

    def run(self, rounds: int, seconds: float, refresh: t.Callable[[], object]) -> None:
        """Let all warm up, then take turns.

        :param seconds: of each way in each round.
        :param refresh: is called before each round; the plans that it spoils are made anew before the turns.
        """
        self._warm_up({key: way.warm for key, way in self.ways.items()})
        for number in range(rounds):
            refresh()
            turns = [key for key, way in self.ways.items() if number % way.every == 0]
            self._warm_up({key: min(self.ways[key].warm, AGAIN) for key in turns})
            print(f"round {number + 1} of {rounds}: {len(turns)} ways", file=sys.stderr, flush=True)
            for key in filter(self.ways.__contains__, turns):
                self._measure(key, self.seen.setdefault(key, Seen()), seconds)

    def _warm_up(self, seconds: t.Mapping[Key, float]) -> None:
        for key in [key for key, length in seconds.items() if length]:
            self._measure(key, Seen(), seconds[key])

    def _measure(self, key: Key, seen: Seen, seconds: float) -> None:
        way = self.ways[key]
        try:
            with cpu.spent(**way.spenders) as spent:
                jobs, took = way.run(seconds)
            seen.add(jobs, took, spent)
        except OSError as error:
            self.left_out[str(key)] = error
            self.seen.pop(key, None)
            del self.ways[key]
