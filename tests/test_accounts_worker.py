"""A worker's own side: its credentials, its file, and the whole way with the real programs."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import typing as t

import httpx2
import pytest
from click.testing import CliRunner, Result

from accounts_support import Site
from conftest import MakeWorld
from flask_jobber import Handlers
from flask_jobber.client import (
    Busy,
    ClientCredentials,
    ClientError,
    Disconnected,
    JobberClient,
    LoginRequired,
)
from flask_jobber.worker import command, file
from support import World

URL = "https://app.example/jobber"
TOKEN_URL = "https://app.example/oauth/token"
LIMIT = 60
handlers = Handlers()


@handlers("work")
def work(job: t.Any) -> t.Any:
    return {"by": job.node, "data": job.data}


# -- credentials --------------------------------------------------------------------------


class Fake:
    """A server that counts what it is asked for."""

    def __init__(self, *answers: httpx2.Response, expires_in: t.Any = 3600) -> None:
        self.answers, self.expires_in = list(answers), expires_in
        self.tokens, self.calls = 0, list[str]()
        #: Tokens that it takes.
        self.good = set[str]()
        self.lock = threading.Lock()
        self.timeouts = list[t.Any]()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        with self.lock:
            self.timeouts.append(request.extensions.get("timeout"))
            if str(request.url) == TOKEN_URL:
                assert b"grant_type=client_credentials" in request.content
                assert "Authorization" not in request.headers
                if self.answers:
                    return self.answers.pop(0)
                self.tokens += 1
                self.good = {f"t{self.tokens}"}
                told = {"access_token": f"t{self.tokens}", "token_type": "Bearer"}
                return httpx2.Response(200, json=told | {"expires_in": self.expires_in})
            token = request.headers["Authorization"].removeprefix("Bearer ")
            self.calls.append(token)
            if token in self.good:
                return httpx2.Response(200, json={"jobs": []})
            problem = {"code": "login_required", "detail": "Log in.", "retryable": False}
            return httpx2.Response(401, json=problem, headers={"Content-Type": "application/problem+json"})

    def client(self, auth: t.Any = None) -> JobberClient:
        auth = auth or ClientCredentials(TOKEN_URL, "id", "secret")
        return JobberClient(URL, auth, patience=0, transport=httpx2.MockTransport(self))


def test_a_token_is_asked_for_once_and_kept() -> None:
    """With the time limit of the calls it is for."""
    fake = Fake()
    with fake.client() as client:
        for _ in range(3):
            client.claims()
    assert (fake.tokens, fake.calls) == (1, ["t1"] * 3)
    assert all(timeout["read"] == 30 for timeout in fake.timeouts)


def test_a_token_is_renewed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute, or a tenth of a short one's length."""
    now = [0.0]
    monkeypatch.setattr("flask_jobber.client.credentials.time.monotonic", lambda: now[0])
    fake = Fake(expires_in=3600)
    with fake.client() as client:
        for moment in (0, 3569.9, 3570, 3571):
            now[0] = moment
            client.claims()
    assert fake.calls == ["t1", "t1", "t2", "t2"]


def test_a_token_that_is_refused_is_renewed_once() -> None:
    """Then the refusal stands."""
    fake = Fake()
    with fake.client() as client:
        client.claims()
        fake.good = set()
        client.claims()
        assert fake.calls == ["t1", "t1", "t2"]
        fake.answers = [httpx2.Response(200, json={"access_token": "bad", "token_type": "bearer"})]
        fake.good = set()
        with pytest.raises(LoginRequired):
            client.claims()
    assert fake.calls[3:] == ["t2", "bad"]


def test_threads_share_a_token() -> None:
    """Who comes second takes what the first has got, at the beginning and after a refusal."""
    fake = Fake()
    with fake.client() as client:
        for tokens in (1, 2):
            threads = [threading.Thread(target=client.claims) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert fake.tokens == tokens
            fake.good = set()


REFUSED = {"error": "invalid_client", "error_description": "No such client."}
REFUSALS: list[tuple[httpx2.Response, type[ClientError], bool]] = [
    (httpx2.Response(401, json=REFUSED), LoginRequired, False),
    (httpx2.Response(400, json={"error": "invalid_request"}), ClientError, False),
    (httpx2.Response(429, json={"error": "too_many_failures"}, headers={"Retry-After": "7"}), Busy, True),
    (httpx2.Response(503, json={"error": "temporarily_unavailable"}), Busy, True),
    (httpx2.Response(502, text="<html>"), Disconnected, True),
    (httpx2.Response(404, text="<html>"), ClientError, False),
    (httpx2.Response(200, text="<html>"), ClientError, False),
    (httpx2.Response(200, json=["x"]), ClientError, False),
    (httpx2.Response(302, headers={"Location": "https://evil.example"}), ClientError, False),
    (httpx2.Response(200, json={"access_token": "a\r\nb: c", "token_type": "bearer"}), ClientError, False),
    (httpx2.Response(200, json={"access_token": "a", "token_type": "mac"}), ClientError, False),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "error", "retryable"), REFUSALS)
