"""What every request must pass: a login, and no other site's page."""

from __future__ import annotations

import itertools
import json
import logging
import typing as t

import pytest
from flask import Blueprint, Flask, abort, redirect, render_template_string, request
from flask.testing import FlaskClient
from flask_login import LoginManager, login_user
from flask_wtf.csrf import CSRFProtect
from marshmallow import Schema, fields
from werkzeug.test import TestResponse

from conftest import MakeWorld
from flask_jobber.api.operation import OPERATIONS, Operation
from support import PREFIX, User, World, load_user

PRIVATE = [row for row in OPERATIONS if not row.public]
PUBLIC = [row for row in OPERATIONS if row.public]
UNSAFE = [row for row in OPERATIONS if row.method != "GET"]
CROSS_SITE = {"Sec-Fetch-Site": "cross-site"}


def path_of(row: Operation, prefix: str = PREFIX) -> str:
    return prefix + row.rule.replace("<job_id>", "1").replace("<attempt>", "1").replace("<name>", "file")


def add_login(app: Flask) -> None:
    """Let a visitor log in by cookie at ``/login``."""
    app.extensions["login"] = app.login_manager  # type: ignore[attr-defined]
    app.login_manager.user_loader(User)  # type: ignore[attr-defined]

    @app.post("/login")
    def login() -> str:
        login_user(User("ann"), remember="remember" in request.args)
        return ""


@pytest.fixture
def site(lite: World) -> World:
    """A world whose users may log in by cookie too."""
    add_login(lite.app)
    return lite


Kind = t.Literal["session", "remember", "bearer", "basic", "session and bearer", "remember and bearer"]


def log_in(app: Flask, kind: Kind, **environ: str) -> FlaskClient:
    """Return a client that is logged in as ``ann`` in some way."""
    client = app.test_client()
    first, _, second = kind.partition(" and ")
    if first in ("session", "remember"):
        assert client.post(f"/login?{first}").status_code == 200
    if first == "remember":
        client.delete_cookie("session")
    for scheme in {first, second} & {"bearer", "basic"}:
        environ["HTTP_AUTHORIZATION"] = f"{scheme.title()} ann"
    client.environ_base.update(environ)
    return client


def claim(client: FlaskClient, **headers: str) -> TestResponse:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"{PREFIX}/claims", json={}, headers=names)


# -- a login -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", PRIVATE, ids=lambda row: row.name)
def test_without_a_login_every_endpoint_is_401(lite: World, row: Operation) -> None:
    """A problem document that says how to authenticate; never a redirect to a page."""
    response = lite.client(None).open(row.method, path_of(row))
    assert response.status_code == 401
    assert response.mimetype == "application/problem+json"
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert "Location" not in response.headers
    assert response.get_json()["code"] == "login_required"
    assert response.get_json()["retryable"] is False


@pytest.mark.parametrize("row", PUBLIC, ids=lambda row: row.name)
def test_the_description_and_the_script_need_no_login(lite: World, row: Operation) -> None:
    """They tell nothing of any job."""
    response = lite.app.test_client().get(path_of(row), buffered=True)
    assert response.status_code == 200
    assert "Set-Cookie" not in response.headers


def test_only_the_description_and_the_script_are_public() -> None:
    """Whoever adds a public endpoint has to say so here."""
    assert {row.rule for row in PUBLIC} == {"/openapi.json", "/jobber.js"}


def test_a_login_view_is_not_redirected_to(lite: World) -> None:
    """Flask-Login's way of asking for a login is for the app's own pages."""
    lite.app.login_manager.login_view = "somewhere"  # type: ignore[attr-defined]

    @lite.app.login_manager.unauthorized_handler  # type: ignore[attr-defined, untyped-decorator]
    def unauthorized() -> t.Any:
        return redirect("/login")

    for row in PRIVATE:
        assert lite.client(None).open(row.method, path_of(row)).status_code == 401


@pytest.mark.parametrize("path", ["/nope", "/jobs/1/nope", "/claims/", "/", "", "/jobs/abc"])
def test_without_a_login_paths_that_are_not_there_are_401_too(lite: World, path: str) -> None:
    """A stranger cannot tell what is there."""
    for method in ("GET", "POST", "BREW"):
        response = lite.client(None).open(method, PREFIX + path)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["", "Bearer", "Basic YW5u", "Token x", "Digest username=ann", "bearer"])
