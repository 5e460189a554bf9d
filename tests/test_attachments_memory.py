"""However large a file is, and however little memory there is."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
SIZE = 2 * 1024**3
LIMIT = 200 * 1024**2


def test_two_gigabytes_go_through_a_process_of_200_megabytes(sqlite_url: str, tmp_path: pathlib.Path) -> None:
    """Both ways, with the client in the same process; the limit is the kernel's, and shown to hold."""
    folder = tmp_path / "files"
    command = [sys.executable, str(HERE / "attach_within.py"), sqlite_url, str(folder), str(SIZE), str(LIMIT)]
    path = os.pathsep.join(filter(None, (str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "2"},
    )
    for file in folder.rglob("*"):  # pytest keeps the folders of three runs
        if file.is_file():
            file.unlink()
    assert done.returncode == 0, done.stderr
    limited, stored, most = done.stdout.splitlines()
    assert (limited, stored) == ("limited", f"stored {SIZE}")
    assert int(most.removeprefix("at most ")) < LIMIT
