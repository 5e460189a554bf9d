"""The pages: the gate, and a picture that grows."""

from __future__ import annotations

import re
import time
import typing as t

import sqlalchemy as sa
from flask import Blueprint, Response, abort, flash, redirect, render_template, request, url_for
from flask_login import current_user, login_required, login_user, logout_user
from PIL import Image
from sqlalchemy.exc import IntegrityError
from werkzeug.wrappers import Response as Redirection

from flask_jobber import State

from . import paint
from .jobs import commission, jobber
from .models import WHOLE, Job, Picture, Tile, User, db

pages = Blueprint("pages", __name__)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,30}")
_SHORTEST_PASSWORD = 8
_ZOOM = 5
# Below this, neighbouring pixels are the same number.
_NARROWEST = 1e-12


@pages.get("/")
def gate() -> str | Redirection:
    """Show the way in; those who are in go to the shared picture."""
    if not current_user.is_authenticated:
        return render_template("gate.html")
    shared = sa.select(Picture.id).where(Picture.user_id.is_(None)).order_by(Picture.id.desc())
    return _go_to(db.first_or_404(shared))


@pages.post("/sign-up")
def sign_up() -> Redirection | tuple[str, int]:
    name, password = request.form.get("name", ""), request.form.get("password", "")
    if not _NAME.fullmatch(name):
        return _refuse("A name has up to 30 letters, digits, dots, dashes and underscores.", 422)
    if len(password) < _SHORTEST_PASSWORD:
        return _refuse(f"A password has at least {_SHORTEST_PASSWORD} characters.", 422)
    user = User.sign_up(name, password)
    db.session.add(user)
    try:
        db.session.commit()
    except IntegrityError:
        db.session.rollback()
        return _refuse(f"The name {name} is taken.", 409)
    return _welcome(user)


@pages.post("/log-in")
def log_in() -> Redirection | tuple[str, int]:
    user = User.log_in(request.form.get("name", ""), request.form.get("password", ""))
    return _welcome(user) if user else _refuse("Name and password do not match.", 401)


@pages.post("/log-out")
def log_out() -> Redirection:
    logout_user()
    return redirect(url_for(".gate"), 303)


def _welcome(user: User) -> Redirection:
    login_user(user)
    return redirect(url_for(".gate"), 303)


def _refuse(message: str, status: int) -> tuple[str, int]:
    return render_template("gate.html", message=message), status


@pages.get("/pictures/<int:picture_id>")
@login_required
def show(picture_id: int) -> str:
    pictures = db.session.scalars(sa.select(Picture).where(_visible()).order_by(Picture.id)).all()
    return render_template("picture.html", picture=_picture(picture_id), pictures=pictures)


@pages.post("/pictures/<int:picture_id>/zoom")
@login_required
def zoom(picture_id: int) -> Redirection:
    """Begin a picture of the user's own: a place in this one, or the whole set."""
    picture = _picture(picture_id)
    window = _window(picture)
    if _has_unfinished():
        flash("Paint your last picture first.")
    elif window["width"] < _NARROWEST:
        flash("Here double precision ends: neighbouring pixels would be the same number.")
    else:
        picture = Picture.around(**window, columns=picture.columns, rows=picture.rows, tile=picture.tile)
        picture.user_id = current_user.id
        commission(picture)
        db.session.commit()
    return _go_to(picture.id)


def _has_unfinished() -> bool:
    own = sa.select(Picture.id).where(Picture.user_id == current_user.id, Picture.pixels.is_(None))
    return db.session.scalar(own.limit(1)) is not None


def _window(picture: Picture) -> dict[str, float]:
    """Return the window that the form asks for: ``x`` and ``y`` are parts of the picture's size."""
    x, y = request.form.get("x", type=float), request.form.get("y", type=float)
    if x is None or y is None:
        return WHOLE
    if not (0 <= x <= 1 and 0 <= y <= 1):
        abort(400)
    width, height = (pixels * picture.step for pixels in picture.size)
    return {"real": picture.left + x * width, "imag": picture.top - y * height, "width": width / _ZOOM}


@pages.get("/pictures/<int:picture_id>/progress")
@login_required
def progress(picture_id: int) -> dict[str, t.Any]:
    """Tell how far the batch is, who painted what and when, and which tiles the user is at.

    Not who else is at one: painters of the same tile could come to an understanding.
    """
    picture = _picture(picture_id)
    columns = (Tile.column, Tile.row, Tile.painter, Tile.painted_at)
    tiles = db.session.execute(sa.select(*columns).where(Tile.picture_id == picture.id)).all()
    batch = jobber.find_batch(picture.batch_id).progress()
    return {
        "done": batch.done,
        "rate": batch.rate,
        "finished": batch.state is State.SUCCEEDED,
        "painted": [[*place, painter, time.time() - at] for *place, painter, at in tiles],
        "held": list(_held(picture)),
    }


def _held(picture: Picture) -> t.Iterator[tuple[int, int]]:
    name = current_user.name
    mine = sa.or_(Job.locked_by == name, Job.locked_by.startswith(f"{name}/", autoescape=True))
    held = (Job.picture_id == picture.id, Job.state == State.LOCKED.value, mine)
    for data in db.session.scalars(sa.select(Job.data).where(*held)):
        yield data["x"] // picture.tile, data["y"] // picture.tile


@pages.get("/pictures/<int:picture_id>/<int:column>-<int:row>.png")
@login_required
def tile(picture_id: int, column: int, row: int) -> Response:
    picture = _picture(picture_id)
    found = db.get_or_404(Tile, (picture.id, column, row))
    return _png(paint.image(picture.tile, picture.tile, found.pixels))


@pages.get("/pictures/<int:picture_id>.png")
@login_required
def whole(picture_id: int) -> Response:
    """Give the whole picture, once it is stitched."""
    picture = _picture(picture_id)
    if picture.pixels is None:
        abort(404)
    return _png(paint.image(*picture.size, picture.pixels))


def _png(image: Image.Image) -> Response:
    return Response(paint.png(image), mimetype="image/png")


def _picture(picture_id: int) -> Picture:
    return db.one_or_404(sa.select(Picture).where(Picture.id == picture_id, _visible()))


def _visible() -> sa.ColumnElement[bool]:
    return sa.or_(Picture.user_id.is_(None), Picture.user_id == current_user.id)


def _go_to(picture_id: int) -> Redirection:
    return redirect(url_for(".show", picture_id=picture_id), 303)
