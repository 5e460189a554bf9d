"""One kept connection by HTTP."""

from __future__ import annotations

import http.client
import json
import typing as t


class Connection:
    """Sends JSON, and is answered with JSON."""

    def __init__(self, port: int, headers: t.Mapping[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._headers = {"Content-Type": "application/json", **(headers or {})}

    def call(self, method: str, path: str, body: t.Any) -> t.Any:
        """:param body: what is sent as JSON, or bytes as they are."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._connection.request(method, path, sent, self._headers)
        response = self._connection.getresponse()
        content = response.read()
        assert response.status < 300, (response.status, path, content)
        return json.loads(content) if content else None
