"""Workers with accounts, and what they say to a server."""

from __future__ import annotations

import base64
import typing as t

from werkzeug.test import TestResponse

from flask_jobber.accounts import Credentials, Workers
from support import Client, World

TOKEN, REVOKE = "/oauth/token", "/oauth/revoke"
GRANT = {"grant_type": "client_credentials"}


class Site:
    """A world whose Jobber has workers beside its people."""

    def __init__(self, world: World, **options: t.Any) -> None:
        self.world = world
        self.workers = Workers(world.jobber, **options)
        world.app.register_blueprint(self.workers.blueprint)
        with world.session():
            world.db.create_all()

    def create(self, name: str = "robot", *queues: str) -> Credentials:
        with self.world.session():
            made = self.workers.create(name)
            for queue in queues:
                self.workers.hire(queue, name)
        return made

    def do(self, verb: str, *args: str) -> t.Any:
        """Do what an operator does."""
        with self.world.session():
            return getattr(self.workers, verb)(*args)

    def ask(self, credentials: Credentials | None = None, path: str = TOKEN, **how: t.Any) -> TestResponse:
        """Send a form, with Basic credentials unless there are none."""
        headers = how.pop("headers", {})
        if credentials is not None:
            headers = basic(credentials.client_id, credentials.client_secret) | headers
        how.setdefault("data", GRANT)
        address = how.pop("address", "127.0.0.1")
        environ = {"REMOTE_ADDR": address}
        return self.world.app.test_client().post(path, headers=headers, environ_base=environ, **how)

    def token(self, credentials: Credentials) -> str:
        response = self.ask(credentials)
        assert response.status_code == 200, response.text
        return t.cast(str, response.json["access_token"])  # type: ignore[index]

    def client(self, credentials: Credentials, node: str | None = None) -> Client:
        """Return a worker that has logged in."""
        return self.world.client(self.token(credentials), node)


def basic(client_id: str, secret: str) -> dict[str, str]:
    text = base64.b64encode(f"{client_id}:{secret}".encode()).decode()
    return {"Authorization": f"Basic {text}"}
