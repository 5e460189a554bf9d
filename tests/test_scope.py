"""The hooks of an app: who a client is, what it may see and do; and that they fail closed."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import functools
import itertools
import random
import typing as t

import pytest
import sqlalchemy as sa
from flask import abort, redirect
from flask_login import current_user
from sqlalchemy.orm import Mapped, aliased, mapped_column
from werkzeug.test import TestResponse

from conftest import MakeWorld
from flask_jobber import Forbidden, NotFound, ResultRejected
from support import PREFIX, Client, User, World

SECRET = "the text of the exception"
USERS = ("ann", "bob", "eve", None)
# Every user with every text, each once.
ROWS = [
    {"user_id": user, "written": written, "priority": place % 3}
    for place, (user, written) in enumerate(itertools.product(USERS, ("x", "y%", None)))
]


class House:
    """A world whose scope hook says what a test wants it to say, with a table of another kind beside."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.says: t.Callable[[], t.Any] = lambda: True
        world.jobber.scope(lambda: self.says())
        self.Job: t.Any = world.Job
        self.Member: t.Any = self._make_member()
        with world.app.app_context():
            world.db.create_all()
        with world.session() as session:
            session.add_all([self.Member(name="ann", team="x"), self.Member(name="bob", team="y%")])
            made = world.jobber.enqueue_many([{"type": "work", **row} for row in ROWS])
            self.rows = {job.id: row for job, row in zip(made, ROWS, strict=True)}
        world.app.testing = False  # what breaks is a 500, as it is for a client
        self.client = world.client("ann")

    def _make_member(self) -> type[t.Any]:
        class Member(self.world.db.Model):  # type: ignore[name-defined, misc]
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(20))
            team: Mapped[str] = mapped_column(sa.String(20))

        return Member

    def listed(self) -> list[int] | int:
        """Return what a list shows, or its status when it fails."""
        response = self.client.get("/jobs?limit=100")
        return _ids(response) if response.status_code == 200 else response.status_code

    def claim_all(self) -> list[int] | int:
        """Give back what is held, claim everything, and return its ids; the status when it fails."""
        says, self.says = self.says, lambda: True
        releases = [
            {"id": job["id"], "attempt": job["attempt"]}
            for job in self.client.get("/claims").get_json()["jobs"]
        ]
        if releases:
            self.client.post("/exchange", {"releases": releases})
        self.says = says
        response = self.client.post("/claims", {"limit": 100})
        return sorted(_ids(response)) if response.status_code == 200 else response.status_code

    def wanted(self, holds: t.Callable[..., bool], *user: str | None) -> list[int]:
        """Return the ids of the rows for which something holds."""
        return [job_id for job_id, row in self.rows.items() if holds(row, *user)]


def _ids(response: TestResponse) -> list[int]:
    return [job["id"] for job in response.get_json()["jobs"]]


@pytest.fixture
def house(make_world: MakeWorld, db_url: str) -> House:
    return House(make_world(db_url, scoped=False))


@pytest.fixture
def small_house(make_world: MakeWorld, sqlite_url: str) -> House:
    """A house on SQLite, for what has nothing to do with the engine."""
    return House(make_world(sqlite_url, scoped=False))


# -- scopes that say something -------------------------------------------------------------


class Form(t.NamedTuple):
    """A way to say a scope for a user, and what it means."""

    make: t.Callable[[House, t.Any], t.Any]
    holds: t.Callable[[dict[str, t.Any], t.Any], bool]


def _mine(row: dict[str, t.Any], user: str | None) -> bool:
    return bool(row["user_id"] == user)


def _mine_or_x(row: dict[str, t.Any], user: str | None) -> bool:
    return _mine(row, user) or row["written"] == "x"


def _mine_and_x(row: dict[str, t.Any], user: str | None) -> bool:
    return _mine(row, user) and row["written"] == "x"


def _up_to(user: str | None) -> list[str | None]:
    """Return lists of different lengths."""
    return list(USERS[: USERS.index(user) + 1])


def _named(name: str) -> Form:
    """Return a form with a value of the app's own naming: ours must not clash with it."""
    return Form(
        lambda h, user: sa.func.coalesce(h.Job.user_id, "") == sa.bindparam(name, user or ""),
        lambda row, user: (row["user_id"] or "") == (user or ""),
    )


