"""Luigi's scheduler, asked as its workers ask it: they assist, that is take tasks that others have added."""

from __future__ import annotations

import json
import os
import typing as t
import urllib.parse

from .web import Connection


class Scheduler:
    def __init__(self, port: int, name: str) -> None:
        self._connection = Connection(port, {"Content-Type": "application/x-www-form-urlencoded"})
        self._name = name

    def call(self, method: str, **said: t.Any) -> t.Any:
        form = urllib.parse.urlencode({"data": json.dumps({"worker": self._name, **said})})
        return self._connection.call("POST", f"/api/{method}", form.encode())["response"]

    def turn(self, held: list[str], wanted: int) -> list[str]:
        for task in held:
            self.call("add_task", task_id=task, status="DONE", family="work", params={})
        if not wanted:
            return []
        answer = self.call("get_work", host="worker", assistant=True, current_tasks=[])
        return [answer["task_id"]] if answer["task_id"] else []


def fill(port: int, jobs: int) -> None:
    scheduler = Scheduler(port, "adds")
    run = os.urandom(4).hex()  # a task that is done is not done again
    for number in range(jobs):
        scheduler.call("add_task", task_id=f"work_{run}_{number}", status="PENDING", family="work", params={})


def connect(port: int, name: str) -> Scheduler:
    return Scheduler(port, name)
