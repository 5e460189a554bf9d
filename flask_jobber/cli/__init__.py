"""``flask jobber …``"""

from __future__ import annotations

from . import (  # noqa: F401  they add their commands to the group
    clear,
    hire,
    jobs,
    lockers,
    queues,
    upkeep,
    work,
    worker_file,
    workers,
)
from .root import add_commands, group

__all__ = ["add_commands", "group"]
