"""What is shipped: complete, and enough by itself."""

from __future__ import annotations

import email.message
import email.parser
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import typing as t
import venv
import zipfile

import pytest
from packaging.requirements import Requirement

from conftest import missing

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    "worker": {"httpx2", "anyio"},
    "oauth": {"authlib"},
    "postgres": {"psycopg"},
    "mysql": {"pymysql"},
    "redis": {"redis"},
    "cron": {"croniter"},
    "files": {"fsspec"},
    "metrics": {"prometheus-client"},
    "async": {"flask"},
}
# What a checkout has besides its sources.
_LEFTOVERS = shutil.ignore_patterns(
    ".git", ".venv*", "venv", "build", "dist", "instance", "__pycache__", "*.egg-info", ".*_cache",
    ".hypothesis", "node_modules", "*.py[cod]", "*.db*", "mosaic.png",
)  # fmt: skip
# Folders of the checkout that an sdist carries whole.
_CARRIED = ("flask_jobber", "tests", "examples", "docs")
APP = """
from flask import Flask
from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy

from flask_jobber import Jobber

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///jobs.db"
db = SQLAlchemy(app)
LoginManager(app)
jobber = Jobber(db)
app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
with app.app_context():
    db.create_all()
"""
LOOK = """
import pathlib

import flask_jobber
from app import app

print(pathlib.Path(flask_jobber.__file__).parent)
response = app.test_client().get("/jobber/jobber.js")
assert (response.status_code, response.mimetype) == (200, "text/javascript")
print(len(response.data))
"""


def run(*command: str | os.PathLike[str], cwd: pathlib.Path) -> str:
    """Run a program that knows nothing of this process's environment; return what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FLASK"))}
    done = subprocess.run(
        command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=300, check=False
    )
    if "No matching distribution found" in done.stderr:
        missing("a package index")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Built(t.NamedTuple):
    """The two archives and the sources that they were made of."""

    source: pathlib.Path
    sdist: pathlib.Path
    wheel: pathlib.Path

    @property
    def sources(self) -> set[str]:
        files = (path for name in _CARRIED for path in (self.source / name).rglob("*") if path.is_file())
        return {path.relative_to(self.source).as_posix() for path in files} - self._made

    @property
    def _made(self) -> set[str]:
        return {path.relative_to(self.source).as_posix() for path in self.source.glob("*.egg-info/*")}

    @property
    def in_sdist(self) -> set[str]:
        with tarfile.open(self.sdist) as archive:
            return {member.name.partition("/")[2] for member in archive if member.isfile()}

    @property
    def in_wheel(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    @property
    def metadata(self) -> email.message.Message:
        (name,) = (name for name in self.in_wheel if name.endswith(".dist-info/METADATA"))
        with zipfile.ZipFile(self.wheel) as archive:
            return email.parser.Parser().parsestr(archive.read(name).decode())


Make = t.Callable[[pathlib.Path], None]
Once = t.Callable[[str, Make], pathlib.Path]


@pytest.fixture(scope="module")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Make a folder once in a run of the suite, in however many processes it runs."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base

    def get(name: str, make: Make) -> pathlib.Path:
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="module")
def built(once: Once) -> Built:
    """Build from a clean copy; the wheel is built from the sdist, as an index would get it."""
    folder = once("built", _build)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(folder / "source", sdist, wheel)


def _build(folder: pathlib.Path) -> None:
    shutil.copytree(ROOT, folder / "source", ignore=_LEFTOVERS)
    run(sys.executable, "-m", "build", "--outdir", folder, folder / "source", cwd=folder)


@pytest.fixture(scope="module")
def installed(built: Built, once: Once) -> pathlib.Path:
    """Return the programs of an environment that has the wheel, and what it asks for, alone."""

    def install(folder: pathlib.Path) -> None:
        venv.create(folder, symlinks=True)
        pip(folder, "install", built.wheel)

    return once("installed", install) / "bin"


def pip(environment: pathlib.Path, *command: str | os.PathLike[str]) -> str:
    """Run this environment's pip on another."""
    of = ("--quiet", "--python", environment / "bin" / "python")
    return run(sys.executable, "-m", "pip", *of, *command, cwd=environment)


