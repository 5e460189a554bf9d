"""Agreement under many processes, some of them killed: each job is processed once, by different logins."""

from __future__ import annotations

import collections
import multiprocessing
import os
import pathlib
import sys
import typing as t

import pytest
import sqlalchemy as sa

from race_support import until
from support import World
from tables import renew
from trusting import answer_of, make_trusting, open_originals, work

JOBS, PROCESSES, KILLS = 30, 16, 6
_HERE = pathlib.Path(__file__).parent
_CONTEXT = multiprocessing.get_context("forkserver")


def test_agreement_is_reached_once_by_many_processes_that_are_killed(
    db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No effect is lost or there twice, no login has had two copies of one job, and all comes to an end."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(_HERE), *sys.path]))  # what is preloaded
    world, effects = make_trusting(db_url)
    with world.session():
        renew(world.db)
        world.jobber.gold("work", {"n": 1000}, "2000")
        spec = {"type": "work", "results_wanted": 3, "agreement": 2, "max_results": 16}
        made = world.jobber.enqueue_many([{**spec, "data": {"n": n}} for n in range(JOBS)])
        ids = {job.id: job.data["n"] for job in made}
    _work_and_kill(world, db_url)
    with world.session() as session:
        rows = session.execute(sa.select(effects.c.job_id, effects.c.result)).all()
    assert sorted(tuple(row) for row in rows) == sorted((id, str(2 * n)) for id, n in ids.items())
    for job_id, n in ids.items():
        _check_copies(world, job_id, n)
    with world.app.app_context():
        world.db.engine.dispose()


def _work_and_kill(world: World, url: str) -> None:
    """Start them, kill one whenever some jobs are done, and start it again."""
    _CONTEXT.set_forkserver_preload(["trusting"])
    names = [f"user_{number}" for number in range(PROCESSES)]
    running = {name: _start(url, name) for name in names}
    for turn in range(KILLS):
        done = (turn + 1) * JOBS // (KILLS + 1)
        until(lambda: JOBS - _left(world) >= done, "some done")  # noqa: B023
        victim = names[turn]
        running[victim].kill()
        running[victim].join()
        running[victim] = _start(url, victim)
    for process in running.values():
        process.join(120)
        assert process.exitcode == 0


def _start(url: str, name: str) -> t.Any:
    process = _CONTEXT.Process(target=work, args=(url, name), daemon=True)
    process.start()
    return process


def _left(world: World) -> int:
    with world.session():
        return open_originals(world)


def _check_copies(world: World, job_id: int, n: int) -> None:
    """What stands in the original is what its copies say."""
    with world.session():
        answers = world.jobber.answers(job_id)
    logins = [one.login for one in answers if one.becomes == "answered"]
    assert len(set(logins)) == len(logins)
    assert [one.result for one in answers if one.login in logins] == [
        answer_of(str(login), n) for login in logins
    ]
    assert max(collections.Counter(one.result for one in answers if one.result).values()) >= 2
    holders = [world.job(one.job_id).locked_by for one in answers if one.becomes == "answered"]
    assert [str(holder).partition("/")[0] for holder in holders] == logins
    assert world.history(job_id) == [(None, "blocked", "enqueue"), ("blocked", "succeeded", "agree")]
