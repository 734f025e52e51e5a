"""The two ways to speak HTTP/2 with the edge: over TLS, by ALPN, and in clear, with those who know."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from tests.rig.edge import Edge
from tests.rig.visitor import END, pair, trusting


@dataclass(frozen=True)
class Way:
    """`listen` is what an edge's config needs. `ca`: whom to trust, as a file; in clear, nobody."""

    scheme: str
    listen: list[dict[str, Any]]
    ca: Path | None = None
    trust: ssl.SSLContext | None = None

    def url(self, running: Edge, target: str) -> str:
        host, port = running.address
        return f"{self.scheme}://{host}:{port}{target}"


def over_tls(folder: Path, **listener: object) -> Way:
    """With a certificate for 127.0.0.1 and localhost, of an authority of its own; the folder keeps them."""
    authority = trustme.CA()
    files = pair(folder / "tls", authority.issue_cert("127.0.0.1", "localhost", not_after=END))
    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    tls = {"certificate": str(files.certificate), "private_key": str(files.private_key)}
    listen = {"address": "127.0.0.1:0", "tls": tls, **listener}
    return Way("https", [listen], ca, trusting(authority))


def in_clear(*, http2: bool = True) -> Way:
    return Way("http", [{"address": "127.0.0.1:0", "http2": http2}])
