"""The description of the API: valid, whole, and the one that is served."""

from __future__ import annotations

import json
import re
import typing as t

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from marshmallow import fields
from openapi_spec_validator import OpenAPIV31SpecValidator

from flask_jobber.api.openapi import describe
from flask_jobber.api.operation import OPERATIONS, Operation
from flask_jobber.api.problems import CODES, PROBLEMS
from support import PREFIX, World

METHODS = {"get", "put", "post", "delete", "patch", "options", "head", "trace"}


def described() -> dict[tuple[str, str], dict[str, t.Any]]:
    """Return the operations of the document by method and path."""
    return {
        (method.upper(), path): operation
        for path, item in describe()["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def operation_of(row: Operation) -> dict[str, t.Any]:
    return described()[row.method, re.sub(r"<(\w+)>", r"{\1}", row.rule)]


def resolve(schema: dict[str, t.Any]) -> dict[str, t.Any]:
    """Follow a reference."""
    if "$ref" not in schema:
        return schema
    name = schema["$ref"].removeprefix("#/components/schemas/")
    return t.cast(dict[str, t.Any], describe()["components"]["schemas"][name])


def test_the_document_is_valid() -> None:
    """By the standard's own rules, references and all."""
    assert describe()["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(describe()).validate()


def test_what_is_served_is_the_document(lite: World) -> None:
    """With the address of this server, to everyone, and nothing of it is made for one client."""
    served = lite.app.test_client().get(f"{PREFIX}/openapi.json")
    assert (served.status_code, served.mimetype) == (200, "application/json")
    document = served.get_json()
    assert document.pop("servers") == [{"url": PREFIX}]
    assert document == json.loads(json.dumps(describe()))
    assert "servers" not in describe()
    with_login = lite.client().get("/openapi.json")
    assert with_login.data == served.data
    assert "Set-Cookie" not in served.headers
    OpenAPIV31SpecValidator(served.get_json()).validate()


def routes(app: Flask) -> set[tuple[str, str]]:
    """Return method and path of every route of the blueprint, as the document writes them."""
    return {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule.removeprefix(PREFIX)))
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("jobber.")
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }


def test_every_route_is_described_and_the_other_way_round(lite: World) -> None:
    """Neither an endpoint that is not told of, nor one that is not there."""
    assert routes(lite.app) == set(described())
    assert len(OPERATIONS) == len(described())


def test_the_table_of_the_design_is_what_there_is() -> None:
    """These routes are fixed: clients rely on them."""
    attempt = "/jobs/{job_id}/attempts/{attempt}"
    assert set(described()) >= {
        ("POST", "/claims"),
        ("GET", "/claims"),
        ("GET", attempt),
        ("PATCH", attempt),
        ("PUT", f"{attempt}/result"),
        ("PUT", f"{attempt}/failure"),
        ("DELETE", attempt),
        ("POST", "/exchange"),
        ("GET", "/jobs"),
        ("GET", "/jobs/{job_id}"),
        ("GET", "/jobs/{job_id}/history"),
        ("POST", "/jobs"),
        ("POST", "/jobs/{job_id}/cancel"),
        ("POST", "/jobs/{job_id}/retry"),
        ("GET", "/jobs/{job_id}/attachments/{name}"),
        ("PUT", "/jobs/{job_id}/attachments/{name}"),
        ("GET", "/batches/{job_id}"),
        ("POST", "/batches/{job_id}/cancel"),
        ("GET", "/openapi.json"),
        ("GET", "/jobber.js"),
    }


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_is_documented_somewhere(code: str) -> None:
    """Whoever meets a code can look it up, with its status."""
    document = json.dumps(describe())
    assert re.search(rf"\b{code}\b", document)
    of_operations = {
        status
        for operation in described().values()
        for status, response in operation["responses"].items()
        if code in response["description"].split(", ")
    }
    assert of_operations <= {str(CODES[code].status)}


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_each_operation_tells_its_answers_and_refusals(row: Operation) -> None:
    """Every status with its body: JSON of a schema, or a problem whose codes are listed."""
    responses = operation_of(row)["responses"]
    told = {
        code
        for status, response in responses.items()
        for code in response["description"].split(", ")
        if code in CODES and CODES[code].status == int(status)
    }
    assert told == set(row.codes)
    assert {str(status) for status in row.answers} <= set(responses)
    for status, response in responses.items():
        if int(status) >= 400:
            [problem] = response["content"].values()
            assert list(response["content"]) == ["application/problem+json"]
            [common, own] = problem["schema"]["allOf"]
            assert common == {"$ref": "#/components/schemas/Problem"}
            assert set(own["properties"]["code"]["enum"]) == set(response["description"].split(", "))


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_each_operation_tells_what_it_takes(row: Operation) -> None:
    """The fields of its body and query, its path's parameters, and whether it needs a login."""
    operation = operation_of(row)
    assert operation["operationId"] == row.name
    assert operation["summary"]
    assert bool(operation["security"]) is not row.public
    places: dict[str, set[str]] = {"path": set(), "query": set(), "header": set()}
    for parameter in operation["parameters"]:
        places[parameter["in"]].add(parameter["name"])
    assert places["path"] == set(re.findall(r"<(\w+)>", row.rule))
    assert places["query"] == set(row.query.fields)
    own = {"enqueue": {"Idempotency-Key"}, "events": {"Last-Event-ID"}}.get(row.name, set())
    assert places["header"] == (set() if row.public else {"Jobber-Node"} | own)
    for parameter in operation["parameters"]:
        if parameter["name"] in {"Idempotency-Key"} & own | {"Jobber-Node"}:
            pattern = parameter["schema"]["pattern"]
            assert [bool(re.search(pattern, said)) for said in ("n-1", "a b", "", "x" * 300)] == [
                True,
                *[False] * 3,
            ]
    if row.stream:
        assert operation["requestBody"]["content"] == {"*/*": {"schema": {}}}
        return
    if not row.takes_body:
        assert "requestBody" not in operation
        return
    body = resolve(operation["requestBody"]["content"]["application/json"]["schema"])
    assert set(body.get("properties", {})) == set(row.body.fields)
    needed = {name for name, field in row.body.fields.items() if field.required}
    assert set(body.get("required", [])) == needed
    assert operation["requestBody"]["required"] is bool(needed)


def test_names_of_operations_are_unique() -> None:
    """Generated clients make functions of them."""
    names = [operation["operationId"] for operation in described().values()]
    assert len(names) == len(set(names))


def test_every_schema_is_a_schema() -> None:
    """Each compiles by itself; none is left that nothing refers to."""
    document = describe()
    text = json.dumps({**document, "components": {**document["components"], "schemas": {}}})
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    used, waiting = set[str](), set(re.findall(r"#/components/schemas/(\w+)", text))
    while waiting:
        name = waiting.pop()
        used.add(name)
        waiting |= set(re.findall(r"#/components/schemas/(\w+)", json.dumps(schemas[name]))) - used
    assert used == set(schemas)


def test_each_error_has_one_code_and_each_code_one_status() -> None:
    """The table is the only one, and its codes are stable words."""
    codes = [problem.code for problem in PROBLEMS.values()]
    assert len(codes) == len(set(codes))
    for problem in PROBLEMS.values():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", problem.code)
        assert 400 <= problem.status < 600
        assert problem.retryable is (problem.status in (429, 503))
        assert problem.title


def test_the_codes_of_the_design_are_what_there_is() -> None:
    """Clients rely on them."""
    assert {code: problem.status for code, problem in CODES.items()} == {
        "login_required": 401,
        "cross_site": 403,
        "forbidden": 403,
        "not_found": 404,
        "method_not_allowed": 405,
        "lease_lost": 409,
        "cancelled": 409,
        "already_settled": 409,
        "name_taken": 409,
        "batch_ended": 409,
        "changed": 412,
        "out_of_range": 416,
        "broken_body": 400,
        "duplicate": 409,
        "illegal_transition": 409,
        "too_large": 413,
        "not_json": 415,
        "broken_json": 400,
        "invalid_result": 422,
        "result_rejected": 422,
        "key_reused": 422,
        "invalid": 422,
        "queue_full": 429,
        "too_many_claims": 429,
        "busy": 503,
        "internal": 500,
    }


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_no_answer_has_a_field_that_tells_who_holds_a_job(row: Operation) -> None:
    """A locker's name is in a history alone, where it is one's own."""
    for status, schema in row.answers.items():
        if schema is not None and row.name != "show_history":
            assert status < 400
            assert not {"locker", "locked_by", "only_for", "not_for"} & _names(schema.fields)


def _names(all_fields: t.Mapping[str, fields.Field[t.Any]]) -> set[str]:
    names = set(all_fields)
    for field in all_fields.values():
        inner = field.inner if isinstance(field, fields.List) else field
        if isinstance(inner, fields.Nested):
            names |= _names(inner.schema.fields)
    return names
