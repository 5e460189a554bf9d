"""What a part of the benchmarks has seen: printed as it comes, and kept for machines and for plots."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform
import statistics
import typing as t
from importlib import metadata

PACKAGES = ("flask-jobber", "flask", "sqlalchemy", "psycopg", "gunicorn", "gevent", "granian")
Figure = float | int | str | None


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a table.

    :param seen: what each round saw, in the table's unit.
    :param more: figures in columns of their own.
    """

    name: str
    seen: t.Sequence[float]
    more: t.Mapping[str, Figure]

    @property
    def median(self) -> float:
        return statistics.median(self.seen)


@dataclasses.dataclass(frozen=True)
class Check:
    """A target, and whether it was reached.

    :param least: the figure is to be this at least; ``most``: at the most.
    """

    what: str
    figure: float
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        return (self.least is None or self.figure >= self.least) and (
            self.most is None or self.figure <= self.most
        )

    def __str__(self) -> str:
        bounds = (
            f">= {self.least:g}" if self.least is not None else "",
            f"<= {self.most:g}" if self.most else "",
        )
        wanted = " and ".join(filter(None, bounds))
        return f"{self.what}: {self.figure:.3g}, target {wanted}: {'reached' if self.holds else 'MISSED'}"


class Table:
    """The lines of one part, or of a piece of it.

    :param unit: of what is seen: ``jobs/s``, ``ms``, ``MiB``.
    :param settings: under which it was seen.
    :param columns: the names of the figures in ``more``, in their order.
    """

    def __init__(
        self,
        title: str,
        unit: str,
        *,
        columns: t.Sequence[str] = (),
        settings: t.Mapping[str, Figure] | None = None,
    ) -> None:
        self.title, self.unit, self.columns = title, unit, tuple(columns)
        self.settings = dict(settings or {})
        self.lines: list[Line] = []
        self.checks: list[Check] = []
        said = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        print(f"\n{title}{f' ({said})' if said else ''}")
        names = (unit, "min", "max", *self.columns)
        print(f"{'':40}{''.join(f'{name:>12}' for name in names)}", flush=True)

    def add(self, name: str, seen: t.Sequence[float], **more: Figure) -> Line:
        """Add a line, and print it. :param more: by the names of columns, with ``_`` for a space."""
        line = Line(name, list(seen), {key.replace("_", " "): value for key, value in more.items()})
        assert set(line.more) <= set(self.columns), line.more
        self.lines.append(line)
        figures = (line.median, min(seen), max(seen), *(line.more.get(column) for column in self.columns))
        print(f"{name:40}{''.join(f'{_text(figure):>12}' for figure in figures)}", flush=True)
        return line

    def check(
        self, what: str, figure: float, *, least: float | None = None, most: float | None = None
    ) -> None:
        """Say whether a target is reached."""
        self.checks.append(Check(what, figure, least, most))
        print(f"  {self.checks[-1]}", flush=True)

    def leave_out(self, name: str, why: object) -> None:
        """Say that something was not measured."""
        print(f"{name:40}  left out: {why}", flush=True)

    def as_json(self) -> dict[str, t.Any]:
        lines = [dataclasses.asdict(line) | {"median": line.median} for line in self.lines]
        checks = [dataclasses.asdict(check) | {"holds": check.holds} for check in self.checks]
        facts = {"title": self.title, "unit": self.unit, "settings": self.settings}
        return {**facts, "lines": lines, "checks": checks}


def ratio(line: Line, other: Line) -> float:
    """Return what one line saw as a part of what another did in the same round: the median."""
    return statistics.median(a / b for a, b in zip(line.seen, other.seen, strict=True))


class Report:
    """All tables of one run."""

    def __init__(self) -> None:
        self._tables: list[tuple[str, Table]] = []
        self._part = ""

    def begin(self, part: str) -> None:
        self._part = part

    def table(self, title: str, unit: str, **options: t.Any) -> Table:
        """Begin a table, see :class:`Table`."""
        table = Table(title, unit, **options)
        self._tables.append((self._part, table))
        return table

    def write(self, path: pathlib.Path) -> None:
        """Write all of it as JSON: ``{"versions": …, "parts": {part: [table, …]}}``."""
        parts: dict[str, list[t.Any]] = {}
        for part, table in self._tables:
            parts.setdefault(part, []).append(table.as_json())
        path.write_text(json.dumps({"versions": versions(), "parts": parts}, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of what is measured."""
    known = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            known[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return known


def _text(figure: Figure) -> str:
    if figure is None:
        return ""
    if isinstance(figure, float):
        return f"{figure:.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"
    return str(figure)
