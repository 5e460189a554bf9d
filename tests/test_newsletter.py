"""The newsletter, as it is."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

# The examples are no part of what is installed.
sys.path.append(str(pathlib.Path(__file__).parent.parent))

from examples.newsletter.__main__ import enqueue_import, enqueue_mails, report
from examples.newsletter.app import create_app, jobber
from flask_jobber.testing import Drained, drain

ROOT = pathlib.Path(__file__).parent.parent
REPORT = """\
job 1: examples.newsletter.app.import_readers: succeeded, 3 lines read
job 2: NewsletterJob: succeeded, 2 have the news
job 3: Reader.welcome: succeeded, Ada is welcome
job 4: Reader.mail: cancelled, There is no Reader 3 any more.
mail to ada@example.org: Dear Ada, welcome!
mail to ada@example.org: Dear Ada, the news of 20 March: spring is here
mail to grace@navy.example.org: Dear Grace, the news of 20 March: spring is here
"""


def test_the_newsletter_goes_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the app as it is; the jobs are done here."""
    monkeypatch.setenv("NEWSLETTER_DB", f"sqlite:///{tmp_path}/newsletter.db")
    app = create_app()
    done: list[Drained] = []
    for enqueue in (enqueue_import, enqueue_mails):
        enqueue(app)
        with app.app_context():
            done += [drain(jobber)]
    assert [(one.succeeded, one.cancelled) for one in done] == [(1, 0), (2, 1)]
    report(app)
    assert capsys.readouterr().out == REPORT


def test_the_command_prints_what_happened() -> None:
    """With a worker of its own program."""
    command = [sys.executable, "-m", "examples.newsletter"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(REPORT)
