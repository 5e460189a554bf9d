"""Files of jobs: put, got, listed, seen by whom, and gone with their job."""

from __future__ import annotations

import base64
import hashlib
import io
import pathlib
import typing as t

import pytest
import sqlalchemy as sa
from werkzeug.test import TestResponse

from conftest import MakeWorld
from flask_jobber import DuplicateJob, Invalid, NameTaken, NotFound, TooLarge
from flask_jobber.core import attachments, files
from race_support import together
from support import Client, World

PICTURE = bytes(range(256)) * 40
HTML = b"<script>alert(1)</script>"
PNG = {"Content-Type": "image/png"}


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """A folder of this machine, and one that only fsspec knows."""
    return str(tmp_path / "files") if request.param == "folder" else f"memory://{tmp_path.name}"


@pytest.fixture
def world(make_world: MakeWorld, db_url: str, tmp_path: pathlib.Path) -> World:
    """A world on each engine, its files in a folder."""
    return make_world(db_url, JOBBER_ATTACHMENTS_URL=str(tmp_path / "files"))


@pytest.fixture
def lite(make_world: MakeWorld, sqlite_url: str, place: str) -> World:
    """A world on SQLite, its files in each place."""
    return make_world(sqlite_url, JOBBER_ATTACHMENTS_URL=place)


def href(job_id: int, name: str = "out.png", attempt: int | None = None) -> str:
    return f"/jobs/{job_id}/attachments/{name}" + (f"?attempt={attempt}" if attempt is not None else "")


def put(
    client: Client,
    job: dict[str, t.Any] | int,
    name: str = "out.png",
    data: bytes = PICTURE,
    headers: t.Mapping[str, str] = PNG,
) -> TestResponse:
    """Put a file, as a holder into a claimed job or as a producer into one by its id."""
    to = href(job, name) if isinstance(job, int) else href(job["id"], name, job["attempt"])
    return client.put(to, data=data, headers=dict(headers))


def code(response: TestResponse) -> tuple[int, str]:
    assert response.json is not None
    return response.status_code, response.json["code"]


def stored(world: World) -> set[str]:
    """Return the keys of all files that there are."""
    with world.session():
        storage = world.jobber.store().storage
        return {key for shard in range(files.SHARDS) for key in storage.keys(shard)}


def rows(world: World) -> list[t.Any]:
    with world.session() as session:
        table = world.jobber.Attachment.__table__
        return list(session.execute(sa.select(table).order_by(table.c.id)))


def claimed(world: World, user: str = "ann") -> tuple[Client, dict[str, t.Any]]:
    world.enqueue()
    client = world.client(user)
    [job] = client.claim()
    return client, job


def age(world: World, seconds: float) -> None:
    """Let every file be older."""
    with world.session() as session:
        storage = world.jobber.store().storage
        table = world.jobber.Attachment.__table__
        for key in stored(world):
            older = f"{int(key[:8], 16) - int(seconds):08x}{key[8:]}"
            with storage.open(key) as file:
                copy = storage.create(older)
                copy.write(file.read())
                copy.close()
            storage.delete([key])
            session.execute(sa.update(table).where(table.c.key == key).values(key=older))


# -- put and get --------------------------------------------------------------------------


def test_a_holder_puts_a_file_and_the_deliverer_gets_it(world: World) -> None:
    """Byte by byte, with its size, its type and its digest."""
    ann, job = claimed(world)
    response = put(ann, job)
    digest = hashlib.sha256(PICTURE).hexdigest()
    told = {
        "name": "out.png", "size": len(PICTURE), "type": "image/png", "sha256": digest,
        "href": f"/jobber{href(job['id'])}",
    }  # fmt: skip
    assert (response.status_code, response.json) == (201, told)
    assert response.headers["ETag"] == f'"{digest}"'
    assert ann.deliver(job).status_code == 200
    got = ann.get(told["href"])
    assert (got.status_code, got.data, got.content_length) == (200, PICTURE, len(PICTURE))
    assert (got.mimetype, got.headers["ETag"]) == ("image/png", f'"{digest}"')
    assert got.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
    assert ann.get(f"/jobs/{job['id']}").get_json()["attachments"] == [told]


