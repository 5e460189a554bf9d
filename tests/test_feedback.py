"""Feedback: what a single job names, to be called at its end."""

from __future__ import annotations

import logging
import typing as t

import pytest
from marshmallow import Schema, fields

from flask_jobber import Invalid, ResultRejected, SetupError
from situations import ERROR, ago, put, stored
from support import World

LOCKER = "user_ann"


class Number(Schema):
    n = fields.Integer(required=True)


class Heard:
    """What feedback was called with; it breaks as often as it is told to."""

    def __init__(self, world: World, breaks: int = 0) -> None:
        self.calls: list[tuple[str, t.Any]] = []
        self.world, self.breaks = world, breaks

    def __call__(self, job: t.Any, said: t.Any) -> None:
        self.calls.append((job.state, said))
        job.written = f"call {len(self.calls)}"
        if len(self.calls) <= self.breaks:
            raise RuntimeError("the feedback broke")


def _hand_out(world: World, **spec: t.Any) -> t.Any:
    world.enqueue(**spec)
    with world.session():
        (claim,) = world.jobber.claim(LOCKER)
    return claim


def _deliver(world: World, claim: t.Any, result: t.Any = 1) -> str:
    with world.session():
        return str(world.jobber.deliver(LOCKER, claim.id, claim.attempt, result))


def _fail(world: World, claim: t.Any, **how: t.Any) -> str:
    with world.session():
        return str(world.jobber.fail(LOCKER, claim.id, claim.attempt, ERROR, **how))


def test_feedback_gets_the_result_in_the_same_transaction(world: World) -> None:
    """Also where no type is registered; jobs that name none are left alone."""
    heard = Heard(world)
    world.jobber.feedback("tell")(heard)
    plain = _hand_out(world)
    assert _deliver(world, plain) == "succeeded"
    assert heard.calls == []

    claim = _hand_out(world, on_success="tell")
    assert _deliver(world, claim, {"n": 1}) == "succeeded"
    assert heard.calls == [("locked", {"n": 1})]
    assert (world.job(claim.id).written, world.job(plain.id).written) == ("call 1", None)


def test_feedback_comes_after_the_processor_and_in_its_savepoint(world: World) -> None:
    """What one of them wrote is undone when the other breaks; both are called again."""
    order: list[str] = []

    @world.jobber.processor("work", schema=Number)
    def store(job: t.Any, result: t.Any) -> None:
        order.append("processor")
        job.written = "processed"
        assert result.pop("n") == 5  # each gets a result of its own

    @world.jobber.feedback("tell")
    def tell(job: t.Any, result: t.Any) -> None:
        order.append("feedback")
        assert (job.written, result) == ("processed", {"n": 5})
        if order.count("feedback") == 1:
            raise RuntimeError("broke once")

    claim = _hand_out(world, on_success="tell")
    assert _deliver(world, claim, {"n": "5"}) == "submitted"
    assert (world.job(claim.id).written, world.job(claim.id).result) == (None, {"n": "5"})
    with world.session():
        put(world, claim.id, run_at=ago(60))
        assert world.jobber.process_submitted() == 1
    assert (world.job(claim.id).state, world.job(claim.id).written) == ("succeeded", "processed")
    assert order == ["processor", "feedback"] * 2


def test_feedback_may_reject_a_result(world: World) -> None:
    """Like a processor."""

    @world.jobber.feedback("picky")
    def reject(job: t.Any, result: t.Any) -> None:
        raise ResultRejected("no good")

    claim = _hand_out(world, on_success="picky", max_attempts=1)
    with world.session(), pytest.raises(ResultRejected):
        world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
    assert world.job(claim.id).state == "failed"


def test_a_failure_is_told_once_when_the_job_has_failed(world: World) -> None:
    """After the type's own, not at a failure that is not the last."""
    order: list[str] = []
    heard = Heard(world)
    world.jobber.on_failure("work")(lambda job, error: order.append(job.state))
    world.jobber.feedback("tell")(heard)
    claim = _hand_out(world, on_failure="tell", max_attempts=2)
    assert (_fail(world, claim), heard.calls) == ("scheduled", [])
    world.pass_time(10_000)
    with world.session():
        (claim,) = world.jobber.claim(LOCKER)
    assert _fail(world, claim) == "failed"
    assert heard.calls == [("failed", {**ERROR, "traceback": None})]
    assert order == ["failed"]
    assert world.job(claim.id).written == "call 1"


def test_a_lapse_that_ends_a_job_is_told_too(world: World) -> None:
    """Whoever meets it."""
    heard = Heard(world)
    world.jobber.feedback("tell")(heard)
    claim = _hand_out(world, on_failure="tell", max_attempts=1)
    with world.session():
        put(world, claim.id, locked_until=ago(60))
        assert world.jobber.expire() == 1
    assert [error["type"] for _, error in heard.calls] == ["LeaseLapsed"]


def test_failure_feedback_that_breaks_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and recorded, its work undone; so is that of the type's own, each by itself."""
    heard = Heard(world, breaks=1)
    world.jobber.on_failure("work")(lambda job, error: {}["type's own"])
    world.jobber.feedback("tell")(heard)
    claim = _hand_out(world, on_failure="tell")
    assert _fail(world, claim, permanent=True) == "failed"
    assert (len(heard.calls), world.job(claim.id).written) == (1, None)
    _, rows = stored(world, claim.id)
    assert [row["error"]["type"] for row in rows if row["from_state"] == "failed"] == [
        "KeyError",
        "RuntimeError",
    ]
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == [
        "a failure processor broke"
    ] * 2


def test_feedback_that_is_not_registered_is_refused_at_the_producer(lite: World) -> None:
    """Where the mistake is made."""
    lite.jobber.feedback("tell")(print)
    for field in ("on_success", "on_failure"):
        for name in ("other", "a b", 5, ""):
            with lite.session(), pytest.raises(Invalid) as refused:
                lite.jobber.enqueue("work", **{field: name})
            assert list(refused.value.errors) == [field]


def test_stored_feedback_that_a_process_does_not_know_counts_as_broken(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The result is kept until one comes that does; a failure is logged and recorded."""
    done, failed = _hand_out(world), _hand_out(world)
    with world.session():
        put(world, done.id, on_success="elsewhere")
        put(world, failed.id, on_failure="elsewhere")
    assert _deliver(world, done, 5) == "submitted"
    assert _fail(world, failed, permanent=True) == "failed"
    for job_id in (done.id, failed.id):
        assert stored(world, job_id)[1][-1]["error"]["type"] == "LookupError"
    assert "'elsewhere'" in caplog.text

    heard = Heard(world)
    world.jobber.feedback("elsewhere")(heard)
    with world.session():
        put(world, done.id, run_at=ago(60))
        world.jobber.process_submitted()
    assert heard.calls == [("submitted", 5)]
    assert world.job(done.id).state == "succeeded"


def test_a_name_of_feedback_is_taken_once(lite: World) -> None:
    """And before the first request."""
    lite.jobber.feedback("tell")(print)
    with pytest.raises(SetupError, match="tell"):
        lite.jobber.feedback("tell")(print)
    with pytest.raises(Invalid):
        lite.jobber.feedback("a b")
    lite.client().claim()
    with pytest.raises(SetupError, match="first request"):
        lite.jobber.feedback("late")(print)


def test_feedback_is_for_server_code(lite: World) -> None:
    """A client names no function of the app's."""
    lite.jobber.feedback("tell")(print)
    refused = lite.client("root").post("/jobs", {"type": "work", "on_success": "tell"})
    assert (refused.status_code, list(refused.get_json()["errors"])) == (422, ["on_success"])
