"""The command: a server, some script clients, a progress bar, and the picture checked."""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import typing as t
from concurrent.futures import ProcessPoolExecutor

import sqlalchemy as sa
from flask import Flask
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text
from werkzeug.serving import make_server

from flask_jobber import State, job_failed, job_succeeded

from . import paint
from .app import create_app
from .jobs import commission, jobber
from .mandelbrot import counts
from .models import Picture, Tile, db

# A flower of spirals, ninety million times larger than life.
PLACE = {"real": -0.1607013361, "imag": 1.0375664988, "width": 4e-8}
NAMES = ("ada", "grace", "emmy", "sofia")
# New painters check each other: it takes two logins.
LEAST_PAINTERS = 2

Process = subprocess.Popen[str]
console = Console(highlight=False, soft_wrap=True)


class Failure(Exception):
    """The picture did not come about, or is not the right one."""


def main() -> int:
    options = read_options()
    # The end by a signal is that by Ctrl-C: the clients stop, and the temporary database goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory(prefix="mosaic-") as folder:
            run(options, options.db or f"sqlite:///{folder}/mosaic.db")
    except Failure as failure:
        console.print(f"[bold red]{failure}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.mosaic", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="keep serving when the picture is finished")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="any free one otherwise")
    parser.add_argument(
        "--clients", type=int, default=2, help="script clients (%(default)s); two check each other"
    )
    parser.add_argument("--columns", type=int, default=12, help="tiles side by side (%(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="tiles one below the other (%(default)s)")
    parser.add_argument("--tile", type=int, default=60, help="pixels along a tile's side (%(default)s)")
    parser.add_argument("--db", metavar="URL", help="a database to keep; a temporary SQLite file otherwise")
    parser.add_argument("--output", type=pathlib.Path, default="mosaic.png", help="%(default)s")
    return parser.parse_args()


def run(options: argparse.Namespace, database: str) -> None:
    """Make the picture, and go on serving if that is wanted."""
    app = create_app(database)
    with serving(app, options.host, options.port) as url:
        with app.app_context():
            make(options, url)
        if options.serve:
            console.print(f"Serving at [bold]{url}[/], until Ctrl-C.")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


def make(options: argparse.Namespace, url: str) -> None:
    """Have the picture painted, and check it."""
    picture = shared_picture(options.columns, options.rows, options.tile)
    describe(picture, url, options.clients)
    with progress() as bars:
        with clients(url, options.clients) as processes:
            watch(picture, processes, bars)
        check(picture, options.output, bars)
    sign(picture, options.output)


@contextlib.contextmanager
def serving(app: Flask, host: str, port: int) -> t.Iterator[str]:
    """Serve in a thread; give the address."""
    server = make_server(host, port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{host}:{server.port}"
    finally:
        server.shutdown()
        thread.join()


def shared_picture(columns: int, rows: int, tile: int) -> Picture:
    """Return everybody's picture, which a database of an earlier run may hold already."""
    picture = Picture.around(**PLACE, columns=columns, rows=rows, tile=tile)
    same = {"step": picture.step, "columns": columns, "rows": rows, "tile": tile}
    found = db.session.scalar(sa.select(Picture).filter_by(user_id=None, **same))
    if found is None:
        commission(picture)
        db.session.commit()
    return found or picture


def describe(picture: Picture, url: str, painters: int) -> None:
    width, height = picture.size
    console.print(
        f"The Mandelbrot set, magnified [bold]{picture.magnification:,.0f}[/] times:"
        f" {width} by {height} pixels in {len(picture.places)} tiles."
    )
    console.print(f"Open [bold]{url}[/] in a browser to paint too.")
    if painters < LEAST_PAINTERS:
        console.print("It takes two: what a new painter paints is painted by another too, and compared.")


@contextlib.contextmanager
def clients(url: str, number: int) -> t.Iterator[list[Process]]:
    """Start script clients, each with a login of its own; they end with the block."""
    processes = [start_client(url, NAMES[i % len(NAMES)]) for i in range(number)]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()  # a tile that it holds is free again when the lease ends
            process.communicate()


def start_client(url: str, name: str) -> Process:
    command = [sys.executable, "-m", "examples.mosaic.client", url, f"{name}-{secrets.token_hex(2)}"]
    # No proxy is between this machine and itself. Ctrl-C is for this process, which ends the others.
    environment = os.environ | {"NO_PROXY": "*"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment, process_group=0)
    print(secrets.token_urlsafe(), file=process.stdin, flush=True)
    return process


class Speed(ProgressColumn):
    """How many a second, and for how long."""

    def render(self, task: Task) -> Text:
        seconds = task.finished_time or task.elapsed or 0
        speed = task.completed / seconds if seconds else 0
        return Text(f"{speed:6.1f}/s {seconds:5.1f} s", style="dim")


def progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed())
    return Progress(*columns, console=console)


def watch(picture: Picture, processes: list[Process], bars: Progress) -> None:
    """Show the picture's progress until it is stitched, whoever paints it."""
    bar = bars.add_task("painting tiles", total=len(picture.places))
    bell = threading.Event()

    def ring(sender: object, **facts: t.Any) -> None:
        bell.set()

    # The server is a thread of this process: it hears of each tile, and of their batch.
    with job_succeeded.connected_to(ring, jobber), job_failed.connected_to(ring, jobber):
        for process in processes:
            threading.Thread(target=ring_at_end, args=(process, bell), daemon=True).start()
        follow(picture, processes, bars, bar, bell)


def ring_at_end(process: Process, bell: threading.Event) -> None:
    process.wait()
    bell.set()


def follow(
    picture: Picture, processes: list[Process], bars: Progress, bar: TaskID, bell: threading.Event
) -> None:
    enough = min(LEAST_PAINTERS, len(processes))
    while True:
        bell.clear()
        # Looked at first: a client may have painted the last tile before it ended.
        abandoned = sum(process.poll() is None for process in processes) < enough
        db.session.rollback()  # some databases show the same until a transaction ends
        batch = jobber.find_batch(picture.batch_id).progress()
        bars.update(bar, completed=batch.done)
        if batch.state is State.SUCCEEDED:
            return
        if batch.state in (State.FAILED, State.CANCELLED):
            raise Failure("The tiles could not be stitched.")
        if abandoned and batch.left:
            raise Failure("Script clients have ended before the picture was finished.")
        bell.wait()


def check(picture: Picture, path: pathlib.Path, bars: Progress) -> None:
    """Write the picture and compare it with a computation of every pixel in this place.

    :raises Failure: when they differ.
    """
    found = picture.pixels or b""
    paint.image(*picture.size, found).save(path)
    right = b"".join(compute(picture, bars))
    wrong = sum(found[i : i + 3] != right[i : i + 3] for i in range(0, len(right), 3))
    if wrong:
        raise Failure(f"{path}: {wrong:,} of {len(right) // 3:,} pixels differ from a direct computation.")


def compute(picture: Picture, bars: Progress) -> t.Iterator[bytes]:
    """Compute the picture directly, on all processors, row by row."""
    width, height = picture.size
    rows = [picture.part(0, y, width, 1) for y in range(height)]
    # Not forked: this process has threads. Ctrl-C is this process's to hear.
    spawn, ignore = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(mp_context=spawn, initializer=signal.signal, initargs=ignore) as pool:
        computed = pool.map(counts, rows, chunksize=4)
        for row in bars.track(computed, total=height, description="checking rows"):
            yield paint.colour(row, picture.floor)


def sign(picture: Picture, path: pathlib.Path) -> None:
    """Say who painted how much of what."""
    tiles = sa.func.count()
    by = sa.select(Tile.painter, tiles).where(Tile.picture_id == picture.id).group_by(Tile.painter)
    painters = ", ".join(f"{name} {number}" for name, number in db.session.execute(by.order_by(tiles.desc())))
    width, height = picture.size
    console.print(f"Tiles painted: {painters}.")
    console.print(f"[bold green]{path}[/]: all {width * height:,} pixels equal a direct computation.")


if __name__ == "__main__":
    sys.exit(main())
