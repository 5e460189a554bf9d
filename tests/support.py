"""An app, its users and its clients, for tests to act in."""

from __future__ import annotations

import contextlib
import functools
import json
import typing as t

import jsonschema
import sqlalchemy as sa
from flask import Flask, Response, request
from flask.testing import FlaskClient
from flask_login import LoginManager, UserMixin, current_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.test import TestResponse

from flask_jobber import Jobber, JobMixin
from flask_jobber.api.openapi import describe
from flask_jobber.api.operation import OPERATIONS
from flask_jobber.testing import travel

PREFIX = "/jobber"


class User(UserMixin):
    """A login; its id is the token it sends."""

    def __init__(self, id: str) -> None:
        self.id = id


class Client:
    """A logged-in client: a test client with a token and perhaps a node."""

    def __init__(self, client: FlaskClient, token: str | None, node: str | None = None) -> None:
        self._client = client
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        if node:
            self.headers["Jobber-Node"] = node

    def open(self, method: str, path: str, body: t.Any = None, **kwargs: t.Any) -> TestResponse:
        path = path if path.startswith("/") and path.startswith(PREFIX) else PREFIX + path
        if body is not None:
            kwargs["json"] = body
        headers = {**self.headers, **kwargs.pop("headers", {})}
        # Read to the end and closed, as servers do: an answer may be an open file.
        kwargs.setdefault("buffered", True)
        return self._client.open(path, method=method, headers=headers, **kwargs)

    get = functools.partialmethod(open, "GET")
    post = functools.partialmethod(open, "POST")
    put = functools.partialmethod(open, "PUT")
    patch = functools.partialmethod(open, "PATCH")
    delete = functools.partialmethod(open, "DELETE")

    def claim(self, **body: t.Any) -> list[dict[str, t.Any]]:
        response = self.post("/claims", body)
        assert response.status_code == 200, response.text
        assert response.json is not None
        return t.cast(list[dict[str, t.Any]], response.json["jobs"])

    def deliver(self, job: t.Mapping[str, t.Any], result: t.Any = None, **body: t.Any) -> TestResponse:
        return self.put(f"{job['href']}/result", {"result": result, **body})

    def fail(self, job: t.Mapping[str, t.Any], message: str = "broke", **body: t.Any) -> TestResponse:
        error = {"type": "Error", "message": message}
        return self.put(f"{job['href']}/failure", {"error": error, **body})

    def extend(self, job: t.Mapping[str, t.Any], **body: t.Any) -> TestResponse:
        return self.patch(job["href"], body)

    def release(self, job: t.Mapping[str, t.Any], query: str = "") -> TestResponse:
        return self.delete(job["href"] + query)


class World:
    """An app with jobs of users, on one database.

    The scope is the user's own jobs and those of nobody; the operator ``root`` may see
    and do everything.
    """

    def __init__(self, url: str, *, scoped: bool = True, **config: t.Any) -> None:
        class Base(DeclarativeBase):
            pass

        self.db = SQLAlchemy(model_class=Base)
        self.Job: t.Any = self._make_job_class()
        self.jobber = self._make_jobber()
        if scoped:
            self.jobber.scope(self._scope)
            self.jobber.permission(lambda action, job: current_user.id == "root")
        self.app = self._make_app(url, config)

    def _make_jobber(self) -> Jobber:
        return Jobber(self.db, self.Job)

    def _make_job_class(self) -> type[t.Any]:
        class Job(JobMixin, self.db.Model):  # type: ignore[name-defined, misc]
            __claim_by__ = ("user_id",)
            user_id: Mapped[str | None] = mapped_column(sa.String(20))
            written: Mapped[str | None] = mapped_column(sa.String(100))

        return Job

    def _scope(self) -> t.Any:
        if current_user.id == "root":
            return True
        return (self.Job.user_id == current_user.id) | self.Job.user_id.is_(None)

    def _make_app(self, url: str, config: t.Mapping[str, t.Any]) -> Flask:
        app = Flask("world")
        app.config.update(SECRET_KEY="test", SQLALCHEMY_DATABASE_URI=url, TESTING=True)
        app.config.update({"JOBBER_ATTACHMENTS_URL": "memory://tests", **config})
        login = LoginManager(app)
        login.request_loader(load_user)
        self.db.init_app(app)
        app.register_blueprint(self.jobber.blueprint, url_prefix=PREFIX)
        app.after_request(check_response)
        return app

    def client(self, user: str | None = "ann", node: str | None = None) -> Client:
        return Client(self.app.test_client(), user, node)

    @contextlib.contextmanager
    def session(self) -> t.Iterator[t.Any]:
        """Act as server code; committed at the end."""
        with self.app.app_context():
            yield self.db.session
            self.db.session.commit()

    def enqueue(self, type: str = "work", data: t.Any = None, **spec: t.Any) -> int:
        with self.session():
            return int(self.jobber.enqueue(type, data, **spec).id)

    def job(self, job_id: int) -> t.Any:
        """Return the job as it is now, detached."""
        with self.session() as session:
            job = session.get(self.Job, job_id)
            session.refresh(job)
            session.expunge(job)
            return job

    def history(self, job_id: int) -> list[tuple[str | None, str, str]]:
        """Return ``(from, to, reason)`` of each transition."""
        with self.session() as session:
            h = self.jobber.History
            rows = session.scalars(sa.select(h).where(h.job_id == job_id).order_by(h.id))
            return [(row.from_state, row.to_state, row.reason) for row in rows]

    def pass_time(self, seconds: float) -> None:
        """Let time pass for all jobs."""
        with self.session():
            travel(self.jobber, seconds)


def load_user(request: t.Any) -> User | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return User(token) if scheme == "Bearer" else None


def check_response(response: Response) -> Response:
    """Check every answer of the suite against the OpenAPI document."""
    if not request.path.startswith(PREFIX):
        return response
    name = (request.endpoint or "").rpartition(".")[2]
    row = next((row for row in OPERATIONS if row.name == name), None)
    if row is not None:
        _check_against(row.name, response)
    else:  # no such path or method
        assert response.mimetype == "application/problem+json", response.data
    return response


def _check_against(name: str, response: Response) -> None:
    described = _operations()[name]["responses"].get(str(response.status_code))
    assert described is not None, f"{name} answers {response.status_code}, which is not documented"
    for mimetype, content in described.get("content", {}).items():
        assert response.mimetype == mimetype, (name, response.mimetype)
        if mimetype == "text/event-stream":  # it may have no end
            continue
        _validator(json.dumps(content["schema"])).validate(json.loads(response.get_data()))


@functools.cache
def _operations() -> dict[str, t.Any]:
    paths = describe()["paths"].values()
    return {operation["operationId"]: operation for path in paths for operation in path.values()}


@functools.cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    whole = {**json.loads(schema), "components": describe()["components"]}
    return jsonschema.Draft202012Validator(whole)
