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


def set_up() -> None:
    with app.app_context():
        db.create_all()


@contextlib.contextmanager
def sending(type: str = "work") -> t.Iterator[t.Callable[[range], float]]:
    def send(numbers: range) -> float:
        if len(numbers) == 1:
            jobber.enqueue(type, numbers[0])
        else:
            jobber.enqueue_many({"type": type, "data": number} for number in numbers)
        db.session.commit()
        return time.monotonic()

    with app.app_context():
        yield send
