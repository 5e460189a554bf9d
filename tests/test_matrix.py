"""Who may do what: a table of every operation and every kind of client, each cell tried.

Each cell begins with the same jobs. All but two are the user's, in the queue of the worker.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import sqlite3
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from flask_login import current_user, login_user
from flask_wtf import CSRFProtect
from werkzeug.test import TestResponse

from accounts_support import GRANT, Site, basic
from flask_jobber.accounts import Credentials
from flask_jobber.api.operation import OPERATIONS
from flask_jobber.api.problems import CODES
from situations import ERROR, ago, put
from support import PREFIX, User, World

# A cell is a status or a word for one: a refusal has the code below, an answer perhaps what was
# said in it after a colon, see `said`.
#
# Of the jobs, `user`, `worker` and `expired` are those that these hold; `back` was held by the worker
# that is now locked; `produced` is the producer's and in the same queue; `-` is none. An enqueue has the
# unique_key of the job before the slash, and the on_conflict behind it.
TABLE = """
operation     job      stranger user     other   worker  another locked expired destroyed producer operator

claim         -        401      200:2    200:0   200:3   200:1   401    401     401       200:1    200:4
list_claims   -        401      200:1    200:0   200:1   200:0   401    401     401       200:0    200:0
exchange      -        401      200:2    200:0   200:3   200:1   401    401     401       200:1    200:4
exchange      user     401      200:200  200:404 200:409 200:404 401    401     401       200:404  200:409
exchange      worker   401      200:409  200:404 200:200 200:404 401    401     401       200:404  200:409
exchange      expired  401      200:409  200:404 200:409 200:404 401    401     401       200:404  200:409
exchange      back     401      200:409  200:404 200:409 200:404 401    401     401       200:404  200:409

show_attempt  user     401      200      404     lost    404     401    401     401       404      lost
show_attempt  worker   401      lost     404     200     404     401    401     401       404      lost
show_attempt  expired  401      lost     404     lost    404     401    401     401       404      lost
show_attempt  back     401      lost     404     lost    404     401    401     401       404      lost
show_attempt  waiting  401      404      404     404     404     401    401     401       404      404
show_attempt  done     401      settled  404     lost    404     401    401     401       404      lost
show_attempt  absent   401      404      404     404     404     401    401     401       404      404

extend        user     401      200      404     lost    404     401    401     401       404      lost
extend        worker   401      lost     404     200     404     401    401     401       404      lost
extend        expired  401      lost     404     lost    404     401    401     401       404      lost
extend        back     401      lost     404     lost    404     401    401     401       404      lost
extend        waiting  401      404      404     404     404     401    401     401       404      404
extend        absent   401      404      404     404     404     401    401     401       404      404

deliver       user     401      200      404     lost    404     401    401     401       404      lost
deliver       worker   401      lost     404     200     404     401    401     401       404      lost
deliver       expired  401      lost     404     lost    404     401    401     401       404      lost
deliver       back     401      lost     404     lost    404     401    401     401       404      lost
deliver       waiting  401      404      404     404     404     401    401     401       404      404
deliver       done     401      settled  404     lost    404     401    401     401       404      lost
deliver       absent   401      404      404     404     404     401    401     401       404      404

fail          user     401      200      404     lost    404     401    401     401       404      lost
fail          worker   401      lost     404     200     404     401    401     401       404      lost
fail          expired  401      lost     404     lost    404     401    401     401       404      lost
fail          back     401      lost     404     lost    404     401    401     401       404      lost
fail          waiting  401      404      404     404     404     401    401     401       404      404
fail          absent   401      404      404     404     404     401    401     401       404      404

release       user     401      204      404     lost    404     401    401     401       404      lost
release       worker   401      lost     404     204     404     401    401     401       404      lost
release       expired  401      lost     404     lost    404     401    401     401       404      lost
release       back     401      lost     404     lost    404     401    401     401       404      lost
release       waiting  401      404      404     404     404     401    401     401       404      404
release       absent   401      404      404     404     404     401    401     401       404      404

