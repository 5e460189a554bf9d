"""Files by the client and in handlers: over HTTP, beside the database, in processes of their own."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pathlib
import threading
import typing as t

import httpx2
import pytest
from werkzeug.serving import make_server

from conftest import MakeWorld
from flask_jobber import Handlers
from flask_jobber.client import (
    ClientError,
    Disconnected,
    Forbidden,
    Invalid,
    JobberClient,
    LeaseLost,
    NameTaken,
    NotFound,
    TooLarge,
)
from flask_jobber.testing import drain
from flask_jobber.worker.child import Child
from flask_jobber.worker.database import DatabaseSource
from flask_jobber.worker.http import HttpSource
from flask_jobber.worker.job import Job
from flask_jobber.worker.run import Failed, Succeeded
from flask_jobber.worker.source import Settlement, Source, Wish
from support import PREFIX, World

DATA = os.urandom(1_000_000)


class Live:
    """A world behind a real HTTP server."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._server = make_server("127.0.0.1", 0, world.app, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self._stack = contextlib.ExitStack()

    def client(self, user: str = "ann", **options: t.Any) -> JobberClient:
        url = f"http://127.0.0.1:{self._server.port}{PREFIX}"
        return self._stack.enter_context(JobberClient(url, auth=user, **{"patience": 0, **options}))

    def close(self) -> None:
        self._stack.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def live(make_world: MakeWorld, sqlite_url: str, tmp_path: pathlib.Path) -> t.Iterator[Live]:
    config = {"JOBBER_ATTACHMENTS_URL": str(tmp_path / "files"), "JOBBER_MAX_ATTACHMENT_BYTES": 2_000_000}
    live = Live(make_world(sqlite_url, **config))
    yield live
    live.close()


class Cut(httpx2.BaseTransport):
    """A line that breaks at these bytes of what it brings, in turn, and keeps the requests."""

    def __init__(self, *at: int, then: t.Callable[[], object] = lambda: None) -> None:
        self._inner, self._at, self._then = httpx2.HTTPTransport(), list(at), then
        self.requests: list[httpx2.Headers] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(httpx2.Headers(request.headers))
        response = self._inner.handle_request(request)
        if self._at and request.method == "GET":
            # The server has sent it all: it would else be left with an open file.
            cut = _CutStream(response.read(), self._at.pop(0), self._then)
            return httpx2.Response(response.status_code, headers=response.headers, stream=cut)
        return response

    def close(self) -> None:
        self._inner.close()


class _CutStream(httpx2.SyncByteStream):
    def __init__(self, whole: bytes, cut: int, then: t.Callable[[], object]) -> None:
        self._whole, self._cut, self._then = whole, cut, then

    def __iter__(self) -> t.Iterator[bytes]:
        for start in range(0, self._cut, 65_536):
            yield self._whole[start : min(start + 65_536, self._cut)]
        self._then()
        raise httpx2.ReadError("the line is cut")


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_jobber.client.transport._pause", lambda error, tries: 0)


