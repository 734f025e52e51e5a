"""Affinity: the key of a request without a cookie, and the cookie's value."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from enum import StrEnum
from typing import Final
from urllib.parse import quote


class Source(StrEnum):
    """What chose the member of a request."""

    COOKIE = "cookie"
    KEY = "key"
    RANDOM = "random"
    HOST = "host"
    MOVED = "moved"
    SESSION = "session"
    # These two are counted as COOKIE. The cookie is to be renewed; a session is known to be where it leads.
    RENEWED = "renewed"
    FOUND = "found"

    # It is a key of counters, for each request; the hash of an enumeration is a call, that of a str is not.
    __hash__ = str.__hash__


#: What is counted.
COUNTED: Final = tuple(source for source in Source if source not in (Source.RENEWED, Source.FOUND))


# The number of segments after the provider that name the repository; a ref follows, which may have slashes.
# gl and git have the repository percent-encoded in one segment; a DOI is a repository with no ref.
_SEGMENTS = {
    b"gh": 2,
    b"gist": 2,
    b"gl": 1,
    b"git": 1,
    b"zenodo": 0,
    b"figshare": 0,
    b"hydroshare": 0,
    b"dataverse": 0,
    b"ckan": 0,
}


def repository_key(path: bytes) -> bytes | None:
    """The repository in a raw path without its query; None for a path without one.

    The same for `/build/PROVIDER/SPEC` and `/v2/PROVIDER/SPEC`, in lower case and without the ref, in the
    form that federation-redirect used: `/build/gh/USER/REPO`.
    """
    lowered = path.lower()
    if lowered.startswith(b"/build/"):
        spec = lowered[7:]
    elif lowered.startswith(b"/v2/"):
        spec = lowered[4:]
    else:
        return None
    provider, *parts = [part for part in spec.split(b"/") if part] or [b""]
    if not parts:
        return None
    count = _SEGMENTS.get(provider)
    if count is None:
        count = max(len(parts) - 1, 1)
    elif count != 1:
        # A slash of a repository's name or of a DOI may come encoded or not.
        parts = b"/".join(parts).replace(b"%2f", b"/").split(b"/")
    return b"/build/" + b"/".join((provider, *(parts[:count] if count else parts)))


def image_digest(path: bytes) -> bytes | None:
    """8 bytes that name what a launch runs: provider, repository and ref in a raw path without its query.

    None for a path without a repository. The same for `/build/...` and `/v2/...`, in lower case: that two
    refs differ only in case costs nobody more than a wrong guess.
    """
    lowered = path.lower().replace(b"%2f", b"/")
    if lowered.startswith(b"/build/"):
        spec = lowered[7:]
    elif lowered.startswith(b"/v2/"):
        spec = lowered[4:]
    else:
        return None
    parts = [part for part in spec.split(b"/") if part]
    return hashlib.blake2b(b"/".join(parts), digest_size=8).digest() if len(parts) > 1 else None


def path_key(path: bytes) -> bytes | None:
    """The path itself, in lower case."""
    return path.lower()


# `client` is not here: the client's address is not in the path.
KEYS: dict[str, Callable[[bytes], bytes | None]] = {"repository": repository_key, "path": path_key}


def cookie_value(name: str, secret: str | None) -> bytes:
    """The cookie's value for a member: its name, or with a `secret` 128 bits of an HMAC-SHA256."""
    if secret:
        return hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest()[:32].encode("ascii")
    # RFC 6265 section 4.1.1: no control bytes, white space, quotes, commas, semicolons or backslashes.
    return quote(name, safe="!#$&'()*+-./:<=>?@[]^_`{|}~").encode("ascii")
