"""Objects and functions as jobs: what becomes one, what runs, and what its class may say of it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import functools
import gc
import inspect
import types
import typing as t
import weakref

import attrs
import pytest
import sqlalchemy as sa

from delayed_support import Address, Money, Shop, job_of
from flask_jobber import Cancel, Constant, Fail, Invalid, SetupError, Snooze, State
from flask_jobber.delayed.performer import PERFORM
from flask_jobber.testing import drain, inline
from flask_jobber.worker.run import Failed, Released, Succeeded
from support import World


@pytest.fixture
def shop(lite: World) -> Shop:
    return Shop(lite)


def _done_by(shop: Shop, act: t.Callable[[], t.Any]) -> list[t.Any]:
    """Enqueue by an act, do the job; return what was done."""
    shop.enqueue(act)
    assert shop.done == []
    assert shop.work()[1] is State.SUCCEEDED
    return shop.done


# -- objects that perform ---------------------------------------------------------------------


def _perform(self: t.Any) -> t.Any:
    self.done.append({name: value for name, value in vars(self).items() if name != "done"})
    return len(self.emails)


def test_a_dataclass_performs(shop: Shop) -> None:
    """Its fields are kept; what it returns is the result."""

    @shop.jobber.performable
    @dataclasses.dataclass
    class Letter:
        text: str
        emails: list[str]
        words: int = dataclasses.field(init=False)
        done: t.ClassVar[list[t.Any]] = shop.done

        def __post_init__(self) -> None:
            self.words = len(self.text.split())

        perform = _perform

    with shop.world.session():
        job = shop.jobber.enqueue(Letter("good day", ["ann", "bob"]))
        assert isinstance(job, shop.world.Job)
        assert (job.type, job.queue, job.priority, job.state) == (PERFORM, "default", 0, State.QUEUED)
        name = f"{__name__}:{Letter.__qualname__}"
        kept = {" object": [name, {"text": "good day", "emails": ["ann", "bob"]}]}
        job_id, data = job.id, {"call": Letter.__qualname__, "target": kept, "method": "perform"}
        assert job.data == {**data, "args": [], "kwargs": {}}
    outcome, state = shop.work()
    assert (outcome, state) == (Succeeded(2), State.SUCCEEDED)
    assert shop.done == [{"text": "good day", "emails": ["ann", "bob"], "words": 2}]
    assert shop.world.job(job_id).result == 2


def test_an_attrs_class_performs(shop: Shop) -> None:
    """A private attribute goes by the name that its constructor has for it."""

    @shop.jobber.performable
    @attrs.frozen
    class Letter:
        text: str
        _emails: list[str]
        length: int = attrs.field(init=False, default=3)

        def perform(self) -> None:
            shop.done.append((self.text, self._emails))

    assert _done_by(shop, lambda: shop.jobber.enqueue(Letter("hi", ["ann"]))) == [("hi", ["ann"])]


def test_a_class_may_say_itself_what_it_is_made_of(shop: Shop) -> None:
    """By a marshmallow schema, or by to_job and from_job."""
    money = shop.given(Money(5, "EUR"))
    assert (type(money), money.amount, money.currency) == (Money, 5, "EUR")
    address = shop.given(Address("Main Street", dt.date(2024, 2, 29)))
    assert (type(address), address.street, address.since) == (Address, "Main Street", dt.date(2024, 2, 29))


def test_a_mapped_object_performs(shop: Shop) -> None:
    """Its columns are no options, whatever they are called."""
    shop.order(1, "tea")

    def enqueue() -> t.Any:
        job = shop.jobber.enqueue(shop.db.session.get(shop.Order, 1))
        assert (job.priority, job.queue) == (0, "default")
        return job

    assert _done_by(shop, enqueue) == [("performed", 1, "tea")]


@pytest.mark.parametrize("thing", [5, b"work", dataclasses.make_dataclass("Idle", []), object(), ["work"]])
def test_what_cannot_perform_is_refused(shop: Shop, thing: t.Any) -> None:
    """With the field that is wrong, as for a name that is none."""
    with shop.world.session():
        with pytest.raises(Invalid) as caught:
            shop.jobber.enqueue(thing)
        assert "type" in caught.value.errors


def test_an_undeclared_class_is_refused_at_the_producer(shop: Shop) -> None:
    """Before anything is stored; the message says what to do."""

    @dataclasses.dataclass
    class Letter:
        def perform(self) -> None: ...

    with shop.world.session():
        with pytest.raises(Invalid, match=r"Letter is no JSON: declare its class with @jobber\.performable"):
            shop.jobber.enqueue(Letter())


def test_a_declared_class_without_fields_is_refused(shop: Shop) -> None:
    """Nobody can know what it is made of."""

    @shop.jobber.performable
    class Letter:
        def perform(self) -> None: ...

    with shop.world.session():
        with pytest.raises(Invalid, match="has no fields"):
            shop.jobber.enqueue(Letter())


def test_the_helpers_for_an_apps_tests_do_these_jobs(shop: Shop) -> None:
    """Drained, or inline at the commit."""
    shop.order()
    with shop.world.app.app_context():
        shop.db.session.get(shop.Order, 1).bill()
        shop.db.session.commit()
        assert drain(shop.jobber).succeeded == 1
        with inline(shop.jobber):
            shop.jobber.send_later(shop.keep, shop.db.session.get(shop.Order, 1))
            assert shop.done == [("billed", 1, False)]
            shop.db.session.commit()
    assert [type(noted) for noted in shop.done] == [tuple, shop.Order]


def test_the_job_joins_the_callers_transaction(shop: Shop) -> None:
    """A roll-back takes it along."""
    with shop.world.app.app_context():
        shop.db.session.add(order := shop.Order(title="tea"))
        order.bill()
        shop.db.session.rollback()
    with shop.world.session() as session:
        assert session.query(shop.world.Job).count() == 0
        assert session.query(shop.Order).count() == 0


# -- functions and methods --------------------------------------------------------------------


def test_a_function_is_sent_later(shop: Shop) -> None:
    """With any arguments."""

    @shop.jobber.performable
    def add(*args: int, **kwargs: int) -> None:
        shop.done.append((args, kwargs))

    assert _done_by(shop, lambda: shop.jobber.send_later(add, 1, 2, x=3)) == [((1, 2), {"x": 3})]


def test_methods_of_objects_are_sent_later(shop: Shop) -> None:
    """Of mapped and declared objects and classes, by send_later and by delay."""
    shop.order(4)

    def order() -> t.Any:
        return shop.db.session.get(shop.Order, 4)

    sends = [
        lambda: shop.jobber.send_later(order().ship, "home", fast=True),
        lambda: shop.jobber.delay(order()).ship("home", fast=True),
    ]
    for send in sends:
        shop.enqueue(send)
        shop.work()
    assert shop.done == [("shipped", 4, "tea", ("home",), {"fast": True})] * 2
    counts = [
        lambda: shop.jobber.send_later(shop.Order.count, 10),
        lambda: shop.jobber.delay(shop.Order).count(least=10),
    ]
    for send in counts:
        shop.enqueue(send)
        assert shop.work()[0] == Succeeded(11)


def test_functions_of_a_module_are_delayed(shop: Shop) -> None:
    """Of a declared module those public ones that it defines; of any other those that are declared."""
    module = types.ModuleType("shop_module")
    code = "from os.path import join\ndef load(path): return path.upper()\ndef _hide(): pass\ntext = 'x'"
    exec(code, vars(module))
    with shop.world.session():
        with pytest.raises(Invalid, match="load is not declared"):
            shop.jobber.delay(module).load("a.csv")
    shop.jobber.performable(module)
    shop.enqueue(lambda: shop.jobber.delay(module, priority=5).load("a.csv"))
    shop.enqueue(lambda: shop.jobber.send_later(module.load, "b.csv"))
    assert [shop.work()[0] for _ in range(2)] == [Succeeded("A.CSV"), Succeeded("B.CSV")]
    with shop.world.session():
        for wrong in ("join", "text", "absent"):
            with pytest.raises(Invalid):
                getattr(shop.jobber.delay(module), wrong)("a")
        with pytest.raises(Invalid, match="_hide is not declared"):
            shop.jobber.send_later(module._hide)
    for wrong in ("join", "text", "_hide", "absent"):
        shop.put({"target": {" name": f"shop_module:{wrong}"}, "args": ["a"], "kwargs": {}})
        assert t.cast(Failed, shop.work()[0]).error["message"].startswith("Nothing is declared")


def test_delay_takes_the_options_of_an_enqueue(shop: Shop) -> None:
    """All of them."""
    shop.order()

    def enqueue() -> t.Any:
        order = shop.db.session.get(shop.Order, 1)
        return shop.jobber.delay(order, priority=5, queue="slow", after=60, user_id="ann").ship()

    job = shop.world.job(shop.enqueue(enqueue))
    assert (job.priority, job.queue, job.state, job.user_id) == (5, "slow", State.SCHEDULED, "ann")


def test_only_public_methods_are_delayed(shop: Shop) -> None:
    """And only such as there are."""
    shop.order()
    with shop.world.session() as session:
        delayed = shop.jobber.delay(session.get(shop.Order, 1))
        with pytest.raises(AttributeError):
            delayed._secret()
        for wrong in ("title", "absent", "metadata"):
            with pytest.raises(Invalid, match="no public function or method"):
                getattr(delayed, wrong)()
        with pytest.raises(Invalid, match="no public function or method"):
            shop.jobber.send_later(session.get(shop.Order, 1)._secret)


def test_wrong_arguments_are_an_error_at_the_call(shop: Shop) -> None:
    """As they would be if it were called now."""
    shop.order()
    with shop.world.session() as session:
        with pytest.raises(TypeError, match="twice_over"):
            session.get(shop.Order, 1).bill(twice_over=True)
        with pytest.raises(TypeError, match="text"):
            shop.jobber.delay(session.get(shop.Order, 1)).remind()


def test_a_method_that_is_called_later_enqueues(shop: Shop) -> None:
    """Its options are the job's, the call's own win, and now() calls it directly."""
    shop.order()
    with shop.world.session() as session:
        order = session.get(shop.Order, 1)
        plain, named = order.bill(twice=True), order.remind("soon")
        urgent = shop.jobber.delay(order, priority=9).remind("now")
        assert (plain.priority, plain.queue) == (0, "default")
        assert (named.priority, named.queue, named.max_attempts) == (5, "mail", 2)
        assert (urgent.priority, urgent.queue) == (9, "mail")
        assert shop.done == []
        assert order.remind.now("directly") == "directly"
        assert order.bill.__doc__ == "Send a bill."
    shop.done.clear()
    for _ in range(3):
        shop.work()
    assert shop.done == [("reminded", 1, "now"), ("reminded", 1, "soon"), ("billed", 1, True)]


@pytest.mark.parametrize("later", [True, False])
def test_a_method_that_overrides_one_calls_that_now(shop: Shop, later: bool) -> None:
    """Enqueued by ``super()``, the job would call the overriding method, and enqueue itself without end."""

    class Hen:
        def to_job(self) -> None: ...

        @classmethod
        def from_job(cls, value: None) -> t.Self:
            return cls()

        @shop.jobber.later
        def speak(self) -> None:
            shop.done.append("cluck")

    class Cock(Hen):
        def speak(self) -> None:  # type: ignore[override]
            super().speak.now()
            super().speak()

    if later:
        Cock.speak = shop.jobber.later(Cock.speak)  # type: ignore[assignment, method-assign]
    shop.jobber.performable(Cock)
    shop.enqueue(lambda: shop.jobber.delay(Cock()).speak())
    assert (shop.work()[1], shop.done) == (State.SCHEDULED, ["cluck"])


def test_a_function_that_is_called_later_enqueues(shop: Shop) -> None:
    """Declaring it is part of that; its signature stays."""

    @shop.jobber.later(priority=3)
    def add(first: int, second: int = 1) -> int:
        return first + second

    assert str(inspect.signature(add)) == "(first: 'int', second: 'int' = 1) -> 'int'"
    assert add.now(1) == 2
    with shop.world.session():
        assert add(1, second=5).priority == 3
        shop.jobber.send_later(add, 2)
    assert [shop.work()[0] for _ in range(2)] == [Succeeded(6), Succeeded(3)]


def test_later_holds_for_class_and_static_methods(shop: Shop) -> None:
    """The class must be one that data may name."""

    @shop.jobber.performable
    class Clock:
        @shop.jobber.later
        @classmethod
        def name(cls, text: str) -> str:
            return cls.__name__ + text

        @shop.jobber.later
        @staticmethod
        def tick(text: str) -> str:
            return text

    assert (Clock.name.now("!"), Clock.tick.now("tick")) == ("Clock!", "tick")
    with shop.world.session():
        Clock.name("?")
        Clock.tick("tock")
    assert [shop.work()[0] for _ in range(2)] == [Succeeded("Clock?"), Succeeded("tock")]


def test_coroutine_functions_perform(shop: Shop) -> None:
    """As everywhere in a Flask app."""

    @shop.jobber.later
    async def wait(text: str) -> str:
        await asyncio.sleep(0)
        return text

    shop.enqueue(lambda: wait("done"))
    assert shop.work()[0] == Succeeded("done")


@pytest.mark.parametrize("wrong", [len, 5, functools.partial(print), object])
def test_later_is_for_functions(shop: Shop, wrong: t.Any) -> None:
    """Anything else is a mistake of the setup."""
    with pytest.raises(SetupError, match="later is for functions and methods"):
        shop.jobber.later(wrong)


def test_a_name_is_declared_once(shop: Shop) -> None:
    """And a thing may be given another, which it keeps when it moves."""

    def make() -> t.Any:
        def work() -> str:
            return "work"

        return work

    first, second = make(), make()
    assert shop.jobber.performable(first) is first
    assert shop.jobber.performable(first) is first
    with pytest.raises(SetupError, match="give another name="):
        shop.jobber.performable(second)
    assert shop.jobber.performable(name="work of old")(second) is second
    shop.enqueue(lambda: shop.jobber.send_later(second))
    with shop.world.session() as session:
        assert session.scalar(sa.select(shop.world.Job.data))["target"] == {" name": "work of old"}
    assert shop.work()[0] == Succeeded("work")
    with pytest.raises(SetupError, match="Declare classes, functions and modules"):
        shop.jobber.performable(5)


# -- what is kept of a result, and of changes -------------------------------------------------


def test_what_a_job_changes_is_committed(shop: Shop) -> None:
    """When it returns; when it raises, it is rolled back."""
    shop.order(1, "tea")

    @shop.jobber.later
    def break_after(order: t.Any) -> None:
        order.title = "broken"
        shop.db.session.flush()
        raise ValueError("no")

    with shop.world.session() as session:
        order = session.get(shop.Order, 1)
        shop.jobber.delay(order).rename("coffee")
        break_after(order)
    for expected in (State.SUCCEEDED, State.SCHEDULED):
        assert shop.work()[1] is expected
        with shop.world.session() as session:
            assert session.get(shop.Order, 1).title == "coffee"


def test_what_hooks_change_is_kept(shop: Shop) -> None:
    """Of perform too, when the hook after it breaks; of the last one, when perform broke."""
    shop.order(1, "tea")

    def rename(title: str) -> t.Callable[..., None]:
        def act(self: t.Any, job: t.Any = None) -> None:
            shop.db.session.get(shop.Order, 1).title = title

        return act

    def success(self: t.Any, job: t.Any) -> None:
        raise ValueError("after all")

    worked = _chatty(shop, __qualname__="Worked", perform=rename("performed"), success=success)
    broke = _chatty(shop, __qualname__="Broke", problem=Cancel("enough"), after=rename("after"))
    for talk, title, state in ((worked, "performed", State.SCHEDULED), (broke, "after", State.CANCELLED)):
        shop.enqueue(functools.partial(shop.jobber.enqueue, talk))
        assert shop.work()[1] is state
        with shop.world.session() as session:
            assert session.get(shop.Order, 1).title == title


@pytest.mark.parametrize("result", [object(), {1: 2}, float("nan"), b"x", "x" * 2_000_000])
def test_a_result_that_is_no_json_is_not_kept(shop: Shop, result: t.Any) -> None:
    """The work is done, whatever it returned."""

    @shop.jobber.later
    def make() -> t.Any:
        return result

    shop.enqueue(make)
    assert shop.work() == (Succeeded(None), State.SUCCEEDED)


# -- what a class says of its jobs ------------------------------------------------------------


class Chatty:
    """An object that has every hook."""

    log: list[t.Any]
    problem: Exception | None = None

    def perform(self) -> None:
        self.log.append("perform")
        if self.problem is not None:
            raise self.problem

    def to_job(self) -> None:
        return None

    def before(self, job: t.Any) -> None:
        self.log.append(("before", job.type, job.attempt))

    def after(self, job: t.Any) -> None:
        self.log.append(("after", job.attempt))

    def success(self, job: t.Any) -> None:
        self.log.append("success")

    def error(self, job: t.Any, exc: Exception) -> None:
        self.log.append(("error", job.attempt, repr(exc)))

    def failure(self, job: t.Any) -> None:
        self.log.append(("failure", job.id, job.failures))


def _chatty(shop: Shop, **attributes: t.Any) -> t.Any:
    own = {"log": shop.done, "from_job": classmethod(lambda cls, value: cls()), **attributes}
    return shop.jobber.performable(type("Talk", (Chatty,), own))()


def test_a_class_says_how_its_jobs_are_run(shop: Shop) -> None:
    """By attributes, properties or methods; what the call says wins."""
    said: dict[str, t.Any] = {
        "queue": "mail", "max_attempts": lambda self: 3, "priority": property(lambda self: 4),
        "backoff": Constant(7), "max_run_seconds": dt.timedelta(minutes=2), "display_name": "A talk",
    }  # fmt: skip
    talk = _chatty(shop, **said)
    with shop.world.session():
        job = shop.jobber.enqueue(talk)
        assert (job.queue, job.max_attempts, job.priority) == ("mail", 3, 4)
        assert job.backoff == Constant(7).as_json()
        assert (job.data["call"], job.data["max_run_seconds"]) == ("A talk", 120)
        own = shop.jobber.enqueue(talk, queue="default", priority=0, max_attempts=1, backoff=Constant(9))
        assert (own.queue, own.priority, own.max_attempts, own.backoff["first"]) == ("default", 0, 1, 9)
        limits = [_limit(shop, each) for each in shop.jobber.claim("server", limit=2)]
    assert limits == [120, 120]


def _limit(shop: Shop, claim: t.Any) -> float | None:
    return shop.jobber.handlers[PERFORM].limit(job_of(claim))


def test_a_job_may_run_as_long_as_it_likes_by_default(shop: Shop) -> None:
    """Also one whose data is nonsense."""
    shop.enqueue(lambda: shop.jobber.enqueue(_chatty(shop)))
    shop.put(["nonsense"])
    with shop.world.session():
        assert [_limit(shop, each) for each in shop.jobber.claim("server", limit=2)] == [None, None]


@pytest.mark.parametrize(
    "said",
    [
        {"max_run_seconds": -1},
        {"max_run_seconds": "1"},
        {"display_name": 5},
        {"queue": "a b"},
        {"priority": "1"},
    ],
)
def test_what_a_class_says_is_checked(shop: Shop, said: dict[str, t.Any]) -> None:
    """As if the call had said it."""
    with shop.world.session():
        with pytest.raises(Invalid) as caught:
            shop.jobber.enqueue(_chatty(shop, **said))
        assert set(caught.value.errors) == set(said)


def test_the_producers_hook_sees_the_job_before_it_is_stored(shop: Shop) -> None:
    """It may fill its columns, and refuse it by raising."""

    def enqueue(self: t.Any, job: t.Any) -> None:
        assert job.id is None
        job.user_id = "ann"

    job_id = shop.enqueue(lambda: shop.jobber.enqueue(_chatty(shop, enqueue=enqueue)))
    assert shop.world.job(job_id).user_id == "ann"


def test_hooks_of_a_success(shop: Shop) -> None:
    """In this order."""
    shop.enqueue(lambda: shop.jobber.enqueue(_chatty(shop)))
    assert shop.work()[1] is State.SUCCEEDED
    assert shop.done == [("before", PERFORM, 1), "perform", "success", ("after", 1)]


def test_hooks_of_failures(shop: Shop) -> None:
    """An error at each attempt, one failure when the last one is used up."""
    talk = _chatty(shop, problem=ValueError("no"), max_attempts=2, backoff=Constant(0))
    job_id = shop.enqueue(lambda: shop.jobber.enqueue(talk))
    assert shop.work()[1] is State.SCHEDULED
    assert shop.done == [("before", PERFORM, 1), "perform", ("after", 1), ("error", 1, "ValueError('no')")]
    shop.done.clear()
    shop.world.pass_time(10)
    assert shop.work()[1] is State.FAILED
    last = [("before", PERFORM, 2), "perform", ("after", 2), ("error", 2, "ValueError('no')")]
    assert shop.done == [*last, ("failure", job_id, 2)]


def test_an_object_that_keeps_its_job_goes_with_it(shop: Shop) -> None:
    """A worker that has done very many is no larger for it."""
    seen: list[weakref.ref[t.Any]] = []

    def before(self: t.Any, job: t.Any) -> None:
        self.job = job
        seen.append(weakref.ref(job))

    def perform(self: t.Any) -> t.NoReturn:
        raise ValueError("no")

    for own in ({}, {"perform": perform}):
        talk = _chatty(shop, before=before, __qualname__=f"Talk {len(own)}", **own)
        shop.enqueue(functools.partial(shop.jobber.enqueue, talk))
        shop.work()
    shop.done.clear()
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_what_is_no_failure_tells_no_hook_of_one(shop: Shop) -> None:
    """A job that is given back or called off has not failed."""
    for problem, state in ((Snooze(after=0), State.QUEUED), (Cancel("enough"), State.CANCELLED)):
        with shop.world.session():
            shop.jobber.enqueue(talk := _chatty(shop, problem=problem, __qualname__=type(problem).__name__))
        assert shop.work()[1] is state
        assert shop.done == [("before", PERFORM, 1), "perform", ("after", 1)], talk
        with shop.world.session() as session:
            session.query(shop.world.Job).delete()
        shop.done.clear()


def test_a_permanent_failure_ends_the_job(shop: Shop) -> None:
    """With both hooks, and the transaction of the end holds what the second one writes."""
    shop.order(1, "tea")

    def failure(self: t.Any, job: t.Any) -> None:
        shop.db.session.get(shop.Order, 1).title = "failed"

    talk = _chatty(shop, problem=Fail("never"), failure=failure)
    shop.enqueue(lambda: shop.jobber.enqueue(talk))
    outcome, state = shop.work()
    assert (t.cast(Failed, outcome).permanent, state) == (True, State.FAILED)
    with shop.world.session() as session:
        assert session.get(shop.Order, 1).title == "failed"


def test_calls_of_methods_have_no_hooks(shop: Shop) -> None:
    """They are those of perform; as elsewhere, what else a class says is about itself."""
    talk = _chatty(shop, queue="mail", speak=lambda self: self.log.append("speak"))
    job_id = shop.enqueue(lambda: shop.jobber.delay(talk).speak())
    shop.work()
    assert (shop.done, shop.world.job(job_id).queue) == (["speak"], "default")


def test_a_job_that_is_given_back_is_released(shop: Shop) -> None:
    """A handler's verdicts are those of what it runs."""
    shop.enqueue(lambda: shop.jobber.enqueue(_chatty(shop, problem=Snooze(after=30))))
    assert shop.work()[0] == Released(30)
