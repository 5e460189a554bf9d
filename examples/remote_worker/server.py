"""One server, in a process of its own: ``python -m examples.remote_worker.server DATABASE``"""

from __future__ import annotations

import logging
import sys

from werkzeug.serving import make_server

from .app import create_app


def main(database: str) -> None:
    """Serve at any free port until the process is ended; print the address."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = make_server("127.0.0.1", 0, create_app(database), threaded=True)
    print(f"http://127.0.0.1:{server.port}/jobber", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
