"""Workers beside an app's people: the loaders, the cookies, and what neither may of the other's."""

from __future__ import annotations

import typing as t

import pytest
from flask import Blueprint, Flask, Request
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from werkzeug.test import TestResponse

from accounts_support import GRANT, TOKEN, basic
from flask_jobber import Jobber, SetupError
from flask_jobber.accounts import Credentials, Worker, Workers


class Person(UserMixin):  # type: ignore[misc]
    def __init__(self, id: str) -> None:
        self.id = id


class House:
    """An app with people, who log in by cookie or key, and workers; all in the order that a test wants."""

    def __init__(self, url: str, *steps: str, **config: t.Any) -> None:
        self.app = Flask("house")
        self.app.config.update(SECRET_KEY="test", SQLALCHEMY_DATABASE_URI=url, TESTING=True, **config)
        self.db = SQLAlchemy(self.app)
        self.manager = LoginManager()
        self.jobber = Jobber(self.db)
        self.workers = Workers(self.jobber)
        self.asked: list[str] = []
        for step in steps:
            getattr(self, step)()
        self._add_views()
        with self.app.app_context():
            self.db.create_all()
            self.robot: Credentials = self.workers.create("robot")
            self.workers.hire("default", "robot")
            self.jobber.enqueue("work")
            self.db.session.commit()

    def login(self) -> None:
        self.manager.init_app(self.app)

    def user_loader(self) -> None:
        self.manager.user_loader(Person)

    def request_loader(self) -> None:
        def load(request: Request) -> Person | None:
            self.asked.append(request.headers.get("Authorization", ""))
            key = request.headers.get("X-Key")
            return Person(key) if key else None

        self.manager.request_loader(load)

    def blueprints(self) -> None:
        self.app.register_blueprint(self.jobber.blueprint, url_prefix="/jobber")
        self.app.register_blueprint(self.workers.blueprint)

    def nested(self) -> None:
        outer = Blueprint("outer", __name__, url_prefix="/outer")
        outer.register_blueprint(self.jobber.blueprint, url_prefix="/jobber", name="inner")
        outer.register_blueprint(self.workers.blueprint)
        self.app.register_blueprint(outer)

    def csrf(self) -> None:
        CSRFProtect(self.app)

    def early_bird(self) -> None:
        """The app looks at the user before anything else does."""
        self.app.before_request(lambda: str(current_user.is_authenticated) and None)

    def _add_views(self) -> None:
        @self.app.get("/people")
        @login_required
        def people() -> str:
            return str(current_user.get_id())

        @self.app.get("/who")
        def who() -> str:
            return str(current_user.get_id())

        @self.app.get("/enter")
        def enter() -> str:
            login_user(Person("ann"), remember=True)
            return "ann"

    def token(self, prefix: str = "") -> str:
        response = self.app.test_client().post(
            prefix + TOKEN, data=GRANT, headers=basic(self.robot.client_id, self.robot.client_secret)
        )
        assert response.status_code == 200, response.text
        return t.cast(str, response.json["access_token"])  # type: ignore[index]

    def get(self, path: str, token: str | None = None, **headers: str) -> TestResponse:
        said = {"Authorization": f"Bearer {token}"} if token else {}
        return self.app.test_client().get(path, headers={**said, **headers})


ORDERS = {
    "loaders first": ("login", "user_loader", "request_loader", "blueprints"),
    "loaders last": ("blueprints", "login", "user_loader", "request_loader"),
    "early bird": ("early_bird", "blueprints", "login", "user_loader", "request_loader"),
    "manager last": ("user_loader", "request_loader", "blueprints", "login"),
}


@pytest.fixture(params=ORDERS.values(), ids=list(ORDERS))
def house(request: pytest.FixtureRequest, sqlite_url: str) -> House:
    return House(sqlite_url, *request.param)


def test_the_apps_own_loader_stays_whatever_the_order(house: House) -> None:
    """People come in by it, workers by their tokens."""
    token = house.token()
    assert house.get("/jobber/claims", token).status_code == 200
    response = house.get("/people", **{"X-Key": "bob"})
    assert (response.status_code, response.text) == (200, "bob")
    assert house.get("/jobber/claims", **{"X-Key": "bob"}).status_code == 200
    assert house.get("/jobber/claims").status_code == 401
    assert house.get("/people").status_code == 401


def test_a_loader_that_comes_later_is_kept_too(house: House) -> None:
    """Between two requests."""
    token = house.token()
    assert house.get("/jobber/claims", token).status_code == 200
    house.manager.request_loader(lambda request: Person("late"))
    assert house.get("/people").text == "late"
    assert house.get("/jobber/claims", token).status_code == 200
    assert house.get("/people", token).status_code == 401


@pytest.mark.parametrize("steps", [("login", "user_loader", "blueprints"), ("login", "blueprints")])
def test_an_app_without_a_request_loader_has_workers_all_the_same(
    sqlite_url: str, steps: tuple[str, ...]
) -> None:
    """And even one without any loader."""
    house = House(sqlite_url, *steps)
    assert house.get("/jobber/claims", house.token()).status_code == 200
    assert house.get("/jobber/claims").status_code == 401


def test_a_worker_reaches_nothing_that_is_for_people(house: House) -> None:
    """Outside of its Jobber it is nobody, and the app's loader never sees its token, good or dead."""
    for token in (house.token(), "jbt_dead"):
        assert house.get("/people", token).status_code == 401
        assert house.get("/who", token).text == "None"
        assert house.get("/people", token, **{"X-Key": "bob"}).status_code == 401
    assert not any("jbt_" in header for header in house.asked)


