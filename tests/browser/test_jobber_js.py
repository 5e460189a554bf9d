"""The browser client in a real browser, against a live server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import typing as t
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from conftest import missing

SERVE = Path(__file__).with_name("serve.py")
PATIENCE_SECONDS = 20
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP jobber.test 127.0.0.1",
)  # fmt: skip
Json = dict[str, t.Any]


def until(
    predicate: t.Callable[[], t.Any], what: str, instead: t.Callable[[], t.Any] = lambda: "nothing"
) -> t.Any:
    """Return what the predicate returns when that is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := predicate():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}; there is {instead()}")


class Site:
    """The app behind its port, and the strings that a test pulls on it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: Json | None = None) -> t.Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
            text = response.read()
        return json.loads(text) if response.headers.get_content_type() == "application/json" else text

    def enqueue(self, type: str, data: t.Any = None, **spec: t.Any) -> int:
        return int(self.ask("/test/jobs", {"type": type, "data": data, **spec})["id"])

    def cancel(self, job_id: int) -> None:
        self.ask(f"/test/jobs/{job_id}/cancel", {})

    def refuse(self, method: str, times: int, status: int = 503) -> None:
        """Answer the next requests of a method with trouble."""
        self.ask("/test/trouble", {"method": method, "times": times, "status": status})

    def job(self, job_id: int) -> Json:
        return t.cast(Json, self.ask(f"/test/jobs/{job_id}"))

    def wait(self, job_id: int, **values: t.Any) -> Json:
        """Wait until the job has these values, and return it."""

        def find() -> Json | None:
            job = self.job(job_id)
            return job if values.items() <= job.items() else None

        return t.cast(Json, until(find, f"{values} of a job", lambda: self.job(job_id)))


class Tab:
    """A page of the site with a client in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.page.goto(url)
        self.loaded()

    def loaded(self) -> Tab:
        self.page.wait_for_function("window.ready")
        return self

    def start(self, **options: t.Any) -> Tab:
        self.page.evaluate("options => void make(options).start()", options)
        return self

    @property
    def seen(self) -> list[Json]:
        return t.cast(list[Json], self.page.evaluate("seen"))

    @property
    def names(self) -> list[str]:
        return [event["name"] for event in self.seen]

    def wait(self, name: str, **values: t.Any) -> Json:
        """Wait for an event with these values."""
        wanted = {"name": name, **values}

        def find() -> Json | None:
            return next((event for event in self.seen if wanted.items() <= event.items()), None)

        return t.cast(Json, until(find, f"{wanted}", lambda: self.seen))

    def finish(self, job_id: int, result: t.Any = "done") -> None:
        self.page.evaluate("([id, result]) => finish[id](result)", [job_id, result])

    def reload(self) -> Tab:
        self.page.reload()
        return self.loaded()

    def crash(self) -> Tab:
        with self.page.expect_navigation():
            self.page.evaluate("crash()")
        return self.loaded()


@pytest.fixture(scope="module")
def browser() -> t.Iterator[Browser]:
    chromium = shutil.which("chromium") or missing("chromium")
    with sync_playwright() as playwright:
        # Playwright turns the cache off that a test goes back to.
        cached = ["--disable-back-forward-cache"]
        launch = playwright.chromium.launch
        with launch(executable_path=chromium, args=FLAGS, ignore_default_args=cached) as browser:
            yield browser


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[int]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(SERVE), f"sqlite:///{folder / 'site.db'}"]
    with open(folder / "log", "w") as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            yield int(process.stdout.readline())
            process.terminate()


@pytest.fixture
def site(port: int) -> t.Iterator[Site]:
    """The app, without an unfinished job of an earlier test."""
    site = Site(port)
    yield site
    site.ask("/test/reset", {})


@pytest.fixture
def visitor(browser: Browser, site: Site) -> t.Iterator[BrowserContext]:
    """A browser in which somebody is logged in."""
    with browser.new_context(base_url=site.url) as context:
        context.request.get("/login/ann")
        yield context


OpenTab = t.Callable[..., Tab]


@pytest.fixture
def open_tab(visitor: BrowserContext) -> OpenTab:
    return lambda url="/": Tab(visitor.new_page(), url)


@pytest.fixture
def tab(site: Site, open_tab: OpenTab) -> Tab:
    """A tab, once the server has seen those of the test before go."""
    places(site, watching=0, taken=0)
    return open_tab()


