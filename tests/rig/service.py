"""A `Service` in this process, and a client of its admin listener."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import yaml

from fedproxy.config.load import parse
from fedproxy.config.model import Config
from fedproxy.serve.service import Service

TOKEN = {"Authorization": "Bearer s3cret"}


def config_of(url: str, **overrides: object) -> Config:
    base = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "workers": 1,
        "members": {"a": {"url": url}},
    }
    return parse(yaml.safe_dump({**base, **overrides}), {})


@asynccontextmanager
async def running(
    folder: Path, url: str, *, probe: bool = False
) -> AsyncIterator[tuple[Service, aiohttp.ClientSession]]:
    """An edge of two workers, and a client of its admin listener."""
    file = folder / "edge.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "listen": [{"address": "127.0.0.1:0"}],
                "admin": {
                    "address": "127.0.0.1:0",
                    "token": "s3cret",
                    "state": str(folder / "kept/state.json"),
                },
                "workers": 2,
                "access_log": "off",
                "members": {"old": {"url": url}},
            }
        )
    )
    service = Service(parse(file.read_text(), {}), file=file, probe=probe)
    await service.start()
    host, port = service.admin_address
    try:
        async with aiohttp.ClientSession(f"http://{host}:{port}", headers=TOKEN) as admin:
            yield service, admin
    finally:
        await service.stop()
