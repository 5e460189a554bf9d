from __future__ import annotations

import ast
import collections
import dataclasses
import datetime as dt
import logging
import math
import pathlib
import pickle
import runpy
import sys
import threading
import typing as t

import httpx2
import pytest
from marshmallow import Schema, fields
from werkzeug.serving import make_server

from conftest import MakeWorld
from flask_jobber import ResultRejected
from flask_jobber import client as package
from flask_jobber.api.problems import CODES
from flask_jobber.client import (
    AlreadySettled,
    Busy,
    Cancelled,
    ClaimedJob,
    ClientError,
    Disconnected,
    Duplicate,
    Forbidden,
    IllegalTransition,
    Invalid,
    JobberClient,
    KeyReused,
    LeaseLost,
    LoginRequired,
    NotFound,
    QueueFull,
    ResultRefused,
    ServerError,
    TooLarge,
    TooManyClaims,
    errors,
    transport,
)
from flask_jobber.client.work import Handler
from support import PREFIX, World

BASE = "https://example.org/jobber"
IN_TIME = 10  # seconds that a test waits for what must happen
Answer = httpx2.Response | Exception
JOB = {
    "id": 7,
    "type": "work",
    "data": {"x": 1},
    "queue": "default",
    "priority": 0,
    "attempt": 2,
    "failures": 1,
    "max_attempts": 10,
    "lease_seconds": 600.0,
    "enqueued_at": "2026-01-02T03:04:05.000006Z",
    "href": "/jobber/jobs/7/attempts/2",
    "attachments": [],
}


class Clock:
    """Time that only a sleep moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


class Script:
    """A server that gives these answers, the last one for ever, and keeps the requests."""

    def __init__(self, *answers: Answer, **options: t.Any) -> None:
        self.requests: list[httpx2.Request] = []
        self._answers = collections.deque(answers)
        self.client = JobberClient(BASE, transport=httpx2.MockTransport(self._answer), **options)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._answers.popleft() if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


class Tap(httpx2.BaseTransport):
    """A transport that lets a test act on each answer before the client has it."""

    def __init__(self, on_answer: t.Callable[[httpx2.Request, httpx2.Response], None]) -> None:
        self._inner = httpx2.HTTPTransport()
        self._on_answer = on_answer

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._inner.handle_request(request)
        response.read()
        self._on_answer(request, response)
        return response

    def close(self) -> None:
        self._inner.close()


class Stop(threading.Event):
    """A stop that takes no time to wait for, but a clock's."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self.waits: list[float | None] = []
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        if self._clock is not None:
            self._clock.sleep(timeout or 0)
        return self.is_set()


def problem(status: int, code: str, **facts: t.Any) -> httpx2.Response:
    body = {"type": "about:blank", "status": status, "code": code, "detail": "Because.", "retryable": False}
    headers = {"Content-Type": "application/problem+json"}
    return httpx2.Response(status, json=body | facts, headers=headers)


def busy(retry_after: int = 2) -> httpx2.Response:
    response = problem(503, "busy", retryable=True)
    response.headers["Retry-After"] = str(retry_after)
    return response


def ok(**body: t.Any) -> httpx2.Response:
    return httpx2.Response(200, json=body)


def nothing(retry_after: float = 5.0) -> httpx2.Response:
    return ok(jobs=[], retry_after=retry_after)


