"""What may enter: properties of JSON, names, texts, lengths and instants."""

from __future__ import annotations

import datetime as dt
import functools
import json
import math
import re
import typing as t

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flask_jobber import Invalid, TooLarge
from flask_jobber.core import payload

quick = settings(deadline=None, database=None)
MANY = 10**6

# Without NUL and lone surrogates, which no JSON of ours may hold.
_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text
_json = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4)
)
_no_json = (
    st.sampled_from([math.nan, math.inf, -math.inf, b"x", {1}, object(), "a\0", "\ud800", 10**5000])
    | st.dictionaries(st.integers() | st.none() | st.booleans(), _leaves, min_size=1)
    | st.dictionaries(st.sampled_from(["\0", "\udfff"]), _leaves, min_size=1)
)


def _shuffled(value: t.Any, draw: t.Any) -> t.Any:
    """Return an equal value with the keys of its objects in another order."""
    if isinstance(value, dict):
        keys = draw(st.permutations(list(value)))
        return {key: _shuffled(value[key], draw) for key in keys}
    return [_shuffled(one, draw) for one in value] if isinstance(value, list) else value


@quick
@given(_json)
def test_json_comes_back_from_its_canonical_text(value: t.Any) -> None:
    """Every value, with its types: ``1`` and ``1.0`` and ``True`` stay three."""
    assert repr(_shape(json.loads(payload.canonical(value)))) == repr(_shape(value))


def _shape(value: t.Any) -> t.Any:
    if isinstance(value, dict):
        return {key: _shape(value[key]) for key in sorted(value)}
    return [_shape(inner) for inner in value] if isinstance(value, list) else value


@quick
@given(_json, st.data())
def test_the_order_of_keys_does_not_change_the_canonical_text(value: t.Any, data: st.DataObject) -> None:
    """At any depth."""
    assert payload.canonical(_shuffled(value, data.draw)) == payload.canonical(value)


@quick
@given(_json, _json)
def test_different_values_have_different_canonical_texts(one: t.Any, other: t.Any) -> None:
    """And equal ones the same."""
    same = repr(_shape(one)) == repr(_shape(other))
    assert (payload.canonical(one) == payload.canonical(other)) == same


@quick
@given(_json)
def test_every_json_may_enter(value: t.Any) -> None:
    """Up to its size in bytes of UTF-8, and not with one byte less."""
    size = len(payload.canonical(value).encode())

    payload.check_json("data", value, size)
    with pytest.raises(TooLarge, match="data"):
        payload.check_json("data", value, size - 1)


@quick
@given(_no_json, st.lists(st.sampled_from(["list", "dict", "tuple"]), max_size=5))
def test_what_is_no_json_may_not_enter(value: t.Any, around: list[str]) -> None:
    """However deep it hides."""
    wrap: dict[str, t.Callable[[t.Any], t.Any]] = {
        "list": lambda inner: [1, inner],
        "dict": lambda inner: {"a": inner},
        "tuple": lambda inner: (inner, 1),
    }
    for name in around:
        value = wrap[name](value)

    with pytest.raises(Invalid) as refused:
        payload.check_json("data", value, MANY)
    assert list(refused.value.errors) == ["data"]


@quick
@given(st.lists(st.booleans(), min_size=95, max_size=105), st.sampled_from([1, [], {}]))
def test_json_may_nest_a_hundred_deep(objects: list[bool], innermost: t.Any) -> None:
    """Lists and objects alike, counted together."""
    value = functools.reduce(
        lambda inner, is_object: {"a": inner} if is_object else [inner], objects, innermost
    )
    depth = len(objects) + (innermost != 1)

    if depth <= payload.MAX_DEPTH:
        payload.check_json("data", value, MANY)
    else:
        with pytest.raises(Invalid, match="deep"):
            payload.check_json("data", value, MANY)


@quick
@given(st.text(st.sampled_from("\\u0\0a\"'"), max_size=12))
def test_only_a_real_nul_is_a_nul(text: str) -> None:
    """Backslashes before the letters ``u0000`` make none, however many."""
    if "\0" in text:
        with pytest.raises(Invalid, match="NUL"):
            payload.check_json("data", [text], MANY)
    else:
        payload.check_json("data", [text], MANY)


@quick
@given(
    st.from_regex(payload.NAME, fullmatch=True) | st.text(max_size=105) | st.text("aZ0_.:-/ \n", max_size=105)
)
def test_a_name_is_letters_digits_and_four_signs(name: str) -> None:
    """One to a hundred of them; what comes back is what went in."""
    if re.fullmatch(r"[A-Za-z0-9_.:\-]{1,100}", name):
        assert payload.check_name("type", name) == name
    else:
        with pytest.raises(Invalid, match="type"):
            payload.check_name("type", name)


@quick
@given(st.text(max_size=30), st.integers(0, 30), st.booleans())
def test_a_text_is_refused_or_cut_at_its_length(text: str, longest: int, cut: bool) -> None:
    """NULs and lone surrogates are refused in any case."""
    storable = "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)
    if storable and (cut or len(text) <= longest):
        assert payload.check_text("note", text, longest, cut=cut) == text[:longest]
    else:
        with pytest.raises(Invalid, match="note"):
            payload.check_text("note", text, longest, cut=cut)


