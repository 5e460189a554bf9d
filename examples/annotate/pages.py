"""The pages: the gate, an image to label, one's own record, and the table."""

from __future__ import annotations

import re

from flask import Blueprint, redirect, render_template, request, url_for
from flask_login import UserMixin, current_user, login_required, login_user, logout_user
from werkzeug.wrappers import Response as Redirection

from .agreement import summarize

pages = Blueprint("pages", __name__)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,30}")


class User(UserMixin):
    """Who says this name. An app that is to know its people has them log in."""

    def __init__(self, name: str) -> None:
        self.id = name


@pages.get("/")
def label() -> str:
    """Show an image to label; those who are not in, the way in."""
    if not current_user.is_authenticated:
        return render_template("gate.html")
    return render_template("label.html")


@pages.post("/log-in")
def log_in() -> Redirection | tuple[str, int]:
    name = request.form.get("name", "")
    if not _NAME.fullmatch(name):
        message = "A name has up to 30 letters, digits, dots, dashes and underscores."
        return render_template("gate.html", message=message), 422
    login_user(User(name))
    return redirect(url_for(".label"), 303)


@pages.post("/log-out")
def log_out() -> Redirection:
    logout_user()
    return redirect(url_for(".label"), 303)


@pages.get("/progress")
@login_required
def progress() -> dict[str, int]:
    """Tell how many images are done."""
    summary = summarize()
    return {"done": summary.total - summary.open, "total": summary.total}


@pages.get("/me")
@login_required
def me() -> str:
    return render_template("me.html")


@pages.get("/table")
@login_required
def table() -> str:
    return render_template("table.html", summary=summarize(), digits=range(10), labels=[*range(10), None])
