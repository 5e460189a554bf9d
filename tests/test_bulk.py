"""Many jobs at once: as if they had been inserted one by one, in few statements."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship

from conftest import MakeWorld
from flask_jobber import JobMixin
from support import World

NOON = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Rich(World):
    """Jobs with columns of many kinds."""

    def _make_job_class(self) -> type[t.Any]:
        class Page(self.db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "bulk_page"
            id: Mapped[int] = mapped_column(primary_key=True)

        class Job(JobMixin, self.db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "bulk_job"
            user_id: Mapped[str | None] = mapped_column(sa.String(20))
            token: Mapped[uuid.UUID | None]
            colour: Mapped[Colour | None]
            price: Mapped[decimal.Decimal | None] = mapped_column(sa.Numeric(10, 2))
            tags: Mapped[t.Any] = mapped_column(sa.JSON, nullable=True)
            blob: Mapped[bytes | None]
            level: Mapped[int] = mapped_column(server_default="7")
            word: Mapped[str] = mapped_column("word_", sa.String(20), default="none")
            page_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Page.id))
            page: Mapped[Page | None] = relationship()

        self.Page = Page
        return Job


class Called(World):
    """Jobs with a default that Python makes for each."""

    def _make_job_class(self) -> type[t.Any]:
        class Job(JobMixin, self.db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "bulk_called"
            user_id: Mapped[str | None] = mapped_column(sa.String(20))
            token: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4)

        return Job


@pytest.fixture
def rich(make_world: MakeWorld, db_url: str) -> t.Any:
    return make_world(db_url, Rich)


def facts(world: World, ids: t.Iterable[int]) -> list[dict[str, t.Any]]:
    """Return rows by id, without what differs between any two jobs."""
    jobs = world.Job.__table__
    with world.session() as session:
        rows = session.execute(sa.select(jobs).where(jobs.c.id.in_(ids)).order_by(jobs.c.id))
        return [
            {
                key: value
                for key, value in row._mapping.items()
                if key not in ("id", "created_at", "updated_at")
            }
            for row in rows
        ]


def test_it_is_as_if_they_were_inserted_one_by_one(rich: t.Any) -> None:
    """Columns of any kind, with and without values, and nested lists."""
    specs: list[dict[str, t.Any]] = [
        {"data": None, "run_at": NOON},
        {"data": [[1, 2], ["ü", None, "{a,b}", 'x"y\\']], "run_at": NOON, "priority": 5},
        {"data": {"a": [1.5, True]}, "run_at": NOON, "not_for": ["bob", "ann"], "token": uuid.UUID(int=5)},
        {"data": "text", "run_at": NOON, "colour": Colour.BLUE, "price": decimal.Decimal("1.25")},
        {"data": 5, "run_at": NOON, "tags": [["a"], {"b": None}], "blob": b"\0\xff", "level": 1},
        {"data": 0, "run_at": NOON, "tags": None, "word": "said", "expires_at": NOON, "user_id": "ann"},
        {"data": False, "run_at": NOON, "lease_for": 2.5, "only_for": "ann"},
    ]
    with rich.session():
        single = [rich.jobber.enqueue("work", **spec).id for spec in specs]
        many = [job.id for job in rich.jobber.enqueue_many([{"type": "work", **spec} for spec in specs])]
    assert many == sorted(many)
    assert facts(rich, many) == facts(rich, single)


def test_what_was_inserted_can_be_used_at_once(rich: t.Any) -> None:
    """As objects of the session: read without a statement, changed, deleted, loaded again."""
    seen = list[str]()
    with rich.session() as session:
        jobs = rich.jobber.enqueue_many([{"type": "work", "data": n} for n in range(20)])
        listen = (rich.db.engine, "before_cursor_execute", lambda *facts: seen.append(facts[2]))
        sa.event.listen(*listen)
        assert [(job.data, job.state, job.level, job.word, job.user_id, job.attempts) for job in jobs] == [
            (n, "queued", 7, "none", None, 0) for n in range(20)
        ]
        assert all(abs(job.created_at - jobs[0].run_at) < dt.timedelta(seconds=60) for job in jobs)
        assert seen == []
        sa.event.remove(*listen)
        assert all(session.get(rich.Job, job.id) is job for job in jobs)
        jobs[0].word, first = "changed", jobs[0].id
        session.delete(jobs[1])
    assert rich.job(first).word == "changed"
    assert [job["data"] for job in rich.client("root").claim(limit=50)] == [0, *range(2, 20)]


def test_a_roll_back_leaves_nothing(rich: t.Any) -> None:
    """Nor can the objects be taken for jobs."""
    with rich.session() as session:
        rich.jobber.enqueue_many([{"type": "work"}] * 3)
        session.rollback()
        assert session.scalar(sa.select(sa.func.count()).select_from(rich.Job.__table__)) == 0
        rich.jobber.enqueue_many([{"type": "work"}] * 3)
    assert len(rich.client("root").claim(limit=9)) == 3


def test_what_belongs_to_a_job_is_written_first(rich: t.Any) -> None:
    """Both what the session holds, and what a job points to."""
    with rich.session() as session:
        page = rich.Page(id=3)
        session.add(page)
        plain = rich.jobber.enqueue_many([{"type": "work", "page_id": 3}] * 2)
        pointing = rich.jobber.enqueue_many([{"type": "work", "page": rich.Page(id=4)}, {"type": "work"}])
        assert [job.page_id for job in (*plain, *pointing)] == [3, 3, 4, None]
        assert plain[0].page is page


def test_each_has_its_own_default(make_world: MakeWorld, db_url: str) -> None:
    """Where Python makes it."""
    world = make_world(db_url, Called)
    with world.session():
        jobs = world.jobber.enqueue_many([{"type": "work"}] * 5)
        assert len({job.token for job in jobs}) == 5


@pytest.mark.parametrize("name", ["before_insert", "after_insert"])
def test_who_listens_to_the_model_hears_of_each(rich: t.Any, name: str) -> None:
    """An audit of the app's own, for instance."""
    heard = list[t.Any]()
    sa.event.listen(rich.Job, name, lambda mapper, connection, job: heard.append(job.data))
    with rich.session():
        rich.jobber.enqueue_many([{"type": "work", "data": n} for n in range(5)])
    assert heard == list(range(5))


