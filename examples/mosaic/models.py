"""Users, pictures, tiles and jobs."""

from __future__ import annotations

import math
import time

import sqlalchemy as sa
from flask_login import UserMixin
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.security import check_password_hash, generate_password_hash

from flask_jobber import JobMixin

from .mandelbrot import Part, counts


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class User(UserMixin, db.Model):
    """Somebody who may see the shared picture and their own, and paint both."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(30), unique=True)
    password_hash: Mapped[str] = mapped_column(sa.String(200))

    @classmethod
    def sign_up(cls, name: str, password: str) -> User:
        """Return a new user, not yet saved."""
        return cls(name=name, password_hash=generate_password_hash(password))

    @classmethod
    def log_in(cls, name: str, password: str) -> User | None:
        """Return the user of this name if the password is right."""
        user = db.session.scalar(sa.select(cls).where(cls.name == name))
        return user if user and check_password_hash(user.password_hash, password) else None


# The whole set, as wide as a picture is for it.
WHOLE = {"real": -0.75, "imag": 0.0, "width": 3.6}


class Picture(db.Model):
    """A window on the Mandelbrot set, cut into square tiles. Without a user it is everybody's."""

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("user.id"))
    left: Mapped[float] = mapped_column(sa.Double)
    top: Mapped[float] = mapped_column(sa.Double)
    #: From one pixel to the next.
    step: Mapped[float] = mapped_column(sa.Double)
    iterations: Mapped[int]
    #: The lowest count, where the colours begin.
    floor: Mapped[int]
    columns: Mapped[int]
    rows: Mapped[int]
    #: Width and height of a tile in pixels.
    tile: Mapped[int]
    #: The batch of its tiles.
    batch_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    #: RGB bytes, row by row, when it is stitched.
    pixels: Mapped[bytes | None] = mapped_column(deferred=True)

    @classmethod
    def around(cls, real: float, imag: float, width: float, columns: int, rows: int, tile: int) -> Picture:
        """Return the picture of a place, not yet saved."""
        step = width / (columns * tile)
        left, top = real - width / 2, imag + step * rows * tile / 2
        iterations = 500 + round(100 * math.log2(max(1.0, WHOLE["width"] / width)))
        picture = cls(
            left=left, top=top, step=step, iterations=iterations, columns=columns, rows=rows, tile=tile
        )
        picture.floor = picture._survey()
        return picture

    def _survey(self) -> int:
        """Return the lowest count of a look at two points along each side of a tile."""
        part = self.part(0, 0, 2 * self.columns, 2 * self.rows)
        return min(filter(None, counts({**part, "step": self.step * self.tile / 2})), default=0)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.columns * self.tile, self.rows * self.tile

    @property
    def places(self) -> list[tuple[int, int]]:
        """Column and row of every tile, from the middle outwards."""
        x, y = (self.columns - 1) / 2, (self.rows - 1) / 2
        every = [(column, row) for row in range(self.rows) for column in range(self.columns)]
        return sorted(every, key=lambda place: math.hypot(place[0] - x, place[1] - y))

    @property
    def magnification(self) -> float:
        """How many times larger it is than the whole set."""
        return WHOLE["width"] / (self.step * self.size[0])

    def part(self, x: int, y: int, width: int, height: int) -> Part:
        """Return what there is to know for computing a rectangle of pixels."""
        return {
            "left": self.left, "top": self.top, "step": self.step, "iterations": self.iterations,
            "x": x, "y": y, "width": width, "height": height,
        }  # fmt: skip


class Tile(db.Model):
    """A painted square of a picture, to be seen before all are there."""

    picture_id: Mapped[int] = mapped_column(sa.ForeignKey("picture.id"), primary_key=True)
    column: Mapped[int] = mapped_column(primary_key=True)
    row: Mapped[int] = mapped_column(primary_key=True)
    #: RGB bytes, row by row.
    pixels: Mapped[bytes]
    painter: Mapped[str] = mapped_column(sa.String(320))
    #: Seconds since the epoch.
    painted_at: Mapped[float] = mapped_column(sa.Double, default=time.time)


class Job(JobMixin, db.Model):
    """A tile to be computed, by its picture's user or, without one, by anybody; or the batch of them."""

    __claim_by__ = ("user_id",)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("user.id"))
    picture_id: Mapped[int] = mapped_column(sa.ForeignKey("picture.id"))
