"""Whether answers to one question are the same. Pure functions."""

from __future__ import annotations

import math
import typing as t

from .payload import canonical

Same = t.Callable[[t.Any, t.Any], bool]


def same_json(one: t.Any, other: t.Any) -> bool:
    """Whether two results are equal JSON: the default."""
    return canonical(one) == canonical(other)


def close_to(*, rel: float = 1e-9, abs: float = 0.0) -> Same:
    """Return a comparison of JSON in which numbers may differ a little, however deep they are.

    Numbers that are both whole must be equal, as must everything else.

    :param rel: the difference allowed, as a part of the larger one.
    :param abs: the difference allowed near nought.
    """

    def same(one: t.Any, other: t.Any) -> bool:
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(same, one, other))
        if _is_number(one) and _is_number(other) and float in (type(one), type(other)):
            return math.isclose(one, other, rel_tol=rel, abs_tol=abs)
        return type(one) is type(other) and bool(one == other)

    return same


def _is_number(value: t.Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def largest_group(answers: t.Sequence[t.Any], same: Same) -> list[int]:
    """Return the places of the answers that are the same as one of them, where these are most.

    The first of them is the one that the others are the same as; of groups that are as large
    as each other it is the one that came first. Being nearly equal need not carry over from
    one to the next, so each answer is tried as the middle.
    """
    best: list[int] = []
    for middle, answer in enumerate(answers):
        others = [place for place, other in enumerate(answers) if place != middle and same(answer, other)]
        if len(others) + 1 > len(best):
            best = [middle, *others]
    return best