def test_credentials_that_log_nobody_in_are_401(site: World, header: str) -> None:
    """Whatever their scheme."""
    response = site.app.test_client().get(f"{PREFIX}/jobs", headers={"Authorization": header})
    assert (response.status_code == 401) is (header not in ("Bearer",))


def test_a_forged_session_is_401(site: World) -> None:
    """Cookies are believed only with their signature."""
    client = site.app.test_client()
    client.set_cookie("session", "eyJfdXNlcl9pZCI6ImFubiJ9.aaaaaa.aaaaaaaaaaaaaaaaaaaaaaaaaaa")
    client.set_cookie("remember_token", "ann|0123456789")
    assert client.get(f"{PREFIX}/jobs").status_code == 401


# -- other places of an app ----------------------------------------------------------------


class MakeApp(t.Protocol):
    def __call__(self, *blueprints: tuple[Blueprint, dict[str, t.Any]], **config: t.Any) -> Flask: ...


@pytest.fixture
def make_app(lite: World) -> t.Iterator[MakeApp]:
    """Make more apps with the jobs of ``lite``; their connections are closed afterwards."""
    made: list[Flask] = []

    def make(*blueprints: tuple[Blueprint, dict[str, t.Any]], **config: t.Any) -> Flask:
        app = Flask("another")
        app.config.update(lite.app.config)
        app.config.update(config)
        manager = LoginManager(app)
        manager.request_loader(load_user)
        add_login(app)
        lite.db.init_app(app)
        for blueprint, options in blueprints:
            app.register_blueprint(blueprint, **options)
        made.append(app)
        return app

    yield make
    for app in made:
        with app.app_context():
            lite.db.session.remove()
            for engine in lite.db.engines.values():
                engine.dispose()


@pytest.mark.parametrize("prefix", ["/jobber", "/a/b/c", "/jobs", "/x-y_z", "/\u00e9", "/jobber/"])
def test_the_blueprint_stands_below_any_prefix(lite: World, make_app: MakeApp, prefix: str) -> None:
    """Links name it; what is missing below it is answered in our form, and what is beside it is not."""
    app = make_app((lite.jobber.blueprint, {"url_prefix": prefix}))
    bare = prefix.rstrip("/")
    lite.enqueue()
    client = log_in(app, "bearer")
    [job] = client.post(f"{bare}/claims", json={}).get_json()["jobs"]
    assert client.get(job["href"]).status_code == 200
    assert client.get(f"{bare}/nope").get_json()["code"] == "not_found"
    assert client.put(f"{bare}/claims").get_json()["code"] == "method_not_allowed"
    assert app.test_client().get(f"{bare}/nope").status_code == 401
    for beside in (f"{bare}x", f"{bare}x/jobs", "/nope", "/"):
        response = app.test_client().get(beside)
        assert (response.status_code, response.mimetype) == (404, "text/html")


def test_the_blueprint_stands_without_a_prefix(lite: World, make_app: MakeApp) -> None:
    """Then all of its endpoints are there, and what is missing may be the app's."""
    app = make_app((lite.jobber.blueprint, {}))
    lite.enqueue()
    client = log_in(app, "bearer")
    [job] = client.post("/claims", json={}).get_json()["jobs"]
    assert job["href"] == f"/jobs/{job['id']}/attempts/1"
    assert client.delete(job["href"]).status_code == 204
    assert app.test_client().get("/jobs").status_code == 401
    assert app.test_client().get("/openapi.json").get_json()["servers"] == [{"url": "/"}]
    assert app.test_client().get("/nope").mimetype == "text/html"


