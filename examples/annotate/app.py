"""The app, put together."""

from __future__ import annotations

import secrets
import sqlite3
import typing as t

from flask import Flask
from flask_login import LoginManager
from sqlalchemy import event

from .digits import Digit
from .jobs import commission, jobber
from .models import db
from .pages import User, pages

login_manager = LoginManager()
login_manager.login_view = "pages.label"
login_manager.login_message = ""
login_manager.user_loader(User)


def create_app(database: str, images: t.Sequence[Digit], gold_rate: float = 0.2) -> Flask:
    """Return the app on a database, where these images are to be labelled if there are no others yet.

    :param gold_rate: how often an image whose digit is known is mixed in beside one of them.
    """
    app = Flask(__name__)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=database,
        SECRET_KEY=secrets.token_hex(),
        # No form of another site's is sent with this cookie.
        SESSION_COOKIE_SAMESITE="Lax",
        JOBBER_GOLD_RATE=gold_rate,
    )
    db.init_app(app)
    login_manager.init_app(app)
    app.register_blueprint(pages)
    app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
    with app.app_context():
        event.listen(db.engine, "connect", _tune)
        db.create_all()
        commission(images)
    return app


def _tune(connection: t.Any, record: object) -> None:
    """Let readers and one writer work side by side, and writers wait for each other."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA journal_mode=WAL")
