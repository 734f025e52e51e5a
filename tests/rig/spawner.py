"""What a member's JupyterHub starts servers with: it imports this module by its name."""

from __future__ import annotations

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
        return await super().start()

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
