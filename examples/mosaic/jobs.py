"""A picture becomes a batch of jobs, results become tiles, and all tiles together the picture."""

from __future__ import annotations

import typing as t

from flask_login import current_user
from marshmallow import Schema, fields, validate
from PIL import Image

from flask_jobber import Constant, Jobber, ResultRejected
from flask_jobber.batches import Batch

from . import paint
from .models import Job, Picture, Tile, db

Result = dict[str, list[int]]

jobber = Jobber(db, Job)


@jobber.locker_name
def locker_name() -> str:
    return current_user.name


@jobber.scope
def scope() -> dict[str, t.Any]:
    return {"user_id": [current_user.id, None]}


@jobber.permission
def may(action: str, job: Job) -> bool:
    """Let everybody hear of the tiles that are painted; who holds or checks one stays the app's secret."""
    return action == "result"


class TileResult(Schema):
    """The counts of a tile's pixels, row by row."""

    counts = fields.List(fields.Integer(strict=True, validate=validate.Range(0, 2**31)), required=True)


@jobber.agreement("tile")
def same(one: Result, other: Result) -> bool:
    """Tell whether two painters have computed the same: every machine comes to the same numbers."""
    return one["counts"] == other["counts"]


@jobber.processor("tile", schema=TileResult, backoff=Constant(1))
def show(job: Job, result: Result) -> None:
    """Show a tile on the page of its picture, signed by those who painted it."""
    picture = db.session.get_one(Picture, job.picture_id)
    size = picture.tile**2
    if len(result["counts"]) != size:
        raise ResultRejected(f"The tile has {size} pixels, not {len(result['counts'])}.", then="correct")
    agreeing = [answer.login for answer in jobber.answers(job) if answer.result == result]
    tile = Tile(
        picture_id=picture.id,
        column=job.data["x"] // picture.tile,
        row=job.data["y"] // picture.tile,
        pixels=paint.colour(result["counts"], picture.floor),
        painter=" + ".join(sorted(agreeing)) or job.locked_by,
    )
    db.session.add(tile)


@jobber.on_failure("tile")
def begin_again(job: Job, error: object) -> None:
    """Offer a tile anew: a picture has no holes, whoever gave it up."""
    whose = {"user_id": job.user_id, "picture_id": job.picture_id}
    jobber.enqueue("tile", job.data, beside=job, priority=job.priority, **whose, **_trust(job.user_id))


@jobber.batch_processor("stitch")
def stitch(batch: Batch, results: t.Iterable[tuple[Job, Result]]) -> None:
    """Stitch the tiles together, once all are painted."""
    picture = db.session.get_one(Picture, batch.data["picture"])
    canvas = Image.new("RGB", picture.size)
    for job, result in results:
        square = paint.colour(result["counts"], picture.floor)
        canvas.paste(paint.image(picture.tile, picture.tile, square), (job.data["x"], job.data["y"]))
    picture.pixels = canvas.tobytes()


def commission(picture: Picture) -> None:
    """Save a new picture and enqueue its tiles, for the picture's user or for everybody."""
    db.session.add(picture)
    db.session.flush()
    whose = {"user_id": picture.user_id, "picture_id": picture.id}
    with jobber.batch("stitch", {"picture": picture.id}, **whose) as batch:
        for nth, (column, row) in enumerate(picture.places):
            part = picture.part(column * picture.tile, row * picture.tile, picture.tile, picture.tile)
            # Of all that wait the check of an earlier tile comes first, so that records soon grow.
            batch.enqueue("tile", part, priority=-nth, **whose, **_trust(picture.user_id))
    picture.batch_id = batch.id


def _trust(user_id: int | None) -> dict[str, bool]:
    """Have tiles of everybody's picture painted twice, by two, unless a painter's record is good.

    Nobody but the user could check a picture of the user's own, or is deceived by it.
    """
    return {"adaptive": True} if user_id is None else {}
