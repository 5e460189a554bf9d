"""A program: put a file of so many bytes into a job and get it back, within so many bytes of memory.

It is the server and the client at once. Its arguments: the database, a folder, the size, the limit.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import sys
import threading
import typing as t

from werkzeug.serving import make_server

from flask_jobber.client import JobberClient
from support import PREFIX, World

_BLOCK = bytes(range(256)) * 4096  # 1 MiB


class Made:
    """A file of so many bytes that is nowhere: each block says where it is."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, length: int) -> bytes:
        block, within = divmod(self._at, len(_BLOCK))
        piece = (block.to_bytes(8) + _BLOCK[8:])[within : within + min(length, self._size - self._at)]
        self._at += len(piece)
        return piece


class Sink:
    """Takes what is written, and keeps its digest."""

    def __init__(self) -> None:
        self.truncate()

    def tell(self) -> int:
        return 0

    def seek(self, at: int) -> None:
        assert at == 0

    def truncate(self) -> None:
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.size += len(piece)


def main(url: str, folder: str, size: int, limit: int) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    threading.stack_size(1_048_576)  # a thread's whole stack counts as its data
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        bytearray(limit)
    except MemoryError:
        sys.stdout.write("limited\n")
    config: dict[str, t.Any] = {"JOBBER_ATTACHMENTS_URL": folder, "JOBBER_MAX_ATTACHMENT_BYTES": size}
    world = World(url, JOBBER_TIDY_SECONDS=0, **config)
    with world.app.app_context():
        world.db.create_all()
    server = make_server("127.0.0.1", 0, world.app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with JobberClient(f"http://127.0.0.1:{server.port}{PREFIX}", auth="ann", patience=0) as client:
        world.enqueue()
        [job] = client.claim()
        told = client.upload(job, "large.bin", t.cast(t.BinaryIO, Made(size)))
        sink = Sink()
        client.download(job, "large.bin", t.cast(t.BinaryIO, sink))
    assert (told.size, told.sha256) == (sink.size, sink.digest.hexdigest()) == (size, told.sha256)
    sys.stdout.write(f"stored {sum(entry.stat().st_size for entry in _files(folder))}\n")
    sys.stdout.write(f"at most {_most_memory()}\n")
    sys.stdout.flush()
    os._exit(0)


def _most_memory() -> int:
    """Return the most bytes ever resident; `ru_maxrss` would count the parent's, from before exec."""
    with open("/proc/self/status") as status:
        [most] = (line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(most) * 1024


def _files(folder: str) -> t.Iterator[os.DirEntry[str]]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(entry.path)
        else:
            yield entry


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
