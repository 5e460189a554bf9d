"""State machines of hypothesis, run against a world."""

from __future__ import annotations

import typing as t

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from support import World


def run_machine(
    machine: t.Callable[[World], RuleBasedStateMachine], world: World, on_sqlite: int, elsewhere: int
) -> None:
    """Run so many examples of thirty steps each; a server takes longer for one than SQLite."""
    is_sqlite = world.app.config["SQLALCHEMY_DATABASE_URI"].startswith("sqlite")
    run_state_machine_as_test(
        t.cast(type[RuleBasedStateMachine], lambda: machine(world)),
        settings=settings(
            max_examples=on_sqlite if is_sqlite else elsewhere,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
