"""How long a job waits after its n-th failure.

A back-off is a frozen value; it is stored with a job as a small JSON object such as
``{"strategy": "linear", "first": 30, "jitter": 0}``. The cap is the setting
``MAX_BACKOFF_SECONDS``.
"""

from __future__ import annotations

import dataclasses
import math
import random
import typing as t


@dataclasses.dataclass(frozen=True, slots=True)
class Backoff:
    """The base of all strategies.

    :param jitter: part of the delay, 0 to 1, by which it varies at random to both sides,
        so that jobs which failed together do not come back together.
    """

    jitter: float = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{field.name} is a number from 0 upwards, not {value!r}")
        if self.jitter > 1:
            raise ValueError("jitter is from 0 to 1")

    def delay(self, failures: int, cap: float = math.inf) -> float:
        """Return the seconds to wait after this many failures (1 or more), at most ``cap``."""
        try:
            plain = min(self._plain(max(failures, 1)), cap)
        except OverflowError:
            plain = cap
        return min(plain * random.uniform(1 - self.jitter, 1 + self.jitter), cap)

    def _plain(self, failures: int) -> float:
        raise TypeError("use Constant, Linear, Exponential or Polynomial")

    def as_json(self) -> dict[str, t.Any]:
        """Return the form in which it is stored."""
        return {"strategy": type(self).__name__.lower(), **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, slots=True)
class Constant(Backoff):
    """Always ``first`` seconds."""

    first: float = 30

    def _plain(self, failures: int) -> float:
        return self.first


@dataclasses.dataclass(frozen=True, slots=True)
class Linear(Backoff):
    """``first * n`` seconds after the n-th failure."""

    first: float = 30

    def _plain(self, failures: int) -> float:
        return self.first * failures


@dataclasses.dataclass(frozen=True, slots=True)
class Exponential(Backoff):
    """``first * factor ** (n - 1)`` seconds after the n-th failure."""

    first: float = 5
    factor: float = 2
    jitter: float = dataclasses.field(default=0.2, kw_only=True)

    def _plain(self, failures: int) -> float:
        return self.first * math.pow(self.factor, failures - 1) if self.first else 0


@dataclasses.dataclass(frozen=True, slots=True)
class Polynomial(Backoff):
    """``first + n ** power`` seconds after the n-th failure: Delayed::Job's 5 + n⁴."""

    first: float = 5
    power: float = 4

    def _plain(self, failures: int) -> float:
        return self.first + math.pow(failures, self.power)


_STRATEGIES: dict[str, type[Backoff]] = {
    cls.__name__.lower(): cls for cls in (Constant, Linear, Exponential, Polynomial)
}


def read_backoff(value: object) -> Backoff:
    """Return the back-off that ``value`` is, names (``"linear"``) or describes (a mapping).

    :raises ValueError: when it is none of these.
    """
    if isinstance(value, Backoff) and type(value) is not Backoff:
        return value
    facts = {"strategy": value} if isinstance(value, str) else value
    if not isinstance(facts, dict) or facts.get("strategy") not in list(_STRATEGIES):
        raise ValueError(f"a back-off is one of {', '.join(_STRATEGIES)}, not {value!r}")
    try:
        return _STRATEGIES[facts["strategy"]](**{k: v for k, v in facts.items() if k != "strategy"})
    except TypeError as error:
        raise ValueError(f"{facts['strategy']} has no such parameter: {error}") from error
