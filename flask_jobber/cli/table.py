"""Tables that fit a terminal, of texts that nobody vouches for."""

from __future__ import annotations

import shutil
import typing as t
import unicodedata

_GAP = "  "
_ELLIPSIS = "…"
_LEAST = 4
# Where nobody says how wide: a pipe cuts nothing.
_UNBOUND = 1_000_000


def printable(text: str) -> str:
    """Return a text that does nothing to a terminal but stand in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def lines(
    head: t.Sequence[str],
    rows: t.Sequence[t.Sequence[str]],
    *,
    soft: t.Collection[str],
    width: int | None = None,
) -> list[str]:
    """Return the lines of a table, none over ``width`` (the terminal's). Empty columns are left out.

    :param soft: heads of the columns that are cut, the widest first.
    """
    whole = width or shutil.get_terminal_size((_UNBOUND, 24)).columns
    columns = [[printable(cell) for cell in column] for column in zip(head, *rows, strict=True)]
    kept = [column for column in columns if any(column[1:])]
    widths = [max(map(_width, column)) for column in kept]
    _fit(widths, [place for place, column in enumerate(kept) if column[0] in soft], whole)
    cells = ([_fill(cell, room) for cell in column] for column, room in zip(kept, widths, strict=True))
    return [_cut(_GAP.join(line).rstrip(), whole) for line in zip(*cells, strict=True)]


def _fit(widths: list[int], soft: list[int], whole: int) -> None:
    """Part what the other columns leave among the soft ones; what one does not need goes to the wider."""
    room = whole - sum(widths) - len(_GAP) * (len(widths) - 1) + sum(widths[place] for place in soft)
    for turn, place in enumerate(sorted(soft, key=widths.__getitem__)):
        share = room // (len(soft) - turn)
        widths[place] = min(widths[place], max(share, _LEAST))
        room -= widths[place]


def _width(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_width_of, text))


def _width_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, room: int) -> str:
    if _width(text) <= room:
        return text
    kept, left = "", room - 1
    for character in text:
        left -= _width_of(character)
        if left < 0:
            break
        kept += character
    return kept + _ELLIPSIS


def _fill(text: str, room: int) -> str:
    text = _cut(text, room)
    return text + " " * (room - _width(text))
