"""Several results of one job: who is handed copies, when answers agree, and what it costs not to ask."""

from __future__ import annotations

import typing as t

import marshmallow as ma
import pytest
import sqlalchemy as sa

from flask_jobber import Invalid, ResultRejected, close_to
from flask_jobber.core import trust
from flask_jobber.core.agreement import largest_group, same_json
from flask_jobber.core.prune import clear
from race_support import compete, engine_of, together
from situations import assert_legal, put
from support import World

LOGINS = ("ann", "bob", "cy", "dee", "eve", "fay")


def ask(world: World, **spec: t.Any) -> int:
    """Enqueue a job that wants several results."""
    return world.enqueue("work", {"n": 1}, **{"results_wanted": 3, "agreement": 2, **spec})


def effects_of(world: World, type: str = "work") -> list[tuple[int, t.Any]]:
    """Let a processor note what it gets."""
    effects: list[tuple[int, t.Any]] = []

    @world.jobber.processor(type)
    def note(job: t.Any, result: t.Any) -> None:
        effects.append((job.id, result))

    return effects


def claim_one(world: World, login: str, node: str | None = None) -> dict[str, t.Any]:
    [job] = world.client(login, node).claim()
    return job


def answer(world: World, login: str, result: t.Any) -> None:
    """Claim and deliver."""
    response = world.client(login).deliver(claim_one(world, login), result)
    assert (response.status_code, response.json) == (200, {"state": "succeeded"})


def becomes(world: World, job_id: int) -> list[str]:
    with world.session():
        return [one.becomes for one in world.jobber.answers(job_id)]


# -- agreement ---------------------------------------------------------------------------------


def test_equal_answers_of_two_end_the_job_once(world: World) -> None:
    """Its processor gets the agreed result, with the original, and nobody is asked any more."""
    effects = effects_of(world)
    job_id = ask(world)
    assert world.job(job_id).state == "blocked"
    answer(world, "ann", {"a": 1, "b": [2]})
    assert effects == []
    assert world.job(job_id).state == "blocked"
    answer(world, "bob", {"b": [2], "a": 1})
    assert effects == [(job_id, {"a": 1, "b": [2]})]
    job = world.job(job_id)
    assert (job.state, job.result) == ("succeeded", {"a": 1, "b": [2]})
    assert world.history(job_id) == [
        (None, "blocked", "enqueue"),
        ("blocked", "succeeded", "agree"),
    ]
    assert world.client("cy").claim() == []
    assert becomes(world, job_id) == ["answered", "answered", "gone"]


def test_each_answer_is_of_another_login(world: World) -> None:
    """Nobody is handed two, on whatever node, before and after it has delivered."""
    ask(world)
    first = claim_one(world, "ann")
    assert world.client("ann").claim(limit=10) == []
    assert world.client("ann", "laptop").claim(limit=10) == []
    assert world.client("ann").deliver(first, 1).status_code == 200
    assert world.client("ann").claim(limit=10) == []
    assert len({claim_one(world, login)["id"] for login in ("bob", "cy")} | {first["id"]}) == 3
    assert world.client("dee").claim() == []


def test_disagreement_asks_for_another_until_there_is_agreement(world: World) -> None:
    effects = effects_of(world)
    job_id = ask(world, results_wanted=2)
    for login, result in zip(LOGINS, (1, 2, 3, 2), strict=False):
        assert effects == []
        answer(world, login, result)
    assert effects == [(job_id, 2)]
    assert world.client("fay").claim() == []


def test_without_agreement_it_fails_and_all_answers_are_kept(world: World) -> None:
    """After ``max_results``; its failure processor is called once."""
    effects, failures = effects_of(world), []
    world.jobber.on_failure("work")(lambda job, error: failures.append((job.id, error["type"])))
    job_id = ask(world, max_results=4)
    for number, login in enumerate(LOGINS[:4]):
        answer(world, login, number)
    assert world.job(job_id).state == "failed"
    assert effects == []
    assert failures == [(job_id, "NoAgreement")]
    with world.session():
        kept = [(one.login, one.result) for one in world.jobber.answers(job_id)]
    assert kept == [(f"user_{login}", number) for number, login in enumerate(LOGINS[:4])]
    assert world.client("fay").claim() == []


def test_a_failed_one_may_be_retried(world: World) -> None:
    """It then asks as many as at first, and knows nothing of what was answered before."""
    effects = effects_of(world)
    job_id = ask(world, results_wanted=2, max_results=2)
    answer(world, "ann", 1)
    answer(world, "bob", 2)
    assert world.job(job_id).state == "failed"
    assert world.client("root").post(f"/jobs/{job_id}/retry").status_code == 200
    answer(world, "ann", 3)
    answer(world, "cy", 3)
    assert effects == [(job_id, 3)]