list_jobs     -        401      200:8    200:0   200:9   200:1   401    401     401       200:1    200:10
events        -        401      200      200     200     200     401    401     401       200      200
enqueue       -        401      403      403     403     403     401    401     401       201      201
enqueue       waiting/reschedule 401 403 403     403     403     401    401     401       dup      200
enqueue       waiting/skip 401  403      403     403     403     401    401     401       dup      200:0
enqueue       user/replace 401  403      403     403     403     401    401     401       dup      dup
enqueue       user/skip 401     403      403     403     403     401    401     401       dup      200:0
enqueue       produced/replace 401 403   403     403     403     401    401     401       403      200
enqueue       produced/reschedule 401 403 403    403     403     401    401     401       403      200
enqueue       produced/skip 401 403      403     403     403     401    401     401       200:0    200:0
show_job      waiting  401      200      404     200     404     401    401     401       404      200
show_job      done     401      200:seen 404     200     404     401    401     401       404      200:seen
show_job      produced 401      404      404     200     404     401    401     401       200      200
show_job      absent   401      404      404     404     404     401    401     401       404      404
show_history  waiting  401      200      404     200     404     401    401     401       404      200
show_history  user     401      200:seen 404     200     404     401    401     401       404      200:seen
show_history  worker   401      200      404     200:seen 404    401    401     401       404      200:seen
show_history  absent   401      404      404     404     404     401    401     401       404      404
list_answers  waiting  401      403      404     403     404     401    401     401       404      200
list_answers  absent   401      404      404     404     404     401    401     401       404      404
show_me       -        401      200      200     200     200     401    401     401       200      200

cancel        waiting  401      403      404     403     404     401    401     401       404      200
cancel        user     401      403      404     403     404     401    401     401       404      200
cancel        worker   401      403      404     403     404     401    401     401       404      200
cancel        produced 401      404      404     403     404     401    401     401       403      200
cancel        done     401      403      404     403     404     401    401     401       404      illegal
cancel        absent   401      404      404     404     404     401    401     401       404      404
retry         failed   401      403      404     403     404     401    401     401       404      200
retry         produced 401      404      404     403     404     401    401     401       403      illegal
retry         absent   401      404      404     404     404     401    401     401       404      404

show_batch    batch    401      200      404     200     404     401    401     401       404      200
show_batch    waiting  401      404      404     404     404     401    401     401       404      404
show_batch    absent   401      404      404     404     404     401    401     401       404      404
cancel_batch  batch    401      403      404     403     404     401    401     401       404      200
cancel_batch  waiting  401      404      404     404     404     401    401     401       404      404
cancel_batch  absent   401      404      404     404     404     401    401     401       404      404

get_attachment waiting 401     200      404     200     404     401    401     401       404      200
get_attachment done   401      200      404     404     404     401    401     401       404      200
get_attachment absent 401      404      404     404     404     401    401     401       404      404
put_attachment user   401      201      404     lost    404     401    401     401       404      lost
put_attachment worker 401      lost     404     201     404     401    401     401       404      lost
put_attachment expired 401     lost     404     lost    404     401    401     401       404      lost
put_attachment back   401      lost     404     lost    404     401    401     401       404      lost
put_attachment produced 401    404      404     403     404     401    401     401       403      201
put_attachment absent 401      404      404     404     404     401    401     401       404      404

openapi       -        200      200      200     200     200     200    200     200       200      200
script        -        200      200      200     200     200     200    200     200       200      200

