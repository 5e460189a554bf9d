"""The app: readers, what was mailed to them, and the work that is done later."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import typing as t

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_jobber import Jobber, Linear


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
jobber = Jobber(db)


class Mail(db.Model):  # type: ignore[name-defined]
    """A mail that was sent. A real app would hand it to its mail server."""

    id: Mapped[int] = mapped_column(primary_key=True)
    to: Mapped[str]
    text: Mapped[str]


class Reader(db.Model):  # type: ignore[name-defined]
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]

    def mail(self, text: str) -> None:
        db.session.add(Mail(to=self.email, text=f"Dear {self.name}, {text}"))

    @jobber.later(priority=5)
    def welcome(self) -> str:
        """Called, this enqueues; ``welcome.now()`` would do it at once."""
        self.mail("welcome!")
        return f"{self.name} is welcome"


@jobber.performable
@dataclasses.dataclass
class NewsletterJob:
    """A job that is an object. Readers are kept by their keys and loaded when it runs."""

    text: str
    day: dt.date
    readers: list[Reader]

    queue: t.ClassVar = "mail"
    max_attempts: t.ClassVar = 3
    backoff: t.ClassVar = Linear(60)

    def perform(self) -> str:
        for reader in self.readers:
            reader.mail(f"the news of {self.day:%d %B}: {self.text}")
        return f"{len(self.readers)} have the news"

    def failure(self, job: t.Any) -> None:
        db.session.add(Mail(to="editor@example.org", text=f"The newsletter {job.id} failed."))


@jobber.performable
def import_readers(lines: list[str]) -> str:
    """Add readers, one for each line ``name,email``."""
    known = set(db.session.scalars(select(Reader.email)))
    new = [Reader(name=name, email=email) for name, email in (line.split(",") for line in lines)]
    db.session.add_all(reader for reader in new if reader.email not in known)
    return f"{len(new)} lines read"


def create_app() -> Flask:
    """Return the app, its tables made."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ.get("NEWSLETTER_DB", "sqlite:///newsletter.db")
    db.init_app(app)
    jobber.init_app(app)  # without its blueprint: nobody works over HTTP here
    with app.app_context():
        db.create_all()
    return app