def claimed(**changes: t.Any) -> ClaimedJob:
    """Return a job as a client gets it."""
    return Script(ok(jobs=[JOB | changes], retry_after=0)).client.claim()[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(transport, "time", clock)
    return clock


class Live:
    """A world behind a real HTTP server, and the clients of its users."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._server = make_server("127.0.0.1", 0, world.app, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self._clients: list[JobberClient] = []

    def client(self, user: str | None = "ann", patience: float = 0, **options: t.Any) -> JobberClient:
        """Return a client that hides no trouble by a retry, unless told to."""
        url = f"http://127.0.0.1:{self._server.port}{PREFIX}"
        self._clients.append(JobberClient(url, auth=user, patience=patience, **options))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def live(lite: World) -> t.Iterator[Live]:
    live = Live(lite)
    yield live
    live.close()


# -- what is sent -------------------------------------------------------------------------


def test_says_who_it_is() -> None:
    """Token, node, headers and cookies go with every request, below the prefix."""
    script = Script(nothing(), auth="t0ken", node="n-1", headers={"X-App": "a"}, cookies={"session": "s"})
    script.client.claim()
    (request,) = script.requests
    assert str(request.url) == f"{BASE}/claims"
    assert request.headers["Authorization"] == "Bearer t0ken"
    assert request.headers["Jobber-Node"] == "n-1"
    assert request.headers["X-App"] == "a"
    assert request.headers["Cookie"] == "session=s"
    assert request.headers["Accept"] == "application/json"


def test_takes_any_auth_of_the_http_library() -> None:
    """A pair is Basic, as in the library."""
    script = Script(nothing(), auth=("ann", "secret"))
    script.client.claim()
    assert script.requests[0].headers["Authorization"].startswith("Basic ")


def test_refuses_a_base_url_without_a_scheme() -> None:
    """The mistake is told where it is made."""
    with pytest.raises(ValueError, match="begins with http"):
        JobberClient("example.org/jobber")


def test_sends_no_defaults_of_its_own() -> None:
    """What the caller does not say is the server's to choose."""
    script = Script(nothing())
    script.client.claim()
    assert script.requests[0].read() == b'{"limit":1}'


def test_waits_for_the_network_longer_when_the_server_may_wait() -> None:
    """A long claim is no lost one."""
    script = Script(nothing(), timeout=5)
    script.client.claim(wait_seconds=20)
    assert script.requests[0].extensions["timeout"]["read"] == 25


def test_closes_with_its_block() -> None:
    """After the block it sends nothing."""
    script = Script(nothing())
    with script.client as client:
        client.claim()
    with pytest.raises(RuntimeError, match="closed"):
        client.claim()


@pytest.mark.parametrize(
    "result", [math.nan, {"x": math.inf}, object(), "\ud800"], ids=["nan", "inf", "object", "surrogate"]
)
def test_refuses_a_result_that_is_not_json_before_sending(result: object) -> None:
    """The worker hears of its own mistake from its own machine."""
    script = Script(ok(state="succeeded"))
    with pytest.raises((TypeError, ValueError)):
        script.client.deliver(claimed(), result)
    assert script.requests == []


def test_refuses_naive_instants() -> None:
    """An instant without a zone means something else on each machine."""
    script = Script(ok())
    with pytest.raises(ValueError, match="time zone"):
        script.client.enqueue("work", run_at=dt.datetime(2026, 1, 1))
    assert script.requests == []


# -- what comes back ----------------------------------------------------------------------


def test_claimed_jobs_have_the_names_of_the_wire() -> None:
    """Every field under its own name, the instant aware, and what is new left out."""
    job = claimed(colour="a newer server's")
    assert {field.name for field in dataclasses.fields(job)} == set(JOB)
    assert job.enqueued_at == dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
    assert (job.id, job.attempt, job.data) == (7, 2, {"x": 1})


def test_claimed_jobs_are_frozen_and_hashable() -> None:
    """They may be keys, whatever their data."""
    job = claimed()
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.id = 8  # type: ignore[misc]
    assert {job, claimed()} == {job}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("login_required", LoginRequired),
        ("forbidden", Forbidden),
        ("cross_site", Forbidden),
        ("not_found", NotFound),
        ("lease_lost", LeaseLost),
        ("cancelled", Cancelled),
        ("already_settled", AlreadySettled),
        ("invalid", Invalid),
        ("invalid_result", ResultRefused),
        ("result_rejected", ResultRefused),
        ("duplicate", Duplicate),
        ("illegal_transition", IllegalTransition),
        ("queue_full", QueueFull),
        ("too_many_claims", TooManyClaims),
        ("too_large", TooLarge),
        ("busy", Busy),
        ("internal", ServerError),
        ("not_yet_invented", ClientError),
    ],
)
def test_a_refusal_has_the_type_of_its_code(code: str, kind: type[ClientError]) -> None:
    """And says all that the server said."""
    script = Script(problem(499, code, errors={"f": ["No."]}, then="release"))
    with pytest.raises(ClientError) as caught:
        script.client.claims()
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.detail) == (499, code, "Because.")
    assert (error.errors, error.then, error.retryable) == ({"f": ["No."]}, "release", False)
    assert "Because." in str(error)