token         -        401      401      401     200     200     401    200     401       401      401
revoke        own      401      401      401     200:dead 200:dead 401  200:dead 401      401      401
revoke        worker   401      401      401     200:dead 200   401     200     401       401      401
metadata      -        200      200      200     200     200     200    200     200       200      200
"""
REFUSALS = {
    "401": "login_required",
    "403": "forbidden",
    "404": "not_found",
    "lost": "lease_lost",
    "settled": "already_settled",
    "illegal": "illegal_transition",
    "dup": "duplicate",
}
HEADER, *LINES = [line.split() for line in TABLE.splitlines() if line]
IDENTITIES = HEADER[2:]
ROWS = {(line[0], line[1]): dict(zip(IDENTITIES, line[2:], strict=True)) for line in LINES}
#: Those who come with a cookie, and their logins.
PEOPLE = {"user": "ann", "other": "bob", "producer": "pat", "operator": "root"}
#: Those who come with a token, and the queues that hired them.
ROBOTS = {"worker": "a", "another": "b", "locked": "a", "expired": "a", "destroyed": "a"}
OUT = ("stranger", "locked", "expired", "destroyed")
RESULT = {"n": 1}
#: Of what is held, the lockers.
HELD = {
    "user": "user_ann",
    "worker": "account:worker",
    "expired": "account:expired",
    "back": "account:locked",
}
#: Each part of a path that is no number.
FILE = "x"
BODIES: dict[str, t.Any] = {
    "claim": {"limit": 10},
    "extend": {"progress": 0.5},
    "deliver": {"result": {"n": 2}},
    "fail": {"error": ERROR},
    "enqueue": {"type": "more", "queue": "a"},
}
OAUTH = {
    "token": ("POST", "/oauth/token"),
    "revoke": ("POST", "/oauth/revoke"),
    "metadata": ("GET", "/.well-known/oauth-authorization-server"),
}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "BREW"}
# Failed logins are counted.
_COUNTED = "jobber_failure"


class House:
    """A site with all ten, which is as it was before each request that matters."""

    def __init__(self, directory: pathlib.Path, *, protected: bool) -> None:
        self.path = directory / "test.db"
        self.world = World(f"sqlite:///{self.path}")
        _add_doors(self.world.app)
        if protected:
            CSRFProtect(self.world.app)
        self.world.jobber.registry.hooks["permission"] = _may
        self.site = Site(self.world)
        self.accounts: dict[str, Credentials] = {}
        self.tokens: dict[str, str] = {}
        for name, queue in ROBOTS.items():
            self.accounts[name] = self.site.create(name, queue)
            self.tokens[name] = self.site.token(self.accounts[name])
        self.clients = {name: self._client(name) for name in IDENTITIES}
        self.jobs = self._make_jobs()
        self._shut_out()
        self._first = sqlite3.connect(":memory:", check_same_thread=False)
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            database.backup(self._first)
        self.before = self.stored()

    def close(self) -> None:
        self._first.close()
        with self.world.app.app_context():
            self.world.db.engine.dispose()

    def _client(self, name: str) -> FlaskClient:
        client = self.world.app.test_client()
        if name in PEOPLE:
            assert client.get(f"/login/{PEOPLE[name]}").status_code == 200
        if name in ROBOTS:
            client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {self.tokens[name]}"
        return client

    def _make_jobs(self) -> dict[str, int]:
        jobber = self.world.jobber
        held = {**HELD, "done": "user_ann", "failed": "user_ann"}
        mine = {"user_id": "ann", "queue": "a"}
        theirs = {"produced": {"user_id": "pat"}, "elsewhere": {"user_id": "zoe", "queue": "b"}}
        with self.world.session():
            jobs = {
                name: int(jobber.enqueue(name, **{**mine, **theirs.get(name, {})}, unique_key=name).id)
                for name in ("waiting", *held, *theirs)
            }
            for name, locker in held.items():
                [claim] = jobber.claim(locker, types=[name])
                assert (claim.id, claim.attempt) == (jobs[name], 1)
            jobber.attach(jobs["waiting"], FILE, b"some")
            waits = {"user_id": "ann", "queue": "a", "wait_for": jobs["waiting"]}
            jobs["batch"] = int(jobber.enqueue("batch", **waits).id)
        path = f"{PREFIX}/jobs/{jobs['done']}/attachments/{FILE}?attempt=1"
        assert self.clients["user"].put(path, data=b"some").status_code == 201
        with self.world.session():
            jobber.deliver("user_ann", jobs["done"], 1, RESULT)
            jobber.fail("user_ann", jobs["failed"], 1, ERROR, permanent=True)
        return {**jobs, "absent": 999}

    def _shut_out(self) -> None:
        assert self.site.do("lock", "locked") == 1
        self.site.do("destroy", "destroyed")
        token = self.world.db.metadata.tables["jobber_token"]
        worker = self.world.db.metadata.tables["jobber_worker"]
        with self.world.session() as session:
            mine = sa.select(worker.c.id).where(worker.c.name == "expired").scalar_subquery()
            session.execute(sa.update(token).where(token.c.worker_id == mine).values(expires_at=ago(1)))
            for name in ("user", "worker", "expired"):  # a lease that no slow machine sees lapse
                put(self.world, self.jobs[name], locked_until=ago(-3600))

    def restore(self) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            self._first.backup(database)

    def stored(self) -> dict[str, list[t.Any]]:
        """Return everything in the database."""
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            names = [
                name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            names = [name for name in names if name != _COUNTED and not name.startswith("sqlite_")]
            return {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in names}

    def ask(self, operation: str, job: str, identity: str) -> TestResponse:
        """Send the request of a cell."""
        if operation in OAUTH:
            return self._ask_oauth(operation, job, identity)
        row = next(row for row in OPERATIONS if row.name == operation)
        body = self._exchange(job) if operation == "exchange" else BODIES.get(operation, {})
        if operation == "enqueue" and job != "-":
            body = body | dict(zip(("unique_key", "on_conflict"), job.split("/"), strict=True))
        return self.clients[identity].open(
            PREFIX + self.path_of(row.rule, job),
            method=row.method,
            buffered=True,
            # A holder says which hand-out its file is of, a producer has none.
            query_string={"attempt": 1} if row.stream and job in HELD else {},
            **({"data": b"some"} if row.stream else {"json": body} if row.takes_body else {}),
        )

    def path_of(self, rule: str, job: str) -> str:
        parts = {"job_id": str(self.jobs.get(job, 0)), "attempt": "1"}
        return re.sub(r"<(\w+)>", lambda part: parts.get(part[1], FILE), rule)

    def _exchange(self, job: str) -> dict[str, t.Any]:
        if job == "-":
            return {"claim": BODIES["claim"]}
        return {"results": [{"id": self.jobs[job], "attempt": 1, **BODIES["deliver"]}]}

    def _ask_oauth(self, operation: str, job: str, identity: str) -> TestResponse:
        """Send a form with the client's credentials, when it has any; else as it comes."""
        method, path = OAUTH[operation]
        headers = {}
        if identity in self.accounts and method == "POST":
            account = self.accounts[identity]
            headers = basic(account.client_id, account.client_secret)
        form = {"token": self._revoked(job, identity)} if operation == "revoke" else GRANT
        sent = {"data": form} if method == "POST" else {}
        return self.clients[identity].open(path, method=method, headers=headers, **sent)

    def _revoked(self, job: str, identity: str) -> str:
        return self.tokens.get(identity if job == "own" else job, "none")