def test_the_blueprint_stands_in_another_blueprint(lite: World, make_app: MakeApp) -> None:
    """Its links and its answers to what is missing know the whole prefix."""
    outer = Blueprint("outer", "outer", url_prefix="/outer")
    outer.register_blueprint(lite.jobber.blueprint, url_prefix="/inner")
    app = make_app((outer, {}))
    lite.enqueue()
    client = log_in(app, "bearer")
    [job] = client.post("/outer/inner/claims", json={}).get_json()["jobs"]
    assert job["href"].startswith("/outer/inner/jobs/")
    assert client.get("/outer/inner/nope").get_json()["code"] == "not_found"
    assert client.put("/outer/inner/exchange").get_json()["code"] == "method_not_allowed"
    assert app.test_client().get("/outer/inner/jobs").status_code == 401
    assert app.test_client().get("/outer/inner/nope").status_code == 401
    assert app.test_client().get("/outer/nope").mimetype == "text/html"
    assert app.test_client().get("/outer/inner/openapi.json").get_json()["servers"] == [
        {"url": "/outer/inner"}
    ]


def test_the_blueprint_stands_twice_in_one_app(lite: World, make_app: MakeApp) -> None:
    """Each place links to itself."""
    one = (lite.jobber.blueprint, {"url_prefix": "/one"})
    two = (lite.jobber.blueprint, {"url_prefix": "/two", "name": "second"})
    app = make_app(one, two)
    lite.enqueue()
    for prefix in ("/one", "/two"):
        [job] = log_in(app, "bearer").get(f"{prefix}/jobs").get_json()["jobs"]
        assert job["href"].startswith(prefix)
        assert log_in(app, "bearer").get(f"{prefix}/nope").get_json()["code"] == "not_found"
        assert app.test_client().get(f"{prefix}/nope").status_code == 401


def test_a_host_behind_a_path_is_named_in_links(lite: World, make_app: MakeApp) -> None:
    """An app that is mounted below a path (SCRIPT_NAME) links through it."""
    app = make_app((lite.jobber.blueprint, {"url_prefix": "/jobber"}))
    lite.enqueue()
    client = log_in(app, "bearer")
    mount = "http://localhost/mount"
    [job] = client.post("/jobber/claims", json={}, base_url=mount).get_json()["jobs"]
    assert job["href"].startswith("/mount/jobber/jobs/")
    assert client.get("/jobber/nope", base_url=mount).get_json()["code"] == "not_found"


def test_the_apps_own_pages_of_errors_are_its_own(lite: World) -> None:
    """404 and 405 elsewhere, and the app's handlers for them, are untouched."""
    app = lite.app

    @app.get("/page")
    def page() -> str:
        return "page"

    @app.get("/abort/<int:code>")
    def broken(code: int) -> t.NoReturn:
        abort(code)

    client = app.test_client()
    assert client.get("/nope").mimetype == "text/html"
    assert client.post("/page").status_code == 405
    assert client.post("/page").mimetype == "text/html"
    assert client.get("/abort/413").mimetype == "text/html"
    assert client.get("/page").text == "page"


def test_the_apps_handlers_do_not_answer_for_the_blueprint(lite: World) -> None:
    """A page for 404 is no answer to a client that reads JSON."""
    for code in (401, 404, 405, 413, 500):
        lite.app.register_error_handler(code, lambda error: (f"page {error.code}", error.code))
    client = lite.client()
    for method, path, status in (("GET", "/nope", 404), ("PUT", "/claims", 405), ("GET", "/jobs/7", 404)):
        response = client.open(method, path)
        assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    assert lite.client(None).get("/jobs").mimetype == "application/problem+json"
    assert lite.app.test_client().get("/nope").text == "page 404"


@pytest.mark.parametrize("status", [401, 403, 429, 451, 503])
def test_a_refusal_of_the_apps_own_keeps_its_status(lite: World, status: int) -> None:
    """A rate limit or a closed site before our endpoints is not told as something that broke here."""
    lite.app.after_request_funcs.clear()
    lite.app.before_request(lambda: abort(status))
    assert lite.client().get("/jobs").status_code == status


