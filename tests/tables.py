"""An app's tables, with nothing in them: made once for a database, and then emptied, which is faster."""

from __future__ import annotations

import typing as t
from pathlib import Path

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.schema import CreateIndex, CreateTable

#: The statements by which the tables of a server's databases were made last, by URL.
_made: dict[sa.URL, str] = {}
#: SQLite's files as they are when the tables are made, by the statements.
_files: dict[str, bytes] = {}
#: How a server tells in which tables there may be or have been rows.
_USED = {
    "postgresql": "SELECT relname, 0 FROM pg_class WHERE relkind = 'r' AND pg_relation_size(oid) > 0",
    "mysql": "SELECT table_name, auto_increment FROM information_schema.tables"
    " WHERE table_schema = database() AND coalesce(auto_increment, 0) != 1",
}


def renew(db: SQLAlchemy) -> None:
    """Leave the tables of an app in its database, and nothing else."""
    engine = db.engine
    if engine.name == "sqlite":
        _renew_file(db)
        return
    names = _names(engine)  # which connects: only then the dialect knows what its server can
    ddl = _ddl(db)
    if _made.get(engine.url) == ddl and names == set(db.metadata.tables):
        _empty(engine, db.metadata.sorted_tables)
    else:
        drop(engine)
        db.create_all()
        _made[engine.url] = ddl


def drop(engine: sa.Engine) -> None:
    """Drop every table."""
    _made.pop(engine.url, None)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    metadata.drop_all(engine)


def _ddl(db: SQLAlchemy) -> str:
    tables = db.metadata.sorted_tables
    made = [CreateTable(table) for table in tables]
    made += [CreateIndex(index) for table in tables for index in sorted(table.indexes, key=lambda i: i.name)]
    return ";".join(str(one.compile(dialect=db.engine.dialect)) for one in made)


def _names(engine: sa.Engine) -> set[str]:
    return set(sa.inspect(engine).get_table_names())


def _renew_file(db: SQLAlchemy) -> None:
    path, ddl = Path(db.engine.url.database or ":memory:"), _ddl(db)
    if path.exists() or path.name == ":memory:":
        drop(db.engine)
        db.create_all()
        return
    if ddl not in _files:
        db.create_all()
        db.engine.dispose()
        _files[ddl] = path.read_bytes()
    path.write_bytes(_files[ddl])


def _empty(engine: sa.Engine, tables: t.Sequence[sa.Table]) -> None:
    """Delete all rows, and count ids from one again."""
    name = engine.dialect.identifier_preparer.format_table
    with engine.begin() as connection:
        counters = dict(connection.exec_driver_sql(_USED[engine.name]).all())
        used = [table for table in tables if table.name in counters]
        if engine.name == "postgresql" and used:
            names = ", ".join(name(table) for table in used)
            connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
        elif engine.name == "mysql":
            for table in reversed(used):
                connection.exec_driver_sql(f"DELETE FROM {name(table)}")
                if counters[table.name]:
                    connection.exec_driver_sql(f"ALTER TABLE {name(table)} AUTO_INCREMENT = 1")
