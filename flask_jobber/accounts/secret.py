"""What is secret: how it is made, kept and compared.

Secrets and tokens are random, 256 bits each, and made here: nobody can guess one from its
hash however fast the hash is. A slow one, as passwords need, would only cost each request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import typing as t

#: Tokens begin so, and only they: they are told from the app's own without looking any up.
TOKEN = "jbt_"
_SECRET = "jbs_"
_CLIENT = "jbw_"
_BYTES = 32
# What is compared when there is no such client: the hash of a secret that nobody has.
_NOBODY = hashlib.sha256(secrets.token_bytes(_BYTES)).hexdigest()


def new_token() -> str:
    """Return a fresh token."""
    return TOKEN + secrets.token_urlsafe(_BYTES)


def new_secret() -> str:
    """Return a fresh secret."""
    return _SECRET + secrets.token_urlsafe(_BYTES)


def new_client_id() -> str:
    """Return a fresh client id. It is no secret, and is never given twice."""
    return _CLIENT + secrets.token_urlsafe(15)


def hash_of(text: str) -> str:
    """Return what is stored of a secret or a token."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def is_one_of(given: str, hashes: t.Iterable[str]) -> bool:
    """Tell whether a secret is one of those hashed, in a time that does not depend on it."""
    mine = hash_of(given)
    found = False
    for known in (*hashes, _NOBODY):  # one at least, and none is left out
        found |= hmac.compare_digest(mine, known)
    return found