def test_every_code_of_the_server_has_a_type() -> None:
    """Except those of requests that this client does not make."""
    never = {"method_not_allowed", "not_json", "broken_json"}
    assert set(CODES) - never <= set(errors._BY_CODE)


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, html="<p>Welcome to our airport</p>"),
        httpx2.Response(200, json=["another service"]),
        httpx2.Response(302, headers={"Location": "/login"}),
        httpx2.Response(404, html="Not here"),
        httpx2.Response(404, json={"code": "another service's"}),
        httpx2.Response(500, html="Oops"),
        httpx2.Response(200, headers={"Content-Type": "application/json"}, content=b"{"),
    ],
    ids=["page", "list", "redirect", "404", "foreign-404", "500", "broken"],
)
def test_an_answer_of_something_else_is_a_client_error(answer: httpx2.Response) -> None:
    """With its status and what to look at; nobody has to parse a page."""
    script = Script(answer)
    with pytest.raises(ClientError, match="base_url") as caught:
        script.client.claims()
    assert (caught.value.status, caught.value.code) == (answer.status_code, "unexpected_answer")
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "error",
    [Invalid(422, "invalid", "No.", errors={"f": ["No."]}), Disconnected(None, "Gone.", in_doubt=False)],
    ids=["refused", "lost"],
)
def test_errors_survive_pickling(error: ClientError) -> None:
    """A pool of processes hands them to its parent."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)


# -- what is tried again ------------------------------------------------------------------


def test_tries_again_what_is_retryable_as_late_as_told(clock: Clock) -> None:
    """Retry-After is a lower bound, and the jitter on it is small."""
    script = Script(busy(3), busy(4), ok(jobs=[JOB], retry_after=0))
    assert len(script.client.claim()) == 1
    first, second = clock.sleeps
    assert 3 <= first <= 3.2
    assert 4 <= second <= 4.4


def test_tries_nothing_else_again(clock: Clock) -> None:
    """A final answer is final at once."""
    script = Script(problem(422, "invalid"))
    with pytest.raises(Invalid):
        script.client.claim()
    assert (len(script.requests), clock.sleeps) == (1, [])


def test_is_patient_only_so_long(clock: Clock) -> None:
    """The last answer is raised before the patience would end in a sleep."""
    script = Script(busy(7), patience=60)
    with pytest.raises(Busy):
        script.client.claim()
    assert 40 <= sum(clock.sleeps) < 60


def test_does_not_wait_for_what_comes_too_late(clock: Clock) -> None:
    """The caller hears at once, and how long the server asked for."""
    script = Script(busy(3600))
    with pytest.raises(Busy) as caught:
        script.client.claim()
    assert (caught.value.retry_after, caught.value.retryable, clock.sleeps) == (3600, True, [])


def test_without_patience_tries_once(clock: Clock) -> None:
    """Zero is one try, lost or refused."""
    for answer in (busy(0), httpx2.ConnectError("no")):
        script = Script(answer, patience=0)
        with pytest.raises(ClientError):
            script.client.claim()
        assert len(script.requests) == 1


def test_waits_out_any_outage_when_told(clock: Clock) -> None:
    """The pauses grow to seconds, not without end."""
    script = Script(*[httpx2.ConnectError("no")] * 3000, nothing(), patience=math.inf)
    assert script.client.claim() == []
    assert max(clock.sleeps) <= 12.8


VERBS: dict[str, tuple[t.Callable[[JobberClient], object], bool]] = {
    "claim": (lambda client: client.claim(), True),
    "claims": (lambda client: client.claims(), True),
    "deliver": (lambda client: client.deliver(claimed(), 1), True),
    "fail": (lambda client: client.fail(claimed(), "broke"), True),
    "extend": (lambda client: client.extend(claimed()), True),
    "release": (lambda client: client.release(claimed()), True),
    "exchange": (lambda client: client.exchange(claim={}), True),
    "job": (lambda client: client.job(7), True),
    "jobs": (lambda client: list(client.jobs()), True),
    "history": (lambda client: client.history(7), True),
    "enqueue": (lambda client: client.enqueue("work"), True),
    "cancel": (lambda client: client.cancel(7), False),
    "retry": (lambda client: client.retry(7), False),
}
REACHED = [
    httpx2.ReadError("reset"),
    httpx2.ReadTimeout("slow"),
    httpx2.WriteError("reset"),
    httpx2.RemoteProtocolError("closed"),
    httpx2.Response(502, html="Bad gateway"),
    httpx2.Response(504, html="Timeout"),
]
UNREACHED = [httpx2.ConnectError("refused"), httpx2.ConnectTimeout("slow"), httpx2.PoolTimeout("many")]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("lost", REACHED, ids=lambda lost: getattr(lost, "status_code", type(lost).__name__))
@pytest.mark.parametrize("name", VERBS)
def test_a_lost_answer_is_asked_for_again_where_that_does_nothing_twice(name: str, lost: Answer) -> None:
    """Otherwise the caller hears that it may have been done."""
    call, repeats = VERBS[name]
    script = Script(lost, problem(404, "not_found"))
    with pytest.raises(NotFound if repeats else Disconnected) as caught:
        call(script.client)
    assert len(script.requests) == 1 + repeats
    assert caught.value.in_doubt


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("lost", UNREACHED, ids=lambda lost: type(lost).__name__)
@pytest.mark.parametrize("name", VERBS)
def test_what_was_not_sent_is_always_sent_again(name: str, lost: Answer) -> None:
    """Without a connection nothing can have been done."""
    call, _ = VERBS[name]
    script = Script(lost, problem(404, "not_found"))
    with pytest.raises(NotFound) as caught:
        call(script.client)
    assert len(script.requests) == 2
    assert not caught.value.in_doubt


@pytest.mark.usefixtures("clock")
def test_an_early_doubt_is_not_forgotten() -> None:
    """A request that may have arrived stays in doubt, though its repetition had no connection."""
    script = Script(httpx2.ReadError("reset"), httpx2.ConnectError("refused"))
    with pytest.raises(Disconnected) as caught:
        script.client.claim()
    assert caught.value.in_doubt


@pytest.mark.usefixtures("clock")
def test_a_gateway_alone_is_a_lost_connection() -> None:
    """Its page is no answer of the app's; its status is told."""
    script = Script(httpx2.Response(503, html="Down for maintenance", headers={"Retry-After": "20"}))
    with pytest.raises(Disconnected) as caught:
        script.client.claim()
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "disconnected", 20)
    assert len(script.requests) == 3


@pytest.mark.usefixtures("clock")
def test_a_release_that_was_done_is_done() -> None:
    """Its repetition hears lease_lost, which only tells that the first was heard."""
    script = Script(httpx2.ReadError("reset"), problem(409, "lease_lost"))
    script.client.release(claimed())
    assert len(script.requests) == 2


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "before", [[], [busy()], [httpx2.ConnectError("no")]], ids=["first", "busy", "unsent"]
)
def test_a_release_of_what_is_not_held_is_refused(before: list[Answer]) -> None:
    """Unless a lost request may have done it, lease_lost is what it says."""
    script = Script(*before, problem(409, "lease_lost"))
    with pytest.raises(LeaseLost):
        script.client.release(claimed())


# -- failures -----------------------------------------------------------------------------


def sent_error(error: BaseException | str) -> dict[str, t.Any]:
    script = Script(ok(state="scheduled"))
    assert script.client.fail(claimed(), error) == "scheduled"
    return t.cast(dict[str, t.Any], httpx2.Response(200, content=script.requests[0].read()).json()["error"])


