"""Hostile input: whatever a client sends, it is told what is wrong, and nothing changes.

What is attacked is read from the table of endpoints and from their schemas, so that a new
endpoint or field cannot be forgotten.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import itertools
import json
import tracemalloc
import typing as t
from urllib.parse import quote, urlencode

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marshmallow import Schema, fields, validate
from werkzeug.datastructures import Headers
from werkzeug.test import TestResponse

from flask_jobber.api import schemas
from flask_jobber.api.operation import OPERATIONS, Operation
from flask_jobber.api.problems import CODES
from flask_jobber.core.payload import MAX_ID
from support import PREFIX, World, check_response

MEGABYTE = 1_000_000
WITH_BODY = [row for row in OPERATIONS if row.takes_body]
PRIVATE = [row for row in OPERATIONS if not row.public]
WITH_IDS = [row for row in OPERATIONS if "<" in row.rule]
_HOLE = '"@@"'

# JSON texts of each kind; a field refuses those of the kinds that are not its own.
KINDS = {
    "null": "null",
    "boolean": "true",
    "number": "0.5",
    "string": '"a"',
    "array": '["a"]',
    "object": '{"a": 1}',
}
NUL, SURROGATE = '"a\\u0000b"', '"a\\ud800b"'
BAD_TEXTS = (NUL, SURROGATE, '"\\udc00\\ud800"')
NUMBERS_TOO_LARGE = ("1e400", "-1e400", "9" * 4000)
# Not JSON, or not readable: it cannot be told which field it is in.
BROKEN = ("NaN", "Infinity", "-Infinity", "9" * 5000, "-" + "9" * 5000, "'a'", "01", "0x1", "1.", "undefined")
TOO_DEEP = "[" * 10_000 + "]" * 10_000
BAD_IDS = (
    "0", "-1", "+1", "1.5", "1.0", "1e0", "abc", "1a", " 1", "1 ", "\0", "1\0", "\u0661", "\u00b2",
    "\uff11", "0x1", "1_0", "true", "null", "None", "\u2212" + "1", str(2**31), str(2**63 - 1), str(2**63),
    str(2**64 + 1), str(10**30), "9" * 5000, "%", "..;", "1;", "'", '"', "1,1", "\ud7ff", "\U0010ffff",
)  # fmt: skip


class Attack(t.NamedTuple):
    """A request that must be refused.

    :param field: what the errors must name; ``None`` when they need not.
    """

    row: Operation
    body: str
    field: str | None
    status: int = 422
    code: str = "invalid"


class Target:
    """A world with one job that ``root``, who may do everything, holds."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.app.testing = False  # what breaks is a 500, as it is for a client
        self.client = world.client("root")
        world.enqueue("held", {"n": 1}, user_id="ann", attachments={"file": b"x"})
        world.enqueue("waiting", user_id="ann")
        self.held = self.client.claim(types=["held"])[0]
        with world.session() as session:  # as if it had been waiting for others
            waited = {"id": self.held["id"], "if_failed": "cancel", "open": False, "processed": False}
            session.execute(sa.insert(world.jobber.Batch).values(waited))

    def path(self, row: Operation, **parts: t.Any) -> str:
        parts = {"job_id": self.held["id"], "attempt": self.held["attempt"], "name": "file", **parts}
        rule = row.rule
        for name, value in parts.items():
            rule = rule.replace(f"<{name}>", str(value))
        return PREFIX + rule

    def send(self, row: Operation, body: str | bytes, **kwargs: t.Any) -> TestResponse:
        kwargs.setdefault("content_type", "application/json")
        return self.open(row.method, kwargs.pop("path", self.path(row)), data=body, **kwargs)

    def open(self, method: str, path: str, **kwargs: t.Any) -> TestResponse:
        return self.client.open(method, path, buffered=True, **kwargs)

    def state(self) -> list[tuple[t.Any, ...]]:
        """Return every row of all tables."""
        jobber = self.world.jobber
        tables = (jobber.Job.__table__, jobber.History.__table__, jobber.Attachment.__table__)
        with self.world.session() as session:
            return [tuple(row) for table in tables for row in session.execute(sa.select(table)).all()]

    @contextlib.contextmanager
    def unchanged(self) -> t.Iterator[None]:
        before = self.state()
        yield
        assert self.state() == before, "something changed"

    @contextlib.contextmanager
    def refusals(self) -> t.Iterator[Wrong]:
        """Collect what is wrong with refusals, which must change nothing."""
        wrong, before = Wrong(), self.state()
        yield wrong
        assert not wrong.found, str(wrong)
        assert self.state() == before, "something changed"