def test_a_job_comes_with_files_for_whoever_claims_it(world: World) -> None:
    """From server code, in the transaction that enqueues it, out of bytes, paths and open files."""
    path = pathlib.Path(world.app.config["JOBBER_ATTACHMENTS_URL"]).parent / "a file"
    path.write_bytes(b"from a path")
    with world.session():
        job = world.jobber.enqueue("work", user_id="ann")
        world.jobber.attach(job, "b.bin", PICTURE)
        world.jobber.attach(job, "c.txt", io.BytesIO(b"open"), content_type="text/plain; charset=utf-8")
        world.jobber.attach(job.id, "a.txt", path)
        told = world.jobber.attachments(job)
    assert [(one.name, one.size, one.content_type, one.attempt) for one in told] == [
        ("a.txt", 11, "application/octet-stream", None),
        ("b.bin", len(PICTURE), "application/octet-stream", None),
        ("c.txt", 4, "text/plain", None),
    ]
    with told[0].open() as file:
        assert file.read() == b"from a path"
    ann = world.client()
    [job] = ann.claim()
    assert [one["name"] for one in job["attachments"]] == ["a.txt", "b.bin", "c.txt"]
    assert ann.get(job["attachments"][1]["href"]).data == PICTURE
    assert ann.get("/claims").get_json()["jobs"][0]["attachments"] == job["attachments"]
    assert ann.get(job["href"]).get_json()["attachments"] == job["attachments"]
    assert ann.get("/jobs").get_json()["jobs"][0]["attachments"] == job["attachments"]
    bob = world.client("bob")
    assert code(bob.get(job["attachments"][1]["href"])) == (404, "not_found")


def test_files_are_enqueued_with_their_job(world: World) -> None:
    """All or none: one that cannot be written keeps the job out of the caller's transaction."""
    with world.session():
        job = world.jobber.enqueue("work", unique_key="k", attachments={"a": b"a", "b.txt": io.BytesIO(b"b")})
        assert [one.name for one in world.jobber.attachments(job)] == ["a", "b.txt"]
    with world.session() as session:
        for wrong, error in (
            ({"a": b"a", "../b": b"b"}, Invalid),
            ({"a": b"a", "b": "/no/such/file"}, FileNotFoundError),
            ({str(n): b"" for n in range(attachments.MOST + 1)}, TooLarge),
        ):
            with pytest.raises(error):
                world.jobber.enqueue("work", attachments=wrong)
        with pytest.raises(DuplicateJob):
            world.jobber.enqueue("work", unique_key="k", attachments={"a": b"a"})
        assert session.scalar(sa.select(sa.func.count()).select_from(world.Job)) == 1
    assert len(stored(world)) == 2


def test_a_processor_reads_what_the_result_brings(world: World) -> None:
    """With what the job came with."""
    read: dict[str, bytes] = {}

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        for one in world.jobber.attachments(job):
            with one.open() as file:
                read[one.name] = file.read()

    with world.session():
        world.jobber.attach(world.jobber.enqueue("work"), "in.txt", b"in")
    ann = world.client()
    [job] = ann.claim()
    put(ann, job, "out.txt", b"out")
    assert ann.deliver(job).status_code == 200
    assert read == {"in.txt": b"in", "out.txt": b"out"}


def test_a_permitted_producer_puts_files_into_a_job(world: World) -> None:
    """Who may see it and is permitted ``attach``, until it has ended."""
    job_id = world.enqueue(user_id="ann")
    root, ann = world.client("root"), world.client("ann")
    assert code(put(ann, job_id)) == (403, "forbidden")
    assert code(put(world.client("bob"), job_id)) == (404, "not_found")
    assert put(root, job_id).status_code == 201
    assert ann.get(href(job_id)).data == PICTURE
    assert put(root, job_id, data=b"new").status_code == 200
    assert ann.get(href(job_id)).data == b"new"
    assert len(stored(world)) == 1
    with world.session():
        world.jobber.cancel(job_id)
    assert code(put(root, job_id)) == (409, "illegal_transition")
    assert code(put(root, 99)) == (404, "not_found")
    assert ann.get(href(job_id)).data == b"new"


def test_without_a_permission_hook_nobody_attaches(make_world: MakeWorld, sqlite_url: str) -> None:
    """It fails closed."""
    world = make_world(sqlite_url, scoped=False)
    assert code(put(world.client(), world.enqueue())) == (403, "forbidden")