def test_a_failure_tells_type_message_and_traceback() -> None:
    """As much as a log on the worker would."""
    try:
        raise httpx2.ReadError("reset")
    except httpx2.ReadError as error:
        told = sent_error(error)
    assert (told["type"], told["message"]) == ("httpx2.ReadError", "reset")
    assert "test_client.py" in told["traceback"]


def test_a_failure_may_be_a_text() -> None:
    """For what is no exception."""
    assert sent_error("no disk") == {"type": "Error", "message": "no disk"}


def test_a_failure_always_fits() -> None:
    """However long or odd its text, the server has nothing to refuse; of the traceback the end is kept."""
    told = sent_error(ValueError("\0\ud800" + "x" * 30_000))
    assert told["type"] == "ValueError"
    assert len(told["message"]) == 2_000
    assert len(told["traceback"]) == 20_000
    assert told["traceback"].endswith("x\n")
    assert not {"\0", "\ud800"} & {*told["message"], *told["traceback"]}


def test_a_failure_survives_an_exception_that_cannot_be_printed() -> None:
    """Its class says enough."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert sent_error(Mute())["type"].endswith("Mute")


# -- the package --------------------------------------------------------------------------


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks the HTTP library reads what to install."""
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ImportError, match=r"pip install flask-jobber\[worker\]"):
        runpy.run_path(package.__file__)


def test_imports_nothing_else_of_the_package() -> None:
    """A worker's machine needs this module and the HTTP library."""
    folder = pathlib.Path(package.__file__).parent
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert all(node.level <= 1 for node in imports), path
        assert not any((node.module or "").startswith("flask") for node in imports if not node.level), path


# -- against a server ---------------------------------------------------------------------


def test_delivers_what_it_claims(live: Live) -> None:
    """The whole way of a job; its deliverer may see the result."""
    job_id = live.world.enqueue("work", {"x": 1}, priority=3)
    ann = live.client()
    (job,) = ann.claim(["work"])
    assert (job.id, job.attempt, job.data, job.priority) == (job_id, 1, {"x": 1}, 3)
    assert ann.claims() == [job]
    assert ann.deliver(job, {"y": 2}, extras={"seconds": 1.5}) == "succeeded"
    seen = ann.job(job_id)
    assert (seen.state, seen.result) == ("succeeded", {"y": 2})
    assert seen.finished_at is not None
    assert seen.finished_at.tzinfo is not None
    assert ann.claims() == ann.claim() == []


def test_claims_what_it_asks_for(live: Live) -> None:
    """Types, queues, a number and a length."""
    for queue in ("a", "b", "b"):
        live.world.enqueue("work", queue=queue)
    live.world.enqueue("other", queue="b")
    jobs = live.client().claim(types=["work"], limit=9, queues=["b"], lease_seconds=42)
    assert [(job.type, job.queue, job.lease_seconds) for job in jobs] == [("work", "b", 42)] * 2


def test_a_single_text_is_no_list_of_types(live: Live) -> None:
    """Its letters would be types that nobody has."""
    with pytest.raises(Invalid) as caught:
        live.client().claim("work")
    assert "types" in caught.value.errors


def test_the_first_result_counts(live: Live) -> None:
    """The same again is no error, another one is."""
    live.world.enqueue()
    ann = live.client()
    (job,) = ann.claim()
    assert ann.deliver(job, 1) == ann.deliver(job, 1) == "succeeded"
    with pytest.raises(AlreadySettled):
        ann.deliver(job, 2)


def test_a_broken_processor_is_no_trouble_of_the_clients(live: Live) -> None:
    """The result is submitted; the server goes on by itself."""

    @live.world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        raise RuntimeError

    live.world.enqueue()
    ann = live.client()
    assert ann.deliver(ann.claim()[0], 1) == "submitted"


def test_claims_between_priorities(live: Live) -> None:
    """Alone and in an exchange."""
    for priority in (1, 5, 9):
        live.world.enqueue(priority=priority)
    ann = live.client()
    assert [job.priority for job in ann.claim(limit=9, min_priority=2, max_priority=8)] == [5]
    assert [job.priority for job in ann.exchange(claim={"max_priority": 2}).jobs] == [1]


def test_failures_are_counted_and_told(live: Live) -> None:
    """First another try, then, when that is no use, the end."""
    job_id = live.world.enqueue()
    ann = live.client()
    assert ann.fail(ann.claim()[0], ValueError("broke"), retry_seconds=0) == "scheduled"
    live.world.pass_time(86_400)
    assert ann.fail(ann.claim()[0], "no use", permanent=True) == "failed"
    told = [row.error["message"] for row in ann.history(job_id) if row.error]
    assert told == ["broke", "no use"]


def test_a_failure_may_call_the_job_off(live: Live) -> None:
    """Alone and in an exchange; no failure is counted."""
    ids = [live.world.enqueue() for _ in range(2)]
    ann = live.client()
    first, second = ann.claim(limit=2)
    assert ann.fail(first, "not wanted", cancel=True) == "cancelled"
    (outcome,) = ann.exchange(failures=[(second, "not wanted", False, None, True)]).outcomes
    assert (outcome.status, outcome.state) == (200, "cancelled")
    assert [(job.state, job.failures) for job in map(ann.job, ids)] == [("cancelled", 0)] * 2


