"""The documentation says what is so, and all of it."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import typing as t

import click
import httpx2
import pytest

from flask_jobber import Jobber, signals
from flask_jobber.api.operation import OPERATIONS
from flask_jobber.api.problems import CODES
from flask_jobber.cli import group
from flask_jobber.config import PREFIX, Settings
from flask_jobber.worker.file import KEYS as WORKERS_KEYS

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
PROTOCOL = (ROOT / "docs" / "http.md").read_text()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
EVERYTHING = "\n".join(PAGES.values())

HOOKS = ("locker_name", "scope", "permission", "processor", "on_failure", "job_type")
# Methods of a Jobber that are no concern of an app's.
INTERNAL = {"store", "tidy_soon"}
SIGNALS = [name for name in vars(signals) if name.startswith("job_")]
SETTINGS = {f"{PREFIX}{field.name.upper()}": field.default for field in dataclasses.fields(Settings)}


class Block(t.NamedTuple):
    """A fenced block."""

    kind: str
    text: str
    #: Of its last line.
    line: int


def blocks(page: str, kind: str | None = None) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    all_ = [Block(m[1], m[2], page.count("\n", 0, m.end()) + 1) for m in found]
    return [block for block in all_ if kind in (None, block.kind)]


def table(page: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with a word."""
    (found,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n?)+)", page, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found.strip().splitlines()]


def plain(cell: str) -> str:
    return cell.strip("` ")


# -- the README's programs ----------------------------------------------------------------


class Call(t.NamedTuple):
    """A ``curl`` of the README and what it printed."""

    method: str
    url: httpx2.URL
    headers: dict[str, str]
    body: str | None
    output: str


def calls() -> list[Call]:
    """Return what the README's console shows."""
    (console,) = blocks(README, "console")
    shown = re.split(r"^\$ ", console.text, flags=re.MULTILINE)[1:]
    return [_call(*one.replace("\\\n", " ").partition("\n")[::2]) for one in shown]


def _call(command: str, output: str) -> Call:
    name, *words = shlex.split(command)
    assert name == "curl"
    curl = argparse.ArgumentParser()
    curl.add_argument("-X", dest="method")
    curl.add_argument("-H", dest="headers", action="append", default=[])
    curl.add_argument("-d", dest="body")
    curl.add_argument("url")
    said = curl.parse_args(words)
    headers = dict(header.split(": ", 1) for header in said.headers)
    method = said.method or ("GET" if said.body is None else "POST")
    return Call(method, httpx2.URL(said.url), headers, said.body, output.strip())


@pytest.fixture
def server(tmp_path: pathlib.Path) -> t.Iterator[httpx2.URL]:
    """The README's app, served as the README says."""
    (tmp_path / "app.py").write_text(blocks(README, "python")[0].text)
    command = [sys.executable, "-W", "error", "-m", "flask", "run", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _address(process)
        finally:
            process.terminate()
            process.communicate(timeout=10)


def _address(process: subprocess.Popen[str]) -> httpx2.URL:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"Running on (http://\S+)", line):
            return httpx2.URL(found[1])
    pytest.fail("".join(lines))


def settled(value: t.Any) -> t.Any:
    """Return a value without what differs from run to run."""
    if isinstance(value, dict):
        return {key: settled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [settled(inner) for inner in value]
    if isinstance(value, str):
        return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "(instant)", value)
    return value


def test_the_app_of_the_readme_answers_as_the_readme_says(server: httpx2.URL) -> None:
    """Each call, sent as it stands there, gets what stands below it."""
    assert len(calls()) >= 2
    for call in calls():
        url = call.url.copy_with(host=server.host, port=server.port)
        response = httpx2.request(call.method, url, headers=call.headers, content=call.body)
        assert response.is_success, response.text
        assert settled(response.json()) == settled(json.loads(call.output))


def test_the_readme_begins_with_what_one_wants_first() -> None:
    """Two commands, an app and its calls, all within sixty lines; the whole is short."""
    kinds = [block.kind for block in blocks(README)]
    assert kinds[:4] == ["sh", "sh", "python", "console"]
    assert blocks(README)[3].line <= 60
    assert len(README.splitlines()) <= 400


