"""The worker of two servers, as it is: one command, three processes."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
REPORT = """\
library: Dawn: succeeded, attempts 1, 4 words, the longest 'comes', by robot/node-1
library: Noon: succeeded, attempts 1, 3 words, the longest 'shadows', by robot/node-1
library: Dusk: succeeded, attempts 1, 3 words, the longest 'lights', by robot/node-1
library: Diary: queued, attempts 0
archive: 1821: succeeded, attempts 1, 4 words, the longest 'sealed', by robot/node-1
archive: 1848: succeeded, attempts 2, 3 words, the longest 'written', by robot/node-1
archive: 1867: cancelled, attempts 1, There is nothing to count.
archive: Diary: queued, attempts 0
"""


@pytest.fixture(scope="module")
def printed() -> str:
    """Run the command; return what it prints."""
    command = [sys.executable, "-m", "examples.remote_worker"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_servers_have_their_work_done(printed: str) -> None:
    """Results, extras and holders are kept; one is tried again, one cancelled, another user's is left."""
    assert REPORT in printed


def test_the_servers_are_served_in_turn(printed: str) -> None:
    """Neither waits until the other has nothing left."""
    found = re.search(r"^in turn: (.*)$", printed, re.MULTILINE)
    assert found, printed
    turns = found[1].split(", ")
    assert sorted(turns) == ["archive"] * 4 + ["library"] * 3
    # What came up first may have got its first two before the other was there.
    assert set(turns[:3]) == {"archive", "library"}, turns


def test_the_handlers_say_what_they_do(printed: str) -> None:
    """In the worker's own process, by the name it was given."""
    assert "node-1: Dawn has 4 words\n" in printed
    assert "Diary" not in printed[: printed.index("library:")]