def test_works_through_jobs(site: Site, tab: Tab) -> None:
    """Every job's result arrives; when there are no more, the client is idle."""
    jobs = {site.enqueue("square", n): n * n for n in range(5)}

    tab.start(types=["square"])

    for job_id, result in jobs.items():
        assert result == site.wait(job_id, state="succeeded")["result"]
    tab.wait("idle")
    assert [name for name in tab.names if name != "idle"] == ["claimed", "delivered"] * 5


FILING = """() => {
  make({ types: ["filing"] }).on("filing", async (job, signal) => {
    const page = new Blob(["<script>document.title = 'run'</script>"], { type: "text/html" });
    const told = await jobber.attach(job, "a page.html", page, signal);
    const back = await jobber.fetchAttachment(job, "a page.html", signal);
    const absent = await jobber.fetchAttachment(job, "absent").catch((refusal) => refusal.code);
    return { ...told, text: await back.text(), served: back.headers.get("Content-Type"), absent };
  });
  jobber.start();
}"""


def test_files_come_and_go_and_none_of_them_is_run(site: Site, tab: Tab) -> None:
    """Put as they are; and a page among them that a visitor opens is downloaded."""
    job_id = site.enqueue("filing")
    tab.page.evaluate(FILING)
    result = site.wait(job_id, state="succeeded")["result"]
    assert (result["name"], result["type"], result["size"]) == ("a page.html", "text/html", 39)
    assert result["text"].startswith("<script>")
    assert (result["served"], result["absent"]) == ("application/octet-stream", "not_found")
    with tab.page.expect_download() as download:
        tab.page.evaluate("href => void (location.href = href)", result["href"])
    assert download.value.suggested_filename == "a page.html"
    assert tab.page.title() != "run"


def test_waits_for_jobs_to_come(site: Site, tab: Tab) -> None:
    """A job that is enqueued while the client is idle is worked."""
    tab.start(types=["square"]).wait("idle")

    site.wait(site.enqueue("square", 3), state="succeeded", result=9)


def test_holds_as_many_as_it_may(site: Site, tab: Tab) -> None:
    """A client of two places holds two jobs, and a third when one of them is done."""
    first, second, third = (site.enqueue("hold") for _ in range(3))
    tab.start(types=["hold"], limit=2)
    tab.wait("claimed", job=second)
    assert [first, second] == [job["id"] for job in tab.page.evaluate("jobber.jobs")]
    assert site.job(third)["state"] == "queued"

    tab.finish(first)

    tab.wait("claimed", job=third)
    assert site.job(second)["state"] == "locked"


def test_only_wanted_types_are_claimed(site: Site, tab: Tab) -> None:
    """Handlers for other types do not widen what is claimed."""
    other, wanted = site.enqueue("picky"), site.enqueue("square", 2)

    tab.start(types=["square"])

    site.wait(wanted, state="succeeded")
    tab.wait("idle")
    assert site.job(other)["state"] == "queued"


def test_a_type_without_handler_cannot_start(tab: Tab) -> None:
    """What cannot be worked is not claimed."""
    with pytest.raises(Exception, match="No handler for stone"):
        tab.start(types=["stone"])


def test_an_error_of_the_handler_fails_the_job(site: Site, tab: Tab) -> None:
    """The server learns the error and offers the job again later."""
    job_id = site.enqueue("fragile", {})

    tab.start(types=["fragile"])

    event = tab.wait("failed", job=job_id, state="scheduled")
    assert (event["error"], event["runAt"] > "2000") == ("It broke", True)
    job = site.wait(job_id, state="scheduled", failures=1)
    assert {"type": "RangeError", "message": "It broke"}.items() <= job["errors"][-1].items()
    assert "handlers.js" in job["errors"][-1]["traceback"]


def test_a_permanent_error_ends_the_job(site: Site, tab: Tab) -> None:
    """An error says itself that trying again is useless."""
    job_id = site.enqueue("fragile", {"permanent": True})

    tab.start(types=["fragile"])

    site.wait(job_id, state="failed", failures=1)


