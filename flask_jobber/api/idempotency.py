"""The header Idempotency-Key: a request that is sent again has its first answer.

draft-ietf-httpapi-idempotency-key-header says a quoted string; a bare one is as good.
"""

from __future__ import annotations

import re
import typing as t

from flask import request

from ..core import keys
from ..core.payload import canonical
from ..errors import Invalid
from .call import Call

HEADER = "Idempotency-Key"
_LONGEST = 255
_QUOTED = re.compile(rf'"((?:[ !#-\[\]-~]|\\["\\]){{1,{_LONGEST}}})"')
# No comma: of two such headers neither is meant.
_BARE = re.compile(rf"[A-Za-z0-9!#$%&'()*+./:<=>?@^_`{{|}}~-]{{1,{_LONGEST}}}")
#: What the header may be.
PATTERN = f"{_QUOTED.pattern}|{_BARE.pattern}"
_DATA = "data"


def once(call: Call, asked: t.Mapping[str, t.Any], do: t.Callable[[], dict[str, t.Any]]) -> dict[str, t.Any]:
    """Do something and commit; or return its answer, when this login has had it done before.

    Only what is done is remembered: who was refused may send the same key again.

    :param asked: all that the answer depends on.
    :raises Invalid: for a key that is none.
    :raises KeyReused: when the key was sent with another request.
    """
    text = read(request.headers.get(HEADER))
    if text is None:
        said = do()
        call.commit()
        return said
    key = keys.make(call.identity.login, text, asked)
    # Before any hook: what it counts may be different when the job is there already.
    said_before = keys.take(call.store, key)
    if said_before is not None:
        call.commit()
        return {_DATA: asked.get(_DATA), **said_before}
    said = do()
    keys.keep(call.store, key, _without_data(said, asked))
    call.commit()
    return said


def read(value: str | None) -> str | None:
    """Return the key in a header.

    :raises Invalid: when there is none in it.
    """
    if value is None:
        return None
    quoted = _QUOTED.fullmatch(value)
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    if not _BARE.fullmatch(value):
        raise Invalid({HEADER: [f"A key is 1 to {_LONGEST} visible ASCII characters, best in quotes."]})
    return value


def _without_data(said: dict[str, t.Any], asked: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Leave out what the same request brings along: it may be large."""
    if canonical(said[_DATA]) != canonical(asked.get(_DATA)):  # the app's hook has changed it
        return said
    return {name: value for name, value in said.items() if name != _DATA}
