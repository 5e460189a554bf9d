"""What the served description says, tried by a machine: no 5xx, and no answer that is not in it."""

from __future__ import annotations

import itertools
import pathlib
import typing as t

import pytest
import schemathesis
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from accounts_support import Site
from flask_jobber.api.operation import OPERATIONS
from flask_jobber.core.payload import FILE_NAME
from support import PREFIX, World, check_response

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
#: Of either kind: what the description allows, and what it does not.
EXAMPLES = 15
FILE = "some.txt"
LOCKERS = {"person": "user_root", "worker": "account:robot"}


class Bench:
    """A site, its description as it serves it, and who asks: a permitted person or a worker."""

    def __init__(self, directory: pathlib.Path, who: str) -> None:
        self.world = World(f"sqlite:///{directory / 'test.db'}")
        # Schemathesis is to find what this would.
        self.world.app.after_request_funcs[None].remove(check_response)
        site = Site(self.world)
        site.workers.permission(lambda worker, action, job: True)
        token = "root" if who == "person" else site.token(site.create("robot", "default"))
        self.headers = {"Authorization": f"Bearer {token}"}
        self.locker = LOCKERS[who]
        self.schema = schemathesis.openapi.from_wsgi(f"{PREFIX}/openapi.json", self.world.app)
        self._number = itertools.count()

    def make_job(self, state: str) -> int:
        """Make a job in a state, held or once held by who asks."""
        jobber, type_ = self.world.jobber, f"work{next(self._number)}"
        with self.world.session():
            job_id = int(jobber.enqueue(type_, {"n": 1}, attachments={FILE: b"some"}).id)
            self.world.db.session.execute(sa.insert(jobber.Batch).values(id=job_id, if_failed="cancel"))
            if state != "queued":
                jobber.claim(self.locker, types=[type_])
            if state == "succeeded":
                jobber.deliver(self.locker, job_id, 1, {"n": 2})
            if state == "failed":
                jobber.fail(self.locker, job_id, 1, {"type": "E", "message": "broke"}, permanent=True)
        return job_id

    def aim(self, case: Case, state: str) -> None:
        """Make a request for a job that is there, unless what is wrong in it is just this."""
        there = {"job_id": self.make_job(state), "attempt": 1}
        for name, given_ in case.path_parameters.items():
            if type(given_) is int and given_ > 0:
                case.path_parameters[name] = there[name]
            if name == "name" and case.method == "GET" and FILE_NAME.fullmatch(given_):
                case.path_parameters[name] = FILE
        if state == "locked":
            case.headers.pop("Jobber-Node", None)  # it is held without one

    def send(self, case: Case) -> int:
        """Send a request, check its answer, and return the status."""
        name = case.operation.definition.raw["operationId"]
        # An exchange tells what is wrong with an item in an answer that is none to the whole.
        checks = CHECKS if name == "exchange" else [*CHECKS, negative_data_rejection]
        return case.call_and_validate(headers=self.headers, checks=checks, buffered=True).status_code


@pytest.fixture(scope="module", params=LOCKERS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"), request.param)
    with bench.world.session():
        bench.world.db.create_all()
    yield bench
    with bench.world.app.app_context():
        bench.world.db.engine.dispose()


#: Of the job that is asked for; the one of the example is rarely there.
JOBS = ("locked", "queued", "succeeded", "failed", "as generated")
#: With the description's blessing, and without; of the public ones nothing can be wrong.
KINDS = [
    (row.name, mode)
    for row in OPERATIONS
    for mode in GenerationMode
    if not (row.public and mode is GenerationMode.NEGATIVE)
]


@pytest.mark.parametrize(("name", "mode"), KINDS, ids=[f"{name} {mode.value}" for name, mode in KINDS])
def test_no_answer_is_an_error_of_the_servers_or_undocumented(
    bench: Bench, name: str, mode: GenerationMode
) -> None:
    """Whatever is sent, by whoever is let in; each operation does what it is for, and refuses, too."""
    statuses, fit = set[int](), "failed" if name == "retry" else "locked"
    operation = bench.schema.find_operation_by_id(name)

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode), job=st.just(fit) | st.sampled_from(JOBS))
    def send(case: Case, job: str) -> None:
        if job != "as generated":
            bench.aim(case, job)
        statuses.add(bench.send(case))

    send()
    assert any(status < 400 if mode is GenerationMode.POSITIVE else status >= 400 for status in statuses), (
        statuses
    )
