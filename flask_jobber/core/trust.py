"""Several results of one job: different logins do copies of it, and their results are compared.

The original is blocked; nobody is handed it. Each copy is a job like any other, with a lease,
a fence, failures and a history of its own, handed to one login. At most one copy at a time waits
that nobody has had: the next is made when it is handed out, and is ``not_for`` those who had one
before. So a claim looks for nothing that it would not look for anyway.

What has become of the copies stands in the original, in ``trust``. Who writes it has locked the
original, by its id and after the copies, and never the other way round.

Gold is an original whose result is known: its copies are mixed in among others, and never end it.
"""

from __future__ import annotations

import copy as copying
import logging
import random
import typing as t

import sqlalchemy as sa

from ..errors import Invalid
from . import lockers, payload
from .agreement import largest_group, same_json
from .engines import utcnow
from .lockers import login_of, mark
from .models import JobMixin
from .news import Entry, facts, like
from .series import columns_of_the_app
from .states import POOL, State, Verb
from .store import Store, missed
from .transition import UNHELD, Also, Change, apply, record_new

logger = logging.getLogger("flask_jobber")
Row = sa.Row[t.Any]
Followed = tuple[Change, "Original"]
#: The queue in which gold is kept.
GOLD = "jobber:gold"
#: The error of a job whose answers did not agree.
NO_AGREEMENT = {
    "type": "NoAgreement",
    "message": "As many answers as may be asked for did not agree.",
    "traceback": None,
}
#: What becomes of a copy. Those that are gone have brought no answer, and are replaced.
WAITING, HELD, ANSWERED, GONE = "waiting", "held", "answered", "gone"
_MOST = 100
_LOCKED = "flask_jobber.originals"
#: The keywords that make a job an original.
OWN = ("results_wanted", "agreement", "max_results", "adaptive")
# One of them would be for one login alone, or begin a series of originals.
_NOT_WITH = ("only_for", "every", "repeat_after_success", "repeat_after_failure", "concurrency_key")
# What a copy has of its original; of gold, but for the data, of the original that it is beside.
_COPIED = (
    "type", "data", "queue", "priority", "max_attempts", "backoff", "lease_for", "expires_at",
)  # fmt: skip