def test_an_error_may_call_the_job_off(site: Site, tab: Tab) -> None:
    """It says itself that nobody is to do it; a ``cancel`` that is not ``true`` says nothing."""
    off, on = site.enqueue("fragile", {"cancel": True}), site.enqueue("fragile", {"cancel": {}})

    tab.start(types=["fragile"])

    site.wait(off, state="cancelled", failures=0)
    site.wait(on, state="scheduled", failures=1)


def test_a_result_that_is_not_json_fails_the_job(site: Site, tab: Tab) -> None:
    """What cannot be sent is the handler's fault."""
    job_id = site.enqueue("unspeakable")

    tab.start(types=["unspeakable"])

    assert site.wait(job_id, state="scheduled", failures=1)["errors"][-1]["type"] == "TypeError"


def test_a_large_result_arrives(site: Site, tab: Tab) -> None:
    """A result that is too large to outlive the page is delivered all the same."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    tab.finish(job_id, "x" * 500_000)

    assert len(site.wait(job_id, state="succeeded")["result"]) == 500_000


def test_a_correctable_rejection_calls_the_handler_again(site: Site, tab: Tab) -> None:
    """The handler learns the reason, and its second result is accepted."""
    job_id = site.enqueue("picky", "correct")

    tab.start(types=["picky"])

    tab.wait("rejected", job=job_id, code="result_rejected")
    site.wait(job_id, state="succeeded", attempts=1, failures=0)


def test_a_job_that_cannot_be_corrected_fails(site: Site, tab: Tab) -> None:
    """Corrections end after a few tries."""
    job_id = site.enqueue("stubborn", "correct")

    tab.start(types=["stubborn"])

    site.wait(job_id, state="scheduled", failures=1)
    assert tab.names.count("rejected") == 4


def test_a_rejection_may_take_the_job_away(site: Site, tab: Tab) -> None:
    """The job is back in the pool, and the client goes on with another."""
    rejected, other = site.enqueue("picky", "release"), site.enqueue("square", 2)

    tab.start(types=["picky", "square"])

    tab.wait("rejected", job=rejected)
    site.wait(rejected, state="scheduled", failures=1)
    site.wait(other, state="succeeded")


def test_heartbeats_keep_the_lease(site: Site, tab: Tab) -> None:
    """The end of a lease moves while the job is worked."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"], leaseSeconds=1.5).wait("claimed")
    ends = [site.job(job_id)["lease_ends"]]

    for _ in range(4):  # more than the first lease was long
        until(lambda: site.job(job_id)["lease_ends"] > ends[-1], "a heartbeat")
        ends.append(site.job(job_id)["lease_ends"])

    tab.finish(job_id)
    site.wait(job_id, state="succeeded", attempts=1, failures=0)


@pytest.mark.parametrize("event", ["visibilitychange", "online"])
def test_heartbeats_make_use_of_the_page_being_awake(event: str, site: Site, tab: Tab) -> None:
    """A long lease is renewed when the page is shown, hidden or online again, without a timer's help."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"], leaseSeconds=3600).wait("claimed")
    ends = site.job(job_id)["lease_ends"]

    tab.page.evaluate("name => dispatchEvent(new Event(name))", event)

    until(lambda: site.job(job_id)["lease_ends"] > ends, "a heartbeat")


def test_a_lease_is_long_enough_for_a_background_tab(site: Site, tab: Tab) -> None:
    """Without a length the client asks for some minutes."""
    site.enqueue("hold")

    tab.start(types=["hold"]).wait("claimed")

    assert tab.page.evaluate("jobber.jobs[0].lease_seconds") == 300


def test_progress_is_told(site: Site, tab: Tab) -> None:
    """What the handler reports goes with a heartbeat."""
    job_id = site.enqueue("telling")

    tab.start(types=["telling"])

    site.wait(job_id, progress=0.5, note="half")


def test_a_cancelled_job_is_aborted(site: Site, tab: Tab) -> None:
    """The heartbeat learns it, the handler's signal is aborted, and the client goes on."""
    job_id = site.enqueue("hold")
    tab.start(leaseSeconds=1.5).wait("claimed")

    site.cancel(job_id)

    tab.wait("lost", job=job_id, code="cancelled")
    assert [job_id] == tab.page.evaluate("aborted")
    site.wait(site.enqueue("square", 2), state="succeeded")
    assert site.job(job_id)["state"] == "cancelled"


