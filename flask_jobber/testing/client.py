"""A logged-in client of an app, in its tests."""

from __future__ import annotations

import typing as t

from flask import Flask, session
from flask.testing import FlaskClient
from flask_login import login_user
from werkzeug.test import TestResponse

from ..core.process import describe

if t.TYPE_CHECKING:
    from ..extension import Jobber

Answer = dict[str, t.Any]


class Refusal(Exception):
    """An answer that is an error.

    :param code: what tells it from others, such as ``lease_lost``.
    :param problem: the whole answer, parsed.
    """

    def __init__(self, response: TestResponse) -> None:
        self.status = response.status_code
        self.problem: Answer = response.get_json(silent=True) or {}
        self.code: str | None = self.problem.get("code")
        super().__init__(f"{self.status} {self.code}: {response.text}")


class LoggedIn(FlaskClient):
    """Flask's test client with the verbs of the HTTP API.

    Each takes a job as :meth:`claim` returned it, and the fields of the call's body.

    :param prefix: where the blueprint is.
    """

    prefix = ""

    def claim(self, **body: t.Any) -> list[Answer]:
        """Claim jobs, one without a ``limit``; an empty list when there is none. :raises Refusal:"""
        return t.cast(list[Answer], self._call("POST", f"{self.prefix}/claims", body)["jobs"])

    def deliver(self, job: t.Mapping[str, t.Any], result: t.Any = None, **body: t.Any) -> Answer:
        """Deliver a result. :raises Refusal:"""
        return self._call("PUT", f"{job['href']}/result", {"result": result, **body})

    def fail(
        self,
        job: t.Mapping[str, t.Any],
        error: BaseException | t.Mapping[str, t.Any] | str = "It failed.",
        **body: t.Any,
    ) -> Answer:
        """Report a failure: an exception, a message, or ``{type, message, traceback}``. :raises Refusal:"""
        if isinstance(error, BaseException):
            error = describe(error)
        elif isinstance(error, str):
            error = {"type": "Error", "message": error}
        return self._call("PUT", f"{job['href']}/failure", {"error": error, **body})

    def extend(self, job: t.Mapping[str, t.Any], **body: t.Any) -> Answer:
        """Renew the lease. :raises Refusal:"""
        return self._call("PATCH", job["href"], body)

    def release(self, job: t.Mapping[str, t.Any], *, delay_seconds: float = 0) -> None:
        """Give the job back. :raises Refusal:"""
        self._call("DELETE", f"{job['href']}?delay_seconds={delay_seconds:.6f}")

    def exchange(self, **body: t.Any) -> Answer:
        """Settle many jobs and claim the next. :raises Refusal: of the whole; each outcome has its status."""
        return self._call("POST", f"{self.prefix}/exchange", body)

    def _call(self, method: str, path: str, body: Answer | None = None) -> Answer:
        response = self.open(path, method=method, json=body)
        if response.status_code >= 400:
            raise Refusal(response)
        return t.cast(Answer, response.get_json() if response.data else {})


def login(app: Flask, user: t.Any, *, node: str | None = None, jobber: Jobber | None = None) -> LoggedIn:
    """Return a client that is logged in.

    :param user: an object of the app's user class, logged in by Flask-Login's session as a
        browser is; or a text, sent as a bearer token for the app's ``request_loader``.
    :param node: what the client calls its machine.
    :param jobber: which one it works for, when the app has several.

    :raises ValueError: when the user may not log in, or it is not clear for which Jobber.
    """
    client = LoggedIn(app, app.response_class)
    client.prefix = _prefix(app, jobber)
    if node is not None:
        client.environ_base["HTTP_JOBBER_NODE"] = node
    if isinstance(user, str):
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {user}"
    else:
        _log_in(app, client, user)
    return client


def _log_in(app: Flask, client: LoggedIn, user: t.Any) -> None:
    # In a request like the client's own, so that Flask-Login knows its address and agent again.
    with app.test_request_context(environ_overrides=client.environ_base):
        if not login_user(user):
            raise ValueError(f"{user!r} may not log in: it is not active.")
        kept = dict(session)
    with client.session_transaction() as own:
        own.update(kept)


def _prefix(app: Flask, jobber: Jobber | None) -> str:
    names = [jobber.name] if jobber is not None else list(app.extensions.get("jobber", ()))
    prefixes = {
        rule.rule.removesuffix("/claims")
        for rule in app.url_map.iter_rules()
        if rule.endpoint.split(".")[-2:] in [[name, "claim"] for name in names]
    }
    if len(prefixes) != 1:
        raise ValueError(f"This app serves {len(prefixes)} Jobbers of {names}: say which by jobber=.")
    return prefixes.pop()
