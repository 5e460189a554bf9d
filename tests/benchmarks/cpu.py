"""The processor time that is spent on a job: by clients, by the server, by the database, each apart."""

from __future__ import annotations

import contextlib
import os
import pathlib
import typing as t

_TICK = os.sysconf("SC_CLK_TCK")
#: How the processes of a database are called.
POSTGRES = "postgres"


class Spent:
    """Seconds of processor time, by who spent them; known when the block has ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def per_job(self, jobs: float) -> dict[str, float]:
        """Return milliseconds for each job, as columns of a table: ``client_ms``, …"""
        return {f"{name}_ms": 1000 * seconds / max(jobs, 1) for name, seconds in self.seconds.items()}


#: The columns of :meth:`Spent.per_job`.
COLUMNS = ("client ms", "server ms", "database ms")


@contextlib.contextmanager
def spent(**whose: t.Callable[[], t.Iterable[int]]) -> t.Iterator[Spent]:
    """Measure what processes spend in a block.

    What their children have spent that ended is theirs, once they have waited for them.

    :param whose: by name, what returns their ids.
    """
    found = Spent()
    before = {name: _time(pids()) for name, pids in whose.items()}
    yield found
    for name, pids in whose.items():
        found.seconds[name] = _time(pids()) - before[name]


def family(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def named(name: str) -> list[int]:
    """Return the processes of a program."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == name:
                found.append(int(path.parent.name))
    return found


def _time(pids: t.Iterable[int]) -> float:
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK
