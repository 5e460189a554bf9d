"""The app, put together."""

from __future__ import annotations

import secrets
import sqlite3
import typing as t

from flask import Flask
from flask_login import LoginManager
from sqlalchemy import event

from .jobs import jobber
from .models import User, db
from .pages import pages

login_manager = LoginManager()
login_manager.login_view = "pages.gate"
login_manager.login_message = ""


@login_manager.user_loader
def load_user(user_id: str) -> User | None:
    return db.session.get(User, int(user_id))


def create_app(database: str) -> Flask:
    """Return the app on a database, whose tables are made if they are not there."""
    app = Flask(__name__)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=database,
        SECRET_KEY=secrets.token_hex(),
        # No form of another site's is sent with this cookie.
        SESSION_COOKIE_SAMESITE="Lax",
        JOBBER_LEASE_SECONDS=60,
        JOBBER_IDLE_SECONDS=1,
        # The page of a picture asks how far its batch is, however old it is.
        JOBBER_KEEP_FINISHED_DAYS=3650,
    )
    db.init_app(app)
    login_manager.init_app(app)
    app.register_blueprint(pages)
    app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
    with app.app_context():
        event.listen(db.engine, "connect", _tune)
        db.create_all()
    return app


def _tune(connection: t.Any, record: object) -> None:
    """Let readers and one writer work side by side, and writers wait for each other."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA journal_mode=WAL")