def test_what_breaks_below_the_prefix_is_a_problem_without_a_word_of_why(
    lite: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The log knows; the client gets ``internal``."""
    lite.app.testing = False

    @lite.app.before_request
    def broken() -> None:
        raise RuntimeError("the secret")

    response = lite.client().get("/jobs")
    assert (response.status_code, response.mimetype) == (500, "application/problem+json")
    assert response.get_json()["code"] == "internal"
    assert "secret" not in response.text
    assert "the secret" in caplog.text


def test_an_app_without_flask_login_is_told_so(
    lite: World, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is handed out, and the log says what to call."""
    app = make_app((lite.jobber.blueprint, {"url_prefix": "/jobber"}))
    del app.login_manager  # type: ignore[attr-defined]
    lite.enqueue()
    client = app.test_client()
    for method, path in (("POST", "/claims"), ("GET", "/jobs"), ("GET", "/nope")):
        response = client.open(f"/jobber{path}", method=method, json={})
        assert response.status_code == 500
        assert response.get_json()["code"] == "internal"
    assert "LoginManager" in caplog.text
    assert client.get("/jobber/openapi.json").status_code == 200


def test_a_user_who_is_not_authenticated_is_nobody(lite: World) -> None:
    """Whoever was loaded: what counts is what Flask-Login counts."""

    class Guest(User):
        is_authenticated = False

    lite.app.login_manager.request_loader(lambda request: Guest("ann"))  # type: ignore[attr-defined]
    lite.enqueue()
    assert lite.client().post("/claims", {}).status_code == 401


# -- other sites ---------------------------------------------------------------------------

HERE = "http://localhost"
SAME_SITE = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Origin": HERE},
    {"Origin": HERE},
    {"Origin": "http://localhost:80"},
    {"Origin": "http://LocalHost"},
    {"Origin": "https://app.example"},
    {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://app.example", "Sec-Fetch-Site": "same-site"},
]
OTHER_SITE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "garbage"},
    {"Sec-Fetch-Site": "same-origin, cross-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": HERE},
    {"Sec-Fetch-Site": "same-site", "Origin": HERE},
    {"Origin": "null"},
    {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    {"Origin": ""},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost:5000"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://evil.localhost"},
    {"Origin": "http://evil.example@localhost:81"},
    {"Origin": "https://localhost:80.evil.example"},
    {"Origin": "localhost"},
    {"Origin": "//localhost"},
    {"Origin": "evil.example"},
    {"Origin": "://localhost"},
    {"Origin": "file://"},
    {"Origin": "file://localhost"},
    {"Origin": "chrome-extension://localhost"},
    {"Origin": "http://"},
    {"Origin": "http://[bad"},
    {"Origin": "http://localhost:abc"},
    {"Origin": "http://localhost:99999"},
    {"Origin": "https://app.example.evil.example"},
    {"Origin": "http://app.example"},
    {"Origin": "https://app.example:444"},
    {"Origin": f"{HERE}, http://evil.example"},
    {"Origin": "http://evil.example http://localhost"},
]
COOKIE_LOGINS: list[Kind] = ["session", "remember", "session and bearer", "remember and bearer"]


@pytest.fixture
def trusting(make_world: MakeWorld, sqlite_url: str) -> World:
    """A site that trusts the pages of one other."""
    world = make_world(sqlite_url, JOBBER_TRUSTED_ORIGINS=["https://app.example"])
    add_login(world.app)
    return world


@pytest.mark.parametrize("kind", [*COOKIE_LOGINS, "basic"])
def test_a_login_that_browsers_send_by_themselves_is_for_pages_of_this_site(
    trusting: World, kind: Kind
) -> None:
    """Cookies of either kind, also beside a token, and Basic: only where the request comes from here."""
    trust_basic(trusting.app)
    client = log_in(trusting.app, kind)
    for headers in SAME_SITE:
        assert claim(client, **headers).status_code == 200, headers
    for headers in OTHER_SITE:
        response = claim(client, **headers)
        assert (response.status_code, response.get_json().get("code")) == (403, "cross_site"), headers


def trust_basic(app: Flask) -> None:
    """Let ``Basic`` log in too, as many request loaders do."""

    @app.login_manager.request_loader  # type: ignore[attr-defined, untyped-decorator]
    def load(request: t.Any) -> User | None:
        scheme, _, name = request.headers.get("Authorization", "").partition(" ")
        return User(name) if scheme in ("Bearer", "Basic", "Digest", "Negotiate", "NTLM", "basic") else None


