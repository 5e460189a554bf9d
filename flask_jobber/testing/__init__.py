"""Helpers for the tests of an app; they need no test runner and no extra of this package."""

from __future__ import annotations

from .client import LoggedIn, Refusal, login
from .doing import Drained, ProcessorBroke, drain, inline
from .source import FakeSource
from .travel import travel

__all__ = [
    "Drained",
    "FakeSource",
    "LoggedIn",
    "ProcessorBroke",
    "Refusal",
    "drain",
    "inline",
    "login",
    "travel",
]
