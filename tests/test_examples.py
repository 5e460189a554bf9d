"""The examples, as they are."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from conftest import missing
from flask_jobber.client import JobberClient, LoginRequired

# The examples are no part of what is installed.
sys.path.append(str(pathlib.Path(__file__).parent.parent))

from examples.mosaic import paint
from examples.mosaic.__main__ import PLACE
from examples.mosaic.app import create_app
from examples.mosaic.jobs import commission, jobber
from examples.mosaic.mandelbrot import counts
from examples.mosaic.models import WHOLE, Picture, User, db

ROOT = pathlib.Path(__file__).parent.parent
LIMIT_SECONDS = 150
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PASSWORD = "correct horse"


# -- the programs -------------------------------------------------------------------------


class Program:
    """A program that runs, for no longer than the limit; all that it prints is kept."""

    def __init__(self, *command: object, cwd: pathlib.Path = ROOT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""
        self._timer = threading.Timer(LIMIT_SECONDS, self.process.kill)
        self._timer.start()

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._timer.cancel()
        self._timer.join()

    def wait_for(self, pattern: str) -> str:
        """Return what the pattern finds in what is printed."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if found := re.search(pattern, line):
                return found[0]
        raise AssertionError(f"{pattern} was not printed, but:\n{self.printed}")

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        assert self.process.stdout is not None
        self.printed += self.process.stdout.read()
        return self.process.wait()


def test_the_minimal_app_hands_out_its_job(tmp_path: pathlib.Path) -> None:
    """Its user claims and delivers; its processor has kept the translation."""
    shutil.copy(ROOT / "examples" / "minimal.py", tmp_path)
    with Program("flask", "--app", "minimal.py", "run", "--port", 0, cwd=tmp_path) as program:
        url = program.wait_for(r"http://\S+") + "/jobber"
        with JobberClient(url, auth="wrong") as stranger, pytest.raises(LoginRequired):
            stranger.claim()
        with JobberClient(url, auth="secret") as client:
            (job,) = client.claim()
            assert client.deliver(job, "Good morning") == "succeeded"

    (database,) = tmp_path.glob("instance/*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT translation FROM job").fetchall() == [("Good morning",)]


def run_mosaic(folder: pathlib.Path, *options: object) -> Program:
    """Run the command on a picture of 48 by 32 pixels; return it ended."""
    size = ("--columns", 3, "--rows", 2, "--tile", 16, "--output", folder / "mosaic.png")
    with Program("examples.mosaic", *size, *options) as program:
        program.end()
    return program


def expected_pixels() -> bytes:
    """Compute the same picture here."""
    picture = Picture.around(**PLACE, columns=3, rows=2, tile=16)
    return paint.colour(counts(picture.part(0, 0, 48, 32)), picture.floor)


def test_the_mosaic_paints_its_picture(tmp_path: pathlib.Path) -> None:
    """Two script clients that log in paint and check all of it; it is the one that is computed directly."""
    program = run_mosaic(tmp_path)

    assert program.process.returncode == 0, program.printed
    assert re.search(r"Tiles painted: ada-\w+ \+ grace-\w+ 6\.", program.printed)
    assert "It takes two" not in program.printed
    assert "all 1,536 pixels equal a direct computation" in program.printed
    assert re.search(r"http://127\.0\.0\.1:\d+", program.printed)
    with Image.open(tmp_path / "mosaic.png") as image:
        assert image.size == (48, 32)
        assert image.tobytes() == expected_pixels()


def test_the_mosaic_notices_a_wrong_pixel(tmp_path: pathlib.Path) -> None:
    """A kept database goes on where it was; a picture that is not right is an error."""
    database = tmp_path / "kept.db"
    kept = ("--db", f"sqlite:///{database}")
    assert run_mosaic(tmp_path, *kept).process.returncode == 0
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        pixels = connection.execute("SELECT pixels FROM picture").fetchone()[0]
        connection.execute("UPDATE picture SET pixels = ?", [bytes([pixels[0] ^ 1]) + pixels[1:]])

    program = run_mosaic(tmp_path, *kept)

    assert program.process.returncode == 1
    assert "1 of 1,536 pixels differ" in program.printed


