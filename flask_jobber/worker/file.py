"""The file of a worker: what it is to do and with what it logs in, in TOML."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
import typing as t

import click

#: The keys, each with the name of the option that it stands for and the types it may have.
KEYS: dict[str, tuple[str, tuple[type, ...]]] = {
    "handlers": ("handlers", (str,)),
    "server": ("servers", (str, list)),
    "token_url": ("token_url", (str,)),
    "client_id": ("client_id", (str,)),
    "client_secret": ("client_secret", (str,)),
    "token": ("token", (str,)),
    "name": ("name", (str,)),
    "types": ("types", (str, list)),
    "queues": ("queues", (str, list)),
    "min_priority": ("min_priority", (int,)),
    "max_priority": ("max_priority", (int,)),
    "concurrency": ("concurrency", (int,)),
    "processes": ("processes", (int,)),
    "max_jobs": ("max_jobs", (int,)),
    "burst": ("burst", (bool,)),
}
_TOLD = {str: "a text", list: "a list of texts", int: "a whole number", bool: "true or false"}
_SECRET = ("client_secret", "token")
# Read by everybody, or written by others than its owner: whoever writes it chooses the code.
_OPEN = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


def load(context: click.Context, param: click.Parameter, path: str | None) -> str | None:
    """Take the file's values as defaults: options and the environment go before them.

    :raises click.BadParameter: for a file that is none, or whose secret is open to others.
    """
    if path is not None:
        values = _read(path)
        context.default_map = {**(context.default_map or {}), **values}
    return path


def _read(path: str) -> dict[str, t.Any]:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            said = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}") from error
    if os.name == "posix" and mode & _OPEN and any(key in said for key in _SECRET):
        raise click.BadParameter(f"{path} holds a secret and is open to others: chmod 600 {path}")
    return dict(_value(path, key, value) for key, value in said.items())


def _value(path: str, key: str, value: t.Any) -> tuple[str, t.Any]:
    """Return a value by the name of its option, in the form that the option takes."""
    if key not in KEYS:
        [near] = difflib.get_close_matches(key, KEYS, n=1, cutoff=0)
        raise click.BadParameter(f"{path}: there is no {key!r}; did you mean {near!r}?")
    name, kinds = KEYS[key]
    right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not right or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
        raise click.BadParameter(f"{path}: {key} is {' or '.join(_TOLD[kind] for kind in kinds)}")
    if name == "servers":
        return name, [value] if isinstance(value, str) else value
    return name, ",".join(value) if isinstance(value, list) else value
