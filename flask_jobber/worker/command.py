"""``jobber-worker``: a worker of any server."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import typing as t
from contextlib import nullcontext
from urllib.parse import urlsplit

import click

from ..client import ClientCredentials, JobberClient
from . import file
from .child import Context
from .crew import Place
from .feed import Supply
from .handlers import Handlers
from .http import HttpSource
from .options import options, run

# Of a header. (RFC 9110)
_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


def load(path: str) -> Handlers:
    """Return the handlers at ``module:name``; the name may have dots.

    :raises click.BadParameter: when there are none.
    """
    module, _, name = path.partition(":")
    if not module or module.startswith("."):
        raise click.BadParameter(f"{path!r} is no MODULE:HANDLERS")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = functools.reduce(getattr, (name or "handlers").split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"{path}: {error}") from error
    if not isinstance(found, Handlers):
        raise click.BadParameter(f"{path} is no Handlers, but {found!r}")
    return found


def load_in_process(path: str) -> tuple[Handlers, Context]:
    """Return the handlers, and what they run in, in a process of their own."""
    return load(path), nullcontext


@click.command(context_settings={"auto_envvar_prefix": "JOBBER"})
@click.argument("handlers", metavar="[MODULE:HANDLERS]", envvar="JOBBER_HANDLERS", required=False)
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=file.load,
    help="A file of the values of these options, in TOML. The environment (JOBBER_SERVER, …) goes before it.",
)
@click.option(
    "--server",
    "servers",
    envvar="JOBBER_SERVER",
    multiple=True,
    metavar="URL",
    help="A Jobber's address, prefix included; may be said several times.",
)
@click.option(
    "--token",
    help="The bearer token of its login. Better said by JOBBER_TOKEN: who lists processes sees options.",
)
@click.option("--token-url", metavar="URL", help="Where a worker with an account gets its tokens.")
@click.option("--client-id", help="The account's, with JOBBER_CLIENT_SECRET.")
@click.option("--client-secret", hidden=True)
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header of every request.")
@options
def main(
    handlers: str | None,
    servers: tuple[str, ...],
    token: str | None,
    token_url: str | None,
    client_id: str | None,
    client_secret: str | None,
    headers: tuple[str, ...],
    **how: t.Any,
) -> None:
    """Do the jobs of one or more servers, with the handlers of a module."""
    if not handlers or not servers:
        missing = "handlers: say MODULE:HANDLERS" if not handlers else "a server: say --server"
        raise click.UsageError(f"It needs {missing}, or let a file say so (-c).")
    auth = token or _account(servers, token_url, client_id, client_secret)
    place = Place(loader=functools.partial(load_in_process, handlers))
    known = load(handlers)
    said = dict(_header(header) for header in headers)
    if token is not None and not _VALUE.fullmatch(token):  # it is not for anyone to read, nor in a log
        raise click.BadParameter("no header can hold it: is there a line's end in it?", param_hint="--token")

    def supplies(name: str) -> list[Supply]:
        return [Supply(_source(url, auth, said, name), known, place) for url in servers]

    run(supplies, **how)


def _account(servers: t.Sequence[str], *said: str | None) -> ClientCredentials | None:
    """Return the account that a worker logs in with, if it is told one.

    :raises click.UsageError: when something of it is missing, or there are servers of several
        sites: a token of one is not to be seen by another.
    """
    names = ("token_url", "client_id", "client_secret")
    missing = [name for name, value in zip(names, said, strict=True) if not value]
    if len(missing) == len(names):
        return None
    if missing:
        raise click.UsageError(f"An account needs {', '.join(names)}: say {' and '.join(missing)} too.")
    token_url, client_id, client_secret = t.cast(tuple[str, str, str], said)
    sites = {urlsplit(url)[:2] for url in (*servers, token_url)}
    if len(servers) > 1 and len(sites) > 1:
        raise click.UsageError(f"The tokens of {token_url} are for no other site: run a worker for each.")
    try:
        return ClientCredentials(token_url, client_id, client_secret)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--token-url") from error


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _NAME.fullmatch(name.strip()) or not _VALUE.fullmatch(value.strip()):
        raise click.BadParameter(f"{text!r} is no NAME:VALUE", param_hint="--header")
    return name.strip(), value.strip()


def _source(url: str, auth: str | ClientCredentials | None, headers: dict[str, str], name: str) -> HttpSource:
    try:
        client = JobberClient(url, auth, headers=headers, node=name, patience=0)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server") from error
    return HttpSource(client, name, url)
