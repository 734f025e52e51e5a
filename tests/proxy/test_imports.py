"""Every module of the hot path can be imported first, in Python and compiled: there is no circle."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path

import fedproxy

PROGRAM = """
import importlib, os, sys
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(*failed)
"""


async def test_every_module_can_be_imported_first() -> None:
    root = Path(fedproxy.__file__).parent
    names = [
        ".".join(("fedproxy", *path.relative_to(root).with_suffix("").parts))
        for room in ("decide", "http", "proxy", "wire")
        for path in sorted((root / room).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    assert len(names) > 60
    assert all(map(find_spec, names))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", PROGRAM, *names, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert (process.returncode, output.decode().split()) == (0, [])
