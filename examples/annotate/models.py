"""Images, and the jobs of labelling them."""

from __future__ import annotations

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_jobber import JobMixin


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)

OPEN, AGREED, DISPUTED = "open", "agreed", "disputed"


class Image(db.Model):
    """A handwritten digit, and what people have agreed that it is."""

    id: Mapped[int] = mapped_column(primary_key=True)
    #: Eight rows of eight greys each, one after the other: 0 is paper, 16 is ink.
    pixels: Mapped[list[int]] = mapped_column(sa.JSON)
    #: The digit that its writer was asked for. Nobody is shown it with the image.
    truth: Mapped[int]
    #: ``open``, ``agreed`` or ``disputed``.
    state: Mapped[str] = mapped_column(sa.String(10), default=OPEN)
    #: The digit that was agreed upon. ``None`` where it was agreed that nobody can read it.
    label: Mapped[int | None]
    #: How many people have been heard.
    answers: Mapped[int] = mapped_column(default=0)


class Job(JobMixin, db.Model):
    """An image to be labelled. Which one stands in a column, and so is not told to whoever labels it."""

    image_id: Mapped[int | None] = mapped_column(sa.ForeignKey("image.id"))