class Wrong:
    """What was found wrong, told together at the end."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def note(self, row: Operation | str, what: object, said: str | None) -> None:
        if said is not None:
            name = row if isinstance(row, str) else row.name
            self.found.append(f"{name} {what!r:.80} {said:.200}")

    def __str__(self) -> str:
        return "\n".join(self.found[:30])


def complaint(response: TestResponse, status: int, code: str, field: str | None = None) -> str | None:
    """Return what is wrong with a refusal, if anything is."""
    body = response.json if response.mimetype == "application/problem+json" else None
    if (response.status_code, body and body["code"]) != (status, code):
        return f"answers {response.status_code} {response.text}"
    assert body is not None
    if (body["type"], body["status"], body["retryable"]) != ("about:blank", status, False):
        return f"is no final problem of its status: {body}"
    if not body["detail"].strip():
        return "has no detail"
    if code == "invalid" and not body["errors"]:
        return "has no errors"
    if field is not None and not any(name.partition(".")[0] == field for name in body["errors"]):
        return f"does not name {field}: {body['errors']}"
    return None


def refused(response: TestResponse, status: int, code: str, field: str | None = None) -> None:
    assert complaint(response, status, code, field) is None


# -- what is wrong for each field, by its schema -------------------------------------------


def kind_of(field: fields.Field[t.Any]) -> set[str]:
    """Return the kinds of JSON that a field takes."""
    if isinstance(field, fields.Raw) and type(field) is fields.Raw:
        return set(KINDS)
    kinds: dict[type[fields.Field[t.Any]], str] = {
        fields.String: "string",
        fields.AwareDateTime: "string",
        fields.Boolean: "boolean",
        fields.Number: "number",
        fields.List: "array",
        fields.Dict: "object",
        fields.Nested: "object",
        schemas.Ids: "string",
    }
    own = {kind for cls, kind in kinds.items() if isinstance(field, cls)}
    assert own, f"say here what {field!r} takes"
    return own | ({"null"} if field.allow_none else set())


def wrong_texts(field: fields.Field[t.Any]) -> set[str]:
    """Return JSON texts that a field must refuse."""
    kinds = kind_of(field)
    wrong = {text for kind, text in KINDS.items() if kind not in kinds} | {TOO_DEEP}
    if isinstance(field, fields.AwareDateTime):
        wrong |= set(BAD_TEXTS) | set(_bad_instants())
    elif isinstance(field, fields.String):
        wrong |= set(BAD_TEXTS) | set(_over_length(field)) | set(_bad_names(field))
    elif isinstance(field, fields.Number):
        wrong |= {*NUMBERS_TOO_LARGE, *_out_of_range(field)}
    elif isinstance(field, fields.List):
        wrong |= {f"[{text}]" for text in wrong_texts(field.inner) - {TOO_DEEP}} | {"[[]]", "[null]"}
        wrong |= {"[]", json.dumps(["a"] * 1001)} if field.validators else set()
    elif kinds == set(KINDS) or isinstance(field, fields.Dict):
        wrong |= set(_bad_json())
    return wrong


def _bad_json() -> t.Iterator[str]:
    for text in (*BAD_TEXTS, *NUMBERS_TOO_LARGE[:2], "[" * 101 + "]" * 101):
        yield f'{{"deep": [{text}]}}'
    yield from (f"{{{text}: 1}}" for text in BAD_TEXTS)


def _bad_instants() -> t.Iterator[str]:
    for text in (
        "", "now", "2030-01-01", "2030-01-01T00:00:00", "2030-02-30T00:00:00Z", "2030-01-01T25:00:00Z",
        "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0999-12-31T00:00:00Z", "1893456000",
        "2030-01-01T00:00:00+99:99", "99999-01-01T00:00:00Z",
    ):  # fmt: skip
        yield json.dumps(text)


def _over_length(field: fields.Field[t.Any]) -> t.Iterator[str]:
    for rule in field.validators:
        if isinstance(rule, validate.Length) and rule.max is not None:
            yield json.dumps("x" * (rule.max + 1))
            yield json.dumps("\U0001f600" * (rule.max + 1))
        if isinstance(rule, validate.Length) and rule.min:
            yield '""'


def _bad_names(field: fields.Field[t.Any]) -> t.Iterator[str]:
    if any(isinstance(rule, validate.Regexp) for rule in field.validators):
        for name in ("", "a b", "a/b", "a\n", "\u00e9", "\u0430", "x" * 101, "a,b", "%", "*", "a\\"):
            yield json.dumps(name)


def _out_of_range(field: fields.Field[t.Any]) -> t.Iterator[str]:
    if isinstance(field, fields.Integer):
        yield from ("1.5", "1e2", str(2**63), str(-(2**63) - 1), "-2147483648")
        if not any(isinstance(rule, validate.Range) and rule.max == MAX_ID for rule in field.validators):
            yield str(2**31)
    for rule in field.validators:
        if isinstance(rule, validate.Range) and rule.min is not None:
            yield from ("-1", "-1e-9") if not isinstance(field, fields.Integer) else ("-1", "0")
        if isinstance(rule, validate.Range) and rule.min == 0 and not rule.min_inclusive:
            yield from ("0", "-0.0", "1e-300")
        if isinstance(rule, validate.Range) and rule.max is not None:
            yield f"{rule.max + 0.001}"


def sample(field: fields.Field[t.Any]) -> t.Any:
    """Return a value that a required field takes."""
    if isinstance(field, fields.Nested):
        return minimal(field.schema)
    return 1 if isinstance(field, fields.Number) else "work"


def minimal(schema: Schema) -> dict[str, t.Any]:
    """Return the smallest body that a schema takes."""
    return {name: sample(field) for name, field in schema.fields.items() if field.required}


def with_hole(schema: Schema) -> t.Iterator[tuple[str, fields.Field[t.Any], str]]:
    """Yield for each field, nested ones too: the top field's name, the field, a body with a hole there."""
    for name, field in schema.fields.items():
        whole = minimal(schema)
        yield name, field, json.dumps({**whole, name: "@@"})
        if isinstance(field, fields.Nested) and not isinstance(field, schemas.Unread):
            for _, inner, body in with_hole(field.schema):
                yield name, inner, json.dumps({**whole, name: json.loads(body)})


def attacks_on(row: Operation) -> t.Iterator[Attack]:
    """Yield what an endpoint must refuse, from its schema."""
    for name, field, body in with_hole(row.body):
        for text in sorted(wrong_texts(field)):
            told = None if text == TOO_DEEP else name
            yield Attack(row, body.replace(_HOLE, text), told)
        for text in BROKEN:
            yield Attack(row, body.replace(_HOLE, text), None, 400, "broken_json")
    for unknown in ("x", "", "Id", "\0", "__proto__", "\ud800", "type ", "x" * 1000):
        if unknown not in row.body.fields:
            yield Attack(row, json.dumps({**minimal(row.body), unknown: 1}), None)