# What an app might call its own values; ours must not clash with them.
NAMES = (
    "locker",
    "lease",
    "now",
    "window",
    "type_0",
    "name_0",
    "scope_0",
    "level_0_0",
    "state",
    "user_id",
    "param_1",
)
FORMS: dict[str, Form] = {
    "true": Form(lambda h, user: True, lambda row, user: True),
    "false": Form(lambda h, user: False, lambda row, user: False),
    "equality": Form(lambda h, user: h.Job.user_id == user, _mine),
    "column of the table": Form(lambda h, user: h.Job.__table__.c.user_id == user, _mine),
    "the other way round": Form(
        lambda h, user: sa.literal(user or "") == h.Job.user_id, lambda r, u: r["user_id"] == (u or "")
    ),
    "labelled": Form(lambda h, user: (h.Job.user_id == user).label("mine"), _mine),
    "mapping": Form(lambda h, user: {"user_id": user}, _mine),
    "mapping of two": Form(lambda h, user: {"user_id": user, "written": "x"}, _mine_and_x),
    "mapping to a list": Form(
        lambda h, user: {"user_id": [user, "bob"]}, lambda row, user: row["user_id"] in (user, "bob")
    ),
    "mapping to a list with None": Form(
        lambda h, user: {"user_id": [*_up_to(user), None]},
        lambda row, user: row["user_id"] in [*_up_to(user), None],
    ),
    "mapping to a set": Form(
        lambda h, user: {"user_id": {"bob", "eve"}}, lambda row, user: row["user_id"] in ("bob", "eve")
    ),
    "mapping to no value": Form(lambda h, user: {"user_id": []}, lambda row, user: False),
    "mapping to thousands": Form(
        lambda h, user: {"user_id": [user, None, *map(str, range(2000))]},
        lambda row, user: row["user_id"] in (user, None),
    ),
    "mapping of lists": Form(
        lambda h, user: {"user_id": [user, None], "written": ["x", None]},
        lambda row, user: row["user_id"] in (user, None) and row["written"] in ("x", None),
    ),
    "list": Form(lambda h, user: [h.Job.user_id == user, h.Job.written == "x"], _mine_and_x),
    "list of one": Form(lambda h, user: [h.Job.user_id == user], _mine),
    "tuple": Form(lambda h, user: (h.Job.user_id == user, h.Job.written == "x"), _mine_and_x),
    "list of forms": Form(
        lambda h, user: [True, {"user_id": user}, [h.Job.written == "x", {"queue": "default"}]], _mine_and_x
    ),
    "list with False": Form(lambda h, user: [h.Job.user_id == user, False], lambda row, user: False),
    "or": Form(lambda h, user: (h.Job.user_id == user) | (h.Job.written == "x"), _mine_or_x),
    "or of the same": Form(
        lambda h, user: sa.or_(h.Job.user_id == user, h.Job.user_id.in_(_up_to(user)[-1:])), _mine
    ),
    "or of many": Form(
        lambda h, user: sa.or_(*(h.Job.user_id == u for u in _up_to(user)), h.Job.written.is_(None)),
        lambda row, user: row["user_id"] in _up_to(user) or row["written"] is None,
    ),
    "or with an and": Form(
        lambda h, user: sa.or_(sa.and_(h.Job.user_id == user, h.Job.written == "x"), h.Job.user_id.is_(None)),
        lambda row, user: _mine_and_x(row, user) or row["user_id"] is None,
    ),
    "list of ors": Form(
        lambda h, user: [
            sa.or_(h.Job.user_id == user, h.Job.user_id == "bob"),
            sa.or_(h.Job.written == "x", h.Job.written.is_(None)),
            *(sa.or_(h.Job.priority == n, h.Job.priority != n) for n in range(4)),
        ],
        lambda row, user: row["user_id"] in (user, "bob") and row["written"] in ("x", None),
    ),
    "or with true": Form(lambda h, user: sa.or_(h.Job.user_id == user, sa.true()), lambda row, user: True),
    "or with false": Form(lambda h, user: sa.or_(h.Job.user_id == user, sa.false()), _mine),
    "not": Form(
        lambda h, user: sa.not_(sa.func.coalesce(h.Job.user_id, "") == (user or "")),
        lambda row, user: (row["user_id"] or "") != (user or ""),
    ),
    "not an or": Form(
        lambda h, user: ~sa.or_(h.Job.user_id.is_(None), h.Job.user_id == (user or "ann")),
        lambda row, user: row["user_id"] not in (None, user or "ann"),
    ),
    "in": Form(
        lambda h, user: h.Job.user_id.in_([u for u in _up_to(user) if u]),
        lambda row, user: row["user_id"] is not None and row["user_id"] in _up_to(user),
    ),
    "not in": Form(
        lambda h, user: h.Job.user_id.not_in([u for u in _up_to(user) if u]),
        lambda row, user: row["user_id"] is not None and row["user_id"] not in _up_to(user),
    ),
    "in nothing": Form(lambda h, user: h.Job.user_id.in_([]), lambda row, user: False),
    "tuples": Form(
        lambda h, user: sa.tuple_(h.Job.user_id, h.Job.written).in_([(user or "", "x"), ("bob", "y%")]),
        lambda row, user: (row["user_id"], row["written"]) in [(user or "", "x"), ("bob", "y%")],
    ),
    "like": Form(
        lambda h, user: h.Job.user_id.like(f"%{user}") & h.Job.written.contains("%", autoescape=True),
        lambda row, user: row["user_id"] == user is not None and row["written"] == "y%",
    ),
    "numbers": Form(
        lambda h, user: h.Job.priority >= USERS.index(user),
        lambda row, user: row["priority"] >= USERS.index(user),
    ),
    "case": Form(lambda h, user: sa.case((h.Job.user_id == user, sa.true()), else_=sa.false()), _mine),
    "coalesce": _named("who"),
    "exists": Form(
        lambda h, user: sa.exists().where(h.Member.name == h.Job.user_id, h.Member.team == h.Job.written),
        lambda row, user: (row["user_id"], row["written"]) in [("ann", "x"), ("bob", "y%")],
    ),
    "exists for a user": Form(
        lambda h, user: sa.exists().where(h.Member.name == (user or ""), h.Member.team == h.Job.written),
        lambda row, user: row["written"] == {"ann": "x", "bob": "y%"}.get(user or "", "?"),
    ),
    "subquery": Form(
        lambda h, user: h.Job.written.in_(sa.select(h.Member.team).where(h.Member.name == (user or ""))),
        lambda row, user: row["written"] == {"ann": "x", "bob": "y%"}.get(user or "", "?"),
    ),
    "limited subquery": Form(
        lambda h, user: (
            h.Job.user_id == sa.select(h.Member.name).order_by(h.Member.id).limit(1).scalar_subquery()
        ),
        lambda row, user: row["user_id"] == "ann",
    ),
    "subquery of jobs": Form(
        lambda h, user: h.Job.id.in_(_jobs_of(h, user)),
        _mine,
    ),
    "value with a type": Form(
        lambda h, user: h.Job.user_id == sa.literal(user, sa.String(20)),
        lambda r, u: u is not None and _mine(r, u),
    ),
    "value in the text": Form(
        lambda h, user: h.Job.user_id == sa.bindparam("u", user or "", literal_execute=True),
        lambda row, user: row["user_id"] == (user or ""),
    ),
    "value on demand": Form(
        lambda h, user: h.Job.user_id == sa.bindparam("u", callable_=lambda: user or "", type_=sa.String()),
        lambda row, user: row["user_id"] == (user or ""),
    ),
    "text": Form(
        lambda h, user: sa.and_(sa.text("user_id = :u").bindparams(u=user or ""), h.Job.written == "x"),
        lambda row, user: row["user_id"] == (user or "") and row["written"] == "x",
    ),
    "text with the names of a claim's own statements": Form(
        lambda h, user: sa.literal_column(
            "id > 0 AND priority >= 0 AND turn >= 0 AND run_at > '1970-01-02' AND type <> '' AND state <> ''"
            f" AND queue <> '' AND attempts >= 0 AND user_id = '{user}'",
            sa.Boolean(),
        ),
        lambda row, user: row["user_id"] == str(user),
    ),
    "column in words": Form(
        lambda h, user: sa.literal_column(f"user_id = '{user}'", sa.Boolean()),
        lambda row, user: row["user_id"] == str(user),
    ),
    **{f"value named {name}": _named(name) for name in NAMES},
}