def _may(action: str, job: t.Any) -> bool:
    if current_user.id == "pat" and action == "enqueue":
        job.user_id = "pat"
        return True
    return bool(current_user.id == "root")


def _add_doors(app: Flask) -> None:
    """Let people in by cookie, which is what CSRFProtect looks after."""
    app.login_manager.user_loader(User)  # type: ignore[attr-defined]

    @app.get("/login/<name>")
    def login(name: str) -> str:
        login_user(User(name))
        return ""

    @app.post("/form")
    def form() -> str:
        return ""


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "CSRFProtect"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[House]:
    house = House(tmp_path_factory.mktemp("matrix"), protected=request.param)
    # The app's own form tells whether it is protected.
    assert house.clients["user"].post("/form").status_code == (400 if request.param else 200)
    yield house
    house.close()


def cell(house: House, operation: str, job: str, response: TestResponse) -> str:
    """Return an answer as the table writes it."""
    if response.status_code < 400:
        more = said(house, operation, job, response)
        return f"{response.status_code}:{more}" if more else str(response.status_code)
    body = response.get_json()
    if operation in OAUTH:
        return f"{response.status_code}" if body["error"] == "invalid_client" else str(body)
    assert body["status"] == response.status_code == CODES[body["code"]].status
    return next((name for name, code in REFUSALS.items() if code == body["code"]), body["code"])


def said(house: House, operation: str, job: str, response: TestResponse) -> str:
    """Return how many jobs are in an answer, or the status in it, or whether it tells a secret."""
    body = response.get_json(silent=True) or {}
    if operation == "exchange" and job != "-":
        [outcome] = body["outcomes"]
        return str(outcome["status"])
    if operation in ("claim", "exchange", "list_claims", "list_jobs"):
        return str(len(body["jobs"]))
    if operation == "enqueue":
        return "0" if job.endswith("/skip") and body["type"] != "more" else ""
    if operation == "show_job":
        return "seen" if body["result"] is not None else ""
    if operation == "show_history":
        return "seen" if any(row["locker"] for row in body["history"]) else ""
    if operation == "revoke":
        return "dead" if house.stored()["jobber_token"] != house.before["jobber_token"] else ""
    return ""


def changes(operation: str, expected: str) -> bool:
    """Whether a cell is one that changes something."""
    if operation in OAUTH:
        return expected == "200:dead" or (operation == "token" and expected == "200")
    row = next(row for row in OPERATIONS if row.name == operation)
    status, _, more = expected.partition(":")
    done = status.isdigit() and int(status) < 400 and more not in ("0", "404", "409")
    return done and row.method != "GET"