def test_who_holds_one_while_a_job_is_retried_gets_no_other(world: World) -> None:
    """What it holds is one of the answers that are asked for again."""
    effects: list[t.Any] = []

    @world.jobber.processor("work")
    def reject_one(job: t.Any, result: t.Any) -> None:
        if result == 1:
            raise ResultRejected("nonsense")
        effects.append((job.id, result))

    job_id = ask(world, max_results=3)
    late = claim_one(world, "cy")
    for login in ("ann", "bob"):
        answer(world, login, 1)
    assert world.job(job_id).state == "failed"
    assert world.client("root").post(f"/jobs/{job_id}/retry").status_code == 200
    assert world.client("cy", "laptop").claim(limit=10) == []
    assert world.client("cy").deliver(late, 2).status_code == 200
    assert world.client("cy").claim(limit=10) == []
    assert world.job(job_id).state == "blocked"
    answer(world, "ann", 2)
    assert effects == [(job_id, 2)]


def test_whom_the_app_excludes_gets_no_copy_however_many_they_are(world: World) -> None:
    names = [f"user_n{number:03}" for number in range(150)]
    ask(world, not_for=names)
    assert world.client("n120").claim() == []
    copy = claim_one(world, "ann")
    assert world.client("bob").release(claim_one(world, "bob")).status_code == 204
    assert world.client("n120").claim() == []
    assert world.client("ann").release(copy).status_code == 204
    assert world.client("n120").claim(limit=10) == []


def test_copies_are_cleared_with_their_job_alone(world: World) -> None:
    """Or it would wait for them for ever."""
    job_id = ask(world)
    claim_one(world, "ann")
    copies = _copies(world, job_id)
    for equals, gone in (({"state": "queued"}, 0), ({"state": "blocked"}, 3)):
        with world.session():
            assert clear(world.jobber.store(), 0, 1000, limit=10, **equals)[0] == gone
        assert world.client("root").get(f"/jobs/{job_id}").status_code == (404 if gone else 200)
    with world.session() as session:
        assert len(copies) == 2
        assert session.scalar(sa.select(sa.func.count()).select_from(world.Job)) == 0


