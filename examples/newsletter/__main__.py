"""The command: enqueues work, has a worker do it, and prints what happened."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import tempfile

from flask import Flask
from sqlalchemy import select

from .app import Mail, NewsletterJob, Reader, create_app, db, import_readers, jobber

LINES = ["Ada,ada@example.org", "Grace,grace@example.org", "Emmy,emmy@example.org"]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="newsletter-") as folder:
        os.environ["NEWSLETTER_DB"] = f"sqlite:///{folder}/newsletter.db"
        app = create_app()
        enqueue_import(app)
        work()
        enqueue_mails(app)
        work()
        report(app)
    return 0


def enqueue_import(app: Flask) -> None:
    """A function is called later."""
    with app.app_context():
        jobber.send_later(import_readers, LINES)
        db.session.commit()


def enqueue_mails(app: Flask) -> None:
    """An object performs, methods are called later; one reader leaves before that."""
    with app.app_context():
        ada, grace, emmy = db.session.scalars(select(Reader).order_by(Reader.id))
        jobber.enqueue(NewsletterJob("spring is here", dt.date(2026, 3, 20), [ada, grace]))
        ada.welcome()
        jobber.delay(emmy, priority=-1).mail("goodbye!")
        db.session.delete(emmy)
        grace.email = "grace@navy.example.org"
        db.session.commit()


def work() -> None:
    """Do what there is to do, as ``flask jobber work`` does in a terminal of its own."""
    command = ["flask", "--app", "examples.newsletter.app", "jobber", "work", "--burst", "--concurrency", "1"]
    subprocess.run([sys.executable, "-m", *command], check=True)


def report(app: Flask) -> None:
    """Print the jobs with what came of them, and the mails."""
    with app.app_context():
        for job in db.session.scalars(select(jobber.Job).order_by(jobber.Job.id)):
            print(f"job {job.id}: {job.data['call']}: {job.state}, {job.result or reason(job)}")
        for mail in db.session.scalars(select(Mail).order_by(Mail.id)):
            print(f"mail to {mail.to}: {mail.text}")


def reason(job: object) -> str:
    """Return why a job ended without a result."""
    history = jobber.History
    last = select(history.error).where(history.job_id == job.id).order_by(history.id.desc()).limit(1)
    return db.session.scalar(last)["message"]


if __name__ == "__main__":
    sys.exit(main())
