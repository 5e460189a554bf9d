"""Records of logins, and what follows from them: single jobs, gold, quotas, blocks, revocations."""

from __future__ import annotations

import datetime as dt
import random
import threading
import typing as t

import pytest
import sqlalchemy as sa
from click.testing import Result

from conftest import MakeWorld
from flask_jobber import Invalid
from flask_jobber.core import lockers, trust
from flask_jobber.core.payload import MAX_ID
from flask_jobber.core.prune import clear
from race_support import LIMIT, start, until, watching
from support import World


@pytest.fixture(autouse=True)
def no_luck(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[float], None]:
    """Let chance be what a test says; the middle at first."""

    def draw(value: float) -> None:
        monkeypatch.setattr(random, "random", lambda: value)

    draw(0.5)
    return draw


Draw = t.Callable[[float], None]


@pytest.fixture
def golden(make_world: MakeWorld, db_url: str) -> World:
    """A world in which gold is mixed in beside every job."""
    return make_world(db_url, JOBBER_GOLD_RATE=1.0)


def work(world: World, login: str, make: t.Callable[[t.Any], t.Any], limit: int = 100) -> int:
    """Claim all there is and deliver what ``make`` says for its data; return how many."""
    client = world.client(login)
    jobs = client.claim(limit=limit)
    for job in jobs:
        assert client.deliver(job, make(job["data"])).status_code == 200
    return len(jobs)


def right(data: t.Any) -> t.Any:
    return data["n"] * 2


def record(world: World, login: str) -> tuple[int, int, int, int]:
    with world.session():
        one = world.jobber.record(f"user_{login}")
        return (one.claims, one.valid, one.invalid, one.lapses)


def ask_many(world: World, number: int, **spec: t.Any) -> list[int]:
    spec = {"results_wanted": 2, "agreement": 2, **spec}
    with world.session():
        specs = [{"type": "work", "data": {"n": n}, **spec} for n in range(number)]
        return [job.id for job in world.jobber.enqueue_many(specs)]


def states(world: World, ids: t.Sequence[int]) -> set[str]:
    return {world.job(job_id).state for job_id in ids}


def tomorrow(world: World) -> None:
    """Let the day of all records be yesterday."""
    with world.session() as session:
        session.execute(sa.update(world.jobber.Locker.__table__).values(day="2000-01-01"))


# -- records -------------------------------------------------------------------------------------


def test_a_record_counts_what_a_login_did(world: World) -> None:
    """Claims, valid and invalid answers, lapses and the median time, on whatever node."""
    ask_many(world, 3, results_wanted=3)
    work(world, "ann", right)
    work(world, "bob", lambda data: "rubbish")
    work(world, "cy", right)
    assert record(world, "ann") == (3, 3, 0, 0)
    assert record(world, "bob") == (3, 0, 3, 0)
    ask_many(world, 1)
    [job] = world.client("ann", "laptop").claim()
    world.pass_time(1000)
    [again] = world.client("dee").claim()
    assert again["id"] == job["id"]
    assert record(world, "ann") == (4, 3, 0, 1)
    with world.session():
        median = world.jobber.record("user_ann").median_seconds
        assert median is not None
        assert 0 <= median < 60
        assert [one.login for one in world.jobber.lockers()] == [
            f"user_{name}" for name in ("ann", "bob", "cy", "dee")
        ]


def test_a_lapse_that_ends_a_copy_is_counted(world: World) -> None:
    ask_many(world, 1, max_attempts=1)
    [job] = world.client("ann").claim()
    world.pass_time(1000)
    with world.session():
        world.jobber.expire()
    assert world.job(job["id"]).state == "failed"
    assert record(world, "ann") == (1, 0, 0, 1)


def test_jobs_that_want_one_result_leave_no_record(world: World) -> None:
    world.enqueue("work", {"n": 1})
    work(world, "ann", right)
    with world.session():
        assert world.jobber.lockers() == []
        assert world.jobber.record("user_ann").claims == 0


