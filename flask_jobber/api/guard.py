"""What every request must pass before anything else: a login, and no other site's page."""

from __future__ import annotations

import typing as t
from urllib.parse import urlsplit

from flask import current_app, request, session
from flask_login import COOKIE_NAME, current_user

from ..errors import HookError, SetupError
from .problems import CrossSite, LoginRequired

if t.TYPE_CHECKING:
    from ..extension import Jobber

_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# Browsers attach these by themselves, also for another site's page.
_AUTOMATIC = frozenset({"basic", "digest", "negotiate", "ntlm"})
_PORTS = {"http": 80, "https": 443}


def check_request(jobber: Jobber) -> None:
    """Let the request pass.

    :raises LoginRequired: without a login, unless anonymous visitors are allowed.
    :raises CrossSite: for an unsafe request that another site's page may have caused.
    """
    jobber.registry.closed = True
    if not hasattr(current_app, "login_manager"):
        raise SetupError("flask_jobber needs Flask-Login: call LoginManager().init_app(app).")
    if not current_user.is_authenticated:
        _check_anonymous(jobber)
    if request.method not in _SAFE and not _is_exempt() and not _is_same_site(jobber):
        raise CrossSite


def _check_anonymous(jobber: Jobber) -> None:
    if not jobber.settings.allow_anonymous:
        raise LoginRequired
    if "locker_name" not in jobber.registry.hooks:
        raise HookError("JOBBER_ALLOW_ANONYMOUS needs a locker_name hook that tells visitors apart.")


def _is_exempt() -> bool:
    """Whether no browser can have authenticated this request by itself."""
    if not current_user.is_authenticated or has_cookie_login():
        return False
    scheme = request.headers.get("Authorization", "").partition(" ")[0].lower()
    # Without a token the app may have read a cookie of its own.
    return scheme not in _AUTOMATIC if scheme else not request.cookies


def has_cookie_login() -> bool:
    """Whether the request has a cookie that logs a person in, or claims to."""
    remember = current_app.config.get("REMEMBER_COOKIE_NAME", COOKIE_NAME)
    return "_user_id" in session or remember in request.cookies


def _is_same_site(jobber: Jobber) -> bool:
    origin = request.headers.get("Origin")
    if origin is not None and origin in jobber.settings.trusted_origins:
        return True
    if _has_csrf_token():
        return True
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or _is_own(origin)


def _is_own(origin: str) -> bool:
    """Whether an ``Origin`` has the host and port of ``Host``; ``null`` and nonsense have not."""
    scheme, _, host = origin.lower().partition("://")
    theirs = _host(scheme, host)
    return theirs is not None and theirs == _host(scheme, request.host)


def _host(scheme: str, netloc: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(f"//{netloc}")
        port = _PORTS[scheme] if parts.port is None else parts.port
    except (ValueError, KeyError):
        return None
    return (parts.hostname, port) if parts.hostname else None


def _has_csrf_token() -> bool:
    """Whether the request carries the token of the app's own Flask-WTF."""
    if "csrf" not in current_app.extensions:
        return False
    from flask_wtf.csrf import validate_csrf
    from wtforms import ValidationError

    names = current_app.config["WTF_CSRF_HEADERS"]
    token = next((request.headers[name] for name in names if name in request.headers), None)
    try:
        validate_csrf(token)
    except ValidationError:
        return False
    return True


def exempt_from_csrf_protect(view_names: t.Iterable[str]) -> None:
    """Keep Flask-WTF's CSRFProtect, which answers in HTML, from views that answer for themselves."""
    csrf = current_app.extensions.get("csrf")
    if csrf is not None:
        for name in view_names:
            csrf.exempt(current_app.view_functions[name])
