"""The command: a server, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import tempfile

from werkzeug.serving import make_server

from .app import create_app
from .digits import read_digits


def main() -> int | str:
    options = read_options()
    # The end by a signal is that by Ctrl-C: the temporary database goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory(prefix="annotate-") as folder:
            serve(options, options.db or f"sqlite:///{folder}/annotate.db")
    except ImportError as error:
        return str(error)
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.annotate", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="any free one otherwise")
    parser.add_argument("--images", type=int, default=200, help="of 1,797 (%(default)s)")
    parser.add_argument("--db", metavar="URL", help="a database to keep; a temporary SQLite file otherwise")
    return parser.parse_args()


def serve(options: argparse.Namespace, database: str) -> None:
    app = create_app(database, read_digits(options.images))
    server = make_server(options.host, options.port, app, threaded=True)
    print(f"Open http://{options.host}:{server.port} in a browser, and again as somebody else.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
