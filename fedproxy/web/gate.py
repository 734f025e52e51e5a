"""Who may do what on the admin listener: tokens with a name and rights."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Protocol

from aiohttp import web

from fedproxy.web.answers import RefusedError

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from fedproxy.config.model import Config, TokenSettings

CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="fedproxy"'}
_PROBES: Final = ("/health/live", "/health/ready")
# The page looks for itself, as a browser cannot send a token with it; the others are files of this program.
_PAGE: Final = ("/", "/style.css", "/icon.svg", "/live.js", "/charts.js", "/uplot.js", "/uplot.css")
#: Says itself what is wrong with a token.
_WHOAMI: Final = "/whoami"


class GateState(Protocol):
    """What is to be known of the edge."""

    @property
    def config(self) -> Config:
        """The config in force."""

    def note_refusal(self, client: str) -> None:
        """A request of this client had a wrong token, or one with too few rights."""


class Gate:
    """Compares the tokens of requests with those of the config in force."""

    def __init__(self, state: GateState) -> None:
        self._state = state

    @web.middleware
    async def guard_reading(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A middleware that refuses reading where it needs a token."""
        if request.method in ("GET", "HEAD") and request.path not in (*_PROBES, *_PAGE, _WHOAMI):
            self.reader(request)
        return await handler(request)

    def may_read(self, request: web.Request) -> bool:
        """Whether reading is open, or the request has a token."""
        return self._state.config.admin.read == "open" or self._name_of(request) is not None

    def reader(self, request: web.Request) -> None:
        """Raises `RefusedError` for who may not read."""
        if not self.may_read(request):
            raise self._refuse(request, 401, "Reading needs a token here.")

    def writer(self, request: web.Request) -> str:
        """Who writes: the token's name and the client's address. Raises `RefusedError` for who may not."""
        tokens = self._state.config.admin.named_tokens
        if not any(settings.rights == "write" for settings in tokens.values()):
            raise RefusedError(403, "Writes are off: the config has no token for them, such as admin.token.")
        name = self._name_of(request)
        if name is None:
            raise self._refuse(request, 401, "This needs the admin token.")
        if tokens[name].rights != "write":
            raise self._refuse(request, 403, f"The token {name} is for reading only.")
        return f"{name} {_client(request)}"

    def who(self, request: web.Request) -> tuple[str, TokenSettings]:
        """The request's token: its name and its settings. Raises `RefusedError` without a valid one."""
        name = self._name_of(request)
        if name is None:
            raise self._refuse(request, 401, "This is not a valid token.")
        return name, self._state.config.admin.named_tokens[name]

    def _name_of(self, request: web.Request) -> str | None:
        """The name of the request's token; None without one, or for a wrong one."""
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        # Digests are of one length, and all are compared: the time tells nothing about any token.
        digest = sha256(given.strip(" ").encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, settings in self._state.config.admin.named_tokens.items():
            expected = sha256(settings.token.get_secret_value().encode()).digest()
            if hmac.compare_digest(digest, expected):
                found = name
        return found

    def _refuse(self, request: web.Request, status: int, detail: str) -> RefusedError:
        # Who sends none has not tried anything, such as a browser that asks for the page's data too early.
        if "Authorization" in request.headers:
            self._state.note_refusal(_client(request))
        return RefusedError(status, detail, dict(CHALLENGE) if status == 401 else None)


def _client(request: web.Request) -> str:
    """The address that a request came from; a peer of a unix socket has none."""
    return request.remote or "unix"