def test_the_second_command_of_the_readme_runs_the_tests() -> None:
    """It makes its environment, installs, and ends with pytest; CI runs this very block."""
    *before, last = blocks(README, "sh")[1].text.splitlines()
    assert "pytest" in last
    assert any("[dev]" in line for line in before)


@pytest.mark.parametrize("page", PAGES)
def test_python_in_the_documentation_compiles(page: str) -> None:
    """A block is a piece of a program, not an impression of one."""
    for block in blocks(PAGES[page], "python"):
        compile(textwrap.dedent(block.text), f"{page}:{block.line}", "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Each to a file that is there, and to a heading in it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        name, _, heading = target.partition("#")
        linked = (ROOT / page).parent / name if name else ROOT / page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            plain_ones = (re.sub(r"[^a-z0-9 -]", "", h.lower()) for h in headings)
            assert heading in [h.replace(" ", "-") for h in plain_ones]


# -- all that there is --------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default() -> None:
    """The table of the guide is the class of the settings."""
    told = {plain(key): ast.literal_eval(plain(default)) for key, default, *_ in table(GUIDE, "key")}
    assert told == SETTINGS


def test_every_setting_in_the_documentation_is_there() -> None:
    """A name with our prefix is a key that an app may set, or one of a worker's environment."""
    told = set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", EVERYTHING))
    told -= {f"{PREFIX}{key.upper()}" for key in WORKERS_KEYS}
    assert told <= SETTINGS.keys()


def commands(group: click.Group, prefix: str = "flask jobber") -> t.Iterator[tuple[str, click.Command]]:
    """Yield the commands of a group, those of the groups in it too, each with all its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def test_every_command_is_documented_and_the_other_way_round() -> None:
    """``flask jobber …``, each with its options."""
    assert set(re.findall(r"flask jobber ([a-z-]+)", EVERYTHING)) == set(group.commands)
    chapter = GUIDE.partition("## Command line")[2].partition("\n## ")[0]
    assert {name for name, _ in commands(group) if f"`{name}" not in chapter} == set()
    told = re.findall(r"`(flask jobber jobs [a-z-]+)", EVERYTHING)
    assert set(told) <= dict(commands(group)).keys()


def test_every_option_is_documented_and_the_other_way_round() -> None:
    """The guide's chapter names the options of the commands, and no others."""
    chapter = GUIDE.partition("## Command line")[2].partition("\n## ")[0]
    options = {option for _, command in commands(group) for p in command.params for option in p.opts}
    assert set(re.findall(r"--[a-z][a-z-]*", chapter)) == {o for o in options if o.startswith("--")}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook: str) -> None:
    """By the name with which an app registers it."""
    assert hasattr(Jobber, hook)
    assert f"jobber.{hook}" in GUIDE


def test_every_method_of_a_jobber_is_documented() -> None:
    """What an app may call, it can read of."""
    methods = {name for name, value in vars(Jobber).items() if callable(value) and not name.startswith("_")}
    assert {name for name in methods - INTERNAL if not re.search(rf"\b{name}\b", GUIDE)} == set()


def test_every_signal_is_documented_and_the_other_way_round() -> None:
    """The chapter lists them."""
    chapter = GUIDE.partition("## Signals")[2].partition("\n## ")[0]
    assert set(re.findall(r"\bjob_(?!id\b)\w+", chapter)) == set(SIGNALS)


def test_every_route_is_documented_and_the_other_way_round() -> None:
    """The table of the protocol is the table of the endpoints."""
    told = [_route(plain(call)) for call, *_ in table(PROTOCOL, "call")]
    assert sorted(told) == sorted(_route(f"{row.method} {row.rule}") for row in OPERATIONS)


def _route(call: str) -> str:
    return re.sub(r"<\w+>", "<>", call)


def test_every_error_code_is_documented_with_its_status_and_the_other_way_round() -> None:
    """The table of the protocol is the table of the problems."""
    told = {plain(code): int(status) for code, status, *_ in table(PROTOCOL, "code")}
    assert told == {code: problem.status for code, problem in CODES.items()}


def test_the_documentation_says_what_is_retryable() -> None:
    """Exactly the codes that may be sent again are called so."""
    told = {plain(code) for code, _, text in table(PROTOCOL, "code") if text.startswith("retryable")}
    assert told == {code for code, problem in CODES.items() if problem.retryable}