def _jobs_of(house: House, user: str | None) -> sa.Select[t.Any]:
    other = aliased(house.Job)
    return sa.select(other.id).where(other.user_id == user)


def test_a_scope_means_the_same_to_a_claim_and_to_a_list(house: House) -> None:
    """Each form, said for one user after another: nobody gets what was meant for somebody before."""
    wrong = []
    for name, form in FORMS.items():
        for user in ("ann", "eve"):
            house.says = functools.partial(form.make, house, user)
            wanted = house.wanted(form.holds, user)
            for what, found in (("list", house.listed()), ("claim", house.claim_all())):
                if found != wanted:
                    wrong.append(f"{name} for {user}: {what} {found}, not {wanted}")
    assert not wrong, "\n".join(wrong)


def test_forms_that_are_said_in_turn_do_not_mix(small_house: House) -> None:
    """Users take turns with scopes of different forms and lengths; each claim gets only its own."""
    house, rng = small_house, random.Random(7)
    names = [name for name in FORMS if name != "mapping to thousands"]
    for _ in range(100):
        name, user = rng.choice(names), rng.choice(USERS)
        house.says = functools.partial(FORMS[name].make, house, user)
        wanted = house.wanted(FORMS[name].holds, user)
        assert house.claim_all() == wanted, (name, user)


def test_a_scope_that_is_a_coroutine_is_awaited(make_world: MakeWorld, sqlite_url: str) -> None:
    """``async def`` hooks stand wherever plain ones may."""
    world = make_world(sqlite_url, scoped=False)

    @world.jobber.scope
    async def scope() -> t.Any:
        await asyncio.sleep(0)
        return world.Job.user_id == current_user.id

    @world.jobber.locker_name
    async def locker_name() -> str:
        await asyncio.sleep(0)
        return f"async_{current_user.id}"

    @world.jobber.permission
    async def permission(action: str, job: t.Any) -> bool:
        await asyncio.sleep(0)
        return action == "cancel"

    mine, other = world.enqueue(user_id="ann"), world.enqueue(user_id="bob")
    client = world.client("ann")
    assert [job["id"] for job in client.claim(limit=10)] == [mine]
    assert world.job(mine).locked_by == "async_ann"
    assert client.post(f"/jobs/{other}/cancel").status_code == 404
    assert client.post(f"/jobs/{mine}/cancel").status_code == 200
    assert client.post(f"/jobs/{mine}/retry").status_code == 403


def test_scopes_of_many_alternatives_are_answered(small_house: House) -> None:
    """Forty choices of two are a trillion combinations: they must not be written out."""
    job = small_house.Job
    small_house.says = lambda: [sa.or_(job.priority == n, job.user_id == "ann") for n in range(100, 140)]
    wanted = small_house.wanted(lambda row: row["user_id"] == "ann")
    assert small_house.claim_all() == wanted


def test_a_scope_is_asked_once_for_each_request(small_house: House) -> None:
    """Whatever a request does, it sees with one pair of eyes."""
    asked: list[int] = []
    small_house.says = lambda: not asked.append(1)  # type: ignore[func-returns-value]
    [job] = small_house.client.claim()
    assert len(asked) == 1
    key = {"id": job["id"], "attempt": job["attempt"]}
    body = {"extensions": [key, key], "releases": [key], "claim": {"limit": 3}}
    assert small_house.client.post("/exchange", body).status_code == 200
    assert len(asked) == 2


# -- order and branches --------------------------------------------------------------------


@dataclasses.dataclass
class Pool:
    """Jobs in each state that a claim may take, of different users, types, priorities and ages."""

    world: World
    users: tuple[str, ...] = ("ann", "bob", "eve")
    types: tuple[str, ...] = ("a", "b", "c")

    def fill(self) -> None:
        rng = random.Random(3)
        now = dt.datetime.now(dt.UTC)
        with self.world.session():
            self.world.jobber.enqueue_many(
                {
                    "type": rng.choice(self.types),
                    "user_id": rng.choice([*self.users, None]),
                    "priority": rng.randrange(-1, 2),
                    "run_at": now + dt.timedelta(seconds=rng.choice([-900, -600, -300, 60, 120, 9000])),
                }
                for _ in range(60)
            )
        self.world.client("root").claim(limit=12, lease_seconds=30)
        self.world.pass_time(200)

    def order(self, holds: t.Callable[[t.Any], bool]) -> list[int]:
        """Return the ids of what a claim may take, best first."""
        with self.world.session() as session:
            jobs = session.scalars(sa.select(self.world.Job)).all()
            now = dt.datetime.now(dt.UTC)
            due = [job for job in jobs if holds(job) and (job.state != "scheduled" or job.run_at <= now)]
            return [job.id for job in sorted(due, key=lambda job: (-job.priority, job.run_at, job.id))]