def test_extends_and_tells_how_far_it_is(live: Live) -> None:
    """Without a length the last one again."""
    job_id = live.world.enqueue()
    ann = live.client()
    (job,) = ann.claim(lease_seconds=60)
    assert ann.extend(job) == 60
    assert ann.extend(job, 90, progress=0.5, note="halfway") == 90
    seen = ann.job(job_id)
    assert (seen.progress, seen.note) == (0.5, "halfway")


def test_releases_without_a_failure(live: Live) -> None:
    """At once or later; but once."""
    job_id = live.world.enqueue()
    ann = live.client()
    (job,) = ann.claim()
    ann.release(job)
    assert (ann.job(job_id).state, ann.job(job_id).failures) == ("queued", 0)
    with pytest.raises(LeaseLost):
        ann.release(job)
    ann.release(ann.claim()[0], delay_seconds=60)
    assert ann.job(job_id).state == "scheduled"


def test_nodes_of_one_login_are_told_apart(live: Live) -> None:
    """What one machine holds another may not deliver."""
    live.world.enqueue()
    one, two = live.client(node="one"), live.client(node="two")
    (job,) = one.claim()
    assert (one.claims(), two.claims()) == ([job], [])
    with pytest.raises(LeaseLost):
        two.deliver(job, 1)


def test_refusals_are_typed(live: Live) -> None:
    """Each by what the caller can do about it."""
    live.world.enqueue(user_id="ann")
    ann, bob, nobody = live.client("ann"), live.client("bob"), live.client(None)
    (job,) = ann.claim()
    with pytest.raises(NotFound):
        bob.deliver(job, 1)
    with pytest.raises(Forbidden):
        ann.enqueue("work")
    with pytest.raises(Invalid) as invalid:
        ann.claim(limit=0)
    assert set(invalid.value.errors) == {"limit"}
    live.client("root").cancel(job.id)
    with pytest.raises(Cancelled):
        ann.deliver(job, 1)
    with pytest.raises(LoginRequired):
        nobody.claim()


def test_limits_are_typed(make_world: MakeWorld, sqlite_url: str) -> None:
    """Too much held, too much sent."""
    live = Live(make_world(sqlite_url, JOBBER_MAX_OPEN_CLAIMS=1, JOBBER_MAX_RESULT_BYTES=10))
    try:
        live.world.enqueue()
        ann = live.client()
        (job,) = ann.claim()
        with pytest.raises(TooManyClaims) as caught:
            ann.claim()
        assert caught.value.retryable
        assert ann.exchange(claim={}).claim_error is not None
        with pytest.raises(TooLarge):
            ann.deliver(job, "x" * 11)
    finally:
        live.close()


class Even(Schema):
    n = fields.Integer(required=True)


def test_refused_results_tell_why_and_what_now(live: Live) -> None:
    """A schema or a processor refuses; whether the lease is kept is told."""

    @live.world.jobber.processor("work", schema=Even)
    def process(job: t.Any, result: dict[str, int]) -> None:
        if result["n"] % 2:
            raise ResultRejected("odd", then="correct" if result["n"] == 1 else "exclude")

    live.world.enqueue()
    ann = live.client()
    (job,) = ann.claim()
    with pytest.raises(ResultRefused) as misfit:
        ann.deliver(job, {"n": "no"})
    with pytest.raises(ResultRefused, match="odd") as corrected:
        ann.deliver(job, {"n": 1})
    with pytest.raises(ResultRefused, match="odd") as excluded:
        ann.deliver(job, {"n": 3})
    assert misfit.value.errors["result"] == {"n": ["Not a valid integer."]}
    assert [e.value.then for e in (corrected, excluded)] == ["correct", "exclude"]
    assert [e.value.lease_kept for e in (misfit, corrected, excluded)] == [True, True, False]


def test_operators_enqueue_cancel_and_retry(live: Live) -> None:
    """Each returns the job as it is then."""
    root = live.client("root")
    later = dt.datetime(2999, 1, 1, tzinfo=dt.UTC)
    job = root.enqueue("work", [1], queue="q", priority=2, run_at=later, max_attempts=3, unique_key="k")
    assert (job.data, job.queue, job.priority, job.max_attempts) == ([1], "q", 2, 3)
    assert (job.run_at, job.state) == (later, "scheduled")
    with pytest.raises(Duplicate):
        root.enqueue("work", unique_key="k")
    assert root.cancel(job.id).state == "cancelled"
    with pytest.raises(IllegalTransition):
        root.cancel(job.id)
    assert root.retry(job.id).state == "queued"
    root.enqueue("wished", only_for="user_ann", only_for_seconds=60, not_for=["right"])
    assert [job.type for job in live.client("ann").claim(["wished"])] == ["wished"]
    assert live.client("bob").claim(["wished"]) == []


def test_lists_jobs_over_all_pages(live: Live) -> None:
    """By id, however small the pages, and filtered."""
    ids = [live.world.enqueue("work" if n % 2 else "other") for n in range(7)]
    ann = live.client()
    assert [job.id for job in ann.jobs(page_size=3)] == ids
    some = ann.jobs(type="work", state="queued", queue="default", page_size=2)
    assert [job.id for job in some] == ids[1::2]
    assert list(ann.jobs(state="failed")) == []


