"""The app that the browser tests work for: ``python serve.py DATABASE_URL`` prints its port and serves."""

from __future__ import annotations

import sys
import typing as t
from pathlib import Path

import sqlalchemy as sa
from flask import Blueprint, Flask, Response, abort, render_template, request, send_from_directory
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from flask_sqlalchemy import SQLAlchemy
from flask_wtf.csrf import CSRFProtect
from sqlalchemy.orm import DeclarativeBase
from werkzeug.serving import make_server

from flask_jobber import Jobber, ResultRejected

HERE = Path(__file__).parent
IDLE_SECONDS = 0.2


class Base(DeclarativeBase):
    pass


class User(UserMixin):
    def __init__(self, id: str) -> None:
        self.id = id


db = SQLAlchemy(model_class=Base)
jobber = Jobber(db)
login_manager = LoginManager()
login_manager.user_loader(User)
csrf = CSRFProtect()


@jobber.processor("stubborn")
@jobber.processor("picky")
def want_right(job: t.Any, result: str) -> None:
    """Accept "right"; for anything else do what the job's data say."""
    if result != "right":
        raise ResultRejected("It is not right", then=job.data)


class Trouble:
    """Refuses requests of one method below the blueprint, as often as it was told to."""

    method, status, times = "", 0, 0

    def order(self, method: str, status: int, times: int) -> None:
        self.method, self.status, self.times = method, status, times

    def __call__(self) -> Response | None:
        if request.method != self.method or not request.path.startswith("/jobber/") or not self.times:
            return None
        self.times -= 1
        return Response("trouble", self.status)


def make_app(url: str) -> Flask:
    app = Flask(__name__, template_folder=str(HERE), static_folder=None)
    app.config.update(SECRET_KEY="browser", SQLALCHEMY_DATABASE_URI=url, JOBBER_IDLE_SECONDS=IDLE_SECONDS)
    app.config["JOBBER_ATTACHMENTS_URL"] = "memory://browser"
    for extension in (db, login_manager, csrf):
        extension.init_app(app)
    app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
    add_pages(app)
    add_strings(app)
    with app.app_context():
        db.create_all()
    return app


def add_pages(app: Flask) -> None:
    """Add what a browser asks for."""

    @app.get("/login/<user>")
    def log_in(user: str) -> str:
        login_user(User(user))
        return f"Welcome, {current_user.id}"

    @app.get("/logout")
    def log_out() -> str:
        logout_user()
        return "Goodbye"

    @app.get("/")
    def page() -> str:
        return render_template("page.html", csrf="csrf" in request.args)

    @app.get("/<name>.js")
    def script(name: str) -> Response:
        return send_from_directory(HERE, f"{name}.js", mimetype="text/javascript")


def add_strings(app: Flask) -> None:
    """Add what a test pulls to make things happen, and to see what has happened."""
    trouble = Trouble()
    tokens: list[str | None] = []
    strings = Blueprint("test", __name__)
    app.before_request(trouble)

    @app.before_request
    def note_token() -> None:
        if request.path.startswith("/jobber/") and request.method != "GET":
            tokens.append(request.headers.get("X-CSRFToken"))

    @strings.get("/places")
    def count_places() -> dict[str, int]:
        wakeup = jobber.wakeup
        return {"waiting": len(wakeup.room), "watching": len(wakeup.watchers), "taken": wakeup._places}

    @strings.post("/cut")
    def cut() -> str:
        """End every stream, as a proxy may."""
        for watcher in list(jobber.wakeup.watchers._watchers):
            watcher.dismissed = True
            watcher.ring()
        return "ok"

    @strings.get("/tokens")
    def show_tokens() -> list[str | None]:
        return tokens

    @strings.post("/reset")
    def reset() -> str:
        for job in db.session.scalars(sa.select(jobber.Job).filter_by(finished_at=None)).all():
            jobber.cancel(job.id)
        db.session.commit()
        trouble.order("", 0, 0)
        tokens.clear()
        return "ok"

    @strings.post("/trouble")
    def make_trouble() -> str:
        trouble.order(**request.get_json())
        return "ok"

    @strings.post("/jobs")
    def enqueue() -> dict[str, int]:
        body = request.get_json()
        job = jobber.enqueue(body.pop("type"), body.pop("data"), **body)
        db.session.commit()
        return {"id": job.id}

    @strings.post("/jobs/<int:job_id>/cancel")
    def cancel(job_id: int) -> str:
        jobber.cancel(job_id)
        db.session.commit()
        return "ok"

    @strings.get("/jobs/<int:job_id>")
    def show(job_id: int) -> dict[str, t.Any]:
        job = db.session.get(jobber.Job, job_id) or abort(404)
        columns = "state", "attempts", "failures", "result", "progress", "note", "locked_by"
        history = sa.select(jobber.History).filter_by(job_id=job_id).order_by(jobber.History.id)
        rows = db.session.scalars(history).all()
        return {
            **{name: getattr(job, name) for name in columns},
            "lease_ends": job.locked_until and job.locked_until.timestamp(),
            "reasons": [row.reason for row in rows],
            "errors": [row.error for row in rows if row.error],
        }

    csrf.exempt(strings)
    app.register_blueprint(strings, url_prefix="/test")


def main(url: str) -> None:
    server = make_server("127.0.0.1", 0, make_app(url), threaded=True)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