@pytest.mark.parametrize("types", [None, ["a"], ["b", "a"], ["c", "nothing"]], ids=str)
def test_the_best_job_is_first_across_users_types_and_states(world: World, types: list[str] | None) -> None:
    """Queued, due and lapsed jobs, mine and nobody's, in one order: priority, age, number."""
    pool = Pool(world)
    pool.fill()
    wanted = pool.order(lambda job: job.user_id in ("ann", None) and job.type in (types or pool.types))
    assert len(wanted) > 4
    ask = {} if types is None else {"types": types}
    got: list[int] = []
    for limit in itertools.chain((1, 2, 5), itertools.repeat(7)):
        jobs = world.client("ann").claim(limit=limit, **ask)
        got += [job["id"] for job in jobs]
        if not jobs:
            break
    assert got == wanted


def test_arms_that_overlap_hand_out_nothing_twice(make_world: MakeWorld, db_url: str) -> None:
    """A job that fits several alternatives is one job."""
    house = House(make_world(db_url, scoped=False))
    job = house.Job
    house.says = lambda: sa.or_(
        job.user_id == "ann",
        job.user_id == "ann",
        job.user_id.in_(["ann", "bob"]),
        job.written == "x",
        job.priority >= 0,
    )
    jobs = house.client.claim(limit=100)
    assert len(jobs) == len({job["id"] for job in jobs}) == len(ROWS)
    assert [job["attempt"] for job in jobs] == [1] * len(ROWS)


def test_columns_that_lead_the_claim_find_the_right_rows(make_world: MakeWorld, db_url: str) -> None:
    """``__claim_by__`` changes how jobs are found, never which."""
    house = House(make_world(db_url, scoped=False))
    assert house.Job.__claim_by__ == ("user_id",)
    job = house.Job
    scopes: list[tuple[t.Any, t.Callable[[dict[str, t.Any]], bool]]] = [
        (job.user_id == job.written, lambda row: False),
        (job.user_id != "ann", lambda row: row["user_id"] in ("bob", "eve")),
        (job.user_id > "ann", lambda row: row["user_id"] in ("bob", "eve")),
        (sa.or_(job.user_id == "ann", job.user_id.is_(None)), lambda row: row["user_id"] in ("ann", None)),
        (sa.and_(job.user_id == "ann", job.user_id == "bob"), lambda row: False),
        (sa.and_(job.user_id == "ann", job.user_id.is_(None)), lambda row: False),
        (job.user_id.is_not(None), lambda row: row["user_id"] is not None),
        (job.user_id.is_distinct_from("ann"), lambda row: row["user_id"] != "ann"),
        (sa.literal("ann") == job.user_id, lambda row: row["user_id"] == "ann"),
    ]
    for scope, holds in scopes:
        house.says = functools.partial(_said, scope)
        assert house.claim_all() == house.wanted(holds), str(scope)


# -- scopes that fail ----------------------------------------------------------------------


def _raise(error: BaseException) -> t.NoReturn:
    raise error


async def _coroutine() -> bool:
    return True


def _of_nothing(join: t.Callable[[], t.Any]) -> t.Any:
    """Join what a list of an app's own holds, which is empty this time."""
    return join(*[])


BAD_SCOPES: dict[str, t.Callable[[House], t.Any]] = {
    "None": lambda h: None,
    "empty list": lambda h: [],
    "empty tuple": lambda h: (),
    "empty mapping": lambda h: {},
    "empty text": lambda h: "",
    "text": lambda h: "user_id = 'ann'",
    "0": lambda h: 0,
    "1": lambda h: 1,
    "number": lambda h: 1.5,
    "object": lambda h: object(),
    "type": lambda h: bool,
    "function": lambda h: _raise,
    "set": lambda h: {True},
    "generator": lambda h: (part for part in [True]),
    "class of jobs": lambda h: h.Job,
    "table": lambda h: h.Job.__table__,
    "select": lambda h: sa.select(h.Job),
    "SQL": lambda h: sa.text("1 = 1"),
    "column": lambda h: h.Job.user_id,
    "column of numbers": lambda h: h.Job.id,
    "column of the table": lambda h: h.Job.__table__.c.id,
    "literal number": lambda h: sa.literal(1),
    "literal text": lambda h: sa.literal("x"),
    "sum": lambda h: h.Job.id + 1,
    "count of a subquery": lambda h: sa.select(sa.func.count(h.Member.id)).scalar_subquery(),
    "another table": lambda h: h.Member.name == "ann",
    "another table too": lambda h: h.Member.name == h.Job.user_id,
    "another table in an or": lambda h: sa.or_(h.Job.user_id == "ann", h.Member.name == "ann"),
    "another name of the table": lambda h: aliased(h.Job).user_id == "ann",
    "or_ of nothing": lambda h: _of_nothing(sa.or_),
    "and_ of nothing": lambda h: _of_nothing(sa.and_),
    "an or_ of nothing beside a condition": lambda h: sa.and_(h.Job.user_id == "ann", _of_nothing(sa.or_)),
    "not an or_ of nothing": lambda h: sa.not_(_of_nothing(sa.or_)),
    "a list with an or_ of nothing": lambda h: [h.Job.user_id == "ann", _of_nothing(sa.or_)],
    "aggregate": lambda h: sa.func.count(h.Job.id) > 0,
    "unknown column": lambda h: {"nope": 1},
    "one unknown column": lambda h: {"user_id": "ann", "nope": 1},
    "relationship or method": lambda h: {"metadata": 1},
    "number for a column": lambda h: {1: "ann"},
    "column for a column": lambda h: {h.Job.user_id: "ann"},
    "None for a column": lambda h: {None: "ann"},
    "mapping in a mapping": lambda h: {"user_id": {"name": "ann"}},
    "column of another table": lambda h: {"user_id": h.Member.name},
    "list with None": lambda h: [h.Job.user_id == "ann", None],
    "list with nothing": lambda h: [h.Job.user_id == "ann", []],
    "list with text": lambda h: [h.Job.user_id == "ann", ""],
    "list with a number": lambda h: [h.Job.user_id == "ann", 1],
    "list with another table": lambda h: [h.Job.user_id == "ann", h.Member.name == "ann"],
    "list with a column": lambda h: [h.Job.user_id == "ann", h.Job.id],
    "coroutine": lambda h: _coroutine,
    "raises": lambda h: _raise(RuntimeError(SECRET)),
    "raises a key": lambda h: _raise(KeyError(SECRET)),
    "aborts": lambda h: abort(404, SECRET),
    "redirects": lambda h: abort(redirect(f"/{SECRET}")),
    "raises our own": lambda h: _raise(Forbidden(SECRET)),
    "raises not found": lambda h: _raise(NotFound(SECRET)),
    "rejects": lambda h: _raise(ResultRejected(SECRET)),
    "asks the database for nonsense": lambda h: h.world.db.session.execute(
        sa.text(f"SELECT '{SECRET}' FROM nope")
    ),
}


