"""What is seen of the copies of a job, see :mod:`.trust`: by who holds one, and by who may see all."""

from __future__ import annotations

import dataclasses
import typing as t

import sqlalchemy as sa

from ..errors import NotFound
from . import candidates as find
from .lockers import of_login
from .scope import Expression
from .store import Store


def shown(store: Store, name: str) -> Expression:
    """Return what a job shows in a column: a copy what its original has, or it would look like one.

    A copy of gold shows what the job has beside which it was mixed in.
    """
    c, original = store.jobs.c, store.jobs.alias()
    seen = sa.func.coalesce(c.shown_as, c.copy_of)
    its = sa.select(original.c[name]).where(original.c.id == seen).scalar_subquery()
    return sa.func.coalesce(c[name], its, type_=c[name].type).label(name)


def alike(store: Store, equals: t.Mapping[str, t.Any]) -> list[Expression]:
    """Return the ways in which a copy shows these, see :func:`shown`: each of them has an index."""
    c, seen = store.jobs.c, store.jobs.alias()
    like = sa.select(seen.c.id).where(*(seen.c[name] == value for name, value in equals.items()))
    return [sa.and_(c.copy_of.in_(like), c.shown_as.is_(None)), c.shown_as.in_(like)]


def sight(store: Store, login: str, *, originals: bool) -> Expression:
    """Return what a login may see at all of jobs under trust: copies that it holds or has delivered.

    Of these it cannot tell what they are copies of, or whether anybody else has one.

    :param originals: whether it may perhaps see some of them.
    """
    c = store.jobs.c
    plain = c.copy_of.is_(None) if originals else sa.and_(c.copy_of.is_(None), c.trust.is_(sa.null()))
    # Wrapped up, or it would be taken for ways to find the rows.
    return find.still(sa.or_(plain, sa.and_(c.copy_of.is_not(None), of_login(store, login))))


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A copy of a job, and what it brought.

    :param becomes: ``waiting``, ``held``, ``answered`` or ``gone``.
    :param login: who holds or delivered it.
    """

    job_id: int
    becomes: str
    login: str | None
    result: t.Any = None
    extras: t.Any = None


def answers(store: Store, original_id: int) -> list[Answer]:
    """Return the copies of a job, by id: none of one that wants one result.

    :raises NotFound: when there is no such job.
    """
    c = store.jobs.c
    row = store.execute(sa.select(c.trust).where(c.id == original_id)).one_or_none()
    if row is None:
        raise NotFound
    known = row.trust or {"copies": []}
    ids = [copy["id"] for copy in known["copies"]]
    brought = sa.select(c.id, c.result, c.extras).where(c.id.in_(ids))
    rows = {row.id: (row.result, row.extras) for row in store.execute(brought)}
    return [
        Answer(copy["id"], copy["is"], copy["login"], *rows.get(copy["id"], (None, None)))
        for copy in known["copies"]
    ]