def item_lists() -> dict[str, Schema]:
    """Return the schemas of an exchange's items by the names of their lists."""
    lists = {n: f for n, f in schemas.ExchangeBody().fields.items() if isinstance(f, fields.List)}
    return {name: t.cast(fields.Nested, field.inner).schema for name, field in lists.items()}


# -- the sweep on every engine -------------------------------------------------------------


def test_every_field_of_every_endpoint_refuses_what_is_no_value_for_it(world: World) -> None:
    """Wrong types, NUL, surrogates, huge numbers, deep nesting: 4xx that names the field, nothing changed."""
    target = Target(world)
    attacks = [attack for row in WITH_BODY for attack in attacks_on(row)]
    assert len(attacks) > 500
    with target.refusals() as wrong:
        for attack in attacks:
            response = target.send(attack.row, attack.body)
            said = complaint(response, attack.status, attack.code, attack.field)
            wrong.note(attack.row, attack.body, said)


def test_a_hostile_item_of_an_exchange_gets_the_answer_of_the_single_call(lite: World) -> None:
    """It is refused by itself, with the problem that its own endpoint would give; nothing is changed."""
    target = Target(lite)
    single = {"results": "deliver", "failures": "fail", "extensions": "extend"}
    rows = {row.name: row for row in OPERATIONS}
    key = {"id": target.held["id"], "attempt": target.held["attempt"]}
    with target.refusals() as wrong:
        for name, schema in item_lists().items():
            for field, text, body in _item_attacks(schema):
                item = json.dumps({**json.loads(body), **key}).replace(_HOLE, text)
                response = target.send(rows["exchange"], f'{{"{name}": [{item}]}}')
                outcomes = response.get_json().get("outcomes")
                want = {**key, "status": 422, "code": "invalid", "retryable": False}
                if name in single:
                    want = {**key, **target.send(rows[single[name]], body.replace(_HOLE, text)).get_json()}
                same = len(outcomes or ()) == 1 and outcomes[0] == {**outcomes[0], **want}
                wrong.note(name, (field, text), None if same else f"{outcomes} is not {want}")


def _item_attacks(schema: Schema) -> t.Iterator[tuple[str, str, str]]:
    only = type(schema)(exclude=("id", "attempt"))
    for name, field, body in with_hole(only):
        for text in sorted(wrong_texts(field) - {TOO_DEEP}):
            yield name, text, body


def test_an_item_that_names_no_job_breaks_the_envelope(lite: World) -> None:
    """Without a whole number for id and attempt there is nothing that an outcome could be told of."""
    target = Target(lite)
    exchange = next(row for row in OPERATIONS if row.name == "exchange")
    with target.refusals() as wrong:
        for (name, schema), key in itertools.product(item_lists().items(), ("id", "attempt")):
            item = {**minimal(schema), "id": 1, "attempt": 1}
            for text in ("null", "true", '"1"', "1.5", "[]", "{}", "1e400"):
                body = json.dumps({name: [{**item, key: "@@"}]}).replace(_HOLE, text)
                wrong.note(name, text, complaint(target.send(exchange, body), 422, "invalid", name))
            gone = json.dumps({name: [{k: v for k, v in item.items() if k != key}]})
            wrong.note(name, key, complaint(target.send(exchange, gone), 422, "invalid", name))


def test_ids_that_are_none_look_like_an_absent_job(world: World) -> None:
    """Garbage, zero, negatives and numbers beyond 63 bits: the same 404 as for a job that is not there."""
    target = Target(world)
    absent = target.client.get("/jobs/4000000").json
    with target.refusals() as wrong:
        for row, bad, part in itertools.product(WITH_IDS, BAD_IDS, ("job_id", "attempt")):
            if f"<{part}>" in row.rule:
                path = target.path(row, **{part: quote(bad, safe="", errors="surrogatepass")})
                body = json.dumps(minimal(row.body)) if row.takes_body else ""
                response = target.send(row, body, path=path)
                wrong.note(row, bad, complaint(response, 404, "not_found"))
                wrong.note(row, bad, None if response.json == absent else "looks another way")


def test_ids_in_an_exchange_are_of_any_size(world: World) -> None:
    """A number that no job can have is a job that is not there, beyond the database's range too."""
    target = Target(world)
    ids = (0, -1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**4000)
    for name, schema in item_lists().items():
        whole = minimal(schema)
        keys = [(n, 1) for n in ids] + [(1, n) for n in ids]
        items = [{**whole, "id": job_id, "attempt": attempt} for job_id, attempt in keys]
        with target.unchanged():
            response = target.client.post("/exchange", {name: items})
        assert response.json is not None
        said = [(o["id"], o["attempt"], o["status"]) for o in response.json["outcomes"]]
        assert said == [(item["id"], item["attempt"], 404) for item in items]


def test_query_values_that_are_none_are_refused(world: World) -> None:
    """Every field of every query, by its schema."""
    target = Target(world)
    with target.refusals() as wrong:
        for row in OPERATIONS:
            for name, field in row.query.fields.items():
                for value in _bad_query_values(field):
                    query = urlencode({name: value}, errors="surrogatepass")
                    response = target.open(row.method, f"{target.path(row)}?{query}")
                    wrong.note(row, query, complaint(response, 422, "invalid", name))


def _bad_query_values(field: fields.Field[t.Any]) -> t.Iterator[str]:
    yield from ("", "\0", "a\0", "a b", "x" * 101, "\ud800", "\u00e9", "[]", "1,,2", "9" * 5000)
    if isinstance(field, fields.Number):
        yield from ("-1", "null", "nan", "NaN", "inf", "-Infinity", "1e400", "true", "0x10", "1.5.1", "1e99")
    if isinstance(field, fields.Integer):
        yield from ("0", "1.5", str(2**63), "1e1")
        yield from (str(v.max + 1) for v in field.validators if isinstance(v, validate.Range) and v.max)


