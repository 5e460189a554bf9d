"""Phrases for whoever is logged in to translate: ``flask --app examples/minimal.py run``"""

from __future__ import annotations

from flask import Flask, Request
from flask_login import LoginManager, UserMixin, current_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import Mapped, mapped_column

from flask_jobber import Jobber, JobMixin

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///minimal.db"
db = SQLAlchemy(app)
login_manager = LoginManager(app)


class User(UserMixin, db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(unique=True)


class Job(JobMixin, db.Model):
    __claim_by__ = ("user_id",)
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"))
    translation: Mapped[str | None]


jobber = Jobber(db, Job)


@login_manager.request_loader
def load_user(request: Request) -> User | None:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return db.session.scalar(select(User).where(User.token == token))


@jobber.scope
def scope() -> dict[str, int]:
    return {"user_id": current_user.id}


@jobber.processor("translate")
def keep_translation(job: Job, result: object) -> None:
    job.translation = str(result)


app.register_blueprint(jobber.blueprint, url_prefix="/jobber")

with app.app_context():
    db.create_all()
    if db.session.get(User, 1) is None:
        db.session.add(User(id=1, token="secret"))
        db.session.flush()
        jobber.enqueue("translate", {"text": "Guten Morgen", "to": "en"}, user_id=1)
        db.session.commit()

if __name__ == "__main__":
    app.run()