def test_a_late_result_is_dropped(site: Site, tab: Tab) -> None:
    """The delivery itself learns that the job is lost."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    site.cancel(job_id)
    tab.finish(job_id)

    tab.wait("lost", job=job_id, code="cancelled")


def test_passing_trouble_is_waited_out(site: Site, tab: Tab) -> None:
    """A result is sent again until it arrives, and the handler is called once."""
    job_id = site.enqueue("square", 3)
    site.refuse("PUT", times=2)

    tab.start(types=["square"])

    site.wait(job_id, state="succeeded", attempts=1, result=9)
    assert tab.names.count("error") == 2


def test_claims_outlast_a_broken_server(site: Site, tab: Tab) -> None:
    """A client goes on claiming when the server has recovered."""
    site.refuse("POST", times=1, status=500)

    tab.start(types=["square"]).wait("error")

    site.wait(site.enqueue("square", 3), state="succeeded")


def test_a_wrong_claim_stops_the_client(tab: Tab) -> None:
    """A refusal that says that the request is wrong is not asked for again."""
    tab.start(types=["square"], leaseSeconds=-1)

    tab.wait("error", code="invalid")
    tab.wait("stopped")


def test_stop_finishes_what_runs(site: Site, tab: Tab) -> None:
    """A stopped client claims no more and delivers what it holds."""
    held, waiting = site.enqueue("hold"), site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    tab.page.evaluate("void jobber.stop()")
    tab.finish(held)

    tab.wait("stopped")
    assert [site.job(job_id)["state"] for job_id in (held, waiting)] == ["succeeded", "queued"]


def test_stop_now_may_come_before_the_handler(site: Site, tab: Tab) -> None:
    """A listener that stops the client at the claim keeps the handler from being called."""
    job_id = site.enqueue("hold")
    tab.page.evaluate("make().addEventListener('claimed', () => jobber.stop({ now: true }))")

    tab.page.evaluate("void jobber.start()")

    tab.wait("stopped")
    assert tab.page.evaluate("finish") == {}
    site.wait(job_id, state="queued", failures=0)


def test_stop_now_gives_back_what_runs(site: Site, tab: Tab) -> None:
    """The handlers are aborted and nothing is counted."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    tab.page.evaluate("jobber.stop({ now: true })")

    assert tab.names == ["claimed", "released", "stopped"]
    assert [job_id] == tab.page.evaluate("aborted")
    site.wait(job_id, state="queued", attempts=1, failures=0)


def test_a_page_that_goes_releases_its_jobs(site: Site, tab: Tab) -> None:
    """The job is free at once, and nothing is counted."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    tab.page.goto("about:blank")

    site.wait(job_id, state="queued", attempts=1, failures=0, reasons=["enqueue", "claim", "release"])


def test_a_tab_that_is_closed_releases_its_jobs(site: Site, tab: Tab) -> None:
    """The request outlives the tab."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    tab.page.close(run_before_unload=True)

    site.wait(job_id, state="queued", attempts=1, failures=0)


def test_a_cached_page_works_on_when_it_is_shown_again(site: Site, tab: Tab) -> None:
    """The back/forward cache freezes a client; it gives back, and later claims, what it held."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    tab.page.goto("/login/ann")
    site.wait(job_id, state="queued", attempts=1)
    tab.page.go_back(wait_until="commit")

    tab.wait("claimed", job=job_id, attempt=2)
    assert "resumed" not in tab.names


def test_who_has_given_back_waits_for_no_lock(site: Site, open_tab: OpenTab) -> None:
    """Chromium drops a cached page that is granted a lock."""
    job_id = site.enqueue("hold")
    url = f"{site.url}/jobber/jobs/{job_id}/attempts/1"
    other = open_tab()
    other.page.evaluate(
        "name => void navigator.locks.request(name, () => new Promise(() => {}))", f"jobber {url}"
    )
    tab = open_tab().start(types=["hold"])
    tab.wait("claimed")

    tab.page.evaluate("jobber.stop({ now: true })")

    assert tab.page.evaluate("navigator.locks.query().then(({ pending }) => pending.length)") == 0


def test_a_reload_has_nothing_to_resume(site: Site, tab: Tab) -> None:
    """What was released on the way is claimed anew."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    tab.reload()
    site.wait(job_id, state="queued")
    tab.start(types=["hold"])

    tab.wait("claimed", job=job_id, attempt=2)
    assert "resumed" not in tab.names