def test_who_listens_to_the_session_hears_of_all(rich: t.Any) -> None:
    """As Flask-SQLAlchemy's own record of modifications does."""
    heard = list[int]()
    with rich.session() as session:
        sa.event.listen(session(), "before_flush", lambda session, *_: heard.append(len(session.new)))
        rich.jobber.enqueue_many([{"type": "work"}] * 5)
    assert 5 in heard


def test_many_are_few_parameters(make_world: MakeWorld, postgres_url: str) -> None:
    """What is NULL is not said."""
    rich = make_world(postgres_url, Rich)
    seen = list[t.Any]()
    with rich.session() as session:
        listen = (session.connection(), "before_cursor_execute", lambda *facts: seen.append(facts[3]))
        sa.event.listen(*listen)
        rich.jobber.enqueue_many([{"type": "work", "data": n} for n in range(1000)])
        sa.event.remove(*listen)
    assert len(seen) < 6
    assert max(map(len, seen)) < 20 * 1000


def test_a_roll_back_to_a_savepoint_leaves_nothing(rich: t.Any) -> None:
    """Nor anything that is taken for a job."""
    with rich.session() as session:
        before = rich.jobber.enqueue_many([{"type": "work"}] * 2)
        savepoint = session.begin_nested()
        gone = rich.jobber.enqueue_many([{"type": "work"}] * 3)
        savepoint.rollback()
        assert [job in session for job in (*before, *gone)] == [True] * 2 + [False] * 3
    assert len(rich.client("root").claim(limit=9)) == 2
