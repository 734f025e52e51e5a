"""A real Jupyter Server as a member: kernels, their WebSockets and uploads, as in a launched session."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import random
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Origin

from tests.rig import Edge, edge, programs

TOKEN = uuid.uuid4().hex
HEADERS = {"Authorization": f"token {TOKEN}"}
BASE = "/user/x"
PUBLIC = "http://hub.test"
SIZE = 200_000_000
PIECE = 8_000_000
PATIENCE = 60.0  # seconds for what starts processes


@dataclass(frozen=True)
class Jupyter:
    """A running server, and the folder that its contents API shows."""

    port: int
    root: Path


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    folder = tmp_path_factory.mktemp("jupyter")
    root = folder / "root"
    root.mkdir()
    port = programs.free_port()
    options = {
        "ip": "127.0.0.1",
        "port": port,
        "port_retries": 0,
        "open_browser": False,
        "allow_root": True,
        "base_url": f"{BASE}/",
        "root_dir": root,
        # The member's Host is not what visitors type, so it must be told which Origin is its own.
        "allow_origin": PUBLIC,
        "terminals_enabled": False,
    }
    command = [sys.executable, "-m", "jupyter_server", f"--IdentityProvider.token={TOKEN}"]
    command += [f"--ServerApp.{name}={value}" for name, value in options.items()]
    own = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    env = {name: str(folder / name.lower()) for name in own}
    with programs.running(command, folder, port=port, ready=f"{BASE}/api", env=env, within=PATIENCE):
        yield Jupyter(port, root)


@dataclass(frozen=True)
class Visitor:
    """A session in a browser: REST with its status checked, and the way to a kernel's WebSocket."""

    running: Edge
    session: aiohttp.ClientSession

    @property
    def authority(self) -> str:
        host, port = self.running.address
        return f"{host}:{port}"

    async def rest(self, method: str, path: str, content: object = None, *, expect: int) -> Any:
        url = f"http://{self.authority}{BASE}{path}"
        # A file, because aiohttp sends it in pieces and not at once.
        body = io.BytesIO(json.dumps(content).encode()) if content is not None else None
        async with self.session.request(method, url, data=body) as answer:
            text = await answer.text()
            assert answer.status == expect, text
            return json.loads(text) if text else None

    def channels(self, kernel: str) -> connect:
        url = f"ws://{self.authority}{BASE}/api/kernels/{kernel}/channels?session_id=s"
        return connect(url, proxy=None, max_size=None, additional_headers=HEADERS, origin=Origin(PUBLIC))


@asynccontextmanager
async def visiting(jupyter: Jupyter) -> AsyncIterator[Visitor]:
    async with (
        edge({"a": f"http://127.0.0.1:{jupyter.port}"}, public_url=PUBLIC) as running,
        aiohttp.ClientSession(headers=HEADERS) as session,
        asyncio.timeout(PATIENCE),
    ):
        yield Visitor(running, session)


async def said_by(websocket: ClientConnection, code: str) -> str:
    """Has the kernel run `code`: what it prints, once it is idle again."""
    number = uuid.uuid4().hex
    header = {
        "msg_id": number,
        "msg_type": "execute_request",
        "username": "",
        "session": "s",
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    message = {
        "header": header,
        "parent_header": {},
        "metadata": {},
        "content": content,
        "channel": "shell",
        "buffers": [],
    }
    await websocket.send(json.dumps(message))
    printed = ""
    while True:
        reply = json.loads(await websocket.recv())
        if reply["parent_header"].get("msg_id") != number:
            continue
        if reply["msg_type"] == "stream":
            printed += reply["content"]["text"]
        if reply["msg_type"] == "status" and reply["content"]["execution_state"] == "idle":
            return printed


async def test_kernel_is_started_runs_code_and_is_deleted(jupyter: Jupyter) -> None:
    async with visiting(jupyter) as visitor:
        kernel = (await visitor.rest("POST", "/api/kernels", {"name": "python3"}, expect=201))["id"]
        async with visitor.channels(kernel) as websocket:
            assert await said_by(websocket, "print(6 * 7)") == "42\n"
            # Below what the server sends in a second at most, above the edge's mark.
            assert await said_by(websocket, "print('x' * 500_000)") == "x" * 500_000 + "\n"
        await visitor.rest("DELETE", f"/api/kernels/{kernel}", expect=204)
        assert await visitor.rest("GET", "/api/kernels", expect=200) == []


async def test_kernel_is_not_reached_without_the_token(jupyter: Jupyter) -> None:
    async with visiting(jupyter) as visitor:
        visitor.session.headers.clear()
        await visitor.rest("GET", "/api/kernels", expect=403)


async def test_upload_of_200_mb_is_on_the_disk_byte_for_byte(jupyter: Jupyter) -> None:
    piece = random.Random(200).randbytes(PIECE)
    whole = hashlib.sha256()
    held = 0
    async with visiting(jupyter) as visitor:
        count = SIZE // PIECE
        for number in range(1, count + 1):
            # No two pieces are alike, so none can take another's place.
            data = number.to_bytes(4, "big") + piece[4:]
            whole.update(data)
            content = {
                "type": "file",
                "format": "base64",
                "content": base64.b64encode(data).decode(),
                "chunk": number if number < count else -1,
            }
            expect = 201 if number == 1 else 200
            await visitor.rest("PUT", "/api/contents/upload.bin", content, expect=expect)
            held = max(held, visitor.running.buffered())
        shown = await visitor.rest("GET", "/api/contents/upload.bin?content=0", expect=200)
    assert shown["size"] == SIZE
    with (jupyter.root / "upload.bin").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == whole.digest()
    assert held < 2 << 20