def come_again(how: str, site: Site, tab: Tab) -> None:
    if how == "crashed":
        tab.crash()
    else:
        site.refuse("DELETE", times=1)
        tab.reload()


@pytest.mark.parametrize("how", ["crashed", "release was lost"])
def test_a_tab_resumes_what_it_still_holds(how: str, site: Site, open_tab: OpenTab) -> None:
    """It goes on with its own attempt, and leaves the jobs of the same login's other tab alone."""
    mine, others = site.enqueue("hold"), site.enqueue("hold")
    tab = open_tab().start(types=["hold"])
    tab.wait("claimed", job=mine)
    other = open_tab().start(types=["hold"])
    other.wait("claimed", job=others)

    come_again(how, site, tab)
    tab.start(types=["hold"], limit=2)

    tab.wait("resumed", job=mine, attempt=1)
    tab.wait("idle")
    assert [mine] == [job["id"] for job in tab.page.evaluate("jobber.jobs")]
    for holder, job_id in ((tab, mine), (other, others)):
        holder.finish(job_id)
        site.wait(job_id, state="succeeded", attempts=1, failures=0)


def test_a_resumed_job_has_a_fresh_lease(site: Site, tab: Tab) -> None:
    """The lease that ran down meanwhile is renewed before the work begins."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")
    ends = site.job(job_id)["lease_ends"]

    tab.crash().start(types=["hold"]).wait("resumed")

    assert site.job(job_id)["lease_ends"] > ends


def test_what_ended_meanwhile_is_not_resumed(site: Site, tab: Tab) -> None:
    """The server says what is still held."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")
    site.cancel(job_id)

    tab.crash().start(types=["hold"]).wait("idle")

    assert tab.names == ["idle"]
    assert tab.page.evaluate("sessionStorage.getItem('flask_jobber.attempts')") == "[]"


def test_what_has_no_handler_any_more_is_given_back(site: Site, tab: Tab) -> None:
    """A page that came again with other handlers holds no job that it cannot work."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    tab.crash()
    tab.page.evaluate(
        "import('/jobber/jobber.js').then(m => void new m.Jobber().on('square', () => 1).start())"
    )

    site.wait(job_id, state="queued", attempts=1, failures=0)


def test_a_copied_tab_does_not_resume(site: Site, tab: Tab) -> None:
    """A duplicate has a copy of the tab's storage, but not its jobs: not even when it is loaded again."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    with tab.page.expect_popup() as popup:
        tab.page.evaluate("void open('/')")
    copy = Tab(popup.value, "/")
    assert str(job_id) in copy.page.evaluate("sessionStorage.getItem('flask_jobber.attempts')")
    copy.start(types=["hold"]).wait("idle")
    copy.crash().start(types=["hold"]).wait("idle")

    assert copy.names == ["idle"]
    tab.finish(job_id)
    site.wait(job_id, state="succeeded", attempts=1)


STOPPED = """() => {
  const request = navigator.locks.request;
  navigator.locks.request = async () => {
    navigator.locks.request = request;
    throw new Error("The provided callback is no longer runnable");
  };
}"""


def test_a_tab_that_was_stopped_keeps_its_jobs(site: Site, tab: Tab) -> None:
    """Chromium takes a lock back that it grants while a dialog, or a window that opens, stops the page."""
    job_id = site.enqueue("hold")
    tab.page.evaluate(STOPPED)

    tab.start(types=["hold"]).wait("claimed")

    names = "navigator.locks.query().then(({ held }) => held.map(({ name }) => name))"
    lock = f"jobber {site.url}/jobber/jobs/{job_id}/attempts/1"
    until(lambda: lock in tab.page.evaluate(names), "its lock", lambda: tab.page.evaluate(names))


