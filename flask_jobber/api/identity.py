"""Who is calling and what it may do: the app's hooks, asked in the context of the request.

Whatever a hook fails to say clearly is an error that hands out nothing.
"""

from __future__ import annotations

import functools
import logging
import typing as t

import sqlalchemy as sa
from flask import current_app, request
from flask_login import current_user
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import BooleanClauseList
from sqlalchemy.types import NullType

from ..core import scope as scopes
from ..core.engines import is_transient
from ..core.models import JobMixin
from ..core.payload import MAX_LOCKER, NODE, WORKER, check_key
from ..errors import Forbidden, HookError, Invalid
from ..hooks import Registry

logger = logging.getLogger("flask_jobber")
Expression = sa.ColumnElement[t.Any]
Action = t.Literal["enqueue", "repeat", "replace", "cancel", "retry", "history", "result", "attach", "batch"]
#: The locker names of worker accounts begin so, and no others.
ACCOUNT = "account:"
# A list of a scope this long is taken apart into branches of the claim.
_FEW = 8


class Account:
    """A user who is no person but a worker with an account of its own."""


class Identity:
    """The client of one request. Each hook is asked once, when it is first needed."""

    def __init__(self, registry: Registry, job: type[JobMixin]) -> None:
        self._registry = registry
        self._job = job

    @functools.cached_property
    def login(self) -> str:
        """The part of the locker name that comes from the login."""
        name = _ask("locker_name", self._hook("locker_name", _default_locker))
        try:
            login = check_key("locker_name", name, MAX_LOCKER)
        except Invalid as error:
            raise _broken("locker_name", f"it returned {name!r}: {error}") from error
        if "/" in login:
            raise _broken("locker_name", f"it returned {name!r}, which holds a slash")
        if login == WORKER:  # it would hold what workers beside the database hold
            raise _broken("locker_name", f"{name!r} is the name of workers beside the database")
        if login.startswith(ACCOUNT) and not isinstance(current_user, Account):
            raise _broken("locker_name", f"it returned {name!r}: {ACCOUNT} begins the names of accounts")
        return login

    @functools.cached_property
    def locker(self) -> str:
        """The locker name: the login's part, with the node that the client names."""
        node = self.check_node()
        return self.login if node is None else f"{self.login}/{node}"

    def check_node(self) -> str | None:
        """Return what the client calls its node. :raises Invalid: when that is no name."""
        node = request.headers.get("Jobber-Node")
        if node is not None and not NODE.fullmatch(node):
            raise Invalid({"Jobber-Node": [f"The name of a node matches {NODE.pattern}."]})
        return node

    @functools.cached_property
    def scope(self) -> scopes.Scope:
        """What this client may see: a condition on the table of jobs."""
        said = _ask("scope", self._hook("scope", _everything))
        condition = read_scope(self._job, said)
        # Worth 0.4 ms: a form of scope is checked when it is first seen.
        scope = scopes.read(condition)
        if scope.key not in self._registry.checked_scopes:
            check_table(self._job, condition)
            self._registry.note_scope(scope.key)
        return scope

    def _hook(self, name: str, default: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        """Return the user's own method, the app's hook, or the default."""
        if not hasattr(current_user, f"jobber_{name}"):
            return self._registry.hooks.get(name, default)
        own: t.Callable[..., t.Any] = current_app.ensure_sync(getattr(current_user, f"jobber_{name}"))
        return own

    def may(self, action: Action, job: t.Any) -> bool:
        """Ask the permission hook; without one, nothing is permitted."""
        said = _ask("permission", self._hook("permission", _nothing), action, job)
        if not isinstance(said, bool):
            raise _broken("permission", f"it returned {said!r}, neither True nor False")
        return said

    def require(self, action: Action, job: t.Any) -> None:
        """:raises Forbidden: when the hook does not permit it."""
        if not self.may(action, job):
            raise Forbidden

    @property
    def has_permissions(self) -> bool:
        return "permission" in self._registry.hooks or hasattr(current_user, "jobber_permission")


def _default_locker() -> str:
    return f"user_{current_user.get_id()}"


def _everything() -> bool:
    return True


def _nothing(action: str, job: t.Any) -> bool:
    return False


def _ask(name: str, hook: t.Callable[..., t.Any], *args: t.Any) -> t.Any:
    try:
        return hook(*args)
    except Exception as error:
        if is_transient(error):  # its own query met a database that is busy or away
            raise
        raise _broken(name, "it raised") from error


def _broken(name: str, why: str) -> HookError:
    return HookError(f"The {name} hook failed: {why}. Nothing was handed out.")


def read_scope(job: type[JobMixin], said: t.Any) -> Expression:
    """Return what a scope hook said as one condition.

    :raises HookError: for ``None``, an empty list or mapping, an ``or_()`` or ``and_()`` of nothing,
        or anything else that is no condition on the table of jobs.
    """
    condition = _condition(job, said)
    elements = list(visitors.iterate(condition))
    # SQLAlchemy leaves it out, and with it the condition that was meant.
    if any(isinstance(e, BooleanClauseList) and not e.clauses for e in elements):
        raise _broken("scope", "it returned an or_() or and_() of nothing; begin it with false() or true()")
    condition = scopes.enclosed(condition)
    named = any(isinstance(e, sa.BindParameter) and not e.unique for e in elements)
    return scopes.anonymous(condition) if named else condition


def check_table(job: type[JobMixin], condition: Expression) -> None:
    """:raises HookError: for a condition that would join another table to every job."""
    table = job.__table__
    froms = sa.select(sa.literal(1)).where(condition).get_final_froms()
    if any(from_ is not table and from_.compare(table) is False for from_ in froms):
        raise _broken("scope", "its condition is on another table; put it into a subquery")


def _condition(job: type[JobMixin], said: t.Any) -> Expression:
    if isinstance(said, bool):
        return sa.true() if said else sa.false()
    if isinstance(said, dict) and said:
        return sa.and_(*(_equals(job, name, value) for name, value in said.items()))
    if isinstance(said, list | tuple) and said:
        return sa.and_(*(_condition(job, part) for part in said))
    clause = said.__clause_element__() if hasattr(said, "__clause_element__") else said
    if not isinstance(clause, sa.ColumnElement) or not isinstance(clause.type, sa.Boolean | NullType):
        raise _broken("scope", f"it returned {said!r}")
    return clause


def _equals(job: type[JobMixin], name: t.Any, value: t.Any) -> Expression:
    if not isinstance(name, str) or name not in job.__table__.c:
        raise _broken("scope", f"there is no column {name!r}")
    column = job.__table__.c[name]
    if value is None:
        return column.is_(None)
    if isinstance(value, list | tuple | set | frozenset):
        return _one_of(column, list(value))
    if isinstance(value, dict):
        raise _broken("scope", f"{name!r} is compared with {value!r}")
    return t.cast(Expression, column == value)


def _one_of(column: sa.Column[t.Any], values: list[t.Any]) -> Expression:
    plain = [value for value in values if value is not None]
    few = [column == value for value in plain] if len(plain) <= _FEW else [column.in_(plain)]
    return sa.or_(sa.false(), *few, *([column.is_(None)] if None in values else []))
