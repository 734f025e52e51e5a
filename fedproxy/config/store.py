"""Where what operators set, and what the edges of a fleet share, is kept: a file, or Redis."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from fedproxy.config.units import Kind, text

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
SCHEMES: Final = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_SERVER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_SERVICE: Final = re.compile(r"[A-Za-z0-9_.:-]+")


@dataclass(frozen=True)
class StoreAddress:
    """Redis, as its URL names it.

    kind: one server; Sentinels that know which server it is at the moment, by the name `service`; or some of
    a cluster's servers. ca: file with the certificate authorities to trust, with `tls`; None for the
    system's.
    """

    kind: Literal["server", "sentinel", "cluster"]
    servers: tuple[tuple[str, int], ...]
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    service: str = ""
    ca: Path | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        servers = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.servers
        )
        scheme = next(name for name, each in SCHEMES.items() if each == (self.kind, self.tls))
        path = "/".join(str(part) for part in (self.service, self.database) if part)
        return f"{scheme}://{servers}{'/' if path else ''}{path}"

    def with_ca(self, ca: Path | None) -> StoreAddress:
        """The same, with the authorities to trust."""
        return replace(self, ca=ca)


def store(value: object) -> StoreAddress | Path | None:
    """A file's path, or the URL of Redis; None for anything else."""
    if isinstance(value, StoreAddress | Path):
        return value
    parsed = text(value)
    if parsed is None:
        return None
    if "://" in parsed:
        return _address(parsed)
    return Path(parsed) if Path(parsed).name not in ("", "..") else None


def _address(url: str) -> StoreAddress | None:
    scheme, _, _ = url.partition("://")
    if scheme not in SCHEMES or any(char <= " " for char in url):
        return None
    kind, tls = SCHEMES[scheme]
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.query or parts.fragment:
        return None
    login, at, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    servers = []
    for host in hosts.split(","):
        match = _SERVER.fullmatch(host)
        port = (
            int(match[2])
            if match is not None and match[2]
            else (_SENTINEL_PORT if kind == "sentinel" else _PORT)
        )
        if match is None or not 1 <= port <= 65535:
            return None
        servers.append((match[1].strip("[]"), port))
    path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
    service = ""
    if kind == "sentinel":
        if not path or _SERVICE.fullmatch(path[0]) is None:
            return None
        service = path.pop(0)
    database = path.pop(0) if path else "0"
    if path or not database.isdecimal() or len(database) > 4 or (kind == "cluster" and database != "0"):
        return None
    if kind == "server" and len(servers) > 1:
        return None
    return StoreAddress(
        kind,  # type: ignore[arg-type]
        tuple(servers),
        tls,
        unquote(user) or None,
        unquote(password) or None if at else None,
        int(database),
        service,
    )


def _render(value: object) -> str:
    """As it is shown: without the password."""
    if not isinstance(value, StoreAddress):
        return str(value)
    scheme, _, rest = value.place.partition("://")
    secret = ":***" if value.password else ""
    return f"{scheme}://{value.user or ''}{secret}{'@' if value.user or secret else ''}{rest}"


def _edge_name(value: object) -> str | None:
    return value if isinstance(value, str) and NAME.fullmatch(value) else None


def _prefix(value: object) -> str | None:
    return value if isinstance(value, str) and PREFIX.fullmatch(value) else None


EDGE_NAME = Kind("name of an edge", "letters, digits, dots, hyphens and underscores, 1 to 100", _edge_name)
STORE_PREFIX = Kind(
    "prefix of keys", "letters, digits, dots, hyphens, underscores and colons, 1 to 100", _prefix
)
STORE = Kind(
    "file or URL of Redis",
    "the path of a file, or redis://HOST, rediss://HOST, redis+sentinel://HOST,HOST/SERVICE or "
    "redis+cluster://HOST,HOST",
    store,
    _render,
)
