"""The example that has digits labelled."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import typing as t
import urllib.request

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image as Picture
from playwright.sync_api import Page, expect, sync_playwright
from werkzeug.serving import make_server

from conftest import missing
from flask_jobber import State, job_released
from test_examples import FLAGS, ROOT, Program

# The examples are no part of what is installed.
sys.path.append(str(pathlib.Path(__file__).parent.parent))

from examples.annotate.app import create_app
from examples.annotate.digits import Digit, read_digits
from examples.annotate.jobs import commission, jobber
from examples.annotate.models import Image, Job, db

PATIENCE_MS = 20_000
Make = t.Callable[..., Flask]
Json = dict[str, t.Any]
GOLD = 7


def drawn(digit: int) -> Digit:
    """Return an image whose ink tells the digit."""
    ink = 6 * (digit + 1)
    return Digit([16] * ink + [0] * (64 - ink), digit)


def read(job: Json) -> int:
    """Return the digit of such an image."""
    return sum(job["data"]["pixels"]) // 16 // 6 - 1


@pytest.fixture
def make(sqlite_url: str) -> t.Iterator[Make]:
    """Return what makes the app: with one digit that is gold, and these to be labelled."""
    made: list[Flask] = []

    def make_one(*digits: int, gold_rate: float = 0) -> Flask:
        images = [drawn(digit) for digit in (GOLD, *digits)]
        made.append(create_app(sqlite_url, images, gold_rate))
        return made[-1]

    yield make_one
    for app in made:
        with app.app_context():
            db.engine.dispose()


def enter(app: Flask, name: str) -> FlaskClient:
    client = app.test_client()
    assert client.post("/log-in", data={"name": name}).location == "/"
    return client


def claim(client: FlaskClient, limit: int = 1) -> list[Json]:
    return t.cast(list[Json], client.post("/jobber/claims", json={"limit": limit}).json["jobs"])


def answer(client: FlaskClient, job: Json, digit: t.Any) -> t.Any:
    return client.put(f"{job['href']}/result", json={"result": {"digit": digit}})


def say(client: FlaskClient, digit: int | None) -> None:
    """Claim the one image that there is, and give an answer."""
    (job,) = claim(client)
    assert answer(client, job, digit).json == {"state": "succeeded"}


def images(app: Flask) -> list[tuple[str, int | None, int]]:
    with app.app_context():
        rows = db.session.execute(sa.select(Image.state, Image.label, Image.answers).order_by(Image.id))
        return [(*row,) for row in rows]


# -- what becomes of an image -------------------------------------------------------------


def test_two_who_agree_make_a_label(make: Make) -> None:
    """Nobody is asked twice about an image, and no third one when two agree."""
    app = make(3)
    ada, bob, cy = (enter(app, name) for name in ("ada", "bob", "cy"))

    say(ada, 3)
    assert claim(ada) == []
    assert images(app) == [("open", None, 0)]
    say(bob, 3)

    assert claim(cy) == []
    assert images(app) == [("agreed", 3, 2)]


def test_a_third_one_decides(make: Make) -> None:
    """Where two differ; the digit that was meant has no say in it."""
    app = make(3)

    for name, digit in {"ada": 3, "bob": 8, "cy": 8}.items():
        say(enter(app, name), digit)

    assert images(app) == [("agreed", 8, 3)]


def test_four_who_differ_leave_it_disputed(make: Make) -> None:
    """As many as twice those that were wanted are asked; their answers are kept."""
    app = make(3)

    for digit, name in enumerate(("ada", "bob", "cy", "dee")):
        say(enter(app, name), digit)

    assert images(app) == [("disputed", None, 4)]
    assert claim(enter(app, "eve")) == []
    with app.app_context():
        job = db.session.scalars(sa.select(Job).where(Job.state == State.FAILED.value)).one()
        assert [said.result["digit"] for said in jobber.answers(job)] == [0, 1, 2, 3]


def test_it_may_be_agreed_that_an_image_cannot_be_read(make: Make) -> None:
    """That is an answer like another."""
    app = make(3)

    for name in ("ada", "bob"):
        say(enter(app, name), None)

    assert images(app) == [("agreed", None, 2)]
    assert "0.0 %" in enter(app, "cy").get("/table").text


@pytest.mark.parametrize("digit", [10, -1, "3", 3.5, [3]])
def test_an_answer_is_a_digit(make: Make, digit: object) -> None:
    """Anything else is refused; the image is still theirs who said it."""
    ada = enter(make(3), "ada")
    (job,) = claim(ada)

    assert answer(ada, job, digit).json["code"] == "invalid_result"
    assert answer(ada, job, 3).status_code == 200


def test_a_label_that_is_taken_back_is_open_again(make: Make) -> None:
    """For somebody else; the answer that stands counts."""
    app = make(3)
    for name in ("ada", "bob"):
        say(enter(app, name), 3)

    with app.app_context():
        assert jobber.revoke("bob") == 1
        db.session.commit()

    state, label, _ = images(app)[0]
    assert (state, label) == ("open", None)
    assert claim(enter(app, "ada")) == []
    say(enter(app, "cy"), 3)
    assert images(app) == [("agreed", 3, 2)]


def test_a_kept_database_goes_on_where_it_was(make: Make) -> None:
    """Its images are not commissioned again."""
    app = make(3, 4)

    with app.app_context():
        commission([drawn(5)] * 20)

    assert len(images(app)) == 2


# -- gold and records ---------------------------------------------------------------------


def test_gold_marks_the_record_of_who_errs(make: Make) -> None:
    """It looks like any other image; no label comes of it."""
    app = make(1, gold_rate=1)
    ada, bob = enter(app, "ada"), enter(app, "bob")

    jobs = claim(ada, 5)
    assert sorted(read(job) for job in jobs) == [1, GOLD]
    assert jobs[0].keys() == jobs[1].keys()
    assert all(job["data"].keys() == {"pixels"} for job in jobs)
    told = [answer(ada, job, 1) for job in jobs]
    assert [(each.status_code, each.json) for each in told] == [(200, {"state": "succeeded"})] * 2

    with app.app_context():
        record = jobber.record("ada")
    assert (record.claims, record.valid, record.invalid) == (2, 0, 1)
    say(bob, 1)
    assert images(app) == [("agreed", 1, 2)]
    with app.app_context():
        assert [(r.login, r.valid, r.invalid) for r in jobber.lockers()] == [("ada", 1, 1), ("bob", 1, 0)]


def test_the_share_of_gold(make: Make) -> None:
    """One digit in ten is kept to check who answers."""
    app = make(*[3] * 24)

    assert len(images(app)) == 22
    with app.app_context():
        gold = sa.select(sa.func.count()).where(Job.image_id.is_(None), Job.state == State.BLOCKED.value)
        assert db.session.scalar(gold) == 3


def begin_a_day(app: Flask) -> None:
    """Let what is known of everybody be of yesterday."""
    with app.app_context():
        db.session.execute(sa.update(jobber.Locker).values(day="2000-01-01"))
        db.session.commit()


def test_everybody_is_told_their_own_record(make: Make) -> None:
    """And nobody else's; as it stood this morning."""
    app = make(1)
    ada, bob = enter(app, "ada"), enter(app, "bob")
    say(ada, 1)
    say(bob, 1)

    first = ada.get("/jobber/me").json
    begin_a_day(app)
    me = ada.get("/jobber/me").json

    assert (first["record"]["claims"], first["record"]["valid"]) == (0, 0)
    assert (me["login"], me["blocked"], me["record"]["claims"]) == ("ada", False, 1)
    assert (me["record"]["valid"], me["record"]["invalid"]) == (1, 0)
    assert ada.get("/me").status_code == 200
    assert enter(app, "cy").get("/jobber/me").json["record"]["claims"] == 0