def test_two_clients_of_a_page_keep_their_own_jobs(site: Site, tab: Tab) -> None:
    """A second client of the same page takes nothing for left that the first one holds."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"]).wait("claimed")

    tab.start(types=["square"]).wait("idle")

    assert tab.names == ["claimed", "idle"]
    assert str(job_id) in tab.page.evaluate("sessionStorage.getItem('flask_jobber.attempts')")


def test_works_and_resumes_where_there_are_no_locks(browser: Browser, site: Site) -> None:
    """On plain HTTP browsers have no Web Locks: only a tab that is reloaded resumes."""
    job_id, url = site.enqueue("hold"), f"http://jobber.test:{site.port}/"
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{url}login/ann")
        tab = Tab(page, url)
        assert not tab.page.evaluate("'locks' in navigator")
        tab.start(types=["hold"]).wait("claimed")

        tab.crash().start(types=["hold"]).wait("resumed", job=job_id, attempt=1)


def test_a_module_worker_works(site: Site, tab: Tab) -> None:
    """Where there is no document, the client does without."""
    job_id = site.enqueue("square", 4)

    tab.page.evaluate("""() => {
        window.worker = new Worker("/worker.js", { type: "module" });
        worker.onmessage = ({ data }) => seen.push(...data);
        worker.postMessage({ types: ["square"], csrfToken: "from the page" });
    }""")

    tab.wait("delivered", job=job_id, state="succeeded")
    assert site.job(job_id)["result"] == 16
    assert {"from the page"} == set(site.ask("/test/tokens"))


def test_sends_the_csrf_token_of_the_page(site: Site, open_tab: OpenTab) -> None:
    """Every unsafe request carries the token of the meta tag."""
    held = site.enqueue("hold")
    tab = open_tab("/?csrf").start()
    tab.wait("claimed")
    site.wait(site.enqueue("telling"), state="queued")
    tab.finish(held)
    tab.wait("claimed", job=held + 1)
    tab.page.goto("about:blank")
    site.wait(held + 1, state="queued", attempts=1)

    (token,) = set(site.ask("/test/tokens"))

    assert token


def test_sends_no_token_where_there_is_none(site: Site, tab: Tab) -> None:
    """A page without the meta tag works too."""
    site.enqueue("square", 1)

    tab.start().wait("delivered")

    assert {None} == set(site.ask("/test/tokens"))


def test_sends_the_headers_it_was_given(site: Site, tab: Tab) -> None:
    """A node's name is part of the locker."""
    job_id = site.enqueue("hold")

    tab.start(types=["hold"], headers={"Jobber-Node": "lab-3"}).wait("claimed")

    assert site.job(job_id)["locked_by"] == "user_ann/lab-3"


def test_a_visitor_who_is_not_logged_in_stops_the_client(
    site: Site, visitor: BrowserContext, tab: Tab
) -> None:
    """Nothing is asked again and again that a login has to answer."""
    visitor.request.get("/logout")

    tab.start()

    tab.wait("stopped")
    assert tab.names == ["unauthorized", "stopped"]
    assert not tab.page.evaluate("jobber.running")


def test_a_logout_aborts_and_a_login_resumes(site: Site, visitor: BrowserContext, tab: Tab) -> None:
    """What was held at the logout goes on after the next start."""
    job_id = site.enqueue("hold")
    tab.start(types=["hold"], leaseSeconds=1.5).wait("claimed")

    visitor.request.get("/logout")
    tab.wait("stopped")
    visitor.request.get("/login/ann")
    tab.page.evaluate("void jobber.start()")

    tab.wait("resumed", job=job_id, attempt=1)
    assert [job_id] == tab.page.evaluate("aborted")
    tab.finish(job_id)
    site.wait(job_id, state="succeeded", attempts=1, failures=0)


def places(site: Site, **values: int) -> None:
    """Wait until so many wait or watch."""
    until(
        lambda: values.items() <= site.ask("/test/places").items(),
        f"{values}",
        lambda: site.ask("/test/places"),
    )


def test_a_new_job_starts_at_once(site: Site, tab: Tab) -> None:
    """The server's answer waits for it; the client asks nothing meanwhile."""
    tab.start(types=["square"])
    places(site, waiting=1)
    tab.wait("idle", retryAfter=0)
    asked = len(site.ask("/test/tokens"))
    job_id = site.enqueue("square", 3)
    site.wait(job_id, state="succeeded")
    # The claim that waited brought it; its result, and perhaps the next claim, came after.
    assert len(site.ask("/test/tokens")) - asked in (1, 2)


def test_stop_frees_the_place_where_a_claim_waits(site: Site, tab: Tab) -> None:
    """At once, without a word of trouble; a job that comes then is nobody's."""
    tab.start(types=["square"])
    places(site, waiting=1)
    tab.page.evaluate("jobber.stop()")
    places(site, waiting=0, taken=0)
    assert site.job(site.enqueue("square", 3))["state"] == "queued"
    tab.wait("stopped")
    assert "error" not in tab.names


