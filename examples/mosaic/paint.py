"""From counts to colours."""

from __future__ import annotations

import io
import math
import typing as t

from PIL import Image

# Night, sea, foam, sand, ember, dusk, and round again.
_STOPS = ((6, 20, 54), (0, 110, 130), (200, 240, 220), (255, 214, 110), (190, 60, 40), (40, 8, 40))
_SHADES = 1024
# Shades for each unit of the root of a count.
_PACE = 3


def _shade(place: float) -> bytes:
    """Return the colour at a place on the round of stops, from 0 to 1."""
    stop, part = divmod(place * len(_STOPS), 1)
    ease = part * part * (3 - 2 * part)
    ends = zip(_STOPS[int(stop)], _STOPS[(int(stop) + 1) % len(_STOPS)], strict=True)
    return bytes(round(here + (there - here) * ease) for here, there in ends)


_PALETTE = [_shade(index / _SHADES) for index in range(_SHADES)]
_INSIDE = bytes(3)


def colour(counts: t.Iterable[int], floor: int) -> bytes:
    """Return the RGB bytes of counts; the colours begin at ``floor``."""
    return b"".join(
        _PALETTE[int(_PACE * math.sqrt(max(0, count - floor))) % _SHADES] if count else _INSIDE
        for count in counts
    )


def image(width: int, height: int, pixels: bytes) -> Image.Image:
    """Return the picture of RGB bytes."""
    return Image.frombytes("RGB", (width, height), pixels)


def png(picture: Image.Image) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