def test_history_is_oldest_first(live: Live) -> None:
    """From nothing to the pool, then to the holder."""
    job_id = live.world.enqueue()
    ann = live.client()
    ann.claim()
    rows = ann.history(job_id)
    assert [(row.from_, row.to, row.reason) for row in rows] == [
        (None, "queued", "enqueue"),
        ("queued", "locked", "claim"),
    ]
    assert (rows[1].attempt, rows[1].at.tzinfo) == (1, dt.UTC)


def test_an_exchange_settles_many_and_claims_the_next(live: Live) -> None:
    """Outcomes in the order given; one refusal spoils no other."""
    for _ in range(6):
        live.world.enqueue()
    ann = live.client()
    good, bad, broken, kept, back = ann.claim(limit=5)
    ann.deliver(bad, 1)
    answer = ann.exchange(
        results=[(good, 1, {"seconds": 2}), (bad, 2)],
        failures=[(broken, ValueError("broke"), True)],
        extensions=[kept],
        releases=[back],
        claim={"limit": 1, "types": ["work"]},
    )
    assert [(o.id, o.status) for o in answer.outcomes] == [
        (good.id, 200), (bad.id, 409), (broken.id, 200), (kept.id, 200), (back.id, 204),
    ]  # fmt: skip
    assert [o.state for o in answer.outcomes[:3]] == ["succeeded", None, "failed"]
    assert isinstance(answer.outcomes[1].error, AlreadySettled)
    assert answer.outcomes[3].lease_seconds == 600
    assert [o.error for o in answer.outcomes if o.id != bad.id] == [None] * 4
    assert len(answer.jobs) == 1
    assert answer.claim_error is None


def test_an_exchange_tells_why_it_claims_nothing(live: Live) -> None:
    """A bad wish is told beside the outcomes, an empty queue with the time to wait."""
    answer = live.client().exchange(claim={"limit": 0})
    assert isinstance(answer.claim_error, Invalid)
    answer = live.client().exchange(claim={})
    assert (answer.jobs, answer.claim_error) == ((), None)
    assert answer.retry_after is not None
    assert answer.retry_after > 0


# -- answers lost on the way --------------------------------------------------------------


def lossy(live: Live, method: str, path: str) -> JobberClient:
    """Return a client that loses the first answer to this call after the server did it."""
    left = [1]

    def lose(request: httpx2.Request, response: httpx2.Response) -> None:
        if left and request.method == method and request.url.path.endswith(path):
            left.pop()
            raise httpx2.ReadError("reset", request=request)

    return live.client("root", patience=IN_TIME, transport=Tap(lose))


def test_a_delivery_whose_answer_was_lost_is_processed_once(live: Live) -> None:
    """The repetition gets the answer that the first would have had."""
    calls = []

    @live.world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        calls.append(result)

    live.world.enqueue()
    root = lossy(live, "PUT", "/result")
    assert root.deliver(root.claim()[0], 5) == "succeeded"
    assert calls == [5]


def test_a_failure_whose_answer_was_lost_is_counted_once(live: Live) -> None:
    """One exception is one failure, on whatever network."""
    job_id = live.world.enqueue()
    root = lossy(live, "PUT", "/failure")
    assert root.fail(root.claim()[0], ValueError("broke")) == "scheduled"
    assert live.world.job(job_id).failures == 1


def test_a_release_whose_answer_was_lost_is_done(live: Live) -> None:
    """Silently, like any other."""
    job_id = live.world.enqueue()
    root = lossy(live, "DELETE", "/attempts/1")
    root.release(root.claim()[0])
    assert live.world.job(job_id).state == "queued"


def test_a_claim_whose_answer_was_lost_is_listed(live: Live) -> None:
    """The repetition claims the next; what the first got is found among the claims."""
    ids = [live.world.enqueue(), live.world.enqueue()]
    root = lossy(live, "POST", "/claims")
    assert [job.id for job in root.claim()] == ids[1:]
    assert [job.id for job in root.claims()] == ids


@pytest.mark.parametrize("spec", [{}, {"unique_key": "k"}, {"idempotency_key": 'my "key" \\ 1'}])
def test_an_enqueue_whose_answer_was_lost_makes_one_job(live: Live, spec: dict[str, str]) -> None:
    """Its repetition has the same key, and the answer of the first."""
    root = lossy(live, "POST", "/jobs")
    job = root.enqueue("work", **spec)
    assert [one.id for one in root.jobs()] == [job.id]


def test_each_enqueue_is_a_job_of_its_own(live: Live) -> None:
    """Unless the caller gives both one key, from whatever process."""
    root = live.client("root")
    assert len({root.enqueue("work").id for _ in range(3)}) == 3
    once = {live.client("root").enqueue("work", 1, idempotency_key="mine").id for _ in range(2)}
    assert len(once) == 1
    with pytest.raises(KeyReused) as caught:
        root.enqueue("work", 2, idempotency_key="mine")
    assert caught.value.status == 422
    with pytest.raises(Invalid):
        root.enqueue("work", idempotency_key="")
    for key in ("ä", "a\r\nX-Evil: 1", "a\0"):
        with pytest.raises(ValueError, match="visible ASCII"):
            root.enqueue("work", idempotency_key=key)


def test_an_enqueue_tells_all_that_the_server_takes(live: Live) -> None:
    """Repeated jobs, and columns; the list goes by series and owner."""
    root = live.client("root")
    job = root.enqueue("work", repeat_after_success=60, repeat_after_failure=5)
    root.enqueue("work")
    assert job.series is not None
    assert [one.id for one in root.jobs(series=job.series)] == [job.id]
    assert list(root.jobs(owner="album/1")) == []
    with pytest.raises(Invalid) as caught:
        root.enqueue("work", user_id="bob")
    assert list(caught.value.errors) == ["columns"]


