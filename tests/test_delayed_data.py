"""Objects and functions as jobs: what they are kept as, what may be read, and who may not make one."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import json
import sys
import types
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conftest import MakeWorld
from delayed_support import Color, Point, Right, Shop
from flask_jobber import Invalid, Jobber, SetupError, State, TooLarge
from flask_jobber.delayed.performer import PERFORM
from flask_jobber.worker.run import Failed, Succeeded
from support import World

TOKYO = dt.timezone(dt.timedelta(hours=9))


@pytest.fixture
def shop(lite: World) -> Shop:
    return Shop(lite)


def _failed(shop: Shop) -> tuple[Failed, State]:
    """Do a job that fails."""
    outcome, state = shop.work()
    assert isinstance(outcome, Failed)
    return outcome, state


# -- values -----------------------------------------------------------------------------------

VALUES = [
    None, True, 0, -1.5, "text", "", [], {}, [1, [2, {"a": None}]],
    dt.datetime(2024, 2, 29, 12, 30, 1, 5), dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC),
    dt.datetime(2024, 2, 29, tzinfo=TOKYO), dt.date(2024, 2, 29), dt.time(1, 2, 3, 4),
    dt.time(1, tzinfo=TOKYO), dt.timedelta(days=-3, microseconds=7), decimal.Decimal("1.50"),
    decimal.Decimal("-0"), uuid.UUID(int=5), b"\x00\xff", b"", Markup("<b>"), (), (1, (2,), [3]), {(2, "a")},
    set(), frozenset({1}),
    Color.RED, Right.READ, Right.READ | Right.WRITE, Point(1, (2, {3})), Point(Point(Color.BLUE), [Point(1)]),
    Color, Point, {"a": {"b": (Color.RED,)}},
    {" t": [1]}, {" di": {" t__": 1}}, {" model": ["x", [1]]}, {" name": "x"}, {" t__": 1},
    {" t": {" t": {" t": ()}}}, {" object": [" object", {}], "b": 1}, {" ": 1}, {" set": {1}},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_arrives_as_it_was(shop: Shop, value: t.Any) -> None:
    """Of the same type, wherever it stands; also what looks like one of our tags."""
    for given_ in (value, [value], {"a": value}):
        got = shop.given(given_)
        assert (got, repr(got)) == (given_, repr(given_))


_PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="ascii", exclude_characters="\0"))
)
_KEYS = st.sampled_from([" t", " di", " t__", " model", " name", "a", " d"])
_ANY = st.recursive(
    _PLAIN | st.dates() | st.binary() | st.decimals(allow_nan=False) | st.timedeltas(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(_KEYS, inner, max_size=2),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(value=_ANY)
def test_any_value_arrives_as_it_was(shop: Shop, value: t.Any) -> None:
    """Whatever is put into whatever."""
    got = shop.given(value)
    assert (got, repr(got)) == (value, repr(value))


def test_values_survive_each_engine(world: World) -> None:
    """All of them, through the column that holds them."""
    got = Shop(world).given(VALUES)
    assert repr(got) == repr(VALUES)


def test_the_data_is_a_json_value_and_the_same_for_the_same_call(shop: Shop) -> None:
    """Not a text in a text; a set has an order."""
    ship = shop.jobber.performable(lambda what, *, when: None)
    for _ in range(2):
        shop.enqueue(lambda: shop.jobber.send_later(ship, set("jhigfedbca"), when=dt.date(2024, 1, 2)))
    with shop.world.session() as session:
        first, second = session.scalars(sa.select(shop.world.Job.data))
    assert first == second
    assert first["args"] == [{" set": list("abcdefghij")}]
    assert first["kwargs"] == {"when": {" date": "2024-01-02"}}


def _circle() -> list[t.Any]:
    circle: list[t.Any] = []
    circle.append(circle)
    return circle


class Html:
    """What Flask's own tag takes for markup."""

    def __html__(self) -> str:
        return "<b>"


