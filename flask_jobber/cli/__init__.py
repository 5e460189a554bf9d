"""``flask jobber …``"""

from __future__ import annotations

from . import clear, jobs, upkeep, work  # noqa: F401  they add their commands to the group
from .root import add_commands, group

__all__ = ["add_commands", "group"]
