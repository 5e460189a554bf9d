"""Images become jobs, agreed answers become labels."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa
from flask_login import current_user
from marshmallow import Schema, fields, validate

from flask_jobber import Jobber

from .digits import Digit
from .models import AGREED, DISPUTED, OPEN, Image, Job, db

# One image in as many is not asked about, but used to check those who answer.
_GOLD = 10

jobber = Jobber(db, Job)


@jobber.locker_name
def locker_name() -> str:
    return current_user.id


class Label(Schema):
    """What somebody has read; null says that it cannot be read, which others may find too."""

    digit = fields.Integer(required=True, strict=True, allow_none=True, validate=validate.Range(0, 9))


@jobber.processor("digit", schema=Label)
def keep(job: Job, result: dict[str, int | None]) -> None:
    """Keep what was agreed upon."""
    image = _image(job)
    image.state, image.label = AGREED, result["digit"]


@jobber.on_failure("digit")
def give_up(job: Job, error: object) -> None:
    """Note that as many as may be asked have been asked, and do not agree."""
    _image(job).state = DISPUTED


@jobber.on_revoked("digit")
def forget(job: Job, result: object) -> None:
    """Open an image again whose label was taken back."""
    image = _image(job)
    image.state, image.label = OPEN, None


def _image(job: Job) -> Image:
    image = db.session.get_one(Image, job.image_id)
    image.answers = sum(answer.becomes == "answered" for answer in jobber.answers(job))
    return image


def commission(digits: t.Sequence[Digit]) -> None:
    """Have digits labelled, unless the database has some already."""
    if db.session.scalar(sa.select(Image.id).limit(1)) is not None:
        return
    for digit in digits[::_GOLD]:  # before the others, among which it is mixed
        jobber.gold("digit", {"pixels": digit.pixels}, {"digit": digit.truth})
    images = [Image(**digit._asdict()) for place, digit in enumerate(digits) if place % _GOLD]
    db.session.add_all(images)
    db.session.flush()
    jobber.enqueue_many(
        {
            "type": "digit",
            "data": {"pixels": image.pixels},
            "image_id": image.id,
            "results_wanted": 2,
            "agreement": 2,
        }
        for image in images
    )
    db.session.commit()