# -- a whole run --------------------------------------------------------------------------


def test_a_whole_run(make: Make) -> None:
    """Two read right, one does not: all but one label are the truth, and the table says so."""
    app = make(*range(9), gold_rate=1)
    with app.app_context():
        db.session.scalars(sa.select(Image).where(Image.truth == 8)).one().truth = 3
        db.session.commit()

    people = {name: enter(app, name) for name in ("ada", "bob", "cy")}
    reads: dict[str, t.Callable[[Json], int]] = dict.fromkeys(people, read)
    reads["cy"] = lambda job: (read(job) + 1) % 10
    while sum(label_one(people[name], reads[name]) for name in people):
        pass

    assert {(state, label) for state, label, _ in images(app)} == {("agreed", label) for label in range(9)}
    assert {answers for _, _, answers in images(app)} <= {2, 3}
    page = people["ada"].get("/table").text
    assert figures(page) == {"share": "88.9 %", "agreed": "9", "disputed": "0", "open": "0"}
    expected = [[""] * 11 for _ in range(10)]
    for digit in range(8):
        expected[digit][digit] = "1"
    expected[3][8] = "1"
    assert table(page) == expected
    with app.app_context():
        records = {record.login: record for record in jobber.lockers()}
    assert [records[name].invalid for name in ("ada", "bob")] == [0, 0]
    assert records["cy"].valid == 0 < records["cy"].invalid
    assert people["ada"].get("/progress").json == {"done": 9, "total": 9}