REFUSED = [
    object(), {1: 2}, {(1,): 2}, float("nan"), 1j, lambda: None, len, json, Html(),
    dataclasses.dataclass(Html)(), _circle(), "a\0b", dict, Html, [{"a": (object(),)}], iter([]),
    types.SimpleNamespace(a=1),
]  # fmt: skip


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_what_has_no_form_is_refused_at_the_producer(shop: Shop, value: t.Any) -> None:
    """Never is anything pickled for want of one."""
    with shop.world.session() as session:
        with pytest.raises(Invalid) as caught:
            shop.jobber.send_later(shop.keep, value)
        assert set(caught.value.errors) == {"data"}
        assert session.query(shop.world.Job).count() == 0


def test_an_undeclared_enumeration_is_refused(shop: Shop) -> None:
    """As any other class."""
    with shop.world.session():
        with pytest.raises(Invalid, match="State is not declared to this Jobber"):
            shop.jobber.send_later(shop.keep, State.QUEUED)


def test_the_limit_of_data_holds(shop: Shop) -> None:
    """As for any job."""
    with shop.world.session():
        with pytest.raises(TooLarge):
            shop.jobber.send_later(shop.keep, "x" * 2**20)


# -- references -------------------------------------------------------------------------------


def test_mapped_objects_are_kept_by_reference_and_loaded_fresh(world: World) -> None:
    """Anywhere inside the arguments, on each engine; what the row was at the enqueue plays no part."""
    shop = Shop(world)
    shop.order(1, "tea"), shop.order(2, "milk")

    @shop.jobber.later
    def see(order: t.Any, *, inside: t.Any) -> list[str]:
        point, (again, *_) = inside["deep"]
        assert again is order
        return [order.title, point.x.title]

    with world.session() as session:
        first, second = (session.get(shop.Order, id) for id in (1, 2))
        see(first, inside={"deep": (Point(second), [first, {second}])})
        kept = session.scalar(sa.select(world.Job.data))
        assert kept["args"] == [
            {" model": [f"{__name__}:x".replace("test_delayed_data:x", _name(shop)), [1]]}
        ]
    with world.session() as session:
        session.get(shop.Order, 1).title = "green tea"
        session.get(shop.Order, 2).title = "soy milk"
    assert shop.work() == (Succeeded(["green tea", "soy milk"]), State.SUCCEEDED)


def _name(shop: Shop) -> str:
    return f"{shop.Order.__module__}:{shop.Order.__qualname__}"


def test_what_the_session_remembers_is_read_again(shop: Shop) -> None:
    """A job that runs within a session that knows the row gets it as it is."""
    shop.order(1, "tea")
    shop.enqueue(lambda: shop.db.session.get(shop.Order, 1).bill())
    with shop.world.session() as session:
        order = session.get(shop.Order, 1)
        assert order.title == "tea"
        session.execute(sa.text("UPDATE \"order\" SET title = 'coffee' WHERE id = 1"))
        assert _read(shop).target is order
        assert order.title == "coffee"


def _read(shop: Shop) -> t.Any:
    data = shop.db.session.scalar(sa.select(shop.world.Job.data))
    return shop.jobber._performer._codec.read(data)


def test_what_the_session_has_not_written_yet_is_not_lost(shop: Shop) -> None:
    """Neither by reading the row again."""
    shop.order(1, "tea")
    shop.enqueue(lambda: shop.db.session.get(shop.Order, 1).bill())
    with shop.world.session() as session:
        order = session.get(shop.Order, 1)
        with session.no_autoflush:
            order.title = "coffee"
            assert _read(shop).target.title == "coffee"


def test_a_new_object_is_flushed_for_its_key(world: World) -> None:
    """It and its job are of one transaction."""
    shop = Shop(world)
    with world.session() as session:
        session.add(order := shop.Order(title="tea"))
        order.bill()
        assert order.id is not None
    shop.work()
    assert shop.done == [("billed", 1, False)]


