"""What a member's JupyterHub starts servers with: it imports this module by its name."""

from __future__ import annotations

import asyncio
import sys

from jupyterhub.spawner import SimpleLocalProcessSpawner

from tests.rig import programs


class Launcher(SimpleLocalProcessSpawner):  # type: ignore[misc]
    """Starts processes of this machine.

    As with BinderHub's own spawner, a server that has a token in its options is for whoever has the token,
    and asks no hub who comes. Another one is its owner's, who logs in at the hub.
    """

    port: int  # the hub's; 0 before the start

    async def start(self) -> object:
        self.cmd = [sys.executable, "-m", "jupyter_server" if self._token else "jupyterhub.singleuser"]
        self.port = self.port or programs.free_port()
        where = await super().start()
        # The hub would look ever more rarely, and miss seconds.
        while not await self._listens() and await self.poll() is None:
            await asyncio.sleep(0.05)
        return where

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    def get_args(self) -> list[str]:
        if not self._token:
            return list(super().get_args())
        options = {
            "ip": "127.0.0.1",
            "port": self.port,
            "base_url": self.server.base_url,
            "trust_xheaders": True,
            # So by itself where a server listens on every address of its pod.
            "allow_remote_access": True,
        }
        arguments = [f"--ServerApp.{name}={value}" for name, value in options.items()]
        return [*arguments, f"--IdentityProvider.token={self._token}", "--no-browser", *self.args]

    @property
    def _token(self) -> str:
        return str(self.user_options.get("token", ""))
