"""What may know what: imports point down only."""

from __future__ import annotations

import ast
import io
import itertools
import pathlib
import subprocess
import sys
import tokenize
import typing as t

import flask_jobber

PACKAGE = pathlib.Path(flask_jobber.__file__).parent
MOST_LINES = 400
#: From the top; a part may import those below it, and others of its own.
LAYERS = (
    ("__init__",),
    (
        "extension",
        "producer",
        "owners",
        "schedules",
        "attachments",
        "batches",
        "limits",
        "trust",
        "cli",
        "testing",
    ),
    ("dashboard", "accounts", "worker", "delayed"),
    ("api",),
    ("wakeup",),
    ("core",),
    ("config", "hooks", "signals"),
    ("errors", "commits"),
)
#: Imports nothing of the package, and nothing below imports it.
ALONE = "client"
#: What the core may use besides the standard library. Not Flask, nor what builds on it.
LIBRARIES_OF_THE_CORE = {"sqlalchemy", "blinker", "marshmallow", "croniter", "fsspec"}


class Import(t.NamedTuple):
    """One import: who imports what, and whether for its annotations alone."""

    module: str
    name: str
    for_types: bool

    @property
    def is_ours(self) -> bool:
        return self.name.partition(".")[0] == "flask_jobber"


def modules() -> dict[str, pathlib.Path]:
    """Return the modules of the package by their full names."""
    return {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _name(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str) -> t.Iterator[Import]:
    """Yield what a module imports, wherever in it the import stands."""
    path = modules()[module]
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        for name in _names(node, package):
            yield Import(module, name, id(node) in for_types)


def _names(node: ast.AST, package: str) -> t.Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])])
        # ``from . import x`` may import a module; ``from .x import y`` imports one.
        for alias in node.names:
            yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base


def all_imports() -> list[Import]:
    return [found for module in modules() for found in imports(module)]


def part(module: str) -> str:
    """Return the part of the house in which a module lives."""
    return [*module.split("."), "__init__"][1]


def layer(module: str) -> int:
    """Return how far down a module is."""
    for number, parts in enumerate(LAYERS):
        if part(module) in parts:
            return number
    raise AssertionError(f"{module} has no place in LAYERS")


def code_lines(path: pathlib.Path) -> int:
    """Count the lines of a file that are neither blank nor comment nor docstring."""
    text = path.read_text()
    told = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    empty = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    }  # fmt: skip
    written = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in empty
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(written - told)


def run(code: str) -> str:
    """Run code in a fresh interpreter; return what it printed."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_point_down() -> None:
    """No part of the house knows one above it, but to name its types."""
    wrong = [
        found
        for found in all_imports()
        if found.is_ours
        and not found.for_types
        and ALONE not in (part(found.module), part(found.name))
        and layer(found.name) < layer(found.module)
    ]
    assert wrong == []


def test_the_lower_half_knows_nothing_above_it_by_any_means() -> None:
    """Not even the names of its types."""
    core = layer("flask_jobber.core")
    lower = [found for found in all_imports() if part(found.module) != ALONE and layer(found.module) >= core]
    assert [found for found in lower if found.is_ours and layer(found.name) < layer(found.module)] == []


def test_no_import_goes_round() -> None:
    """Modules can be read in an order in which each needs only those before it."""
    needs = {
        module: {found.name for found in imports(module) if found.is_ours and not found.for_types} - {module}
        for module in modules()
    }
    while ready := {module for module, needed in needs.items() if not needed & needs.keys()}:
        needs = {module: needed for module, needed in needs.items() if module not in ready}
    assert needs == {}


def test_the_core_needs_no_flask() -> None:
    """Neither itself nor through anything it imports."""
    reached = {module for module in modules() if part(module) == "core"}
    while more := {f.name for module in reached for f in imports(module) if f.is_ours} - reached:
        reached |= more
    foreign = {
        found.name.partition(".")[0]
        for module in reached
        for found in imports(module)
        if not found.is_ours and found.name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert foreign <= LIBRARIES_OF_THE_CORE


def test_the_core_is_importable_without_flask() -> None:
    """In an interpreter that has no Flask, past the package's own front door."""
    names = [module for module in modules() if part(module) == "core"]
    absent = ("flask", "werkzeug", "flask_login", "flask_sqlalchemy", "webargs", "apispec", "click")
    printed = run(
        f"""
import importlib, sys, types
for name in {absent!r}:
    sys.modules[name] = None
package = types.ModuleType("flask_jobber")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["flask_jobber"] = package
for name in {names!r}:
    importlib.import_module(name)
    print(name)
"""
    )
    assert printed.split() == names


def test_the_client_stands_alone() -> None:
    """A worker's machine needs it and its HTTP library; nothing else of the package does."""
    its_own = [found for found in all_imports() if part(found.module) == ALONE]
    ours = {part(found.name) for found in its_own if found.is_ours}
    foreign = {found.name.partition(".")[0] for found in its_own if not found.is_ours}
    assert ours <= {ALONE}
    assert foreign - sys.stdlib_module_names == {"httpx2"}


def test_the_server_does_without_the_client() -> None:
    """What hands jobs out never asks itself for one; a worker may be told to."""
    users = {f.module for f in all_imports() if f.is_ours and part(f.name) == ALONE != part(f.module)}
    assert users == {f"flask_jobber.worker.{name}" for name in ("http", "scout", "command")}


def test_a_missing_extra_says_what_to_install() -> None:
    """And only where it is needed: the package itself does without."""
    printed = run(
        """
import sys
sys.modules["httpx2"] = sys.modules["anyio"] = None
import flask_jobber
try:
    import flask_jobber.client
except ImportError as error:
    print(error)
"""
    )
    assert "flask-jobber[worker]" in printed


def test_accounts_say_what_they_need() -> None:
    """By the name of the extra; the command line does without."""
    printed = run(
        """
import sys
sys.modules["authlib"] = None
import flask_jobber.cli
try:
    import flask_jobber.accounts
except ImportError as error:
    print(error)
"""
    )
    assert "flask-jobber[oauth]" in printed


def test_the_package_needs_no_extra() -> None:
    """Each is imported where it is used, or never."""
    absent = (
        "httpx2",
        "anyio",
        "croniter",
        "psycopg",
        "pymysql",
        "asgiref",
        "alembic",
        "authlib",
        "flask_wtf",
        "fsspec",
        "redis",
    )
    without = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))"
    assert "Jobber" in run(f"{without}; import flask_jobber; print(flask_jobber.Jobber)")


def test_every_name_of_the_package_is_there_and_no_other() -> None:
    """``__init__`` holds the public names and nothing else."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert {type(node) for node in tree.body} == {ast.Expr, ast.ImportFrom, ast.Assign}
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(flask_jobber.__all__) == sorted(imported - {"annotations"})


def test_files_are_short() -> None:
    """A file holds one thing; blank lines, comments and docstrings are not counted."""
    lengths = {path.relative_to(PACKAGE).as_posix(): code_lines(path) for path in modules().values()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_nothing_is_called_utils() -> None:
    """A file's name says what it is about."""
    words = itertools.chain.from_iterable(module.split(".") for module in modules())
    assert {"utils", "util", "helpers", "common", "misc"}.isdisjoint(words)
