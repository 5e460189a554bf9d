"""How what people agree upon agrees with the truth."""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from .models import AGREED, DISPUTED, OPEN, Image, db


@dataclasses.dataclass(frozen=True)
class Summary:
    """What has become of the images.

    :param labels: how many of each truth have each label.
    """

    open: int
    disputed: int
    labels: dict[tuple[int, int | None], int]

    @property
    def agreed(self) -> int:
        return sum(self.labels.values())

    @property
    def total(self) -> int:
        return self.open + self.disputed + self.agreed

    @property
    def right(self) -> int:
        return sum(number for (truth, label), number in self.labels.items() if label == truth)

    @property
    def share_right(self) -> float | None:
        """Of those that were agreed upon; ``None`` while there is none."""
        return self.right / self.agreed if self.agreed else None


def summarize() -> Summary:
    """Count the images."""
    number = sa.func.count()
    by_state = sa.select(Image.state, number).group_by(Image.state)
    states = dict(db.session.execute(by_state).all())
    by_label = sa.select(Image.truth, Image.label, number).where(Image.state == AGREED)
    rows = db.session.execute(by_label.group_by(Image.truth, Image.label))
    labels = {(truth, label): count for truth, label, count in rows}
    return Summary(states.get(OPEN, 0), states.get(DISPUTED, 0), labels)
