"""Members of other people's programs: each a JupyterHub, a configurable-http-proxy, and visitors' servers.

At a member's one address is its proxy. What is below `/hub` and `/services` is the hub's, what is below
`/user` a server's, or the hub's if there is no such server; all else is BinderHub's, or its stand-in's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rig import programs
from tests.rig.binderhub import BinderHub
from tests.rig.command import MARK, marked

PUBLIC = "http://hub.test"
#: Whose pages may use the servers beside their own; mybinder.org lets everybody's.
BOOK = "https://book.test"
PASSWORD = "open sesame"
_ROOT = Path(__file__).parents[2]
_PATIENCE = 90.0
_PROGRAMS = Path(sys.prefix) / "node" / "node_modules" / ".bin"


def needed() -> pytest.MarkDecorator:
    """Skips where node is missing, or what npm installs for the tests."""
    missing = not (_PROGRAMS / "configurable-http-proxy").exists() or shutil.which("node") is None
    reason = "configurable-http-proxy is not installed: apt-get install nodejs npm, and make test again"
    return pytest.mark.skipif(missing, reason=reason)


class Member:
    """One member at work, at `url`; `binder` is what can be told to be full, or sick."""

    def __init__(self, name: str, folder: Path, secret: bytes) -> None:
        self.name = name
        self._folder = folder
        self._proxy, self._api, self._hub, self._binder = (programs.free_port() for _ in range(4))
        self.address = ("127.0.0.1", self._proxy)
        self.url = f"http://127.0.0.1:{self._proxy}"
        self.key = uuid.uuid4().hex
        self.binder = BinderHub(f"http://127.0.0.1:{self._hub}", PUBLIC, self.key, secret)
        self._mark = uuid.uuid4().hex
        self._env = {
            MARK: self._mark,
            "CONFIGPROXY_AUTH_TOKEN": uuid.uuid4().hex,
            "PYTHONPATH": str(_ROOT),
            "JUPYTERHUB_SINGLEUSER_APP": "jupyter_server.serverapp.ServerApp",
        }
        self._running = contextlib.ExitStack()

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """All of it, until the block ends: then nothing of it is left, whatever its visitors started."""
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self.binder.serving(self._binder))
                stack.enter_context(self._proxy_running())
                stack.callback(lambda: self._running.close())
                self.start_hub()
                yield
        finally:
            while left := marked(self._mark):
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)

    def start_hub(self) -> None:
        """Starts the hub; returns once BinderHub finds it well, through the member's address."""
        folder = self._folder / "hub"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "config.json"
        file.write_text(json.dumps(self._config(folder)))
        command = [sys.executable, "-m", "jupyterhub", "--config", str(file)]
        self._running.enter_context(
            programs.running(
                command, folder, port=self._proxy, ready="/health", env=self._env, within=_PATIENCE
            )
        )

    def stop_hub(self) -> None:
        """Stops the hub; its servers and its proxy go on."""
        self._running.close()

    def _proxy_running(self) -> contextlib.AbstractContextManager[int]:
        folder = self._folder / "proxy"
        folder.mkdir(parents=True)
        addresses = {"ip": "127.0.0.1", "port": self._proxy, "api-ip": "127.0.0.1", "api-port": self._api}
        command = [str(_PROGRAMS / "configurable-http-proxy"), "--log-level=warn"]
        command += [f"--{name}={value}" for name, value in addresses.items()]
        return programs.running(command, folder, port=self._proxy, ready="/", status=404, env=self._env)

    def _config(self, folder: Path) -> dict[str, object]:
        hub, binder = (f"http://127.0.0.1:{port}" for port in (self._hub, self._binder))
        scopes = ["admin:users", "admin:servers", "access:servers"]
        return {
            "JupyterHub": {
                "bind_url": self.url,
                "hub_bind_url": hub,
                "hub_routespec": "/hub/",
                "db_url": f"sqlite:///{folder}/hub.sqlite",
                "cookie_secret_file": f"{folder}/cookie_secret",
                "authenticator_class": "shared-password",
                "spawner_class": "tests.rig.spawner.Launcher",
                "allow_named_servers": True,
                # As on a cluster: what was started outlives the hub, and is found again.
                "cleanup_servers": False,
                "cleanup_proxy": False,
                "services": [{"name": "binder", "api_token": self.key}],
                "load_roles": [{"name": "binder", "services": ["binder"], "scopes": scopes}],
            },
            "ConfigurableHTTPProxy": {
                "should_start": False,
                "api_url": f"http://127.0.0.1:{self._api}",
                "extra_routes": {"/": binder, "/user/": hub, "/services/": hub},
            },
            "SharedPasswordAuthenticator": {"allow_all": True, "user_password": PASSWORD},
            "SimpleLocalProcessSpawner": {"home_dir_template": f"{self._folder}/homes/{{username}}"},
            "Spawner": {
                "env_keep": [*_KEPT, *self._env],
                "args": ["--ServerApp.allow_root=True", f"--ServerApp.allow_origin={BOOK}"],
            },
        }


# Of what the hub passes on by itself, what a Python in a virtual environment needs; PATH for terminals.
_KEPT = ("PATH", "VIRTUAL_ENV", "LANG", "LC_ALL")


@contextlib.contextmanager
def members(folder: Path, *names: str) -> Iterator[dict[str, Member]]:
    """Members of these names, started side by side: each takes seconds, most of them of one processor."""
    secret = os.urandom(16)
    found = {name: Member(name, folder / name, secret) for name in names}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as threads:
        starting = [threads.submit(stack.enter_context, member.started()) for member in found.values()]
        for each in starting:
            each.result()
        yield found
