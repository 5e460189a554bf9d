"""A job and its history as an operator sees them: as JSON, and as text."""

from __future__ import annotations

import datetime as dt
import json
import typing as t

from ..api.schemas import wire_instant
from ..core.hold import Row
from ..core.models import OURS
from ..core.states import State
from ..delayed.performer import PERFORM
from . import table

Told = dict[str, t.Any]
#: The names that these columns have over HTTP.
_RENAMED = {"attempts": "attempt", "created_at": "enqueued_at", "locked_by": "locker"}
_LISTED = ("ID", "STATE", "FAILED", "RUN AT", "PRIORITY", "QUEUE", "TYPE", "NAME", "LOCKER", "ERROR")
_HISTORY = ("AT", "FROM", "TO", "REASON", "ATTEMPT", "LOCKER", "BY", "ERROR")
_SOFT = frozenset({"QUEUE", "TYPE", "NAME", "LOCKER", "BY", "ERROR"})
# States in which a job waits for its run_at.
_WAITING = frozenset({State.SCHEDULED, State.SUBMITTED})
# Shown below the others, each on lines of its own.
_LONG = ("data", "extras", "result")


def job(row: Row) -> Told:
    """Return a job by its columns, the app's own under ``columns``."""
    values = row._mapping
    told = {_RENAMED.get(name, name): value for name, value in values.items() if name in OURS}
    own = {name: value for name, value in values.items() if name not in OURS}
    first = {"id": row.id, "type": row.type, "display_name": _display_name(row), "state": row.state}
    return {**first, **told, **({"columns": own} if own else {})}


def _display_name(row: Row) -> str | None:
    """Return what the data calls its job, or the call that is to be made."""
    key = "call" if row.type == PERFORM else "display_name"
    name = row.data.get(key) if isinstance(row.data, dict) else None
    return name if isinstance(name, str) else None


def transition(row: Row) -> Told:
    """Return one row of the history."""
    names = {"from_state": "from", "to_state": "to"}
    return {
        names.get(name, name): value for name, value in row._mapping.items() if name not in ("id", "job_id")
    }


def error(row: Row | None) -> Told | None:
    """Return the error in a row of the history, without its traceback."""
    return None if row is None else {"type": row.error["type"], "message": row.error["message"]}


def document(value: t.Any) -> str:
    """Return one JSON document, its instants in RFC 3339 with ``Z``."""
    return json.dumps(value, default=_plain, indent=2)


def _plain(value: t.Any) -> str:
    return wire_instant(value) if isinstance(value, dt.datetime) and value.tzinfo else str(value)


def listed(jobs: t.Sequence[Told]) -> list[str]:
    """Return the lines of a table of jobs."""
    return table.lines(_LISTED, [_cells(one) for one in jobs], soft=_SOFT)


def _cells(one: Told) -> list[str]:
    """Return what is to be said of a job; what is as ever leaves its column empty."""
    return [
        str(one["id"]),
        one["state"],
        f"{one['failures']}/{one['max_attempts']}" if one["failures"] else "",
        _instant(one["run_at"]) if one["state"] in _WAITING else "",
        str(one["priority"] or ""),
        one["queue"] if one["queue"] != "default" else "",
        one["type"],
        one["display_name"] or "",
        one["locker"] or "",
        _brief(one["error"]),
    ]


def _instant(value: dt.datetime) -> str:
    return value.astimezone(dt.UTC).isoformat(" ", "seconds").removesuffix("+00:00") + "Z"


def _brief(problem: Told | None) -> str:
    return "" if problem is None else f"{problem['type']}: {problem['message']}"


def shown(one: Told) -> list[str]:
    """Return the lines that say everything about one job."""
    flat = {**one, **one.get("columns", {})}
    facts = {name: value for name, value in flat.items() if name not in (*_LONG, "columns", "history")}
    room = max(map(len, facts)) + 2
    lines = [f"{name:{room}}{fact(value)}" for name, value in facts.items() if value is not None]
    for name in _LONG:
        if one[name] is not None or (name == "result" and one["state"] == State.SUCCEEDED):
            lines += ["", f"{name}:", *_indented(json.dumps(one[name], indent=2, ensure_ascii=False))]
    return [*lines, "", *_history(one["history"])]


def fact(value: t.Any) -> str:
    """Return a value as text that does nothing to a terminal."""
    if isinstance(value, dt.datetime) and value.tzinfo:
        return _instant(value)
    if isinstance(value, list | dict):
        return table.printable(json.dumps(value, ensure_ascii=False))
    return table.printable(str(value))


def _indented(text: str, by: str = "  ") -> list[str]:
    return [f"{by}{table.printable(line.expandtabs())}" for line in text.split("\n")]


def _history(rows: t.Sequence[Told]) -> list[str]:
    lines = table.lines(_HISTORY, [_history_cells(row) for row in rows], soft=_SOFT)
    for row in rows:
        if row["error"] is not None and row["error"]["traceback"]:
            lines += ["", f"{_instant(row['at'])} {row['reason']}, attempt {row['attempt']}:"]
            lines += _indented(row["error"]["traceback"].rstrip("\n"))
    return lines


def _history_cells(row: Told) -> list[str]:
    return [
        _instant(row["at"]), row["from"] or "", row["to"], row["reason"], str(row["attempt"]),
        row["locker"] or "", row["by"] or "", _brief(row["error"]),
    ]  # fmt: skip