@pytest.mark.parametrize("scheme", ["Basic", "Digest", "Negotiate", "NTLM", "basic"])
def test_schemes_that_browsers_attach_are_not_exempt(site: World, scheme: str) -> None:
    """They are sent for another site's page too."""
    trust_basic(site.app)
    client = log_in(site.app, "bearer", HTTP_AUTHORIZATION=f"{scheme} ann")
    client.environ_base["HTTP_AUTHORIZATION"] = f"{scheme} ann"
    assert claim(client, **CROSS_SITE).status_code == 403
    assert claim(client).status_code == 200


def test_a_token_is_exempt(trusting: World) -> None:
    """No browser adds one by itself, so whoever sends it may stand anywhere."""
    client = log_in(trusting.app, "bearer")
    for headers in (*SAME_SITE, *OTHER_SITE):
        assert claim(client, **headers).status_code == 200, headers


def test_a_token_beside_cookies_that_log_nobody_in_is_exempt(site: World) -> None:
    """A cookie of the app's own says nothing about a login."""
    client = log_in(site.app, "bearer")
    client.set_cookie("theme", "dark")
    assert claim(client, **CROSS_SITE).status_code == 200


def test_a_login_by_a_cookie_of_the_apps_own_is_not_exempt(site: World) -> None:
    """A request loader that reads a cookie makes a cookie login, whatever the cookie is called."""

    @site.app.login_manager.request_loader  # type: ignore[attr-defined, untyped-decorator]
    def load(request: t.Any) -> User | None:
        return User("ann") if "access_token" in request.cookies else None

    client = site.app.test_client()
    client.set_cookie("access_token", "secret")
    assert claim(client, **CROSS_SITE).status_code == 403
    assert claim(client, Origin="http://evil.example").status_code == 403
    assert claim(client).status_code == 200


def test_a_cookie_of_another_name_is_the_remember_cookie(make_world: MakeWorld, sqlite_url: str) -> None:
    """The app may have renamed it, and the session's too."""
    names = {"REMEMBER_COOKIE_NAME": "stay", "SESSION_COOKIE_NAME": "visit"}
    world = make_world(sqlite_url, **names)
    add_login(world.app)
    client = world.app.test_client()
    client.post("/login?remember")
    client.delete_cookie("visit")
    assert client.get_cookie("stay") is not None
    assert claim(client, **CROSS_SITE).status_code == 403
    client = world.app.test_client()
    client.post("/login")
    assert claim(client, **CROSS_SITE).status_code == 403


@pytest.mark.parametrize("row", UNSAFE, ids=lambda row: row.name)
def test_every_unsafe_endpoint_is_guarded(site: World, row: Operation) -> None:
    """Also for jobs that are not there: the page of another site learns nothing."""
    client = log_in(site.app, "session")
    response = client.open(path_of(row), method=row.method, headers=CROSS_SITE)
    assert (response.status_code, response.get_json().get("code")) == (403, "cross_site")


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.method == "GET"], ids=lambda row: row.name)
def test_safe_methods_are_not_guarded(site: World, row: Operation) -> None:
    """They change nothing, and another site's page cannot read the answer."""
    site.app.after_request_funcs.clear()
    site.enqueue(user_id="ann", attachments={"file": b"x"})
    client = log_in(site.app, "session")
    client.post(f"{PREFIX}/claims", json={})
    for method in ("GET", "HEAD", "OPTIONS"):
        response = client.open(path_of(row), method=method, headers=CROSS_SITE, buffered=True)
        # Refused for what it is, if at all: the job is no batch, and nobody is permitted to see answers.
        own = {"show_batch": 404, "list_answers": 403} if method != "OPTIONS" else {}
        assert response.status_code == own.get(row.name, 200)
        assert "Access-Control-Allow-Origin" not in response.headers


def test_unsafe_requests_to_paths_that_are_not_there_are_guarded(site: World) -> None:
    """403 comes before 404 and 405."""
    client = log_in(site.app, "session")
    for method, path in (
        ("POST", "/nope"),
        ("DELETE", "/jobs"),
        ("BREW", "/claims"),
        ("PUT", "/jobs/x/attempts/y/result"),
    ):
        response = client.open(PREFIX + path, method=method, headers=CROSS_SITE)
        assert (response.status_code, response.get_json().get("code")) == (403, "cross_site"), path