def test_a_tab_and_a_script_paint_the_same_picture(tmp_path: pathlib.Path) -> None:
    """A script alone comes to no end; a browser computes, number by number, what it does.

    The command then goes on serving.
    """
    chromium = shutil.which("chromium") or missing("chromium")
    output = tmp_path / "mosaic.png"
    size = ("--columns", 3, "--rows", 2, "--tile", 16, "--output", output)
    with Program("examples.mosaic", "--serve", "--clients", 1, *size) as program:
        url = program.wait_for(r"http://\S+")
        program.wait_for("It takes two")
        paint_in_a_tab(chromium, url)
        program.wait_for("Serving at")
        program.process.terminate()
        assert program.end() == 0, program.printed
    with Image.open(output) as image:
        assert image.tobytes() == expected_pixels()


def paint_in_a_tab(chromium: str, url: str) -> None:
    """Sign up, let the tab paint everybody's picture with the script, then one of its own alone."""
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=chromium, args=FLAGS) as browser:
            page = browser.new_page()
            page.goto(url)
            page.fill("[name=name]", "hypatia")
            page.fill("[name=password]", PASSWORD)
            page.click("text=Sign up")
            expect(page.locator("#tiles")).to_have_text("0 / 6")
            expect(page.locator("#download")).to_be_hidden()
            page.click("text=Paint in this tab")
            expect(page.locator("#tiles")).to_have_text("6 / 6", timeout=60_000)
            expect(page.locator("#painters tr")).to_contain_text(re.compile(r"ada-\w+ \+ hypatia"))
            expect(page.locator("#download")).to_be_visible()
            page.click("#mosaic", position={"x": 100, "y": 100})
            expect(page.locator("nav [aria-current]")).to_contain_text("Mine")
            expect(page.locator("#tiles")).to_have_text("6 / 6", timeout=60_000)
            # The page before may have painted one of it, by another name.
            painters = page.locator("#painters tr")
            expect(painters.first).to_contain_text(re.compile(r"hypatia/tab-\w+"))
            expect(painters.filter(has_not_text=re.compile(r"hypatia/tab-\w+"))).to_have_count(0)
            expect(page.locator("#download")).to_be_visible()


# -- the mosaic's app ---------------------------------------------------------------------


@pytest.fixture
def app(sqlite_url: str) -> t.Iterator[Flask]:
    """The app with a shared picture of two tiles."""

    app = create_app(sqlite_url)
    with app.app_context():
        commission_one()
    yield app
    with app.app_context():
        db.engine.dispose()


def commission_one(columns: int = 2) -> None:
    commission(Picture.around(**WHOLE, columns=columns, rows=1, tile=4))
    db.session.commit()


def enter(app: Flask, name: str, way: str = "/sign-up", password: str = PASSWORD) -> tuple[FlaskClient, int]:
    """Send the form of the gate; return the client and the status."""
    client = app.test_client()
    return client, client.post(way, data={"name": name, "password": password}).status_code


def claim(client: FlaskClient) -> list[dict[str, t.Any]]:
    return t.cast(list[dict[str, t.Any]], client.post("/jobber/claims", json={"limit": 100}).json["jobs"])


def test_the_gate_lets_in_who_signed_up(app: Flask) -> None:
    """With the right password, and not twice by one name."""
    assert enter(app, "ada")[1] == 303
    assert enter(app, "ada", "/log-in")[1] == 303
    assert enter(app, "ada", "/log-in", "wrong horse")[1] == 401
    assert enter(app, "bob", "/log-in")[1] == 401
    assert enter(app, "ada")[1] == 409
    assert enter(app, "a/b")[1] == 422
    assert enter(app, "bob", password="short")[1] == 422


def test_the_password_is_not_kept(app: Flask) -> None:
    """What the database has is a hash."""

    enter(app, "ada")

    with app.app_context():
        kept = db.session.scalars(sa.select(User.password_hash)).one()
    assert PASSWORD not in kept
    assert kept.startswith("scrypt:")


def test_pages_need_a_login(app: Flask) -> None:
    """Visitors are led to the gate, clients are told."""
    visitor = app.test_client()

    assert visitor.get("/").status_code == 200
    for page in ("/pictures/1", "/pictures/1/progress", "/pictures/1.png", "/pictures/1/0-0.png"):
        assert visitor.get(page).location.startswith("/?"), page
    assert visitor.post("/jobber/claims", json={}).status_code == 401


def test_logging_out_ends_it(app: Flask) -> None:
    """Afterwards the client is a visitor again."""
    ada, _ = enter(app, "ada")
    assert ada.get("/").location == "/pictures/1"

    ada.post("/log-out")

    assert ada.get("/").status_code == 200
    assert ada.get("/jobber/claims").status_code == 401