def test_an_object_without_a_key_is_refused(shop: Shop) -> None:
    """One that is in no session, or deleted."""
    shop.order(1)
    with shop.world.session() as session:
        with pytest.raises(Invalid, match=r"Order has no key yet: add it to the session"):
            shop.jobber.send_later(shop.keep, shop.Order(title="tea"))
        order = session.get(shop.Order, 1)
        session.delete(order)
        session.flush()
        with pytest.raises(Invalid, match="Order is deleted"):
            shop.jobber.send_later(shop.keep, [order])


@pytest.mark.parametrize("how", ["target", "argument"])
def test_a_row_that_is_gone_calls_the_job_off(world: World, how: str) -> None:
    """The reason names the model and the key."""
    shop = Shop(world)
    shop.order(41)

    def enqueue() -> t.Any:
        order = shop.db.session.get(shop.Order, 41)
        return order.bill() if how == "target" else shop.jobber.send_later(shop.keep, {"deep": [order]})

    job_id = shop.enqueue(enqueue)
    with world.session() as session:
        session.delete(session.get(shop.Order, 41))
    outcome, state = _failed(shop)
    assert (outcome.cancel, state) == (True, State.CANCELLED)
    assert outcome.error["message"] == "There is no Order 41 any more."
    with world.session() as session:
        h = shop.jobber.History
        errors = session.scalars(
            sa.select(h.error).where(h.job_id == job_id, h.to_state == "cancelled")
        ).all()
        assert [error["message"] for error in errors] == ["There is no Order 41 any more."]


def test_keys_of_several_columns_and_of_any_type(lite: World) -> None:
    """A key is a value like any other."""

    class Place(lite.db.Model):  # type: ignore[name-defined, misc]
        day: Mapped[dt.date] = mapped_column(primary_key=True)
        room: Mapped[uuid.UUID] = mapped_column(primary_key=True)

    shop = Shop(lite)
    key = (dt.date(2024, 2, 29), uuid.UUID(int=7))
    with lite.session() as session:
        session.add(Place(day=key[0], room=key[1]))

    @shop.jobber.later
    def see(place: t.Any) -> str:
        return f"{place.day} {place.room.int}"

    with lite.session() as session:
        see(session.get(Place, key))
    assert shop.work()[0] == Succeeded("2024-02-29 7")


def test_models_of_another_base_are_not_named(shop: Shop) -> None:
    """Only those of this Jobber's db are."""

    class Base(DeclarativeBase):
        pass

    class Alien(Base):
        __tablename__ = "alien"
        id: Mapped[int] = mapped_column(primary_key=True)

    with shop.world.session():
        for value, said in ((Alien(id=1), "Alien is no JSON"), (Alien, "Alien is not declared")):
            with pytest.raises(Invalid, match=said):
                shop.jobber.send_later(shop.keep, value)