def test_a_page_that_goes_frees_its_places(site: Site, tab: Tab) -> None:
    """That of its claim and that of its events."""
    tab.page.evaluate("hear({}, {})")
    tab.page.evaluate("void jobber.start()")
    places(site, waiting=1, watching=1)
    tab.page.goto("about:blank")
    places(site, waiting=0, watching=0, taken=0)


def test_without_a_wait_a_claim_is_answered_at_once(site: Site, tab: Tab) -> None:
    tab.start(types=["square"], waitSeconds=0)
    until(lambda: len(site.ask("/test/tokens")) >= 3, "claims in vain", lambda: tab.seen)
    assert site.ask("/test/places")["waiting"] == 0


def test_a_claim_that_is_answered_after_the_stop_is_given_back(site: Site, tab: Tab) -> None:
    """Its answer had begun when the client was stopped."""
    job_id = site.enqueue("square", 3)
    tab.page.evaluate(
        """() => {
          const read = Response.prototype.json;
          Response.prototype.json = async function () {
            const answer = await read.call(this);
            if (answer.jobs) jobber.stop();
            return answer;
          };
          make({ types: ["square"] }).start();
        }"""
    )
    site.wait(job_id, state="queued", attempts=1)
    assert site.job(job_id)["reasons"][-1] == "release"


def hear(tab: Tab, filter: Json, **options: t.Any) -> None:
    """Let the page hear of jobs; its stream has begun when the headers are there."""
    with tab.page.expect_response(lambda response: "/jobber/events" in response.url):
        tab.page.evaluate("([filter, options]) => hear(filter, options)", [filter, options])


def heard(tab: Tab, **values: t.Any) -> None:
    """Wait until the page has heard of a job with these values."""
    told = lambda: tab.page.evaluate("heard")  # noqa: E731
    until(lambda: any(values.items() <= (job or {}).items() for job in told()), f"{values}", told)


def test_a_page_hears_of_jobs(site: Site, tab: Tab) -> None:
    """Of those it asks for, progress too, until it leaves."""
    other = site.enqueue("hold")
    job_id = site.enqueue("telling")
    hear(tab, {"job": [job_id]}, types=["telling"])
    site.cancel(other)
    tab.page.evaluate("void jobber.start()")
    heard(tab, id=job_id, state="locked", progress=0.5)
    site.cancel(job_id)
    heard(tab, id=job_id, state="cancelled")
    assert {job["id"] for job in tab.page.evaluate("heard")} == {job_id}
    tab.page.evaluate("leave()")
    places(site, watching=0)


def test_a_broken_stream_goes_on(site: Site, tab: Tab) -> None:
    """With what happened meanwhile, though the server was in trouble too."""
    hear(tab, {"type": "none"})
    heard(tab, id=site.enqueue("none"))
    site.refuse("GET", 1)
    site.ask("/test/cut", {})
    places(site, watching=0)
    job_id = site.enqueue("none")
    heard(tab, id=job_id, state="queued")
    places(site, watching=1)
    site.cancel(job_id)
    heard(tab, id=job_id, state="cancelled")


def test_events_end_at_logout(site: Site, visitor: BrowserContext, tab: Tab) -> None:
    """Of this user, and nobody asks again."""
    hear(tab, {})
    visitor.request.get("/logout")
    tab.wait("unauthorized")
    places(site, watching=0, taken=0)
    assert tab.names == ["unauthorized"]


def test_a_page_that_comes_back_hears_again(site: Site, tab: Tab) -> None:
    """From the browser's cache, of what it has missed."""
    hear(tab, {"type": "none"})
    heard(tab, id=site.enqueue("none"))
    tab.page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    places(site, watching=0)
    job_id = site.enqueue("none")
    tab.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    heard(tab, id=job_id)


def test_a_page_that_may_have_missed_something_is_told_so(site: Site, tab: Tab) -> None:
    """Its first try came to nothing: it is to list its jobs again."""
    site.refuse("GET", 1)
    tab.page.evaluate("hear({ type: 'none' }, {})")
    places(site, watching=1)
    until(lambda: tab.page.evaluate("heard") == [None], "a reset", lambda: tab.page.evaluate("heard"))
