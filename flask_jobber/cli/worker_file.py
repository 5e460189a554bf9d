"""``flask jobber worker config``: the file with which a worker runs on another machine."""

from __future__ import annotations

import json
import os
import tempfile
import typing as t
from urllib.parse import urlsplit

import click
from flask import Blueprint, current_app

from . import told
from .accounts import change, of_one, the_workers
from .workers import worker

if t.TYPE_CHECKING:
    from ..accounts import Workers

_LOCAL = "http://127.0.0.1:5000"
_HEAD = "# For {name}: jobber-worker -c {file}. It holds a secret: keep it to yourself."


def _check_url(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    parts = urlsplit(value or _LOCAL)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise click.BadParameter(f"{value!r} is no address such as https://app.example")
    return _check_text(context, param, value)


def _check_text(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.isprintable():
        raise click.BadParameter(f"{value!r} holds control characters")
    return value


def _check_output(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    # A file takes its place: of a device or a link (/dev/stdout is one) nothing would be left.
    if value is not None and os.path.lexists(value) and (os.path.islink(value) or not os.path.isfile(value)):
        raise click.BadParameter(f"{value} is no ordinary file; without -o it is written to the output")
    return value


@worker.command()
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    callback=_check_output,
    help="Write it there, for its owner's eyes only (mode 0600).",
)
@click.option("--url", callback=_check_url, help="The app's address from outside: https://app.example.")
@click.option("--handlers", metavar="MODULE:HANDLERS", callback=_check_text, help="What it is to run.")
@of_one
def config(
    worker_name: str,
    output: str | None,
    url: str | None,
    handlers: str | None,
    as_json: bool,
    name: str | None,
) -> None:
    """Write all that a worker needs, a secret of its own among it; those of before stay good."""
    workers = the_workers(name)
    facts = _addresses(workers, _site(url)) | ({"handlers": handlers} if handlers else {})
    written = list[str]()

    def make() -> dict[str, str]:
        credentials = workers.add_secret(worker_name)
        said = facts | {"client_id": credentials.client_id, "client_secret": credentials.client_secret}
        if output is not None:
            written.append(_write_beside(output, _toml(worker_name, output, said)))
        return said

    try:
        said = change(workers, make)  # the secret is good before anything can find it in the file
        while written:
            os.replace(written[0], t.cast(str, output))
            written.clear()
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror}") from error
    finally:
        for path in written:
            os.unlink(path)
    if output is None:
        click.echo(told.document(said) if as_json else _toml(worker_name, "FILE", said))
    else:
        click.echo(told.document({"name": worker_name, "file": output}) if as_json else f"{output}: written")


def _site(url: str | None) -> str:
    """Return the app's address from outside: what is said, what the app is set to, or a guess."""
    if url is not None:
        return url
    app_config = current_app.config
    if app_config["SERVER_NAME"]:
        root = (app_config["APPLICATION_ROOT"] or "/").rstrip("/")
        return f"{app_config['PREFERRED_URL_SCHEME']}://{app_config['SERVER_NAME']}{root}"
    click.echo(f"The app does not say where it is (SERVER_NAME): taken for {_LOCAL}; say --url.", err=True)
    return _LOCAL


def _addresses(workers: Workers, site: str) -> dict[str, str]:
    """Return where a worker finds its jobs and its tokens."""
    parts = urlsplit(site)
    adapter = current_app.url_map.bind(parts.netloc, parts.path or "/", url_scheme=parts.scheme)

    def address(blueprint: Blueprint, endpoint: str) -> str:
        for name, known in current_app.blueprints.items():
            if known is blueprint:
                return str(adapter.build(f"{name}.{endpoint}", force_external=True))
        raise click.ClickException(f"Register the blueprint {blueprint.name!r} on the app.")

    jobs = address(workers.jobber.blueprint, "list_jobs")
    return {"server": jobs.removesuffix("/jobs"), "token_url": address(workers.blueprint, "token")}


def _toml(name: str, file: str, said: dict[str, str]) -> str:
    # Texts without control characters are the same in TOML as in JSON.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in said.items()]
    head = _HEAD.format(name=name, file=file if file.isprintable() else "FILE")
    return "\n".join([head, *lines])


def _write_beside(path: str, text: str) -> str:
    """Write a file of mode 0600 in the folder of another, to take its place; return its path."""
    folder, name = os.path.split(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name[:100]}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    return temporary
