"""The OpenAPI document, made from the table of endpoints and the schemas."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import typing as t

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Response, url_for
from marshmallow import Schema

from ..core.payload import FILE_NAME, NODE
from . import events, idempotency
from .call import Call, answer
from .operation import OPERATIONS, Operation, operation
from .problems import CODES
from .schemas import Problem

_PARAMETER = re.compile(r"<(\w+)>")
# The headers that are refused when they hold something else.
_PATTERNS = {
    "Jobber-Node": NODE.pattern,
    idempotency.HEADER: idempotency.PATTERN,
    events.HEADER: events.CURSOR.pattern,
}


@operation("GET", "/openapi.json", answers={200: None}, public=True)
def openapi(call: Call) -> Response:
    """This document."""
    prefix = url_for(".openapi").removesuffix("/openapi.json")
    return answer(
        describe() | {"servers": [{"url": prefix or "/"}]}, headers={"Cache-Control": "public, max-age=300"}
    )


@functools.cache
def describe() -> dict[str, t.Any]:
    """Return the document but for the address of the server."""
    spec = APISpec(
        title="flask_jobber",
        version=importlib.metadata.version("flask-jobber"),
        openapi_version="3.1.0",
        plugins=[MarshmallowPlugin(schema_name_resolver=_schema_name)],
        info={"description": "Jobs for logged-in clients: claim, do, deliver."},
    )
    spec.components.security_scheme("session", {"type": "apiKey", "in": "cookie", "name": "session"})
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    spec.components.schema("Problem", schema=Problem)
    spec.components.response("method_not_allowed", {"description": "405, for other methods of these paths"})
    for row in OPERATIONS:
        spec.path(_PARAMETER.sub(r"{\1}", row.rule), operations={row.method.lower(): _operation(row)})
    return spec.to_dict()


def _schema_name(schema: Schema | type[Schema]) -> str:
    return schema.__name__ if isinstance(schema, type) else type(schema).__name__


def _operation(row: Operation) -> dict[str, t.Any]:
    described: dict[str, t.Any] = {
        "operationId": row.name,
        "summary": (row.view.__doc__ or "").strip(),
        "parameters": [*_path_parameters(row), *_query_parameters(row), *_headers(row)],
        "responses": _responses(row),
        "security": [] if row.public else [{"session": []}, {"bearer": []}],
    }
    if row.takes_body:
        needed = any(field.required for field in row.body.fields.values())
        described["requestBody"] = {"required": needed, "content": {"application/json": {"schema": row.body}}}
    if row.stream:
        described["requestBody"] = {"content": {"*/*": {"schema": {}}}, "required": True}
    return described


def _path_parameters(row: Operation) -> list[dict[str, t.Any]]:
    number, text = {"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{FILE_NAME.pattern}$"}
    return [
        {"name": name, "in": "path", "required": True, "schema": text if name == "name" else number}
        for name in _PARAMETER.findall(row.rule)
    ]


def _query_parameters(row: Operation) -> list[dict[str, t.Any]]:
    return [{"in": "query", "schema": row.query}] if row.query.fields else []


def _headers(row: Operation) -> list[dict[str, t.Any]]:
    common = {} if row.public else {"Jobber-Node": "Tells machines of one login apart."}
    return [
        {"name": name, "in": "header", "required": False, "schema": _header(name), "description": said}
        for name, said in {**common, **row.headers}.items()
    ]


def _header(name: str) -> dict[str, str]:
    pattern = {"pattern": f"^({_PATTERNS[name]})$"} if name in _PATTERNS else {}
    return {"type": "string", **pattern}


def _responses(row: Operation) -> dict[str, t.Any]:
    responses = {str(status): _success(row, status, schema) for status, schema in row.answers.items()}
    for status in sorted({CODES[code].status for code in row.codes}):
        codes = sorted(code for code in row.codes if CODES[code].status == status)
        problem = {
            "allOf": [{"$ref": "#/components/schemas/Problem"}, {"properties": {"code": {"enum": codes}}}]
        }
        responses[str(status)] = {
            "description": ", ".join(codes),
            "content": {"application/problem+json": {"schema": problem}},
        }
    return responses


def _success(row: Operation, status: int, schema: Schema | None) -> dict[str, t.Any]:
    described: dict[str, t.Any] = {"description": "Done" if schema is None else _schema_name(schema)}
    if schema is not None:
        described["content"] = {"application/json": {"schema": schema}}
    elif row.mimetype is not None:
        described["content"] = {row.mimetype: {}}
    return described
