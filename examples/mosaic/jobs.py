"""A picture becomes jobs, results become tiles."""

from __future__ import annotations

import random
import typing as t

import sqlalchemy as sa
from flask_login import current_user
from marshmallow import Schema, fields, validate

from flask_jobber import Constant, Jobber, ResultRejected

from .mandelbrot import Part, counts
from .models import Job, Picture, Tile, db
from .paint import colour

_SPOT_CHECKS = 3

jobber = Jobber(db, Job)


@jobber.locker_name
def locker_name() -> str:
    return current_user.name


@jobber.scope
def scope() -> dict[str, t.Any]:
    return {"user_id": [current_user.id, None]}


class TileResult(Schema):
    """The counts of a tile's pixels, row by row."""

    counts = fields.List(fields.Integer(strict=True, validate=validate.Range(0, 2**31)), required=True)


@jobber.processor("tile", schema=TileResult, backoff=Constant(1))
def paste(job: Job, result: dict[str, list[int]]) -> None:
    """Paste a tile into its picture."""
    picture = db.session.get_one(Picture, job.picture_id)
    _check(job.data, result["counts"])
    tile = Tile(
        picture_id=picture.id,
        column=job.data["x"] // picture.tile,
        row=job.data["y"] // picture.tile,
        pixels=colour(result["counts"], picture.floor),
        painter=job.locked_by,
    )
    db.session.add(tile)


def _check(part: Part, found: list[int]) -> None:
    """Compute a few pixels again: anybody may paint, and not everybody is honest."""
    width, height = part["width"], part["height"]
    if len(found) != width * height:
        raise ResultRejected(f"The tile has {width * height} pixels, not {len(found)}.", then="correct")
    for place in random.sample(range(width * height), min(_SPOT_CHECKS, width * height)):
        row, column = divmod(place, width)
        pixel: Part = {**part, "x": part["x"] + column, "y": part["y"] + row, "width": 1, "height": 1}
        if counts(pixel) != [found[place]]:
            raise ResultRejected(f"The pixel in column {column}, row {row} is wrong.", then="exclude")


@jobber.on_failure("tile")
def begin_again(job: Job, error: object) -> None:
    """Offer a tile anew: a picture has no holes, whoever gave it up."""
    jobber.enqueue("tile", job.data, user_id=job.user_id, picture_id=job.picture_id)


def commission(picture: Picture) -> None:
    """Save a new picture and enqueue its tiles, for the picture's user or for everybody."""
    db.session.add(picture)
    db.session.flush()
    jobber.enqueue_many(
        {
            "type": "tile",
            "data": picture.part(column * picture.tile, row * picture.tile, picture.tile, picture.tile),
            "user_id": picture.user_id,
            "picture_id": picture.id,
        }
        for column, row in picture.places
    )


def is_waiting(user_id: int) -> bool:
    """Tell whether tiles of a user's own are unfinished."""
    own = sa.select(Job.id).where(Job.user_id == user_id, Job.finished_at.is_(None))
    return db.session.scalar(own.limit(1)) is not None