def test_a_person_gets_no_token(house: House) -> None:
    """A session means nothing to the token endpoint."""
    client = house.app.test_client()
    client.get("/enter")
    assert client.post(TOKEN, data=GRANT).status_code == 401
    assert client.post(TOKEN, data=GRANT, headers={"X-Key": "bob"}).status_code == 401


@pytest.mark.parametrize("cookie", ["session", "remember_token"])
def test_a_cookie_beside_a_token_is_refused(house: House, cookie: str) -> None:
    """Neither the person nor the worker gets anything; one alone does."""
    client = house.app.test_client()
    client.get("/enter")
    for other in {"session", "remember_token"} - {cookie}:
        client.delete_cookie(other)
    assert client.get("/jobber/claims").status_code == 200
    for token in (house.token(), "jbt_dead"):
        headers = {"Authorization": f"Bearer {token}"}
        for call in ("GET /jobber/claims", "POST /jobber/claims", "GET /jobber/jobs/1"):
            method, path = call.split()
            response = client.open(path, method=method, headers=headers)
            assert (response.status_code, response.json["code"]) == (401, "login_required")
            assert "send one" in response.json["detail"]
        assert client.post("/jobber/claims", headers=headers | {"X-Key": "bob"}).status_code == 401


def test_paths_that_are_not_there_are_not_there_for_workers(house: House) -> None:
    """404 and 405 of the Jobber, not 401."""
    token = house.token()
    assert house.get("/jobber/nothing", token).json["code"] == "not_found"
    assert house.get("/jobber/exchange", token).json["code"] == "method_not_allowed"
    assert house.get("/nothing", token).status_code == 404


def test_nested_blueprints_of_other_names(sqlite_url: str) -> None:
    """The Jobber is known by itself, wherever and as whatever it is registered."""
    house = House(sqlite_url, "login", "user_loader", "request_loader", "nested")
    token = house.token("/outer")
    assert house.get("/outer/jobber/claims", token).status_code == 200
    assert house.get("/people", token).status_code == 401
    told = house.get("/.well-known/oauth-authorization-server").json
    assert told["token_endpoint"] == "http://localhost/outer/oauth/token"


@pytest.mark.parametrize("order", [("csrf", "login"), ("login", "csrf")])
def test_with_the_apps_csrf_protection_on(sqlite_url: str, order: tuple[str, ...]) -> None:
    """Tokens are given and jobs done; the app's own forms stay protected."""
    house = House(sqlite_url, "blueprints", "user_loader", *order)
    house.app.add_url_rule("/form", view_func=lambda: "done", methods=["POST"], endpoint="form")
    client = house.app.test_client()
    headers = {"Authorization": f"Bearer {house.token()}"}
    [job] = client.post("/jobber/claims", headers=headers).json["jobs"]
    answer = client.put(f"{job['href']}/result", json={"result": 1}, headers=headers)
    assert (answer.status_code, answer.json) == (200, {"state": "succeeded"})
    assert client.get(TOKEN).status_code == 405
    assert client.post("/form").status_code == 400


def test_two_apps_may_share_a_login_manager(tmp_path: t.Any) -> None:
    """Its loader goes round in no circle."""
    first = House(f"sqlite:///{tmp_path}/1.db", "login", "user_loader", "blueprints")
    second = House(f"sqlite:///{tmp_path}/2.db", "blueprints")
    first.manager.init_app(second.app)
    for _ in range(2):
        for house in (first, second):
            assert house.get("/jobber/claims", house.token()).status_code == 200
            assert house.get("/people").status_code == 401
    assert second.get("/jobber/claims", first.token()).status_code == 401


def test_workers_of_two_jobbers_stay_apart(sqlite_url: str) -> None:
    """A token of one is nobody's at the other."""
    house = House(sqlite_url, "login", "user_loader", "blueprints")
    other = Jobber(house.db, name="other")
    workers = Workers(other)
    house.app.register_blueprint(other.blueprint, url_prefix="/other")
    house.app.register_blueprint(workers.blueprint, url_prefix="/other-oauth")
    with house.app.app_context():
        house.db.create_all()
        robot = workers.create("robot")
        house.db.session.commit()
    response = house.app.test_client().post(
        "/other-oauth/token", data=GRANT, headers=basic(robot.client_id, robot.client_secret)
    )
    theirs, mine = response.json["access_token"], house.token()
    assert [house.get("/jobber/claims", token).status_code for token in (mine, theirs)] == [200, 401]
    assert [house.get("/other/claims", token).status_code for token in (mine, theirs)] == [401, 200]
    told = house.get("/.well-known/oauth-authorization-server/other-oauth").json
    assert told["issuer"] == "http://localhost/other-oauth"
    assert told["token_endpoint"] == "http://localhost/other-oauth/token"


def test_workers_of_two_jobbers_have_two_places() -> None:
    """At one, the first would refuse the second's workers without a word."""
    app, db = Flask("two"), SQLAlchemy()
    one, other = (Workers(Jobber(db, name=name)) for name in ("one", "other"))
    app.register_blueprint(one.blueprint)
    with pytest.raises(SetupError, match="/oauth/token is taken"):
        app.register_blueprint(other.blueprint)
    fresh = Flask("fresh")
    fresh.register_blueprint(one.blueprint)
    fresh.register_blueprint(other.blueprint, url_prefix="/oauth/other")


def test_a_worker_has_no_number_that_a_person_may_have(sqlite_url: str) -> None:
    """Whatever of the app looks at the user's id finds no person's."""
    house = House(sqlite_url, "login", "user_loader", "blueprints")
    found = list[t.Any]()
    house.app.before_request(lambda: found.append(current_user._get_current_object()))
    house.get("/jobber/claims", house.token())
    worker = found[-1]
    assert isinstance(worker, Worker)
    assert (worker.id, worker.get_id(), worker.name) == ("account:robot", "account:robot", "robot")
    assert worker.is_authenticated
