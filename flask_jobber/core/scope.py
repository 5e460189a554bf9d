"""A scope, as a part of statements that are built once and executed for many clients."""

from __future__ import annotations

import dataclasses
import typing as t

import sqlalchemy as sa
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList, Grouping, Null
from sqlalchemy.sql.functions import FunctionElement

from .store import Store, missed

Expression = sa.ColumnElement[t.Any]
# A function of the app's own may read anything as well, and so may text.
_READERS = (sa.SelectBase, sa.TextClause, FunctionElement)


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """A scope taken apart into its form and its values.

    :param key: equal for scopes of equal form.
    :param values: by the names that :attr:`template` has for them.
    """

    expression: Expression
    key: t.Hashable
    values: dict[str, t.Any]
    _places: dict[str, str]

    @property
    def reads_others(self) -> bool:
        """Whether it may look at more than the job itself: at other jobs, say."""
        return any(
            isinstance(element, _READERS) or getattr(element, "is_literal", False)
            for element in visitors.iterate(self.expression)
        )

    @property
    def is_known(self) -> bool:
        """Whether another of equal form and values is known to be the same."""
        return type(self.key) is not object

    @property
    def template(self) -> Expression:
        """The form, in which each value is missed by name: none can be left in it by mistake."""

        def name(element: t.Any, **kw: t.Any) -> t.Any:
            if not isinstance(element, sa.BindParameter):
                return None
            named = missed(self._places[element.key], element.type, expanding=element.expanding)
            named.expand_op = element.expand_op  # IN or NOT IN
            return named

        return visitors.replacement_traverse(self.expression, {}, name)


def bare(expression: Expression) -> Expression:
    """Return an expression without the parentheses around it."""
    while isinstance(expression, Grouping):
        expression = t.cast(Expression, expression.element)
    return expression


def enclosed(expression: Expression) -> Expression:
    """Put each term of a scope into parentheses of its own.

    SQLAlchemy puts none around text, nor around what an app compiles by itself: an ``OR`` in it would
    undo whatever else is asked of a job, such as who holds it.
    """
    inner = bare(expression)
    if isinstance(inner, BooleanClauseList):
        join = sa.or_ if inner.operator is operators.or_ else sa.and_
        return join(*map(enclosed, inner.clauses))
    return inner if is_equality(inner) or isinstance(inner, sa.True_ | sa.False_) else Grouping(inner)


def is_equality(term: Expression) -> t.TypeGuard[BinaryExpression[t.Any]]:
    """Whether it is ``column = value`` or ``column IS NULL``."""
    return (
        isinstance(term, BinaryExpression)
        and (term.operator, type(term.right)) in ((operators.eq, sa.BindParameter), (operators.is_, Null))
        and isinstance(term.left, sa.Column)
    )


def in_scope(store: Store, scope: Expression, job_id: int) -> sa.Select[t.Any]:
    """Select the id of a job that is in a scope, as a subquery that sees nothing of what is around it.

    A scope in words may name columns that something else has too which is read with the jobs.
    """
    c = store.jobs.c
    return sa.select(c.id).where(c.id == job_id, scope).correlate(None)


def anonymous(expression: Expression) -> Expression:
    """Return a scope without the app's names for its values, which may be names of ours."""

    def rename(element: t.Any, **kw: t.Any) -> t.Any:
        if not isinstance(element, sa.BindParameter) or element.unique:
            return None
        value, type_ = element.effective_value, element.type
        named = sa.bindparam(None, value, type_, unique=True, expanding=element.expanding)
        named.expand_op = element.expand_op
        return named

    return visitors.replacement_traverse(expression, {}, rename)


def read(expression: Expression) -> Scope:
    """Take a scope apart, by the key under which SQLAlchemy itself caches statements."""
    found = expression._generate_cache_key()
    if found is None:  # holds a construct that cannot be cached; each is a form of its own
        binds = [e for e in visitors.iterate(expression) if isinstance(e, sa.BindParameter)]
        key: t.Hashable = object()
    else:
        key, binds = found.key, list(found.bindparams)
    places = {bind.key: f"scope_{place}" for place, bind in enumerate(binds)}
    values = {places[bind.key]: bind.effective_value for bind in binds}
    return Scope(expression, key, values, places)


#: Every job.
EVERYTHING = read(sa.true())