def label_one(client: FlaskClient, reader: t.Callable[[Json], int]) -> int:
    """Answer about one image; return how many there were."""
    jobs = claim(client)
    for job in jobs:
        assert answer(client, job, reader(job)).status_code == 200
    return len(jobs)


def figures(page: str) -> dict[str, str]:
    return dict(re.findall(r'<dd id="(\w+)">(.*?)</dd>', page))


def table(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)[1:]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_the_table_of_nothing(make: Make) -> None:
    """Before anybody has answered there is no share."""
    app = make(1, 2)

    page = enter(app, "ada").get("/table").text

    assert figures(page) == {"share": "none yet", "agreed": "0", "disputed": "0", "open": "2"}


def test_pages_need_a_name(make: Make) -> None:
    """Visitors are led to the gate, which takes no name that is none."""
    app = make(1)
    visitor = app.test_client()

    for page in ("/me", "/table", "/progress"):
        assert visitor.get(page).location.startswith("/?"), page
    assert visitor.post("/jobber/claims", json={}).status_code == 401
    for name in ("", "a/b", "a" * 31):
        assert visitor.post("/log-in", data={"name": name}).status_code == 422
    assert "Your name" in visitor.get("/").text
    ada = enter(app, "ada")
    assert "Which digit" in ada.get("/").text
    ada.post("/log-out")
    assert "Your name" in ada.get("/").text


# -- in a browser -------------------------------------------------------------------------