def test_what_is_no_token_is_an_error_of_the_clients(
    answer: httpx2.Response, error: type[ClientError], retryable: bool
) -> None:
    """As told as the token endpoint tells; nothing is sent without a token."""
    fake = Fake(answer)
    with fake.client() as client, pytest.raises(ClientError) as caught:
        client.claims()
    assert type(caught.value) is error
    assert caught.value.retryable is retryable
    assert fake.calls == []
    if answer.headers.get("Retry-After"):
        assert caught.value.retry_after == 7


def test_a_secret_is_not_shown() -> None:
    """Where an object is printed."""
    auth = ClientCredentials(TOKEN_URL, "id", "hush")
    assert "hush" not in repr(auth)
    with pytest.raises(ValueError, match="token_url"):
        ClientCredentials("app.example", "id", "hush")


# -- the file -----------------------------------------------------------------------------


class Asked(t.NamedTuple):
    result: Result
    #: What the worker was to do, when it came to that.
    values: dict[str, t.Any]


Ask = t.Callable[..., Asked]


@pytest.fixture
def ask(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run ``jobber-worker -c`` up to where it would work."""
    for name in [name for name in os.environ if name.startswith("JOBBER_")]:
        monkeypatch.delenv(name)

    def ask(text: str, *args: str, mode: int = 0o600, **environ: str) -> Asked:
        path = tmp_path / "foo.toml"
        path.write_text(text)
        path.chmod(mode)
        seen = dict[str, t.Any]()

        def run(supplies: t.Callable[[str], list[t.Any]], **how: t.Any) -> None:
            seen.update(how, sources=[supply.source for supply in supplies("n")])

        monkeypatch.setattr(command, "run", run)
        result = CliRunner().invoke(command.main, ["-c", str(path), *args], env=environ)
        return Asked(result, seen)

    return ask


WHOLE = f"""
server = "{URL}"
token_url = "{TOKEN_URL}"
client_id = "id"
client_secret = "hush"
handlers = "test_accounts_worker"
name = "node-1"
types = ["work", "play"]
queues = "a, b"
concurrency = 3
burst = true
"""


def test_a_file_says_all_that_options_say(ask: Ask) -> None:
    """With lists as lists."""
    asked = ask(WHOLE)
    assert asked.result.exit_code == 0, asked.result.output
    values = asked.values
    assert (values["name"], values["types"], values["queues"]) == ("node-1", ("work", "play"), ("a", "b"))
    assert (values["concurrency"], values["burst"], values["max_jobs"]) == (3, True, None)
    assert [source.label for source in values["sources"]] == [URL]


def test_options_go_before_the_environment_and_that_before_the_file(ask: Ask) -> None:
    """Each for itself."""
    environ = {"JOBBER_NAME": "node-2", "JOBBER_CONCURRENCY": "5", "JOBBER_SERVER": "https://app.example/2"}
    values = ask(WHOLE, "--concurrency", "7", **environ).values
    assert (values["name"], values["concurrency"], values["burst"]) == ("node-2", 7, True)
    assert [source.label for source in values["sources"]] == ["https://app.example/2"]


def test_the_environment_alone_will_do(ask: Ask) -> None:
    """Secrets too; a file may hold none."""
    environ = {"JOBBER_CLIENT_SECRET": "hush", "JOBBER_HANDLERS": "test_accounts_worker"}
    text = f'server = "{URL}"\ntoken_url = "{TOKEN_URL}"\nclient_id = "id"'
    asked = ask(text, mode=0o644, **environ)
    assert asked.result.exit_code == 0, asked.result.output


WRONG = {
    'serve = "x"': "did you mean 'server'",
    'concurrency = "3"': "concurrency is a whole number",
    "concurrency = true": "concurrency is a whole number",
    "types = [1]": "types is a text or a list of texts",
    "burst = 1": "burst is true or false",
    'types = "a b"': "is not names",
    "concurrency = 0": "is not in the range",
    "x": "foo.toml",
    'name = "a/b"': "it matches",
    "": "a server",
    f'server = "{URL}"\nclient_id = "id"': "say token_url and client_secret too",
    f'server = ["{URL}", "https://b.example"]\ntoken_url = "{TOKEN_URL}"\n'
    'client_id = "id"\nclient_secret = "x"': "no other site",
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), WRONG.items())
def test_what_is_wrong_in_a_file_is_told(ask: Ask, text: str, told: str) -> None:
    """With 2, before anything is sent."""
    asked = ask(text, "test_accounts_worker:handlers")
    assert asked.result.exit_code == 2, asked.result.output
    assert told in " ".join(asked.result.output.split())
    assert asked.values == {}


@pytest.mark.parametrize(("mode", "code"), [(0o604, 2), (0o602, 2), (0o660, 2), (0o640, 0), (0o600, 0)])
def test_a_secret_that_is_open_to_others_is_refused(ask: Ask, mode: int, code: int) -> None:
    """Whoever may read it all, or write it; the group may read."""
    asked = ask(WHOLE, mode=mode)
    assert asked.result.exit_code == code
    assert ("chmod 600" in asked.result.output) is (code == 2)
    assert "hush" not in asked.result.output


def test_a_file_that_is_not_there_is_told() -> None:
    """By its name."""
    result = CliRunner().invoke(command.main, ["-c", "/absent.toml"])
    assert result.exit_code == 2
    assert "/absent.toml" in result.output


def test_every_option_has_its_key_and_every_key_its_option() -> None:
    """But for the file itself, and headers, which may hold anything."""
    options = {param.name for param in command.main.params} - {"config", "headers"}
    assert {name for name, _ in file.KEYS.values()} == options


# -- the whole way ------------------------------------------------------------------------

APP = """
import os

from flask import Flask
from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect

from flask_jobber import Jobber
from flask_jobber.accounts import Workers

app = Flask(__name__)
app.config.update(SECRET_KEY="test", SQLALCHEMY_DATABASE_URI=os.environ["APP_DATABASE"])
db, csrf, manager = SQLAlchemy(app), CSRFProtect(app), LoginManager(app)
jobber = Jobber(db)
workers = Workers(jobber, token_seconds=int(os.environ.get("APP_TOKEN_SECONDS", "3600")))
app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
app.register_blueprint(workers.blueprint)
with app.app_context():
    db.create_all()


@app.cli.command("add")
def add():
    for n in range(5):
        jobber.enqueue("work", n, queue="a")
    jobber.enqueue("work", "not for it", queue="b")
    db.session.commit()
"""
HANDLERS = """
from flask_jobber import Handlers

handlers = Handlers()


@handlers("work")
def work(job):
    return job.data * 2
"""
JOBBER_WORKER = (sys.executable, "-c", "from flask_jobber.worker.command import main; main()")


@pytest.fixture
def flask(tmp_path: pathlib.Path, db_url: str, make_world: MakeWorld) -> t.Callable[..., str]:
    """Run ``flask`` for the app, in a folder of its own."""
    make_world(db_url)  # empties it
    (tmp_path / "app.py").write_text(APP)
    environ = {**os.environ, "APP_DATABASE": db_url}

    def flask(*args: str) -> str:
        words = [sys.executable, "-m", "flask", *args]
        done = subprocess.run(
            words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return flask


@contextlib.contextmanager
def serving(folder: pathlib.Path, **environ: str) -> t.Iterator[str]:
    """Serve the app; yield its address."""
    words = [sys.executable, "-u", "-m", "flask", "run", "--port", "0"]
    with subprocess.Popen(
        words, cwd=folder, env={**os.environ, **environ}, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        try:
            line = next(line for line in server.stderr if "Running on" in line)
            threading.Thread(target=server.stderr.read, daemon=True).start()
            yield line.split()[-1]
        finally:
            server.send_signal(signal.SIGKILL)


def test_one_file_is_all_that_a_worker_needs(
    flask: t.Callable[..., str], tmp_path: pathlib.Path, db_url: str
) -> None:
    """Made on one machine, run on another; the tokens it needs it renews; locked, it leaves with 1."""
    flask("jobber", "worker", "create", "robot")
    flask("jobber", "queue", "hire", "a", "robot")
    flask("add")
    far = tmp_path / "far"
    far.mkdir()
    (far / "tasks.py").write_text(HANDLERS)
    with serving(tmp_path, APP_DATABASE=db_url, APP_TOKEN_SECONDS="1") as url:
        how = ("--url", url, "--handlers", "tasks:handlers")
        flask("jobber", "worker", "config", "-o", str(far / "foo.toml"), *how, "robot")
        environ = {**os.environ, "NO_PROXY": "*", "JOBBER_CONCURRENCY": "1", "JOBBER_BURST": "1"}
        words = [*JOBBER_WORKER, "-c", "foo.toml"]
        run = {"cwd": far, "env": environ, "capture_output": True, "text": True, "timeout": LIMIT}
        done = subprocess.run(words, check=False, **run)
        assert done.returncode == 0, done.stderr
        listed = json.loads(flask("jobber", "jobs", "list", "--json"))["jobs"]
        assert [job["state"] for job in listed] == ["succeeded"] * 5 + ["queued"]
        assert [job["result"] for job in listed[:5]] == [0, 2, 4, 6, 8]
        assert all(job["locker"].startswith("account:robot/") for job in listed[:5])

        flask("jobber", "worker", "lock", "robot")
        done = subprocess.run(words, check=False, **run)
        assert done.returncode == 1
        assert "locked" in done.stderr


def test_a_client_of_a_real_worker(lite: World) -> None:
    """The client against the blueprint itself: it claims, delivers, and renews a dead token."""
    site = Site(lite)
    credentials = site.create("robot", "default")
    lite.enqueue()
    transport = httpx2.WSGITransport(app=lite.app)
    auth = ClientCredentials("http://localhost/oauth/token", credentials.client_id, credentials.client_secret)
    with JobberClient("http://localhost/jobber", auth, patience=0, transport=transport) as client:
        [job] = client.claim()
        with lite.session() as session:
            session.execute(site.workers._tables.token.delete())
        assert client.deliver(job, 1) == "succeeded"
        site.do("lock", "robot")
        with pytest.raises(LoginRequired, match="locked"):
            client.claims()