# -- shapes of requests --------------------------------------------------------------------


def test_a_query_parameter_that_is_unknown_is_refused(lite: World) -> None:
    """A misspelt parameter is not ignored; the answer names it."""
    target = Target(lite)
    with target.refusals() as wrong:
        for row, name in itertools.product(PRIVATE, ("x", "Limit", "\0", "__proto__", "cursor[]")):
            body = json.dumps(minimal(row.body)) if row.takes_body else ""
            response = target.send(row, body, path=f"{target.path(row)}?{urlencode({name: 1})}")
            wrong.note(row, name, complaint(response, 422, "invalid", name))


def test_what_python_reads_as_a_number_need_not_be_one(lite: World) -> None:
    """Digits of other scripts, underscores and spaces are no number in a URL."""
    target = Target(lite)
    with target.refusals() as wrong:
        for row in OPERATIONS:
            for name, field in row.query.fields.items():
                for value in (
                    ("\u0663", "\uff11", "1_0", " 1", "1 ", "1\n") if kind_of(field) == {"number"} else ()
                ):
                    response = target.open(row.method, f"{target.path(row)}?{urlencode({name: value})}")
                    wrong.note(row, (name, value), complaint(response, 422, "invalid", name))


def test_a_query_parameter_that_comes_twice_is_refused(lite: World) -> None:
    """Neither of two values is chosen silently."""
    target = Target(lite)
    values = {
        "limit": ("1", "2"),
        "cursor": ("1", "2"),
        "state": ("queued", "failed"),
        "delay_seconds": ("1", "9"),
    }
    with target.refusals() as wrong:
        for row in OPERATIONS:
            for name in row.query.fields:
                pair = [(name, value) for value in values.get(name, ("a", "b"))]
                response = target.open(row.method, f"{target.path(row)}?{urlencode(pair)}")
                wrong.note(row, name, complaint(response, 422, "invalid", name))


def test_what_is_public_takes_any_query(lite: World) -> None:
    """``jobber.js?v=2`` is how pages get past their caches."""
    target = Target(lite)
    for row in (row for row in OPERATIONS if row.public):
        plain, asked = (target.open("GET", target.path(row) + query) for query in ("", "?v=2&x=%00&limit=x"))
        assert (asked.status_code, asked.data) == (200, plain.data)


def test_a_body_that_is_no_object_is_invalid(lite: World) -> None:
    """JSON, but not what any endpoint takes."""
    target = Target(lite)
    with target.refusals() as wrong:
        for row, text in itertools.product(WITH_BODY, ("[]", "[{}]", "null", "true", "0", '"{}"', "[1, 2]")):
            wrong.note(row, text, complaint(target.send(row, text), 422, "invalid"))