@pytest.fixture
def page() -> t.Iterator[Page]:
    """A page of a telephone, which has a keyboard besides."""
    chromium = shutil.which("chromium") or missing("chromium")
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=chromium, args=FLAGS) as browser:
            page = browser.new_page(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
            page.set_default_timeout(PATIENCE_MS)
            page.on("pageerror", lambda error: pytest.fail(str(error)))
            yield page


@contextlib.contextmanager
def serving(app: Flask) -> t.Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


def go_in(page: Page, url: str, name: str) -> None:
    page.goto(url)
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Begin").tap()


def seen(page: Page) -> int:
    """Return how many of the canvas's eight by eight squares are dark, by a picture of the screen."""
    with Picture.open(io.BytesIO(page.locator("#image").screenshot())) as picture:
        grey = picture.convert("L")
        side = grey.width / 10  # with the margin
        middles = [((column + 1.5) * side, (row + 1.5) * side) for row in range(8) for column in range(8)]
        return sum(t.cast(int, grey.getpixel((int(x), int(y)))) < 128 for x, y in middles)


def test_an_image_is_labelled_by_key_and_touch(make: Make, page: Page) -> None:
    """Each answer brings the next image, which is seen as it is; the last one, the next page."""
    app = make(1, 2, 3)
    bob = enter(app, "bob")
    with serving(app) as url:
        go_in(page, url, "ada")
        status = page.get_by_role("status")
        expect(status).to_have_text("Image 1.")
        assert seen(page) == len([grey for grey in drawn(1).pixels if grey])
        page.keyboard.press("1")
        expect(status).to_have_text("You said 1. Image 2.")
        assert seen(page) == len([grey for grey in drawn(2).pixels if grey])
        page.get_by_role("button", name="2", exact=True).tap()
        expect(status).to_have_text("You said 2. Image 3.")
        page.keyboard.press("x")
        expect(status).to_contain_text("There is no image for you now")
        expect(page.locator("#own")).to_have_text("3 by you")
        expect(page.locator("#done")).to_have_text("0 of 3 images done")
        assert seen(page) == 0

        for job in claim(bob, 3):
            answer(bob, job, read(job))

        say(enter(app, "cy"), None)
        assert images(app) == [("agreed", 1, 2), ("agreed", 2, 2), ("agreed", None, 3)]
        page.get_by_role("link", name="Agreement").tap()
        expect(page.locator("#share")).to_have_text("66.7 %")
        begin_a_day(app)
        page.get_by_role("link", name="Your record").tap()
        expect(page.locator("#claims")).to_have_text("3")
        page.get_by_role("button", name="Log out").tap()
        expect(page.get_by_label("Your name")).to_be_visible()


@contextlib.contextmanager
def released() -> t.Iterator[None]:
    """Wait at the end of the block until an image is given back in it."""
    bell = threading.Event()
    with job_released.connected_to(lambda *_, **facts: bell.set(), jobber):
        yield
        assert bell.wait(PATIENCE_MS / 1000)


def test_a_tab_that_nobody_sees_keeps_no_image(make: Make, page: Page) -> None:
    """It asks for one again when it is looked at."""
    app = make(1)
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with serving(app) as url:
        go_in(page, url, "ada")
        expect(page.get_by_role("status")).to_have_text("Image 1.")
        with released():
            page.evaluate(hide, True)
        assert seen(page) == 0
        page.evaluate(hide, False)
        expect(page.get_by_role("status")).to_have_text("Image 2.")
        page.keyboard.press("1")
        expect(page.locator("#own")).to_have_text("1 by you")


def test_a_page_that_is_left_keeps_no_image(make: Make, page: Page) -> None:
    """It is given back at once, and shown again to who comes back; a page that waits shows what comes."""
    app = make(1)
    with serving(app) as url:
        go_in(page, url, "ada")
        expect(page.get_by_role("status")).to_have_text("Image 1.")
        with released():
            page.get_by_role("link", name="Your record").tap()
        expect(page.locator("#claims")).to_have_text("0")
        page.get_by_role("link", name="Label").tap()
        expect(page.get_by_role("status")).to_have_text("Image 1.")
        page.keyboard.press("1")
        expect(page.get_by_role("status")).to_contain_text("There is no image for you now")

        with app.app_context():
            db.session.add(image := Image(**drawn(2)._asdict()))
            db.session.flush()
            jobber.enqueue("digit", {"pixels": image.pixels}, image_id=image.id, results_wanted=2)
            db.session.commit()

        expect(page.get_by_role("status")).to_have_text("Image 2.")


# -- the digits, and the command ----------------------------------------------------------


@pytest.fixture
def has_digits() -> None:
    if importlib.util.find_spec("sklearn") is None:
        missing("scikit-learn")


@pytest.mark.usefixtures("has_digits")
def test_the_digits_are_those_of_scikit_learn() -> None:
    """Eight by eight greys, all ten of them, the same at each call."""
    digits = read_digits(200)

    assert digits == read_digits(300)[:200]
    assert len(read_digits(5000)) == 1797
    assert all(len(pixels) == 64 and set(pixels) <= set(range(17)) for pixels, _ in digits)
    assert {truth for _, truth in digits} == set(range(10))


@pytest.mark.usefixtures("has_digits")
def test_the_command_serves(tmp_path: pathlib.Path) -> None:
    """Until it is told to stop."""
    kept = tmp_path / "kept.db"
    with Program("examples.annotate", "--images", 30, "--db", f"sqlite:///{kept}") as program:
        url = program.wait_for(r"http://[^ ]+")
        with urllib.request.urlopen(url, timeout=20) as response:
            assert b"Your name" in response.read()
        program.process.terminate()
        assert program.end() == 0, program.printed
    with contextlib.closing(sqlite3.connect(kept)) as connection:
        assert connection.execute("SELECT count(*) FROM image").fetchall() == [(27,)]


def test_the_command_says_what_is_missing() -> None:
    """By the name of the extra."""
    program = """
import sys
sys.modules["sklearn"] = sys.modules["sklearn.datasets"] = None
sys.argv = ["annotate"]
from examples.annotate.__main__ import main
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert done.stderr.startswith("The digits come with scikit-learn: pip install 'flask-jobber[annotate]'")
