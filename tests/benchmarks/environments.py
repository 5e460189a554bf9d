"""Environments in which peers are installed: one each, kept between runs."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import shutil
import subprocess
import venv

ROOT = pathlib.Path(__file__).parent.parent.parent
HOME = ROOT / ".venv-peers"


def package(requires: str) -> str:
    """Return the name of the first package of ``a[extra] b<2``; its environment is called the same."""
    return requires.partition(" ")[0].partition("[")[0]


@functools.cache
def python(requires: str) -> str:
    """Return a Python that has packages.

    :raises OSError, subprocess.SubprocessError: when they cannot be installed.
    """
    home = HOME / package(requires)
    program = str(home / "bin" / "python")
    if not python_version(program, package(requires)):
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([program, "-m", "pip", "install", "--quiet", *requires.split()], check=True)
    return program


def python_version(program: str, name: str) -> str:
    """Return the version of a package, or nothing when it is not there."""
    look = f"from importlib.metadata import version; print(version({name!r}))"
    with contextlib.suppress(OSError):
        return subprocess.run([program, "-c", look], capture_output=True, text=True).stdout.strip()
    return ""


@functools.cache
def node(requires: str) -> str:
    """Return Node, when it has packages of npm's.

    :raises OSError, subprocess.SubprocessError: when they cannot be installed.
    """
    home = HOME / package(requires)
    if not node_version(package(requires)):
        home.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--silent", "--prefix", str(home), *requires.split()]
        subprocess.run(install, check=True)
    return shutil.which("node") or "node"


def node_version(name: str) -> str:
    """Return the version of a package, or nothing when it is not there."""
    with contextlib.suppress(OSError):
        about = HOME / name / "node_modules" / name / "package.json"
        return str(json.loads(about.read_text())["version"])
    return ""