@quick
@given(st.text(max_size=10) | st.text(" \t\nab\u00a0\u200b\u3000", max_size=6))
def test_a_key_holds_nothing_that_engines_compare_differently(text: str) -> None:
    """No spaces around it, no controls within; otherwise it is kept as it is."""
    try:
        key = payload.check_key("unique_key", text, 10)
    except Invalid:
        assert not text or text != text.strip() or not text.isprintable()
    else:
        assert key == text.strip() != ""
        assert key.isprintable()


_numbers = st.integers() | st.floats() | st.integers(-(10**400), 10**400) | st.just(10**400)


@quick
@given(_numbers | st.timedeltas() | st.sampled_from([True, None, "5", b"5", [], 5j]), st.booleans())
def test_a_length_is_a_number_of_seconds_within_bounds(value: t.Any, zero: bool) -> None:
    """Whatever else it is given, the check says so with the field's name."""
    most = 1000.0
    seconds = value.total_seconds() if isinstance(value, dt.timedelta) else value
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if number and (0 if zero else 0.001) <= seconds <= most:
        got = payload.check_seconds("after", value, most, zero=zero)
        assert (type(got), got) == (float, seconds)
    else:
        with pytest.raises(Invalid, match="after"):
            payload.check_seconds("after", value, most, zero=zero)


@quick
@given(_numbers | st.sampled_from([True, None, "5", [], 5j]), st.integers(-5, 0), st.integers(0, 5))
def test_a_whole_number_is_an_int_within_bounds(value: t.Any, least: int, most: int) -> None:
    """``1.0`` and ``True`` are none."""
    if type(value) is int and least <= value <= most:
        assert payload.check_int("priority", value, least, most) == value
    else:
        with pytest.raises(Invalid, match="priority"):
            payload.check_int("priority", value, least, most)


_zones = st.timezones() | st.builds(
    dt.timezone, st.timedeltas(dt.timedelta(hours=-23, minutes=-59), dt.timedelta(hours=23, minutes=59))
)


@quick
@given(st.datetimes(timezones=_zones))
def test_an_aware_instant_comes_back_in_utc(instant: dt.datetime) -> None:
    """The same instant, unless no engine could hold it."""
    try:
        utc = payload.check_instant("run_at", instant)
    except Invalid:
        assert not 1001 <= instant.year <= 8999
    else:
        # In UTC: across zones an hour that comes twice equals none.
        assert (utc, utc.tzinfo) == (instant.astimezone(dt.UTC), dt.UTC)
        assert 1000 <= utc.year <= 9000


@quick
@given(st.datetimes() | st.dates() | st.text() | st.integers() | st.none())
def test_anything_else_is_no_instant(value: object) -> None:
    """A naive datetime above all."""
    with pytest.raises(Invalid, match="run_at"):
        payload.check_instant("run_at", value)


@quick
@given(_text, st.integers(0, 30_000))
def test_a_long_traceback_loses_its_beginning(end: str, length: int) -> None:
    """What went wrong stands at the end."""
    said = payload.check_error({"type": "E", "message": "m", "traceback": "x" * length + end})

    assert said["traceback"] == ("x" * length + end)[-payload.MAX_TRACEBACK :]


@pytest.mark.parametrize(
    "error",
    [
        {}, {"type": "E"}, {"message": "m"}, {"type": "", "message": "m"}, {"type": "E", "message": None},
        {"type": "E" * 201, "message": "m"}, {"type": "E", "message": "m" * 2001},
        {"type": "E", "message": "\0"}, {"type": "E", "message": "\ud800"}, {"type": "E\n", "message": "m"},
        {"type": "E", "message": "m", "traceback": 5}, {"type": "E", "message": "m", "traceback": "\0"},
        {"type": 5, "message": "m"},
    ],
    ids=repr,
)  # fmt: skip
def test_an_error_has_a_type_and_a_message(error: dict[str, t.Any]) -> None:
    """Texts of their lengths; the traceback may be missing, not broken."""
    with pytest.raises(Invalid, match=r"error\.(type|message|traceback)"):
        payload.check_error(error)


_nodes = st.from_regex(payload.NODE, fullmatch=True)


@quick
@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=260), st.none() | _nodes)
def test_a_locker_is_a_login_and_perhaps_a_node(login: str, node: str | None) -> None:
    """It is called by the whole, the login's part and the node, each once."""
    locker = login if node is None else f"{login}/{node}"
    if not login or len(login) > 255 or "/" in login:
        assume("/" not in login or node is not None)
        with pytest.raises(Invalid, match="locker"):
            payload.check_locker(locker)
        return
    assert payload.check_locker(locker) == locker
    names = payload.names_of(locker)
    assert set(names) == {locker, login, node} - {None}
    assert len(names) == len(set(names))
    assert names[0] == locker


@pytest.mark.parametrize("locker", ["", "/n", "a/", "a/b/c", "a/b c", "a/" + "n" * 61, " a", "a\n", 5, None])
def test_what_is_no_locker_is_refused(locker: object) -> None:
    """A login's part is never empty, and a node is a name."""
    with pytest.raises(Invalid, match="locker"):
        payload.check_locker(locker)
