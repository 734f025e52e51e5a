"""A request's path as others may read it: servers and proxies decode, merge and resolve more or less of it.

The edge forwards a path byte for byte, and compares it in the ways in which its receivers may read it.
Tornado takes the bytes as they are; nginx and WSGI servers decode all of it once, Traefik only what needs no
encoding; nginx, Traefik and Envoy merge slashes and resolve dot segments; Envoy and the proxy of JupyterHub
take a backslash for a slash.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

# Most paths are like this, and have one reading: no escape, no segment that is empty or starts with a dot.
_PLAIN: Final = re.compile(rb"(?:/[^/.%;\\][^/%;\\]*+)*+/?").fullmatch
_SLASHES: Final = re.compile(rb"[/\\]+")
# Decoded, these end a path for some servers; `;` begins a parameter, which some remove.
_END: Final = re.compile(rb"[\0?#;]")
# RFC 3986 section 6.2.2.2: these mean the same encoded or not.
_UNRESERVED: Final = {
    b"%02X" % byte: bytes((byte,))
    for byte in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
}
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def readings(path: bytes) -> tuple[bytes, ...]:
    """All the ways in which a raw path without its query may be read, each once.

    The first is the one to compare: percent-decoded once, slashes merged, dot segments resolved. A path that
    is denied in any reading must be denied. An invalid escape stays as it is.
    """
    if _PLAIN(path) is not None:
        return (path,)
    once = unquote_to_bytes(path)
    found: dict[bytes, None] = {}
    for form in dict.fromkeys((once, path, unquote_to_bytes(once))):
        merged = _SLASHES.sub(b"/", form)
        resolved = _resolve(merged)
        found[resolved] = found[merged] = None
        if len(resolved) > 1 and resolved[-1:] == b"/" != merged[-1:]:
            # RFC 3986 section 5.2.4 keeps the slash before a last dot segment, Go's `path.Clean` does not.
            found[resolved[:-1]] = None
        end = _END.search(resolved)
        if end is not None:
            found[resolved[: end.start()]] = None
    found[path] = found[canonical(path)] = None
    return tuple(found)


def normal(path: bytes) -> bytes:
    """The first reading."""
    return _resolve(_SLASHES.sub(b"/", unquote_to_bytes(path)))


def canonical(path: bytes) -> bytes:
    """The path as RFC 3986 section 6.2.2 normalizes it, with its slashes merged.

    An escape of a reserved byte stays, such as `%2F` in the name of a repository.
    """
    return _resolve(_SLASHES.sub(b"/", _ESCAPE.sub(_decode_unreserved, path)))


def _decode_unreserved(escape: re.Match[bytes]) -> bytes:
    return _UNRESERVED.get(escape[1].upper(), escape[0])


def _resolve(path: bytes) -> bytes:
    """Removes dot segments, as RFC 3986 section 5.2.4 does, from a path without empty segments."""
    if b"/." not in path:
        return path
    kept: list[bytes] = []
    segments = path.split(b"/")
    for segment in segments[1:]:
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)