def asked(given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what makes a job an original; nothing for a job that wants one result, unchecked.

    :raises Invalid: for keywords that do not fit each other.
    """
    own = {name: given[name] for name in OWN if name in given}
    if not own:
        return {}
    wrong = {name: ["This is not for a job with results_wanted."] for name in _NOT_WITH if name in given}
    if given.get("on_conflict", "raise") != "raise":
        wrong["on_conflict"] = ["A job with results_wanted is a new one."]
    adaptive = own.get("adaptive", False)
    if not isinstance(adaptive, bool):
        wrong["adaptive"] = ["This is True or False."]
    if "results_wanted" not in own and not adaptive:
        wrong["results_wanted"] = ["Say how many, or adaptive=True."]
    if wrong:
        raise Invalid(wrong)
    wanted = payload.check_int("results_wanted", own.get("results_wanted", 2), 1 + adaptive, _MOST)
    agreement = payload.check_int("agreement", own.get("agreement", wanted // 2 + 1), 1, wanted)
    most = payload.check_int("max_results", own.get("max_results", min(2 * wanted, _MOST)), wanted, _MOST)
    trust = {"wanted": wanted, "agreement": agreement, "most": most, "copies": []}
    trust |= {"adaptive": True, "target": 1} if adaptive else {"target": wanted}
    return {"state": State.BLOCKED.value, "trust": trust}


def begin(store: Store, jobs: t.Iterable[JobMixin]) -> None:
    """Make the first copies of those jobs, just inserted, that are originals; mix gold in among them."""
    originals = [job for job in jobs if job.__dict__.get("trust") is not None]
    gold = {type_: _gold(store, type_) for type_ in {job.type for job in originals}} if _mixes(store) else {}
    rows = [row for row in lock(store, [job.id for job in originals]).values() if not row.trust.get("gold")]
    entries = list[Entry]()
    for row in rows:
        drawn = _draw(store, gold.get(row.type))
        is_first = bool(random.randrange(2))  # or gold were told by its place among the others
        entries += _mix_in(store, drawn, row) if drawn and is_first else []
        entries += [_make(store, row, row, first=True)] if _lacks(row) else []
        entries += _mix_in(store, drawn, row) if drawn and not is_first else []
    _enter(store, entries, *rows)


def _draw(store: Store, gold: list[int] | None) -> int | None:
    """Take the gold that is to be mixed in beside a job, if any is."""
    if not gold or random.random() >= store.settings.gold_rate:
        return None
    return gold.pop(random.randrange(len(gold)))


def _mixes(store: Store) -> bool:
    return store.settings.gold_rate > 0


def _gold(store: Store, type_: str) -> list[int]:
    """Return the ids of the gold of a type that is still in use, and of which no copy waits."""
    c, copy = store.jobs.c, store.jobs.alias()
    kept = (c.queue == GOLD, c.finished_at.is_(None), c.type == type_, c.state == State.BLOCKED.value)
    waits = sa.exists().where(copy.c.copy_of == c.id, copy.c.state.in_(sorted(POOL)))
    return list(store.execute(sa.select(c.id).where(*kept, sa.not_(waits))).scalars())


def lock(store: Store, ids: t.Collection[int]) -> dict[int, Original]:
    """Lock originals in the order of their ids, after the copies that are held or claimed.

    :returns: by id, with all that their end needs; those that are gone are missing.
    """
    if not ids:
        return {}
    rows = store.run("originals", lambda: _locking(store), {"ids": sorted(ids)}).all()
    store.remembered(_LOCKED)["some"] = True
    return {row.id: Original(row) for row in rows}


def _locking(store: Store) -> sa.Executable:
    c = store.jobs.c
    columns = (
        *facts(store), c.failures, c.max_attempts, c.backoff, c.on_success, c.on_failure,
        c.every.is_not(sa.null()).label("repeats"), c.copy_of, c.trust, c.result, c.extras, c.locked_by,
        c.turn, c.batch_id, c.concurrency_key, c.seated, c.has_files,
    )  # fmt: skip
    return store.locking(columns, c.id.in_(missed("ids", expanding=True)), c.trust.is_not(sa.null()))


def has_locked(store: Store) -> bool:
    """Whether this transaction has locked originals: who locks others too may die of it."""
    return bool(store.remembered(_LOCKED))


class Original:
    """The row of an original, whose ``trust`` may be changed before it is written."""

    def __init__(self, row: Row) -> None:
        self.__dict__.update(row._mapping)
        self.trust: dict[str, t.Any] = copying.deepcopy(row.trust)
        self.written = row.trust

    if t.TYPE_CHECKING:

        def __getattr__(self, name: str) -> t.Any: ...


def _write(store: Store, *rows: Original) -> None:
    if changed := [row for row in rows if row.trust != row.written]:
        store.run(*_written(store, changed))


def _written(store: Store, rows: t.Sequence[Original]) -> Also:
    values = [{"of_id": row.id, "trust": row.trust} for row in rows]
    for row in rows:
        row.written = copying.deepcopy(row.trust)
    return Also("write trust", lambda: _writing(store), values)


def _writing(store: Store) -> sa.Update:
    c = store.jobs.c
    # What is known of the copies is no change that anybody is told of.
    values = {"trust": missed("trust", c.trust.type), "updated_at": c.updated_at}
    return sa.update(store.jobs).where(c.id == missed("of_id", c.id.type)).values(values)


def _count(row: Original, *kinds: str) -> int:
    return sum(copy["is"] in kinds for copy in row.trust["copies"])


def _logins(row: Original, *, but: int | None = None) -> set[str]:
    """Return the logins that hold a copy or have had one to its end; ``but`` this one does not count."""
    had = [copy for copy in row.trust["copies"] if copy["login"] is not None and copy["id"] != but]
    return {copy["login"] for copy in had}


def _ask(store: Store, *rows: Original) -> None:
    """Make one more copy of each of which another answer is wanted, and no copy waits; write all."""
    _enter(store, [_make(store, row, row) for row in rows if _lacks(row)], *rows)


def _lacks(row: Original) -> bool:
    trust = row.trust
    if trust.get("gold") or _count(row, WAITING) or len(trust["copies"]) >= trust["most"]:
        return False
    return bool(len(trust["copies"]) - _count(row, GONE) < trust["target"])


def _mix_in(store: Store, gold_id: int, beside: Original) -> list[Entry]:
    """Make a copy of gold that nobody can tell from a copy of the original beside it.

    The gold is not locked: who is handed a copy would wait for whoever enqueues.
    """
    c = store.jobs.c
    kept = sa.select(c.id, c.data, c.not_for, c.trust).where(c.id == gold_id)
    gold = store.execute(kept.where(c.state == State.BLOCKED.value)).one_or_none()
    return [] if gold is None else [_make(store, Original(gold), beside, first=True, data=gold.data)]


def _make(store: Store, row: Original, place: Original, *, first: bool = False, **content: t.Any) -> Entry:
    """Insert a copy, in the place of a job among others; with its content if there is no other."""
    not_for = _kept_from(row, _logins(row))
    later = first and place.run_at > place.now
    state = State.SCHEDULED if later else State.QUEUED
    own = {
        "copy_of": row.id,
        "shown_as": place.id if place is not row else None,
        "state": state.value,
        "attempts": 0,
        "failures": 0,
        "not_for": not_for,
        "turn": 0 if later else place.turn,
        "later_turn": place.turn or None if later else None,
        "has_files": False,
        **content,
    }
    if later:
        own["run_at"] = place.run_at
    copy_id = _insert(store, place.id, own)
    row.trust["copies"].append({"id": copy_id, "login": None, "is": WAITING})
    fresh = None if later else like(store, place, not_for=tuple(not_for or ()), attempts=0)
    return Entry(copy_id, fresh, later)


def _enter(store: Store, copies: t.Sequence[Entry], *rows: Original) -> None:
    """Record that copies were inserted, and tell of them; write their originals."""
    changes = [
        Change(Verb.ENQUEUE, one.id, None, State.SCHEDULED if one.later else State.QUEUED, 0)
        for one in copies
    ]
    if len(copies) == len(rows) == 1:
        record_new(store, changes, copies, also=_written(store, rows))
        return
    if copies:
        record_new(store, changes, copies)
    _write(store, *rows)


def _kept_from(row: Original, had: set[str], first: str | None = None) -> list[str] | None:
    """Return for whom a copy is not: all whom the app excludes, and of those who had one so many.

    Who is met again nevertheless gives it back, and comes first then.
    """
    excluded = [*(row.not_for or ())]
    others = sorted(had - {*excluded}, key=lambda login: (login != first, login))
    return [*excluded, *others[:_MOST]] or None


def _insert(store: Store, place_id: int, own: dict[str, t.Any]) -> int:
    names = tuple(sorted(own))
    result = store.run(("copy", names), lambda: _copying(store, names), {"place": place_id, **own})
    return int(result.lastrowid if store.engine_name == "mysql" else result.scalar_one())


def _copying(store: Store, names: t.Sequence[str]) -> sa.Insert:
    """Return the insertion of a copy that has these columns of its own."""
    c = store.jobs.c
    chosen: dict[str, t.Any] = {name: c[name] for name in (*_COPIED, *columns_of_the_app(store))}
    chosen |= {name: missed(name, c[name].type) for name in names}
    # By its instants it is as old as its id: a copy made later does not look like one.
    chosen |= {name: utcnow() for name in ("created_at", "updated_at", "run_at") if name not in chosen}
    row = sa.select(*chosen.values()).where(c.id == missed("place", c.id.type))
    insert = sa.insert(store.jobs).from_select([c[name] for name in chosen], row, include_defaults=False)
    return insert if store.engine_name == "mysql" else insert.returning(c.id)


def taken(store: Store, locker: str, rows: t.Sequence[Row]) -> dict[int, bool | None]:
    """Note who has been handed copies, and make the next ones.

    Two nodes of one login may be handed two copies at the same moment: who locks the original
    second gives back.

    :returns: by their ids, without those that are given back, whether there may be files.
    """
    copies = [row for row in rows if row.copy_of is not None]
    if not copies:
        return {}
    originals = lock(store, {row.copy_of for row in copies})
    lost: list[Change] = []
    for row in copies:
        original = originals.get(row.copy_of)
        back = _hand_out(store, locker, row, original)
        lost += [back] if back is not None else []
    waiting = [original for original in originals.values() if original.state == State.BLOCKED]
    _ask(store, *waiting)
    apply(store, lost)
    gone = {change.job_id for change in lost}
    return {row.id: row.has_files or originals[row.copy_of].has_files for row in copies if row.id not in gone}


def _hand_out(store: Store, locker: str, row: Row, original: Original | None) -> Change | None:
    """Note a hand-out in the original, or return what undoes it."""
    login, attempt = login_of(locker), row.attempts + 1
    if row.was == State.LOCKED:
        mark(store, login_of(row.was_by), "claim")
        mark(store, login_of(row.was_by), "lapse")
    if original is None or original.state != State.BLOCKED:
        values: dict[str, t.Any] = {**UNHELD, "finished_at": store.now()}
        return Change(Verb.CANCEL, row.id, State.LOCKED, State.CANCELLED, attempt, locker, None, values)
    had = _logins(original, but=row.id)
    if login in had:
        # It is not met again by this login, nor by the others that have one.
        _set(original, row.id, None, WAITING)
        values = {**UNHELD, "not_for": _kept_from(original, had, login)}
        return Change(Verb.RELEASE, row.id, State.LOCKED, State.QUEUED, attempt, locker, None, values)
    _set(original, row.id, login, HELD)
    return None


def _set(row: Original, copy_id: int, login: str | None, becomes: str) -> None:
    copies = row.trust["copies"]
    if all(copy["id"] != copy_id for copy in copies):  # of gold: it was made without a word to it
        copies.append({"id": copy_id})
    for copy in copies:
        if copy["id"] == copy_id:
            copy |= {"login": login, "is": becomes}


def follow(store: Store, change: Change, row: t.Any) -> list[Followed]:
    """Note in the original what has become of a copy; return what becomes of the original.

    :param row: of the copy, as it was.
    """
    login = login_of(change.locker) if change.locker else None
    if change.from_state is State.LOCKED and login:
        mark(store, login, "claim")
    original = lock(store, [row.copy_of]).get(row.copy_of)
    if original is None:
        return []
    if change.verb is Verb.LAPSE and login:
        mark(store, login, "lapse")
    if change.to_state is State.SUCCEEDED:
        _set(original, change.job_id, login, ANSWERED)
        mark(store, t.cast(str, login), "time", (row.now - row.locked_at).total_seconds())
        followed = _compare(store, original, change)
    elif change.to_state in POOL:
        _set(original, change.job_id, None, WAITING)
        _keep_away(store, change.job_id, original)
        followed = []
    else:
        _set(original, change.job_id, login, GONE)
        if change.to_state is State.EXPIRED:  # so would any other
            original.trust["most"] = len(original.trust["copies"])
        followed = _go_on(store, original)
    _write(store, original)
    return followed


def _keep_away(store: Store, copy_id: int, original: Original) -> None:
    """Let a copy that is given back not be handed to those who have one."""
    names, c = _kept_from(original, _logins(original)), store.jobs.c
    if names:
        store.execute(sa.update(store.jobs).where(c.id == copy_id).values(not_for=names))


def _compare(store: Store, original: Original, change: Change) -> list[Followed]:
    """Compare all answers; an agreement is noted, and taken up by :func:`agreed`."""
    if original.trust.get("gold"):
        same = _same(store, original.type)
        _judge(store, {change.locker or "": same(change.values["result"], original.result)})
        return []
    if original.state != State.BLOCKED:
        _judge_late(store, original, change)
        return []
    return _weigh(store, original)


def _judge(store: Store, verdicts: t.Mapping[str, bool]) -> None:
    for locker, is_valid in verdicts.items():
        mark(store, login_of(locker), "valid" if is_valid else "invalid")


def _judge_late(store: Store, original: Original, change: Change) -> None:
    """Let an answer that was not waited for count for the record of its login."""
    if original.state in (State.SUCCEEDED, State.SUBMITTED) and original.trust.get("checked"):
        same = _same(store, original.type)
        _judge(store, {change.locker or "": same(original.result, change.values["result"])})


def _weigh(store: Store, original: Original) -> list[Followed]:
    """Look whether the answers agree; if not, ask for as many as may yet make them."""
    trust = original.trust
    answers = _answers(store, original)
    if trust.get("adaptive") and trust["target"] == 1 and answers:
        if lockers.is_reliable(store, answers[0]["login"]):
            trust |= {"agreed": answers[0]["id"], "checked": False}
            return []
        trust["target"] = trust["wanted"]
    group = largest_group([one["result"] for one in answers], _same(store, original.type))
    if len(group) >= trust["agreement"]:
        trust |= {"agreed": answers[group[0]]["id"], "checked": len(answers) > 1}
        if len(answers) > 1:
            _judge(store, {one["login"]: place in group for place, one in enumerate(answers)})
        return []
    trust["target"] = max(trust["target"], len(answers) + trust["agreement"] - len(group))
    return _go_on(store, original)


def _go_on(store: Store, original: Original) -> list[Followed]:
    """Ask for another answer; when none can come, the original fails and its answers are kept."""
    if original.state != State.BLOCKED:
        return []
    _ask(store, original)
    if _count(original, WAITING, HELD) or original.trust.get("gold"):
        return []
    values = {"finished_at": original.now, "unique_key": None}
    change = Change(
        Verb.AGREE, original.id, State.BLOCKED, State.FAILED, original.attempts, None, NO_AGREEMENT, values
    )
    return [(change, original)]


def _answers(store: Store, original: Original) -> list[dict[str, t.Any]]:
    """Return the copies that were answered, with their results, in the order of their ids."""
    answered = {copy["id"]: copy for copy in original.trust["copies"] if copy["is"] == ANSWERED}
    c = store.jobs.c
    # One by one by their keys: nothing beside them is locked where this is a locking read.
    chosen = sa.select(c.id, c.result, c.extras).where(c.id.in_(sorted(answered)))
    rows = store.execute(store.current(chosen)).all() if answered else ()
    found = {row.id: row for row in rows}
    return [
        {**copy, "result": found[id].result, "extras": found[id].extras}
        for id, copy in answered.items()
        if id in found
    ]


def _same(store: Store, type_: str) -> t.Callable[[t.Any, t.Any], bool]:
    """Return the comparison of a type. One that raises has not found two answers to be the same."""
    known = store.types.get(type_)
    own = known.agreement if known is not None else None
    if own is None:
        return same_json

    def same(one: t.Any, other: t.Any) -> bool:
        try:
            return bool(own(copying.deepcopy(one), copying.deepcopy(other)))
        except Exception:
            logger.exception("the agreement of %r broke", type_, extra={"action": "agree"})
            return False

    return same


def agreed(store: Store, original_id: int) -> tuple[Original, t.Any, t.Any] | None:
    """Return an original whose answers have just come to agree, with the result and its extras.

    Copies that wait are not needed any more. Those that are held may still be delivered, for the
    record of their login.
    """
    original = lock(store, [original_id]).get(original_id)
    if original is None or original.state != State.BLOCKED or original.trust.get("agreed") is None:
        return None
    call_off(store, original, WAITING)
    [answer] = [one for one in _answers(store, original) if one["id"] == original.trust["agreed"]]
    return original, answer["result"], answer["extras"]


def call_off(store: Store, original: Original, *kinds: str) -> None:
    """Cancel the copies of these kinds; one that is being claimed now is given back by who claims it."""
    c = store.jobs.c
    ids = [copy["id"] for copy in original.trust["copies"] if copy["is"] in kinds]
    columns, unfinished = (c.state, c.attempts, c.locked_by), c.finished_at.is_(None)
    rows = store.lock(columns, c.id.in_(ids), unfinished, skip_locked=True) if ids else ()
    values = {"finished_at": original.now, "locked_until": None, "lease_seconds": None}
    apply(store, [_called_off(row, values) for row in rows])
    for row in rows:
        if row.locked_by is not None:
            mark(store, login_of(row.locked_by), "claim")
        _set(original, row.id, None, GONE)
    _write(store, original)


def _called_off(row: Row, values: dict[str, t.Any]) -> Change:
    was = State(row.state)
    return Change(Verb.CANCEL, row.id, was, State.CANCELLED, row.attempts, row.locked_by, None, values)


def cancel(store: Store, row: Row) -> None:
    """Cancel what is unfinished of the copies of a job that is being cancelled."""
    original = lock(store, [row.id]).get(row.id) if row.asked else None
    if original is not None and not original.trust.get("gold"):
        call_off(store, original, WAITING, HELD)


def ask_again(store: Store, original_id: int) -> None:
    """Let a job that has failed, been cancelled or expired ask for as many answers as it did at first.

    Those that are held yet count among them; gold goes on to be mixed in as before.
    """
    original = lock(store, [original_id])[original_id]
    trust = original.trust
    if trust.get("gold"):
        return
    for copy in trust["copies"]:
        if copy["is"] != HELD:
            copy |= {"login": None, "is": GONE}
    made, wanted = len(trust["copies"]), trust["wanted"]
    trust |= {"most": made + 2 * wanted, "target": 1 if trust.get("adaptive") else wanted}
    trust.pop("agreed", None)
    _ask(store, original)


def strike(store: Store, original: Original, copy_id: int) -> bool:
    """Strike an answer that is taken back; return whether what was agreed stands without it."""
    struck = [copy for copy in original.trust["copies"] if copy["id"] == copy_id]
    for copy in struck:
        copy["is"] = GONE
    stands = True
    if original.state == State.BLOCKED and not original.trust.get("gold"):
        original.trust["most"] += len(struck)
        _ask(store, original)
    elif original.trust.get("agreed") is not None:
        same = _same(store, original.type)
        others = [one for one in _answers(store, original) if same(original.result, one["result"])]
        stands = len(others) >= original.trust["agreement"]
    _write(store, original)
    return stands


def reopen(store: Store, original_id: int) -> None:
    """Ask for the answers that an original, open again, misses."""
    original = lock(store, [original_id])[original_id]
    trust = original.trust
    trust.pop("agreed", None)
    trust["target"] = max(trust["target"], trust["wanted"])
    trust["most"] = max(trust["most"], _count(original, GONE) + 2 * trust["wanted"])
    _ask(store, original)