def test_a_database_that_is_away_is_no_fault_of_the_data(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job fails as for any other error and is tried again."""
    shop.order(1)
    shop.enqueue(lambda: shop.db.session.get(shop.Order, 1).bill())

    def get(*args: t.Any, **kwargs: t.Any) -> t.NoReturn:
        raise OperationalError("SELECT", {}, Exception("gone away"))

    monkeypatch.setattr(shop.db.session.session_factory.class_, "get", get)
    outcome, state = _failed(shop)
    assert (outcome.error["type"], outcome.permanent, state) == ("OperationalError", False, State.SCHEDULED)


# -- data that nobody should trust ------------------------------------------------------------


def _call(target: t.Any, method: str | None = None, *args: t.Any) -> dict[str, t.Any]:
    data = {"target": target, "args": list(args), "kwargs": {}}
    return data if method is None else {**data, "method": method}


NOTHING, NO_CALL = "Nothing is declared", "The data is no call"
NO_METHOD, NO_MORE = "no public function or method", "The data can be read no more"
HOSTILE: dict[str, tuple[t.Any, str]] = {
    "a function of the system": (_call({" name": "os:system"}, None, "true"), NOTHING),
    "a builtin": (_call({" name": "builtins:eval"}, None, "1"), NOTHING),
    "a class of the package": (_call({" name": "flask_jobber.extension:Jobber"}), NOTHING),
    "an object of any class": (_call({" object": ["subprocess:Popen", {"args": "true"}]}), NOTHING),
    "an enumeration of any class": (_call({" enum": ["http:HTTPStatus", "OK"]}), NOTHING),
    "a model of any class": (_call({" model": ["subprocess:Popen", [1]]}), NOTHING),
    "a name that is none": (_call({" name": ["a"]}), NOTHING),
    "a private method": (_call({" model": ["ORDER", [1]]}, "_secret"), NO_METHOD),
    "a method of all objects": (_call({" model": ["ORDER", [1]]}, "__reduce__"), NO_METHOD),
    "an attribute of an attribute": (_call({" model": ["ORDER", [1]]}, "metadata.drop_all"), NO_METHOD),
    "no method": (_call({" model": ["ORDER", [1]]}, "title"), NO_METHOD),
    "a class for a function": (_call({" name": "ORDER"}), NO_METHOD),
    "a number for a function": (_call(5), NO_METHOD),
    "a method that is a number": (_call({" model": ["ORDER", [1]]}) | {"method": 5}, NO_CALL),
    "a broken tag": (_call({" model": 5}), NO_MORE),
    "a broken date": (_call({" name": "keep"}, None, {" date": "yesterday"}), NO_MORE),
    "broken bytes": (_call({" name": "keep"}, None, {" b": "a"}), NO_MORE),
    "fields that are none": (_call({" object": ["POINT", {"z": 1}]}, "perform"), NO_MORE),
    "a class that is no enumeration": (_call({" enum": ["POINT", "OK"]}), NO_MORE),
    "a class that is not mapped": (_call({" model": ["POINT", [1]]}), NO_MORE),
    "a list": ([], NO_CALL),
    "nothing": (None, NO_CALL),
    "no arguments": ({"target": 1}, NO_CALL),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_data_names_only_what_was_declared(shop: Shop, case: str) -> None:
    """Anything else fails for good, with a clear message, and calls nothing."""
    shop.order(1)
    data, said = HOSTILE[case]
    names = {"ORDER": _name(shop), "POINT": f"{Point.__module__}:{Point.__qualname__}"}
    text = json.dumps(data)
    for short, name in names.items():
        text = text.replace(short, name)
    shop.put(json.loads(text))
    outcome, state = _failed(shop)
    assert (outcome.permanent, outcome.error["type"], state) == (True, "Fail", State.FAILED)
    assert said in outcome.error["message"]
    assert shop.done == []


def test_nothing_is_imported_for_a_name(shop: Shop) -> None:
    """A name is looked up, not followed."""
    sys.modules.pop("this", None)
    shop.put(_call({" name": "this:s"}))
    _failed(shop)
    assert "this" not in sys.modules


def test_what_one_jobber_knows_another_does_not(shop: Shop) -> None:
    """Declarations belong to the Jobber they were made to."""
    other = Jobber(shop.db, name="other")
    with shop.world.session():
        with pytest.raises(Invalid, match="not declared"):
            other._performer._codec.write(shop.jobber._performer._codec.read(_call({" name": "keep"})))


def test_a_failed_job_whose_row_is_gone_has_no_failure_hook(shop: Shop) -> None:
    """There is nobody to tell; the job ends all the same."""
    shop.order(1)
    job_id = shop.enqueue(lambda: shop.jobber.enqueue(shop.db.session.get(shop.Order, 1)))
    with shop.world.session() as session:
        session.delete(session.get(shop.Order, 1))
    with shop.world.session():
        (claim,) = shop.jobber.claim("server")
        state = shop.jobber.fail("server", claim.id, claim.attempt, ValueError("no"), permanent=True)
    assert state is State.FAILED
    with shop.world.session() as session:
        h = shop.jobber.History
        assert session.query(h).filter(h.job_id == job_id).count() == 3  # no row about a broken hook


# -- reserved types ---------------------------------------------------------------------------

RESERVED = [PERFORM, "jobber:", "jobber:other"]


@pytest.mark.parametrize("type_", RESERVED)
def test_no_client_enqueues_a_reserved_type(shop: Shop, type_: str) -> None:
    """Not even one with the permission to enqueue."""
    response = shop.world.client("root").post("/jobs", {"type": type_, "data": {}})
    assert (response.status_code, response.json["code"]) == (422, "invalid")
    assert set(response.json["errors"]) == {"type"}


@pytest.mark.parametrize("type_", RESERVED)
def test_no_client_claims_a_reserved_type_by_name(shop: Shop, type_: str) -> None:
    """Neither directly nor within an exchange."""
    root = shop.world.client("root")
    refused = root.post("/claims", {"types": ["work", type_]})
    assert (refused.status_code, refused.json["code"]) == (422, "invalid")
    assert set(refused.json["errors"]) == {"types"}
    exchanged = root.post("/exchange", {"claim": {"types": [type_]}}).json
    assert (exchanged["jobs"], exchanged["claim"]["code"]) == ([], "invalid")


@pytest.mark.parametrize("kind", ["queued", "due", "lapsed"])
def test_no_client_is_handed_a_reserved_type(world: World, kind: str) -> None:
    """A claim that names no types passes them by, whatever their state; server code gets them."""
    shop = Shop(world)
    later = {"after": 60} if kind == "due" else {}
    reserved = shop.enqueue(lambda: shop.jobber.delay(shop.Order, priority=9, **later).count(1))
    like = [world.enqueue(type_, **later) for type_ in ("jobbera", "jobber", "Jobber:perform", "jobber.x")]
    if kind == "lapsed":
        with world.session():
            assert len(shop.jobber.claim("server", limit=9)) == 5
    world.pass_time(100_000)
    root = world.client("root")
    assert [job["id"] for job in root.claim(limit=9)] == like
    assert root.claim() == []
    assert root.post("/exchange", {"claim": {"limit": 9}}).json["jobs"] == []
    with world.session():
        assert [claim.id for claim in shop.jobber.claim("server", limit=9)] == [reserved]


@pytest.mark.parametrize("type_", RESERVED)
def test_server_code_makes_none_by_their_text(shop: Shop, type_: str) -> None:
    """Their data is ours to write."""
    with shop.world.session():
        for enqueue in (shop.jobber.enqueue, lambda name: shop.jobber.enqueue_many([{"type": name}])):
            with pytest.raises(Invalid) as caught:
                enqueue(type_)
            assert set(caught.value.errors) == {"type"}


@pytest.mark.parametrize("type_", RESERVED)
def test_an_app_registers_nothing_for_them(shop: Shop, type_: str) -> None:
    """What follows one of these jobs is said by its class."""
    for register in (shop.jobber.processor, shop.jobber.on_failure, shop.jobber.job_type):
        with pytest.raises(SetupError, match="reserved"):
            register(type_)
    if type_ == PERFORM:
        with pytest.raises(SetupError, match="has a handler already"):
            shop.jobber.handlers(type_)(lambda job: None)


def test_an_old_claim_is_not_taken_for_a_new_one(make_world: MakeWorld, sqlite_url: str) -> None:
    """A claim of a client and one of the server are two statements, whichever came first."""
    world = make_world(sqlite_url)
    shop = Shop(world)
    with world.session():
        shop.jobber.claim("server")
        shop.jobber.delay(shop.Order).count(1)
    assert world.client("root").claim() == []
    with world.session():
        assert len(shop.jobber.claim("server")) == 1


def test_a_named_tuple_is_refused(shop: Shop) -> None:
    """It would come back as another, without its names."""
    pair = collections.namedtuple("pair", "left right")
    with shop.world.session(), pytest.raises(Invalid, match="pair"):
        shop.jobber.send_later(shop.keep, pair(1, 2))
    assert shop.given((1, 2)) == (1, 2)
