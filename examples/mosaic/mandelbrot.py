"""The Mandelbrot set, with nothing but arithmetic that gives the same bits in every language.

``static/mandelbrot.js`` does the same in the same order, so a tile may come from anywhere
and still be compared number by number.
"""

from __future__ import annotations

import typing as t

# |z|² at which a point has escaped; a power of two, so that dividing by it is exact.
ESCAPED = 65536.0


class Part(t.TypedDict):
    """A rectangle of a picture's pixels: the data of a job.

    The picture's corner is at ``left`` and ``top``, its pixels are ``step`` apart.
    """

    left: float
    top: float
    step: float
    iterations: int
    x: int
    y: int
    width: int
    height: int


def counts(part: Part) -> list[int]:
    """Return the count of every pixel, row by row."""
    left, top, step = part["left"], part["top"], part["step"]
    return [
        _count(left + column * step, top - row * step, part["iterations"])
        for row in range(part["y"], part["y"] + part["height"])
        for column in range(part["x"], part["x"] + part["width"])
    ]


def _count(real: float, imag: float, iterations: int) -> int:
    """Return how many iterations a point takes to escape, in 256ths; 0 when it does not."""
    x = y = xx = yy = 0.0
    for n in range(1, iterations + 1):
        y = 2.0 * x * y + imag
        x = xx - yy + real
        xx = x * x
        yy = y * y
        if xx + yy > ESCAPED:
            return int(256.0 * (n + 1.0 - _overshoot(xx + yy)))
    return 0


def _overshoot(squared: float) -> float:
    """Return how far beyond the border the last iteration went, from 0 to 1.

    That is log2(log2(squared) / 16), here with straight lines between the powers of two:
    libraries differ in the last bit of a logarithm.
    """
    exponent, mantissa = 16.0, squared / ESCAPED
    while mantissa >= 2.0:
        mantissa /= 2.0
        exponent += 1.0
    return (exponent + mantissa - 1.0) / 16.0 - 1.0