# -- the loop -----------------------------------------------------------------------------


def test_works_until_nothing_is_due(live: Live) -> None:
    """Each job by the handler of its type; other types are left alone."""
    for n in range(3):
        live.world.enqueue("double", n)
    live.world.enqueue("square", 5)
    left = live.world.enqueue("other")
    ann = live.client()
    handlers = {"double": lambda job: job.data * 2, "square": lambda job: job.data**2}
    assert ann.work(handlers, until_empty=True) == 4
    assert [job.result for job in ann.jobs(state="succeeded")] == [0, 2, 4, 25]
    assert ann.job(left).state == "queued"


def test_threads_share_a_client_and_no_job(live: Live) -> None:
    """Each job is done once, whoever does it."""
    for n in range(20):
        live.world.enqueue("work", n)
    ann, seen = live.client(patience=IN_TIME), list[int]()

    def work() -> None:
        ann.work({"work": lambda job: seen.append(job.data)}, until_empty=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(20))
    assert len(list(ann.jobs(state="succeeded"))) == 20


def work_one(live: Live, handler: Handler, user: str = "ann", **spec: t.Any) -> tuple[int, t.Any]:
    """Work off one job; return the count and what is left of it."""
    job_id = live.world.enqueue(**spec)
    count = live.client(user).work({"work": handler}, until_empty=True)
    return count, live.world.job(job_id)


def last_error(live: Live, job: t.Any) -> dict[str, t.Any]:
    return t.cast(dict[str, t.Any], live.client("root").history(job.id)[-1].error)


def test_an_exception_of_a_handler_is_a_failure(live: Live) -> None:
    """With its traceback, and the loop goes on."""

    def broken(job: ClaimedJob) -> t.NoReturn:
        raise KeyError("missing")

    count, job = work_one(live, broken)
    assert (count, job.state, job.failures) == (0, "scheduled", 1)
    error = last_error(live, job)
    assert (error["type"], error["message"]) == ("KeyError", "'missing'")
    assert "in broken" in error["traceback"]


def test_a_client_error_of_a_handler_is_a_failure_too(live: Live) -> None:
    """A handler that uses a client is not taken for the loop."""

    def curious(job: ClaimedJob) -> None:
        live.client().job(999)

    count, job = work_one(live, curious)
    assert (count, job.failures) == (0, 1)
    assert last_error(live, job)["type"] == "flask_jobber.client.errors.NotFound"


@pytest.mark.parametrize(
    ("result", "error"),
    [(math.nan, "ValueError"), (object(), "TypeError"), ("\0", "flask_jobber.client.errors.Invalid")],
    ids=["nan", "object", "nul"],
)
def test_a_result_that_cannot_be_delivered_is_a_failure(live: Live, result: object, error: str) -> None:
    """Whether this machine finds out or the server, the job does not stay locked."""
    count, job = work_one(live, lambda job: result)
    assert (count, job.state, job.failures) == (0, "scheduled", 1)
    assert last_error(live, job)["type"] == error


@pytest.mark.parametrize(
    ("n", "error"),
    [
        ("no", "flask_jobber.client.errors.ResultRefused"),
        (1, "flask_jobber.client.errors.ResultRefused"),
        (3, "ResultRejected"),
    ],
    ids=["misfit", "correct", "release"],
)
def test_a_refused_result_is_one_failure(live: Live, n: object, error: str) -> None:
    """Counted by the server, or, where it would wait for a correction, by the loop."""

    @live.world.jobber.processor("work", schema=Even)
    def process(job: t.Any, result: dict[str, int]) -> None:
        raise ResultRejected("odd", then="correct" if result["n"] == 1 else "release")

    count, job = work_one(live, lambda job: {"n": n})
    assert (count, job.state, job.failures) == (0, "scheduled", 1)
    assert last_error(live, job)["type"] == error


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_releases_the_job(live: Live, interrupt: type[BaseException]) -> None:
    """It is nobody's failure; the loop ends as it was told."""

    def interrupted(job: ClaimedJob) -> t.NoReturn:
        raise interrupt

    job_id = live.world.enqueue()
    with pytest.raises(interrupt):
        live.client().work({"work": interrupted})
    job = live.world.job(job_id)
    assert (job.state, job.failures) == ("queued", 0)


def test_an_interrupt_wins_over_a_release_that_fails(clock: Clock) -> None:
    """What stopped the program is not hidden by a server that is away."""

    def interrupted(job: ClaimedJob) -> t.NoReturn:
        raise KeyboardInterrupt

    script = Script(ok(jobs=[JOB], retry_after=0), httpx2.ConnectError("refused"))
    with pytest.raises(KeyboardInterrupt):
        script.client.work({"work": interrupted})


