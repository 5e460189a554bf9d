"""The options that all commands of workers share, and what they come to."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import typing as t

import click

from ..core.payload import NODE, check_name
from ..errors import Invalid, SetupError
from .feed import Supply
from .plan import Orders
from .processes import EX_CONFIG, Supervisor
from .status import Status
from .worker import PARENT, Worker

F = t.TypeVar("F", bound=t.Callable[..., t.Any])


def _split(context: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Return names with commas between them."""
    try:
        names = None if value is None else [check_name("name", name.strip()) for name in value.split(",")]
    except Invalid as error:
        raise click.BadParameter(f"{value!r} is not names with commas between them") from error
    return None if names is None else tuple(dict.fromkeys(names))


def _check_node(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not NODE.fullmatch(value):
        raise click.BadParameter(f"it matches {NODE.pattern}")
    return value


_WHAT = (
    click.option(
        "--name",
        callback=_check_node,
        help="Its name. What it held before a crash it takes up again: no two may have the same."
        " Otherwise the machine's, with the process's number.",
    ),
    click.option("--types", metavar="NAME,…", callback=_split, help="Only jobs of these types."),
    click.option("--queues", metavar="NAME,…", callback=_split, help="Only jobs of these queues."),
    click.option("--min-priority", type=int, help="Only jobs of this priority or higher."),
    click.option("--max-priority", type=int, help="Only jobs of this priority or lower."),
    click.option(
        "--concurrency", type=click.IntRange(1), default=10, show_default=True, help="Jobs at a time."
    ),
)
_HOW_LONG = (
    click.option(
        "--processes",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Workers, each in a process of its own, which is started again when it ends.",
    ),
    click.option(
        "--max-jobs", type=click.IntRange(1), help="Leave after so many, for a supervisor to start it again."
    ),
    click.option("--burst", is_flag=True, help="Leave when there is nothing left to do."),
)


def what(command: F) -> F:
    """Add the options that say which jobs a worker does."""
    return functools.reduce(lambda command, option: option(command), reversed(_WHAT), command)


def options(command: F) -> F:
    """Add those, and the ones that say for how long it works."""
    return what(functools.reduce(lambda command, option: option(command), reversed(_HOW_LONG), command))


class _Misconfigured(click.ClickException):
    exit_code = EX_CONFIG


def run(
    supplies: t.Callable[[str], list[Supply]], *, name: str | None, processes: int = 1, **orders: t.Any
) -> t.NoReturn:
    """Run a worker, or several, by the options; leave with its code.

    :param supplies: makes its sources, given its name.
    """
    name = name or f"{socket.gethostname()[:48]}-{os.getpid()}"
    _log()
    if processes > 1:
        sys.exit(Supervisor(name, processes, ends=orders["burst"]).run())
    try:
        made = supplies(name)
        plan = Orders(**orders)
        # Of several, each would overwrite the line of the others.
        status = (
            Status.silent() if PARENT in os.environ else Status.of_terminal(sys.stderr, _total(made, plan))
        )
        code = Worker(made, plan, status=status).run()
    except SetupError as error:
        raise _Misconfigured(str(error)) from error
    sys.exit(code)


def _log() -> None:
    """Write what the package says to the standard error, unless the app has said where."""
    logger = logging.getLogger("flask_jobber")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _total(supplies: list[Supply], orders: Orders) -> int | None:
    """Return how many jobs there are to do, when that is known."""
    if not orders.burst or not sys.stderr.isatty():
        return None
    counts = [supply.source.waiting(orders.wish(supply.handlers.types)) for supply in supplies]
    total = None if None in counts else sum(count or 0 for count in counts)
    return total if total is None or orders.max_jobs is None else min(total, orders.max_jobs)
