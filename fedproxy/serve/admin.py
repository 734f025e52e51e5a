"""Questions to an edge's admin listener, by the edge itself or by who checks its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from fedproxy.control.fetch import FAULTS, Fetched, fetch, open_session

if TYPE_CHECKING:
    from fedproxy.config.model import AdminSettings

_LARGEST: Final = 1 << 25  # bytes
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


async def ask_admin(
    admin: AdminSettings, path: str, timeout: float, headers: Mapping[str, str] | None = None
) -> Fetched:
    """What the admin listener of this config answers. timeout: seconds.

    Raises OSError if there is no answer.
    """
    address = admin.address
    connector = aiohttp.UnixConnector(address.path) if address.path else None
    host = "localhost" if address.path else _WILDCARDS.get(address.host, address.host)
    url = URL.build(scheme="http", host=host, port=address.port or None, path=path)
    # Not sent where it is not asked for: who listens there is not known.
    secret = next(iter(admin.named_tokens.values())).token if admin.read == "token" else None
    said = {} if secret is None else {"Authorization": f"Bearer {secret.get_secret_value()}"}
    async with open_session(said, connector, decompress=True) as session:
        try:
            return await fetch(session, url, timeout=timeout, most=_LARGEST, headers=headers)
        except FAULTS as error:
            raise OSError(str(error)) from error
