"""A scope, as a part of statements that are built once and executed for many clients."""

from __future__ import annotations

import dataclasses
import typing as t

import sqlalchemy as sa
from sqlalchemy.sql import visitors
from sqlalchemy.sql.functions import FunctionElement

from .store import missed

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
        return any(isinstance(element, _READERS) for element in visitors.iterate(self.expression))

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
