"""What the system says of the memory of a process."""

from __future__ import annotations

import pathlib


def size(pid: int) -> dict[str, float]:
    """Return how large it is now, in MiB: ``Rss``, ``Pss`` and others."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {name.rstrip(":"): int(kilobytes) / 1024 for name, kilobytes, _ in fields}


def peak(pid: int) -> int:
    """Return how large it has ever been, in KiB."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