def test_a_body_that_is_no_json_is_broken(lite: World) -> None:
    """Cut off, in another language, in another encoding."""
    target = Target(lite)
    texts = (
        "{", "}", " ", "\n", "{]", "{'a': 1}", '{"a": 1,}', '{"a" 1}', '{"a": 1} x', "{}{}", "a=1", "<a/>",
        "{/**/}", '{"a": "\t"}', '{"a": "\\x41"}', '{"a": "\\ud8"}', '{"a": tru}', "\ufeff{}", "{" * 300,
        "// {}", "nan",
    )  # fmt: skip
    broken = [text.encode() for text in texts]
    broken += ['{"\u00e9": 1}'.encode(name) for name in ("utf-16", "utf-16-le", "utf-32", "latin-1")]
    broken += [b'{"a": "%s"}' % part for part in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80")]
    broken += [b"\x80", b"\0", b"{}\0", b"\x1f\x8b"]
    with target.refusals() as wrong:
        for row, body in itertools.product(WITH_BODY, broken):
            wrong.note(row, body, complaint(target.send(row, body), 400, "broken_json"))


def test_a_body_of_another_content_type_is_refused(lite: World) -> None:
    """Nothing is guessed; what a plain HTML form can send is never taken for JSON."""
    target = Target(lite)
    kinds = (
        None, "", "text/plain", "text/json", "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x", "application/jsonx", "application/xml",
        "application/octet-stream", "json", "*/*", "application/x-json", "text/plain; application/json",
        "\u00e9",
    )  # fmt: skip
    with target.refusals() as wrong:
        for row, kind in itertools.product(WITH_BODY, kinds):
            response = target.send(row, json.dumps(minimal(row.body)), content_type=kind)
            wrong.note(row, kind, complaint(response, 415, "not_json"))


def test_a_content_type_with_parameters_is_json(lite: World) -> None:
    """A charset is no charset of JSON's and changes nothing; ``+json`` is JSON too."""
    target = Target(lite)
    kinds = ("application/json; charset=utf-8", "APPLICATION/JSON", "application/merge-patch+json")
    with target.refusals() as wrong:
        for row, kind in itertools.product(WITH_BODY, kinds):
            response = target.send(row, '{"?": 1}', content_type=kind)
            wrong.note(row, kind, complaint(response, 422, "invalid", "?"))


@pytest.mark.parametrize("row", WITH_BODY, ids=lambda row: row.name)
def test_an_empty_body_is_an_empty_object(lite: World, row: Operation) -> None:
    """Whatever its content type: there is nothing to be taken for something else."""
    target = Target(lite)
    needed = bool(minimal(row.body))
    for kind in ("application/json", "text/plain", None):
        response = target.send(row, "", content_type=kind)
        assert response.status_code not in (400, 415)
        assert (response.status_code == 422) is needed


def test_deep_nesting_is_refused_wherever_it_is(lite: World) -> None:
    """Ten thousand levels, of lists or objects or both, whole or cut off."""
    target = Target(lite)
    objects, both = '{"a":' * 10_000 + "1" + "}" * 10_000, '[{"a":' * 5_000 + "1" + "}]" * 5_000
    texts = (TOO_DEEP, objects, both, f'{{"x": {TOO_DEEP}}}', f'{{"x": {objects}}}')
    with target.refusals() as wrong:
        for row, text in itertools.product(WITH_BODY, texts):
            wrong.note(row, text, complaint(target.send(row, text), 422, "invalid"))
        for row in WITH_BODY:
            status = target.send(row, "[" * 100_000).status_code
            wrong.note(row, "cut off", None if status in (400, 422) else f"answers {status}")


# -- sizes ---------------------------------------------------------------------------------


def test_a_body_of_ten_megabytes_is_too_large(lite: World) -> None:
    """Whatever is in it: a string in a field, spaces, or what is no JSON."""
    target = Target(lite)
    ten = "x" * 10 * MEGABYTE
    with target.refusals() as wrong:
        for row in WITH_BODY:
            long = [body.replace("@@", ten) for _, _, body in itertools.islice(with_hole(row.body), 2)]
            for body in (*long, " " * 10 * MEGABYTE, ten):
                wrong.note(row, body, complaint(target.send(row, body), 413, "too_large"))
                response = target.send(row, body, content_type="text/plain")
                wrong.note(row, body, complaint(response, 413, "too_large"))


def test_a_chunked_body_is_cut_off_at_the_limit(lite: World) -> None:
    """Without a Content-Length it is counted while it is read, and no more is read than that."""
    target = Target(lite)
    with target.refusals() as wrong:
        for row, start in itertools.product(WITH_BODY, (b"", b"{}")):
            stream = Endless(start)
            response = target.send(row, "", environ_overrides=chunked(stream))
            wrong.note(row, start, complaint(response, 413, "too_large"))
            assert 0 < stream.read_bytes < 20 * MEGABYTE


def chunked(stream: io.IOBase) -> dict[str, t.Any]:
    """Return the environment of a request whose length is not said."""
    return {"wsgi.input": stream, "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}


class Endless(io.RawIOBase):
    """A body that does not end: after its start there are spaces."""

    read_bytes = 0

    def __init__(self, start: bytes) -> None:
        self._start = start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        part = (self._start or b" " * len(buffer))[: len(buffer)]
        self._start = self._start[len(part) :]
        self.read_bytes += len(part)
        assert self.read_bytes < 100 * MEGABYTE, "it reads for ever"
        buffer[: len(part)] = part
        return len(part)


def test_a_chunked_body_below_the_limit_is_read(lite: World) -> None:
    """The length need not be said in advance."""
    lite.enqueue()
    body = chunked(io.BytesIO(b'{"limit": 1}'))
    response = lite.client().post("/claims", content_type="application/json", environ_overrides=body)
    assert response.status_code == 200
    assert len(response.get_json()["jobs"]) == 1


def test_a_content_length_that_lies_breaks_nothing(lite: World) -> None:
    """No 500: at worst there is no body."""
    target = Target(lite)
    for row, length in itertools.product(WITH_BODY, ("-1", "abc", "1e3", "9" * 5000, "")):
        response = target.send(row, '{"?": 1}', environ_overrides={"CONTENT_LENGTH": length})
        assert response.status_code < 500, (row.name, length)


def test_a_payload_over_its_limit_is_too_large(world: World) -> None:
    """Data and results are counted as canonical JSON in UTF-8, whatever way they are written."""
    target = Target(world)
    attempt = target.held["href"]
    limit = 1_048_576
    with target.unchanged():
        for text in ("x" * (limit - 1), "\u00e9" * (limit // 2), "\U0001f600" * (limit // 4)):
            refused(target.client.post("/jobs", {"type": "a", "data": text}), 413, "too_large")
            refused(target.client.put(f"{attempt}/result", {"result": text}), 413, "too_large")
            refused(target.client.put(f"{attempt}/result", {"extras": {"a": text}}), 413, "too_large")
    fits = "x" * (limit - 100)
    assert target.client.post("/jobs", {"type": "a", "data": fits}).status_code == 201
    assert target.client.put(f"{attempt}/result", {"result": fits}).status_code == 200


def test_long_strings_are_refused_by_every_field(lite: World) -> None:
    """Two megabytes pass the limit of the body; no field takes them."""
    target = Target(lite)
    long = "x" * 2 * MEGABYTE
    with target.refusals() as wrong:
        for row in WITH_BODY:
            for name, field, body in with_hole(row.body):
                if isinstance(field, fields.String) and not field.validators:
                    continue  # a traceback: its end is kept
                response = target.send(row, body.replace("@@", long))
                fine = response.status_code in (413, 422) and len(response.data) < 2000
                wrong.note(row, name, None if fine else f"answers {response.status_code}")


MANY = {str(n): 0 for n in range(40_000)}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("claim", {"types": [0] * 1000, "queues": ["a b"] * 1000}),
        ("claim", {"types": [0] * 40_000}),
        ("claim", {"queues": ["a b"] * 40_000}),
        ("claim", MANY),
        ("claim", {"x" * 3 * MEGABYTE: 1}),
        ("enqueue", {"type": "a", **MANY}),
        ("deliver", {"result": 1, **MANY}),
        ("deliver", {"x" * 3 * MEGABYTE: 1}),
        ("fail", {"error": {"type": "E", "message": "m", **{str(n): 0 for n in range(15_000)}}}),
        ("exchange", {"results": [0] * 40_000}),
        ("exchange", {"failures": [None] * 40_000}),
        ("exchange", {"extensions": [{"id": 1}] * 40_000}),
        ("exchange", {"releases": [{"id": 1, "attempt": 1}] * 40_000}),
        ("exchange", MANY),
        ("exchange", {"results": [{"id": 1, "attempt": 1, **MANY}]}),
        ("exchange", {"failures": [{"id": 1, "attempt": 1, "error": MANY}]}),
        ("exchange", {"claim": MANY}),
        ("exchange", {"claim": {"types": [0] * 40_000}}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:40],
)
def test_a_refusal_is_not_as_large_as_what_it_refuses(lite: World, name: str, body: dict[str, t.Any]) -> None:
    """A request of a few megabytes must not make the server build an answer of many."""
    target = Target(lite)
    row = next(row for row in OPERATIONS if row.name == name)
    response = target.send(row, json.dumps(body))
    assert response.status_code in ((200, 422) if name == "exchange" else (413, 422))
    assert len(response.data) < 150_000


def test_claims_of_every_length_do_not_fill_the_memory(lite: World) -> None:
    """What is kept of a claim, to be faster the next time, does not grow with what clients think of."""
    client = lite.client()
    names = [f"name{n}" for n in range(400)]
    client.claim(types=names, queues=names)
    tracemalloc.start()
    try:
        for length in range(300, 330):
            assert client.claim(types=names[:length], queues=names[: 600 - length]) == []
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 10 * MEGABYTE


def test_jobs_of_many_priorities_do_not_stop_claims(world: World) -> None:
    """Who may enqueue may give each job a priority of its own; others still find what is due."""
    far = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    with world.session():
        world.jobber.enqueue_many({"type": "a", "priority": n, "run_at": far} for n in range(1200))
        world.jobber.enqueue_many(
            {"type": name, "priority": -5, "user_id": "ann"} for name in ("a", "b", "c")
        )
    world.app.testing = False
    client = world.client()
    assert [job["type"] for job in client.claim()] == ["a"]
    assert [job["type"] for job in client.claim(types=["a", "b", "c", "d"], limit=5)] == ["b", "c"]
    assert client.claim() == []


# -- methods and headers -------------------------------------------------------------------


@pytest.fixture
def plain(lite: World) -> World:
    """A world whose answers are not checked against the document, which tells of no OPTIONS."""
    lite.app.after_request_funcs[None].remove(check_response)
    return lite


def methods_of(row: Operation) -> set[str]:
    methods = {other.method for other in OPERATIONS if other.rule == row.rule} | {"OPTIONS"}
    return methods | {"HEAD"} if "GET" in methods else methods


def test_a_method_that_a_path_does_not_take_is_405(lite: World) -> None:
    """The answer says which ones it takes; methods that HTTP does not know are no exception."""
    target = Target(lite)
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW", "PROPFIND"}
    with target.refusals() as wrong:
        for row in OPERATIONS:
            for method in known - methods_of(row):
                response = target.open(method, target.path(row))
                if method != "HEAD":  # has no body
                    wrong.note(row, method, complaint(response, 405, "method_not_allowed"))
                assert response.status_code == 405
                assert set(response.headers["Allow"].split(", ")) == methods_of(row)


def test_options_tells_the_methods_and_does_nothing(plain: World) -> None:
    """Nor does it allow other sites anything."""
    target = Target(plain)
    with target.unchanged():
        for row in OPERATIONS:
            response = target.open("OPTIONS", target.path(row))
            assert (response.status_code, response.data) == (200, b"")
            assert set(response.headers["Allow"].split(", ")) == methods_of(row)
            assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


def test_head_is_a_get_without_its_body(plain: World) -> None:
    """The same status and type."""
    target = Target(plain)
    with target.unchanged():
        for row in (row for row in OPERATIONS if row.method == "GET"):
            whole, head = target.open("GET", target.path(row)), target.open("HEAD", target.path(row))
            assert (head.status_code, head.mimetype, head.data) == (whole.status_code, whole.mimetype, b"")


@pytest.mark.parametrize("body", [b"{", b"x" * 10 * MEGABYTE, b'{"x": 1}'], ids=["cut", "large", "odd"])
def test_a_body_that_nobody_asked_for_is_not_read(lite: World, body: bytes) -> None:
    """A GET or DELETE answers as it does without one."""
    target = Target(lite)
    rows = sorted(
        (row for row in OPERATIONS if not (row.takes_body or row.stream)),
        key=lambda row: row.method,
        reverse=True,
    )
    for row in rows:  # the DELETE at the end
        response = target.send(row, body)
        assert response.status_code == next(iter(row.answers)), row.name


BAD_NODES = (
    "", " ", "a b", "a/b", "/", "a,b", "x" * 61, "x" * 100_000, "\u00e9", "a\u0000", "%00", "..\\", "a\tb",
    '"a"', "*", "\u2028", "a;b",
)  # fmt: skip


def test_a_node_that_is_no_name_is_refused_everywhere(lite: World) -> None:
    """Not only where the locker counts: a misnamed machine hears of it at its first request."""
    target = Target(lite)
    with target.refusals() as wrong:
        for row, node in itertools.product(PRIVATE, BAD_NODES):
            headers = {"Jobber-Node": node.encode().decode("latin-1")}
            body = json.dumps(minimal(row.body)) if row.takes_body else ""
            response = target.send(row, body, headers=headers)
            wrong.note(row, node, complaint(response, 422, "invalid", "Jobber-Node"))


def test_a_node_that_is_no_name_is_refused_before_a_job_is_looked_for(lite: World) -> None:
    """422 comes before 404, for this input too."""
    target = Target(lite)
    with target.refusals() as wrong:
        for row in WITH_IDS:
            body = json.dumps(minimal(row.body)) if row.takes_body else ""
            path = target.path(row, job_id=4_000_000)
            response = target.send(row, body, path=path, headers={"Jobber-Node": "a b"})
            wrong.note(row, "a b", complaint(response, 422, "invalid", "Jobber-Node"))


def test_a_header_that_comes_twice_names_no_node(lite: World) -> None:
    """Neither of two is chosen."""
    headers = Headers([("Authorization", "Bearer ann"), ("Jobber-Node", "a"), ("Jobber-Node", "b")])
    response = lite.app.test_client().post(f"{PREFIX}/claims", json={}, headers=headers)
    refused(response, 422, "invalid", "Jobber-Node")


GARBAGE = (
    "", "\xff", "null", "http://[bad", "http://a:99999", "x" * 70_000, ";;;=", "bytes=9-1",
    "bytes=99999999-",
)  # fmt: skip
HEADERS = (
    "Origin", "Sec-Fetch-Site", "Host", "Accept", "Cookie", "If-None-Match", "If-Modified-Since", "Range",
    "Content-Encoding", "X-Forwarded-For", "Expect", "If-Range", "Referer", "Content-Type",
    "Authorization",
)  # fmt: skip


def test_headers_full_of_garbage_break_nothing(plain: World) -> None:
    """Whatever stands in the headers that are read, there is no 500, also without a login."""
    target = Target(plain)
    rows = {"claim", "list_jobs", "deliver", "release", "script", "openapi"}
    stranger = plain.app.test_client()
    for row in (row for row in OPERATIONS if row.name in rows):
        for name, value in itertools.product(HEADERS, GARBAGE):
            response = target.send(row, "", headers={name: value})
            assert response.status_code < 500, (row.name, name, value[:20])
            path, headers = target.path(row), {name: value}
            response = stranger.open(path, method=row.method, headers=headers, buffered=True)
            assert response.status_code < 500, (row.name, name, value[:20])


# -- paths ---------------------------------------------------------------------------------

STRANGE_PATHS = (
    "", "/", "/nope", "/claims/", "/claims/1", "/jobs/", "/jobs/1/", "/jobs/1/attempts",
    "/jobs/1/attempts/1/", "/jobs/1/attempts/1/nope", "/jobs/1/2", "/%00", "/static/jobber.js",
    "/jobber.js/", "/../jobber/nope", "/JOBS", "/%F0%9F%98%80", "/" + "x" * 9000, "/.", "/openapi.yaml",
    "/jobs/1/attempts/1/result/1", "/exchange;x=1",
)  # fmt: skip


def test_paths_that_are_not_there_are_404(lite: World) -> None:
    """Below the prefix in our form, whatever the method."""
    target = Target(lite)
    with target.unchanged():
        for path, method in itertools.product(STRANGE_PATHS, ("GET", "POST", "PUT", "PATCH", "DELETE")):
            response = target.open(method, PREFIX + path, data="{", content_type="application/json")
            refused(response, 404, "not_found")


# -- values that are allowed, however strange ----------------------------------------------


def nested(depth: int) -> t.Any:
    value: t.Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


DEEPEST = nested(100)
STRANGE_JSON: list[t.Any] = [
    0, 1, -1, 1.0, -0.0, 0.1, 1.5, 1e16, 1e22, 1e308, 5e-324, 2**31, 2**53 + 1, 2**63 - 1, 2**63,
    -(2**63) - 1, 10**30, 10**400, True, False, "", " ", "a ", "0", "1", "1.0", "null", "true", "\u00e9",
    "\U0001f600", "\x01\x1f\x7f", "\\", "\\u0000", "\\\\u0000", '"', "'", "%", "%s", ":x", "\u2028",
    "\ufeff", "\ufffe\uffff", "\r\n", "[]", "{}", "<b>", [], {}, [None], [[]], {"": ""},
    {"a": {"a": None}}, {" ": 1, "  ": 2}, {"A": 1, "a": 2}, {"1": 1, "01": 2},
    {"\u00e9": 1, "e\u0301": 2}, {"__proto__": {"x": 1}}, {"$ref": "#"}, [1, 1.0, "1", True], nested(32),
    nested(100), list(range(1000)), {str(n): n for n in range(1000)},
]  # fmt: skip


def same(one: t.Any, other: t.Any) -> bool:
    """Whether two values are the same JSON: 1 is not 1.0, nor is it true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _extras(value: t.Any) -> dict[str, t.Any] | None:
    return None if value == DEEPEST else {"a": value}  # a level more would be too deep


def test_any_json_comes_back_as_it_was(world: World) -> None:
    """As data, as a result and as extras, up to a hundred deep and to any size of number, on every engine."""
    world.app.testing = False
    client, wrong = world.client("root"), Wrong()
    made = {}
    for value in STRANGE_JSON:
        response = client.post("/jobs", {"type": "work", "data": value})
        if response.status_code == 201:
            made[response.get_json()["id"]] = value
        else:
            wrong.note("enqueue", value, response.text)
    claimed = {job["id"]: job["data"] for job in client.claim(limit=100)}
    results = [{"id": i, "attempt": 1, "result": v, "extras": _extras(v)} for i, v in made.items()]
    for time in ("first", "second"):  # what was stored is what was sent: the second repeats the first
        for outcome in client.post("/exchange", {"results": results}).get_json()["outcomes"]:
            said = None if outcome["status"] == 200 else str(outcome)
            wrong.note(f"{time} delivery", made[outcome["id"]], said)
    seen = {job["id"]: job["result"] for job in client.get("/jobs?limit=100").get_json()["jobs"]}
    for job_id, value in made.items():
        wrong.note("data", value, None if same(claimed[job_id], value) else f"is {claimed[job_id]!r}")
        wrong.note("result", value, None if same(seen[job_id], value) else f"is {seen[job_id]!r}")
    assert not wrong.found, str(wrong)


def test_a_null_is_no_result_that_is_missing(world: World) -> None:
    """``null`` is a result like any other: repeated, it is the same; another one is too late."""
    client = world.client()
    world.enqueue(user_id="ann")
    [job] = client.claim()
    assert client.deliver(job).status_code == 200
    assert client.deliver(job).status_code == 200
    assert client.deliver(job, False).status_code == 409
    assert client.deliver(job, 0).status_code == 409
    assert client.deliver(job, None, extras={}).status_code == 409


def test_texts_are_kept_as_they_are(world: World) -> None:
    """Quotes, percent signs, markup and every plane of Unicode are only text."""
    client = world.client("root")
    for text in (
        "'; DROP TABLE job; --",
        "%s %(x)s {0} :a",
        "<b>",
        "\U0001f600\u0130",
        "\x01\x7f",
        "a\nb\n",
        " a ",
    ):
        world.enqueue()
        [job] = client.claim()
        assert client.extend(job, note=text).status_code == 200
        assert client.get(f"/jobs/{job['id']}").get_json()["note"] == text
        failure = {"error": {"type": "E", "message": text, "traceback": text}, "permanent": True}
        assert client.put(f"{job['href']}/failure", failure).status_code == 200
        seen = client.get(f"/jobs/{job['id']}").get_json()["error"]
        assert seen == {"type": "E", "message": text}
        history = client.get(f"/jobs/{job['id']}/history").get_json()["history"]
        assert history[-1]["error"] == {"type": "E", "message": text, "traceback": text}


def test_a_name_is_compared_letter_by_letter(world: World) -> None:
    """``Ann`` is not ``ann``, nor is an accent nothing, on engines whose default thinks so."""
    for name in ("job", "JOB", "Job", "job.", "job:"):
        world.enqueue(name, queue=name, unique_key=name)
    client = world.client("root")
    seen = client.get("/jobs?type=JOB").get_json()["jobs"]
    assert [job["type"] for job in seen] == ["JOB"]
    assert [job["type"] for job in client.claim(types=["Job"], limit=10)] == ["Job"]
    assert [job["queue"] for job in client.claim(queues=["job."], limit=10)] == ["job."]
    for key in ("job", "JOB"):
        assert client.post("/jobs", {"type": "a", "unique_key": key}).status_code == 409
    for key in ("jOB", "j\u00f6b", "job\u0301"):
        assert client.post("/jobs", {"type": "a", "unique_key": key}).status_code == 201


# -- fuzz ----------------------------------------------------------------------------------

_characters = st.one_of(st.characters(), st.sampled_from(["\0", "\ud800", "\udfff", "\\", '"', "\ufeff"]))
_texts = st.text(_characters, max_size=20)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30, 1e308, -1e-320]),
    st.floats(),
    _texts,
)
json_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=8,
)


def plausible(field: fields.Field[t.Any]) -> st.SearchStrategy[t.Any]:
    """Return values that a field may take, and a few that it may not."""
    if isinstance(field, fields.Nested):
        return bodies(field.schema)
    if isinstance(field, fields.List):
        return st.lists(plausible(field.inner), max_size=3)
    if isinstance(field, fields.Boolean):
        return st.booleans()
    if isinstance(field, fields.Integer):
        return st.integers(0, 3) | st.integers()
    if isinstance(field, fields.Number):
        return st.floats(0, 1) | st.floats() | st.integers(0, 10_000)
    if isinstance(field, fields.AwareDateTime):
        return st.datetimes().map(lambda moment: f"{moment.isoformat()}Z")
    if isinstance(field, fields.String):
        return st.sampled_from(["work", "a", "", "a b"]) | _texts
    return json_values


def bodies(schema: Schema) -> st.SearchStrategy[dict[str, t.Any]]:
    """Return objects with fields of a schema, each right or wrong."""
    each = {name: plausible(field) | json_values for name, field in schema.fields.items()}
    likely = {name: plausible(field) for name, field in schema.fields.items() if field.required}
    return st.one_of(
        st.fixed_dictionaries(likely, optional={k: v for k, v in each.items() if k not in likely}),
        st.fixed_dictionaries({}, optional=each),
        st.dictionaries(st.sampled_from([*each, "x"]) | _texts, json_values, max_size=3),
    )


_fuzz = settings(
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("row", WITH_BODY, ids=lambda row: row.name)
def test_no_body_of_json_makes_an_endpoint_fail(lite: World, row: Operation) -> None:
    """It succeeds, or is refused by a code of this endpoint's and changes nothing."""
    target = Target(lite)

    @_fuzz
    @given(bodies(row.body))
    def attack(body: dict[str, t.Any]) -> None:
        if lite.job(target.held["id"]).state != "locked":
            target.held = Target(lite).held
        before = target.state()
        response = target.send(row, json.dumps(body))
        assert response.status_code < 500
        if response.status_code >= 400:
            assert response.get_json()["code"] in row.codes
            assert target.state() == before

    attack()


@pytest.mark.parametrize("row", [r for r in OPERATIONS if r.query.fields], ids=lambda row: row.name)
def test_no_query_makes_an_endpoint_fail(lite: World, row: Operation) -> None:
    """Any text in any parameter."""
    target = Target(lite)
    names = st.sampled_from([*row.query.fields, "x"])
    pairs = st.lists(st.tuples(names, _texts | st.integers().map(str) | st.floats().map(str)), max_size=3)

    @_fuzz
    @given(pairs)
    def attack(query: list[tuple[str, str]]) -> None:
        text = urlencode(query, errors="surrogatepass")
        response = target.open(row.method, f"{target.path(row)}?{text}")
        assert response.status_code < 500
        assert response.status_code < 400 or response.get_json()["code"] in CODES

    attack()