@pytest.mark.parametrize(("operation", "job"), ROWS, ids=[" ".join(row) for row in ROWS])
def test_each_may_do_what_the_table_says_and_nothing_else(house: House, operation: str, job: str) -> None:
    """What is refused leaves every row of every table as it was; what is not, does not."""
    told, changed = {}, {}
    for identity in IDENTITIES:
        told[identity] = cell(house, operation, job, house.ask(operation, job, identity))
        changed[identity] = house.stored() != house.before
        if changed[identity]:
            house.restore()
    expected = ROWS[operation, job]
    assert told == expected
    assert changed == {name: changes(operation, cell) for name, cell in expected.items()}


def test_no_operation_is_missing_from_the_table(house: House) -> None:
    """Nor is a path of the accounts'."""
    assert {name for name, _ in ROWS} == {row.name for row in OPERATIONS} | OAUTH.keys()
    rules = house.world.app.url_map.iter_rules()
    oauth = {rule.rule for rule in rules if rule.endpoint.startswith("jobber_workers.")}
    paths = {path for _, path in OAUTH.values()}
    assert {path for path in oauth if path not in paths} == {"/.well-known/oauth-authorization-server/oauth"}
    assert paths <= oauth


def test_what_is_out_of_scope_looks_like_what_is_not_there(house: House) -> None:
    """To the letter, whoever asks for whatever."""
    bodies = {
        house.ask(operation, job, identity).data
        for (operation, job), row in ROWS.items()
        for identity, expected in row.items()
        if expected == "404"
    }
    assert len(bodies) == 1
    assert house.stored() == house.before


@pytest.mark.parametrize("identity", IDENTITIES)
def test_other_verbs_are_no_way_in(house: House, identity: str) -> None:
    """401 for who is out, whatever the path; 405 or 404 for who is in; and nothing changes."""
    rules: dict[str, set[str]] = {"/nope": set()}
    for row in OPERATIONS:
        rules.setdefault(row.rule, set()).update(
            {row.method, "HEAD"} if row.method == "GET" else {row.method}
        )
    asked = [(PREFIX + house.path_of(rule, "user"), taken) for rule, taken in rules.items()]
    wrong = []
    for path, taken in asked:
        for method in METHODS - taken:
            status = house.clients[identity].open(path, method=method, json={}).status_code
            if status != (401 if identity in OUT else 405 if taken else 404):
                wrong.append((method, path, status))
    for method in METHODS - {"POST"}:
        for name in ("token", "revoke"):
            response = house.clients[identity].open(OAUTH[name][1], method=method)
            if response.status_code != 405:
                wrong.append((method, name, response.status_code))
    assert not wrong
    assert house.stored() == house.before


@pytest.mark.parametrize("identity", ROBOTS)
def test_a_token_in_the_address_is_nobodys(house: House, identity: str) -> None:
    """It would stand in logs."""
    token = house.tokens[identity]
    client = house.world.app.test_client()
    for row in OPERATIONS:
        if not row.public:
            path = PREFIX + house.path_of(row.rule, "worker")
            for name in ("access_token", "token"):
                response = client.open(f"{path}?{name}={token}", method=row.method, json={})
                assert response.status_code == 401, row.name
    assert house.stored() == house.before


@pytest.mark.parametrize("identity", IDENTITIES)
def test_another_sites_page_can_use_no_cookie(house: House, identity: str) -> None:
    """A person's browser sends it along; a worker's token no browser sends."""
    for row in OPERATIONS:
        if row.method == "GET":
            continue
        path = PREFIX + house.path_of(row.rule, "worker")
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        response = house.clients[identity].open(path, method=row.method, json={"x": 1}, headers=headers)
        code = response.get_json(silent=True)["code"] if response.status_code != 204 else ""
        if identity in OUT:
            assert code == "login_required"
        else:
            assert (code == "cross_site") is (identity in PEOPLE), row.name
    house.restore()


def test_the_legend_is_the_products() -> None:
    """Each word for a refusal is one of its codes, and each cell can be read."""
    assert set(REFUSALS.values()) <= CODES.keys()
    for row in ROWS.values():
        for text in row.values():
            assert text in REFUSALS or re.fullmatch(r"20[014](:(\d+|seen|dead))?", text), text
