"""Prefect's server, asked for the runs of a work pool as its workers ask it, without their library."""

from __future__ import annotations

import random
import typing as t

from .web import Connection

POOL = "pool"
# Runs are shown to all workers, who contend for them; the more are looked at, the less often.
LOOKED_AT = 50


class Client:
    def __init__(self, port: int) -> None:
        self._connection = Connection(port)

    def turn(self, held: list[str], wanted: int) -> list[str]:
        for run in held:
            assert self._set(run, "RUNNING")
            assert self._set(run, "COMPLETED")
        if not wanted:
            return []
        path = f"/api/work_pools/{POOL}/get_scheduled_flow_runs"
        runs = [each["flow_run"]["id"] for each in self._connection.call("POST", path, {"limit": LOOKED_AT})]
        random.shuffle(runs)
        return next(([run] for run in runs if self._set(run, "PENDING")), [])

    def _set(self, run: str, state: str) -> bool:
        """Return whether it is in this state now, by this call."""
        answer = self._connection.call("POST", f"/api/flow_runs/{run}/set_state", {"state": {"type": state}})
        return bool(answer["status"] == "ACCEPT")


def fill(port: int, jobs: int) -> None:
    connection = Connection(port)

    def make(path: str, **said: t.Any) -> str:
        return str(connection.call("POST", f"/api/{path}", said)["id"])

    flow = make("flows/", name="work")
    if not connection.call("POST", "/api/work_pools/filter", {}):
        make("work_pools/", name=POOL, type="process")
    deployment = make("deployments/", name="work", flow_id=flow, work_pool_name=POOL)
    for _ in range(jobs):
        make(f"deployments/{deployment}/create_flow_run", state={"type": "SCHEDULED"})


def connect(port: int, name: str) -> Client:
    return Client(port)