@pytest.mark.parametrize("form", ["bytes", "path", "open"])
def test_a_client_puts_and_gets_files(live: Live, tmp_path: pathlib.Path, form: str) -> None:
    """Bytes, a path or an open file; into a path or an open file."""
    live.world.enqueue()
    ann, path = live.client(), tmp_path / "in"
    path.write_bytes(DATA)
    [job] = ann.claim()
    with path.open("rb") as file:
        content: t.Any = {"bytes": DATA, "path": path, "open": file}[form]
        told = ann.upload(job, "a file.png", content, type="image/png")
    assert (told.name, told.size, told.type) == ("a file.png", len(DATA), "image/png")
    assert told.sha256 == hashlib.sha256(DATA).hexdigest()
    to = io.BytesIO()
    ann.download(job, "a file.png", to)
    assert to.getvalue() == DATA
    ann.deliver(job, None)
    seen = ann.job(job.id)
    assert seen.attachments == (told,)
    ann.download(seen, "a file.png", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["in", "out", "test.db"]


def test_a_producer_puts_files_into_its_job(live: Live) -> None:
    """With permission, by the job or its id."""
    root, ann = live.client("root"), live.client()
    job = root.enqueue("work", after_seconds=60)
    root.upload(job, "a", b"a")
    root.upload(job.id, "b", b"b")
    with pytest.raises(Forbidden):
        ann.upload(job.id, "c", b"c")
    live.world.pass_time(61)
    [claim] = ann.claim()
    assert [one.name for one in claim.attachments] == ["a", "b"]
    with pytest.raises(NameTaken):
        ann.upload(claim, "a", b"c")


def test_a_download_goes_on_where_its_line_was_cut(live: Live) -> None:
    """By ranges, until there is all of it."""
    live.world.enqueue()
    [job] = live.client().claim()
    live.client().upload(job, "a", DATA)
    line, to = Cut(300_000, 200_000), io.BytesIO(b"before")
    to.seek(6)
    live.client(transport=line, patience=60).download(job, "a", to)
    assert to.getvalue() == b"before" + DATA
    ranges = [request.get("Range") for request in line.requests]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_download_begins_again_when_the_file_is_another_one(live: Live) -> None:
    """No mixture of two."""
    live.world.enqueue()
    ann = live.client()
    [job] = ann.claim()
    ann.upload(job, "a", DATA)
    line, to = Cut(300_000, then=lambda: ann.upload(job, "a", DATA[::-1])), io.BytesIO()
    live.client(transport=line, patience=60).download(job, "a", to)
    assert to.getvalue() == DATA[::-1]


def test_a_download_that_fails_leaves_no_file(live: Live, tmp_path: pathlib.Path) -> None:
    """Neither half of one nor another's in its place."""
    live.world.enqueue()
    [job] = live.client().claim()
    live.client().upload(job, "a", DATA)
    (tmp_path / "to").write_bytes(b"before")
    with pytest.raises(Disconnected):
        live.client(transport=Cut(300_000)).download(job, "a", tmp_path / "to")
    with pytest.raises(NotFound):
        live.client().download(job, "b", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["files", "test.db", "to"]


def test_what_has_come_is_checked() -> None:
    """Against the digest that the server says; without one it is no file of a Jobber's."""
    digests = iter(({"Repr-Digest": "sha-256=:AAAA:"}, {}))

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers=next(digests), content=(piece for piece in [b"x"]))

    with JobberClient("https://app.example", transport=httpx2.MockTransport(answer), patience=0) as client:
        for _ in range(2):
            with pytest.raises(ClientError) as caught:
                client.download(1, "a", io.BytesIO())
            assert caught.value.code == "broken_file"


def test_an_upload_is_sent_again_from_its_beginning() -> None:
    """All of it, whatever the first try has read; with its digest and its length."""
    sent: list[tuple[bytes, str]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append((request.read(), request.headers["Content-Length"]))
        if len(sent) == 1:
            raise httpx2.ReadError("cut")
        facts = {"name": "a", "size": 3, "type": "x/y", "sha256": "00", "href": "/"}
        return httpx2.Response(200, json=facts)

    with JobberClient("https://app.example", transport=httpx2.MockTransport(answer)) as client:
        client.upload(1, "a", io.BytesIO(b"abc"))
    assert sent == [(b"abc", "3")] * 2


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../claims"])
def test_a_name_is_not_a_path(name: str) -> None:
    """It would be another call."""

    def answer(request: httpx2.Request) -> t.NoReturn:
        raise AssertionError("it was sent")

    with JobberClient("https://app.example", transport=httpx2.MockTransport(answer)) as client:
        with pytest.raises(ValueError, match="name"):
            client.upload(1, name, b"")
        with pytest.raises(ValueError, match="name"):
            client.download(1, name, io.BytesIO())


def test_refusals_have_their_types(live: Live) -> None:
    """As of any call."""
    live.world.enqueue()
    ann = live.client()
    [job] = ann.claim()
    for name, data, error in (("a?b", b"", Invalid), ("a", b"x" * 2_000_001, TooLarge)):
        with pytest.raises(error):
            ann.upload(job, name, data)
    ann.release(job)
    with pytest.raises(LeaseLost):
        ann.upload(job, "a", b"")


# -- in handlers --------------------------------------------------------------------------


@pytest.fixture(params=["database", "http"])
def source(request: pytest.FixtureRequest, live: Live) -> t.Iterator[Source]:
    """Both sources of jobs."""
    if request.param == "http":
        source: Source = HttpSource(live.client(node="n"), "n", "server")
    else:
        source = DatabaseSource(live.world.app, live.world.jobber, "n")
    yield source
    source.close()


def claim(source: Source, live: Live) -> Job:
    with live.world.session():
        live.world.jobber.enqueue("work", attachments={"in": DATA})
    [job] = source.exchange([], [], Wish(1, ("work",))).jobs
    return job


def test_a_handler_reads_and_brings_files(live: Live, source: Source, tmp_path: pathlib.Path) -> None:
    """The same code beside the database and behind a server."""
    job = claim(source, live)
    assert job.attachments == ["in"]
    with job.open("in") as file:
        assert file.read() == DATA
    (tmp_path / "made").write_bytes(b"made")
    job.attach("by path", tmp_path / "made", "text/plain")
    job.attach("bytes", b"bytes")
    job.attach("open", io.BytesIO(b"open"))
    [told] = source.exchange([Settlement(job, Succeeded(None))], [], None).told
    assert told.code is None
    with live.world.session():
        facts = {
            one.name: (one.attempt, one.content_type, one.size) for one in live.world.jobber.attachments(job)
        }
    bytes_ = "application/octet-stream"
    assert facts == {
        "in": (None, bytes_, len(DATA)), "by path": (1, "text/plain", 4), "bytes": (1, bytes_, 5),
        "open": (1, bytes_, 4),
    }  # fmt: skip


def test_a_handler_hears_what_is_refused(live: Live, source: Source) -> None:
    """Nothing is there, nothing is kept."""
    job = claim(source, live)
    with pytest.raises(Exception, match="nothing here"):
        job.open("absent")
    with pytest.raises(Exception, match="another side"):
        job.attach("in", b"")
    with live.world.session():
        live.world.jobber.cancel(job.id)
    with pytest.raises(Exception, match="cancelled"):
        job.attach("out", b"")


def in_a_process() -> tuple[Handlers, t.Callable[[], contextlib.AbstractContextManager[t.Any]]]:
    """Load the handlers of a process of their own."""
    handlers = Handlers()

    @handlers("work")
    def work(job: Job) -> t.Any:
        with job.open("in") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        job.attach("out", b"out", "text/plain")
        job.attach("open", io.BytesIO(b"open"))
        try:
            job.open("absent")
        except RuntimeError as error:
            return [job.attachments[0], digest, str(error)]

    return handlers, contextlib.nullcontext


def test_a_process_of_its_own_asks_its_parent(live: Live, source: Source) -> None:
    """Which has the login, the database and the lease."""
    job = claim(source, live)
    child = Child(in_a_process)
    try:
        child.send(job)
        outcome = child.listen(job)
    finally:
        child.kill()
    assert not isinstance(outcome, Failed), outcome
    name, digest, said = t.cast(Succeeded, outcome).result
    assert (name, digest) == ("in", hashlib.sha256(DATA).hexdigest())
    assert "NotFound" in said
    with live.world.session():
        assert [one.name for one in live.world.jobber.attachments(job.id)] == ["in", "open", "out"]


def test_the_helpers_for_an_apps_tests_have_files(live: Live) -> None:
    """``drain`` and ``inline`` do jobs with them."""
    world = live.world

    @world.jobber.handlers("work")
    def work(job: Job) -> None:
        with job.open("in") as file:
            job.attach("out", file)

    with world.session():
        job_id = world.jobber.enqueue("work", attachments={"in": b"in"}).id
        world.db.session.commit()
        assert drain(world.jobber).succeeded == 1
        assert [one.name for one in world.jobber.attachments(job_id)] == ["in", "out"]


def test_a_source_without_files_says_so() -> None:
    """A job made by hand has none to read."""
    facts = {"id": 1, "type": "work", "data": None, "queue": "default", "priority": 0, "attempt": 1}
    more = {"failures": 0, "max_attempts": 1, "lease_seconds": 60, "enqueued_at": None, "node": "n"}
    job = Job(**facts, **more)  # type: ignore[arg-type]
    assert job.attachments == []
    with pytest.raises(RuntimeError, match="no files"):
        job.open("a")
