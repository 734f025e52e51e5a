"""Addresses and URLs as an operator writes them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from os.path import realpath

from fedproxy.config.units import Kind, count, within

_HOST = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
_ADDRESS = re.compile(_HOST + r":(?P<port>[0-9]{1,5})")
_ORIGIN = re.compile(r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://" + _HOST + r"(?::(?P<port>[0-9]{1,5}))?/?")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_URL_REST = re.compile(r"([/?#][!#$%&'()*+,./:;=?@A-Za-z0-9_~-]*)?")
_PATH = re.compile(r"/[!$&'()*+,./:;=@%A-Za-z0-9_~-]*")
_TARGET = re.compile(r"/[!$&'()*+,./:;=?@%A-Za-z0-9_~-]*")
_MAILTO = re.compile(r"mailto:[A-Za-z0-9.!#$%&*+/=?^_{|}~-]+@[A-Za-z0-9.-]+")
#: The names of cookies (RFC 6265 section 4.1.1), and of members and tokens.
COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+@:-]{0,63}")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A listener's address: `host` and `port`, or only `path` for a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def overlap(one: Address, other: Address) -> bool:
    """Whether both cannot be listened on: a port, of one address or of all that the machine has; a socket.

    `[::]` is for IPv4 too. A name is its own address, because nothing is asked here; `localhost` is known.
    """
    if one.path or other.path:
        return bool(one.path and other.path) and realpath(one.path) == realpath(other.path)
    if one.port != other.port or one.port == 0:
        return False
    first, second = _bound_host(one), _bound_host(other)
    if first == second or "::" in (first, second):
        return True
    return "0.0.0.0" in (first, second) and ":" not in first + second


def _bound_host(address: Address) -> str:
    """The host as it is compared. Names are looked up as IPv4."""
    host = address.host.removesuffix(".")
    return "127.0.0.1" if host == "localhost" else host


@dataclass(frozen=True)
class MemberAddress:
    """A member's address.

    `host` has no brackets. `authority` is the value of its Host header, with the port only if it is not the
    scheme's default (RFC 9110 section 4.2.3). `path`: of a unix socket, with `localhost` as `authority`.
    """

    tls: bool
    host: str
    port: int
    authority: str
    path: str = ""


def hostname(value: object) -> str | None:
    """A DNS name or IP address, in lower case and without brackets."""
    if not isinstance(value, str):
        return None
    bracketed = value.startswith("[") and value.endswith("]")
    bare = value[1:-1] if bracketed else value
    if bracketed or ":" in bare or bare.rpartition(".")[2].isdecimal():
        try:
            parsed = ipaddress.IPv6Address(bare) if bracketed else ipaddress.ip_address(bare)
        except ValueError:
            return None
        return str(parsed)
    labels = bare.removesuffix(".").split(".")
    return bare.lower() if len(bare) <= 253 and all(map(_LABEL.fullmatch, labels)) else None


def _host_of_requests(value: object) -> str | None:
    # A trailing dot does not change which host is meant.
    host = hostname(value)
    return host.removesuffix(".") if host else None


def _socket_path(value: str) -> str | None:
    # sun_path has 108 bytes on Linux, and the last one is zero.
    path = value.removeprefix("unix:")
    return path if path.startswith("/") and path.isprintable() and len(path.encode()) < 108 else None


def address(value: object) -> Address | None:
    """HOST:PORT, [IPv6]:PORT or unix:/PATH."""
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        return None
    if value.startswith("unix:"):
        path = _socket_path(value)
        return Address(path=path) if path else None
    match = _ADDRESS.fullmatch(value)
    host = hostname(match["host"]) if match else None
    if match is None or host is None or int(match["port"]) > 65535:
        return None
    return Address(host, int(match["port"]))


def _dns_name(value: object) -> str | None:
    """A whole DNS name, in lower case and without the dot at its end; `_SERVICE._PROTO.NAME` is one too."""
    name = hostname(value)
    if name is None or ":" in name or name.rpartition(".")[2].isdecimal():
        return None
    return name.removesuffix(".")


def _origin(value: object) -> tuple[str, str, int] | None:
    """Scheme, host and port of a URL that has no other parts."""
    match = _ORIGIN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    scheme, host = match["scheme"].lower(), hostname(match["host"])
    port = int(match["port"]) if match["port"] else _PORTS[scheme]
    return (scheme, host, port) if host and 0 < port < 65536 else None


def _authority(scheme: str, host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port == _PORTS[scheme] else f"{name}:{port}"


def origin(value: object) -> str | None:
    """The origin in the form that browsers send it (RFC 6454 section 6.2)."""
    parts = _origin(value)
    return f"{parts[0]}://{_authority(*parts)}" if parts else None


def member_url(value: object) -> str | None:
    """An http or https URL with no path, or unix:/PATH."""
    if isinstance(value, str) and value.startswith("unix:"):
        path = _socket_path(value)
        return f"unix:{path}" if path else None
    return origin(value)


def member_address(url: str) -> MemberAddress:
    """The address of the member with this valid `url`."""
    if url.startswith("unix:"):
        return MemberAddress(False, "localhost", 80, "localhost", url.removeprefix("unix:"))
    parts = _origin(url)
    if parts is None:
        raise ValueError(f"{url!r} is not a member's URL")
    scheme, host, port = parts
    return MemberAddress(scheme == "https", host, port, _authority(scheme, host, port))


def link(value: object) -> str | None:
    """An http or https URL without characters that could end an HTML attribute."""
    if not isinstance(value, str):
        return None
    start = re.match(r"https?://[^/?#]*", value)
    if start is None or _origin(start[0]) is None or not _URL_REST.fullmatch(value[start.end() :]):
        return None
    return value


def _contact(value: object) -> str | None:
    if isinstance(value, str) and _MAILTO.fullmatch(value):
        return value
    return link(value)


def _target_or_link(value: object) -> str | None:
    if isinstance(value, str) and _TARGET.fullmatch(value) and not value.startswith("//"):
        return value
    return link(value)


def _route_path(value: object) -> str | None:
    return value if isinstance(value, str) and _PATH.fullmatch(value) else None


def base_path(value: object) -> str | None:
    """A path with a slash at both ends."""
    path = _route_path(value)
    if path is None or "*" in path or "//" in path:
        return None
    return path if path.endswith("/") else f"{path}/"


def _matches(pattern: re.Pattern[str], value: object) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


ADDRESS = Kind("address", "HOST:PORT such as 0.0.0.0:8080 or [::]:8080, or unix:/PATH", address, str)
ORIGIN = Kind("URL", "an http:// or https:// URL with no path", origin)
MEMBER_URL = Kind("URL", "an http:// or https:// URL with no path, or unix:/PATH", member_url)
LINK = Kind("URL", "an http:// or https:// URL", link)
LINK_OR_OFF = Kind(
    "URL or off",
    "an http:// or https:// URL, or off",
    lambda v: "off" if v is False or v == "off" else link(v),
)
CONTACT = Kind("URL", "an http://, https:// or mailto: URL", _contact)
PROBED = Kind("path or URL", "a path such as /health, or an http:// or https:// URL", _target_or_link)
LOCATION = Kind("path or URL", "a path, or an http:// or https:// URL", _target_or_link)
ROUTE_PATH = Kind("path", "a path such as /badge.svg or /build/*", _route_path)
BASE_PATH = Kind("path", "a path such as / or /services/binder/", base_path)
HOSTNAME = Kind("host", "a host name or IP address, no port", _host_of_requests)
DNS_NAME = Kind(
    "DNS name", "a DNS name such as binder.example.org or _https._tcp.binder.example.org", _dns_name
)
PORT = Kind("port", "a port from 1 to 65535", within(count, 1, 65535))
COOKIE_NAME = Kind(
    "text", "a cookie's name: letters, digits and - _ . (RFC 6265)", lambda v: _matches(COOKIE, v)
)
_LETTERS = "of up to 64 letters, digits and - . _ ~ + @ :, a letter or digit first"
TOKEN_NAME = Kind("text", f"a token's name {_LETTERS}", lambda v: _matches(NAME, v))
MEMBER_NAME = Kind("text", f"a member's name {_LETTERS}", lambda v: _matches(NAME, v))
