"""The tables of accounts, beside the table of jobs and in the same bind.

They have no foreign keys: ids are never given twice, every read joins the worker, and what a
crash leaves behind names nobody. So a worker's row need not be locked to write beside it.
"""

from __future__ import annotations

import sqlalchemy as sa

from ..core.engines import BigId, Instant, name_type, utcnow

MAX_NAME = 60
# Of a SHA-256, in hexadecimal.
_HASH = name_type(64)


class Tables:
    """The five tables of one Jobber's accounts.

    :param prefix: of their names.
    """

    def __init__(self, metadata: sa.MetaData, prefix: str) -> None:
        #: The accounts.
        self.worker = _table(
            f"{prefix}_worker",
            metadata,
            sa.Column("name", name_type(MAX_NAME), nullable=False),
            sa.Column("client_id", name_type(60), nullable=False),
            _instant("created_at"),
            sa.Column("locked_at", Instant),
            sa.Column("last_login_at", Instant),
        )
        _unique(self.worker, "name")
        _unique(self.worker, "client_id")
        #: Hashes of secrets: one for each file that was written, until a reset.
        self.secret = _table(f"{prefix}_secret", metadata, _worker_id(), _hash(), _instant("created_at"))
        _index(self.secret, "worker_id")
        #: Hashes of tokens that have not expired yet, or not long ago.
        self.token = _table(
            f"{prefix}_token", metadata, _worker_id(), _hash(), _instant("created_at"), _instant("expires_at")
        )
        _unique(self.token, "hash")
        _index(self.token, "worker_id")
        _index(self.token, "expires_at")
        #: Which worker works for which queue.
        self.hire = _table(
            f"{prefix}_hire",
            metadata,
            _worker_id(),
            sa.Column("queue", name_type(100), nullable=False),
            _instant("created_at"),
        )
        _unique(self.hire, "worker_id", "queue")
        #: Failed logins, see :mod:`.limit`: a row for each of a bounded number of slots.
        self.failure = sa.Table(
            f"{prefix}_failure",
            metadata,
            sa.Column("slot", sa.Integer(), autoincrement=False),
            sa.Column("count", sa.Integer(), nullable=False),
            sa.Column("until", Instant, nullable=False),
            sa.PrimaryKeyConstraint("slot", name=f"pk_{prefix}_failure"),
        )


def _table(name: str, metadata: sa.MetaData, *columns: sa.Column[object]) -> sa.Table:
    key = sa.PrimaryKeyConstraint("id", name=f"pk_{name}")
    # SQLite gives the id of a destroyed worker to the next one, unless it is told not to.
    return sa.Table(name, metadata, sa.Column("id", BigId), *columns, key, sqlite_autoincrement=True)


def _worker_id() -> sa.Column[object]:
    return sa.Column("worker_id", BigId, nullable=False)


def _hash() -> sa.Column[object]:
    return sa.Column("hash", _HASH, nullable=False)


def _instant(name: str) -> sa.Column[object]:
    return sa.Column(name, Instant, default=utcnow(), nullable=False)


def _unique(table: sa.Table, *names: str) -> None:
    table.append_constraint(sa.UniqueConstraint(*names, name=f"uq_{table.name}_{'_'.join(names)}"))


def _index(table: sa.Table, name: str) -> None:
    sa.Index(f"ix_{table.name}_{name}", table.c[name])