class Beats:
    """Lets a handler wait for the answers to its heartbeats."""

    def __init__(self) -> None:
        self.delivered = False
        self.statuses: list[int] = []
        self._news = threading.Condition()

    def __call__(self, request: httpx2.Request, response: httpx2.Response) -> None:
        self.delivered |= request.method == "PUT"
        if request.method == "PATCH":
            with self._news:
                self.statuses.append(response.status_code)
                self._news.notify_all()

    def wait_for(self, *statuses: int) -> None:
        """Wait until these were answered, one after the other."""
        count = len(statuses)
        with self._news:
            assert self._news.wait_for(lambda: statuses in zip(*self._from(count), strict=False), IN_TIME)

    def wait_for_more(self, count: int) -> None:
        with self._news:
            enough = len(self.statuses) + count
            assert self._news.wait_for(lambda: len(self.statuses) >= enough, IN_TIME)

    def _from(self, count: int) -> list[list[int]]:
        return [self.statuses[start:] for start in range(count)]


def test_heartbeats_hold_the_job_while_its_handler_runs(live: Live) -> None:
    """Longer than its lease, and nobody else gets it."""
    beats, bob = Beats(), live.client("bob")
    job_id = live.world.enqueue(lease_for=1.5)

    def slow(job: ClaimedJob) -> str:
        live.world.pass_time(job.lease_seconds)
        beats.wait_for_more(2)  # the first may have been on its way
        assert bob.claim() == []
        return "done"

    assert live.client(transport=Tap(beats)).work({"work": slow}, until_empty=True) == 1
    assert live.world.history(job_id)[1:] == [
        ("queued", "locked", "claim"),
        ("locked", "succeeded", "deliver"),
    ]


def test_a_result_is_dropped_when_a_heartbeat_tells_that_the_job_is_gone(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not sent, but it is logged, and the loop goes on."""
    beats = Beats()
    job_id = live.world.enqueue(lease_for=0.1)

    def cancelled(job: ClaimedJob) -> str:
        live.client("root").cancel(job.id)
        beats.wait_for(409)
        return "too late"

    assert live.client(transport=Tap(beats)).work({"work": cancelled}, until_empty=True) == 0
    assert not beats.delivered
    (record,) = [record for record in caplog.records if getattr(record, "action", "") == "drop"]
    assert (record.levelno, record.__dict__["job_id"]) == (logging.WARNING, job_id)


def test_a_missed_heartbeat_is_no_end(clock: Clock) -> None:
    """One that fails, or takes its third of the lease, is followed by another, without retries of its own."""
    beats, timeouts = Beats(), set[float]()
    answers = {
        "POST": iter([ok(jobs=[JOB | {"lease_seconds": 0.03}], retry_after=0), nothing()]),
        "PATCH": iter([busy(), *[ok(lease_seconds=0.03)] * 10_000]),
        "PUT": iter([ok(state="succeeded")]),
    }

    def answer(request: httpx2.Request) -> httpx2.Response:
        response = next(answers[request.method])
        if request.method == "PATCH":
            timeouts.add(request.extensions["timeout"]["read"])
        beats(request, response)
        return response

    client = JobberClient(BASE, transport=httpx2.MockTransport(answer))
    assert client.work({"work": lambda job: beats.wait_for(503, 200)}, until_empty=True) == 1
    assert clock.sleeps == []
    assert timeouts == {0.03 / 3}


def test_stop_ends_the_loop_after_the_job_at_hand(live: Live) -> None:
    """That one is delivered; the next is not claimed."""
    for _ in range(2):
        live.world.enqueue()
    stop = threading.Event()
    ann = live.client()
    assert ann.work({"work": lambda job: stop.set()}, stop=stop) == 1
    assert [job.state for job in ann.jobs()] == ["succeeded", "queued"]


def test_stop_ends_the_wait_for_jobs() -> None:
    """An idle loop is woken by it."""
    waiting = threading.Event()

    class Told(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.set()
            return super().wait(timeout)

    stop = Told()
    client = Script(nothing(retry_after=3600)).client
    thread = threading.Thread(target=client.work, args=({"work": str},), kwargs={"stop": stop})
    thread.start()
    assert waiting.wait(IN_TIME)
    stop.set()
    thread.join(IN_TIME)
    assert not thread.is_alive()


def test_an_idle_loop_waits_as_long_as_told() -> None:
    """Then it asks again."""
    stop = Stop()
    script = Script(nothing(4.5), nothing(3.5), problem(401, "login_required"))
    with pytest.raises(LoginRequired):
        script.client.work({"work": str}, stop=stop)
    assert stop.waits == [4.5, 3.5]


def test_a_loop_survives_an_outage(clock: Clock) -> None:
    """Longer than its patience, be it that the claim or the delivery has no answer."""
    stop = Stop()
    script = Script(
        busy(90),
        ok(jobs=[JOB], retry_after=0),
        busy(100),
        problem(401, "login_required"),
    )
    with pytest.raises(LoginRequired):
        script.client.work({"work": str}, stop=stop)
    assert stop.waits == [90, 100]


def test_a_loop_that_only_empties_the_queue_does_not_wait_for_a_server(clock: Clock) -> None:
    """It has no answer that says empty, so it raises."""
    script = Script(httpx2.ConnectError("refused"))
    with pytest.raises(Disconnected):
        script.client.work({"work": str}, until_empty=True, stop=Stop(clock))
    assert 40 <= sum(clock.sleeps) < 60


def test_a_stop_ends_the_waiting_for_a_server() -> None:
    """However much patience is left."""

    class Impatient(Stop):
        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            return super().wait(timeout)

    script = Script(httpx2.ConnectError("refused"), patience=math.inf)
    assert script.client.work({"work": str}, stop=Impatient()) == 0
    assert len(script.requests) == 1