@pytest.mark.parametrize(
    ("host", "same", "other"),
    [
        ("app.example", "https://app.example", "https://app.example:8443"),
        ("app.example:443", "https://app.example", "http://app.example"),
        ("APP.example:8443", "https://app.EXAMPLE:8443", "https://app.example"),
        ("[::1]:5000", "http://[::1]:5000", "http://[::2]:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000", "http://127.0.0.1"),
        ("app.example.", "http://app.example.", "http://example."),
    ],
)
def test_an_origin_is_of_this_site_when_host_and_port_are_those_of_host(
    site: World, host: str, same: str, other: str
) -> None:
    """Default ports are those of the origin's scheme, and case does not count: a proxy may end TLS."""
    client = log_in(site.app, "session")
    cookie = client.get_cookie("session")
    assert cookie is not None
    headers = {"Host": host, "Cookie": f"session={cookie.value}"}
    anywhere = site.app.test_client(use_cookies=False)
    assert claim(anywhere, Origin=same, **headers).status_code == 200
    assert claim(anywhere, Origin=other, **headers).status_code == 403


# -- visitors ------------------------------------------------------------------------------


@pytest.fixture
def open_house(make_world: MakeWorld, sqlite_url: str) -> World:
    return make_world(sqlite_url, scoped=False, JOBBER_ALLOW_ANONYMOUS=True)