def test_who_holds_one_that_was_not_called_off_gets_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its holder wrote to it at the moment its job was cancelled."""
    job_id = ask(world)
    claim_one(world, "cy")
    with monkeypatch.context() as patch:
        patch.setattr(trust, "call_off", lambda *rest: None)
        assert world.client("root").post(f"/jobs/{job_id}/cancel").status_code == 200
    assert world.client("root").post(f"/jobs/{job_id}/retry").status_code == 200
    assert world.client("cy", "laptop").claim(limit=10) == []
    for login in ("ann", "bob"):
        answer(world, login, 1)
    assert world.job(job_id).state == "succeeded"


def test_who_failed_one_gets_no_other(world: World) -> None:
    """Until the job is retried, which asks afresh."""
    job_id = ask(world, results_wanted=1, agreement=1, max_results=2)
    assert world.client("ann").fail(claim_one(world, "ann"), permanent=True).status_code == 200
    assert world.client("ann").claim(limit=10) == []
    assert world.client("bob").fail(claim_one(world, "bob"), permanent=True).status_code == 200
    assert world.client("root").post(f"/jobs/{job_id}/retry").status_code == 200
    answer(world, "ann", 1)
    assert world.job(job_id).state == "succeeded"


def test_an_app_says_what_is_the_same(world: World) -> None:
    world.jobber.agreement("work")(close_to(abs=0.01))
    effects = effects_of(world)
    job_id = ask(world)
    answer(world, "ann", {"x": [1.0]})
    answer(world, "bob", {"x": [1.5]})
    answer(world, "cy", {"x": [1.001]})
    assert effects == [(job_id, {"x": [1.0]})]


def test_a_comparison_that_breaks_has_found_nothing_the_same(world: World) -> None:
    @world.jobber.agreement("work")
    def broken(one: t.Any, other: t.Any) -> bool:
        raise RuntimeError("broke")

    job_id = ask(world, results_wanted=2, max_results=2)
    answer(world, "ann", 1)
    answer(world, "bob", 1)
    assert world.job(job_id).state == "failed"


def test_close_to() -> None:
    same = close_to(rel=0.01)
    assert same({"a": [1.0, "x", None]}, {"a": [1.005, "x", None]})
    assert same(1, 1.001)
    assert not same(1.0, 1.1)
    assert not same(100, 101)
    assert not same(True, 1.0)
    assert not same({"a": 1.0}, {"b": 1.0})
    assert not same([1.0], [1.0, 2.0])
    assert close_to(abs=0.1)(0.0, 0.05)


def test_the_largest_group_is_found_around_any_answer() -> None:
    assert largest_group([1.0, 1.9, 2.8], close_to(abs=1.0)) == [1, 0, 2]
    assert largest_group([1, 2, 2, 1], same_json) == [0, 3]
    assert largest_group([], same_json) == []


def test_a_result_that_breaks_the_schema_is_refused_to_its_holder(world: World) -> None:
    """As of any job: 422, the lease is kept."""

    class Result(ma.Schema):
        n = ma.fields.Integer(required=True)

    world.jobber.job_type("work", schema=Result)
    ask(world)
    job, ann = claim_one(world, "ann"), world.client("ann")
    assert ann.deliver(job, {"n": "x"}).status_code == 422
    assert ann.deliver(job, {"n": 1}).status_code == 200


def test_a_processor_that_breaks_is_called_again(world: World) -> None:
    """The agreed result is kept; whoever delivered last hears nothing of it."""
    calls: list[t.Any] = []

    @world.jobber.processor("work")
    def break_once(job: t.Any, result: t.Any) -> None:
        calls.append(result)
        if len(calls) == 1:
            raise RuntimeError("broke once")

    job_id = ask(world)
    answer(world, "ann", 1)
    answer(world, "bob", 1)
    assert world.job(job_id).state == "submitted"
    with world.session():
        put(world, job_id, run_at=world.job(job_id).created_at)
        assert world.jobber.process_submitted() == 1
    assert (world.job(job_id).state, calls) == ("succeeded", [1, 1])


@pytest.mark.parametrize("then", ["release", "correct", "exclude"])
def test_an_agreed_result_that_is_rejected_fails(world: World, then: t.Any) -> None:
    """Nobody could do it better alone; the answers are kept for the operator."""

    @world.jobber.processor("work")
    def reject(job: t.Any, result: t.Any) -> None:
        raise ResultRejected("nonsense", then=then)

    job_id = ask(world)
    answer(world, "ann", 1)
    answer(world, "bob", 1)
    assert world.job(job_id).state == "failed"
    assert world.client("root").get(f"/jobs/{job_id}").json["error"] == {  # type: ignore[index]
        "type": "ResultRejected",
        "message": "nonsense",
    }


# -- copies that bring no answer -----------------------------------------------------------------


def test_what_is_released_is_for_others(world: World) -> None:
    """Those who have one do not get it, whoever gave it back may."""
    ask(world)
    held = {login: claim_one(world, login) for login in ("ann", "bob")}
    assert world.client("ann").release(held["ann"]).status_code == 204
    claim_one(world, "cy")
    assert world.client("bob").claim(limit=5) == []
    assert len(world.client("dee").claim(limit=5)) == 1
    assert world.client("ann").claim(limit=5) == []


def test_a_lapsed_copy_goes_to_a_login_that_has_none(world: World) -> None:
    """Not to one that holds another, which goes on to the next job."""
    ask(world)
    claim_one(world, "ann")
    world.pass_time(100)
    claim_one(world, "bob")
    with world.session() as session:
        jobs = world.Job.__table__
        session.execute(
            sa.update(jobs).where(jobs.c.locked_by == "user_ann").values(locked_until=jobs.c.created_at)
        )
    other = world.enqueue("work", None, priority=-1)
    assert claim_one(world, "bob")["id"] == other
    assert len(world.client("cy").claim(limit=5)) == 1


def test_a_copy_that_fails_is_replaced(world: World) -> None:
    """Within ``max_results``; a failure that may be tried again goes back like any other."""
    failures: list[int] = []
    world.jobber.on_failure("work")(lambda job, error: failures.append(job.id))
    job_id = ask(world, results_wanted=1, agreement=1, max_results=2)
    assert world.client("ann").fail(claim_one(world, "ann"), permanent=True).status_code == 200
    assert world.job(job_id).state == "blocked"
    assert world.client("bob").fail(claim_one(world, "bob"), permanent=True).status_code == 200
    assert world.job(job_id).state == "failed"
    assert failures == [job_id]
    assert becomes(world, job_id) == ["gone", "gone"]


def test_what_expires_ends_the_job(world: World) -> None:
    job_id = ask(world, expires_at=None)
    [copy_id] = _copies(world, job_id)
    with world.session():
        put(world, copy_id, expires_at=world.job(job_id).created_at)
        assert world.jobber.expire() == 1
    assert world.job(job_id).state == "failed"


def test_a_cancelled_job_is_over_for_its_holders(world: World) -> None:
    job_id = ask(world)
    job = claim_one(world, "ann")
    assert world.client("root").post(f"/jobs/{job_id}/cancel").status_code == 200
    refused = world.client("ann").deliver(job, 1)
    assert (refused.status_code, refused.json["code"]) == (409, "cancelled")  # type: ignore[index]
    assert world.client("bob").claim() == []


def test_a_queue_that_is_emptied_has_no_copies_left(world: World) -> None:
    job_id = ask(world, queue="q")
    with world.session():
        assert world.jobber.queues.empty("q") == 1
    assert world.job(job_id).state == "cancelled"
    assert world.client("ann").claim() == []


def test_who_loses_its_rights_has_no_copy(world: World) -> None:
    """What is taken back by the server is for others at once."""
    job_id = ask(world)
    claim_one(world, "ann")
    with world.session():
        assert world.jobber.block("user_ann") == 1
    assert sorted(becomes(world, job_id)) == ["waiting", "waiting"]
    for login in ("bob", "cy"):
        answer(world, login, 1)
    assert world.job(job_id).state == "succeeded"


def test_an_answer_that_was_not_waited_for_is_taken(world: World) -> None:
    """It changes nothing but the record of its login."""
    effects = effects_of(world)
    ask(world)
    late = claim_one(world, "ann")
    answer(world, "bob", 1)
    answer(world, "cy", 1)
    assert world.client("ann").deliver(late, 2).status_code == 200
    assert len(effects) == 1
    with world.session():
        records = {one.login: (one.valid, one.invalid) for one in world.jobber.lockers()}
    assert records == {"user_ann": (0, 1), "user_bob": (1, 0), "user_cy": (1, 0)}


def test_a_copy_is_retried_or_cancelled_with_its_job_alone(world: World) -> None:
    [copy_id] = _copies(world, ask(world))
    for verb in ("cancel", "retry"):
        assert world.client("root").post(f"/jobs/{copy_id}/{verb}").status_code == 409


def test_bounds_of_what_may_be_asked(world: World) -> None:
    for spec in (
        {"results_wanted": 0},
        {"results_wanted": 2, "agreement": 3},
        {"results_wanted": 3, "max_results": 2},
        {"agreement": 2},
        {"results_wanted": 3, "only_for": "ann"},
        {"results_wanted": 3, "every": 60},
        {"results_wanted": 3, "adaptive": 1},
        {"results_wanted": 1, "adaptive": True},
        {"results_wanted": 101},
    ):
        with pytest.raises(Invalid):
            world.enqueue("work", None, **spec)


def test_a_copy_waits_for_its_time(world: World) -> None:
    ask(world, after=60)
    assert world.client("ann").claim() == []
    world.pass_time(61)
    answer(world, "ann", 1)


def test_copies_have_the_columns_of_the_app(world: World) -> None:
    """So the scope is theirs too."""
    job_id = ask(world, user_id="ann", priority=7, queue="q")
    assert world.client("bob").claim() == []
    copy = world.job(claim_one(world, "ann")["id"])
    assert (copy.user_id, copy.priority, copy.queue, copy.copy_of) == ("ann", 7, "q", job_id)


def test_histories_of_copies_are_legal(world: World) -> None:
    job_id = ask(world)
    world.client("ann").release(claim_one(world, "ann"))
    for login in LOGINS[:2]:
        answer(world, login, 1)
    for id in (job_id, *_copies(world, job_id)):
        assert_legal(world.history(id))


def _copies(world: World, job_id: int) -> list[int]:
    with world.session():
        return [one.job_id for one in world.jobber.answers(job_id)]


# -- races ---------------------------------------------------------------------------------------


def test_two_nodes_of_a_login_never_get_two_at_the_same_moment(world: World) -> None:
    """Though two copies are there to be had."""
    job_id = ask(world)
    held = {login: claim_one(world, login) for login in ("ann", "bob")}
    for login, job in held.items():
        world.client(login).release(job)
    with world.session():
        waiting = [one for one in world.jobber.answers(job_id) if one.becomes == "waiting"]
        assert len(waiting) >= 2
    got = together(6, lambda number: world.client("cy", f"node-{number}").claim(limit=3))
    assert sum(map(len, got)) == 1


def test_a_batch_of_one_claim_holds_no_two_of_one_job(world: World) -> None:
    ids = [ask(world) for _ in range(5)]
    for login in ("ann", "bob"):
        for job in world.client(login).claim(limit=10):
            world.client(login).release(job)
    jobs = world.client("cy").claim(limit=100)
    assert sorted(world.job(job["id"]).copy_of for job in jobs) == ids


def test_two_who_deliver_at_once_agree_once(world: World) -> None:
    """The second waits for the first, and sees its answer."""
    effects = effects_of(world)
    job_id = ask(world, results_wanted=2)
    first, second = claim_one(world, "ann"), claim_one(world, "bob")

    def deliver_first() -> None:
        world.jobber.deliver("user_ann", first["id"], 1, 5)

    response = compete(world, deliver_first, lambda: world.client("bob").deliver(second, 5))
    assert response.status_code == 200
    assert effects == [(job_id, 5)]


def test_exchanges_do_not_die_of_each_other(world: World) -> None:
    """Each delivers copies of some jobs and claims copies of others that somebody delivers."""
    ids = [ask(world, results_wanted=4, agreement=4, max_results=8) for _ in range(6)]

    def exchange(number: int) -> set[int]:
        client, jobs, statuses = world.client(LOGINS[number]), list[t.Any](), set[int]()
        while not statuses or jobs:
            results = [{"id": job["id"], "attempt": job["attempt"], "result": 1} for job in reversed(jobs)]
            response = client.post("/exchange", {"results": results, "claim": {"limit": 2}})
            statuses |= {response.status_code}
            jobs = response.json["jobs"] if response.status_code == 200 else jobs  # type: ignore[index]
        return statuses

    assert together(4, exchange) == [{200}] * 4
    assert {world.job(job_id).state for job_id in ids} <= {"blocked", "succeeded"}


# -- nothing for nothing -------------------------------------------------------------------------


def test_jobs_of_one_result_cost_what_they_did(world: World) -> None:
    """No statement more to enqueue, claim and deliver, and no word of copies in their rows."""
    counted = {False: _count(world, {}), True: _count(world, {"results_wanted": 1})}
    expected = {"sqlite": (3, 4, 2), "postgresql": (3, 1, 1), "mysql": (3, 5, 3)}
    with world.app.app_context():
        assert counted[False] == expected[world.jobber.store().engine_name]
    assert all(more > plain for plain, more in zip(counted[False], counted[True], strict=True))


def _count(world: World, spec: dict[str, t.Any]) -> tuple[int, ...]:
    seen: list[str] = []
    counts = []
    with world.session() as session:
        engine = world.db.engine
        sa.event.listen(engine, "before_cursor_execute", lambda c, u, text, *rest: seen.append(text))
        world.jobber.enqueue("work", None, **spec)
        counts.append(len(seen))
        session.commit()
        session.execute(sa.text("SELECT 1"))
        seen.clear()
        [claim] = world.jobber.claim("user_ann")
        counts.append(len(seen))
        seen.clear()
        world.jobber.deliver("user_ann", claim.id, claim.attempt, 1)
        counts.append(len(seen))
    return tuple(counts)


@pytest.mark.parametrize("path", ["/claims", "/exchange"])
def test_a_claim_of_a_copy_leaves_nothing_to_be_rolled_back(world: World, path: str) -> None:
    """Its files are read before it is committed; psycopg forgets what it has prepared at each roll-back."""
    job_id = world.enqueue("work", 1, results_wanted=2)
    with world.session():
        world.jobber.attach(job_id, "a.txt", b"a")
    ended = list[str]()
    engine = engine_of(world)
    names = ("commit", "rollback")
    listeners = {name: lambda connection, name=name: ended.append(name) for name in names}
    for name, listener in listeners.items():
        sa.event.listen(engine, name, listener)
    body = {"/claims": {}, "/exchange": {"claim": {}}}[path]
    [job] = world.client("ann").post(path, body).get_json()["jobs"]
    for name, listener in listeners.items():
        sa.event.remove(engine, name, listener)
    assert ([file["name"] for file in job["attachments"]], set(ended)) == (["a.txt"], {"commit"})


@pytest.mark.parametrize("of", ["original", "copy", "none"])
def test_a_claim_of_a_copy_has_the_files_of_both(world: World, of: str) -> None:
    """Those that its original came with, and those that an operator has attached to it; of no others."""
    other, job_id = world.enqueue("other", 1, results_wanted=2), world.enqueue("work", 1, results_wanted=2)
    with world.session() as session:
        copy = session.scalars(sa.select(world.Job.id).where(world.Job.copy_of == job_id)).one()
        world.jobber.attach({"original": job_id, "copy": copy, "none": other}[of], "a.txt", b"a")
    client = world.client("ann")
    [job] = client.claim(types=["work"])
    names = [] if of == "none" else ["a.txt"]
    assert [file["name"] for file in job["attachments"]] == names
    assert client.get("/claims").get_json()["jobs"] == [job]