def test_ranges(lite: World) -> None:
    """Of one file, by any end; several at once are answered with the whole."""
    ann, job = claimed(lite)
    put(ann, job)
    to = href(job["id"])
    etag = ann.get(to).headers["ETag"]
    for said, start, end in (("0-9", 0, 10), ("5000-", 5000, 10240), ("-100", 10140, 10240)):
        part = ann.get(to, headers={"Range": f"bytes={said}", "If-Range": etag})
        assert (part.status_code, part.data) == (206, PICTURE[start:end])
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/10240"
    whole = ann.get(to, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (whole.status_code, whole.data) == (200, PICTURE)
    assert ann.get(to, headers={"Range": "bytes=0-9,20-29"}).data == PICTURE
    assert ann.get(to, headers={"Range": "lines=0-9"}).data == PICTURE
    beyond = ann.get(to, headers={"Range": "bytes=20000-"})
    assert code(beyond) == (416, "out_of_range")
    assert beyond.headers["Content-Range"] == "bytes */10240"


def test_what_is_known_is_not_sent_again(lite: World) -> None:
    """And what has changed is not taken for it."""
    ann, job = claimed(lite)
    put(ann, job)
    to = href(job["id"])
    etag = ann.get(to).headers["ETag"]
    known = ann.get(to, headers={"If-None-Match": etag})
    assert (known.status_code, known.data) == (304, b"")
    assert code(ann.get(to, headers={"If-Match": '"other"'})) == (412, "changed")
    head = ann.open("HEAD", to)
    assert (head.status_code, head.data, head.content_length) == (200, b"", len(PICTURE))


def test_an_empty_file_is_one(lite: World) -> None:
    """Of no bytes, whatever range is asked for."""
    ann, job = claimed(lite)
    assert put(ann, job, data=b"").get_json()["size"] == 0
    assert ann.get(href(job["id"])).data == b""
    assert ann.get(href(job["id"]), headers={"Range": "bytes=0-"}).data == b""


def test_a_server_in_front_may_send_the_file(make_world: MakeWorld, sqlite_url: str, place: str) -> None:
    """``USE_X_SENDFILE``: its path is told, if it has one."""
    world = make_world(sqlite_url, JOBBER_ATTACHMENTS_URL=place, USE_X_SENDFILE=True)
    ann, job = claimed(world)
    put(ann, job)
    got = ann.get(href(job["id"]), headers={"Range": "bytes=0-9"})
    if place.startswith("memory"):
        assert (got.status_code, got.data) == (206, PICTURE[:10])
        assert "X-Sendfile" not in got.headers
    else:
        assert (got.status_code, got.data) == (200, b"")
        path = pathlib.Path(got.headers["X-Sendfile"])
        assert path.is_absolute()
        assert path.read_bytes() == PICTURE
        assert got.headers["Content-Disposition"] == 'attachment; filename="out.png"'


# -- who sees what ------------------------------------------------------------------------


def test_a_result_and_its_files_are_seen_by_the_same(world: World) -> None:
    """Its holder, then its deliverer, and whoever is permitted; to others in scope there is no such file."""
    job_id = world.enqueue()
    ann, bob, root = world.client(), world.client("bob"), world.client("root")
    [job] = ann.claim()
    put(ann, job)

    def visible() -> list[bool]:
        found = []
        for client in (ann, world.client("ann", node="other"), bob, root):
            listed = bool(client.get(f"/jobs/{job_id}").get_json()["attachments"])
            got = client.get(href(job_id))
            assert got.status_code == (200 if listed else 404)
            found.append(listed)
        return found

    absent = bob.get(href(job_id, "absent"))
    assert visible() == [True, False, False, False]
    assert bob.get(href(job_id)).data == absent.data
    assert ann.deliver(job, None).status_code == 200  # a result of null is one
    assert visible() == [True, True, False, True]


def test_what_an_attempt_brought_that_came_to_nothing_is_gone(world: World) -> None:
    """Nobody sees it, its name is free, and the next file takes its place."""
    job_id = world.enqueue()
    ann, bob, root = world.client(), world.client("bob"), world.client("root")
    [job] = ann.claim()
    put(ann, job, "one.png")
    put(ann, job, "two.png")
    assert ann.fail(job, retry_seconds=0).status_code == 200
    for client in (ann, bob, root):
        assert client.get(f"/jobs/{job_id}").get_json()["attachments"] == []
        assert client.get(href(job_id, "one.png")).status_code == 404
    world.pass_time(1000)
    [again] = bob.claim()
    assert again["attachments"] == []
    assert len(stored(world)) == 2
    assert put(bob, again, "one.png", b"bob's").status_code == 201
    assert len(stored(world)) == len(rows(world)) == 1
    assert bob.get(href(job_id, "one.png")).data == b"bob's"
    bob.deliver(again)
    assert [one["name"] for one in root.get(f"/jobs/{job_id}").get_json()["attachments"]] == ["one.png"]


def test_only_the_holder_puts_into_an_attempt(world: World) -> None:
    """Nobody else, no other attempt, and not after its end."""
    job_id = world.enqueue()
    ann, bob = world.client(), world.client("bob")
    assert code(put(ann, {"id": job_id, "attempt": 1})) == (404, "not_found")
    [job] = ann.claim()
    assert code(put(bob, job)) == (409, "lease_lost")
    assert code(put(ann, job | {"attempt": 2})) == (404, "not_found")
    assert code(put(ann, job | {"attempt": 0})) == (422, "invalid")
    assert code(put(ann, job | {"id": 2**62})) == (404, "not_found")
    ann.deliver(job)
    assert code(put(ann, job)) == (409, "already_settled")
    with world.session():
        world.jobber.cancel(other := world.jobber.enqueue("work"))
        assert other.state == "cancelled"
    assert stored(world) == set()
    assert rows(world) == []


def test_of_a_cancelled_job_its_holder_is_told(world: World) -> None:
    """As by any other call."""
    ann, job = claimed(world)
    with world.session():
        world.jobber.cancel(job["id"])
    assert code(put(ann, job)) == (409, "cancelled")


class Stream(io.RawIOBase):
    """A body on its way, which does something when it has come half."""

    def __init__(self, data: bytes, at_half: t.Callable[[], object]) -> None:
        self._parts = [data[: len(data) // 2], data[len(data) // 2 :]]
        self._at_half = at_half

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        if not self._parts:
            return 0
        if len(self._parts) == 1:
            self._at_half()
        part = self._parts.pop(0)
        buffer[: len(part)] = part
        return len(part)


def half_way(world: World, at_half: t.Callable[[], object], to: str, length: int = 1000) -> TestResponse:
    """Put a file as ann, and do something when half of it is there."""
    return send(world.client(), to, Stream(b"x" * 1000, at_half), CONTENT_LENGTH=str(length))


def send(client: Client, to: str, stream: t.Any, **environ: t.Any) -> TestResponse:
    """Put what a stream says as it comes."""
    return client.put(to, environ_overrides={"wsgi.input": stream, **environ})


def test_a_lease_lost_on_the_way_keeps_the_file_out(world: World) -> None:
    """Guarded again at its end: the bytes are gone, nothing of it appears."""
    ann, job = claimed(world)
    seen_on_the_way: list[t.Any] = []

    def lose() -> None:
        seen_on_the_way.extend((rows(world), len(stored(world))))
        ann.release(job)
        assert len(world.client("bob").claim()) == 1

    response = half_way(world, lose, href(job["id"], attempt=1))
    assert code(response) == (409, "lease_lost")
    assert seen_on_the_way == [[], 1]
    assert rows(world) == []
    assert stored(world) == set()


def test_a_right_lost_on_the_way_keeps_the_file_out(world: World) -> None:
    """The scope is asked again."""
    job_id = world.enqueue(user_id="ann")
    world.client().claim()

    def lose() -> None:
        with world.session() as session:
            session.get(world.Job, job_id).user_id = "bob"

    assert code(half_way(world, lose, href(job_id, attempt=1))) == (404, "not_found")
    assert stored(world) == set()


def test_the_hooks_are_asked_again_when_a_file_is_complete(lite: World) -> None:
    """Not only once: what they say may have changed while gigabytes came."""
    said: dict[str, t.Any] = {"scope": True, "permission": True}
    for name in said:
        lite.jobber.registry.hooks[name] = lambda *args, name=name: said[name]
    job = claimed(lite)[1]
    for to, hook, status in (
        (href(job["id"], attempt=1), "scope", 404),
        (href(job["id"]), "scope", 404),
        (href(job["id"]), "permission", 403),
    ):
        assert half_way(lite, lambda hook=hook: said.update({hook: False}), to).status_code == status  # type: ignore[misc]
        said[hook] = True
    assert (rows(lite), stored(lite)) == ([], set())


def test_a_broken_upload_leaves_nothing_and_is_put_again(lite: World) -> None:
    """What was there before stays until the new one is complete."""
    ann, job = claimed(lite)
    put(ann, job, data=b"before")
    to = href(job["id"], attempt=1)
    assert code(half_way(lite, lambda: None, to, length=2000)) == (400, "broken_body")

    short = {"CONTENT_LENGTH": "2000", "wsgi.input_terminated": True}
    assert code(send(ann, to, io.BytesIO(b"x" * 1000), **short)) == (400, "broken_body")

    def break_off() -> None:
        raise OSError("the client went away")

    assert code(half_way(lite, break_off, to)) == (400, "broken_body")
    assert ann.get(href(job["id"])).data == b"before"
    assert len(stored(lite)) == 1
    assert put(ann, job).status_code == 200
    assert ann.get(href(job["id"])).data == PICTURE
    assert len(stored(lite)) == len(rows(lite)) == 1


def test_the_same_again_changes_nothing(world: World) -> None:
    """Of an upload whose answer was lost."""
    ann, job = claimed(world)
    first = put(ann, job)
    before = rows(world)
    assert (first.status_code, put(ann, job).status_code) == (201, 200)
    assert rows(world) == before
    assert len(stored(world)) == 1


def test_neither_side_takes_the_others_name(world: World) -> None:
    """What the job came with is what every holder gets."""
    job_id = world.enqueue()
    ann, root = world.client(), world.client("root")
    put(root, job_id, "in.txt", b"in")
    [job] = ann.claim()
    assert code(put(ann, job, "in.txt", b"other")) == (409, "name_taken")
    put(ann, job, "out.txt", b"out")
    assert code(put(root, job_id, "out.txt", b"other")) == (409, "name_taken")
    with world.session(), pytest.raises(NameTaken):
        world.jobber.attach(job_id, "out.txt", b"other")
    assert ann.get(href(job_id, "in.txt")).data == b"in"
    assert ann.get(href(job_id, "out.txt")).data == b"out"
    assert len(rows(world)) == 2


def test_a_job_has_so_many_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """413, and one may still be replaced."""
    monkeypatch.setattr(attachments, "MOST", 2)
    ann, job = claimed(world)
    assert [put(ann, job, name).status_code for name in "abab"] == [201, 201, 200, 200]
    assert code(put(ann, job, "c")) == (413, "too_large")
    assert put(ann, job, "a", b"new").status_code == 200


# -- what may enter -----------------------------------------------------------------------


def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    make_world: MakeWorld, sqlite_url: str, place: str
) -> None:
    """413; and one that does not tell its length as soon as it is over the limit."""
    world = make_world(sqlite_url, JOBBER_ATTACHMENTS_URL=place, JOBBER_MAX_ATTACHMENT_BYTES=1000)
    ann, job = claimed(world)
    to = href(job["id"], attempt=1)

    def never() -> None:
        raise AssertionError("it was read")

    class Unread(Stream):
        def readinto(self, buffer: t.Any) -> int:
            never()
            return 0

    early = send(ann, to, Unread(b"", never), CONTENT_LENGTH="1001")
    assert code(early) == (413, "too_large")
    for size, status in ((1000, 201), (1001, 413), (100_000, 413)):
        said = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
        chunked = send(ann, to, io.BytesIO(b"x" * size), **said)
        assert chunked.status_code == status
    assert len(stored(world)) == 1
    with world.session(), pytest.raises(TooLarge):
        world.jobber.attach(job["id"], "a", io.BytesIO(b"x" * 1001))
    assert len(stored(world)) == 1


def test_a_body_without_an_end_is_refused(lite: World) -> None:
    """Where the server does not know where it ends, it would be taken for an empty one."""
    ann, job = claimed(lite)
    to = href(job["id"], attempt=1)
    unsaid = send(ann, to, io.BytesIO(b"x"), HTTP_TRANSFER_ENCODING="chunked")
    assert code(unsaid) == (422, "invalid")


def test_the_limits_of_forms_and_of_json_are_others(make_world: MakeWorld, sqlite_url: str) -> None:
    """Neither the app's MAX_CONTENT_LENGTH nor our own for JSON holds for files, nor theirs for JSON."""
    world = make_world(sqlite_url, MAX_CONTENT_LENGTH=1000)
    ann, job = claimed(world)
    large = b"x" * 300_000
    assert put(ann, job, data=large).status_code == 201
    assert ann.get(href(job["id"])).data == large
    assert code(ann.deliver(job, "x" * 1000)) == (413, "too_large")
    other = make_world(sqlite_url)
    assert code(other.client().post("/claims", {"types": ["x" * 300_000]})) == (413, "too_large")


@pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
def test_a_digest_is_checked(lite: World, header: str) -> None:
    """Of RFC 9530; what has arrived otherwise is not kept."""
    ann, job = claimed(lite)
    digest = base64.b64encode(hashlib.sha256(PICTURE).digest()).decode()
    for said in (f"sha-256=:{digest}:", f"md5=:x:, SHA-256=:{digest}:", "md5=:x:"):
        assert put(ann, job, headers={header: said}).status_code in (200, 201)
    for said in (f"sha-256=:{digest}:", "sha-256=:eA==:", "sha-256=nonsense", "sha-256"):
        response = put(ann, job, "other", b"other", headers={header: said})
        assert code(response) == (422, "invalid")
    assert [row.name for row in rows(lite)] == ["out.png"]
    assert len(stored(lite)) == 1


HOSTILE_NAMES = [
    "..", ".", ".htaccess", "..%2f..%2fetc%2fpasswd", "a%2fb", "a%5cb", "..%5c..%5cboot.ini", "%2e%2e",
    "a%00b",
    "a%0d%0aSet-Cookie:%20x=1", "a%22b", "a%3bb", "%20a", "a.", "a%20", "%c3%bc", "%ff", "x" * 201, "a%3f",
    "C:a", "a%25", "a~", "%e2%80%ae",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_leaves_its_place(lite: World, name: str) -> None:
    """Not a path, not a header, not a hidden file: refused, and nothing is written."""
    ann, job = claimed(lite)
    response = ann.put(href(job["id"], name, 1), data=b"x")
    assert response.status_code in (404, 405, 422)
    assert ann.get(href(job["id"], name)).status_code in (404, 405)
    assert stored(lite) == set()
    with lite.session(), pytest.raises(Invalid):
        lite.jobber.attach(job["id"], "../x", b"x")


def test_keys_say_nothing_of_the_client(lite: World) -> None:
    """Where a file lies is ours alone to say."""
    ann, job = claimed(lite)
    put(ann, job, "..x".strip(".") + " 1.tar.gz")
    [key] = stored(lite)
    assert len(key) == 32
    assert int(key, 16)


@pytest.mark.parametrize(
    ("said", "kept", "served"),
    [
        ("image/png", "image/png", "image/png"),
        ("IMAGE/PNG; x=y", "image/png", "image/png"),
        ("text/plain; charset=utf-8", "text/plain", "text/plain"),
        ("text/html", "text/html", "application/octet-stream"),
        ("image/svg+xml", "image/svg+xml", "application/octet-stream"),
        ("text/javascript", "text/javascript", "application/octet-stream"),
        ("application/xhtml+xml", "application/xhtml+xml", "application/octet-stream"),
        ("text/xml", "text/xml", "application/octet-stream"),
        ("text/css", "text/css", "application/octet-stream"),
        ("multipart/form-data; boundary=x", "multipart/form-data", "application/octet-stream"),
        (
            "application/x-www-form-urlencoded",
            "application/x-www-form-urlencoded",
            "application/octet-stream",
        ),
        ("nonsense", "application/octet-stream", "application/octet-stream"),
        ("a/b/c", "application/octet-stream", "application/octet-stream"),
        ("text/" + "x" * 200, "application/octet-stream", "application/octet-stream"),
        ('text/"', "application/octet-stream", "application/octet-stream"),
        ("", "application/octet-stream", "application/octet-stream"),
    ],
)
def test_no_browser_runs_it(lite: World, said: str, kept: str, served: str) -> None:
    """A download of some bytes, unless it is what no browser runs."""
    ann, job = claimed(lite)
    assert put(ann, job, "a page.html", HTML, {"Content-Type": said}).get_json()["type"] == kept
    got = ann.get(href(job["id"], "a%20page.html"))
    assert got.data == HTML
    assert got.content_type == served
    assert got.headers["Content-Disposition"] == 'attachment; filename="a page.html"'
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Content-Security-Policy"].startswith("sandbox")
    assert got.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "no-cache" in got.headers["Cache-Control"]


# -- the end of files ---------------------------------------------------------------------


def test_files_go_with_their_job(world: World) -> None:
    """When it is pruned, after the commit; a roll-back keeps them."""
    ann, job = claimed(world)
    put(ann, job)
    ann.deliver(job)
    kept = world.enqueue()
    with world.session():
        world.jobber.attach(kept, "a", b"a")
    world.pass_time(15 * 86_400)
    with world.session() as session:
        assert world.jobber.prune() == 1
        session.rollback()
    assert len(stored(world)) == len(rows(world)) == 2
    with world.session():
        assert world.jobber.prune() == 1
        assert len(stored(world)) == 2
    assert [row.job_id for row in rows(world)] == [kept]
    assert stored(world) == {row.key for row in rows(world)}


def test_files_go_with_a_job_that_is_cleared(world: World) -> None:
    """By the command."""
    with world.session():
        world.jobber.attach(world.jobber.enqueue("work"), "a", b"a")
    done = world.app.test_cli_runner().invoke(args=["jobber", "clear", "--yes"])
    assert done.exit_code == 0, done.output
    assert (rows(world), stored(world)) == ([], set())


def test_orphans_are_collected(lite: World) -> None:
    """Files without a row, files of jobs that are gone or of attempts that came to nothing; a day later."""
    ann, job = claimed(lite)
    put(ann, job, "of an attempt")
    ann.release(job)
    ann.claim()
    again = {"id": lite.enqueue()}
    with lite.session() as session:
        lite.jobber.attach(again["id"], "rolled back", b"x")
        session.rollback()
    with lite.session():
        gone = lite.jobber.enqueue("work")
        lite.jobber.attach(gone, "of one that is gone", b"x")
        lite.jobber.attach(again["id"], "kept", b"x")
    with lite.session() as session:
        session.delete(session.get(lite.Job, 3))
    tidy = ["jobber", "tidy"]
    lite.app.test_cli_runner().invoke(args=tidy)
    assert len(stored(lite)) == 4
    age(lite, files.ORPHANED_AFTER + 60)
    done = lite.app.test_cli_runner().invoke(args=tidy)
    assert done.exit_code == 0, done.output
    assert [row.name for row in rows(lite)] == ["kept"]
    assert stored(lite) == {row.key for row in rows(lite)}
    assert ann.get(href(again["id"], "kept")).data == b"x"


def test_orphans_are_collected_on_every_engine(world: World) -> None:
    """And what is used stays."""
    with world.session() as session:
        world.jobber.attach(world.jobber.enqueue("work"), "kept", b"x")
        session.commit()
        world.jobber.attach(1, "rolled back", b"x")
        session.rollback()
    age(world, files.ORPHANED_AFTER + 60)
    with world.session():
        assert world.jobber.collect_orphans(files.SHARDS) == 1
        assert world.jobber.collect_orphans(files.SHARDS) == 0
    assert len(stored(world)) == len(rows(world)) == 1


def test_an_upload_that_took_too_long_is_refused(lite: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It might be collected at any moment."""
    ann, job = claimed(lite)
    monkeypatch.setattr(files, "LONGEST_UPLOAD", -1)
    assert code(put(ann, job)) == (413, "too_large")
    assert stored(lite) == set()


def test_a_file_that_is_lost_is_not_there(lite: World) -> None:
    """404, logged; not a 500."""
    ann, job = claimed(lite)
    put(ann, job)
    with lite.session():
        lite.jobber.store().storage.delete(list(stored(lite)))
        [told] = lite.jobber.attachments(job["id"])
        with pytest.raises(NotFound):
            told.open()
    assert code(ann.get(href(job["id"]))) == (404, "not_found")


def test_a_place_that_does_not_answer_is_busy(
    lite: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503, to be tried again, whatever its library raises."""
    ann, job = claimed(lite)
    put(ann, job)
    with lite.session():
        storage = type(lite.jobber.store().storage)

    def broken(*args: t.Any) -> t.NoReturn:
        raise RuntimeError("secret")

    for name in ("create", "open"):
        monkeypatch.setattr(storage, name, broken)
    for response in (put(ann, job), ann.get(href(job["id"]))):
        assert code(response) == (503, "busy")
        assert "secret" not in response.text
        assert "Retry-After" in response.headers
    assert "secret" in caplog.text


def test_tidying_does_not_stop_at_a_place_that_is_away(
    lite: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be listed or deleted now is collected another time."""
    ann, job = claimed(lite)
    put(ann, job)
    ann.deliver(job)
    with lite.session():
        storage = type(lite.jobber.store().storage)
    lite.jobber.schedule("nightly", "report", every=60)
    lite.pass_time(15 * 86_400)

    def away(*args: t.Any) -> t.NoReturn:
        raise OSError("away")

    with monkeypatch.context() as patch, lite.session():
        patch.setattr(storage, "keys", away)
        patch.setattr(storage, "delete", away)
        assert lite.jobber.tidy().pruned == 1
        assert lite.db.session.scalar(sa.select(lite.Job.type)) == "report"
    assert "listed" in caplog.text
    assert "deleted" in caplog.text
    assert (len(stored(lite)), rows(lite)) == (1, [])
    age(lite, files.ORPHANED_AFTER + 60)
    with lite.session():
        assert lite.jobber.collect_orphans(files.SHARDS) == 1
    assert stored(lite) == set()


def test_a_database_that_is_busy_at_the_end_is_asked_again(
    lite: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has sent it all; it need not do so twice."""
    ann, job = claimed(lite)
    put_by_holder, calls = attachments.put_by_holder, []

    def busy_twice(*args: t.Any) -> t.Any:
        calls.append(args)
        if len(calls) < 3 or len(stored(lite)) > 1:
            raise sa.exc.TimeoutError("the pool is empty")
        return put_by_holder(*args)

    monkeypatch.setattr(attachments, "put_by_holder", busy_twice)
    assert put(ann, job).status_code == 201
    assert len(calls) == 3
    monkeypatch.setattr("flask_jobber.api.attachments._PATIENCE", -1)
    assert code(put(ann, job, "another")) == (503, "busy")
    assert (len(calls), len(stored(lite))) == (4, 1)


def test_many_who_put_at_once_leave_one_file_for_each_name(world: World) -> None:
    """Into one job and into its neighbours; of each name the last one stays, whole."""
    jobs = [world.enqueue() for _ in range(4)]
    held = {job["id"]: job for job in world.client().claim(limit=4)}

    def put_some(number: int) -> list[int]:
        ann, data = world.client(), bytes([number]) * 1000
        said = []
        for turn in range(4):
            job = held[jobs[(number + turn) % 4]]
            said += [
                put(ann, job, "same", data).status_code,
                put(ann, job, f"own {number}", data).status_code,
            ]
        return said

    answers = {status for said in together(6, put_some) for status in said}
    assert answers <= {200, 201}
    names = [(row.job_id, row.name) for row in rows(world)]
    assert sorted(names) == sorted(
        (id_, name) for id_ in jobs for name in ["same", *(f"own {n}" for n in range(6))]
    )
    assert stored(world) == {row.key for row in rows(world)}
    for job_id in jobs:
        assert len(set(world.client().get(href(job_id, "same")).data)) == 1


# -- what they cost -----------------------------------------------------------------------


def statements(world: World, do: t.Callable[[], object]) -> list[str]:
    """Return the statements that something executes."""
    said: list[str] = []

    def note(conn: t.Any, cursor: t.Any, statement: str, *rest: t.Any) -> None:
        said.append(statement)

    with world.app.app_context():
        engine = world.db.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        do()
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    return said


def test_jobs_without_files_pay_nothing(world: World) -> None:
    """No statement looks for files where there are none; one looks for those of a whole page."""
    for _ in range(3):
        world.enqueue()
    ann = world.client()
    table = world.jobber.Attachment.__table__.name
    claim = statements(world, lambda: ann.claim())
    assert [text for text in claim if table in text] == []
    if "+psycopg" in world.app.config["SQLALCHEMY_DATABASE_URI"]:
        assert len(claim) == 1
    assert [text for text in statements(world, lambda: ann.get("/jobs")) if table in text] == []
    with world.session():
        for job_id in (2, 3):
            world.jobber.attach(job_id, "a", b"a")
    for do in (lambda: ann.get("/jobs"), lambda: ann.claim(limit=2)):
        assert len([text for text in statements(world, do) if table in text]) == 1


def test_a_series_does_not_hand_on_its_files(world: World) -> None:
    """Each job of it has its own."""
    with world.session():
        job = world.jobber.enqueue("work", every=60, run_at=None)
        world.jobber.attach(job, "a", b"a")
    world.pass_time(120)
    ann = world.client()
    [job] = ann.claim()
    assert len(job["attachments"]) == 1
    ann.deliver(job)
    world.pass_time(120)
    [following] = ann.claim()
    assert following["attachments"] == []


def test_a_guest_gets_nothing(lite: World) -> None:
    """401 before anything else, another site's page 403."""
    ann, job = claimed(lite)
    put(ann, job)
    guest = lite.client(None)
    assert code(guest.get(href(job["id"]))) == (401, "login_required")
    assert code(put(guest, job)) == (401, "login_required")