def test_visitors_need_a_hook_that_tells_them_apart(
    open_house: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Without one they would all be the same locker; nothing is handed out, and the log says why."""
    open_house.enqueue()
    client = open_house.client(None)
    for method, path in (("POST", "/claims"), ("GET", "/jobs"), ("GET", "/nope")):
        response = client.open(method, path)
        assert (response.status_code, response.get_json()["code"]) == (500, "internal")
    assert "locker_name" in caplog.text
    assert open_house.client("ann").claim()


def test_visitors_may_work_when_they_are_told_apart(open_house: World) -> None:
    """Each is a locker of its own and cannot touch what another holds."""
    open_house.jobber.locker_name(lambda: f"visitor_{request.headers['X-Visitor']}")
    open_house.enqueue()
    ann, bob = ({"headers": {"X-Visitor": name}} for name in ("ann", "bob"))
    visitor = open_house.client(None)
    [job] = visitor.post("/claims", {}, **ann).get_json()["jobs"]
    assert visitor.put(f"{job['href']}/result", {}, **bob).status_code == 409
    assert visitor.put(f"{job['href']}/result", {}, **ann).status_code == 200


def test_visitors_are_guarded_from_other_sites(open_house: World) -> None:
    """What tells them apart may be a cookie."""
    open_house.jobber.locker_name(lambda: "visitor_1")
    client = open_house.app.test_client()
    for headers in OTHER_SITE:
        if headers.get("Origin") != "https://app.example":
            assert claim(client, **headers).status_code == 403, headers
    for headers in ({}, {"Origin": HERE}, {"Sec-Fetch-Site": "same-origin"}):
        assert claim(client, **headers).status_code == 200
    assert claim(log_in(open_house.app, "bearer"), **CROSS_SITE).status_code == 200


# -- Flask-WTF -----------------------------------------------------------------------------


@pytest.fixture(params=["before the blueprint", "after the blueprint", "blueprint nested"])
def protected(request: pytest.FixtureRequest, lite: World, make_app: MakeApp) -> Flask:
    """An app with Flask-WTF's CSRFProtect, and a form of its own."""
    app = make_app(WTF_CSRF_SSL_STRICT=True)
    csrf = CSRFProtect()
    if request.param == "before the blueprint":
        csrf.init_app(app)
    if request.param == "blueprint nested":
        outer = Blueprint("outer", "outer")
        outer.register_blueprint(lite.jobber.blueprint, url_prefix=PREFIX)
        app.register_blueprint(outer)
    else:
        app.register_blueprint(lite.jobber.blueprint, url_prefix=PREFIX)
    if request.param != "before the blueprint":
        csrf.init_app(app)
    csrf.exempt(app.view_functions["login"])

    @app.route("/form", methods=["GET", "POST"])
    def form() -> str:
        return render_template_string("{{ csrf_token() }}")

    return app


def test_the_protection_of_flask_wtf_answers_for_the_apps_views_alone(protected: Flask) -> None:
    """A page of this site needs no token here; the app's own forms need theirs as before."""
    client = log_in(protected, "session")
    for headers in ({}, {"Origin": HERE}, {"Sec-Fetch-Site": "same-origin"}):
        assert claim(client, **headers).status_code == 200
    for _ in range(2):
        assert client.post("/form").status_code == 400
    token = client.get("/form").text
    assert client.post("/form", headers={"X-CSRFToken": token}).status_code == 200


def test_every_endpoint_is_exempt_from_flask_wtf(protected: Flask) -> None:
    """No HTML 400 anywhere: the endpoints answer for themselves."""
    client = log_in(protected, "session")
    for row in OPERATIONS:
        response = client.open(path_of(row), method=row.method, json={}, buffered=True)
        assert response.status_code != 400, row.name
        assert response.mimetype != "text/html"
    assert client.put(f"{PREFIX}/nope").get_json()["code"] == "not_found"
    assert client.post("/form").status_code == 400


def test_the_token_of_flask_wtf_is_a_proof_too(protected: Flask) -> None:
    """A page that has it was served by this app, wherever its request seems to come from."""
    client = log_in(protected, "session")
    token = client.get("/form").text
    for name in ("X-CSRFToken", "X-CSRF-Token"):
        for headers in ({"Origin": "null"}, CROSS_SITE, {"Origin": "http://evil.example"}):
            assert claim(client, **headers, **{name: token}).status_code == 200


def test_a_wrong_token_of_flask_wtf_is_no_proof(protected: Flask) -> None:
    """Forged, empty, or another session's."""
    client = log_in(protected, "session")
    client.get("/form")
    other = log_in(protected, "session").get("/form").text
    for token in ("", "x", other, other[:-1]):
        response = claim(client, **CROSS_SITE, **{"X-CSRFToken": token})
        assert (response.status_code, response.get_json().get("code")) == (403, "cross_site")
    assert claim(client, **{"X-CSRFToken": "x"}).status_code == 200


# -- the order of refusals -----------------------------------------------------------------


class Faults(t.NamedTuple):
    """A request with some things wrong."""

    method: str
    path: str
    headers: dict[str, str]
    body: str
    content_type: str
    logged_in: bool


ORDER = {
    "login": (401, "login_required"),
    "site": (403, "cross_site"),
    "path": (404, "not_found"),
    "method": (405, "method_not_allowed"),
    "size": (413, "too_large"),
    "content type": (415, "not_json"),
    "syntax": (400, "broken_json"),
    "field": (422, "invalid"),
    "query": (422, "invalid"),
    "node": (422, "invalid"),
    "scope": (404, "not_found"),
    "fence": (409, "lease_lost"),
    "permission": (403, "forbidden"),
    "schema": (422, "invalid_result"),
}
RANK = {
    "login": 0, "site": 1, "path": 2, "method": 2, "size": 3, "content type": 4, "syntax": 5, "field": 6,
    "query": 6, "node": 6, "scope": 7, "fence": 8, "permission": 8, "schema": 9,
}  # fmt: skip


class Number(Schema):
    n = fields.Integer(strict=True, required=True)


class Court:
    """Sends requests with faults to one endpoint."""

    #: The faults that a request to this endpoint may have.
    may: t.ClassVar[set[str]] = set(RANK) - {"fence", "permission", "schema"}

    def __init__(self, world: World) -> None:
        self.world = world
        self.mine = world.enqueue("work", user_id="ann")
        self.other = world.enqueue("work", user_id="bob")

    def send(self, faults: set[str]) -> TestResponse:
        path, good, wrong = self.request(faults)
        body = json.dumps(good if "schema" not in faults else wrong)
        if "field" in faults:
            body = json.dumps({**json.loads(body), "unknown": 1})
        if "syntax" in faults:
            body += "}"
        if "size" in faults:
            body += " " * 300_000
        client = log_in(self.world.app, "session") if "login" not in faults else self.world.app.test_client()
        return client.open(
            PREFIX + path + ("?unknown=1" if "query" in faults else ""),
            method="BREW" if "method" in faults else self.method,
            headers=CROSS_SITE if "site" in faults else {},
            data=body,
            content_type="text/plain" if "content type" in faults else "application/json",
            environ_overrides={"HTTP_JOBBER_NODE": "a b"} if "node" in faults else {},
        )

    method = "POST"

    def request(self, faults: set[str]) -> tuple[str, t.Any, t.Any]:
        """Return the path, a good body, and one that breaks the type's schema."""
        raise NotImplementedError

    def job(self, faults: set[str]) -> str:
        return "x" if "path" in faults else str(self.other if "scope" in faults else self.mine)


class Delivery(Court):
    """The result of a job that was claimed twice."""

    may: t.ClassVar[set[str]] = Court.may | {"fence", "schema"}
    method = "PUT"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        for _ in range(2):
            for name in ("ann", "bob"):
                [job] = world.client(name).claim()
                if job["attempt"] == 1:
                    world.client(name).release(job)

    def request(self, faults: set[str]) -> tuple[str, t.Any, t.Any]:
        attempt = 1 if "fence" in faults else 2
        return (
            f"/jobs/{self.job(faults)}/attempts/{attempt}/result",
            {"result": {"n": 1}},
            {"result": {"n": "x"}},
        )


class Cancellation(Court):
    may: t.ClassVar[set[str]] = Court.may | {"permission"}

    def request(self, faults: set[str]) -> tuple[str, t.Any, t.Any]:
        self.world.app.config["MAY"] = "permission" not in faults
        return f"/jobs/{self.job(faults)}/cancel", {}, {}


@pytest.mark.parametrize("court", [Delivery, Cancellation])
def test_of_two_faults_the_earlier_is_told(
    make_world: MakeWorld, sqlite_url: str, court: type[Court]
) -> None:
    """401, cross-site, path, size, content type, syntax, fields, scope, permission or fence, schema."""
    world = make_world(sqlite_url, JOBBER_MAX_DATA_BYTES=1000, JOBBER_MAX_RESULT_BYTES=1000, MAY=False)
    world.jobber.registry.hooks["permission"] = lambda action, job: world.app.config["MAY"]
    world.jobber.job_type("work", schema=Number)
    add_login(world.app)
    bench, wrong = court(world), []
    for pair in itertools.combinations_with_replacement(sorted(bench.may, key=RANK.__getitem__), 2):
        first = pair[0]
        if RANK[first] == RANK[pair[1]] and len(set(pair)) > 1:
            continue
        response = bench.send(set(pair))
        said = (response.status_code, response.get_json().get("code"))
        if said != ORDER[first]:
            wrong.append(f"{pair}: {said}")
    assert not wrong, "\n".join(wrong)


def test_an_enqueue_is_refused_for_its_fields_before_its_sender_and_for_its_data_last(lite: World) -> None:
    """422 ``invalid``, then 403, then 422 of the type's schema, then 409."""
    lite.jobber.job_type("work", data_schema=Number)
    lite.enqueue("free", unique_key="taken")
    root, ann = lite.client("root"), lite.client("ann")
    bad = {"type": "work", "data": {"n": "x"}}
    assert ann.post("/jobs", {**bad, "priority": "x"}).status_code == 422
    assert ann.post("/jobs", bad).get_json()["code"] == "forbidden"
    assert ann.post("/jobs", {"type": "free", "unique_key": "taken"}).get_json()["code"] == "forbidden"
    assert root.post("/jobs", {**bad, "unique_key": "taken"}).get_json()["errors"].keys() == {"data"}
    assert root.post("/jobs", {"type": "free", "unique_key": "taken"}).get_json()["code"] == "duplicate"


def test_a_stranger_is_told_nothing_but_to_log_in(lite: World, caplog: pytest.LogCaptureFixture) -> None:
    """No body is read, no hook is asked, and no row is looked at."""
    lite.jobber.registry.hooks["scope"] = lambda: pytest.fail("asked")
    with caplog.at_level(logging.INFO):
        for row in PRIVATE:
            response = lite.app.test_client().open(path_of(row), method=row.method, data=b"\xff" * 1000)
            assert response.status_code == 401
    assert not caplog.records
