"""Whether a request was sent by a page of this site, so that no other site uses a visitor's browser."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aiohttp import web

_PORTS: Final = {"http": "80", "https": "443"}
_ORIGIN: Final = re.compile(
    r"(https?)://([a-z0-9._~\-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?(?=[/?#]|$)", re.ASCII
).match


def is_own(request: web.Request, public: str | None) -> bool:
    """Whether the browser says that the request comes from a page of this site: no other may change anything.

    `public` is the site's origin, if it is known. A client that sends none of these headers is no browser, or
    a very old one, so nobody's browser is used against their will.
    """
    headers = request.headers
    where, origins = headers.getall("Sec-Fetch-Site", ()), headers.getall("Origin", ())
    if where:
        # The browser has compared the origins, even if a proxy changed the Host. A `null` origin, as from a
        # sandbox or a data: URL, is never ours.
        return set(where) <= {"same-origin", "none"} and None not in map(_origin, origins)
    # Over plain http, and in older browsers, there is only the Origin or the Referer of the form.
    return all(_is_here(request, each, public) for each in origins or headers.getall("Referer", ()))


def _is_here(request: web.Request, url: str, public: str | None) -> bool:
    """Whether an origin or a URL belongs to this site, by the Host or by the public URL."""
    origin = _origin(url)
    secure = request.headers.get("X-Forwarded-Proto") == "https"
    # If an untrusted proxy terminates TLS, what looks like http here may be https for the browser.
    schemes = ("https",) if secure else ("https", "http")
    here = {_origin(f"{scheme}://{request.headers.get('Host', '')}") for scheme in schemes}
    if public is not None:
        here.add(_origin(public))
    return origin is not None and origin in here


def _origin(url: str) -> str | None:
    """The origin of an http or https URL, in lower case and without the default port; None for others."""
    match = _ORIGIN(url.lower())
    if match is None:
        return None
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" if port in (None, _PORTS[scheme]) else f"{scheme}://{host}:{port}"