@pytest.fixture
def site(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def test_the_sdist_has_every_source(built: Built) -> None:
    """Package, tests, examples and guides; and what says how they go together."""
    assert {"README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in", "pyproject.toml"} <= built.in_sdist
    assert built.sources - built.in_sdist == set()
    assert {name.partition("/")[0] for name in built.sources} == set(_CARRIED)


def test_the_sdist_has_nothing_else(built: Built) -> None:
    """No caches, no databases, nothing of the machine that built it."""
    extra = {name for name in built.in_sdist - built.sources if "/" in name and ".egg-info/" not in name}
    assert extra == set()


def test_the_wheel_has_the_package_and_nothing_else(built: Built) -> None:
    """Its types and static files too; no tests or examples in the site-packages of others."""
    ours = {name for name in built.in_wheel if ".dist-info/" not in name}
    assert ours == {name for name in built.sources if name.startswith("flask_jobber/")}
    assert {"flask_jobber/py.typed", "flask_jobber/api/static/jobber.js"} <= ours


def test_the_metadata_says_what_the_project_says(built: Built) -> None:
    """Name, version, Python, licence, readme and every extra."""
    metadata, project = built.metadata, PROJECT["project"]
    assert (metadata["Name"], metadata["Version"]) == (project["name"], project["version"])
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert str(metadata.get_payload()).strip() == (ROOT / "README.md").read_text().strip()
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])


def test_the_wheel_works_alone(built: Built, installed: pathlib.Path, site: pathlib.Path) -> None:
    """In an empty environment: it imports, and serves the browser its client."""
    where, size = run(installed / "python", "-W", "error", "-c", LOOK, cwd=site).splitlines()
    assert pathlib.Path(where).is_relative_to(installed.parent)
    assert int(size) == (built.source / "flask_jobber/api/static/jobber.js").stat().st_size


def test_its_commands_work_alone(installed: pathlib.Path, site: pathlib.Path) -> None:
    """``flask jobber`` needs nothing of what its developers use."""
    assert run(installed / "flask", "--app", "app", "jobber", "tidy", cwd=site) == (
        "jobber: 0 processed, 0 expired, 0 pruned\n"
    )
    assert "process" in run(installed / "flask", "--app", "app", "jobber", "--help", cwd=site)


def test_it_brings_no_extra_and_no_tool(installed: pathlib.Path) -> None:
    """What is optional is not installed unasked."""
    listed = pip(installed.parent, "list", "--format", "freeze")
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    optional = {name for wanted in requirements("optional-dependencies") for name in [wanted.name.lower()]}
    assert names & (optional - {"flask", "flask-jobber"}) == set()


def requirements(part: str | None = None) -> list[Requirement]:
    """Return the requirements of the project, or those of its extras."""
    project = PROJECT["project"]
    optional = [text for texts in project["optional-dependencies"].values() for text in texts]
    texts = optional if part else [*PROJECT["build-system"]["requires"], *project["dependencies"], *optional]
    return [Requirement(text) for text in texts]


def test_there_are_lower_bounds_and_no_others() -> None:
    """A library that caps its dependencies breaks apps which need newer ones."""
    for wanted in requirements():
        operators = [specifier.operator for specifier in wanted.specifier]
        assert operators == ([] if wanted.name == "flask-jobber" else [">="]), str(wanted)


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_brings_what_it_names(extra: str) -> None:
    """An extra is there for one purpose."""
    wanted = {Requirement(text).name for text in PROJECT["project"]["optional-dependencies"][extra]}
    assert wanted >= EXTRAS[extra]


def test_the_guide_to_the_extras_is_complete() -> None:
    """The README names each that is for users."""
    install = re.findall(r"## Install\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert {extra for extra in EXTRAS if f"`{extra}`" not in install} == set()
