"""``jobber-worker``: a worker of any server."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import typing as t
from contextlib import nullcontext

import click

from ..client import JobberClient
from .child import Context
from .crew import Place
from .feed import Supply
from .handlers import Handlers
from .http import HttpSource
from .options import options, run


def load(path: str) -> Handlers:
    """Return the handlers at ``module:name``; the name may have dots.

    :raises click.BadParameter: when there are none.
    """
    module, _, name = path.partition(":")
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


@click.command()
@click.argument("handlers", metavar="MODULE:HANDLERS")
@click.option(
    "--server",
    "servers",
    multiple=True,
    required=True,
    metavar="URL",
    help="A Jobber's address, prefix included; may be said several times.",
)
@click.option(
    "--token",
    envvar="JOBBER_TOKEN",
    help="The bearer token of its login. Better said by JOBBER_TOKEN: who lists processes sees options.",
)
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header of every request.")
@options
def main(
    handlers: str, servers: tuple[str, ...], token: str | None, headers: tuple[str, ...], **how: t.Any
) -> None:
    """Do the jobs of one or more servers, with the handlers of a module."""
    place = Place(loader=functools.partial(load_in_process, handlers))
    known = load(handlers)
    said = dict(_header(header) for header in headers)

    def supplies(name: str) -> list[Supply]:
        return [Supply(_source(url, token, said, name), known, place) for url in servers]

    run(supplies, **how)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise click.BadParameter(f"{text!r} is no NAME:VALUE", param_hint="--header")
    return name.strip(), value.strip()


def _source(url: str, token: str | None, headers: dict[str, str], name: str) -> HttpSource:
    try:
        client = JobberClient(url, token, headers=headers, node=name, patience=0)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server") from error
    return HttpSource(client, name, url)
