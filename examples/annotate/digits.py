"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import random
import typing as t


class Digit(t.NamedTuple):
    """An image of eight by eight greys from 0 to 16, and the digit that it shows."""

    pixels: list[int]
    truth: int


def read_digits(number: int) -> list[Digit]:
    """Return so many digits, or all that there are: at each call the same, in the same order.

    :raises ImportError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits come with scikit-learn: pip install 'flask-jobber[annotate]', or scikit-learn"
        ) from error

    found = load_digits()
    digits = [
        Digit([int(grey) for grey in pixels], int(truth))
        for pixels, truth in zip(found.data, found.target, strict=True)
    ]
    # They were written in the order 0, 1, 2 and so on.
    random.Random(0).shuffle(digits)
    return digits[:number]