def test_a_client_is_told_of_itself_alone_and_not_at_once(world: World) -> None:
    """Who saw its record grow at once would know which answers were checked."""
    ask_many(world, 2)
    work(world, "ann", right)
    work(world, "bob", right)
    assert record(world, "ann") == (2, 2, 0, 0)
    me = world.client("ann", "laptop").get("/me").json
    assert me is not None
    assert (me["login"], me["node"], me["blocked"]) == ("user_ann", "laptop", False)
    assert me["record"] == {"claims": 0, "valid": 0, "invalid": 0, "lapses": 0, "median_seconds": None}
    tomorrow(world)
    me = world.client("ann").get("/me").json
    assert me is not None
    assert (me["record"]["claims"], me["record"]["valid"], me["record"]["invalid"]) == (2, 2, 0)
    assert me["record"]["median_seconds"] is not None
    assert world.client("zoe").get("/me").json == {
        "login": "user_zoe",
        "node": None,
        "blocked": False,
        "record": {"claims": 0, "valid": 0, "invalid": 0, "lapses": 0, "median_seconds": None},
        "max_open_claims": None,
        "claims_left_today": None,
    }


def test_marks_of_what_is_rolled_back_are_forgotten(world: World) -> None:
    ask_many(world, 1)
    with world.app.app_context():
        world.jobber.claim("user_ann")
        world.db.session.rollback()
    assert record(world, "ann") == (0, 0, 0, 0)


# -- adaptive ------------------------------------------------------------------------------------


def trusted(world: World, login: str, streak: int = 10) -> None:
    """Let a login have been right so often in a row."""
    with world.session():
        store = world.jobber.store()
        from flask_jobber.core import lockers

        lockers.lock(store, [f"user_{login}"])
        lockers.put(store, f"user_{login}", {"streak": streak, "valid": streak})


def test_who_has_a_good_record_is_believed_alone(world: World, no_luck: Draw) -> None:
    """But at random: the longer the record, the more seldom."""
    no_luck(0.11)
    trusted(world, "ann")
    ids = ask_many(world, 1, adaptive=True)
    work(world, "ann", right)
    assert states(world, ids) == {"succeeded"}
    no_luck(0.09)
    ids = ask_many(world, 1, adaptive=True)
    work(world, "ann", right)
    assert states(world, ids) == {"blocked"}
    work(world, "bob", right)
    assert states(world, ids) == {"succeeded"}


def test_who_is_new_is_always_doubled(world: World, no_luck: Draw) -> None:
    no_luck(0.999)
    trusted(world, "bob", 9)
    ids = ask_many(world, 2, adaptive=True)
    assert work(world, "ann", right) == 2
    assert states(world, ids) == {"blocked"}
    assert work(world, "bob", right) == 2
    assert states(world, ids) == {"succeeded"}


def test_a_wrong_answer_ends_a_good_record(world: World, no_luck: Draw) -> None:
    no_luck(0.05)  # drawn for a check
    trusted(world, "ann")
    ask_many(world, 1, adaptive=True)
    work(world, "ann", lambda data: "rubbish")
    for login in ("bob", "cy"):
        work(world, login, right)
    no_luck(0.999)
    ids = ask_many(world, 1, adaptive=True)
    work(world, "ann", right)
    assert states(world, ids) == {"blocked"}


def test_what_is_believed_alone_is_nothing_to_be_proud_of(world: World, no_luck: Draw) -> None:
    """An answer that nobody checked makes no record better."""
    no_luck(0.999)
    trusted(world, "ann")
    ask_many(world, 3, adaptive=True)
    work(world, "ann", right)
    assert record(world, "ann") == (3, 10, 0, 0)


# -- gold ----------------------------------------------------------------------------------------


def test_gold_marks_the_record_and_nothing_else(golden: World) -> None:
    """It is never processed, and whoever is wrong hears nothing."""
    processed: list[t.Any] = []
    golden.jobber.processor("work")(lambda job, result: processed.append(job.data))
    with golden.session():
        golden.jobber.gold("work", {"n": 1000}, 2000)
    ask_many(golden, 1)
    assert work(golden, "ann", right) == 2
    assert work(golden, "bob", lambda data: right(data) if data["n"] < 1000 else 1) == 1
    ask_many(golden, 1)
    assert work(golden, "bob", lambda data: right(data) if data["n"] < 1000 else 1) == 2
    assert record(golden, "ann")[1:3] == (2, 0)
    assert record(golden, "bob")[1:3] == (1, 1)
    assert processed == [{"n": 0}]


