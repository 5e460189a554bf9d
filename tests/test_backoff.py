"""Back-off: how long a job waits, how it is written, and whose word counts."""

from __future__ import annotations

import datetime as dt
import json
import math
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MakeWorld
from flask_jobber import Backoff, Constant, Exponential, Linear, Polynomial, SetupError
from flask_jobber.core.backoff import read_backoff
from situations import ERROR, LOCKER, shared_world
from support import World

quick = settings(deadline=None, database=None)

_seconds = st.just(0) | st.integers(1, 10**9) | st.floats(1e-3, 1e9)
_jitters = st.floats(0, 1) | st.integers(0, 1)
_factors = st.floats(0, 100) | st.integers(0, 100)
backoffs: st.SearchStrategy[Backoff] = st.one_of(
    st.builds(Constant, _seconds, jitter=_jitters),
    st.builds(Linear, _seconds, jitter=_jitters),
    st.builds(Exponential, _seconds, _factors, jitter=_jitters),
    st.builds(Polynomial, _seconds, _factors, jitter=_jitters),
)
_failures = st.integers(1, 50) | st.integers(1, 2**31)
_caps = st.floats(1e-3, 1e9)


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (Constant(), [30, 30, 30]),
        (Constant(7), [7, 7, 7]),
        (Constant(0), [0, 0, 0]),
        (Linear(), [30, 60, 90]),
        (Linear(0.5), [0.5, 1, 1.5]),
        (Exponential(jitter=0), [5, 10, 20, 40, 80]),
        (Exponential(2, 3, jitter=0), [2, 6, 18, 54]),
        (Exponential(8, 0.5, jitter=0), [8, 4, 2, 1]),
        (Polynomial(), [6, 21, 86, 261]),
        (Polynomial(0, 2), [1, 4, 9]),
    ],
    ids=repr,
)
def test_a_strategy_waits_as_its_formula_says(backoff: Backoff, delays: list[float]) -> None:
    """After the first failure, the second, and so on; only ``Exponential`` varies unless it is told to."""
    assert [backoff.delay(failures) for failures in range(1, len(delays) + 1)] == delays
    assert backoff.delay(0) == backoff.delay(1)


@quick
@given(backoffs, _failures, _caps)
def test_a_delay_is_never_over_the_cap(backoff: Backoff, failures: int, cap: float) -> None:
    """However many failures there are, and whatever the jitter; and never below nothing."""
    assert 0 <= backoff.delay(failures, cap) <= cap


@quick
@given(backoffs, _failures, _caps)
def test_jitter_varies_a_delay_to_both_sides_by_its_part(backoff: Backoff, failures: int, cap: float) -> None:
    """Of the capped delay, so that jobs at the cap are spread too; the cap itself still holds."""
    plain = type(backoff)(**{**_fields(backoff), "jitter": 0}).delay(failures, cap)
    least, most = plain * (1 - backoff.jitter), min(plain * (1 + backoff.jitter), cap)

    for _ in range(5):
        assert least * (1 - 1e-9) <= backoff.delay(failures, cap) <= most * (1 + 1e-9)


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    """The default varies by a fifth, also where the cap has been reached."""
    for failures in (1, 5, 50):
        delays = [Exponential().delay(failures, 1000) for _ in range(200)]
        assert max(delays) - min(delays) > 0.1 * max(delays)


@quick
@given(st.floats(1e-3, 1e6), st.floats(1, 10), st.integers(1, 5000), _caps)
def test_a_delay_does_not_shrink_with_more_failures(
    first: float, factor: float, failures: int, cap: float
) -> None:
    """Without jitter each strategy that grows goes on growing, up to the cap."""
    growing = (
        Constant(first),
        Linear(first),
        Exponential(first, factor, jitter=0),
        Polynomial(first, factor),
    )
    for backoff in growing:
        assert backoff.delay(failures, cap) <= backoff.delay(failures + 1, cap)


@quick
@given(st.integers(1, 2**31), _caps)
def test_a_first_delay_of_nothing_stays_nothing(failures: int, cap: float) -> None:
    """Whatever it is multiplied by."""
    for backoff in (Constant(0), Linear(0), Exponential(0)):
        assert backoff.delay(failures, cap) == 0


@quick
@given(backoffs)
def test_a_backoff_survives_being_stored(backoff: Backoff) -> None:
    """As the small JSON object that stands in a job's row."""
    facts = json.loads(json.dumps(backoff.as_json()))

    assert read_backoff(facts) == backoff
    assert read_backoff(backoff) is backoff
    assert hash(read_backoff(facts)) == hash(backoff)