def test_a_private_zoom_is_its_users_own(app: Flask) -> None:
    """Nobody else sees its page, its tiles or its jobs; everybody's picture is everybody's."""
    ada, _ = enter(app, "ada")
    bob, _ = enter(app, "bob")

    private = ada.post("/pictures/1/zoom", data={"x": "0.5", "y": "0.25"}).location

    assert private == "/pictures/2"
    for page in (private, f"{private}/progress", "/jobber/batches/6"):
        assert ada.get(page).status_code == 200
        assert bob.get(page).status_code == 404
    assert bob.post(f"{private}/zoom").status_code == 404
    assert {job["id"] for job in bob.get("/jobber/jobs").json["jobs"]} == {1, 2, 4}
    assert [job["id"] for job in claim(bob)] == [3, 5]
    assert [job["id"] for job in claim(ada)] == [7, 8]


def test_one_private_picture_at_a_time(app: Flask) -> None:
    """A second one waits until the first is painted."""
    ada, _ = enter(app, "ada")
    ada.post("/pictures/1/zoom")

    refused = ada.post("/pictures/1/zoom", follow_redirects=True)

    assert "Paint your last picture first" in refused.text
    assert ada.get("/pictures/3").status_code == 404


@pytest.mark.parametrize("place", [{"x": "2", "y": "0"}, {"x": "nan", "y": "0"}, {"x": "0", "y": "-inf"}])
def test_a_zoom_stays_in_the_picture(app: Flask, place: dict[str, str]) -> None:
    """A form may hold anything."""
    ada, _ = enter(app, "ada")

    assert ada.post("/pictures/1/zoom", data=place).status_code == 400


def test_a_new_painters_tile_is_painted_by_another_too(app: Flask) -> None:
    """Then it is to be seen, signed by both; before, nobody sees that another is at it."""
    ada, bob = enter(app, "ada")[0], enter(app, "bob")[0]
    job, _ = claim(ada)
    assert deliver(ada, job).json == {"state": "succeeded"}
    assert claim(ada) == []

    assert progress(ada)["painted"] == []
    (again,) = claim(bob)
    assert again["data"] == job["data"]
    assert len(progress(ada)["held"]) == len(progress(bob)["held"]) == 1
    deliver(bob, again)

    ((column, row, painter, age),) = progress(ada)["painted"]
    assert (painter, age >= 0) == ("ada + bob", True)
    with Image.open(io.BytesIO(ada.get(f"/pictures/1/{column}-{row}.png").data)) as tile:
        assert tile.tobytes() == shared_picture(app).crop((4 * column, 0, 4 * column + 4, 4)).tobytes()


def deliver(client: FlaskClient, job: dict[str, t.Any], result: object = None) -> TestResponse:
    result = result or {"counts": counts(job["data"])}
    return client.put(f"{job['href']}/result", json={"result": result})


def progress(client: FlaskClient, picture: int = 1) -> dict[str, t.Any]:
    return t.cast(dict[str, t.Any], client.get(f"/pictures/{picture}/progress").json)


def shared_picture(app: Flask) -> Image.Image:
    """Compute here what everybody's picture is to be."""
    with app.app_context():
        picture = db.session.get_one(Picture, 1)
        width, height = picture.size
        return paint.image(
            width, height, paint.colour(counts(picture.part(0, 0, width, height)), picture.floor)
        )


def test_a_wrong_tile_is_outvoted(app: Flask) -> None:
    """A third painter decides; who was wrong has it on record, and has not signed."""
    ada, eve, bob = (enter(app, name)[0] for name in ("ada", "eve", "bob"))
    for painter, result in ((ada, None), (eve, {"counts": [1] * 16}), (bob, None)):
        job = claim(painter)[0]
        assert deliver(painter, job, result).json == {"state": "succeeded"}

    ((*_, painters, _age),) = progress(ada)["painted"]

    assert painters == "ada + bob"
    with app.app_context():
        records = {record.login: (record.valid, record.invalid) for record in jobber.lockers()}
    assert records == {"ada": (1, 0), "bob": (1, 0), "eve": (0, 1)}


