"""flask_jobber: a worker beside the database."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from flask import Flask
from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy

from flask_jobber import Jobber

from .ticks import tick

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["BENCH_URL"].replace("://", "+psycopg://")
db = SQLAlchemy(app)
LoginManager(app)
jobber = Jobber(db)
app.register_blueprint(jobber.blueprint, url_prefix="/jobber")


@jobber.handlers("work")
def work(job: t.Any) -> None:
    tick(job.data)


def enqueue(numbers: range, type: str = "work") -> None:
    with app.app_context():
        db.create_all()
        jobber.enqueue_many({"type": type, "data": number} for number in numbers)
        db.session.commit()


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    def send(numbers: range) -> float:
        for number in numbers:
            jobber.enqueue("work", number)
        db.session.commit()
        return time.monotonic()

    with app.app_context():
        yield send