def test_a_backoff_may_be_named_or_described() -> None:
    """A name means its defaults; a description may leave out what is as usual."""
    assert read_backoff("linear") == Linear()
    assert read_backoff("exponential") == Exponential()
    assert read_backoff({"strategy": "polynomial", "power": 2}) == Polynomial(power=2)
    assert read_backoff({"strategy": "constant", "first": 4, "jitter": 0.5}) == Constant(4, jitter=0.5)


@pytest.mark.parametrize(
    "value",
    [
        None, 5, "", "weekly", "Linear", [], {}, {"first": 5}, {"strategy": "weekly"}, {"strategy": []},
        {"strategy": None}, {"strategy": "constant", "factor": 2}, {"strategy": "constant", "first": "5"},
        {"strategy": "constant", "first": -1}, {"strategy": "constant", "first": None}, Constant,
        {"strategy": "constant", "first": math.inf}, {"strategy": "constant", "first": math.nan},
        {"strategy": "constant", "first": True}, {"strategy": "linear", "jitter": 1.1}, Backoff(),
        {"strategy": "backoff"}, {"strategy": "linear", 5: 5},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_backoff_is_refused(value: object) -> None:
    """With one kind of error, whatever is wrong with it."""
    with pytest.raises(ValueError, match=r"\w"):
        read_backoff(value)


# -- whose back-off counts --------------------------------------------------------------------


def _delay(world: World, type_: str, **spec: t.Any) -> float:
    """Let a job fail once; return the seconds until it is due again."""
    job_id = world.enqueue(type_, **spec)
    with world.session():
        [claim] = world.jobber.claim(LOCKER, types=[type_])
        world.jobber.fail(LOCKER, job_id, claim.attempt, ERROR)
    delay: dt.timedelta = world.job(job_id).run_at - dt.datetime.now(dt.UTC)
    return delay.total_seconds()


def test_a_jobs_backoff_counts_before_its_types_and_that_before_the_apps(
    make_world: MakeWorld, db_url: str
) -> None:
    """None of them is longer than ``MAX_BACKOFF_SECONDS``."""
    world = make_world(db_url, JOBBER_BACKOFF=Constant(1000), JOBBER_MAX_BACKOFF_SECONDS=5000)
    world.jobber.job_type("slow", backoff=Linear(2000))
    world.jobber.processor("slower", backoff=Constant(9000))(lambda job, result: None)

    for seconds, type_, spec in (
        (1000, "work", {}),
        (2000, "slow", {}),
        (3000, "slow", {"backoff": Constant(3000)}),
        (3000, "slow", {"backoff": {"strategy": "linear", "first": 3000}}),
        (30, "slow", {"backoff": "constant"}),
        (0, "slow", {"backoff": Constant(0)}),
        (5000, "slower", {}),
        (5000, "work", {"backoff": Constant(1e300)}),
    ):
        assert seconds - 25 < _delay(world, type_, **spec) <= seconds, (type_, spec)


@pytest.mark.parametrize("backoff", ["linear", {"strategy": "linear"}, Linear()])
def test_the_apps_backoff_may_be_named_in_its_configuration(
    make_world: MakeWorld, sqlite_url: str, backoff: t.Any
) -> None:
    """By name, description or object."""
    world = make_world(sqlite_url, JOBBER_BACKOFF=backoff)

    assert 5 < _delay(world, "work") <= 30


def test_a_bad_backoff_is_refused_where_it_is_given(make_world: MakeWorld, sqlite_url: str) -> None:
    """Not at the first failure of a job: in the configuration, or with the type."""
    with pytest.raises(SetupError, match="BACKOFF"):
        make_world(sqlite_url, JOBBER_BACKOFF="weekly")
    jobber = make_world(sqlite_url).jobber
    for register in (jobber.job_type, jobber.processor):
        with pytest.raises((SetupError, ValueError), match="back-off"):
            register("work", backoff="weekly")  # type: ignore[arg-type]


@quick
@given(backoff=backoffs)
def test_the_stored_backoff_is_the_jobs_own(stored_once: World, backoff: Backoff) -> None:
    """The row holds what was given, number for number."""
    with stored_once.app.app_context():
        job = stored_once.jobber.enqueue("work", backoff=backoff)
        assert read_backoff(job.backoff) == backoff
        stored_once.db.session.rollback()


@pytest.fixture(scope="module")
def stored_once(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[World]:
    with shared_world(tmp_path_factory.mktemp("backoff")) as world:
        yield world


def _fields(backoff: Backoff) -> dict[str, t.Any]:
    return {name: value for name, value in backoff.as_json().items() if name != "strategy"}
