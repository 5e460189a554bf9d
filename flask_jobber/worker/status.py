"""What a worker shows of itself: a line that changes in a terminal, nothing but the log elsewhere."""

from __future__ import annotations

import shutil
import time
import typing as t

from .plan import Counts

_BAR = 24


class Status:
    """A line with the jobs done, failed and running, and a bar when the number to do is known.

    :param stream: where to show it; ``None`` shows nothing.
    :param total: how many jobs there are to do.
    """

    def __init__(self, stream: t.TextIO | None, total: int | None = None) -> None:
        self._stream = stream
        self._total = total
        self._began = time.monotonic()
        self._line = ""

    @classmethod
    def silent(cls) -> Status:
        """Return one that shows nothing."""
        return cls(None)

    @classmethod
    def of_terminal(cls, stream: t.TextIO, total: int | None = None) -> Status:
        """Return one that shows itself if the stream is a terminal."""
        return cls(stream if stream.isatty() else None, total)

    def show(self, counts: Counts, running: int) -> None:
        """Show the present state."""
        if self._stream is None:
            return
        width = shutil.get_terminal_size().columns - 1
        line = self.line(counts, running)[:width]
        if line != self._line:
            self._stream.write("\r" + line.ljust(len(self._line)))
            self._stream.flush()
            self._line = line

    def line(self, counts: Counts, running: int) -> str:
        """Return the line."""
        seconds = max(time.monotonic() - self._began, 0.001)
        said = (
            f"{counts.succeeded} done, {counts.failed} failed, {counts.done / seconds:.1f}/s,"
            f" {running} running"
        )
        return said if self._total is None else f"{self._bar(counts.done)} {said}"

    def _bar(self, done: int) -> str:
        total = max(self._total or 0, done, 1)
        filled = _BAR * done // total
        return f"[{'#' * filled}{'.' * (_BAR - filled)}] {done}/{total}"

    def close(self, counts: Counts) -> None:
        """End the line."""
        self.show(counts, 0)
        if self._stream is not None:
            self._stream.write("\n")
            self._stream.flush()