def test_who_has_a_good_record_paints_alone(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for checks by chance."""
    with app.app_context():
        commission_one(columns=10)
    ada, bob = enter(app, "ada")[0], enter(app, "bob")[0]
    for painter in (ada, bob):
        for job in claim(painter):
            deliver(painter, job)
    assert (progress(ada)["done"], progress(ada, 2)["done"]) == (2, 10)
    with app.app_context():
        commission_one()
    first, second = claim(ada)

    monkeypatch.setattr("flask_jobber.core.lockers.random.random", lambda: 0.99)
    deliver(ada, first)
    monkeypatch.setattr("flask_jobber.core.lockers.random.random", lambda: 0.0)
    deliver(ada, second)

    assert [painter for *_, painter, _age in progress(ada, 3)["painted"]] == ["ada"]
    assert [job["data"] for job in claim(bob)] == [second["data"]]


def test_a_picture_is_stitched_when_its_last_tile_is_there(app: Flask) -> None:
    """Once, by the processor of their batch; before, there is none."""
    ada, bob = enter(app, "ada")[0], enter(app, "bob")[0]
    for painter in (ada, bob):
        for job in claim(painter):
            assert ada.get("/pictures/1.png").status_code == 404
            deliver(painter, job)
    wait_for_batches()

    with Image.open(io.BytesIO(ada.get("/pictures/1.png").data)) as image:
        assert image.tobytes() == shared_picture(app).tobytes()
    assert (progress(ada)["done"], progress(ada)["finished"]) == (2, True)
    batch = ada.get("/jobber/batches/1").json
    assert (batch["state"], batch["total"], batch["done"]) == ("succeeded", 2, 2)


def wait_for_batches() -> None:
    """Join the thread that the last delivery has begun."""
    for thread in threading.enumerate():
        if thread.name == "jobber-batches":
            thread.join()


def test_a_users_own_picture_needs_nobody_else(app: Flask) -> None:
    """Its tiles are pasted at once, by whatever node; the next picture may begin when it is stitched."""
    ada, _ = enter(app, "ada")
    ada.post("/pictures/1/zoom")

    for job in claim(ada):
        deliver(ada, job)
    wait_for_batches()

    assert [painter for *_, painter, _age in progress(ada, 2)["painted"]] == ["ada", "ada"]
    assert progress(ada, 2)["finished"]
    assert ada.post("/pictures/1/zoom").location == "/pictures/3"


def test_a_tile_of_the_wrong_size_is_refused(app: Flask) -> None:
    """What is no list of counts, at once; the wrong number of them may be corrected."""
    ada, _ = enter(app, "ada")
    ada.post("/pictures/1/zoom")
    own = claim(ada)[-1]

    assert deliver(ada, own, {"counts": ["many"]}).json["code"] == "invalid_result"
    assert deliver(ada, own, {"counts": [1, 2]}).json["then"] == "correct"
    assert deliver(ada, own).json == {"state": "succeeded"}


@pytest.mark.parametrize("picture", [1, 2])
def test_a_tile_that_is_given_up_is_offered_again(app: Flask, picture: int) -> None:
    """A picture has no holes, whatever a painter says, and is not stitched before.

    Who has given up what several paint is not offered it again, until it is begun anew.
    """
    ada, _ = enter(app, "ada")
    others = [enter(app, name)[0] for name in ("bob", "cy", "dee")] if picture == 1 else [ada] * 3
    ada.post("/pictures/1/zoom")
    error = {"error": {"type": "Tired", "message": "no more"}, "permanent": True}
    tiles = [job for job in claim(ada) if job["id"] in ((3, 5) if picture == 1 else (7, 8))]
    data = tiles[0]["data"]

    for painter, after in itertools.pairwise([ada, *others, ada, others[0]]):
        failed = painter.put(f"{tiles[0]['href']}/failure", json=error)
        assert failed.json["state"] == "failed"
        tiles = claim(after)
        assert [job["data"] for job in tiles] == [data]

    batch = ada.get(f"/jobber/batches/{1 if picture == 1 else 6}").json
    assert (batch["failed"], batch["left"]) == (1 if picture == 1 else 5, 2)


# -- the numbers --------------------------------------------------------------------------


def test_counts_are_those_of_the_definition() -> None:
    """Complex numbers and logarithms tell nearly the same: the smooth count is no other."""

    part = {
        "left": -2.0,
        "top": 1.1,
        "step": 0.1,
        "iterations": 200,
        "x": 0,
        "y": 0,
        "width": 26,
        "height": 22,
    }
    points = [complex(-2.0 + x * 0.1, 1.1 - y * 0.1) for y in range(22) for x in range(26)]

    for point, count in zip(points, counts(part), strict=True):
        assert count / 256 == pytest.approx(smooth_count(point, 200), abs=0.1), point


def smooth_count(c: complex, iterations: int) -> float:
    z = 0j
    for n in range(1, iterations + 1):
        z = z * z + c
        if abs(z) > 256:
            return n + 1 - math.log2(math.log2(abs(z)) / 8)
    return 0