def test_gold_stands_among_the_others(golden: World) -> None:
    """Of a bulk too, before or after its neighbour: neither ids nor the order of claims set it apart."""
    with golden.session():
        for n in range(30):
            golden.jobber.gold("work", {"n": 1000 + n}, 2000)
    ask_many(golden, 30)
    are_gold = [job["data"]["n"] >= 1000 for job in golden.client("ann").claim(limit=60)]
    pairs = list(zip(are_gold[::2], are_gold[1::2], strict=True))
    assert set(pairs) == {(True, False), (False, True)}


def test_two_who_write_the_same_records_do_not_die(
    make_world: MakeWorld, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though one of them has begun when a record was not there yet."""
    world = make_world(postgres_url)

    def write(*logins: str) -> None:
        with world.session():
            lockers.lock(world.jobber.store(), logins)

    write("b")
    met, go, insert = threading.Event(), threading.Event(), lockers._insert

    def insert_late(store: t.Any, login: str) -> t.Any:
        met.set()
        go.wait(LIMIT)
        return insert(store, login)

    with watching(world) as watch:
        with world.session():
            lockers.lock(world.jobber.store(), ["a", "b"])
            monkeypatch.setattr(lockers, "_insert", insert_late)
            first = start(lambda: write("a", "b"))
            until(lambda: met.is_set() or watch.sees_a_waiter(), "the first")
        until(met.is_set, "an insertion")
        second = start(lambda: write("a", "b"))
        watch.until_waits(second)
        go.set()
        first.result(LIMIT)
        second.result(LIMIT)


def test_a_claim_is_counted_whatever_becomes_of_its_original(world: World) -> None:
    """Pruned before the last answer comes, or cleared with it."""
    ask_many(world, 1, results_wanted=3)
    held = {login: world.client(login).claim()[0] for login in ("ann", "bob", "cy")}
    for login in ("ann", "bob"):
        world.client(login).deliver(held[login], 1)
    with world.session():
        assert world.jobber.prune(older_than=dt.timedelta(0)) > 0
    assert world.client("cy").deliver(held["cy"], 1).status_code == 200
    assert record(world, "cy")[0] == 1
    ask_many(world, 1)
    world.client("cy").claim()
    assert record(world, "cy")[0] == 2
    with world.session():
        clear(world.jobber.store(), 0, MAX_ID, limit=10)
    assert record(world, "cy")[0] == 2


def test_nobody_gets_the_same_gold_twice(golden: World) -> None:
    """However often it is mixed in; another login does."""
    with golden.session():
        golden.jobber.gold("work", {"n": 1000}, 2000)
    ask_many(golden, 5, results_wanted=1, agreement=1)
    seen: list[int] = []
    for _ in range(3):
        work(golden, "ann", lambda data: seen.append(data["n"]) or right(data))
    assert sorted(seen) == [0, 1, 2, 3, 4, 1000]
    ask_many(golden, 1, results_wanted=1, agreement=1)
    assert work(golden, "ann", right) == 1
    assert work(golden, "bob", right) == 1


def test_gold_that_waits_for_somebody_new_is_not_mixed_in_again(golden: World) -> None:
    with golden.session():
        gold = golden.jobber.gold("work", {"n": 1000}, 2000).id
    for _ in range(3):
        ask_many(golden, 2, results_wanted=1, agreement=1)
        work(golden, "ann", right)
    with golden.session() as session:
        copies = sa.select(sa.func.count()).where(golden.Job.copy_of == gold)
        assert session.scalar(copies) == 2


def test_gold_is_mixed_in_at_a_rate(make_world: MakeWorld, db_url: str, no_luck: Draw) -> None:
    world = make_world(db_url, JOBBER_GOLD_RATE=0.25)
    with world.session():
        world.jobber.gold("work", {"n": 1000}, 2000)
        world.jobber.gold("other", {"n": 1000}, 2000)
    no_luck(0.26)
    ask_many(world, 1)
    assert work(world, "ann", right) == 1
    no_luck(0.24)
    ask_many(world, 1)
    assert work(world, "ann", right) == 2


def test_gold_that_is_cancelled_is_used_no_more(golden: World) -> None:
    """Not even what was mixed in before."""
    with golden.session():
        gold = golden.jobber.gold("work", {"n": 1000}, 2000).id
    ask_many(golden, 1)
    with golden.session():
        golden.jobber.cancel(gold)
    ask_many(golden, 1)
    assert work(golden, "ann", right) == 2


def test_gold_that_is_retried_is_mixed_in_as_before(golden: World) -> None:
    """It is not processed, though its result is known; who had it does not get it again."""
    processed: list[t.Any] = []
    golden.jobber.processor("work")(lambda job, result: processed.append(job.data))
    with golden.session():
        gold = golden.jobber.gold("work", {"n": 1000}, 2000).id
    ask_many(golden, 1, results_wanted=1, agreement=1)
    assert work(golden, "ann", right) == 2
    with golden.session():
        golden.jobber.cancel(gold)
        golden.jobber.retry(gold)
        golden.jobber.process_submitted()
    assert golden.job(gold).state == "blocked"
    ask_many(golden, 1, results_wanted=1, agreement=1)
    assert work(golden, "ann", right) == 1
    assert work(golden, "bob", right) == 1
    assert processed == [{"n": 0}] * 2


def test_gold_is_kept_while_others_are_pruned(golden: World) -> None:
    with golden.session():
        gold = golden.jobber.gold("work", {"n": 1000}, 2000).id
    ask_many(golden, 1, results_wanted=1, agreement=1)
    work(golden, "ann", right)
    with golden.session():
        assert golden.jobber.prune(older_than=dt.timedelta(0)) == 3
    assert golden.job(gold).state == "blocked"
    ask_many(golden, 1, results_wanted=1, agreement=1)
    assert work(golden, "ann", right) == 1


def test_answers_outlive_those_they_are_to_be_compared_with(world: World) -> None:
    [job_id] = ask_many(world, 1)
    work(world, "ann", right)
    with world.session():
        assert world.jobber.prune(older_than=dt.timedelta(0)) == 0
    work(world, "bob", right)
    assert states(world, [job_id]) == {"succeeded"}


# -- those who mean no good ----------------------------------------------------------------------


def test_two_accounts_of_one_person_on_one_batch(golden: World) -> None:
    """They agree with each other, as long as they are believed; gold tells, and what they did is undone."""
    undone: list[int] = []
    golden.jobber.processor("work")(lambda job, result: None)
    golden.jobber.on_revoked("work")(lambda job, result: undone.append(job.id))
    with golden.session():
        golden.jobber.gold("work", {"n": 1000}, 2000)
    ids = ask_many(golden, 5)
    for login in ("eve", "eve2"):
        work(golden, login, lambda data: "easy")
        ask_many(golden, 1)  # the gold is mixed in anew
    assert states(golden, ids) == {"succeeded"}
    assert [record(golden, login)[2] for login in ("eve", "eve2")] == [1, 1]
    with golden.session():
        for login in ("user_eve", "user_eve2"):
            golden.jobber.block(login)
            golden.jobber.revoke(login)
    assert sorted(undone) == ids
    assert states(golden, ids) == {"blocked"}
    for login in ("eve", "eve2"):
        assert work(golden, login, right) == 0
    for login in ("ann", "bob"):
        work(golden, login, right)
    assert {golden.job(job_id).result for job_id in ids} == {2 * n for n in range(5)}
    assert states(golden, ids) == {"succeeded"}


def test_two_accounts_among_honest_people(world: World, no_luck: Draw) -> None:
    """Where three must agree, two are found out by each job, and no rubbish is taken."""
    ids = ask_many(world, 5, results_wanted=3, agreement=3, max_results=6)
    for login in ("eve", "eve2"):
        work(world, login, lambda data: "easy")
    for login in ("ann", "bob", "cy"):
        work(world, login, right)
    assert [world.job(job_id).result for job_id in ids] == [2 * n for n in range(5)]
    assert record(world, "eve2")[1:3] == (0, 5)
    assert record(world, "ann")[1:3] == (5, 0)


def test_who_claims_everything_and_delivers_rubbish(make_world: MakeWorld, db_url: str) -> None:
    """It gets a few at first, then fewer; the others do the work."""
    world = make_world(db_url, JOBBER_FIRST_OPEN_CLAIMS=8, JOBBER_FIRST_DAILY_CLAIMS=8)
    ids = ask_many(world, 4, results_wanted=3)
    assert len(world.client("eve").claim(limit=100)) == 4
    refused = world.client("eve", "other").post("/claims", {"limit": 100})
    assert refused.status_code == 200  # there is nothing more for her
    for job in world.client("eve").get("/claims").json["jobs"]:  # type: ignore[index]
        world.client("eve").deliver(job, "rubbish")
    for login in ("ann", "bob"):
        work(world, login, right)
    assert states(world, ids) == {"succeeded"}
    tomorrow(world)
    me = world.client("eve").get("/me").json
    assert me is not None
    assert (me["max_open_claims"], me["claims_left_today"]) == (1, 1)
    good = world.client("ann").get("/me").json
    assert good is not None
    assert good["max_open_claims"] == 8 * 2**4


def test_what_is_taken_back_is_never_for_its_login(world: World) -> None:
    ids = ask_many(world, 1)
    work(world, "eve", lambda data: "easy")
    [held] = world.client("bob").claim()
    with world.session():
        assert world.jobber.revoke("user_eve") == 1
    assert world.client("eve").claim(limit=10) == []
    work(world, "ann", right)
    assert world.client("bob").deliver(held, right(held["data"])).status_code == 200
    assert states(world, ids) == {"succeeded"}


# -- quotas --------------------------------------------------------------------------------------


def test_claims_of_a_day_are_bounded(make_world: MakeWorld, db_url: str) -> None:
    """Of jobs of any kind, on all nodes of a login; the refusal says when the next day begins."""
    world = make_world(db_url, JOBBER_FIRST_DAILY_CLAIMS=3)
    for n in range(10):
        world.enqueue("work", {"n": n})
    assert work(world, "ann", right, limit=2) == 2
    assert len(world.client("ann", "other").claim(limit=10)) == 1
    refused = world.client("ann").post("/claims", {})
    assert (refused.status_code, refused.json["code"]) == (429, "too_many_claims")  # type: ignore[index]
    assert 0 < int(refused.headers["Retry-After"]) <= 86_400
    assert len(world.client("bob").claim(limit=10)) == 3
    tomorrow(world)
    assert len(world.client("ann").claim(limit=10)) == 3


def test_open_claims_are_bounded_by_the_standing(make_world: MakeWorld, db_url: str) -> None:
    """Never beyond ``MAX_OPEN_CLAIMS``."""
    world = make_world(db_url, JOBBER_FIRST_OPEN_CLAIMS=2, JOBBER_MAX_OPEN_CLAIMS=5)
    ask_many(world, 2, results_wanted=2)
    for login in ("ann", "bob"):
        work(world, login, right)
    for n in range(20):
        world.enqueue("work", {"n": n})
    assert len(world.client("ann").claim(limit=20)) == 2
    tomorrow(world)
    assert len(world.client("ann").claim(limit=20)) == 3
    assert world.client("ann").post("/claims", {}).status_code == 429


def test_quotas_are_positive() -> None:
    from flask_jobber.config import read_settings
    from flask_jobber.errors import SetupError

    for key, value in (("FIRST_OPEN_CLAIMS", 0), ("GOLD_RATE", 1.5), ("TRUST_AFTER", 0)):
        with pytest.raises(SetupError):
            read_settings({}, {key: value})


# -- block and revoke ----------------------------------------------------------------------------


def test_who_is_blocked_is_handed_nothing(world: World) -> None:
    """What it holds is back at once, on all its nodes; a node's name is no way round."""
    world.enqueue("work", {"n": 1})
    [job] = world.client("eve", "a").claim()
    with world.session():
        assert world.jobber.block("user_eve") == 1
    late = world.client("eve", "a").deliver(job, 1)
    assert (late.status_code, late.json["code"]) == (409, "lease_lost")  # type: ignore[index]
    for node in (None, "a", "b"):
        assert world.client("eve", node).claim() == []
    me = world.client("eve").get("/me").json
    assert me is not None
    assert me["blocked"] is True
    with world.session():
        world.jobber.unblock("user_eve")
    assert len(world.client("eve").claim()) == 1


def test_a_login_is_no_node(world: World) -> None:
    with world.session(), pytest.raises(Invalid):
        world.jobber.block("user_eve/a")


def test_what_was_delivered_between_two_moments_is_open_again(world: World) -> None:
    """Jobs of any kind, for others; the app undoes each in the same transaction."""
    undone: list[tuple[int, t.Any]] = []
    world.jobber.processor("work")(lambda job, result: None)
    world.jobber.on_revoked("work")(lambda job, result: undone.append((job.id, result)))
    ids = [world.enqueue("work", {"n": n}) for n in range(3)]
    moments: list[dt.datetime] = []
    for _ in ids:
        with world.session():
            moments.append(world.jobber.store().now())
        assert work(world, "eve", lambda data: "rubbish", limit=1) == 1
    other = world.enqueue("work", {"n": 9}, only_for="user_ann")
    work(world, "ann", right)
    with world.session():
        assert world.jobber.revoke("user_eve", since=moments[1], until=moments[2]) == 1
    assert undone == [(ids[1], "rubbish")]
    assert [world.job(job_id).state for job_id in (*ids, other)] == [
        "succeeded",
        "queued",
        "succeeded",
        "succeeded",
    ]
    job = world.job(ids[1])
    assert (job.result, job.finished_at, job.locked_by, job.not_for) == (None, None, None, ["user_eve"])
    assert world.history(ids[1])[-1] == ("succeeded", "queued", "revoke")
    assert world.client("eve").claim() == []
    assert work(world, "ann", right) == 1
    with world.session():
        assert world.jobber.revoke("user_eve") == 2


def test_an_app_that_cannot_undo_is_heard(world: World) -> None:
    """Then nothing is taken back."""

    @world.jobber.on_revoked("work")
    def broken(job: t.Any, result: t.Any) -> None:
        raise RuntimeError("cannot")

    job_id = world.enqueue("work", {"n": 1})
    work(world, "eve", right)
    with world.app.app_context():
        with pytest.raises(RuntimeError):
            world.jobber.revoke("user_eve")
        world.db.session.rollback()
    assert world.job(job_id).state == "succeeded"


def test_what_enough_others_agree_with_stands(world: World) -> None:
    undone: list[int] = []
    world.jobber.on_revoked("work")(lambda job, result: undone.append(job.id))
    [job_id] = ask_many(world, 1, results_wanted=3)
    jobs = {login: world.client(login).claim()[0] for login in ("ann", "bob", "eve")}
    for login in ("eve", "ann", "bob"):
        world.client(login).deliver(jobs[login], 0)
    with world.session():
        assert world.jobber.revoke("user_eve") == 1
    assert (states(world, [job_id]), undone) == ({"succeeded"}, [])


def test_an_answer_that_is_taken_back_before_there_is_agreement(world: World) -> None:
    """Is as if it had never been."""
    [job_id] = ask_many(world, 1)
    work(world, "eve", right)
    with world.session():
        assert world.jobber.revoke("user_eve") == 1
    work(world, "ann", right)
    assert states(world, [job_id]) == {"blocked"}
    work(world, "bob", right)
    assert states(world, [job_id]) == {"succeeded"}


def test_what_was_believed_alone_is_then_asked_of_several(world: World, no_luck: Draw) -> None:
    no_luck(0.999)
    trusted(world, "eve")
    ids = ask_many(world, 1, adaptive=True)
    work(world, "eve", lambda data: "rubbish")
    with world.session():
        world.jobber.revoke("user_eve")
    for login in ("ann", "bob"):
        work(world, login, right)
    assert [world.job(job_id).result for job_id in ids] == [0]


# -- the command line ----------------------------------------------------------------------------


def test_the_command_line(lite: World) -> None:
    ask_many(lite, 2)
    for login in ("ann", "eve"):
        work(lite, login, right)

    def run(*words: str) -> Result:
        result = lite.app.test_cli_runner().invoke(args=["jobber", "lockers", *words])
        assert result.exit_code == 0, result.output
        return result

    assert "user_eve" in run("list").output
    assert '"valid": 2' in run("list", "--json").output
    assert "claims: 2" in run("show", "user_eve").output
    assert run("block", "user_eve").output == "user_eve: blocked, 0 released\n"
    assert run("revoke", "user_eve", "--since", "2020-01-01T00:00+0000").output == "user_eve: 2 taken back\n"
    assert run("unblock", "user_eve").output == "user_eve: unblocked\n"
    refused = lite.app.test_cli_runner().invoke(args=["jobber", "lockers", "block", "user_eve/a"])
    assert refused.exit_code == 1
    assert "without a node" in refused.output


def test_the_words_of_an_answer(lite: World) -> None:
    [job_id] = ask_many(lite, 1)
    with lite.session():
        [one] = lite.jobber.answers(job_id)
    assert (one.becomes, one.login, one.result) == (trust.WAITING, None, None)