def failed_closed(response: TestResponse) -> bool:
    """Whether an answer is a 500 that tells nothing."""
    body = response.get_json()
    return (
        (response.status_code, response.mimetype) == (500, "application/problem+json")
        and body.keys() == {"type", "title", "status", "detail", "code", "retryable"}
        and body["code"] == "internal"
        and "text of" not in response.text
        and "hook" not in response.text
        and "Location" not in response.headers
    )


@pytest.mark.filterwarnings("ignore:Invoking")
def test_a_scope_that_says_nothing_clear_hands_out_nothing(
    small_house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is asked for: 500, with the reason in the log alone."""
    house, wrong = small_house, []
    [held] = house.client.claim()
    key = {"id": held["id"], "attempt": held["attempt"]}
    requests: list[tuple[str, str, t.Any]] = [
        ("POST", "/claims", {"types": ["work"], "limit": 100}),
        ("GET", "/claims", None),
        ("GET", "/jobs", None),
        ("GET", f"/jobs/{held['id']}", None),
        ("GET", f"/jobs/{held['id']}/history", None),
        ("GET", held["href"], None),
        ("PATCH", held["href"], {"note": "x"}),
        ("PUT", f"{held['href']}/result", {"result": 1}),
        ("PUT", f"{held['href']}/failure", {"error": {"type": "E", "message": "m"}}),
        ("DELETE", held["href"], None),
        ("POST", f"/jobs/{held['id']}/cancel", {}),
        ("POST", "/exchange", {"claim": {}}),
        ("POST", "/exchange", {"results": [key], "claim": {"limit": 5}}),
    ]
    before = house.world.history(held["id"])
    for name, bad in BAD_SCOPES.items():
        house.says = functools.partial(bad, house)
        for method, path, body in requests:
            caplog.clear()
            if not failed_closed(house.client.open(method, path, body)):
                wrong.append(f"{name}: {method} {path} does not fail closed")
            if not [record for record in caplog.records if record.levelname == "ERROR"]:
                wrong.append(f"{name}: {method} {path} is not logged")
    assert not wrong, "\n".join(wrong)
    assert house.world.history(held["id"]) == before
    with house.world.session() as session:
        states = session.scalars(sa.select(house.Job.state)).all()
    assert sorted(states) == sorted(["locked"] + ["queued"] * (len(ROWS) - 1))


@pytest.mark.filterwarnings("ignore:Invoking")
def test_a_scope_fails_closed_on_every_engine(house: House) -> None:
    """No engine is to be relied on to find that a scope is no condition."""
    wrong = []
    for name, bad in BAD_SCOPES.items():
        house.says = functools.partial(bad, house)
        for method, path in (("POST", "/claims"), ("GET", "/jobs")):
            if not failed_closed(response := house.client.open(method, path)):
                wrong.append(f"{name}: {method} {path} {response.status_code} {response.text:.80}")
        if house.world.history(next(iter(house.rows)))[1:]:
            wrong.append(f"{name} handed out a job")
            break
    assert not wrong, "\n".join(wrong)


def test_a_scope_that_breaks_once_breaks_one_request(small_house: House) -> None:
    """Nothing of a failure stays behind."""
    small_house.says = lambda: _raise(RuntimeError(SECRET))
    assert failed_closed(small_house.client.post("/claims"))
    small_house.says = lambda: {"user_id": "ann"}
    assert len(small_house.client.claim(limit=100)) == 3


def test_what_a_scope_hook_did_to_the_session_is_undone_when_it_fails(small_house: House) -> None:
    """A hook is asked; it is not the place to write."""
    house = small_house

    def scope() -> t.NoReturn:
        house.world.db.session.add(house.Member(name="eve", team="z"))
        house.world.db.session.flush()
        raise RuntimeError(SECRET)

    house.says = scope
    assert failed_closed(house.client.post("/claims"))
    with house.world.session() as session:
        assert session.scalars(sa.select(house.Member.name)).all() == ["ann", "bob"]


# -- the scope and those who hold ----------------------------------------------------------


def test_a_holder_who_may_no_longer_see_a_job_has_lost_it(house: House) -> None:
    """The scope is asked again at every call; what is out of it looks like what is not there."""
    client, absent = house.client, house.client.get("/jobs/4000000").get_json()
    [job] = client.claim()
    house.says = lambda: house.Job.id != job["id"]
    key = {"id": job["id"], "attempt": job["attempt"]}
    for response in (
        client.get(job["href"]),
        client.extend(job),
        client.deliver(job, 1),
        client.fail(job),
        client.release(job),
        client.get(f"/jobs/{job['id']}"),
        client.get(f"/jobs/{job['id']}/history"),
        client.post(f"/jobs/{job['id']}/cancel"),
        client.post(f"/jobs/{job['id']}/retry"),
    ):
        assert (response.status_code, response.get_json()) == (404, absent)
    for name in ("results", "extensions", "releases"):
        [outcome] = client.post("/exchange", {name: [key]}).get_json()["outcomes"]
        assert outcome == {**absent, **key}
    assert client.get("/claims").get_json() == {"jobs": []}
    assert house.world.job(job["id"]).state == "locked"
    house.says = lambda: True
    assert client.deliver(job, 1).status_code == 200


def test_a_job_out_of_scope_is_not_there_whatever_its_state(lite: World) -> None:
    """Held by oneself before, delivered, cancelled: 404 with the same body as for an absent one."""
    root, ann = lite.client("root"), lite.client("ann")
    jobs = [lite.enqueue(user_id="bob") for _ in range(4)]
    held = {job["id"]: job for job in lite.client("bob").claim(limit=3)}
    lite.client("bob").deliver(held[jobs[0]], 1)
    root.post(f"/jobs/{jobs[1]}/cancel")
    absent = ann.get("/jobs/4000000").get_json()
    for job in jobs:
        path = f"/jobs/{job}"
        calls = [
            ann.get(path),
            ann.get(f"{path}/history"),
            ann.post(f"{path}/cancel"),
            ann.post(f"{path}/retry"),
        ]
        for attempt in (1, 2):
            place = {"href": f"{PREFIX}{path}/attempts/{attempt}"}
            calls += [
                ann.get(place["href"]),
                ann.extend(place),
                ann.deliver(place),
                ann.fail(place),
                ann.release(place),
            ]
        assert {(call.status_code, str(call.get_json())) for call in calls} == {(404, str(absent))}


# -- locker names --------------------------------------------------------------------------

BAD_LOCKERS: dict[str, t.Callable[[], t.Any]] = {
    "empty": lambda: "",
    "None": lambda: None,
    "number": lambda: 5,
    "true": lambda: True,
    "bytes": lambda: b"ann",
    "list": lambda: ["ann"],
    "object": lambda: object(),
    "256 characters": lambda: "x" * 256,
    "slash": lambda: "ann/node",
    "slash alone": lambda: "/",
    "slash at the end": lambda: "ann/",
    "that of workers beside the database": lambda: "worker",
    "space before": lambda: " ann",
    "space after": lambda: "ann ",
    "spaces": lambda: "  ",
    "line feed": lambda: "ann\n",
    "line feed inside": lambda: "a\nnn",
    "tab": lambda: "a\tnn",
    "NUL": lambda: "a\0nn",
    "escape": lambda: "a\x1b[31m",
    "surrogate": lambda: "a\ud800",
    "line separator": lambda: "a\u2028b",
    "no-break space": lambda: "ann\u00a0",
    "direction": lambda: "ann\u202e",
    "coroutine": lambda: _coroutine,
    "raises": lambda: _raise(RuntimeError(SECRET)),
    "aborts": lambda: abort(403, SECRET),
}


def test_a_locker_name_that_is_none_hands_out_nothing(
    make_world: MakeWorld, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """500, logged, nothing handed out: two clients might be taken for one."""
    world, wrong = make_world(sqlite_url, scoped=False), []
    world.app.testing = False
    says: list[t.Callable[[], t.Any]] = [lambda: "good"]
    world.jobber.locker_name(lambda: says[0]())
    for _ in range(2):
        world.enqueue()
    client = world.client()
    [held] = client.claim()
    key = {"id": held["id"], "attempt": held["attempt"]}
    for name, bad in BAD_LOCKERS.items():
        says[0] = bad
        for method, path, body in (
            ("POST", "/claims", {}),
            ("GET", "/claims", None),
            ("GET", held["href"], None),
            ("PATCH", held["href"], {}),
            ("PUT", f"{held['href']}/result", {}),
            ("DELETE", held["href"], None),
            ("POST", "/exchange", {"extensions": [key], "claim": {}}),
        ):
            caplog.clear()
            if not failed_closed(client.open(method, path, body)):
                wrong.append(f"{name}: {method} {path} does not fail closed")
            if "locker_name" not in caplog.text:
                wrong.append(f"{name}: {method} {path} is not logged")
    assert not wrong, "\n".join(wrong)
    assert [world.job(n).state for n in (1, 2)] == ["locked", "queued"]


def test_a_locker_name_may_be_any_other_text(world: World) -> None:
    """It is stored and compared as it is, with and without a node."""
    texts = (
        "a",
        "x" * 255,
        "user 5",
        "ann@b.org",
        "\u00e9\u00df\u4e2d",
        "\U0001f600",
        "a:b;c,d",
        "%",
        "'",
        "\\",
    )
    for name in texts:
        world.jobber.registry.hooks["locker_name"] = lambda name=name: name
        for node in (None, "n" * 60):
            job_id = world.enqueue()
            client = world.client("ann", node)
            [job] = client.claim()
            assert world.job(job_id).locked_by == (name if node is None else f"{name}/{node}")
            assert [one["id"] for one in client.get("/claims").get_json()["jobs"]] == [job_id]
            assert client.extend(job).status_code == 200
            assert client.deliver(job, 1).status_code == 200


def test_lockers_that_an_engine_might_take_for_one_are_two(world: World) -> None:
    """Case, accents and padding tell logins apart, whatever the database's collation."""
    world.jobber.registry.hooks["locker_name"] = lambda: current_user.id
    names = ("ann", "Ann", "ANN", "\u00e1nn", "a\u0301nn", "an", "ann_", "ann.", "ann%")
    world.enqueue()
    [job] = world.client("ann").claim()
    for name in names[1:]:
        other = Client(world.app.test_client(), None)
        world.app.login_manager.request_loader(lambda request, name=name: User(name))  # type: ignore[attr-defined]
        assert other.get("/claims").get_json() == {"jobs": []}
        assert other.deliver(job, 1).get_json()["code"] == "lease_lost", name
    assert world.job(job["id"]).state == "locked"


def test_a_node_is_a_holder_of_its_own(lite: World) -> None:
    """What one machine of a login holds, another may not settle; what it delivered, it may see."""
    lite.enqueue(user_id="ann")
    one, two, none = lite.client("ann", "one"), lite.client("ann", "two"), lite.client("ann")
    [job] = one.claim()
    assert lite.job(job["id"]).locked_by == "user_ann/one"
    for other in (two, none, lite.client("ann", "ONE")):
        assert other.get("/claims").get_json() == {"jobs": []}
        assert other.deliver(job, 1).get_json()["code"] == "lease_lost"
        assert other.extend(job).get_json()["code"] == "lease_lost"
    assert one.deliver(job, 1).status_code == 200
    assert two.deliver(job, 1).get_json()["code"] == "lease_lost"
    for mine in (one, two, none):
        assert mine.get(f"/jobs/{job['id']}").get_json()["result"] == 1
    assert lite.client("root").get(f"/jobs/{job['id']}").get_json()["result"] == 1


def test_a_body_cannot_say_who_sends_it(lite: World) -> None:
    """The locker comes from the login; a field for it is unknown."""
    lite.enqueue()
    for name in ("locker", "locked_by", "locker_name", "node", "worker"):
        assert lite.client().post("/claims", {name: "user_bob"}).status_code == 422
    [job] = lite.client().claim()
    assert lite.job(job["id"]).locked_by == "user_ann"


# -- a user with rights of its own ---------------------------------------------------------


class Worker(User):
    """A login that brings its own scope and name."""

    scope: t.ClassVar[t.Callable[[], t.Any]]
    name: t.ClassVar[t.Callable[[], t.Any]]

    def jobber_scope(self) -> t.Any:
        return type(self).scope()

    def jobber_locker_name(self) -> t.Any:
        return type(self).name()


@pytest.fixture
def hired(lite: World) -> World:
    """A world whose logins are workers."""
    Worker.scope = staticmethod(lambda: {"queue": ["hired", "other"]})
    Worker.name = staticmethod(lambda: "worker_7")
    lite.app.login_manager.request_loader(lambda request: Worker("ann"))  # type: ignore[attr-defined]
    return lite


def test_the_rights_of_an_identity_replace_the_hooks(hired: World) -> None:
    """Neither adds to the other: what the hook would show may be out, and the other way round."""
    hidden, seen = hired.enqueue(user_id="ann"), hired.enqueue(user_id="bob", queue="hired")
    client = hired.client()
    assert [job["id"] for job in client.get("/jobs").get_json()["jobs"]] == [seen]
    [job] = client.claim(limit=10)
    assert (job["id"], hired.job(seen).locked_by) == (seen, "worker_7")
    assert client.get(f"/jobs/{hidden}").status_code == 404
    assert client.deliver(job, 1).status_code == 200


@pytest.mark.parametrize("bad", [None, [], {}, "", 1, {"nope": 1}], ids=str)
def test_the_rights_of_an_identity_fail_closed_too(hired: World, bad: t.Any) -> None:
    """An identity that cannot say what it may see does not fall back to the hook."""
    hired.enqueue()
    Worker.scope = staticmethod(lambda: bad)
    for method, path in (("POST", "/claims"), ("GET", "/jobs"), ("GET", "/claims")):
        assert failed_closed(hired.client().open(method, path))


@pytest.mark.parametrize("bad", [None, "", "a/b", "x" * 256, 7], ids=lambda value: str(value)[:5])
def test_the_name_of_an_identity_fails_closed_too(hired: World, bad: t.Any) -> None:
    """As the hook's would."""
    hired.enqueue(queue="hired")
    Worker.name = staticmethod(lambda: bad)
    assert failed_closed(hired.client().post("/claims"))
    assert failed_closed(hired.client().get("/claims"))


# -- permissions ---------------------------------------------------------------------------


class Rights:
    """A permission hook that says what a test wants, and notes what it was asked."""

    def __init__(self, world: World) -> None:
        self.says: t.Callable[[str, t.Any], t.Any] = lambda action, job: True
        self.asked: list[tuple[str, int | None]] = []
        world.jobber.registry.hooks["permission"] = self

    def __call__(self, action: str, job: t.Any) -> t.Any:
        self.asked.append((action, job.id))
        return self.says(action, job)


def test_without_a_hook_nothing_is_permitted(make_world: MakeWorld, sqlite_url: str) -> None:
    """All five actions are denied, and what they would show is null."""
    world = make_world(sqlite_url, scoped=False)
    ann, bob = world.client("ann"), world.client("bob")
    world.enqueue()
    [job] = ann.claim()
    path = f"/jobs/{job['id']}"
    assert bob.post(f"{path}/cancel").get_json()["code"] == "forbidden"
    assert ann.deliver(job, {"a": 1}).status_code == 200
    assert bob.post(f"{path}/retry").get_json()["code"] == "forbidden"
    assert bob.post("/jobs", {"type": "work"}).get_json()["code"] == "forbidden"
    assert bob.get(path).get_json()["result"] is None
    assert {row["locker"] for row in bob.get(f"{path}/history").get_json()["history"]} == {None}
    assert world.job(job["id"]).state == "succeeded"


def test_each_action_is_asked_for_by_name_with_the_job(lite: World) -> None:
    """The hook is told what is about to happen to which job."""
    rights = Rights(lite)
    ann, bob = lite.client("ann"), lite.client("bob")
    made = ann.post("/jobs", {"type": "work"}).get_json()
    [job] = ann.claim()
    ann.deliver(job, 1)
    bob.get(f"/jobs/{made['id']}")
    bob.get(f"/jobs/{made['id']}/history")
    bob.post(f"/jobs/{made['id']}/cancel")
    bob.post(f"/jobs/{made['id']}/retry")
    asked = [(action, job_id) for action, job_id in rights.asked if action != "result"]
    wanted = [("enqueue", None), *((action, made["id"]) for action in ("history", "cancel", "retry"))]
    assert asked == wanted
    assert ("result", made["id"]) in rights.asked


@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_what_is_out_of_scope_is_404_before_it_is_403(lite: World, action: str) -> None:
    """Who may not see a job is not told that there is one; the hook is not even asked."""
    rights = Rights(lite)
    rights.says = lambda action, job: False
    hidden, seen = lite.enqueue(user_id="bob"), lite.enqueue(user_id="ann")
    client = lite.client("ann")
    assert client.post(f"/jobs/{hidden}/{action}").status_code == 404
    assert client.post(f"/jobs/4000000/{action}").status_code == 404
    assert rights.asked == []
    assert client.post(f"/jobs/{seen}/{action}").status_code == 403
    assert rights.asked == [(action, seen)]
    assert lite.job(seen).state == "queued"


@pytest.mark.parametrize("action", ["enqueue", "cancel", "retry", "history", "result"])
def test_a_permission_that_is_neither_yes_nor_no_is_none(
    lite: World, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    """500, logged, nothing done and nothing shown."""
    rights, ann, bob = Rights(lite), lite.client("ann"), lite.client("bob")
    lite.app.testing = False
    done, waiting, ended = (lite.enqueue(priority=-n) for n in range(3))
    ann.deliver(ann.claim()[0], 1)
    ann.post(f"/jobs/{ended}/cancel")
    calls: dict[str, list[tuple[str, str, t.Any]]] = {
        "enqueue": [("POST", "/jobs", {"type": "work"})],
        "cancel": [("POST", f"/jobs/{waiting}/cancel", {})],
        "retry": [("POST", f"/jobs/{ended}/retry", {})],
        "history": [("GET", f"/jobs/{done}/history", None)],
        "result": [("GET", f"/jobs/{done}", None), ("GET", "/jobs", None)],
    }
    answers = (
        None,
        1,
        0,
        "yes",
        "",
        object(),
        [True],
        sa.true(),
        _coroutine,
        RuntimeError(SECRET),
        NotFound(SECRET),
    )
    for bad in answers:
        rights.says = functools.partial(_said_to, action, bad)
        for method, path, body in calls[action]:
            caplog.clear()
            assert failed_closed(bob.open(method, path, body)), bad
            assert "permission" in caplog.text
    with lite.session() as session:
        states = session.scalars(sa.select(lite.Job.state).order_by(lite.Job.id)).all()
    assert states == ["succeeded", "queued", "cancelled"]


def _said(answer: t.Any) -> t.Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _said_to(action: str, answer: t.Any, asked: str, job: t.Any) -> t.Any:
    """Answer an action, and permit all others."""
    return _said(answer) if asked == action else True


def test_an_enqueue_hook_fills_the_columns_of_the_job(world: World) -> None:
    """The job is not saved yet: what the hook writes is saved with it."""
    rights = Rights(world)

    def says(action: str, job: t.Any) -> bool:
        assert job.id is None
        assert (job.type, job.data, job.priority) == ("work", {"a": 1}, 3)
        job.user_id, job.written, job.priority = current_user.id, "by the hook", 4
        return True

    rights.says = says
    client = world.client("ann")
    response = client.post("/jobs", {"type": "work", "data": {"a": 1}, "priority": 3})
    assert response.status_code == 201
    rights.says = lambda action, job: True
    job = world.job(response.get_json()["id"])
    assert (job.user_id, job.written, job.priority) == ("ann", "by the hook", 4)
    assert response.get_json()["priority"] == 4
    assert world.client("bob").get(f"/jobs/{job.id}").status_code == 404


def test_a_client_cannot_fill_the_apps_columns(lite: World) -> None:
    """They are no fields of the request."""
    client = lite.client("root")
    names = (
        "user_id", "written", "state", "id", "attempts", "failures", "only_for", "not_for", "backoff",
        "lease_for", "result", "extras", "created_at", "locked_by", "after", "owner",
    )  # fmt: skip
    for name in names:
        response = client.post("/jobs", {"type": "work", name: None})
        assert (response.status_code, list(response.get_json()["errors"])) == (422, [name])
    with lite.session() as session:
        assert session.scalars(sa.select(lite.Job)).all() == []


def test_a_denied_enqueue_leaves_nothing(world: World) -> None:
    """No job, no history, nothing that the hook wrote beside it, and no key taken."""
    rights = Rights(world)

    def says(action: str, job: t.Any) -> bool:
        world.db.session.add(world.Job(type="smuggled", max_attempts=1))
        world.db.session.flush()
        return False

    rights.says = says
    response = world.client("root").post("/jobs", {"type": "work", "unique_key": "k"})
    assert (response.status_code, response.get_json()["code"]) == (403, "forbidden")
    with world.session() as session:
        for table in (world.Job, world.jobber.History):
            assert session.scalar(sa.select(sa.func.count()).select_from(table)) == 0
    rights.says = lambda action, job: True
    assert world.client("root").post("/jobs", {"type": "work", "unique_key": "k"}).status_code == 201


def test_results_are_shown_job_by_job(lite: World) -> None:
    """The hook decides on each that another delivered; one's own are not asked about."""
    rights = Rights(lite)
    rights.says = lambda action, job: job.written == "public"
    for written in ("public", "private"):
        lite.enqueue(written=written)
    ann, bob = lite.client("ann"), lite.client("bob")
    for job in ann.claim(limit=2):
        ann.deliver(job, {"of": job["id"]})
    lite.enqueue(written="public")
    rights.asked.clear()
    assert [job["result"] for job in ann.get("/jobs").get_json()["jobs"]] == [{"of": 1}, {"of": 2}, None]
    assert rights.asked == []
    assert [job["result"] for job in bob.get("/jobs").get_json()["jobs"]] == [{"of": 1}, None, None]
    assert sorted(rights.asked) == [("result", 1), ("result", 2)]
    assert bob.get("/jobs/2").get_json()["result"] is None


def test_a_login_is_not_taken_for_another_that_begins_like_it(lite: World) -> None:
    """``user_an`` delivered nothing of ``user_ann``'s, nor does a node change the login."""
    lite.jobber.registry.hooks["permission"] = lambda action, job: False
    lite.enqueue()
    ann = lite.client("ann", "n")
    ann.deliver(ann.claim()[0], 1)
    for name in ("an", "anna", "ann_", "n"):
        other = lite.client(name)
        assert other.get("/jobs/1").get_json()["result"] is None
        rows = other.get("/jobs/1/history").get_json()["history"]
        assert {row["locker"] for row in rows} == {None}
