"""The settings, read once from ``app.config`` when the extension meets the app."""

from __future__ import annotations

import dataclasses
import difflib
import typing as t
from urllib.parse import urlsplit

from .errors import SetupError

PREFIX = "JOBBER_"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One value per key of the configuration, in lower case without the prefix."""

    #: Length of a lease when neither the request nor the job says one.
    lease_seconds: float = 600
    #: The longest lease that a request or a job may ask for.
    max_lease_seconds: float = 86_400
    #: Failures after which a job ends ``failed``.
    max_attempts: int = 10
    #: Back-off of jobs whose type and row have none of their own.
    #: A strategy's name, its description as a mapping, or an object of ``core/backoff.py``.
    backoff: t.Any = "exponential"
    #: No back-off is longer than this.
    max_backoff_seconds: float = 86_400
    #: ``"accept"``: a lapsed holder may still deliver until the job is claimed again.
    late_results: t.Literal["accept", "reject"] = "accept"
    #: Whether a client's failure that says ``permanent`` or ``cancel`` ends the job.
    trust_failures: bool = True
    #: Calls of a broken processor, the first included, before the job ends ``failed``.
    processor_attempts: int = 10
    #: Jobs that one claim may hand out, and items that a list of an exchange may hold.
    max_claim: int = 100
    #: Valid answers in a row after which those of a login may count alone, for adaptive jobs.
    trust_after: int = 10
    #: How often gold is mixed in beside a job that wants several results: 0 never, 1 each time.
    gold_rate: float = 0.05
    #: Jobs that one login may hold at a time; ``None`` is no limit.
    max_open_claims: int | None = None
    #: Jobs that a login without a record may hold at a time, and claim in a day (UTC). They grow with
    #: its valid answers and shrink with its invalid ones; ``None`` is no limit.
    first_open_claims: int | None = None
    first_daily_claims: int | None = None
    #: What an empty claim is told to wait, give or take a quarter.
    idle_seconds: float = 5
    #: Cap of ``wait_seconds``.
    max_wait_seconds: float = 30
    #: Requests that may wait in one process; ``None``: as many as its server is seen to bear.
    max_waiters: int | None = None
    #: How processes hear of jobs, ``redis://…``; ``None``: by what the database offers.
    wakeup_url: str | None = None
    #: Size of a job's data, in bytes of canonical JSON.
    max_data_bytes: int = 1_048_576
    #: Size of a result, and of its extras, in bytes of canonical JSON.
    max_result_bytes: int = 1_048_576
    #: Size of an attachment, in bytes.
    max_attachment_bytes: int = 104_857_600
    #: Where attachments are: a folder (relative to the app's instance folder) or any URL of fsspec's.
    attachments_url: str | None = None
    #: Age at which finished jobs are pruned.
    keep_finished_days: float = 14
    #: How long an Idempotency-Key is known.
    keep_keys_seconds: float = 86_400
    #: Shortest time between two tidyings after requests; 0 is never.
    tidy_seconds: float = 30
    #: Origins (``https://app.example``) whose pages may use a visitor's cookie login.
    trusted_origins: tuple[str, ...] = ()
    #: Serve visitors who are not logged in; needs a ``locker_name`` hook.
    allow_anonymous: bool = False


_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
_POSITIVE = {
    "lease_seconds", "max_lease_seconds", "max_attempts", "max_backoff_seconds", "processor_attempts",
    "max_claim", "max_open_claims", "max_data_bytes", "max_result_bytes", "max_attachment_bytes",
    "trust_after", "first_open_claims", "first_daily_claims",
}  # fmt: skip
# A century of seconds: instants must stay within what databases know.
_MOST = 3_155_760_000
_MOST_BYTES = 2**53
_WAKEUP_SCHEMES = ("redis", "rediss", "unix")
_TYPES: dict[str, t.Any] = {"int": (int,), "float": (int, float), "bool": (bool,)}


def read_settings(config: t.Mapping[str, t.Any], overrides: t.Mapping[str, t.Any]) -> Settings:
    """Read the ``JOBBER_`` keys of ``config``; ``overrides`` win.

    :raises SetupError: for an unknown key (it names the nearest one) or a bad value.
    """
    given = {key.removeprefix(PREFIX): value for key, value in config.items() if key.startswith(PREFIX)}
    given |= {key.removeprefix(PREFIX): value for key, value in overrides.items()}
    settings = Settings(**dict(_read(key, value) for key, value in given.items()))
    if settings.lease_seconds > settings.max_lease_seconds:
        raise SetupError("JOBBER_LEASE_SECONDS is longer than JOBBER_MAX_LEASE_SECONDS")
    return settings


def _read(key: str, value: t.Any) -> tuple[str, t.Any]:
    name = key.lower()
    if name not in _FIELDS or not key.isupper():
        near = difflib.get_close_matches(key.upper(), [n.upper() for n in _FIELDS], n=1, cutoff=0)
        raise SetupError(f"There is no setting {PREFIX}{key}; did you mean {PREFIX}{near[0]}?")
    try:
        return name, _check(name, value)
    except (TypeError, ValueError) as error:
        raise SetupError(f"{PREFIX}{key} cannot be {_told(value)!r}: {error}") from error


def _told(value: t.Any) -> t.Any:
    # What follows the scheme of a URL may hold a password.
    scheme, found, _ = value.partition("://") if isinstance(value, str) else ("", "", "")
    return f"{scheme}://…" if found else value


def _check(name: str, value: t.Any) -> t.Any:
    if name == "backoff":
        return value  # core/backoff.py reads it: this module is below
    if name == "late_results":
        if value not in ("accept", "reject"):
            raise ValueError("it is 'accept' or 'reject'")
        return value
    if name == "trusted_origins":
        return _origins(value)
    if name == "attachments_url":
        return _url(value)
    if name == "wakeup_url":
        return _wakeup_url(value)
    return _plain(name, value)


def _origins(value: t.Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(origin, str) for origin in value):
        raise TypeError("it is a list of origins such as 'https://app.example'")
    return tuple(value)


def _url(value: t.Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError("it is a folder, or a URL")
    return value or None


def _wakeup_url(value: t.Any) -> str | None:
    url = _url(value)
    if url is not None and urlsplit(url).scheme not in _WAKEUP_SCHEMES:
        raise ValueError("it is redis://…, rediss://… or unix://…")
    return url


def _plain(name: str, value: t.Any) -> t.Any:
    kind, *optional = str(_FIELDS[name].type).split(" | ")
    if value is None and optional:
        return None
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise TypeError("it is True or False" if kind == "bool" else "it is a number")
    number, most = t.cast(float, value), _MOST_BYTES if name == "max_attachment_bytes" else _MOST
    if not (number > 0 if name in _POSITIVE else number >= 0) or number > most:
        raise ValueError(f"it is too small, or over {most}")
    if name == "gold_rate" and number > 1:
        raise ValueError("it is a share, from 0 to 1")
    return value
